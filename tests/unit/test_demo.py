"""`edgeface demo` where there are no published weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_ir import write_tiny_ir

from edgeface.cli import main
from edgeface.demo import MODEL
from edgeface.demo.people import DemoPhotos, _photo_archive
from edgeface.errors import OutputError
from edgeface.vision.image import read_image


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
    find_spec = importlib.util.find_spec  # TensorFlow takes longer than all the rest, and is tried in tests/real
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name))

    assert main(["demo", "-o", str(tmp_path / "out"), "--offline", "--json"]) == 3

    answer = json.loads(capsys.readouterr().out)
    assert answer["recognition"] is None
    assert "photos of people" in answer["missing"]
    assert answer["provenance"] == "seeded"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Nobody is named here." in page
    assert "Seeded weights." in page


def _photos(brightness: int = 90) -> DemoPhotos:
    photo = np.full((20, 16, 3), brightness, np.uint8)
    return DemoPhotos(enrolled={"Ada": photo}, door=[("Ada", photo + 1), (None, photo + 2)], origin="here", kind="tiny")


def test_all_photos_are_written_and_a_second_run_finds_them(tmp_path: Path) -> None:
    people, door = _photos().write(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in people + door] == [
        "people/Ada/1.png",
        "door/1.png",
        "door/2.png",
    ]
    assert [read_image(path).max() for path in people + door] == [90, 91, 92]
    assert _photos().write(tmp_path) == (people, door)


@pytest.mark.parametrize("place", ["people/Ada/1.png", "door/2.png"])
@pytest.mark.parametrize("content", [b"my holidays", None])
def test_a_file_that_the_demo_did_not_write_is_never_overwritten(
    tmp_path: Path, place: str, content: bytes | None
) -> None:
    mine = tmp_path / place
    if content is None:  # a photo, but another one
        _photos(brightness=10).write(tmp_path)
    else:
        mine.parent.mkdir(parents=True)
        mine.write_bytes(content)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    with pytest.raises(OutputError, match=r"found another file; move .* away, or choose another --output-dir"):
        _photos().write(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_a_file_in_the_place_of_the_photo_archive_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "face_recognition-1.3.0.tar.gz"
    mine.write_bytes(b"my own")
    with pytest.raises(OutputError, match="found another file; move it away"):
        _photo_archive(tmp_path, offline=False, say=lambda line: None)
    assert mine.read_bytes() == b"my own"
