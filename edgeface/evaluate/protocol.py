"""Embeddings and labelled pairs in, accuracy by one of two published protocols out.

``facenet`` is davidsandberg/facenet's (`src/lfw.py`, `src/facenet.py`), ``omz`` Open Model Zoo's (accuracy_checker,
`metrics/reid.py`, `pairwise_accuracy_subsets`); they differ in their folds. Both take, on the pairs outside a
fold, the first threshold of 0, 0.01, ... 3.99 that classifies most of them right, and score the fold by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, InputError
from edgeface.evaluate.curves import Roc, accept_rates, exact_roc
from edgeface.evaluate.folds import Indices, ProtocolName, split
from edgeface.evaluate.pairs import Pairs
from edgeface.recognize.metrics import Metric, paired
from edgeface.recognize.threshold import require_rates
from edgeface.stats import trials_needed

__all__ = ["FARS", "Evaluation", "Val", "evaluate", "evaluate_distances", "pair_scores"]

FARS = (0.1, 0.01, 0.001)
"""False accept rates that VAL is told at unless others are asked for."""

_GRID = np.arange(0, 4, 0.01)
_FINE_GRID = np.arange(0, 4, 0.001)
_PAIRS_AT_ONCE = 4096

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Val:
    """Validation rate (true accept rate) at a false accept rate.

    Attributes
    ----------
    target
        The false accept rate asked for.
    mean, std
        Of the true accept rate over the folds; `std` is None where the protocol measures it on all pairs at once.
    far
        False accept rate that was really met on the held-out pairs.
    impostors
        Pairs of two people that it was measured on.
    """

    target: float
    mean: float
    std: float | None
    far: float
    impostors: int

    @property
    def supported(self) -> bool:
        """Whether there were impostor pairs enough to say anything at this rate: at least 3 / target."""
        return self.impostors >= trials_needed(self.target)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evaluation:
    """What a protocol says about one set of embeddings.

    Attributes
    ----------
    protocol, metric, subtract_mean
        How it was measured.
    accuracies : (F,) float64
        Share of right answers, a fold.
    thresholds : (F,) float64
        Distance that each fold was cut at, chosen on the other folds.
    val
        One for each false accept rate asked for.
    auc, eer
        Of the folds' mean curve (``facenet``), or of all held-out pairs (``omz``).
    tested : (P,) int
        Pairs of the list that were scored: all of them, but for repeated ones under ``omz``.
    distances : (P,) float64
        Of these pairs, each measured with what the other folds taught (the mean, if it is subtracted).
    same : (P,) bool
        Which of them are genuine.
    """

    protocol: ProtocolName
    metric: str
    subtract_mean: bool
    accuracies: Doubles
    thresholds: Doubles
    val: tuple[Val, ...]
    auc: float
    eer: float
    tested: Indices
    distances: Doubles
    same: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Mean over the folds, each counting alike."""
        return float(self.accuracies.mean())

    @property
    def accuracy_std(self) -> float:
        """Standard deviation over the folds (not of their mean), as both sources' tables give it."""
        return float(self.accuracies.std())

    @property
    def threshold(self) -> float:
        """Mean of the folds' thresholds."""
        return float(self.thresholds.mean())

    @property
    def roc(self) -> Roc:
        """Exact curve over all held-out distances."""
        return exact_roc(self.distances, self.same)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; the keys of `edgeface evaluate`'s answer that belong to the protocol."""
        return {
            "protocol": self.protocol.value,
            "metric": self.metric,
            "pairs": len(self.same),
            "accuracy": {"mean": self.accuracy, "std": self.accuracy_std},
            "val": {f"{each.target:g}": _val_dict(each) for each in self.val},
            "auc": self.auc,
            "eer": self.eer,
            "threshold": self.threshold,
            "subtract_mean": self.subtract_mean,
            "folds": [
                {"accuracy": float(accuracy), "threshold": float(threshold)}
                for accuracy, threshold in zip(self.accuracies, self.thresholds, strict=True)
            ],
        }


def evaluate(
    vectors: NDArray[np.floating[Any]],
    pairs: Pairs,
    *,
    protocol: ProtocolName,
    metric: Metric,
    subtract_mean: bool = False,
    fars: Sequence[float] = FARS,
) -> Evaluation:
    """Score embeddings by a protocol.

    Parameters
    ----------
    vectors : (N, D) float
        One row an entry of `pairs.images`; a face and its mirror concatenated are not normalised again.
    pairs
        With at least 2 folds, each with both kinds of pairs under ``facenet``.
    protocol
        Whose folds.
    metric
        A distance; similarities do not fit the protocols' grid of thresholds.
    subtract_mean
        Whether the mean of the embeddings of a fold's training pairs is taken from both sides first.
    fars
        For VAL.

    Raises
    ------
    ContractError
        If there is not one vector an image, or not all of their numbers are finite.
    InputError
        If the metric is a similarity, a rate is not in (0, 1), or the pairs cannot be split into folds.
    """
    if len(vectors) != len(pairs.images):
        raise ContractError(f"expected {len(pairs.images)} embeddings, one an image, found {len(vectors)}")
    if wrong := int((~np.isfinite(vectors).all(axis=1)).sum()):
        raise ContractError(
            f"expected embeddings of finite numbers, found NaN or infinity in {wrong}; the inference failed"
        )
    if metric.is_similarity:
        raise InputError(
            f"the protocols search distances from 0 to 4; expected a distance, found {metric.value!r}: "
            f"use {Metric.cosine_distance.value!r} or {Metric.arccos.value!r}"
        )
    folds = split(pairs, protocol)
    if subtract_mean:
        measured = [
            _distances_without_mean(vectors, pairs, _others(folds, number), metric)
            for number in range(len(folds))
        ]
    else:
        measured = [pair_scores(vectors, pairs, metric)] * len(folds)
    return _score(measured, pairs, folds, protocol, metric.value, subtract_mean, fars)


