"""A gallery's path in, connections to it and the bytes of its files out, without a lock being lost.

POSIX takes every lock that a process has on a file from it as soon as it closes any descriptor of that file
(fcntl(2)). SQLite keeps processes apart by such locks: without them the next process that closes the gallery takes
itself for the last one and deletes the WAL, in which this one then goes on to acknowledge what nobody will see
(sqlite.org/howtocorrupt.html, 2.2). So a descriptor that is opened here stays open until this process has closed its
last connection to the gallery.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Connection", "connect"]

_Identity = tuple[int, int]
"""Of a file: its device and inode."""


@dataclass(slots=True)
class _Held:
    connections: int = 0
    descriptors: dict[_Identity, int] = field(default_factory=dict)


_lock = threading.Lock()
_held: dict[_Identity, _Held] = {}


class Connection(sqlite3.Connection):
    """A connection to a gallery; the last one of a process closes what `descriptor` opened."""

    gallery: _Identity | None = None

    def descriptor(self, file: Path) -> int:
        """A descriptor of one of the gallery's files, for `os.pread`; whoever asks for it must not close it."""
        if self.gallery is None:
            raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
        with _lock:
            descriptors = _held[self.gallery].descriptors
            identity = _identity(file)
            if identity not in descriptors:
                descriptors[identity] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            return descriptors[identity]

    def close(self) -> None:
        """Close it, and then, never before, the descriptors."""
        super().close()
        gallery, self.gallery = self.gallery, None
        if gallery is not None:
            _release(gallery)


def connect(path: Path, *, uri: str, **options: Any) -> Connection:
    """Connect to the gallery at `path`, which is there, by a URI of it."""
    with _lock:
        gallery = _identity(path)
        _held.setdefault(gallery, _Held()).connections += 1
    try:
        connection = sqlite3.connect(uri, uri=True, factory=Connection, **options)
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
