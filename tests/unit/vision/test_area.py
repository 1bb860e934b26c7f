"""Averages of pictures against OpenCV's own, by both ways of making them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeface.vision.area import AreaBatch, AreaImage


def _image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("image", [(90, 70), (400, 301), (1080, 700)])
@pytest.mark.parametrize("scale", [1, 0.6, 0.2, 0.06])
@pytest.mark.parametrize("part", [slice(0, 5), slice(1, 2)])
def test_shrunk_pictures_are_opencv_s(image: tuple[int, int], scale: float, part: slice):
    pixels = [_image(*image, seed) for seed in range(5)]
    size = int(np.ceil(image[0] * scale)), int(np.ceil(image[1] * scale))
    small = AreaBatch([AreaImage(each) for each in pixels]).shrink(part, *size)
    expected = np.stack([cv2.resize(each, size[::-1], interpolation=cv2.INTER_AREA) for each in pixels[part]])
    off = small != expected
    assert small.dtype == np.uint8
    assert np.abs(small.astype(int) - expected).max() <= 1
    assert off.mean() < 0.001  # a sum that ends in one half may be rounded either way


@pytest.mark.parametrize("height", [300, 900])
@pytest.mark.parametrize(
    "box", [(10, 20, 90, 100), (-7, -3, 40, 44), (250, 280, 330, 360), (-90, 5, -10, 85), (400, 0, 440, 40)]
)
def test_what_is_cut_beyond_the_picture_is_black(height: int, box: tuple[int, int, int, int]):
    pixels = _image(height, 310 if height == 300 else 700)
    x0, y0, x1, y1 = box
    into = np.empty((24, 24, 3), np.float32)
    AreaImage(pixels).cut(*box, into)
    framed = cv2.copyMakeBorder(pixels, 500, 500, 500, 500, cv2.BORDER_CONSTANT)
    part = framed[y0 + 500 : y1 + 500, x0 + 500 : x1 + 500].astype(np.float32)
    assert np.allclose(into, cv2.resize(part, (24, 24), interpolation=cv2.INTER_AREA), atol=1e-3)


def test_a_box_that_is_reduced_some_rows_at_a_time_has_the_same_average():
    pixels = _image(1500, 1300)
    for box in ((0, 0, 1300, 1300), (-200, 300, 1150, 1650), (5, 1, 1299, 1400)):
        x0, y0, x1, y1 = box
        into = np.empty((48, 48, 3), np.float32)
        AreaImage(pixels).cut(*box, into)
        framed = cv2.copyMakeBorder(pixels, 300, 300, 300, 300, cv2.BORDER_CONSTANT)
        part = framed[y0 + 300 : y1 + 300, x0 + 300 : x1 + 300].astype(np.float32)
        assert np.allclose(into, cv2.resize(part, (48, 48), interpolation=cv2.INTER_AREA), atol=1e-3)
