"""What all indexes in memory share: templates, a lock, the contract they are bound to, and how they follow."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, InputError
from edgeface.gallery.index.select import exact_hits
from edgeface.gallery.index.table import Table, require_rows
from edgeface.gallery.records import Changes, TemplateBlock
from edgeface.model.embedding import Embedding, Embeddings, require_same_contract
from edgeface.recognize.index import Hits

__all__ = ["MemoryIndex"]

Floats = NDArray[np.float32]


class MemoryIndex(ABC):
    """An `Index` over a `Table`; how rows are found is left to its children.

    Parameters
    ----------
    block
        To begin with; a memory-mapped one is read in place until the first change.

    Raises
    ------
    ContractError
        If the rows are not of unit length, or a template comes twice.
    """

    def __init__(self, block: TemplateBlock) -> None:
        self._lock = threading.RLock()
        self._contract_id, self._dim = block.contract_id, int(block.vectors.shape[-1])
        self._take(block)

    @property
    def contract_id(self) -> str:
        """Of every embedding in it."""
        return self._contract_id

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self._dim

    @property
    def generation(self) -> int:
        """Of the gallery that it is in step with."""
        return self._generation

    def __len__(self) -> int:
        return len(self._table)

    def search(self, probe: Embedding, *, k: int = 1) -> Hits:
        """The `k` most similar templates, or all if there are fewer.

        Raises
        ------
        ContractError
            If the probe is of another contract or length.
        InputError
            If it has no direction, or `k` is not positive.
        """
        unit = self._unit(probe.vector[np.newaxis], probe.contract_id)
        with self._lock:
            k = self._at_most(k)
            rows = self._candidates(unit, k) if k else np.empty(0, np.intp)
            return exact_hits(self._table, rows, probe.vector, k)

    def search_batch(self, probes: Embeddings, *, k: int = 1) -> list[Hits]:
        """The same for several probes: `search` of each, at less cost.

        Raises
        ------
        ContractError, InputError
            As `search`.
        """
        units = self._unit(probes.vectors, probes.contract_id)
        with self._lock:
            k = self._at_most(k)
            found = self._batch_candidates(units, k) if k else [np.empty(0, np.intp)] * len(units)
            return [
                exact_hits(self._table, rows, probe, k)
                for rows, probe in zip(found, probes.vectors, strict=True)
            ]

    def compare(self, probe: Embedding, person_ids: Sequence[int]) -> Hits:
        """Every template of these people; somebody who is not there has none.

        Raises
        ------
        ContractError, InputError
            As `search`.
        """
        self._unit(probe.vector[np.newaxis], probe.contract_id)
        with self._lock:
            rows = np.flatnonzero(np.isin(self._table.person_ids, np.asarray(person_ids, np.int64)))
            return exact_hits(self._table, rows, probe.vector, len(rows))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[MemoryIndex]:
        """Let nobody change the index inside this block; see `Index.snapshot`."""
        with self._lock:
            yield self

    def name_of(self, person_id: int) -> None:
        """Return None: templates in memory have no names."""
        return

    def block(self) -> TemplateBlock:
        """A copy of all templates by rising id."""
        with self._lock:
            order = np.argsort(self._table.ids)
            vectors = self._table.vectors[order]
            vectors.setflags(write=False)
            return TemplateBlock(
                ids=self._table.ids[order],
                person_ids=self._table.person_ids[order],
                vectors=vectors,
                contract_id=self._contract_id,
                generation=self._generation,
            )

    def reset(self, block: TemplateBlock) -> None:
        """Forget everything, and take these templates.

        Raises
        ------
        ContractError
            If they are of another contract or length; then nothing has changed.
        """
        self._require_ours(block)
        with self._lock:
            self._take(block)

    def apply(self, changes: Changes) -> None:
        """Follow the gallery: remove what is gone, then add or replace what there is.

        Raises
        ------
        ContractError
            If what is added does not belong here, or has no unit length; then nothing has changed.
        """
        added = changes.added
        self._require_ours(added)
        require_rows(added)
        with self._lock:
            gone = self._table.rows_of(np.union1d(changes.removed, added.ids))
            if len(gone):
                self._remove(gone)
            if len(added):
                self._add(added)
            self._generation = changes.generation

    def _take(self, block: TemplateBlock) -> None:
        self._table = self._build(block)
        self._generation = block.generation

    @abstractmethod
    def _build(self, block: TemplateBlock) -> Table:
        """Make the table, and prepare to find its rows."""

    @abstractmethod
    def _add(self, block: TemplateBlock) -> None:
        """Put new templates into the table, and make them found."""

    @abstractmethod
    def _remove(self, rows: NDArray[np.intp]) -> None:
        """Remove rows from the table, and from what finds them."""

    @abstractmethod
    def _candidates(self, probe: Floats, k: int) -> NDArray[np.intp]:
        """Rows to compare exactly with the one unit probe (1, D); at least `k`, from 1 to the number of rows."""

    def _batch_candidates(self, probes: Floats, k: int) -> list[NDArray[np.intp]]:
        return [self._candidates(probe[np.newaxis], k) for probe in probes]

    def _unit(self, vectors: Floats, contract_id: str) -> Floats:
        require_same_contract(self._contract_id, contract_id, what="search")
        self._require_length(vectors)
        doubles = vectors.astype(np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", doubles, doubles))
        if not np.all(lengths > 0):
            raise InputError("search: expected a probe with a direction, found one of length 0")
        units: Floats = (doubles / lengths[:, np.newaxis]).astype(np.float32)
        return units

    def _at_most(self, k: int) -> int:
        if k < 1:
            raise InputError(f"search: expected k of 1 or more, found {k}")
        return min(k, len(self._table))

    def _require_ours(self, block: TemplateBlock) -> None:
        require_same_contract(self._contract_id, block.contract_id, what="index")
        self._require_length(block.vectors)

    def _require_length(self, vectors: Floats) -> None:
        if vectors.shape[1] != self._dim:
            raise ContractError(
                f"index: expected embeddings of {self._dim} values, found {vectors.shape[1]}; they are of another model"
            )
