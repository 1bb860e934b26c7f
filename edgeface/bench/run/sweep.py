"""A model and lists of settings in, a result for every combination that makes sense and the best plans out.

Each configuration is measured alone (``single-stream``: latency) and under full load (``offline``: throughput). Its
results are files, so that a sweep that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface.bench.machine.hardware import read_machine
from edgeface.bench.machine.peak import Peak
from edgeface.bench.machine.reading import Unknown
from edgeface.bench.result import FILE_NAME, BenchmarkResult
from edgeface.bench.run.benchmark_model import Shapes, read_benchmark_model
from edgeface.bench.run.runner import DEFAULTS, Extras, Stage, benchmark
from edgeface.bench.schema import ModelInfo, RunSettings, Scenario
from edgeface.errors import DeviceError, InferenceError, InputError
from edgeface.files import write_atomically
from edgeface.runtime import DevicePlan
from edgeface.runtime.devices import DeviceInfo, list_devices, resolve_device, split_device

__all__ = [
    "SkippedRun",
    "Sweep",
    "SweepAxes",
    "SweepStep",
    "sweep",
]

SETTINGS_NAME = "sweep.json"
"""What a folder's results have in common."""

SCENARIOS: tuple[Scenario, Scenario] = ("single-stream", "offline")
_SCHEMA = "edgeface.sweep/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepAxes:
    """What is combined with what; None: left to the device.

    Attributes
    ----------
    devices, hints, precisions, streams, requests, batches
        As in `edgeface.runtime.DevicePlan`; a batch is a static one.
    """

    devices: Sequence[str] = ("CPU",)
    hints: Sequence[str | None] = ("LATENCY", "THROUGHPUT")
    precisions: Sequence[str | None] = (None,)
    streams: Sequence[int | None] = (None,)
    requests: Sequence[int | None] = (None,)
    batches: Sequence[int | None] = (1,)


@dataclass(frozen=True, slots=True)
class SweepStep:
    """One run that is about to begin, or was found done: its name, and how many of how many it is."""

    name: str
    number: int
    total: int
    found: bool


@dataclass(frozen=True, slots=True)
class SkippedRun:
    """A configuration that was not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What came of it.

    Attributes
    ----------
    results
        By the name of the folder below the sweep's, in the order of the axes.
    skipped
        Combinations that contradict themselves or the device.
    failed
        Those that the device could not run.
    absent
        Devices that are not there, and what is.
    best
        For ``latency`` and ``throughput``: the name of the result that is best, and the plan file that was written.
    """

    results: dict[str, BenchmarkResult]
    skipped: tuple[SkippedRun, ...]
    failed: tuple[SkippedRun, ...]
    absent: tuple[SkippedRun, ...]
    best: dict[str, tuple[str, Path]]

    def to_dict(self) -> dict[str, Any]:
        """JSON types; of each result only its figures."""
        return {
            "results": {
                name: {
                    "p50_ms": result.latency_ms.get("p50"),
                    "p90_ms": result.latency_ms.get("p90"),
                    "throughput_fps": result.throughput_fps,
                    "disturbed": result.disturbed,
                }
                for name, result in self.results.items()
            },
            **{
                kind: [{"name": each.name, "reason": each.reason} for each in listed]
                for kind, listed in (
                    ("skipped", self.skipped),
                    ("failed", self.failed),
                    ("absent", self.absent),
                )
            },
            "best": {what: {"result": name, "plan": str(path)} for what, (name, path) in self.best.items()},
        }


@dataclass(slots=True)
class _Found:
    """What a sweep has so far."""

    results: dict[str, BenchmarkResult] = field(default_factory=dict)
    plans: dict[str, DevicePlan] = field(default_factory=dict)
    skipped: list[SkippedRun] = field(default_factory=list)
    failed: list[SkippedRun] = field(default_factory=list)
    peaks: dict[str, Peak] = field(default_factory=dict)


