"""Notice motion before a camera, and leave out the frames in which nothing can have changed."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.vision.image import Image

Zones = Sequence[Sequence[tuple[float, float]]]
"""Polygons of (x, y) in shares of the width and height, from the upper left corner."""

LINGER = 3.0
"""Seconds after the last motion or face within which every frame is searched."""
GLANCE = 5.0
"""Seconds after which a frame without motion is searched all the same: somebody may stand very still."""
_SMALL, _CHANGED, _SHARE, _MEMORY = 160, 12.0, 0.002, 0.2
"""Motion: longer side in pixels of the reduced picture, the gray values by which a pixel of it has changed, the share
of pixels that have, and the part of each frame in the picture that is remembered."""


class MotionGate:
    """Chooses the frames to search for faces: while something moves or somebody is there, and now and then.

    Motion is a difference from a picture of what was there before. Not safe to use from several threads at a time.

    Parameters
    ----------
    zones
        Only motion inside them counts; empty: everywhere.

    Examples
    --------
    >>> gate, still = MotionGate(), np.zeros((90, 160, 3), np.uint8)
    >>> moving = still.copy()
    >>> moving[20:60, 20:60] = 200
    >>> gate.moved(still), gate.moved(still), gate.moved(moving)
    (True, False, True)
    """

    def __init__(self, zones: Zones = ()) -> None:
        self._zones = zones
        self.clear()

    def clear(self) -> None:
        """Forget what was there, as before another video."""
        self._before: NDArray[np.float32] | None = None
        self._open_until = self._searched = -np.inf

    def is_open(self, timestamp: float) -> bool:
        """Whether something moved, or somebody was there, in the last seconds before a time."""
        return bool(timestamp <= self._open_until)

    def keep_open(self, timestamp: float) -> None:
        """Take note that somebody is there."""
        self._open_until = max(self._open_until, timestamp + LINGER)

    def opens(self, image: Image, timestamp: float) -> bool:
        """Return whether to search the next frame, (H, W, 3) uint8 BGR, of this time in seconds."""
        if self.moved(image):
            self.keep_open(timestamp)
        if not self.is_open(timestamp) and timestamp < self._searched + GLANCE:
            return False
        self._searched = timestamp
        return True

    def moved(self, image: Image) -> bool:
        """Compare an image, (H, W, 3) uint8 BGR, with those before it; the first one, or of another size, has moved."""
        step = max(1, max(image.shape[:2]) // _SMALL)
        gray = cv2.cvtColor(np.ascontiguousarray(image[::step, ::step]), cv2.COLOR_BGR2GRAY)
        small = np.asarray(cv2.GaussianBlur(gray, (5, 5), 0), np.float32)
        if self._before is None or self._before.shape != small.shape:
            self._before, self._counts = small, mask_of(self._zones, (small.shape[0], small.shape[1]))
            return True
        changed = np.abs(small - self._before) > _CHANGED
        self._before += _MEMORY * (small - self._before)
        return bool(np.count_nonzero(changed & self._counts) > _SHARE * np.count_nonzero(self._counts))


def mask_of(zones: Zones, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixels of a picture of `size`, (height, width), are inside one of the zones; all without zones."""
    mask = np.full(size, not zones, np.uint8)
    for zone in zones:
        corners = np.rint(np.array(zone) * (size[1] - 1, size[0] - 1)).astype(np.int32)
        cv2.fillPoly(mask, [corners], 1)
    return mask.astype(bool)
