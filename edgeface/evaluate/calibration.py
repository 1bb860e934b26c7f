"""Photographs, labelled pairs and an IR with a contract in, thresholds for exactly that contract out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeface.evaluate.faces import Boxes, find_images
from edgeface.evaluate.lfw import Progress, embed_images
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import pair_scores
from edgeface.recognize.metrics import Metric
from edgeface.recognize.threshold import Threshold, calibrate, require_rates
from edgeface.runtime.flip import Flip
from edgeface.vision.detector import Detector

__all__ = ["Calibration", "calibrate_model"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Thresholds, and the images that could not be used as they are.

    Attributes
    ----------
    thresholds
        One for each false accept rate asked for.
    failures
        Images in which no face was found. Their pairs were left out: in use nobody compares what has no face.
    """

    thresholds: tuple[Threshold, ...]
    failures: tuple[str, ...]


def calibrate_model(
    images: Path,
    pairs: Pairs,
    model: Path,
    *,
    fars: Sequence[float],
    metric: Metric = Metric.cosine,
    flip: Flip | None = None,
    boxes: Boxes | None = None,
    detector: Detector | None = None,
    device: str = "CPU",
    created_from: str = "",
    progress: Progress | None = None,
) -> Calibration:
    """Embed the images of labelled pairs and cut their scores at the wanted false accept rates.

    Parameters
    ----------
    images
        Folder that the names of `pairs` are relative to.
    pairs
        Of people that the model will not be judged on.
    model
        IR with a contract; the thresholds are valid for embeddings with its `contract_id`.
    fars
        Wanted rates, each in (0, 1).
    metric
        That faces will be compared by.
    flip
        What is done with mirror images; it has to be the same in use.
    boxes, detector
        See `edgeface.evaluate.faces.FaceCutter`.
    device
        OpenVINO device.
    created_from
        What the data are, for the record.
    progress
        Called as images are embedded.

    Raises
    ------
    InputError
        If images are missing or broken, no pair of a kind is left, or a rate is not in (0, 1).
    """
    require_rates(fars)  # before minutes of work
    embedded = embed_images(
        find_images(images, pairs.images),
        pairs.images,
        model,
        flip=flip,
        boxes=boxes,
        detector=detector,
        device=device,
        progress=progress,
    )
    failures = embedded.cutter.failures
    scores = pair_scores(embedded.vectors, pairs, metric)
    failed = np.isin(pairs.images, failures)
    usable = ~(failed[pairs.first] | failed[pairs.second])
    thresholds = calibrate(
        scores[usable & pairs.same],
        scores[usable & ~pairs.same],
        fars=fars,
        contract_id=embedded.contract.contract_id,
        metric=metric,
        created_from=created_from,
    )
    return Calibration(thresholds, tuple(failures))
