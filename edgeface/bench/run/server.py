"""A target and a bound on latency in, the highest rate of random arrivals that it can take out.

Arrivals are scheduled beforehand, and latency counts from the scheduled arrival: a query that has to wait because
the target is busy with earlier ones waits on the clock. A load generator that sends the next query only when it gets
round to it leaves exactly the bad cases out ("coordinated omission"), and shows a target beyond its capacity as well.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgeface.bench.run.load_generator import Limits, Progress, Recording, Slots, measuring
from edgeface.bench.run.scenarios import offline
from edgeface.bench.run.target import Target
from edgeface.bench.schema import Server, ServerTry
from edgeface.errors import InputError
from edgeface.stats import allowed_over, queries_needed, rank

__all__ = ["find_rate", "poisson_arrivals", "serve"]

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
    with measuring() as tape:
        rows, due = tape.rows, (arrivals_ns + tape.began).tolist()
        serving = [0] * target.slots
        slots = Slots(target, lambda slot, end: rows.append((due[serving[slot]], end)))
        tell_at = 0
        try:
            for number in range(count):
                while (wait := due[number] - clock()) > 0 and not tape.interrupted:
                    time.sleep(min(wait * 1e-9, _LONGEST_SLEEP))
                if tape.interrupted:
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
    return tape.recording(target.items)


def find_rate(
    target: Target,
    limits: Limits,
    *,
    bound_ms: float,
    percentile: float,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Server, Recording]:
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
    capacity = offline(target, Limits(duration_s=2.0, min_count=4 * target.slots, max_duration_s=20.0))
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
    tries: list[ServerTry] = []
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
            ServerTry(
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
    server = Server(bound_ms=bound_ms, percentile=percentile, rate=found, tries=tuple(tries))
    return server, dataclasses.replace(best or last, interrupted=last.interrupted)


def _steps(width: float, resolution: float) -> Iterator[tuple[int, int]]:
    """Count the halvings that bring a width to a resolution."""
    total = max(1, int(np.ceil(np.log2(width / resolution))))
    yield from ((number, total) for number in range(total))


def _scaled(progress: Progress, number: int, total: int) -> Progress:
    return lambda share, count: progress((number + share) / total, count)
