"""A gallery's tables on a PostgreSQL server (extra ``postgres``): their schema, errors, and transactions on them.

The tables are those of the file, in a schema of their own. In a gallery that is not encrypted `vectors` holds the
embeddings once more, in a form that the server can compare: ``vector`` (float32) or ``halfvec`` (float16, half the
memory). An encrypted gallery has no such table: the server must not be able to read embeddings, so it cannot search
them either.

One writer at a time: the gallery's only row is locked from the beginning of `writing` to its end. Readers see one state
(``REPEATABLE READ``) and do not block others.

A connection that was lost is made anew when the next outermost block begins, which is the only safe time. A block that
it was lost in fails with `GalleryServerError`: nothing was changed, or, if it was lost while committing, the message
says that this is not known.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from edgeface.errors import (
    EdgeFaceError,
    ExtraNotInstalledError,
    GalleryBusyError,
    GalleryDamagedError,
    GalleryError,
    GalleryServerError,
    InputError,
    OutputError,
)
from edgeface.gallery.store.database import Database, record_commit

_log = logging.getLogger(__name__)

# Tables

SCHEMA_VERSION = 2
VectorType = Literal["vector", "halfvec"]

_MAX_DIM = 16000
"""Values of a vector or halfvec, and 2,000 or 4,000 of one with an HNSW index (pgvector 0.8, README)."""

_TABLES = """
CREATE TABLE gallery (
    one integer PRIMARY KEY CHECK (one = 1),
    version integer NOT NULL,
    header text NOT NULL,
    header_mark bytea NOT NULL,
    generation bigint NOT NULL,
    next_id bigint NOT NULL,
    known_since bigint NOT NULL,
    unscrubbed bigint NOT NULL
);
CREATE TABLE people (id bigint PRIMARY KEY, name_mark bytea NOT NULL UNIQUE, body bytea NOT NULL);
CREATE TABLE templates (
    id bigint PRIMARY KEY,
    person_id bigint NOT NULL REFERENCES people (id),
    generation bigint NOT NULL,
    body bytea NOT NULL
);
CREATE INDEX templates_person ON templates (person_id);
CREATE INDEX templates_generation ON templates (generation);
CREATE TABLE images (
    template_id bigint PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
    body bytea NOT NULL
);
CREATE TABLE removals (template_id bigint PRIMARY KEY, generation bigint NOT NULL);
CREATE INDEX removals_generation ON removals (generation);
"""
_COMMITS = "CREATE TABLE commits (generation bigint PRIMARY KEY, history text NOT NULL)"

_VECTORS = """
CREATE TABLE vectors (
    template_id bigint PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
    embedding {type}({dim}) NOT NULL
)
"""


def check_gallery_name(name: str) -> str:
    """Return the name of a gallery's schema; `InputError` if the gallery has no plain name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
        raise InputError(
            f"gallery name: expected a lower-case letter, then up to 49 of a-z, 0-9 and _, found {name!r:.60}"
        )
    return f"edgeface_{name}"


def statements(dim: int, searched_as: VectorType | None) -> list[str]:
    """Return what makes the empty tables."""
    made = [*(statement for statement in _TABLES.split(";") if statement.strip()), _COMMITS]
    return made if searched_as is None else [*made, vectors_statement(dim, searched_as)]


def vectors_statement(dim: int, searched_as: VectorType) -> str:
    """Return what makes the empty table that pgvector searches."""
    if searched_as not in ("vector", "halfvec") or not 1 <= dim <= _MAX_DIM:
        raise InputError(
            f"vectors: expected vector or halfvec of 1 to {_MAX_DIM:,} values, found {searched_as!r} of {dim:,}"
        )
    return _VECTORS.format(type=searched_as, dim=dim)


# Errors

_BUSY = ("55P03", "40001", "40P01", "57014")
"""lock_not_available, serialization_failure, deadlock_detected, query_canceled (PostgreSQL manual, appendix A)."""
_UNWRITABLE = {
    "53100": "the server's disk is full; free some space there",
    "25006": "the server is read-only (a standby?); connect to the primary",
    "42501": "this user may not; grant it the right",
}
_DAMAGED = ("XX001", "XX002")
_AWAY_CLASSES = ("08", "57P", "53", "25P03")
"""25P03: the server ended the connection because a block was idle for too long."""


