"""RAPL's counters in, joules out, whether or not a counter has wrapped."""

from __future__ import annotations

from pathlib import Path

from edgeface.bench.machine.proc import absent, entries, quiet_text, read_integer
from edgeface.bench.machine.reading import Fact, Unknown

__all__ = ["joules", "read_energy", "read_ranges"]

_ZONES = "sys/class/powercap/intel-rapl:*"
"""AMD's driver uses the same name. ``intel-rapl-mmio`` repeats the package and is left out."""

_MOST_WATTS = 1000.0
"""More than any package draws: a counter cannot have wrapped twice in range / this many seconds."""


def read_energy(root: Path = Path("/")) -> Fact[dict[str, int]]:
    """Microjoules by zone: ``package-0``, ``package-0/dram``.

    Zones that this user may not read are left out; the reason is given where none is left. Source of format
    and units: Linux, Documentation/power/powercap/powercap.rst.
    """
    zones: dict[str, int] = {}
    reason = absent("/sys/class/powercap has no intel-rapl zone")
    for folder in entries(root, _ZONES):
        value = read_integer(root, f"{folder}/energy_uj")
        if not isinstance(value, Unknown):
            zones[_name(root, folder)] = value
        elif "may not read" in value.unknown:
            # Closed to users since CVE-2020-8694, which read secrets off the power.
            reason = absent("only root may read energy_uj; sudo chmod a+r /sys/class/powercap/*/energy_uj")
        else:
            reason = value
    return zones or reason


def read_ranges(root: Path = Path("/")) -> Fact[dict[str, int]]:
    """Microjoules at which each zone's counter starts again from 0."""
    zones: dict[str, int] = {}
    for folder in entries(root, _ZONES):
        value = read_integer(root, f"{folder}/max_energy_range_uj")
        if not isinstance(value, Unknown):
            zones[_name(root, folder)] = value
    return zones or absent("/sys/class/powercap has no intel-rapl zone")


def joules(before: int, after: int, *, wraps_at: int | None, seconds: float) -> Fact[float]:
    """Energy between two readings of one counter.

    Parameters
    ----------
    before, after
        Microjoules.
    wraps_at
        The counter's range in microjoules; None where it is not known.
    seconds
        Between the readings.
    """
    if wraps_at is None or wraps_at <= 0:
        return (
            (after - before) / 1e6
            if after >= before
            else absent("an energy counter of unknown range wrapped")
        )
    if seconds > wraps_at / 1e6 / _MOST_WATTS:
        return absent(
            f"an energy counter may have wrapped more than once in {seconds:.0f} s between readings"
        )
    # The counter also shows its range itself, so the next value after it is 0.
    return (after - before) % (wraps_at + 1) / 1e6 if after < before else (after - before) / 1e6


def _name(root: Path, folder: str) -> str:
    """Name of a zone below its parents' names; ``intel-rapl:0:1`` lies in ``intel-rapl:0``."""
    numbers = folder.rpartition("/")[2].split(":")
    parent = folder.rpartition("/")[0]
    names = [
        quiet_text(root, f"{parent}/{':'.join(numbers[:depth])}/name") or ":".join(numbers[:depth])
        for depth in range(2, len(numbers) + 1)
    ]
    return "/".join(names)
