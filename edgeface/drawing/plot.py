"""Values and two axes in, SVG paths out; the template `plot.html.j2` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from edgeface.drawing.axes import Axis, Doubles

__all__ = ["Anchor", "Axes", "Plot", "Shape", "Words"]

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Shape:
    """An SVG path.

    Attributes
    ----------
    path
        Its ``d``, in units of the drawing; y counts downwards, as SVG does.
    kind
        The class of `style.css` that colours it.
    title
        What a pointer that rests on it is told.
    strength
        Opacity, 0 to 1.
    """

    path: str
    kind: str
    title: str = ""
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Words:
    """Text inside a plot: where, in units of the drawing, and which side of it that is."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """What the template draws.

    Attributes
    ----------
    title
        Above the plot, and with the axes' labels its description.
    frame
        The axes.
    shapes, words
        In drawing order, the words on top.
    legend
        Class and words of the kinds that need explaining.
    note
        A sentence below the plot.
    """

    title: str
    frame: Axes
    shapes: tuple[Shape, ...]
    words: tuple[Words, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Axes:
    """Two axes and the size of the area between them; its methods take values and give what to draw there.

    Values outside the axes are drawn at their ends.
    """

    x: Axis
    y: Axis
    width: float = 400.0
    height: float = 250.0
    left: float = 72.0
    """Room for the marks of the y axis and its label."""
    grid: bool = True

    def across(self, values: ArrayLike) -> Doubles:
        """Places of x values, in units of the drawing."""
        return self.x.place(values) * self.width

    def down(self, values: ArrayLike) -> Doubles:
        """Places of y values, in units of the drawing, from the top."""
        return (1 - self.y.place(values)) * self.height

    def line(self, x: ArrayLike, y: ArrayLike, kind: str) -> Shape:
        """A line through points, without those that fall on the same tenth of a unit as the one before."""
        points = np.round(np.stack([self.across(x), self.down(y)], axis=1), 1) + 0.0
        keep = np.append(True, np.any(np.diff(points, axis=0) != 0, axis=1))
        return Shape("M" + "L".join(f"{a:g} {b:g}" for a, b in points[keep]), kind)

    def columns(self, edges: ArrayLike, heights: ArrayLike, kind: str) -> Shape:
        """The outline of a histogram: (N + 1) edges along x, N heights."""
        sides = np.round(self.across(edges), 1)
        tops = np.round(self.down(heights), 1)
        outline = "".join(f"V{top:g}H{right:g}" for top, right in zip(tops, sides[1:], strict=True))
        return Shape(f"M{sides[0]:g} {self.height:g}{outline}V{self.height:g}Z", kind)

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, kind: str) -> Shape:
        """The area between two lines over the same x."""
        upper, lower = self.line(x, high, kind).path, self.line(np.flip(x), np.flip(low), kind).path
        return Shape(f"{upper}L{lower[1:]}Z", kind)

    def dots(
        self, x: ArrayLike, y: ArrayLike, kind: str, *, radius: float = 3.0, titles: Sequence[str] = ()
    ) -> tuple[Shape, ...]:
        """A circle a point: one path for all of them, or one each where they have titles."""
        points = zip(np.round(self.across(x), 1), np.round(self.down(y), 1), strict=True)
        arcs = f"a{radius:g} {radius:g} 0 1 0 {2 * radius:g} 0a{radius:g} {radius:g} 0 1 0 {-2 * radius:g} 0"
        paths = [f"M{a - radius:g} {b:g}{arcs}" for a, b in points]
        if titles:
            return tuple(Shape(path, kind, title) for path, title in zip(paths, titles, strict=True))
        return (Shape("".join(paths), kind),) if paths else ()

    def upright(self, value: float, kind: str) -> Shape:
        """A line from top to bottom at one x."""
        return Shape(f"M{self.across(value):.1f} 0V{self.height:g}", kind)

    def level(self, value: float, kind: str) -> Shape:
        """A line from left to right at one y."""
        return Shape(f"M0 {self.down(value):.1f}H{self.width:g}", kind)

    def whiskers(self, y: float, low: float, high: float, kind: str, *, title: str = "") -> Shape:
        """An interval along x at one y, with a foot at both ends."""
        (left, right), at = np.round(self.across([low, high]), 1), float(self.down(y))
        feet = "".join(f"M{side:g} {at - 4:.1f}v8" for side in (left, right))
        return Shape(f"M{left:g} {at:.1f}H{right:g}{feet}", kind, title)

    def bar(self, row: int, value: float, kind: str, *, title: str = "") -> Shape:
        """A bar from the left end to `value`, in one row of a y axis of categories."""
        high = 0.64 * self.height / len(self.y.marks)
        top, length = float(self.down(row)) - high / 2, float(self.across(value))
        return Shape(f"M0 {top:.1f}H{length:.1f}v{high:.1f}H0Z", kind, title)

    def pillar(self, x: float, low: float, high: float, kind: str, *, title: str = "") -> Shape:
        """An interval along y at one x, with a foot at both ends."""
        (bottom, top), at = np.round(self.down([low, high]), 1), float(self.across(x))
        feet = "".join(f"M{at - 4:.1f} {end:g}h8" for end in (bottom, top))
        return Shape(f"M{at:.1f} {bottom:g}V{top:g}{feet}", kind, title)

    def cell(self, column: int, row: int, kind: str, *, strength: float, title: str = "") -> Shape:
        """One cell of two axes of categories, with a hair of space around it."""
        wide, high = self.width / len(self.x.marks), self.height / len(self.y.marks)
        left, top = float(self.across(column)) - wide / 2 + 1, float(self.down(row)) - high / 2 + 1
        return Shape(
            f"M{left:.1f} {top:.1f}h{wide - 2:.1f}v{high - 2:.1f}h{2 - wide:.1f}Z", kind, title, strength
        )

    def words(
        self, x: float, y: float, text: str, *, anchor: Anchor = "middle", kind: str = "", lift: float = 0.0
    ) -> Words:
        """Text at a point, `lift` units above it."""
        return Words(
            round(float(self.across(x)), 1), round(float(self.down(y)) - lift, 1), text, anchor, kind
        )
