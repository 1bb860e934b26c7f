"""Run the load scenarios of MLPerf Inference (Reddi et al., arXiv 1911.02549) and time every query.

``single-stream``
    One query at a time, the next when the last is answered, in the caller's thread: latency.
``multi-stream``
    The same with queries of several samples that are inferred in parallel: latency of the whole query.
``server``
    Queries arrive by a Poisson process and wait if they must: the highest rate that meets a latency bound. Latency
    counts from the scheduled arrival, so waiting for earlier queries is part of it. A load generator that sends the
    next query only when it is free leaves out exactly the slow cases ("coordinated omission").
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

import numpy as np
from numpy.typing import NDArray

from edgeface.bench.run.load import Target
from edgeface.bench.run.load_generator import TELL_NS, Recording, RunLimits, Slots, Stopper, measured_share, measuring
from edgeface.bench.schema import ServerResult, ServerTrial
from edgeface.errors import InputError
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.stats import allowed_over, independent_share, queries_needed, rank

Floats = NDArray[np.floating]

PERCENTILES = {"single-stream": 90.0, "multi-stream": 99.0, "server": 99.0}
"""Percentile that a scenario is judged by: table of scenarios in the MLPerf Inference rules."""

TOLERANCE = 0.02
"""Relative difference of medians that does not count as a change."""

_WINDOW = RunLimits(duration_s=0.5, min_count=10, max_duration_s=30.0)
"""Length of a warm-up window; two windows in a row have to agree."""
_CAPACITY_S = 2.0
"""Seconds that the search for a rate measures the capacity, unless each of its trials is shorter."""
_RESOLUTION = 0.02
"""Resolution of the search for a rate, relative to the capacity."""
_LONGEST_SLEEP = 0.2
"""Seconds between two checks for Ctrl-C."""
_HEADROOM = 1.05
"""Where the search begins, relative to the capacity that `offline` found."""


def minimum_count(scenario: str, percentile: float | None = None) -> int:
    """Return the fewest queries from which the early-stopping rule can bound the percentile of a scenario."""
    percentile = percentile or PERCENTILES.get(scenario)
    return queries_needed(percentile / 100) if percentile else 1


def single_stream(target: Target, limits: RunLimits, progress: ProgressCallback = ignore_progress) -> Recording:
    """Answer one query at a time in this thread."""
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
    target: Target, limits: RunLimits, progress: ProgressCallback = ignore_progress, *, samples: int = 8
) -> Recording:
    """Answer one query of several samples at a time; MLPerf's has 8.

    A last batch that the samples do not fill is completed and counted in full.
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


def offline(target: Target, limits: RunLimits, progress: ProgressCallback = ignore_progress) -> Recording:
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
    """Run inferences, one at a time or in all slots, until their times are stable or `longest_s` have passed.

    Return the duration in seconds, and whether the last two windows agreed. Ctrl-C is raised: nothing has been
    measured yet.
    """
    began, before = time.perf_counter(), None
    run = single_stream if alone else offline
    while True:
        left = began + longest_s - time.perf_counter()
        if left <= 0:
            return time.perf_counter() - began, False
        longest = min(_WINDOW.max_duration_s, left)
        after = run(
            target, dataclasses.replace(_WINDOW, duration_s=min(_WINDOW.duration_s, left), max_duration_s=longest)
        )
        if after.interrupted:
            raise KeyboardInterrupt
        if before is not None and is_settled(before.latencies_ms, after.latencies_ms):
            return time.perf_counter() - began, True
        before = after


