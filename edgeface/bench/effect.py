"""Two estimates with their intervals in, the ratio between them and the interval that it lies in out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from edgeface.bench import stats

__all__ = ["Estimate", "Ratio", "middle", "of_latency", "of_pairs", "of_rate", "of_runs", "ratio"]

Bounds = tuple[float | None, float | None]

_BATCHES = 8

_FEWEST = 4
"""Independent samples below which nothing is said about a series."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A positive number and the interval that it lies in; None: not bounded on that side."""

    value: float
    interval: Bounds


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as large the second of two is; 1 is no difference."""

    value: float
    interval: Bounds


def of_latency(latencies: np.ndarray, share: float, *, confidence: float) -> Estimate:
    """Estimate a percentile of a series.

    Parameters
    ----------
    latencies : (N,) float
        In the order in which they were measured.
    share
        0.5 for the median.
    confidence
        Of the interval; see `_worth` for how correlation is honoured.
    """
    ordered = np.sort(latencies)
    count = len(ordered)
    value = float(ordered[stats.rank(count, share) - 1])
    worth = _worth((latencies <= value).astype(np.float64), confidence)
    if worth is None:
        return Estimate(value, (None, None))
    low, high = stats.interval_ranks(count, share, worth=worth, confidence=confidence)
    return Estimate(
        value,
        (
            None if low is None else float(ordered[low - 1]),
            None if high is None else float(ordered[high - 1]),
        ),
    )


def of_rate(ends: np.ndarray, *, confidence: float) -> Estimate:
    """Estimate completions a second from their times, (N,) seconds from the start of the measurement."""
    return Estimate(len(ends) / float(ends.max()), stats.rate_interval(ends, confidence=confidence))


def ratio(first: Estimate, second: Estimate) -> Ratio:
    """Say how many times as large the second is.

    Of two independent estimates with intervals, the interval of their difference takes the distance to each nearer
    end in the worst direction: d - sqrt((b - low_b)^2 + (high_a - a)^2) to d + sqrt((high_b - b)^2 + (a - low_a)^2)
    (MOVER: Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702). Here of logarithms.
    """
    a, b = math.log(first.value), math.log(second.value)
    (low_a, high_a), (low_b, high_b) = _logs(first.interval), _logs(second.interval)
    low = None if low_b is None or high_a is None else math.exp(b - a - math.hypot(b - low_b, high_a - a))
    high = None if high_b is None or low_a is None else math.exp(b - a + math.hypot(high_b - b, a - low_a))
    return Ratio(math.exp(b - a), (low, high))


def of_runs(first: Sequence[float], second: Sequence[float], *, confidence: float) -> Ratio:
    """Compare figures of repeated runs, at least three each, by their geometric means.

    Welch's t of the logarithms: what varies from run to run is in the interval.
    """
    a, b = np.log(first), np.log(second)
    spread_a, spread_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    spread = spread_a + spread_b
    parts = spread_a**2 / (len(a) - 1) + spread_b**2 / (len(b) - 1)
    # Welch and Satterthwaite; rounded down, which widens.
    freedom = math.floor(spread**2 / parts) if parts > 0 else len(a) + len(b) - 2
    return _around(float(b.mean() - a.mean()), math.sqrt(spread), freedom, confidence)


def of_pairs(first: Sequence[float], second: Sequence[float], *, confidence: float) -> Ratio:
    """Compare figures of runs that alternated, at least three pairs, pair by pair.

    Student's t of the logarithms of their ratios: what changed slowly while they ran is in both of a pair, and
    does not count.
    """
    differences = np.log(second) - np.log(first)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return _around(float(differences.mean()), error, len(differences) - 1, confidence)


def _worth(series: np.ndarray, confidence: float) -> float | None:
    """Independent samples that one of a series is worth, for an interval of its mean; None: too few in all.

    The smaller of what the series' correlations say (`stats.independent_share`) and of what the means of 8 batches
    say: the former overlooks what changes as slowly as the series is long. Either is an estimate, so it is taken
    down by (z / t)^2, Student's t of as many degrees of freedom as it rests on (Korn and Graubard, Survey Methodology
    24 (1998), 193-201).
    """
    count, size = len(series), len(series) // _BATCHES
    worth = stats.independent_share(series)
    freedom = math.floor(count * worth) - 1
    means = series[count - size * _BATCHES :].reshape(_BATCHES, size).mean(axis=1) if size else series
    among, within = float(means.var(ddof=1)), float(series.var())
    if size and size * among * worth > within:
        worth, freedom = within / (size * among), min(freedom, _BATCHES - 1)
    if count * worth < _FEWEST:
        return None
    normal = NormalDist().inv_cdf(0.5 + confidence / 2)
    return worth * (normal / _student_t(max(freedom, _FEWEST - 1), confidence)) ** 2


def middle(figures: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(float(np.log(figures).mean()))


def _around(middle: float, error: float, freedom: int, confidence: float) -> Ratio:
    half = _student_t(freedom, confidence) * error
    return Ratio(math.exp(middle), (math.exp(middle - half), math.exp(middle + half)))


def _logs(interval: Bounds) -> Bounds:
    low, high = interval
    return (None if low is None or low <= 0 else math.log(low), None if high is None else math.log(high))


def _student_t(freedom: int, confidence: float) -> float:
    """Two-sided quantile of Student's t, also where there are few degrees of freedom."""
    if freedom > 30:
        return stats.student_t(freedom, confidence)
    low, high = 0.0, 1e6
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t): Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if odd:
        return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))
    return sine * total