def sweep(
    model: Path,
    folder: Path,
    *,
    axes: SweepAxes | None = None,
    settings: RunSettings = DEFAULTS,
    shapes: Shapes | None = None,
    peak: bool = True,
    on_step: Callable[[SweepStep], None] = lambda step: None,
    stage: Stage | None = None,
) -> Sweep:
    """Measure every combination, and write the plans that are best for latency and for throughput.

    Parameters
    ----------
    model
        An .xml with its .bin beside it, or an .onnx.
    folder
        Receives a folder a run, `SETTINGS_NAME`, ``latency.json`` and ``throughput.json``. Runs that it holds
        whole are not made again.
    axes
        What is combined.
    settings
        Durations, counts and seed of each run.
    shapes
        Of inputs that are dynamic.
    peak
        Whether to measure what each device attains, once.
    on_step, stage
        Told before each run, and of its stages.

    Raises
    ------
    InputError
        If the folder is that of a sweep of another model, machine, OpenVINO or of other durations, or no
        combination can be measured.
    DeviceError
        If none of the devices is there.
    OutputError
        If a result cannot be written.
    KeyboardInterrupt
        On Ctrl-C; the run that was interrupted is dropped, those before it stay.
    """
    axes = axes or SweepAxes()
    core = ov.Core()
    _keep_settings(folder, read_benchmark_model(model, core=core, shapes=shapes).info, settings)
    present, absent = _present(axes.devices, core)
    if not present:
        raise DeviceError("; ".join(each.reason for each in absent))
    found = _Found()
    capabilities = {info.name: info for info in list_devices(core)}
    runs: list[tuple[str, DevicePlan, Scenario]] = []
    for name, options in _combinations(present, axes):
        plan, reason = _plan(options, capabilities)
        if plan is None:
            found.skipped.append(SkippedRun(name, reason))
        else:
            runs += [(f"{name}/{scenario}", plan, scenario) for scenario in SCENARIOS]
    for number, (name, plan, scenario) in enumerate(runs, 1):
        known = _read(folder / name)
        on_step(SweepStep(name, number, len(runs), known is not None))
        asked = settings.model_copy(update=_settings(plan, scenario))
        extras = Extras(shapes=shapes, peak=found.peaks.get(plan.device, peak), layers=False)
        result = known or _measure(model, asked, name, found, extras=extras, stage=stage)
        if result is None:
            continue
        if known is None:
            result.write(folder / name)
        found.results[name] = result
        found.plans[name] = plan
        if result.peak is not None and not result.disturbed:  # or the next run measures it again
            found.peaks[plan.device] = result.peak
    if not found.results:
        left = [*found.skipped, *found.failed]
        raise InputError(
            f"{model}: expected a combination that can be measured, found none: {left[0].reason}"
        )
    return Sweep(
        results=found.results,
        skipped=tuple(found.skipped),
        failed=tuple(found.failed),
        absent=tuple(absent),
        best=_write_best(folder, found),
    )


def _measure(
    model: Path, asked: RunSettings, name: str, found: _Found, *, extras: Extras, stage: Stage | None
) -> BenchmarkResult | None:
    try:
        result = benchmark(model, asked, extras=extras, stage=stage)
    except InputError as error:
        found.skipped.append(SkippedRun(name, str(error)))
        return None
    except (DeviceError, InferenceError) as error:
        found.failed.append(SkippedRun(name, str(error)))
        return None
    if result.partial:
        raise KeyboardInterrupt
    return result


def _present(devices: Sequence[str], core: ov.Core) -> tuple[dict[str, str], list[SkippedRun]]:
    """Names as they were given, with OpenVINO's; and those that are not there."""
    present: dict[str, str] = {}
    absent = []
    for device in devices:
        try:
            present[device] = resolve_device(device, core=core).device
        except DeviceError as error:
            absent.append(SkippedRun(device, str(error)))
    return present, absent


def _combinations(devices: dict[str, str], axes: SweepAxes) -> list[tuple[str, dict[str, Any]]]:
    combined = []
    for device, hint, precision, streams, requests, batch in itertools.product(
        devices, axes.hints, axes.precisions, axes.streams, axes.requests, axes.batches
    ):
        counts = {"streams": streams, "requests": requests, "batch": batch}
        parts = [device.replace(":", "-").replace(",", "-"), (hint or "").lower(), precision or ""]
        parts += [f"{name}-{count}" for name, count in counts.items() if count is not None]
        options = {
            "device": devices[device],
            "hint": hint,
            "precision": precision,
            "streams": streams,
            "requests": requests,
            "batch_buckets": (batch or 1,),
        }
        combined.append(("_".join(filter(None, parts)), options))
    return combined


