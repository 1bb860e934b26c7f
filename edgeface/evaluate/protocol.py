"""Score verification on labelled pairs by one of two published protocols.

``facenet`` is davidsandberg/facenet's (`src/lfw.py`, `src/facenet.py`), ``omz`` Open Model Zoo's (accuracy_checker,
`metrics/reid.py`, `pairwise_accuracy_subsets`). They differ in their folds. Both choose, on the pairs outside a fold,
the first threshold of 0, 0.01, ... 3.99 with the highest accuracy, and score the fold with it. Euclidean distances of
embeddings that are longer than 1 can exceed 4; these thresholds are then multiplied by the next whole number that
covers them.

A pair is accepted if its distance is strictly below the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, InputError
from edgeface.evaluate.pairs import Pairs
from edgeface.recognize.metrics import Metric, paired, unit_rows
from edgeface.recognize.threshold import require_rates
from edgeface.stats import trials_needed

FARS = (0.1, 0.01, 0.001)
"""Default false accept rates at which VAL is reported."""

_GRID = np.arange(0, 4, 0.01)
_FINE_GRID = np.arange(0, 4, 0.001)
_PAIRS_AT_ONCE = 4096
_OF_DIRECTIONS = {each.value for each in Metric if each is not Metric.euclidean}

Doubles = NDArray[np.float64]
Indices = NDArray[np.intp]


class ProtocolName(str, Enum):
    """Name of an evaluation protocol: davidsandberg/facenet's or Open Model Zoo's."""

    facenet = "facenet"
    omz = "omz"


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """False and true accept rates over ascending thresholds.

    Attributes
    ----------
    thresholds : (T,) float64
        Ascending; the first accepts no pair.
    far, tar : (T,) float64
        Shares of the impostor and of the genuine pairs that are accepted, in [0, 1].
    """

    thresholds: Doubles
    far: Doubles
    tar: Doubles

    @property
    def auc(self) -> float:
        """Area under the curve TAR over FAR from (0, 0) to (1, 1), by trapezoids.

        For the exact curve it is the probability that a genuine pair is closer than an impostor pair, with ties
        counted as one half (Hanley and McNeil, Radiology 143, 1982).
        """
        far, tar = self._path()
        return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2.0))

    @property
    def eer(self) -> float:
        """Equal error rate: FAR at the point of the interpolated curve where FAR = 1 - TAR.

        It is the root of 1 - x - TAR(x) that davidsandberg/facenet finds with `brentq` (`validate_on_lfw.py`), solved
        in closed form on its segment, which is exact also where the curve is vertical.
        """
        far, tar = self._path()
        excess = 1.0 - far - tar  # falls from 1 to -1
        after = int(np.argmax(excess <= 0.0))
        share = excess[after - 1] / (excess[after - 1] - excess[after])
        return float(far[after - 1] + share * (far[after] - far[after - 1]))

    def tar_at(self, far: float) -> float:
        """Return the greatest TAR of the points whose FAR is at most `far`."""
        return float(self.tar[np.searchsorted(self.far, far + 1e-12, side="right") - 1])

    def _path(self) -> tuple[Doubles, Doubles]:
        """Return FAR and TAR with the end points (0, 0) and (1, 1) added."""
        return np.concatenate([[0.0], self.far, [1.0]]), np.concatenate([[0.0], self.tar, [1.0]])


@dataclass(frozen=True, slots=True)
class Val:
    """Validation rate (true accept rate) at a target false accept rate.

    Attributes
    ----------
    mean, std
        Mean and standard deviation of TAR over the folds; `std` is None for ``omz``, which pools all pairs.
    far, impostors
        FAR measured on the held-out pairs, and number of impostor pairs.
    """

    target: float
    mean: float
    std: float | None
    far: float
    impostors: int

    @property
    def supported(self) -> bool:
        """Whether there are enough impostor pairs for this rate: at least 3 / target."""
        return self.impostors >= trials_needed(self.target)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Evaluation:
    """Result of one protocol on one set of embeddings.

    Attributes
    ----------
    accuracies, thresholds : (F,) float64
        Accuracy of each fold, in [0, 1], and its distance threshold, chosen on the other folds.
    val
        One for each target FAR.
    auc, eer
        Of the mean curve of the folds (``facenet``) or of all held-out pairs (``omz``).
    tested : (P,) intp
        Scored pairs of the list: all of them, under ``omz`` without repetitions.
    distances, same : (P,) float64 and bool
        Their distances, held out: if the mean is subtracted, it is that of the other folds; True for genuine pairs.
    highest
        End of the thresholds that were tried, from 0 in 400 steps.
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
    highest: float = 4.0

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the folds."""
        return float(self.accuracies.mean())

    @property
    def accuracy_std(self) -> float:
        """Standard deviation over the folds (not of their mean), as both sources report it."""
        return float(self.accuracies.std())

    @property
    def threshold(self) -> float:
        """Mean threshold over the folds."""
        return float(self.thresholds.mean())

    @property
    def roc(self) -> Roc:
        """Exact curve of all held-out distances."""
        return exact_roc(self.distances, self.same)

    def at(self, threshold: float) -> dict[str, float]:
        """Return accuracy, FAR and TAR of all pairs at one threshold that was chosen before, without folds."""
        far, tar = (float(rate[0]) for rate in accept_rates(self.distances, self.same, np.array([threshold])))
        right = np.mean((self.distances < threshold) == self.same)
        return {"threshold": threshold, "accuracy": float(right), "far": far, "tar": tar}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the part of the answer of `edgeface evaluate lfw` that the protocol gives."""
        return {
            "protocol": self.protocol.value,
            "metric": self.metric,
            "pairs": len(self.same),
            "accuracy": {"mean": self.accuracy, "std": self.accuracy_std},
            "val": {
                f"{each.target:g}": {name: getattr(each, name) for name in ("mean", "std", "far", "supported")}
                for each in self.val
            },
            "auc": self.auc,
            "eer": self.eer,
            "threshold": self.threshold,
            "subtract_mean": self.subtract_mean,
            "normalized": self.metric in _OF_DIRECTIONS,
            "thresholds": {"from": 0.0, "to": self.highest, "steps": len(_GRID)},
            "folds": [
                {"accuracy": float(accuracy), "threshold": float(threshold)}
                for accuracy, threshold in zip(self.accuracies, self.thresholds, strict=True)
            ],
        }


