"""Keep what was asked while a gallery's server was away, and when the server was last reached: one file a gallery.

Names, metadata, embeddings and images are sealed with the gallery's cipher, each for its own row. An erasure is sealed
with when the person was enrolled, to the microsecond, which another key of the gallery does not change: it opens for
this person alone, not for another one whom a server that was put back to an earlier state gave the id since. A row is
durable before its request is answered, and it leaves, overwritten, when the server has it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from edgeface.cipher import Cipher, make_cipher
from edgeface.errors import GalleryDamagedError
from edgeface.gallery.store.database import Database
from edgeface.serve.database import ServiceFile, ServiceFileKind
from edgeface.serve.problems import NotFound, Problem
from edgeface.untrusted import parse_json

ItemKind = Literal["enrol", "forget"]
ItemState = Literal["queued", "conflict", "erased"]

_KIND = ServiceFileKind(
    what="queue of a gallery",
    application_id=0x45464F51,  # EFOQ
    schema="""
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    gallery_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    people TEXT NOT NULL,                 -- JSON: ids of those whom a conflict is with
    person_id INTEGER,                    -- who is meant, if the snapshot had them
    mark INTEGER,                         -- the server's next number when the item was last sent
    created REAL NOT NULL,
    body BLOB NOT NULL                    -- sealed; empty once it was erased
);
CREATE TABLE reached (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    body BLOB NOT NULL                    -- sealed, so that nobody makes a snapshot younger: see Reached
);
""",
    synchronous="FULL",
)
_COLUMNS = "id, gallery_id, kind, state, reason, people, person_id, mark, created"
_MOST_ENROLMENTS = 1000
_KEPT_SECONDS = 30 * 86400.0
"""For which it is shown that an item was erased."""


def _place(database: Database, number: int, kind: str, person_id: int | None) -> bytes:
    """Name an item of the queue, for `Cipher.seal`; the gallery's contract may be another one when it is sent.

    Who is meant, and whether to enrol or to forget, are parts of it: in another row of the file nothing opens.
    """
    return f"{database.header.gallery_id}::queue:{number}:{kind}:{person_id or ''}".encode()


def _cipher(database: Database, enrolled: datetime | None) -> Cipher:
    if enrolled is None:
        return database.cipher
    return make_cipher(hashlib.sha256(enrolled.isoformat().encode()).digest(), database.header.gallery_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedItem:
    """Something that is to be sent to a gallery's server.

    Attributes
    ----------
    id
        In its queue; never given twice.
    gallery_id
        Of the gallery that it is for: the service may be given another one's address.
    kind
        An enrolment, or the erasure of a person.
    state
        ``queued``: it is sent when the server is back. ``conflict``: the server has it not, and somebody has to decide.
        ``erased``: the server will not get it, and nothing of it is kept.
    reason
        Of the two others, a word such as ``lookalike``.
    people
        Ids of those whom a conflict is with.
    person_id
        Who is meant, if the snapshot had the person then.
    mark
        The server's next number when this was last sent; None: never, or it was refused.
    created
        Seconds since 1970.
    """

    id: int
    gallery_id: str
    kind: ItemKind
    state: ItemState
    reason: str
    people: tuple[int, ...]
    person_id: int | None
    mark: int | None
    created: float


@dataclass(frozen=True, slots=True)
class Reached:
    """When a server last confirmed a snapshot.

    Attributes
    ----------
    generation
        Of the snapshot that the server confirmed.
    wall
        When this was written, by the clock.
    age
        Seconds since the server had confirmed it, then.
    boot, tick
        Of the machine, and seconds since that boot, then.
    """

    generation: int
    wall: float
    age: float
    boot: str
    tick: float


class OfflineQueue:
    """The queue of one gallery, for all threads of a process. Raises as `ServiceFile`."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._file, self._clock = ServiceFile(path, _KIND, create=True), clock

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # Items

    def add(
        self,
        kind: ItemKind,
        content: Mapping[str, Any],
        database: Database,
        *,
        person_id: int | None = None,
        enrolled: datetime | None = None,
    ) -> QueuedItem:
        """Queue something, durably; an erasure takes the place of all that was queued for this person.

        `enrolled`: when its person was, which opens it instead of the gallery's key.
        """
        gallery_id = database.header.gallery_id
        with self._file.transaction(write=True) as connection:
            (waiting,) = connection.execute(
                "SELECT count(*) FROM items WHERE kind = 'enrol' AND body <> x''"
            ).fetchone()
            if kind == "enrol" and waiting >= _MOST_ENROLMENTS:
                raise Problem(
                    503, "queue-full", f"{waiting} enrolments wait for the gallery's server", retry_after=60.0
                )
            if kind == "forget":
                theirs, whose = "person_id = ? AND gallery_id = ? AND kind =", (person_id, gallery_id)
                self._erase(connection, f"{theirs} 'enrol'", *whose, reason="forgotten")
                connection.execute(f"DELETE FROM items WHERE {theirs} 'forget'", whose)
            row = (gallery_id, kind, person_id, self._clock())
            query = "INSERT INTO items VALUES (NULL, ?, ?, 'queued', '', '[]', ?, NULL, ?, x'')"
            number = connection.execute(query, row).lastrowid
            assert number is not None
            self._put(connection, number, content, database, enrolled)
        if kind == "forget":
            self._file.rewrite()
        return self.item(number)

    def _put(
        self,
        connection: Any,
        number: int,
        content: Mapping[str, Any],
        database: Database,
        enrolled: datetime | None = None,
    ) -> None:
        row = connection.execute("SELECT kind, person_id FROM items WHERE id = ?", (number,)).fetchone()
        cipher = _cipher(database, enrolled)
        body = cipher.seal(json.dumps(content).encode(), _place(database, number, *row))
        connection.execute("UPDATE items SET body = ? WHERE id = ?", (body, number))

    def content(self, number: int, database: Database, *, enrolled: datetime | None = None) -> dict[str, Any]:
        """Return what was queued; `GalleryDamagedError` if it was changed, or sealed with another key or time."""
        with self._file.transaction() as connection:
            row = connection.execute("SELECT body, kind, person_id FROM items WHERE id = ?", (number,)).fetchone()
        if row is None or not row[0]:
            raise NotFound("queued-item", number)
        text = _cipher(database, enrolled).open(row[0], _place(database, number, *row[1:]))
        content: dict[str, Any] = parse_json(text)
        return content

    def item(self, number: int) -> QueuedItem:
        """Return one item; `NotFound` if it is not there any more."""
        if (found := self.find(number)) is None:
            raise NotFound("queued-item", number)
        return found

    def find(self, number: int) -> QueuedItem | None:
        """Return one item, if it is there."""
        return next(iter(self._items("WHERE id = ?", number)), None)

    def items(self) -> list[QueuedItem]:
        """Return all items, in the order in which they came."""
        return self._items()

    def _items(self, condition: str = "", *values: Any) -> list[QueuedItem]:
        with self._file.transaction() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM items {condition} ORDER BY id", values).fetchall()
        names = _COLUMNS.split(", ")
        return [
            QueuedItem(**{**dict(zip(names, row, strict=True)), "people": tuple(json.loads(row[5]))}) for row in rows
        ]

    def count(self) -> Counter[str]:
        """Return how many items there are of each state."""
        return Counter(each.state for each in self.items())

    def forgotten(self, database: Database) -> frozenset[int]:
        """Return the ids of the people of a gallery whose erasure the server does not know of yet."""
        found = self._items("WHERE kind = 'forget' AND gallery_id = ?", database.header.gallery_id)
        return frozenset(each.person_id for each in found if each.person_id)

    def mark(self, number: int, mark: int) -> None:
        """Write down, durably, that an item is about to be sent, when `mark` is the server's next number."""
        self._set(number, "mark = ?", mark)

    def conflict(self, number: int, reason: str, people: Sequence[int] = ()) -> None:
        """Say that an item was refused by the server, and that somebody has to decide."""
        told = json.dumps(list(people))
        self._set(number, "state = 'conflict', reason = ?, people = ?, mark = NULL", reason, told)

    def retry(self, number: int, content: Mapping[str, Any] | None, database: Database) -> None:
        """Queue an item again, perhaps with another content; `NotFound` if it was erased meanwhile, and stays so."""
        with self._file.transaction(write=True) as connection:
            query = "UPDATE items SET state = 'queued', reason = '', people = '[]' WHERE id = ? AND state = 'conflict'"
            if not connection.execute(query, (number,)).rowcount:
                raise NotFound("queued-item", number)
            if content is not None:
                self._put(connection, number, content, database)

    def _set(self, number: int, settings: str, *values: Any) -> None:
        """Change an item, but none that was erased while it was sent."""
        with self._file.transaction(write=True) as connection:
            connection.execute(f"UPDATE items SET {settings} WHERE id = ? AND state <> 'erased'", (*values, number))

    def erase(self, number: int, reason: str) -> None:
        """Erase what was queued, and keep that it was."""
        with self._file.transaction(write=True) as connection:
            self._erase(connection, "id = ?", number, reason=reason)
        self._file.rewrite()

    def _erase(self, connection: Any, which: str, *values: Any, reason: str) -> None:
        connection.execute(
            "UPDATE items SET state = 'erased', reason = ?, people = '[]', person_id = NULL, mark = NULL, body = x'' "
            f"WHERE {which} AND state <> 'erased'",
            (reason, *values),
        )
        connection.execute("DELETE FROM items WHERE state = 'erased' AND created < ?", (self._clock() - _KEPT_SECONDS,))

    def remove(self, number: int) -> None:
        """Remove an item that the server has, or that was withdrawn, and overwrite it."""
        with self._file.transaction(write=True) as connection:
            connection.execute("DELETE FROM items WHERE id = ?", (number,))
        self._file.rewrite()

    # When the server was reached

    def reached(self, database: Database) -> Reached | None:
        """Return what `write_reached` wrote last; None if somebody else did, or with another key."""
        with self._file.transaction() as connection:
            row = connection.execute("SELECT body FROM reached").fetchone()
        if row is None:
            return None
        try:
            return Reached(**parse_json(database.cipher.open(row[0], _place(database, 0, "reached", None))))
        except GalleryDamagedError:
            return None

    def write_reached(self, reached: Reached, database: Database) -> None:
        """Keep when the server was last reached, over an end of the process."""
        text = json.dumps(asdict(reached)).encode()
        body = database.cipher.seal(text, _place(database, 0, "reached", None))
        with self._file.transaction(write=True) as connection:
            connection.execute("INSERT OR REPLACE INTO reached VALUES (1, ?)", (body,))
