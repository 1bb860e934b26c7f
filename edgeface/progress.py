"""Report how far a long piece of work is: one type for every part of edgeface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one stage of the work is.

    Attributes
    ----------
    stage
        What is being done, in plain words, e.g. ``"embedding"``. A new stage is a new bar on a terminal.
    done
        Units finished so far, or seconds passed.
    total
        Units in all; None while unknown.
    unit
        What is counted, e.g. ``"files"`` or ``"bytes"``.

    Examples
    --------
    >>> Progress("embedding", done=3, total=10, unit="files")
    Progress(stage='embedding', done=3, total=10, unit='files')
    """

    stage: str
    done: float
    total: float | None = None
    unit: str = ""


ProgressCallback = Callable[[Progress], None]
"""Called from the thread that works, one call at a time; what it raises ends the work."""


def ignore_progress(progress: Progress) -> None:
    """Do nothing: the default of every function that reports progress."""
