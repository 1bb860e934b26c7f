"""A benchmark result in, what a person wants to know of it out, on a console."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeface.bench.result import BenchmarkResult
from edgeface.stats import Interval

__all__ = [
    "show",
]


def show(result: BenchmarkResult, console: Console) -> None:
    """Print latency and throughput with their intervals, work, efficiency, and every reason for doubt."""
    settings, execution = result.settings, result.execution
    where = ", ".join(execution.full_names or execution.devices)
    console.print(
        f"[bold]{escape(result.model.name)}[/bold]  {settings.scenario}  on {escape(where)}", soft_wrap=True
    )
    ran = {
        "hint": settings.hint and settings.hint.lower(),
        "precision": execution.precision,
        "streams": execution.streams,
        "requests": execution.requests,
        "threads": execution.threads,
        "batch": settings.batch,
        "input": settings.input_format,
    }
    words = [f"{name} {escape(str(value))}" for name, value in ran.items() if value is not None]
    console.print("  " + ", ".join(words + (["end to end"] if settings.end_to_end else [])), soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for column in ("left", "right", "left"):
        table.add_column(justify=column)
    for key, value in result.latency_ms.items():
        table.add_row(f"latency {key}", _figure(value), "ms" + _within(result.latency_interval_ms.get(key)))
    for row in _rows(result):
        table.add_row(*row)
    console.print(table)
    for doubt in _doubts(result):
        console.print(f"[yellow]{escape(doubt)}[/yellow]", soft_wrap=True)


def _rows(result: BenchmarkResult) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []

    def add(what: str, value: float | None, unit: str) -> None:
        if value is not None:
            rows.append((what, _figure(value), unit))

    if result.kiosk is None:
        add("throughput", result.throughput_fps, "items/s" + _within(result.throughput_interval))
        add("work", result.gflops, "GFLOPs an item, Open Model Zoo's way")
        add("speed", result.gflops_per_second, "GFLOP/s")
        if result.efficiency is not None:
            rows.append(("efficiency", f"{100 * result.efficiency:.1f}", "% of the attainable peak"))
    else:
        kiosk = result.kiosk
        share = kiosk.dropped / kiosk.frames if kiosk.frames else 0.0
        add("frames shown", kiosk.frames, f"at {_figure(kiosk.frame_rate)} a second")
        add("frames dropped", kiosk.dropped, f"({100 * share:.1f} %)")
        add("faces seen", kiosk.faces, f"of {kiosk.identities} identified tracks")
        for key in ("p50", "p90", "max"):
            add(f"time to identity {key}", kiosk.time_to_identity_ms.get(key), "ms")
    add("CPU time", result.cpu_ms, "ms an item")
    if (server := result.server) is not None:
        bound = f"with {_figure(server.percentile)} % within {_figure(server.bound_ms)} ms"
        rows.append(
            (
                "highest rate",
                "none" if server.rate is None else _figure(server.rate),
                f"queries/s {bound}, of {len(server.tries)} tried",
            )
        )
    if (validity := result.validity) is not None and (early := validity.early_stopping) is not None:
        what = f"ms is p{_figure(early.percentile)} at most, with 99 % confidence"
        if early.estimate_ms is not None:
            rows.append(("MLPerf estimate", _figure(early.estimate_ms), what))
    return rows


def _doubts(result: BenchmarkResult) -> list[str]:
    doubts = [f"disturbed: {reason}" for reason in result.disturbances]
    doubts += [f"note: {note}" for note in result.execution.notes]
    if result.partial:
        doubts.append("partial: it was interrupted")
    validity = result.validity
    if validity is None:
        return doubts
    if not validity.warmed_up:
        doubts.append(f"times were not stable yet after {validity.warm_up_s:.1f} s of warm-up")
    if validity.stationary is False:
        doubts.append("times drifted: the second half of the run differs from the first")
    if not validity.count_met:
        doubts.append(
            f"fewer queries than the {result.settings.min_count} wanted; measure for longer: --max-duration"
        )
    return doubts


def _within(interval: Interval | None) -> str:
    if interval is None or interval == (None, None):
        return ""
    low, high = ("?" if end is None else _figure(end) for end in interval)
    return f"  \\[{low}, {high}]"


def _figure(value: float) -> str:
    """Four digits that count; whole numbers whole."""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"
