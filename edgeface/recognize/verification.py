"""Decide whether two faces are of one person."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.recognize.metrics import paired
from edgeface.recognize.threshold import Threshold

if TYPE_CHECKING:
    from edgeface.pipeline.observation import Face


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """Whether two faces are of one person; true if they are.

    Attributes
    ----------
    matched
        The decision, also that of ``bool()``.
    score
        On the scale of the threshold's metric.
    threshold
        What decided, with the false accept rate it was calibrated for.
    face_a, face_b
        The faces that were compared; None where embeddings were.
    """

    matched: bool
    score: float
    threshold: Threshold
    face_a: Face | None = None
    face_b: Face | None = None

    def __bool__(self) -> bool:
        return self.matched

    def __repr__(self) -> str:
        relation = ">" if self.score > self.threshold.value else "<="
        return (
            f"Verification(matched={self.matched}, {self.threshold.metric.value} {self.score:.4f} {relation} "
            f"{self.threshold.value:.4f}, far={self.far})"
        )

    @property
    def far(self) -> float | None:
        """False accept rate that the threshold was calibrated for; None if it was given by hand."""
        return self.threshold.far

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; ``same`` is the former name of ``matched``."""
        faces = {"face_a": self.face_a, "face_b": self.face_b}
        return {
            "matched": self.matched,
            "same": self.matched,
            "score": self.score,
            "metric": self.threshold.metric.value,
            "threshold": self.threshold.value,
            "far": self.far,
            "far_interval": list(self.threshold.far_interval),
            "supported": self.threshold.supported,
            "contract_id": self.threshold.contract_id,
            "note": self.threshold.note,
            "calibrated_on": self.threshold.created_from,
            **{name: face.to_dict() for name, face in faces.items() if face is not None},
        }


def verify(a: Embedding, b: Embedding, threshold: Threshold) -> Verification:
    """Decide whether two embeddings are of one person.

    Raises
    ------
    ContractError
        If the embeddings or the threshold belong to different contracts.

    Examples
    --------
    >>> from edgeface import Embedding, Threshold
    >>> a, b = Embedding([1.0, 0.0], "id"), Embedding([0.8, 0.6], "id")
    >>> verify(a, b, Threshold.by_hand(0.5, contract_id="id"))
    Verification(matched=True, cosine 0.8000 > 0.5000, far=None)
    """
    require_same_contract(a.contract_id, b.contract_id, threshold.contract_id, what="verification")
    score = float(paired(threshold.metric, a.vector[None], b.vector[None])[0])
    return Verification(matched=threshold.accepts(score), score=score, threshold=threshold)
