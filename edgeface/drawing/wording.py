"""A number in, the words that a page shows for it out."""

from __future__ import annotations

import math

__all__ = ["counted", "percent", "rounded"]


def rounded(value: float | None, digits: int = 4) -> str:
    """Round to significant digits, without an exponent and with commas: 0.01235, 12.35, 12,350; ``-`` for None.

    Digits in front of the decimal point are never dropped.
    """
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    # Rounding first: 9.9996 is 10.00 with four digits, and not 10.000.
    value = float(f"{value:.{digits - 1}e}") if abs(value) < 10**digits else value
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def percent(share: float, digits: int = 4) -> str:
    """Say a share of 1 in per cent: 0.125 is ``12.5 %``."""
    return f"{100 * share:.{digits}g} %"


def counted(number: int, one: str, several: str | None = None) -> str:
    """Say how many there are: ``1 run``, ``1,200 runs``."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
