"""The machine in, its counters at one instant out; and moments in, what happened between them out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgeface.bench.machine import counters
from edgeface.bench.machine.container import quota_throttled_seconds
from edgeface.bench.machine.energy import joules, read_energy, read_ranges
from edgeface.bench.machine.proc import absent
from edgeface.bench.machine.reading import Fact, Frozen, Unknown, known
from edgeface.bench.machine.temperature import read_temperatures

__all__ = ["Moment", "Stretch", "observe", "stretch"]


class Moment(Frozen):
    """The machine at one instant; several of them make a `Stretch`.

    Attributes
    ----------
    utc
        Time of day, ISO 8601, UTC, whole seconds.
    clock_s
        Monotonic seconds; only differences mean anything.
    cpu_s
        Seconds that all logical CPUs together have spent since boot, keyed ``busy`` (this machine's own
        work), ``idle`` (waiting for disks included) and ``steal`` (given to other machines by the hypervisor).
    own_cpu_s
        CPU seconds of this process and its children, dead and alive.
    frequency_mhz
        Of every logical CPU.
    governor
        Frequency governors in use, in alphabetical order; usually one.
    throttle_count
        Times that cores and packages were slowed down for heat since boot, added up over logical CPUs.
    quota_throttled_s
        Seconds that the control group was kept waiting because its CPU time was used up.
    load_1m
        Load average of one minute.
    memory_available_bytes
        As the kernel estimates it.
    memory_stall_s
        Seconds since boot in which some task waited for memory (pressure stall information, ``some``).
    energy_uj, energy_range_uj
        RAPL's counters in microjoules by zone (``package-0``), and where each of them starts again from 0.
    temperature_c, temperature_limit_c
        Degrees Celsius by sensor, and where it says that the hardware slows down or is in danger.
    """

    utc: str
    clock_s: float
    cpu_s: Fact[dict[str, float]]
    own_cpu_s: Fact[float]
    frequency_mhz: Fact[tuple[float, ...]]
    governor: Fact[tuple[str, ...]]
    throttle_count: Fact[int]
    quota_throttled_s: Fact[float]
    load_1m: Fact[float]
    memory_available_bytes: Fact[int]
    memory_stall_s: Fact[float]
    energy_uj: Fact[dict[str, int]]
    energy_range_uj: Fact[dict[str, int]]
    temperature_c: Fact[dict[str, float]]
    temperature_limit_c: Fact[dict[str, float]]


class Stretch(Frozen):
    """What happened from the first of several moments to the last.

    Attributes
    ----------
    seconds
        Wall time.
    busy_share, steal_share
        Of the CPU time of all logical CPUs, 0 to 1.
    own_cpus, other_cpus
        CPUs kept busy on average by this process and its children, and by everybody else in this machine.
    frequency_mhz
        (lowest, median, highest) of all moments and CPUs.
    throttled
        Times that cores and packages were slowed down for heat, added up over logical CPUs.
    quota_throttled_s
        Seconds that the control group waited for CPU time.
    memory_stall_s
        Seconds in which some task waited for memory.
    energy_j, power_w
        Joules and mean watts by zone.
    temperature_c
        Highest of all moments, by sensor.
    """

    seconds: float
    busy_share: Fact[float]
    steal_share: Fact[float]
    own_cpus: Fact[float]
    other_cpus: Fact[float]
    frequency_mhz: Fact[tuple[float, float, float]]
    throttled: Fact[int]
    quota_throttled_s: Fact[float]
    memory_stall_s: Fact[float]
    energy_j: Fact[dict[str, float]]
    power_w: Fact[dict[str, float]]
    temperature_c: Fact[dict[str, float]]


def observe(root: Path = Path("/")) -> Moment:
    """Read every counter now; never raises, whatever the files hold."""
    temperatures, limits = read_temperatures(root)
    return Moment(
        utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        clock_s=time.monotonic(),
        cpu_s=counters.cpu_seconds(root),
        own_cpu_s=counters.own_cpu_seconds(root),
        frequency_mhz=counters.frequencies(root),
        governor=counters.governors(root),
        throttle_count=counters.throttle_count(root),
        quota_throttled_s=quota_throttled_seconds(root),
        load_1m=counters.load_average(root),
        memory_available_bytes=counters.memory_available(root),
        memory_stall_s=counters.memory_stall(root),
        energy_uj=read_energy(root),
        energy_range_uj=read_ranges(root),
        temperature_c=temperatures,
        temperature_limit_c=limits,
    )


def stretch(moments: Sequence[Moment]) -> Stretch:
    """Sum up what happened; the more moments, the surer it is that no counter wrapped twice.

    Parameters
    ----------
    moments
        In order of time, two at least.
    """
    first, last = moments[0], moments[-1]
    seconds = last.clock_s - first.clock_s
    shares = _shares(first.cpu_s, last.cpu_s)
    own = _per_second(_increase(first.own_cpu_s, last.own_cpu_s), seconds)
    busy = _per_second(_busy(first.cpu_s, last.cpu_s), seconds)
    energy = _energy(moments)
    frequencies = [mhz for moment in moments for mhz in known(moment.frequency_mhz) or ()]
    return Stretch(
        seconds=seconds,
        busy_share=shares if isinstance(shares, Unknown) else shares["busy"],
        steal_share=shares if isinstance(shares, Unknown) else shares["steal"],
        own_cpus=own,
        other_cpus=_difference(busy, own),
        frequency_mhz=(min(frequencies), statistics.median(frequencies), max(frequencies))
        if frequencies
        else _reason(first.frequency_mhz),
        throttled=_increase(first.throttle_count, last.throttle_count),
        quota_throttled_s=_increase(first.quota_throttled_s, last.quota_throttled_s),
        memory_stall_s=_increase(first.memory_stall_s, last.memory_stall_s),
        energy_j=energy,
        power_w=energy
        if isinstance(energy, Unknown)
        else {zone: value / seconds for zone, value in energy.items()}
        if seconds > 0
        else absent("no time passed"),
        temperature_c=_highest(moments),
    )


def _increase(before: Fact[float], after: Fact[float]) -> Fact[Any]:
    """How far a counter went up; a child that nobody waited for takes its CPU time back, which counts as none."""
    if isinstance(before, Unknown):
        return before
    return after if isinstance(after, Unknown) else max(after - before, 0)


def _difference(total: Fact[float], part: Fact[float]) -> Fact[float]:
    return _increase(part, total)


def _per_second(amount: Fact[float], seconds: float) -> Fact[float]:
    if isinstance(amount, Unknown):
        return amount
    return amount / seconds if seconds > 0 else absent("no time passed")


def _busy(before: Fact[dict[str, float]], after: Fact[dict[str, float]]) -> Fact[float]:
    if isinstance(before, Unknown):
        return before
    return after if isinstance(after, Unknown) else max(after["busy"] - before["busy"], 0.0)


def _shares(before: Fact[dict[str, float]], after: Fact[dict[str, float]]) -> Fact[dict[str, float]]:
    """Parts of all CPU time; a counter that ran backwards, as iowait may, counts as none."""
    if isinstance(before, Unknown):
        return before
    if isinstance(after, Unknown):
        return after
    spent = {kind: max(after[kind] - before[kind], 0.0) for kind in after}
    total = sum(spent.values())
    return (
        {kind: value / total for kind, value in spent.items()} if total > 0 else absent("no CPU time passed")
    )


def _energy(moments: Sequence[Moment]) -> Fact[dict[str, float]]:
    total: dict[str, float] = {}
    for before, after in pairwise(moments):
        old, new = before.energy_uj, after.energy_uj
        if isinstance(old, Unknown):
            return old
        if isinstance(new, Unknown):
            return new
        ranges: Mapping[str, int] = known(after.energy_range_uj) or {}
        for zone in old.keys() & new.keys():
            seconds = after.clock_s - before.clock_s
            used = joules(old[zone], new[zone], wraps_at=ranges.get(zone), seconds=seconds)
            if isinstance(used, Unknown):
                return used
            total[zone] = total.get(zone, 0.0) + used
    return dict(sorted(total.items())) or absent("no energy counter was readable all the time")


def _highest(moments: Sequence[Moment]) -> Fact[dict[str, float]]:
    highest: dict[str, float] = {}
    for moment in moments:
        for sensor, degrees in (known(moment.temperature_c) or {}).items():
            highest[sensor] = max(degrees, highest.get(sensor, degrees))
    return highest or _reason(moments[0].temperature_c)


def _reason(fact: Fact[Any]) -> Unknown:
    return fact if isinstance(fact, Unknown) else absent("it was not readable all the time")
