"""What a head was trained with, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.model.contract import ModelContract
from edgeface.quantize.verification import VerificationChange
from edgeface.stats import clopper_pearson
from edgeface.train.classify import TrainedHead
from edgeface.train.data import Augmentation, FaceSet, Part
from edgeface.train.loop import History, Optimisation
from edgeface.train.losses import ClassWeights

Loss = Literal["cross-entropy", "focal"]


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
        for name, allowed in (("loss", Loss), ("class_weights", ClassWeights), ("augmentation", Augmentation)):
            if getattr(self, name) not in get_args(allowed):
                raise InputError(
                    expected=f"{name}, one of {', '.join(get_args(allowed))}", found=repr(getattr(self, name))
                )
        if not 0 <= self.gamma <= 10 or self.copies < 1 or self.unfreeze < 0:
            raise InputError(
                expected="a gamma from 0 to 10, 1 or more copies and 0 or more blocks",
                found=f"{self.gamma:g}, {self.copies} and {self.unfreeze}",
            )


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
class HeadOutcome:
    """Result of `train_head`; true if embedder and head were written.

    Attributes
    ----------
    ir
        The embedder; None if it was refused.
    contract, head, history, judgement, verification, seconds
        Of the embedder; what was trained; how; how it answers held-out photos; how it verifies people who were not
        trained on, before and after, None where its embeddings did not change; wall time of everything.
    faces, parts, one_person
        The photos, their division, and pairs of names that seem to be of one person, with the mean cosine.
    reasons
        Why it was refused; empty if it was not.
    """

    ir: Path | None
    contract: ModelContract
    parent_id: str
    settings: HeadSettings
    optimisation: Optimisation
    head: TrainedHead
    history: History
    judgement: HeadJudgement
    verification: VerificationChange | None
    faces: FaceSet
    parts: Mapping[Part, NDArray[np.intp]]
    one_person: Sequence[tuple[str, str, float]]
    reasons: tuple[str, ...]
    seconds: float

    def __bool__(self) -> bool:
        return self.ir is not None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface train head`."""
        judged, names = self.judgement, self.head.labels
        recalls = judged.recalls(len(names))
        return {
            "written": bool(self),
            "ir": None if self.ir is None else str(self.ir),
            "contract_id": self.contract.contract_id,
            "parent_id": self.parent_id,
            "lineage": None if self.contract.lineage is None else dataclasses.asdict(self.contract.lineage),
            "reasons": list(self.reasons),
            "people": len(names),
            "photos": {part: len(rows) for part, rows in self.parts.items()},
            "dropped_people": dict(self.faces.dropped),
            "unusable_photos": dict(self.faces.failures),
            "one_person": [{"names": [a, b], "mean_cosine": cosine} for a, b, cosine in self.one_person],
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
            "epochs": len(self.history.epochs),
            "best_epoch": self.history.best + 1,
            "resumed_at_epoch": self.history.resumed_at or None,
            "verification": None if self.verification is None else dataclasses.asdict(self.verification),
            "settings": dataclasses.asdict(self.settings) | dataclasses.asdict(self.optimisation),
            "training_seconds": round(self.history.seconds, 3),
            "seconds": round(self.seconds, 3),
        }
