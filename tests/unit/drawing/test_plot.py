"""Shapes lie where the values say, as a reader of their paths finds them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgeface.drawing import Axes, categories, linear

FRAME = Axes(linear("x", 0, 10), linear("y", 0, 1), width=100, height=50)


def numbers(path: str) -> list[float]:
    return [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path)]


def test_a_line_goes_through_its_points_with_y_downwards() -> None:
    assert FRAME.line([0, 5, 10], [0, 0.5, 1], "curve").path == "M0 50L50 25L100 0"


def test_a_line_drops_points_that_nobody_could_tell_apart() -> None:
    x = np.linspace(0, 10, 100_001)
    path = FRAME.line(x, np.zeros_like(x), "curve").path
    assert 900 < path.count("L") < 1100


def test_columns_stand_on_the_axis() -> None:
    assert FRAME.columns([0, 5, 10], [1, 0.5], "fill").path == "M0 50V0H50V25H100V50Z"


def test_a_band_goes_along_the_top_and_back_along_the_bottom() -> None:
    band = FRAME.band([0, 10], [0.2, 0.2], [0.8, 0.6], "fill")
    assert band.path == "M0 10L100 20L100 40L0 40Z"


def test_dots_are_circles_around_their_points() -> None:
    (all_of_them,) = FRAME.dots([1, 5], [0.5, 0.5], "fill", radius=2)
    assert all_of_them.path.count("M") == 2
    assert numbers(all_of_them.path)[:2] == [8, 25]
    each = FRAME.dots([1, 5], [0.5, 0.5], "fill", titles=["a", "b"])
    assert [dot.title for dot in each] == ["a", "b"]
    assert FRAME.dots([], [], "fill") == ()


def test_what_is_outside_is_drawn_at_the_end() -> None:
    assert numbers(FRAME.upright(99, "cut").path) == [100, 0, 50]
    assert numbers(FRAME.level(-1, "cut").path) == [0, 50, 100]
    assert numbers(FRAME.whiskers(0.5, -5, 5, "good").path)[:3] == [0, 25, 50]


def test_bars_lie_in_their_rows_and_pillars_stand_between_their_ends() -> None:
    frame = Axes(linear("x", 0, 10), categories("", ["low", "high"]), width=100, height=50)
    assert numbers(frame.bar(0, 5, "fill").path) == [0, 29.5, 50, 16, 0]
    assert numbers(frame.bar(1, 10, "fill").path)[:3] == [0, 4.5, 100]
    assert numbers(FRAME.pillar(5, 0.2, 0.8, "cut").path)[:3] == [50, 40, 10]


def test_cells_tile_the_frame() -> None:
    frame = Axes(categories("a", ["1", "2"]), categories("b", ["1", "2", "3", "4", "5"]), width=100, height=50)
    cells = [frame.cell(column, row, "fill", strength=0.5) for column in range(2) for row in range(5)]
    corners = {tuple(numbers(cell.path)[:2]) for cell in cells}
    assert corners == {(left, top) for left in (1, 51) for top in (1, 11, 21, 31, 41)}
    assert all(numbers(cell.path)[2:4] == [48, 8] for cell in cells)
    lowest = numbers(cells[0].path)[1]
    assert lowest == 41, "the first row is at the bottom, where y begins"


def test_words_stand_where_their_point_is() -> None:
    words = FRAME.words(5, 1, "peak", lift=4, anchor="end")
    assert (words.x, words.y, words.text, words.anchor) == (50, -4, "peak", "end")


@pytest.mark.parametrize("bad", [[1, 2], [[1], [2]]])
def test_points_that_do_not_pair_are_refused(bad: list) -> None:
    with pytest.raises(ValueError, match=r"shape|dimension"):
        FRAME.line([1, 2, 3], bad, "curve")
