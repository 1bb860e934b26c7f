"""How much memory and time does a photo of many pixels take? Prints JSON.

    python benchmarks/photo_memory.py [--detector mtcnn] [--megapixels 0.06 1 4 12 60] [--before CHECKOUT --rounds 3]

Each photo, one of six faces enlarged to its size and saved as JPEG, is read and searched in a process of its own.
Memory is the highest resident memory above what was resident before and above the decoded photo. `--before` measures
another checkout too, turn by turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeface.vision.image import read_image
from edgeface.vision.load import load_detector

DATA = Path(os.environ.get("EDGEFACE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
HERE = Path(__file__).resolve().parents[1]
MODELS = {"mtcnn": DATA / "mtcnn", "yunet": DATA / "yunet" / "yunet_n_dynamic.onnx"}


def main() -> None:
    """Measure every size in children, or one in this child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", choices=sorted(MODELS), default="mtcnn")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.06, 1, 4, 12, 60])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.detector)))
        return
    photo = cv2.imread(str(DATA / "photos" / "multiface.jpg"))
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in options.megapixels:
            path = Path(folder) / f"{megapixels:g}.jpg"
            scale = (megapixels * 1e6 / (photo.shape[0] * photo.shape[1])) ** 0.5
            cv2.imwrite(str(path), cv2.resize(photo, None, fx=scale, fy=scale))
            report[f"{megapixels:g} megapixels"] = compare(path, options)
    print(json.dumps({"detector": options.detector, **report, "load_average": os.getloadavg()[0]}, indent=2))


def compare(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one photo in children, of each checkout in turn; the highest memory and the median times."""
    checkouts = {"now": HERE} | ({"before": options.before} if options.before else {})
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(options.rounds):
        for name, checkout in checkouts.items():
            command = [sys.executable, __file__, "--child", str(path), "--detector", options.detector]
            environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            runs[name].append(json.loads(done.stdout))
    return {
        name: {
            key: round((max if key.endswith("mb") else statistics.median)(run[key] for run in each), 2)
            for key in each[0]
        }
        for name, each in runs.items()
    }


def measure(path: Path, name: str) -> dict[str, float]:
    """Read one photo and find its faces, after one small photo has warmed everything up."""
    with load_detector(name, model=MODELS[name]) as detector:
        detector.detect([np.zeros((60, 60, 3), np.uint8)])
        at_rest = reset_peak_mb()
        photo = read_image(path)
        decoded = photo.nbytes / 2**20
        reading = peak_mb() - at_rest - decoded
        before = reset_peak_mb()
        started, used = time.perf_counter(), time.process_time()
        (faces,) = detector.detect([photo])
        wall, cpu = time.perf_counter() - started, time.process_time() - used
        return {
            "decoded_mb": decoded,
            "reading_mb": reading,
            "detecting_mb": peak_mb() - before,
            "detecting_seconds": wall,
            "detecting_cpu_seconds": cpu,
            "faces": len(faces),
        }


def reset_peak_mb() -> float:
    """Forget the highest resident memory so far (proc(5), clear_refs), and return the memory resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """Highest resident memory of this process."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
