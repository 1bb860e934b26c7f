"""Measure every combination of settings, and write the best plans for latency and for throughput.

Each combination is measured in the SingleStream scenario (latency) and in the Offline scenario (throughput). Every
result is a file, so that an interrupted sweep is resumed. A result is reused only if everything that it depends on is
the same: `_dependencies` for all runs of a folder, the fields of `DevicePlan` and the scenario for each run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface.bench.machine.hardware import read_container, read_machine
from edgeface.bench.machine.peak import Peak
from edgeface.bench.reading import known
from edgeface.bench.result import FILE_NAME, BenchmarkResult
from edgeface.bench.run.benchmark_model import Shapes, read_benchmark_model
from edgeface.bench.run.runner import DEFAULTS, benchmark
from edgeface.bench.schema import ModelInfo, RunSettings, Scenario
from edgeface.errors import DeviceError, InferenceError, InputError
from edgeface.files import write_atomically
from edgeface.model.contract import Provenance
from edgeface.runtime import DevicePlan
from edgeface.runtime.devices import DeviceInfo, list_devices, resolve_device, split_device
from edgeface.untrusted import read_json

SETTINGS_NAME = "sweep.json"
"""File with what all results of a folder depend on."""

SCENARIOS: tuple[Scenario, Scenario] = ("single-stream", "offline")
_SCHEMA = "edgeface.sweep/1"
_PLANNED = ("device", "hint", "precision", "streams", "requests")
"""Fields of `DevicePlan` that a result records, beside its batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepAxes:
    """Values to combine, see `edgeface.runtime.DevicePlan`; batches are static. None: the device chooses."""

    devices: Sequence[str] = ("CPU",)
    hints: Sequence[str | None] = ("LATENCY", "THROUGHPUT")
    precisions: Sequence[str | None] = (None,)
    streams: Sequence[int | None] = (None,)
    requests: Sequence[int | None] = (None,)
    batches: Sequence[int | None] = (1,)


@dataclass(frozen=True, slots=True)
class SweepStep:
    """One run that is about to begin (`found` is False) or is reused: its name and number of how many."""

    name: str
    number: int
    total: int
    found: bool


