"""Vectorised suppression against the textbook loop."""

from __future__ import annotations

import numpy as np
import pytest

from edgeface.vision import nms as module
from edgeface.vision.nms import nms, overlaps


def textbook(boxes, scores, threshold, relative_to, pixel) -> list[int]:
    kept: list[int] = []
    for index in np.argsort(scores, kind="stable")[::-1]:
        overlap = overlaps(boxes[kept], boxes[[index]], relative_to=relative_to, pixel=pixel)
        if not (overlap > threshold).any():
            kept.append(int(index))
    return kept


def crowd(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    corner = random.integers(0, 120, (count, 2)).astype(float)
    boxes = np.concatenate([corner, corner + random.integers(5, 60, (count, 2))], axis=1)
    return boxes, np.round(random.random(count), 2)  # rounded: ties


@pytest.mark.parametrize("relative_to", ["union", "smaller"])
@pytest.mark.parametrize("pixel", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 2, 127, 128, 129, 700])
def test_agrees_with_the_textbook_loop(count: int, pixel: int, relative_to: str):
    boxes, scores = crowd(count, seed=count)
    expected = textbook(boxes, scores, 0.4, relative_to, pixel)
    assert nms(boxes, scores, 0.4, relative_to=relative_to, pixel=pixel).tolist() == expected


@pytest.mark.parametrize("groups", [2, 7, 300])
def test_groups_do_not_see_each_other(groups: int):
    boxes, scores = crowd(600, seed=1)
    labels = np.random.default_rng(2).integers(0, groups, 600)
    expected: list[int] = []
    for label in range(groups):
        members = np.flatnonzero(labels == label)
        expected += members[textbook(boxes[members], scores[members], 0.3, "union", 0)].tolist()
    assert nms(boxes, scores, 0.3, groups=labels).tolist() == expected


def test_a_chain_of_suppressions_longer_than_a_block_ends_as_greed_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_BLOCK", 16)
    x = np.arange(100.0)
    boxes = np.stack([x, x * 0, x + 2.5, x * 0 + 1], axis=1)  # each overlaps its neighbours by 0.43 only
    assert nms(boxes, -x, 0.4).tolist() == list(range(0, 100, 2))


def test_memory_does_not_grow_with_the_square_of_the_crowd():
    import tracemalloc

    boxes, scores = np.tile([0.0, 0, 9, 9], (20_000, 1)), np.linspace(0, 1, 20_000)
    tracemalloc.start()
    assert nms(boxes, scores, 0.5).tolist() == [19_999]
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_overlap_of_known_boxes():
    a, b = (np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10], [2, 2, 4, 4], [10, 0, 20, 10], [3, 3, 3, 3]]))
    assert np.allclose(overlaps(a, b), [[1 / 3, 0.04, 0, 0]])
    assert np.allclose(overlaps(a, b, relative_to="smaller"), [[0.5, 1, 0, 0]])
    assert np.isclose(overlaps(a, b, pixel=1)[0, 2], 11 / (121 + 121 - 11))
