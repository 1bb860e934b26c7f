"""A gallery on a PostgreSQL server, shared by many kiosks: `GalleryStore` on the tables of `database`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.cipher import Cipher
from edgeface.errors import GalleryBusyError, GalleryDamagedError, NotSupportedError, OutputError
from edgeface.gallery.codec import GalleryHeader, TemplateBody
from edgeface.gallery.records import NewTemplate, Proof, TemplateBlock, unit_vector
from edgeface.gallery.store.base import GalleryStore
from edgeface.gallery.store.database import mark_header, new_header, record_commit
from edgeface.gallery.store.postgres.database import PostgresDatabase, connect, place_of, server_errors
from edgeface.gallery.store.postgres.schema import (
    SCHEMA_VERSION,
    VectorType,
    check_gallery_name,
    statements,
    vectors_statements,
)
from edgeface.gallery.store.postgres.watch import PostgresWatch
from edgeface.gallery.store.rows import SEALED_TABLES, Change
from edgeface.gallery.store.searcher import Read, search_places

_log = logging.getLogger(__name__)

_BEYOND = (
    "the server's write-ahead log, its archive, standbys and backups, which its administrator rules over; what they "
    "hold of an encrypted gallery is noise without its key"
)
_READ_FILE = "pg_read_binary_file(text, bigint, bigint, boolean)"
_UNREADABLE = (
    f"the server's files of the tables, which this user may not read; run 'edgeface gallery forget' as a superuser, or "
    f"let this one read files: GRANT EXECUTE ON FUNCTION {_READ_FILE}"
)
_MAY_READ = f"SELECT has_function_privilege('{_READ_FILE}', 'EXECUTE')"
_FILES = """
WITH own AS (SELECT oid, reltoastrelid FROM pg_class WHERE relkind = 'r'
    AND (relnamespace = to_regnamespace(?) OR oid = 'pg_catalog.pg_statistic'::regclass)),
tables AS (SELECT oid FROM own UNION SELECT reltoastrelid FROM own WHERE reltoastrelid <> 0)
SELECT each.oid::regclass::text, pg_relation_filepath(each.oid), pg_relation_size(each.oid)
    FROM (SELECT oid FROM tables UNION SELECT indexrelid FROM pg_index JOIN tables ON indrelid = tables.oid) AS each
"""
"""Name, first file and size of each table of a schema, of what is too long for its rows, of its indexes, and of the
server's statistics, which sample values."""
_COMPARED = 1024
"""Embeddings that are compared at a time."""
_SEGMENT_BYTES = 1 << 30
"""A longer file goes on in another (PostgreSQL manual, 73.1)."""