def driver() -> Any:
    """Return the module psycopg."""
    try:
        import psycopg
    except ImportError as error:
        raise ExtraNotInstalledError("postgres", needed_for="a gallery on a PostgreSQL server") from error
    return psycopg


@contextlib.contextmanager
def server_errors(where: str, *, doubt: str = "") -> Iterator[None]:
    """Turn what psycopg raises into one clear error; `doubt` says, if the connection is lost, if the work was done."""
    psycopg = driver()
    try:
        yield
    except psycopg.Error as error:
        raise _translate(psycopg, where, error, doubt or "nothing was changed; try again") from error


def _translate(psycopg: Any, where: str, error: Any, doubt: str) -> EdgeFaceError:
    said = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "sqlstate", None) or ""
    if code in _BUSY:
        found = "another process writes to this gallery and did not finish in time"
        return GalleryBusyError(
            f"{where}: {found}; nothing was changed here; try again, or wait longer (timeout): {said}",
            found=f"{found}: {said}",
        )
    if code in _UNWRITABLE:
        found, remedy = f"cannot be written: {said}", _UNWRITABLE[code]
        text = f"{where}: {found}; nothing that was stored is lost; {remedy}"
        return OutputError(text, found=found, remedy=remedy)
    if code in _DAMAGED:
        return GalleryDamagedError(f"{where}: the server found damaged data: {said}; restore it from a backup")
    if code.startswith(_AWAY_CLASSES) or (not code and isinstance(error, psycopg.OperationalError)):
        found = f"the server cannot be reached or went away: {said}"
        return GalleryServerError(f"{where}: {found}; {doubt}", found=found)
    if isinstance(error, psycopg.ProgrammingError) and not code:
        return InputError(f"{where}: expected the address of a PostgreSQL server, found: {said}")
    return GalleryError(f"{where}: the server refused: {said}")


# Connections and transactions

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
_IDLE_SECONDS = 60
"""How long a writer that stopped inside a block may hold up the others."""
_UNKNOWN = "the connection was lost while committing, so it is not known whether this was stored: check, then repeat"


class Connection:
    """A psycopg connection that takes statements written for SQLite: ``?`` for a value, ``LIMIT -1`` for all."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement; return its cursor."""
        text = statement.replace("LIMIT ?", "LIMIT nullif(?::bigint, -1)").replace("?", "%s")
        return self.raw.cursor(binary=True).execute(text, tuple(values) or None)

    @property
    def in_transaction(self) -> bool:
        """Whether one is open, failed or not."""
        return not self.raw.closed and int(self.raw.info.transaction_status) != 0

    def close(self) -> None:
        """Close the connection."""
        self.raw.close()


def connect(url: str, schema: str, *, timeout: float, patience: float) -> Connection:
    """Open one connection, trying again for `patience` seconds while the server is away.

    `InputError` is raised for an address that is malformed, or whose password reads as a part of its host; neither is
    shown.
    """
    psycopg = driver()
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = {"port": "malformed"}
    told = [str(parts.get(name, "")) for name in ("host", "port", "dbname")]
    if "@" in "".join(told) or not re.fullmatch(r"[\d,]*", told[1]):
        raise InputError(
            f"gallery: expected the address of a PostgreSQL server, postgresql://USER@HOST/DATABASE, found one of "
            f"{len(url)} characters that cannot be read; write each of @ : / ? # % in its password as %40 %3A %2F "
            "%3F %23 %25"
        )
    deadline, pause = time.monotonic() + patience, 0.1
    while True:
        try:
            with server_errors(place_of(url, schema)):
                raw = psycopg.connect(
                    url,
                    autocommit=True,
                    connect_timeout=max(2, round(timeout)),
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                    application_name="edgeface",
                )
                for name, value in {
                    "search_path": f"{schema},public",
                    "synchronous_commit": "on",
                    "lock_timeout": f"{max(1, round(timeout * 1000))}ms",
                    "idle_in_transaction_session_timeout": f"{round(_IDLE_SECONDS * 1000)}ms",
                }.items():
                    raw.execute("SELECT set_config(%s, %s, false)", (name, value))
                return Connection(raw)
        except GalleryServerError:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)


