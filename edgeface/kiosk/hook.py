"""Run a command for a known person, such as the one that opens a door, and fail closed.

The command is run at most once for an event, at once or never: it is no target of the outbox, so nothing that waited
there opens a door later.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgeface.kiosk.events import LoggedEvent
from edgeface.kiosk.outcome import VisitKind
from edgeface.kiosk.targets import DoorCommand

_AHEAD = 1.0
"""Seconds that an event may be dated ahead of the clock, which is set while the kiosk runs."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DoorRun:
    """Whether the command ran and ended with 0, and why not; true if it did."""

    done: bool
    reason: str

    def __bool__(self) -> bool:
        return self.done


class CommandHook:
    """Run a command for each known person who was decided just now.

    Parameters
    ----------
    settings
        The command and its limits.
    clock
        Seconds since 1970.
    """

    def __init__(self, settings: DoorCommand, *, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._free = threading.Semaphore(settings.at_once)
        self._threads = concurrent.futures.ThreadPoolExecutor(settings.at_once, "door")

    def close(self) -> None:
        """Wait for commands that run."""
        self._threads.shutdown()

    def offer(self, event: LoggedEvent) -> concurrent.futures.Future[DoorRun]:
        """Run the command, in a thread, unless anything speaks against it; never raises.

        It is not run for another kind of event, for one without a person, of another camera, older than
        `DoorCommand.max_age` or dated ahead, or while as many commands run as may.
        """
        if (reason := self._refusal(event)) is None and not self._free.acquire(blocking=False):
            reason = "other commands are running"
        if reason is None:
            try:
                return self._threads.submit(self._run, event)
            except RuntimeError:  # closed
                self._free.release()
                reason = "the kiosk is ending"
        done = concurrent.futures.Future[DoorRun]()
        done.set_result(self._tell(event, DoorRun(False, f"not run: {reason}")))
        return done

    def _refusal(self, event: LoggedEvent) -> str | None:
        """Return why the command is not to be run."""
        if event.kind is not VisitKind.known or event.person_id is None:
            return "no known person"
        if self._settings.cameras and event.camera not in self._settings.cameras:
            return "another camera"
        age = self._clock() - event.time.timestamp()
        if not -_AHEAD <= age <= self._settings.max_age:
            return f"the decision is {age:.1f} s old"
        return None

    def _run(self, event: LoggedEvent) -> DoorRun:
        try:
            if reason := self._refusal(event):  # the thread began late
                return self._tell(event, DoorRun(False, f"not run: {reason}"))
            return self._tell(event, self._call(json.dumps(event.to_dict()).encode()))
        except Exception as error:  # a program that is missing, no process left
            return self._tell(event, DoorRun(False, str(error)))
        finally:
            self._free.release()

    def _call(self, content: bytes) -> DoorRun:
        quiet = subprocess.DEVNULL
        own = {name: value for name, value in os.environ.items() if not name.startswith("EDGEFACE_")}  # with the keys
        with subprocess.Popen(
            self._settings.command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True, env=own
        ) as process:
            try:
                process.communicate(content, self._settings.timeout)
            except subprocess.TimeoutExpired:
                return DoorRun(False, f"killed after {self._settings.timeout:g} s")
            finally:  # with what it started, which may hold the relay
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        return DoorRun(process.returncode == 0, f"exit code {process.returncode}")

    def _tell(self, event: LoggedEvent, run: DoorRun) -> DoorRun:
        level = logging.INFO if run or event.kind is not VisitKind.known else logging.WARNING
        _log.log(level, "door: event %s: %s", event.id, run.reason)
        return run
