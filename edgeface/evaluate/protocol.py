"""Embeddings and labelled pairs in, accuracy by one of two published protocols out.

``facenet`` is davidsandberg/facenet's (`src/lfw.py`, `src/facenet.py`): folds of consecutive pairs.
``omz`` is Open Model Zoo's (accuracy_checker, `annotation_converters/lfw.py` and `metrics/reid.py`,
`pairwise_accuracy_subsets`): folds of anchor images. Both take, on the pairs outside a fold, the first threshold of
0, 0.01, ... 3.99 that classifies most of them right, and score the fold by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, InputError
from edgeface.evaluate.curves import Roc, accept_rates, exact_roc
from edgeface.evaluate.pairs import Pairs
from edgeface.recognize.metrics import Metric, paired

__all__ = [
    "FARS",
    "Evaluation",
    "ProtocolName",
    "Val",
    "evaluate",
    "facenet_folds",
    "omz_folds",
    "pair_scores",
]

FARS = (0.1, 0.01, 0.001)
"""False accept rates that VAL is told at unless others are asked for."""

_GRID = np.arange(0, 4, 0.01)
_FINE_GRID = np.arange(0, 4, 0.001)
_PAIRS_AT_ONCE = 4096

Doubles = NDArray[np.float64]
Indices = NDArray[np.intp]


class ProtocolName(str, Enum):
    """Whose rules."""

    facenet = "facenet"
    omz = "omz"


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
    """

    target: float
    mean: float
    std: float | None
    far: float


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
    metric: Metric
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
            "metric": self.metric.value,
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
        If there is not one vector an image.
    InputError
        If the metric is a similarity, or the pairs cannot be split into folds.
    """
    if len(vectors) != len(pairs.images):
        raise ContractError(f"expected {len(pairs.images)} embeddings, one an image, found {len(vectors)}")
    if metric.is_similarity:
        raise InputError(
            f"the protocols search distances from 0 to 4; expected a distance, found {metric.value!r}: "
            f"use {Metric.cosine_distance.value!r} or {Metric.arccos.value!r}"
        )
    folds = (facenet_folds if protocol is ProtocolName.facenet else omz_folds)(pairs)
    if subtract_mean:
        everything = [
            _distances_without_mean(vectors, pairs, _others(folds, k), metric) for k in range(len(folds))
        ]
    else:
        everything = [pair_scores(vectors, pairs, metric)] * len(folds)
    thresholds = [
        _best_threshold(each[t := _others(folds, k)], pairs.same[t]) for k, each in enumerate(everything)
    ]
    accuracies = [
        np.mean((each[test] < threshold) == pairs.same[test])
        for each, test, threshold in zip(everything, folds, thresholds, strict=True)
    ]
    tested = np.sort(np.concatenate(folds))
    held_out = np.empty(len(pairs))
    for each, test in zip(everything, folds, strict=True):
        held_out[test] = each[test]
    if protocol is ProtocolName.facenet:
        curve = _mean_curve(held_out, pairs.same, folds)
        val = tuple(_val_over_folds(everything, pairs.same, folds, far) for far in fars)
    else:
        curve = exact_roc(held_out[tested], pairs.same[tested])
        val = tuple(_val_at_once(curve, far) for far in fars)
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


def pair_scores(vectors: NDArray[np.floating[Any]], pairs: Pairs, metric: Metric) -> Doubles:
    """Compare the two sides of every pair: (P,) float64, on the metric's own scale."""
    scores = np.empty(len(pairs))
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        block = slice(start, start + _PAIRS_AT_ONCE)
        scores[block] = paired(metric, vectors[pairs.first[block]], vectors[pairs.second[block]])
    return scores


def facenet_folds(pairs: Pairs) -> list[Indices]:
    """Split the pairs into consecutive folds, in file order: scikit-learn's `KFold(n, shuffle=False)`.

    Raises
    ------
    InputError
        If there are fewer than 2 folds or one has not both kinds of pairs.
    """
    _require_folds(pairs, len(pairs))
    folds = np.array_split(np.arange(len(pairs)), pairs.folds)
    for number, fold in enumerate(folds, start=1):
        if pairs.same[fold].all() or not pairs.same[fold].any():
            raise InputError(
                f"fold {number} of {pairs.folds}: expected pairs of one person and of two, found one kind only; "
                "the facenet protocol cuts the list into consecutive folds"
            )
    return folds


def omz_folds(pairs: Pairs) -> list[Indices]:
    """Split the pairs by their anchor, the first image of a pair, as accuracy_checker does.

    Anchors are in the order in which the list names images, first in its genuine and then in its impostor pairs;
    fold k of n holds the pairs of anchors ``k * A // n`` to ``(k + 1) * A // n``. Folds differ in size, and most
    genuine pairs stand in the first, only impostors in the last; the accuracy is the plain mean of the folds'. A
    pair that the list repeats (same anchor, same other image) counts once.

    Raises
    ------
    InputError
        If there are fewer than 2 folds, or more than anchors.
    """
    rows = np.concatenate([np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same)])
    named = np.stack([pairs.first[rows], pairs.second[rows]], axis=1).ravel()
    images, first_named = np.unique(named, return_index=True)
    order = images[np.argsort(first_named)]
    is_anchor = np.zeros(len(pairs.images), np.bool_)
    is_anchor[pairs.first] = True
    anchors = order[is_anchor[order]]
    _require_folds(pairs, len(anchors))
    position = np.empty(len(pairs.images), np.intp)
    position[anchors] = np.arange(len(anchors))
    _, once = np.unique(np.stack([pairs.first, pairs.second, pairs.same], axis=1), axis=0, return_index=True)
    once.sort()
    bounds = np.arange(pairs.folds + 1) * len(anchors) // pairs.folds
    fold_of = np.searchsorted(bounds, position[pairs.first[once]], side="right") - 1
    return [once[fold_of == fold] for fold in range(pairs.folds)]


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
    everything: Sequence[Doubles], same: NDArray[np.bool_], folds: Sequence[Indices], target: float
) -> Val:
    """VAL as davidsandberg measures it: the threshold is interpolated on the training folds, then applied.

    Of thresholds with one FAR the first stands for it; upstream hands all of them to `interp1d`, whose answer is
    then undefined. Where no threshold reaches the FAR, the threshold is 0.
    """
    met = []
    for number, (distances, test) in enumerate(zip(everything, folds, strict=True)):
        train = _others(folds, number)
        far, _ = accept_rates(distances[train], same[train], _FINE_GRID)
        rates, first = np.unique(far, return_index=True)
        threshold = np.interp(target, rates, _FINE_GRID[first]) if rates[-1] >= target else 0.0
        met.append(accept_rates(distances[test], same[test], np.array([threshold])))
    fars, tars = np.array(met)[..., 0].T
    return Val(target, float(tars.mean()), float(tars.std()), float(fars.mean()))


def _val_at_once(curve: Roc, target: float) -> Val:
    tar = curve.tar_at(target)
    return Val(target, tar, None, float(curve.far[curve.tar == tar].min()))


def _val_dict(val: Val) -> dict[str, float | None]:
    return {"mean": val.mean, "std": val.std, "far": val.far}


def _require_folds(pairs: Pairs, most: int) -> None:
    if not 2 <= pairs.folds <= most:
        raise InputError(
            f"cross-validation: expected 2 to {most} folds, found {pairs.folds} in the pairs' header"
        )
