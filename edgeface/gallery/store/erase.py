"""Erase for good what was deleted from a gallery's file, and prove it.

The file is rewritten, and then searched from the first byte to the last, as are the WAL and the cache. Out of reach are
copies and exports, and what the medium keeps of blocks that the file system has given up: encrypt the gallery, or the
disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeface.errors import GalleryBusyError
from edgeface.files import staging_folders, sweep_staging
from edgeface.gallery.records import Proof
from edgeface.gallery.store.cache import cache_folder, clear_cache
from edgeface.gallery.store.rows import Rows
from edgeface.gallery.store.searcher import Read, search_places
from edgeface.gallery.store.sqlite_database import SqliteDatabase

_PAUSE = 0.02


def overwrite(database: SqliteDatabase) -> None:
    """Rewrite the file, and let nothing old stay in the WAL or in the cache.

    SQLite overwrites what it deletes, but copies of a row that it moved earlier can lie in unused parts of other
    pages: `VACUUM` writes every page anew. The WAL holds pages as they were until it is truncated.
    """
    with database.writing():  # the cache is written by writers only
        clear_cache(database.path)
    sweep_staging(database.path.parent)
    database.outside("VACUUM")
    truncate_wal(database)


def truncate_wal(database: SqliteDatabase) -> None:
    """Wait for readers, as SQLite does, and for others who write the WAL into the file, as SQLite does not."""
    deadline = time.monotonic() + database.timeout
    while database.outside("PRAGMA wal_checkpoint(TRUNCATE)")[0]:
        if time.monotonic() < deadline:
            time.sleep(_PAUSE)
            continue
        raise GalleryBusyError(
            f"{database.path}: the rows are deleted but not yet overwritten, because another process is still reading; "
            "close that process, then run 'edgeface gallery check', which completes the erasure",
            found="another process is still reading",
            remedy="close that process",
        )


def files_of(gallery: Path) -> list[Path]:
    """List the gallery's file, what SQLite keeps beside it, its cache, and what is being written into its folder."""
    beside = [gallery.with_name(gallery.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    for folder in (cache_folder(gallery), *staging_folders(gallery.parent)):
        beside += sorted(folder.rglob("*"))
    return [path for path in beside if path.is_file()]


def prove(database: SqliteDatabase, rows: Rows, secrets: Sequence[bytes]) -> Proof:
    """Search every file for pieces of what was erased."""
    database.require_place()  # or a file would be missing from the proof
    proof = search_places(_opened(database), secrets, rows, database)
    database.require_place()
    return proof


def _opened(database: SqliteDatabase) -> Iterator[tuple[str, Read]]:
    for path in files_of(database.path):
        try:
            descriptor = database.descriptor(path)
        except FileNotFoundError:  # what another process was writing; its name ended meanwhile
            continue

        def read(offset: int, length: int, descriptor: int = descriptor) -> bytes:
            return os.pread(descriptor, length, offset)

        yield path.relative_to(database.path.parent).as_posix(), read
