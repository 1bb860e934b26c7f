"""Templates in memory: rows that grow, shrink and are found by id, and what all indexes over them share."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, InputError
from edgeface.gallery.records import Changes, TemplateBlock
from edgeface.model.embedding import Embedding, Embeddings, require_same_contract
from edgeface.recognize.index import Hits

Floats = NDArray[np.float32]

UNIT_TOLERANCE = 2e-5
"""How far from 1 the length of a row may be; the gallery stores what is within 1e-5 as it is."""

_BLOCK_ROWS = 1024
_HIT_ROWS = 2048


class Table:
    """Rows in no particular order, without gaps.

    The first change copies what it was given, which may be a memory-mapped file; later ones move single rows.
    Rows that become free are overwritten with zeros. `columns`, each (N, ...), are what else belongs to a row, as
    `Kernel.encode` made it from the vectors.
    """

    def __init__(self, block: TemplateBlock, columns: Sequence[NDArray[Any]] = ()) -> None:
        if block.vectors.ndim != 2 or not block.vectors.shape[1]:
            raise ContractError(f"index: expected vectors (N, D), found shape {block.vectors.shape}")
        require_rows(block)
        self._arrays: list[NDArray[Any]] = [block.ids, block.person_ids, block.vectors, *columns]
        self._count = len(block)
        self._owned = False
        self._order: NDArray[np.intp] | None = None
        self._order_of_people: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) int64."""
        return self._arrays[0][: self._count]

    @property
    def person_ids(self) -> NDArray[np.int64]:
        """(N,) int64."""
        return self._arrays[1][: self._count]

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D) float32 of unit length."""
        return self._arrays[2][: self._count]

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """The vectors, and what else belongs to each row."""
        return tuple(array[: self._count] for array in self._arrays[2:])

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the rows of those of these templates that are here, in the order of `ids`."""
        if not self._count:
            return np.empty(0, np.intp)
        if self._order is None:
            self._order = np.argsort(self.ids, kind="stable")
        found = np.searchsorted(self.ids, ids, sorter=self._order).clip(max=self._count - 1)
        rows: NDArray[np.intp] = self._order[found]
        here: NDArray[np.intp] = rows[self.ids[rows] == ids]
        return here

    def rows_of_people(self, person_ids: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the rows of all templates of these people, rising."""
        if self._order_of_people is None:
            self._order_of_people = np.argsort(self.person_ids, kind="stable")
        wanted, order = np.unique(person_ids), self._order_of_people
        starts, ends = (np.searchsorted(self.person_ids, wanted, side, sorter=order) for side in ("left", "right"))
        rows = [order[start:end] for start, end in zip(starts, ends, strict=True)]
        return np.sort(np.concatenate(rows)) if rows else np.empty(0, np.intp)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, room for more rows included."""
        return sum(array.nbytes for array in self._arrays)

    def put(self, block: TemplateBlock, columns: Sequence[NDArray[Any]] = ()) -> None:
        """Append templates that `require_rows` accepted; none of their ids may be here."""
        start, end = self._count, self._count + len(block)
        self._own(end)
        for array, values in zip(self._arrays, (block.ids, block.person_ids, block.vectors, *columns), strict=True):
            array[start:end] = values
        self._count, self._order, self._order_of_people = end, None, None

    def remove(self, rows: NDArray[np.intp]) -> None:
        """Remove rows, each named once; the last ones move into the gaps."""
        self._own(self._count)
        rest = self._count - len(rows)
        gaps = rows[rows < rest]
        moved = np.setdiff1d(np.arange(rest, self._count), rows, assume_unique=True)
        for array in self._arrays:
            array[gaps] = array[moved]
            array[rest : self._count] = 0
        self._count, self._order, self._order_of_people = rest, None, None

    def _own(self, rows: int) -> None:
        if self._owned and rows <= len(self._arrays[0]):
            return
        capacity = rows + rows // 8 + 64
        for place, array in enumerate(self._arrays):
            grown = np.zeros((capacity, *array.shape[1:]), array.dtype)
            kept = min(len(array), rows)
            grown[:kept] = array[:kept]
            self._arrays[place] = grown
        self._owned = True


def require_rows(block: TemplateBlock) -> None:
    """Raise `ContractError` if a row is not of unit length, or an id comes twice."""
    if len(np.unique(block.ids)) != len(block.ids):
        raise ContractError("index: expected unique template ids, found one twice")
    for start in range(0, len(block), _BLOCK_ROWS):
        rows = block.vectors[start : start + _BLOCK_ROWS]
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        # Written so that NaN fails too.
        fits = np.abs(lengths - 1) <= UNIT_TOLERANCE
        if not fits.all():
            raise ContractError(
                f"index: expected embeddings of length 1, found one of length {lengths[np.argmin(fits)]:g}; the "
                "gallery is damaged or was not written by edgeface: run 'edgeface gallery check'"
            )


def exact_hits(table: Table, rows: NDArray[np.intp], probe: NDArray[np.float32], k: int) -> Hits:
    """Return the `k` best of these rows: cosine similarity in float64, equal scores by rising id."""
    wanted = probe.astype(np.float64)
    wanted /= np.sqrt(np.sum(wanted * wanted))
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _HIT_ROWS):
        part = slice(start, start + _HIT_ROWS)
        vectors = table.vectors[rows[part]].astype(np.float64)
        # Summed along each row by itself: a score does not depend on which others are computed with it.
        lengths = np.sqrt(np.sum(vectors * vectors, axis=1))
        scores[part] = np.sum(vectors * wanted, axis=1) / lengths
    scores = scores.clip(-1.0, 1.0)
    ids = table.ids[rows]
    order = np.lexsort((ids, -scores))[:k]
    return Hits(ids[order], table.person_ids[rows][order], scores[order])


