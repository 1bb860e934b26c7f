"""Compare the verification accuracy of two models on the same labelled pairs, with paired intervals.

Both models judge the same pairs, so their errors are correlated and the difference is known better than either rate.
Intervals come from resampling pairs, with both models' answers, within each fold (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapters 8 and 13). Accuracy is also tested by McNemar's exact test (McNemar,
Psychometrika 12, 1947; Dietterich, Neural Computation 10, 1998). Pairs that share a person are treated as independent,
as in all published intervals on LFW; the true intervals are somewhat wider.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from edgeface.errors import InputError, MissingError
from edgeface.evaluate.faces import CROPS, FaceSource, embed_images, find_images, load_boxes
from edgeface.evaluate.lfw import DEFAULTS, EvaluationSettings
from edgeface.evaluate.pairs import Pairs, read_pairs
from edgeface.evaluate.protocol import Evaluation, Indices, ProtocolName, evaluate, split
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.gate import QuantizationLimits
from edgeface.recognize.metrics import Metric
from edgeface.vision.detector import Detector

SCORED = (
    (ProtocolName.facenet, DEFAULTS[ProtocolName.facenet]),
    (ProtocolName.facenet, EvaluationSettings(Metric.cosine_distance, flip=True, subtract_mean=True)),
)
"""Default protocol and settings: one image, and image and mirror with the mean of the training folds subtracted."""

_FAR = 0.001
_RESAMPLES = 1000
_CONFIDENCE = 0.95

Vectors = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure in [0, 1] of the FP32 model (`before`) and of the compressed model (`after`).

    `drop` is the loss: ``before - after``, for an error rate ``after - before``; `interval` its paired 95 % interval.
    """

    before: float
    after: float
    drop: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationChange:
    """Verification on the same pairs by the FP32 and by the compressed model.

    Attributes
    ----------
    protocol, setting, pairs
        Protocol of the folds; metric, mirror image and mean, as text; number of pairs.
    accuracy, val, eer
        Mean accuracy over the folds, each model at its own thresholds; true accept rate at a false accept rate of
        0.001; equal error rate.
    lost, won, p_value
        Pairs that only the FP32 model, and that only the compressed model decides correctly; McNemar's P value.
    """

    protocol: str
    setting: str
    pairs: int
    accuracy: Change
    val: Change
    eer: Change
    lost: int
    won: int
    p_value: float


