"""A function and a number of rows in, the function called for parts of them by all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

__all__ = ["available_cores", "in_parts"]

_MIN_ROWS = 2048
"""Fewer rows are done before a thread has woken."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parts(work: Callable[[slice], None], rows: int, *, threads: int) -> None:
    """Call `work` for slices that cover `rows`; it must release the GIL to gain anything.

    What it raises is raised, after all parts have ended.
    """
    if threads == 1 or rows < 2 * _MIN_ROWS:
        work(slice(0, rows))
        return
    # Two parts a thread: a thread that was held up leaves its second part to another.
    size = max(_MIN_ROWS, -(-rows // (2 * threads)))
    parts = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    pending = [_pool(os.getpid(), threads - 1).submit(_drain, work, parts) for _ in range(threads - 1)]
    try:
        _drain(work, parts)
    finally:
        errors = [each.exception() for each in pending]
    for error in errors:
        if error is not None:
            raise error


def _drain(work: Callable[[slice], None], parts: list[slice]) -> None:
    while True:
        try:
            part = parts.pop()
        except IndexError:
            return
        work(part)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One pool a process and width: threads do not survive `os.fork`."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"edgeface-index-{process}")
