"""Pages: whole in one file, forbidden to fetch anything, and numbers in words."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.drawing import Axes, Plot, counted, linear, percent, rounded, write_page
from edgeface.errors import OutputError

TEMPLATE = """{% extends "drawing/page.html.j2" %}
{% from "drawing/plot.html.j2" import figure %}
{% block title %}{{ title }}{% endblock %}
{% block main %}{{ figure(plot) }}{{ number|rounded(3) }} {{ 0.5|percent }} {{ 2|shout }}{% endblock %}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "some_pages"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "report.html.j2").write_text(TEMPLATE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_pages", raising=False)
    return "some_pages"


def plot() -> Plot:
    frame = Axes(linear("time (s)", 0, 1), linear("<latency>", 0, 1))
    dots = frame.dots([0.5], [0.5], "fill", titles=['<b>"&'])
    return Plot("T&T", frame, dots, (frame.words(0.5, 0.5, "<i>"),), (("good", "<u>"),), "a < b")


def test_a_page_escapes_what_it_shows_and_fetches_nothing(tmp_path: Path, package: str) -> None:
    path = tmp_path / "out" / "page.html"
    write_page(path, package, filters={"shout": lambda n: "!" * n}, title="<script>", plot=plot(), number=0.0123456)
    page = path.read_text()
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    for raw in ("<script>", "<latency>", "<b>", "<i>", "<u>", "T&T", "a < b"):
        assert raw not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(?:src|href)=|url\(|@import|https?:", page)
    assert "0.0123 50 % !!" in page
    assert list(path.parent.iterdir()) == [path]


def test_a_page_that_cannot_be_written_is_an_output_error(tmp_path: Path, package: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"found that a part of this path is a file|file in the way"):
        write_page(tmp_path / "file" / "page.html", package, filters={"shout": str}, title="", plot=plot(), number=1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"), (math.nan, "-"), (math.inf, "∞"), (0, "0"), (0.012345, "0.01235"), (12.3456, "12.35"),
        (9.99996, "10.00"), (999.96, "1,000"), (12345.6, "12,346"), (-1.5, "-1.500"), (1e-9, "0.000000001000"),
    ],
)  # fmt: skip
def test_rounding_keeps_four_significant_digits(value: float | None, words: str) -> None:
    assert rounded(value) == words


@given(st.floats(1e-12, 1e12), st.integers(1, 8))
def test_what_was_rounded_is_near_what_was_given(value: float, digits: int) -> None:
    found = float(rounded(value, digits).replace(",", ""))
    assert abs(found - value) <= max(0.5001 * 10.0 ** (math.floor(math.log10(value)) + 1 - digits), 0) or (
        value >= 10**digits and abs(found - value) <= 0.5
    )


def test_shares_and_counts_in_words() -> None:
    assert (percent(0.125), percent(0.41234, 2), percent(1)) == ("12.5 %", "41 %", "100 %")
    assert (counted(1, "run"), counted(1200, "run"), counted(2, "entry", "entries")) == (
        "1 run",
        "1,200 runs",
        "2 entries",
    )
