"""Read the machine's counters at one instant, and compute what happened between several instants."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from edgeface.bench.machine.hardware import quota_throttled_seconds
from edgeface.bench.reading import (
    Frozen,
    Reading,
    Unknown,
    absent,
    cpu_folders,
    damaged,
    entries,
    fields,
    integer,
    known,
    quiet_text,
    read_integer,
    read_text,
    sense,
)

_ZONES = "sys/class/powercap/intel-rapl:*"
"""AMD's driver uses the same name. ``intel-rapl-mmio`` repeats the package and is left out."""

_MOST_WATTS = 1000.0
"""More than any package draws: a counter cannot have wrapped twice in range / this many seconds."""


class Snapshot(Frozen):
    """The machine's counters at one instant; several of them give `IntervalStats`."""

    utc: str  # Time of day, ISO 8601, UTC, whole seconds
    clock_s: float  # Monotonic seconds; only differences mean anything
    # Seconds since boot, summed over logical CPUs: ``busy`` (this machine's own work), ``idle`` (waiting for disks
    # included) and ``steal`` (taken by the hypervisor for other machines)
    cpu_s: Reading[dict[str, float]]
    own_cpu_s: Reading[float]  # CPU seconds of this process and its descendants, dead and alive
    frequency_mhz: Reading[tuple[float, ...]]  # Frequencies of the logical CPUs
    governor: Reading[tuple[str, ...]]  # Frequency governors in use, in alphabetical order
    throttle_count: Reading[int]  # Number of thermal throttling events since boot, summed over logical CPUs
    quota_throttled_s: Reading[float]  # Seconds that the control group was throttled because its CPU quota was used up
    load_1m: Reading[float]  # Load average of one minute
    memory_available_bytes: Reading[int]  # As the kernel estimates it
    # Seconds since boot in which some task waited for memory (pressure stall information, ``some``)
    memory_stall_s: Reading[float]
    # RAPL's counters in microjoules by zone (``package-0``), and where each of them starts again from 0
    energy_uj: Reading[dict[str, int]]
    energy_range_uj: Reading[dict[str, int]]
    # Degrees Celsius by sensor, and the limit at which the hardware is slowed down or at risk
    temperature_c: Reading[dict[str, float]]
    temperature_limit_c: Reading[dict[str, float]]


class IntervalStats(Frozen):
    """What happened from the first of several snapshots to the last."""

    seconds: float  # Wall time
    # Shares of the CPU time of all logical CPUs, 0 to 1
    busy_share: Reading[float]
    steal_share: Reading[float]
    # CPUs kept busy on average by this process and its descendants, and by all other processes
    own_cpus: Reading[float]
    other_cpus: Reading[float]
    frequency_mhz: Reading[tuple[float, float, float]]  # (lowest, median, highest) of all snapshots and CPUs
    throttled: Reading[int]  # Number of thermal throttling events, summed over logical CPUs
    quota_throttled_s: Reading[float]  # Seconds that the control group waited for CPU time
    memory_stall_s: Reading[float]  # Seconds in which some task waited for memory
    # Joules and mean watts by zone
    energy_j: Reading[dict[str, float]]
    power_w: Reading[dict[str, float]]
    temperature_c: Reading[dict[str, float]]  # Highest temperature of all snapshots, by sensor


def take_snapshot(root: Path = Path("/")) -> Snapshot:
    """Read every counter now; never raises, whatever the files contain."""
    temperatures, limits = _temperatures(root)
    governors = {quiet_text(root, f"{folder}/cpufreq/scaling_governor") for folder in cpu_folders(root)}
    return Snapshot(
        utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        clock_s=time.monotonic(),
        cpu_s=sense(_cpu_seconds, "CPU times"),
        own_cpu_s=sense(_own_cpu_seconds, "this process's CPU time"),
        frequency_mhz=_frequencies(root),
        governor=tuple(sorted(governors - {""})) or absent("there is no /sys/devices/system/cpu/cpu*/cpufreq"),
        throttle_count=_throttle_count(root),
        quota_throttled_s=quota_throttled_seconds(root),
        load_1m=sense(lambda: psutil.getloadavg()[0], "the load average"),
        memory_available_bytes=memory_available(),
        memory_stall_s=_memory_stall(root),
        energy_uj=_energy_counters(root),
        energy_range_uj=_by_zone(root, "max_energy_range_uj") or absent("/sys/class/powercap has no intel-rapl zone"),
        temperature_c=temperatures,
        temperature_limit_c=limits,
    )


def memory_available() -> Reading[int]:
    """Return the bytes of memory that can be used without swapping."""
    return sense(lambda: psutil.virtual_memory().available, "the available memory")


