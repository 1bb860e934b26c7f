"""Read reports of benchmark_app as results; what a report does not contain stays unknown.

benchmark_app writes such reports with ``-report_type no_counters -json_stats -report_folder DIR``. The Python and
the C++ program name the same things differently; both are read. The Python one rounds to hundredths of a millisecond.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeface.bench.result import FILE_NAME, BenchmarkResult
from edgeface.bench.schema import Execution, ModelInfo, RunSettings
from edgeface.errors import InputError
from edgeface.stats import LatencyKey

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
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return BenchmarkResult.read(path)  # raises with the reason
    if isinstance(document, dict) and document.keys() >= _SECTIONS:
        return read_benchmark_app(file)
    return BenchmarkResult.from_dict(document, source=str(file))


def read_benchmark_app(path: Path) -> BenchmarkResult:
    """Read a JSON report of benchmark_app; InputError if it is something else, or the run failed.

    The scenario is ``single-stream`` where the report has the API ``sync``, else ``offline``. There are no samples,
    intervals or environment; `created` is when the file was last changed, to the second.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        changed = path.stat().st_mtime
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a JSON report of benchmark_app: {error}") from error
    if not isinstance(document, dict) or not document.keys() >= _SECTIONS:
        raise InputError(f"{path} is not a JSON report of benchmark_app (-report_type no_counters -json_stats)")
    options = _Section(document.get("cmd_options", {}), path)
    setup = _Section(document["configuration_setup"], path)
    found = _Section(document["execution_results"], path)
    if reason := found.text("error"):
        raise InputError(f"{path}: this run of benchmark_app failed: {reason}")
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
        created=datetime.datetime.fromtimestamp(changed, datetime.timezone.utc).isoformat(timespec="seconds"),
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
