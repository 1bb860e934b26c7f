"""Notice a WAL that was not written after the state of the gallery's file beside which it lies.

SQLite writes the pages of any valid WAL into the file of its name. Beside a copy that was put there by hand that makes
a gallery of two states. The generation tells them apart: a WAL goes on from the generation that the file had when the
WAL was begun, and a checkpoint raises the file's at most to that of its last commit.

WAL: a header of 32 bytes (page size at 8, two salts at 16), then frames: page number, pages of the database after a
commit or 0, the salts, a checksum of 8 bytes, and the page (sqlite.org/fileformat2.html, 4.1).
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeface.errors import GalleryDamagedError

_HEADER, _FRAME = struct.Struct(">8xI4x8s8x"), struct.Struct(">II8s8x")
_COLUMN = 3
"""Place of `generation` in the table `gallery`."""
_INTEGERS = (0, 1, 2, 3, 4, 6, 8)
"""Bytes of the serial types 0 (NULL) to 6 of a record."""


def require_own_wal(connection: sqlite3.Connection, path: Path, descriptor: Callable[[Path], int]) -> None:
    """Raise `GalleryDamagedError` if the WAL of a file was begun beside another state of it.

    `connection` is inside a transaction, has compared the schema, and must not write on closing. `descriptor` opens a
    file.
    """
    (last,) = connection.execute("SELECT generation FROM gallery").fetchone()
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'gallery'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    wal = path.with_name(path.name + "-wal")
    for _ in range(2):  # a process that writes the WAL into the file may be amid the page
        header = os.pread(descriptor(wal), _HEADER.size, 0)
        base = _base(descriptor(wal), size, root)
        now = _generation(os.pread(descriptor(path), size, (root - 1) * size))
        begun_anew = header != os.pread(descriptor(wal), _HEADER.size, 0)  # by a process that had it open
        if begun_anew or now is None or not isinstance(last, int) or (now if base is None else base) <= now <= last:
            return
    raise GalleryDamagedError(
        path=wal,
        expected=f"what was written after the file's generation {now}",
        found=f"what was written after another state of it, up to {last}, as beside a copy that was put there by hand",
        remedy=f"nothing was changed; to use the file as it is, move {wal.name} and {path.name}-shm away; put copies "
        "back with 'edgeface gallery restore'",
    )


def _frames(descriptor: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield page number, pages after a commit, and offset of the page, of each frame since the WAL was begun."""
    header = os.pread(descriptor, _HEADER.size, 0)
    if len(header) < _HEADER.size or _HEADER.unpack(header)[0] != size:
        return
    offset = _HEADER.size
    while len(frame := os.pread(descriptor, _FRAME.size, offset)) == _FRAME.size:
        number, pages, salts = _FRAME.unpack(frame)
        if salts != _HEADER.unpack(header)[1]:
            return
        offset += _FRAME.size
        yield number, pages, offset
        offset += size


def _base(descriptor: int, size: int, root: int) -> int | None:
    """Return the generation that the WAL goes on from; None if it needs nothing of the file, or that is not known."""
    written, generation = set[int](), None
    for number, pages, offset in _frames(descriptor, size):
        written.add(number)
        if number == root:
            generation = _generation(os.pread(descriptor, size, offset))
        if not pages:
            continue
        if len(written) >= pages:  # VACUUM and a restoration write every page
            return None
        if generation is not None:  # a commit that raises it writes the table of commits too
            return generation - (len(written) > 1)
        written.clear()
    return None


def _generation(page: bytes) -> int | None:
    """Read the generation from the only page of the table `gallery`; None if it is not such a page."""
    try:
        if page[0] != 0x0D or page[3:5] != b"\0\1":  # a leaf with one row
            return None
        at = int.from_bytes(page[8:10], "big")
        for _ in range(2):  # length of the row, and its number
            _, at = _varint(page, at)
        length, types = _varint(page, at)
        value = at + length
        for column in range(_COLUMN + 1):
            kind, types = _varint(page, types)
            width = (kind - 12) // 2 if kind >= 12 else _INTEGERS[kind] if kind < len(_INTEGERS) else 0
            if column == _COLUMN:
                return int.from_bytes(page[value : value + width], "big", signed=True) if 1 <= kind <= 6 else kind - 8
            value += width
    except IndexError:
        pass
    return None


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """Read a number of up to nine bytes; return it, and where it ends."""
    number = 0
    for place in range(at, at + 8):
        number = number << 7 | page[place] & 0x7F
        if page[place] < 0x80:
            return number, place + 1
    return number << 8 | page[at + 8], at + 9
