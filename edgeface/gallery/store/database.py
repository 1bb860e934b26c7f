"""A gallery's file in, transactions on it out: durable, one writer at a time, and never under another key or contract.

SQLite in WAL mode with `synchronous=FULL`: a commit is on the disk when it returns. Deleted rows are overwritten
(`secure_delete`), and nothing of a gallery goes to temporary files (`temp_store=MEMORY`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeface.errors import ContractError, GalleryDamagedError, GalleryError, GalleryKeyError, OutputError
from edgeface.gallery.codec import Header
from edgeface.gallery.store.cipher import Vault, make_vault
from edgeface.gallery.store.descriptors import Connection, connect
from edgeface.gallery.store.faults import sqlite_errors
from edgeface.gallery.store.schema import APPLICATION_ID, SCHEMA_VERSION, migrate

__all__ = ["Database", "mark_header"]

_PRAGMAS = (
    "synchronous = FULL",
    "secure_delete = ON",
    "foreign_keys = ON",
    "temp_store = MEMORY",
    "trusted_schema = OFF",
    "cell_size_check = ON",
)
_DIGEST = 16


def mark_header(text: str, vault: Vault) -> bytes:
    """What proves a header: a digest that anyone can check, and one that only the key's holder can make."""
    return _plain_digest(text) + vault.mark(text.encode())


def _plain_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest()


def _resolved(path: Path) -> Path:
    """The one name of a gallery, by which its WAL, what is derived from it, and who searches them go."""
    try:
        real = path.resolve()
        found = real.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        raise GalleryError(f"{path}: expected a gallery that this user may read, found: {error}") from error
    if not found:
        raise GalleryError(
            f"{path}: expected a gallery, found no file; make one: edgeface gallery create {path} --model IR"
        )
    return real