def exact_roc(distances: NDArray[np.floating[Any]], same: NDArray[np.bool_]) -> Roc:
    """Build the curve with one point a distinct distance, from finite distances (P,) of pairs of both kinds.

    Examples
    --------
    >>> roc = exact_roc(np.array([0.1, 0.4, 0.3, 0.8]), np.array([True, True, False, False]))
    >>> roc.auc, roc.tar_at(0.0)
    (0.75, 0.5)
    """
    thresholds = np.append(np.unique(distances), np.inf).astype(np.float64)
    far, tar = accept_rates(distances, same, thresholds)
    return Roc(thresholds, far, tar)


def accept_rates(
    distances: NDArray[np.floating[Any]], same: NDArray[np.bool_], thresholds: Doubles
) -> tuple[Doubles, Doubles]:
    """Return FAR and TAR at each of (T,) thresholds: two arrays (T,) float64."""
    impostor, genuine = np.sort(distances[~same]), np.sort(distances[same])
    return (
        np.searchsorted(impostor, thresholds, side="left") / len(impostor),
        np.searchsorted(genuine, thresholds, side="left") / len(genuine),
    )


def split(pairs: Pairs, protocol: ProtocolName) -> list[Indices]:
    """Return the indices of the test pairs of each fold; raise InputError if the list cannot be split."""
    return (_facenet_folds if protocol is ProtocolName.facenet else _omz_folds)(pairs)


