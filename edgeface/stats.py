"""Estimate rates, percentiles and means with confidence intervals, from independent or correlated samples.

Successive latencies of one run are correlated: a disturbance lasts for many queries, and so does a phase of higher
clock frequency. Every interval of a series is therefore computed from its `effective_sample_size`, so that a
correlated series gets a wider interval. The distributions are those of `scipy.special`, which is imported on first
use because that takes 0.2 s.
"""

from __future__ import annotations

import bisect
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

Interval = tuple[float | None, float | None]
"""Low and high end; None: not bounded on that side."""

LatencyKey = Literal["p50", "p90", "p95", "p99", "p99.9", "mean", "min", "max"]

CONFIDENCE = 0.95
"""Confidence of every interval in a result."""

EARLY_STOPPING_CONFIDENCE = 0.99
"""MLPerf Inference rules, appendix on early stopping: c = 0.99, tolerance d = 0."""

QUANTILES: dict[LatencyKey, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}

_BATCHES = 8
"""Number of batch means. The fewer there are, the slower the variation that they still show."""

_FEWEST = 4
"""Effective samples below which a series gets no interval."""


def summarize(latencies: Floats) -> tuple[dict[LatencyKey, float], dict[LatencyKey, Interval]]:
    """Estimate percentiles, mean and extremes of latencies, (N,) float in the order of measurement, N at least 1.

    A percentile is an observed value: the smallest that at least that share of the samples does not exceed, as in
    benchmark_app and MLPerf's load generator. The second dictionary has 95 % confidence intervals of each
    percentile and of the mean; None where there are too few samples.

    Examples
    --------
    >>> estimates, intervals = summarize(np.arange(1.0, 101.0))
    >>> estimates["p90"]
    90.0
    """
    ordered = np.sort(latencies)
    count = len(ordered)
    estimates: dict[LatencyKey, float] = {k: float(ordered[rank(count, q) - 1]) for k, q in QUANTILES.items()}
    estimates |= {"mean": float(ordered.mean()), "min": float(ordered[0]), "max": float(ordered[-1])}
    intervals: dict[LatencyKey, Interval] = {k: percentile_interval(latencies, q) for k, q in QUANTILES.items()}
    intervals["mean"] = mean_interval(latencies)
    return estimates, intervals


def percentile_interval(latencies: Floats, share: float, *, confidence: float = CONFIDENCE) -> Interval:
    """Bound a percentile of a series, (N,) in the order in which it was measured, by two of its values."""
    ordered, count = np.sort(latencies), len(latencies)
    below = (latencies <= ordered[rank(count, share) - 1]).astype(np.float64)
    effective = effective_sample_size(below, confidence=confidence)
    if effective is None:
        return None, None
    low, high = interval_ranks(count, share, effective=effective, confidence=confidence)
    return None if low is None else float(ordered[low - 1]), None if high is None else float(ordered[high - 1])


def rank(count: int, share: float) -> int:
    """Return the rank, from 1, of the smallest of `count` ordered samples that `share` of them does not exceed."""
    return min(max(math.ceil(count * share - 1e-9), 1), count)


def interval_ranks(
    count: int, share: float, *, effective: float | None = None, confidence: float = CONFIDENCE
) -> tuple[int | None, int | None]:
    """Find the ranks, from 1, of the two order statistics that enclose a quantile, for any distribution.

    The number of samples below the quantile is binomial, so ranks l and u enclose it with probability P(l <= B <
    u), B ~ Binomial(count, share): David and Nagaraja, Order Statistics, 3rd edition, section 7.1. Each side leaves
    out at most half of the probability that is not covered; None: even the extreme sample does not bound it. With
    an `effective_sample_size` ranks are computed for that many samples, then scaled to `count`.
    """
    independent = max(1, math.floor(count if effective is None else effective))
    tail = (1.0 - confidence) / 2.0
    low = _binomial_quantile(tail, independent, share)
    high = _binomial_quantile(1.0 - tail, independent, share) + 1
    scale = count / independent
    return (
        None if low < 1 else max(1, math.floor(low * scale)),
        None if high > independent else min(count, math.ceil(high * scale)),
    )


def _binomial_quantile(probability: float, count: int, share: float) -> int:
    """Return the smallest k with P(B <= k) >= probability, B ~ Binomial(count, share)."""
    from scipy import special

    k = max(0, math.ceil(float(special.bdtrik(probability, count, share))))
    while k > 0 and special.bdtr(k - 1, count, share) >= probability:  # bdtrik is approximate
        k -= 1
    while k < count and special.bdtr(k, count, share) < probability:
        k += 1
    return k


def mean_interval(series: Floats, *, confidence: float = CONFIDENCE) -> Interval:
    """Bound the mean of a series, using its effective sample size."""
    from scipy import special

    effective = effective_sample_size(series, confidence=confidence)
    if effective is None:
        return None, None
    spread = float(np.std(series, ddof=1)) / math.sqrt(effective)
    half = float(special.ndtri(0.5 + confidence / 2)) * spread
    mean = float(np.mean(series))
    return max(0.0, mean - half), mean + half


