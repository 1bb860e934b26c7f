"""Who somebody is: people's scores, thresholds for strangers, one identity a face, and several looks at one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from profiles import examples
from scipy import stats
from scipy.optimize import linear_sum_assignment

from edgeface.errors import ContractError, InputError
from edgeface.gallery.index import ApproximateIndex, ExactIndex
from edgeface.gallery.records import TemplateBlock
from edgeface.model.embedding import Embedding
from edgeface.pipeline.tracking import EmbeddingPolicy, assign
from edgeface.recognize.identify import Identifier, TrackIdentifier, Verdict
from edgeface.recognize.index import PersonRule, rank_people
from edgeface.recognize.metrics import Metric, paired
from edgeface.recognize.open_set import (
    SearchThreshold,
    far_for_fpir,
    fpir_of_far,
    threshold_from_pairs,
    threshold_from_probes,
)
from edgeface.recognize.threshold import Threshold, calibrate

ID, OTHER = "0123456789abcdef", "f" * 16


def block(rows: np.ndarray, people: np.ndarray, contract_id: str = ID) -> TemplateBlock:
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    ids = np.arange(1, len(rows) + 1, dtype=np.int64)
    return TemplateBlock(
        ids=ids, person_ids=np.asarray(people, np.int64), vectors=vectors, contract_id=contract_id, generation=1
    )


def cut(value: float, contract_id: str = ID) -> SearchThreshold:
    return SearchThreshold(
        value=value,
        contract_id=contract_id,
        fpir=0.01,
        gallery_size=10**6,
        basis="probes",
        expected_fpir=0.01,
        fpir_interval=(0.0, 0.02),
        supported=True,
    )


def face(*numbers: float) -> Embedding:
    return Embedding(np.array(numbers, np.float32), ID)


# Assignment


@given(arrays(np.float64, st.tuples(st.integers(0, 5), st.integers(0, 5)), elements=st.floats(-1, 1, width=16)))
def test_assigned_pairs_gain_as_much_as_any_choice_of_pairs(gains: np.ndarray) -> None:
    chosen = dict(assign(gains))
    assert len(set(chosen.values())) == len(chosen)
    assert all(gains[pair] > 0 for pair in chosen.items())

    @functools.cache
    def best(face: int, taken: frozenset[int]) -> float:
        if face == len(gains):
            return 0.0
        free = set(range(gains.shape[1])) - taken
        given = [gains[face, person] + best(face + 1, taken | {person}) for person in free]
        return max([best(face + 1, taken), *given])

    assert sum(gains[pair] for pair in chosen.items()) == pytest.approx(best(0, frozenset()), abs=1e-9)


def test_a_person_who_is_gone_is_never_assigned() -> None:
    assert assign(np.array([[-np.inf, 0.2], [-np.inf, 0.1]])) == [(0, 1)]


# People


@pytest.mark.parametrize("best", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 4, 1000])
def test_people_rank_as_when_everybody_is_compared(best: int, count: int) -> None:
    rng = np.random.default_rng(best)
    people = rng.integers(1, 60, 400)
    known = block(rng.normal(size=(60, 24))[people] + 0.7 * rng.normal(size=(400, 24)), people)
    index = ExactIndex(known)
    for _ in range(5):
        probe = rng.normal(size=24).astype(np.float32)
        scores = paired(Metric.cosine, known.vectors, np.repeat(probe[None], 400, axis=0))
        truth = {person: np.sort(scores[people == person])[::-1][:best].mean() for person in np.unique(people).tolist()}
        expected = sorted(truth, key=lambda person: (-truth[person], person))[:count]
        ranking = rank_people(index, Embedding(probe, ID), count=count, rule=PersonRule(best))
        assert ranking.person_ids.tolist() == expected
        np.testing.assert_allclose(ranking.scores, [truth[person] for person in expected], atol=1e-12)


def test_somebody_with_many_templates_does_not_hide_the_next_person() -> None:
    rng = np.random.default_rng(0)
    crowd = np.array([1.0, 0, 0, 0]) + 1e-3 * rng.normal(size=(500, 4))
    index = ExactIndex(block(np.concatenate([crowd, [[0.9, 0.4, 0, 0], [0, 0, 1, 0]]]), [7] * 500 + [3, 5]))
    assert rank_people(index, face(1, 0, 0, 0), count=2).person_ids.tolist() == [7, 3]
    assert rank_people(index, face(1, 0, 0, 0), count=9).person_ids.tolist() == [7, 3, 5]


def test_rules_have_names() -> None:
    for name in ("max", "mean-of-best-3"):
        assert PersonRule.parse(name).name == name
    for wrong in ("mean", "mean-of-best-0", "mean-of-best-", ""):
        with pytest.raises(InputError, match="mean-of-best-N"):
            PersonRule.parse(wrong)
    with pytest.raises(InputError, match="1 template"):
        PersonRule(0)
    with pytest.raises(InputError, match="count"):
        rank_people(ExactIndex(block(np.eye(2), [1, 2])), face(1, 0), count=0)


# Thresholds for strangers


@given(st.floats(1e-12, 0.5), st.integers(1, 10**7))
def test_fpir_and_far_are_each_others_inverse(fpir: float, size: int) -> None:
    far = far_for_fpir(fpir, size)
    assert fpir_of_far(far, size) == pytest.approx(fpir, rel=1e-9)
    assert far <= fpir * (1 + 1e-12)


def test_fpir_is_the_chance_that_one_of_many_independent_comparisons_accepts() -> None:
    for far, size in ((0.001, 1000), (0.2, 3), (1e-9, 10**6)):
        assert fpir_of_far(far, size) == pytest.approx(stats.binom.sf(0, size, far), rel=1e-6)
    assert (fpir_of_far(0.0, 5), fpir_of_far(1.0, 5)) == (0.0, 1.0)
    rng = np.random.default_rng(0)
    cut_at = np.quantile(rng.normal(size=10**6), 1 - far_for_fpir(0.1, 50))
    assert np.mean(rng.normal(size=(20000, 50)).max(axis=1) > cut_at) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("metric", list(Metric))
def test_a_search_threshold_cuts_where_its_verification_threshold_does(metric: Metric) -> None:
    rng = np.random.default_rng(1)
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 5000, 16)))
    impostor, genuine = paired(metric, a, b), paired(metric, a, a)
    thresholds = calibrate(genuine, impostor, fars=[0.1, 0.001, 0.0001], contract_id=ID, metric=metric)
    if metric is Metric.euclidean:
        with pytest.raises(InputError, match="calibrate with --metric cosine"):
            threshold_from_pairs(thresholds, fpir=0.1, gallery_size=100)
        return
    fpir = fpir_of_far(0.001, 100)
    found = threshold_from_pairs(thresholds, fpir=fpir, gallery_size=100)
    assert found.contract_id == ID
    cosines = paired(Metric.cosine, a, b)
    accepted = [thresholds[1].accepts(score) for score in impostor]
    assert np.array_equal(cosines > found.value + 1e-12, accepted) or np.array_equal(cosines > found.value, accepted)
    assert found.expected_fpir == pytest.approx(1 - (1 - thresholds[1].observed_far) ** 100)
    assert found.fpir_interval[0] <= found.expected_fpir <= found.fpir_interval[1]
    assert found.supported
    with pytest.raises(InputError, match=r"edgeface calibrate --far 1\.05e-05.*284,739"):
        threshold_from_pairs(thresholds, fpir=0.1, gallery_size=10000)


def normal_thresholds(fars: Sequence[float], pairs: int = 10**7) -> list[Threshold]:
    """What calibration gives for impostors N(0, 0.1) and genuine pairs N(0.6, 0.1), without the noise of drawing."""
    values = stats.norm.isf(fars, 0, 0.1)
    return [
        Threshold(
            value=float(value),
            metric=Metric.cosine,
            contract_id=ID,
            far=far,
            false_accepts=math.floor(far * pairs + 1e-9),
            impostors=pairs,
            false_rejects=round(float(stats.norm.cdf(value, 0.6, 0.1)) * 10**6),
            genuines=10**6,
            measured_on="LFW",
        )
        for far, value in zip(fars, values, strict=True)
    ]


@pytest.mark.parametrize("size", [3, 20, 150, 1559, 9000])
def test_between_calibrated_rates_a_search_threshold_is_the_quantile_of_its_own_rate(size: int) -> None:
    found = threshold_from_pairs(normal_thresholds([1e-2, 1e-3, 1e-4, 1e-5, 1e-6]), fpir=0.01, gallery_size=size)
    far = 1 - (1 - 0.01) ** (1 / size)
    assert found.value == pytest.approx(stats.norm.isf(far, 0, 0.1), abs=1e-9)
    assert found.expected_fpir == pytest.approx(0.01, rel=0.02)
    assert found.fpir_interval[0] < 0.01 < found.fpir_interval[1]
    assert found.expected_fnir == pytest.approx(stats.norm.cdf(found.value, 0.6, 0.1), abs=0.02)
    assert found.supported
    assert f"FPIR 0.01 on LFW, {size:,} templates" in repr(found)
    assert "up to 3.5 times" in found.note(size)


def test_searches_for_strangers_are_answered_as_often_as_was_asked_for() -> None:
    found = threshold_from_pairs(normal_thresholds([1e-2, 1e-3, 1e-4]), fpir=0.05, gallery_size=200)
    best = np.random.default_rng(5).normal(0, 0.1, (20_000, 200)).max(axis=1)
    assert stats.binomtest(int((best > found.value).sum()), 20_000, 0.05).pvalue > 0.001


def test_a_rate_that_the_pairs_are_too_few_for_is_answered_and_marked() -> None:
    few = normal_thresholds([1e-2, 1e-4], pairs=5000)
    assert threshold_from_pairs(few, fpir=0.1, gallery_size=100).supported  # FAR 1.05e-3 needs 2,849 pairs
    assert not threshold_from_pairs(few, fpir=0.01, gallery_size=100).supported  # FAR 1e-4 needs 30,000


def test_a_rate_below_the_strictest_is_extrapolated_for_a_decade_where_the_pairs_support_it() -> None:
    known = normal_thresholds([1e-2, 1e-3, 1e-4, 1e-5, 1e-6], pairs=3 * 10**7)
    found = threshold_from_pairs(known, fpir=0.001, gallery_size=1559)  # FAR 6.4e-7
    assert found.value == pytest.approx(stats.norm.isf(far_for_fpir(0.001, 1559), 0, 0.1), abs=1e-9)
    assert found.supported
    assert known[-1].frr < found.expected_fnir < 1.0
    for size in (10**4 + 100, 10**5):  # below 1e-7: too few pairs, and then too far
        with pytest.raises(InputError, match="edgeface calibrate --far"):
            threshold_from_pairs(known, fpir=0.001, gallery_size=size)
    with pytest.raises(InputError, match="edgeface calibrate --far"):
        threshold_from_pairs(known[-1:], fpir=0.001, gallery_size=1559)  # one point has no slope


def test_a_smaller_gallery_never_gets_a_stricter_threshold() -> None:
    known = normal_thresholds([1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    values = [threshold_from_pairs(known, fpir=0.01, gallery_size=size).value for size in range(1, 9000, 7)]
    assert np.all(np.diff(values) >= 0)


def test_the_threshold_from_strangers_keeps_the_share_that_was_asked_for() -> None:
    scores = np.random.default_rng(2).normal(size=1000)
    for fpir in (0.01, 0.29, 0.5):
        found = threshold_from_probes(scores, fpir=fpir, gallery_size=50, contract_id=ID)
        assert np.mean(scores > found.value) == found.expected_fpir == pytest.approx(fpir)
        low, high = stats.binomtest(round(1000 * fpir), 1000).proportion_ci()
        assert found.fpir_interval == pytest.approx((low, high))
        assert found.supported == (fpir >= 0.003)
    tied = threshold_from_probes(np.full(100, 0.5), fpir=0.1, gallery_size=5, contract_id=ID)
    assert not tied.accepts(0.5)
    few = threshold_from_probes(scores[:20], fpir=0.01, gallery_size=50, contract_id=ID)
    assert "not supported" in few.note(50)
    assert "51" in found.note(51)
    assert found.note(50) == ""
    for wrong in ([], [np.nan]):
        with pytest.raises(InputError, match="finite"):
            threshold_from_probes(np.array(wrong), fpir=0.1, gallery_size=5, contract_id=ID)
    for rate in (0.0, 1.0, math.nan, True, "0.01"):
        with pytest.raises(InputError, match="fpir: expected a rate above 0 and below 1"):
            threshold_from_probes(scores, fpir=rate, gallery_size=5, contract_id=ID)
        with pytest.raises(InputError, match="fpir: expected a rate above 0 and below 1"):
            far_for_fpir(rate, 5)


# Decisions

THREE = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize("make", [ExactIndex, ApproximateIndex])
def test_accepted_unknown_and_inconclusive(make: type) -> None:
    if make is ApproximateIndex:
        pytest.importorskip("usearch", reason="the extra 'index' is not installed")
    who = Identifier(make(block(THREE, [10, 20, 30])), cut(0.6), margin=0.1)
    sure = who.identify(face(1, 0.1, 0, 0))
    assert (sure.verdict, sure.person_id, sure.runner_up_id) == (Verdict.accepted, 10, 20)
    assert sure.score == pytest.approx(1 / math.sqrt(1.01))
    assert sure.margin == pytest.approx(0.9 / math.sqrt(1.01))
    stranger = who.identify(face(0.1, 0.3, 0, 1))
    assert (stranger.verdict, stranger.person_id) == (Verdict.unknown, None)
    assert stranger.score == pytest.approx(0.3 / math.sqrt(1.1))
    twins = who.identify(face(1, 0.95, 0, 0))
    assert (twins.verdict, twins.person_id, twins.runner_up_id) == (Verdict.inconclusive, 10, 20)
    assert twins.to_dict() | {"score": 0, "runner_up_score": 0, "margin": 0} == {
        "verdict": "inconclusive",
        "known": False,
        "person_id": 10,
        "score": 0,
        "runner_up_id": 20,
        "runner_up_score": 0,
        "margin": 0,
        "taken": False,
        "looks": 1,
        "threshold": 0.6,
        "fpir": 0.01,
        "measured_on": "",
        "rule": "max",
        "contract_id": ID,
        "person": None,
        "runner_up": None,
    }


def test_of_all_verdicts_only_accepted_is_true() -> None:
    assert [verdict for verdict in Verdict if verdict] == [Verdict.accepted]


def test_an_empty_gallery_knows_nobody() -> None:
    who = Identifier(ExactIndex(block(THREE[:0].reshape(0, 4), [])), cut(0.5))
    answer = who.identify(face(1, 0, 0, 0))
    assert (answer.verdict, answer.person_id, answer.score, answer.margin) == (Verdict.unknown, None, None, None)
    assert who.identify_frame([]) == []


def test_two_faces_of_a_picture_are_two_people() -> None:
    who = Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.5))
    # Both look most like 10; only the first looks like 20 too.
    near_both, only_ten = face(1, 0.98, 0, 0), face(1, 0.3, 0, 0)
    assert [each.person_id for each in who.identify_frame([near_both, only_ten])] == [20, 10]
    assert who.identify(near_both).person_id == 10
    first, second = who.identify_frame([near_both, near_both])
    assert {first.person_id, second.person_id} == {10, 20}
    assert first.runner_up_id == second.runner_up_id == 30


def test_a_face_whose_only_candidate_is_another_face_has_that_persons_score() -> None:
    who = Identifier(ExactIndex(block(THREE[:1], [10])), cut(0.5))
    first, second, third = who.identify_frame([face(1, 0.1, 0, 0), face(1, 0.2, 0, 0), face(0.1, 1, 0, 0)])
    assert (first.verdict, first.taken) == (Verdict.accepted, False)
    assert (second.verdict, second.person_id, second.taken) == (Verdict.unknown, None, True)
    assert second.score == pytest.approx(1 / math.sqrt(1.04))
    assert third.score == pytest.approx(0.1 / math.sqrt(1.01))
    assert second.to_dict()["taken"] is True
    alone = who.identify(face(0, 1, 0, 0))
    assert (alone.score, alone.taken) == (pytest.approx(0.0), False)


def test_more_faces_than_people_leave_some_unknown() -> None:
    who = Identifier(ExactIndex(block(THREE[:2], [10, 20])), cut(0.5))
    answers = who.identify_frame([face(1, 0.1, 0, 0), face(1, 0.2, 0, 0), face(0, 1, 0, 0), face(0, 1, 0.5, 0)])
    assert [each.person_id for each in answers] == [10, None, 20, None]
    assert [each.verdict for each in answers].count(Verdict.unknown) == 2


@settings(max_examples=examples(40))
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_frame_is_assigned_as_when_everybody_is_compared(faces: int, people: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = block(rng.normal(size=(people, 4)), np.arange(people) + 1)
    probes = rng.normal(size=(faces, 4)).astype(np.float32)
    answers = Identifier(ExactIndex(known), cut(0.2)).identify_frame([Embedding(row, ID) for row in probes])
    lengths = np.linalg.norm(probes.astype(np.float64), axis=1)
    gains = (probes.astype(np.float64) / lengths[:, None]) @ known.vectors.T.astype(np.float64) - 0.2
    worth = np.maximum(gains, 0)
    expected = worth[linear_sum_assignment(worth, maximize=True)].sum()
    found = sum(each.score - 0.2 for each in answers if each.person_id is not None)
    assert found == pytest.approx(expected, abs=1e-6)


# Several looks


def test_several_looks_decide_together() -> None:
    who = Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.7))
    good, poor = face(1, 0, 0, 0), face(0.5, 0, 0, 1)
    (mean,) = who.identify_looks([[good, good, poor]])
    assert (mean.verdict, mean.looks) == (Verdict.accepted, 3)
    assert mean.score == pytest.approx((2 + 0.5 / math.sqrt(1.25)) / 3)
    assert who.identify_looks([[good, poor, poor]])[0].verdict is Verdict.unknown
    with pytest.raises(InputError, match="at least one photo"):
        who.identify_looks([[good], []])


def test_a_track_is_accepted_after_enough_looks_and_keeps_the_last_ones() -> None:
    who = Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.7))
    tracks = TrackIdentifier(who, looks=3, needed=2)
    first = face(1, 0.1, 0, 0)
    assert tracks.update({4: first})[4].verdict is Verdict.inconclusive
    assert tracks.update({4: first})[4].looks == 1  # the pipeline gives a track's embedding again in every frame
    accepted = tracks.update({4: face(1, 0, 0.1, 0), 9: face(0, 0, 0, 1)})
    assert (accepted[4].verdict, accepted[4].person_id, accepted[4].looks) == (Verdict.accepted, 10, 2)
    assert accepted[9].verdict is Verdict.unknown
    for step in range(3):
        later = tracks.update({4: face(0.01 * step, 1, 0, 0)})[4]
    assert (later.person_id, later.looks) == (20, 3)
    tracks.update({}, alive=[9])
    assert tracks.update({4: first})[4].looks == 1
    for needed, looks in ((0, 3), (4, 3)):
        with pytest.raises(InputError, match="needed"):
            TrackIdentifier(who, looks=looks, needed=needed)


def test_tracks_that_need_more_photos_than_the_policy_makes_are_refused() -> None:
    who = Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.7))
    TrackIdentifier(who, needed=2)
    TrackIdentifier(who, needed=3, policy=EmbeddingPolicy(least=3))
    TrackIdentifier(who, needed=5, policy=EmbeddingPolicy(refresh=1))
    for policy in (None, EmbeddingPolicy(), EmbeddingPolicy(most=2, least=3)):
        with pytest.raises(InputError, match=r"needed 3 photos .* no more than 2; .*EmbeddingPolicy\(least=3, most="):
            TrackIdentifier(who, needed=3, policy=policy)
    with pytest.raises(InputError, match="no more than 1"):
        TrackIdentifier(who, needed=2, policy=EmbeddingPolicy(most=1))


def test_a_photo_that_comes_back_is_no_new_photo_of_a_track() -> None:
    tracks = TrackIdentifier(Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.7)))
    first, second = face(1, 0.1, 0, 0), face(1, 0.2, 0, 0)
    assert [tracks.update({1: each})[1].looks for each in (first, second, first, second)] == [1, 2, 2, 2]


def test_two_tracks_of_a_frame_are_two_people() -> None:
    tracks = TrackIdentifier(Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.5)))
    answers = tracks.update({1: face(1, 0.98, 0, 0), 2: face(1, 0.3, 0, 0)})
    assert {track: answer.person_id for track, answer in answers.items()} == {1: 20, 2: 10}


def test_a_frame_with_a_face_of_another_contract_is_refused_and_leaves_no_track() -> None:
    tracks = TrackIdentifier(Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.5)))
    alien = dataclasses.replace(face(1, 0, 0, 0), contract_id=OTHER)
    with pytest.raises(ContractError, match=OTHER):
        tracks.update({1: face(1, 0, 0, 0), 2: alien})
    assert tracks._tracks == {}


def test_without_a_margin_only_a_tie_is_inconclusive() -> None:
    close = Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.6)).identify(face(1, 0.99, 0, 0))
    assert (close.verdict, close.person_id) == (Verdict.accepted, 10)
    tie = Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.6)).identify(face(1, 1, 0, 0))
    assert (tie.verdict, tie.margin) == (Verdict.inconclusive, 0.0)


@pytest.mark.parametrize("margin", [-0.1, 2.1, math.inf, math.nan])
def test_a_margin_that_no_difference_of_cosines_can_have_is_refused(margin: float) -> None:
    with pytest.raises(InputError, match="margin"):
        Identifier(ExactIndex(block(THREE, [10, 20, 30])), cut(0.5), margin=margin)
