"""Train on LFW's people with many photos, and measure what that gains. Prints JSON.

    python benchmarks/train.py --json --model IR.xml [--seeds 5] [--unfreeze 2] [--only head|octuplet]

``head_accuracy``: a classifier of the people with eight photos or more in the folder of LFW's pairs, on embeddings of
the frozen model, over several divisions of the photos into those that are trained on and those that are held out. The
embeddings exist before the time is taken. `--unfreeze` also trains the model's last blocks with it once, and compares
embedders before and after on the official pairs of people who were not trained on.

``octuplet_gain_at_14`` and ``octuplet_loss_at_full``: what a projection, trained by the octuplet loss on half of the
people with two photos or more, gains on official pairs of other people where the crop of the second photo has 14
pixels, and what it loses where it has all; with paired 95 % intervals. With `--compare` also for other settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.evaluate.faces import FaceSource, load_boxes
from edgeface.train import (
    METRIC_DEFAULT,
    PRESETS,
    HeadSettings,
    MetricSettings,
    gather_people,
    pairs_of_strangers,
    train_head,
    train_metric,
)

DATA = Path(os.environ.get("EDGEFACE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MIN_PHOTOS = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="for uniformity: the answer is JSON in any case")
    parser.add_argument("--model", type=Path, required=True, metavar="IR")
    parser.add_argument("--seeds", type=int, default=5, help="divisions of the photos")
    parser.add_argument("--unfreeze", type=int, default=0, metavar="LAST_BLOCKS")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="crops and embeddings of an earlier run")
    parser.add_argument("--only", choices=["head", "octuplet"], help="measure one of both")
    parser.add_argument("--resolutions", default="14", help="of the copies to train on; 14 among them")
    parser.add_argument("--compare", action="store_true", help="train on the same embeddings with other settings too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeface-train-") as folder:
        people, work = people_with(MIN_PHOTOS, Path(folder) / "people"), Path(folder)
        answer: dict[str, Any] = {"benchmark": "train", "model": options.model.name}
        if options.only != "octuplet":
            answer |= head(options, people, work)
        if options.unfreeze:
            answer["finetuned"] = finetuned(options, people, work)
        if options.only != "head":
            answer |= octuplet(options, work)
    print(json.dumps(answer, indent=2))


def people_with(photos: int, folder: Path) -> Path:
    """Link the folders of the people with so many photos of LFW's pairs."""
    folder.mkdir(parents=True)
    for person in sorted((DATA / "lfw" / "images").iterdir()):
        if len(list(person.iterdir())) >= photos:
            (folder / person.name).symlink_to(person)
    return folder


def reference_faces() -> FaceSource:
    """The boxes of the reference detector."""
    return FaceSource(load_boxes(DATA / "lfw" / "mtcnn_reference.npz"), None, "reference MTCNN")


def head(options: argparse.Namespace, people: Path, work: Path) -> dict[str, Any]:
    """Train a head for each division, on embeddings that exist."""
    cache = options.cache or work / "cache"
    faces = reference_faces()
    gathered = gather_people(people, options.model, faces, min_photos=MIN_PHOTOS, cache=cache)
    rows, difference = [], 0.0
    for seed in range(options.seeds):
        started, output = cpu_seconds(), work / f"head{seed}"
        done = train_head(
            people,
            output,
            options.model,
            faces,
            settings=HeadSettings(min_photos=MIN_PHOTOS),
            optimisation=dataclasses.replace(PRESETS["linear"], seed=seed),
            cache=cache,
        )
        spent = cpu_seconds() - started
        assert done.ir is not None
        difference = max(
            difference, embedding_difference(options.model, done.ir, gathered.crops[:64], gathered.contract)
        )
        rows.append(
            {
                "seed": seed,
                "right": int(np.sum(done.judgement.answers == done.judgement.truth)),
                "held_out": len(done.judgement.truth),
                "calibration_error": round(done.judgement.calibration_error, 4),
                "epochs": len(done.history.epochs),
                "cpu_seconds": round(spent, 2),
            }
        )
    return {
        "head_accuracy": round(sum(row["right"] for row in rows) / sum(row["held_out"] for row in rows), 5),
        "head_cpu_seconds": max(row["cpu_seconds"] for row in rows),
        "head_embedding_difference": difference,
        "photos": len(gathered),
        "people": list(gathered.names),
        "divisions": rows,
    }


