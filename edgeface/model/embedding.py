"""Keep embeddings together with the contract that they were computed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError
from edgeface.model.contract import current_id


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The embedding of one face, (D,) float32, read-only, and the `contract_id` of the IR that computed it."""

    vector: NDArray[np.float32]
    contract_id: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", _checked(self.vector, dimensions=1))

    def __repr__(self) -> str:
        return f"Embedding({len(self.vector)} numbers, contract {self.contract_id})"


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Embeddings of several faces, (N, D) float32, read-only, and the `contract_id` of the IR that computed them."""

    vectors: NDArray[np.float32]
    contract_id: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", _checked(self.vectors, dimensions=2))

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        rows, numbers = self.vectors.shape
        return f"Embeddings({rows} x {numbers} numbers, contract {self.contract_id})"

    def __getitem__(self, row: int) -> Embedding:
        return Embedding(self.vectors[row], self.contract_id)


def require_same_contract(*contract_ids: str, what: str) -> None:
    """Raise ContractError if the ids are not all of one contract: what different contracts made is not compared.

    An id that edgeface 0.1 gave to the same IR counts as equal (`edgeface.model.contract.current_id`).
    """
    if len(set(map(current_id, contract_ids))) > 1:
        raise ContractError(
            f"{what}: expected one contract_id, found {', '.join(contract_ids)}; embeddings of different models "
            "cannot be compared: embed both with the same IR, and calibrate the threshold with it"
        )


def what_is_wrong(vectors: NDArray[Any]) -> str | None:
    """Say why embeddings, (D,) or (N, D), cannot be compared: not finite, or without a direction. None: they can."""
    squares = np.einsum("...i,...i->...", vectors, vectors)
    if ((squares > 0) & (squares < np.inf)).all():  # NaN is neither
        return None
    if not np.isfinite(vectors).all():
        return "expected an embedding of finite numbers, found NaN or infinity"
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    if (lengths >= np.finfo(np.float32).tiny).all():  # below, float32 rounds the direction away
        return None
    return f"expected an embedding with a direction, found one of length {lengths.min():.3g}"


def _checked(vectors: NDArray[Any], *, dimensions: int) -> NDArray[np.float32]:
    given = np.asarray(vectors)
    if given.size and given.dtype.kind not in "fiu":
        raise ContractError(f"embedding: expected real numbers, found {given.dtype}")
    array = np.asarray(given, np.float32).view()
    if array.ndim != dimensions or array.shape[-1] == 0:
        shape = "(D,)" if dimensions == 1 else "(N, D)"
        raise ContractError(f"embedding: expected an array {shape}, found shape {array.shape}")
    if wrong := what_is_wrong(array):
        raise ContractError(f"{wrong}; embed the photo again")
    array.setflags(write=False)
    return array
