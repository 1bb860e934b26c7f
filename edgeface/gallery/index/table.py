"""Templates in, rows to compute with out: arrays that grow, shrink and find a template by its id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError
from edgeface.gallery.records import TemplateBlock

__all__ = ["UNIT_TOLERANCE", "Table", "require_rows"]

UNIT_TOLERANCE = 2e-5
"""How far from 1 the length of a row may be; the gallery stores what is within 1e-5 as it is."""

_BLOCK_ROWS = 1024


class Table:
    """Rows in no particular order, without gaps.

    The first change copies what it was given, which may be a memory-mapped file; later ones move single rows.
    Rows that become free are overwritten with zeros.

    Parameters
    ----------
    block
        To begin with; its arrays are used as they are.
    columns : each (N, ...)
        What else belongs to a row, as `encode` of a kernel made it of the vectors.

    Raises
    ------
    ContractError
        If a row is not of unit length, or an id comes twice.
    """

    def __init__(self, block: TemplateBlock, columns: Sequence[NDArray[Any]] = ()) -> None:
        if block.vectors.ndim != 2 or not block.vectors.shape[1]:
            raise ContractError(f"index: expected vectors (N, D), found shape {block.vectors.shape}")
        require_rows(block)
        self._arrays: list[NDArray[Any]] = [block.ids, block.person_ids, block.vectors, *columns]
        self._count = len(block)
        self._owned = False
        self._order: NDArray[np.intp] | None = None

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
        """The vectors, and what runs beside them."""
        return tuple(array[: self._count] for array in self._arrays[2:])

    def rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.intp]:
        """Rows of those of these templates that are here, in the order of `ids`."""
        if not self._count:
            return np.empty(0, np.intp)
        if self._order is None:
            self._order = np.argsort(self.ids, kind="stable")
        found = np.searchsorted(self.ids, ids, sorter=self._order).clip(max=self._count - 1)
        rows: NDArray[np.intp] = self._order[found]
        here: NDArray[np.intp] = rows[self.ids[rows] == ids]
        return here

    def put(self, block: TemplateBlock, columns: Sequence[NDArray[Any]] = ()) -> None:
        """Add templates at the end, that `require_rows` accepted; none of their ids may be here."""
        start, end = self._count, self._count + len(block)
        self._own(end)
        for array, values in zip(
            self._arrays, (block.ids, block.person_ids, block.vectors, *columns), strict=True
        ):
            array[start:end] = values
        self._count, self._order = end, None

    def remove(self, rows: NDArray[np.intp]) -> None:
        """Remove rows, each named once; the last ones move into the gaps."""
        self._own(self._count)
        rest = self._count - len(rows)
        gaps = rows[rows < rest]
        moved = np.setdiff1d(np.arange(rest, self._count), rows, assume_unique=True)
        for array in self._arrays:
            array[gaps] = array[moved]
            array[rest : self._count] = 0
        self._count, self._order = rest, None

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
    """Refuse what no table can hold.

    Raises
    ------
    ContractError
        If a row is not of unit length, or an id comes twice.
    """
    if len(np.unique(block.ids)) != len(block.ids):
        raise ContractError("index: expected every template once, found an id twice")
    for start in range(0, len(block), _BLOCK_ROWS):
        rows = block.vectors[start : start + _BLOCK_ROWS]
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        # Written so that NaN fails too.
        fits = np.abs(lengths - 1) <= UNIT_TOLERANCE
        if not fits.all():
            raise ContractError(
                f"index: expected embeddings of length 1, found one of length {lengths[np.argmin(fits)]:g}; the "
                "gallery is damaged or was filled by something else: run 'edgeface gallery check'"
            )
