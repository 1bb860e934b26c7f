"""Embeddings of labelled pairs by two models in, what verification lost from one to the other out, with intervals.

Both models judge the same pairs, so their errors go together and the difference is known far better than either
rate: intervals come from resampling pairs with both models' answers (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapters 8 and 13), within each fold, and accuracy is also tested by McNemar's exact test (McNemar,
Psychometrika 12, 1947; Dietterich, Neural Computation 10, 1998). Pairs that share a person are taken for
independent, as all published intervals on LFW take them; the true ones are somewhat wider.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.evaluate.lfw import EvaluationSettings
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import Evaluation, Indices, ProtocolName, evaluate, split

__all__ = ["Change", "VerificationChange", "compare_verification", "mcnemar"]

_FAR = 0.001
_RESAMPLES = 1000
_CONFIDENCE = 0.95

Vectors = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure before and after.

    Attributes
    ----------
    before, after
        Of the FP32 and of the compressed model.
    drop
        How much worse it became: ``before - after``, for an error rate ``after - before``.
    interval
        Of `drop`, at 95 %, paired.
    """

    before: float
    after: float
    drop: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationChange:
    """What a protocol says of the same pairs before and after.

    Attributes
    ----------
    protocol
        Whose folds.
    setting
        Metric, and whether mirrors and the mean were used, for people to read.
    pairs
        How many were scored.
    accuracy
        Mean over the folds, each model at its own thresholds.
    val
        True accept rate at a false accept rate of 0.001.
    eer
        Equal error rate.
    lost, won
        Pairs that only the FP32, and only the compressed model gets right.
    p_value
        McNemar's exact test that both are equally right.
    """

    protocol: str
    setting: str
    pairs: int
    accuracy: Change
    val: Change
    eer: Change
    lost: int
    won: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        stored = dataclasses.asdict(self)
        for name in ("accuracy", "val", "eer"):
            stored[name]["interval"] = list(stored[name]["interval"])
        return stored


def compare_verification(
    before: Vectors,
    after: Vectors,
    pairs: Pairs,
    *,
    protocol: ProtocolName,
    settings: EvaluationSettings,
    seed: int = 0,
) -> VerificationChange:
    """Score two models on the same pairs.

    Parameters
    ----------
    before, after : (N, D) float
        One row an entry of `pairs.images`, with the mirror's embedding behind it if `settings.flip`.
    pairs
        Labelled.
    protocol, settings
        As for `edgeface.evaluate.evaluate`.
    seed
        Of the resampling.

    Raises
    ------
    EdgeFaceError
        As `edgeface.evaluate.evaluate`.
    """
    first, second = (
        evaluate(
            vectors,
            pairs,
            protocol=protocol,
            metric=settings.metric,
            subtract_mean=settings.subtract_mean,
            fars=(_FAR,),
        )
        for vectors in (before, after)
    )
    position = np.full(len(pairs), -1)
    position[first.tested] = np.arange(len(first.tested))
    folds = [position[fold] for fold in split(pairs, protocol)]
    right = np.stack([_right(each, folds) for each in (first, second)])
    lost = int((right[0] & ~right[1]).sum())
    won = int((right[1] & ~right[0]).sum())
    samples = _resample(right, np.stack([first.distances, second.distances]), first.same, folds, seed)
    return VerificationChange(
        protocol=protocol.value,
        setting=_setting_text(settings),
        pairs=len(first.same),
        accuracy=_change(first.accuracy, second.accuracy, samples[:, 0]),
        val=_change(first.val[0].mean, second.val[0].mean, samples[:, 1]),
        eer=_change(first.eer, second.eer, -samples[:, 2], rate_of_errors=True),
        lost=lost,
        won=won,
        p_value=mcnemar(lost, won),
    )


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact P value that `lost` and `won` come from a fair coin.

    Twice the lower binomial tail of the smaller one, at most 1.
    """
    trials = lost + won
    tail = sum(math.comb(trials, k) for k in range(min(lost, won) + 1))
    return float(min(1.0, 2 * tail / 2**trials))


def _right(evaluation: Evaluation, folds: list[Indices]) -> NDArray[np.bool_]:
    """Whether each tested pair was judged right, at the threshold of its fold."""
    right = np.empty(len(evaluation.same), np.bool_)
    for fold, threshold in zip(folds, evaluation.thresholds, strict=True):
        right[fold] = (evaluation.distances[fold] < threshold) == evaluation.same[fold]
    return right


def _resample(
    right: NDArray[np.bool_], distances: Doubles, same: NDArray[np.bool_], folds: list[Indices], seed: int
) -> Doubles:
    """Differences (R, 3), before less after, of accuracy, VAL and EER on pairs drawn anew within each fold."""
    rng = np.random.default_rng(seed)
    gain = right[0].astype(np.float64) - right[1]
    found = np.empty((_RESAMPLES, 3))
    for row in found:
        drawn = [rng.choice(fold, len(fold)) for fold in folds]
        row[0] = np.mean([gain[fold].mean() for fold in drawn])
        pool = np.concatenate(drawn)
        (val, eer), (val_after, eer_after) = (_val_and_eer(each[pool], same[pool]) for each in distances)
        row[1:] = val - val_after, eer - eer_after
    return found


def _val_and_eer(distances: Doubles, same: NDArray[np.bool_]) -> tuple[float, float]:
    """True accept rate at a false accept rate of 0.001, and the rate at which both errors are equal."""
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    cut = impostor[min(len(impostor) - 1, math.floor(_FAR * len(impostor)))]
    val = np.searchsorted(genuine, cut, side="left") / len(genuine)
    # At the k-th smallest of all distances the false rejects fall and the false accepts rise: they cross once.
    grid = np.concatenate([genuine, impostor])
    rejects = 1 - np.searchsorted(genuine, grid, side="right") / len(genuine)
    accepts = np.searchsorted(impostor, grid, side="right") / len(impostor)
    nearest = np.argmin(np.abs(rejects - accepts))
    return float(val), float((rejects[nearest] + accepts[nearest]) / 2)


def _change(before: float, after: float, drops: Doubles, *, rate_of_errors: bool = False) -> Change:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(drops, [tail, 1 - tail])
    drop = after - before if rate_of_errors else before - after
    return Change(before=before, after=after, drop=drop, interval=(float(low), float(high)))


def _setting_text(settings: EvaluationSettings) -> str:
    parts = [settings.metric.value]
    parts += ["mirror concatenated"] * settings.flip + ["train mean subtracted"] * settings.subtract_mean
    return ", ".join(parts)
