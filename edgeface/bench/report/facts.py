"""One result in, rows of words about its model, its settings and its machine out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeface.bench.machine.environment import Environment
from edgeface.bench.machine.reading import Unknown
from edgeface.bench.result import BenchmarkResult
from edgeface.drawing import percent, rounded

__all__ = ["Row", "Rows", "environment_rows", "model_rows", "settings_rows"]

Row = tuple[str, str, bool]
"""Name, words, and whether they are known."""
Rows = list[Row]


def model_rows(result: BenchmarkResult) -> Rows:
    """What was measured."""
    model = result.model
    rows = [
        _row("Contract", model.contract_id or "none: the model has no edgeface contract"),
        _row("SHA-256", model.digest),
        _row("File", " ".join(filter(None, (model.format, model.precision)))),
        _row("Inputs", "; ".join(f"{name} {list(shape)}" for name, shape in model.inputs.items())),
    ]
    if model.gflops is not None:
        work = f"{rounded(model.gflops)} GFLOPs an item (Open Model Zoo's way)"
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
    """What was asked for, and what really ran."""
    settings, execution = result.settings, result.execution
    asked = {
        name: getattr(settings, name)
        for name in ("device", "hint", "precision", "streams", "requests", "threads", "batch", "input_format")
    } | dict(settings.extra)
    given = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    ran = {name: getattr(execution, name) for name in ("precision", "streams", "requests", "threads")}
    rows = [
        _row("Scenario", settings.scenario + (", end to end" if settings.end_to_end else "")),
        _row("Asked for", given),
        _row("Ran on", ", ".join(execution.full_names)),
        _row(
            "Ran as",
            ", ".join(f"{name} {'unknown' if value is None else value}" for name, value in ran.items()),
        ),
    ]
    if execution.affinity:
        rows.append(_row("Affinity", execution.affinity))
    rows += [_row("Note", note) for note in execution.notes]
    if settings.duration_s is not None:
        length = f"at least {settings.duration_s:g} s and {settings.min_count or 0:,} queries"
        rows.append(_row("Length", length if settings.seed is None else f"{length}, seed {settings.seed}"))
    if (validity := result.validity) is not None:
        rows.append(
            _row(
                "Warm-up",
                f"{validity.warm_up_s:.1f} s, {'stable' if validity.warmed_up else 'not stable yet'}",
            )
        )
        early = validity.early_stopping
        if early is not None:
            found = f"p{early.percentile:g} at most {rounded(early.estimate_ms)} ms with 99 % confidence"
            fewer = f"too few queries for p{early.percentile:g}: {early.needed:,} are needed"
            rows.append(_row("MLPerf rule", fewer if early.estimate_ms is None else found))
    if (server := result.server) is not None:
        met = (
            "none of the rates met it" if server.rate is None else f"{rounded(server.rate)} queries a second"
        )
        rows.append(_row("Server", f"p{server.percentile:g} within {rounded(server.bound_ms)} ms: {met}"))
        tries = [
            f"{rounded(each.rate, 3)}/s {'met' if each.met else 'not met'}, {rounded(each.latency_ms, 3)} ms"
            for each in sorted(server.tries, key=lambda each: each.rate)
        ]
        rows.append(_row("Rates tried", "; ".join(tries)))
    if (kiosk := result.kiosk) is not None:
        rows.append(
            _row(
                "Kiosk",
                f"{kiosk.frames:,} frames at {kiosk.frame_rate:g} a second, {kiosk.dropped:,} dropped; "
                f"{kiosk.identities:,} identities, median {rounded(kiosk.time_to_identity_ms.get('p50'))} ms each",
            )
        )
    if result.peak is not None:
        products = {name: result.peak.gflops_per_second(name) for name in map(str, result.peak.products)}
        peaks = [f"{name} {rounded(rate, 3)} GFLOP/s" for name, rate in products.items() if rate is not None]
        rows.append(_row("Attainable", ", ".join(peaks)))
    return rows


def environment_rows(result: BenchmarkResult) -> Rows:
    """The machine, before and while it was measured; what could not be read, and why."""
    if result.environment is None:
        return [("Machine", f"not recorded by {result.source}", False)]
    return [*_machine_rows(result.environment), *_during_rows(result.environment)]


def _machine_rows(environment: Environment) -> Rows:
    machine, container, software = environment.machine, environment.container, environment.software
    limit = container.cpu_limit
    rows = [
        _row("CPU", machine.cpu_model),
        _row(
            "Cores",
            _join(
                f"{_text(machine.cores)} cores, {_text(machine.threads)} threads", machine.sockets, "sockets"
            ),
        ),
        _row("Instructions", machine.flags),
        _row("Caches", _each(machine.cache_bytes, _bytes)),
        _row(
            "Memory",
            machine.memory_bytes
            if isinstance(machine.memory_bytes, Unknown)
            else _bytes(machine.memory_bytes),
        ),
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
    frequency = during.frequency_mhz
    rows = [
        _row(
            "Frequency",
            frequency
            if isinstance(frequency, Unknown)
            else f"{frequency[0]:.0f} to {frequency[2]:.0f} MHz, median {frequency[1]:.0f}",
        ),
        _row("Governor", start.governor),
        _row(
            "Slowed for heat",
            during.throttled if isinstance(during.throttled, Unknown) else f"{during.throttled} times",
        ),
        _row("Stolen", _share(during.steal_share)),
        _row(
            "Others' load",
            during.other_cpus if isinstance(during.other_cpus, Unknown) else f"{during.other_cpus:.2f} CPUs",
        ),
        _row("Own load", f"{during.own_cpus:.2f} CPUs over {during.seconds:.0f} s"),
        _row("Waited for memory", _seconds(during.memory_stall_s)),
        _row("Waited for quota", _seconds(during.quota_throttled_s)),
        _row("Power", _each(during.power_w, lambda watts: f"{watts:.1f} W")),
        _row("Temperature", _each(during.temperature_c, lambda degrees: f"{degrees:.0f} °C")),
        _row("Measured", f"{start.utc} to {end.utc}"),
    ]
    identity = environment.identity
    if identity is not None:
        rows.append(_row("Where", f"{_text(identity.user)} on {identity.host}, {identity.folder}"))
        rows.append(_row("Command", " ".join(identity.command)))
    return rows


def _row(name: str, value: object) -> Row:
    return name, _text(value), not isinstance(value, Unknown) and value is not None


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return "not known" if value is None else str(value)


def _each(values: Mapping[str, Any] | Unknown, words: Any) -> object:
    if isinstance(values, Unknown):
        return values
    return ", ".join(f"{name} {words(value)}" for name, value in values.items()) or "none"


def _join(text: str, count: int | Unknown, what: str) -> str:
    return text if isinstance(count, Unknown) or count == 1 else f"{text}, {count} {what}"


def _share(value: float | Unknown) -> object:
    return value if isinstance(value, Unknown) else f"{percent(value, 2)} of the CPU time, by the hypervisor"


def _seconds(value: float | Unknown) -> object:
    return value if isinstance(value, Unknown) else f"{rounded(value, 2)} s"


def _bytes(count: int | None) -> str:
    if count is None:
        return "size not known"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{rounded(count / size, 3)} {unit}"
    return f"{count} bytes"
