"""The event log: what stays, what goes when, what is exported, and who attended."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import random
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.kiosk.conftest import NOON, Clock, visit

from edgeface.errors import EdgeFaceError, InputError
from edgeface.kiosk.events import EventLog, write_csv, write_ndjson
from edgeface.kiosk.outcome import VisitEvent, VisitKind
from edgeface.serve.database import ServiceFileError

CROP = np.full((16, 16, 3), 200, np.uint8)
HOUR = datetime.timedelta(hours=1)


def rows(log: EventLog, table: str) -> int:
    with contextlib.closing(sqlite3.connect(log.path)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_an_event_comes_back_as_it_was_recorded(log: EventLog) -> None:
    event = visit(time=NOON.astimezone(datetime.timezone(5 * HOUR)))
    recorded = log.record(event)
    (found,) = log.events()
    assert found == recorded
    assert found.to_dict() == {"sequence": 1, **event.to_dict(), "time": "2026-11-29T12:00:00.000+00:00"}
    assert "name" not in found.to_dict(names=False)


def test_an_event_is_recorded_once_however_often_it_is_tried(log: EventLog) -> None:
    event = visit()
    assert log.record(event) == log.record(event)
    assert len(list(log.events())) == 1


def test_numbers_rise_also_after_the_last_event_was_purged(log: EventLog, now: Clock) -> None:
    assert [log.record(visit()).sequence for _ in range(3)] == [1, 2, 3]
    now.forward(10 * 86_400)
    assert log.purge(1) == 3
    assert log.record(visit()).sequence == 4


def test_events_are_found_by_time_kind_and_person(log: EventLog) -> None:
    for hour, person in enumerate((7, 8, None, 7)):
        log.record(visit(person, time=NOON + hour * HOUR))
    numbers = lambda **how: [each.sequence for each in log.events(**how)]  # noqa: E731
    assert numbers(since=NOON + HOUR, until=NOON + 3 * HOUR) == [2, 3]
    assert numbers(kind=VisitKind.unknown) == [3]
    assert numbers(person_id=7) == [1, 4]
    assert numbers(after=2) == [3, 4]
    assert [each.sequence for each in log.last(2)] == [3, 4]


def test_more_events_than_one_batch_are_all_found(log: EventLog) -> None:
    threads = [threading.Thread(target=lambda: [log.record(visit()) for _ in range(130)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.sequence for each in log.events()] == list(range(1, 521))


@pytest.mark.parametrize("change", ["reason = 'x'", "time = '2020'", "name = 'Eve'", "person_id = 3", "kind = 'known'"])
def test_a_row_cannot_be_changed(log: EventLog, change: str) -> None:
    log.record(visit())
    with (
        contextlib.closing(sqlite3.connect(log.path)) as connection,
        pytest.raises(sqlite3.IntegrityError, match="only appended"),
    ):
        connection.execute(f"UPDATE events SET {change}")


def test_a_log_without_its_triggers_is_refused(log: EventLog) -> None:
    log.close()
    with contextlib.closing(sqlite3.connect(log.path)) as connection:
        connection.execute("DROP TRIGGER only_appended")
    with pytest.raises(ServiceFileError, match="event log"):
        EventLog(log.path)


@pytest.mark.parametrize(
    ("column", "value"),
    [("score", b"\xff"), ("score", "text"), ("liveness", float("inf")), ("frames", "many"), ("reason", b"\xff\xfe"),
     ("reason", "x" * 1_000_000), ("name", "x" * 5000), ("person_id", "seven"), ("time", "0000-99-99")],
)  # fmt: skip
def test_a_value_that_no_event_has_is_damage_and_no_internal_failure(log: EventLog, column: str, value: object) -> None:
    log.record(visit())
    with log._file.transaction(write=True) as connection:
        connection.execute("DROP TRIGGER only_appended")
        connection.execute("DROP TRIGGER only_forgotten")
        connection.execute(f"UPDATE events SET {column} = ?", (value,))
    with pytest.raises(ServiceFileError, match="event 1 damaged") as caught:
        list(log.events())
    assert len(str(caught.value)) < 500


def test_a_long_reason_is_cut_when_it_is_recorded(log: EventLog) -> None:
    assert len(log.record(visit(reason="x" * 9000)).reason) == 4096
    assert len(list(log.events())) == 1


def test_a_damaged_row_is_an_error_of_the_log(log: EventLog) -> None:
    log.record(visit())
    with log._file.transaction(write=True) as connection:
        connection.execute("DROP TRIGGER only_appended")
        connection.execute("DROP TRIGGER only_forgotten")
        connection.execute("UPDATE events SET kind = 'friend'")
    with pytest.raises(ServiceFileError, match="event 1 damaged"):
        list(log.events())


@pytest.mark.parametrize("rounds", [pytest.param(60), pytest.param(2000, marks=pytest.mark.nightly)])
def test_a_damaged_file_is_an_error_of_the_log_and_no_other(tmp_path: Path, rounds: int) -> None:
    whole, path, chance = tmp_path / "whole.sqlite", tmp_path / "events.sqlite", random.Random(rounds)
    with contextlib.closing(EventLog(whole, targets={"a": set(VisitKind)})) as log:
        for person in (7, 8, None) * 4:
            log.record(visit(person))
    content, refused = whole.read_bytes(), 0
    (page,) = (at for at in range(0, len(content), 4096) if b"score above" in content[at : at + 4096])
    for _ in range(rounds):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.choice([at for at in range(page, page + 4096) if content[at]])] = chance.randrange(256)
        for file in tmp_path.glob("events.sqlite*"):
            file.unlink()
        path.write_bytes(damaged)
        path.chmod(0o600)
        try:
            with contextlib.closing(EventLog(path, create=False)) as log:
                write_csv((each.to_dict() for each in log.events()), io.StringIO())
                write_ndjson((each.to_dict() for each in log.last(5)), io.StringIO())
                log.attendance("Europe/Berlin")
                log.next_delivery("a", strict=False)
                log.record(visit())
                log.forget(8)
        except EdgeFaceError:
            refused += 1
    assert 0 < refused < rounds


# Retention


def test_purge_counts_first_and_removes_then(log: EventLog, now: Clock) -> None:
    for days in (0, 1, 40):
        log.record(visit(time=NOON + datetime.timedelta(days=days), crop=CROP))
    now.forward(41 * 86_400)
    assert log.purge(30, dry_run=True) == 2
    assert len(list(log.events())) == 3
    assert log.purge(30) == 2
    assert [each.sequence for each in log.events()] == [3]
    assert rows(log, "crops") == 1


def test_purged_events_leave_no_trace_in_the_files(log: EventLog, now: Clock) -> None:
    log.record(visit(name="Grace Hopper"))
    now.forward(2 * 86_400)
    log.purge(1)
    content = b"".join(path.read_bytes() for path in log.path.parent.iterdir() if path.is_file())
    assert b"Grace Hopper" not in content


def test_an_event_of_a_clock_that_was_wrong_removes_no_younger_one(log: EventLog, now: Clock) -> None:
    log.record(visit())
    log.record(visit(time=datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)))
    log.record(visit(time=NOON + datetime.timedelta(days=9999)))
    assert log.purge(1) == 0
    now.forward(10 * 86_400)
    assert log.purge(1) == 2
    log.record(visit(time=NOON + datetime.timedelta(days=10)))
    assert log.purge(1) == 0  # what is dated ahead may be as young as the one after it
    at = now.now
    now.now = 60.0  # the clock was set back
    assert log.purge(1) == 0
    now.now = at
    now.forward(2 * 86_400)
    assert log.purge(1) == 2  # and goes with it


def test_a_crop_is_written_only_where_configured(tmp_path: Path) -> None:
    with contextlib.closing(EventLog(tmp_path / "events.sqlite")) as log:
        event = log.record(visit(None, crop=CROP))
        assert log.crop(event.id) is None
        assert rows(log, "crops") == 0


def test_the_crops_of_known_people_and_of_others_go_after_hours_of_their_own(log: EventLog, now: Clock) -> None:
    events = [log.record(visit(person, crop=CROP)) for person in (7, None)]

    def kept() -> list[bool]:
        log.maintain()
        return [(log.crop(each.id) or b"").startswith(b"\xff\xd8\xff") for each in events]

    assert kept() == [True, True]
    now.forward(3600 - 1)
    assert kept() == [True, True]
    now.forward(2)  # within the same hour and minute
    assert kept() == [True, False]
    now.forward(3600)
    assert kept() == [False, False]
    assert len(list(log.events())) == 2
    assert b"JFIF" not in log.path.read_bytes() + log.path.with_name("events.sqlite-wal").read_bytes()


def test_unknown_faces_are_stored_only_where_that_is_configured(tmp_path: Path) -> None:
    with contextlib.closing(EventLog(tmp_path / "events.sqlite", crop_hours=5)) as log:
        for kind in (VisitKind.unknown, VisitKind.spoof, VisitKind.inconclusive):
            assert log.crop(log.record(visit(None, kind=kind, crop=CROP)).id) is None
        assert log.crop(log.record(visit(crop=CROP)).id)


def test_crops_go_on_time_after_a_restart_and_when_the_clock_is_set_back(tmp_path: Path, now: Clock) -> None:
    def take() -> VisitEvent:
        return visit(None, crop=CROP, time=datetime.datetime.fromtimestamp(now(), datetime.timezone.utc))

    def opened() -> contextlib.closing[EventLog]:
        return contextlib.closing(EventLog(tmp_path / "e.sqlite", unknown_crop_hours=1, clock=now, monotonic=tick))

    tick = Clock(0.0)
    with opened() as log:
        for _ in range(2):
            log.record(take())
            now.forward(1800)
            tick.forward(1800)
        now.forward(-1700)  # the clock was set back: the first one is an hour old all the same, and goes
        log.maintain()
        assert [bool(log.crop(each.id)) for each in log.events()] == [False, True]
    with opened() as log:
        now.forward(-200)  # what is dated ahead goes at once
        log.maintain()
        assert rows(log, "crops") == 0
        log.record(take())
    now.forward(3601)
    with opened() as log:
        log.maintain()
        assert rows(log, "crops") == 0


# Forgetting


def test_a_forgotten_person_is_in_no_event_and_every_event_stays(tmp_path: Path) -> None:
    targets = {"office": set(VisitKind)}
    with contextlib.closing(EventLog(tmp_path / "events.sqlite", targets=targets, crop_hours=1)) as log:
        for person, name in ((7, "Ada Lovelace"), (8, "Grace Hopper"), (7, "Ada Byron")):
            log.record(visit(person, name, crop=CROP))
        assert not log.forget(9).remains
        proof = log.forget(7)
        assert proof.remains == ()
        assert proof.needles == 2
        assert set(proof.searched) >= {"events.sqlite"}
        assert [(each.person_id, each.name) for each in log.events()] == [
            (None, None),
            (8, "Grace Hopper"),
            (None, None),
        ]
        assert rows(log, "crops") == 1
        assert len(log.deliveries()) == 3  # they are delivered, without the name
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        assert not any(b"Lovelace" in content or b"Byron" in content for content in files.values())
        assert b"Grace Hopper" in files["events.sqlite"] + files.get("events.sqlite-wal", b"")


def test_a_name_that_another_person_has_too_is_no_remains(log: EventLog) -> None:
    log.record(visit(7, "Ada Lovelace"))
    log.record(visit(8, "Ada Lovelace II"))
    assert log.forget(7).remains == ()


def test_a_name_that_is_still_read_by_another_process_is_reported(log: EventLog) -> None:
    log.record(visit())
    log._file.checkpoint(truncate=True)
    with contextlib.closing(sqlite3.connect(log.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        with log._file.transaction() as connection:
            connection.execute("PRAGMA busy_timeout = 50")
        reader.execute("SELECT * FROM events").fetchall()
        proof = log.forget(7)
        assert any("events.sqlite at byte" in place for place in proof.remains)
        reader.execute("COMMIT")
    assert log.forget(7).needles == 0  # nothing is left to be named


# Attendance


def test_attendance_is_by_the_day_of_the_zone_that_is_named(log: EventLog) -> None:
    late = datetime.datetime(2026, 11, 29, 23, 30, tzinfo=datetime.timezone.utc)  # 00:30 on the 30th in Berlin
    for when, person in ((NOON, 7), (NOON + HOUR, 7), (late, 7), (NOON, 8), (NOON, None)):
        log.record(visit(person, time=when))
    berlin = [(each.day.day, each.person_id, each.count) for each in log.attendance("Europe/Berlin")]
    assert sorted(berlin) == [(29, 7, 2), (29, 8, 1), (30, 7, 1)]
    utc = log.attendance("UTC", first=NOON.date(), last=NOON.date())
    ada = next(each for each in utc if each.person_id == 7)
    assert ada.to_dict() == {
        "day": "2026-11-29",
        "person_id": 7,
        "name": "Ada Lovelace",
        "first": "2026-11-29T12:00:00+00:00",
        "last": "2026-11-29T23:30:00+00:00",
        "zone": "UTC",
        "count": 3,
    }


def test_a_day_that_the_clock_is_changed_has_25_hours(log: EventLog) -> None:
    begin = datetime.datetime(2026, 10, 24, 22, 30, tzinfo=datetime.timezone.utc)  # 00:30 CEST on the 25th
    for hours in (0, 24):  # and 23:30 CET
        log.record(visit(time=begin + hours * HOUR))
    (day,) = log.attendance("Europe/Berlin", first=datetime.date(2026, 10, 25), last=datetime.date(2026, 10, 25))
    assert day.count == 2
    assert day.last.isoformat() == "2026-10-25T23:30:00+01:00"


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/passwd", "a" * 300])
def test_an_unknown_zone_is_refused(log: EventLog, zone: str) -> None:
    with pytest.raises(InputError, match="time zone"):
        log.attendance(zone)


# Exports

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", ' "=1"', "=1", "a\nb", 'a","=1']
)


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_no_text_becomes_a_formula_or_another_cell_of_the_csv(texts: list[tuple[str, str]]) -> None:
    stream = io.StringIO(newline="")
    wanted = [{"sequence": number, "name": name, "camera": camera} for number, (name, camera) in enumerate(texts)]
    assert write_csv(wanted, stream) == len(texts)
    read = list(csv.reader(io.StringIO(stream.getvalue(), newline="")))
    assert read[1:] == [[str(number), *read[number + 1][1:]] for number in range(len(texts))]
    assert all(len(row) == 3 for row in read)
    assert not any(cell.lstrip()[:1] in set("=+-@|%") for row in read[1:] for cell in row if cell.strip())


@given(st.lists(TEXTS, max_size=5))
def test_ndjson_is_one_object_a_line(texts: list[str]) -> None:
    stream = io.StringIO()
    write_ndjson(({"name": text} for text in texts), stream)
    assert [json.loads(line)["name"] for line in stream.getvalue().splitlines()] == texts


# The outbox


def test_an_event_and_its_deliveries_are_one_transaction(tmp_path: Path) -> None:
    targets = {"office": {VisitKind.known}, "guard": {VisitKind.spoof, VisitKind.unknown}}
    with contextlib.closing(EventLog(tmp_path / "events.sqlite", targets=targets)) as log:
        log.record(visit())
        log.record(visit(None))
        assert [(each.target, each.sequence) for each in log.deliveries()] == [("office", 1), ("guard", 2)]
        log._targets["broken"] = None  # type: ignore[assignment]
        with pytest.raises(TypeError):
            log.record(visit())
        assert len(list(log.events())) == 2
        assert len(log.deliveries()) == 2


def test_an_event_waits_for_the_earlier_ones_of_its_person_only(tmp_path: Path, now: Clock) -> None:
    with contextlib.closing(EventLog(tmp_path / "events.sqlite", targets={"a": set(VisitKind)}, clock=now)) as log:
        for person in (7, 7, 8, None):
            log.record(visit(person))
        log.undelivered("a", 1, "refused", seconds=30)

        def following(*, strict: bool) -> object:
            found = log.next_delivery("a", strict=strict)
            return found[0].sequence if isinstance(found, tuple) else found

        assert following(strict=False) == 3  # 2 is of the same person as 1
        assert following(strict=True) == pytest.approx(30)
        now.forward(31)
        assert following(strict=False) == 1
        log.delivered("a", 1)
        assert following(strict=False) == following(strict=True) == 2


def test_a_dead_delivery_is_listed_and_holds_no_one_up_until_it_is_sent_again(tmp_path: Path, now: Clock) -> None:
    with contextlib.closing(EventLog(tmp_path / "events.sqlite", targets={"a": set(VisitKind)}, clock=now)) as log:
        first, _ = log.record(visit()), log.record(visit())
        log.undelivered("a", 1, "too old", seconds=None)
        (dead,) = log.deliveries(dead=True)
        assert (dead.event_id, dead.attempts, dead.error, dead.dead) == (first.id, 1, "too old", True)
        found = log.next_delivery("a", strict=True)
        assert isinstance(found, tuple)
        assert found[0].sequence == 2
        assert log.resend(target="b") == 0
        assert log.resend(event_id=first.id) == 1
        assert [(each.sequence, each.attempts) for each in log.deliveries(dead=False)] == [(1, 0), (2, 0)]