@dataclass(frozen=True, slots=True)
class SkippedRun:
    """A combination that was not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Results of a sweep.

    `results` are keyed by their folder below the sweep's, in the order of the axes. `skipped` combinations
    contradict themselves or the device, `failed` ones could not run, `absent` devices are not available. `best`
    has, for ``latency`` and ``throughput``, the name of the best result and the plan file that was written.
    """

    results: dict[str, BenchmarkResult]
    skipped: tuple[SkippedRun, ...]
    failed: tuple[SkippedRun, ...]
    absent: tuple[SkippedRun, ...]
    best: dict[str, tuple[str, Path]]

    @property
    def provenance(self) -> Provenance | None:
        """Provenance of the model's weights; None: it has no contract, or nothing was measured."""
        return next((result.model.provenance for result in self.results.values()), None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; of each result only its figures."""
        return {
            "provenance": self.provenance,
            "results": {
                name: {
                    "p50_ms": result.latency_ms.get("p50"),
                    "p90_ms": result.latency_ms.get("p90"),
                    "throughput_fps": result.throughput_fps,
                    "disturbed": result.disturbed,
                }
                for name, result in self.results.items()
            },
            **{kind: [asdict(each) for each in getattr(self, kind)] for kind in ("skipped", "failed", "absent")},
            "best": {what: {"result": name, "plan": str(path)} for what, (name, path) in self.best.items()},
        }


def sweep(
    model: Path,
    folder: Path,
    *,
    axes: SweepAxes | None = None,
    settings: RunSettings = DEFAULTS,
    shapes: Shapes | None = None,
    peak: bool = True,
    on_step: Callable[[SweepStep], None] = lambda step: None,
) -> Sweep:
    """Measure every combination, and write the plans with the best latency and the best throughput.

    `model` is an .xml with its .bin beside it, or an .onnx; `shapes` are those of dynamic inputs. `folder` receives a
    folder for each run, ``sweep.json``, ``latency.json`` and ``throughput.json``; complete runs in it are reused. Each
    run has the durations, counts and seed of `settings`. With `peak` each device's is measured once. `on_step` is
    called before each run.

    Raises
    ------
    InputError
        If the folder holds a sweep of another model, machine, OpenVINO or of other settings, or no combination can
        be measured.
    DeviceError
        If none of the devices is available.
    OutputError
        If a result cannot be written.
    KeyboardInterrupt
        On Ctrl-C; the interrupted run is dropped, earlier ones are kept.
    """
    axes = axes or SweepAxes()
    core = ov.Core()
    info = read_benchmark_model(model, core=core, shapes=shapes).info
    _require_same(folder, _dependencies(info, settings, peak=peak))
    present, absent = _present(axes.devices, core)
    if not present:
        raise DeviceError("; ".join(each.reason for each in absent))
    results: dict[str, BenchmarkResult] = {}
    plans: dict[str, DevicePlan] = {}
    skipped, failed = [], []
    peaks: dict[str, Peak] = {}
    capabilities = {each.name: each for each in list_devices(core)}
    runs: list[tuple[str, DevicePlan, Scenario]] = []
    for name, options in _combinations(present, axes):
        plan, reason = _plan(options, capabilities)
        if plan is None:
            skipped.append(SkippedRun(name, reason))
        else:
            runs += [(f"{name}/{scenario}", plan, scenario) for scenario in SCENARIOS]
    for number, (name, plan, scenario) in enumerate(runs, 1):
        result = _read(folder / name, plan, scenario)
        on_step(SweepStep(name, number, len(runs), result is not None))
        if result is None:
            own = {"scenario": scenario, "batch": plan.batch_buckets[0]}
            own |= {each: getattr(plan, each) for each in _PLANNED}
            try:
                result = benchmark(
                    model,
                    settings.model_copy(update=own),
                    shapes=shapes,
                    peak=peaks.get(plan.device, peak),
                    layers=False,
                )
            except InputError as error:
                skipped.append(SkippedRun(name, str(error)))
                continue
            except (DeviceError, InferenceError) as error:
                failed.append(SkippedRun(name, str(error)))
                continue
            if result.partial:
                raise KeyboardInterrupt
            result.write(folder / name)
        results[name], plans[name] = result, plan
        if result.peak is not None and not result.disturbed:  # or the next run measures it again
            peaks[plan.device] = result.peak
    if not results:
        raise InputError(f"{model}: no combination can be measured: {[*skipped, *failed][0].reason}")
    return Sweep(
        results=results,
        skipped=tuple(skipped),
        failed=tuple(failed),
        absent=tuple(absent),
        best=_write_best(folder, results, plans),
    )


def _present(devices: Sequence[str], core: ov.Core) -> tuple[dict[str, str], list[SkippedRun]]:
    """Return OpenVINO's names of the devices that are available, by the names as given, and the others."""
    present: dict[str, str] = {}
    absent = []
    for device in devices:
        try:
            present[device] = resolve_device(device, core=core).device
        except DeviceError as error:
            absent.append(SkippedRun(device, str(error)))
    return present, absent


def _combinations(devices: dict[str, str], axes: SweepAxes) -> Iterator[tuple[str, dict[str, Any]]]:
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
        yield "_".join(filter(None, parts)), options


def _plan(options: dict[str, Any], infos: dict[str, DeviceInfo]) -> tuple[DevicePlan | None, str]:
    """Return the plan of a combination, or None and the reason if it contradicts itself or its device."""
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
            has = ", ".join(info.capabilities)
            return None, f"{info.name} does not compute in {plan.precision}: it has {has}"
    if plan.streams is not None and info.streams is not None and plan.streams > info.streams[1]:
        return None, f"{info.name} has at most {info.streams[1]} streams"
    return plan, ""


def _dependencies(model: ModelInfo, settings: RunSettings, *, peak: bool) -> dict[str, Any]:
    """Return everything that all results of a sweep depend on."""
    container = read_container()
    lengths = ("duration_s", "min_count", "max_duration_s", "warm_up_s", "seed", "end_to_end", "extra")
    return {
        "schema": _SCHEMA,
        "model": model.digest,
        "inputs": {name: list(shape) for name, shape in model.inputs.items()},
        "cpu": known(read_machine().cpu_model),
        "cpus": len(known(container.affinity) or ()),
        "cpu_limit": known(container.cpu_limit),
        "openvino": ov.__version__,
        "threads": settings.threads,
        "peak": peak,
        **{name: getattr(settings, name) for name in lengths},
    }


def _require_same(folder: Path, wanted: dict[str, Any]) -> None:
    """Write what all results of the folder depend on, or refuse if it holds results of something else."""
    path = folder / SETTINGS_NAME
    if not path.is_file():
        return _write_json(path, wanted)
    stored: object = None
    with contextlib.suppress(InputError):
        stored = read_json(path, "the settings of a sweep")
    if not isinstance(stored, dict):
        raise InputError(f"{path} does not hold the settings of a sweep; choose another folder")
    differ = [
        f"{name} {stored[name]}, not {value}"
        for name, value in wanted.items()
        if stored.get(name, value) != value  # older versions store less
    ]
    if differ:
        raise InputError(
            f"{folder} holds a sweep of {'; '.join(differ)}: its results cannot be compared with these; choose "
            "another folder, or remove this one"
        )


def _read(folder: Path, plan: DevicePlan, scenario: Scenario) -> BenchmarkResult | None:
    """Return the result of an earlier run; None if there is none, or if it is damaged, partial or of other settings."""
    if not (folder / FILE_NAME).is_file():
        return None
    try:
        result = BenchmarkResult.read(folder)
    except InputError:
        return None
    settings = result.settings
    same = (settings.scenario, settings.batch) == (scenario, plan.batch_buckets[0]) and all(
        getattr(settings, name) == getattr(plan, name) for name in _PLANNED
    )
    return result if same and not result.partial else None


def _write_best(
    folder: Path, results: dict[str, BenchmarkResult], plans: dict[str, DevicePlan]
) -> dict[str, tuple[str, Path]]:
    """Write the plans of the lowest 90th percentile, MLPerf's for SingleStream, and of the highest throughput."""
    alone, loaded = ([name for name in results if name.endswith(f"/{scenario}")] for scenario in SCENARIOS)
    chosen = {}
    if alone:
        chosen["latency"] = min(alone, key=lambda name: results[name].latency_ms.get("p90", float("inf")))
    if loaded:
        chosen["throughput"] = max(loaded, key=lambda name: results[name].throughput_fps or 0.0)
    for what, name in chosen.items():
        _write_json(folder / f"{what}.json", plans[name].to_dict())
    return {what: (name, folder / f"{what}.json") for what, name in chosen.items()}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    with write_atomically(path) as staged:
        staged.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