def compare_verification(
    before: Vectors,
    after: Vectors,
    pairs: Pairs,
    *,
    protocol: ProtocolName,
    settings: EvaluationSettings,
    seed: int = 0,
) -> VerificationChange:
    """Score two models on the same pairs; `seed` is that of the resampling. For errors see `evaluate`.

    `before` and `after` are (N, D) float: embeddings of `pairs.images`, with the mirror's behind it if `settings.flip`.
    """
    first, second = (
        evaluate(
            vectors,
            pairs,
            protocol=protocol,
            metric=settings.metric,
            subtract_mean=settings.subtract_mean,
            fars=(_FAR,),
        )
        for vectors in (before, after)
    )
    position = np.full(len(pairs), -1)
    position[first.tested] = np.arange(len(first.tested))
    folds = [position[fold] for fold in split(pairs, protocol)]
    right = np.stack([_right(each, folds) for each in (first, second)])
    lost = int((right[0] & ~right[1]).sum())
    won = int((right[1] & ~right[0]).sum())
    samples = _resample(right, np.stack([first.distances, second.distances]), first.same, folds, seed)
    return VerificationChange(
        protocol=protocol.value,
        setting=_setting_text(settings),
        pairs=len(first.same),
        accuracy=_change(first.accuracy, second.accuracy, samples[:, 0]),
        val=_change(first.val[0].mean, second.val[0].mean, samples[:, 1]),
        eer=_change(first.eer, second.eer, -samples[:, 2], rate_of_errors=True),
        lost=lost,
        won=won,
        p_value=mcnemar(lost, won),
    )


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided exact P value of McNemar's test.

    Examples
    --------
    >>> round(mcnemar(2, 8), 4)
    0.1094
    """
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def judge_verification(changes: tuple[VerificationChange, ...], limits: QuantizationLimits) -> tuple[str, ...]:
    """Return the reasons to refuse a model by labelled pairs; empty if it is accepted."""
    return tuple(
        f"accuracy on {each.pairs:,} pairs ({each.protocol}, {each.setting}): expected a drop of at most "
        f"{limits.max_drop:g}, found {each.accuracy.drop:.4f} ({each.accuracy.before:.4f} to "
        f"{each.accuracy.after:.4f}; 95 % interval {each.accuracy.interval[0]:.4f} to {each.accuracy.interval[1]:.4f})"
        for each in changes
        if not each.accuracy.drop <= limits.max_drop + 1e-12
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledPairs:
    """Labelled pairs on which two models are compared.

    Attributes
    ----------
    images, pairs, faces
        Folder that the names of the pairs are relative to, the pairs, and the source of the faces.
    source
        Where they come from, as text for thresholds that are calibrated on them.
    scored
        Protocols and settings to score by. The images are embedded once for all of them.
    seed
        Seed of the resampling.
    """

    images: Path
    pairs: Pairs
    source: str = ""
    faces: FaceSource = CROPS
    scored: tuple[tuple[ProtocolName, EvaluationSettings], ...] = SCORED
    seed: int = 0
    _known: dict[Path, NDArray[np.float32]] = field(default_factory=dict, init=False, repr=False)

    def compare(
        self, before: Path, after: Path, *, progress: ProgressCallback = ignore_progress
    ) -> tuple[VerificationChange, ...]:
        """Score two IRs, one `VerificationChange` for each of `scored`. The embeddings of `before` are kept."""
        if before not in self._known:
            self._known[before] = self._embed(before, "pairs, FP32", progress)
        first, second = self._known[before], self._embed(after, "pairs, compressed", progress)
        mirrored = any(settings.flip for _, settings in self.scored)
        changes = []
        for protocol, settings in self.scored:
            used = slice(first.shape[1] // 2 if mirrored and not settings.flip else None)
            two = first[:, used], second[:, used]
            changes.append(compare_verification(*two, self.pairs, protocol=protocol, settings=settings, seed=self.seed))
        return tuple(changes)

    def _embed(self, ir: Path, stage: str, progress: ProgressCallback) -> NDArray[np.float32]:
        return embed_images(
            self.images,
            self.pairs.images,
            ir,
            self.faces,
            flip="concatenate" if any(settings.flip for _, settings in self.scored) else None,
            allow_seeded=True,
            progress=lambda each: progress(Progress(stage, each.done, each.total, each.unit)),
        ).vectors


def read_labelled(
    listed: str | Path, images: Path | None = None, *, detector: Detector | None = None, seed: int = 0
) -> LabelledPairs:
    """Read labelled pairs and check that their images exist.

    Parameters
    ----------
    listed
        A list in the format of LFW's pairs.txt, or ``lfw``: LFW's own list and images in the folder that the
        environment variable EDGEFACE_DATA names, with the reference boxes if they are there.
    images
        Folder of the images; optional for ``lfw``.
    detector, seed
        Finds the faces, None if the images are aligned crops; seed of the resampling.

    Raises
    ------
    MissingError, InputError
        If ``lfw`` is not in EDGEFACE_DATA; if the list is malformed, or the folder or images are missing.
    """
    boxes = None
    if str(listed) == "lfw":
        data = os.environ.get("EDGEFACE_DATA")
        folder = Path(data or "", "lfw")
        listed = folder / "pairs.txt"
        if not data or not listed.is_file():
            raise MissingError(
                "expected lfw/pairs.txt and lfw/images in the folder that the environment variable EDGEFACE_DATA "
                f"names, found {'no pairs.txt in ' + str(folder) if data else 'the variable unset'}; set it, or give "
                "a pairs list and its --images"
            )
        images = images or folder / "images"
        reference = folder / "mtcnn_reference.npz"
        boxes = load_boxes(reference) if reference.is_file() else None
    elif images is None:
        raise InputError(f"{listed}: a pairs list needs the folder of its images; give it with --images")
    pairs = read_pairs(Path(listed))
    find_images(images, pairs.images)
    faces = FaceSource(boxes, None if boxes else detector)
    return LabelledPairs(images=images, pairs=pairs, source=str(listed), faces=faces, seed=seed)


def _right(evaluation: Evaluation, folds: list[Indices]) -> NDArray[np.bool_]:
    """Whether each tested pair was decided correctly at the threshold of its fold."""
    right = np.empty(len(evaluation.same), np.bool_)
    for fold, threshold in zip(folds, evaluation.thresholds, strict=True):
        right[fold] = (evaluation.distances[fold] < threshold) == evaluation.same[fold]
    return right


def _resample(
    right: NDArray[np.bool_], distances: Doubles, same: NDArray[np.bool_], folds: list[Indices], seed: int
) -> Doubles:
    """Return ``before - after`` of accuracy, VAL and EER on resampled pairs: (R, 3)."""
    rng = np.random.default_rng(seed)
    gain = right[0].astype(np.float64) - right[1]
    found = np.empty((_RESAMPLES, 3))
    for row in found:
        drawn = [rng.choice(fold, len(fold)) for fold in folds]
        row[0] = np.mean([gain[fold].mean() for fold in drawn])
        pool = np.concatenate(drawn)
        (val, eer), (val_after, eer_after) = (_val_and_eer(each[pool], same[pool]) for each in distances)
        row[1:] = val - val_after, eer - eer_after
    return found


def _val_and_eer(distances: Doubles, same: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the true accept rate at FAR 0.001, and the equal error rate."""
    genuine, impostor = np.sort(distances[same]), np.sort(distances[~same])
    cut = impostor[min(len(impostor) - 1, math.floor(_FAR * len(impostor)))]
    val = np.searchsorted(genuine, cut, side="left") / len(genuine)
    grid = np.concatenate([genuine, impostor])
    rejects = 1 - np.searchsorted(genuine, grid, side="right") / len(genuine)
    accepts = np.searchsorted(impostor, grid, side="right") / len(impostor)
    nearest = np.argmin(np.abs(rejects - accepts))
    return float(val), float((rejects[nearest] + accepts[nearest]) / 2)


def _change(before: float, after: float, drops: Doubles, *, rate_of_errors: bool = False) -> Change:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(drops, [tail, 1 - tail])
    drop = after - before if rate_of_errors else before - after
    return Change(before=before, after=after, drop=drop, interval=(float(low), float(high)))


def _setting_text(settings: EvaluationSettings) -> str:
    parts = [settings.metric.value]
    parts += ["mirror concatenated"] * settings.flip + ["train mean subtracted"] * settings.subtract_mean
    return ", ".join(parts)
