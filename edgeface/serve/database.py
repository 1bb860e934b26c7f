"""Open the service's own SQLite files: private, of a known schema, and never taken for what they are not.

Keys and the audit log have one file each, in WAL mode: readers never wait, and a process that is killed leaves what it
had committed. The folder is made for its owner alone (mode 0700), and so is the file (0600).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeface.errors import InputError, OutputError
from edgeface.files import output_errors, staging_folder
from edgeface.gallery.store.sqlite_database import sqlite_errors


class ServiceFileError(InputError):
    """A file of the service's is missing, damaged, something else, or may be written by other users."""


@dataclass(frozen=True, slots=True)
class ServiceFileKind:
    """One kind of file: its name in messages, its mark in SQLite's header, its tables, and when commits are synced."""

    what: str
    application_id: int
    schema: str
    synchronous: str
    """``FULL``: a commit outlives a power cut. ``NORMAL``: it outlives a killed process."""
    version: int = 1


class ServiceFile:
    """One connection to such a file, for all threads of a process.

    Parameters
    ----------
    path
        The file.
    kind
        What it is.
    create
        Make it, without rows, where there is none.
    timeout
        Seconds to wait for another process that writes.

    Raises
    ------
    ServiceFileError
        If it is missing and not to be made, is damaged, is another kind of file or of a newer version, or other users
        may write to it. Nothing in it is changed then.
    OutputError
        If it cannot be made or written to.
    """

    def __init__(self, path: Path, kind: ServiceFileKind, *, create: bool, timeout: float = 5.0) -> None:
        self.path, self._kind = path, kind
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        if create and not path.exists():
            self._make()
        _require_own(path, kind.what)
        with self._errors():
            uri = f"{path.absolute().as_uri()}?mode=rw"
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare(self._connection)
                self._identity = _identity(path)
            except BaseException:
                self.close()
                raise

    @property
    def closed(self) -> bool:
        """Return whether it is closed."""
        return self._connection is None

    def close(self) -> None:
        """Close the connection; closing again does nothing."""
        with self.lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside a transaction that is undone if the block fails.

        Raises as the class, and `ServiceFileError` if the file was removed or replaced since it was opened.
        """
        with self.lock, self._errors():
            if (connection := self._connection) is None:
                raise ServiceFileError(path=self.path, expected=f"an open {self._kind.what}", found="a closed one")
            self._require_place()
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite undid it itself where the disk was full
                    connection.execute("ROLLBACK")
                raise

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Sync what was committed; `truncate`: and empty the write-ahead log, unless another process reads it."""
        with self.lock, self._errors():
            if self._connection is not None:
                self._connection.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'PASSIVE'})").fetchall()

    def rewrite(self) -> None:
        """Write every page anew, without copies of what was removed, and empty the write-ahead log as `checkpoint`."""
        with self.lock, self._errors():
            if self._connection is not None:
                self._connection.execute("VACUUM")
        self.checkpoint(truncate=True)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        restore = "nothing in it was changed; restore it from a copy, or move it away"
        return sqlite_errors(self.path, self._kind.what, damaged=ServiceFileError, busy=OutputError, restore=restore)

    def _require_place(self) -> None:
        """SQLite goes on with a file that has no name any more: what it acknowledged then would be lost."""
        try:
            same = _identity(self.path) == self._identity
        except OSError:
            same = False
        if not same:
            raise ServiceFileError(
                path=self.path,
                expected=f"the {self._kind.what} that was opened",
                found="that it was removed or replaced meanwhile",
                remedy="start the service again",
            )

    def _make(self) -> None:
        """Make the file whole or not at all; another process may do so at the same time."""
        with output_errors(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with staging_folder(self.path.parent) as staging, self._errors():
            staged = staging / "new"
            with contextlib.closing(sqlite3.connect(staged, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(
                    f"BEGIN; {self._kind.schema} PRAGMA application_id = {self._kind.application_id}; "
                    f"PRAGMA user_version = {self._kind.version}; COMMIT"
                )
            staged.chmod(0o600)
            with output_errors(self.path), contextlib.suppress(FileExistsError):
                os.link(staged, self.path)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "secure_delete = ON", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute(f"PRAGMA synchronous = {self._kind.synchronous}")
        (mark,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if mark == self._kind.application_id and version > self._kind.version:
            raise ServiceFileError(
                path=self.path,
                expected=f"a {self._kind.what} of version {self._kind.version}",
                found=f"version {version}",
                remedy="update edgeface",
            )
        with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
            fresh.executescript(self._kind.schema)
            wanted = _parts(fresh)
        if mark != self._kind.application_id or _parts(connection) != wanted:
            raise ServiceFileError(
                path=self.path,
                expected=f"a {self._kind.what} written by edgeface",
                found="another SQLite file, or one with foreign tables or triggers",
                remedy="name the right file, or restore it from a copy",
            )


def last_too_old(connection: sqlite3.Connection, table: str, since: str, now: str) -> int:
    """Return the sequence of the last row of a log to remove, with all before it; 0: none.

    Rows are removed from the first on, up to the last one that is older than `since`, and not beyond the first one that
    is dated from `since` to `now`. One that is dated in the future is neither: its clock was wrong, or this one was set
    back; it leaves when a row after it is old.
    """
    (last,) = connection.execute(
        "SELECT min(coalesce(old, 0), coalesce(young - 1, old, 0)) FROM "
        f"(SELECT max(sequence) AS old FROM {table} WHERE time < :since), "
        f"(SELECT min(sequence) AS young FROM {table} WHERE time BETWEEN :since AND :now)",
        {"since": since, "now": now},
    ).fetchone()
    return int(last)


def _parts(connection: sqlite3.Connection) -> set[tuple[str, ...]]:
    return set(connection.execute("SELECT type, name, sql FROM sqlite_master"))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _require_own(path: Path, what: str) -> None:
    """Refuse a file that is none, or that others could have put keys or rows into."""
    try:
        file, folder = path.stat(), path.absolute().parent.stat()
    except OSError as error:
        raise ServiceFileError(
            path=path, expected=f"a {what}", found=error.strerror or str(error), remedy="check the path"
        ) from error
    if not stat.S_ISREG(file.st_mode):
        raise ServiceFileError(path=path, expected=f"a {what}", found="no regular file", remedy="check the path")
    open_folder = folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX
    if file.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or open_folder:
        raise ServiceFileError(
            path=path,
            expected=f"a {what} that only its owner may write",
            found=f"mode {stat.S_IMODE(file.st_mode):04o} in a folder of mode {stat.S_IMODE(folder.st_mode):04o}",
            remedy="check who wrote to it, then chmod 600 the file and 700 the folder",
        )