def _facenet_folds(pairs: Pairs) -> list[Indices]:
    """Split the pairs into consecutive folds in file order, like scikit-learn's `KFold(n, shuffle=False)`."""
    _require_folds(pairs, len(pairs))
    folds = np.array_split(np.arange(len(pairs)), pairs.folds)
    for number, fold in enumerate(folds, start=1):
        if pairs.same[fold].all() or not pairs.same[fold].any():
            raise InputError(
                f"fold {number} of {pairs.folds}: expected genuine and impostor pairs, found only one kind; "
                "the facenet protocol cuts the list into consecutive folds, so mix both kinds in each"
            )
    return folds


def _omz_folds(pairs: Pairs) -> list[Indices]:
    """Split the pairs by their anchor, the first image of a pair (`annotation_converters/lfw.py`, `metrics/reid.py`).

    Anchors are ordered as the list names images, first in its genuine and then in its impostor pairs. Fold k of n
    holds the pairs of anchors ``k * A // n`` to ``(k + 1) * A // n``. Folds differ in size; most genuine pairs are in
    the first folds. A repeated pair (same anchor, same other image) counts once.
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


def _require_folds(pairs: Pairs, most: int) -> None:
    if not 2 <= pairs.folds <= most:
        raise InputError(
            f"cross-validation: expected 2 to {most} folds, found {pairs.folds} in the header of the pairs list"
        )


def evaluate(
    vectors: NDArray[np.floating[Any]],
    pairs: Pairs,
    *,
    protocol: ProtocolName,
    metric: Metric,
    subtract_mean: bool = False,
    fars: Sequence[float] = FARS,
) -> Evaluation:
    r"""Score embeddings by a protocol.

    Parameters
    ----------
    vectors : (N, D) float
        One embedding for each of `pairs.images`, of any length: all metrics but ``euclidean`` normalise them, those
        with their mirror's behind them too, and before a mean is subtracted.
    pairs
        With at least 2 folds; under ``facenet`` each fold must hold both kinds.
    protocol
        Protocol that decides the folds.
    metric
        A similarity, ``cosine``, is scored as its distance, ``cosine-distance``.
    subtract_mean
        Whether to subtract the mean embedding of a fold's training pairs from both sides first.
    fars
        Target false accept rates for VAL, each in (0, 1).

    Raises
    ------
    ContractError
        If the number of vectors differs from the number of images, or a value is not finite.
    InputError
        If a rate is not in (0, 1), the pairs cannot be split into folds, or an embedding has length 0.

    Examples
    --------
    >>> from edgeface.evaluate import parse_pairs
    >>> rows = ["A\t1\t2", "A\t1\tB\t1", "B\t1\t2", "B\t1\tA\t2"]
    >>> pairs = parse_pairs("\n".join(["2\t1", *rows]).encode())
    >>> vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])  # A1, A2, B1, B2
    >>> evaluate(vectors, pairs, protocol=ProtocolName.facenet, metric=Metric.squared_l2).accuracy
    1.0
    """
    if len(vectors) != len(pairs.images):
        raise ContractError(f"expected {len(pairs.images)} embeddings, one for each image, found {len(vectors)}")
    if wrong := int((~np.isfinite(vectors).all(axis=1)).sum()):
        raise ContractError(f"expected finite embeddings, found NaN or infinity in {wrong}; the inference failed")
    metric = Metric.cosine_distance if metric.is_similarity else metric
    folds = split(pairs, protocol)
    if subtract_mean:
        vectors = vectors if metric is Metric.euclidean else unit_rows(vectors)
        trains = (_others(folds, number) for number in range(len(folds)))
        measured = [_distances_without_mean(vectors, pairs, train, metric) for train in trains]
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
    """Score distances (P,) that do not come from embeddings by the same rules as `evaluate`."""
    if np.shape(distances) != (len(pairs),):
        raise ContractError(
            f"expected {len(pairs)} distances, one for each pair, found an array of shape {np.shape(distances)}"
        )
    if not np.isfinite(distances).all():
        raise ContractError("expected finite distances, found NaN or infinity")
    folds = split(pairs, protocol)
    measured = [np.asarray(distances, np.float64)] * len(folds)
    return _score(measured, pairs, folds, protocol, metric, False, fars)


def pair_scores(vectors: NDArray[np.floating[Any]], pairs: Pairs, metric: Metric) -> Doubles:
    """Return the score of every pair on the scale of the metric: (P,) float64."""
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
    """Score the pairs; `measured` holds the distances of all pairs for each fold."""
    require_rates(fars)
    held_out = np.full(len(pairs), np.nan)
    accuracies, thresholds = [], []
    longer = max(1, math.ceil(max(float(each.max()) for each in measured) / 4)) if metric == "euclidean" else 1
    grid = _GRID * longer
    for number, (distances, test) in enumerate(zip(measured, folds, strict=True)):
        train = _others(folds, number)
        thresholds.append(_best_threshold(distances[train], pairs.same[train], grid))
        held_out[test] = distances[test]
        accuracies.append(np.mean((held_out[test] < thresholds[-1]) == pairs.same[test]))
    tested = np.sort(np.concatenate(folds))
    if protocol is ProtocolName.facenet:
        curve = _mean_curve(held_out, pairs.same, folds, grid)
        val = tuple(_val_over_folds(measured, pairs.same, folds, far, _FINE_GRID * longer) for far in fars)
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
        highest=4.0 * longer,
    )


def _others(folds: Sequence[Indices], left_out: int) -> Indices:
    return np.concatenate([fold for number, fold in enumerate(folds) if number != left_out])


def _distances_without_mean(
    vectors: NDArray[np.floating[Any]], pairs: Pairs, train: Indices, metric: Metric
) -> Doubles:
    """Return the distances of all pairs after subtracting the mean embedding of the training pairs.

    An image counts once for each training pair that it is in, as upstream concatenates both sides.
    """
    count = len(pairs.images)
    times = np.bincount(pairs.first[train], minlength=count) + np.bincount(pairs.second[train], minlength=count)
    mean = times @ vectors.astype(np.float64) / times.sum()
    return pair_scores(vectors - mean, pairs, metric)


def _best_threshold(distances: Doubles, same: NDArray[np.bool_], grid: Doubles) -> float:
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    right = np.searchsorted(genuine, grid) + len(impostor) - np.searchsorted(impostor, grid)
    return float(grid[np.argmax(right)])


def _mean_curve(distances: Doubles, same: NDArray[np.bool_], folds: Sequence[Indices], grid: Doubles) -> Roc:
    rates = np.array([accept_rates(distances[test], same[test], grid) for test in folds])
    far, tar = rates.mean(axis=0)
    return Roc(grid, far, tar)


def _val_over_folds(
    measured: Sequence[Doubles], same: NDArray[np.bool_], folds: Sequence[Indices], target: float, grid: Doubles
) -> Val:
    """Measure VAL as davidsandberg does: interpolate the threshold on the training folds, apply it to the test fold.

    Of several thresholds with the same FAR the first is used (upstream passes all of them to `interp1d`, whose result
    is then undefined). If no threshold reaches the FAR, the threshold is 0.
    """
    met = []
    for number, (distances, test) in enumerate(zip(measured, folds, strict=True)):
        train = _others(folds, number)
        far, _ = accept_rates(distances[train], same[train], grid)
        rates, first = np.unique(far, return_index=True)
        threshold = np.interp(target, rates, grid[first]) if rates[-1] >= target else 0.0
        met.append(accept_rates(distances[test], same[test], np.array([threshold])))
    fars, tars = np.array(met)[..., 0].T
    return Val(target, float(tars.mean()), float(tars.std()), float(fars.mean()), int((~same).sum()))


def _val_at_once(curve: Roc, target: float, impostors: int) -> Val:
    tar = curve.tar_at(target)
    return Val(target, tar, None, float(curve.far[curve.tar == tar].min()), impostors)
