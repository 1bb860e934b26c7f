"""What every index can do, in memory or on a server: a probe in, the most similar templates out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeface.model.embedding import Embedding, Embeddings

__all__ = ["Hits", "Index"]


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Templates that one probe was compared with, the most similar first; of equal scores the lower id first.

    Attributes
    ----------
    ids : (K,) int64
        Of the templates.
    person_ids : (K,) int64
        Whose each is.
    scores : (K,) float64
        Cosine similarities in [-1, 1], computed from the float32 embeddings in float64 whatever the index is made
        of: two indexes that find the same template give it the same score, bit by bit.
    """

    ids: NDArray[np.int64]
    person_ids: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)


@runtime_checkable
class Index(Protocol):
    """Templates of one contract, searched by cosine similarity.

    It may be used from several threads. Every method that takes embeddings raises `ContractError` for those of
    another contract or length, and `InputError` for one without a direction.
    """

    @property
    def contract_id(self) -> str:
        """Of every embedding in it."""

    @property
    def generation(self) -> int:
        """Of the gallery that it is in step with."""

    def __len__(self) -> int:
        """How many templates it holds."""

    def search(self, probe: Embedding, *, k: int = 1) -> Hits:
        """The `k` most similar templates, or all if there are fewer."""

    def search_batch(self, probes: Embeddings, *, k: int = 1) -> list[Hits]:
        """The same for several probes: `search` of each, at less cost."""

    def compare(self, probe: Embedding, person_ids: Sequence[int]) -> Hits:
        """Every template of these people; somebody who is not there has none."""

    def snapshot(self) -> AbstractContextManager[Index]:
        """Hold one generation of the gallery, for all that one decision needs.

        Everything that is asked of the index that it yields, names included, is answered from that one generation,
        whoever writes to the gallery meanwhile. Keep the block short: it may hold up other users of the index.
        """

    def name_of(self, person_id: int) -> str | None:
        """Name of a person; None if the index knows templates but no names.

        Raises
        ------
        GalleryError
            If the gallery has no person of this id.
        """
