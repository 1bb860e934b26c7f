"""Write an evaluation as one self-contained HTML page: no network, no script, plots as inline SVG."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from edgeface.drawing import write_page
from edgeface.evaluate import plots
from edgeface.evaluate.faces import FaceCutter
from edgeface.evaluate.identification import IdentificationEvaluation
from edgeface.evaluate.lfw import Result
from edgeface.files import write_atomically
from edgeface.vision.image import Image

__all__ = ["WorstPair", "worst_pairs", "write_identification_report", "write_report", "write_results"]

_WORST = 10
"""Number of pairs of each kind that the report shows."""

_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class WorstPair:
    """One of the pairs with the worst scores.

    Attributes
    ----------
    first, second
        Names of the images.
    crops
        The crops that the model saw, as data URIs.
    score
        Score by the metric of the evaluation.
    wrong
        Whether the decision at the threshold is wrong.
    """

    first: str
    second: str
    crops: tuple[str, str]
    score: float
    wrong: bool


def write_results(result: Result | IdentificationEvaluation, folder: Path) -> None:
    """Write evaluation.json (or identification.json) and report.html into a folder.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    if isinstance(result, Result):
        write_report(result, folder / "report.html")
        name = "evaluation.json"
    else:
        write_identification_report(result, folder / "report.html")
        name = "identification.json"
    with write_atomically(folder / name) as partial:
        partial.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")


def write_report(result: Result, path: Path) -> None:
    """Write the report of an evaluation on labelled pairs.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    evaluation = result.evaluation
    write_page(
        path,
        __package__,
        result=result,
        evaluation=evaluation,
        contract=result.embedded.contract,
        failures=result.embedded.cutter.failures,
        plots=(
            plots.histogram_plot(
                evaluation.distances, evaluation.same, evaluation.threshold, metric=evaluation.metric
            ),
            plots.roc_plot(evaluation.roc),
            plots.det_plot(evaluation.roc),
        ),
        genuine=worst_pairs(result, same=True),
        impostor=worst_pairs(result, same=False),
        misjudged=int(((evaluation.distances < evaluation.threshold) != evaluation.same).sum()),
    )


def write_identification_report(result: IdentificationEvaluation, path: Path) -> None:
    """Write the report of an open-set evaluation.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    searches = result.searches
    write_page(
        path,
        __package__,
        template="identification.html.j2",
        result=result,
        answer=result.to_dict(),
        contract=result.embedded.contract,
        failures=result.embedded.cutter.failures,
        plots=(
            plots.scores_plot(searches, result.operating[0].threshold.value),
            plots.identification_plot(searches),
            plots.cmc_plot(searches),
        ),
        missed=_missed(result),
        mistaken=_mistaken(result),
    )


def _missed(result: IdentificationEvaluation, *, count: int = _WORST) -> list[WorstPair]:
    """Return the mated probes with the lowest scores against their own enrolled image, lowest first."""
    split, searches = result.split, result.searches
    own = np.searchsorted(split.people[split.enrolled], split.people[split.mated])
    threshold = result.operating[0].threshold.value
    wrong = (searches.mate_rank > 1) | (searches.mate_score <= threshold)
    order = np.argsort(searches.mate_score, kind="stable")[:count]
    rows = ((split.mated[i], split.enrolled[own[i]], searches.mate_score[i], wrong[i]) for i in order)
    return [_pair(result, *row) for row in rows]


def _mistaken(result: IdentificationEvaluation, *, count: int = _WORST) -> list[WorstPair]:
    """Return the non-mated probes with the highest scores, highest first."""
    split, searches = result.split, result.searches
    scores = searches.candidate_score
    wrong = scores > result.operating[0].threshold.value
    order = np.argsort(-scores, kind="stable")[:count]
    rows = ((split.nonmated[i], split.enrolled[searches.candidate[i]], scores[i], wrong[i]) for i in order)
    return [_pair(result, *row) for row in rows]


def _pair(
    result: IdentificationEvaluation, probe: int, enrolled: int, score: float, wrong: bool
) -> WorstPair:
    return WorstPair(
        str(PurePosixPath(result.images[probe]).with_suffix("")),
        str(PurePosixPath(result.images[enrolled]).with_suffix("")),
        _crops(result.embedded.cutter, int(probe), int(enrolled)),
        float(score),
        bool(wrong),
    )


def worst_pairs(result: Result, *, same: bool, count: int = _WORST) -> list[WorstPair]:
    """Return the genuine pairs with the greatest, or the impostor pairs with the least distances, worst first."""
    evaluation, pairs, cutter = result.evaluation, result.pairs, result.embedded.cutter
    rows = np.flatnonzero(evaluation.same == same)
    order = np.argsort(evaluation.distances[rows] * (-1 if same else 1), kind="stable")
    found = []
    for row in rows[order[:count]]:
        pair = evaluation.tested[row]
        first, second = int(pairs.first[pair]), int(pairs.second[pair])
        distance = float(evaluation.distances[row])
        found.append(
            WorstPair(
                pairs.images[first],
                pairs.images[second],
                _crops(cutter, first, second),
                distance,
                (distance < evaluation.threshold) != same,
            )
        )
    return found


def _crops(cutter: FaceCutter, first: int, second: int) -> tuple[str, str]:
    return _data_uri(cutter.crop(first)), _data_uri(cutter.crop(second))


def _data_uri(crop: Image) -> str:
    _, encoded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
