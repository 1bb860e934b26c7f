"""A gallery's tables on a PostgreSQL server (extra ``postgres``): connections, errors, and transactions on them.

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
from typing import Any

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
from edgeface.gallery.store.database import Database, record_commit, require_no_differences
from edgeface.gallery.store.postgres.schema import (
    ADDED_LATER,
    SCHEMA_VERSION,
    check_gallery_name,
    foreign_parts,
    keep_plain,
    table_statements,
)

_log = logging.getLogger(__name__)

# Errors

_BUSY = ("55P03", "40001", "40P01")
"""lock_not_available, serialization_failure, deadlock_detected (PostgreSQL manual, appendix A)."""
_UNWRITABLE = {
    "53100": "the server's disk is full; free some space there",
    "25006": "the server is read-only (a standby?); connect to the primary",
    "42501": "this user may not; grant it the right, or open the gallery once as the user who owns its tables",
}
_DAMAGED = ("XX001", "XX002")
_REFUSED = re.compile(
    r"(database|role) \".*\" does not exist|no pg_hba\.conf entry|does not support SSL|permission denied for database"
    r"|not permitted to log in|not currently accepting connections|certificate"
)
"""What an attempt to connect is told without a code, and will be told again."""
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
    if code == "57014":
        found, remedy = f"the server cancelled the statement: {said}", "try again, or raise its statement_timeout"
        return GalleryBusyError(f"{where}: {found}; nothing was changed here; {remedy}", found=found, remedy=remedy)
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
    tried = getattr(error, "pgconn", None)  # of an attempt to connect
    if tried is not None and (tried.needs_password or tried.used_password):
        return GalleryError(
            f"{where}: the server asks for a password and did not accept {'this' if tried.used_password else 'none'}: "
            f"{said}; set PGPASSWORD, or write it to ~/.pgpass, which only you may read (chmod 600)"
        )
    if not code and _REFUSED.search(said):
        remedy = "check the address, and who may connect (pg_hba.conf)"
        return GalleryError(f"{where}: the server does not let this client in: {said}; {remedy}", remedy=remedy)
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
_NO_DETECTORS = (
    "SELECT 1 WHERE NOT EXISTS "
    "(SELECT FROM pg_attribute WHERE attrelid = to_regclass(?) AND attname = 'detectors' AND NOT attisdropped)"
)
_COLUMN_TYPE = (
    "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass('vectors') "
    "AND attname = 'embedding'"
)
_LONGEST_HEADER = 1 << 16
_UNKNOWN = "the connection was lost while committing, so it is not known whether this was stored: check, then repeat"


_DEAD_MILLISECONDS = 20_000
"""How long the server's machine may leave unconfirmed what was sent to it; Linux alone gives up after 15 minutes."""


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

    def resolve(self, *schemas: str) -> None:
        """Look for names in these schemas, after pg_catalog."""
        self.raw.execute(f"SET search_path TO {', '.join(schemas or ('pg_catalog',))}")

    def close(self) -> None:
        """Close the connection."""
        self.raw.close()