def rate_interval(ends: Floats, *, confidence: float = CONFIDENCE) -> Interval:
    """Bound a rate, completions per second, by the method of batch means; no interval below 16 completions.

    `ends`, (N,) float, are the seconds from the start of the measurement to each completion, in any order. The
    durations of long batches of equally many completions are nearly independent, so 8 batches are used (Law,
    Simulation Modeling and Analysis, 5th edition, section 9.5.3).
    """
    times = np.concatenate([[0.0], np.sort(ends)])
    size = (len(times) - 1) // _BATCHES
    if size < 2:
        return None, None
    spans = np.diff(times[len(times) - 1 - _BATCHES * size :: size])
    half = student_t(_BATCHES - 1, confidence) * float(np.std(spans, ddof=1)) / math.sqrt(_BATCHES)
    mean = float(spans.mean())
    return size / (mean + half), size / (mean - half) if mean > half else None


def allowed_over(count: int, share: float, *, confidence: float = EARLY_STOPPING_CONFIDENCE) -> int:
    """Return how many of `count` queries may exceed a bound that must hold for `share` of all; -1: too few queries.

    MLPerf Inference's early-stopping criterion (inference_rules.adoc, "Early stopping"; its load generator's
    early_stopping.cc): if more than 1 - share of all queries exceeded the bound, t or fewer of n would exceed it
    with probability P(B <= t), B ~ Binomial(n, 1 - share); t is the largest for which that is at most 1 - confidence.
    """
    return _binomial_quantile(1.0 - confidence, count, 1.0 - share) - 1


def queries_needed(share: float, *, over: int = 1) -> int:
    """Return the fewest queries of which `over` may exceed a bound (`allowed_over`).

    With 1, the fewest for `early_stopping_estimate`: 64 for 0.9, 662 for 0.99, as in MLPerf. With 0, the fewest for
    which a bound can be met: 44 and 459.
    """
    enough = 1
    while allowed_over(enough, share) < over:
        enough *= 2
    return bisect.bisect_left(range(enough + 1), over, lo=1, key=lambda count: allowed_over(count, share))


def early_stopping_estimate(ordered: Floats, share: float) -> float | None:
    """Return an upper bound of a percentile with 99 % confidence; None: too few samples.

    What MLPerf reports for SingleStream (0.9) and MultiStream (0.99): of n ordered latencies the one of rank
    n - t + 1, where t may exceed the bound (`allowed_over`), t at least 1.
    """
    over = allowed_over(len(ordered), share) if len(ordered) else 0
    return float(ordered[len(ordered) - over]) if over >= 1 else None


def independent_share(series: Floats) -> float:
    """Estimate the effective sample size of a series as a share of its length: 1 / (1 + 2 sum of autocorrelations).

    The sum ends where two neighbouring autocorrelations no longer add up to a positive number, and such pairs are
    kept from rising (Geyer's initial monotone sequence, Statistical Science 7 (1992), 473-483). At most 1:
    alternation does not increase confidence.
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


def effective_sample_size(series: Floats, *, confidence: float = CONFIDENCE) -> float | None:
    """Return how many independent samples would bound the mean of a series as tightly; None: too few.

    The smaller of two estimates: by autocorrelations (`independent_share`), and by the means of 8 batches, because
    the former misses variation as slow as the series is long. Each is reduced by (z / t)^2 with Student's t of its
    degrees of freedom, being an estimate itself (Korn and Graubard, Survey Methodology 24 (1998), 193-201).
    """
    from scipy import special

    count, size = len(series), len(series) // _BATCHES
    share = independent_share(series)
    freedom = math.floor(count * share) - 1
    if size:
        means = series[count - size * _BATCHES :].reshape(_BATCHES, size).mean(axis=1)
        among, within = size * float(means.var(ddof=1)), float(series.var())
        if among * share > within:
            share, freedom = within / among, min(freedom, _BATCHES - 1)
    if count * share < _FEWEST:
        return None
    normal = float(special.ndtri(0.5 + confidence / 2))
    return count * share * (normal / student_t(max(freedom, _FEWEST - 1), confidence)) ** 2


def student_t(freedom: int, confidence: float) -> float:
    """Return the two-sided quantile of Student's t with `freedom` degrees of freedom."""
    from scipy import special

    return float(special.stdtrit(freedom, 0.5 + confidence / 2.0))


def clopper_pearson(errors: int, trials: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the exact two-sided confidence interval of a binomial rate, in [0, 1].

    Clopper and Pearson, Biometrika 26 (1934), 404-413; the usual choice for error rates of biometric systems
    because its coverage is never below `confidence`, not even at 0 errors. It assumes independent trials. At 0
    errors in n trials the upper end is near 3.7 / n for 95 %; the one-sided rule of three gives 3 / n.

    Raises
    ------
    ValueError
        Unless 0 <= errors <= trials and trials >= 1.

    Examples
    --------
    >>> low, high = clopper_pearson(0, 1000)
    >>> low, round(high, 5)
    (0.0, 0.00368)
    """
    from scipy import special

    if not 0 <= errors <= trials or trials < 1:
        raise ValueError(f"expected 0 <= errors <= trials and trials >= 1, found {errors} of {trials}")
    tail = (1.0 - confidence) / 2.0
    # P(X >= k | p) = I_p(k, n - k + 1), the regularised incomplete beta function.
    low = float(special.betaincinv(errors, trials - errors + 1, tail)) if errors else 0.0
    high = float(special.betaincinv(errors + 1, trials - errors, 1.0 - tail)) if errors < trials else 1.0
    return low, high


def trials_needed(rate: float) -> int:
    """Return the fewest impostor pairs that can show that a rate is met: 3 / rate, the rule of three.

    With no error in n independent trials the true rate is below 3 / n with 95 % confidence (ISO/IEC 19795-1,
    annex B).
    """
    return math.ceil(3.0 / rate - 1e-9)
