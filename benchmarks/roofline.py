"""How much of what this machine can attain does a model reach, and which layers hold it back? Prints JSON.

    python benchmarks/roofline.py --ir IR.xml --json [--device CPU] [--batch 1] [--seconds 10] [--precision f32]
        [--threads 1] [--passes 100] [--rounds 9]

The figures are those of ``edgeface bench run``, one stream and one inference at a time. The peaks are measured before
and after the model; if the two differ, so did the machine, and both are in the output. Layers have the
medians of 20 inferences; with `--passes` the fastest of so many more, which other work on the machine disturbs least,
above all with one thread. Besides one by one, they are told by the side of their output, which names the part of a
network, and by their kernels. `--precision` is the hint of
inference; a device that computes in another one instead says so. With `--rounds`, CPU milliseconds an image on one
thread are told too, of each hint and of batches of 1 and 4, which take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface.bench.machine.peak import PRECISIONS, Peak, measure_peak
from edgeface.bench.reading import known
from edgeface.bench.run.load import load
from edgeface.bench.run.runner import DEFAULTS, benchmark
from edgeface.bench.schema import LayerTiming, RunSettings

_SLOWEST, _TURNS = 15, 12


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ir", type=Path, required=True, help="an IR or an ONNX file")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], help="of inference; by default the device's own")
    parser.add_argument("--threads", type=int, help="by default the device's own")
    parser.add_argument("--passes", type=int, default=0, help="inferences of which each layer's fastest is taken")
    parser.add_argument("--rounds", type=int, default=0, help="of the comparison of hints and batches")
    options = parser.parse_args()
    before = best_peak(options)
    settings = DEFAULTS.model_copy(
        update={
            "device": options.device,
            "hint": "LATENCY",
            "streams": 1,
            "batch": options.batch,
            "duration_s": options.seconds,
            "precision": options.precision,
            "threads": options.threads,
        }
    )
    result = benchmark(options.ir, settings, peak=before)
    after = best_peak(options)
    layers, shapes = fastest(options.ir, settings, result.layers, options.passes)
    total = sum(layer.ms for layer in layers)
    points = [point(layer, before) | {"shape": shapes.get(layer.name)} for layer in layers if layer.ms > 0]
    answer = {
        "model": result.model.name,
        "batch": options.batch,
        "precision": result.execution.precision,
        "gflops_mac2": result.model.gflops_mac2,
        "gflops_omz": result.model.gflops,
        "latency_ms": {key: result.latency_ms[key] for key in ("p50", "min")},
        "cpu_ms": result.cpu_ms,
        "gflops_per_second": (result.model.gflops_mac2 or 0.0) * options.batch / result.latency_ms["p50"] * 1e3,
        "efficiency": result.efficiency,
        "peak": before.model_dump(mode="json"),
        "peak_after": {name: after.gflops_per_second(name) for name in after.products if after.gflops_per_second(name)},
        "roofline": {
            "layers": len(points),
            "milliseconds": total,
            "gflops_per_second": (result.model.gflops_mac2 or 0.0) * options.batch / total * 1e3 if total else None,
            "bound_ms": {
                bound: sum(each["milliseconds"] for each in points if each["bound"] == bound)
                for bound in ("compute", "memory")
            },
            "by_side": summed(points, lambda each: str((each["shape"] or [None])[-1])),
            "by_kernel": summed(points, lambda each: f"{each['kind']} {each['kernel']}"),
            "slowest": sorted(points, key=lambda each: -each["milliseconds"])[:_SLOWEST],
        },
        "hints": compare_hints(options.ir, options.device, options.rounds) if options.rounds else None,
        "disturbance": {"disturbed": result.disturbed, "reasons": result.disturbances, "unwatched": result.unwatched},
        "environment": None
        if result.environment is None
        else result.environment.model_dump(mode="json", exclude={"identity"}),
    }
    json.dump(answer, sys.stdout, indent=1, allow_nan=False)
    print()


def best_peak(options: argparse.Namespace) -> Peak:
    """Measure the peaks; with passes in short turns, of which the best count, as of the layers."""
    if not options.passes:
        return measure_peak(options.device, threads=options.threads)
    turns = [measure_peak(options.device, threads=options.threads, seconds=0.02) for _ in range(_TURNS)]
    best = {each: max(turns, key=lambda turn: turn.gflops_per_second(each) or 0.0) for each in PRECISIONS}
    products = {each: turn.products[each] for each, turn in best.items()}
    widest = max(turns, key=lambda turn: found.gb_per_second if (found := known(turn.bandwidth)) else 0.0)
    return widest.model_copy(update={"products": products})


def fastest(
    ir: Path, settings: RunSettings, layers: Sequence[LayerTiming], passes: int
) -> tuple[list[LayerTiming], dict[str, list[int]]]:
    """Time the layers again; return each with its shortest time, and the shapes of the layers' outputs by name."""
    with load(ir, settings, core=ov.Core()) as loaded:
        compiled, inputs = loaded.profiled()
        nodes = compiled.get_runtime_model().get_ordered_ops()
        shapes = {node.get_friendly_name(): list(node.output(0).shape) for node in nodes if node.get_output_size()}
        times = {layer.name: layer.ms for layer in layers}
        request = compiled.create_infer_request()
        for _ in range(passes):
            request.infer(inputs)
            for info in request.get_profiling_info():
                if info.status == ov.ProfilingInfo.Status.EXECUTED and info.node_name in times:
                    times[info.node_name] = min(times[info.node_name], info.real_time.total_seconds() * 1e3)
    return [layer.model_copy(update={"ms": times[layer.name]}) for layer in layers], shapes


