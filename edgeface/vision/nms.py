"""Overlapping boxes in, the best of each cluster out."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["nms", "overlaps"]

_BLOCK = 512
"""Boxes compared with all kept ones at a time: bounds the memory of crowded pictures, changes no result."""


def nms(
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    threshold: float,
    *,
    groups: NDArray[np.integer] | None = None,
    relative_to: Literal["union", "smaller"] = "union",
    pixel: float = 0,
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: keep the best box, drop what overlaps it too much, repeat.

    Parameters
    ----------
    boxes : (N, 4) float
        x0, y0, x1, y1.
    scores : (N,) float
        Higher is better; of equal ones the later box is better.
    threshold
        Largest overlap that a box may have with a better one and stay.
    groups : (N,) int
        Boxes of different groups do not suppress each other.
    relative_to
        What the intersection is divided by: the union, or the smaller of the two areas.
    pixel
        Added to every side: 1 where x1 and y1 are the last pixel inside, as in MTCNN.

    Returns
    -------
    (K,) int
        Indices of the boxes that stay: group by group in ascending order, best first in each.
    """
    order = np.argsort(scores, kind="stable")[::-1]
    if groups is None:
        return _suppress(order, boxes, threshold, relative_to, pixel)
    order = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    kept = [_suppress(part, boxes, threshold, relative_to, pixel) for part in np.split(order, starts)]
    return np.concatenate(kept)


def overlaps(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    relative_to: Literal["union", "smaller"] = "union",
    pixel: float = 0,
) -> NDArray[np.floating]:
    """Overlap of every box of `a` (M, 4) with every box of `b` (N, 4): (M, N), 0 to 1. See `nms`."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low + pixel, 0).prod(axis=2)
    area_a, area_b = ((box[:, 2:] - box[:, :2] + pixel).prod(axis=1) for box in (a, b))
    smaller = np.minimum(area_a[:, None], area_b)
    whole = smaller if relative_to == "smaller" else area_a[:, None] + area_b - shared
    return np.asarray(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0))


def _suppress(
    order: NDArray[np.intp],
    boxes: NDArray[np.floating],
    threshold: float,
    relative_to: Literal["union", "smaller"],
    pixel: float,
) -> NDArray[np.intp]:
    """Suppress in one group, `order` being best first."""
    kept = order[:0]
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        if len(kept):
            with_kept = overlaps(boxes[kept], boxes[block], relative_to=relative_to, pixel=pixel)
            block = block[~(with_kept > threshold).any(axis=0)]
        within = overlaps(boxes[block], boxes[block], relative_to=relative_to, pixel=pixel)
        kept = np.concatenate([kept, block[_greedy(np.triu(within > threshold, 1))]])
    return kept


def _greedy(suppresses: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which boxes greedy suppression keeps, where row i says which worse boxes box i would drop.

    All boxes start as kept; each round drops whatever a kept box suppresses. After round n the first n boxes
    are final, so the fixed point is the greedy answer, reached after as many rounds as the longest chain of
    suppressions: a handful (Cluster-NMS: Zheng et al., arXiv:2005.03572, proposition 1).
    """
    keep: NDArray[np.bool_] = np.ones(len(suppresses), bool)
    while True:
        after = np.asarray(~suppresses[keep].any(axis=0))
        if (after == keep).all():
            return keep
        keep = after
