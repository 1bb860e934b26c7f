"""Every command that reads a folder of people sees the same photos and the same people in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
from tiny_ir import TINY_SIZE, tiny_crop, write_tiny_ir

from edgeface.cli import main
from edgeface.evaluate.pairs import images_of_people, pairs_from_folders
from edgeface.evaluate.recipe_check import _list_photos
from edgeface.gallery.enrolment_images import plan_enrolment
from edgeface.model.ir_file import read_contract
from edgeface.quantize.calibration import gather

PEOPLE = {"Ada": 0, "Dan": 1, "Eve": 2}
PHOTOS = [f"people/{name}/{photo}" for name in PEOPLE for photo in ("2021/b.pgm", "a.png", "c.tif")]
FAILURES = {"people/Ada/clip.mp4": "a video (MP4)", "people/Eve/pic.gif": "a GIF", "people/Gus": "a link to nothing"}
LEFT_OUT = [
    f"people/{name}" for name in (".DS_Store", "@eaDir", "Ada/@eaDir", "Eve/._a.png", "Eve/Thumbs.db", "Eve/up")
]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_tiny_ir(tmp_path)
    for name, channel in PEOPLE.items():
        folder = Path("people", name)
        (folder / "2021").mkdir(parents=True)
        for photo in ("a.png", "c.tif"):
            crop = tiny_crop([200 if each == channel else 10 for each in range(3)])
            cv2.imwrite(str(folder / photo), crop)
        crop = crop[:, :, ::-1].tobytes()  # RGB
        (folder / "2021" / "b.pgm").write_bytes(b"P6 %d %d 255\n" % (TINY_SIZE, TINY_SIZE) + crop)
    shutil.move("people/Dan", "elsewhere")
    Path("people/Dan").symlink_to("../elsewhere")
    Path("people/Gus").symlink_to("../unmounted")
    Path("people/Eve/up").symlink_to("..")
    Path("people/Eve/pic.gif").write_bytes(b"GIF89a" + bytes(30))
    Path("people/Ada/clip.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isomavc1")
    Path("people/Ada/notes.txt").write_text("no photo")
    for path in map(Path, LEFT_OUT[:-1]):
        if path.name == "@eaDir":
            path.mkdir()
            shutil.copy("people/Ada/a.png", path / "SYNOPHOTO_THUMB_XL.png")
        else:
            path.write_bytes(Path("people/Ada/a.png").read_bytes())
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *words: str, code: int) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*words, "--crops", "--model", "tiny.xml", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def require_named(answer: dict[str, Any]) -> None:
    assert {
        each["path"]: each["error"].rpartition("found ")[2].partition(";")[0] for each in answer["failures"]
    } == FAILURES
    assert sorted(each["path"] for each in answer["left_out"]) == LEFT_OUT


@pytest.mark.usefixtures("work")
def test_embed_cluster_and_identify_read_every_photo_or_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "embed", "people", "-o", "out.npz", "--strict", code=1)
    assert (answer["rows"], answer["files"]) == (len(PHOTOS), len(PHOTOS) + len(FAILURES))
    require_named(answer)
    answer = ask(capsys, "cluster", "people", "-o", "sorted", "--threshold", "0.9", "--strict", "--no-gate", code=1)
    assert sorted(face["path"] for person in answer["people"] for face in person["faces"]) == PHOTOS
    assert len(answer["people"]) == len(PEOPLE)
    require_named(answer)
    assert main(["gallery", "create", "g", "--model", "tiny.xml", "--unencrypted"]) == 0
    enrolled = ask(capsys, "gallery", "enrol", "g", "people", "--threshold", "0.9", "--no-gate", code=1)
    taken = {each["name"]: len(each["new_templates"]) + each["already"] for each in enrolled["enrolled"]}
    assert taken == dict.fromkeys(PEOPLE, 3)
    assert [each["name"] for each in enrolled["not_enrolled"]] == ["Gus"]
    require_named({"failures": enrolled["refused"], "left_out": enrolled["left_out"]})
    found = ask(capsys, "identify", "people", "-g", "g", "--threshold", "0.9", "--strict", "--no-gate", code=1)
    assert [(each["path"], each["faces"][0]["person"]) for each in found["images"]] == [
        (path, path.split("/")[1]) for path in PHOTOS
    ]
    require_named(found)


@pytest.mark.usefixtures("work")
def test_evaluation_calibration_and_checks_label_the_same_photos() -> None:
    root = Path("people")
    listed = images_of_people(root)
    assert [f"people/{image}" for image in listed.images] == PHOTOS
    assert (listed.names, listed.people.tolist()) == (tuple(PEOPLE), [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert sorted(map(str, listed.unread)) == sorted(FAILURES)
    assert pairs_from_folders(root).images == listed.images
    assert _list_photos(root)[1] == list(listed.images)
    assert [str(path) for files in plan_enrolment([root]).people.values() for path in files] == PHOTOS
    calibration = gather(root, read_contract(Path("tiny.xml"))[1])
    assert sorted(f"people/{name}" for name in calibration.names) == PHOTOS
    assert sorted(each.partition(": ")[0] for each in calibration.unreadable) == sorted(FAILURES)