def is_settled(before: Floats, after: Floats) -> bool:
    """Whether times of two successive windows differ by no more than `TOLERANCE`, or than chance explains.

    Chance is judged by Mann and Whitney's rank test at 5 %, so that warming up a noisy machine comes to an end.
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
    # Within the halves: a drift between them must not be mistaken for correlation, which would excuse it.
    effective = half * min(independent_share(above[:half]), independent_share(above[half:])) if half else 0.0
    if effective < 10:
        return None
    drift = float(np.median(second)) / float(np.median(first)) - 1.0
    difference = float(above[half:].mean() - above[:half].mean())
    return abs(drift) <= TOLERANCE or abs(difference) <= 2.576 * math.sqrt(0.5 / effective)


def poisson_arrivals(rate: float, count: int, *, seed: int) -> NDArray[np.int64]:
    """Schedule arrivals of a Poisson process: independent, exponentially distributed gaps.

    Return (count,) int64: nanoseconds from the start, ascending, for `rate` arrivals per second. Another rate with
    the same seed has the same gaps, scaled, so that rates are compared by the same pattern.
    """
    gaps = np.random.default_rng(seed).exponential(1.0, count)
    return np.round(np.cumsum(gaps) / rate * 1e9).astype(np.int64)


def serve(
    target: Target,
    arrivals_ns: NDArray[np.int64],
    *,
    progress: ProgressCallback = ignore_progress,
    bound_ms: float | None = None,
    allowed: int | None = None,
) -> Recording:
    """Answer queries that arrive on the schedule of `poisson_arrivals`, in their order.

    It ends once more than `allowed` queries have exceeded `bound_ms`: the rate cannot meet the bound any more. The
    starts of the recording are the scheduled arrivals; it is shorter than the schedule if it ended early or was
    interrupted.
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
                if (now := clock()) >= tell_at:
                    tell_at = now + TELL_NS
                    progress(measured_share((number + 1) / count))
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
    progress: ProgressCallback = ignore_progress,
) -> tuple[ServerResult, Recording]:
    """Find the highest rate at which a percentile (0 to 100) of the latencies is within a bound, by bisection.

    A rate meets the bound if no more queries exceed it than MLPerf's early-stopping rule allows among so many, that
    is, with 99 % confidence; the limits are those of each trial. The recording is of the highest rate that met the
    bound; if none did, of the last that was tried.

    InputError is raised if the target is too slow to answer enough queries within the longest duration: no rate
    could be shown to meet the bound.
    """
    seconds = min(_CAPACITY_S, limits.duration_s)
    capacity = offline(target, RunLimits(duration_s=seconds, min_count=4 * target.slots, max_duration_s=20.0))
    if capacity.interrupted:
        raise KeyboardInterrupt
    queries_per_second = capacity.items_per_second / target.items
    share, longest = percentile / 100, max(limits.max_duration_s, limits.duration_s)
    needed = queries_needed(share, over=0)
    low, high = needed / longest, queries_per_second * _HEADROOM
    if low >= high:
        raise InputError(
            f"the server scenario needs {needed} queries within {longest:g} s to judge {percentile:g} % of them, but "
            f"this target answers {queries_per_second:.3g} a second: measure longer (--max-duration), or lower the "
            "percentile"
        )
    found: float | None = None
    trials: list[ServerTrial] = []
    best: Recording | None = None
    last = capacity
    total = max(1, int(np.ceil(np.log2((high - low) / (queries_per_second * _RESOLUTION)))))
    for number in range(total):
        rate = (low + high) / 2
        count = max(limits.min_count, round(rate * limits.duration_s))
        count = max(needed, min(count, round(rate * longest)))
        allowed = allowed_over(count, share)
        last = serve(
            target,
            poisson_arrivals(rate, count, seed=seed),
            progress=lambda each, number=number: progress(  # type: ignore[misc]
                measured_share((number + each.done / 100) / total)
            ),
            bound_ms=bound_ms,
            allowed=allowed,
        )
        over = int((last.latencies_ms > bound_ms).sum())
        met = len(last) == count and over <= allowed
        ordered = np.sort(last.latencies_ms)
        trials.append(
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
    server = ServerResult(bound_ms=bound_ms, percentile=percentile, rate=found, tries=tuple(trials))
    return server, dataclasses.replace(best or last, interrupted=last.interrupted)
