"""A picture and its faces in, the picture with the faces marked out."""

from __future__ import annotations

import cv2
import numpy as np

from edgeface.vision.detector import Faces
from edgeface.vision.image import Image

__all__ = ["draw_faces"]

_GREEN, _WHITE, _BLACK = (80, 200, 60), (255, 255, 255), (20, 20, 20)
_FRACTION = 16
"""OpenCV draws at sixteenths of a pixel when coordinates are given in them (`shift`)."""


def draw_faces(image: Image, faces: Faces) -> Image:
    """Mark boxes, landmarks and scores; line width follows the picture's size, so that it shows when scaled."""
    canvas = image.copy()
    width = max(1, round(max(image.shape[:2]) / 500))
    for box, landmarks, score in zip(faces.boxes, faces.landmarks, faces.scores, strict=True):
        x0, y0, x1, y1 = (round(float(value)) for value in box)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), _BLACK, width + 2, cv2.LINE_AA)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), _GREEN, width, cv2.LINE_AA)
        radius = float(np.clip((x1 - x0) / 50, 1.5, 3 * width))
        for point in landmarks[np.isfinite(landmarks).all(axis=1)]:
            x, y = (round(float(value) * _FRACTION) for value in point)
            for color, grow in ((_BLACK, 1.0), (_WHITE, 0.0)):
                size = round((radius + grow) * _FRACTION)
                cv2.circle(canvas, (x, y), size, color, cv2.FILLED, cv2.LINE_AA, shift=4)
        _label(canvas, f"{score:.2f}", (x0, y0), width)
    return canvas


def _label(canvas: Image, text: str, corner: tuple[int, int], width: int) -> None:
    """Write above the box, or inside it where there is no room above."""
    scale = 0.4 + 0.1 * width
    (wide, high), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, width)
    x = int(np.clip(corner[0], 0, max(0, canvas.shape[1] - wide - 4)))
    y = corner[1] - below - 2 if corner[1] > high + below + 4 else max(corner[1], 0) + high + below
    cv2.rectangle(canvas, (x, y - high - 3), (x + wide + 4, y + below), _GREEN, cv2.FILLED)
    cv2.putText(canvas, text, (x + 2, y), cv2.FONT_HERSHEY_SIMPLEX, scale, _BLACK, width, cv2.LINE_AA)
