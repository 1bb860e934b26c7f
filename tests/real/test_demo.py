"""`edgeface demo` with the real weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeface import zoo
from edgeface.cli import main
from edgeface.gallery.opening import open_gallery

pytestmark = [pytest.mark.real, pytest.mark.nightly]  # .ci/run makes the demo itself, twice


def test_the_demo_makes_the_report_and_the_default_model(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EDGEFACE_MIRROR", raising=False)
    mine = [tmp_path / "out" / name for name in ("door.png", "people/My Child/1.png", "people/Colin Powell/1.png")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not the demo's")
    command = ["demo", "-o", str(tmp_path / "out"), "--data", str(data), "--offline", "--json"]
    assert main(command) == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert f"{answer['model']} is now the default" in said.err
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
    assert [path.read_bytes() for path in mine] == [b"not the demo's"] * 3
    with open_gallery(named["gallery"], key=None) as gallery:
        assert sorted(person.name for person in gallery.people()) == named["enrolled"]
    photos = sorted({each["photo"] for each in named["answers"]})
    assert len(photos) == 3
    assert main(["identify", str(Path(photos[0]).parent), "--gallery", named["gallery"]]) in (0, 1)
    identified = capsys.readouterr().out
    assert all(name in identified for name in named["enrolled"])

    assert main(command) == 0
    assert "is now the default" not in capsys.readouterr().err, "it was before"