def connect(url: str, schema: str, *, timeout: float, patience: float) -> Connection:
    """Open one connection, trying again for `patience` seconds while the server is away; it resolves in pg_catalog.

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
            f"gallery: expected the address of a PostgreSQL server, found one of {len(url)} characters that cannot be "
            "read, or that has a field which libpq does not know; write each of @ : / ? # % in a field as %40 %3A %2F "
            "%3F %23 %25"
        )
    deadline, pause = time.monotonic() + patience, 0.1
    while True:
        try:
            with server_errors(place_of(url, schema)):
                raw = psycopg.connect(
                    url,
                    autocommit=True,
                    connect_timeout=max(2, round(min(timeout, patience))),
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                    tcp_user_timeout=_DEAD_MILLISECONDS,
                    application_name="edgeface",
                    client_encoding="UTF8",  # as text, not as bytes, from a database of SQL_ASCII too
                )
                connection = Connection(raw)
                connection.resolve()
                for name, value in {
                    "synchronous_commit": "on",
                    "lock_timeout": f"{max(1, round(timeout * 1000))}ms",
                    "idle_in_transaction_session_timeout": f"{round(_IDLE_SECONDS * 1000)}ms",
                }.items():
                    raw.execute("SELECT set_config(%s, %s, false)", (name, value))
                return connection
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

    def _connect(self, *, patience: float | None = None) -> Connection:
        seconds = self._patience if patience is None else patience
        connection = connect(self._url, self.schema, timeout=self.timeout, patience=seconds)
        try:
            self._enter(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _enter(self, connection: Connection) -> None:
        """Use the gallery's tables, after comparing them: nothing in its schema is run before."""
        with server_errors(self.where):
            connection.resolve()
            require_no_differences(self.where, foreign_parts(connection, self.schema))
            connection.resolve(self.schema, "public")

    def foreign_parts(self) -> list[str]:
        connection = self._usable()
        connection.resolve()
        found = foreign_parts(connection, self.schema)
        connection.resolve(self.schema, "public")
        return found

    def _migrate(self) -> None:
        """Bring the tables up to date; a second client that wants to waits, and finds nothing to do."""
        with self._errors(), self._connection.raw.transaction():
            (version,) = self._connection.execute("SELECT version FROM gallery FOR UPDATE").fetchone()
            if version >= SCHEMA_VERSION:
                return
            run = self._connection.execute
            if version < 3:
                self._make_plain(version)
            run("ALTER TABLE gallery ADD COLUMN detectors text NOT NULL DEFAULT ''")
            run("ALTER TABLE gallery ALTER COLUMN detectors DROP DEFAULT")
            run("UPDATE gallery SET version = ?", (SCHEMA_VERSION,))

    def _make_plain(self, version: int) -> None:
        """Add the tables of version 3, and order the erasure of what the server has sampled and compressed."""
        run = self._connection.execute
        for table in ADDED_LATER[version - 1 :]:
            for statement in (*table_statements(self.schema, table), *self._grants(table)):
                run(statement)
        vectors = run(_COLUMN_TYPE).fetchone()
        for table in ("people", "templates", "images", *(["vectors"] if vectors else [])):
            for statement in keep_plain(self.schema, table):
                run(statement.replace("public.{type}({dim})", vectors[0] if vectors else ""))
        run("UPDATE people SET body = body || ''")  # writes anew what was compressed
        if version == 1:
            record_commit(self._connection)
        run("UPDATE gallery SET unscrubbed = generation")

    def _grants(self, table: str) -> list[str]:
        """Return what gives a new table the rights that others have on the old ones."""
        rows = self._connection.execute(
            "SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, "
            "string_agg(privilege_type, ', ') FROM pg_class, aclexplode(relacl) "
            "WHERE pg_class.oid = to_regclass('people') AND grantee <> relowner GROUP BY grantee"
        )
        return [f"GRANT {rights} ON {self.schema}.{table} TO {grantee}" for grantee, rights in rows.fetchall()]

    def _read_header(self) -> tuple[int, str, bytes]:
        with server_errors(self.where):
            found = self._connection.execute("SELECT to_regclass(?)", (f"{self.schema}.gallery",)).fetchone()
            if found[0] is None:
                raise GalleryError(f"{self.where}: no gallery of this name exists; create one first")
            row = self._connection.execute(
                "SELECT version, left(header, ?::integer), header_mark FROM gallery", (_LONGEST_HEADER + 1,)
            ).fetchone()
            if row is None:
                raise GalleryDamagedError(f"{self.where}: its header is gone; restore the gallery from a copy")
            version, text, mark = row
            if not 1 <= version <= SCHEMA_VERSION:
                update = "update edgeface" if version > SCHEMA_VERSION else "restore the gallery from a copy"
                raise GalleryError(
                    f"{self.where}: expected a gallery of version 1 to {SCHEMA_VERSION}, found {version}; {update}"
                )
            known = ADDED_LATER[: version - 1]
            query = "SELECT to_regclass(?) IS NULL"
            gone = [each for each in known if self._connection.execute(query, (f"{self.schema}.{each}",)).fetchone()[0]]
            require_no_differences(self.where, [f"no table {each!r}" for each in gone])
            if version > 3 and self._connection.execute(_NO_DETECTORS, (f"{self.schema}.gallery",)).fetchone():
                require_no_differences(self.where, ["no column 'gallery.detectors'"])
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
            self._enter(self._connection)  # a trigger would keep what is forgotten
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

    def _announce(self, connection: Any) -> None:
        # The number of a generation tells nothing, and nothing is believed that such a message says: it wakes only.
        connection.execute("SELECT pg_notify(?, (SELECT generation FROM gallery)::text)", (self.schema,))

    def listen(self) -> Connection:
        """Open another connection, which hears of commits where the server tells of them: a standby does not."""
        connection = self._connect(patience=0)
        with contextlib.suppress(OutputError), server_errors(self.where):
            connection.raw.execute(f"LISTEN {self.schema}")
        return connection

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with contextlib.suppress(driver().Error):
                self._connection.execute("ROLLBACK")
