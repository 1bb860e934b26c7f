"""Follow faces from one frame to the next by optical flow, at a hundredth of the cost of a detection."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.errors import FaceError
from edgeface.vision.align import fit_similarity
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image

_GRID = 5
"""Points on each side of the grid that is followed in a box."""
_MARGIN = 0.15
"""Share of the box left out on each side: its corners show the background."""
_LONGEST_SIDE = 640
"""Frames are reduced to this size: subpixel flow on it is finer than a detector's jitter."""
_WINDOW, _LEVELS = (15, 15), 3
"""Lucas-Kanade's window and pyramid levels: they reach about 60 pixels of the reduced frame."""
_LARGEST_RETURN = 1.0
"""Largest error, in pixels of the reduced frame, of a point that is followed forward and back."""
_FEWEST = _GRID * _GRID // 4
"""Points that must return for a face to count as followed."""


class FaceFlow:
    """Follows faces from one frame to the next by optical flow.

    Median Flow (Kalal, Mikolajczyk and Matas, "Forward-backward error", ICPR 2010): a grid of points is followed
    forward and back by pyramidal Lucas-Kanade, points that do not return and the worse half are dropped, and the
    others move box and landmarks by the similarity that fits them best. Errors add up: detect again every few
    frames.

    Not safe to use from several threads at a time.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.uint8] | None = None

    def see(self, image: Image) -> None:
        """Store the frame to follow from."""
        self._before = _reduce(image)

    def follow(self, image: Image, faces: Faces) -> tuple[Faces, NDArray[np.intp]]:
        """Find the faces of the previous frame in this frame, and keep this frame for the next call.

        Parameters
        ----------
        image : (H, W, 3) uint8, BGR
            A frame of another size than the previous one follows no face.
        faces
            In pixels of the last frame.

        Returns
        -------
        faces
            The faces that were found again, in pixels of this frame, with unchanged scores.
        indices : (K,) int
            Their indices in the given faces.
        """
        before, after = self._before, _reduce(image)
        self._before = after
        if before is None or before.shape != after.shape or not len(faces):
            return faces[[]], np.empty(0, np.intp)
        scale = after.shape[1] / image.shape[1]
        starts = _grids(faces.boxes) * np.float32(scale)
        there, found = _lucas_kanade(before, after, starts)
        back, returned = _lucas_kanade(after, before, there)
        errors = np.linalg.norm(back - starts, axis=2)
        errors[~(found & returned) | (errors > _LARGEST_RETURN)] = np.inf
        moved = [_move(faces, i, starts[i] / scale, there[i] / scale, errors[i]) for i in range(len(faces))]
        kept = np.flatnonzero([each is not None for each in moved])
        places = [each for each in moved if each is not None]
        if not places:
            return faces[[]], kept
        boxes, landmarks = (np.stack(part).astype(np.float32) for part in zip(*places, strict=True))
        return Faces(boxes, landmarks, faces.scores[kept]), kept


def _move(
    faces: Faces, index: int, start: NDArray[np.float32], there: NDArray[np.float32], errors: NDArray[np.float32]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Move box and landmarks as the points that returned; None if too few did."""
    good = np.flatnonzero(np.isfinite(errors))
    if len(good) < _FEWEST:
        return None
    good = good[errors[good] <= np.median(errors[good])]
    try:
        matrix = fit_similarity(start[good], there[good])
    except FaceError:
        return None
    zoom = np.hypot(matrix[0, 0], matrix[1, 0])
    corners = faces.boxes[index].astype(np.float64).reshape(2, 2)
    centre, half = corners.mean(axis=0), (corners[1] - corners[0]) / 2
    # A box has no angle: its centre turns with the face, its sides only grow.
    centre = matrix[:, :2] @ centre + matrix[:, 2]
    landmarks = faces.landmarks[index] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([centre - half * zoom, centre + half * zoom]), landmarks


def _grids(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Place a grid of points in every box: (N, _GRID ** 2, 2)."""
    steps = np.linspace(_MARGIN, 1 - _MARGIN, _GRID)
    unit = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    return (boxes[:, None, :2] + unit * (boxes[:, None, 2:] - boxes[:, None, :2])).astype(np.float32)


def _lucas_kanade(
    before: NDArray[np.uint8], after: NDArray[np.uint8], points: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    moved, found, _ = cv2.calcOpticalFlowPyrLK(
        before, after, points.reshape(-1, 1, 2), None, winSize=_WINDOW, maxLevel=_LEVELS
    )
    return moved.reshape(points.shape), found.reshape(points.shape[:2]) == 1


def _reduce(image: Image) -> NDArray[np.uint8]:
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    scale = _LONGEST_SIDE / max(gray.shape)
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(gray, np.uint8)
