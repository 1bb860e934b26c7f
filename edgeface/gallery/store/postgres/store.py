"""A gallery on a PostgreSQL server, shared by many kiosks: `Store` on the tables of `schema`."""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import (
    GalleryBusyError,
    GalleryError,
    NotSupportedError,
    OutputError,
)
from edgeface.gallery.codec import Header, vectors_of
from edgeface.gallery.records import Erasure, NewTemplate, TemplateBlock, now, unit_vector
from edgeface.gallery.store.check import CheckReport, report, row_problems
from edgeface.gallery.store.cipher import make_vault
from edgeface.gallery.store.database import mark_header
from edgeface.gallery.store.erase import delete_templates
from edgeface.gallery.store.matrix import Matrix
from edgeface.gallery.store.postgres.faults import server_errors
from edgeface.gallery.store.postgres.schema import (
    SCHEMA_VERSION,
    SEALED_TABLES,
    VectorType,
    check_gallery_name,
    statements,
    vector_type,
    vectors_statement,
)
from edgeface.gallery.store.postgres.server import Server, connect, place_of
from edgeface.gallery.store.rekey import another_key, reseal
from edgeface.gallery.store.rows import Rows, block_of
from edgeface.gallery.store.tables import TableStore

__all__ = ["PostgresStore"]

_log = logging.getLogger(__name__)

_ROWS = 16384


