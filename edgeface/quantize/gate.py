"""What was measured of a compressed model and the limits in, the reasons to refuse it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeface.errors import InputError
from edgeface.model.contract import ModelContract
from edgeface.quantize.fidelity import Fidelity
from edgeface.quantize.verification import VerificationChange

__all__ = ["QuantizationLimits", "judge_fidelity", "judge_verification"]

_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationLimits:
    """What a compressed model may cost.

    Attributes
    ----------
    max_drop
        Of verification accuracy on labelled pairs, FP32's less the compressed model's.
    min_cosine
        Between the two embeddings of any held-out face.
    """

    max_drop: float = 0.001
    min_cosine: float = 0.97

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1 or not -1 <= self.min_cosine <= 1:
            raise InputError(
                "limits: expected a drop of accuracy from 0 to 1 and a cosine from -1 to 1, found "
                f"{self.max_drop} and {self.min_cosine}"
            )


def judge_fidelity(
    fidelity: Fidelity, contract: ModelContract, limits: QuantizationLimits
) -> tuple[str, ...]:
    """Reasons to refuse a model by its embeddings of held-out faces; empty if there are none."""
    reasons = []
    if not fidelity.min_cosine >= limits.min_cosine:  # NaN is refused too
        reasons.append(
            f"cosine against FP32: expected at least {limits.min_cosine:g} for every one of {fidelity.faces} held-out "
            f"faces, found {fidelity.min_cosine:.5f} (mean {fidelity.mean_cosine:.5f})"
        )
    off = max(abs(fidelity.shortest - 1), abs(fidelity.longest - 1))
    if contract.normalized and not off <= _LENGTH_TOLERANCE:
        reasons.append(
            f"embeddings: expected unit length as the contract says, found {fidelity.shortest:.4f} to "
            f"{fidelity.longest:.4f}"
        )
    return tuple(reasons)


def judge_verification(
    verifications: Sequence[VerificationChange], limits: QuantizationLimits
) -> tuple[str, ...]:
    """Reasons to refuse a model by labelled pairs; empty if there are none."""
    return tuple(
        f"accuracy on {each.pairs:,} pairs ({each.protocol}, {each.setting}): expected a drop of at most "
        f"{limits.max_drop:g}, found {each.accuracy.drop:.4f} ({each.accuracy.before:.4f} to "
        f"{each.accuracy.after:.4f}; 95 % interval {each.accuracy.interval[0]:.4f} to {each.accuracy.interval[1]:.4f})"
        for each in verifications
        if not each.accuracy.drop <= limits.max_drop + 1e-12
    )
