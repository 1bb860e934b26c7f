"""Exact search: the same answer as brute force in extended precision, whatever the vectors are stored as."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from profiles import examples
from unit.gallery.index.conftest import ID, block_of, brute_force, unit_rows

from edgeface.errors import ContractError, ExtraNotInstalledError, InputError
from edgeface.gallery.index import ExactIndex
from edgeface.gallery.index.exact import contenders, kernel_for
from edgeface.model.embedding import Embedding, Embeddings

pytestmark = pytest.mark.alone  # the kernels of usearch have ended a process that many other libraries were loaded into

STORAGES = ["float32", "float16", "int8"]


def index_in(storage: str, block: Any, **options: Any) -> ExactIndex:
    if storage != "float32":
        pytest.importorskip("numkong", reason="the extra 'index' is not installed")
    return ExactIndex(block, storage=storage, **options)


def near_twins(count: int, dim: int, seed: int) -> np.ndarray:
    """Rows that int8 cannot tell apart: one direction, and steps much smaller than a code."""
    rng = np.random.default_rng(seed)
    rows = unit_rows(1, dim, seed) + 1e-4 * rng.standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("rows", [unit_rows(9000, 96), near_twins(3000, 96, 1)], ids=["random", "near twins"])
@pytest.mark.parametrize("k", [1, 7])
def test_the_best_are_those_of_brute_force(storage: str, rows: np.ndarray, k: int) -> None:
    block = block_of(rows)
    index = index_in(storage, block, threads=2)
    for probe in [*unit_rows(4, 96, seed=2), rows[17]]:
        longer = probe * np.float32(3)
        truth = brute_force(block, longer)
        hits = index.search(Embedding(longer, ID), k=k)
        expected = np.sort(truth)[::-1][:k]
        np.testing.assert_allclose(hits.scores, expected, rtol=0, atol=1e-15)
        np.testing.assert_allclose(truth[hits.ids - 1], hits.scores, rtol=0, atol=1e-15)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_batch_and_number_of_threads_gives_the_same_bits(storage: str) -> None:
    block = block_of(unit_rows(9000, 64))
    probes = Embeddings(np.concatenate([unit_rows(5, 64, seed=3), block.vectors[:5]]), ID)
    reference = ExactIndex(block, threads=1)
    index = index_in(storage, block, threads=3)
    for position, together in enumerate(index.search_batch(probes, k=5)):
        alone = reference.search(probes[position], k=5)
        single = index.search(probes[position], k=5)
        for hits in (together, single):
            np.testing.assert_array_equal(hits.ids, alone.ids)
            np.testing.assert_array_equal(hits.scores, alone.scores)


@pytest.mark.parametrize("storage", STORAGES)
def test_of_equal_scores_the_lower_id_comes_first(storage: str) -> None:
    row = unit_rows(1, 32)
    rng = np.random.default_rng(0)
    block = block_of(np.repeat(row, 5000, axis=0), ids=rng.permutation(5000) + 1)
    index = index_in(storage, block)
    for hits in (index.search(Embedding(row[0], ID), k=4), *index.search_batch(Embeddings(row, ID), k=4)):
        assert hits.ids.tolist() == [1, 2, 3, 4]
        assert len(set(hits.scores.tolist())) == 1


@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=examples(40))
@given(
    count=st.integers(1, 40),
    dim=st.sampled_from([1, 2, 3, 17, 64, 512]),
    spread=st.sampled_from([1e-6, 1e-2, 1.0]),
    spike=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_score_is_further_from_the_truth_than_its_bound(
    storage: str, count: int, dim: int, spread: float, spike: bool, seed: int
) -> None:
    if storage != "float32":
        pytest.importorskip("numkong", reason="the extra 'index' is not installed")
    rng = np.random.default_rng(seed)
    rows = spread * rng.standard_normal((count, dim))
    rows[:, 0] += 1.0 if spike else 1e-3
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    probe = (rows[:1] + spread * unit_rows(1, dim, seed)).astype(np.float64)
    assume(np.linalg.norm(probe) > 1e-3)  # in one dimension the two can cancel
    probe = (probe / np.linalg.norm(probe)).astype(np.float32)
    kernel = kernel_for(storage)
    columns, query = (rows, *kernel.encode(rows)), (probe, *kernel.encode(probe))
    scores = np.empty(count, np.float32)
    kernel.dot(columns, query, scores)
    error = np.abs(scores - brute_force(block_of(rows), probe[0]))
    assert (error <= kernel.bound(columns, query)).all()


def test_int8_compares_few_again() -> None:
    block = block_of(unit_rows(20000, 512))
    index = index_in("int8", block)
    probe = block.vectors[:1] + 0.02 * unit_rows(1, 512, seed=5)
    assert len(index._candidates(index.units(probe, ID), 1)) == 1
    assert len(index._candidates(unit_rows(1, 512, seed=6), 1)) < 200


@given(
    scores=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30),
    slack=st.sampled_from([0.0, 0.125, 0.5]),
    k=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_contenders_hold_the_best_however_the_errors_fall(scores: list[float], slack: float, k: int, seed: int) -> None:
    approximate = np.array(scores, np.float32)
    k = min(k, len(scores))
    bound = np.full(len(scores), slack, np.float32)
    truth = approximate + np.random.default_rng(seed).uniform(-slack, slack, len(scores))
    best = set(np.argsort(-truth, kind="stable")[:k].tolist())
    rows = set(contenders(approximate, bound, k).tolist())
    lost = best - rows
    # With ties at the very edge of float32 another of the same score may take the place.
    assert all(np.isclose(truth[each], sorted(truth)[-k], atol=1e-6) for each in lost)


def test_more_wanted_than_there_are_gives_all() -> None:
    index = ExactIndex(block_of(unit_rows(3, 8)))
    probe = Embedding(unit_rows(1, 8, seed=1)[0], ID)
    assert sorted(index.search(probe, k=10).ids.tolist()) == [1, 2, 3]
    empty = ExactIndex(block_of(np.empty((0, 8), np.float32)))
    assert len(empty.search(probe)) == len(empty.compare(probe, [1])) == 0
    assert [len(hits) for hits in empty.search_batch(Embeddings(unit_rows(2, 8), ID))] == [0, 0]
    assert ExactIndex(block_of(unit_rows(3, 8))).search_batch(Embeddings(np.empty((0, 8)), ID)) == []


def test_what_cannot_be_asked_is_refused() -> None:
    block = block_of(unit_rows(3, 8))
    index = ExactIndex(block)
    with pytest.raises(InputError, match="k of 1"):
        index.search(Embedding(block.vectors[0], ID), k=0)
    with pytest.raises(InputError, match="1 thread"):
        ExactIndex(block, threads=0)
    with pytest.raises(InputError, match="int4"):
        ExactIndex(block, storage="int4")
    for wrong in (block_of(block.vectors * 1.01), block_of(block.vectors * np.nan)):
        with pytest.raises(ContractError, match="length 1"):
            ExactIndex(wrong)
    with pytest.raises(ContractError, match="twice"):
        ExactIndex(block_of(block.vectors, ids=[1, 2, 1]))


def test_a_storage_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numkong", None)
    with pytest.raises(ExtraNotInstalledError, match=r"\[index\]"):
        ExactIndex(block_of(unit_rows(3, 8)), storage="int8")