class Database:
    """One connection to a gallery's file.

    Parameters
    ----------
    path
        The file.
    key
        32 bytes, or None for a gallery that is not encrypted.
    contract_id
        That the gallery must be of; None: whatever it is of.
    timeout
        Seconds to wait for another process that writes.

    Raises
    ------
    GalleryKeyError, GalleryDamagedError, ContractError, GalleryError, OutputError
        If it cannot be opened, with the reason.
    """

    def __init__(self, path: Path, *, key: bytes | None, contract_id: str | None, timeout: float) -> None:
        self.path = path = _resolved(path)
        self.timeout, self._pid = timeout, os.getpid()
        self._lock = threading.RLock()
        self._depth, self._owner, self._wrote = 0, 0, False
        with sqlite_errors(path):
            self._connection: Connection | None = self.connect()
            try:
                version = self._version(self._connection)
                self.header, self.vault = self._read_header(self._connection, key, contract_id)
                if version < SCHEMA_VERSION:  # not before it is known that whoever asks has the key
                    migrate(self._connection)
                self.version = SCHEMA_VERSION
            except BaseException:
                self._connection.close()
                raise

    def connect(self) -> Connection:
        """Open one more connection to the file."""
        mode = "rw"
        if os.statvfs(self.path).f_flag & os.ST_RDONLY:
            mode = "ro&immutable=1"
            wal = self.path.with_name(self.path.name + "-wal")
            if wal.exists() and wal.stat().st_size:
                raise OutputError(
                    f"{self.path}: was not closed after its last writes, which are in {wal.name}, and is on a "
                    "read-only file system; copy both files to where they can be written"
                )
        uri = f"{self.path.as_uri()}?mode={mode}"
        connection = connect(
            self.path, uri=uri, timeout=self.timeout, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _version(self, connection: sqlite3.Connection) -> int:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise GalleryDamagedError(
                f"{self.path}: expected a gallery written by edgeface, found another SQLite database, or a damaged one"
            )
        if not 1 <= version <= SCHEMA_VERSION:
            raise GalleryError(
                f"{self.path}: expected a gallery of version 1 to {SCHEMA_VERSION}, found version {version}; update "
                "edgeface"
            )
        return int(version)

    def _read_header(
        self, connection: sqlite3.Connection, key: bytes | None, contract_id: str | None
    ) -> tuple[Header, Vault]:
        row = connection.execute("SELECT header, header_mark FROM gallery").fetchone()
        if row is None or not isinstance(row[1], bytes) or row[1][:_DIGEST] != _plain_digest(str(row[0])):
            raise GalleryDamagedError(
                f"{self.path}: its header is not what was written; restore it from a copy"
            )
        header = Header.decode(row[0])
        if header.key_id and key is None:
            raise GalleryKeyError(
                f"{self.path}: this gallery is encrypted and no key was given; give it with --key"
            )
        if key is not None and not header.key_id:
            raise GalleryKeyError(
                f"{self.path}: expected an encrypted gallery, because a key was given; found one that is not: it is "
                "another file, or leave the key out"
            )
        vault = make_vault(key, header.gallery_id)
        if vault.key_id != header.key_id:
            raise GalleryKeyError(
                f"{self.path}: expected the key {header.key_id}, found another one, {vault.key_id}; after an "
                "interrupted rekey, try the key before or after it"
            )
        if row[1] != mark_header(row[0], vault):
            raise GalleryDamagedError(f"{self.path}: its header was forged; restore it from a copy")
        if contract_id not in (None, header.contract_id):
            raise ContractError(
                f"{self.path}: expected a gallery of contract {contract_id}, found one of contract "
                f"{header.contract_id}{f' ({header.model})' if header.model else ''}; take that model, or bring the "
                "gallery to this one: edgeface gallery rebuild"
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
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the gallery, whatever others write meanwhile."""
        with self._entered("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """One state of the gallery on a connection of its own, which holds up nobody else."""
        with self._lock, sqlite_errors(self.path):
            self._usable()
            connection = self.connect()
        try:
            with sqlite_errors(self.path):
                connection.execute("BEGIN")
                self._require_header(connection)
                yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and nobody else writes; a block within a block is undone alone."""
        with self._lock:
            if not self._depth:
                with self._entered("BEGIN IMMEDIATE") as connection:
                    yield connection
                return
            wrote = self._wrote
            with self._entered("") as connection:
                connection.execute("SAVEPOINT inner_block")
                try:
                    yield connection
                except BaseException:
                    self._wrote = wrote
                    if connection.in_transaction:
                        connection.execute("ROLLBACK TO inner_block")
                        connection.execute("RELEASE inner_block")
                    raise
                connection.execute("RELEASE inner_block")

    @contextlib.contextmanager
    def _entered(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock, sqlite_errors(self.path):
            connection = self._usable()
            if self._depth:
                self._depth += 1
                try:
                    yield connection
                finally:
                    self._depth -= 1
                return
            connection.execute(begin)
            self._depth, self._owner, self._wrote = 1, threading.get_ident(), False
            try:
                self._require_header(connection)
                yield connection
                if self._wrote:
                    connection.execute("UPDATE gallery SET generation = generation + 1")
                connection.execute("COMMIT")
            finally:
                self._depth = 0
                if connection.in_transaction:  # not where SQLite undid it itself, as when the disk is full
                    connection.execute("ROLLBACK")

    def _require_header(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT header FROM gallery").fetchone() != (self.header.encode(),):
            raise GalleryError(
                f"{self.path}: another process gave this gallery another key or another model; open it again"
            )

    def _usable(self) -> Connection:
        if self._connection is None:
            raise GalleryError(f"{self.path}: this gallery is closed; open it again")
        if self._pid != os.getpid():
            raise GalleryError(
                f"{self.path}: opened before this process was forked; open it again in the child"
            )
        if self._depth and not self._connection.in_transaction:
            raise OutputError(f"{self.path}: what was being written was undone by an earlier failure")
        return self._connection

    def wrote(self) -> int:
        """Say that the block changes something; the generation that it will be."""
        self._wrote = True
        return self.state("generation") + 1

    def state(self, column: str) -> int:
        """A number of the gallery's one row, inside a transaction."""
        row = self._usable().execute(f"SELECT {column} FROM gallery").fetchone()
        if row is None or not isinstance(row[0], int):
            raise GalleryDamagedError(f"{self.path}: expected a number in {column}, found {row!r:.40}")
        return row[0]

    def take_ids(self, count: int) -> range:
        """Numbers that nobody had before, inside `writing`."""
        first = self.state("next_id")
        self._usable().execute("UPDATE gallery SET next_id = next_id + ?", (count,))
        return range(first, first + count)

    def outside(self, statement: str) -> Any:
        """Run a statement that no transaction may hold, such as VACUUM; its first row."""
        with self._lock, sqlite_errors(self.path):
            if self._depth:
                raise GalleryError("expected to be outside of writing(): this is no part of a transaction")
            return self._usable().execute(statement).fetchone()

    def descriptor(self, file: Path) -> int:
        """A descriptor of one of the gallery's files, for `os.pread`; only SQLite may close it: see `descriptors`."""
        # Without the lock another thread's block that is just beginning or ending would be taken for a broken one.
        with self._lock:
            return self._usable().descriptor(file)

    def replace_header(self, header: Header, vault: Vault) -> None:
        """Bind the gallery to something else, inside `writing`; the caller calls `adopt` after the commit."""
        text = header.encode()
        self._usable().execute(
            "UPDATE gallery SET header = ?, header_mark = ?", (text, mark_header(text, vault))
        )

    def adopt(self, header: Header, vault: Vault) -> None:
        """Go on with what `replace_header` wrote, now that it is committed."""
        self.header, self.vault = header, vault

    def close(self) -> None:
        """Close; SQLite moves the WAL's content into the file when nobody else has it open."""
        with self._lock, sqlite_errors(self.path):
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None
