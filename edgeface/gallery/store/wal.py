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
_LEAST_COLUMNS = 5
"""Of version 1."""
_INTEGERS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)
"""Bytes of the serial types 0 (NULL), 1 to 6 (integers), 7 (a float), 8 and 9 (the numbers 0 and 1)."""
_WHOLE_NUMBERS = (1, 2, 3, 4, 5, 6, 8, 9)


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
    """Read the generation from the only page of the table `gallery`; None if it is not one whole such page.

    A process that is killed while it writes the WAL into the file leaves the page half old and half new. The lengths in
    the row then do not fit each other.
    """
    try:
        if page[0] != 0x0D or page[3:5] != b"\0\1":  # a leaf with one row
            return None
        payload, at = _varint(page, int.from_bytes(page[8:10], "big"))
        row, begin = _varint(page, at)
        length, at = _varint(page, begin)
        values, widths = list[int](), list[int]()
        while at < begin + length:
            kind, at = _varint(page, at)
            values.append(kind)
            widths.append((kind - 12) // 2 if kind >= 12 else _INTEGERS[kind])
        whole = at == begin + length and length + sum(widths) == payload == len(page) - begin
        kind, start = values[_COLUMN], begin + length + sum(widths[:_COLUMN])
        if whole and row == 1 and values[0] == 0 and len(values) >= _LEAST_COLUMNS and kind in _WHOLE_NUMBERS:
            return int.from_bytes(page[start : start + widths[_COLUMN]], "big", signed=True) if kind < 7 else kind - 8
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
