"""Put a copy of a gallery's file back, so that nothing that was made of the lost state is taken for current."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeface.errors import GalleryBusyError, GalleryDamagedError, GalleryError, InputError, NotSupportedError
from edgeface.files import output_errors, staging_folder
from edgeface.gallery.address import is_on_server, split_address
from edgeface.gallery.codec import GalleryHeader
from edgeface.gallery.store.cache import clear_cache
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.store.sqlite_database import open_connection, sqlite_errors, sync_folder
from edgeface.gallery.store.sqlite_schema import APPLICATION_ID
from edgeface.untrusted import open_regular, reading

_PAUSE = 0.02
_BESIDE = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restoring:
    """What `restore_gallery` did.

    Attributes
    ----------
    people, templates
        How many the gallery has now.
    generation
        Of the gallery now; higher than before, also than in the copy.
    lost
        How many people were enrolled after the copy was made, and are no longer in the gallery.
    returned
        Names of people who were forgotten after the copy was made, and are enrolled again.
    key_id, former_key_id
        Of the keys of the copy, which is in force now, and of what was replaced; empty without encryption. The former
        is None if there was no gallery, or a damaged one.
    """

    people: int
    templates: int
    generation: int
    lost: int
    returned: tuple[str, ...]
    key_id: str
    former_key_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What a file that is restored must not go back behind."""

    gallery_id: str
    generation: int
    next_id: int
    people: frozenset[int]
    key_id: str


def restore_gallery(gallery: str | Path, backup: Path, *, key: bytes | None, timeout: float = 30.0) -> Restoring:
    """Replace a gallery by an earlier copy of its file, whole or not at all.

    The copy is checked first, and stays as it is. Where the gallery's file can be read it is written over in one
    transaction, so that other processes that have it open go on with the copy. Numbers of people, templates and
    generations go on from the higher ones, so that none is given twice. What was lost is then erased from the file.

    Parameters
    ----------
    gallery
        Its file; missing and damaged ones are made anew.
    backup
        The copy: a file that was copied while no process had it open, or with its ``-wal``, or by SQLite's ``.backup``.
    key
        Of the copy, which can be another one than the gallery's.
    timeout
        Seconds to wait for other processes.

    Raises
    ------
    GalleryError
        If the copy cannot be opened with this key or is damaged, or `gallery` is another gallery or something else.
    NotSupportedError
        If the gallery is on a server, whose administrator restores it.
    OutputError
        If there is no room: three times the copy's size at most.
    """
    if is_on_server(gallery):
        _, name = split_address(str(gallery))
        raise NotSupportedError(
            f"restore: expected a gallery in a file, found {name!r} on a server, whose tables the administrator copies "
            f"and puts back: pg_dump --format=custom --schema=edgeface_{name} --file=COPY ADDRESS, pg_restore --clean "
            "--if-exists --single-transaction --dbname=ADDRESS COPY; then run 'edgeface gallery check'; or use "
            "'edgeface gallery export' and 'import'"
        )
    path = Path(gallery).resolve()
    if path.exists() and backup.exists() and path.samefile(backup):
        raise GalleryError(f"{backup}: expected a copy of the gallery, found the gallery itself")
    before = _state_of(path, timeout)
    with staging_folder(path.parent) as folder:
        staged = folder / path.name
        _copy(backup, staged)
        done = _prepare(staged, backup, before, key)
        if before is None or not _write_over(staged, path, timeout):
            _replace(staged, path)
    with SqliteStore(path, key=key, timeout=timeout):  # which erases what was lost
        return done


def _state_of(path: Path, timeout: float) -> _State | None:
    """Read what there is without a key; None if it is not there, or damaged."""
    if not path.exists():
        return None
    with reading(path, "a gallery, or no file", error=GalleryError), open_regular(path) as file:
        start = file.read(100)
    if len(start) < 100 or struct.unpack_from(">I", start, 68)[0] != APPLICATION_ID:
        raise GalleryError(
            f"{path}: expected a gallery, or no file, found something else or a gallery without its first bytes; "
            "move it away, then run restore again"
        )
    try:
        with _open(path, timeout) as connection:
            text, generation, next_id = connection.execute("SELECT header, generation, next_id FROM gallery").fetchone()
            people = frozenset(row[0] for row in connection.execute("SELECT id FROM people"))
        header = GalleryHeader.decode(text)
        return _State(
            gallery_id=header.gallery_id,
            generation=int(generation),
            next_id=int(next_id),
            people=people,
            key_id=header.key_id,
        )
    except (GalleryDamagedError, ValueError, LookupError, TypeError):
        return None


