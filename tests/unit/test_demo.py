"""`edgeface demo` where there are no published weights."""

from __future__ import annotations

import json
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


@pytest.mark.slow
def test_without_a_real_model_or_photos_the_demo_says_that_nobody_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEFACE_MIRROR", raising=False)
    monkeypatch.delenv("EDGEFACE_DATA", raising=False)

    assert main(["demo", "-o", str(tmp_path / "out"), "--offline", "--json"]) == 3

    answer = json.loads(capsys.readouterr().out)
    assert answer["recognition"] is None
    assert "photos of people" in answer["missing"]
    assert answer["provenance"] == "seeded"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Nobody is named here." in page
    assert "Seeded weights." in page
