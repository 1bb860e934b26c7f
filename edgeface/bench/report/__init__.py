"""Results in, a report out: one self-contained HTML page, Markdown or CSV, by the suffix of its file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from edgeface.bench.compare.comparable import ReportEntry, Side, read_entries
from edgeface.bench.compare.comparison import FEWEST_RUNS, Comparison, compare
from edgeface.bench.report.page import write_html
from edgeface.bench.report.tables import as_csv, as_markdown
from edgeface.errors import InputError
from edgeface.files import write_atomically

__all__ = [
    "SUFFIXES",
    "ReportEntry",
    "read_entries",
    "require_suffix",
    "write_report",
]

SUFFIXES = (".html", ".md", ".csv")

_MOST_COMPARED = 8
"""Candidates that a report compares with its first result; more are a sweep."""


def write_report(entries: Sequence[ReportEntry], path: Path) -> None:
    """Write a report.

    Parameters
    ----------
    entries
        At least one. Where there are a few, the others are compared with the first, as far as they measure the
        same thing. A folder of three runs or more of one configuration is compared as a whole.
    path
        Its suffix says what is written: one of `SUFFIXES`.

    Raises
    ------
    InputError
        If there are no entries, or the suffix is another.
    OutputError
        If it cannot be written.
    """
    if not entries:
        raise InputError("report: expected at least one result, found none")
    require_suffix(path)
    if path.suffix == ".csv":
        text = as_csv(entries)
    else:
        comparisons = _comparisons(entries)
        if path.suffix == ".html":
            return write_html(entries, comparisons, path)
        text = as_markdown(entries, comparisons)
    with write_atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def require_suffix(path: Path) -> None:
    """Refuse a name that does not say what is to be written.

    Raises
    ------
    InputError
        If its suffix is none of `SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}, found {path.suffix!r}")


def _comparisons(entries: Sequence[ReportEntry]) -> list[Comparison]:
    sides = _sides(entries)
    if len(sides) > _MOST_COMPARED + 1:
        return []
    first, *others = sides
    found = []
    for other in others:
        try:
            found.append(compare(first, other, across_models=True))
        except InputError:  # they measure different things; the tables show both
            continue
    return found


def _sides(entries: Sequence[ReportEntry]) -> list[Side]:
    sides: list[Side] = []
    for folder, group in itertools.groupby(entries, key=lambda entry: entry.folder):
        found = list(group)
        alike = {(entry.result.model.digest, entry.result.settings.model_dump_json()) for entry in found}
        if folder and len(alike) == 1 and len(found) >= FEWEST_RUNS:
            sides.append(Side(folder, tuple(sorted((e.result for e in found), key=lambda run: run.created))))
        else:
            sides += [Side(entry.name, (entry.result,)) for entry in found]
    return sides
