"""Read result files for comparison or a report, and check whether two of them measure the same thing."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeface.bench.reading import known
from edgeface.bench.result import FILE_NAME, BenchmarkResult
from edgeface.bench.schema import Execution, ModelInfo, RunSettings
from edgeface.errors import InputError
from edgeface.model.contract import SEEDED_WARNING, current_id
from edgeface.stats import LatencyKey
from edgeface.untrusted import RESULT_BYTES, read_json


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: runs of one configuration, in order of time, under the name of their file or folder."""

    name: str
    runs: tuple[BenchmarkResult, ...]

    @property
    def first(self) -> BenchmarkResult:
        """The first run; all have the same model and settings."""
        return self.runs[0]


def read_side(path: Path) -> Side:
    """Read a result file, a run's folder, a folder of repeated runs, or benchmark_app's report.

    InputError is raised if there is no result, or if those below a folder are of several configurations.
    """
    files = _files_below(path) or [path]
    read = sorted(((read_any(file), file) for file in files), key=lambda each: each[0].created)
    first = read[0][0]
    for run, file in read[1:]:
        if (run.model.digest, run.settings) != (first.model.digest, first.settings):
            raise InputError(
                f"{path} must hold runs of one model with the same settings, but {file} differs; compare them as "
                "baseline and candidate"
            )
    name = path.parent.name if path.name == FILE_NAME else path.stem if path.is_file() else path.name
    return Side(name or str(path), tuple(run for run, _ in read))


def require_comparable(
    baseline: Side, candidate: Side, *, across_models: bool
) -> tuple[tuple[tuple[str, str, str], ...], tuple[str, ...]]:
    """Refuse results that measure different things; list differences of settings, and reasons for doubt.

    The first list has settings and execution: name, the baseline's value, the candidate's value; the second has
    sentences. InputError is raised if scenario, batch or options of the scenario differ; or the model, unless
    `across_models`.
    """
    old, new = baseline.first, candidate.first
    for what, read in _ESSENTIALS.items():
        if (first := read(old)) != (second := read(new)):
            raise InputError(
                f"{baseline.name}, {candidate.name}: expected the same {what}, found {first} and {second}: "
                "they measure different things"
            )
    same = (
        _current(old.model.contract_id) == _current(new.model.contract_id)
        if old.model.contract_id or new.model.contract_id
        else None in (old.model.digest, new.model.digest) or old.model.digest == new.model.digest
    )
    if not same and not across_models:
        raise InputError(
            f"{baseline.name}, {candidate.name}: expected the same model, found {_identity(old)} and "
            f"{_identity(new)}; to compare different models, add --across-models"
        )
    warnings = [] if same else [f"different models: {_identity(old)} and {_identity(new)}"]
    if same and None in (old.model.digest, new.model.digest):
        warnings.append("one of the results does not name its model file")
    if old.settings.end_to_end != new.settings.end_to_end:
        warnings.append("only one of them includes the copies in and out (end to end)")
    if (first := _machine(old)) != (second := _machine(new)):
        warnings.append(f"different machines: {first} and {second}")
    for side in (baseline, candidate):
        for index, run in enumerate(side.runs):
            name = side.name if len(side.runs) == 1 else f"{side.name}, run {index + 1}"
            warnings += [f"{name}: {doubt}" for doubt in doubts(run)]
    before, after = _said(old), _said(new)
    differ = tuple((name, value, after[name]) for name, value in before.items() if value != after[name])
    return differ, tuple(warnings)


def doubts(run: BenchmarkResult) -> list[str]:
    """List the reasons why the figures of one run are doubtful."""
    found = []
    if run.model.provenance == "seeded":
        found.append(SEEDED_WARNING)
    if run.partial:
        found.append("it was interrupted and is partial")
    if run.disturbed:
        found.append(f"it was disturbed: {'; '.join(run.disturbances) or 'the reason is not known'}")
    if run.validity is not None:
        if not run.validity.warmed_up:
            found.append("latencies were not stable yet when the measurement began")
        if run.validity.stationary is False:
            found.append("latencies drifted during the measurement")
        if not run.partial and not run.validity.count_met:
            found.append("it has fewer queries than the scenario requires")
    return found