def compare_hints(ir: Path, device: str, rounds: int) -> list[dict[str, Any]]:
    """Measure CPU milliseconds an image by hint and batch, one thread: medians of rounds in which all take turns."""
    core, turns = ov.Core(), []
    for hint, batch in itertools.product(("f32", "bf16", "f16"), (1, 4)):
        model = core.read_model(ir)
        shape = model.input(0).partial_shape
        shape[0] = batch
        model.reshape(shape)
        compiled = core.compile_model(model, device, {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1})
        executed = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        turns.append(
            ({"hint": hint, "executed": executed, "batch": batch}, compiled.create_infer_request(), list[float]())
        )
    for _ in range(rounds):
        for turn, request, times in turns:
            began = time.process_time()
            for _ in range(4 // turn["batch"]):
                request.infer()
            times.append((time.process_time() - began) * 1e3 / 4)
    return [turn | {"cpu_ms": statistics.median(times)} for turn, _, times in turns]


def summed(points: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> dict[str, dict[str, float]]:
    """Sum milliseconds and work of layers by a key, the longest first."""
    sums: dict[str, dict[str, float]] = {}
    for each in points:
        row = sums.setdefault(key(each), {"layers": 0, "milliseconds": 0.0, "gflops": 0.0})
        row["layers"] += 1
        row["milliseconds"] += each["milliseconds"]
        row["gflops"] += each["gflops"]
    return dict(sorted(sums.items(), key=lambda item: -item[1]["milliseconds"]))


def point(layer: LayerTiming, peak: Peak) -> dict[str, Any]:
    """Place a layer below the roof: min(peak, intensity x bandwidth) (Williams et al., CACM 52 (4), 2009)."""
    gflops, moved = layer.gflops or 0.0, layer.bytes or 0
    precision = "i8" if layer.precision in ("i8", "u8") else str(layer.precision)
    flat = peak.gflops_per_second(precision) or peak.gflops_per_second("f32") or 0.0
    bandwidth = known(peak.bandwidth)
    slope = bandwidth.gb_per_second if bandwidth else float("inf")
    intensity = gflops * 1e9 / moved if moved else 0.0
    computing, moving = (gflops / flat * 1e3 if flat else 0.0), moved / slope / 1e6
    return {
        "name": layer.name,
        "kind": layer.kind,
        "kernel": layer.exec_type,
        "precision": layer.precision,
        "milliseconds": layer.ms,
        "gflops": gflops,
        "bytes": moved,
        "intensity": intensity,
        "gflops_per_second": gflops / layer.ms * 1e3,
        "attainable_gflops_per_second": min(flat, intensity * slope) if bandwidth else flat,
        "share": max(computing, moving) / layer.ms,
        "bound": "memory" if moving > computing else "compute",
    }


if __name__ == "__main__":
    main()
