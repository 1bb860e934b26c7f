"""Does `edgeface bench run` agree with benchmark_app, and what does its own loop cost? Prints JSON.

    python benchmarks/harness.py --ir IR.xml --json [--rounds 5] [--seconds 6] [--only offline] [--merge FILE]

Both programs measure the same IR on the same device with the same hint, and so the same streams and requests, in
turn in every round; a figure is the ratio of the medians over the rounds. Where the machine's own speed changes from
minute to minute, that says little, so both loops, benchmark_app's own class and ours, also take turns second by
second in one process on one compiled model: rows ending in ``-slices``, the median of the ratios within the pairs.
What the loop costs is measured where it shows: between two inferences of a real run, and on a target that does
nothing. `--merge` adds the rows of an earlier run, so that a quiet machine is needed for a short time only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino.tools.benchmark.benchmark import Benchmark

from edgeface.bench import BenchmarkResult, read_any
from edgeface.bench.run.benchmark_model import read_benchmark_model
from edgeface.bench.run.load import OpenVinoTarget, random_inputs
from edgeface.bench.run.load_generator import RunLimits
from edgeface.bench.run.scenarios import offline, single_stream

ROWS = ("offline", "single-stream", "offline-slices", "single-stream-slices", "overhead")
LIMITS = {"agreement": 0.03, "overhead": 0.01}


class Idle:
    """A target that does nothing: what is left is the loop."""

    slots = items = 1

    def listen(self, done: Callable[[int], None]) -> None:
        self._done = done

    def start(self, slot: int) -> None:
        self._done(slot)

    def infer(self) -> None:
        pass

    def failure(self) -> None:
        return None


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ir", type=Path, required=True, help="any IR with static shapes or a dynamic batch")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=6, help="of each measurement")
    parser.add_argument("--slices", type=int, default=24, help="pairs of a second each, within one process")
    parser.add_argument("--only", choices=ROWS, action="append")
    parser.add_argument("--merge", type=Path, help="JSON of an earlier run; its rows stay unless measured again")
    options = parser.parse_args()
    answer: dict[str, Any] = json.loads(options.merge.read_text()) if options.merge else {}
    rows = answer.setdefault("rows", {})
    for row in options.only or ROWS:
        if row == "overhead":
            rows[row] = overhead(options.ir, options.device, options.rounds, options.seconds)
        elif row.endswith("-slices"):
            rows[row] = slices(row.removesuffix("-slices"), options.ir, options.device, options.slices)
        else:
            rows[row] = agreement(row, options.ir, options.device, options.rounds, options.seconds)
        print(f"{row}: {rows[row]['value']:+.4f}, must be {rows[row]['limit']}", file=sys.stderr)
    answer["holds"] = all(row["holds"] for row in rows.values())
    answer["environment"] = {"openvino": ov.__version__, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    print(json.dumps(answer, indent=2))


def agreement(scenario: str, ir: Path, device: str, rounds: int, seconds: int) -> dict[str, Any]:
    """Throughput of Offline, or the median latency of SingleStream, against benchmark_app's."""
    hint = "throughput" if scenario == "offline" else "latency"
    measured: dict[str, list[BenchmarkResult]] = {"benchmark_app": [], "edgeface": []}
    with tempfile.TemporaryDirectory(prefix="edgeface-bench-") as folder:
        shape = batch_one(ir)
        for _ in range(rounds):
            measured["benchmark_app"].append(benchmark_app(ir, device, hint, seconds, shape, Path(folder)))
            measured["edgeface"].append(edgeface(ir, device, scenario, hint, seconds, Path(folder)))
    figures = {name: [figure(result, scenario) for result in results] for name, results in measured.items()}
    medians = {name: statistics.median(values) for name, values in figures.items()}
    ratio = medians["edgeface"] / medians["benchmark_app"] - 1
    ours, theirs = measured["edgeface"][-1], measured["benchmark_app"][-1]
    return {
        "value": round(ratio, 5),
        "limit": f"within {LIMITS['agreement']:.0%}",
        "holds": abs(ratio) <= LIMITS["agreement"],
        "unit": "items/s" if scenario == "offline" else "ms, median",
        **{name: [round(value, 4) for value in values] for name, values in figures.items()},
        "medians": {name: round(value, 4) for name, value in medians.items()},
        "requests": {"edgeface": ours.execution.requests, "benchmark_app": theirs.execution.requests},
        "streams": ours.execution.streams,
        "model": ours.model.name,
        "gflops": ours.model.gflops,
        "disturbed": [result.disturbed for result in measured["edgeface"]],
    }


class _Queue:
    """What benchmark_app's loops ask its input queue for when inputs are filled once."""

    def get_next_batch_size(self) -> int:
        return 1


