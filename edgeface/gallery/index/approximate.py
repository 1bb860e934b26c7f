"""Approximate search in a graph of neighbours, by usearch (extra ``index``)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, InputError
from edgeface.gallery.index.exact import ExactIndex
from edgeface.gallery.index.memory import MemoryIndex, Table
from edgeface.gallery.records import TemplateBlock
from edgeface.limits import usable_cores
from edgeface.model.embedding import Embeddings

Floats = NDArray[np.float32]

_MIN_CANDIDATES = 16


class ApproximateIndex(MemoryIndex):
    """Searches a hierarchical graph of neighbours (HNSW, Malkov and Yashunin 2018, arXiv 1603.09320).

    It may miss the best template; what it finds is compared exactly, so its scores are those of `ExactIndex`. The
    graph lies in memory only and is built when the index is made: minutes for some 100,000 templates. Use it where
    an exact search in int8 takes too long: `recall` measures what it misses on your own faces,
    `benchmarks/gallery.py` on made ones. A template that is removed stays in the graph as a way to others, never as
    an answer, until half of the graph is such and it is built anew. To remove it from memory too, make a new index.

    Parameters
    ----------
    block
        Its first templates.
    storage
        Of the vectors in the graph: ``int8``, which is built in half the time, or ``float16``. The float32 vectors
        are kept beside it.
    connectivity
        Neighbours of a node (M); more find better, and take memory.
    expansion_add, expansion_search
        Nodes kept in view while adding and searching (efConstruction, ef); more find better, and take time.
    threads
        For batches of probes; None: one for each core that this process may use. The graph is built by one thread:
        usearch 2.26.6 loses templates that several threads add at once (two of them, of 1,000 templates: some in 38
        of 40 graphs; none with one thread, in about the same time on two cores).

    Raises
    ------
    ContractError
        If the rows are not of unit length, or an id comes twice.
    ExtraNotInstalledError, InputError
        If usearch is not installed, or an option is out of range.
    """

    def __init__(
        self,
        block: TemplateBlock,
        *,
        storage: Literal["float16", "int8"] = "int8",
        connectivity: int = 16,
        expansion_add: int = 128,
        expansion_search: int = 512,
        threads: int | None = None,
    ) -> None:
        if min(connectivity, expansion_add, expansion_search, threads or 1) < 1:
            raise InputError("index: expected connectivity, expansions and threads of 1 or more")
        if storage not in ("float16", "int8"):
            raise InputError(f"index storage: expected float16 or int8, found {storage!r}")
        self._options: dict[str, Any] = {
            "metric": "cos",
            "dtype": {"float16": "f16", "int8": "i8"}[storage],
            "connectivity": connectivity,
            "expansion_add": expansion_add,
            "expansion_search": expansion_search,
        }
        self._threads = threads or usable_cores()
        super().__init__(block)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes: the embeddings and the graph."""
        return self._table.nbytes + int(self._graph.memory_usage)

    def recall(self, probes: Embeddings, *, k: int = 1) -> float:
        """Measure the share of the exact `k` best templates that a search finds on these faces.

        It compares every probe with every template, once. Take probes like those to be searched later; not the
        templates themselves, which are found too easily. `InputError` is raised if there are none, or no templates.
        """
        if not len(probes) or not len(self):
            raise InputError("recall: expected probes and templates, found none")
        with self._lock:
            found = self.search_batch(probes, k=k)
            wanted = ExactIndex(self.block(), threads=self._threads).search_batch(probes, k=k)
        both = zip(found, wanted, strict=True)
        return float(np.mean([np.isin(exact.ids, hits.ids).mean() for hits, exact in both]))

    def _build(self, block: TemplateBlock) -> Table:
        table = Table(block)
        self._graph, self._ghosts = self._graph_of(table), 0
        return table

    def _graph_of(self, table: Table) -> Any:
        try:
            from usearch.index import Index as Graph
        except ImportError as error:
            raise ExtraNotInstalledError("index", needed_for="an approximate index") from error
        graph = Graph(ndim=self._dim, **self._options)
        if len(table):
            graph.add(table.ids.astype(np.uint64), table.vectors, threads=1)
        return graph

    def _add(self, block: TemplateBlock) -> None:
        self._table.put(block)
        self._graph.add(block.ids.astype(np.uint64), block.vectors, threads=1)

    def _remove(self, rows: NDArray[np.intp]) -> None:
        gone = self._table.ids[rows].astype(np.uint64)
        self._table.remove(rows)
        self._ghosts += len(rows)
        if self._ghosts > len(self._table):
            self._graph, self._ghosts = self._graph_of(self._table), 0
        else:
            self._graph.remove(gone)

    def _candidates(self, probe: Floats, k: int) -> NDArray[np.intp]:
        return self._batch_candidates(probe, k)[0]

    def _batch_candidates(self, probes: Floats, k: int) -> list[NDArray[np.intp]]:
        wanted = min(max(_MIN_CANDIDATES, 2 * k), len(self._table))
        found = self._graph.search(probes, wanted, threads=self._threads)
        keys = np.atleast_2d(found.keys)
        counts = np.atleast_1d(getattr(found, "counts", [keys.shape[1]] * len(keys)))
        return [self._table.rows_of(row[:count].astype(np.int64)) for row, count in zip(keys, counts, strict=True)]
