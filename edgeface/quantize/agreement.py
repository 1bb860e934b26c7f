"""The faces that two detectors found in the same photographs in, how well they agree out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeface.errors import InputError
from edgeface.vision.detector import Faces
from edgeface.vision.nms import overlaps

__all__ = ["Agreement", "judge_agreement", "measure_agreement"]

_IOU = 0.5
_RECALL, _PRECISION, _LANDMARKS = 0.98, 0.95, 0.02
"""Least share of faces found again, least share of faces that FP32 finds too, and greatest median distance of
landmarks in sides of the face: two pixels of a crop of 112."""
_FEW = 50
"""Faces among which one weighs as much as the share that may be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A compressed detector against the one it was made of.

    Attributes
    ----------
    photos, faces
        Looked at; faces that the FP32 detector found there.
    recall
        Share of those faces that the compressed one finds too, at an intersection over union of 0.5.
    precision
        Share of the compressed one's faces that the FP32 one finds too.
    median_iou
        Of the faces that both find.
    landmark_pixels, landmark_sides
        Median distance of a landmark from FP32's, in pixels and in square roots of the face's area; NaN without
        landmarks.
    """

    photos: int
    faces: int
    recall: float
    precision: float
    median_iou: float
    landmark_pixels: float
    landmark_sides: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; None for what could not be measured."""
        stored = dataclasses.asdict(self)
        return {name: None if value != value else value for name, value in stored.items()}


def measure_agreement(expected: Sequence[Faces], found: Sequence[Faces]) -> Agreement:
    """Compare what two detectors found, one `Faces` a photograph from each.

    Faces are matched one to one, in each photograph the pair of greatest overlap first.

    Raises
    ------
    InputError
        If the first one found no face at all.
    """
    faces, others = sum(map(len, expected)), sum(map(len, found))
    if not faces:
        raise InputError("detector: expected photographs with faces to compare on, FP32 found none in them")
    shared, distances, sides = [], [], []
    for before, after in zip(expected, found, strict=True):
        for row, column, overlap in _match(before, after):
            shared.append(overlap)
            distance = np.linalg.norm(before.landmarks[row] - after.landmarks[column], axis=1)
            distances.append(distance)
            width, height = before.boxes[row, 2:] - before.boxes[row, :2]
            sides.append(distance / np.sqrt(width * height))
    known = bool(distances) and bool(np.isfinite(distances).all())
    return Agreement(
        photos=len(expected),
        faces=faces,
        recall=len(shared) / faces,
        precision=len(shared) / others if others else 0.0,
        median_iou=float(np.median(shared)) if shared else 0.0,
        landmark_pixels=float(np.median(distances)) if known else float("nan"),
        landmark_sides=float(np.median(sides)) if known else float("nan"),
    )


def judge_agreement(agreement: Agreement) -> tuple[str, ...]:
    """Reasons to refuse a compressed detector; empty if there are none."""
    reasons = []
    more = "" if agreement.faces >= _FEW else "; with so few faces one decides: judge on more photographs"
    if agreement.recall < _RECALL:
        reasons.append(
            f"faces: expected at least {_RECALL:g} of FP32's {agreement.faces} found again, "
            f"found {agreement.recall:.4f}{more}"
        )
    if agreement.precision < _PRECISION:
        reasons.append(
            f"faces: expected at least {_PRECISION:g} of them to be FP32's too, found "
            f"{agreement.precision:.4f}{more}"
        )
    if agreement.landmark_sides > _LANDMARKS:
        reasons.append(
            f"landmarks: expected a median distance of at most {_LANDMARKS:g} sides of the face from FP32's, found "
            f"{agreement.landmark_sides:.4f}"
        )
    return tuple(reasons)


def _match(before: Faces, after: Faces) -> list[tuple[int, int, float]]:
    overlap = overlaps(before.boxes, after.boxes)
    matched = []
    while overlap.size and overlap.max() >= _IOU:
        row, column = np.unravel_index(np.argmax(overlap), overlap.shape)
        matched.append((int(row), int(column), float(overlap[row, column])))
        overlap[row], overlap[:, column] = -1, -1
    return matched
