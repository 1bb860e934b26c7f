"""What does the runtime cost on top of OpenVINO? Prints JSON; a table goes to stderr.

    python benchmarks/runtime.py --ir IR.xml --json [--rounds 7] [--seconds 6] [--quick] [--only KEY]

Both sides of a ratio run in turn in every round, so that what else the machine does falls on both; each figure is
the median over the rounds. Every row is measured in wall time and in CPU time of the processes, and says
beforehand, in `ROWS`, which of the two judges it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.runtime import Embedder, Engine, ImageFormat

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

_TICKS = os.sysconf("SC_CLK_TCK")
_SMALL_REQUESTS = 8
_WINDOW = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One question, and what answers it."""

    key: str
    judge: str
    limit: str
    text: str


ROWS = (
    Row("map_vs_benchmark_app", "wall", ">= 0.97", "map over 160x160 u8 BGR frames, FPS / benchmark_app's"),
    Row("map_resize_vs_benchmark_app", "wall", ">= 0.93", "the same over 640x480 frames, resized in the graph"),
    Row("embed_overhead_ms", "wall", "<= max(3 %, 0.5 ms)", "embed of one crop above a bare InferRequest.infer"),
    Row("engine_cpu_ratio", "cpu", "<= 1.25", "CPU a request / bare AsyncInferQueue's, one operation, depth 8"),
    Row("warm_load_ratio", "wall", ">= 2", "load + one embed: cold model cache / warm, each in a new process"),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds a request."""

    wall: float
    cpu: float


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ir", type=Path, required=True, help="an IR with a contract")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each throughput measurement")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 s: whether it works, not how fast")
    parser.add_argument("--only", choices=[row.key for row in ROWS], action="append")
    options = parser.parse_args()
    rounds, seconds = (3, 2.0) if options.quick else (options.rounds, options.seconds)
    wanted = set(options.only or (row.key for row in ROWS))
    for row in ROWS:
        if row.key in wanted:
            print(f"{row.key}: {row.text}; judged by {row.judge}; must be {row.limit}", file=sys.stderr)

    rows: dict[str, dict[str, object]] = {}
    if wanted & {"map_vs_benchmark_app", "map_resize_vs_benchmark_app"}:
        rows |= throughput(options.ir, rounds, seconds)
    if "embed_overhead_ms" in wanted:
        rows |= latency(options.ir, rounds, 15 if options.quick else 40)
    if "engine_cpu_ratio" in wanted:
        rows |= engine_cpu(rounds, 3000 if options.quick else 20000)
    if "warm_load_ratio" in wanted:
        rows |= first_result(options.ir, rounds)
    figures = {row.key: rows[row.key]["value"] for row in ROWS if row.key in wanted}
    for row in ROWS:
        if row.key in wanted:
            print(f"{row.key:30s} {figures[row.key]:8.3f}   must be {row.limit}", file=sys.stderr)
    details = {key: value for key, value in rows.items() if key in wanted or key == "benchmark_app"}
    environment = {"openvino": ov.__version__, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    print(json.dumps({**figures, "rounds": rounds, "rows": details, "environment": environment}, indent=2))


def throughput(ir: Path, rounds: int, seconds: float) -> dict[str, dict[str, object]]:
    """Frames through `map` against benchmark_app, which feeds ready tensors."""
    rng = np.random.default_rng(0)
    frames = {
        "map_vs_benchmark_app": rng.integers(0, 256, (16, 160, 160, 3), np.uint8),
        "map_resize_vs_benchmark_app": rng.integers(0, 256, (16, 480, 640, 3), np.uint8),
    }
    formats = {"map_vs_benchmark_app": ImageFormat(), "map_resize_vs_benchmark_app": ImageFormat(size=(480, 640))}
    embedders = {key: Embedder.load(ir, image_format=formats[key]) for key in frames}
    first = embedders["map_vs_benchmark_app"]
    height, width = first.contract.input_size
    settings = {"streams": first.execution.streams, "requests": first.execution.optimal_requests}
    measured: dict[str, list[Cost]] = {key: [] for key in ("benchmark_app", *frames)}
    app: dict[str, object] = {}
    for _ in range(rounds):
        cost, app = benchmark_app(ir, first.contract.input_shape(1), seconds)
        measured["benchmark_app"].append(cost)
        for key, embedder in embedders.items():
            measured[key].append(mapped(embedder, frames[key], seconds))
    for embedder in embedders.values():
        embedder.close()
    rows: dict[str, dict[str, object]] = {
        "benchmark_app": {**app, **_costs(measured["benchmark_app"]), "input": [height, width]}
    }
    for key in frames:
        ratio = _ratios(measured["benchmark_app"], measured[key])
        rows[key] = {"value": ratio["wall"], "judge": "wall", "ratios": ratio, **settings, **_costs(measured[key])}
    return rows


def mapped(embedder: Embedder, frames: np.ndarray, seconds: float) -> Cost:
    """Run `map` for some seconds, after a start that is not counted."""
    results = embedder.map(itertools.cycle(frames))
    for _ in range(embedder.capacity):
        next(results)
    end, count = time.perf_counter() + seconds, 0
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() < end:
        next(results)
        count += 1
    cost = Cost((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count)
    results.close()
    return cost


def benchmark_app(ir: Path, shape: tuple[int, ...], seconds: float) -> tuple[Cost, dict[str, object]]:
    """OpenVINO's own figure; its CPU time is taken from the line that says that measuring begins to its end."""
    command = [
        *(str(Path(sys.executable).with_name("benchmark_app")), "-m", str(ir), "-d", "CPU"),
        *("-hint", "throughput", "-t", str(max(1, round(seconds))), "-shape", str(list(shape)).replace(" ", "")),
    ]
    cpu = [0.0, 0.0]
    said: dict[str, str] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "First inference took" in line:
                cpu[0] = _cpu_of(process.pid)
            elif "Count:" in line:
                cpu[1] = _cpu_of(process.pid)
            for name in ("Throughput:", "Count:", "NUM_STREAMS:", "OPTIMAL_NUMBER_OF_INFER_REQUESTS:"):
                if name in line:
                    said[name] = line.split(name)[1].split()[0]
    if process.returncode or "Throughput:" not in said:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    cost = Cost(1 / float(said["Throughput:"]), (cpu[1] - cpu[0]) / int(said["Count:"]))
    return cost, {"streams": said.get("NUM_STREAMS:"), "requests": said.get("OPTIMAL_NUMBER_OF_INFER_REQUESTS:")}


def latency(ir: Path, rounds: int, calls: int) -> dict[str, dict[str, object]]:
    """`embed` of one crop and a bare `infer` on the same compiled model, call by call in turn."""
    from edgeface.runtime import default_plan

    crop = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    with Embedder.load(ir, plan=default_plan("CPU", hint="LATENCY")) as embedder:
        # The compiled model is the engine's own business; only its cost is compared here.
        engine = embedder._generations[-1].serving
        assert isinstance(engine, Engine)
        request = engine._schedule.slots[0]._active.get_compiled_model().create_infer_request()
        sides: dict[str, tuple[Callable[[], object], list[Cost]]] = {
            "bare": (lambda: request.infer([crop[np.newaxis]])[0], []),
            "embed": (lambda: embedder.embed(crop), []),
        }
        for call, _ in sides.values():
            call()
        for _ in range(rounds):
            taken: dict[str, list[Cost]] = {name: [] for name in sides}
            for _, (name, (call, _)) in itertools.product(range(calls), sides.items()):
                taken[name].append(_timed(call, 1))
            for name, (_, costs) in sides.items():
                costs.append(_median(taken[name]))
    bare, ours = sides["bare"][1], sides["embed"][1]
    overhead = statistics.median(1e3 * (b.wall - a.wall) for a, b in zip(bare, ours, strict=True))
    return {
        "embed_overhead_ms": {
            "value": round(overhead, 4),
            "judge": "wall",
            "fraction": round(overhead / (1e3 * _median(bare).wall), 5),
            "cpu_overhead_ms": round(
                statistics.median(1e3 * (b.cpu - a.cpu) for a, b in zip(bare, ours, strict=True)), 4
            ),
            "bare": _costs(bare),
            "embed": _costs(ours),
        }
    }


def engine_cpu(rounds: int, requests: int) -> dict[str, dict[str, object]]:
    """The engine, and an AsyncInferQueue whose callback copies the output, on one Relu of 16 numbers."""
    x = ops.parameter([1, 16], np.float32)
    core = ov.Core()
    compiled = core.compile_model(ov.Model([ops.relu(x)], [x], "relu"), "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    item = np.random.default_rng(0).standard_normal(16).astype(np.float32)

    with Engine(compiled, requests=_SMALL_REQUESTS) as engine:

        def ours() -> None:
            window: deque[Future[np.ndarray]] = deque()  # answers are taken as they come; nobody keeps thousands
            for _ in range(requests):
                window.append(engine.submit(item))
                if len(window) > _WINDOW:
                    window.popleft().result()
            for future in window:
                future.result()

        def through_map() -> None:
            for _ in engine.map(itertools.repeat(item, requests)):
                pass

        def bare() -> None:
            results: list[np.ndarray] = []
            queue = ov.AsyncInferQueue(compiled, _SMALL_REQUESTS)
            queue.set_callback(lambda request, _: results.append(request.get_output_tensor().data.copy()))
            batch = item[np.newaxis]
            for _ in range(requests):
                queue.start_async(batch)
            queue.wait_all()

        sides: dict[str, tuple[Callable[[], None], list[Cost]]] = {
            "bare": (bare, []),
            "submit": (ours, []),
            "map": (through_map, []),
        }
        for _ in range(rounds):
            for call, costs in sides.values():
                costs.append(_timed(call, requests))
    base = sides["bare"][1]
    ratios = {name: _ratios(costs, base) for name, (_, costs) in sides.items()}
    return {
        "engine_cpu_ratio": {
            "value": ratios["submit"]["cpu"],
            "judge": "cpu",
            "ratios": ratios,
            **{name: _costs(costs) for name, (_, costs) in sides.items()},
        }
    }


_FIRST = """
import sys, time
from pathlib import Path
import numpy as np
from edgeface.runtime import Embedder
ir, cache = sys.argv[1:]
crop = np.zeros((160, 160, 3), np.uint8)
wall, cpu = time.perf_counter(), time.process_time()
embedder = Embedder.load(ir, cache_dir=Path(cache) if cache else None)
embedder.embed(crop)
print(time.perf_counter() - wall, time.process_time() - cpu, embedder.execution.loaded_from_cache)
embedder.close()
"""


def first_result(ir: Path, rounds: int) -> dict[str, dict[str, object]]:
    """Time to the first embedding in a new process: an empty cache, a warm one, none."""
    costs: dict[str, list[Cost]] = {"cold": [], "warm": [], "no_cache": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="edgeface-bench-") as folder:
            for name, cache, hit in (("cold", folder, "False"), ("warm", folder, "True"), ("no_cache", "", "False")):
                command = [sys.executable, "-c", _FIRST, str(ir), cache]
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
                wall, cpu, found = done.stdout.split()
                assert found == hit, f"{name}: loaded_from_cache is {found}"
                costs[name].append(Cost(float(wall), float(cpu)))
    ratio = _ratios(costs["cold"], costs["warm"])
    return {
        "warm_load_ratio": {
            "value": ratio["wall"],
            "judge": "wall",
            "ratios": ratio,
            "no_cache_to_warm": _ratios(costs["no_cache"], costs["warm"]),
            **{name: _costs(each) for name, each in costs.items()},
        }
    }


def _timed(call: Callable[[], object], requests: int) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost((time.perf_counter() - wall) / requests, (time.process_time() - cpu) / requests)


def _median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(c.wall for c in costs), statistics.median(c.cpu for c in costs))


def _ratios(numerator: list[Cost], denominator: list[Cost]) -> dict[str, float]:
    """Median over the rounds of the ratio within a round."""
    pairs = list(zip(numerator, denominator, strict=True))
    return {
        "wall": round(statistics.median(a.wall / b.wall for a, b in pairs), 4),
        "cpu": round(statistics.median(a.cpu / b.cpu for a, b in pairs), 4),
    }


def _costs(costs: list[Cost]) -> dict[str, object]:
    return {
        "wall_ms": round(1e3 * _median(costs).wall, 4),
        "cpu_ms": round(1e3 * _median(costs).cpu, 4),
        "wall_ms_rounds": [round(1e3 * c.wall, 4) for c in costs],
        "cpu_ms_rounds": [round(1e3 * c.cpu, 4) for c in costs],
    }


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    main()
