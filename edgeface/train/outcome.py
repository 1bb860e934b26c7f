"""What a head or an embedder was trained with, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.evaluate.low_resolution import require_resolutions
from edgeface.model.contract import Lineage, Method, ModelContract
from edgeface.quantize.verification import VerificationChange
from edgeface.stats import clopper_pearson
from edgeface.train.classify import TrainedHead
from edgeface.train.data import Augmentation, FaceSet, Part, left_out
from edgeface.train.loop import History, Optimisation
from edgeface.train.losses import ClassWeights
from edgeface.train.metric_losses import DistanceKind, Mining, Terms

Loss = Literal["cross-entropy", "focal"]
MetricLoss = Literal["octuplet", "triplet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSettings:
    """What a head is trained on and with.

    Attributes
    ----------
    loss, gamma, class_weights
        See `edgeface.train.losses`; `gamma` is that of the focal loss.
    augmentation, copies
        See `edgeface.train.data.augment`. Copies are drawn once, before training, so that the frozen blocks see each
        of them once.
    unfreeze
        Last blocks of the embedder that are trained too; 0: none.
    min_photos
        Fewest usable photos of a person.
    held_out, validation
        Shares of each person's photos to judge by, and to stop training by.
    """

    loss: Loss = "cross-entropy"
    gamma: float = 2.0
    class_weights: ClassWeights = "balanced"
    augmentation: Augmentation = "none"
    copies: int = 1
    unfreeze: int = 0
    min_photos: int = 4
    held_out: float = 0.2
    validation: float = 0.1

    def __post_init__(self) -> None:
        _require_choices(self, loss=Loss, class_weights=ClassWeights, augmentation=Augmentation)
        if not 0 <= self.gamma <= 10 or self.copies < 1 or self.unfreeze < 0:
            raise InputError(
                expected="a gamma from 0 to 10, 1 or more copies and 0 or more blocks",
                found=f"{self.gamma:g}, {self.copies} and {self.unfreeze}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSettings:
    """What an embedder is trained on and with.

    Attributes
    ----------
    loss
        ``octuplet``, for faces of low resolution, or ``triplet``.
    margin, distance, terms, mining
        See `edgeface.train.metric_losses`; `terms` are those of the octuplet loss, `mining` is that of the triplet's.
    resolutions
        Pixels of the copies of low resolution. Each epoch takes each photo with a copy in one of them, drawn at random;
        the triplet loss takes the copies for photos. What was gained is measured in each of them.
    keep, pull
        Weights of two more terms: the mean squared distance of embeddings in full resolution from what they were, and
        that of the copies' from the full ones' as they were.
    hidden
        Width of the hidden layer of the projection; 0: none.
    unfreeze
        Last blocks of the embedder that are trained; 0: none, but a projection behind it.
    photos
        Photos of a person in a batch, at most.
    min_photos, validation
        Fewest usable photos of a person; share of the people to stop training by.
    """

    loss: MetricLoss = "octuplet"
    margin: float = 0.5
    distance: DistanceKind = "euclidean"
    terms: Terms = (1.0, 1.0, 1.0, 1.0)
    mining: Mining = "semi-hard"
    resolutions: tuple[int, ...] = (7, 14, 28, 56)
    keep: float = 1.0
    pull: float = 0.0
    hidden: int = 0
    unfreeze: int = 0
    photos: int = 4
    min_photos: int = 2
    validation: float = 0.1

    def __post_init__(self) -> None:
        _require_choices(self, loss=MetricLoss, distance=DistanceKind, mining=Mining)
        require_resolutions(self.resolutions)
        if self.loss == "octuplet" and not self.resolutions:
            raise InputError(expected="resolutions for the octuplet loss, like 7,14,28", found="none")
        weights = (self.margin, self.keep, self.pull, *self.terms)
        if len(self.terms) != 4 or not all(0 <= each < np.inf for each in weights) or not any(self.terms):
            raise InputError(
                expected="a margin, four terms and other weights from 0, one of the terms above it",
                found=f"{self.margin:g}, {self.terms}, {self.keep:g} and {self.pull:g}",
            )
        if self.photos < 2 or min(self.hidden, self.unfreeze) < 0 or not 0 < self.validation <= 0.5:
            raise InputError(
                expected="2 or more photos of a person, no negative number of units or blocks, a share from 0 to 0.5",
                found=f"{self.photos}, {self.hidden}, {self.unfreeze} and {self.validation:g}",
            )


def _require_choices(settings: HeadSettings | MetricSettings, **choices: Any) -> None:
    for name, allowed in choices.items():
        if getattr(settings, name) not in get_args(allowed):
            raise InputError(
                expected=f"{name}, one of {', '.join(get_args(allowed))}", found=repr(getattr(settings, name))
            )


def lineage_of(
    faces: FaceSet,
    method: Method,
    settings: HeadSettings | MetricSettings,
    optimisation: Optimisation,
    history: History,
) -> Lineage:
    """Return where a trained embedder comes from; `measured` adds what was measured on it."""
    told = dataclasses.asdict(settings) | dataclasses.asdict(optimisation) | {"trained_epochs": history.best + 1}
    return Lineage(
        parent_id=faces.contract.contract_id,
        method=method,
        settings=f"torch {torch.__version__}; " + ", ".join(f"{key} {told[key]}" for key in sorted(told)),
        calibration_sha256=faces.digest,
        mean_cosine=1.0,
        p01_cosine=1.0,
        min_cosine=1.0,
    )


def measured(lineage: Lineage, cosine: NDArray[np.floating[Any]], change: VerificationChange | None) -> Lineage:
    """Return a lineage with the cosines (N,) between embeddings before and after, and the change on strangers."""
    return dataclasses.replace(
        lineage,
        mean_cosine=float(cosine.mean()),
        p01_cosine=float(np.percentile(cosine, 1)),
        min_cosine=float(cosine.min()),
        accuracy_drop=None if change is None else change.accuracy.drop,
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingOutcome:
    """Result of training an embedder; true if it was written.

    Attributes
    ----------
    ir
        The embedder; None if it was refused.
    contract, parent_id
        Of the embedder, and the `contract_id` of its parent.
    settings, optimisation, history
        What it was trained with, and how that went.
    faces, one_person
        The photos, and pairs of names that seem to be of one person, with the mean cosine.
    reasons
        Why it was refused; empty if it was not.
    seconds
        Wall time of everything.
    """

    ir: Path | None
    contract: ModelContract
    parent_id: str
    settings: HeadSettings | MetricSettings
    optimisation: Optimisation
    history: History
    faces: FaceSet
    one_person: Sequence[tuple[str, str, float]]
    reasons: tuple[str, ...]
    seconds: float

    def __bool__(self) -> bool:
        return self.ir is not None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of the command."""
        return {
            "written": bool(self),
            "ir": None if self.ir is None else str(self.ir),
            "contract_id": self.contract.contract_id,
            "parent_id": self.parent_id,
            "lineage": None if self.contract.lineage is None else dataclasses.asdict(self.contract.lineage),
            "reasons": list(self.reasons),
            **left_out(self.faces, self.one_person),
            "epochs": len(self.history.epochs),
            "best_epoch": self.history.best + 1,
            "resumed_at_epoch": self.history.resumed_at or None,
            "settings": dataclasses.asdict(self.settings) | dataclasses.asdict(self.optimisation),
            "training_seconds": round(self.history.seconds, 3),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeadJudgement:
    """How a head answers the held-out photos.

    Attributes
    ----------
    photos
        Rows of the held-out photos in the `FaceSet`, (n,) intp.
    probabilities : (n, C) float64
        The head's, calibrated.
    truth : (n,) intp
        The right classes.
    """

    photos: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    truth: NDArray[np.intp]

    @property
    def answers(self) -> NDArray[np.intp]:
        """The most probable class of each photo, (n,)."""
        return np.asarray(self.probabilities.argmax(axis=1), np.intp)

    @property
    def accuracy(self) -> float:
        """Share of photos whose most probable person is the right one."""
        return float(np.mean(self.answers == self.truth))

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval of `accuracy`."""
        return clopper_pearson(int(np.sum(self.answers == self.truth)), len(self.truth))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in 10 bins of equal width (Guo et al., ICML 2017, equation 3)."""
        return sum(abs(right - sure) * share for sure, right, share in self.reliability())

    def reliability(self, bins: int = 10) -> list[tuple[float, float, float]]:
        """Return mean probability, share of right answers and share of all photos of each bin that has photos."""
        sure = self.probabilities.max(axis=1)
        right = self.answers == self.truth
        bin_of = np.minimum((sure * bins).astype(np.intp), bins - 1)
        return [
            (float(sure[bin_of == each].mean()), float(right[bin_of == each].mean()), float(np.mean(bin_of == each)))
            for each in np.unique(bin_of)
        ]

    def recalls(self, classes: int) -> list[tuple[int, int]]:
        """Return the number of right answers and of held-out photos of each class."""
        right = self.answers == self.truth
        return [(int(right[self.truth == each].sum()), int(np.sum(self.truth == each))) for each in range(classes)]

    def mistakes(self) -> list[tuple[int, int, int]]:
        """Return the confusions, most frequent first: right class, answer, and how often."""
        wrong = self.answers != self.truth
        pairs, counts = np.unique(np.stack([self.truth[wrong], self.answers[wrong]], 1), axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(pairs[row, 0]), int(pairs[row, 1]), int(counts[row])) for row in order]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeadOutcome(TrainingOutcome):
    """Result of `train_head`; true if embedder and head were written.

    Attributes
    ----------
    head, judgement
        What was trained, and how it answers held-out photos.
    verification
        How the embedder verifies people who were not trained on, before and after; None where its embeddings did not
        change.
    parts
        The division of the photos.
    """

    head: TrainedHead
    judgement: HeadJudgement
    verification: VerificationChange | None
    parts: Mapping[Part, NDArray[np.intp]]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface train head`."""
        judged, names = self.judgement, self.head.labels
        recalls = judged.recalls(len(names))
        return TrainingOutcome.to_dict(self) | {
            "people": len(names),
            "photos": {part: len(rows) for part, rows in self.parts.items()},
            "accuracy": judged.accuracy,
            "accuracy_interval": list(judged.interval),
            "calibration_error": judged.calibration_error,
            "temperature": self.head.temperature,
            "threshold": {"probability": self.head.threshold, "from": self.head.threshold_from},
            "recall": {name: {"right": right, "of": of} for name, (right, of) in zip(names, recalls, strict=True)},
            "confusions": [
                {"person": names[truth], "answer": names[answer], "photos": count}
                for truth, answer, count in judged.mistakes()
            ],
            "verification": None if self.verification is None else dataclasses.asdict(self.verification),
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MetricOutcome(TrainingOutcome):
    """Result of `train_metric`; true if the embedder was written.

    Attributes
    ----------
    validation
        The people, of `faces.names`, whom training was stopped by, (V,) intp.
    changes
        Verification of people who were not trained on, before and after, by the pixels of the second photo of each
        pair; by the crop's size for pairs in full resolution. Empty without such pairs.
    """

    validation: NDArray[np.intp]
    changes: Mapping[int, VerificationChange]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface train metric`."""
        return TrainingOutcome.to_dict(self) | {
            "people": {"train": len(self.faces.names) - len(self.validation), "validation": len(self.validation)},
            "photos": len(self.faces),
            "verification": {str(pixels): dataclasses.asdict(each) for pixels, each in self.changes.items()},
        }
