"""Files and secrets in, where a piece of a secret still lies out: what proves an erasure.

A secret of 31 bytes or more is found by any 31 bytes of it that follow each other, wherever they lie: every 16-byte
window of every secret is compared with the 16 bytes at every multiple of 16 of the file. Windows of fewer than eight
different values, such as zeros and a counter, lie everywhere and are left out. Shorter secrets are searched whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["Searcher"]

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

    Parameters
    ----------
    secrets
        Byte strings. Shorter ones than six are not looked for: they occur by chance.
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
        """How many different pieces are looked for."""
        return len(self._windows) + len(self._short)

    def search(self, descriptor: int) -> Iterator[tuple[int, bytes]]:
        """Yield the offset in an open file of each piece that is there, and the piece."""
        overlap = max([_WINDOW, *map(len, self._short)])
        start, tail = 0, b""
        while segment := os.pread(descriptor, _SEGMENT, start):
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
    """Every 16 bytes of a content that say something, as two numbers."""
    octets = np.frombuffer(content, np.uint8)
    windows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(octets, _WINDOW))
    different = 1 + np.count_nonzero(np.diff(np.sort(windows, axis=1), axis=1), axis=1)
    return np.asarray(windows[different >= _DIFFERENT].view(np.uint64))


def _slots(firsts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.asarray((firsts * _MULTIPLIER) >> np.uint64(64 - _TABLE_BITS), np.uint64)