class PostgresStore(GalleryStore):
    """A gallery on a server, open: a `GalleryStore`.

    `url` is any libpq connection string, such as ``postgresql://user@host/database``; `patience` is how many seconds to
    try again while the server cannot be reached. See `open_gallery` for the rest.

    What `forget`, `rekey` and `rebuild` leave behind is overwritten in the server's files of the tables (``VACUUM
    FULL``). Those files are then searched, as the file of a gallery is, by a user who may read them
    (``pg_read_binary_file``); for others `Erasure.searched` is empty. The server's WAL, its archive, standbys and
    backups are out of reach. Encrypt the gallery where that is not enough.
    """

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
        vectors_statements(schema, dim, searched_as)  # refuses what does not fit, with a key too
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
                "INSERT INTO gallery VALUES (1, ?, ?, ?, 1, 1, 1, 0, '')",
                (SCHEMA_VERSION, header, mark_header(header, cipher)),
            )
            record_commit(connection)
        return cls(url, name, key=key, contract_id=contract_id, timeout=timeout, patience=patience)

    @property
    def searched_as(self) -> VectorType | None:
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

    def watch(self) -> PostgresWatch:
        return PostgresWatch(self.database)

    def _structure_problems(self, connection: Any) -> Iterator[tuple[str, str]]:
        """Compare what the server searches with the templates too."""
        yield from super()._structure_problems(connection)
        if self._form(self.database.header) is None:
            return
        if self._searched_as is None:
            yield "", "no table 'vectors': the server cannot search the templates"
            return
        query = "SELECT template_id, embedding::real[] FROM vectors WHERE template_id = ANY(?)"
        tolerance = 1e-6 if self._searched_as == "vector" else 1e-3
        rows = self.rows.sealed(connection, "templates")
        while chunk := list(itertools.islice(rows, _COMPARED)):
            searched = dict(connection.execute(query, ([identity[0] for identity, _ in chunk],)).fetchall())
            for identity, stored in chunk:
                number = identity[0]
                with contextlib.suppress(GalleryDamagedError):  # which is told of the row itself
                    body = TemplateBody.decode(self.rows.open("templates", identity, stored), self.info.dim)
                    if number not in searched:
                        yield "", f"template {number}: the server does not search it"
                    elif not np.allclose(body.vector, searched[number], rtol=0, atol=tolerance):
                        yield "", f"template {number}: the server searches another embedding"

    # Erasure, another key, another model

    @property
    def _tables(self) -> tuple[str, ...]:
        return (*SEALED_TABLES, *(["vectors"] if self._searched_as else []))

    def _overwrite(self) -> None:
        for table in self._tables:
            self.database.vacuum(table)

    def _secrets(self, connection: Any, person_id: int, ids: Sequence[int], *, whole: bool) -> Iterator[bytes]:
        yield from super()._secrets(connection, person_id, ids, whole=whole)
        if self._searched_as is not None:
            query = "SELECT embedding::real[] FROM vectors WHERE template_id = ANY(?)"
            for (values,) in connection.execute(query, (list(ids),)).fetchall():
                yield np.array(values, "<f4" if self._searched_as == "vector" else "<f2").tobytes()

    def prove(self, secrets: Sequence[bytes]) -> Proof:
        try:
            self.scrub()
        except (GalleryBusyError, OutputError) as error:  # kiosks read all the time: the next opening tries again
            _log.warning("%s: an erasure is still unfinished: %s", self.database.where, error)
            remains = (f"{self.database.where}: not yet overwritten: {error.found or error}",)
            return Proof(searched={}, needles=0, remains=remains, unsearched=(_BEYOND,))
        with self.database.reading() as connection:
            if not connection.execute(_MAY_READ).fetchone()[0]:
                return Proof(searched={}, needles=0, remains=(), unsearched=(_UNREADABLE, _BEYOND))
            # Nobody rewrites the files until the block ends: that would need the tables for itself.
            connection.execute(f"LOCK TABLE {', '.join(self._tables)} IN ACCESS SHARE MODE")
            files = connection.execute(_FILES, (self.database.schema,)).fetchall()
            proof = search_places(_segments(connection, files), secrets, self.rows, self.database)
        return dataclasses.replace(proof, unsearched=(_BEYOND,))

    def reseal(
        self, connection: Any, header: GalleryHeader, cipher: Cipher, *, change: Change | None = None
    ) -> list[bytes]:
        """Bind every row to another header and cipher, and make the server's own form of the embeddings anew.

        With a key there is none, and no graph over it. `GalleryDamagedError` is raised if a row is damaged,
        `NotSupportedError` if pgvector is needed and missing.
        """
        graph = connection.execute("SELECT pg_get_indexdef(to_regclass('vectors_graph'))").fetchone()[0]
        searched = self._form(header)
        if self._searched_as is not None:
            connection.execute("DROP TABLE vectors")
        if searched is None:
            return super().reseal(connection, header, cipher, change=change)
        _require_pgvector(connection, self.database.where)
        for statement in vectors_statements(self.database.schema, header.dim, searched):
            connection.execute(statement)

        def also(table: str, identity: tuple[Any, ...], content: bytes) -> tuple[tuple[Any, ...], bytes]:
            new, content = (identity, content) if change is None else change(table, identity, content)
            if table == "templates":
                self._let_search(connection, new[0], TemplateBody.decode(content, header.dim).vector, searched)
            return new, content

        pieces = super().reseal(connection, header, cipher, change=also)
        if graph is not None:
            connection.execute(graph)
        return pieces

    def adopt(self, header: GalleryHeader, cipher: Cipher) -> None:
        super().adopt(header, cipher)
        self._searched_as = self._form(header)

    def _form(self, header: GalleryHeader) -> VectorType | None:
        return None if header.key_id else self._searched_as or "vector"

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


def _segments(connection: Any, files: Sequence[tuple[str, str, int]]) -> Iterator[tuple[str, Read]]:
    query = f"SELECT {_READ_FILE.partition('(')[0]}(?, ?, ?, false)"
    for relation, path, size in files:
        for number in range(1 + max(0, size - 1) // _SEGMENT_BYTES):
            segment = f"{path}.{number}" if number else path

            def read(offset: int, length: int, segment: str = segment) -> bytes:
                return bytes(connection.execute(query, (segment, offset, length)).fetchone()[0])

            yield f"{relation} ({segment})", read


def vector_text(vector: Any) -> str:
    """Write a vector in pgvector's input form; nine digits give back every float32."""
    return "[" + ",".join(f"{value:.9g}" for value in vector.tolist()) + "]"


def _searched_as(connection: Any) -> VectorType | None:
    row = connection.execute(
        "SELECT format_type(atttypid, NULL) FROM pg_attribute "
        "WHERE attrelid = to_regclass('vectors') AND attname = 'embedding'"
    ).fetchone()
    return None if row is None else ("halfvec" if str(row[0]).endswith("halfvec") else "vector")


def _require_pgvector(connection: Any, where: str) -> None:
    available = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'").fetchone()
    if available is None:
        raise NotSupportedError(
            f"{where}: searching an unencrypted gallery requires the extension pgvector, which is not installed; "
            "install it on the server (package postgresql-NN-pgvector), or encrypt the gallery"
        )
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
