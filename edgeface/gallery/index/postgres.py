"""Search a gallery on a PostgreSQL server by its extension pgvector (extra ``postgres``)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from edgeface.errors import InputError, NotSupportedError
from edgeface.gallery.index.exact import ExactIndex
from edgeface.gallery.records import TemplateBlock
from edgeface.gallery.store.postgres.store import PostgresStore, vector_text
from edgeface.model.embedding import Embedding, Embeddings
from edgeface.recognize.index import Hits

_MAX_EXPANSION = 1000  # pgvector's own limit
_SPARE = 16
"""More than wanted are fetched: float32 or float16 on the server can swap neighbours whose scores are this close."""


class PostgresIndex:
    """An `Index` that keeps nothing: every search asks the server, so it is always in step.

    The server compares with ``<#>``; what it finds is fetched, its digest checked, and compared again in float64, so
    scores are those of `ExactIndex`. Without `PostgresStore.add_graph` the server looks at every row. A kiosk that
    has the memory answers faster, and without the server, from a `LiveIndex` over the same store.

    Parameters
    ----------
    store
        Not encrypted; not closed by it.
    expansion
        With a graph: candidates it keeps in view (``hnsw.ef_search``).

    Raises
    ------
    NotSupportedError
        If the gallery is encrypted.
    """

    def __init__(self, store: PostgresStore, *, expansion: int = 100) -> None:
        if store.searched_as is None:
            raise NotSupportedError(
                "this gallery is encrypted, so the server cannot compare its embeddings; search on the client with "
                "LiveIndex(store)"
            )
        if not 1 <= expansion <= _MAX_EXPANSION:
            raise InputError(f"expansion: expected 1 to {_MAX_EXPANSION}, found {expansion}")
        self._store, self._database, self._expansion = store, store.database, expansion

    @property
    def contract_id(self) -> str:
        """Of every embedding in it."""
        return self._store.info.contract_id

    @property
    def generation(self) -> int:
        """Of the gallery now."""
        return self._store.generation()

    def __len__(self) -> int:
        with self._database.reading() as connection:
            return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])

    def search(self, probe: Embedding, *, k: int = 1) -> Hits:
        """Return the `k` most similar templates, or all if there are fewer; see `Index.search`.

        Raises `GalleryServerError` if the server cannot be reached.
        """
        return self._search([probe], k)[0]

    def search_batch(self, probes: Embeddings, *, k: int = 1) -> list[Hits]:
        """Search for several probes, in one generation of the gallery."""
        self._guard().search_batch(probes, k=k)
        return self._search([probes[row] for row in range(len(probes))], k)

    def compare(self, probe: Embedding, person_ids: Sequence[int]) -> Hits:
        """Compare with every template of these people; an unknown person has none."""
        self._guard().search(probe)
        with self._database.reading() as connection:
            found = self._store.fetch(connection, "person_id = ANY(?)", [int(each) for each in person_ids])
        return ExactIndex(found, threads=1).compare(probe, person_ids)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[PostgresIndex]:
        """Search, compare and names in one repeatable-read transaction; see `Index.snapshot`."""
        with self._database.reading():
            yield self

    def name_of(self, person_id: int) -> str:
        """Return the name of a person."""
        return self._store.person(person_id).name

    def _search(self, probes: Sequence[Embedding], k: int) -> list[Hits]:
        guard = self._guard()
        for probe in probes:
            guard.search(probe, k=k)
        query = f"SELECT template_id FROM vectors ORDER BY embedding <#> ?::text::{self._store.searched_as} LIMIT ?"
        wanted, hits = k + _SPARE, []
        with self._database.reading() as connection:
            if connection.execute("SELECT to_regclass('vectors_graph')").fetchone()[0] is not None:
                view = min(_MAX_EXPANSION, max(self._expansion, wanted))
                connection.execute("SELECT set_config('hnsw.ef_search', ?, true)", (str(view),))
            for probe in probes:
                unit = guard.units(probe.vector[np.newaxis], probe.contract_id)[0]
                nearest = connection.execute(query, (vector_text(unit), wanted))
                ids = [row[0] for row in nearest]
                hits.append(ExactIndex(self._store.fetch(connection, "id = ANY(?)", ids), threads=1).search(probe, k=k))
        return hits

    def _guard(self) -> ExactIndex:
        """Make an empty index, which refuses what does not belong to this contract."""
        info, nothing = self._store.info, np.empty(0, np.int64)
        vectors, contract_id = np.empty((0, info.dim), np.float32), info.contract_id
        return ExactIndex(
            TemplateBlock(ids=nothing, person_ids=nothing, vectors=vectors, contract_id=contract_id, generation=0)
        )
