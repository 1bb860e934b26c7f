"""A benchmark's report in a real browser: every plot drawn, nothing fetched, readable on a phone, printable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser, browser
from commands import edgeface
from made_results import LAYERS, PEAK, latencies, made_kiosk, made_result

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]

SHAPES = """[...document.querySelectorAll('svg')].map(svg => [...svg.querySelectorAll('path:not(.grid)')].map(path => {
  const box = path.getBBox(), style = getComputedStyle(path);
  return {size: Math.max(box.width, box.height), inked: style.fill !== 'none' || style.stroke !== 'none',
          inside: box.x >= -5 && box.y >= -5 &&
                  box.x + box.width <= svg.viewBox.baseVal.width && box.y + box.height <= svg.viewBox.baseVal.height};
}))"""
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(
  each => !each.closest('svg') && each.getBoundingClientRect().right > 400.5
).map(each => each.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of one result, of two that are compared, of a sweep and of two kiosks, written by the command."""
    root = tmp_path_factory.mktemp("results")
    series = latencies("outliers", np.random.default_rng(0), 1500)
    layers = {"layers": LAYERS, "peak": PEAK, "efficiency": 0.41}
    made_result(series, **layers).write(root / "before")
    made_result(series[:900] * 1.1, **layers, disturbed=True, disturbances=["a <burner>"], partial=True).write(
        root / "after-a-change-with-a-rather-long-name-that-no-phone-can-show-in-one-line"
    )
    for streams in (1, 2, 4):
        for batch in (1, 8):
            settings = {"streams": streams, "batch": batch, "scenario": "offline"}
            made_result(series[:200] / streams, settings=settings).write(root / "sweep" / f"s{streams}_b{batch}")
    for number in (1, 2):
        kept = np.arange(400) % 50 >= number
        made_kiosk(kept, rng=np.random.default_rng(number)).write(root / f"kiosk-{number}")
    given = {"one": [root / "before"], "two": sorted(root.glob("*e*r*"), reverse=True), "sweep": [root / "sweep"]}
    given["kiosk"] = [root / "kiosk-1", root / "kiosk-2"]
    assert len(given["two"]) == 2
    for name, results in given.items():
        done = edgeface("bench", "report", *results, "-o", root / f"{name}.html")
        assert done.returncode == 0, done.stderr
    return {name: root / f"{name}.html" for name in given}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize(("name", "plots"), [("one", 5), ("two", 12), ("sweep", 2), ("kiosk", 9)])
def test_every_plot_is_drawn_and_nothing_is_fetched(
    name: str, plots: int, page: Browser, pages: dict[str, Path]
) -> None:
    page.open(pages[name], width=1000)
    drawn = page.evaluate(SHAPES)
    assert len(drawn) >= plots
    for shapes in drawn:
        assert shapes
        assert all(shape["size"] > 0 and shape["inked"] and shape["inside"] for shape in shapes), shapes
    assert page.requested() == [pages[name].as_uri()]
    assert page.complaints() == []
    assert not page.evaluate("document.scripts.length")


def test_a_page_may_not_fetch_even_if_it_wanted_to(page: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    changed = pages["one"].read_text().replace("<main>", '<main><img src="https://example.org/x.png">')
    (tmp_path / "changed.html").write_text(changed)
    page.open(tmp_path / "changed.html", width=1000)
    assert any("Content Security Policy" in str(each) for each in page.complaints())


@pytest.mark.parametrize("name", ["one", "two", "sweep", "kiosk"])
def test_a_phone_of_400_pixels_needs_no_sideways_scrolling(name: str, page: Browser, pages: dict[str, Path]) -> None:
    page.open(pages[name], width=400)
    assert page.evaluate(OVERFLOWING) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    least = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(each => each.getBoundingClientRect().height))"
    )
    assert least >= 8, "words in plots are legible"


def test_dark_and_light_have_their_own_colours(page: Browser, pages: dict[str, Path]) -> None:
    colours = {}
    for dark in (False, True):
        page.open(pages["one"], width=1000, dark=dark)
        colours[dark] = page.evaluate(
            "['background-color', 'color'].map(name => getComputedStyle(document.body).getPropertyValue(name))"
        )
    assert colours[False] == ["rgb(245, 247, 249)", "rgb(28, 36, 48)"]
    assert colours[True] == ["rgb(18, 23, 29)", "rgb(230, 235, 241)"]


def test_it_prints_on_white_over_several_pages(page: Browser, pages: dict[str, Path]) -> None:
    page.open(pages["two"], width=1000, dark=True)
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") + printed.count(b"/Type /Page/") >= 2
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"


def test_doubts_are_said_before_everything_else(page: Browser, pages: dict[str, Path]) -> None:
    page.open(pages["two"], width=1000)
    warning = page.evaluate("document.querySelector('.warn').innerText")
    assert warning.startswith("Disturbed, Partial: after-a-change")
    assert "a <burner>" in warning
    warned, tabled = page.evaluate("['.warn', 'table'].map(each => document.querySelector(each).offsetTop)")
    assert warned < tabled
