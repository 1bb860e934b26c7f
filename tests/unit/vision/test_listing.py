"""What a folder of photos holds: every photo and person is read or named, and what systems put there is neither."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeface.errors import InputError
from edgeface.vision.image import read_image
from edgeface.vision.listing import list_people, list_photos

PHOTO = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


def write(root: Path, *names: str, content: bytes = PHOTO) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def below(root: Path, paths: object) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in paths)  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".pgm", ".ppm", ".tif", ".bmp", ".webp", ".JPG", ""])
def test_every_format_that_is_read_is_found_by_folder_pattern_and_name(tmp_path: Path, suffix: str) -> None:
    pixels = np.full((8, 8) if suffix == ".pgm" else (8, 8, 3), 100, np.uint8)
    path = write(tmp_path, f"x/a{suffix}", content=cv2.imencode(suffix or ".png", pixels)[1].tobytes()) / f"x/a{suffix}"
    for place in (tmp_path / "x", f"{tmp_path}/x/*{suffix}", path):
        assert list_photos([place]).files == [path]
    assert read_image(path).shape == (8, 8, 3)


def test_what_looks_like_a_photo_and_is_not_read_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.gif", "gif_named.jpg", content=b"GIF89a" + bytes(20))
    write(tmp_path, "clip.mov", "clip_named.jpg", content=b"\0\0\0\x14ftypqt  " + bytes(40))
    write(tmp_path, "a.jp2", content=b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20))
    write(tmp_path, "notes.txt", "prog.ts", content=b"plain words")
    write(tmp_path, "ok.png")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "pipe.jpg").symlink_to("/dev/null")
    found = list_photos([tmp_path])
    assert below(tmp_path, found.files) == ["ok.png"]
    told = {path.name: why for path, why in found.failures.items()}
    assert sorted(told) == ["a.gif", "a.jp2", "clip.mov", "clip_named.jpg", "gif_named.jpg", "gone.jpg", "pipe.jpg"]
    assert "found a GIF" in told["gif_named.jpg"]
    assert "found a video (QuickTime)" in told["clip_named.jpg"]
    assert "found a JPEG 2000" in told["a.jp2"]
    assert (told["gone.jpg"], told["pipe.jpg"]) == ("a link to nothing", "cannot read: it is no file")
    matched = list_photos([f"{tmp_path}/*"])
    assert (matched.files, matched.failures) == (found.files, found.failures)


LITTER = (
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
    "._a.jpg",
    ".DS_Store",
    "Thumbs.db",
    "#recycle/b.jpg",
    "@Recently-Snapshot/d/a.jpg",
    "~snapshot/hourly.0/a.jpg",
    "Network Trash Folder/a.jpg",
    "Temporary Items/a.jpg",
    "RECYCLER/a.jpg",
    "found.000/a.jpg",
    ".thumbnails/c.jpg",
)


def test_litter_of_systems_is_no_photo_and_no_person_and_is_listed(tmp_path: Path) -> None:
    write(tmp_path, *LITTER, *(f"Eve/{name}" for name in LITTER), "Eve/a.jpg")
    expected = sorted({name.split("/")[0] for name in LITTER} | {f"Eve/{name.split('/')[0]}" for name in LITTER})
    for found in (list_photos([tmp_path]), list_people(tmp_path)):
        assert below(tmp_path, found.left_out) == expected
        assert found.failures == {}
    assert list_people(tmp_path).people == {"Eve": (tmp_path / "Eve/a.jpg",)}
    assert list_photos([tmp_path]).files == [tmp_path / "Eve/a.jpg"]
    for pattern in ("Eve/*", "**/*.jpg", "*/*"):
        assert list_photos([f"{tmp_path}/{pattern}"]).files == [tmp_path / "Eve/a.jpg"]
    with pytest.raises(InputError, match="found none, besides 1 that are left out"):
        list_photos([write(tmp_path / "only", "Thumbs.db")])


def test_what_cluster_sorted_among_the_photos_is_neither_photos_nor_a_person(tmp_path: Path) -> None:
    write(tmp_path, "Ada/1.png", "people/0001/1.png", "people/unknown/2.png")
    assert set(list_people(tmp_path).people) == {"Ada", "people"}
    write(tmp_path, "clusters.json", content=b"{}")
    for found in (list_people(tmp_path), list_photos([tmp_path])):
        assert found.left_out[tmp_path / "people"] == "sorted by 'edgeface cluster': each photo is a copy"
    assert set(list_people(tmp_path).people) == {"Ada"}
    assert below(tmp_path, list_photos([tmp_path]).files) == ["Ada/1.png"]
    assert set(list_people(tmp_path / "people").people) == {"0001", "unknown"}


def test_a_person_is_the_folder_below_the_argument_whatever_is_below_that(tmp_path: Path) -> None:
    write(tmp_path, "Ada/2021/1.jpg", "Ada/2022/may/2.jpg", "Ada/3.jpg", "Bob/2021/1.jpg", "loose.jpg")
    (tmp_path / "Empty").mkdir()
    write(tmp_path, "Gifs/a.gif", content=b"GIF89a")
    found = list_people(tmp_path)
    assert {name: below(tmp_path / name, files) for name, files in found.people.items()} == {
        "Ada": ["2021/1.jpg", "2022/may/2.jpg", "3.jpg"],
        "Bob": ["2021/1.jpg"],
        "Empty": [],
        "Gifs": [],
    }
    assert below(tmp_path, found.loose) == ["loose.jpg"]
    assert list(list_people(f"{tmp_path}/*/2021/*.jpg").people) == ["Ada", "Bob"]
    assert list_people(f"{tmp_path}/Ada/*.jpg").loose == (tmp_path / "Ada/3.jpg",)
    with pytest.raises(InputError, match="expected a folder that holds one folder a person, found a file"):
        list_people(tmp_path / "loose.jpg")


def test_a_linked_folder_is_followed_once_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere/1.jpg", "people/Zoe/1.jpg", "people/Fay/1.jpg")
    people = tmp_path / "people"
    for name, target in {
        "Dan": "../elsewhere",
        "Abe": "Zoe",
        "Lost": "../gone",
        "Fay/up": "..",
        "Fay/top": "../..",
    }.items():
        (people / name).symlink_to(target)
    found = list_people(people)
    assert {name: below(people, files) for name, files in found.people.items()} == {
        "Dan": ["Dan/1.jpg"],
        "Fay": ["Fay/1.jpg"],
        "Lost": [],
        "Zoe": ["Zoe/1.jpg"],
    }
    assert {path.relative_to(people).as_posix(): why for path, why in found.left_out.items()} == {
        "Abe": f"the same folder as {people / 'Zoe'}",
        "Fay/up": "a link to a folder that holds it",
        "Fay/top": "a link to a folder that holds it",
    }
    assert found.failures == {people / "Lost": "a link to nothing"}
    (tmp_path / "all").symlink_to("people")
    assert below(tmp_path, list_photos([tmp_path / "all"]).files) == ["all/Dan/1.jpg", "all/Fay/1.jpg", "all/Zoe/1.jpg"]


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that is not root's, and the rights of a user who is not root."""
    if os.geteuid() != 0:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o777)  # noqa: PTH101
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def test_a_folder_and_a_photo_that_may_not_be_read_are_named(nobody: Path) -> None:
    write(nobody, "ok/1.jpg", "secret/2.jpg", "ok/3.jpg")
    (nobody / "ok/3.jpg").chmod(0)
    (nobody / "secret").chmod(0)
    found = list_photos([nobody])
    assert found.files == [nobody / "ok/1.jpg"]
    assert found.failures == {
        nobody / "secret": "cannot list this folder: Permission denied",
        nobody / "ok/3.jpg": "cannot read: Permission denied",
    }
    assert list_people(nobody).people == {"ok": (nobody / "ok/1.jpg",), "secret": ()}
    (nobody / "secret").chmod(0o700)
