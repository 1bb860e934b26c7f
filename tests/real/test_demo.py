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
    assert answer["contract_id"] == "c9c4145b201ace67"
    assert answer["provenance"] == "published", "the weights are known, whatever file carried them"
    named = answer["recognition"]
    assert named["contract_id"] == answer["contract_id"]
    assert [each["truth"] for each in named["answers"] if each["truth"]] == sorted(named["enrolled"], reverse=True)
    assert all(each["right"] for each in named["answers"])
    assert answer["parity"]["passed"]
    by_relation: dict[str, list[float]] = {}
    for pair in answer["pairs"]:
        by_relation.setdefault(pair["relation"], []).append(pair["similarity"])
    assert min(by_relation["same person"]) > max(by_relation["different people"])
    report = Path(answer["report"]).read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in report
    assert "Not found in" not in report, "where weights were not is no fault once they were found"
    default = zoo.default_model()
    assert default.is_relative_to(tmp_path / "cache")
    assert default.with_suffix(".bin").read_bytes() == Path(answer["ir"]).with_suffix(".bin").read_bytes()
