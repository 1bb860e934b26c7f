"""Search what holds a gallery, byte by byte, for what was erased from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import GalleryDamagedError
from edgeface.gallery.codec import PersonBody
from edgeface.gallery.records import Proof
from edgeface.gallery.store.database import Database
from edgeface.gallery.store.rows import SEALED_TABLES, Rows

Read = Callable[[int, int], bytes]
"""From offset and length to the bytes there, fewer at the end; none after it."""


def secrets_of(
    connection: Any, rows: Rows, person_id: int, template_ids: Sequence[int], *, whole: bool
) -> Iterator[bytes]:
    """Yield everything that must not be found after an erasure: readable, and as it is stored."""
    wanted = {("people", "id", person_id)} if whole else set()
    for template_id in template_ids:
        wanted |= {("templates", "id", template_id)}
        wanted |= {(table, "template_id", template_id) for table in ("images", "staged")}
    for table, key, number in sorted(wanted):
        for identity, stored in rows.sealed(connection, table, f"WHERE {key} = ?", number):
            yield stored
            try:
                yield (content := rows.open(table, identity, stored))
            except GalleryDamagedError:  # unreadable, and erased all the same
                continue
            if table == "people":
                name = PersonBody.decode(content).name
                yield name.encode("utf-8", "surrogatepass")
                yield Rows.mark_name(rows.cipher, name)  # a guess of the name could be confirmed by it


def search_places(
    places: Iterable[tuple[str, Read]], secrets: Sequence[bytes], rows: Rows, database: Database
) -> Proof:
    """Search every byte of every place for pieces of what was erased.

    A piece that a person who is still enrolled has too (one photo of two people, one label) does not count.
    """
    searcher = Searcher(secrets)
    searched, found = dict[str, int](), dict[tuple[str, int], bytes]()
    for name, read in places:
        searched[name] = 0

        def counted(offset: int, length: int, name: str = name, read: Read = read) -> bytes:
            content = read(offset, length)
            searched[name] += len(content)
            return content

        found |= {(name, offset): piece for offset, piece in searcher.search(counted)}
    pieces = set(found.values())
    if pieces:
        with database.reading() as connection:
            for content in _still_stored(connection, rows, database):
                pieces = {piece for piece in pieces if piece not in content}
                if not pieces:
                    break
    remains = sorted(place for place, piece in found.items() if piece in pieces)
    told = tuple(f"{name} at byte {offset}" for name, offset in remains)
    return Proof(searched=searched, needles=searcher.needles, remains=told)


def _still_stored(connection: Any, rows: Rows, database: Database) -> Iterator[bytes]:
    yield database.header.encode().encode()
    for table in SEALED_TABLES:
        for identity, stored in rows.sealed(connection, table):
            yield from (stored, rows.open(table, identity, stored))


# The search

_WINDOW = 16
_DIFFERENT = 8
_SHORTEST = 6
"""Bytes. Three, in 200 MB of random ones, are found twelve times by chance; six, never."""
_SEGMENT = 1 << 24
_TABLE_BITS = 24
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, near 2^64 / golden ratio (Knuth, The Art of Computer Programming 3, 6.4)."""


class Searcher:
    """Secrets, prepared for the search of many files.

    A secret of 31 bytes or more is found by any 31 consecutive bytes of it, wherever they lie: every 16-byte window of
    every secret is compared with the 16 bytes at every multiple of 16 of the file. Windows of fewer than eight
    different values, such as zeros and a counter, lie everywhere and are left out. Shorter secrets are searched whole;
    those shorter than six bytes occur by chance and are left out.
    """

    def __init__(self, secrets: Iterable[bytes]) -> None:
        windows, self._short = [np.empty((0, 2), np.uint64)], set[bytes]()
        for secret in secrets:
            if len(secret) >= 2 * _WINDOW - 1:
                windows.append(_windows(secret))
            elif len(secret) >= _SHORTEST:
                self._short.add(secret)
        found = np.unique(np.concatenate(windows), axis=0)
        self._firsts = found[:, 0]  # sorted, because `unique` sorts rows by their first column first
        self._windows = {row.tobytes() for row in found}
        self._table = np.zeros(1 << _TABLE_BITS, bool)
        self._table[_slots(self._firsts)] = True

    @property
    def needles(self) -> int:
        """Number of different pieces."""
        return len(self._windows) + len(self._short)

    def search(self, read: Read) -> Iterator[tuple[int, bytes]]:
        """Yield the offset of each piece that is there, and the piece."""
        overlap = max([_WINDOW, *map(len, self._short)])
        start, tail = 0, b""
        while segment := read(start, _SEGMENT):
            usable = len(segment) - len(segment) % _WINDOW
            for row, index in self._aligned(segment[:usable]):
                yield start + index * _WINDOW, row
            text = tail + segment
            for needle in self._short:
                if (at := text.find(needle)) >= 0:
                    yield start - len(tail) + at, needle
            start, tail = start + len(segment), text[-overlap:]

    def _aligned(self, segment: bytes) -> Iterator[tuple[bytes, int]]:
        rows = np.frombuffer(segment, np.uint64).reshape(-1, 2)
        for index in np.flatnonzero(self._table[_slots(rows[:, 0])]).tolist():
            row = rows[index].tobytes()
            if row in self._windows:
                yield row, index


def _windows(content: bytes) -> NDArray[np.uint64]:
    """Return every 16-byte window of a content that has enough different values, as two numbers."""
    octets = np.frombuffer(content, np.uint8)
    windows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(octets, _WINDOW))
    different = 1 + np.count_nonzero(np.diff(np.sort(windows, axis=1), axis=1), axis=1)
    return np.asarray(windows[different >= _DIFFERENT].view(np.uint64))


def _slots(firsts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.asarray((firsts * _MULTIPLIER) >> np.uint64(64 - _TABLE_BITS), np.uint64)
