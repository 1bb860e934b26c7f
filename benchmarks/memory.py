"""Does memory stay where it was? Prints JSON.

    python benchmarks/memory.py [--ir IR.xml] [--quick]

Each line runs in a process of its own: resident memory after warm-up and after the load. It holds if the two are
within 2 % or 20 MB of each other, whichever is larger.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.runtime import Embedder, Engine

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops


def main() -> None:
    """Run every line, or the one that a child is told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ir", type=Path, help="an IR with a contract, for the line `embedder`")
    parser.add_argument("--quick", action="store_true", help="a twentieth of everything")
    parser.add_argument("--line", choices=sorted(LINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.line:
        print(json.dumps(LINES[options.line](options.ir, 20 if options.quick else 1)))
        return
    report = {}
    for line in LINES:
        if line == "embedder" and options.ir is None:
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--line", line, *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=True
        )
        report[line] = json.loads(done.stdout)
        print(line, report[line], file=sys.stderr)
    print(json.dumps({**report, "holds": all(each["holds"] for each in report.values())}, indent=2))


def small_model(_: object, divide: int) -> dict[str, object]:
    """200,000 requests through one engine."""
    item = np.ones(16, np.float32)
    with Engine(relu(), requests=4) as engine:

        def serve(requests: int) -> None:
            for _ in engine.map(itertools.repeat(item, requests)):
                pass

        serve(10_000 // divide)
        return growth(lambda: serve(200_000 // divide), requests=200_000 // divide)


def embedder(ir: Path, divide: int) -> dict[str, object]:
    """3,000 crops through FaceNet."""
    crops = np.random.default_rng(0).integers(0, 256, (16, 160, 160, 3), np.uint8)
    with Embedder.load(ir) as loaded:

        def serve(requests: int) -> None:
            for _ in loaded.map(itertools.islice(itertools.cycle(crops), requests)):
                pass

        serve(100)
        return growth(lambda: serve(3000 // divide), requests=3000 // divide)


def cycles(_: object, divide: int) -> dict[str, object]:
    """1,000 times load, one request, close."""
    core = ov.Core()
    item = np.ones(16, np.float32)

    def cycle(times: int) -> None:
        for _ in range(times):
            with Engine(relu(core), requests=2) as engine:
                engine.submit(item).result(60)

    cycle(50)
    return growth(lambda: cycle(1000 // divide), cycles=1000 // divide)


def relu(core: ov.Core | None = None) -> ov.CompiledModel:
    """One operation on 16 numbers."""
    x = ops.parameter([1, 16], np.float32)
    return (core or ov.Core()).compile_model(ov.Model([ops.relu(x)], [x], "relu"), "CPU")


def growth(load: object, **said: int) -> dict[str, object]:
    """Resident memory before and after."""
    before = resident_mb()
    load()  # type: ignore[operator]
    after = resident_mb()
    holds = after - before <= max(20.0, 0.02 * before)
    return {**said, "before_mb": round(before, 1), "after_mb": round(after, 1), "holds": holds}


def resident_mb() -> float:
    """Of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


LINES = {"small_model": small_model, "embedder": embedder, "cycles": cycles}


if __name__ == "__main__":
    main()
