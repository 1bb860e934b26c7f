"""Build plot axes: linear, logarithmic, probit, percentile and category scales with round marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]
Wording = Callable[[float], str]

_MOST_DECADES = 7
"""Greatest number of powers of ten that are marked."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark of an axis: its place from 0 (start) to 1 (end), and its text."""

    at: float
    words: str


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a plot: quantity with its unit, and marks in ascending order.

    `scale` maps values to places, 0 at the start of the axis and 1 at its end; values outside map outside [0, 1].
    """

    label: str
    scale: Callable[[Doubles], Doubles]
    marks: tuple[Mark, ...]

    def place(self, values: ArrayLike) -> Doubles:
        """Return the places of values, clipped to [0, 1]."""
        return np.clip(self.scale(np.asarray(values, np.float64)), 0.0, 1.0)


def linear(label: str, low: float, high: float, *, wanted: int = 6, words: Wording = "{:g}".format) -> Axis:
    """Build a linear axis with about `wanted` marks, at multiples of 1, 2 or 5 times a power of ten.

    `high` is moved if it is not above `low`. `words` formats the value of a mark.
    """
    if not high > low:
        high = low + (abs(low) or 1.0)
    return _axis(label, lambda values: (values - low) / (high - low), _round_steps(low, high, wanted), words)


def logarithmic(label: str, low: float, high: float, *, words: Wording = "{:g}".format) -> Axis:
    """Build a logarithmic axis, marked at powers of ten, and between them if they are few.

    The ends are above 0; `high` is moved if it is not above `low`. `words` formats the value of a mark.
    """
    if not high > low:
        high = 10 * low
    start, length = np.log(low), np.log(high / low)
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    decades = np.log10(high / low)
    steps = (1, 1.5, 2, 3, 4, 5, 7) if decades < 1 else (1, 2, 5) if decades < 3 else (1,)
    powers = powers[:: max(1, -(-len(powers) // _MOST_DECADES))]
    values = np.array([step * 10.0**power for power in powers for step in steps])
    inside = values[(values >= low * (1 - 1e-9)) & (values <= high * (1 + 1e-9))]
    return _axis(label, lambda each: (np.log(np.maximum(each, 1e-300)) - start) / length, inside, words)


def probit(label: str, low: float, high: float, marks: Sequence[float], *, words: Wording) -> Axis:
    """Build an axis of normal deviates for rates from `low` to `high`, with those of `marks` that lie between them."""
    deviate = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])
    start, end = deviate(low), deviate(high)
    inside = np.array([rate for rate in marks if low <= rate <= high])
    return _axis(label, lambda rates: (deviate(rates) - start) / (end - start), inside, words)


def nines(label: str, most: float) -> Axis:
    """Build an axis of percentiles, shares of 1 up to `most`, on which 90 %, 99 %, 99.9 % are equally far apart."""
    length = -np.log10(1 - most)
    marks = np.array([0.5, *(1 - 10.0**-power for power in range(1, int(length + 1e-9) + 1))])
    return _axis(
        label,
        lambda shares: -np.log10(np.maximum(1 - shares, 1e-12)) / length,
        marks,
        lambda share: f"{100 * share:.10g} %",
    )


def categories(label: str, names: Sequence[str]) -> Axis:
    """Build an axis of equal cells for the values 0, 1, 2, ..., each with its name at its centre."""
    marks = tuple(Mark((index + 0.5) / len(names), name) for index, name in enumerate(names))
    return Axis(label, lambda values: (values + 0.5) / len(names), marks)


def _axis(label: str, scale: Callable[[Doubles], Doubles], values: Doubles, words: Wording) -> Axis:
    places = scale(values)
    marks = tuple(Mark(float(at), words(float(each))) for at, each in zip(places, values, strict=True))
    return Axis(label, scale, marks)


def _round_steps(low: float, high: float, wanted: int) -> Doubles:
    """Return about `wanted` multiples of 1, 2 or 5 times a power of ten between two values."""
    rough = (high - low) / wanted
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda each: abs(np.log(each * power / rough)))
    count = np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1)
    return np.asarray(count * step + 0.0)
