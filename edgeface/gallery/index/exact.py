"""Templates in, an index out that finds exactly the most similar ones, whatever it stores them as."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.gallery.index.base import MemoryIndex
from edgeface.gallery.index.kernels import Storage, kernel_for, rounding_bound
from edgeface.gallery.index.parallel import available_cores, in_parts
from edgeface.gallery.index.select import contenders
from edgeface.gallery.index.table import Table
from edgeface.gallery.records import TemplateBlock

__all__ = ["ExactIndex"]

Floats = NDArray[np.float32]

_BATCH_ROWS = 4096
_BATCH_PROBES = 256


class ExactIndex(MemoryIndex):
    """Every template is compared with every probe.

    Scores are first computed as the storage allows, with a bound on their error (`kernels`); whatever may belong to
    the answer by that bound is compared again in float64. So float16 and int8 find the same templates with the same
    scores as float32, by proof and not by luck, and read a half or a quarter of the memory.

    Parameters
    ----------
    block
        To begin with.
    storage
        ``float32``: needs nothing. ``float16``, ``int8``: codes beside the float32 vectors, which are then read
        only where candidates are; extra ``index``.
    threads
        Parts of a search at a time; None: as many as cores may be used.

    Raises
    ------
    ContractError
        If the rows are not of unit length, or a template comes twice.
    ExtraNotInstalledError
        If the storage needs the extra ``index``.
    InputError
        If there is no such storage, or `threads` is not positive.
    """

    def __init__(
        self, block: TemplateBlock, *, storage: Storage = "float32", threads: int | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"index: expected 1 thread or more, found {threads}")
        self._kernel, self._storage = kernel_for(storage), storage
        self._threads = threads or available_cores()
        super().__init__(block)

    @property
    def storage(self) -> Storage:
        """How what is searched is stored."""
        return self._storage

    def _build(self, block: TemplateBlock) -> Table:
        return Table(block, self._kernel.encode(block.vectors))

    def _add(self, block: TemplateBlock) -> None:
        self._table.put(block, self._kernel.encode(block.vectors))

    def _remove(self, rows: NDArray[np.intp]) -> None:
        self._table.remove(rows)

    def _candidates(self, probe: Floats, k: int) -> NDArray[np.intp]:
        query = (probe, *self._kernel.encode(probe))
        columns = self._table.columns
        scores = np.empty(len(self._table), np.float32)

        def score(part: slice) -> None:
            self._kernel.dot(tuple(column[part] for column in columns), query, scores[part])

        in_parts(score, len(scores), threads=self._threads)
        return contenders(scores, self._kernel.bound(columns, query), k)

    def _batch_candidates(self, probes: Floats, k: int) -> list[NDArray[np.intp]]:
        found: list[NDArray[np.intp]] = []
        for start in range(0, len(probes), _BATCH_PROBES):
            found += self._product_candidates(probes[start : start + _BATCH_PROBES], k)
        return found

    def _product_candidates(self, probes: Floats, k: int) -> list[NDArray[np.intp]]:
        """By BLAS, which computes 40 products in the time that a pass over the rows takes for one."""
        margin = np.float32(2 * rounding_bound(self._dim))
        top = np.full((len(probes), 0), -np.inf, np.float32)
        kept: list[tuple[NDArray[np.intp], NDArray[np.intp], Floats]] = []
        for start in range(0, len(self._table), _BATCH_ROWS):
            scores = probes @ self._table.vectors[start : start + _BATCH_ROWS].T
            top = np.concatenate([top, scores], axis=1)
            if top.shape[1] > k:
                top = np.partition(top, top.shape[1] - k, axis=1)[:, -k:]
            floor = (
                top.min(axis=1) - margin if top.shape[1] == k else np.full(len(probes), -np.inf, np.float32)
            )
            which, rows = np.nonzero(scores >= floor[:, np.newaxis])
            kept.append((which, rows + start, scores[which, rows]))
        which, rows, values = (np.concatenate(parts) for parts in zip(*kept, strict=True))
        late = values >= (top.min(axis=1) - margin)[which]
        order = np.argsort(which[late], kind="stable")
        counts = np.bincount(which[late], minlength=len(probes))
        return np.split(rows[late][order], np.cumsum(counts)[:-1])
