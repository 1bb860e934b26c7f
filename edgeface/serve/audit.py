"""Write down who asked what, so that nothing of it can be changed or left out unnoticed.

Each row has the SHA-256 of the hash before it and of its own canonical JSON: keys sorted, no spaces, ASCII, which is
what `AuditRow.to_dict` gives without the hash. Changing, removing, inserting or reordering rows breaks this chain.

What the chain cannot show: who may write to the file, or has its disk, can cut rows off at the end, or write all rows
from some place on anew, and the chain is whole again. Only a **head**, the number and hash of the last row, that was
kept elsewhere (a log server, paper) proves that every row up to it is still the same: see `AuditLog.verify`.

A row holds ids only: of the key, the people, the contract and the request. There is no name, image or embedding, and
no address of a client, which would be personal data that is kept for the years of an audit: the id of the key says who
asked, and the request's id leads to the service's log, which is kept for days.

A commit is not synced (``synchronous=NORMAL``): a sync takes milliseconds, in each request. A killed process loses no
row. A power cut loses those since the last `AuditLog.maintain`, which the service calls each second, and keeps the
chain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeface.errors import InputError
from edgeface.serve.database import ServiceFile, ServiceFileError, ServiceFileKind, last_too_old

_KIND = ServiceFileKind(
    what="service's audit log",
    application_id=0x45464155,  # EFAU
    schema="""
CREATE TABLE log (one INTEGER PRIMARY KEY CHECK (one = 1), id BLOB NOT NULL);
CREATE TABLE rows (sequence INTEGER PRIMARY KEY, time TEXT NOT NULL, action TEXT NOT NULL, key_id TEXT, gallery TEXT,
    people TEXT NOT NULL, decision TEXT, contract_id TEXT, request_id TEXT, removed TEXT, hash BLOB NOT NULL);
INSERT INTO log VALUES (1, randomblob(16));
""",
    synchronous="NORMAL",
)
_log = logging.getLogger(__name__)
_PRUNE = "audit.prune"
_VERIFY = "see how much of the log is whole: edgeface serve audit verify"
_TOKEN = re.compile(r"[A-Za-z0-9_.:/+-]{1,100}")
_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
_BATCH = 500
_DAMAGE = (TypeError, ValueError, AttributeError, RecursionError)
"""What `_row` and `AuditRow.chained` raise for values that were not written by this module."""
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One row of the log.

    Attributes
    ----------
    sequence
        1, 2, 3 and so on.
    time
        UTC, RFC 3339 with milliseconds, by the clock of the machine, which may have been set back.
    action, decision
        Words such as ``identify`` and ``known``.
    key_id, people, contract_id, request_id
        Ids: of the key, of people in the gallery, of the model's contract, and of the request in the service's log.
    removed
        Head of the rows that `AuditLog.prune` removed; None in all other rows.
    hash
        SHA-256, hexadecimal.
    """

    sequence: int
    time: str
    action: str
    key_id: str | None
    gallery: str | None
    people: tuple[int, ...]
    decision: str | None
    contract_id: str | None
    request_id: str | None
    removed: str | None
    hash: str

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {name: getattr(self, name) for name in _FIELDS}

    def chained(self, previous: bytes) -> bytes:
        """Return the hash that the row must have after a row of hash `previous`."""
        content = self.to_dict()
        del content["hash"]
        return hashlib.sha256(previous + _CANONICAL(content).encode()).digest()


