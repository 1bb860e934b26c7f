"""Watch the machine during a run and decide whether something else disturbed it.

Results are compared to a few per cent, so whatever may move a median by one per cent is reported; the limits below
follow from that.
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

from edgeface.bench.machine.snapshot import IntervalStats, Snapshot, summarize_interval, take_snapshot
from edgeface.bench.reading import Frozen, Unknown, known

STEAL_SHARE = 0.01
"""Share of a run's CPU time that the hypervisor may give to other machines: as much as a median may move."""

OTHER_CPUS = 0.25
"""CPUs that other processes may keep busy over a whole run. A desktop's background stays below, one busy core is far
above; below it, a scheduler with a free core has room for both."""

BURST_CPUS = 0.5
BURST_SECONDS = 1.0
"""The same for a part of the run of at least this length: short bursts move a 99th percentile and no median."""

TICK_ERROR = 0.01
"""/proc/stat counts CPU time by ticks and a process's own by the clock; they differ by up to this share of the run's
own CPU time, which is therefore not attributed to other processes."""

FREQUENCY_SHARE = 0.9
"""The slow quarter of a busy run may not fall below this share of its fast quarter. Turbo steps between neighbouring
samples are smaller; a processor that reaches its long-term power limit loses more."""

QUOTA_SHARE = 0.01
STALL_SHARE = 0.01
"""Shares of a run's time spent waiting for the control group's CPU quota, and for memory."""

TEMPERATURE_MARGIN = 2.0
"""Degrees below a sensor's limit: controllers hold the temperature just under it."""

STOPPED_SECONDS = 2.0
"""A sample that is later than this was delayed: the process was stopped or the machine suspended."""

_INTERVAL = 0.5
_MOST_COST = 0.01
"""Share of one CPU that watching may take; sampling slows down to keep to it."""


class Disturbance(Frozen):
    """Whether a run was disturbed."""

    disturbed: bool  # Whether there is a reason to think so; also the truth value
    reasons: tuple[str, ...]  # One clause each, with the figure and its limit
    # What could not be watched on this machine, and why; a run may have been disturbed by it
    unwatched: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.disturbed


@dataclass(slots=True)
class Watch:
    """Samples that `watch` takes, in order of time; complete when its block has ended."""

    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def verdict(self) -> Disturbance:
        """Whether the block was disturbed, by the samples so far."""
        return judge(self.snapshots)


