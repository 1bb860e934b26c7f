"""Print benchmark results, comparisons and sweeps on a console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table

from edgeface.bench.report.tables import slowdown_words
from edgeface.bench.result import BenchmarkResult
from edgeface.cli.output import escape
from edgeface.drawing import rounded
from edgeface.model.contract import SEEDED_WARNING

if TYPE_CHECKING:
    from edgeface.bench.compare.comparison import Comparison, Gate
    from edgeface.bench.run.sweep import Sweep
    from edgeface.stats import Interval


def show(result: BenchmarkResult, console: Console) -> None:
    """Print latency and throughput with their intervals, work, efficiency, and every reason for doubt."""
    settings, execution = result.settings, result.execution
    where = ", ".join(execution.full_names or execution.devices)
    console.print(f"[bold]{escape(result.model.name)}[/bold]  {settings.scenario}  on {escape(where)}", soft_wrap=True)
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
    if settings.scenario != "search":  # which runs no model
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

    if (search := result.search) is not None:
        add("templates", search.templates, f"of {search.people:,} people, {search.storage}")
        add("index", search.index_bytes / 1e6, f"MB, made in {search.build_cpu_s:.2f} s CPU")
        add("found first", 100 * search.found, "% of the probes")
    if (kiosk := result.kiosk) is None:
        add("throughput", result.throughput_fps, "items/s" + _within(result.throughput_interval))
        add("work", result.gflops, "GFLOPs per item, as Open Model Zoo counts")
        add("speed", result.gflops_per_second, "GFLOP/s")
        if result.efficiency is not None:
            rows.append(("efficiency", f"{100 * result.efficiency:.1f}", "% of the attainable peak"))
    else:
        add("frames shown", kiosk.frames, f"at {_figure(kiosk.frame_rate)} per second")
        add("frames dropped", kiosk.dropped, f"({100 * kiosk.dropped_share:.1f} %)")
        if kiosk.detected is not None:
            words = f"with a detection, {kiosk.tracked} tracked, {kiosk.skipped} skipped"
            add("frames", kiosk.detected, words)
        add("faces seen", kiosk.faces, f"of {kiosk.identities} identified tracks")
        for key in ("p50", "p90", "max"):
            add(f"time to identity {key}", kiosk.time_to_identity_ms.get(key), "ms")
            add(f"time to decision {key}", kiosk.time_to_decision_ms.get(key), "ms")
        spoofs = f"{kiosk.spoofs} of them spoofs" if kiosk.liveness else "without liveness"
        add("decisions", kiosk.decisions, spoofs)
        add("looks", kiosk.embeddings, "embedded")
        for name, value in kiosk.stage_ms.items():
            add(f"CPU to {name}", value, "ms, alone")
    add("CPU time", result.cpu_ms, "ms per item")
    if (server := result.server) is not None:
        bound = f"with {_figure(server.percentile)} % within {_figure(server.bound_ms)} ms"
        rate = "none" if server.rate is None else _figure(server.rate)
        rows.append(("highest rate", rate, f"queries/s {bound}, of {len(server.tries)} tried"))
    if (validity := result.validity) is not None and (early := validity.early_stopping) is not None:
        unit = f"ms, upper bound of p{_figure(early.percentile)} with 99 % confidence"
        add("MLPerf estimate", early.estimate_ms, unit)
    return rows


def _doubts(result: BenchmarkResult) -> list[str]:
    doubts = [SEEDED_WARNING] if result.model.provenance == "seeded" else []
    doubts += [f"disturbed: {reason}" for reason in result.disturbances]
    doubts += [f"note: {note}" for note in result.execution.notes]
    if result.partial:
        doubts.append("partial: the run was interrupted")
    validity = result.validity
    if validity is None:
        return doubts
    if not validity.warmed_up:
        doubts.append(f"latencies were not stable yet after {validity.warm_up_s:.1f} s of warm-up")
    if validity.stationary is False:
        doubts.append("latencies drifted: the second half of the run differs from the first")
    if not validity.count_met:
        doubts.append(f"fewer queries than the minimum of {result.settings.min_count}; measure longer: --max-duration")
    return doubts


def _within(interval: Interval | None) -> str:
    if interval is None or interval == (None, None):
        return ""
    low, high = ("?" if end is None else _figure(end) for end in interval)
    return f"  \\[{low}, {high}]"


def _figure(value: float) -> str:
    """Format with four significant digits; whole numbers in full."""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"


def comparison_table(found: Comparison) -> Table:
    """Build a table with one row for each metric."""
    table = Table(
        "metric", escape(found.baseline), escape(found.candidate), "slower by",
        f"{100 * found.confidence:.4g} % interval", "verdict",
        title=f"{found.scenario}, {found.method}", title_justify="left",
    )  # fmt: skip
    colors = {"worse": "bold red", "better": "bold green", "no difference shown": "default"}
    for each in found.differences:
        by, bounds = slowdown_words(each.slowdown, each.interval)
        note = f" ({each.note})" if each.note else ""
        table.add_row(
            each.metric,
            f"{rounded(each.baseline)} {each.unit}",
            f"{rounded(each.candidate)} {each.unit}",
            by,
            bounds,
            f"[{colors[each.verdict]}]{each.verdict}[/]{note}",
        )
    return table


def gate_words(found: Comparison, gate: Gate) -> str:
    """Say whether a candidate passed the gate, and why."""
    limit = f"{100 * gate.limit:g} %"
    if gate.outcome == "failed":
        return f"{found.candidate}: FAILED: {', '.join(gate.failed)} slower, and by {limit} or more is not excluded"
    if gate.outcome == "unsure":
        return (
            f"{found.candidate}: not shown to be slower, but {limit} is not excluded for {', '.join(gate.unsure)}: "
            "the runs are too short or too noisy; run longer, or repeat them"
        )
    return f"{found.candidate}: passed, a slowdown of {limit} is excluded"


def sweep_table(found: Sweep) -> Table:
    """Build a table with one row for each combination; the parts of a name that all share are left out."""
    table = Table(Column("settings", overflow="fold"), "p50 ms alone", "p90 ms alone", "items/s loaded", "")
    rows: dict[str, dict[str, BenchmarkResult]] = {}
    for name, result in found.results.items():
        configuration, _, scenario = name.rpartition("/")
        rows.setdefault(configuration, {})[scenario] = result
    best = {name: f"best {what}" for what, (name, _) in found.best.items()}
    parts = {configuration: configuration.split("_") for configuration in rows}
    shared = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    for configuration, results in rows.items():
        alone, loaded = results.get("single-stream"), results.get("offline")
        notes = [words for name, words in best.items() if name.rpartition("/")[0] == configuration]
        notes += ["disturbed"] * any(result.disturbed for result in results.values())
        table.add_row(
            escape(" ".join(part for part in parts[configuration] if part not in shared)),
            rounded(alone.latency_ms.get("p50") if alone else None),
            rounded(alone.latency_ms.get("p90") if alone else None),
            rounded(loaded.throughput_fps if loaded else None),
            ", ".join(notes),
        )
    return table
