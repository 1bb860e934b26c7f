"""Clusters against scikit-learn's DBSCAN, scipy's connected components and people who are easy to tell apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score

from edgeface.errors import ContractError, InputError
from edgeface.recognize import Embeddings, calibrate
from edgeface.recognize.cluster import NO_CLUSTER, Clusters, chinese_whispers, dbscan
from edgeface.recognize.metrics import Metric

CONTRACT = "0123456789abcdef"


def scattered(seed: int, count: int = 120, dimensions: int = 3) -> np.ndarray:
    """Unit vectors anywhere: chains, borders and loners at every threshold."""
    vectors = np.random.default_rng(seed).normal(size=(count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def people(seed: int, *, count: int = 12, each: int = 9, spread: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(count), each))
    vectors = rng.normal(size=(count, 64))[owners] + spread * 8 * rng.normal(size=(len(owners), 64))
    return vectors.astype(np.float32), owners


@settings(max_examples=examples(60))
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.999), st.integers(1, 6))
def test_dbscan_is_that_of_scikit_learn(seed: int, threshold: float, min_samples: int) -> None:
    vectors = scattered(seed)
    # scikit-learn measures 1 - cosine in floating point too: stay away from pairs that lie on the edge.
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    if np.abs(cosines - threshold).min() < 1e-6:
        return
    oracle = DBSCAN(eps=1 - threshold, min_samples=min_samples, metric="cosine").fit(vectors)
    found = dbscan(Embeddings(vectors, CONTRACT), threshold, min_samples=min_samples)
    # Both number clusters in order; ours by the first face of any kind, scikit-learn's by the first core.
    assert adjusted_rand_score(oracle.labels_, found.labels) == 1
    np.testing.assert_array_equal(oracle.labels_ == -1, found.labels == NO_CLUSTER)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_with_one_sample_clusters_are_connected_components(threshold: float) -> None:
    vectors = scattered(5)
    graph = vectors.astype(np.float64) @ vectors.T.astype(np.float64) > threshold
    count, labels = connected_components(graph, directed=False)
    found = dbscan(Embeddings(vectors, CONTRACT), threshold, min_samples=1)
    assert found.count == count
    assert adjusted_rand_score(labels, found.labels) == 1


@pytest.mark.parametrize("cluster", [dbscan, chinese_whispers])
def test_people_who_look_apart_are_told_apart(cluster: object) -> None:
    vectors, owners = people(1)
    found: Clusters = cluster(Embeddings(vectors, CONTRACT), 0.6)  # type: ignore[operator]
    assert adjusted_rand_score(owners, found.labels) == 1
    assert found.count == 12
    firsts = [int(found.members(label)[0]) for label in range(found.count)]
    assert firsts == sorted(firsts)
    assert found.contract_id == CONTRACT


def test_a_chain_joins_two_people_for_dbscan_and_not_for_chinese_whispers() -> None:
    """Ten faces around 0 degrees, ten around 60, and a bridge of single faces between them."""
    rng = np.random.default_rng(0)
    degrees = np.concatenate([rng.normal(0, 2, 10), rng.normal(60, 2, 10), [15, 30, 45]])
    vectors = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)
    limit = float(np.cos(np.radians(17)))
    chained = dbscan(Embeddings(vectors, CONTRACT), limit)
    whispered = chinese_whispers(Embeddings(vectors, CONTRACT), limit)
    assert chained.labels[0] == chained.labels[10]
    assert whispered.labels[0] != whispered.labels[10]


def test_chinese_whispers_is_deterministic_and_dissolves_what_is_too_small() -> None:
    vectors, _ = people(3, spread=0.12)
    embeddings = Embeddings(vectors, CONTRACT)
    first, again = (chinese_whispers(embeddings, 0.35, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first.labels, again.labels)
    large = chinese_whispers(embeddings, 0.35, seed=7, min_samples=5)
    sizes = np.bincount(first.labels)
    np.testing.assert_array_equal(large.labels == NO_CLUSTER, sizes[first.labels] < 5)


@pytest.mark.parametrize("cluster", [dbscan, chinese_whispers])
def test_blocks_do_not_show(cluster: object, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = Embeddings(scattered(9), CONTRACT)
    whole = cluster(embeddings, 0.9)  # type: ignore[operator]
    monkeypatch.setattr("edgeface.recognize.cluster._BLOCK_VALUES", 500)
    np.testing.assert_array_equal(cluster(embeddings, 0.9).labels, whole.labels)  # type: ignore[operator]


@pytest.mark.parametrize("cluster", [dbscan, chinese_whispers])
def test_nobody_and_a_single_face(cluster: object) -> None:
    assert cluster(Embeddings(np.empty((0, 4), np.float32), CONTRACT), 0.5).count == 0  # type: ignore[operator]
    alone = cluster(Embeddings(np.ones((1, 4), np.float32), CONTRACT), 0.5, min_samples=2)  # type: ignore[operator]
    assert list(alone.labels) == [NO_CLUSTER]


@pytest.mark.parametrize("cluster", [dbscan, chinese_whispers])
def test_thresholds_that_do_not_belong_are_refused(cluster: object) -> None:
    embeddings = Embeddings(scattered(1), CONTRACT)
    rng = np.random.default_rng(0)
    (fitting,) = calibrate(
        rng.normal(0.8, 0.1, 100), rng.normal(0.1, 0.1, 400), fars=[0.05], contract_id=CONTRACT, metric=Metric.cosine
    )
    run = cluster
    assert run(embeddings, fitting).threshold == fitting.value  # type: ignore[operator]
    with pytest.raises(ContractError, match="expected one contract_id"):
        run(embeddings, dataclasses.replace(fitting, contract_id="f" * 16))  # type: ignore[operator]
    with pytest.raises(ContractError, match="expected a threshold of metric cosine"):
        run(embeddings, dataclasses.replace(fitting, metric=Metric.arccos))  # type: ignore[operator]
    with pytest.raises(InputError, match="expected a cosine similarity"):
        run(embeddings, 1.5)  # type: ignore[operator]
    with pytest.raises(InputError, match="min_samples"):
        run(embeddings, 0.5, min_samples=0)  # type: ignore[operator]
