"""Two estimates with their intervals in, the ratio between them and the interval that it lies in out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeface import stats
from edgeface.stats import student_t

__all__ = ["Estimate", "Ratio", "middle", "of_latency", "of_pairs", "of_rate", "of_runs", "ratio"]

Bounds = tuple[float | None, float | None]


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
        Of the interval.
    """
    value = float(np.sort(latencies)[stats.rank(len(latencies), share) - 1])
    return Estimate(value, stats.percentile_interval(latencies, share, confidence=confidence))


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


def middle(figures: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(float(np.log(figures).mean()))


def _around(middle: float, error: float, freedom: int, confidence: float) -> Ratio:
    half = student_t(freedom, confidence) * error
    return Ratio(math.exp(middle), (math.exp(middle - half), math.exp(middle + half)))


def _logs(interval: Bounds) -> Bounds:
    low, high = interval
    return (None if low is None or low <= 0 else math.log(low), None if high is None else math.log(high))
