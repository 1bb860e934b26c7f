"""Two embeddings and a threshold in, one person or two out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.recognize.metrics import paired
from edgeface.recognize.threshold import Threshold

__all__ = ["Verification", "verify"]


@dataclass(frozen=True, slots=True)
class Verification:
    """The answer to: are these two faces one person?

    Attributes
    ----------
    same
        The answer.
    score
        On the scale of the threshold's metric.
    threshold
        What decided, with the false accept rate it was calibrated for.
    """

    same: bool
    score: float
    threshold: Threshold

    @property
    def far(self) -> float:
        """False accept rate that the threshold was calibrated for."""
        return self.threshold.far

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "same": self.same,
            "score": self.score,
            "metric": self.threshold.metric.value,
            "threshold": self.threshold.value,
            "far": self.far,
            "far_interval": list(self.threshold.far_interval),
            "supported": self.threshold.supported,
            "contract_id": self.threshold.contract_id,
        }


def verify(a: Embedding, b: Embedding, threshold: Threshold) -> Verification:
    """Decide whether two faces are one person.

    Raises
    ------
    ContractError
        If the embeddings or the threshold belong to different contracts.
    """
    require_same_contract(a.contract_id, b.contract_id, threshold.contract_id, what="verification")
    score = float(paired(threshold.metric, a.vector[None], b.vector[None])[0])
    return Verification(same=threshold.accepts(score), score=score, threshold=threshold)
