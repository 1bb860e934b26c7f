"""`edgeface quantize` as a user runs it: time, memory, what it costs in accuracy, and whether it does so again.

Every run is a process of its own, seen from outside: wall time, CPU time of all its threads, peak resident memory.
The .xml and .bin of the runs are compared by their SHA-256.

    python benchmarks/quantize.py --ir models/facenet-20180408-102900.xml --calibration lfw/calibration
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeface.files import sha256_of


def run(ir: Path, calibration: Path, folder: Path, extra: list[str]) -> dict[str, object]:
    """Quantize once; return what the command said and what it took."""
    command = [sys.executable, "-m", "edgeface", "quantize", str(ir), "--calibration", str(calibration)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "-o", str(folder), "--json", *extra], stdout=subprocess.PIPE)
    answer = json.load(process.stdout)  # type: ignore[arg-type]
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    digests = {}
    if answer.get("ir"):
        path = Path(answer["ir"])
        digests = {end: sha256_of(path.with_suffix(end)) for end in (".xml", ".bin")}
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "sha256": digests,
        "answer": {
            key: answer.get(key)
            for key in ("contract_id", "method", "settings", "reasons", "fidelity", "bytes", "seconds", "calibration")
        },
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ir", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("extra", nargs="*", help="more options of the command, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run(options.ir, options.calibration, Path(folder, str(number)), options.extra)
            for number in range(options.runs)
        ]
    digests = [each["sha256"] for each in runs]
    same = {end: len({each.get(end) for each in digests}) == 1 for end in (".xml", ".bin")}  # type: ignore[attr-defined]
    print(json.dumps({"deterministic": same, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
