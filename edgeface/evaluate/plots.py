"""Curves and histograms in, the paths and ticks of their plots out; the template draws them as inline SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgeface.evaluate.curves import Roc

__all__ = ["HEIGHT", "WIDTH", "Plot", "Shape", "Tick", "det_plot", "histogram_plot", "roc_plot"]

WIDTH, HEIGHT = 400.0, 250.0
"""Of the area between the axes, in units of the drawing."""

_BINS = 60
_DET_RATES = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.4)

Doubles = NDArray[np.float64]
Scale = Callable[[Doubles], Doubles]
"""From a value to its place on an axis, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Where an axis is marked, in units of the drawing, and with what."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Shape:
    """An SVG path and the class that colours it."""

    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class Plot:
    """What the template draws.

    Attributes
    ----------
    title, x_label, y_label
        Words.
    x_ticks, y_ticks
        Marks; y counts downwards, as SVG does.
    shapes
        In drawing order.
    legend
        Class and words of the kinds that need explaining.
    """

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    shapes: tuple[Shape, ...]
    legend: tuple[tuple[str, str], ...] = ()


def roc_plot(roc: Roc) -> Plot:
    """True over false accept rate, the latter on a logarithmic axis: errors that matter are rare ones."""
    least = _least_rate(roc)
    bottom = min(0.9, np.floor(roc.tar_at(least) * 10) / 10)

    def across(rates: Doubles) -> Doubles:
        return np.asarray(1 - np.log(rates) / np.log(least))

    def up(rates: Doubles) -> Doubles:
        return np.asarray((rates - bottom) / (1 - bottom))

    powers = np.logspace(decades := int(np.ceil(np.log10(least))), 0, 1 - decades)
    shares = np.linspace(bottom, 1, 6)
    return Plot(
        "ROC",
        "false accept rate",
        "true accept rate (VAL)",
        _ticks(across(powers), [_percent(each) for each in powers], WIDTH),
        _ticks(1 - up(shares), [_percent(each) for each in shares], HEIGHT),
        (Shape(_steps(across(np.maximum(roc.far, least)), np.clip(up(roc.tar), 0, 1)), "curve"),),
    )


def det_plot(roc: Roc) -> Plot:
    """False reject over false accept rate, both as normal deviates (Martin et al., Eurospeech 1997).

    Scores that are normally distributed give a straight line; where it meets the diagonal is the equal error rate.
    """
    low, high = _least_rate(roc) / 2, 0.5
    scale = _probit_scale(low, high)
    inside = (roc.far <= high) & (1 - roc.tar <= high)
    rates = [each for each in _DET_RATES if low <= each <= high]
    places, words = scale(np.array(rates)), [_percent(each) for each in rates]
    curve = _steps(scale(np.clip(roc.far[inside], low, high)), scale(np.clip(1 - roc.tar[inside], low, high)))
    return Plot(
        "DET",
        "false accept rate",
        "false reject rate",
        _ticks(places, words, WIDTH),
        _ticks(1 - places, words, HEIGHT),
        (Shape(f"M0 {HEIGHT:g}L{WIDTH:g} 0", "guide"), Shape(curve, "curve")),
    )


def histogram_plot(distances: Doubles, same: NDArray[np.bool_], threshold: float, *, metric: str) -> Plot:
    """Share of the genuine and of the impostor pairs in each of 60 classes of distance."""
    edges = np.linspace(min(0.0, float(distances.min())), float(distances.max()), _BINS + 1)
    shares = [np.histogram(distances[kind], edges)[0] / kind.sum() for kind in (same, ~same)]
    top = max(float(each.max()) for each in shares)

    def across(values: Doubles) -> Doubles:
        return np.asarray((values - edges[0]) / (edges[-1] - edges[0]))

    marks = _round_steps(float(edges[0]), float(edges[-1]))
    heights = _round_steps(0.0, top, wanted=4)
    cut = float(across(np.array([threshold]))[0]) * WIDTH
    return Plot(
        "Distances",
        f"{metric} distance",
        "share of pairs",
        _ticks(across(marks), [f"{each:g}" for each in marks], WIDTH),
        _ticks(1 - heights / top, [_percent(each) for each in heights], HEIGHT),
        (
            Shape(_area(across(edges), shares[0] / top), "genuine"),
            Shape(_area(across(edges), shares[1] / top), "impostor"),
            Shape(f"M{cut:.1f} 0V{HEIGHT:g}", "cut"),
        ),
        (("genuine", "one person"), ("impostor", "two people"), ("cut", f"threshold {threshold:.3f}")),
    )


def _least_rate(roc: Roc) -> float:
    """Smallest error rate the data can show: one pair of the rarer kind."""
    steps = np.concatenate([np.diff(roc.far), np.diff(roc.tar)])
    return float(min(steps[steps > 1e-12].min(), 0.01))


def _probit_scale(low: float, high: float) -> Scale:
    deviate = NormalDist().inv_cdf
    start, end = deviate(low), deviate(high)
    return lambda rates: np.array([(deviate(float(rate)) - start) / (end - start) for rate in rates])


def _ticks(places: Doubles, words: Sequence[str], length: float) -> tuple[Tick, ...]:
    return tuple(Tick(round(float(at) * length, 1), text) for at, text in zip(places, words, strict=True))


def _steps(x: Doubles, y: Doubles) -> str:
    """A path through points of the unit square, without those that fall on the same tenth of a unit."""
    points = np.round(np.stack([x * WIDTH, (1 - y) * HEIGHT], axis=1), 1)
    keep = np.append(True, np.any(np.diff(points, axis=0) != 0, axis=1))
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in points[keep])


def _area(edges: Doubles, heights: Doubles) -> str:
    sides = np.round(edges * WIDTH, 1)
    tops = np.round((1 - heights) * HEIGHT, 1)
    bars = "".join(f"V{top:g}H{right:g}" for top, right in zip(tops, sides[1:], strict=True))
    return f"M{sides[0]:g} {HEIGHT:g}{bars}V{HEIGHT:g}Z"


def _round_steps(low: float, high: float, *, wanted: int = 6) -> Doubles:
    """Multiples of 1, 2 or 5 times a power of ten between two values."""
    rough = (high - low) / wanted
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * min((each for each in (1, 2, 5, 10) if each * power >= rough), default=10)
    return np.asarray(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
