"""Write results as tables: rows of the HTML page, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeface.bench.compare.comparable import ReportEntry
from edgeface.bench.compare.comparison import Comparison
from edgeface.bench.machine.environment import Environment
from edgeface.bench.reading import Unknown, known
from edgeface.bench.result import BenchmarkResult
from edgeface.drawing import percent, rounded
from edgeface.stats import QUANTILES
from edgeface.text import printable, spreadsheet_cell

Row = tuple[str, str, bool]
"""Name, text, and whether the value is known."""
Rows = list[Row]


def model_rows(result: BenchmarkResult) -> Rows:
    """Describe the model."""
    model = result.model
    rows = [
        _row("Contract", model.contract_id or "none: the model has no edgeface contract"),
        *([_row("Weights are", model.provenance)] if model.provenance else []),
        _row("SHA-256", model.digest),
        _row("File", " ".join(filter(None, (model.format, model.precision)))),
        _row("Inputs", "; ".join(f"{name} {list(shape)}" for name, shape in model.inputs.items())),
    ]
    if model.gflops is not None:
        work = f"{rounded(model.gflops)} GFLOPs per item (as Open Model Zoo counts)"
        if model.gflops_mac2 is not None:
            work += f", {rounded(model.gflops_mac2)} as 2 x MAC"
        if model.int8_share:
            work += f"; {percent(model.int8_share, 3)} of the MACs in 8 bits"
        rows.append(_row("Work", work))
    if model.parameters is not None:
        rows.append(_row("Weights", f"{model.parameters:,} values, {_bytes(model.weight_bytes)}"))
    if model.uncounted:
        rows.append(_row("Not counted", ", ".join(model.uncounted)))
    return rows


def settings_rows(result: BenchmarkResult) -> Rows:
    """Describe the requested settings and what executed."""
    settings, execution = result.settings, result.execution
    names = ("device", "hint", "precision", "streams", "requests", "threads", "batch", "input_format")
    asked = {name: getattr(settings, name) for name in names} | dict(settings.extra)
    ran = {name: getattr(execution, name) for name in ("precision", "streams", "requests", "threads")}
    rows = [_row("Scenario", settings.scenario + (", end to end" if settings.end_to_end else ""))]
    if settings.scenario != "search":  # which runs no model
        rows += [
            _row("Asked for", _list({name: value for name, value in asked.items() if value is not None})),
            _row("Ran on", ", ".join(execution.full_names)),
            _row("Ran as", _list(ran, lambda value: "unknown" if value is None else value)),
        ]
    if execution.affinity:
        rows.append(_row("Affinity", execution.affinity))
    rows += [_row("Note", note) for note in execution.notes]
    if settings.duration_s is not None:
        seed = "" if settings.seed is None else f", seed {settings.seed}"
        length = f"at least {settings.duration_s:g} s and {settings.min_count or 0:,} queries"
        rows.append(_row("Length", length + seed))
    if (validity := result.validity) is not None:
        stable = "stable" if validity.warmed_up else "not stable yet"
        rows.append(_row("Warm-up", f"{validity.warm_up_s:.1f} s, {stable}"))
        if (early := validity.early_stopping) is not None:
            found = f"p{early.percentile:g} at most {rounded(early.estimate_ms)} ms with 99 % confidence"
            fewer = f"too few queries for p{early.percentile:g}: {early.needed:,} are needed"
            rows.append(_row("MLPerf rule", fewer if early.estimate_ms is None else found))
    return [*rows, *_scenario_rows(result)]


def _scenario_rows(result: BenchmarkResult) -> Rows:
    rows = []
    if (server := result.server) is not None:
        met = "no rate met it" if server.rate is None else f"{rounded(server.rate)} queries per second"
        rows.append(_row("Server", f"p{server.percentile:g} within {rounded(server.bound_ms)} ms: {met}"))
        tries = [
            f"{rounded(each.rate, 3)}/s {'met' if each.met else 'not met'}, {rounded(each.latency_ms, 3)} ms"
            for each in sorted(server.tries, key=lambda each: each.rate)
        ]
        rows.append(_row("Rates tried", "; ".join(tries)))
    if (kiosk := result.kiosk) is not None:
        shown = f"{kiosk.frames:,} frames at {kiosk.frame_rate:g} per second, {kiosk.dropped:,} dropped"
        rows.append(_row("Kiosk", f"{shown}; {kiosk.faces:,} faces, {kiosk.identities:,} identities"))
        if kiosk.detected is not None:
            searched = f"{kiosk.detected:,} with a detection, {kiosk.tracked:,} tracked by optical flow"
            rows.append(_row("Frames", f"{searched}, {kiosk.skipped:,} skipped because nothing moved"))
        if kiosk.decisions is not None:
            judged = f"{kiosk.spoofs:,} of them spoofs" if kiosk.liveness else "liveness was not judged"
            rows.append(_row("Decisions", f"{kiosk.decisions:,}, {judged}"))
    if (search := result.search) is not None:
        size = f"{search.templates:,} templates, {search.people:,} people, {search.storage}"
        rows.append(_row("Search", f"{size}, {_bytes(search.index_bytes)}; found first {percent(search.found, 4)}"))
    if result.peak is not None:
        products = {name: result.peak.gflops_per_second(name) for name in map(str, result.peak.products)}
        peaks = [f"{name} {rounded(rate, 3)} GFLOP/s" for name, rate in products.items() if rate is not None]
        rows.append(_row("Attainable", ", ".join(peaks)))
    return rows


def environment_rows(result: BenchmarkResult) -> Rows:
    """Describe the machine before and during the run; what could not be read has a reason."""
    if result.environment is None:
        return [("Machine", f"not recorded by {result.source}", False)]
    return [*_machine_rows(result.environment), *_during_rows(result.environment)]


def _machine_rows(environment: Environment) -> Rows:
    machine, container, software = environment.machine, environment.container, environment.software
    limit, sockets = container.cpu_limit, known(machine.sockets)
    cores = f"{_text(machine.cores)} cores, {_text(machine.threads)} threads"
    rows = [
        _row("CPU", machine.cpu_model),
        _row("Cores", cores if sockets in (None, 1) else f"{cores}, {sockets} sockets"),
        _row("Instructions", machine.flags),
        _row("Caches", machine.cache_bytes, lambda sizes: _list(sizes, _bytes)),
        _row("Memory", machine.memory_bytes, _bytes),
        _row("Virtual machine", machine.hypervisor),
        _row("Kernel", f"{machine.kernel}, {machine.architecture}"),
        _row(
            "Container",
            f"{'yes' if container.inside else 'no'}; CPU limit {'none' if limit is None else _text(limit)}, "
            f"runs on CPUs {_text(container.affinity)}",
        ),
        _row(
            "Software",
            f"edgeface {software.edgeface}, OpenVINO {software.openvino}, "
            f"Python {software.python}, NumPy {software.numpy}",
        ),
    ]
    for device in software.devices:
        driver = "" if isinstance(device.driver, Unknown) else f", driver {device.driver}"
        rows.append(_row(device.name, f"{device.full_name}{driver}: {', '.join(device.capabilities)}"))
    return rows


def _during_rows(environment: Environment) -> Rows:
    during, start, end = environment.during, environment.start, environment.end
    rows = [
        _row("Frequency", during.frequency_mhz, lambda mhz: f"{mhz[0]:.0f} to {mhz[2]:.0f} MHz, median {mhz[1]:.0f}"),
        _row("Governor", start.governor),
        _row("Thermal throttling", during.throttled, lambda count: f"{count} times"),
        _row("Steal time", during.steal_share, lambda share: f"{percent(share, 2)} of the CPU time, by the hypervisor"),
        _row("Load of others", during.other_cpus, lambda cpus: f"{cpus:.2f} CPUs"),
        _row("Own load", during.own_cpus, lambda cpus: f"{cpus:.2f} CPUs over {during.seconds:.0f} s"),
        _row("Waited for memory", during.memory_stall_s, lambda seconds: f"{rounded(seconds, 2)} s"),
        _row("Waited for quota", during.quota_throttled_s, lambda seconds: f"{rounded(seconds, 2)} s"),
        _row("Power", during.power_w, lambda zones: _list(zones, lambda watts: f"{watts:.1f} W")),
        _row("Temperature", during.temperature_c, lambda sensors: _list(sensors, lambda degrees: f"{degrees:.0f} °C")),
        _row("Measured", f"{start.utc} to {end.utc}"),
    ]
    if (identity := environment.identity) is not None:
        rows.append(_row("Where", f"{_text(identity.user)} on {identity.host}, {identity.folder}"))
        rows.append(_row("Command", " ".join(identity.command)))
    return rows


def _row(name: str, value: Any, words: Callable[[Any], object] | None = None) -> Row:
    """Build a row; `words` formats a value that is known."""
    is_known = not isinstance(value, Unknown) and value is not None
    return name, _text(words(value) if words and is_known else value), is_known


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "not known" if value is None else printable(str(value))


def _list(values: Mapping[str, Any], words: Callable[[Any], object] = str) -> str:
    return ", ".join(f"{name} {words(value)}" for name, value in values.items()) or "none"


def _bytes(count: int | None) -> str:
    if count is None:
        return "size not known"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{rounded(count / size, 3)} {unit}"
    return f"{count} bytes"


_BOUNDED = (*QUANTILES, "mean")

COLUMNS = (
    "name", "created", "source", "model", "contract_id", "digest", "scenario", "device", "executed_devices",
    "executed_precision", "hint", "precision", "streams", "requests", "threads", "batch", "end_to_end",
    *(column for key in _BOUNDED for column in (f"{key}_ms", f"{key}_ms_low", f"{key}_ms_high")),
    "min_ms", "max_ms", "throughput_fps", "throughput_fps_low", "throughput_fps_high", "cpu_ms", "gflops",
    "gflops_per_second", "efficiency", "server_rate", "queries", "disturbed", "partial", "provenance",
    "kiosk_frames", "kiosk_dropped", "kiosk_identity_p50_ms", "kiosk_decision_p50_ms",
)  # fmt: skip
"""Columns of the CSV. Numbers are written with full precision; an unknown value is an empty cell."""


def as_csv(entries: Sequence[ReportEntry]) -> str:
    """Build the CSV: one row per result, under `COLUMNS`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        row = {name: "" if value is None else spreadsheet_cell(value) for name, value in _csv_row(entry).items()}
        writer.writerow(row)
    return file.getvalue()


