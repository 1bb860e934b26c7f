"""Samples in, estimates with the interval that the truth lies in out; nothing is assumed about their distribution.

Latencies of one run follow one another, and are not independent: a disturbance lasts, and so does a phase of boost.
Every interval here first asks how many independent samples the series is worth (`independent_share`), so that a
correlated series gets a wider one.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgeface.bench.parts import Interval, LatencyKey

__all__ = [
    "CONFIDENCE",
    "QUANTILES",
    "allowed_over",
    "early_stopping_estimate",
    "independent_share",
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

_BATCHES = (32, 16, 8)


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
        below = (latencies <= estimates[key]).astype(np.float64)
        low, high = interval_ranks(count, share, worth=independent_share(below))
        intervals[key] = (
            None if low is None else float(ordered[low - 1]),
            None if high is None else float(ordered[high - 1]),
        )
    intervals["mean"] = mean_interval(latencies)
    return estimates, intervals


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
        Independent samples that each is worth, as `independent_share` says: the ranks are found for as many, and
        stretched.
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


def independent_share(series: Floats) -> float:
    """Independent samples that one of a correlated series is worth, for its mean: 1 / (1 + 2 sum of correlations).

    The sum ends where neighbouring correlations no longer add up to something positive, and their sums are kept
    from rising (Geyer's initial monotone sequence, Statistical Science 7 (1992), 473-483). Never more than 1: that
    a series alternates is not taken as a reason for more confidence.
    """
    count = len(series)
    centred = np.asarray(series, np.float64) - np.mean(series)
    variance = float(centred @ centred) / max(count, 1)
    if count < 4 or variance <= 0.0:
        return 1.0
    size = 1 << (2 * count - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), size)[:count] / (count * variance)
    pairs = correlation[: count // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0.0)
    pairs = np.minimum.accumulate(pairs[: ends[0] if len(ends) else len(pairs)])
    return min(1.0, 1.0 / max(2.0 * float(pairs.sum()) - 1.0, 1.0))


def mean_interval(series: Floats, *, confidence: float = CONFIDENCE) -> Interval:
    """Bound the mean of a series by Student's t over as many samples as it is worth; None below 8."""
    worth = len(series) * independent_share(series)
    if worth < 8:
        return None, None
    half = student_t(worth - 1, confidence) * float(np.std(series, ddof=1)) / math.sqrt(worth)
    mean = float(np.mean(series))
    return max(0.0, mean - half), mean + half


def rate_interval(ends: Floats, *, confidence: float = CONFIDENCE) -> Interval:
    """Bound a rate of completions, by means of batches of consecutive ones.

    The times that batches of equally many completions take are nearly independent if the batches are long enough:
    32 batches, or 16 or 8 if neighbours are still correlated (batch means; Law, Simulation Modeling and Analysis,
    5th edition, section 9.5.3).

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
    for batches in _BATCHES:
        size = (len(times) - 1) // batches
        if size < 2:
            continue
        spans = np.diff(times[len(times) - 1 - batches * size :: size])
        centred = spans - spans.mean()
        total = float(centred @ centred)
        if (
            batches == _BATCHES[-1]
            or total <= 0.0
            or centred[1:] @ centred[:-1] / total < 1 / math.sqrt(batches)
        ):
            half = student_t(batches - 1, confidence) * float(np.std(spans, ddof=1)) / math.sqrt(batches)
            mean = float(spans.mean())
            return size / (mean + half), size / (mean - half) if mean > half else None
    return None, None


def student_t(freedom: float, confidence: float) -> float:
    """Two-sided quantile of Student's t; four digits from 7 degrees of freedom on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    x = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def allowed_over(count: int, share: float, *, confidence: float = EARLY_STOPPING_CONFIDENCE) -> int:
    """Most of `count` queries that may exceed a bound while it still holds for `share` of all, or -1.

    MLPerf Inference's early-stopping criterion (inference_rules.adoc, "Early stopping"; its load generator's
    early_stopping.cc): if more than 1 - share of all queries were over the bound, t or fewer among n would have a
    probability of P(B <= t), B ~ Binomial(n, 1 - share); t is the largest for which that is at most 1 - confidence.
    """
    first, cumulative = _binomial_cdf(count, 1.0 - share)
    return first + int(np.searchsorted(cumulative, 1.0 - confidence, side="right")) - 1


def queries_needed(share: float) -> int:
    """Fewest queries for which `early_stopping_estimate` has an answer: 64 for 0.9, 662 for 0.99, as in MLPerf."""
    low, high = 1, 1
    while allowed_over(high, share) < 1:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if allowed_over(middle, share) >= 1 else (middle + 1, high)
    return high


def early_stopping_estimate(ordered: Floats, share: float) -> float | None:
    """Value that a percentile does not exceed, with 99 % confidence; None: too few samples.

    What MLPerf reports for SingleStream (0.9) and MultiStream (0.99): of n ordered latencies the one of rank
    n - t + 1, where t may be over (`allowed_over`), t at least 1.
    """
    over = allowed_over(len(ordered), share) if len(ordered) else 0
    return float(ordered[len(ordered) - over]) if over >= 1 else None