def _cpu_seconds() -> dict[str, float]:
    # Guests are part of user (proc(5)).
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return {"busy": busy, "idle": times.idle + times.iowait, "steal": times.steal}


def _own_cpu_seconds() -> float:
    process, total = psutil.Process(), 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            total += sum(each.cpu_times()[:4])  # user and system, its own and of its dead children
        except psutil.NoSuchProcess:
            continue
    return total


def _frequencies(root: Path) -> Reading[tuple[float, ...]]:
    if not entries(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        lines = fields(quiet_text(root, "proc/cpuinfo"))
        if any(key == "flags" and "hypervisor" in value.split() for key, value in lines):
            return absent("a virtual machine is shown the nominal frequency only")
    current = sense(lambda: tuple(each.current for each in psutil.cpu_freq(percpu=True) if each.current), "frequencies")
    return current or absent("neither cpufreq nor /proc/cpuinfo tells the frequency")


def _throttle_count(root: Path) -> Reading[int]:
    counts = [
        value
        for folder in cpu_folders(root)
        for kind in ("core", "package")
        if (value := integer(quiet_text(root, f"{folder}/thermal_throttle/{kind}_throttle_count"))) is not None
    ]
    return sum(counts) if counts else absent("this CPU or its virtual machine counts no thermal throttling")


def _memory_stall(root: Path) -> Reading[float]:
    text = read_text(root, "proc/pressure/memory")
    if isinstance(text, Unknown):
        return text
    match = re.search(r"^some .*\btotal=(\d{1,20})$", text, re.MULTILINE | re.ASCII)
    return int(match[1]) / 1e6 if match else damaged("proc/pressure/memory")


def _temperatures(root: Path) -> tuple[Reading[dict[str, float]], Reading[dict[str, float]]]:
    """Return degrees Celsius by sensor, and the limits of those sensors that have one.

    A limit is where the hardware is slowed down, or where it is at risk if the sensor tells only that.
    """
    nothing = absent("neither /sys/class/hwmon nor /sys/class/thermal has a temperature")
    found: dict[str, float] = {}
    limits: dict[str, float] = {}
    # From a passive trip point on the kernel slows the hardware down; psutil reads only critical ones.
    passive = {
        quiet_text(root, f"{path.rpartition('/')[0]}/type"): known(
            read_integer(root, path.removesuffix("_type") + "_temp")
        )
        for path in entries(root, "sys/class/thermal/thermal_zone*/trip_point_*_type")
        if quiet_text(root, path) == "passive"
    }
    sensors = sense(lambda: psutil.sensors_temperatures(), "temperatures")
    for chip, readings in ({} if isinstance(sensors, Unknown) else sensors).items():
        for each in readings:
            name = unique = f"{chip} {each.label}".strip()
            number = 2
            # Drivers write 0 or nonsense where a sensor is not connected or has no limit.
            if not 0 < each.current < 200:
                continue
            while unique in found:
                unique, number = f"{name} ({number})", number + 1
            found[unique] = each.current
            limit = (passive.get(chip) or 0) / 1000 or each.high or each.critical
            if limit and 0 < limit < 200:
                limits[unique] = limit
    return found or nothing, limits or absent("no temperature sensor tells its limit")


def _energy_counters(root: Path) -> Reading[dict[str, int]]:
    """Return microjoules by zone, ``package-0``, ``package-0/dram``, without zones that this user may not read.

    Source of format and units: Linux, Documentation/power/powercap/powercap.rst.
    """
    if zones := _by_zone(root, "energy_uj"):
        return zones
    folders = entries(root, _ZONES)
    reason = read_integer(root, f"{folders[0]}/energy_uj") if folders else None
    if isinstance(reason, Unknown) and "may not read" in reason.unknown:
        # Closed to users since CVE-2020-8694, which read secrets off the power.
        return absent("only root may read energy_uj; sudo chmod a+r /sys/class/powercap/*/energy_uj")
    return reason if isinstance(reason, Unknown) else absent("/sys/class/powercap has no intel-rapl zone")


def _by_zone(root: Path, file: str) -> dict[str, int]:
    """Read one file of every zone, keyed by the zone's name below its parents': intel-rapl:0:1 is in intel-rapl:0."""
    zones: dict[str, int] = {}
    for folder in entries(root, _ZONES):
        parent, _, name = folder.rpartition("/")
        numbers = name.split(":")
        above = [":".join(numbers[:depth]) for depth in range(2, len(numbers) + 1)]
        value = known(read_integer(root, f"{folder}/{file}"))
        if value is not None:
            zones["/".join(quiet_text(root, f"{parent}/{each}/name") or each for each in above)] = value
    return zones


def joules(before: int, after: int, *, wraps_at: int | None, seconds: float) -> Reading[float]:
    """Compute the energy between two readings of a counter in microjoules, `seconds` apart.

    The counter restarts from 0 after `wraps_at`, its range; None where that is not known.
    """
    if wraps_at is None or wraps_at <= 0:
        return (after - before) / 1e6 if after >= before else absent("an energy counter of unknown range wrapped")
    if seconds > wraps_at / 1e6 / _MOST_WATTS:
        return absent(f"an energy counter may have wrapped more than once in {seconds:.0f} s between readings")
    # The counter also shows its range itself, so the next value after it is 0.
    return (after - before) % (wraps_at + 1) / 1e6 if after < before else (after - before) / 1e6


def summarize_interval(snapshots: Sequence[Snapshot]) -> IntervalStats:
    """Summarize what happened between at least two snapshots, in order of time.

    Many snapshots make it certain that no energy counter wrapped twice.
    """
    first, last = snapshots[0], snapshots[-1]
    seconds = last.clock_s - first.clock_s
    # A counter that ran backwards, as iowait may, counts as 0.
    spent = _derive(lambda old, new: {kind: max(new[kind] - old[kind], 0.0) for kind in new}, first.cpu_s, last.cpu_s)

    def per_second(amount: float) -> Reading[float]:
        return amount / seconds if seconds > 0 else absent("no time passed")

    own = _derive(per_second, _increase(first.own_cpu_s, last.own_cpu_s))
    busy = _derive(lambda by_kind: per_second(by_kind["busy"]), spent)
    energy = _energy(snapshots)
    frequencies = [mhz for each in snapshots for mhz in known(each.frequency_mhz) or ()]
    return IntervalStats(
        seconds=seconds,
        busy_share=_share(spent, "busy"),
        steal_share=_share(spent, "steal"),
        own_cpus=own,
        other_cpus=_increase(own, busy),
        frequency_mhz=(min(frequencies), statistics.median(frequencies), max(frequencies))
        if frequencies
        else _reason(first.frequency_mhz),
        throttled=_increase(first.throttle_count, last.throttle_count),
        quota_throttled_s=_increase(first.quota_throttled_s, last.quota_throttled_s),
        memory_stall_s=_increase(first.memory_stall_s, last.memory_stall_s),
        energy_j=energy,
        power_w=_derive(
            lambda zones: (
                {zone: used / seconds for zone, used in zones.items()} if seconds else absent("no time passed")
            ),
            energy,
        ),
        temperature_c=_highest(snapshots),
    )


def _derive(compute: Callable[..., Any], *readings: Reading[Any]) -> Reading[Any]:
    """Compute a value from readings, or return the reason why one of them is missing."""
    missing = next((each for each in readings if isinstance(each, Unknown)), None)
    return compute(*readings) if missing is None else missing


def _increase(before: Reading[float], after: Reading[float]) -> Reading[Any]:
    """Return by how much a counter increased; a decrease, as when a child's CPU time is lost, counts as 0."""
    return _derive(lambda first, last: max(last - first, 0), before, after)


def _share(spent: Reading[dict[str, float]], kind: str) -> Reading[float]:
    return _derive(
        lambda seconds: (
            seconds[kind] / sum(seconds.values()) if any(seconds.values()) else absent("no CPU time passed")
        ),
        spent,
    )


def _energy(snapshots: Sequence[Snapshot]) -> Reading[dict[str, float]]:
    total: dict[str, float] = {}
    for before, after in pairwise(snapshots):
        old, new, seconds = before.energy_uj, after.energy_uj, after.clock_s - before.clock_s
        if isinstance(old, Unknown):
            return old
        if isinstance(new, Unknown):
            return new
        ranges = known(after.energy_range_uj) or {}
        for zone in old.keys() & new.keys():
            used = joules(old[zone], new[zone], wraps_at=ranges.get(zone), seconds=seconds)
            if isinstance(used, Unknown):
                return used
            total[zone] = total.get(zone, 0.0) + used
    return dict(sorted(total.items())) or absent("no energy counter was readable all the time")


def _highest(snapshots: Sequence[Snapshot]) -> Reading[dict[str, float]]:
    highest: dict[str, float] = {}
    for each in snapshots:
        for sensor, degrees in (known(each.temperature_c) or {}).items():
            highest[sensor] = max(degrees, highest.get(sensor, degrees))
    return highest or _reason(snapshots[0].temperature_c)


def _reason(reading: Reading[Any]) -> Unknown:
    return reading if isinstance(reading, Unknown) else absent("it was not readable all the time")
