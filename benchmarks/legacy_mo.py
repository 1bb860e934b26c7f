"""Compare Model Optimizer's IR with ours: embeddings and conversion time. Prints JSON.

    python benchmarks/legacy_mo.py [--weights FILE.npz] [--golden FILE.npz]

Runs in an environment with the extra `omz` (openvino-dev 2024.6.0, the last release that has `mo`), such as the one
that .ci/run makes in .venv-omz. `mo` writes NHWC FP16 with preprocessing folded in as Open Model Zoo's arguments say;
ours is converted to FP16 too. Both embed golden.npz. Then `edgeface adopt` adds a contract to mo's IR.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _run import medians, run

from edgeface.convert import adopt
from edgeface.convert.facenet_graph import read_weights, write_graph
from edgeface.convert.parity import compare, embed_with_ir, load_golden

NAME = "facenet-20180408-102900"
_DATA = Path(os.environ.get("EDGEFACE_DATA", "../shared/data"), NAME)


def main() -> None:
    """Convert with both, compare both with the golden embeddings and with each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=_DATA / "weights.npz")
    parser.add_argument("--golden", type=Path, default=_DATA / "golden.npz")
    options = parser.parse_args()
    images, expected = load_golden(options.golden)
    with tempfile.TemporaryDirectory(prefix="edgeface-bench-") as text:
        folder = Path(text)
        source = write_graph(read_weights(options.weights), folder / f"{NAME}.pb")
        mo_run = run(_mo_command(source, folder / "mo"), timeout=1800)
        our_run = run(
            [sys.executable, "-m", "edgeface", "convert", str(source), "-o", f"{folder}/ours", "--precision", "fp16"]
        )
        adopted = adopt(folder / "mo" / f"{NAME}.xml", folder / "adopted", name=NAME, golden=options.golden)
        mo = embed_with_ir(adopted.ir, images)
        ours = embed_with_ir(folder / "ours" / f"{NAME}.xml", images)
    print(
        json.dumps(
            {
                "benchmark": "legacy_mo",
                "mo": medians([mo_run]),
                "edgeface": medians([our_run]),
                "mo_over_edgeface": round(mo_run.wall_seconds / our_run.wall_seconds, 1),
                "mo_ir": {
                    "layout": adopted.contract.layout,
                    "color": adopted.contract.color,
                    "precision": adopted.contract.precision,
                },
                "mo_against_golden": compare(expected, mo, against="golden", precision="FP16").to_dict(),
                "edgeface_against_golden": compare(expected, ours, against="golden", precision="FP16").to_dict(),
                "edgeface_against_mo": compare(mo, ours, against="mo", precision="FP16").to_dict(),
            },
            indent=2,
        )
    )


def _mo_command(source: Path, target: Path) -> list[str]:
    """Open Model Zoo's arguments for this model (its model.yml), with the legacy frontend."""
    mo = Path(sys.executable).with_name("mo")
    return [
        str(mo),
        f"--input_model={source}",
        f"--output_dir={target}",
        f"--model_name={NAME}",
        "--use_legacy_frontend",
        "--freeze_placeholder_with_value=phase_train->False",
        "--reverse_input_channels",
        "--input_shape=[1,160,160,3],[1]",
        "--input=image_batch,phase_train",
        "--mean_values=image_batch[127.5,127.5,127.5]",
        "--scale_values=image_batch[128.0]",
        "--output=embeddings",
        "--compress_to_fp16=True",
    ]


if __name__ == "__main__":
    main()
