"""Write an evaluation as JSON and as one self-contained HTML page: no network, no script, plots as inline SVG."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.drawing import write_page
from edgeface.evaluate import plots
from edgeface.evaluate.faces import FaceCutter
from edgeface.evaluate.identification import IdentificationEvaluation
from edgeface.evaluate.lfw import Result
from edgeface.evaluate.liveness import BONA_FIDE, LivenessEvaluation, Presentation, misjudged
from edgeface.files import write_atomically
from edgeface.vision.image import Image, read_image
from edgeface.vision.liveness import crop_region

_WORST = 10
"""Number of pairs of each kind that the report shows."""


class WorstPair(NamedTuple):
    """One of the pairs with the worst scores: image names, crops as data URIs, score, and whether it is an error."""

    first: str
    second: str
    crops: tuple[str, str]
    score: float
    wrong: bool


def write_results(result: Result | IdentificationEvaluation | LivenessEvaluation, folder: Path) -> None:
    """Write report.html and evaluation.json, identification.json or liveness.json; raise OutputError if that fails."""
    if isinstance(result, Result):
        name = "evaluation"
        write_report(result, folder / "report.html")
    elif isinstance(result, LivenessEvaluation):
        name = "liveness"
        write_liveness_report(result, folder / "report.html")
    else:
        name = "identification"
        write_identification_report(result, folder / "report.html")
    with write_atomically(folder / f"{name}.json", private=True) as partial:  # it names images, which name people
        partial.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")


def write_report(result: Result, path: Path) -> None:
    """Write the HTML report of an evaluation on labelled pairs."""
    evaluation = result.evaluation
    distances, same, threshold = evaluation.distances, evaluation.same, evaluation.threshold
    reduced = {each.pixels: each.evaluation.accuracy for each in result.low_resolution}
    if reduced:  # the whole crop ends the curve
        reduced |= {min(result.embedded.contract.input_size): evaluation.accuracy}
    write_page(
        path,
        __package__,
        private=True,
        contract=result.embedded.contract,
        result=result,
        evaluation=evaluation,
        plots=(
            plots.histogram_plot(distances, same, threshold, metric=evaluation.metric),
            plots.roc_plot(evaluation.roc),
            plots.det_plot(evaluation.roc),
            *((plots.resolution_plot({"": reduced}),) if reduced else ()),
        ),
        genuine=worst_pairs(result, same=True),
        impostor=worst_pairs(result, same=False),
        misjudged=int(((distances < threshold) != same).sum()),
    )


def write_identification_report(result: IdentificationEvaluation, path: Path) -> None:
    """Write the HTML report of an open-set evaluation."""
    split, searches, threshold = result.split, result.searches, result.operating[0].threshold.value
    own = split.enrolled[np.searchsorted(split.people[split.enrolled], split.people[split.mated])]
    missed = (searches.mate_rank > 1) | (searches.mate_score <= threshold)
    lowest = np.argsort(searches.mate_score, kind="stable")
    highest = np.argsort(-searches.candidate_score, kind="stable")
    names = [str(PurePosixPath(image).with_suffix("")) for image in result.images]
    cutter = result.embedded.cutter
    write_page(
        path,
        __package__,
        private=True,
        template="identification.html.j2",
        contract=result.embedded.contract,
        result=result,
        answer=result.to_dict(),
        plots=(plots.scores_plot(searches, threshold), plots.identification_plot(searches), plots.cmc_plot(searches)),
        missed=_show(names, cutter, split.mated, own, searches.mate_score, missed, lowest[:_WORST]),
        mistaken=_show(
            names,
            cutter,
            split.nonmated,
            split.enrolled[searches.candidate],
            searches.candidate_score,
            searches.candidate_score > threshold,
            highest[:_WORST],
        ),
    )


def write_liveness_report(result: LivenessEvaluation, path: Path) -> None:
    """Write the HTML report of an evaluation of liveness models."""
    live = result.bona_fide.scores
    attacks = np.concatenate([np.empty(0), *(each.scores for each in result.attacks)])
    shown = [
        [_presented(name, each, result.threshold) for name, each in misjudged(result, attacks=attacks, count=_WORST)]
        for attacks in (False, True)
    ]
    write_page(
        path,
        __package__,
        private=True,
        template="liveness.html.j2",
        answer=result.to_dict(),
        plots=(plots.liveness_plot(live, attacks, result.threshold),) if len(live) and len(attacks) else (),
        lowest=shown[0],
        highest=shown[1],
    )


def _presented(species: str, presentation: Presentation, threshold: float) -> dict[str, Any]:
    """Describe one presentation: its face with half of a side around it, as a data URI."""
    assert presentation.answer is not None
    assert presentation.box is not None
    region, _ = crop_region(presentation.box, (image := read_image(presentation.path)).shape[:2], 2.0)
    picture = cv2.resize(image[region], (112, 112), interpolation=cv2.INTER_AREA)
    score = presentation.answer.score
    return {
        "species": species,
        "name": presentation.path.name,
        "score": score,
        "wrong": (score > threshold) != (species == BONA_FIDE),
        "picture": _encode(np.asarray(picture, np.uint8)),
    }


def worst_pairs(result: Result, *, same: bool, count: int = _WORST) -> list[WorstPair]:
    """Return the genuine pairs with the greatest, or the impostor pairs with the least distances, worst first."""
    evaluation, pairs = result.evaluation, result.pairs
    rows = np.flatnonzero(evaluation.same == same)
    order = np.argsort(evaluation.distances[rows] * (-1 if same else 1), kind="stable")
    return _show(
        pairs.images,
        result.embedded.cutter,
        pairs.first[evaluation.tested],
        pairs.second[evaluation.tested],
        evaluation.distances,
        (evaluation.distances < evaluation.threshold) != evaluation.same,
        rows[order[:count]],
    )


def _show(
    names: Sequence[str],
    cutter: FaceCutter,
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    scores: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    chosen: NDArray[np.intp],
) -> list[WorstPair]:
    """Cut the crops of the chosen pairs of images `first` and `second`."""
    shown = []
    for row in chosen:
        ends = int(first[row]), int(second[row])
        left, right = (_data_uri(cutter, index) for index in ends)
        shown.append(WorstPair(names[ends[0]], names[ends[1]], (left, right), float(scores[row]), bool(wrong[row])))
    return shown


def _data_uri(cutter: FaceCutter, index: int) -> str:
    return _encode(cutter.crop(index))


def _encode(crop: Image) -> str:
    _, encoded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
