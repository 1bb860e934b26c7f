"""Print a command's result, as text or as one JSON object, and its progress.

Everything that a command prints leaves through here. Text from outside (names of files, models and people) is made
printable, and the standard streams never fail inside a command: see `GuardedStream`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import rich.markup
import typer
from rich.console import Console, ConsoleDimensions
from rich.segment import Segment

from edgeface.cli.streams import GuardedStream as GuardedStream
from edgeface.cli.streams import emit_json as emit_json
from edgeface.cli.streams import guarded_streams as guarded_streams
from edgeface.cli.words import counted as counted
from edgeface.cli.words import describe_box as describe_box
from edgeface.cli.words import detector_lines, model_words
from edgeface.cli.words import list_failures as list_failures
from edgeface.errors import NegativeResult
from edgeface.model.contract import SEEDED_WARNING, ModelContract
from edgeface.progress import Progress, ProgressCallback
from edgeface.text import hide_secrets, printable

if TYPE_CHECKING:
    from edgeface.vision.detector import FoundBy

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 1 if any photo failed.")]


_UNCUT = 1_000_000
"""Columns of a line that is not cut."""


class _Console(Console):
    """Makes everything printable that is printed through it, and reads no :names: as pictures."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False)

    @property  # type: ignore[misc]  # nothing sets it
    def size(self) -> ConsoleDimensions:
        """Lines for a program or a file are as long as their content; a terminal's are cut where it ends."""
        size = super().size
        return size if self.is_terminal or "COLUMNS" in os.environ else size._replace(width=_UNCUT)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))
            for segment in buffer
        )


class LogFormatter(logging.Formatter):
    """Write one line for each record, printable and without passwords, and then its traceback if it has one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(hide_secrets(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return printable(hide_secrets(super().formatException(ei)), keep="\n")


stderr = _Console(stderr=True)
stdout = _Console()


def escape(text: object) -> str:
    """Return text for one line or cell of rich's: printable, and with no meaning of brackets."""
    return rich.markup.escape(printable(str(text)))


def print_line(text: str) -> None:
    """Print text on stdout in one line: unwrapped, and with no meaning of brackets."""
    stdout.print(printable(text), markup=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Print text on stderr in one line."""
    stderr.print(printable(text), markup=False, soft_wrap=True)


def print_model(contract: ModelContract, precision: str | None, found_by: FoundBy) -> None:
    """Print which model answered, with its precisions unless all is FP32, and which detector found the faces."""
    print_line(model_words(contract.name, contract.contract_id, contract.precision, precision))
    print_detector(found_by)


def print_detector(found_by: FoundBy) -> None:
    """Print which detector found the faces, from which size on, and why."""
    for line in detector_lines(asdict(found_by)):
        print_line(line)


def warn_if_seeded(provenance: str | None) -> None:
    """Print on stderr that a model's weights are random numbers, if they are."""
    if provenance == "seeded":
        stderr.print(f"[bold yellow]{SEEDED_WARNING}[/]", soft_wrap=True)


def emit_json_line(answer: Mapping[str, Any]) -> None:
    """Print one JSON object of a command that goes on, in one line, at once."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def progress_bars(*, refresh_per_second: float = 10) -> Iterator[ProgressCallback]:
    """Yield the callback that draws a bar for each stage on a terminal; elsewhere it draws nothing."""
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    stage, unit = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[unit]}"))
    columns = (stage, BarColumn(), MofNCompleteColumn(), unit)
    times = TimeElapsedColumn(), TimeRemainingColumn()
    shown = stderr.is_terminal
    with Bars(*columns, *times, console=stderr, disable=not shown, refresh_per_second=refresh_per_second) as bars:
        tasks: dict[str, TaskID] = {}

        def update(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(
                    printable(progress.stage), total=progress.total, unit=progress.unit
                )
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total, unit=progress.unit)

        yield update


def mention_left_out(left_out: Mapping[Path, str]) -> None:
    """Print in one line of stderr what does not count as a photo or a person."""
    from edgeface.vision.crops import list_some

    if left_out:
        print_note(f"left out: {list_some(left_out)}")


def finish(failures: Mapping[Path, str], *, strict: bool, left_out: Mapping[Path, str] | None = None) -> None:
    """Print what failed, and what is no photo, to stderr; exit with 1 if anything failed and --strict was given."""
    mention_left_out(left_out or {})
    for path, reason in failures.items():
        print_note(f"{path}: {reason}")
    if failures and strict:
        raise typer.Exit(NegativeResult.exit_code)
