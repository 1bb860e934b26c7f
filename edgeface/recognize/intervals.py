"""Errors counted and trials made in, the interval that the true rate lies in out."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["clopper_pearson", "trials_needed"]


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
