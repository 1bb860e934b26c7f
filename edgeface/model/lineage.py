"""How a compressed model came from its parent, and what that cost: the part of a contract that names another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgeface.errors import ContractError

__all__ = ["Lineage", "Method"]

Method = Literal["int8-mixed", "int8-performance", "weights", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a compressed IR's numbers come from.

    Attributes
    ----------
    parent_id
        `contract_id` of the IR it was made of.
    method
        ``int8-mixed`` and ``int8-performance``: weights and activations in 8 bits, by NNCF's two presets;
        ``weights``: weights alone in 8 bits; ``fp16``: weights alone in half precision.
    settings
        Everything else that the numbers depend on, for people to read: NNCF's version, the number of calibration
        images, bias correction, the layers left in floating point.
    calibration_sha256
        Over the calibration crops in their order; empty where the method needs none.
    mean_cosine, p01_cosine, min_cosine
        Of embeddings against the parent's on held-out faces: mean, 1st percentile, least.
    accuracy_drop
        Of verification accuracy on labelled pairs, the parent's less this one's, in parts of 1; None where it was
        not measured.
    """

    parent_id: str
    method: Method
    settings: str
    calibration_sha256: str
    mean_cosine: float
    p01_cosine: float
    min_cosine: float
    accuracy_drop: float | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ContractError(
                f"lineage: method: expected one of {', '.join(get_args(Method))}, found {self.method!r}"
            )
        if len(self.parent_id) != 16 or set(self.parent_id) - _HEX:
            raise ContractError(
                f"lineage: parent_id: expected a contract_id of 16 hexadecimal digits, found {self.parent_id!r}"
            )
        digest = self.calibration_sha256
        if digest and (len(digest) != 64 or set(digest) - _HEX):
            raise ContractError(
                f"lineage: calibration_sha256: expected 64 hexadecimal digits or nothing, found {digest!r}"
            )
        for name in _MEASURED:
            value = getattr(self, name)
            if value is None and name == "accuracy_drop":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ContractError(f"lineage: {name}: expected a finite number, found {value!r}")
            object.__setattr__(self, name, float(value))

    def identity(self) -> dict[str, str]:
        """What the numbers of the IR depend on: all but what was measured of them."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _MEASURED}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Lineage:
        """Rebuild what `dataclasses.asdict` gave.

        Raises
        ------
        TypeError
            If a field is missing, unknown, or text where a number belongs.
        """
        if not isinstance(stored, Mapping):
            raise TypeError(f"expected the fields of a lineage, found {stored!r}")
        for name in ("parent_id", "method", "settings", "calibration_sha256"):
            if not isinstance(stored.get(name), str):
                raise TypeError(f"lineage: {name}: expected text, found {stored.get(name)!r}")
        return cls(**stored)


_HEX = frozenset("0123456789abcdef")
_MEASURED = ("mean_cosine", "p01_cosine", "min_cosine", "accuracy_drop")
