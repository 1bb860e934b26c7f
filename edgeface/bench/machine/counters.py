"""/proc and /sys in, one counter of the CPU or the memory out, or why it cannot be read; nothing here raises."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgeface.bench.machine.proc import (
    absent,
    cpu_folders,
    damaged,
    entries,
    fields,
    integer,
    quiet_text,
    read_text,
)
from edgeface.bench.machine.reading import Fact, Unknown

__all__ = [
    "cpu_seconds",
    "frequencies",
    "governors",
    "load_average",
    "memory_available",
    "memory_stall",
    "own_cpu_seconds",
    "throttle_count",
]

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
"""A second, in the unit of /proc/stat."""


def cpu_seconds(root: Path) -> Fact[dict[str, float]]:
    """Sum of all CPUs: user nice system idle iowait irq softirq steal; guests are part of user (proc(5))."""
    text = read_text(root, "proc/stat")
    if isinstance(text, Unknown):
        return text
    name, *numbers = text.partition("\n")[0].split()[:9] or [""]
    ticks = [integer(number) for number in numbers]
    if name != "cpu" or len(ticks) != 8 or any(tick is None or tick < 0 for tick in ticks):
        return damaged("proc/stat")
    user, nice, system, idle, waiting, irq, softirq, steal = ((tick or 0) / _TICKS for tick in ticks)
    busy = user + nice + system + irq + softirq
    return {"busy": busy, "idle": idle + waiting, "steal": steal}


def own_cpu_seconds(root: Path) -> Fact[float]:
    """CPU seconds of this process, its dead children, and everything that descends from it and is alive."""
    own = _process_seconds(root, "self")
    if own is None:
        return (
            damaged("proc/self/stat") if quiet_text(root, "proc/self/stat") else absent("there is no /proc")
        )
    waiting, seen, total = _children(root, "self"), set[str](), own
    while waiting:
        process = waiting.pop()
        if process not in seen:
            seen.add(process)
            total += _process_seconds(root, process) or 0.0
            waiting += _children(root, process)
    return total


def _process_seconds(root: Path, process: str) -> float | None:
    # The name in the second field may hold blanks and brackets; utime to cstime are fields 14 to 17.
    numbers = quiet_text(root, f"proc/{process}/stat").rpartition(")")[2].split()[11:15]
    ticks = [tick for number in numbers if (tick := integer(number)) is not None and tick >= 0]
    return sum(ticks) / _TICKS if len(ticks) == 4 else None


def _children(root: Path, process: str) -> list[str]:
    tasks = entries(root, f"proc/{process}/task/*/children")
    return [child for task in tasks for child in quiet_text(root, task).split() if integer(child)]


def frequencies(root: Path) -> Fact[tuple[float, ...]]:
    """MHz, from the frequency driver, or from what the kernel measures where there is none."""
    khz = [
        value
        for folder in cpu_folders(root)
        if (value := integer(quiet_text(root, f"{folder}/cpufreq/scaling_cur_freq"))) is not None
    ]
    if khz:
        return tuple(value / 1000 for value in khz)
    text = read_text(root, "proc/cpuinfo")
    if isinstance(text, Unknown):
        return text
    lines = list(fields(text))
    if any(key == "flags" and "hypervisor" in value.split() for key, value in lines):
        return absent("a virtual machine is shown the nominal frequency only")
    mhz = tuple(mhz for key, value in lines if key == "cpu MHz" and (mhz := _decimal(value)) is not None)
    return mhz or absent("neither cpufreq nor /proc/cpuinfo tells the frequency")


def governors(root: Path) -> Fact[tuple[str, ...]]:
    found = {quiet_text(root, f"{folder}/cpufreq/scaling_governor") for folder in cpu_folders(root)}
    return tuple(sorted(found - {""})) or absent("there is no /sys/devices/system/cpu/cpu*/cpufreq")


def throttle_count(root: Path) -> Fact[int]:
    counts = [
        value
        for folder in cpu_folders(root)
        for kind in ("core", "package")
        if (value := integer(quiet_text(root, f"{folder}/thermal_throttle/{kind}_throttle_count")))
        is not None
    ]
    return sum(counts) if counts else absent("this CPU or its virtual machine counts no thermal throttling")


def load_average(root: Path) -> Fact[float]:
    text = read_text(root, "proc/loadavg")
    if isinstance(text, Unknown):
        return text
    value = _decimal(text.partition(" ")[0])
    return damaged("proc/loadavg") if value is None else value


def memory_available(root: Path) -> Fact[int]:
    text = read_text(root, "proc/meminfo")
    if isinstance(text, Unknown):
        return text
    kilobytes = integer(dict(fields(text)).get("MemAvailable", "").removesuffix("kB"))
    return damaged("proc/meminfo") if kilobytes is None else kilobytes << 10


def memory_stall(root: Path) -> Fact[float]:
    text = read_text(root, "proc/pressure/memory")
    if isinstance(text, Unknown):
        return text
    match = re.search(r"^some .*\btotal=(\d{1,20})$", text, re.MULTILINE | re.ASCII)
    return int(match[1]) / 1e6 if match else damaged("proc/pressure/memory")


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text, re.ASCII) else None
