"""Detecting and aligning many photos: what a failure costs, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeface.errors import ImageError, InputError, OutputError
from edgeface.model.contract import Alignment
from edgeface.progress import Progress
from edgeface.vision.crops import ImageFolder, align_photos, detect_photos
from edgeface.vision.detector import Faces
from edgeface.vision.listing import list_photos

MARGIN = Alignment("mtcnn-box-margin", 0)


class MiddleDetector:
    """Finds one face in the middle of every image that is not black."""

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        box = np.array([[10, 10, 50, 50]], np.float32)
        face = Faces(box, np.full((1, 5, 2), np.nan, np.float32), np.ones(1, np.float32))
        return [face if image.any() else Faces.empty() for image in images]


@pytest.fixture
def detector() -> Any:
    return MiddleDetector()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name, value in (("a", 90), ("black", 0), ("c", 90)):
        cv2.imwrite(str(tmp_path / "photos" / f"{name}.bmp"), np.full((60, 60, 3), value, np.uint8))
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "photos"


def test_photos_without_a_face_or_unreadable_are_failures_and_the_rest_is_written(
    folder: Path, tmp_path: Path, detector: Any
) -> None:
    told: list[Progress] = []
    report = align_photos(
        list_photos([folder]).photos, tmp_path / "out", detector, MARGIN, (32, 32), progress=told.append
    )
    assert [path.name for path in report.written] == ["a.png", "c.png"]
    assert {path.stat().st_mode & 0o777 for path in report.written} == {0o600}
    assert {path.name for path in report.failures} == {"black.bmp", "broken.jpg"}
    assert (told[-1].done, told[-1].total) == (4, 4)


def test_a_photo_that_the_detector_refuses_fails_no_other(
    folder: Path, tmp_path: Path, detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = detector.detect

    def refuse_black(images: Sequence[np.ndarray]) -> list[Faces]:
        if not all(image.any() for image in images):
            raise ImageError("too many places")
        return find(images)  # type: ignore[no-any-return]

    monkeypatch.setattr(detector, "detect", refuse_black)
    failures: dict[Path, str] = {}
    found = detect_photos(list_photos([folder]).photos, detector, failures=failures)
    assert [each.photo.path.name for each in found] == ["a.bmp", "c.bmp"]
    assert failures[folder / "black.bmp"] == "too many places"


def test_an_output_that_cannot_be_written_ends_the_work(folder: Path, tmp_path: Path, detector: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    photos = list_photos([folder]).photos
    with pytest.raises(OutputError):
        align_photos(photos, tmp_path / "file", detector, MARGIN, (32, 32))
    with pytest.raises(OutputError):
        list(detect_photos(photos, detector, failures={}, drawn=ImageFolder(tmp_path / "file", photos)))


def test_faces_without_landmarks_say_so_in_json(folder: Path, detector: Any) -> None:
    failures: dict[Path, str] = {}
    first, black, _ = detect_photos(list_photos([folder]).photos, detector, failures=failures)
    assert first.to_dict() == {
        "path": str(folder / "a.bmp"),
        "width": 60,
        "height": 60,
        "faces": [{"box": [10.0, 10.0, 50.0, 50.0], "landmarks": None, "score": 1.0}],
    }
    assert black.to_dict()["faces"] == []
    assert [path.name for path in failures] == ["broken.jpg"]


def test_results_of_an_earlier_run_are_no_photos(folder: Path) -> None:
    (folder / "out").mkdir()
    for path in folder.glob("*.*"):
        path.rename(folder / "out" / path.name)
    with pytest.raises(InputError, match="expected photos outside"):
        list_photos([folder], output=folder / "out")
