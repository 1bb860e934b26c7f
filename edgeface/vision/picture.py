"""Images in, averages of all of each or of a part of it out, as OpenCV's INTER_AREA computes them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.vision.image import Image

__all__ = ["Album", "Picture"]

_FLOAT_SIZE = 1 << 20
"""Larger images (about 600 x 600) are not copied as floats: four times the memory for a quarter of the time."""
_LOOK_UP, _CALLS = 18, 1 << 13
"""How many pixels OpenCV averages while one cell is looked up in the table of sums, and during a look-up's numpy
calls. So it pays for small averages of large images, the more so for several images at a time."""
_LARGEST = (1 << 31) // 255
"""Pixels whose sum is sure to fit into 32 bits."""


class Picture:
    """An image of which many averages are asked for.

    Parameters
    ----------
    image : (H, W, 3) uint8
        Not copied.

    Attributes
    ----------
    size
        Width and height in pixels.
    """

    __slots__ = ("_averaged", "image", "size")

    def __init__(self, image: Image) -> None:
        self.image = image
        self.size = image.shape[1], image.shape[0]
        # OpenCV averages floats faster than bytes.
        self._averaged = image.astype(np.float32) if image.size <= _FLOAT_SIZE else image

    def shrink(self, into: NDArray[np.float32]) -> None:
        """Average the whole image into `into` (h, w, 3)."""
        if self._averaged.dtype == np.float32:
            cv2.resize(self._averaged, into.shape[1::-1], dst=into, interpolation=cv2.INTER_AREA)
        else:
            into[:] = cv2.resize(self._averaged, into.shape[1::-1], interpolation=cv2.INTER_AREA)

    def cut(self, x0: int, y0: int, x1: int, y1: int, into: NDArray[np.float32]) -> None:
        """Average what is in a box into `into` (h, w, 3); beyond the image it is black."""
        width, height = self.size
        if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
            part = self._averaged[y0:y1, x0:x1]
        else:
            left, right = min(max(x0, 0), width), min(max(x1, 0), width)
            top, bottom = min(max(y0, 0), height), min(max(y1, 0), height)
            part = np.zeros((y1 - y0, x1 - x0, 3), np.float32)
            part[top - y0 : bottom - y0, left - x0 : right - x0] = self._averaged[top:bottom, left:right]
        if part.dtype != np.float32:  # of bytes OpenCV would give bytes
            part = part.astype(np.float32)
        cv2.resize(part, into.shape[1::-1], dst=into, interpolation=cv2.INTER_AREA)


class Album:
    """Pictures of one size, of which small versions are asked for.

    Parameters
    ----------
    pictures
        At least one; not copied.
    """

    __slots__ = ("_pictures", "_sums", "size")

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures
        self._sums: NDArray[np.int32] | None = None
        self.size = pictures[0].size

    def shrink(self, part: slice, height: int, width: int) -> NDArray[np.float32]:
        """Average some of the pictures: (N, height, width, 3), whole numbers as of images of bytes."""
        pictures, pixels = self._pictures[part], self.size[0] * self.size[1]
        if _LOOK_UP * height * width + _CALLS // len(pictures) <= pixels <= _LARGEST:
            small = self._look_up(part, height, width).astype(np.float32)
        else:
            small = np.empty((len(pictures), height, width, 3), np.float32)
            for picture, into in zip(pictures, small, strict=True):
                picture.shrink(into)
        return np.rint(small, out=small)

    def _look_up(self, part: slice, height: int, width: int) -> NDArray[np.float64]:
        """Differences of the sums at the corners of every cell.

        Between pixels a table of sums is bilinear, as a pixel is the same all over (Crow, "Summed-area tables for
        texture mapping", 1984).
        """
        if self._sums is None:
            self._sums = np.empty((len(self._pictures), self.size[1] + 1, self.size[0] + 1, 3), np.int32)
            for picture, sums in zip(self._pictures, self._sums, strict=True):
                cv2.integral(picture.image, sum=sums)
        row = self._sums.shape[2]
        tables = self._sums[part].reshape(-1, self._sums.shape[1] * row, 3)
        (y, below), (x, right) = _edges(self.size[1], height), _edges(self.size[0], width)
        corners, right = y[:, None] * row + x, right[:, None]
        upper, lower = (
            tables.take(at, axis=1) * (1 - right) + tables.take(at + 1, axis=1) * right
            for at in (corners, corners + row)
        )
        lower -= upper
        lower *= below[:, None, None]
        lower += upper
        strips = lower[:, 1:] - lower[:, :-1]
        cells = strips[:, :, 1:] - strips[:, :, :-1]
        cells *= height * width / (self.size[0] * self.size[1])
        return np.asarray(cells)


def _edges(length: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Where cells begin and end on a side of pixels: the pixel, and how far into it."""
    places = np.arange(cells + 1, dtype=np.float64) * (length / cells)
    pixels = np.minimum(places.astype(np.intp), length - 1)
    return pixels, np.asarray(places - pixels)
