"""Non-maximum suppression: keep the best of overlapping boxes."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

_BLOCK = 128
"""Boxes per block. This size balances numpy's overhead and needless comparisons, bounds the memory of crowded images,
and changes no result."""
_PART = 512
"""Better boxes that a block is compared with at a time: what does not overlap the best of them need only be compared
with the others, and what is computed stays in the core's cache."""
_LATER = np.triu(np.ones((_BLOCK, _BLOCK), bool), 1)
"""Which boxes of a block come after which."""
_LEAST_AREA = float(np.finfo(np.float32).tiny)


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
        Higher is better; of equal scores the later box is better. (MTCNN's reference leaves that to an unstable sort,
        which causes most differences that `benchmarks/detectors.py agree` lists.)
    threshold
        Largest overlap that a box may have with a better one and stay.
    groups : (N,) int
        Boxes of different groups do not suppress each other.
    relative_to
        Divisor of the intersection: the union, or the smaller of the two areas.
    pixel
        Added to every side: 1 where x1 and y1 are the last pixel inside, as in MTCNN.

    Returns
    -------
    (K,) int
        Indices of the boxes that stay: group by group in ascending order, best first in each.

    Examples
    --------
    >>> boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10]], float)
    >>> nms(boxes, np.array([0.8, 0.9, 0.7]), 0.5).tolist()
    [1, 2]
    """
    order = np.argsort(scores, kind="stable")[::-1]
    labels = np.zeros(len(order), np.intp) if groups is None else groups[order]
    by_group = np.argsort(labels, kind="stable")
    order, labels = order[by_group], labels[by_group]
    boxes, keep = boxes[order], np.zeros(len(order), bool)
    for start in range(0, len(order), _BLOCK):
        block = slice(start, start + _BLOCK)
        mine, label = boxes[block], labels[block]
        first = int(np.searchsorted(labels, label[0]))  # only this group can have begun before the block
        better = boxes[first:start][keep[first:start]]
        undecided, rivals = np.asarray(label != label[0]), np.flatnonzero(label == label[0])
        for part in range(0, len(better), _PART):
            shared = overlaps(better[part : part + _PART], mine[rivals], relative_to=relative_to, pixel=pixel)
            rivals = rivals[~(shared > threshold).any(axis=0)]
        undecided[rivals] = True
        shared = overlaps(mine, mine, relative_to=relative_to, pixel=pixel)
        suppresses = (shared > threshold) & (label[:, None] == label) & _LATER[: len(mine), : len(mine)]
        keep[block] = _greedy(suppresses, undecided)
    return np.asarray(order[keep])


def overlaps(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    *,
    relative_to: Literal["union", "smaller"] = "union",
    pixel: float = 0,
) -> NDArray[np.floating]:
    """Compute the overlap of every box of `a` (M, 4) with every box of `b` (N, 4): (M, N), 0 to 1. See `nms`."""
    ax0, ay0, ax1, ay1 = a.T[:, :, None]
    bx0, by0, bx1, by1 = b.T[:, None, :]
    # In place, as fresh memory for (M, N) costs more than what is computed in it.
    shared, height = np.minimum(ax1, bx1), np.minimum(ay1, by1)
    for side, begin in ((shared, np.maximum(ax0, bx0)), (height, np.maximum(ay0, by0))):
        side -= begin
        side += pixel
        np.maximum(side, 0, out=side)
    shared *= height
    area_a, area_b = (ax1 - ax0 + pixel) * (ay1 - ay0 + pixel), (bx1 - bx0 + pixel) * (by1 - by0 + pixel)
    if relative_to == "smaller":
        whole = np.minimum(area_a, area_b, out=height)
    else:
        whole = np.add(area_a, area_b, out=height)
        whole -= shared
    np.maximum(whole, _LEAST_AREA, out=whole)  # nothing shared of nothing is nothing
    shared /= whole
    return np.asarray(shared)


def _greedy(suppresses: NDArray[np.bool_], keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which boxes greedy suppression keeps; row i says which worse boxes box i suppresses.

    All start as `keep` says; each round drops whatever a kept box suppresses. After round n the first n boxes
    are final, so the fixed point is the greedy answer, reached after as many rounds as the longest chain of
    suppressions: a handful (Cluster-NMS: Zheng et al., arXiv:2005.03572, proposition 1).
    """
    undecided = keep
    while True:
        after = np.asarray(undecided & ~suppresses[keep].any(axis=0))
        if (after == keep).all():
            return keep
        keep = after
