"""Paired statistics against closed forms and what is known of made-up models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgeface.errors import InputError, MissingError
from edgeface.evaluate.lfw import EvaluationSettings
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import ProtocolName
from edgeface.quantize.verification import VerificationChange, compare_verification, mcnemar, read_labelled
from edgeface.recognize.metrics import Metric

PLAIN = EvaluationSettings(Metric.squared_l2, flip=False, subtract_mean=False)


def people(count: int = 200, *, noise: float = 1.6, seed: int = 0) -> tuple[np.ndarray, Pairs]:
    """Two images each of made-up people, (2 count, 32) of unit length; genuine and impostor pairs in turn."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, 1, 32))
    vectors = (centres + noise * rng.normal(size=(count, 2, 32))).reshape(-1, 32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second, same = [], [], []
    for person in range(count):
        other = (person + 1) % count
        first += [2 * person, 2 * person]
        second += [2 * person + 1, 2 * other + 1]
        same += [True, False]
    pairs = Pairs(
        images=tuple(map(str, range(2 * count))),
        first=np.array(first),
        second=np.array(second),
        same=np.array(same),
        folds=10,
    )
    return vectors.astype(np.float32), pairs


def compare(before: np.ndarray, after: np.ndarray, pairs: Pairs, **options: object) -> VerificationChange:
    return compare_verification(
        before,
        after,
        pairs,
        protocol=ProtocolName.facenet,
        settings=PLAIN,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (2, 15), (7, 7), (40, 22), (300, 260)])
def test_mcnemar_is_twice_the_binomial_tail(lost: int, won: int) -> None:
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
    expected = min(1.0, 2 * tail)

    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("protocol", ProtocolName)
def test_the_same_embeddings_lose_nothing_and_the_interval_has_no_width(protocol: ProtocolName) -> None:
    vectors, pairs = people()
    found = compare_verification(vectors, vectors, pairs, protocol=protocol, settings=PLAIN)

    for change in (found.accuracy, found.val, found.eer):
        assert change.drop == 0
        assert change.interval == (0, 0)
    assert (found.lost, found.won, found.p_value) == (0, 0, 1.0)


def test_a_worse_model_is_told_with_an_interval_that_leaves_out_nothing() -> None:
    vectors, pairs = people()
    noise = np.random.default_rng(1).normal(0, 0.12, vectors.shape).astype(np.float32)
    found = compare(vectors, vectors + noise, pairs)

    assert found.accuracy.drop == pytest.approx(found.accuracy.before - found.accuracy.after)
    assert found.accuracy.drop == pytest.approx((found.lost - found.won) / found.pairs)  # folds of one size
    assert 0 < found.accuracy.interval[0] < found.accuracy.drop < found.accuracy.interval[1]
    assert found.eer.drop > 0
    assert found.eer.interval[0] <= found.eer.drop <= found.eer.interval[1]
    assert found.p_value < 0.05


def test_the_paired_interval_is_narrower_than_one_of_independent_pairs() -> None:
    vectors, pairs = people()
    noise = np.random.default_rng(1).normal(0, 0.02, vectors.shape).astype(np.float32)
    found = compare(vectors, vectors + noise, pairs)

    independent = 1.96 * np.sqrt(2 * found.accuracy.before * (1 - found.accuracy.before) / found.pairs)
    low, high = found.accuracy.interval
    assert (high - low) / 2 < independent / 1.5


def test_the_interval_is_that_of_the_paired_difference() -> None:
    # Wald's interval of a paired difference of proportions, which the bootstrap's tends to.
    vectors, pairs = people(400)
    noise = np.random.default_rng(1).normal(0, 0.08, vectors.shape).astype(np.float32)
    found = compare(vectors, vectors + noise, pairs)

    lost, won, count = found.lost, found.won, found.pairs
    error = np.sqrt(lost + won - (lost - won) ** 2 / count) / count
    low, high = found.accuracy.interval
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


@pytest.mark.slow
def test_the_seed_decides() -> None:
    vectors, pairs = people()
    noise = np.random.default_rng(1).normal(0, 0.1, vectors.shape).astype(np.float32)
    first, again, other = (compare(vectors, vectors + noise, pairs, seed=seed) for seed in (1, 1, 2))

    assert first == again
    assert first.eer.interval != other.eer.interval


def test_lfw_is_looked_for_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFACE_DATA", raising=False)
    with pytest.raises(MissingError, match="the variable unset"):
        read_labelled("lfw")
    monkeypatch.setenv("EDGEFACE_DATA", str(tmp_path))
    with pytest.raises(MissingError, match=r"no pairs\.txt in .*lfw"):
        read_labelled("lfw")
    (tmp_path / "lfw" / "images" / "A").mkdir(parents=True)
    (tmp_path / "lfw" / "pairs.txt").write_text("1\t1\nA\t1\t2\nA\t1\tB\t1\n")
    with pytest.raises(InputError, match="3 of 3 are missing"):
        read_labelled("lfw")
    with pytest.raises(InputError, match="give it with --images"):
        read_labelled(tmp_path / "lfw" / "pairs.txt")
