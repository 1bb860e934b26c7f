"""A server's address and a gallery's name in, transactions on it out: the interface of `gallery.database.Database`.

One writer at a time: the gallery's only row is locked from the beginning of `writing` to its end. Readers see one state
(``REPEATABLE READ``) and hold up nobody.

A connection that was lost is made anew when the next outermost block begins, which is the only moment at which that
is safe. A block that it was lost in fails with `GalleryServerError`: nothing was changed, or, if it was lost while
committing, the message says that nobody knows.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from edgeface.errors import (
    ContractError,
    GalleryDamagedError,
    GalleryError,
    GalleryKeyError,
    GalleryServerError,
)
from edgeface.gallery.codec import Header
from edgeface.gallery.store.cipher import Vault, make_vault
from edgeface.gallery.store.database import mark_header
from edgeface.gallery.store.postgres.faults import driver, server_errors
from edgeface.gallery.store.postgres.schema import SCHEMA_VERSION, check_gallery_name

__all__ = ["Connection", "Server", "connect"]

_log = logging.getLogger(__name__)

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"
_IDLE_SECONDS = 60
"""A writer that stopped in the middle of a block holds up the others for no longer."""
_UNKNOWN = (
    "the connection was lost while committing, so it is not known whether this was stored: look, then repeat"
)


class Connection:
    """A psycopg connection that takes the statements of `gallery.rows`: ``?`` for a value, ``LIMIT -1`` for all."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement; its cursor."""
        text = statement.replace("LIMIT ?", "LIMIT nullif(?::bigint, -1)").replace("?", "%s")
        return self.raw.cursor(binary=True).execute(text, tuple(values) or None)

    @property
    def in_transaction(self) -> bool:
        """Whether one is open, failed or not."""
        return not self.raw.closed and int(self.raw.info.transaction_status) != 0


def connect(url: str, schema: str, *, timeout: float, patience: float) -> Connection:
    """Open one connection, trying again for `patience` seconds while the server is away.

    Raises
    ------
    GalleryServerError
        If it stays away.
    InputError
        If the address is none.
    """
    psycopg = driver()
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
    """Server and gallery for a message, without the password."""
    psycopg = driver()
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        parts = {}
    host, database = parts.get("host", "localhost"), parts.get("dbname", "")
    return f"PostgreSQL {host}:{parts.get('port', 5432)}/{database} {schema}"


