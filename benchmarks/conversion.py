"""Time a conversion against OpenVINO's plain Frontend route. Prints JSON.

    python benchmarks/conversion.py [--pb FILE] [--weights FILE.npz] [--rounds 5]

Both convert the same frozen training graph to an IR on disk, each in a process of its own, in turn. Ours also folds
preprocessing in, writes the contract and checks the saved IR in a second process; the plain route does neither.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _run import medians, run

_PLAIN = """
import sys
import numpy as np
import openvino as ov
from openvino.frontend import FrontEndManager

source, target = sys.argv[1:]
frontend = FrontEndManager().load_by_framework("tf")
model = frontend.load(source)
image, phase = (model.get_place_by_tensor_name(name) for name in ("image_batch:0", "phase_train:0"))
model.override_all_inputs([image, phase])
model.set_partial_shape(image, ov.PartialShape([-1, 160, 160, 3]))
model.set_partial_shape(phase, ov.PartialShape([]))
model.set_element_type(phase, ov.Type.boolean)
model.set_tensor_value(phase, np.array(False))
model.override_all_outputs([model.get_place_by_tensor_name("embeddings:0")])
ov.save_model(frontend.convert(model), target, compress_to_fp16=False)
"""
"""The Frontend route of OpenVINO's own documentation: override inputs, freeze `phase_train`, convert."""

_DEFAULT_WEIGHTS = Path(os.environ.get("EDGEFACE_DATA", "../shared/data"), "facenet-20180408-102900", "weights.npz")


def main() -> None:
    """Alternate the two and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pb", type=Path, help="frozen FaceNet; by default built from --weights")
    parser.add_argument("--weights", type=Path, default=_DEFAULT_WEIGHTS)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeface-bench-") as folder:
        source = options.pb or _build_graph(Path(folder, "facenet.pb"), options.weights)
        ours = [sys.executable, "-m", "edgeface", "convert", str(source), "-o", f"{folder}/ours"]
        plain = [sys.executable, "-c", _PLAIN, str(source), f"{folder}/plain.xml"]
        run(ours), run(plain)  # the first of each reads libraries and the model from disk
        rounds = [(run(ours), run(plain)) for _ in range(options.rounds)]
    ours_runs, plain_runs = zip(*rounds, strict=True)
    print(
        json.dumps(
            {
                "benchmark": "conversion",
                "rounds": options.rounds,
                "edgeface": medians(ours_runs),
                "frontend": medians(plain_runs),
                "wall_ratio": round(statistics.median(b.wall_seconds / a.wall_seconds for a, b in rounds), 2),
                "cpu_ratio": round(statistics.median(b.cpu_seconds / a.cpu_seconds for a, b in rounds), 2),
            },
            indent=2,
        )
    )


def _build_graph(target: Path, weights: Path) -> Path:
    arguments = ["--weights", str(weights)] if weights.is_file() else ["--seed", "0"]
    run([sys.executable, "-m", "edgeface.convert.facenet_graph", *arguments, "-o", str(target)])
    return target


if __name__ == "__main__":
    main()
