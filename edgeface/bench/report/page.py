"""Results and their comparisons in, one self-contained HTML page out: no network, no script, plots as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeface.bench.compare.comparable import ReportEntry
from edgeface.bench.compare.comparison import Comparison
from edgeface.bench.report.many_plots import comparison_plots, heat_maps, of_scenario, throughput_plot
from edgeface.bench.report.run_plots import LayerRow, roofline_plot, run_plots, top_layers
from edgeface.bench.report.tables import (
    Rows,
    environment_rows,
    interval_words,
    model_rows,
    settings_rows,
    slowdown_words,
)
from edgeface.drawing import Plot, rounded, write_page

__all__ = [
    "write_html",
]

_FULL = 6
"""Results that are shown in full: of a sweep, those with the best latency and the best throughput."""

_MOST_ROWS = 24
"""Results whose throughputs are drawn as bars."""


@dataclass(frozen=True, slots=True)
class _Section:
    """What is shown of one result."""

    entry: ReportEntry
    plots: list[Plot]
    layers: list[LayerRow]
    model: Rows
    settings: Rows
    environment: Rows


def write_html(entries: Sequence[ReportEntry], comparisons: Sequence[Comparison], path: Path) -> None:
    """Write the page.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    overview = heat_maps(entries)
    rates = throughput_plot(entries)
    if rates and not overview and len(entries) <= _MOST_ROWS:
        overview.append(rates)
    write_page(
        path,
        __package__,
        filters={"interval": interval_words, "sentence": _sentence, "milliseconds": _milliseconds},
        entries=entries,
        first=entries[0],
        overview=overview,
        doubtful=[entry for entry in entries if entry.result.disturbed or entry.result.partial],
        comparisons=comparisons,
        compared=comparison_plots(comparisons) if comparisons else [],
        sections=[_section(entry) for entry in _in_full(entries)],
        slowdown=slowdown_words,
    )


def _section(entry: ReportEntry) -> _Section:
    result = entry.result
    roofline = roofline_plot(result)
    return _Section(
        entry,
        [*run_plots(result), *([roofline] if roofline else [])],
        top_layers(result),
        model_rows(result),
        settings_rows(result),
        environment_rows(result),
    )


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{rounded(value)} ms"


def _sentence(text: str) -> str:
    """Begin with a capital, and leave the others as they are."""
    return text[:1].upper() + text[1:]


def _in_full(entries: Sequence[ReportEntry]) -> list[ReportEntry]:
    if len(entries) <= _FULL:
        return list(entries)
    fastest = min(
        of_scenario(entries, "single-stream"), key=lambda each: each.result.latency_ms.get("p50", np.inf)
    )
    most = max(of_scenario(entries, "offline"), key=lambda each: each.result.throughput_fps or 0.0)
    return [fastest] if fastest is most else [fastest, most]
