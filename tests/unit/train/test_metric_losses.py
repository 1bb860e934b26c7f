"""Triplet and octuplet losses against closed forms, NumPy written in loops, and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from edgeface.errors import InputError  # noqa: E402
from edgeface.train.metric_losses import distances, octuplet_loss, triplet_costs, triplet_loss  # noqa: E402

KINDS = ("euclidean", "squared", "cosine")
BATCHES = range(100)


def distance(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    if kind == "cosine":
        return 1 - float(a @ b / np.sqrt((a @ a) * (b @ b)))
    squared = sum(float(x) ** 2 for x in a - b)
    return squared if kind == "squared" else squared**0.5


def numpy_triplet(x: np.ndarray, labels: np.ndarray, margin: float, mining: str, kind: str) -> float:
    costs = []
    for anchor in range(len(x)):
        positives = [
            distance(x[anchor], x[i], kind) for i in range(len(x)) if i != anchor and labels[i] == labels[anchor]
        ]
        negatives = [distance(x[anchor], x[i], kind) for i in range(len(x)) if labels[i] != labels[anchor]]
        if mining == "batch-hard":
            if positives and negatives:
                costs.append(max(0.0, max(positives) - min(negatives) + margin))
            continue
        for positive in positives:
            inside = [negative for negative in negatives if positive < negative < positive + margin]
            if inside:
                costs.append(positive - min(inside) + margin)
    return float(np.mean(costs)) if costs else 0.0


def numpy_octuplet(
    high: np.ndarray, low: np.ndarray, labels: np.ndarray, margin: float, terms: tuple, kind: str
) -> float:
    total = 0.0
    for weight, (a, b) in zip(terms, [(high, high), (high, low), (low, high), (low, low)], strict=True):
        for i in range(len(labels)):
            apart = [distance(a[i], b[j], kind) for j in range(len(labels))]
            farthest = max([d for j, d in enumerate(apart) if j != i and labels[j] == labels[i]], default=0.0)
            nearest = min([d for j, d in enumerate(apart) if labels[j] != labels[i]], default=min(apart))
            total += weight * max(0.0, farthest - max(nearest, 0.0) + margin) / len(labels)
    return total


def batch(seed: int, *, people: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random embeddings, copies and labels; people share some embeddings and some have one photo."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 14))
    labels = rng.integers(0, people or max(1, count // 2), count)
    high = rng.normal(size=(count, 5)) * 0.3 + rng.normal(size=(count, 5))[labels]
    return high, high + rng.normal(size=high.shape) * 0.3, labels


def tensors(*arrays: np.ndarray) -> list:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mining", ["batch-hard", "semi-hard"])
def test_the_triplet_loss_is_that_of_the_loops_on_100_batches(mining: str, kind: str) -> None:
    seen = set()
    for seed in BATCHES:
        x, _, labels = batch(seed)
        expected = numpy_triplet(x, labels, 0.4, mining, kind)
        found = float(triplet_loss(*tensors(x, labels), margin=0.4, mining=mining, kind=kind))
        assert found == pytest.approx(expected, abs=1e-6)
        seen.add(expected == 0)
    assert seen == {True, False}  # some batches have no triplet


@pytest.mark.parametrize("mining", ["batch-hard", "semi-hard"])
def test_without_a_valid_negative_the_triplet_loss_and_its_gradient_are_0(mining: str) -> None:
    for seed in BATCHES:
        x, _, _ = batch(seed)
        embeddings = torch.from_numpy(x).requires_grad_()
        loss = triplet_loss(embeddings, torch.zeros(len(x), dtype=torch.int64), mining=mining)
        loss.backward()
        assert loss.item() == 0
        assert not embeddings.grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("people", [None, 1])
def test_the_octuplet_loss_is_that_of_the_loops_on_100_batches_with_and_without_negatives(
    people: int | None, kind: str
) -> None:
    terms = (1.0, 0.5, 2.0, 0.0)
    for seed in BATCHES:
        high, low, labels = batch(seed, people=people)
        expected = numpy_octuplet(high, low, labels, 0.5, terms, kind)
        found = float(octuplet_loss(*tensors(high, low, labels), margin=0.5, kind=kind, terms=terms))
        assert found == pytest.approx(expected, abs=1e-6)


def test_costs_of_triplets_are_those_of_the_paper_one_by_one_and_summed() -> None:
    rng = np.random.default_rng(0)
    a, p, n = rng.normal(size=(3, 50, 4))
    expected = np.maximum(((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1) + 0.2, 0)
    found = triplet_costs(*tensors(a, p, n), margin=0.2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert found.sum().item() == pytest.approx(expected.sum(), abs=1e-9)


@pytest.mark.parametrize("distance", [0.5, 1.0, 3.0])
def test_two_people_who_are_a_distance_apart_cost_what_the_formula_says(distance: float) -> None:
    high = torch.tensor([[0.0], [0.0], [distance], [distance]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    cost = max(0.0, 0.7 - distance)
    assert octuplet_loss(high, high, labels, margin=0.7).item() == pytest.approx(4 * cost)
    assert triplet_loss(high, labels, margin=0.7, mining="batch-hard", kind="euclidean").item() == pytest.approx(cost)


def test_a_photo_is_at_distance_0_from_itself_and_its_gradient_there_is_finite() -> None:
    x = torch.randn(6, 512, generator=torch.Generator().manual_seed(0)).requires_grad_()
    apart = distances(x, x)
    assert not torch.diagonal(apart).any()
    torch.diagonal(apart).sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["batch-hard", "semi-hard", "octuplet"])
def test_gradients_are_those_of_finite_differences(loss: str, kind: str) -> None:
    high, low, labels = batch(5)

    def cost(x: np.ndarray, y: np.ndarray) -> torch.Tensor:
        if loss == "octuplet":
            return octuplet_loss(*tensors(x, y, labels), kind=kind)
        return triplet_loss(*tensors(np.concatenate([x, y]), np.tile(labels, 2)), margin=1.0, mining=loss, kind=kind)

    a, b = (each.requires_grad_() for each in tensors(high, low))
    value = (
        octuplet_loss(a, b, torch.from_numpy(labels), kind=kind)
        if loss == "octuplet"
        else triplet_loss(torch.cat([a, b]), torch.from_numpy(np.tile(labels, 2)), margin=1.0, mining=loss, kind=kind)
    )
    value.backward()
    assert value.item() > 0
    step = 1e-6
    for array, gradient, call in ((high, a.grad, lambda x: cost(x, low)), (low, b.grad, lambda y: cost(high, y))):
        found = _differences(call, array, step)
        np.testing.assert_allclose(gradient.numpy(), found, atol=1e-6)
        assert np.abs(found).max() > 1e-3


def _differences(call: Callable[[np.ndarray], torch.Tensor], array: np.ndarray, step: float) -> np.ndarray:
    found = np.empty_like(array)
    for place in np.ndindex(array.shape):
        moved = np.zeros_like(array)
        moved[place] = step
        found[place] = (call(array + moved).item() - call(array - moved).item()) / (2 * step)
    return found


def test_an_unknown_distance_or_mining_is_refused() -> None:
    x, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    with pytest.raises(InputError, match="euclidean, squared, cosine"):
        distances(x, x, "manhattan")
    with pytest.raises(InputError, match="batch-hard, semi-hard"):
        triplet_loss(x, labels, mining="hardest")
