"""Reduce images, and boxes in them, by averaging areas as OpenCV's INTER_AREA does, quickly for many sizes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.vision.image import Image

_FLOAT_SIZE = 1 << 20
"""Larger images (about 600 x 600) are not copied as floats: four times the memory saves a quarter of the time."""
_LOOK_UP, _CALLS = 18, 1 << 13
"""Pixels that OpenCV averages in the time of one look-up in the table of sums, and of the look-up's numpy calls. The
table is faster for small results of large images, and for several images at a time."""
_LARGEST = (1 << 31) // 255
"""Most pixels whose sum fits into 32 bits."""


class AreaImage:
    """An image (H, W, 3) uint8, not copied, that is reduced many times; `size` is width and height in pixels."""

    __slots__ = ("_averaged", "image", "size")

    def __init__(self, image: Image) -> None:
        self.image = image
        self.size = image.shape[1], image.shape[0]
        # OpenCV averages floats faster than bytes.
        self._averaged = image.astype(np.float32) if image.size <= _FLOAT_SIZE else image

    def shrink(self, into: Image) -> None:
        """Average the whole image into `into` (h, w, 3), rounded."""
        if self._averaged.dtype == np.float32:
            into[:] = np.rint(cv2.resize(self._averaged, into.shape[1::-1], interpolation=cv2.INTER_AREA))
        else:
            cv2.resize(self._averaged, into.shape[1::-1], dst=into, interpolation=cv2.INTER_AREA)

    def cut(self, x0: int, y0: int, x1: int, y1: int, into: NDArray[np.float32]) -> None:
        """Average what is in a box into `into` (h, w, 3); beyond the image it is black."""
        rows, columns = y1 - y0, x1 - x0
        if rows * columns * 3 > _FLOAT_SIZE and rows > into.shape[0]:
            narrow = np.empty((rows, into.shape[1], 3), np.float32)  # first the rows, some at a time, then columns
            step = max(1, _FLOAT_SIZE // (columns * 3))
            for start in range(0, rows, step):
                band = narrow[start : start + step]
                cv2.resize(
                    self._part(x0, y0 + start, x1, min(y0 + start + step, y1)),
                    band.shape[1::-1],
                    dst=band,
                    interpolation=cv2.INTER_AREA,
                )
        else:
            narrow = self._part(x0, y0, x1, y1)
        cv2.resize(narrow, into.shape[1::-1], dst=into, interpolation=cv2.INTER_AREA)

    def _part(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.float32]:
        """Return what is in a box as floats, because of bytes OpenCV would give bytes."""
        width, height = self.size
        if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
            return self._averaged[y0:y1, x0:x1].astype(np.float32, copy=False)
        left, right = min(max(x0, 0), width), min(max(x1, 0), width)
        top, bottom = min(max(y0, 0), height), min(max(y1, 0), height)
        part = np.zeros((y1 - y0, x1 - x0, 3), np.float32)
        part[top - y0 : bottom - y0, left - x0 : right - x0] = self._averaged[top:bottom, left:right]
        return part


class AreaBatch:
    """One or more images of one size that are reduced together."""

    __slots__ = ("_images", "_sums", "size")

    def __init__(self, images: Sequence[AreaImage]) -> None:
        self._images = images
        self._sums: NDArray[np.int32] | None = None
        self.size = images[0].size

    def shrink(self, part: slice, height: int, width: int) -> Image:
        """Reduce some of the images: (N, height, width, 3), rounded."""
        images, pixels = self._images[part], self.size[0] * self.size[1]
        if _LOOK_UP * height * width + _CALLS // len(images) <= pixels <= _LARGEST:
            return np.rint(self._look_up(part, height, width).astype(np.float32)).astype(np.uint8)
        small = np.empty((len(images), height, width, 3), np.uint8)
        for image, into in zip(images, small, strict=True):
            image.shrink(into)
        return small

    def _look_up(self, part: slice, height: int, width: int) -> NDArray[np.float64]:
        """Average cells by differences of sums at their corners.

        Between pixels a table of sums is bilinear (Crow, "Summed-area tables for texture mapping", 1984).
        """
        if self._sums is None:
            self._sums = np.empty((len(self._images), self.size[1] + 1, self.size[0] + 1, 3), np.int32)
            for image, sums in zip(self._images, self._sums, strict=True):
                cv2.integral(image.image, sum=sums)
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
    """Return where cells begin and end on a side: the pixel, and the position inside it."""
    places = np.arange(cells + 1, dtype=np.float64) * (length / cells)
    pixels = np.minimum(places.astype(np.intp), length - 1)
    return pixels, np.asarray(places - pixels)