def _csv_row(entry: ReportEntry) -> dict[str, object]:
    result = entry.result
    own = (
        "created", "source", "throughput_fps", "cpu_ms", "gflops", "gflops_per_second", "efficiency", "disturbed",
        "partial",
    )  # fmt: skip
    asked = ("scenario", "device", "hint", "precision", "streams", "requests", "threads", "batch", "end_to_end")
    row: dict[str, object] = {
        "name": entry.name,
        **{name: getattr(result, name) for name in own},
        **{name: getattr(result.settings, name) for name in asked},
        "model": result.model.name,
        "contract_id": result.model.contract_id,
        "provenance": result.model.provenance,
        "digest": result.model.digest,
        "executed_devices": " ".join(result.execution.devices),
        "executed_precision": result.execution.precision,
        "min_ms": result.latency_ms.get("min"),
        "max_ms": result.latency_ms.get("max"),
        "server_rate": result.server and result.server.rate,
        "queries": result.samples and result.samples.count,
    }
    if (kiosk := result.kiosk) is not None:
        row["kiosk_frames"], row["kiosk_dropped"] = kiosk.frames, kiosk.dropped
        row["kiosk_identity_p50_ms"] = kiosk.time_to_identity_ms.get("p50")
        row["kiosk_decision_p50_ms"] = kiosk.time_to_decision_ms.get("p50")
    row["throughput_fps_low"], row["throughput_fps_high"] = result.throughput_interval or (None, None)
    for key in _BOUNDED:
        row[f"{key}_ms"] = result.latency_ms.get(key)
        row[f"{key}_ms_low"], row[f"{key}_ms_high"] = result.latency_interval_ms.get(key, (None, None))
    return row


