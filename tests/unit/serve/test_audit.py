"""The audit log: its chain, what breaks it, and what a killed process, a full disk or a damaged file leave of it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.serve.conftest import Clock

from edgeface.errors import InputError, OutputError
from edgeface.serve.audit import AuditLog, AuditReport
from edgeface.serve.database import ServiceFileError

DAY = 86_400


@pytest.fixture
def log(tmp_path: Path, clock: Clock) -> Iterator[AuditLog]:
    with contextlib.closing(AuditLog(tmp_path / "audit.sqlite", clock=clock)) as log:
        yield log


def fill(log: AuditLog, count: int) -> None:
    for number in range(count):
        log.record(
            "identify",
            key_id="4f1c22d8",
            gallery="berlin",
            people=[number, 7],
            decision="known",
            contract_id="0011223344556677",
            request_id=f"request-{number}",
        )


def change(log: AuditLog, sql: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(log.path)) as other:
        other.execute(sql, values)
        other.commit()


# Rows


def test_rows_are_numbered_and_come_back_as_they_were_recorded(log: AuditLog, clock: Clock) -> None:
    fill(log, 3)
    clock.now += 0.25
    assert log.record("key.revoke") == 4
    rows = list(log.rows())
    assert [row.sequence for row in rows] == [1, 2, 3, 4]
    assert rows[1].to_dict() | {"hash": None} == {
        "sequence": 2,
        "time": "2027-01-15T08:00:00.000Z",
        "action": "identify",
        "key_id": "4f1c22d8",
        "gallery": "berlin",
        "people": (1, 7),
        "decision": "known",
        "contract_id": "0011223344556677",
        "request_id": "request-1",
        "removed": None,
        "hash": None,
    }
    assert (rows[3].time, rows[3].people, rows[3].key_id) == ("2027-01-15T08:00:00.250Z", (), None)


def test_the_chain_can_be_recomputed_from_the_rows_as_json_by_any_program(log: AuditLog) -> None:
    fill(log, 5)
    with contextlib.closing(sqlite3.connect(log.path)) as other:
        (log_id,) = other.execute("SELECT id FROM log").fetchone()
    digest = hashlib.sha256(b"edgeface audit log " + log_id).hexdigest()
    for line in [json.dumps(row.to_dict()) for row in log.rows()]:
        row = json.loads(line)
        stated = row.pop("hash")
        canonical = json.dumps(row, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(bytes.fromhex(digest) + canonical.encode()).hexdigest()
        assert digest == stated
    assert log.head() == f"5:{digest}"


def test_rows_are_chosen_by_time_and_action_and_streamed(log: AuditLog, clock: Clock) -> None:
    fill(log, 1200)
    clock.now += 60
    log.record("verify")
    fill(log, 10)
    since = datetime.datetime.fromtimestamp(clock.now, datetime.timezone.utc)
    assert [row.sequence for row in log.rows(since=since)] == list(range(1201, 1212))
    assert [row.sequence for row in log.rows(action="verify")] == [1201]
    assert len(list(log.rows(since=since, action="identify"))) == 10
    rows = log.rows()
    next(rows)
    log.record("verify")  # while somebody reads
    assert sum(1 for _ in rows) == 1211


@pytest.mark.parametrize("text", ["", "Ada Lovelace", "a" * 101, "a\n", "0.12, 0.3", "ü", "\udc80"])
def test_what_may_be_a_name_is_not_written(log: AuditLog, text: str) -> None:
    for field in ("key_id", "gallery", "decision", "contract_id", "request_id"):
        with pytest.raises(InputError, match="an id or a word"):
            log.record("identify", **{field: text})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="an id or a word"):
        log.record(text)
    assert list(log.rows()) == []


# The chain


def test_a_log_that_nobody_touched_is_whole_and_so_is_an_empty_one(log: AuditLog) -> None:
    assert log.verify().rows == 0
    assert log.verify()
    fill(log, 1100)
    report = log.verify()
    assert report == AuditReport(1100, log.head())
    assert log.verify(report.head)
    fill(log, 3)
    assert log.verify(report.head).rows == 1103


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("time", "2020-01-01T00:00:00.000Z"),
        ("action", "verify"),
        ("key_id", "0b7e5a91"),
        ("key_id", None),
        ("gallery", "paris"),
        ("people", "[2, 8]"),
        ("people", "{}"),
        ("people", "[" * 100_000),
        ("people", b"\xff"),
        ("decision", "unknown"),
        ("contract_id", ""),
        ("request_id", 5),
        ("removed", "1:" + "0" * 64),
        ("hash", bytes(32)),
        ("hash", "text"),
    ],
)
def test_a_change_to_any_column_is_found_in_its_row(log: AuditLog, column: str, value: object) -> None:
    fill(log, 5)
    change(log, f"UPDATE rows SET {column} = ? WHERE sequence = 3", value)
    report = log.verify()
    assert not report
    assert report.broken == 3


def test_a_row_that_was_removed_inserted_or_exchanged_is_found(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 6)
    for sql, broken in (
        ("DELETE FROM rows WHERE sequence = 3", 3),
        ("DELETE FROM rows WHERE sequence < 3", 1),
        ("UPDATE rows SET sequence = 14 WHERE sequence = 4", 4),
        ("UPDATE rows SET (people, request_id, hash) = (SELECT people, request_id, hash FROM rows WHERE sequence = 6) "
         "WHERE sequence = 4", 4),
        ("INSERT INTO rows SELECT 7, time, action, key_id, gallery, people, decision, contract_id, request_id, "
         "removed, hash FROM rows WHERE sequence = 6", 7),
        ("UPDATE log SET id = x'00'", 1),
    ):  # fmt: skip
        copy = tmp_path / "copy.sqlite"
        log._file.checkpoint(truncate=True)
        shutil.copy(log.path, copy)
        with contextlib.closing(AuditLog(copy)) as changed:
            change(changed, sql)
            report = changed.verify()
            assert (bool(report), report.broken) == (False, broken), sql
        copy.unlink()


def test_rows_that_were_cut_off_at_the_end_are_found_with_a_head_that_was_kept(log: AuditLog) -> None:
    fill(log, 6)
    head = log.head()
    change(log, "DELETE FROM rows WHERE sequence > 4")
    assert log.verify()  # as the documentation says
    report = log.verify(head)
    assert not report
    assert report.broken == 5
    assert "5 to 6" in str(report.reason)
    fill(log, 6)
    report = log.verify(head)
    assert (report.broken, log.verify().rows) == (6, 10)
    assert "anew" in str(report.reason)


def test_a_log_that_was_exchanged_for_a_whole_one_is_found_with_a_head(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 3)
    with contextlib.closing(AuditLog(tmp_path / "other.sqlite")) as other:
        fill(other, 9)
        assert other.verify()
        assert other.verify(log.head()).broken == 3


@pytest.mark.parametrize("head", ["", "5", "5:abc", "x:" + "0" * 64, "5:" + "0" * 64 + "\n", "-1:" + "0" * 64])
def test_a_head_of_another_form_is_refused(log: AuditLog, head: str) -> None:
    with pytest.raises(InputError, match="NUMBER:HASH"):
        log.verify(head)


# Retention


def test_pruning_removes_what_is_old_and_the_chain_goes_on(log: AuditLog, clock: Clock) -> None:
    fill(log, 10)
    old = log.head()
    clock.now += 40 * DAY
    fill(log, 5)
    kept = log.head()
    assert log.prune(30, dry_run=True) == 10
    assert log.verify(old).rows == 15
    assert log.prune(30, key_id="4f1c22d8") == 10
    rows = list(log.rows())
    assert [row.sequence for row in rows] == [11, 12, 13, 14, 15, 16]
    assert (rows[-1].action, rows[-1].key_id, rows[-1].removed) == ("audit.prune", "4f1c22d8", old)
    assert log.verify(kept).rows == 6
    assert log.verify(old)  # the last of what was removed is named
    assert log.prune(30) == 0
    assert len(list(log.rows())) == 6
    clock.now += 40 * DAY
    assert log.prune(30) == 6  # the former checkpoint among them
    assert log.verify().rows == 1
    fill(log, 2)
    assert log.verify().rows == 3
    with pytest.raises(InputError, match="later head"):
        log.verify(old)


def test_what_was_pruned_is_in_no_file_any_more(log: AuditLog, clock: Clock) -> None:
    log.record("identify", request_id="request-to-forget")
    clock.now += 2 * DAY
    log.prune(1)
    for file in log.path.parent.iterdir():
        assert b"request-to-forget" not in file.read_bytes()


def test_rows_removed_without_a_checkpoint_or_with_a_false_one_are_found(log: AuditLog, clock: Clock) -> None:
    fill(log, 10)
    clock.now += 2 * DAY
    fill(log, 3)
    log.prune(1)
    change(log, "DELETE FROM rows WHERE sequence = 11")
    assert log.verify().broken == 11
    change(log, "UPDATE rows SET removed = ? WHERE removed IS NOT NULL", "11:" + "0" * 64)
    assert log.verify().broken == 12


def test_a_wrong_clock_neither_keeps_rows_for_ever_nor_removes_young_ones(log: AuditLog, clock: Clock) -> None:
    start = clock.now
    clock.now = start + 3650 * DAY
    log.record("identify")
    clock.now = start
    log.record("identify")
    clock.now = 0.0
    log.record("identify")
    clock.now = start + 1
    assert log.prune(30) == 1  # the one from the future, before one that is young
    assert [row.sequence for row in log.rows()] == [2, 3, 4]
    clock.now = start + 31 * DAY
    assert log.prune(30) == 3
    assert log.verify()


def test_a_clock_that_was_set_back_before_all_rows_removes_none(log: AuditLog, clock: Clock) -> None:
    fill(log, 3)
    clock.now = 60.0  # a machine without a clock of its own has started
    assert log.prune(30, dry_run=True) == log.prune(30) == 0
    assert log.verify()


@pytest.mark.parametrize("back", [400, 20_000])
def test_a_clock_that_is_set_back_removes_nothing_that_a_right_one_would_keep(
    log: AuditLog, clock: Clock, back: int
) -> None:
    fill(log, 3)
    clock.now -= back * DAY
    log.maintain(365)
    fill(log, 2)
    clock.now += DAY
    log.maintain(365)
    clock.now += (back - 1) * DAY
    assert log.prune(365) == 0
    assert [row.sequence for row in log.rows()] == [1, 2, 3, 4, 5]
    clock.now += 366 * DAY
    assert log.prune(365) == 5
    assert log.verify()


def test_maintenance_syncs_new_rows_and_once_a_day_prunes_and_logs_the_head(
    log: AuditLog, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "edgeface.serve.audit")
    syncs = list[bool]()
    monkeypatch.setattr(log._syncing, "checkpoint", lambda: syncs.append(True))
    log.maintain(30)
    assert (len(syncs), [record.getMessage() for record in caplog.records]) == (
        0,
        [f"audit log: removed 0 rows; head {log.head()}"],
    )
    fill(log, 3)
    log.maintain(30)
    log.maintain(30)
    assert (len(syncs), len(caplog.records)) == (1, 1)
    clock.now += 31 * DAY
    log.maintain(30)
    assert caplog.records[-1].getMessage() == f"audit log: removed 3 rows; head {log.head()}"
    assert log.verify().rows == 1


def test_maintenance_moves_what_was_recorded_from_the_write_ahead_log_into_the_file(
    log: AuditLog, tmp_path: Path
) -> None:
    fill(log, 3)
    log.maintain(30)
    shutil.copy(log.path, tmp_path / "copy.sqlite")  # without the write-ahead log
    with contextlib.closing(AuditLog(tmp_path / "copy.sqlite")) as copy:
        assert copy.verify().rows == 3


@pytest.mark.parametrize("days", [-1, float("nan"), 1e9])
def test_a_retention_of_no_sense_is_refused(log: AuditLog, days: float) -> None:
    fill(log, 1)
    with pytest.raises(InputError, match="days"):
        log.prune(days)
    assert log.verify().rows == 1


# Faults

_WRITER = (
    "import sys; from pathlib import Path; from edgeface.serve.audit import AuditLog\n"
    "log = AuditLog(Path(sys.argv[1]))\n"
    "for number in range(int(sys.argv[2])): print(log.record('identify', people=[number]), flush=True)"
)


def test_processes_and_threads_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, path, "300"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    with contextlib.closing(AuditLog(path)) as log:
        threads = [threading.Thread(target=fill, args=(log, 150)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        numbers = [int(line) for writer in writers for line in writer.communicate()[0].split()]
        assert len(set(numbers)) == 600
        assert log.verify().rows == 900


@pytest.mark.slow
def test_a_killed_process_leaves_a_whole_chain_with_every_row_that_it_had_acknowledged(tmp_path: Path) -> None:
    path, chance = tmp_path / "audit.sqlite", random.Random(5)
    last = 0
    for _ in range(10):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, path, "100000"], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 300)):
            last = int(writer.stdout.readline())
        writer.kill()
        last = max([last, *(int(line) for line in writer.communicate()[0].splitlines()[:-1] if line)])
        with contextlib.closing(AuditLog(path)) as log:
            report = log.verify()
            assert report
            assert report.rows >= last


def test_a_full_disk_is_an_error_and_the_chain_goes_on_when_there_is_space(log: AuditLog) -> None:
    fill(log, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    wal = log.path.with_name(log.path.name + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 100, before[1]))
    try:
        for _ in range(2):
            with pytest.raises(OutputError, match=r"is lost|is kept"):
                log.record("identify")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert log.verify().rows == 3
    fill(log, 2)
    assert log.verify().rows == 5


def test_a_log_that_was_removed_is_an_error_and_not_written_to_any_more(log: AuditLog) -> None:
    fill(log, 1)
    log.path.unlink()
    with pytest.raises(ServiceFileError, match="removed or replaced"):
        log.record("identify")
    with pytest.raises(ServiceFileError):
        log.verify()


def test_rows_of_a_damaged_log_are_an_error_that_names_the_row(log: AuditLog) -> None:
    fill(log, 3)
    change(log, "UPDATE rows SET people = '[' WHERE sequence = 2")
    with pytest.raises(ServiceFileError, match="row 2 damaged"):
        list(log.rows())
    change(log, "UPDATE rows SET hash = 'x' WHERE sequence = 3")
    with pytest.raises(ServiceFileError, match="a hash in the last row"):
        log.record("identify")
    assert log.verify().broken == 2


@pytest.mark.parametrize("rounds", [pytest.param(60), pytest.param(2000, marks=pytest.mark.nightly)])
def test_no_damage_to_the_file_goes_unnoticed_where_rows_are(tmp_path: Path, rounds: int) -> None:
    whole = tmp_path / "audit.sqlite"
    with contextlib.closing(AuditLog(whole)) as log:
        fill(log, 60)
        head = log.head()
        told = [row.to_dict() for row in log.rows()]
    content, chance, found = whole.read_bytes(), random.Random(rounds), 0
    for number in range(rounds):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 4, 64))):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "audit.sqlite"
        path.write_bytes(damaged)
        path.chmod(0o600)
        try:
            with contextlib.closing(AuditLog(path)) as log:
                if log.verify(head):  # the damage lies where no row is
                    assert [row.to_dict() for row in log.rows()] == told
                else:
                    found += 1
        except (ServiceFileError, OutputError):
            found += 1
        shutil.rmtree(folder)
    assert found > rounds / 4


@pytest.mark.alone
def test_a_row_takes_about_50_microseconds(tmp_path: Path) -> None:
    with contextlib.closing(AuditLog(tmp_path / "audit.sqlite")) as log:
        fill(log, 500)
        started = time.process_time()
        fill(log, 5000)
        assert (time.process_time() - started) / 5000 < 150e-6
