"""Measure how often `--check` finds the recipe that a model was made for. Prints JSON.

    python benchmarks/recipe_check.py NAME=MODEL.xml[:ALIGNMENT] ... [--color RGB]

Each model is an IR with the true recipe; ALIGNMENT replaces its contract's. 360 LFW photos of 120 people, drawn with
a fixed seed, are embedded once under the true recipe and every neighbour. Then 20 draws of people are decided, disjoint
ones where there are enough people. Which recipes are plausible does not depend on which one was told: one draw answers
for each of them being told. `--simulate N` adds N draws of 6 people whose scores under nine equally good recipes differ
by chance only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np

from edgeface.evaluate.recipe_check import (
    RecipeCandidate,
    RecipeCheck,
    compare_recipes,
    cut_candidates,
    embed_candidates,
    find_labelled_faces,
    recipe_candidates,
)
from edgeface.model.contract import Alignment
from edgeface.model.ir_file import read_contract
from edgeface.runtime.devices import shared_core
from edgeface.vision.load import load_detector

DATA = Path(os.environ.get("EDGEFACE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
DRAWS = 20
SHAPES = ((6, 2), (4, 3), (12, 2), (20, 2))
"""People, and photos of each."""


def main() -> None:
    """Measure every model and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL.xml[:ALIGNMENT]")
    parser.add_argument("--color", default="RGB", choices=["RGB", "BGR"])
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--simulate", type=int, default=0, metavar="N")
    options = parser.parse_args()
    names = draw_photos(options.people)
    with load_detector() as detector:
        faces, _ = find_labelled_faces(DATA / "lfw" / "images", names, detector)
    rows = []
    for text in options.models:
        name, _, path = text.partition("=")
        path, _, alignment = path.partition(":")
        model, contract = read_contract(Path(path), core=shared_core())
        if alignment:
            contract = dataclasses.replace(contract, alignment=Alignment.parse(alignment))
        candidates = recipe_candidates(contract, options.color)
        crops, kept, _ = cut_candidates(faces, candidates, contract.input_size)
        vectors = embed_candidates(model, contract, options.color, candidates, crops)
        people = np.array([face.person for face in kept])
        rows += [row(name, candidates, vectors, people, shape) for shape in SHAPES]
    answer = {"benchmark": "recipe_check", "photos": len(faces), "rows": rows}
    if options.simulate:
        answer["false_refusals"] = {"draws": options.simulate, "refused": simulate(options.simulate)}
    print(json.dumps(answer, indent=2))


def draw_photos(people: int) -> list[str]:
    """Draw people with at least three photos, and three photos of each."""
    folders = sorted(each for each in (DATA / "lfw" / "images").iterdir() if len(list(each.iterdir())) >= 3)
    rng = np.random.default_rng(12)
    chosen = rng.permutation(len(folders))[:people]
    return [f"{folders[k].name}/{photo.name}" for k in chosen for photo in sorted(folders[k].iterdir())[:3]]


def row(
    name: str, candidates: list[RecipeCandidate], vectors: list[np.ndarray], people: np.ndarray, shape: tuple[int, int]
) -> dict[str, object]:
    """Decide 20 draws and count: verdicts, and how often each recipe would have been refused if told."""
    count, each = shape
    rows = {person: found for person in dict.fromkeys(people) if len(found := np.flatnonzero(people == person)) >= each}
    rng = np.random.default_rng(count)
    order = list(rng.permutation(list(rows)))
    checks: list[RecipeCheck] = []
    for draw in range(DRAWS):
        disjoint = count * DRAWS <= len(order)
        chosen = order[draw * count : (draw + 1) * count] if disjoint else rng.choice(order, count, replace=False)
        used = np.concatenate([rng.choice(rows[person], each, replace=False) for person in chosen])
        checks.append(compare_recipes(candidates, [own[used] for own in vectors], list(people[used])))
    best = [max(check.scores, key=lambda score: score.separation).candidate for check in checks]
    return {
        "model": name,
        "true": candidates[0].name,
        "neighbours": len(candidates) - 1,
        "people": count,
        "photos": count * each,
        "draws": DRAWS,
        "verdicts": dict(Counter(check.verdict for check in checks)),
        "wrong_picks": sum(not check for check in checks),
        "true_separates_best": sum(found.name in (candidates[0].name, "mirrored") for found in best),
        "refused_if_told": {
            score.candidate.name: sum(not check.scores[k].plausible for check in checks)
            for k, score in enumerate(checks[0].scores)
        },
        "mean_separation": {
            score.candidate.name: round(float(np.mean([check.scores[k].separation for check in checks])), 4)
            for k, score in enumerate(checks[0].scores)
        },
    }


def simulate(draws: int, *, people: int = 6, photos: int = 2, neighbours: int = 8) -> int:
    """Count refusals where no recipe is better: every one adds its own noise to the same embeddings."""
    refused = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        centres = np.repeat(rng.normal(size=(people, 64)), photos, axis=0)
        faces = centres + 0.5 * rng.normal(size=centres.shape)
        noisy = [faces + 0.2 * np.repeat(rng.normal(size=(people, 64)), photos, axis=0) for _ in range(neighbours + 1)]
        told = RecipeCandidate(
            name="told", color="RGB", mean=(0.0, 0.0, 0.0), scale=(1.0, 1.0, 1.0), alignment=Alignment("none")
        )
        names = [str(number) for number in np.repeat(np.arange(people), photos)]
        refused += not compare_recipes([told] * (neighbours + 1), noisy, names)
    return refused


if __name__ == "__main__":
    main()
