"""Calibrate verification thresholds of a model on labelled pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeface.evaluate.faces import Boxes, embed_images, find_images
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import pair_scores
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.recognize.metrics import Metric
from edgeface.recognize.threshold import Threshold, calibrate, require_rates
from edgeface.runtime.adapter import Flip
from edgeface.vision.detector import Detector

__all__ = ["ThresholdCalibration", "calibrate_model"]


@dataclass(frozen=True, slots=True)
class ThresholdCalibration:
    """Calibrated thresholds.

    Attributes
    ----------
    thresholds
        One for each target false accept rate.
    failures
        Images without a face; their pairs were left out.
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
    progress: ProgressCallback = ignore_progress,
) -> ThresholdCalibration:
    """Embed the images of labelled pairs and choose the thresholds for target false accept rates.

    Parameters
    ----------
    images
        Folder that the names of `pairs` are relative to.
    pairs
        Pairs of people that the model will not be evaluated on.
    model
        IR with a contract; the thresholds are valid for its `contract_id` only.
    fars
        Target rates, each in (0, 1).
    metric
        Metric by which embeddings will be compared.
    flip
        How mirror images are used; it must be the same when the thresholds are used.
    boxes, detector
        See `edgeface.evaluate.FaceCutter`.
    device
        OpenVINO device.
    created_from
        Description of the data, stored in the thresholds.
    progress
        Called after every image.

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
    return ThresholdCalibration(thresholds, tuple(failures))
