"""Labelled photographs and two IRs in, what verification lost between them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.evaluate.faces import Boxes, embed_images, find_images
from edgeface.evaluate.lfw import DEFAULTS, EvaluationSettings
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.protocol import ProtocolName
from edgeface.progress import ignore_progress
from edgeface.quantize.compress import Progress
from edgeface.quantize.verification import VerificationChange, compare_verification
from edgeface.recognize.metrics import Metric
from edgeface.vision.detector import Detector

__all__ = ["SCORED", "LabelledPairs"]

SCORED = (
    (ProtocolName.facenet, DEFAULTS[ProtocolName.facenet]),
    (ProtocolName.facenet, EvaluationSettings(Metric.cosine_distance, flip=True, subtract_mean=True)),
)
"""davidsandberg's folds: one image a face, and image and mirror with the mean of the training folds subtracted."""


@dataclass(eq=False, kw_only=True)
class LabelledPairs:
    """Pairs to compare two models on.

    Attributes
    ----------
    images
        Folder that the names of `pairs` are relative to.
    pairs
        The list.
    boxes, detector
        See `edgeface.evaluate.faces.FaceCutter`.
    scored
        By whose folds and with what settings; the images are embedded once for all, with their mirrors if any of
        them wants those.
    seed
        Of the resampling.
    """

    images: Path
    pairs: Pairs
    boxes: Boxes | None = None
    detector: Detector | None = None
    scored: tuple[tuple[ProtocolName, EvaluationSettings], ...] = SCORED
    seed: int = 0
    _known: dict[Path, NDArray[np.float32]] = field(default_factory=dict, init=False, repr=False)

    def compare(
        self, before: Path, after: Path, *, progress: Progress | None = None
    ) -> tuple[VerificationChange, ...]:
        """Score two IRs on the pairs, one `VerificationChange` each of `scored`. The first IR is embedded once."""
        if before not in self._known:
            self._known[before] = self._embed(before, "pairs, FP32", progress)
        first, second = self._known[before], self._embed(after, "pairs, compressed", progress)
        return tuple(
            compare_verification(
                self._of(first, settings),
                self._of(second, settings),
                self.pairs,
                protocol=protocol,
                settings=settings,
                seed=self.seed,
            )
            for protocol, settings in self.scored
        )

    @property
    def _mirrors(self) -> bool:
        return any(settings.flip for _, settings in self.scored)

    def _of(self, vectors: NDArray[np.float32], settings: EvaluationSettings) -> NDArray[np.float32]:
        return vectors[:, : vectors.shape[1] // 2] if self._mirrors and not settings.flip else vectors

    def _embed(self, ir: Path, what: str, progress: Progress | None) -> NDArray[np.float32]:
        return embed_images(
            find_images(self.images, self.pairs.images),
            self.pairs.images,
            ir,
            flip="concatenate" if self._mirrors else None,
            boxes=self.boxes,
            detector=self.detector,
            progress=ignore_progress
            if progress is None
            else lambda each: progress(what, int(each.done), int(each.total or 0)),
        ).vectors