_FIELDS = tuple(field.name for field in dataclasses.fields(AuditRow))
_INSERT = f"INSERT INTO rows VALUES ({', '.join('?' * len(_FIELDS))})"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `AuditLog.verify` found; true if the chain is whole.

    Attributes
    ----------
    rows
        Rows that fit, from the first on.
    head
        ``NUMBER:HASH`` of the last of them, to be kept elsewhere.
    broken
        Number of the first row that is missing or does not fit; None: none.
    reason
        Why it does not fit.
    """

    rows: int
    head: str
    broken: int | None = None
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.broken is None


class AuditLog:
    """An append-only log in a SQLite file, for all threads of a process and for several processes.

    Parameters
    ----------
    path
        The file; made, readable by its owner only, if there is none.
    create
        False: it must exist.
    clock
        Seconds since 1970.

    Raises
    ------
    ServiceFileError
        If the file is damaged or something else, or others may write to it; by every method, too, once it was removed
        or replaced.
    OutputError
        If it cannot be made or written to, e.g. because the disk is full: the row is not written then, and the rows
        before it are kept.

    Examples
    --------
    >>> log = AuditLog(Path(folder) / "audit.sqlite")                                              # doctest: +SKIP
    >>> log.record("identify", key_id="4f1c22d8", gallery="berlin", people=[7], decision="known")  # doctest: +SKIP
    1
    >>> bool(log.verify())                                                                         # doctest: +SKIP
    True
    """

    def __init__(self, path: Path, *, create: bool = True, clock: Callable[[], float] = time.time) -> None:
        self._file, self._clock = ServiceFile(path, _KIND, create=create), clock
        self._syncing = ServiceFile(path, _KIND, create=False)  # so that a sync stops no one who writes
        self._synced, self._day = True, 0

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._file.path

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._file.close()
        self._syncing.close()

    def record(
        self,
        action: str,
        *,
        key_id: str | None = None,
        gallery: str | None = None,
        people: Sequence[int] = (),
        decision: str | None = None,
        contract_id: str | None = None,
        request_id: str | None = None,
    ) -> int:
        """Append a row, and return its number. It takes about 50 microseconds.

        Each text is 1 to 100 ASCII letters, digits and ``_.:/+-``: an id or a word, so that no name gets into the log.
        `InputError` is raised for any other.
        """
        texts = (action, key_id, gallery, decision, contract_id, request_id)
        for text in texts:
            if text is not None and not _TOKEN.fullmatch(text):
                raise InputError(f"audit log: expected an id or a word of 1 to 100 ASCII letters, found {text!r:.110}")
        with self._file.transaction(write=True) as connection:
            row = (action, key_id, gallery, tuple(map(int, people)), decision, contract_id, request_id, None)
            number = self._append(connection, *row)
        self._synced = False
        return number

    def rows(
        self, *, since: datetime.datetime | None = None, action: str | None = None, limit: int | None = None
    ) -> Iterator[AuditRow]:
        """Yield rows in order, a few hundred at a time in memory: since a time with a zone, of one action, the last."""
        after, wanted = 0, {"since": "" if since is None else _text(since.timestamp()), "action": action}
        where = "time >= :since AND (:action IS NULL OR action = :action) AND sequence > :after"
        if limit is not None:
            last = f"SELECT sequence FROM rows WHERE {where} ORDER BY sequence DESC LIMIT 1 OFFSET :limit"
            with self._file.transaction() as connection:
                row = connection.execute(last, {**wanted, "after": 0, "limit": limit}).fetchone()
            after = row[0] if row else 0
        while True:
            with self._file.transaction() as connection:
                batch = connection.execute(
                    f"SELECT {', '.join(_FIELDS)} FROM rows WHERE {where} ORDER BY sequence LIMIT {_BATCH}",
                    {**wanted, "after": after},
                ).fetchall()
            for values in batch:
                try:
                    row = _row(values)
                except _DAMAGE as error:
                    raise ServiceFileError(
                        path=self.path,
                        expected="rows written by edgeface",
                        found=f"row {values[0]} damaged: {error}"[:200],
                        remedy=_VERIFY,
                    ) from error
                yield row
            if len(batch) < _BATCH:
                return
            after = batch[-1][0]

    def head(self) -> str:
        """Return ``NUMBER:HASH`` of the last row, to be kept where who can write to the log cannot."""
        with self._file.transaction() as connection:
            return _head(*self._last(connection))

    def verify(self, head: str | None = None) -> AuditReport:
        """Recompute the chain, and find the first row that is missing or was changed.

        Rows are read as they are now, while others go on writing.

        Parameters
        ----------
        head
            An earlier `head`, that was kept elsewhere: its row must be there, unchanged. Without one, rows that were
            cut off at the end are not missed.

        Raises
        ------
        InputError
            If `head` is malformed, or older than what `prune` has removed: it cannot be compared.
        """
        if head is not None and not _HEAD.fullmatch(head):
            raise InputError(f"audit log: expected a head, NUMBER:HASH as 'audit verify' prints it, found {head!r:.90}")
        with (
            contextlib.closing(ServiceFile(self.path, _KIND, create=False)) as file,  # so that others can write
            file.transaction() as connection,
        ):
            return self._verify(connection, head)

    def _verify(self, connection: sqlite3.Connection, head: str | None) -> AuditReport:
        number, known = _parse_head(head) if head else (0, b"")
        last, previous = self._start(connection)
        if 0 < number < last:
            raise InputError(
                path=self.path,
                expected=f"a head after row {last}, up to which rows were removed as too old",
                found=f"one of row {number}",
                remedy="compare with a later head",
            )
        if number == last and head and known != previous:
            return AuditReport(0, _head(last, previous), last, "it is not the row of the head that was given")
        count = 0
        for values in connection.execute(f"SELECT {', '.join(_FIELDS)} FROM rows ORDER BY sequence"):
            reason = None
            try:
                row = _row(values)
                if row.sequence != last + 1:
                    reason = f"expected row {last + 1:,}, found row {row.sequence:,}"
                elif row.chained(previous) != values[-1]:
                    reason = "the row was changed, or the row before it was exchanged"
                elif row.sequence == number and values[-1] != known:
                    reason = "it is not the row of the head that was given: the log was written anew"
            except _DAMAGE as error:
                reason = f"the row is damaged: {error}"[:200]
            if reason:
                return AuditReport(count, _head(last, previous), last + 1, reason)
            last, previous, count = row.sequence, values[-1], count + 1
        if last < number:
            reason = f"rows {last + 1:,} to {number:,} are missing at the end"
            return AuditReport(count, _head(last, previous), last + 1, reason)
        return AuditReport(count, _head(last, previous))

    def prune(self, older_than_days: float, *, dry_run: bool = False, key_id: str | None = None) -> int:
        """Remove rows older than some days, overwrite them, and return how many there are.

        The chain goes on from a last row that names the head of what was removed. See `last_too_old` for wrong clocks.

        Parameters
        ----------
        older_than_days
            0 to 36,525; `InputError` is raised for any other.
        dry_run
            Only count them.
        key_id
            Who asked for it.
        """
        if not 0 <= older_than_days < 36_525:
            raise InputError(f"audit log: expected 0 to 36,525 days, found {older_than_days:g}")
        now = self._clock()
        with self._file.transaction(write=not dry_run) as connection:
            last = last_too_old(connection, "rows", _text(now - older_than_days * 86_400), _text(now))
            (count,) = connection.execute("SELECT count(*) FROM rows WHERE sequence <= ?", (last,)).fetchone()
            if not count or dry_run:
                return int(count)
            removed = connection.execute(
                "SELECT sequence, hash FROM rows WHERE sequence <= ? ORDER BY sequence DESC LIMIT 1", (last,)
            ).fetchone()
            self._append(connection, _PRUNE, key_id, None, (), None, None, None, _head(*removed))
            connection.execute("DELETE FROM rows WHERE sequence <= ?", (last,))
        self._file.checkpoint(truncate=True)  # the write-ahead log has them still
        return int(count)

    def maintain(self, retention_days: float) -> None:
        """Make rows outlive a power cut; once a day, remove old ones as `prune` does, and log the head at level INFO.

        The service calls it each second.
        """
        if not self._synced:
            self._synced = True
            self._syncing.checkpoint()
        if (day := int(self._clock() // 86_400)) != self._day:
            self._day = day
            count = self.prune(retention_days)
            _log.info("audit log: removed %d rows; head %s", count, self.head())

    def _append(self, connection: sqlite3.Connection, *content: Any) -> int:
        last, previous = self._last(connection)
        row = AuditRow(*(last + 1, _text(self._clock()), *content, ""))
        values = row.to_dict() | {"people": json.dumps(row.people), "hash": row.chained(previous)}
        connection.execute(_INSERT, tuple(values.values()))
        return row.sequence

    def _last(self, connection: sqlite3.Connection) -> tuple[int, bytes]:
        """Return number and hash of the last row, from which the next one goes on."""
        row = connection.execute("SELECT sequence, hash FROM rows ORDER BY sequence DESC LIMIT 1").fetchone()
        if row is None:
            return 0, self._genesis(connection)
        if not isinstance(row[1], bytes):
            raise ServiceFileError(path=self.path, expected="a hash in the last row", found="damage", remedy=_VERIFY)
        return int(row[0]), row[1]

    def _start(self, connection: sqlite3.Connection) -> tuple[int, bytes]:
        """Return number and hash of what the first row goes on from: nothing, or what was removed last."""
        removed = connection.execute(
            "SELECT removed FROM rows WHERE removed IS NOT NULL AND (SELECT min(sequence) FROM rows) > 1 "
            "ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        if removed is None or not isinstance(removed[0], str) or not _HEAD.fullmatch(removed[0]):
            return 0, self._genesis(connection)
        return _parse_head(removed[0])

    def _genesis(self, connection: sqlite3.Connection) -> bytes:
        (log,) = connection.execute("SELECT id FROM log").fetchone() or (b"",)
        return hashlib.sha256(b"edgeface audit log " + (log if isinstance(log, bytes) else b"")).digest()


def _row(values: Sequence[Any]) -> AuditRow:
    *plain, people, decision, contract_id, request_id, removed, digest = values
    return AuditRow(*(*plain, tuple(json.loads(people)), decision, contract_id, request_id, removed, digest.hex()))


def _head(sequence: int, digest: bytes) -> str:
    return f"{sequence}:{digest.hex()}"


def _parse_head(text: str) -> tuple[int, bytes]:
    sequence, _, digest = text.partition(":")
    return int(sequence), bytes.fromhex(digest)


def _text(seconds: float) -> str:
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
