"""How much of what this machine can attain does a model reach, and which layers hold it back? Prints JSON.

    python benchmarks/roofline.py --ir IR.xml --json [--device CPU] [--batch 1] [--inferences 50]

Everything is measured in one process: the attainable peaks and the memory's bandwidth, then the model's latency,
then its layers' times by the runtime's own profile, then the peaks again. If the two measurements of a peak differ, so
did the machine, and both are in the output. A watch says what else was going on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgeface.bench.machine.disturbance import watch
from edgeface.bench.machine.environment import read_environment
from edgeface.bench.machine.peak import measure_peak
from edgeface.bench.machine.reading import Unknown
from edgeface.bench.roofline import roofline
from edgeface.bench.run.executed import time_layers
from edgeface.bench.run.layers import attainable_seconds
from edgeface.model.flops import count_work

_SLOWEST = 15


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ir", type=Path, required=True, help="an IR or an ONNX file")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--inferences", type=int, default=50)
    options = parser.parse_args()

    core = ov.Core()
    model = core.read_model(options.ir)
    work = count_work(model, batch=options.batch)
    for each in model.inputs:
        shape = each.partial_shape
        if shape[0].is_dynamic:
            shape[0] = options.batch
        model.reshape({each: shape})

    with watch() as watched:
        before = measure_peak(options.device, core=core)
        latencies, cpu = measure_latency(core, model, options.device, options.inferences)
        layers = measure_layers(core, model, options.device, options.inferences)
        after = measure_peak(options.device, core=core)
    executed = () if isinstance(layers, Unknown) else layers
    least = attainable_seconds(work, before, executed, precision="f32")
    result: dict[str, Any] = {
        "model": options.ir.stem,
        "batch": work.batch,
        "gflops_mac2": work.gflops_mac2,
        "gflops_omz": work.gflops_omz,
        "latency_ms": {"p50": statistics.median(latencies), "min": min(latencies)},
        "cpu_ms": cpu,
        "gflops_per_second": work.gflops_mac2 / statistics.median(latencies) * 1e3,
        "efficiency": least and least / statistics.median(latencies) * 1e3,
        "peak": before.model_dump(mode="json"),
        "peak_after": {
            name: after.gflops_per_second(name) for name in after.products if after.gflops_per_second(name)
        },
    }
    if isinstance(layers, Unknown):
        result["layers"] = layers.model_dump()
    else:
        line = roofline(work, layers, before)
        slowest = sorted(line.layers, key=lambda layer: -layer.milliseconds)[:_SLOWEST]
        result["roofline"] = {
            "layers": len(line.layers),
            "milliseconds": line.milliseconds,
            "gflops_per_second": line.gflops_per_second,
            "efficiency": line.efficiency,
            "unmatched": line.unmatched,
            "bound_ms": {
                bound: sum(layer.milliseconds for layer in line.layers if layer.bound == bound)
                for bound in ("compute", "memory")
            },
            "slowest": [layer.model_dump(exclude={"operations"}) for layer in slowest],
        }
    result["disturbance"] = watched.verdict.model_dump()
    result["environment"] = read_environment(watched.moments, core=core).model_dump(mode="json")
    json.dump(result, sys.stdout, indent=1, allow_nan=False)
    print()


def measure_latency(core: ov.Core, model: Any, device: str, inferences: int) -> tuple[list[float], float]:
    """Milliseconds of each inference, one after the other, and CPU milliseconds of one."""
    compiled = core.compile_model(model, device, {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1})
    request = compiled.create_infer_request()
    request.infer(random_inputs(compiled))
    for _ in range(5):
        request.infer()
    times = []
    cpu = time.process_time()
    for _ in range(inferences):
        started = time.perf_counter()
        request.infer()
        times.append((time.perf_counter() - started) * 1e3)
    return times, (time.process_time() - cpu) / inferences * 1e3


def measure_layers(core: ov.Core, model: Any, device: str, inferences: int) -> Any:
    """Times of the executed layers."""
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "PERF_COUNT": True}
    compiled = core.compile_model(model, device, config)
    return time_layers(compiled, random_inputs(compiled), inferences=inferences)


def random_inputs(compiled: Any) -> list[Any]:
    """Numbers from 0 to 255, as pictures have them."""
    random = np.random.default_rng(0)
    return [
        random.integers(0, 255, tuple(port.shape)).astype(port.element_type.to_dtype())
        for port in compiled.inputs
    ]


if __name__ == "__main__":
    main()