class Server:
    """A gallery on a server, as `gallery.rows.Rows` and `gallery.matrix.Matrix` see a file.

    Its blocks yield a `Connection`, typed `Any` because those modules name SQLite's.

    Parameters
    ----------
    url
        ``postgresql://user@host/database`` or any libpq connection string.
    name
        Of the gallery on this server.
    key
        32 bytes, or None for a gallery that is not encrypted.
    contract_id
        That the gallery must be of; None: whatever it is of.
    timeout
        Seconds to wait for another writer.
    patience
        Seconds to try again while the server cannot be reached.

    Raises
    ------
    GalleryError, GalleryKeyError, GalleryDamagedError, ContractError, GalleryServerError, ExtraNotInstalledError
        If it cannot be opened, with the reason.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        key: bytes | None,
        contract_id: str | None,
        timeout: float,
        patience: float,
    ) -> None:
        self._url, self.schema = url, check_gallery_name(name)
        self.where = place_of(url, self.schema)
        self._timeout, self._patience, self._pid = timeout, patience, os.getpid()
        self._lock = threading.RLock()
        self._depth, self._owner, self._wrote, self._closed = 0, 0, False, False
        self.version = SCHEMA_VERSION
        self._connection = self.connect()
        try:
            self.header, self.vault = self._read_header(key, contract_id)
        except BaseException:
            self._connection.raw.close()
            raise

    def connect(self) -> Connection:
        """Open one more connection to the gallery."""
        return connect(self._url, self.schema, timeout=self._timeout, patience=self._patience)

    def _read_header(self, key: bytes | None, contract_id: str | None) -> tuple[Header, Vault]:
        with server_errors(self.where):
            found = self._connection.execute("SELECT to_regclass(?)", (f"{self.schema}.gallery",)).fetchone()
            if found[0] is None:
                raise GalleryError(
                    f"{self.where}: expected a gallery, found none of this name; make one first"
                )
            version, text, mark = self._connection.execute(
                "SELECT version, header, header_mark FROM gallery"
            ).fetchone() or (0, "", b"")
        if version != SCHEMA_VERSION:
            raise GalleryError(
                f"{self.where}: expected a gallery of version {SCHEMA_VERSION}, found {version}; update edgeface"
            )
        if mark[:16] != hashlib.blake2b(text.encode(), digest_size=16).digest():
            raise GalleryDamagedError(f"{self.where}: its header is not what was written; restore a backup")
        header = Header.decode(text)
        if bool(header.key_id) != (key is not None):
            found_it, cure = (
                ("encrypted", "give the key") if header.key_id else ("not encrypted", "leave the key out")
            )
            raise GalleryKeyError(f"{self.where}: found a gallery that is {found_it}; {cure}")
        vault = make_vault(key, header.gallery_id)
        if vault.key_id != header.key_id:
            raise GalleryKeyError(
                f"{self.where}: expected the key {header.key_id}, found another, {vault.key_id}"
            )
        if mark != mark_header(text, vault):
            raise GalleryDamagedError(f"{self.where}: its header was forged; restore a backup")
        if contract_id not in (None, header.contract_id):
            raise ContractError(
                f"{self.where}: expected a gallery of contract {contract_id}, found one of contract "
                f"{header.contract_id}; take that model"
            )
        return header, vault

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside `reading` or `writing`."""
        return self._depth > 0 and self._owner == threading.get_ident()

    @property
    def uncommitted(self) -> bool:
        """Whether the block that is open has changed something, which may yet be undone."""
        return self._depth > 0 and self._wrote

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """One state of the gallery, whatever others write meanwhile."""
        with self._lock:
            if self._depth:
                with self._nested():
                    yield self._connection
            else:
                with self._outermost(_READ):
                    yield self._connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Any]:
        """One state of the gallery on a connection of its own."""
        with self._lock:
            self._require_usable()
        connection = self.connect()
        with server_errors(self.where), contextlib.closing(connection.raw):
            connection.execute(_READ)
            self._require_header(connection)
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """All or nothing, and nobody else writes; a block within a block is undone alone."""
        with self._lock:
            if not self._depth:
                with self._outermost(_WRITE):
                    yield self._connection
                return
            wrote = self._wrote
            with self._nested():
                self._connection.execute("SAVEPOINT inner_block")
                try:
                    yield self._connection
                except BaseException:
                    self._wrote = wrote
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK TO inner_block")
                    raise
                self._connection.execute("RELEASE inner_block")

    @contextlib.contextmanager
    def _nested(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def _outermost(self, begin: str) -> Iterator[None]:
        self._begin(begin)
        self._depth, self._owner, self._wrote = 1, threading.get_ident(), False
        try:
            with server_errors(self.where):
                if begin == _WRITE:
                    self._connection.execute("SELECT 1 FROM gallery FOR UPDATE")
                self._require_header(self._connection)
                yield
                if self._wrote:
                    self._connection.execute("UPDATE gallery SET generation = generation + 1")
            with server_errors(self.where, doubt=_UNKNOWN if self._wrote else ""):
                self._connection.execute("COMMIT")
        finally:
            self._depth = 0
            if self._connection.in_transaction:
                with contextlib.suppress(driver().Error):
                    self._connection.execute("ROLLBACK")

    def _begin(self, begin: str) -> None:
        """Begin, on a new connection if the old one turns out to be dead: nothing was done on it yet."""
        self._require_usable()
        try:
            with server_errors(self.where):
                self._connection.execute(begin)
            return
        except GalleryServerError as error:
            _log.warning("%s; connecting again", error)
        self._connection.raw.close()
        self._connection = self.connect()
        with server_errors(self.where):
            self._connection.execute(begin)

    def _require_header(self, connection: Connection) -> None:
        (text,) = connection.execute("SELECT header FROM gallery").fetchone()
        if text != self.header.encode():
            raise GalleryError(
                f"{self.where}: somebody gave this gallery another key, or replaced it; open it again"
            )

    def _require_usable(self) -> None:
        if self._closed:
            raise GalleryError(f"{self.where}: this gallery is closed; open it again")
        if self._pid != os.getpid():
            raise GalleryError(
                f"{self.where}: opened before this process was forked; open it again in the child"
            )

    def wrote(self) -> int:
        """Say that the block changes something; the generation that it will be."""
        self._wrote = True
        return self.state("generation") + 1

    def state(self, column: str) -> int:
        """A number of the gallery's one row, inside a transaction."""
        return int(self._connection.execute(f"SELECT {column} FROM gallery").fetchone()[0])

    def take_ids(self, count: int) -> range:
        """Numbers that nobody had before, inside `writing`."""
        first = self.state("next_id")
        self._connection.execute("UPDATE gallery SET next_id = next_id + ?", (count,))
        return range(first, first + count)

    def replace_header(self, header: Header, vault: Vault) -> None:
        """Bind the gallery to something else, inside `writing`; the caller calls `adopt` after the commit."""
        text = header.encode()
        self._connection.execute(
            "UPDATE gallery SET header = ?, header_mark = ?", (text, mark_header(text, vault))
        )

    def adopt(self, header: Header, vault: Vault) -> None:
        """Go on with what `replace_header` wrote, now that it is committed."""
        self.header, self.vault = header, vault

    def outside(self, statement: str) -> None:
        """Run a statement that no transaction may hold, such as VACUUM."""
        with self._lock:
            if self._depth:
                raise GalleryError("expected to be outside of writing(): this is no part of a transaction")
            self._require_usable()
            with server_errors(self.where):
                self._connection.execute(statement)

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock:
            self._closed = True
            if self._pid == os.getpid():
                self._connection.raw.close()