def _plan(options: dict[str, Any], infos: dict[str, DeviceInfo]) -> tuple[DevicePlan | None, str]:
    """The plan of a combination; None with the reason if it contradicts itself or its device."""
    try:
        plan = DevicePlan(**options)
    except InputError as error:
        return None, str(error)
    if plan.requests is not None and plan.streams is not None and plan.requests < plan.streams:
        return None, f"{plan.requests} requests cannot keep {plan.streams} streams busy"
    virtual, members = split_device(plan.device)
    info = infos.get(members[0] if members else plan.device)
    if virtual is not None or info is None:
        return plan, ""
    if plan.precision is not None:
        needed = {"f32": "FP32", "f16": "FP16", "bf16": "BF16"}[plan.precision]
        if needed not in info.capabilities:
            return (
                None,
                f"{info.name} does not compute in {plan.precision}: it has {', '.join(info.capabilities)}",
            )
    if plan.streams is not None and info.streams is not None and plan.streams > info.streams[1]:
        return None, f"{info.name} has at most {info.streams[1]} streams"
    return plan, ""


def _settings(plan: DevicePlan, scenario: Scenario) -> dict[str, Any]:
    asked = {name: getattr(plan, name) for name in ("device", "hint", "precision", "streams", "requests")}
    return {**asked, "scenario": scenario, "batch": plan.batch_buckets[0]}


def _keep_settings(folder: Path, model: ModelInfo, settings: RunSettings) -> None:
    """Write what all results of the folder share, or refuse if it holds those of something else."""
    lengths = ("duration_s", "min_count", "max_duration_s", "warm_up_s", "seed")
    cpu = read_machine().cpu_model
    wanted = {
        "schema": _SCHEMA,
        "model": model.digest,
        "inputs": {name: list(shape) for name, shape in model.inputs.items()},
        "cpu": None if isinstance(cpu, Unknown) else cpu,
        "openvino": ov.__version__,
        **{name: getattr(settings, name) for name in lengths},
    }
    path = folder / SETTINGS_NAME
    stored: object = None
    if path.is_file():
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise InputError(
                f"{path}: expected the settings of a sweep, found something else; choose another folder"
            )
        differ = [
            f"{name} {stored.get(name)}, not {wanted[name]}"
            for name in wanted
            if stored.get(name, wanted[name]) != wanted[name]  # sweeps of older versions say less
        ]
        if differ:
            raise InputError(
                f"{folder}: holds a sweep of {'; '.join(differ)}: results of both cannot stand side by side; choose "
                "another folder, or remove this one"
            )
        return
    with write_atomically(path) as staged:
        staged.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")


def _read(folder: Path) -> BenchmarkResult | None:
    """The result of a run that was finished before; None if there is none, or if it is damaged."""
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        result = BenchmarkResult.read(folder)
    except InputError:
        return None
    return None if result.partial else result


def _write_best(folder: Path, found: _Found) -> dict[str, tuple[str, Path]]:
    """Write the plans of the lowest 90th percentile, as MLPerf judges SingleStream, and of the highest throughput."""

    def of(scenario: Scenario) -> list[str]:
        return [name for name, result in found.results.items() if result.settings.scenario == scenario]

    def latency(name: str) -> float:
        return found.results[name].latency_ms.get("p90", float("inf"))

    def throughput(name: str) -> float:
        return found.results[name].throughput_fps or 0.0

    chosen = {}
    if alone := of("single-stream"):
        chosen["latency"] = min(alone, key=latency)
    if loaded := of("offline"):
        chosen["throughput"] = max(loaded, key=throughput)
    best = {}
    for what, name in chosen.items():
        path = folder / f"{what}.json"
        with write_atomically(path) as staged:
            staged.write_text(json.dumps(found.plans[name].to_dict(), indent=1) + "\n", encoding="utf-8")
        best[what] = (name, path)
    return best
