"""What SQLite says when it fails in, the error of edgeface that says what to do out."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from edgeface.errors import EdgeFaceError, GalleryBusyError, GalleryDamagedError, OutputError
from edgeface.files import free_bytes

__all__ = ["sqlite_errors"]

_BUSY = ("is locked", "locking protocol")
_SPACE = "disk is full"
_UNWRITABLE = {
    "readonly database": "it is on a read-only file system, or another user's; copy it to where it can be written",
    "unable to open": "expected a file, in a folder that this user may write to",
    "disk I/O error": "the medium fails, a limit on file sizes was met (ulimit -f), or it was taken away",
}


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite raises about a gallery's file into one clear error.

    Python 3.10 tells SQLite's error codes only as text.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(path, str(error)) from error


def _translate(path: Path, said: str) -> EdgeFaceError:
    if any(words in said for words in _BUSY):
        return GalleryBusyError(
            f"{path}: another process writes to this gallery and did not finish in time; nothing was changed here; try "
            "again, or wait longer (timeout)"
        )
    if _SPACE in said:
        return OutputError(
            f"{path}: no space left ({free_bytes(path):,} bytes are free there); what was being written is undone, "
            "everything before is kept; free some space"
        )
    for words, advice in _UNWRITABLE.items():
        if words in said:
            return OutputError(
                f"{path}: cannot be written or read: {said}; nothing that was stored is lost; {advice}"
            )
    return GalleryDamagedError(
        f"{path}: expected a gallery written by edgeface, found a file that is damaged or something else: {said}; "
        "restore it from a copy or an export"
    )
