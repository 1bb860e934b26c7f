"""An evaluation in, one self-contained HTML page out: no network, no script, plots as inline SVG."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edgeface.drawing import write_page
from edgeface.evaluate import plots
from edgeface.evaluate.lfw import Result
from edgeface.vision.image import Image

__all__ = ["WorstPair", "worst_pairs", "write_report"]

_WORST = 10
"""Pairs of each kind that are shown."""

_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class WorstPair:
    """A pair that the model gets most wrong.

    Attributes
    ----------
    first, second
        Names of the images.
    crops
        As data URIs, what the model saw of them.
    distance
        By the evaluation's metric.
    wrong
        Whether the mean threshold misjudges it.
    """

    first: str
    second: str
    crops: tuple[str, str]
    distance: float
    wrong: bool


def write_report(result: Result, path: Path) -> None:
    """Write the page.

    Raises
    ------
    OutputError
        If it cannot be written.
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


def worst_pairs(result: Result, *, same: bool, count: int = _WORST) -> list[WorstPair]:
    """The genuine pairs that lie furthest apart, or the impostor pairs that lie closest, worst first."""
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
                (_data_uri(cutter.crop(first)), _data_uri(cutter.crop(second))),
                distance,
                (distance < evaluation.threshold) != same,
            )
        )
    return found


def _data_uri(crop: Image) -> str:
    _, encoded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
