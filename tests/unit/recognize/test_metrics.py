"""Metrics against scikit-learn, against closed forms, and at the places where rounding bites."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from profiles import examples

from edgeface.errors import ContractError, InputError
from edgeface.recognize import Metric, metrics, paired, pairwise

VECTORS = arrays(np.float32, st.tuples(st.integers(1, 8), st.just(5)), elements=st.floats(-100, 100, width=32)).map(
    lambda rows: rows + np.float32(1000) * (np.abs(rows).max(axis=1, keepdims=True) < 1e-3)
)


def random_vectors(rows: int, *, seed: int, length: int = 64) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, length)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("metric", "name"), [(Metric.cosine_distance, "cosine"), (Metric.euclidean, "euclidean")])
def test_all_pairs_agree_with_scikit_learn(metric: Metric, name: str) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    a, b = random_vectors(37, seed=1) * 3, random_vectors(23, seed=2)
    expected = oracle.pairwise_distances(a.astype(np.float64), b.astype(np.float64), metric=name)
    np.testing.assert_allclose(pairwise(metric, a, b), expected, atol=1e-12)


def test_squared_l2_is_scikit_learns_of_normalised_vectors() -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    normalize = pytest.importorskip("sklearn.preprocessing").normalize
    lengths = np.random.default_rng(0).uniform(1.2, 1.7, (37, 1))  # as dlib's
    a, b = (random_vectors(37, seed=seed) * lengths for seed in (1, 2))
    expected = oracle.pairwise_distances(normalize(a), normalize(b), metric="sqeuclidean")
    np.testing.assert_allclose(pairwise(Metric.squared_l2, a, b), expected, atol=1e-12)
    np.testing.assert_allclose(paired(Metric.squared_l2, a, b), np.diag(expected), atol=1e-12)


def test_known_angles_have_known_scores() -> None:
    degrees = np.array([0, 60, 90, 180])
    a = np.tile([[2.0, 0.0]], (4, 1))
    b = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    np.testing.assert_allclose(paired(Metric.cosine, a, b), [1, 0.5, 0, -1], atol=1e-15)
    np.testing.assert_allclose(paired(Metric.cosine_distance, a, b), [0, 0.5, 1, 2], atol=1e-15)
    np.testing.assert_allclose(paired(Metric.arccos, a, b), [0, 1 / 3, 1 / 2, 1], atol=1e-8)
    np.testing.assert_allclose(paired(Metric.squared_l2, a, b), [0, 1, 2, 4], atol=1e-15)
    np.testing.assert_allclose(paired(Metric.euclidean, a, b) ** 2, [1, 3, 5, 9], atol=1e-14)


def test_identical_vectors_give_numbers_where_upstream_gave_nan() -> None:
    a = random_vectors(1000, seed=3, length=512)
    assert np.nanmax(np.sum(a * a, axis=1)) > 1  # float32 rounding carries the cosine past 1
    assert (paired(Metric.arccos, a, a) < 1e-7).all()
    assert (paired(Metric.arccos, a, -a) > 1 - 1e-7).all()


def test_concatenated_unit_vectors_stay_on_the_scale_of_squared_l2() -> None:
    a = np.tile(random_vectors(1, seed=4), 2)
    assert paired(Metric.squared_l2, a, -a)[0] == pytest.approx(Metric.squared_l2.scale[1])


@pytest.mark.parametrize("metric", Metric)
def test_blocks_change_nothing(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random_vectors(70, seed=5), random_vectors(70, seed=6)
    whole, all_pairs = paired(metric, a, b), pairwise(metric, a, b)
    monkeypatch.setattr(metrics, "_BLOCK_VALUES", 200)
    np.testing.assert_array_equal(paired(metric, a, b), whole)
    np.testing.assert_allclose(pairwise(metric, a, b), all_pairs, atol=1e-14)
    np.testing.assert_allclose(np.diag(all_pairs), whole, atol=1e-12)


@settings(max_examples=examples(100))
@given(VECTORS)
@pytest.mark.parametrize("metric", Metric)
def test_scores_are_symmetric_and_stay_in_their_interval(metric: Metric, vectors: np.ndarray) -> None:
    scores = pairwise(metric, vectors, vectors)
    low, high = {
        Metric.cosine: (-1, 1),
        Metric.cosine_distance: (0, 2),
        Metric.arccos: (0, 1),
        Metric.squared_l2: (0, 4 + 1e-12),
        Metric.euclidean: (0, np.inf),
    }[metric]
    assert ((scores >= low) & (scores <= high)).all()
    # rounding of the matrix product, magnified by arccos near 0 to its square root
    size = max(1.0, float(np.square(vectors, dtype=np.float64).sum(axis=1).max()))
    root = 1e-6 * np.sqrt(size) if metric is Metric.euclidean else 1e-7 if metric is Metric.arccos else 0
    np.testing.assert_allclose(scores, scores.T, atol=1e-12 * size + root)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_an_embedding_without_direction_is_named_by_its_row(bad: float) -> None:
    a, b = random_vectors(5, seed=7), random_vectors(5, seed=8)
    b[3] = bad
    with pytest.raises(InputError, match="row 3"):
        paired(Metric.cosine, a, b)


def test_embeddings_of_two_lengths_never_meet() -> None:
    with pytest.raises(ContractError, match=r"\(2, 64\).*\(2, 128\)"):
        paired(Metric.cosine, random_vectors(2, seed=0), random_vectors(2, seed=0, length=128))
    with pytest.raises(ContractError):
        pairwise(Metric.cosine, random_vectors(2, seed=0), random_vectors(3, seed=0, length=128))
