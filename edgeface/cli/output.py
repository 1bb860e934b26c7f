"""Print a command's result, as text or as one JSON object, and its progress."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from edgeface.errors import NegativeResult
from edgeface.model.contract import SEEDED_WARNING
from edgeface.progress import Progress, ProgressCallback

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 1 if any photo failed.")]


class _Console(Console):
    """Leaves closed pipes to `edgeface.cli.app.main`; rich would exit with 1, which here means "no"."""

    def on_broken_pipe(self) -> None:
        raise  # what rich has just caught


stderr = _Console(stderr=True, highlight=False)
stdout = _Console(highlight=False)


def print_line(text: str) -> None:
    """Print text on stdout as it is: unwrapped, and with no meaning of brackets."""
    stdout.print(text, markup=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Print text on stderr as it is."""
    stderr.print(text, markup=False, soft_wrap=True)


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


@contextlib.contextmanager
def progress_bars(*, refresh_per_second: float = 10) -> Iterator[ProgressCallback]:
    """Yield the callback that draws a bar for each stage on a terminal; elsewhere it draws nothing."""
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))
    times = TimeElapsedColumn(), TimeRemainingColumn()
    shown = stderr.is_terminal
    with Bars(*columns, *times, console=stderr, disable=not shown, refresh_per_second=refresh_per_second) as bars:
        tasks: dict[str, TaskID] = {}

        def update(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total, unit=progress.unit)
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total)

        yield update


def list_failures(failures: Mapping[Path, str]) -> list[dict[str, str]]:
    """List the files that failed, and why, for a command's JSON."""
    return [{"path": str(path), "error": reason} for path, reason in failures.items()]


def finish(failures: Mapping[Path, str], *, strict: bool) -> None:
    """Print what failed to stderr; exit with 1 if anything did and --strict was given."""
    for path, reason in failures.items():
        print_note(f"{path}: {reason}")
    if failures and strict:
        raise typer.Exit(NegativeResult.exit_code)
