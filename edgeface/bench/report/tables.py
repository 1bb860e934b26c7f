"""Results in, Markdown for people and CSV for programs out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from edgeface.bench.compare.comparison import Comparison
from edgeface.bench.report.entry import Entry
from edgeface.drawing import percent, rounded
from edgeface.stats import QUANTILES

__all__ = ["COLUMNS", "as_csv", "as_markdown", "interval_words", "slowdown_words"]

_BOUNDED = (*QUANTILES, "mean")

COLUMNS = (
    "name", "created", "source", "model", "contract_id", "digest", "scenario", "device", "executed_devices",
    "executed_precision", "hint", "precision", "streams", "requests", "threads", "batch", "end_to_end",
    *(column for key in _BOUNDED for column in (f"{key}_ms", f"{key}_ms_low", f"{key}_ms_high")),
    "min_ms", "max_ms", "throughput_fps", "throughput_fps_low", "throughput_fps_high", "cpu_ms", "gflops",
    "gflops_per_second", "efficiency", "server_rate", "queries", "disturbed", "partial",
)  # fmt: skip
"""Of the CSV form, one row a result. Numbers are written so that reading them back gives the same; an empty cell
is one that is not known."""


def as_csv(entries: Sequence[Entry]) -> str:
    """One row a result, under `COLUMNS`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow({name: "" if value is None else value for name, value in _row(entry).items()})
    return file.getvalue()


def _row(entry: Entry) -> dict[str, object]:
    result = entry.result
    settings, execution = result.settings, result.execution
    row: dict[str, object] = {
        "name": entry.name,
        "created": result.created,
        "source": result.source,
        "model": result.model.name,
        "contract_id": result.model.contract_id,
        "digest": result.model.digest,
        "executed_devices": " ".join(execution.devices),
        "executed_precision": execution.precision,
        "min_ms": result.latency_ms.get("min"),
        "max_ms": result.latency_ms.get("max"),
        "throughput_fps": result.throughput_fps,
        "cpu_ms": result.cpu_ms,
        "gflops": result.gflops,
        "gflops_per_second": result.gflops_per_second,
        "efficiency": result.efficiency,
        "server_rate": result.server.rate if result.server else None,
        "queries": result.samples.count if result.samples else None,
        "disturbed": result.disturbed,
        "partial": result.partial,
    }
    for name in (
        "scenario",
        "device",
        "hint",
        "precision",
        "streams",
        "requests",
        "threads",
        "batch",
        "end_to_end",
    ):
        row[name] = getattr(settings, name)
    row["throughput_fps_low"], row["throughput_fps_high"] = result.throughput_interval or (None, None)
    for key in _BOUNDED:
        row[f"{key}_ms"] = result.latency_ms.get(key)
        low, high = result.latency_interval_ms.get(key, (None, None))
        row[f"{key}_ms_low"], row[f"{key}_ms_high"] = low, high
    return row


def as_markdown(entries: Sequence[Entry], comparisons: Sequence[Comparison]) -> str:
    """Tables of the results, of the comparisons, and of each result's percentiles."""
    lines = ["# Benchmark", ""]
    lines += _table(
        ("result", "model", "scenario", "device", "p50 ms", "p99 ms", "items/s", "GFLOP/s", "of peak", ""),
        [_summary(entry) for entry in entries],
        numbers=range(4, 9),
    )
    lines += [
        line
        for entry in entries
        for doubt in entry.doubts
        for line in ("", f"**{_cell(entry.name)}: {_cell(doubt)}**")
    ]
    for each in comparisons:
        lines += ["", f"## {_cell(each.candidate)} against {_cell(each.baseline)}", "", f"{each.method}.", ""]
        lines += _table(
            ("metric", "baseline", "candidate", "slower by", "interval", "verdict"),
            [
                (
                    one.metric,
                    f"{rounded(one.baseline)} {one.unit}",
                    f"{rounded(one.candidate)} {one.unit}",
                    *slowdown_words(one.slowdown, one.interval),
                    one.verdict,
                )
                for one in each.differences
            ],
            numbers=range(1, 5),
        )
        lines += [line for warning in each.warnings for line in ("", f"- {_cell(warning)}")]
    for entry in entries:
        lines += ["", f"## {_cell(entry.name)}", "", _identity(entry), ""]
        lines += _table(
            ("latency", "ms", "95 % interval"),
            [
                (key, rounded(value), interval_words(entry.result.latency_interval_ms.get(key)))
                for key, value in entry.result.latency_ms.items()
            ],
            numbers=range(1, 3),
        )
    return "\n".join(lines) + "\n"


def _summary(entry: Entry) -> tuple[str, ...]:
    result = entry.result
    efficiency = "-" if result.efficiency is None else percent(result.efficiency, 3)
    flags = [word for word, holds in (("disturbed", result.disturbed), ("partial", result.partial)) if holds]
    return (
        entry.name, result.model.name, result.settings.scenario, result.settings.device,
        rounded(result.latency_ms.get("p50")), rounded(result.latency_ms.get("p99")),
        rounded(result.throughput_fps), rounded(result.gflops_per_second), efficiency, ", ".join(flags),
    )  # fmt: skip


def _identity(entry: Entry) -> str:
    model = entry.result.model
    return (
        f"{_cell(model.name)}: contract_id {model.contract_id or 'none'}, SHA-256 {model.digest or 'not known'}; "
        f"{entry.result.created}, {_cell(', '.join(entry.result.execution.full_names))}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: range) -> list[str]:
    rule = ("---:" if index in numbers else "---" for index in range(len(head)))
    return [f"| {' | '.join(map(_cell, row))} |" for row in (head, tuple(rule), *rows)]


def _cell(text: str) -> str:
    """Text that neither ends its cell nor starts a tag or a style."""
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def interval_words(interval: tuple[float | None, float | None] | None) -> str:
    """``12.3 to 14.5``; a side that is not bounded is a dash."""
    if interval is None or interval == (None, None):
        return "-"
    return f"{rounded(interval[0])} to {rounded(interval[1])}"


def slowdown_words(slowdown: float, interval: tuple[float | None, float | None]) -> tuple[str, str]:
    """``+4.9 %`` and ``+4.1 % to +5.6 %``."""
    low, high = ("" if end is None else f"{100 * end:+.1f} %" for end in interval)
    words = (
        f"{low} to {high}"
        if low and high
        else f"{low} or more"
        if low
        else f"{high} or less"
        if high
        else "-"
    )
    return f"{100 * slowdown:+.1f} %", words
