"""Stages of a long piece of work in, a bar a stage on a terminal out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from edgeface.cli.output import stderr

__all__ = ["Report", "stages"]

Report = Callable[[str, int, int], None]


@contextlib.contextmanager
def stages() -> Iterator[Report]:
    """Yield what to call with the name of a stage, how far it is, and of how many (0: not known)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, redirect_stdout=False) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield tell
