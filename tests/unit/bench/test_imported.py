"""Reports of benchmark_app, in the words of its Python and of its C++ program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeface.bench.compare.comparable import read_any
from edgeface.bench.result import BenchmarkResult
from edgeface.errors import InputError

PYTHON: dict[str, Any] = {
    "cmd_options": {"-m": "/models/landmarks.xml", "-d": "CPU", "-hint": "tput", "-json_stats": ""},
    "configuration_setup": {
        "topology": "Model1",
        "target device": "CPU",
        "API": "async",
        "batch size": "4",
        "number of iterations": "None",
        "number of parallel infer requests": "2",
        "duration (ms)": "1500",
        "number of CPU streams": "2",
    },
    "execution_results": {
        "total number of iterations": "3266",
        "latency (ms)": "0.47",
        "avg latency": "0.52",
        "min latency": "0.28",
        "max latency": "8.67",
        "throughput": "3263.27",
    },
}
CPP: dict[str, Any] = {
    "cmd_options": {"m": "landmarks.onnx", "hint": "latency"},
    "configuration_setup": {
        "target_device": "GPU",
        "api": "sync",
        "batch_size": 1,
        "nireq": 1,
        "duration": 1000,
        "gpu_streams_num": "1",
    },
    "execution_results": {
        "latency_median": 1.25,
        "percentile_boundary": 95,
        "latency_avg": 1.2,
        "latency_min": 1.0,
        "latency_max": 1.5,
        "throughput": 800.5,
    },
}


def write(folder: Path, report: Any) -> Path:
    path = folder / "benchmark_report.json"
    path.write_text(json.dumps(report))
    return path


def test_pythons_report_becomes_a_result(tmp_path: Path) -> None:
    result = read_any(write(tmp_path, PYTHON))
    assert (result.source, result.edgeface, result.model.name) == ("benchmark_app", None, "landmarks")
    assert result.latency_ms == {"p50": 0.47, "mean": 0.52, "min": 0.28, "max": 8.67}
    assert result.throughput_fps == 3263.27
    settings = result.settings
    assert (settings.scenario, settings.hint, settings.batch) == ("offline", "THROUGHPUT", 4)
    assert (settings.streams, settings.requests, settings.duration_s) == (2, 2, 1.5)
    assert (result.environment, result.gflops, result.disturbed, result.samples) == (None, None, None, None)
    assert BenchmarkResult.from_dict(result.to_dict()) == result


def test_cpps_report_says_which_percentile_it_has(tmp_path: Path) -> None:
    result = read_any(write(tmp_path, CPP))
    assert result.latency_ms == {"p95": 1.25, "mean": 1.2, "min": 1.0, "max": 1.5}
    assert (result.settings.scenario, result.settings.hint, result.model.format) == ("single-stream", "LATENCY", "onnx")
    assert (result.execution.devices, result.execution.streams) == (("GPU",), 1)


def test_another_percentile_of_pythons_is_found(tmp_path: Path) -> None:
    found = {"latency (99 percentile) (ms)": "3.5", "throughput": "10.00"}
    assert read_any(write(tmp_path, {**PYTHON, "execution_results": found})).latency_ms == {"p99": 3.5}


def test_a_result_of_ours_is_read_as_one(tmp_path: Path) -> None:
    result = read_any(write(tmp_path, PYTHON))
    result.write(tmp_path / "ours")
    assert read_any(tmp_path / "ours") == read_any(tmp_path / "ours" / "result.json") == result


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({**PYTHON, "execution_results": {"error": "no device"}}, "this run of benchmark_app failed: no device"),
        ({**PYTHON, "execution_results": {}}, "has no throughput"),
        ({**PYTHON, "execution_results": {"throughput": "fast"}}, "expected a number of 0 or more, found 'fast'"),
        ({**PYTHON, "execution_results": {"throughput": "nan"}}, "expected a number of 0 or more, found 'nan'"),
        ({**PYTHON, "configuration_setup": []}, "expected sections of names and values"),
    ],
)
def test_a_report_of_nothing_is_refused(tmp_path: Path, report: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_any(write(tmp_path, report))


@pytest.mark.parametrize("content", ["{}", "[1]", "{", "null"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"is not a result|expected a benchmark result"):
        read_any(path)
    with pytest.raises(InputError, match="No such file"):
        read_any(tmp_path / "absent.json")
