"""/sys in, temperatures and the limits that their sensors tell out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeface.bench.machine.proc import absent, entries, integer, quiet_text
from edgeface.bench.machine.reading import Fact

__all__ = ["read_temperatures"]


def read_temperatures(root: Path = Path("/")) -> tuple[Fact[dict[str, float]], Fact[dict[str, float]]]:
    """Degrees Celsius by sensor, and the limits of those sensors that have one.

    The sensors are those of hwmon; thermal zones repeat them and are read where there is no hwmon. A limit is
    where the hardware is slowed down, or where it is in danger if the sensor tells only that.
    """
    found: dict[str, float] = {}
    limits: dict[str, float] = {}
    for name, value, limit in list(_hwmon(root)) or _zones(root):
        if value is None:
            continue
        unique, number = name, 2
        while unique in found:
            unique, number = f"{name} ({number})", number + 1
        found[unique] = value
        if limit is not None:
            limits[unique] = limit
    nothing = absent("neither /sys/class/hwmon nor /sys/class/thermal has a temperature")
    return found or nothing, limits or absent("no temperature sensor tells its limit")


def _hwmon(root: Path) -> Iterator[tuple[str, float | None, float | None]]:
    for path in entries(root, "sys/class/hwmon/hwmon*/temp*_input"):
        folder, _, file = path.rpartition("/")
        stem = f"{folder}/{file.removesuffix('_input')}"
        chip = quiet_text(root, f"{folder}/name") or folder.rpartition("/")[2]
        label = quiet_text(root, f"{stem}_label") or stem.rpartition("/")[2]
        yield f"{chip} {label}", _degrees(root, path), _degrees(root, f"{stem}_max", f"{stem}_crit")


def _zones(root: Path) -> Iterator[tuple[str, float | None, float | None]]:
    for folder in entries(root, "sys/class/thermal/thermal_zone*"):
        passive = [
            trip.removesuffix("_type") + "_temp"
            for trip in entries(root, f"{folder}/trip_point_*_type")
            if quiet_text(root, trip) == "passive"  # from here on the kernel slows the hardware down
        ]
        name = quiet_text(root, f"{folder}/type") or folder.rpartition("/")[2]
        yield name, _degrees(root, f"{folder}/temp"), _degrees(root, *passive)


def _degrees(root: Path, *paths: str) -> float | None:
    """First of several files of millidegrees that makes sense."""
    for path in paths:
        value = integer(quiet_text(root, path))
        # Drivers write 0 or nonsense where a sensor is not connected or has no limit.
        if value is not None and 0 < value < 200_000:
            return value / 1000
    return None