@contextlib.contextmanager
def _open(path: Path, timeout: float) -> Iterator[sqlite3.Connection]:
    with sqlite_errors(path), contextlib.closing(open_connection(path, timeout=timeout)) as connection:
        yield connection


def _copy(backup: Path, staged: Path) -> None:
    """Copy a file with what is still in its WAL."""
    try:
        for suffix in ("", "-wal"):
            source = backup.with_name(backup.name + suffix)
            if not suffix or source.exists():
                with open_regular(source) as read, staged.with_name(staged.name + suffix).open("wb") as written:
                    shutil.copyfileobj(read, written)
    except InputError as error:
        raise GalleryError(f"{backup}: {error}") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise GalleryError(f"{backup}: expected a copy of a gallery, found: {error.strerror}") from error
    staged.chmod(0o600)


def _prepare(staged: Path, backup: Path, before: _State | None, key: bytes | None) -> Restoring:
    """Check the copy, and number it so that it goes on from where the gallery was."""
    try:
        store = SqliteStore(staged, key=key)
    except GalleryError as error:
        raise type(error)(str(error).replace(str(staged), str(backup))) from error
    with store:
        if before is not None and before.gallery_id != store.info.gallery_id:
            raise GalleryError(
                f"{backup}: expected a copy of the gallery {before.gallery_id}, found one of {store.info.gallery_id}; "
                "restore it under another name"
            )
        if problems := store.check().problems:
            raise GalleryDamagedError(
                f"{backup}: this copy is damaged, and nothing was restored: {problems[0]}"
                f"{f'; {len(problems) - 1} more' if problems[1:] else ''}; restore another copy, or import an export"
            )
        with store.database.writing() as connection:
            generation = max(store.database.wrote(), before.generation + 1 if before else 0)
            connection.execute(
                "UPDATE gallery SET generation = ?, next_id = max(next_id, ?), known_since = ?, unscrubbed = ?, "
                "cached = ''",
                (generation - 1, before.next_id if before else 0, generation, generation),
            )
        people = store.people()
        known = before.people if before else frozenset(person.id for person in people)
        return Restoring(
            people=len(people),
            templates=sum(person.template_count for person in people),
            generation=generation,
            lost=len(known - {person.id for person in people}),
            returned=tuple(person.name for person in people if person.id not in known),
            key_id=store.database.header.key_id,
            former_key_id=before.key_id if before else None,
        )


def _write_over(staged: Path, path: Path, timeout: float) -> bool:
    """Replace the content of the gallery's file in one transaction; return whether that was possible."""
    deadline = time.monotonic() + timeout

    def wait(status: int, remaining: int, total: int) -> None:
        if time.monotonic() > deadline:
            raise GalleryBusyError(
                f"{path}: another process writes to this gallery and did not finish in time; nothing was restored; try "
                "again"
            )

    try:
        with _open(staged, timeout) as source, _open(path, timeout) as target:
            sizes = {each.execute("PRAGMA page_size").fetchone() for each in (source, target)}
            if len(sizes) > 1:  # SQLite refuses that for a file with a WAL
                return False
            source.backup(target, progress=wait, sleep=_PAUSE)
    except GalleryDamagedError:
        return False
    return True


def _replace(staged: Path, path: Path) -> None:
    """Take the place of a damaged file, or of none, without what lay beside it, which SQLite would write into it."""
    with output_errors(path):
        if path.exists():
            shutil.copymode(path, staged)
        for suffix in _BESIDE:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        clear_cache(path)
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        staged.replace(path)
        sync_folder(path.parent)
