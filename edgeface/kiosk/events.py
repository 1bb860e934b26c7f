"""Keep the events of the kiosk: who came when, what is still to be told to whom, and for how long.

One SQLite file holds the events, their crops and the **outbox**: what each target (a webhook, a broker) is still to be
told. An event and its deliveries are one transaction, so that a killed process loses neither. A commit is synced: an
event that was recorded outlives a power cut.

Rows are only appended. `EventLog.purge` removes old ones, and `EventLog.forget` name and id of people; nothing
else of a row can be changed, which a trigger sees to.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import json
import logging
import math
import threading
import time
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2

from edgeface.errors import InputError
from edgeface.gallery.records import Proof
from edgeface.gallery.store.searcher import Searcher
from edgeface.kiosk.outcome import VisitEvent, VisitKind
from edgeface.serve.database import ServiceFile, ServiceFileError, ServiceFileKind, last_too_old
from edgeface.text import spreadsheet_cell

_KIND = ServiceFileKind(
    what="kiosk's event log",
    application_id=0x45464556,  # EFEV
    schema="""
CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, time TEXT NOT NULL,
    camera TEXT NOT NULL, kind TEXT NOT NULL, person_id INTEGER, name TEXT, score REAL, threshold REAL,
    contract_id TEXT NOT NULL, frames INTEGER NOT NULL, liveness REAL, reason TEXT NOT NULL, gallery_id TEXT NOT NULL);
CREATE INDEX events_of_person ON events (person_id);
CREATE TRIGGER only_forgotten BEFORE UPDATE ON events
    WHEN NEW.name IS NOT NULL OR NEW.person_id IS NOT NULL BEGIN SELECT RAISE(ABORT, 'events are only appended'); END;
CREATE TRIGGER only_appended BEFORE UPDATE OF sequence, id, time, camera, kind, score, threshold, contract_id, frames,
    liveness, reason, gallery_id ON events BEGIN SELECT RAISE(ABORT, 'events are only appended'); END;