def embedding_difference(before: Path, after: Path, crops: np.ndarray, contract: Any) -> float:
    """Largest difference of a component between the embeddings of two IRs, in FP32."""
    from edgeface.model.ir_file import read_ir
    from edgeface.quantize.calibration import to_inputs
    from edgeface.quantize.gate import embed

    inputs = to_inputs(crops, contract)
    return float(np.abs(embed(read_ir(before), inputs) - embed(read_ir(after), inputs)).max())


def finetuned(options: argparse.Namespace, people: Path, work: Path) -> dict[str, Any]:
    """Train the last blocks too, and verify people who were not trained on before and after."""
    faces = reference_faces()
    started, clock = cpu_seconds(), time.perf_counter()
    done = train_head(
        people,
        work / "finetuned",
        options.model,
        faces,
        settings=HeadSettings(min_photos=MIN_PHOTOS, unfreeze=options.unfreeze),
        strangers=pairs_of_strangers("lfw", people),
        force=True,
        cache=options.cache or work / "cache",
    )
    return {
        "unfrozen_blocks": options.unfreeze,
        "accuracy": done.judgement.accuracy,
        "verification": done.to_dict()["verification"],
        "reasons": list(done.reasons),
        "cpu_seconds": round(cpu_seconds() - started, 1),
        "wall_seconds": round(time.perf_counter() - clock, 1),
    }


COMPARED: dict[str, dict[str, Any]] = {
    "one hidden layer": {"hidden": 512},
    "not kept near the identity": {"keep": 0.0},
    "kept nearer": {"keep": 5.0},
    "pulled to the full photo's": {"pull": 1.0},
    "between resolutions only": {"terms": (0.0, 1.0, 1.0, 0.0)},
    "margin 1": {"margin": 1.0},
}
"""Settings that differ from the default ones."""


def octuplet(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train a projection for low resolution on half of the people, and verify the others."""
    folder = work / "half"
    folder.mkdir()
    found = [each for each in sorted((DATA / "lfw" / "images").iterdir()) if len(list(each.iterdir())) >= 2]
    for place in np.random.default_rng(0).permutation(len(found))[: len(found) // 2]:
        (folder / found[place].name).symlink_to(found[place])
    strangers = pairs_of_strangers("lfw", folder)
    started, clock = cpu_seconds(), time.perf_counter()
    resolutions = tuple(int(each) for each in options.resolutions.split(","))
    rows: list[dict[str, Any]] = []
    for title, changed in {"default": {}, **(COMPARED if options.compare else {})}.items():
        done = train_metric(
            folder,
            work / f"octuplet{len(rows)}",
            options.model,
            reference_faces(),
            settings=MetricSettings(resolutions=resolutions, **changed),
            optimisation=METRIC_DEFAULT,
            strangers=strangers,
            force=True,
            cache=options.cache or work / "cache",
        )
        rows.append(
            {
                "settings": title,
                "accuracy": {
                    str(pixels): {
                        "before": round(change.accuracy.before, 5),
                        "after": round(change.accuracy.after, 5),
                        "gain": round(-change.accuracy.drop, 5),
                        "interval": [round(-end, 5) for end in reversed(change.accuracy.interval)],
                    }
                    for pixels, change in done.changes.items()
                },
                "epochs": len(done.history.epochs),
                "training_seconds": round(done.history.seconds, 1),
                "cpu_seconds": round(cpu_seconds() - started, 1),
                "wall_seconds": round(time.perf_counter() - clock, 1),
            }
        )
        started, clock = cpu_seconds(), time.perf_counter()
    low, full = rows[0]["accuracy"]["14"], rows[0]["accuracy"][str(min(done.contract.input_size))]
    return {
        "octuplet_gain_at_14": low["gain"],
        "octuplet_gain_at_14_interval": low["interval"],
        "octuplet_loss_at_full": -full["gain"],
        "octuplet_loss_at_full_interval": [-end for end in reversed(full["interval"])],
        "octuplet_people": len(done.faces.names),
        "octuplet_photos": len(done.faces),
        "octuplet_pairs": len(strangers.pairs),
        "octuplet_settings": rows,
    }


def cpu_seconds() -> float:
    """CPU time of this process and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
