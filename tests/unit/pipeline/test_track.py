"""Assignment against brute force; ids against the people who move."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeface.errors import InputError
from edgeface.pipeline.tracking import EmbeddingPolicy, Tracker, assign
from edgeface.vision.detector import Faces


def faces_at(*corners: tuple[float, float], side: float = 40) -> Faces:
    boxes = np.array([[x, y, x + side, y + side] for x, y in corners], np.float32).reshape(-1, 4)
    centres = boxes.reshape(-1, 2, 2).mean(axis=1)
    landmarks = np.repeat(centres[:, None], 5, axis=1).astype(np.float32)
    return Faces(boxes, landmarks, np.full(len(boxes), 0.9, np.float32))


likenesses = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5),
    elements=st.one_of(st.just(0.0), st.floats(0.001, 1)),
)


@given(likenesses)
def test_assignment_has_the_largest_sum_of_all_permutations(likeness: np.ndarray) -> None:
    pairs = assign(likeness)
    rows, columns = likeness.shape
    small, large = sorted((rows, columns))
    by_small = likeness if rows <= columns else likeness.T
    best = max(by_small[np.arange(small), list(order)].sum() for order in itertools.permutations(range(large), small))
    assert sum(likeness[pair] for pair in pairs) == pytest.approx(best, abs=1e-9)
    assert all(likeness[pair] > 0 for pair in pairs)
    for used in zip(*pairs, strict=True):
        assert len(set(used)) == len(used)


def test_assignment_is_scipys_for_a_crowd() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    likeness = np.random.default_rng(1).random((60, 45))
    chosen = optimize.linear_sum_assignment(likeness, maximize=True)
    assert assign(likeness) == list(zip(*(each.tolist() for each in chosen), strict=True))


def test_greedy_would_take_the_wrong_pair_and_assignment_does_not() -> None:
    assert assign(np.array([[0.9, 0.8], [0.8, 0.0]])) == [(0, 1), (1, 0)]


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_people_on_straight_ways_keep_their_ids_in_any_order_of_detection(seed: int, people: int) -> None:
    random = np.random.default_rng(seed)
    start = np.stack([np.arange(people) * 150.0, random.uniform(0, 300, people)], axis=1)
    speed = random.uniform(-250, 250, (people, 2)) * [0.2, 1]  # pixels a second; ways do not meet
    tracker, ids = Tracker(), {}
    for frame in range(15):
        order = random.permutation(people)
        where = start + speed * frame / 25
        for person, track in zip(order.tolist(), tracker.update(faces_at(*where[order]), frame / 25), strict=True):
            assert ids.setdefault(person, track.id) == track.id
    assert len(set(ids.values())) == people


def test_motion_carries_an_id_over_a_gap_that_overlap_alone_would_lose() -> None:
    tracker = Tracker()
    for frame in range(5):
        (track,) = tracker.update(faces_at((frame * 15.0, 0)), frame / 10)
    tracker.update(Faces.empty(), 0.5)
    tracker.update(Faces.empty(), 0.6)
    (found,) = tracker.update(faces_at((7 * 15.0, 0)), 0.7)  # 45 pixels on: no overlap with the last box
    assert found.id == track.id
    assert found.velocity[0] == pytest.approx(150, rel=0.01)


def test_crossing_people_do_not_swap() -> None:
    tracker, ids = Tracker(), set()
    for frame in range(21):
        tracks = tracker.update(faces_at((frame * 10.0, 0), (200 - frame * 10.0, 25)), frame / 25)
        ids.add(tuple(track.id for track in tracks))
    assert len(ids) == 1


def test_a_track_is_confirmed_by_its_second_sight_and_dies_unconfirmed_when_missed() -> None:
    tracker = Tracker()
    (first,) = tracker.update(faces_at((0, 0)), 0.0)
    assert not first.confirmed
    tracker.update(Faces.empty(), 0.1)
    assert tracker.alive == frozenset()
    (again,) = tracker.update(faces_at((0, 0)), 0.2)
    (sure,) = tracker.update(faces_at((0, 0)), 0.3)
    assert again.id == sure.id != first.id
    assert sure.confirmed


def test_a_confirmed_track_dies_after_the_longest_gap() -> None:
    tracker = Tracker(min_hits=1, max_gap=1.0)
    (track,) = tracker.update(faces_at((0, 0)), 0.0)
    tracker.update(Faces.empty(), 1.0)
    assert tracker.alive == {track.id}
    tracker.update(Faces.empty(), 1.01)
    assert tracker.alive == frozenset()
    assert tracker.update(faces_at((0, 0)), 1.1)[0].id != track.id


def test_following_moves_a_track_and_confirms_nothing() -> None:
    tracker = Tracker()
    (track,) = tracker.update(faces_at((0, 0)), 0.0)
    (moved,) = tracker.follow([track.id], faces_at((9, 0)), 0.1)
    assert (moved.id, moved.hits, moved.confirmed) == (track.id, 1, False)
    assert moved.velocity[0] == pytest.approx(90)


def test_time_that_stands_still_is_refused_until_cleared() -> None:
    tracker = Tracker()
    tracker.update(Faces.empty(), 1.0)
    with pytest.raises(InputError, match="expected a timestamp after 1 s"):
        tracker.update(Faces.empty(), 1.0)
    tracker.clear()
    tracker.update(Faces.empty(), 0.0)


def test_the_policy_embeds_first_then_only_clear_improvements_a_few_times() -> None:
    policy = EmbeddingPolicy(improvement=1.2, most=3, refresh=10, least=1)
    assert policy.wants(0.1, best=None, count=0, age=0)
    assert not policy.wants(0.115, best=0.1, count=1, age=1)
    assert policy.wants(0.125, best=0.1, count=2, age=1)
    assert not policy.wants(0.9, best=0.1, count=3, age=9.9)
    assert policy.wants(0.05, best=0.9, count=3, age=10)


def test_the_policy_embeds_a_track_at_least_twice_at_any_quality_and_not_in_consecutive_frames() -> None:
    policy = EmbeddingPolicy()
    assert not policy.wants(0.1, best=0.9, count=1, age=1 / 25)
    assert policy.wants(0.1, best=0.9, count=1, age=5 / 25)
    assert not policy.wants(0.1, best=0.9, count=2, age=100)
    once = EmbeddingPolicy(most=1)
    assert not once.wants(0.1, best=0.9, count=1, age=100)
    assert (policy.looks, once.looks, EmbeddingPolicy(refresh=3).looks) == (2, 1, float("inf"))
    for wrong in ({"least": 0}, {"most": 0}, {"at_once": -1}, {"refresh": float("inf")}, {"improvement": float("nan")}):
        with pytest.raises(InputError, match="embedding policy: expected"):
            EmbeddingPolicy(**wrong)


@pytest.mark.parametrize("wrong", [{"min_overlap": 0}, {"min_hits": 0}, {"max_gap": -1}, {"max_gap": float("nan")}])
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="tracker: expected"):
        Tracker(**wrong)
