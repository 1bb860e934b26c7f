"""Write a report: one self-contained HTML page with inline SVG plots and no script, or tables in Markdown or CSV."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeface.bench.compare.comparable import ReportEntry, Side
from edgeface.bench.compare.comparison import FEWEST_RUNS, Comparison, compare
from edgeface.bench.report.many_plots import comparison_plots, heat_maps, of_scenario, throughput_plot
from edgeface.bench.report.run_plots import roofline_plot, run_plots, top_layers
from edgeface.bench.report.tables import (
    as_csv,
    as_markdown,
    environment_rows,
    interval_words,
    model_rows,
    settings_rows,
    slowdown_words,
)
from edgeface.drawing import rounded, write_page
from edgeface.errors import InputError
from edgeface.files import write_atomically

SUFFIXES = (".html", ".md", ".csv")

_FULL = 6
"""Most results that are all shown in full; of more, those with the best latency and the best throughput are."""

_MOST_ROWS = 24
"""Most results whose throughputs are drawn as bars."""

_MOST_COMPARED = 8
"""Most candidates that a report compares with its first result; more are a sweep."""


def write_report(entries: Sequence[ReportEntry], path: Path) -> None:
    """Write a report in the format of the path's suffix, one of `SUFFIXES`.

    If there are few entries, the others are compared with the first where they measure the same thing. A folder of
    three runs or more of one configuration is compared as a whole.

    Raises
    ------
    InputError
        If there are no entries, or the suffix is another.
    OutputError
        If it cannot be written.
    """
    if not entries:
        raise InputError("a report requires at least one result")
    require_suffix(path)
    if path.suffix == ".html":
        return _write_html(entries, _comparisons(entries), path)
    text = as_csv(entries) if path.suffix == ".csv" else as_markdown(entries, _comparisons(entries))
    with write_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def require_suffix(path: Path) -> None:
    """Refuse a name, by InputError, whose suffix is none of `SUFFIXES`."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}, found {path.suffix!r}")


def _comparisons(entries: Sequence[ReportEntry]) -> list[Comparison]:
    sides: list[Side] = []
    for folder, group in itertools.groupby(entries, key=lambda entry: entry.folder):
        found = list(group)
        alike = {(entry.result.model.digest, entry.result.settings.model_dump_json()) for entry in found}
        if folder and len(alike) == 1 and len(found) >= FEWEST_RUNS:
            sides.append(Side(folder, tuple(sorted((e.result for e in found), key=lambda run: run.created))))
        else:
            sides += [Side(entry.name, (entry.result,)) for entry in found]
    if len(sides) > _MOST_COMPARED + 1:
        return []
    comparisons = []
    for other in sides[1:]:
        with contextlib.suppress(InputError):  # they measure different things; the tables show both
            comparisons.append(compare(sides[0], other, across_models=True))
    return comparisons


def _write_html(entries: Sequence[ReportEntry], comparisons: Sequence[Comparison], path: Path) -> None:
    overview = heat_maps(entries)
    doors = all(entry.result.kiosk is not None for entry in entries)
    rates = None if doors else throughput_plot(entries)  # of a kiosk the camera decides
    if rates and not overview and len(entries) <= _MOST_ROWS:
        overview.append(rates)
    write_page(
        path,
        __package__,
        filters={
            "interval": interval_words,
            "sentence": lambda text: text[:1].upper() + text[1:],
            "milliseconds": lambda value: "-" if value is None else f"{rounded(value)} ms",
        },
        entries=entries,
        first=entries[0],
        seeded=[entry.name for entry in entries if entry.result.model.provenance == "seeded"],
        overview=overview,
        doors=doors,
        doubtful=[entry for entry in entries if entry.result.disturbed or entry.result.partial],
        comparisons=comparisons,
        compared=comparison_plots(comparisons) if comparisons else [],
        sections=[_section(entry) for entry in _in_full(entries)],
        slowdown=slowdown_words,
    )


def _section(entry: ReportEntry) -> dict[str, object]:
    result = entry.result
    roofline = roofline_plot(result)
    return {
        "entry": entry,
        "plots": [*run_plots(result), *([roofline] if roofline else [])],
        "layers": top_layers(result),
        "model": model_rows(result),
        "settings": settings_rows(result),
        "environment": environment_rows(result),
    }


def _in_full(entries: Sequence[ReportEntry]) -> list[ReportEntry]:
    if len(entries) <= _FULL:
        return list(entries)
    fastest = min(of_scenario(entries, "single-stream"), key=lambda each: each.result.latency_ms.get("p50", np.inf))
    most = max(of_scenario(entries, "offline"), key=lambda each: each.result.throughput_fps or 0.0)
    return [fastest] if fastest is most else [fastest, most]
