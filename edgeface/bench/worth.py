"""A correlated series in, the independent samples that it is worth out; and Student's t, which they are judged by."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCHES", "independent_share", "student_t", "worth"]

Floats = NDArray[np.floating]

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
