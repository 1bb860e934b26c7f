"""A gallery's SQLite file: its creation, and durable transactions on it.

WAL mode with `synchronous=FULL`: a commit is on the disk when it returns. Deleted rows are overwritten
(`secure_delete`), and nothing of a gallery goes to temporary files (`temp_store=MEMORY`).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeface.cipher import Cipher
from edgeface.errors import (
    GalleryBusyError,
    GalleryDamagedError,
    GalleryError,
    GalleryReplacedError,
    InputError,
    OutputError,
)
from edgeface.files import free_bytes, output_errors, staging_folder
from edgeface.gallery.codec import GalleryHeader
from edgeface.gallery.store.database import Database, mark_header, record_commit
from edgeface.gallery.store.sqlite_schema import SCHEMA_VERSION, create_tables, foreign_parts, migrate, require_schema
from edgeface.gallery.store.wal import require_own_wal

# Errors

_BUSY = ("is locked", "locking protocol")
_SPACE = "disk is full"
_UNWRITABLE = {
    "readonly database": "it is on a read-only file system, or another user's; copy it to where it can be written",
    "unable to open": "expected a file, in a folder that this user may write to",
    "disk I/O error": "the medium fails, a limit on file sizes was met (ulimit -f), or it was taken away",
}


@contextlib.contextmanager
def sqlite_errors(
    path: Path,
    what: str = "gallery",
    *,
    damaged: type[InputError] = GalleryDamagedError,
    busy: type[InputError] = GalleryBusyError,
    restore: str = "restore it from a copy or an export",
) -> Iterator[None]:
    """Turn what SQLite raises about a file into one clear error; `what` names the file's kind."""
    try:
        yield
    # OverflowError: a count that was the largest already. UnicodeDecodeError: a message that quotes damaged bytes.
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        said = str(error)
        if any(words in said for words in _BUSY):
            found = f"another process writes to this {what} and did not finish in time"
            raise busy(
                f"{path}: {found}; nothing was changed here; try again, or wait longer (timeout)", found=found
            ) from error
        if (failure := _write_failure(path, said)) is not None:
            raise failure from error
        raise damaged(
            f"{path}: expected a {what} written by edgeface, found a file that is damaged or something else: {said}; "
            f"{restore}"
        ) from error


def _write_failure(path: Path, said: str) -> OutputError | None:
    """Choose the error by SQLite's text: Python 3.10 does not give its codes."""
    if _SPACE in said:
        found, remedy = f"no space left ({free_bytes(path):,} bytes are free there)", "free some space"
        text = f"{path}: {found}; what was being written is undone, everything before is kept; {remedy}"
        return OutputError(text, found=found, remedy=remedy)
    for words, advice in _UNWRITABLE.items():
        if words in said:
            found = f"cannot be written or read: {said}"
            return OutputError(f"{path}: {found}; nothing that was stored is lost; {advice}", found=found)
    return None


# Creation

_PAGE_SIZE = 16384
"""Bytes: seven templates of 512 values a page. In 4,096 one would fit, and half of the file would be empty."""

_BESIDE = ("-wal", "-shm", "-journal", ".index")
"""Endings of what lies beside a gallery. SQLite would write what an earlier one left there into the new one."""


def create_database(path: Path, header: GalleryHeader, cipher: Cipher) -> None:
    """Make a gallery without people, whole or not at all.

    Only its owner may read it (mode 0600), and SQLite gives what it keeps beside it the same mode.

    Raises
    ------
    OutputError
        If something is there already, or the folder cannot be written to.
    """
    with output_errors(path):
        if path.exists():
            raise OutputError(f"{path}: this file exists already; choose another name")
        for suffix in _BESIDE:
            if (left := path.with_name(path.name + suffix)).exists():
                raise OutputError(
                    f"{path}: {left.name} is left over from an earlier gallery; restore that gallery, "
                    "remove the file, or choose another name"
                )
    with staging_folder(path.parent) as staging, sqlite_errors(path):
        staged = staging / path.name
        connection = sqlite3.connect(staged, isolation_level=None)
        try:
            connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise OutputError(
                    f"{path}: SQLite requires a local disk for its write-ahead log; on this file system it falls back "
                    f"to {mode!r}; choose another folder, or PostgreSQL for a gallery that several machines share"
                )
            connection.execute("BEGIN IMMEDIATE")
            create_tables(connection)
            text = header.encode()
            connection.execute(
                "INSERT INTO gallery (one, header, header_mark, generation, next_id) VALUES (1, ?, ?, 1, 1)",
                (text, mark_header(text, cipher)),
            )
            record_commit(connection)
            connection.commit()
        finally:
            connection.close()
        with output_errors(path):
            with contextlib.suppress(PermissionError):  # a file system without modes
                staged.chmod(0o600)
            _link(staged, path)
            sync_folder(path.parent)


