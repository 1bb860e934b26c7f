"""A folder as the documents assume it: photos, people, a video, and the published FaceNet as the default model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

FACENET = "facenet-20180408-102900"
ADA_AT_DOOR, STRANGER = ("Hans_Blix", 2), ("David_Beckham", 0)


@pytest.fixture
def desk(real_ir: Path, data: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the documents name.

    a.jpg and b.jpg show one person, c.jpg another one, door.jpg Ada Lovelace, group.jpg several people;
    people/NAME/ are enrolment photos, people.zip has them, photos/ others, models/ holds the IR; in video.mp4
    are Ada Lovelace and the person of stranger.jpg.
    """
    lfw = data / "lfw" / "images"
    ada = sorted((lfw / "Hans_Blix").glob("*.jpg"))
    grace = sorted((lfw / "Tiger_Woods").glob("*.jpg"))
    copies = {
        "a.jpg": ada[0],
        "ada.jpg": ada[0],
        "b.jpg": ada[1],
        "c.jpg": grace[0],
        "door.jpg": ada[2],
        "stranger.jpg": sorted((lfw / STRANGER[0]).glob("*.jpg"))[STRANGER[1]],
        "group.jpg": data / "photos" / "longoria-cooper.jpg",
        "video.mp4": video,
        **{f"people/Ada Lovelace/{number}.jpg": path for number, path in enumerate((ada[4], ada[8], ada[1]))},
        **{f"people/Grace Hopper/{number}.jpg": path for number, path in enumerate(grace[1:4])},
        **{f"photos/{path.name}": path for path in (*ada[:3], *grace[:3])},
        f"models/{FACENET}.xml": real_ir,
        f"models/{FACENET}.bin": real_ir.with_suffix(".bin"),
    }
    for name, source in copies.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, tmp_path / name)
    shutil.make_archive(str(tmp_path / "people"), "zip", tmp_path / "people")
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "store"))  # calibrated thresholds are of one document only
    monkeypatch.setenv("EDGEFACE_MODEL", str(tmp_path / "models" / f"{FACENET}.xml"))
    monkeypatch.delenv("EDGEFACE_GALLERY_KEY", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def video(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of two people side by side, who move a little: Ada Lovelace and the stranger."""
    import cv2
    import numpy as np

    lfw = data / "lfw" / "images"
    both = [cv2.imread(str(sorted((lfw / name).glob("*.jpg"))[row])) for name, row in (ADA_AT_DOOR, STRANGER)]
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (500, 250))
    for step in range(12):
        writer.write(np.hstack([np.roll(photo, 2 * step, axis=1) for photo in both]))
    writer.release()
    return path
