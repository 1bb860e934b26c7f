"""What an embedder is trained on and with by a metric loss, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.evaluate.low_resolution import require_resolutions
from edgeface.model.contract import ModelContract
from edgeface.quantize.verification import VerificationChange
from edgeface.train.data import FaceSet
from edgeface.train.loop import History, Optimisation
from edgeface.train.metric_losses import DistanceKind, Mining, Terms

MetricLoss = Literal["octuplet", "triplet"]


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
        allowed = {"loss": MetricLoss, "distance": DistanceKind, "mining": Mining}
        for name, kind in allowed.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    expected=f"{name}, one of {', '.join(get_args(kind))}", found=repr(getattr(self, name))
                )
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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MetricOutcome:
    """Result of `train_metric`; true if the embedder was written.

    Attributes
    ----------
    ir
        The embedder; None if it was refused.
    contract, parent_id
        Of the embedder, and the `contract_id` of its parent.
    faces, validation
        The photos; those people's, of `faces.names`, whom training was stopped by, (V,) intp.
    history
        Of the training.
    changes
        Verification of people who were not trained on, before and after, by the pixels of the second photo of each
        pair; by the crop's size for pairs in full resolution. Empty without such pairs.
    reasons
        Why it was refused; empty if it was not.
    seconds
        Wall time of everything.
    """

    ir: Path | None
    contract: ModelContract
    parent_id: str
    settings: MetricSettings
    optimisation: Optimisation
    faces: FaceSet
    validation: NDArray[np.intp]
    history: History
    changes: Mapping[int, VerificationChange]
    one_person: Sequence[tuple[str, str, float]]
    reasons: tuple[str, ...]
    seconds: float

    def __bool__(self) -> bool:
        return self.ir is not None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface train metric`."""
        return {
            "written": bool(self),
            "ir": None if self.ir is None else str(self.ir),
            "contract_id": self.contract.contract_id,
            "parent_id": self.parent_id,
            "lineage": None if self.contract.lineage is None else dataclasses.asdict(self.contract.lineage),
            "reasons": list(self.reasons),
            "people": {"train": len(self.faces.names) - len(self.validation), "validation": len(self.validation)},
            "photos": len(self.faces),
            "dropped_people": dict(self.faces.dropped),
            "unusable_photos": dict(self.faces.failures),
            "one_person": [{"names": [a, b], "mean_cosine": cosine} for a, b, cosine in self.one_person],
            "verification": {str(pixels): dataclasses.asdict(each) for pixels, each in self.changes.items()},
            "epochs": len(self.history.epochs),
            "best_epoch": self.history.best + 1,
            "resumed_at_epoch": self.history.resumed_at or None,
            "settings": dataclasses.asdict(self.settings) | dataclasses.asdict(self.optimisation),
            "training_seconds": round(self.history.seconds, 3),
            "seconds": round(self.seconds, 3),
        }
