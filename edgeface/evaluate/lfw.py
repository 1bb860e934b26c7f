"""Photographs, labelled pairs and an IR with a contract in, what the model is worth on them out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeface.evaluate.faces import Boxes, FaceCutter, find_images
from edgeface.evaluate.folds import ProtocolName, split
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import FARS, Evaluation, evaluate
from edgeface.files import stopwatch
from edgeface.model.contract import ModelContract
from edgeface.recognize.metrics import Metric
from edgeface.recognize.threshold import require_rates
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.flip import Flip
from edgeface.runtime.plan import ExecutionReport
from edgeface.vision.detector import Detector

__all__ = ["DEFAULTS", "Embedded", "Progress", "Result", "Settings", "embed_images", "evaluate_model"]

Progress = Callable[[int, int], None]
"""Called with the number of images embedded, and of all."""


class Settings(NamedTuple):
    """How embeddings are made and compared.

    Attributes
    ----------
    metric
        A distance.
    flip
        Whether the mirror image's embedding is concatenated.
    subtract_mean
        Whether the mean of the training folds is taken away.
    """

    metric: Metric
    flip: bool
    subtract_mean: bool


DEFAULTS = MappingProxyType(
    {
        ProtocolName.facenet: Settings(Metric.squared_l2, flip=False, subtract_mean=False),
        ProtocolName.omz: Settings(Metric.arccos, flip=True, subtract_mean=True),
    }
)
"""davidsandberg's `validate_on_lfw.py` without options; Open Model Zoo's `accuracy-check.yml` for FaceNet."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Embedded:
    """Images embedded, and what was needed for it.

    Attributes
    ----------
    vectors : (N, D) float32
        One row an image; with its mirror's behind it, if that was asked for, and then not of unit length.
    contract
        Of the IR.
    cutter
        Where the faces were found, to cut them again.
    execution
        What it ran on.
    seconds
        Wall time from the first image read to the last embedding.
    """

    vectors: NDArray[np.float32]
    contract: ModelContract
    cutter: FaceCutter
    execution: ExecutionReport
    seconds: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Result:
    """One evaluation of one model.

    Attributes
    ----------
    evaluation
        By the protocol.
    embedded
        What was compared.
    pairs
        The list.
    flip
        Whether mirrors were concatenated.
    faces
        What found the faces, for people to read.
    model
        The IR.
    """

    evaluation: Evaluation
    embedded: Embedded
    pairs: Pairs
    flip: bool
    faces: str
    model: Path

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: the answer of `edgeface evaluate`."""
        failures = self.embedded.cutter.failures
        contract = self.embedded.contract
        return self.evaluation.to_dict() | {
            "failures": len(failures),
            "failed_images": failures,
            "flip": self.flip,
            "faces": self.faces,
            "images": len(self.pairs.images),
            "model": {
                "path": str(self.model),
                "name": contract.name,
                "contract_id": contract.contract_id,
                "precision": contract.precision,
                "provenance": contract.provenance,
            },
            "device": list(self.embedded.execution.execution_devices),
            "device_name": list(self.embedded.execution.full_names),
            "arithmetic": self.embedded.execution.precision,
            "seconds": round(self.embedded.seconds, 3),
            "images_per_second": round(len(self.pairs.images) / self.embedded.seconds, 2),
        }


def evaluate_model(
    images: Path,
    pairs: Pairs,
    model: Path,
    *,
    protocol: ProtocolName = ProtocolName.facenet,
    settings: Settings | None = None,
    fars: Sequence[float] = FARS,
    boxes: Boxes | None = None,
    detector: Detector | None = None,
    faces: str = "",
    device: str = "CPU",
    progress: Progress | None = None,
) -> Result:
    """Embed the images of a pairs list and score them by a protocol.

    Parameters
    ----------
    images
        Folder that the list's names are relative to: ``images/Name/Name_0001.jpg``.
    pairs
        See `edgeface.evaluate.pairs`.
    model
        IR with a contract.
    protocol
        Whose folds.
    settings
        By default the protocol's own.
    fars
        That VAL is told at.
    boxes, detector
        See `FaceCutter`.
    faces
        What found the faces, for the record.
    device
        OpenVINO device.
    progress
        Called as images are embedded.

    Raises
    ------
    InputError
        If images are missing or broken, a rate is not in (0, 1), or the pairs do not fit the protocol.
    """
    settings = settings or DEFAULTS[protocol]
    require_rates(fars)  # before minutes of work
    split(pairs, protocol)
    embedded = embed_images(
        find_images(images, pairs.images),
        pairs.images,
        model,
        flip="concatenate" if settings.flip else None,
        boxes=boxes,
        detector=detector,
        device=device,
        progress=progress,
    )
    evaluation = evaluate(
        embedded.vectors,
        pairs,
        protocol=protocol,
        metric=settings.metric,
        subtract_mean=settings.subtract_mean,
        fars=fars,
    )
    return Result(
        evaluation=evaluation, embedded=embedded, pairs=pairs, flip=settings.flip, faces=faces, model=model
    )


def embed_images(
    files: Sequence[Path],
    names: Sequence[str],
    model: Path,
    *,
    flip: Flip | None = None,
    boxes: Boxes | None = None,
    detector: Detector | None = None,
    device: str = "CPU",
    progress: Progress | None = None,
) -> Embedded:
    """Cut and embed every image; cutting runs ahead, so that the model is what it waits for.

    Parameters
    ----------
    files, names
        The images, and what `boxes` and failures call them.
    model
        IR with a contract.
    flip
        What is done with the embedding of the mirror image, if anything.
    boxes, detector
        See `FaceCutter`.
    device
        OpenVINO device.
    progress
        Called as images are embedded.
    """
    with Embedder.load(model, device=device, flip=flip) as embedder:
        cutter = FaceCutter(files, names, embedder.contract, boxes=boxes, detector=detector)
        vectors = np.empty((len(files), embedder.contract.embedding_dim), np.float32)
        with stopwatch() as elapsed, contextlib.closing(iter(cutter)) as crops:
            for done, vector in enumerate(embedder.map(crops), start=1):
                vectors[done - 1] = vector
                if progress is not None:
                    progress(done, len(files))
            seconds = elapsed()
        return Embedded(
            vectors=vectors,
            contract=embedder.contract,
            cutter=cutter,
            execution=embedder.execution,
            seconds=seconds,
        )
