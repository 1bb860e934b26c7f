"""Turn values into SVG paths; the template `plot.html.j2` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from edgeface.drawing.axes import Axis, Doubles

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Shape:
    """An SVG path: attribute ``d`` in units of the drawing, class of `style.css`, tooltip, and opacity from 0 to 1."""

    path: str
    kind: str
    title: str = ""
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Words:
    """Text inside a plot: anchor point in units of the drawing, and which side of the text it is at."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as the template draws it: shapes in order, words over them, class and text of each entry of the legend.

    The title and the labels of the axes are also the text for screen readers; `note` stands below the plot.
    """

    title: str
    frame: Axes
    shapes: tuple[Shape, ...]
    words: tuple[Words, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Axes:
    """Two axes and the size of the plot area; the methods turn values into shapes and text.

    Values outside an axis are drawn at its end.
    """

    x: Axis
    y: Axis
    width: float = 400.0
    height: float = 250.0
    left: float = 72.0
    """Width of the space for the marks and the label of the y axis."""
    grid: bool = True

    def across(self, values: ArrayLike) -> Doubles:
        """Return the places of x values, in units of the drawing."""
        return self.x.place(values) * self.width

    def down(self, values: ArrayLike) -> Doubles:
        """Return the places of y values, in units of the drawing, from the top."""
        return (1 - self.y.place(values)) * self.height

    def line(self, x: ArrayLike, y: ArrayLike, kind: str) -> Shape:
        """Draw a line through points; points less than a tenth of a unit from the one before are left out."""
        points = np.round(np.stack([self.across(x), self.down(y)], axis=1), 1) + 0.0
        keep = np.append(True, np.any(np.diff(points, axis=0) != 0, axis=1))
        return Shape("M" + "L".join(f"{a:g} {b:g}" for a, b in points[keep]), kind)

    def columns(self, edges: ArrayLike, heights: ArrayLike, kind: str) -> Shape:
        """Draw the outline of a histogram of N + 1 edges along x and N heights."""
        sides = np.round(self.across(edges), 1)
        tops = np.round(self.down(heights), 1)
        outline = "".join(f"V{top:g}H{right:g}" for top, right in zip(tops, sides[1:], strict=True))
        return Shape(f"M{sides[0]:g} {self.height:g}{outline}V{self.height:g}Z", kind)

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, kind: str) -> Shape:
        """Draw the area between two lines over the same x."""
        upper, lower = self.line(x, high, kind).path, self.line(np.flip(x), np.flip(low), kind).path
        return Shape(f"{upper}L{lower[1:]}Z", kind)

    def dots(
        self, x: ArrayLike, y: ArrayLike, kind: str, *, radius: float = 3.0, titles: Sequence[str] = ()
    ) -> tuple[Shape, ...]:
        """Draw a circle at each point: one path for all, or one path each if there are titles."""
        points = zip(np.round(self.across(x), 1), np.round(self.down(y), 1), strict=True)
        arcs = f"a{radius:g} {radius:g} 0 1 0 {2 * radius:g} 0a{radius:g} {radius:g} 0 1 0 {-2 * radius:g} 0"
        paths = [f"M{a - radius:g} {b:g}{arcs}" for a, b in points]
        if titles:
            return tuple(Shape(path, kind, title) for path, title in zip(paths, titles, strict=True))
        return (Shape("".join(paths), kind),) if paths else ()

    def upright(self, value: float, kind: str) -> Shape:
        """Draw a vertical line at one x."""
        return Shape(f"M{self.across(value):.1f} 0V{self.height:g}", kind)

    def level(self, value: float, kind: str) -> Shape:
        """Draw a horizontal line at one y."""
        return Shape(f"M0 {self.down(value):.1f}H{self.width:g}", kind)

    def whiskers(self, y: float, low: float, high: float, kind: str, *, title: str = "") -> Shape:
        """Draw a horizontal error bar at one y."""
        (left, right), at = np.round(self.across([low, high]), 1), float(self.down(y))
        feet = "".join(f"M{side:g} {at - 4:.1f}v8" for side in (left, right))
        return Shape(f"M{left:g} {at:.1f}H{right:g}{feet}", kind, title)

    def bar(self, row: int, value: float, kind: str, *, title: str = "") -> Shape:
        """Draw a bar from the left end to `value` in one row of a y axis of categories."""
        high = 0.64 * self.height / len(self.y.marks)
        top, length = float(self.down(row)) - high / 2, float(self.across(value))
        return Shape(f"M0 {top:.1f}H{length:.1f}v{high:.1f}H0Z", kind, title)

    def pillar(self, x: float, low: float, high: float, kind: str, *, title: str = "") -> Shape:
        """Draw a vertical error bar at one x."""
        (bottom, top), at = np.round(self.down([low, high]), 1), float(self.across(x))
        feet = "".join(f"M{at - 4:.1f} {end:g}h8" for end in (bottom, top))
        return Shape(f"M{at:.1f} {bottom:g}V{top:g}{feet}", kind, title)

    def cell(self, column: int, row: int, kind: str, *, strength: float, title: str = "") -> Shape:
        """Draw one cell of two axes of categories."""
        wide, high = self.width / len(self.x.marks), self.height / len(self.y.marks)
        left, top = float(self.across(column)) - wide / 2 + 1, float(self.down(row)) - high / 2 + 1
        return Shape(f"M{left:.1f} {top:.1f}h{wide - 2:.1f}v{high - 2:.1f}h{2 - wide:.1f}Z", kind, title, strength)

    def words(
        self, x: float, y: float, text: str, *, anchor: Anchor = "middle", kind: str = "", lift: float = 0.0
    ) -> Words:
        """Put text at a point, `lift` units above it."""
        return Words(round(float(self.across(x)), 1), round(float(self.down(y)) - lift, 1), text, anchor, kind)
