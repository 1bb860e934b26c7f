"""Print a command's result, as text or as one JSON object, and its progress.

Everything that a command prints leaves through here. Text from outside (names of files, models and people) is made
printable, and the standard streams never fail inside a command: see `GuardedStream`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TextIO

import rich.markup
import typer
from rich.console import Console, ConsoleDimensions
from rich.segment import Segment

from edgeface.errors import NegativeResult
from edgeface.model.contract import SEEDED_WARNING, ModelContract
from edgeface.progress import Progress, ProgressCallback
from edgeface.text import hide_secrets, printable

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 1 if any photo failed.")]


class GuardedStream(io.TextIOBase):
    """A standard stream that never fails inside a command, so that a command always ends as its work did.

    Characters that the stream's encoding lacks are escaped. What cannot be written, because the disk is full, the
    reader has gone or the stream is closed, is dropped; `failure` is the reason.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self.failure = stream, None if stream else OSError(errno.EBADF, "it is closed")
        self.asked = False
        """Whether anything was to be written."""

    def write(self, text: str) -> int:
        self.asked |= bool(text)
        encoding = self.encoding or "utf-8"
        told = text.encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda stream: stream.write(told))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def _try(self, action: Callable[[TextIO], object]) -> None:
        if self._stream is None or self.failure:
            return
        try:
            action(self._stream)
        except (OSError, ValueError) as error:  # ValueError: closed
            self.failure = error if isinstance(error, OSError) else OSError(errno.EBADF, "it is closed")
            with contextlib.suppress(OSError, ValueError):  # what is buffered must not fail again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        return getattr(self._stream, "encoding", None)

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return io.TextIOBase().fileno() if self._stream is None else self._stream.fileno()

    def lost(self) -> str | None:
        """Return why something that was to be written was not; None if nothing was, or the reader has gone."""
        self.flush()
        if not (self.asked and self.failure) or self.failure.errno == errno.EPIPE:
            return None
        return self.failure.strerror or str(self.failure)


@contextlib.contextmanager
def guarded_streams() -> Iterator[tuple[GuardedStream, GuardedStream]]:
    """Guard stdout and stderr inside the block; yield them. A closed stdin reads as empty."""
    for number in range(3):  # a file opened as one of them would be written into by whatever prints there
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdin, sys.stdout, sys.stderr
    guarded = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    sys.stdin = sys.stdin or io.StringIO()
    sys.stdout, sys.stderr = guarded
    try:
        yield guarded
    finally:
        sys.stdin, sys.stdout, sys.stderr = before


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


def print_model(contract: ModelContract, precision: str | None) -> None:
    """Print which model answered, with its precisions unless it is an FP32 model that computes in FP32."""
    usual = contract.precision == "FP32" and precision == "f32"
    precisions = "" if usual else f", {contract.precision} weights, computed in {precision or 'an unknown precision'}"
    print_line(f"model: {contract.name} ({contract.contract_id}){precisions}")


def warn_if_seeded(provenance: str | None) -> None:
    """Print on stderr that a model's weights are random numbers, if they are."""
    if provenance == "seeded":
        stderr.print(f"[bold yellow]{SEEDED_WARNING}[/]", soft_wrap=True)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number of things, with the noun in the singular for one: "1 face", "2 faces"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def describe_box(box: Iterable[float]) -> str:
    """Return the size and place of a box (x0, y0, x1, y1) in pixels, in words."""
    x0, y0, x1, y1 = box
    return f"{x1 - x0:.0f}x{y1 - y0:.0f} at ({x0:.0f}, {y0:.0f})"


def emit_json(answer: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command."""
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


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


def list_failures(failures: Mapping[Path, str]) -> list[dict[str, str]]:
    """List files and folders that failed or are left out, and why, for a command's JSON."""
    return [{"path": str(path), "error": reason} for path, reason in failures.items()]


def finish(failures: Mapping[Path, str], *, strict: bool, left_out: Mapping[Path, str] | None = None) -> None:
    """Print what failed, and what is no photo, to stderr; exit with 1 if anything failed and --strict was given."""
    mention_left_out(left_out or {})
    for path, reason in failures.items():
        print_note(f"{path}: {reason}")
    if failures and strict:
        raise typer.Exit(NegativeResult.exit_code)
