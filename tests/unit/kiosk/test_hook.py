"""The command that opens a door: run once, for a known person who was decided just now, and for nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError
from unit.kiosk.conftest import NOON, Clock, visit, wait_until

from edgeface.kiosk.events import EventLog, LoggedEvent
from edgeface.kiosk.hook import CommandHook
from edgeface.kiosk.outcome import VisitKind
from edgeface.kiosk.targets import DoorCommand


@pytest.fixture
def event(log: EventLog) -> LoggedEvent:
    return log.record(visit())


@contextlib.contextmanager
def hook(now: Clock, *command: str, **settings: object) -> Iterator[CommandHook]:
    door = DoorCommand.model_validate({"command": command} | settings)
    with contextlib.closing(CommandHook(door, clock=now)) as made:
        yield made


def script(text: str) -> tuple[str, ...]:
    return "/bin/sh", "-c", text


def test_the_command_is_given_the_event_and_no_shell(event: LoggedEvent, now: Clock, tmp_path: Path) -> None:
    told, argument = tmp_path / "told", "$(id); `id` > * 'x'"
    with hook(now, "/bin/sh", "-c", 'cat > "$0"; printf %s "$1" >> "$0"', str(told), argument) as door:
        run = door.offer(event).result()
    assert run
    assert run.reason == "exit code 0"
    body, _, given = told.read_text().partition("}")
    assert json.loads(body + "}") == event.to_dict()
    assert given == argument


def test_the_command_is_given_none_of_the_kiosk_s_keys(
    event: LoggedEvent, now: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_GALLERY_KEY", "5e" * 32)
    monkeypatch.setenv("RELAY", "front")
    with hook(now, *script('env > "$0"'), str(told := tmp_path / "told")) as door:
        assert door.offer(event).result()
    assert "RELAY=front" in told.read_text()
    assert "EDGEFACE" not in told.read_text()


@pytest.mark.parametrize(
    "change",
    [
        *({"kind": kind} for kind in VisitKind if kind is not VisitKind.known),
        {"person_id": None},
        {"camera": "cellar"},
        {"time": NOON - datetime.timedelta(seconds=3.1)},
        {"time": NOON - datetime.timedelta(hours=1)},
        {"time": NOON + datetime.timedelta(seconds=1.1)},
        {"time": NOON + datetime.timedelta(days=400)},
    ],
)
def test_nothing_but_a_fresh_known_person_runs_the_command(
    event: LoggedEvent, now: Clock, tmp_path: Path, change: dict[str, object]
) -> None:
    opened = tmp_path / "opened"
    with hook(now, *script(f"touch {opened}"), cameras=["door"]) as door:
        run = door.offer(dataclasses.replace(event, **change)).result()
        assert not run
        assert run.reason.startswith("not run")
    assert not opened.exists()


def test_the_oldest_event_that_runs_the_command_is_as_old_as_configured(event: LoggedEvent, now: Clock) -> None:
    with hook(now, "/bin/true", max_age=3) as door:
        now.forward(3)
        assert door.offer(event).result()
        now.forward(0.1)
        assert door.offer(event).result().reason == "not run: the decision is 3.1 s old"


def test_a_clock_that_is_set_back_or_ahead_opens_nothing(event: LoggedEvent, now: Clock) -> None:
    with hook(now, "/bin/true") as door:
        for wrong in (0.0, NOON.timestamp() - 3600, NOON.timestamp() + 3600):
            now.now = wrong
            assert not door.offer(event).result()


def test_no_more_commands_run_at_once_than_configured_and_none_waits(
    event: LoggedEvent, now: Clock, tmp_path: Path
) -> None:
    runs, go = tmp_path / "runs", tmp_path / "go"
    with hook(now, *script(f"echo x >> {runs}; while [ ! -e {go} ]; do sleep 0.01; done"), at_once=2) as door:
        running = [door.offer(event) for _ in range(2)]
        assert door.offer(event).result().reason == "not run: other commands are running"
        wait_until(lambda: runs.exists() and len(runs.read_text()) == 4)
        go.touch()
        assert all(each.result() for each in running)
        assert door.offer(event).result()
    assert len(runs.read_text()) == 6


def test_a_command_that_hangs_is_killed_with_what_it_started(event: LoggedEvent, now: Clock, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    text = f"(while :; do echo x >> {beat}; sleep 0.01; done) & wait"
    with hook(now, *script(text), timeout=0.3) as door:
        assert door.offer(event).result().reason == "killed after 0.3 s"
        size = beat.stat().st_size
        time.sleep(0.1)
        assert size == beat.stat().st_size > 0
        now.forward(1)
        assert door.offer(event).result().reason == "killed after 0.3 s"  # its place is free again


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (script("exit 3"), "exit code 3"),
        (script("kill -9 $$"), "exit code -9"),
        (("/no/such/program",), "No such file"),
        (("/etc/passwd",), "Permission denied"),
    ],
)
def test_a_command_that_fails_is_no_open_door(
    event: LoggedEvent, now: Clock, command: tuple[str, ...], reason: str
) -> None:
    with hook(now, *command) as door:
        for _ in range(2):
            run = door.offer(event).result()
            assert not run
            assert reason in run.reason


def test_a_command_that_does_not_read_the_event_or_prints_much_ends(event: LoggedEvent, now: Clock) -> None:
    with hook(now, sys.executable, "-c", "print('x' * 1_000_000)") as door:
        assert door.offer(event).result()


def test_a_hook_that_is_closed_runs_nothing(event: LoggedEvent, now: Clock) -> None:
    with hook(now, "/bin/true") as door:
        pass
    assert not door.offer(event).result()


def test_a_command_is_a_list() -> None:
    for wrong in ("rm -rf /", [], None):
        with pytest.raises(ValidationError):
            DoorCommand.model_validate({"command": wrong})
