"""Plot several results together: throughput, heat maps of a sweep, comparisons."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from edgeface.bench.compare.comparable import ReportEntry
from edgeface.bench.compare.comparison import Comparison, Difference
from edgeface.bench.schema import Scenario
from edgeface.drawing import Axes, Plot, categories, linear, percent, rounded

_ROW = 22.0
"""Height of a row that shows one result."""
_NAME = 20
"""Characters of a name that fit before a row."""

_WIDEST = 1.0
"""Largest slowdown on the axis unless a result is slower; wider intervals are cut off."""

_AXES = ("batch", "streams", "requests", "threads", "hint", "precision", "device")
"""Settings that a sweep varies, in order of preference for an axis."""


def throughput_plot(entries: Sequence[ReportEntry]) -> Plot | None:
    """Plot items per second of each result, with intervals; None for a single result."""
    shown = [each for each in entries if each.result.throughput_fps][::-1]
    if len(shown) < 2:
        return None
    rates = [each.result.throughput_fps or 0.0 for each in shown]
    intervals = [each.result.throughput_interval or (None, None) for each in shown]
    ends = [high or rate for (_, high), rate in zip(intervals, rates, strict=True)]
    frame = Axes(
        linear("items per second", 0, max(ends) * 1.15),
        categories("", _short([each.name for each in shown])),
        height=_ROW * len(shown) + 8,
        left=136.0,
        grid=False,
    )
    shapes, words = [], []
    for row, (each, rate, (low, high)) in enumerate(zip(shown, rates, intervals, strict=True)):
        shapes.append(frame.bar(row, rate, "fill", title=f"{each.name}: {rounded(rate)} items per second"))
        if low is not None and high is not None:
            shapes.append(frame.whiskers(row, low, high, "mark"))
        words.append(frame.words(high or rate, row, f"\u2002{rounded(rate)}", anchor="start", kind="strong", lift=-4))
    return Plot("Throughput", frame, tuple(shapes), tuple(words), legend=(("mark", "95 % interval"),))


def comparison_plots(comparisons: Sequence[Comparison]) -> list[Plot]:
    """Plot slowdowns with their intervals: by metric for one candidate, one plot per metric for several."""
    first = comparisons[0]
    if len(comparisons) == 1:
        rows = [(each.metric, each) for each in first.differences]
        return [_slowdowns(f"{first.candidate} against {first.baseline}", rows)]
    by_metric: dict[str, list[tuple[str, Difference]]] = {}
    for comparison in comparisons:
        for each in comparison.differences:
            by_metric.setdefault(each.metric, []).append((comparison.candidate, each))
    return [_slowdowns(f"{metric} against {first.baseline}", rows) for metric, rows in by_metric.items()]


def _slowdowns(title: str, rows: list[tuple[str, Difference]]) -> Plot:
    rows = rows[::-1]
    ends = [end for _, each in rows for end in (each.slowdown, *each.interval) if end is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    high = min(high, max(_WIDEST, 2 * max(each.slowdown for _, each in rows)))
    room = max(0.15 * (high - low), 0.02)
    frame = Axes(
        linear("slower by", low - room, high + room, wanted=5, words=percent),
        categories("", _short([name for name, _ in rows])),
        height=_ROW * len(rows) + 8,
        left=136.0,
        grid=False,
    )
    kinds = {"worse": "bad", "better": "good", "no difference shown": "fill"}
    shapes = [frame.upright(0.0, "guide")]
    for row, (name, difference) in enumerate(rows):
        kind = kinds[difference.verdict]
        bounds = difference.interval
        least, most = (
            end if end is not None else edge for end, edge in zip(bounds, (low - room, high + room), strict=True)
        )
        words = f"{name}: {difference.slowdown:+.1%}, {difference.verdict}"
        if bounds != (None, None):
            shapes.append(frame.whiskers(row, least, most, f"whisker {kind}", title=words))
        shapes += frame.dots([difference.slowdown], [row], kind, radius=4, titles=[words])
    return Plot(title, frame, tuple(shapes), legend=(("bad", "worse"), ("good", "better"), ("", "no difference shown")))


def heat_maps(entries: Sequence[ReportEntry]) -> list[Plot]:
    """Plot throughput and median latency over the two settings that vary most, if two vary."""
    values = {axis: _distinct([_setting(each, axis) for each in entries]) for axis in _AXES}
    varied = sorted((axis for axis in _AXES if len(values[axis]) > 1), key=lambda axis: -len(values[axis]))[:2]
    models = {each.result.model.digest for each in entries}
    if len(varied) < 2 or len(entries) < 4 or len(models) > 1:
        return []
    across, up = sorted(varied, key=_AXES.index)
    alone, loaded = (of_scenario(entries, scenario) for scenario in ("single-stream", "offline"))
    maps = (
        _heat_map(loaded, values, across, up, "Throughput (items per second)", latency=False),
        _heat_map(alone, values, across, up, "Median latency (ms)", latency=True),
    )
    return [each for each in maps if each]


def of_scenario(entries: Sequence[ReportEntry], scenario: Scenario) -> Sequence[ReportEntry]:
    """Return the results of a scenario; all if there are none."""
    return [each for each in entries if each.result.settings.scenario == scenario] or entries


def _heat_map(
    entries: Sequence[ReportEntry], values: dict[str, list[str]], across: str, up: str, title: str, *, latency: bool
) -> Plot | None:
    found: dict[tuple[int, int], list[tuple[float, str]]] = {}
    for each in entries:
        figure = each.result.latency_ms.get("p50") if latency else each.result.throughput_fps
        if figure:
            place = values[across].index(_setting(each, across)), values[up].index(_setting(each, up))
            found.setdefault(place, []).append((figure, each.name))
    if not found:
        return None
    frame = Axes(
        categories(across, values[across]),
        categories(up, values[up]),
        height=min(250.0, 44.0 * len(values[up]) + 20),
        left=116.0,
        grid=False,
    )
    best = min if latency else max
    kept = {place: best(figures) for place, figures in found.items()}
    figures = [figure for figure, _ in kept.values()]
    low, high = np.log(min(figures)), np.log(max(figures))
    shapes, words = [], []
    winner = best(figures)
    for (column, row), (figure, name) in kept.items():
        heat = 0.5 if high == low else float((np.log(figure) - low) / (high - low))
        strength = 0.1 + 0.6 * (1 - heat if latency else heat)
        kind = "heat best" if figure == winner else "heat"
        shapes.append(frame.cell(column, row, kind, strength=strength, title=f"{name}: {rounded(figure)}"))
        words.append(frame.words(column, row, rounded(figure, 3), lift=-4, kind="strong"))
    crowded = any(len(each) > 1 for each in found.values())
    return Plot(
        title, frame, tuple(shapes), tuple(words), note="The best of several settings in each cell." if crowded else ""
    )


def _setting(entry: ReportEntry, name: str) -> str:
    value = getattr(entry.result.settings, name)
    return "default" if value is None else value.lower() if name == "hint" else str(value)


def _distinct(values: list[str]) -> list[str]:
    return sorted(set(values), key=lambda each: (not each.isdigit(), int(each) if each.isdigit() else 0, each))


def _short(names: list[str]) -> list[str]:
    """Remove the leading words that all names share, and shorten what is still too long."""
    words = [re.split(r"(?<=[_/ ])", name) for name in names]
    shared = 0
    while len(names) > 1 and all(len(each) > shared + 1 for each in words):
        if len({each[shared] for each in words}) > 1:
            break
        shared += 1
    own = ["".join(each[shared:]) for each in words]
    return [name if len(name) <= _NAME else f"…{name[1 - _NAME :]}" for name in own]
