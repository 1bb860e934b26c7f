"""`edgeface demo` where there are no published weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_ir import write_tiny_ir

from edgeface.cli import main
from edgeface.demo import MODEL


def test_a_seeded_ir_never_replaces_one_of_real_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEFACE_MIRROR", raising=False)
    monkeypatch.setenv("EDGEFACE_DATA", str(tmp_path / "absent"))
    real = write_tiny_ir(tmp_path)
    for suffix in (".bin", ".xml"):
        real.with_suffix(suffix).rename(tmp_path / f"{MODEL}{suffix}")
    before = (tmp_path / f"{MODEL}.bin").read_bytes()

    assert main(["demo", "-o", str(tmp_path), "--offline"]) == 2

    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the demo goes on without it") == 1
    assert "expected no IR of real weights where a seeded one will be written, found one" in said
    assert "--output-dir" in said
    assert "EDGEFACE_DATA is not set" not in said
    assert (tmp_path / f"{MODEL}.bin").read_bytes() == before
