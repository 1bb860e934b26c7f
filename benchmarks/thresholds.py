"""Calibrate the thresholds that ship for a model, and check its search thresholds against searches. Prints JSON.

    python benchmarks/thresholds.py --model IR... [--cache FOLDER] [--ship FOLDER]

All pairs of the 7,700 LFW images of the official list in which the reference detector finds a face are compared, in
FP32. `--ship` writes the thresholds as edgeface/recognize/thresholds has them. The search thresholds made of them are
then tried in galleries of ten sizes: one image of each enrolled person, searched with the other images of these
people and with all people of one image. Both the thresholds and the searches are LFW's, so the table tests the
formula, not how thresholds carry over to other photos. A compressed model's rates are also measured at the thresholds
that ship for its parent.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lfw import DATA, Cache, settings_of

from edgeface.evaluate.faces import FaceCutter, FaceSource, find_images, load_boxes
from edgeface.evaluate.identification import Searches, Split, search, split_people
from edgeface.evaluate.pairs import read_pairs
from edgeface.recognize.known import RATES, shipped_thresholds
from edgeface.recognize.metrics import Metric, pairwise
from edgeface.recognize.open_set import threshold_from_pairs, threshold_from_probes
from edgeface.recognize.threshold import SHIPPED_ON, Threshold, calibrate, save_thresholds
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import DevicePlan

FPIRS = (0.01, 0.001)
SIZES = (10, 20, 50, 100, 200, 400, 700, 1000, 1300, 1559)
DRAWS = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", required=True, metavar="IR")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="embeddings of an interrupted run")
    parser.add_argument("--ship", type=Path, metavar="FOLDER", help="where to write CONTRACT_ID.json")
    options = parser.parse_args()
    answers = [measure(model, options.cache, options.ship) for model in options.model]
    text = json.dumps({"benchmark": "thresholds", "models": answers})
    print(re.sub(r'([\[,]) ?(\{"(?:far|enrolled|name)")', r"\1\n\2", text))


def measure(model: Path, cache: Path | None, folder: Path | None) -> dict[str, Any]:
    """Calibrate one model, and try its thresholds."""
    names = read_pairs(DATA / "lfw" / "pairs.txt").images
    with Embedder.load(model, plan=DevicePlan(device="CPU", precision="f32")) as embedder:
        contract = embedder.contract
        boxes = FaceSource(load_boxes(DATA / "lfw" / "mtcnn_reference.npz"))
        cutter = FaceCutter(find_images(DATA / "lfw" / "images", names), names, contract, boxes)
        kept = Cache(embedder, cache / f"{contract.contract_id}.npz" if cache else None)
        vectors = kept.embed(cutter, contract.name)
        settings = settings_of(embedder)
    found = ~np.isin(names, cutter.failures)
    people_names, people = np.unique([name.split("/")[0] for name in np.array(names)[found]], return_inverse=True)
    order = np.argsort(people, kind="stable")
    vectors, people = vectors[found][order], people[order].astype(np.intp)
    genuine, impostor = compare_all(vectors, people)
    thresholds = calibrate(
        genuine,
        impostor,
        fars=RATES,
        contract_id=contract.contract_id,
        metric=Metric.cosine,
        measured_on=SHIPPED_ON,
        created_from=f"{len(genuine):,} genuine and all {len(impostor):,} impostor pairs of {len(vectors):,} LFW "
        f"images in the official pairs (benchmarks/thresholds.py), reference MTCNN, {contract.alignment}, "
        f"{contract.precision} model, FP32 arithmetic",
    )
    if folder:
        ship(folder / f"{contract.contract_id}.json", thresholds)
    answer: dict[str, Any] = {"name": contract.name, "model_precision": contract.precision, **settings}
    answer["verification"] = [
        {"far": each.far, "cosine": round(each.value, 4), "frr": round(each.frr, 4), "supported": each.supported}
        for each in thresholds
    ]
    if contract.lineage:
        answer["at_the_parents_thresholds"] = [
            {
                "far": each.far,
                "measured_far": float(f"{np.mean(impostor > each.value):.3g}"),
                "frr": round(each.frr, 4),
                "measured_frr": round(float(np.mean(genuine <= each.value)), 4),
            }
            for each in shipped_thresholds(contract.lineage.parent_id)
        ]
    return answer | {"searches": list(search_table(vectors, people, people_names.tolist(), thresholds))}


def compare_all(vectors: np.ndarray, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all pairs of one person, and of all pairs of two."""
    genuine, impostor = [], []
    for row in range(0, len(vectors), 256):
        block = slice(row, row + 256)
        scores = pairwise(Metric.cosine, vectors[block], vectors)
        later = np.arange(len(vectors)) > np.arange(row, row + len(scores))[:, None]
        same = people[block, None] == people
        genuine.append(scores[later & same])
        impostor.append(scores[later & ~same])
    return np.concatenate(genuine), np.concatenate(impostor)


def ship(path: Path, thresholds: tuple[Threshold, ...]) -> None:
    """Write a file of thresholds with one line for each."""
    save_thresholds(path, thresholds)
    document = json.loads(path.read_text())
    lines = ",\n".join(f"    {json.dumps(each)}" for each in document.pop("thresholds"))
    head = json.dumps(document, indent=2).removesuffix("\n}")
    path.write_text(f'{head},\n  "thresholds": [\n{lines}\n  ]\n}}\n')


def search_table(
    vectors: np.ndarray, people: np.ndarray, names: list[str], thresholds: tuple[Threshold, ...]
) -> Iterator[dict[str, Any]]:
    """For each size and FPIR: what is predicted, what happens, and what the best threshold for these probes does."""
    for size in SIZES:
        drawn = [draw(vectors, people, names, size, seed) for seed in range(DRAWS)]
        for fpir in FPIRS:
            chosen = threshold_from_pairs(thresholds, fpir=fpir, gallery_size=size)
            decades = [each for each in thresholds if each.assured_far <= 1 - (1 - fpir) ** (1 / size)]
            measured = [each.fpir(chosen.value) for each in drawn]
            best = [
                each.fnir(
                    threshold_from_probes(each.candidate_score, fpir=fpir, gallery_size=size, contract_id="").value
                )
                for each in drawn
            ]
            yield {
                "enrolled": size,
                "fpir": fpir,
                "cosine": round(chosen.value, 4),
                "supported": chosen.supported,
                "measured_fpir": round(float(np.mean(measured)), 5),
                "measured_fpir_of_draws": [round(min(measured), 5), round(max(measured), 5)],
                "predicted_fnir": round(float(chosen.expected_fnir or 0), 4),
                "measured_fnir": round(float(np.mean([each.fnir(chosen.value) for each in drawn])), 4),
                "fnir_with_the_next_decade": round(float(np.mean([each.fnir(decades[0].value) for each in drawn])), 4)
                if decades
                else None,
                "fnir_at_the_probes_own_threshold": round(float(np.mean(best)), 4),
            }


def draw(vectors: np.ndarray, people: np.ndarray, names: list[str], size: int, seed: int) -> Searches:
    """Search a gallery of `size` people, one image of each, drawn at random."""
    whole = split_people(people, names, seed=seed)
    enrolled = np.sort(
        np.random.default_rng(seed).choice(whole.enrolled, min(size, len(whole.enrolled)), replace=False)
    )
    mated = whole.mated[np.isin(people[whole.mated], people[enrolled])]
    return search(vectors, Split(people, enrolled, mated, whole.nonmated))


if __name__ == "__main__":
    main()
