"""Open-set error rates against closed forms, brute force and scikit-learn's neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from edgeface.errors import InputError
from edgeface.evaluate.identification import FPIRS, Searches, Split, operate_at, search, split_people

NAMES = tuple(f"P{number:03d}" for number in range(60))


def people_of(counts: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def crowd(seed: int, *, spread: float = 0.6, people: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of people, a third of whom have one image and the others four."""
    rng = np.random.default_rng(seed)
    owners = people_of([1 if number % 3 == 0 else 4 for number in range(people)])
    centres = rng.normal(size=(people, 16))
    vectors = centres[owners] + spread * 4 * rng.normal(size=(len(owners), 16)) / 4
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), owners


def scores_of(**given_scores: list[float]) -> Searches:
    """Searches with these mate ranks, mate scores and candidate scores; the rest does not matter."""
    mates = len(given_scores["mate_score"])
    return Searches(
        mate_score=np.array(given_scores["mate_score"]),
        mate_rank=np.array(given_scores.get("mate_rank", [1] * mates), np.intp),
        candidate=np.zeros(len(given_scores["candidate_score"]), np.intp),
        candidate_score=np.array(given_scores["candidate_score"]),
    )


def test_everybody_of_several_images_is_enrolled_once_and_the_others_stay_unknown() -> None:
    split = split_people(people_of([1, 3, 2, 1, 5]), NAMES)
    assert list(split.people[split.enrolled]) == [1, 2, 4]
    assert list(split.nonmated) == [0, 6]
    assert sorted([*split.enrolled, *split.mated, *split.nonmated]) == list(range(12))


def test_the_choice_depends_on_seed_and_name_alone() -> None:
    alone = split_people(people_of([1, 9]), ("A", "Wanted"), seed=4)
    company = split_people(people_of([9, 1, 9, 2]), ("Other", "A", "Wanted", "Z"), seed=4)
    assert company.enrolled[1] - 10 == alone.enrolled[0] - 1
    drawn = {int(split_people(people_of([1, 9]), ("A", "Wanted"), seed=seed).enrolled[0]) for seed in range(60)}
    assert drawn == set(range(1, 10))


@pytest.mark.parametrize("counts", [[1, 1, 1], [2, 3, 2], []])
def test_people_of_both_kinds_are_needed(counts: list[int]) -> None:
    with pytest.raises(InputError, match="people with several images, who are enrolled"):
        split_people(people_of(counts), NAMES)


def test_hand_computed_rates() -> None:
    searches = scores_of(
        mate_score=[0.9, 0.8, 0.7, 0.6, 0.5], mate_rank=[1, 1, 2, 1, 7], candidate_score=[0.1, 0.2, 0.3, 0.65]
    )
    assert searches.hit_rate(1) == pytest.approx(3 / 5)
    assert searches.hit_rate(2) == pytest.approx(4 / 5)
    assert searches.fpir(0.3) == 0.25
    assert searches.fnir(0.3) == pytest.approx(2 / 5)
    assert searches.fnir(0.65) == pytest.approx(3 / 5)
    assert searches.fnir(0.65, rank=2) == pytest.approx(2 / 5)


def test_somebody_else_who_scores_as_high_counts_against_the_model() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    split = Split(np.array([0, 0, 1, 1, 2]), np.array([0, 2]), np.array([1, 3]), np.array([4]))
    searches = search(vectors, split)
    assert list(searches.mate_rank) == [2, 2]
    assert searches.hit_rate(1) == 0


def test_ranking_and_scores_are_those_of_scikit_learn() -> None:
    vectors, owners = crowd(1)
    split = split_people(owners, NAMES)
    found = search(vectors, split)
    oracle = NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors[split.enrolled].astype(np.float64))
    distances, order = oracle.kneighbors(vectors[split.mated].astype(np.float64), len(split.enrolled))
    own = owners[split.enrolled][order] == owners[split.mated][:, None]
    np.testing.assert_array_equal(found.mate_rank, own.argmax(axis=1) + 1)
    np.testing.assert_allclose(found.mate_score, 1 - distances[own], atol=1e-12)
    distances, order = oracle.kneighbors(vectors[split.nonmated].astype(np.float64), 1)
    np.testing.assert_array_equal(found.candidate, order[:, 0])
    np.testing.assert_allclose(found.candidate_score, 1 - distances[:, 0], atol=1e-12)
    assert 0.3 < found.hit_rate(1) < 1  # an oracle of a trivial case would show nothing


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, owners = crowd(2)
    split = split_people(owners, NAMES)
    whole = search(vectors, split)
    monkeypatch.setattr("edgeface.evaluate.identification._BLOCK", 7)
    parts = search(vectors, split)
    np.testing.assert_array_equal(whole.mate_rank, parts.mate_rank)
    np.testing.assert_allclose(whole.candidate_score, parts.candidate_score, atol=1e-15)


SCORES = st.lists(st.integers(-20, 20).map(lambda value: value / 20), min_size=1, max_size=60)


@given(SCORES, SCORES, st.data())
def test_the_curve_is_made_of_its_points(mates: list[float], candidates: list[float], data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(1, 3), min_size=len(mates), max_size=len(mates)))
    searches = scores_of(mate_score=mates, mate_rank=ranks, candidate_score=candidates)
    for threshold, fpir, fnir in zip(sorted(set(candidates), reverse=True), *searches.det(), strict=True):
        assert fpir == pytest.approx(searches.fpir(threshold))
        assert fnir == pytest.approx(searches.fnir(threshold))


def test_an_operating_point_says_how_sure_it_is() -> None:
    vectors, owners = crowd(3)
    searches = search(vectors, split_people(owners, NAMES))

    def at(fpir: float) -> dict[str, object]:
        return operate_at(searches, fpir, gallery_size=40, contract_id="c").to_dict()

    point = at(0.2)
    assert point["fpir"] == searches.fpir(point["threshold"]) <= 0.2
    assert point["fpir_interval"][0] <= point["fpir"] <= point["fpir_interval"][1]
    assert point["fnir"] == searches.fnir(point["threshold"])
    assert point["fnir_interval"][0] <= point["fnir"] <= point["fnir_interval"][1]
    assert point["supported"]  # 20 non-mated probes, 15 needed
    assert not at(FPIRS[0])["supported"]
    with pytest.raises(InputError, match="fpir: expected a rate above 0 and below 1"):
        at(1.0)
