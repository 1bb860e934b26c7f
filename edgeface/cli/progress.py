"""A download's events in, a bar for people or one JSON line an event for machines out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from enum import Enum
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from edgeface import zoo


class ProgressFormat(str, Enum):
    """How a download tells how far it is."""

    auto = "auto"
    text = "text"
    json = "json"
    none = "none"


@contextlib.contextmanager
def reporting(
    form: ProgressFormat, *, console: Console, stream: IO[str] | None = None
) -> Iterator[zoo.Progress]:
    """Give what a download is to call with its events.

    Parameters
    ----------
    form
        ``auto`` draws bars on a terminal and is silent elsewhere.
    console
        For the bars.
    stream
        For the JSON lines, which are those of Open Model Zoo's ``--progress_format=json``; by default stderr,
        so that a command's one JSON object on stdout stays alone.
    """
    if form is ProgressFormat.json:
        output = sys.stderr if stream is None else stream
        yield lambda event: _write_line(event, output)
    elif form is ProgressFormat.text or (form is ProgressFormat.auto and console.is_terminal):
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
            yield _Bars(bars)
    else:
        yield lambda event: None


def _write_line(event: zoo.Event, output: IO[str]) -> None:
    fields = {key: value for key, value in dataclasses.asdict(event).items() if value is not None}
    output.write(json.dumps({"$type": fields.pop("kind"), **fields}) + "\n")
    output.flush()


class _Bars:
    """One bar a file."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, event: zoo.Event) -> None:
        if event.model_file is None:
            return
        key = (event.model, event.model_file)
        if event.kind == "model_file_download_begin":
            description = f"{event.model}/{event.model_file}"
            self._tasks[key] = self._bars.add_task(description, total=event.size)
        elif event.kind == "model_file_download_progress":
            self._bars.update(self._tasks[key], completed=event.size)
        elif event.kind == "model_file_download_end" and event.successful:
            task = self._bars.tasks[self._tasks[key]]
            self._bars.update(
                task.id, total=task.total or task.completed, completed=task.total or task.completed
            )