def _link(staged: Path, path: Path) -> None:
    """Give a finished file its name, and never take the name from another."""
    try:
        try:
            os.link(staged, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links, such as that of a USB stick
            path.touch(mode=0o600, exist_ok=False)
            staged.replace(path)
    except FileExistsError:
        raise OutputError(f"{path}: this file exists already; choose another name") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Connections, and descriptors that cost no lock
#
# POSIX takes every lock that a process has on a file from it as soon as it closes any descriptor of that file
# (fcntl(2)). SQLite keeps processes apart by such locks: without them the next process that closes the gallery takes
# itself for the last one and deletes the WAL, in which this one then goes on to acknowledge what is never seen again
# (sqlite.org/howtocorrupt.html, 2.2). So a descriptor that is opened here stays open until this process has closed
# its last connection to the gallery.

_Identity = tuple[int, int]
"""Of a file: its device and inode."""


@dataclass(slots=True)
class _Held:
    connections: int = 0
    descriptors: dict[_Identity, int] = field(default_factory=dict)


_lock = threading.Lock()
_held: dict[_Identity, _Held] = {}


class _Connection(sqlite3.Connection):
    """A connection to a gallery; the last one of a process closes what `descriptor` opened."""

    gallery: _Identity | None = None

    def descriptor(self, file: Path) -> int:
        """Return a descriptor of one of the gallery's files, for `os.pread`; the caller must not close it."""
        if self.gallery is None:
            raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
        with _lock:
            descriptors = _held[self.gallery].descriptors
            identity = _identity(file)
            if identity not in descriptors:
                descriptors[identity] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return descriptors[identity]

    def close(self) -> None:
        """Close the connection, and then, never before, the descriptors."""
        super().close()
        gallery, self.gallery = self.gallery, None
        if gallery is not None:
            _release(gallery)


def _connect(path: Path, *, uri: str, timeout: float) -> _Connection:
    with _lock:
        gallery = _identity(path)
        _held.setdefault(gallery, _Held()).connections += 1
    try:
        connection = sqlite3.connect(
            uri, uri=True, factory=_Connection, timeout=timeout, isolation_level=None, check_same_thread=False
        )
    except BaseException:
        _release(gallery)
        raise
    connection.gallery = gallery
    return connection


def _release(gallery: _Identity) -> None:
    with _lock:
        held = _held[gallery]
        held.connections -= 1
        if not held.connections:
            for descriptor in _held.pop(gallery).descriptors.values():
                os.close(descriptor)


def _identity(file: Path) -> _Identity:
    status = file.stat()
    return status.st_dev, status.st_ino


_PRAGMAS = (
    "trusted_schema = OFF",
    "cell_size_check = ON",
    "synchronous = FULL",
    "secure_delete = ON",
    "foreign_keys = ON",
    "temp_store = MEMORY",
)
_DEFENSES = {
    "SQLITE_DBCONFIG_DEFENSIVE": True,
    "SQLITE_DBCONFIG_ENABLE_TRIGGER": False,
    "SQLITE_DBCONFIG_ENABLE_VIEW": False,
}
"""For `Connection.setconfig`, which Python has since 3.12. Foreign keys do not need triggers."""


def _resolved(path: Path) -> Path:
    """Return the one name of a gallery, which its WAL, its cache and the search for secrets go by."""
    try:
        real = path.resolve()
        found = real.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        raise GalleryError(f"{path}: expected a gallery that this user may read, found: {error}") from error
    if not found and real.exists() and not real.is_dir():
        raise GalleryError(path=path, expected="a gallery", found="a device, pipe or socket", remedy="name a file")
    if not found:
        folder, place = real.is_dir(), path / "people.gallery" if real.is_dir() else path
        raise GalleryError(
            path=path,
            expected="a gallery",
            found="a folder" if folder else "no file",
            remedy=f"{'name a file, or ' if folder else ''}make one: edgeface gallery create {place} --model IR",
        )
    return real


def open_connection(path: Path, *, timeout: float) -> _Connection:
    """Open a gallery's file as it must be opened, if its schema is a gallery's; it raises what `require_schema` does.

    Nothing is written where the file system is read-only.
    """
    mode, wal = "rw", path.with_name(path.name + "-wal")
    unwritten = wal.exists() and wal.stat().st_size
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        mode = "ro&immutable=1"
        if unwritten:
            raise OutputError(
                f"{path}: its last writes are still in {wal.name}, and the file system is read-only; "
                "copy both files to a folder that can be written"
            )
    elif unwritten:
        with contextlib.closing(_connect(path, uri=f"{path.as_uri()}?mode=ro", timeout=timeout)) as reader:
            _prepare(reader, path, unwritten=True)  # a connection that may write writes the WAL on closing
    connection = _connect(path, uri=f"{path.as_uri()}?mode={mode}", timeout=timeout)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: _Connection, path: Path, *, unwritten: bool = False) -> None:
    """Set up a new connection, and compare the schema, and a WAL that is not yet written into the file."""
    if hasattr(connection, "setconfig"):
        for name, value in _DEFENSES.items():
            connection.setconfig(getattr(sqlite3, name), value)
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN")
    require_schema(connection, path)
    if unwritten:
        require_own_wal(connection, path, connection.descriptor)
    connection.execute("COMMIT")