@contextmanager
def watch(*, root: Path = Path("/"), interval: float = _INTERVAL) -> Iterator[Watch]:
    """Sample the machine while a block runs, every `interval` seconds, at its start and at its end.

    A thread of this process reads the counters, some 2 ms of CPU time each time; where that takes longer, it
    samples less often, so that watching takes at most one per cent of one CPU.
    """
    watched, ended = Watch(), threading.Event()

    def sample() -> float:
        started = time.thread_time()
        watched.snapshots.append(take_snapshot(root))
        return time.thread_time() - started

    def sample_until_ended(cost: float) -> None:
        # The lowest cost is that of sampling; a sample that took longer was disturbed: no reason to sample less.
        while not ended.wait(max(interval, cost / _MOST_COST)):
            cost = min(cost, sample())

    thread = threading.Thread(target=sample_until_ended, args=(sample(),), name="edgeface-bench-watch", daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        ended.set()
        thread.join()
        sample()


def judge(snapshots: Sequence[Snapshot]) -> Disturbance:
    """Decide from snapshots, in order of time, whether a run was disturbed.

    With fewer than two snapshots the run is not disturbed, and everything is unwatched.
    """
    if len(snapshots) < 2:
        return Disturbance(disturbed=False, reasons=(), unwatched=("everything: there is no second sample",))
    whole = summarize_interval(snapshots)
    reasons = (
        *_stolen(whole),
        *_others(whole, snapshots),
        *_slowed(whole, snapshots),
        *_waited(whole),
        *_hot(snapshots[-1], whole),
        *_stopped(snapshots),
    )
    watched = {
        "steal time": whole.steal_share,
        "other processes": whole.other_cpus,
        "frequency": whole.frequency_mhz,
        "thermal throttling": whole.throttled,
        "CPU quota": whole.quota_throttled_s,
        "memory pressure": whole.memory_stall_s,
        "temperature": whole.temperature_c,
    }
    unwatched = tuple(f"{name}: {each}" for name, each in watched.items() if isinstance(each, Unknown))
    return Disturbance(disturbed=bool(reasons), reasons=reasons, unwatched=unwatched)


def _stolen(whole: IntervalStats) -> Iterator[str]:
    share = known(whole.steal_share)
    if share is not None and share > STEAL_SHARE:
        yield f"the hypervisor gave {share:.1%} of the CPU time to others (more than {STEAL_SHARE:.0%})"


def _others(whole: IntervalStats, snapshots: Sequence[Snapshot]) -> Iterator[str]:
    if (mean := _excess(whole)) > OTHER_CPUS:
        yield f"other processes kept {known(whole.other_cpus):.2f} CPUs busy (more than {OTHER_CPUS})"
        return
    bursts = [part for part in _parts(snapshots) if _excess(part) > BURST_CPUS]
    if bursts:
        worst = max(bursts, key=_excess)
        yield (
            f"other processes kept {known(worst.other_cpus):.2f} CPUs busy for {worst.seconds:.1f} s "
            f"(more than {BURST_CPUS}), {mean:.2f} over the whole run"
        )


def _excess(part: IntervalStats) -> float:
    """Return the CPUs of other processes, less the error of counting."""
    return (known(part.other_cpus) or 0.0) - TICK_ERROR * (known(part.own_cpus) or 0.0)


def _parts(snapshots: Sequence[Snapshot]) -> Iterator[IntervalStats]:
    """Divide a run into parts of at least `BURST_SECONDS`; the remainder at the end is left out."""
    start = 0
    for index, snapshot in enumerate(snapshots):
        if snapshot.clock_s - snapshots[start].clock_s >= BURST_SECONDS:
            yield summarize_interval((snapshots[start], snapshot))
            start = index


def _slowed(whole: IntervalStats, snapshots: Sequence[Snapshot]) -> Iterator[str]:
    if count := known(whole.throttled):
        yield f"the processor was throttled for heat {count} times"
    # An idle processor is slow by design, so only samples after busy parts are compared.
    fastest = sorted(
        max(mhz)
        for before, after in pairwise(snapshots)
        if (mhz := known(after.frequency_mhz)) and (known(summarize_interval((before, after)).own_cpus) or 0.0) > 0.5
    )
    if len(fastest) >= 4:
        quarter = len(fastest) // 4
        low, high = statistics.median(fastest[:quarter]), statistics.median(fastest[-quarter:])
        if low < FREQUENCY_SHARE * high:
            yield (f"the frequency fell from {high:.0f} to {low:.0f} MHz under load (below {FREQUENCY_SHARE:.0%})")


def _waited(whole: IntervalStats) -> Iterator[str]:
    for amount, limit, what in (
        (whole.quota_throttled_s, QUOTA_SHARE, "waited for the container's CPU quota"),
        (whole.memory_stall_s, STALL_SHARE, "had tasks waiting for memory"),
    ):
        seconds = known(amount)
        if seconds is not None and seconds > limit * whole.seconds:
            yield f"the run {what} for {seconds:.2f} s of {whole.seconds:.1f} s (more than {limit:.0%})"


def _hot(last: Snapshot, whole: IntervalStats) -> Iterator[str]:
    limits = known(last.temperature_limit_c) or {}
    for sensor, degrees in (known(whole.temperature_c) or {}).items():
        if sensor in limits and degrees > limits[sensor] - TEMPERATURE_MARGIN:
            yield f"{sensor} reached {degrees:.0f} degrees Celsius; its limit is {limits[sensor]:.0f}"


def _stopped(snapshots: Sequence[Snapshot]) -> Iterator[str]:
    gaps = [after.clock_s - before.clock_s for before, after in pairwise(snapshots)]
    usual = statistics.median(gaps)
    if len(gaps) > 2 and max(gaps) > usual + STOPPED_SECONDS:
        yield f"this process or the machine was stopped for {max(gaps) - usual:.1f} s"
