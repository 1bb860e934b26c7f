"""A gallery on a PostgreSQL server, shared by many kiosks: `GalleryStore` on the tables of `database`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import GalleryBusyError, NotSupportedError, OutputError
from edgeface.gallery.codec import GalleryHeader
from edgeface.gallery.records import NewTemplate, Rekeying, TemplateBlock, unit_vector
from edgeface.gallery.store.base import GalleryStore
from edgeface.gallery.store.database import mark_header, new_header, record_commit
from edgeface.gallery.store.postgres.database import PostgresDatabase, connect, place_of, server_errors
from edgeface.gallery.store.postgres.schema import (
    SCHEMA_VERSION,
    VectorType,
    check_gallery_name,
    statements,
    vectors_statement,
)

_log = logging.getLogger(__name__)


class PostgresStore(GalleryStore):
    """A gallery on a server, open: a `GalleryStore`.

    `url` is any libpq connection string, such as ``postgresql://user@host/database``; `patience` is how many seconds to
    try again while the server cannot be reached. See `open_gallery` for the rest.

    What `forget` and `rekey` leave behind is overwritten in the server's files of the tables (``VACUUM FULL``). The
    server's WAL, its archive, standbys and backups are out of reach, and nothing can be searched from here:
    `Erasure.searched` is empty. Encrypt the gallery where that is not enough.
    """

    tables = ("people", "templates", "images")  # there is no rebuild on a server
    database: PostgresDatabase

    def __init__(
        self,
        url: str,
        name: str,
        *,
        key: bytes | None = None,
        contract_id: str | None = None,
        timeout: float = 30.0,
        patience: float = 10.0,
    ) -> None:
        database = PostgresDatabase(url, name, key=key, contract_id=contract_id, timeout=timeout, patience=patience)
        with database.reading() as connection:
            self._searched_as = _searched_as(connection)
        super().__init__(database)

    @classmethod
    def create(
        cls,
        url: str,
        name: str,
        *,
        contract_id: str,
        dim: int,
        key: bytes | None,
        model: str = "",
        keep_images: bool = False,
        searched_as: VectorType = "vector",
        timeout: float = 30.0,
        patience: float = 10.0,
    ) -> PostgresStore:
        """Make a gallery without people, and open it.

        `searched_as` is how pgvector, which is needed without a key, stores embeddings for `PostgresIndex`; with a key
        it is not used. Without one, anyone who can read the tables, or a backup of them, can read names, metadata,
        embeddings and images. See `create_gallery` for the rest.

        Raises
        ------
        OutputError
            If there is a gallery of this name, or this user may not make one.
        GalleryError, NotSupportedError
            If the server refuses, or has no pgvector.
        """
        schema = check_gallery_name(name)
        searched = None if key is not None else searched_as
        vectors_statement(schema, dim, searched_as)  # refuses what does not fit, with a key too
        made, cipher = new_header(contract_id=contract_id, dim=dim, key=key, model=model, keep_images=keep_images)
        header = made.encode()
        where = place_of(url, schema)
        connection = connect(url, schema, timeout=timeout, patience=patience)
        with server_errors(where), connection.raw, connection.raw.transaction():
            if connection.execute("SELECT to_regnamespace(?)", (schema,)).fetchone()[0] is not None:
                raise OutputError(f"{where}: a gallery of this name exists already; choose another name")
            if searched is not None:
                _require_pgvector(connection, where)
            connection.execute(f"CREATE SCHEMA {schema}")
            for statement in statements(schema, dim, searched):
                connection.execute(statement)
            connection.resolve(schema, "public")
            connection.execute(
                "INSERT INTO gallery VALUES (1, ?, ?, ?, 1, 1, 1, 0)",
                (SCHEMA_VERSION, header, mark_header(header, cipher)),
            )
            record_commit(connection)
        return cls(url, name, key=key, contract_id=contract_id, timeout=timeout, patience=patience)

    @property
    def searched_as(self) -> str | None:
        """How embeddings are stored for pgvector; None in an encrypted gallery, which the server cannot search."""
        return self._searched_as

    def _add_templates(
        self, connection: Any, person_id: int, templates: Sequence[NewTemplate], generation: int
    ) -> tuple[int, ...]:
        ids = super()._add_templates(connection, person_id, templates, generation)
        if self._searched_as is not None:
            for template_id, new in zip(ids, templates, strict=True):
                self._let_search(connection, template_id, unit_vector(new, self.info), self._searched_as)
        return ids

    @staticmethod
    def _let_search(connection: Any, template_id: int, vector: NDArray[np.float32], searched_as: str) -> None:
        connection.execute(
            f"INSERT INTO vectors VALUES (?, ?::text::{searched_as})", (template_id, vector_text(vector))
        )

    def fetch(self, connection: Any, condition: str, values: Sequence[int]) -> TemplateBlock:
        """Return templates for which a condition with one list of numbers holds, inside `PostgresDatabase.reading`."""
        return self.rows.block(connection, f"WHERE {condition}", list(values))

    # Erasure and another key

    def _overwrite(self) -> None:
        for table in (*self.tables, *(["vectors"] if self._searched_as else [])):
            self.database.vacuum(table)

    def prove(self, secrets: Sequence[bytes]) -> tuple[dict[str, int], int, tuple[str, ...]]:
        try:
            self.scrub()
        except (GalleryBusyError, OutputError) as error:  # kiosks read all the time: the next opening tries again
            _log.warning("%s: an erasure is still unfinished: %s", self.database.where, error)
            return {}, 0, (f"{self.database.where}: not yet overwritten: {error.found or error}",)
        return {}, 0, ()

    def rekey(self, key: bytes | None, *, searched_as: VectorType = "vector") -> Rekeying:
        """Seal every row with another key, the first one, or none, in one transaction.

        With a key the server's own form of the embeddings goes, and a graph over it; without one it is made again.
        Other processes must open the gallery again. `searched_as` is as in `create`.

        Nothing is changed if it is this key already (`GalleryError`), a row is damaged (`GalleryDamagedError`), or
        pgvector is needed and missing (`NotSupportedError`).
        """
        searched: VectorType | None = None if key is not None else searched_as
        before = self._searched_as

        def replace_vectors(connection: Any, header: GalleryHeader) -> None:
            if before is not None:
                connection.execute("DROP TABLE vectors")
            if searched is not None:
                _require_pgvector(connection, self.database.where)
                connection.execute(vectors_statement(self.database.schema, header.dim, searched))
                block = self.rows.block(connection)
                for template_id, vector in zip(block.ids.tolist(), block.vectors, strict=True):
                    self._let_search(connection, template_id, vector, searched)

        def adopted() -> None:
            self._searched_as = searched

        return self._rekey(key, also=replace_vectors, adopted=adopted)

    def add_graph(self, *, connectivity: int = 16, expansion: int = 64) -> None:
        """Let the server keep an HNSW graph, so that `PostgresIndex` searches approximately, and fast.

        `connectivity` and `expansion` are pgvector's ``m`` and ``ef_construction``. `NotSupportedError` is raised if
        the gallery is encrypted.
        """
        if self._searched_as is None:
            raise NotSupportedError(f"{self.database.where}: encrypted, so the server cannot index its embeddings")
        with self.database.writing() as connection:
            connection.execute(
                f"CREATE INDEX IF NOT EXISTS vectors_graph ON vectors USING hnsw "
                f"(embedding {self._searched_as}_ip_ops) WITH (m = {int(connectivity)}, "
                f"ef_construction = {int(expansion)})"
            )


def vector_text(vector: Any) -> str:
    """Write a vector in pgvector's input form; nine digits give back every float32."""
    return "[" + ",".join(f"{value:.9g}" for value in vector.tolist()) + "]"


def _searched_as(connection: Any) -> str | None:
    row = connection.execute(
        "SELECT format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = to_regclass('vectors') AND attname = 'embedding'"
    ).fetchone()
    return None if row is None else str(row[0]).rpartition(".")[2]


def _require_pgvector(connection: Any, where: str) -> None:
    available = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
    if available is None:
        raise NotSupportedError(
            f"{where}: searching an unencrypted gallery requires the extension pgvector, which is not installed; "
            "install it on the server (package postgresql-NN-pgvector), or encrypt the gallery"
        )
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
