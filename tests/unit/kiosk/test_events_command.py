"""`edgeface events`: what is printed, what is asked first, and what goes."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.kiosk.conftest import NOON, visit

from edgeface.cli import main
from edgeface.kiosk.events import EventLog
from edgeface.kiosk.outcome import VisitKind

Run = Callable[..., tuple[str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.sqlite"
    with contextlib.closing(EventLog(path, targets={"webhook:office": {VisitKind.known}})) as log:
        for day, person, name in (
            (0, 7, "Ada Lovelace"),
            (0, None, ""),
            (1, 8, "=HYPERLINK(1)"),
            (1, 7, "Ada Lovelace"),
        ):
            log.record(visit(person, name, time=NOON + datetime.timedelta(days=day)))
        log.undelivered("webhook:office", 1, "expected an answer of 200 to 299, found 503", seconds=None)
    return path


@pytest.fixture
def run(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(command: str, *words: str, code: int = 0) -> tuple[str, str]:
        found = main(["events", command, str(path), *words])
        said = capsys.readouterr()
        assert found == code, said.err
        return said

    return run


def rows(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_list_prints_the_last_events(run: Run) -> None:
    table = run("list", "--last", "2")[0].splitlines()
    assert len(table) == 3
    assert "Ada Lovelace" in table[2]
    assert "=HYPERLINK(1)" in table[1]
    events = json.loads(run("list", "--json")[0])["events"]
    assert [event["sequence"] for event in events] == [1, 2, 3, 4]


def test_list_prints_what_failed_for_good_and_resend_puts_it_back(run: Run) -> None:
    assert "found 503" in run("list", "--dead")[0]
    (dead,) = json.loads(run("list", "--dead", "--json")[0])["deliveries"]
    assert run("resend", "--target", "mqtt")[0] == "0 deliveries to be sent again\n"
    assert run("resend", "--event", dead["event"])[0] == "1 delivery to be sent again\n"
    assert json.loads(run("list", "--dead", "--json")[0]) == {"deliveries": []}


def test_export_is_a_csv_that_no_spreadsheet_calculates(run: Run) -> None:
    out, err = run("export")
    assert [row["name"] for row in rows(out)] == ["Ada Lovelace", "", "'=HYPERLINK(1)", "Ada Lovelace"]
    assert err == "4 rows\n"
    assert "name" not in rows(run("export", "--no-names")[0])[0]
    assert [row["kind"] for row in rows(run("export", "--kind", "unknown")[0])] == ["unknown"]


def test_export_of_days_has_the_whole_last_day(run: Run) -> None:
    out = run("export", "--since", "2026-11-30", "--until", "2026-11-30", "--format", "ndjson")[0]
    assert [json.loads(line)["sequence"] for line in out.splitlines()] == [3, 4]
    assert run("export", "--until", "2026-11-28")[1] == "0 rows\n"


def test_attendance_is_by_person_and_day(run: Run) -> None:
    found = rows(run("attendance", "--zone", "Europe/Berlin", "--since", "2026-11-30")[0])
    assert [(row["day"], row["person_id"], row["count"], row["zone"]) for row in found] == [
        ("2026-11-30", "8", "1", "Europe/Berlin"),
        ("2026-11-30", "7", "1", "Europe/Berlin"),
    ]
    assert found[0]["first"] == "2026-11-30T13:00:00+01:00"
    assert "time zone: expected" in run("attendance", "--zone", "Mars", code=2)[1]


def test_purge_asks_first_and_counts(run: Run, path: Path) -> None:
    assert "pass --yes" in run("purge", "--days", "0", code=2)[1]
    assert "either --days or --person" in run("purge", code=2)[1]
    assert "either --days or --person" in run("purge", "--days", "1", "--person", "7", code=2)[1]
    assert run("purge", "--person", "7", "--dry-run")[0] == "2 events would lose the name\n"
    assert run("purge", "--person", "7", "--yes")[0] == "person 7 is removed from 2 events\n"
    events = json.loads(run("list", "--json")[0])["events"]
    assert [event["name"] for event in events] == [None, None, "=HYPERLINK(1)", None]
    told = json.loads(run("purge", "--days", "0", "--yes", "--json")[0])
    assert told == {"events": told["events"], "days": 0.0, "dry_run": False}


def test_a_log_that_is_missing_is_not_made(run: Run, path: Path) -> None:
    path.unlink()
    assert "kiosk's event log" in run("list", code=2)[1]
    assert not path.exists()