def slices(scenario: str, ir: Path, device: str, pairs: int) -> dict[str, Any]:
    """The two programs' loops in turn, a second each, on one compiled model."""
    core = ov.Core()
    hint = "THROUGHPUT" if scenario == "offline" else "LATENCY"
    benchmark_model = read_benchmark_model(ir, core=core, batch=1)
    compiled = core.compile_model(benchmark_model.model, device, {"PERFORMANCE_HINT": hint})
    requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if scenario == "offline" else 1
    inputs = random_inputs(compiled, seed=0)
    target = OpenVinoTarget(compiled, requests=requests, inputs=inputs, items=1)
    app = Benchmark(device, requests, None, 1, "async" if scenario == "offline" else "sync", True)
    pool = app.create_infer_requests(compiled)
    for request in pool:
        for index, array in enumerate(inputs):
            request.get_input_tensor(index).data[...] = array
    limits = RunLimits(duration_s=1.0, min_count=1, max_duration_s=1.0)

    def theirs() -> float:
        if scenario == "offline":
            _, seconds, count = app.async_inference_only(pool, _Queue())
            return count / seconds
        return float(np.median(app.sync_inference(pool[0], _Queue())[0]))

    def ours() -> float:
        if scenario == "offline":
            return offline(target, limits).items_per_second
        return float(np.median(single_stream(target, limits).latencies_ms))

    theirs(), ours()
    measured = []
    for number in range(pairs):
        order = (theirs, ours) if number % 2 else (ours, theirs)
        found = {each: each() for each in order}
        measured.append((found[ours], found[theirs]))
    ratios = [mine / other - 1 for mine, other in measured]
    value = statistics.median(ratios)
    return {
        "value": round(value, 5),
        "limit": f"within {LIMITS['agreement']:.0%}",
        "holds": abs(value) <= LIMITS["agreement"],
        "unit": "items/s" if scenario == "offline" else "ms, median",
        "requests": requests,
        "edgeface": [round(mine, 3) for mine, _ in measured],
        "benchmark_app": [round(other, 3) for _, other in measured],
    }


def overhead(ir: Path, device: str, rounds: int, seconds: int) -> dict[str, Any]:
    """Share of a SingleStream run in which no inference is under way, and what the loops cost by themselves."""
    with tempfile.TemporaryDirectory(prefix="edgeface-bench-") as folder:
        runs = [edgeface(ir, device, "single-stream", "latency", seconds, Path(folder)) for _ in range(rounds)]
    shares = []
    for run in runs:
        assert run.samples is not None
        shares.append(float(1 - run.samples.latencies_ms.sum() / 1e3 / run.samples.ends_s.max()))
    limits = RunLimits(duration_s=1.0, min_count=1, max_duration_s=2.0)
    idle = {load.__name__: float(np.median(gaps(load(Idle(), limits).starts_ns))) for load in (single_stream, offline)}
    value = statistics.median(shares)
    latency = statistics.median(figure(run, "single-stream") for run in runs)
    worst = float(max(value, idle["offline"] / (1e3 * latency)))
    return {
        "value": round(worst, 6),
        "limit": f"< {LIMITS['overhead']:.0%}",
        "holds": worst < LIMITS["overhead"],
        "share_between_inferences": [round(share, 6) for share in shares],
        "loop_us_a_query": {name: round(microseconds, 3) for name, microseconds in idle.items()},
        "latency_ms": round(latency, 4),
    }


def gaps(starts_ns: np.ndarray) -> np.ndarray:
    """Microseconds from one start to the next."""
    return np.diff(starts_ns) / 1e3


def figure(result: BenchmarkResult, scenario: str) -> float:
    """What the two programs are compared by."""
    value = result.throughput_fps if scenario == "offline" else result.latency_ms["p50"]
    assert value is not None
    return value


def benchmark_app(ir: Path, device: str, hint: str, seconds: int, shape: str | None, folder: Path) -> BenchmarkResult:
    """Run OpenVINO's own program, and read its report."""
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(ir), "-d", device, "-hint", hint]
    command += ["-t", str(seconds), "-report_type", "no_counters", "-json_stats", "-report_folder", str(folder)]
    subprocess.run(command + (["-shape", shape] if shape else []), check=True, capture_output=True, timeout=300)
    return read_any(folder / "benchmark_report.json")


def edgeface(ir: Path, device: str, scenario: str, hint: str, seconds: int, folder: Path) -> BenchmarkResult:
    """Run ours, as a process of its own too."""
    command = [sys.executable, "-m", "edgeface", "bench", "run", str(ir), "-d", device, "-s", scenario]
    command += ["--hint", hint, "-t", str(seconds), "--max-duration", str(seconds), "--min-count", "1"]
    command += ["--warm-up", "4", "--no-peak", "--no-layers", "-o", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return BenchmarkResult.read(folder)


def batch_one(ir: Path) -> str | None:
    """The shape that benchmark_app has to be told for a model with a dynamic batch."""
    model = ov.Core().read_model(ir)
    if not any(port.partial_shape.is_dynamic for port in model.inputs):
        return None
    shape = model.input(0).partial_shape
    shape[0] = 1
    return str(list(shape.to_shape())).replace(" ", "")


if __name__ == "__main__":
    main()