def as_markdown(entries: Sequence[ReportEntry], comparisons: Sequence[Comparison]) -> str:
    """Build Markdown: tables of the results, of the comparisons, and of each result's percentiles."""
    lines = ["# Benchmark", ""]
    lines += _table(
        ("result", "model", "scenario", "device", "p50 ms", "p99 ms", "items/s", "GFLOP/s", "of peak", ""),
        [_summary(entry) for entry in entries],
        numbers=range(4, 9),
    )
    lines += [
        line for entry in entries for doubt in entry.doubts for line in ("", f"**{_cell(entry.name)}: {_cell(doubt)}**")
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


def _summary(entry: ReportEntry) -> tuple[str, ...]:
    result = entry.result
    efficiency = "-" if result.efficiency is None else percent(result.efficiency, 3)
    flags = [word for word, holds in (("disturbed", result.disturbed), ("partial", result.partial)) if holds]
    return (
        entry.name, result.model.name, result.settings.scenario, result.settings.device,
        rounded(result.latency_ms.get("p50")), rounded(result.latency_ms.get("p99")),
        rounded(result.throughput_fps), rounded(result.gflops_per_second), efficiency, ", ".join(flags),
    )  # fmt: skip


def _identity(entry: ReportEntry) -> str:
    model = entry.result.model
    return (
        f"{_cell(model.name)}: contract_id {model.contract_id or 'none'}, SHA-256 {model.digest or 'not known'}; "
        f"{entry.result.created}, {_cell(', '.join(entry.result.execution.full_names))}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: range) -> list[str]:
    rule = ("---:" if index in numbers else "---" for index in range(len(head)))
    return [f"| {' | '.join(map(_cell, row))} |" for row in (head, tuple(rule), *rows)]


def _cell(text: str) -> str:
    """Escape text so that it neither ends its cell nor starts a tag or a style."""
    text = printable(" ".join(text.split()))
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return text


def interval_words(interval: tuple[float | None, float | None] | None) -> str:
    """Format an interval: ``12.3 to 14.5``; an unbounded side is a dash."""
    if interval is None or interval == (None, None):
        return "-"
    return f"{rounded(interval[0])} to {rounded(interval[1])}"


def slowdown_words(slowdown: float, interval: tuple[float | None, float | None]) -> tuple[str, str]:
    """Format a slowdown and its interval: ``+4.9 %`` and ``+4.1 % to +5.6 %``."""
    low, high = ("" if end is None else f"{100 * end:+.1f} %" for end in interval)
    words = f"{low} to {high}" if low and high else f"{low} or more" if low else f"{high} or less" if high else "-"
    return f"{100 * slowdown:+.1f} %", words