def place_of(url: str, schema: str) -> str:
    """Name server and gallery for a message, without the password."""
    psycopg = driver()
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = {}
    host, database = parts.get("host", "localhost"), parts.get("dbname", "")
    return f"PostgreSQL {host}:{parts.get('port', 5432)}/{database} {schema}"


class PostgresDatabase(Database):
    """A gallery on a server; its blocks yield a `Connection`. See `PostgresStore` for the parameters."""

    version = SCHEMA_VERSION

    def __init__(
        self, url: str, name: str, *, key: bytes | None, contract_id: str | None, timeout: float, patience: float
    ) -> None:
        self._url, self.schema, self._patience = url, check_gallery_name(name), patience
        super().__init__(place_of(url, self.schema), timeout=timeout)
        self._connection: Connection = self._connect()
        try:
            version, text, mark = self._read_header()
            self._bind(text, mark, key=key, contract_id=contract_id)
            if version < SCHEMA_VERSION:  # only after it is known that the caller has the key
                self._migrate()
        except BaseException:
            self._connection.close()
            raise

    def _connect(self) -> Connection:
        return connect(self._url, self.schema, timeout=self.timeout, patience=self._patience)

    def _migrate(self) -> None:
        """Give commits ids, which version 1 had not; a second client that wants to waits, and finds nothing to do."""
        with self._errors(), self._connection.raw.transaction():
            (version,) = self._connection.execute("SELECT version FROM gallery FOR UPDATE").fetchone()
            if version < SCHEMA_VERSION:
                self._connection.execute(_COMMITS)
                record_commit(self._connection)
                self._connection.execute("UPDATE gallery SET version = ?", (SCHEMA_VERSION,))

    def _read_header(self) -> tuple[int, str, bytes]:
        with server_errors(self.where):
            found = self._connection.execute("SELECT to_regclass(?)", (f"{self.schema}.gallery",)).fetchone()
            if found[0] is None:
                raise GalleryError(f"{self.where}: no gallery of this name exists; create one first")
            version, text, mark = self._connection.execute(
                "SELECT version, header, header_mark FROM gallery"
            ).fetchone() or (0, "", b"")
        if not 1 <= version <= SCHEMA_VERSION:
            raise GalleryError(
                f"{self.where}: expected a gallery of version 1 to {SCHEMA_VERSION}, found {version}; update edgeface"
            )
        return version, text, mark

    def _errors(self, *, committing: bool = False) -> contextlib.AbstractContextManager[None]:
        return server_errors(self.where, doubt=_UNKNOWN if committing else "")

    def _begin(self, *, write: bool) -> Any:
        """Begin, on a new connection if the old one turns out to be dead: nothing was done on it yet."""
        begin = _WRITE if write else _READ
        try:
            with server_errors(self.where):
                self._connection.execute(begin)
        except GalleryServerError as error:
            _log.warning("%s; connecting again", error)
            self._connection.close()
            self._connection = self._connect()
            self._connection.execute(begin)
        if write:
            self._connection.execute("SELECT 1 FROM gallery FOR UPDATE")
        return self._connection

    def vacuum(self, table: str) -> None:
        """Rewrite a table; `OutputError` if the server does not, which it says in a warning only."""
        warnings: list[str] = []

        def hear(said: Any) -> None:
            if said.severity_nonlocalized == "WARNING":
                warnings.append(str(said.message_primary))

        with self._lock:
            raw = self._usable().raw
            raw.add_notice_handler(hear)
            try:
                self.outside(f"VACUUM (FULL) {table}")
            finally:
                raw.remove_notice_handler(hear)
        if warnings:
            found = f"the server did not rewrite {table}: {warnings[0]}"
            remedy = "open the gallery once as the user who owns its tables"
            raise OutputError(f"{self.where}: {found}; {remedy}", found=found, remedy=remedy)

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(driver().Error):
                self._connection.execute("ROLLBACK")
