"""Estimate rates, percentiles and means with confidence intervals, from independent or correlated samples.

Latencies of one run follow one another, and are not independent: a disturbance lasts, and so does a phase of boost.
Every interval of a series first asks how many independent samples it is worth (`worth`), so that a correlated series
gets a wider one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BATCHES",
    "CONFIDENCE",
    "QUANTILES",
    "Interval",
    "LatencyKey",
    "allowed_over",
    "clopper_pearson",
    "early_stopping_estimate",
    "independent_share",
    "interval_ranks",
    "mean_interval",
    "percentile_interval",
    "queries_needed",
    "rank",
    "rate_interval",
    "student_t",
    "summarize",
    "trials_needed",
    "worth",
]

Floats = NDArray[np.floating]

Interval = tuple[float | None, float | None]
"""Low and high end; None: not bounded on that side."""

LatencyKey = Literal["p50", "p90", "p95", "p99", "p99.9", "mean", "min", "max"]

CONFIDENCE = 0.95
"""Of every interval in a result."""

EARLY_STOPPING_CONFIDENCE = 0.99
"""MLPerf Inference rules, appendix on early stopping: c = 0.99, tolerance d = 0."""

QUANTILES: dict[LatencyKey, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}


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
        Independent samples that each is worth, as `edgeface.stats` says: the ranks are found for as many,
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


BATCHES = 8
"""Means of so many batches say how much a series varies slowly; the fewer, the slower what they still notice."""

_FEWEST = 4
"""Independent samples below which nothing is said about a series."""


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


def worth(series: Floats, confidence: float) -> float | None:
    """Independent samples that one of a series is worth, for an interval of its mean; None: too few in all.

    The smaller of what the series' correlations say (`independent_share`) and of what the means of 8 batches say:
    the former overlooks what changes as slowly as the series is long. Either is an estimate, so it is taken down by
    (z / t)^2, Student's t of as many degrees of freedom as it rests on (Korn and Graubard, Survey Methodology 24
    (1998), 193-201).
    """
    count, size = len(series), len(series) // BATCHES
    share = independent_share(series)
    freedom = math.floor(count * share) - 1
    means = series[count - size * BATCHES :].reshape(BATCHES, size).mean(axis=1) if size else series
    among, within = float(means.var(ddof=1)) if len(means) > 1 else 0.0, float(series.var())
    if size and size * among * share > within:
        share, freedom = within / (size * among), min(freedom, BATCHES - 1)
    if count * share < _FEWEST:
        return None
    normal = NormalDist().inv_cdf(0.5 + confidence / 2)
    return share * (normal / student_t(max(freedom, _FEWEST - 1), confidence)) ** 2


def student_t(freedom: int, confidence: float) -> float:
    """Two-sided quantile of Student's t."""
    if freedom > 30:
        return _expanded(freedom, confidence)
    low, high = 0.0, 1e6
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _expanded(freedom: int, confidence: float) -> float:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5: for many degrees of freedom."""
    x = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


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


def clopper_pearson(errors: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a binomial rate.

    Clopper and Pearson, Biometrika 26 (1934), 404-413; the usual choice for error rates of biometric systems
    because it never covers less than it promises, not even at 0 errors. It assumes independent trials.

    Parameters
    ----------
    errors, trials
        0 <= errors <= trials, trials at least 1.
    confidence
        Share of the experiments whose interval holds the true rate.

    Returns
    -------
    (low, high)
        Rates in [0, 1]. At 0 errors in n trials `high` is near 3.7 / n for 95 %: two-sided, so that it is a
        little wider than the one-sided rule of three.
    """
    if not 0 <= errors <= trials or trials < 1:
        raise ValueError(f"expected 0 <= errors <= trials and trials >= 1, found {errors} of {trials}")
    tail = (1.0 - confidence) / 2.0
    # P(X >= k | p) = I_p(k, n - k + 1), the regularised incomplete beta function; each end is where a tail is left.
    low = _solve(lambda p: _beta(p, errors, trials - errors + 1), tail) if errors else 0.0
    high = _solve(lambda p: _beta(p, errors + 1, trials - errors), 1.0 - tail) if errors < trials else 1.0
    return low, high


def trials_needed(rate: float) -> int:
    """Impostor pairs below which nothing can be said about a rate: 3 / rate, the rule of three.

    With no error in n independent trials the true rate is below 3 / n with 95 % confidence (ISO/IEC 19795-1,
    annex B): fewer pairs than this cannot show that a rate is met, even if not one is accepted.
    """
    return math.ceil(3.0 / rate - 1e-9)


def _solve(rising: Callable[[float], float], target: float) -> float:
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2.0) not in (low, high):
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return high


def _beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by Lentz's continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on the other side only
        return 1.0 - _beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0), tiny)
    fraction = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        step = 1.0
        for numerator in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + numerator * d, tiny)
            c = _away_from_zero(1.0 + numerator / c, tiny)
            step = c * d
            fraction *= step
        if abs(step - 1.0) < 1e-15:
            break
    return math.exp(log_front) * fraction / a


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
