"""`edgeface demo` with the real weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeface import zoo
from edgeface.cli import main

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_the_demo_makes_the_report_and_the_default_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEFACE_MIRROR", raising=False)
    assert main(["demo", "-o", str(tmp_path / "out"), "--data", str(data), "--offline", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["contract_id"] == "4c0ebb72970188bf"
    assert answer["parity"]["passed"]
    by_relation: dict[str, list[float]] = {}
    for pair in answer["pairs"]:
        by_relation.setdefault(pair["relation"], []).append(pair["similarity"])
    assert min(by_relation["same person"]) > max(by_relation["different people"])
    report = Path(answer["report"]).read_text(encoding="utf-8")
    assert "data:image/png;base64," in report
    assert "Not found in" not in report, "where weights were not is no fault once they were found"
    default = zoo.default_model()
    assert default.is_relative_to(tmp_path / "cache")
    assert default.with_suffix(".bin").read_bytes() == Path(answer["ir"]).with_suffix(".bin").read_bytes()