def evaluate_distances(
    distances: NDArray[np.floating[Any]],
    pairs: Pairs,
    *,
    protocol: ProtocolName,
    metric: str,
    fars: Sequence[float] = FARS,
) -> Evaluation:
    """Score distances (P,) that something else than an embedding gave, by the same rules as `evaluate`."""
    if np.shape(distances) != (len(pairs),):
        raise ContractError(
            f"expected {len(pairs)} distances, one a pair, found an array of {np.shape(distances)}"
        )
    if not np.isfinite(distances).all():
        raise ContractError("expected finite distances, found NaN or infinity")
    folds = split(pairs, protocol)
    measured = [np.asarray(distances, np.float64)] * len(folds)
    return _score(measured, pairs, folds, protocol, metric, False, fars)


def pair_scores(vectors: NDArray[np.floating[Any]], pairs: Pairs, metric: Metric) -> Doubles:
    """Compare the two sides of every pair: (P,) float64, on the metric's own scale."""
    scores = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        block = slice(start, start + _PAIRS_AT_ONCE)
        scores[block] = paired(metric, vectors[pairs.first[block]], vectors[pairs.second[block]])
    return scores


def _score(
    measured: Sequence[Doubles],
    pairs: Pairs,
    folds: Sequence[Indices],
    protocol: ProtocolName,
    metric: str,
    subtract_mean: bool,
    fars: Sequence[float],
) -> Evaluation:
    """Score all pairs' distances, as each fold's training pairs lead to measure them."""
    require_rates(fars)
    held_out = np.full(len(pairs), np.nan)
    accuracies, thresholds = [], []
    for number, (distances, test) in enumerate(zip(measured, folds, strict=True)):
        train = _others(folds, number)
        thresholds.append(_best_threshold(distances[train], pairs.same[train]))
        held_out[test] = distances[test]
        accuracies.append(np.mean((held_out[test] < thresholds[-1]) == pairs.same[test]))
    tested = np.sort(np.concatenate(folds))
    if protocol is ProtocolName.facenet:
        curve = _mean_curve(held_out, pairs.same, folds)
        val = tuple(_val_over_folds(measured, pairs.same, folds, far) for far in fars)
    else:
        curve = exact_roc(held_out[tested], pairs.same[tested])
        val = tuple(_val_at_once(curve, far, int((~pairs.same[tested]).sum())) for far in fars)
    return Evaluation(
        protocol=protocol,
        metric=metric,
        subtract_mean=subtract_mean,
        accuracies=np.array(accuracies),
        thresholds=np.array(thresholds),
        val=val,
        auc=curve.auc,
        eer=curve.eer,
        tested=tested,
        distances=held_out[tested],
        same=pairs.same[tested],
    )


def _others(folds: Sequence[Indices], left_out: int) -> Indices:
    return np.concatenate([fold for number, fold in enumerate(folds) if number != left_out])


def _distances_without_mean(
    vectors: NDArray[np.floating[Any]], pairs: Pairs, train: Indices, metric: Metric
) -> Doubles:
    """Distances of all pairs after the mean of the training pairs' embeddings is subtracted.

    An image counts as often as it stands in a training pair, as upstream concatenates both sides.
    """
    count = len(pairs.images)
    times = np.bincount(pairs.first[train], minlength=count) + np.bincount(
        pairs.second[train], minlength=count
    )
    mean = times @ vectors.astype(np.float64) / times.sum()
    return pair_scores(vectors - mean, pairs, metric)


def _best_threshold(distances: Doubles, same: NDArray[np.bool_]) -> float:
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    right = np.searchsorted(genuine, _GRID) + len(impostor) - np.searchsorted(impostor, _GRID)
    return float(_GRID[np.argmax(right)])


def _mean_curve(distances: Doubles, same: NDArray[np.bool_], folds: Sequence[Indices]) -> Roc:
    rates = np.array([accept_rates(distances[test], same[test], _GRID) for test in folds])
    far, tar = rates.mean(axis=0)
    return Roc(_GRID, far, tar)


def _val_over_folds(
    measured: Sequence[Doubles], same: NDArray[np.bool_], folds: Sequence[Indices], target: float
) -> Val:
    """VAL as davidsandberg measures it: the threshold is interpolated on the training folds, then applied.

    Of thresholds with one FAR the first stands for it; upstream hands all of them to `interp1d`, whose answer is
    then undefined. Where no threshold reaches the FAR, the threshold is 0.
    """
    met = []
    for number, (distances, test) in enumerate(zip(measured, folds, strict=True)):
        train = _others(folds, number)
        far, _ = accept_rates(distances[train], same[train], _FINE_GRID)
        rates, first = np.unique(far, return_index=True)
        threshold = np.interp(target, rates, _FINE_GRID[first]) if rates[-1] >= target else 0.0
        met.append(accept_rates(distances[test], same[test], np.array([threshold])))
    fars, tars = np.array(met)[..., 0].T
    return Val(target, float(tars.mean()), float(tars.std()), float(fars.mean()), int((~same).sum()))


def _val_at_once(curve: Roc, target: float, impostors: int) -> Val:
    tar = curve.tar_at(target)
    return Val(target, tar, None, float(curve.far[curve.tar == tar].min()), impostors)


def _val_dict(val: Val) -> dict[str, float | bool | None]:
    return {"mean": val.mean, "std": val.std, "far": val.far, "supported": val.supported}
