"""A run watched while it goes on, a verdict out: did something else on the machine get in its way?

The limits, and why they are where they are. Two results are compared to a few per cent, so whatever may move a
median by one per cent is told.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from edgeface.bench.machine.reading import Fact, Frozen, Unknown, known
from edgeface.bench.machine.snapshot import Moment, Stretch, observe, stretch

__all__ = ["Disturbance", "Watch", "judge", "watch"]

STEAL_SHARE = 0.01
"""Of the CPU time of a whole run, given to other virtual machines: as much as a median may move."""

OTHER_CPUS = 0.25
"""CPUs that everybody else kept busy over a whole run. A desktop's background stays below, one busy core is far
above; below it, a scheduler with a free core has room for both."""

BURST_CPUS = 0.5
BURST_SECONDS = 1.0
"""The same for a stretch of the run at least so long: short ones move a 99th percentile and no median."""

TICK_ERROR = 0.01
"""/proc/stat counts CPU time by ticks and a process's own by the clock; they differ by up to this part of the
run's own CPU time, which is therefore not held against the others."""

FREQUENCY_SHARE = 0.9
"""The slow quarter of a busy run may not fall below this part of its fast quarter. Turbo steps between
neighbouring samples are smaller; a processor that runs into its long-term power limit loses more."""

QUOTA_SHARE = 0.01
STALL_SHARE = 0.01
"""Of a run's time, spent waiting for the control group's CPU quota, and for memory."""

TEMPERATURE_MARGIN = 2.0
"""Degrees below a sensor's limit: controllers hold the temperature just under it."""

STOPPED_SECONDS = 2.0
"""A sample that comes later than this was held up by something: a stopped process, a suspended machine."""

_INTERVAL = 0.5
_MOST_COST = 0.01
"""Share of one CPU that watching may take; sampling slows down to keep to it."""


class Disturbance(Frozen):
    """Whether a run was disturbed.

    Attributes
    ----------
    disturbed
        Whether there is a reason to think so.
    reasons
        One clause each, with the figure and its limit.
    unwatched
        What could not be watched on this machine, and why; a run is not cleared of it.
    """

    disturbed: bool
    reasons: tuple[str, ...]
    unwatched: tuple[str, ...]


@dataclass(slots=True)
class Watch:
    """What `watch` gives: empty until its block has ended.

    Attributes
    ----------
    moments
        Samples in order of time, the first before the block and the last after it.
    """

    moments: list[Moment] = field(default_factory=list)

    @property
    def verdict(self) -> Disturbance:
        """Whether the block was disturbed, by the samples so far."""
        return judge(self.moments)


@contextmanager
def watch(*, root: Path = Path("/"), interval: float = _INTERVAL) -> Iterator[Watch]:
    """Sample the machine while a block runs.

    A thread of this process reads /proc and /sys, some 2 ms of CPU time each time; where that takes longer, it
    samples less often, so that watching takes at most one per cent of one CPU.

    Parameters
    ----------
    root
        Where the file system begins; tests give a made-up one.
    interval
        Seconds between samples.

    Yields
    ------
    Watch
        Its `moments` grow; `verdict` means something once the block has ended.
    """
    watched = Watch()
    cost = _sample(watched.moments, root)
    ended = threading.Event()
    thread = threading.Thread(
        target=_sample_until,
        args=(ended, watched.moments, root, interval, cost),
        name="edgeface-bench-watch",
        daemon=True,
    )
    thread.start()
    try:
        yield watched
    finally:
        ended.set()
        thread.join()
        _sample(watched.moments, root)


def _sample(moments: list[Moment], root: Path) -> float:
    """Take a sample and tell the CPU seconds that it took."""
    started = time.thread_time()
    moments.append(observe(root))
    return time.thread_time() - started


def _sample_until(
    ended: threading.Event, moments: list[Moment], root: Path, interval: float, cost: float
) -> None:
    # The least cost is that of looking; what other samples took longer is a disturbance, and no reason to look away.
    while not ended.wait(max(interval, cost / _MOST_COST)):
        cost = min(cost, _sample(moments, root))


def judge(moments: Sequence[Moment]) -> Disturbance:
    """Judge a run by samples taken during it.

    Parameters
    ----------
    moments
        In order of time, the first before the run and the last after it.

    Returns
    -------
    Disturbance
        Not disturbed, with everything unwatched, where there are fewer than two samples.
    """
    if len(moments) < 2:
        return Disturbance(disturbed=False, reasons=(), unwatched=("everything: there is no second sample",))
    whole = stretch(moments)
    reasons = (
        *_stolen(whole),
        *_others(whole, moments),
        *_slowed(whole, moments),
        *_waited(whole),
        *_hot(moments[-1], whole),
        *_stopped(moments),
    )
    return Disturbance(disturbed=bool(reasons), reasons=reasons, unwatched=_unwatched(whole))


