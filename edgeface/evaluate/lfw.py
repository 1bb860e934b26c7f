"""Evaluate a model on labelled pairs such as LFW's, and calibrate its thresholds on others."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeface.evaluate.faces import CROPS, Embedded, FaceSource, embed_images
from edgeface.evaluate.low_resolution import LowResolution, evaluate_low_resolution, require_resolutions
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.pixels import PIXELS, ir_or_pixels, write_pixel_ir
from edgeface.evaluate.protocol import FARS, Evaluation, ProtocolName, evaluate, pair_scores, split
from edgeface.model.ir_file import read_contract
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.recognize.metrics import Metric
from edgeface.recognize.threshold import Threshold, calibrate, require_rates
from edgeface.runtime.adapter import Flip
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import DevicePlan


class EvaluationSettings(NamedTuple):
    """Distance, and whether mirror images are concatenated and the mean of the training folds is subtracted."""

    metric: Metric
    flip: bool
    subtract_mean: bool


DEFAULTS = MappingProxyType(
    {
        ProtocolName.facenet: EvaluationSettings(Metric.squared_l2, flip=False, subtract_mean=False),
        ProtocolName.omz: EvaluationSettings(Metric.arccos, flip=True, subtract_mean=True),
    }
)
"""Default settings of davidsandberg's `validate_on_lfw.py`; Open Model Zoo's `accuracy-check.yml` for FaceNet."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Result:
    """Evaluation of one model on labelled pairs.

    `flip` tells whether mirror images were concatenated; `at` is a threshold that was chosen before, if any;
    `low_resolution` are the same pairs with less and less detail in one photo; `pixels` is what the crops' own pixels
    reach (see `edgeface.evaluate.pixels`), None where they are the model.
    """

    evaluation: Evaluation
    embedded: Embedded
    pairs: Pairs
    flip: bool
    at: float | None = None
    low_resolution: tuple[LowResolution, ...] = ()
    pixels: Evaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface evaluate lfw`."""
        return (
            self.evaluation.to_dict()
            | {"flip": self.flip}
            | ({} if self.at is None else {"at": self.evaluation.at(self.at)})
            | (
                {"low_resolution": {str(each.pixels): each.to_dict() for each in self.low_resolution}}
                if self.low_resolution
                else {}
            )
            | ({} if self.pixels is None else {"pixels": LowResolution(0, self.pixels).to_dict()})
            | self.embedded.to_dict()
            | {"images_per_second": round(len(self.pairs.images) / self.embedded.seconds, 2)}
        )


def evaluate_model(
    images: Path,
    pairs: Pairs,
    model: Path,
    faces: FaceSource = CROPS,
    *,
    protocol: ProtocolName = ProtocolName.facenet,
    metric: Metric | None = None,
    flip: bool | None = None,
    subtract_mean: bool | None = None,
    fars: Sequence[float] = FARS,
    at: float | None = None,
    low_resolution: Sequence[int] = (),
    device: str = "CPU",
    allow_seeded: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> Result:
    """Embed the images of a pairs list and score them by a protocol.

    Parameters
    ----------
    images
        Folder that the names of the list are relative to: ``images/Name/Name_0001.jpg``.
    pairs
        Labelled pairs; see `edgeface.evaluate.read_pairs`.
    model
        IR with a contract, or ``pixels``: the baseline of `edgeface.evaluate.pixels`.
    faces
        Source of the faces.
    protocol
        Protocol that decides the folds and the default settings.
    metric, flip, subtract_mean
        See `EvaluationSettings`; None takes the default of the protocol.
    fars, at
        Target false accept rates for VAL, each in (0, 1); a distance threshold to score all pairs at, without folds.
    low_resolution
        Pixels of a crop's shorter side in which the second photo of each pair is compared too; see
        `edgeface.evaluate.low_resolution.reduce_resolution`.
    device, progress
        OpenVINO device; called after every image.
    allow_seeded
        Evaluate a model of random weights too; by default it is refused by a ContractError.

    Raises
    ------
    InputError
        If images are missing or broken, a rate is not in (0, 1), or the pairs do not fit the protocol.
    """
    defaults = DEFAULTS[protocol]
    flip = defaults.flip if flip is None else flip
    require_rates(fars)  # before minutes of work
    require_resolutions(low_resolution)
    split(pairs, protocol)
    mirror: Flip | None = "concatenate" if flip else None
    scored: dict[str, Any] = {
        "protocol": protocol,
        "metric": metric or defaults.metric,
        "subtract_mean": defaults.subtract_mean if subtract_mean is None else subtract_mean,
        "fars": fars,
    }
    runtime: dict[str, Any] = {"flip": mirror, "device": device, "allow_seeded": allow_seeded, "progress": progress}
    pixels: list[NDArray[np.float32]] = []
    with ir_or_pixels(model) as ir, _pixel_baseline(ir) as baseline:
        watch = None if baseline is None else lambda crop: pixels.append(baseline.infer(crop))
        embedded = embed_images(images, pairs.images, ir, faces, watch=watch, **runtime)
        reduced = evaluate_low_resolution(embedded, pairs, low_resolution, **scored, **runtime)
    return Result(
        evaluation=evaluate(embedded.vectors, pairs, **scored),
        embedded=dataclasses.replace(embedded, model=model),
        pairs=pairs,
        flip=flip,
        at=at,
        low_resolution=reduced,
        pixels=evaluate(np.stack(pixels), pairs, **scored) if pixels else None,
    )


@contextlib.contextmanager
def _pixel_baseline(ir: Path) -> Iterator[Embedder | None]:
    """Yield what embeds the model's crops as their own pixels; None if that is what the model does."""
    _, contract = read_contract(ir)
    if contract.name == PIXELS:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        ir = write_pixel_ir(Path(folder), contract)
        with Embedder.load(ir, plan=DevicePlan(device="CPU", precision="f32")) as baseline:
            yield baseline


@dataclass(frozen=True, slots=True)
class ThresholdCalibration:
    """Thresholds, one for each target false accept rate, and what they were not measured on.

    `failures` are images without a face, whose pairs were left out; `unread` is that of the pairs.
    """

    thresholds: tuple[Threshold, ...]
    failures: tuple[str, ...]
    unread: Mapping[Path, str]


def calibrate_model(
    images: Path,
    pairs: Pairs,
    model: Path,
    faces: FaceSource = CROPS,
    *,
    fars: Sequence[float],
    metric: Metric = Metric.cosine,
    flip: Flip | None = None,
    device: str = "CPU",
    allow_seeded: bool = False,
    created_from: str = "",
    measured_on: str = "",
    progress: ProgressCallback = ignore_progress,
) -> ThresholdCalibration:
    """Embed the images of labelled pairs and choose the thresholds for target false accept rates.

    Parameters
    ----------
    images, faces, fars, device, progress
        See `evaluate_model`.
    pairs
        Pairs of people that the model will not be evaluated on.
    model
        IR with a contract; the thresholds are valid for its `contract_id` only.
    metric, flip
        Metric, and use of mirror images; both must be the same when the thresholds are used.
    created_from, measured_on
        Description of the data, and its short name, stored in the thresholds.
    faces, fars, device, allow_seeded, progress
        As for `evaluate_model`.

    Raises
    ------
    InputError
        If images are missing or broken, no pair of a kind is left, or a rate is not in (0, 1).
    """
    require_rates(fars)  # before minutes of work
    embedded = embed_images(
        images, pairs.images, model, faces, flip=flip, device=device, allow_seeded=allow_seeded, progress=progress
    )
    return calibrate_embedded(
        embedded, pairs, fars=fars, metric=metric, created_from=created_from, measured_on=measured_on
    )


def calibrate_embedded(
    embedded: Embedded,
    pairs: Pairs,
    *,
    fars: Sequence[float],
    metric: Metric = Metric.cosine,
    created_from: str = "",
    measured_on: str = "",
) -> ThresholdCalibration:
    """Choose the thresholds for target false accept rates on images that are embedded; see `calibrate_model`."""
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
        measured_on=measured_on,
    )
    return ThresholdCalibration(thresholds, tuple(failures), pairs.unread)
