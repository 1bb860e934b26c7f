"""Samples in, estimates with the interval that the truth lies in out; nothing is assumed about their distribution.

Latencies of one run follow one another, and are not independent: a disturbance lasts, and so does a phase of boost.
Every interval here first asks how many independent samples the series is worth (`edgeface.bench.worth`), so that a
correlated series gets a wider one.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgeface.bench.parts import Interval, LatencyKey
from edgeface.bench.worth import BATCHES, student_t, worth

__all__ = [
    "CONFIDENCE",
    "QUANTILES",
    "allowed_over",
    "early_stopping_estimate",
    "interval_ranks",
    "mean_interval",
    "queries_needed",
    "rank",
    "rate_interval",
    "summarize",
]

CONFIDENCE = 0.95
"""Of every interval in a result."""

EARLY_STOPPING_CONFIDENCE = 0.99
"""MLPerf Inference rules, appendix on early stopping: c = 0.99, tolerance d = 0."""

QUANTILES: dict[LatencyKey, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}

Floats = NDArray[np.floating]


def summarize(latencies: Floats) -> tuple[dict[LatencyKey, float], dict[LatencyKey, Interval]]:
    """Estimate percentiles, mean and extremes.

    Parameters
    ----------
    latencies : (N,) float
        In the order in which they were measured, N at least 1.

    Returns
    -------
    estimates
        ``p50`` to ``p99.9``, ``mean``, ``min`` and ``max``. A percentile is an observed value: the smallest that at
        least that share of the samples does not exceed, as benchmark_app and MLPerf's load generator have it.
    intervals
        95 % of each percentile and of the mean; None where there are too few samples to bound it.
    """
    ordered = np.sort(latencies)
    count = len(ordered)
    estimates: dict[LatencyKey, float] = {
        key: float(ordered[rank(count, share) - 1]) for key, share in QUANTILES.items()
    }
    estimates |= {"mean": float(ordered.mean()), "min": float(ordered[0]), "max": float(ordered[-1])}
    intervals: dict[LatencyKey, Interval] = {}
    for key, share in QUANTILES.items():
        intervals[key] = percentile_interval(latencies, share)
    intervals["mean"] = mean_interval(latencies)
    return estimates, intervals


def percentile_interval(latencies: Floats, share: float, *, confidence: float = CONFIDENCE) -> Interval:
    """Bound a percentile of a series, (N,) in the order in which it was measured, by two of its values."""
    ordered, count = np.sort(latencies), len(latencies)
    below = (latencies <= ordered[rank(count, share) - 1]).astype(np.float64)
    each = worth(below, confidence)
    if each is None:
        return None, None
    low, high = interval_ranks(count, share, worth=each, confidence=confidence)
    return (
        None if low is None else float(ordered[low - 1]),
        None if high is None else float(ordered[high - 1]),
    )


def rank(count: int, share: float) -> int:
    """Rank, from 1, of the smallest of `count` ordered samples that `share` of them does not exceed."""
    return min(max(math.ceil(count * share - 1e-9), 1), count)


def interval_ranks(
    count: int, share: float, *, worth: float = 1.0, confidence: float = CONFIDENCE
) -> tuple[int | None, int | None]:
    """Find the order statistics that hold a quantile between them, whatever the distribution.

    The number of samples below the quantile is binomial, so that ranks l and u hold it with probability
    P(l <= B < u), B ~ Binomial(count, share): David and Nagaraja, Order Statistics, 3rd edition, section 7.1.
    Each side is left with at most half of what is not covered.

    Parameters
    ----------
    count
        Samples.
    share
        Of the quantile: 0.99 for the 99th percentile.
    worth
        Independent samples that each is worth, as `edgeface.bench.worth` says: the ranks are found for as many,
        and stretched.
    confidence
        Probability that the ranks hold the quantile between them.

    Returns
    -------
    (low, high)
        Ranks from 1; None: even the extreme sample does not bound it with that confidence.
    """
    independent = max(1, math.floor(count * worth))
    tail = (1.0 - confidence) / 2.0
    first, cumulative = _binomial_cdf(independent, share)
    # Largest l with P(B <= l - 1) <= tail, smallest u with P(B <= u - 1) >= 1 - tail.
    low = first + int(np.searchsorted(cumulative, tail, side="right"))
    high = first + int(np.searchsorted(cumulative, 1.0 - tail, side="left")) + 1
    stretch = count / independent
    return (
        None if low < 1 else max(1, math.floor(low * stretch)),
        None if high > independent else min(count, math.ceil(high * stretch)),
    )


def _binomial_cdf(count: int, share: float) -> tuple[int, Floats]:
    """P(B <= first), P(B <= first + 1), ... for B ~ Binomial(count, share), where it is neither 0 nor 1."""
    centre, spread = count * share, math.sqrt(count * share * (1.0 - share))
    first = max(0, math.floor(centre - 10 * spread - 20))
    last = min(count, math.ceil(centre + 10 * spread + 20))
    steps = np.arange(first, last)
    # pmf(k + 1) / pmf(k) = (n - k) / (k + 1) * p / (1 - p)
    logs = np.log((count - steps) / (steps + 1.0)) + math.log(share / (1.0 - share))
    pmf = np.concatenate([[0.0], np.cumsum(logs)])
    pmf = np.exp(pmf - pmf.max())
    cumulative = np.cumsum(pmf)
    return first, cumulative / cumulative[-1]


def mean_interval(series: Floats, *, confidence: float = CONFIDENCE) -> Interval:
    """Bound the mean of a series as if it were as many independent samples as it is worth."""
    each = worth(series, confidence)
    if each is None:
        return None, None
    spread = float(np.std(series, ddof=1)) / math.sqrt(len(series) * each)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    mean = float(np.mean(series))
    return max(0.0, mean - half), mean + half


def rate_interval(ends: Floats, *, confidence: float = CONFIDENCE) -> Interval:
    """Bound a rate of completions, by means of batches of consecutive ones.

    The times that batches of equally many completions take are nearly independent if the batches are long, so there
    are as few as 8 (batch means; Law, Simulation Modeling and Analysis, 5th edition, section 9.5.3).

    Parameters
    ----------
    ends : (N,) float
        Seconds from the start of the measurement to each completion, in any order.
    confidence
        Share of the runs whose interval holds the true rate.

    Returns
    -------
    (low, high)
        Completions a second; None below 16 completions.
    """
    times = np.concatenate([[0.0], np.sort(ends)])
    size = (len(times) - 1) // BATCHES
    if size < 2:
        return None, None
    spans = np.diff(times[len(times) - 1 - BATCHES * size :: size])
    half = student_t(BATCHES - 1, confidence) * float(np.std(spans, ddof=1)) / math.sqrt(BATCHES)
    mean = float(spans.mean())
    return size / (mean + half), size / (mean - half) if mean > half else None


def allowed_over(count: int, share: float, *, confidence: float = EARLY_STOPPING_CONFIDENCE) -> int:
    """Most of `count` queries that may exceed a bound while it still holds for `share` of all, or -1.

    MLPerf Inference's early-stopping criterion (inference_rules.adoc, "Early stopping"; its load generator's
    early_stopping.cc): if more than 1 - share of all queries were over the bound, t or fewer among n would have a
    probability of P(B <= t), B ~ Binomial(n, 1 - share); t is the largest for which that is at most 1 - confidence.
    """
    first, cumulative = _binomial_cdf(count, 1.0 - share)
    return first + int(np.searchsorted(cumulative, 1.0 - confidence, side="right")) - 1


def queries_needed(share: float, *, over: int = 1) -> int:
    """Fewest queries of which `over` may exceed a bound (`allowed_over`).

    With 1 `early_stopping_estimate` has an answer: 64 for 0.9, 662 for 0.99, as in MLPerf. With 0 a bound can be met
    at all: 44 and 459.
    """
    low, high = 1, 1
    while allowed_over(high, share) < over:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if allowed_over(middle, share) >= over else (middle + 1, high)
    return high


def early_stopping_estimate(ordered: Floats, share: float) -> float | None:
    """Value that a percentile does not exceed, with 99 % confidence; None: too few samples.

    What MLPerf reports for SingleStream (0.9) and MultiStream (0.99): of n ordered latencies the one of rank
    n - t + 1, where t may be over (`allowed_over`), t at least 1.
    """
    over = allowed_over(len(ordered), share) if len(ordered) else 0
    return float(ordered[len(ordered) - over]) if over >= 1 else None
