"""A target in, what it did under one kind of load out, after MLPerf Inference (Reddi et al., arXiv 1911.02549).

``single-stream``
    The next query as soon as the last one is answered, one at a time, in the caller's thread: latency.
``multi-stream``
    The same with queries of several samples, which are inferred side by side: latency of the whole query.
``server``
    Queries come when they come, by a Poisson process, and wait if they must: `edgeface.bench.run.server`.
``offline``
    All of the target's requests are busy all the time: throughput. Latency is that of a request among the others.
``kiosk``
    A video at its own frame rate through detection and recognition: `edgeface.bench.run.kiosk`.

MLPerf's minimum durations (600 s) are the caller's choice here, and its minimum counts the default.
"""

from __future__ import annotations

import math
import time

from edgeface.bench.run.load_generator import Limits, Progress, Recording, Slots, Stopper, measuring
from edgeface.bench.run.stationarity import is_settled
from edgeface.bench.run.target import Target
from edgeface.stats import queries_needed

__all__ = ["PERCENTILES", "minimum_count", "multi_stream", "offline", "single_stream", "warm_up"]

PERCENTILES = {"single-stream": 90.0, "multi-stream": 99.0, "server": 99.0}
"""That a scenario is judged by: table of scenarios in the MLPerf Inference rules."""

_WINDOW = Limits(duration_s=0.5, min_count=10, max_duration_s=30.0)
"""Of the warm-up; two of them have to agree."""


def minimum_count(scenario: str, percentile: float | None = None) -> int:
    """Fewest queries that say something about the percentile of a scenario by the early-stopping rule."""
    percentile = percentile or PERCENTILES.get(scenario)
    return queries_needed(percentile / 100) if percentile else 1


def single_stream(target: Target, limits: Limits, progress: Progress | None = None) -> Recording:
    """Answer one query after the other in this thread."""
    infer, clock = target.infer, time.perf_counter_ns
    with measuring() as tape:
        rows, enough = tape.rows, Stopper(limits, progress, tape)
        now = clock()
        while not enough(now, len(rows)):
            started = clock()
            infer()
            now = clock()
            rows.append((started, now))
    return tape.recording(target.items)


def multi_stream(
    target: Target, limits: Limits, progress: Progress | None = None, *, samples: int = 8
) -> Recording:
    """Answer one query of several samples after the other.

    Parameters
    ----------
    target, limits, progress
        As everywhere here.
    samples
        Of a query; MLPerf's is 8. A last inference that they do not fill is made whole and counted so.
    """
    inferences, clock = math.ceil(samples / target.items), time.perf_counter_ns
    with measuring() as tape:
        ends: list[int] = []
        slots = Slots(target, lambda slot, end: ends.append(end))
        enough = Stopper(limits, progress, tape)
        try:
            while not enough(started := clock(), len(tape.rows)):
                ends.clear()
                for _ in range(inferences):
                    slots.start(slots.take())
                slots.drain()
                tape.rows.append((started, max(ends)))
        finally:
            slots.drain()
    return tape.recording(inferences * target.items)


def offline(target: Target, limits: Limits, progress: Progress | None = None) -> Recording:
    """Keep every slot busy."""
    clock = time.perf_counter_ns
    with measuring() as tape:
        rows, began = tape.rows, [0] * target.slots
        slots = Slots(target, lambda slot, end: rows.append((began[slot], end)))
        enough = Stopper(limits, progress, tape)
        try:
            while not enough(clock(), len(rows)):
                slot = slots.take()
                began[slot] = clock()
                slots.start(slot)
        finally:
            slots.drain()
    return tape.recording(target.items)


def warm_up(target: Target, *, alone: bool, longest_s: float) -> tuple[float, bool]:
    """Make inferences until their times have settled.

    Parameters
    ----------
    target
        What is measured.
    alone
        One at a time, as in ``single-stream``; else all slots at once.
    longest_s
        Seconds after which to go on in any case.

    Returns
    -------
    seconds, settled
        How long it took, and whether the last two windows agreed.

    Raises
    ------
    KeyboardInterrupt
        Nothing has been measured yet.
    """
    began, before = time.perf_counter(), None
    load = single_stream if alone else offline
    while True:
        left = began + longest_s - time.perf_counter()
        if left <= 0:
            return time.perf_counter() - began, False
        window = Limits(
            duration_s=min(_WINDOW.duration_s, left),
            min_count=_WINDOW.min_count,
            max_duration_s=min(_WINDOW.max_duration_s, left),
        )
        after = load(target, window)
        if after.interrupted:
            raise KeyboardInterrupt
        if before is not None and is_settled(before.latencies_ms, after.latencies_ms):
            return time.perf_counter() - began, True
        before = after
