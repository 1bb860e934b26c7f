"""Latencies in their order in, whether they have settled and whether they stayed so out."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeface.stats import independent_share

__all__ = ["is_settled", "is_stationary"]

Floats = NDArray[np.floating]

TOLERANCE = 0.02
"""Relative difference of medians that is no change worth waiting for."""


def is_settled(before: Floats, after: Floats) -> bool:
    """Whether times of two successive windows differ by no more than `TOLERANCE`, or than chance explains.

    The second clause lets a noisy machine come to an end: Mann and Whitney's rank test at 5 %.
    """
    first, second = float(np.median(before)), float(np.median(after))
    if abs(second - first) <= TOLERANCE * first:
        return True
    n, m = len(before), len(after)
    less = np.searchsorted(np.sort(before), after, side="left").sum()
    less_or_equal = np.searchsorted(np.sort(before), after, side="right").sum()
    excess = (less + less_or_equal) / 2.0 - n * m / 2.0
    return bool(abs(excess) <= 1.96 * math.sqrt(n * m * (n + m + 1) / 12.0))


def is_stationary(latencies: Floats) -> bool | None:
    """Whether the second half of a run is like the first; None: too few independent samples to tell.

    Compared is the share of samples above the overall median, whose standard error takes correlation into account.
    A difference counts if it is significant at 1 % and the medians differ by more than `TOLERANCE`.
    """
    above = (latencies > np.median(latencies)).astype(np.float64)
    half = len(latencies) // 2
    first, second = latencies[:half], latencies[half:]
    # Within the halves: a drift between them must not pass for a correlation, which would excuse it.
    worth = half * min(independent_share(above[:half]), independent_share(above[half:])) if half else 0.0
    if worth < 10:
        return None
    drift = float(np.median(second)) / float(np.median(first)) - 1.0
    difference = float(above[half:].mean() - above[:half].mean())
    return abs(drift) <= TOLERANCE or abs(difference) <= 2.576 * math.sqrt(0.5 / worth)
