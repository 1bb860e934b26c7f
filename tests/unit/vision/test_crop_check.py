"""What cannot be an aligned crop: mosaics, and photos whose faces are too small for one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeface.errors import MissingError
from edgeface.model.contract import Alignment
from edgeface.vision import crop_check
from edgeface.vision.crop_check import find_no_crop
from edgeface.vision.detector import Faces

BOX, POINTS = Alignment("mtcnn-box-margin", 32), Alignment("five-point-112")


def texture(side: int) -> np.ndarray:
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(130, 60, (side, side, 3)), (0, 0), side / 40)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.mark.parametrize("cells", [2, 4, 7, 11, 16])
@pytest.mark.parametrize("side", [96, 112, 160, 250])
def test_a_mosaic_shows_no_face_however_it_was_cut_enlarged_or_stored(cells: int, side: int) -> None:
    small = np.random.default_rng(cells).integers(0, 256, (cells, cells, 3), np.uint8)
    mosaic = cv2.resize(small, (side, side), interpolation=cv2.INTER_NEAREST)
    stored = cv2.imdecode(cv2.imencode(".jpg", mosaic, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)
    for each in (mosaic, stored, mosaic[3:-5, 5:-3], cv2.resize(mosaic, None, fx=1.3, fy=1.3)):
        wrong = find_no_crop(each, BOX, each.shape[:2])
        assert wrong is not None
        assert "found a mosaic of at most 16x16 cells" in wrong
    assert find_no_crop(texture(side), BOX, (side, side)) is None


def found(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    """Let faces of these heights, in heights of the image, be found."""

    class OfHeight:
        def detect(self, images: list[np.ndarray]) -> list[Faces]:
            ((height, width, _),) = [image.shape for image in images]
            assert (height, width) == (2 * crop_check._SIDE,) * 2, "expected as much around the image as half of it"
            tops = [[0, 0, 9, share * crop_check._SIDE] for share in shares]
            count = len(shares)
            boxes = np.array(tops, np.float32).reshape(-1, 4)
            return [Faces(boxes, np.full((count, 5, 2), np.nan, np.float32), np.ones(count, np.float32))]

    monkeypatch.setattr(crop_check, "_detector", OfHeight)


@pytest.mark.parametrize(
    ("side", "alignment", "shares", "told"),
    [
        (250, POINTS, [0.69], "takes 70% of its height or more, found a face of 69% of it: this is a photo; leave out"),
        (250, POINTS, [0.71], None),
        (250, POINTS, [0.3, 0.71], None),  # someone else in the background
        (250, POINTS, [], None),
        (112, POINTS, [0.3], None),  # exactly the model's size
        (250, Alignment("none"), [0.3], None),
        (250, BOX, [0.69], "takes 70%"),
        (72, BOX, [0.51], None),  # 40 pixels of face, 32 of margin
        (72, BOX, [0.49], "takes 50%"),
        (250, Alignment("mtcnn-box-output-margin", 28), [0.66], "takes 68%"),
    ],
)
def test_a_photo_is_told_by_a_face_too_small_for_a_crop(monkeypatch, side, alignment, shares, told) -> None:
    found(monkeypatch, *shares)
    wrong = find_no_crop(texture(side), alignment, (112, 112))
    assert wrong is None if told is None else told in str(wrong)


def test_without_weights_to_look_for_a_face_a_crop_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingError("mtcnn is not installed")

    monkeypatch.setattr(crop_check, "_detector", missing)
    assert find_no_crop(texture(250), POINTS, (112, 112)) is None
