"""How much of what this machine can attain does a model reach, and which layers hold it back? Prints JSON.

    python benchmarks/roofline.py --ir IR.xml --json [--device CPU] [--batch 1] [--seconds 10]

The figures are those of ``edgeface bench run``, one stream and one inference at a time. The peaks are measured before
and after the model; if the two differ, so did the machine, and both are in the output.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edgeface.bench.machine.peak import Peak, measure_peak
from edgeface.bench.reading import known
from edgeface.bench.run.runner import DEFAULTS, benchmark
from edgeface.bench.schema import LayerTiming

_SLOWEST = 15


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ir", type=Path, required=True, help="an IR or an ONNX file")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    before = measure_peak(options.device)
    settings = DEFAULTS.model_copy(
        update={
            "device": options.device,
            "hint": "LATENCY",
            "streams": 1,
            "batch": options.batch,
            "duration_s": options.seconds,
        }
    )
    result = benchmark(options.ir, settings, peak=before)
    after = measure_peak(options.device)
    total = sum(layer.ms for layer in result.layers)
    points = [point(layer, before) for layer in result.layers if layer.ms > 0]
    answer = {
        "model": result.model.name,
        "batch": options.batch,
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
            "slowest": sorted(points, key=lambda each: -each["milliseconds"])[:_SLOWEST],
        },
        "disturbance": {"disturbed": result.disturbed, "reasons": result.disturbances, "unwatched": result.unwatched},
        "environment": None
        if result.environment is None
        else result.environment.model_dump(mode="json", exclude={"identity"}),
    }
    json.dump(answer, sys.stdout, indent=1, allow_nan=False)
    print()


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
