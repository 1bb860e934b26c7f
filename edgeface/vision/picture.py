"""An image in, averages of all of it or of a part of it out, as OpenCV's INTER_AREA computes them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.vision.image import Image

__all__ = ["Picture"]

_FLOAT_SIZE = 1 << 20
"""Larger images (about 600 x 600) are not copied as floats: four times the memory for a quarter of the time."""
_LOOK_UP, _LOOK_UP_AT_ALL = 25, 1 << 16
"""Adding up this many pixels, or one corner cell's share of a look-up in the table of sums, take the same time; and
so do this many pixels and the look-up's numpy calls. So it pays for photographs, not for thumbnails."""
_LARGEST = (1 << 31) // 255
"""Pixels whose sum is sure to fit into 32 bits."""


class Picture:
    """An image of which many averages are asked for.

    Parameters
    ----------
    image : (H, W, 3) uint8
        Not copied.
    """

    __slots__ = ("_averaged", "_image", "_sums")

    def __init__(self, image: Image) -> None:
        self._image = image
        # OpenCV averages floats faster than bytes.
        self._averaged = image.astype(np.float32) if image.size <= _FLOAT_SIZE else image
        self._sums: NDArray[np.int32] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self._image.shape[1], self._image.shape[0]

    def shrink(self, into: NDArray[np.float32]) -> None:
        """Average the whole image into `into` (h, w, 3); whole numbers, as of an image of bytes."""
        pixels, cells = self._image.shape[0] * self._image.shape[1], into.shape[0] * into.shape[1]
        if _LOOK_UP * cells + _LOOK_UP_AT_ALL <= pixels <= _LARGEST:
            into[:] = self._look_up(into.shape[0], into.shape[1])
        elif self._averaged.dtype == np.float32:
            cv2.resize(self._averaged, into.shape[1::-1], dst=into, interpolation=cv2.INTER_AREA)
        else:
            into[:] = cv2.resize(self._averaged, into.shape[1::-1], interpolation=cv2.INTER_AREA)
        np.rint(into, out=into)

    def cut(self, x0: int, y0: int, x1: int, y1: int, into: NDArray[np.float32]) -> None:
        """Average what is in a box into `into` (h, w, 3), unrounded; beyond the image it is black."""
        width, height = self.size
        left, right = (min(max(x, 0), width) for x in (x0, x1))
        top, bottom = (min(max(y, 0), height) for y in (y0, y1))
        part = self._averaged[top:bottom, left:right]
        if (left, top, right, bottom) != (x0, y0, x1, y1):
            framed = np.zeros((y1 - y0, x1 - x0, 3), np.float32)
            framed[top - y0 : bottom - y0, left - x0 : right - x0] = part
            part = framed
        part = part.astype(np.float32, copy=False)  # of bytes OpenCV would give bytes
        cv2.resize(part, into.shape[1::-1], dst=into, interpolation=cv2.INTER_AREA)

    def _look_up(self, height: int, width: int) -> NDArray[np.float64]:
        """Differences of the sums at the corners of every cell.

        Between pixels a table of sums is bilinear, as a pixel is the same all over (Crow, "Summed-area tables for
        texture mapping", 1984).
        """
        if self._sums is None:
            self._sums = cv2.integral(self._image)
        row = self._sums.shape[1]
        table = self._sums.reshape(-1, 3)
        (y, below), (x, right) = _edges(self.size[1], height), _edges(self.size[0], width)
        right = right[:, None]
        corners = y[:, None] * row + x
        upper, lower = (
            table.take(at, axis=0) * (1 - right) + table.take(at + 1, axis=0) * right
            for at in (corners, corners + row)
        )
        sums = upper + (lower - upper) * below[:, None, None]
        strips = sums[1:] - sums[:-1]
        cells = strips[:, 1:] - strips[:, :-1]
        return np.asarray(cells * (height * width / (self.size[0] * self.size[1])))


def _edges(length: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Where cells begin and end on a side of pixels: the pixel, and how far into it."""
    places = np.arange(cells + 1, dtype=np.float64) * (length / cells)
    pixels = np.minimum(places.astype(np.intp), length - 1)
    return pixels, np.asarray(places - pixels)