_ESSENTIALS: dict[str, Callable[[BenchmarkResult], object]] = {
    "scenario": lambda run: run.settings.scenario,
    "batch": lambda run: run.settings.batch,
    "samples a query": lambda run: run.multi_stream and run.multi_stream.samples_per_query,
    "latency bound": lambda run: run.server and (run.server.bound_ms, run.server.percentile),
    "number of templates": lambda run: run.search and run.search.templates,
    "video": lambda run: run.kiosk and (run.kiosk.video_digest, run.kiosk.frame_rate),
}
"""What two results must have in common to be compared."""


def _said(run: BenchmarkResult) -> dict[str, str]:
    """Return everything that may explain a difference, as text."""
    environment = run.environment
    said: dict[str, object] = {
        "model": _identity(run),
        **{name: getattr(run.settings, name) for name in type(run.settings).model_fields},
        **{
            f"executed {name}": getattr(run.execution, name)
            for name in ("devices", "precision", "streams", "requests", "threads")
        },
        "detector": run.kiosk and run.kiosk.detector,
        "liveness": run.kiosk and run.kiosk.liveness,
        "index": run.search and run.search.storage,
        "openvino": None if environment is None else environment.software.openvino,
        "edgeface": run.edgeface,
        "measured by": run.source,
    }
    return {
        name: "default" if value is None else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in said.items()
    }


def _identity(run: BenchmarkResult) -> str:
    return f"{run.model.name} ({run.model.contract_id or (run.model.digest or 'unknown')[:16]})"


def _machine(run: BenchmarkResult) -> str | None:
    return None if run.environment is None else known(run.environment.machine.cpu_model)


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """A result under its name in a report, and the folder of several results that it was found in."""

    name: str
    result: BenchmarkResult
    folder: str = ""

    @property
    def doubts(self) -> list[str]:
        """Reasons why its figures are doubtful."""
        return doubts(self.result)


def read_entries(paths: Sequence[Path]) -> list[ReportEntry]:
    """Read result files, runs' folders and folders of those, in that order; equal names are numbered.

    InputError is raised if one of them is not a result, or a folder holds no result.
    """
    found: list[tuple[str, Path, str]] = []
    for path in paths:
        if files := _files_below(path):
            folder = path.name or str(path)
            inside = [(str(file.parent.relative_to(path)), file) for file in files]
            found += [(f"{folder}/{name}" if len(paths) > 1 else name, file, folder) for name, file in inside]
        else:
            of = path.parent if path.name == FILE_NAME else path
            name = of.name if of.is_dir() else path.stem
            found.append((name or str(path), path, ""))
    entries: list[ReportEntry] = []
    for name, file, within in found:
        taken = {each.name for each in entries}
        number = next(n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name} ({n})") not in taken)
        entries.append(ReportEntry(name if number == 1 else f"{name} ({number})", read_any(file), within))
    return entries


def _files_below(path: Path) -> list[Path]:
    """Return the results of a folder of runs; an empty list for a file or the folder of one run."""
    if not path.is_dir() or (path / FILE_NAME).is_file():
        return []
    files = sorted(path.rglob(FILE_NAME))
    if not files:
        raise InputError(f"{path} holds no {FILE_NAME}, nor folders with one")
    return files


_HINTS = {"": None, "none": None, "tput": "THROUGHPUT", "ctput": "CUMULATIVE_THROUGHPUT"}
_SECTIONS = {"configuration_setup", "execution_results"}
_LATENCIES: Mapping[LatencyKey, tuple[str, ...]] = {
    "mean": ("avg latency", "latency_avg"),
    "min": ("min latency", "latency_min"),
    "max": ("max latency", "latency_max"),
}
_PERCENTILES: Mapping[str, LatencyKey] = {"50": "p50", "90": "p90", "95": "p95", "99": "p99"}