class MemoryIndex(ABC):
    """An `Index` over a `Table`; how rows are found is left to its children.

    A memory-mapped block is read in place until the first change. `ContractError` is raised if its rows are not of unit
    length, or an id comes twice.
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
    def generation(self) -> int:
        """Of the gallery that it is in step with."""
        return self._generation

    @property
    def history(self) -> str:
        """Of the gallery that it is in step with; see `GalleryStore.history`."""
        return self._history

    def __len__(self) -> int:
        return len(self._table)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes, with the embeddings."""
        return self._table.nbytes

    def search(self, probe: Embedding, *, k: int = 1) -> Hits:
        """Return the `k` most similar templates, or all if there are fewer; see `Index.search`."""
        unit = self.units(probe.vector[np.newaxis], probe.contract_id)
        with self._lock:
            k = self._at_most(k)
            rows = self._candidates(unit, k) if k else np.empty(0, np.intp)
            return exact_hits(self._table, rows, probe.vector, k)

    def search_batch(self, probes: Embeddings, *, k: int = 1) -> list[Hits]:
        """Search for several probes, at less cost than one by one; see `Index.search_batch`."""
        units = self.units(probes.vectors, probes.contract_id)
        with self._lock:
            k = self._at_most(k)
            found = self._batch_candidates(units, k) if k else [np.empty(0, np.intp)] * len(units)
            return [exact_hits(self._table, rows, probe, k) for rows, probe in zip(found, probes.vectors, strict=True)]

    def compare(self, probe: Embedding, person_ids: Sequence[int]) -> Hits:
        """Compare with every template of these people; see `Index.compare`."""
        self.units(probe.vector[np.newaxis], probe.contract_id)
        with self._lock:
            rows = self._table.rows_of_people(np.asarray(person_ids, np.int64))
            return exact_hits(self._table, rows, probe.vector, len(rows))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[MemoryIndex]:
        """Hold off changes of the index inside this block; see `Index.snapshot`."""
        with self._lock:
            yield self

    def name_of(self, person_id: int) -> None:
        """Return None: templates in memory have no names."""
        return

    def block(self) -> TemplateBlock:
        """Copy all templates, by rising id."""
        with self._lock:
            order = np.argsort(self._table.ids)
            return TemplateBlock(
                ids=self._table.ids[order],
                person_ids=self._table.person_ids[order],
                vectors=self._table.vectors[order],
                contract_id=self._contract_id,
                generation=self._generation,
                history=self._history,
            )

    def reset(self, block: TemplateBlock) -> None:
        """Replace all templates, or none if they are of another contract or length (`ContractError`)."""
        self._require_ours(block)
        with self._lock:
            self._take(block)

    def apply(self, changes: Changes) -> None:
        """Follow the gallery: remove what is gone, then add or replace what there is.

        Nothing has changed if what is added does not belong here, or has no unit length (`ContractError`).
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
            self._generation, self._history = changes.generation, changes.history

    def _take(self, block: TemplateBlock) -> None:
        self._table = self._build(block)
        self._generation, self._history = block.generation, block.history

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

    def units(self, vectors: Floats, contract_id: str) -> Floats:
        """Return probes (N, D) with length 1, unless they cannot be compared with what is here."""
        require_same_contract(self._contract_id, contract_id, what="search")
        self._require_length(vectors)
        doubles = vectors.astype(np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", doubles, doubles))
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
                f"index: expected embeddings of {self._dim} values, found {vectors.shape[1]}; use the gallery's model"
            )
