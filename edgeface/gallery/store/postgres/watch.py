"""Wait for what others write to a gallery on a server, by LISTEN."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import ClassVar

from edgeface.errors import GalleryDamagedError, GalleryServerError
from edgeface.gallery.store.database import LAST_COMMIT
from edgeface.gallery.store.postgres.database import Connection, PostgresDatabase, server_errors
from edgeface.gallery.store.watch import GalleryWatch


class PostgresWatch(GalleryWatch):
    """A `GalleryWatch` that the server wakes, on a connection of its own.

    A message only wakes it: what has changed it reads itself, and it looks twice a second in any case, so that a lost
    connection, a pooler that lets no message through, and a forged message are harmless. A lost connection is made
    anew.
    """

    longest_pause: ClassVar[float] = 0.5

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._connection: Connection | None = None
        super().__init__(self._read)

    def _read(self) -> tuple[int, str]:
        if self._connection is None:
            self._connection = self._database.listen()
        with self._lost():
            row = self._connection.execute(LAST_COMMIT).fetchone()
        if row is None:
            raise GalleryDamagedError(f"{self._database.where}: expected one row in gallery, found none")
        return int(row[0]), str(row[1] or "")

    def _pause(self, seconds: float) -> None:
        assert self._connection is not None
        with self._lost():
            for _ in self._connection.raw.notifies(timeout=seconds, stop_after=1):
                pass

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            with server_errors(self._database.where):
                yield
        except GalleryServerError:
            self._drop()
            raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        super().close()
        with self._lock:  # `wait` is about to leave it
            self._drop()
