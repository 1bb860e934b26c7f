"""Run the load scenarios of MLPerf Inference (Reddi et al., arXiv 1911.02549) and time every query.

``single-stream``
    One query at a time, the next when the last is answered, in the caller's thread: latency.
``multi-stream``
    The same with queries of several samples that are inferred side by side: latency of the whole query.
``server``
    Queries arrive by a Poisson process and wait if they must: the highest rate that meets a latency bound. Latency
    counts from the scheduled arrival, so a query that waits for earlier ones is timed while it waits. A load generator
    that sends the next query only when it is free leaves out exactly the slow cases ("coordinated omission").
``offline``
    All of the target's requests are busy all the time: throughput. Latency is that of a request among the others.
``kiosk``
    A video at its own frame rate through detection and recognition: `edgeface.bench.run.kiosk`.

MLPerf's minimum durations (600 s) are the caller's choice here; its minimum counts are the default.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeface.bench.run.load import Target
from edgeface.bench.run.load_generator import Progress, Recording, RunLimits, Slots, Stopper, measuring
from edgeface.bench.schema import ServerResult, ServerTrial
from edgeface.errors import InputError
from edgeface.stats import allowed_over, independent_share, queries_needed, rank

__all__ = [
    "PERCENTILES",
    "find_rate",
    "is_settled",
    "is_stationary",
    "minimum_count",
    "multi_stream",
    "offline",
    "poisson_arrivals",
    "serve",
    "single_stream",
    "warm_up",
]

PERCENTILES = {"single-stream": 90.0, "multi-stream": 99.0, "server": 99.0}
"""That a scenario is judged by: table of scenarios in the MLPerf Inference rules."""

_WINDOW = RunLimits(duration_s=0.5, min_count=10, max_duration_s=30.0)
"""Of the warm-up; two of them have to agree."""


def minimum_count(scenario: str, percentile: float | None = None) -> int:
    """Fewest queries that say something about the percentile of a scenario by the early-stopping rule."""
    percentile = percentile or PERCENTILES.get(scenario)
    return queries_needed(percentile / 100) if percentile else 1


def single_stream(target: Target, limits: RunLimits, progress: Progress | None = None) -> Recording:
    """Answer one query after the other in this thread."""
    infer, clock = target.infer, time.perf_counter_ns
    with measuring() as recorder:
        rows, enough = recorder.rows, Stopper(limits, progress, recorder)
        now = clock()
        while not enough(now, len(rows)):
            started = clock()
            infer()
            now = clock()
            rows.append((started, now))
    return recorder.recording(target.items)


def multi_stream(
    target: Target, limits: RunLimits, progress: Progress | None = None, *, samples: int = 8
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
    with measuring() as recorder:
        ends: list[int] = []
        slots = Slots(target, lambda slot, end: ends.append(end))
        enough = Stopper(limits, progress, recorder)
        try:
            while not enough(started := clock(), len(recorder.rows)):
                ends.clear()
                for _ in range(inferences):
                    slots.start(slots.take())
                slots.drain()
                recorder.rows.append((started, max(ends)))
        finally:
            slots.drain()
    return recorder.recording(inferences * target.items)


def offline(target: Target, limits: RunLimits, progress: Progress | None = None) -> Recording:
    """Keep every slot busy."""
    clock = time.perf_counter_ns
    with measuring() as recorder:
        rows, began = recorder.rows, [0] * target.slots
        slots = Slots(target, lambda slot, end: rows.append((began[slot], end)))
        enough = Stopper(limits, progress, recorder)
        try:
            while not enough(clock(), len(rows)):
                slot = slots.take()
                began[slot] = clock()
                slots.start(slot)
        finally:
            slots.drain()
    return recorder.recording(target.items)


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
        window = RunLimits(
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


_RESOLUTION = 0.02
"""Of the search, relative to the capacity."""
_LONGEST_SLEEP = 0.2
"""Seconds between two looks for Ctrl-C."""
_HEADROOM = 1.05
"""Over the capacity as `offline` found it: where the search begins."""


def poisson_arrivals(rate: float, count: int, *, seed: int) -> NDArray[np.int64]:
    """Schedule arrivals of a Poisson process: independent, exponentially distributed gaps.

    Other rates with the same seed have the same gaps, scaled, so that rates are compared by the same pattern.

    Parameters
    ----------
    rate
        Arrivals a second.
    count, seed
        How many; of the generator.

    Returns
    -------
    (count,) int64
        Nanoseconds from the beginning, ascending.
    """
    gaps = np.random.default_rng(seed).exponential(1.0, count)
    return np.round(np.cumsum(gaps) / rate * 1e9).astype(np.int64)


def serve(
    target: Target,
    arrivals_ns: NDArray[np.int64],
    *,
    progress: Progress | None = None,
    bound_ms: float | None = None,
    allowed: int | None = None,
) -> Recording:
    """Answer queries that come on schedule, in their order.

    Parameters
    ----------
    target
        What is measured.
    arrivals_ns
        As `poisson_arrivals` gives them.
    progress
        Told the share of the schedule that is done.
    bound_ms, allowed
        Give up once more than `allowed` queries have exceeded the bound: what follows cannot mend it.

    Returns
    -------
    Recording
        Its starts are the scheduled arrivals. Shorter than the schedule if it was given up or interrupted.
    """
    clock = time.perf_counter_ns
    count, over, seen = len(arrivals_ns), 0, 0
    with measuring() as recorder:
        rows, due = recorder.rows, (arrivals_ns + recorder.began).tolist()
        serving = [0] * target.slots
        slots = Slots(target, lambda slot, end: rows.append((due[serving[slot]], end)))
        tell_at = 0
        try:
            for number in range(count):
                while (wait := due[number] - clock()) > 0 and not recorder.interrupted:
                    time.sleep(min(wait * 1e-9, _LONGEST_SLEEP))
                if recorder.interrupted:
                    break
                slot = slots.take()
                serving[slot] = number
                slots.start(slot)
                if bound_ms is not None and allowed is not None:
                    done = len(rows)
                    over += sum(end - start > bound_ms * 1e6 for start, end in rows[seen:done])
                    seen = done
                    if over > allowed:
                        break
                if progress is not None and (now := clock()) >= tell_at:
                    tell_at = now + 200_000_000
                    progress((number + 1) / count, number + 1)
        finally:
            slots.drain()
    return recorder.recording(target.items)


def find_rate(
    target: Target,
    limits: RunLimits,
    *,
    bound_ms: float,
    percentile: float,
    seed: int,
    progress: Progress | None = None,
) -> tuple[ServerResult, Recording]:
    """Find the highest rate at which a percentile of the latencies is within a bound, by bisection.

    A rate has met the bound if no more queries exceed it than MLPerf's early-stopping rule allows among so many, that
    is, with 99 % confidence.

    Parameters
    ----------
    target
        What is measured.
    limits
        Of each rate that is tried.
    bound_ms, percentile
        Milliseconds; 0 to 100.
    seed
        Of the arrivals.
    progress
        Told the share of all tries that is done.

    Returns
    -------
    server, recording
        The recording is of the highest rate that met the bound; if none did, of the lowest that was tried.

    Raises
    ------
    InputError
        If the target is too slow for enough queries within the longest duration: whatever their latency, no rate
        would be seen to meet the bound.
    """
    capacity = offline(target, RunLimits(duration_s=2.0, min_count=4 * target.slots, max_duration_s=20.0))
    if capacity.interrupted:
        raise KeyboardInterrupt
    queries_per_second = capacity.items_per_second / target.items
    share, longest = percentile / 100, max(limits.max_duration_s, limits.duration_s)
    needed = queries_needed(share, over=0)
    low, high = needed / longest, queries_per_second * _HEADROOM
    if low >= high:
        raise InputError(
            f"server: expected {needed} queries within {longest:g} s, without which nothing is known of "
            f"{percentile:g} % of them; this target answers {queries_per_second:.3g} a second: measure for longer "
            "(--max-duration), or ask for a lower percentile"
        )
    found: float | None = None
    tries: list[ServerTrial] = []
    best: Recording | None = None
    last = capacity
    for number, total in _steps(high - low, queries_per_second * _RESOLUTION):
        rate = (low + high) / 2
        count = max(limits.min_count, round(rate * limits.duration_s))
        count = max(needed, min(count, round(rate * longest)))
        allowed = allowed_over(count, share)
        tell = progress and _scaled(progress, number, total)
        last = serve(
            target,
            poisson_arrivals(rate, count, seed=seed),
            progress=tell,
            bound_ms=bound_ms,
            allowed=allowed,
        )
        over = int((last.latencies_ms > bound_ms).sum())
        met = len(last) == count and over <= allowed
        ordered = np.sort(last.latencies_ms)
        tries.append(
            ServerTrial(
                rate=rate,
                achieved=last.items_per_second / target.items,
                count=len(last),
                latency_ms=float(ordered[rank(len(last), share) - 1]) if len(last) else None,
                met=met,
                ended_early=len(last) < count and not last.interrupted,
            )
        )
        if met:
            low = found = rate
            best = last
        else:
            high = rate
        if last.interrupted:
            break
    server = ServerResult(bound_ms=bound_ms, percentile=percentile, rate=found, tries=tuple(tries))
    return server, dataclasses.replace(best or last, interrupted=last.interrupted)


def _steps(width: float, resolution: float) -> Iterator[tuple[int, int]]:
    """Count the halvings that bring a width to a resolution."""
    total = max(1, int(np.ceil(np.log2(width / resolution))))
    yield from ((number, total) for number in range(total))


def _scaled(progress: Progress, number: int, total: int) -> Progress:
    return lambda share, count: progress((number + share) / total, count)


Floats = NDArray[np.floating]

TOLERANCE = 0.02
"""Relative difference of medians that is no change worth waiting for."""


def is_settled(before: Floats, after: Floats) -> bool:
    """Whether times of two successive windows differ by no more than `TOLERANCE`, or than chance explains.

    The second clause lets a noisy machine come to an end: Mann and Whitney's rank test at 5 %.
    """
    first, second = float(np.median(before)), float(np.median(after))
    if abs(second - first) <= TOLERANCE * first:
        return True
    n, m = len(before), len(after)
    less = np.searchsorted(np.sort(before), after, side="left").sum()
    less_or_equal = np.searchsorted(np.sort(before), after, side="right").sum()
    excess = (less + less_or_equal) / 2.0 - n * m / 2.0
    return bool(abs(excess) <= 1.96 * math.sqrt(n * m * (n + m + 1) / 12.0))


def is_stationary(latencies: Floats) -> bool | None:
    """Whether the second half of a run is like the first; None: too few independent samples to tell.

    Compared is the share of samples above the overall median, whose standard error takes correlation into account.
    A difference counts if it is significant at 1 % and the medians differ by more than `TOLERANCE`.
    """
    above = (latencies > np.median(latencies)).astype(np.float64)
    half = len(latencies) // 2
    first, second = latencies[:half], latencies[half:]
    # Within the halves: a drift between them must not pass for a correlation, which would excuse it.
    worth = half * min(independent_share(above[:half]), independent_share(above[half:])) if half else 0.0
    if worth < 10:
        return None
    drift = float(np.median(second)) / float(np.median(first)) - 1.0
    difference = float(above[half:].mean() - above[:half].mean())
    return abs(drift) <= TOLERANCE or abs(difference) <= 2.576 * math.sqrt(0.5 / worth)