CREATE TABLE crops (sequence INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TABLE deliveries (target TEXT NOT NULL, sequence INTEGER NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL,
    error TEXT, dead INTEGER NOT NULL, PRIMARY KEY (target, dead, sequence)) WITHOUT ROWID;
""",
    synchronous="FULL",
)
_BATCH = 500
_AHEAD = 60.0
"""Seconds by which a clock may be slewed: a crop of a later time was taken before the clock was set back."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """A `VisitEvent` as the log has it: with a number, without its crop, and without a person who was forgotten.

    Attributes
    ----------
    sequence
        Rises with each event, and is never used twice; there are gaps where events were purged.
    person_id, name
        Of the person; None unless ``known``, and None once the person was forgotten.
    id, time, camera, kind, score, threshold, contract_id, frames, liveness, reason
        As of `VisitEvent`.
    """

    sequence: int
    id: str
    time: datetime.datetime
    camera: str
    kind: VisitKind
    person_id: int | None
    name: str | None
    score: float | None
    threshold: float | None
    contract_id: str
    frames: int
    liveness: float | None
    reason: str

    def to_dict(self, *, names: bool = True) -> dict[str, Any]:
        """Return the event for JSON and tables; times are UTC, RFC 3339. `names`: with the person's name."""
        told = {each: getattr(self, each) for each in _FIELDS if names or each != "name"}
        return told | {"time": _text(self.time), "kind": self.kind.value}


_FIELDS = tuple(field.name for field in dataclasses.fields(LoggedEvent))
_LONGEST = 4096
"""Characters of a text in an event; a longer one is damage, and is not read."""
_TEXTS = ("id", "time", "camera", "kind", "contract_id", "reason", "name")
_READ = (f"substr({each}, 1, {_LONGEST + 1})" if each in _TEXTS else each for each in _FIELDS)
_SELECT = f"SELECT {', '.join(_READ)} FROM events"


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that a target is still to be told, or, if `dead`, is not told any more unless it is sent again."""

    target: str
    sequence: int
    event_id: str
    attempts: int
    error: str | None
    dead: bool


@dataclass(frozen=True, slots=True)
class Attendance:
    """Visits of a person on a day: the first, the last and how many; times are of the zone that was asked for."""

    day: datetime.date
    person_id: int
    name: str | None
    first: datetime.datetime
    last: datetime.datetime
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON and tables."""
        times = {name: getattr(self, name).isoformat(timespec="seconds") for name in ("first", "last")}
        plain = {"day": self.day.isoformat(), "person_id": self.person_id, "name": self.name}
        return {**plain, **times, "zone": str(self.first.tzinfo), "count": self.count}


class EventLog:
    """An append-only log of events, and the outbox, for all threads of a process and for several processes.

    Parameters
    ----------
    path
        The file; made, readable by its owner only, if there is none.
    create
        False: it must exist.
    targets
        By name, the kinds of events that each is told. Deliveries of earlier targets stay until they are purged.
    retention_days
        `maintain` removes older events.
    crop_hours, unknown_crop_hours
        `maintain` removes older crops, of known people, and of events of other kinds. 0: none is ever written.
    clock, monotonic
        `time.time` and `time.monotonic`.

    Raises
    ------
    ServiceFileError
        If the file is damaged or something else, or others may write to it; by every method, too, once it was removed
        or replaced.
    OutputError
        If it cannot be made or written to, e.g. because the disk is full: the event is not recorded then.

    Examples
    --------
    >>> log = EventLog(Path("events.sqlite"), targets={"office": set(VisitKind)})  # doctest: +SKIP
    >>> log.record(event).sequence                                                 # doctest: +SKIP
    1
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        targets: Mapping[str, Collection[VisitKind]] | None = None,
        retention_days: float = 90,
        crop_hours: float = 0,
        unknown_crop_hours: float = 0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file, self._clock, self._targets = ServiceFile(path, _KIND, create=create), clock, dict(targets or {})
        self._retention_days, self._monotonic = retention_days, monotonic
        self._crop_seconds = {kind: 3600 * (crop_hours if kind else unknown_crop_hours) for kind in VisitKind}
        self._crops = dict[int, float]()  # by sequence: when the crops of this process end, in monotonic time
        self._grown, self._woken, self._hour = threading.Condition(), 0, 0
        self._forgotten: dict[tuple[str, int | None], float] = {}  # by gallery and person: when

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._file.path

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._file.close()

    def record(self, event: VisitEvent) -> LoggedEvent:
        """Append an event with its deliveries. An event whose id is there already is not appended again."""
        values = [getattr(event, name) for name in _FIELDS[1:]]
        values[1:2], values[3:4], values[-1:] = [_text(event.time)], [event.kind.value], [event.reason[:_LONGEST]]
        forgotten = max(self._forgotten.get((each, event.person_id), 0.0) for each in ("", event.gallery_id))
        keeps_crop = self._crop_seconds[event.kind] > 0
        if event.person_id is not None and event.time.timestamp() <= forgotten:  # decided before
            values[4:6], keeps_crop = [None, None], False
        values.append(event.gallery_id)
        with self._file.transaction(write=True) as connection:
            insert = f"INSERT OR IGNORE INTO events VALUES (NULL{', ?' * len(values)})"
            new = connection.execute(insert, values).rowcount
            logged = self._logged(connection.execute(f"{_SELECT} WHERE id = ?", (event.id,)).fetchone())
            if not new:
                return logged
            if keeps_crop and event.crop is not None:
                self._crops[logged.sequence] = self._monotonic() + self._crop_seconds[event.kind]
                jpeg = cv2.imencode(".jpg", event.crop)[1].tobytes()
                connection.execute("INSERT INTO crops VALUES (?, ?)", (logged.sequence, jpeg))
            connection.executemany(
                "INSERT INTO deliveries VALUES (?, ?, 0, 0, NULL, 0)",
                [(target, logged.sequence) for target, kinds in self._targets.items() if event.kind in kinds],
            )
        self.wake()
        return logged

    def wake(self) -> None:
        """End every `wait` now."""
        with self._grown:
            self._woken += 1
            self._grown.notify_all()

    def wait(self, seen: int, seconds: float) -> int:
        """Wait until this process records an event, at most some seconds.

        `seen` is what the last call has returned, 0 at first: an event that was recorded since then ends it at once.
        """
        with self._grown:
            self._grown.wait_for(lambda: self._woken != seen, seconds)
            return self._woken

    # Reading

    def events(
        self,
        *,
        after: int = 0,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        kind: VisitKind | None = None,
        person_id: int | None = None,
        camera: str | None = None,
    ) -> Iterator[LoggedEvent]:
        """Yield events in order, a few hundred at a time in memory.

        Parameters
        ----------
        after
            Only events of a greater number.
        since, until
            First time, and time before which; with a zone.
        kind, person_id, camera
            Only events of these.
        """
        wanted = {
            "since": "" if since is None else _text(since),
            "until": "9" if until is None else _text(until),
            "kind": kind,
            "person": person_id,
            "camera": camera,
        }
        where = "sequence > :after AND time >= :since AND time < :until AND (:kind IS NULL OR kind = :kind)"
        where += "" if camera is None else " AND camera = :camera"
        where += "" if person_id is None else " AND person_id = :person"
        while True:
            with self._file.transaction() as connection:
                rows = connection.execute(
                    f"{_SELECT} WHERE {where} ORDER BY sequence LIMIT {_BATCH}", {**wanted, "after": after}
                ).fetchall()
            yield from map(self._logged, rows)
            if len(rows) < _BATCH:
                return
            after = rows[-1][0]

    def last(self, count: int) -> list[LoggedEvent]:
        """Return the last events, in order."""
        with self._file.transaction() as connection:
            rows = connection.execute(f"{_SELECT} ORDER BY sequence DESC LIMIT ?", (count,)).fetchall()
        return [self._logged(row) for row in reversed(rows)]

    def crop(self, event_id: str) -> bytes | None:
        """Return the crop of an event as a JPEG; None if it is not kept."""
        query = "SELECT jpeg FROM crops JOIN events USING (sequence) WHERE id = ?"
        with self._file.transaction() as connection:
            row = connection.execute(query, (event_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def attendance(
        self, zone: str, *, first: datetime.date | None = None, last: datetime.date | None = None
    ) -> list[Attendance]:
        """Count the visits of each known person on each day.

        Parameters
        ----------
        zone
            Time zone that days are of, e.g. ``Europe/Berlin``. `InputError` is raised for an unknown one.
        first, last
            First and last day; None: no limit.

        Returns
        -------
        list of Attendance
            By day, then by the first visit. A person has the name of the day's last visit.
        """
        try:
            local = zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise InputError(f"time zone: expected a name such as Europe/Berlin, found {zone!r:.60}") from error
        one = datetime.timedelta(days=1)
        since = None if first is None else datetime.datetime.combine(first, datetime.time(), local)
        until = None if last is None else datetime.datetime.combine(last + one, datetime.time(), local)
        found: dict[tuple[datetime.date, int], Attendance] = {}
        for each in self.events(since=since, until=until, kind=VisitKind.known):
            if (person := each.person_id) is None:  # forgotten
                continue
            when = each.time.astimezone(local)
            before = found.get((when.date(), person))
            found[when.date(), person] = Attendance(
                day=when.date(),
                person_id=person,
                name=each.name,
                first=min(when, before.first) if before else when,
                last=max(when, before.last) if before else when,
                count=before.count + 1 if before else 1,
            )
        return sorted(found.values(), key=lambda each: (each.day, each.first))

    # Removing

    def purge(self, older_than_days: float, *, dry_run: bool = False) -> int:
        """Remove and overwrite events older than some days, with crops and deliveries; return how many there are.

        See `last_too_old` for events of a clock that was wrong.
        """
        now = self._clock()
        with self._file.transaction(write=not dry_run) as connection:
            since = _text(_utc(now - older_than_days * 86_400))
            last = last_too_old(connection, "events", since, _text(_utc(now)))
            (count,) = connection.execute("SELECT count(*) FROM events WHERE sequence <= ?", (last,)).fetchone()
            if not count or dry_run:
                return int(count)
            for table in ("events", "crops", "deliveries"):
                connection.execute(f"DELETE FROM {table} WHERE sequence <= ?", (last,))
        self._file.checkpoint(truncate=True)  # the write-ahead log has them still
        return int(count)

    def people(self, gallery_id: str) -> set[int]:
        """Return the ids of the people of a gallery that events have."""
        query = "SELECT DISTINCT person_id FROM events WHERE person_id NOTNULL AND gallery_id = ?"
        with self._file.transaction() as connection:
            return {number for (number,) in connection.execute(query, (gallery_id,))}

    def forget(self, *person_ids: int, gallery_id: str | None = None) -> Proof:
        """Remove names, ids and crops of people from all events, and prove it; the events stay and still count.

        Call it after the gallery has forgotten the people. Events that are still to be delivered are delivered without
        the name, and one that was decided before and is recorded later has none. The file is rewritten, and then it
        and its write-ahead log are searched for the names, as the gallery does: names shorter than six bytes, and
        those that another person has too, are not.

        Parameters
        ----------
        person_ids
            Of the people.
        gallery_id
            The gallery that these ids are of; None: whichever.
        """
        theirs = f"person_id IN ({', '.join(map(str, map(int, person_ids)))}) AND gallery_id = coalesce(?, gallery_id)"
        self._forgotten |= {(gallery_id or "", number): self._clock() for number in person_ids}
        with self._file.transaction(write=True) as connection:
            names = {
                name
                for (name,) in connection.execute(
                    f"SELECT DISTINCT name FROM events WHERE {theirs} AND name NOTNULL", (gallery_id,)
                )
            }
            of_person = f"SELECT sequence FROM events WHERE {theirs}"
            connection.execute(f"DELETE FROM crops WHERE sequence IN ({of_person})", (gallery_id,))
            connection.execute(f"UPDATE events SET name = NULL, person_id = NULL WHERE {theirs}", (gallery_id,))
            for (other,) in connection.execute(
                "SELECT name FROM events WHERE name NOTNULL UNION SELECT camera FROM events"
            ):
                names = {name for name in names if name not in other}
        self._file.rewrite()
        return self._search([name.encode("utf-8", "surrogatepass") for name in names])

    def _search(self, secrets: Sequence[bytes]) -> Proof:
        searcher, searched, remains = Searcher(secrets), dict[str, int](), list[str]()
        for path in (self.path, self.path.with_name(self.path.name + "-wal")):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as stream:
                remains += [
                    f"{path.name} at byte {at}" for at, _ in searcher.search(lambda _, length: stream.read(length))
                ]
                searched[path.name] = stream.tell()
        return Proof(searched=searched, needles=searcher.needles, remains=tuple(remains))

    def maintain(self) -> None:
        """Remove and overwrite crops whose time is over and, once an hour, old events; call it each minute."""
        now = self._clock()
        self._remove_crops(now)
        if (hour := int(now // 3600)) == self._hour:
            return
        count = self.purge(self._retention_days)
        self._file.checkpoint(truncate=True)
        self._hour = hour
        _log.info("event log: removed %d events", count)

    def _remove_crops(self, now: float) -> None:
        """Remove crops whose time is over by the clock, or by this process; and those of a clock that was set back."""
        tick = self._monotonic()
        count = 0
        with self._file.transaction(write=True) as connection:
            over = [sequence for sequence, end in self._crops.items() if end <= tick]
            for kind, seconds in self._crop_seconds.items():
                count += connection.execute(
                    "DELETE FROM crops WHERE sequence IN (SELECT sequence FROM crops JOIN events USING (sequence) "
                    "WHERE kind = ? AND NOT time BETWEEN ? AND ?)",
                    (kind.value, _text(_utc(now - seconds)), _text(_utc(now + _AHEAD))),
                ).rowcount
            for sequence in over:
                count += connection.execute("DELETE FROM crops WHERE sequence = ?", (sequence,)).rowcount
        for sequence in over:
            del self._crops[sequence]
        if count:
            self._file.checkpoint(truncate=True)

    # The outbox

    def deliveries(self, *, dead: bool | None = None) -> list[Delivery]:
        """Return what is still to be delivered (`dead` False), what is not any more (True), or both, in order."""
        query = "SELECT target, sequence, id, attempts, error, dead FROM deliveries JOIN events USING (sequence)"
        with self._file.transaction() as connection:
            rows = connection.execute(f"{query} WHERE ? IS NULL OR dead = ? ORDER BY sequence, target", (dead, dead))
            return [Delivery(**dict(zip(Delivery.__slots__, row, strict=True))) for row in rows]

    def count_deliveries(self) -> dict[str, tuple[int, int]]:
        """Return how many deliveries of each target of the configuration or the outbox wait, and how many are dead."""
        query = "SELECT target, sum(dead = 0), sum(dead) FROM deliveries GROUP BY target"
        with self._file.transaction() as connection:
            found = {target: (int(waiting), int(dead)) for target, waiting, dead in connection.execute(query)}
        return dict.fromkeys(self._targets, (0, 0)) | found

    def next_delivery(self, target: str, *, strict: bool) -> tuple[LoggedEvent, int] | float | None:
        """Return the event that a target is to be told now, and how often that failed.

        An event waits for the earlier ones of the same person, and one of no person for those of its camera. `strict`:
        it waits for all earlier ones.

        Returns
        -------
        tuple, float or None
            A number: nothing now; the next is due in so many seconds. None: nothing.
        """
        query = (
            "SELECT sequence, due, attempts, coalesce(person_id, camera) FROM deliveries JOIN events USING (sequence) "
            "WHERE target = ? AND dead = 0 ORDER BY sequence"
        )
        now, blocked, soonest = self._clock(), set[object](), None
        with self._file.transaction() as connection:
            for sequence, due, attempts, lane in connection.execute(query, (target,)):
                if lane not in blocked:
                    if due <= now:
                        row = connection.execute(f"{_SELECT} WHERE sequence = ?", (sequence,)).fetchone()
                        return self._logged(row), int(attempts)
                    soonest = due - now if soonest is None else min(soonest, due - now)
                if strict:
                    break
                blocked.add(lane)
        return soonest

    def delivered(self, target: str, sequence: int) -> None:
        """Take a delivery out of the outbox."""
        with self._file.transaction(write=True) as connection:
            connection.execute("DELETE FROM deliveries WHERE target = ? AND sequence = ?", (target, sequence))

    def undelivered(self, target: str, sequence: int, error: str, *, seconds: float | None) -> None:
        """Note that a delivery failed, and is due again in some seconds; None: it is dead."""
        due = 0 if seconds is None else self._clock() + seconds
        with self._file.transaction(write=True) as connection:
            connection.execute(
                "UPDATE deliveries SET attempts = attempts + 1, due = ?, error = ?, dead = ? "
                "WHERE target = ? AND sequence = ? AND dead = 0",
                (due, error[:300], seconds is None, target, sequence),
            )

    def resend(self, *, target: str | None = None, event_id: str | None = None) -> int:
        """Make dead deliveries due now, of one target or event or all; return how many. A running kiosk sends them."""
        where = "dead = 1 AND (:target IS NULL OR target = :target) AND (:event IS NULL OR id = :event)"
        with self._file.transaction(write=True) as connection:
            changed = connection.execute(
                "UPDATE deliveries SET dead = 0, attempts = 0, due = 0 WHERE (target, sequence) IN "
                f"(SELECT target, sequence FROM deliveries JOIN events USING (sequence) WHERE {where})",
                {"target": target, "event": event_id},
            )
            return changed.rowcount

    def _logged(self, values: Sequence[Any]) -> LoggedEvent:
        row = dict(zip(_FIELDS, values, strict=True))
        try:
            for name, value in row.items():
                _check_value(name, value)
            times = {"time": datetime.datetime.fromisoformat(row["time"]), "kind": VisitKind(row["kind"])}
        except (TypeError, ValueError) as error:
            raise ServiceFileError(
                path=self.path, expected="rows written by edgeface", found=f"event {values[0]} damaged: {error}"[:200]
            ) from error
        return LoggedEvent(**row | times)


def _check_value(name: str, value: object) -> None:
    """Raise ValueError for what no event has in this column: SQLite keeps values of any type and length in each."""
    if value is None and name in ("person_id", "name", "score", "threshold", "liveness"):
        return
    if name in _TEXTS:
        right = isinstance(value, str) and len(value) <= _LONGEST
    elif name in ("sequence", "person_id", "frames"):
        right = isinstance(value, int)
    else:
        right = isinstance(value, float) and math.isfinite(value)
    if not right:
        raise ValueError(f"{name}: {value!r:.40}")


def write_csv(rows: Iterable[Mapping[str, object]], stream: TextIO) -> int:
    """Write rows of the same keys as CSV, in which no spreadsheet finds a formula; return how many.

    Examples
    --------
    >>> import sys
    >>> write_csv([{"name": "=1+1", "count": 2}], sys.stdout)
    name,count
    '=1+1,2
    1
    """
    writer, count = csv.writer(stream, lineterminator="\n"), 0
    for row in rows:
        if not count:
            writer.writerow(row)
        writer.writerow(["" if value is None else spreadsheet_cell(value) for value in row.values()])
        count += 1
    return count


def write_ndjson(rows: Iterable[Mapping[str, object]], stream: TextIO) -> int:
    """Write rows as JSON, one object a line; return how many."""
    count = 0
    for row in rows:
        stream.write(json.dumps(row, allow_nan=False) + "\n")
        count += 1
    return count


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(max(seconds, 0), datetime.timezone.utc)


def _text(when: datetime.datetime) -> str:
    return when.astimezone(datetime.timezone.utc).isoformat(timespec="milliseconds")
