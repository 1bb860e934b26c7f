"""Vectors and the contract that made them, kept together so that two kinds never meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError

__all__ = ["Embedding", "Embeddings", "require_same_contract"]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One face.

    Attributes
    ----------
    vector : (D,) float32
        Read-only.
    contract_id
        Of the `ModelContract` whose IR computed it.
    """

    vector: NDArray[np.float32]
    contract_id: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", _checked(self.vector, dimensions=1))


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Faces embedded by one contract.

    Attributes
    ----------
    vectors : (N, D) float32
        Read-only.
    contract_id
        Of the `ModelContract` whose IR computed them.
    """

    vectors: NDArray[np.float32]
    contract_id: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", _checked(self.vectors, dimensions=2))

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, row: int) -> Embedding:
        return Embedding(self.vectors[row], self.contract_id)


def require_same_contract(*contract_ids: str, what: str) -> None:
    """Refuse to bring together what different contracts made.

    Raises
    ------
    ContractError
        If the ids are not all equal.
    """
    if len(set(contract_ids)) > 1:
        raise ContractError(
            f"{what}: expected one contract_id, found {', '.join(contract_ids)}; their numbers do not compare: "
            "embed both with the same IR, and calibrate the threshold with it"
        )


def _checked(vectors: NDArray[Any], *, dimensions: int) -> NDArray[np.float32]:
    array = np.asarray(vectors, np.float32).view()
    if array.ndim != dimensions or array.shape[-1] == 0:
        shape = "(D,)" if dimensions == 1 else "(N, D)"
        raise ContractError(f"embedding: expected an array {shape}, found shape {array.shape}")
    if not np.isfinite(array).all():
        raise ContractError("embedding: expected finite numbers, found NaN or infinity; the inference failed")
    array.setflags(write=False)
    return array