class SqliteDatabase(Database):
    """One connection to a gallery's file; see `SqliteStore` for its parameters and errors."""

    def __init__(self, path: Path, *, key: bytes | None, contract_id: str | None, timeout: float) -> None:
        self.path = path = _resolved(path)
        self._schema: int | None = None  # the state of the schema that was compared last
        super().__init__(str(path), timeout=timeout)
        with sqlite_errors(path):
            self._connection: _Connection = open_connection(path, timeout=timeout)
            try:
                row = self._connection.execute("SELECT header, header_mark FROM gallery").fetchone()
                self._bind(*((str(row[0]), row[1]) if row else ("", None)), key=key, contract_id=contract_id)
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                self.old_cache = version < 3  # as edgeface 0.1 wrote it
                if version < SCHEMA_VERSION:  # only after it is known that the caller has the key
                    migrate(self._connection, path)
                self.version = SCHEMA_VERSION
                beside = (path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm"))
                self._files = {file: _identity(file) for file in beside if file.exists()}
            except BaseException:
                self._connection.close()
                raise

    def require_place(self) -> None:
        """Raise `GalleryReplacedError` if the file, or one of SQLite's beside it, was removed or replaced.

        SQLite goes on with the file that has no name any more: what it acknowledged then would be lost.
        """
        for file, identity in self._files.items():
            try:
                same = _identity(file) == identity
            except OSError:
                same = False
            if not same:
                found = f"{file.name} was removed or replaced while the gallery was open"
                raise GalleryReplacedError(
                    f"{self.path}: {found}; nothing was changed; open the gallery again, and put copies back with "
                    "'edgeface gallery restore'",
                    found=found,
                )

    def foreign_parts(self) -> list[str]:
        return foreign_parts(self._connection, self.version)

    def _errors(self, *, committing: bool = False) -> contextlib.AbstractContextManager[None]:
        return sqlite_errors(self.path)

    def _begin(self, *, write: bool) -> Any:
        self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        (schema,) = self._connection.execute("PRAGMA schema_version").fetchone()
        if schema != self._schema:  # SQLite counts changes, by whatever program, and VACUUM
            require_schema(self._connection, self.path)
            self._schema = schema
        return self._connection

    def _roll_back(self) -> None:
        # None is open where SQLite undid it itself, as when the disk is full.
        if self._connection is not None and self._connection.in_transaction:
            with sqlite_errors(self.path):
                self._connection.execute("ROLLBACK")

    def descriptor(self, file: Path) -> int:
        """Return a descriptor of one of the gallery's files, for `os.pread`; only this class may close it."""
        # Without the lock another thread's block that is just beginning or ending would be taken for a broken one.
        with self._lock:
            descriptor: int = self._usable().descriptor(file)
            return descriptor