def read_any(path: Path) -> BenchmarkResult:
    """Read a result of edgeface, its folder, or a JSON report of benchmark_app; InputError if it is something else."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        document = read_json(file, "a result in JSON", limit=RESULT_BYTES)
    except InputError:
        return BenchmarkResult.read(path)  # raises with the reason
    if isinstance(document, dict) and document.keys() >= _SECTIONS:
        return _from_benchmark_app(document, file)
    return BenchmarkResult.from_dict(document, source=str(file))


def _from_benchmark_app(document: dict[str, Any], path: Path) -> BenchmarkResult:
    """Convert a JSON report of benchmark_app; InputError if the run failed or a figure is not a number.

    benchmark_app writes one with ``-report_type no_counters -json_stats -report_folder DIR``. Its Python and its C++
    program name the same things differently; the Python one rounds to hundredths of a millisecond.
    The scenario is ``single-stream`` where the report has the API ``sync``, else ``offline``. There are no samples,
    intervals or environment; `created` is when the file was last changed, to the second.
    """
    options = _Section(document.get("cmd_options", {}), path)
    setup = _Section(document["configuration_setup"], path)
    found = _Section(document["execution_results"], path)
    if reason := found.text("error"):
        raise InputError(f"{path}: this run of benchmark_app failed: {reason}")
    changed = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc)
    throughput = found.number("throughput")
    if throughput is None:
        raise InputError(f"{path}: execution_results has no throughput")
    milliseconds = setup.number("duration (ms)", "duration")
    hint = (options.text("-hint", "--perf_hint", "hint") or "").lower()
    device = setup.text("target device", "target_device") or "CPU"
    model = Path(options.text("-m", "--path_to_model", "m") or setup.text("topology") or "unknown")
    latencies = {key: found.number(*names) for key, names in _LATENCIES.items()}
    for percentile, key in _PERCENTILES.items():
        latencies[key] = found.number(
            "latency (ms)" if percentile == "50" else f"latency ({percentile} percentile) (ms)"
        )
    if (key_of := _PERCENTILES.get(found.text("percentile_boundary") or "")) is not None:
        latencies[key_of] = found.number("latency_median")
    requests = setup.whole("number of parallel infer requests", "nireq")
    streams = setup.whole(f"number of {device} streams", f"{device.lower()}_streams_num")
    return BenchmarkResult(
        created=changed.isoformat(timespec="seconds"),
        edgeface=None,
        source="benchmark_app",
        model=ModelInfo(
            name=model.stem,
            format={".xml": "ir", ".onnx": "onnx"}.get(model.suffix),  # type: ignore[arg-type]
            inputs={},
        ),
        environment=None,
        settings=RunSettings(
            scenario="single-stream" if setup.text("API", "api") == "sync" else "offline",
            device=device,
            hint=_HINTS.get(hint, hint.upper()),
            streams=streams,
            requests=requests,
            batch=setup.whole("batch size", "batch_size") or 1,
            duration_s=milliseconds and milliseconds / 1e3,
        ),
        execution=Execution(devices=(device,), full_names=(), streams=streams, requests=requests),
        latency_ms={key: value for key, value in latencies.items() if value is not None},
        throughput_fps=throughput,
        disturbed=None,
    )


class _Section:
    """One section of a report; values are texts in the Python program's and numbers in the C++ program's."""

    def __init__(self, values: Any, path: Path) -> None:
        if not isinstance(values, dict):
            raise InputError(f"{path}: expected sections of names and values, found {values!r}")
        self._values, self._path = values, path

    def text(self, *names: str) -> str | None:
        """Return the first of these names that has a value."""
        return next((str(self._values[name]) for name in names if self._values.get(name) not in (None, "")), None)

    def number(self, *names: str) -> float | None:
        """Return the same as a number of 0 or more."""
        text = self.text(*names)
        if text is None or text == "None":
            return None
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0.0 <= value < float("inf"):
            raise InputError(f"{self._path}: {names[0]}: expected a number of 0 or more, found {text!r}")
        return value

    def whole(self, *names: str) -> int | None:
        """Return the same as a whole number."""
        value = self.number(*names)
        return None if value is None else int(value)


def _current(contract_id: str | None) -> str | None:
    return None if contract_id is None else current_id(contract_id)