def _stolen(whole: Stretch) -> Iterator[str]:
    share = known(whole.steal_share)
    if share is not None and share > STEAL_SHARE:
        yield f"the hypervisor gave {share:.1%} of the CPU time to others (more than {STEAL_SHARE:.0%})"


def _others(whole: Stretch, moments: Sequence[Moment]) -> Iterator[str]:
    if (mean := _excess(whole)) > OTHER_CPUS:
        yield f"other processes kept {known(whole.other_cpus):.2f} CPUs busy (more than {OTHER_CPUS})"
        return
    bursts = [part for part in _parts(moments) if _excess(part) > BURST_CPUS]
    if bursts:
        worst = max(bursts, key=_excess)
        yield (
            f"other processes kept {known(worst.other_cpus):.2f} CPUs busy for {worst.seconds:.1f} s "
            f"(more than {BURST_CPUS}), {mean:.2f} over the whole run"
        )


def _excess(part: Stretch) -> float:
    """CPUs of others that the error of counting does not explain."""
    return (known(part.other_cpus) or 0.0) - TICK_ERROR * (known(part.own_cpus) or 0.0)


def _parts(moments: Sequence[Moment]) -> Iterator[Stretch]:
    """Cut a run into stretches of at least `BURST_SECONDS`, what is left over at the end left out."""
    start = 0
    for index, moment in enumerate(moments):
        if moment.clock_s - moments[start].clock_s >= BURST_SECONDS:
            yield stretch((moments[start], moment))
            start = index


def _slowed(whole: Stretch, moments: Sequence[Moment]) -> Iterator[str]:
    if count := known(whole.throttled):
        yield f"the processor was slowed down for heat {count} times"
    # An idle processor is slow by right, so only samples after busy stretches are compared.
    fastest = sorted(
        max(mhz)
        for before, after in pairwise(moments)
        if (mhz := known(after.frequency_mhz)) and (known(stretch((before, after)).own_cpus) or 0.0) > 0.5
    )
    if len(fastest) >= 4:
        quarter = len(fastest) // 4
        low, high = statistics.median(fastest[:quarter]), statistics.median(fastest[-quarter:])
        if low < FREQUENCY_SHARE * high:
            yield (
                f"the frequency fell from {high:.0f} to {low:.0f} MHz under load (below {FREQUENCY_SHARE:.0%})"
            )


def _waited(whole: Stretch) -> Iterator[str]:
    for amount, limit, what in (
        (whole.quota_throttled_s, QUOTA_SHARE, "waited for the container's CPU quota"),
        (whole.memory_stall_s, STALL_SHARE, "had tasks waiting for memory"),
    ):
        seconds = known(amount)
        if seconds is not None and seconds > limit * whole.seconds:
            yield f"the run {what} for {seconds:.2f} s of {whole.seconds:.1f} s (more than {limit:.0%})"


def _hot(last: Moment, whole: Stretch) -> Iterator[str]:
    limits = known(last.temperature_limit_c) or {}
    for sensor, degrees in (known(whole.temperature_c) or {}).items():
        if sensor in limits and degrees > limits[sensor] - TEMPERATURE_MARGIN:
            yield f"{sensor} reached {degrees:.0f} degrees Celsius; its limit is {limits[sensor]:.0f}"


def _stopped(moments: Sequence[Moment]) -> Iterator[str]:
    gaps = [after.clock_s - before.clock_s for before, after in pairwise(moments)]
    usual = statistics.median(gaps)
    if len(gaps) > 2 and max(gaps) > usual + STOPPED_SECONDS:
        yield f"this process or the machine stood still for {max(gaps) - usual:.1f} s"


def _unwatched(whole: Stretch) -> tuple[str, ...]:
    facts: tuple[tuple[str, Fact[object]], ...] = (
        ("steal time", whole.steal_share),
        ("other processes", whole.other_cpus),
        ("frequency", whole.frequency_mhz),
        ("thermal throttling", whole.throttled),
        ("CPU quota", whole.quota_throttled_s),
        ("memory pressure", whole.memory_stall_s),
        ("temperature", whole.temperature_c),
    )
    return tuple(f"{name}: {fact}" for name, fact in facts if isinstance(fact, Unknown))