class PostgresStore(TableStore):
    """A gallery on a server, open: a `Store`. See `Server` for parameters and what it raises when it is opened."""

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
        self._server = Server(url, name, key=key, contract_id=contract_id, timeout=timeout, patience=patience)
        database: Any = self._server  # the same interface, on another machine
        rows = Rows(database)
        super().__init__(database, rows, _ServerMatrix(database, rows))
        with self._server.reading() as connection:
            self._searched_as = _searched_as(connection)
        self._scrub_or_say()

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
        """Make a gallery with nobody in it, and open it.

        Parameters
        ----------
        url, name, timeout, patience
            As for opening.
        contract_id, dim
            Of the model whose embeddings it will hold.
        key
            32 bytes. None: whoever can read the tables, or a backup of them, can read names, metadata, embeddings
            and images; this is why there is no default.
        model
            Its name, for people; readable without the key.
        keep_images
            Whether it keeps the part of each picture that shows the face.
        searched_as
            Without a key: how pgvector stores embeddings for `PostgresIndex`. With one it is not used.

        Raises
        ------
        OutputError
            If there is a gallery of this name, or this user may not make one.
        GalleryError, NotSupportedError
            If the server refuses, or has no pgvector (needed without a key).
        """
        schema = check_gallery_name(name)
        if not contract_id:
            raise GalleryError("gallery: expected a contract, found none")
        searched = None if key is not None else searched_as
        vector_type(searched_as, dim)
        gallery_id = uuid.uuid4().hex
        vault = make_vault(key, gallery_id)
        header = Header(
            gallery_id=gallery_id,
            contract_id=contract_id,
            dim=dim,
            metric="cosine",
            model=model,
            created=now().isoformat(),
            key_id=vault.key_id,
            keeps_images=keep_images,
        ).encode()
        where = place_of(url, schema)
        connection = connect(url, schema, timeout=timeout, patience=patience)
        with server_errors(where), connection.raw, connection.raw.transaction():
            if connection.execute("SELECT to_regnamespace(?)", (schema,)).fetchone()[0] is not None:
                raise OutputError(f"{where}: expected no gallery there yet, found one; choose another name")
            if searched is not None:
                _require_pgvector(connection, where)
            connection.execute(f"CREATE SCHEMA {schema}")
            for statement in statements(dim, searched):
                connection.execute(statement)
            connection.execute(
                "INSERT INTO gallery VALUES (1, ?, ?, ?, 1, 1, 1, 0)",
                (SCHEMA_VERSION, header, mark_header(header, vault)),
            )
        return cls(url, name, key=key, contract_id=contract_id, timeout=timeout, patience=patience)

    @property
    def server(self) -> Server:
        """The connection, for `PostgresIndex`."""
        return self._server

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

    def fetch(self, connection: Any, where: str, values: Sequence[int]) -> TemplateBlock:
        """Templates for which a condition with one list of numbers holds, inside `Server.reading`."""
        rows = list(self._rows.sealed(connection, "templates", f"WHERE {where}", list(values)))
        bodies = [self._rows.open("templates", identity, stored) for identity, stored in rows]
        return block_of(
            np.array([identity[0] for identity, _ in rows], np.int64),
            np.array([identity[1] for identity, _ in rows], np.int64),
            vectors_of(bodies, self.info.dim),
            contract_id=self.info.contract_id,
            generation=self._server.state("generation"),
        )

    def forget(self, person_id: int, *, template_ids: Sequence[int] | None = None) -> Erasure:
        """Erase somebody, or some templates; see `Store.forget`.

        Rows are deleted and their tables rewritten (``VACUUM FULL``), so that the server's files of the tables hold
        nothing of them. The server's WAL, its archive, standbys and backups are out of reach, and nothing can be
        searched from here: `Erasure.searched` is empty. Encrypt the gallery where that is not enough.

        Raises
        ------
        GalleryError
            If nobody has this id, a template is not theirs, or it was called inside `writing`.
        """
        if self._server.in_transaction:
            raise GalleryError("forget: expected to be outside of writing(): it cannot be undone")
        with self._server.writing() as connection:
            self._rows.require_person(connection, person_id)
            theirs = connection.execute(
                "SELECT id FROM templates WHERE person_id = ? ORDER BY id", (person_id,)
            )
            known = [row[0] for row in theirs]
            if foreign := sorted(set(template_ids or ()) - set(known)):
                raise GalleryError(
                    f"forget: expected templates of person {person_id}, found others: {', '.join(map(str, foreign))}"
                )
            ids = known if template_ids is None else sorted(set(template_ids))
            generation = self._server.wrote()
            images = delete_templates(connection, ids, generation)
            if template_ids is None:
                connection.execute("DELETE FROM people WHERE id = ?", (person_id,))
            connection.execute("UPDATE gallery SET unscrubbed = ?", (generation,))
        self._scrub_or_say()
        return Erasure(
            person_id=person_id,
            templates=len(ids),
            images=images,
            generation=generation,
            searched={},
            needles=0,
            remains=(),
        )

    def rekey(self, key: bytes | None, *, searched_as: VectorType = "vector") -> int:
        """Seal every row with another key, the first one, or none, in one transaction; how many rows.

        With a key the server's own form of the embeddings goes, and a graph over it; without one it is made again.
        Tables are then rewritten as by `forget`, with the same limits. Whoever has the gallery open must open it
        again.

        Parameters
        ----------
        key
            32 bytes, or None: whoever can read the tables can read everything then.
        searched_as
            As in `create`; only without a key.

        Raises
        ------
        GalleryError
            If it is this key already, or inside `writing`.
        GalleryDamagedError
            If a row is damaged: nothing is changed.
        NotSupportedError
            If there is no pgvector, which is needed without a key.
        """
        server = self._server
        header, vault = another_key(server, key, where=server.where)
        searched: VectorType | None = None if key is not None else searched_as
        with server.writing() as connection:
            if self._searched_as is not None:
                connection.execute("DROP TABLE vectors")
            if searched is not None:
                vector_type(searched, header.dim)
                _require_pgvector(connection, server.where)
                connection.execute(vectors_statement(header.dim, searched))
                for block in self._rows.blocks(connection, rows=_ROWS):
                    for template_id, vector in zip(block.ids.tolist(), block.vectors, strict=True):
                        self._let_search(connection, template_id, vector, searched)
            database: Any = server
            sealed = reseal(connection, database, self._rows, header, vault, tables=SEALED_TABLES)
        server.adopt(header, vault)
        self._searched_as = searched
        self._scrub_or_say()
        return len(sealed)

    def check(self) -> CheckReport:
        """Finish what was interrupted, then read every row; the server's own structure its tools check."""
        self.scrub()
        with self._server.reading() as connection:
            return report(row_problems(connection, self._server, self._rows, tables=SEALED_TABLES))

    def _scrub_or_say(self) -> None:
        try:
            self.scrub()
        except (GalleryBusyError, OutputError) as error:
            _log.warning("%s: an erasure is still unfinished: %s", self._server.where, error)

    def scrub(self) -> None:
        """Rewrite the tables if something was deleted from them since they were rewritten last.

        Raises
        ------
        GalleryBusyError
            If somebody reads an old state for too long; the next who opens the gallery goes on.
        """
        with self._server.reading():
            due = self._server.state("unscrubbed")
        if not due:
            return
        for table in (*SEALED_TABLES, *(["vectors"] if self._searched_as else [])):
            self._server.outside(f"VACUUM (FULL) {table}")
        with self._server.writing() as connection:
            connection.execute("UPDATE gallery SET unscrubbed = 0 WHERE unscrubbed = ?", (due,))

    def add_graph(self, *, connectivity: int = 16, expansion: int = 64) -> None:
        """Let the server keep an HNSW graph, so that `PostgresIndex` searches approximately, and fast.

        Parameters
        ----------
        connectivity, expansion
            pgvector's ``m`` and ``ef_construction``.

        Raises
        ------
        NotSupportedError
            If the gallery is encrypted.
        """
        if self._searched_as is None:
            raise NotSupportedError(
                f"{self._server.where}: is encrypted; the server cannot compare its embeddings"
            )
        with self._server.writing() as connection:
            connection.execute(
                f"CREATE INDEX IF NOT EXISTS vectors_graph ON vectors USING hnsw "
                f"(embedding {self._searched_as}_ip_ops) WITH (m = {int(connectivity)}, "
                f"ef_construction = {int(expansion)})"
            )


class _ServerMatrix(Matrix):
    """All templates of a gallery on a server: always read from there."""

    def load(self) -> TemplateBlock:
        """All templates."""
        with self._database.reading() as connection:
            block = self._joined(self._rows.blocks(connection, rows=_ROWS))
            return dataclasses.replace(block, generation=self._generation())


def vector_text(vector: Any) -> str:
    """Pgvector's input form; nine digits give back every float32."""
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
            f"{where}: expected the extension pgvector, by which a gallery in the clear is searched, found none; "
            "install it on the server (package postgresql-NN-pgvector), or encrypt the gallery"
        )
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
