"""How much faster is INT8 than FP32 here, and what keeps it from being more? Prints JSON; a table goes to stderr.

    python benchmarks/precision.py --ir FP32_IR --json [--int8 INT8_IR] [--also NAME=IR ...] [--rounds 7]

Without `--int8`, the FP32 IR is quantized with edgeface's defaults and the crops of `--calibration`. Models take turns
in every round: one image alone (hint LATENCY), then as many as the processor takes (hint THROUGHPUT, each model with
the number of streams that suits it best). Ratios are medians of those within a round. `--also` adds other IRs to the
same rounds: other presets, other recipes.

What keeps INT8 back is looked for in the same run: what products of matrices attain in both precisions, and which
kernel of the runtime executes which share of the work, how fast.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from edgeface.bench.run.rounds import ModelTiming, best_streams, measure_in_turn
from edgeface.quantize.pareto import timing_ratios

DATA = Path(os.environ.get("EDGEFACE_DATA", "../shared/data"))

AIMS = {"throughput_ratio": ">= 2.0", "latency_ratio": "<= 0.5", "cpu_time_ratio": "", "file_ratio": "<= 0.27"}


def main() -> None:
    """Measure, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ir", type=Path, required=True, help="FP32 IR with a contract")
    parser.add_argument("--int8", type=Path, help="the same, quantized; else it is made here")
    parser.add_argument("--also", metavar="NAME=IR", action="append", default=[])
    parser.add_argument("--calibration", type=Path, default=DATA / "lfw" / "calibration")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.2, help="of one measurement")
    parser.add_argument("--streams", type=int, help="of throughput; else what suits each model best")
    parser.add_argument("--json", action="store_true", help="print JSON (always does; kept for uniformity)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeface-precision-") as folder:
        int8 = options.int8 or quantized(options.ir, options.calibration, Path(folder) / options.ir.name)
        models = {"fp32": options.ir, "int8": int8}
        models |= {name: Path(path) for name, path in (each.split("=", 1) for each in options.also)}
        cores = len(os.sched_getaffinity(0))
        if options.streams:
            streams = dict.fromkeys(models, options.streams)
        else:
            streams = best_streams(models, sorted({1, cores}))  # the CPU takes no more streams than cores
        timed = measure_in_turn(models, rounds=options.rounds, seconds=options.seconds, streams=streams)
        figures = {name: compared(timed["fp32"], each) for name, each in timed.items() if name != "fp32"}
        for name, path in models.items():
            if name != "fp32":
                figures[name]["file_ratio"] = round(file_bytes(path) / file_bytes(options.ir), 4)
        answer = {
            "benchmark": "precision",
            **figures["int8"],
            "models": {name: each.to_dict() for name, each in timed.items()},
            "also": {name: each for name, each in figures.items() if name != "int8"},
            "why": why({name: models[name] for name in ("fp32", "int8")}),
            "settings": {"rounds": options.rounds, "seconds": options.seconds, "batch": 1, "streams": streams},
            **environment(),
        }
    print_table(answer)
    print(json.dumps(answer, indent=2))


def quantized(ir: Path, calibration: Path, path: Path) -> Path:
    """Quantize as `edgeface quantize` does by default, without its gate."""
    from edgeface.model.contract import ModelContract
    from edgeface.quantize.calibration import gather, to_inputs
    from edgeface.quantize.compress import QuantizationRecipe, compress
    from edgeface.vision.load import load_detector

    model = ov.Core().read_model(ir)
    contract = ModelContract.read_from(model)
    with load_detector("mtcnn") as detector:
        crops = gather(calibration, contract, detector=detector).crops
    made = compress(model, to_inputs(crops, contract), QuantizationRecipe())
    ov.save_model(made, path, compress_to_fp16=False)
    return path


def compared(fp32: ModelTiming, other: ModelTiming) -> dict[str, float]:
    """Medians of the ratios within a round."""
    return {f"{name}_ratio": round(ratio, 4) for name, ratio in timing_ratios(other, fp32).items()}


def file_bytes(ir: Path) -> int:
    """Of .xml and .bin."""
    return ir.stat().st_size + ir.with_suffix(".bin").stat().st_size


def why(models: Mapping[str, Path]) -> dict[str, Any]:
    """What the processor attains in both precisions, and what each kernel made of it: one image, one thread."""
    from edgeface.bench.machine.executed import time_layers
    from edgeface.bench.machine.peak import measure_peak
    from edgeface.bench.reading import known
    from edgeface.bench.run.load import load
    from edgeface.bench.schema import RunSettings

    peak = measure_peak(precisions=("f32", "i8"), threads=1)
    attained = {each: peak.gflops_per_second(each) for each in ("f32", "i8")}
    kernels: dict[str, Any] = {}
    for name, path in models.items():
        asked = RunSettings(scenario="single-stream", device="CPU", threads=1, batch=1)
        with load(path, asked, core=ov.Core()) as loaded:
            layers = known(time_layers(*loaded.profiled(), inferences=40)) or ()
            macs = {each.name: each.macs for each in loaded.benchmark_model.work.layers}
        table: dict[str, dict[str, float]] = {}
        for layer in layers:
            row = table.setdefault(f"{layer.kind} {layer.kernel}", {"layers": 0, "ms": 0.0, "gops": 0.0})
            row["layers"] += 1
            row["ms"] += layer.milliseconds
            row["gops"] += 2e-9 * sum(macs.get(operation, 0) for operation in layer.operations)
        for row in table.values():
            row["gops_per_second"] = round(1e3 * row["gops"] / row["ms"], 1) if row["ms"] else 0.0
            row["ms"], row["gops"] = round(row["ms"], 3), round(row["gops"], 4)
        kernels[name] = dict(sorted(table.items(), key=lambda item: -item[1]["ms"]))
    f32, i8 = attained["f32"], attained["i8"]
    return {
        "attained_gops_per_second_one_thread": attained,
        "attained_ratio": round(i8 / f32, 3) if f32 and i8 else None,
        "kernels_one_thread": kernels,
    }


def environment() -> dict[str, Any]:
    """Versions, the processor with its vector instructions, the load."""
    from edgeface.bench.machine.hardware import read_machine

    versions = {"openvino": ov.__version__}
    try:
        import nncf

        versions["nncf"] = nncf.__version__
    except ModuleNotFoundError:
        pass
    return {"versions": versions, "machine": read_machine().model_dump(mode="json"), "load": os.getloadavg()}


def print_table(answer: Mapping[str, Any]) -> None:
    """The ratios beside what they are to be, and the other models'."""
    for key, aim in AIMS.items():
        others = "".join(f"   {name} {figures[key]:.3f}" for name, figures in answer["also"].items())
        print(f"{key:18s} {answer[key]:7.3f}   aim {aim or '-':8s}{others}", file=sys.stderr)
    why = answer["why"]
    print(
        f"attained by products of matrices, one thread: {why['attained_gops_per_second_one_thread']} GOPS, "
        f"ratio {why['attained_ratio']}",
        file=sys.stderr,
    )
    for name, kernels in why["kernels_one_thread"].items():
        for kernel, row in list(kernels.items())[:4]:
            print(
                f"  {name} {kernel:32s} {row['layers']:4.0f} layers {row['ms']:8.2f} ms "
                f"{row['gops_per_second']:7.1f} GOPS",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
