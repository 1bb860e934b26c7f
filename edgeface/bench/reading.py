"""Read facts about the machine from psutil, /proc and /sys; where one cannot be read, record why.

Functions that read files take the `root` of the file system, so that tests can use a made-up machine. Reasons never
contain that root. Nothing here raises on damaged files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

import psutil
from pydantic import BaseModel, ConfigDict

T = TypeVar("T")

_LARGEST = 2**64


class Frozen(BaseModel):
    """Base of result records: immutable, compared by value, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Unknown(Frozen):
    """Stands in place of a value that could not be read.

    Attributes
    ----------
    unknown : str
        The reason, as a clause: ``not readable here: /sys/class/powercap does not exist``.
    """

    unknown: str

    def __str__(self) -> str:
        return self.unknown


Reading: TypeAlias = T | Unknown
"""A value, or the reason why there is none: in JSON ``3`` or ``{"unknown": "..."}``."""


def known(reading: Reading[T]) -> T | None:
    """Return the value, or None where there is none."""
    return None if isinstance(reading, Unknown) else reading


def absent(reason: str) -> Unknown:
    """Record why a value cannot be read."""
    return Unknown(unknown=f"not readable here: {reason}")


def damaged(path: str) -> Unknown:
    """Record that a file does not have the form that the kernel documents."""
    return absent(f"/{path} is not of the form that the kernel documents")


def sense(read: Callable[[], T | None], what: str) -> Reading[T]:
    """Call psutil; it raises various exceptions where a platform has no such sensor or a file is damaged."""
    try:
        value = read()
    except (psutil.Error, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        return absent(f"psutil cannot tell {what} ({type(error).__name__})")
    return absent(f"psutil cannot tell {what}") if value is None else value


def read_text(root: Path, path: str) -> Reading[str]:
    """Return the text of a file without surrounding blanks; bytes that are not UTF-8 are replaced."""
    try:
        # Device trees end their strings in a NUL.
        return (root / path).read_bytes().decode(errors="replace").strip(" \t\r\n\0")
    except FileNotFoundError:
        return absent(f"/{path} does not exist")
    except PermissionError:
        return absent(f"this user may not read /{path}")
    except OSError as error:  # a driver may answer a read with any error
        return absent(f"/{path}: {error.strerror or 'cannot be read'}")


def quiet_text(root: Path, path: str) -> str:
    """Return the text of a file, empty where it cannot be read."""
    return known(read_text(root, path)) or ""


def integer(text: str) -> int | None:
    """Parse a whole number of at most 64 bits; None for anything else."""
    match = re.fullmatch(r"-?\d{1,20}", text.strip(), re.ASCII)
    return int(match[0]) if match and abs(int(match[0])) < _LARGEST else None


def read_integer(root: Path, path: str) -> Reading[int]:
    """Return the whole number that a file holds."""
    text = read_text(root, path)
    if isinstance(text, Unknown):
        return text
    value = integer(text)
    return damaged(path) if value is None else value


def entries(root: Path, pattern: str) -> list[str]:
    """Return paths below the root that match a pattern, ``cpu2`` before ``cpu10``."""
    try:
        found = [path.relative_to(root).as_posix() for path in root.glob(pattern)]
    except OSError:  # a folder that vanished or may not be listed
        return []
    # Text and digits alternate, so that equal positions compare equal kinds.
    return sorted(
        found,
        key=lambda path: [
            int(part) if part.isascii() and part.isdigit() else part for part in re.split(r"([0-9]+)", path)
        ],
    )


def is_folder(root: Path, path: str) -> bool:
    """Whether there is a folder, whatever the path contains."""
    return os.path.isdir(os.path.join(root, path))  # noqa: PTH112, PTH118 - pathlib raises on some paths


def cpu_folders(root: Path) -> list[str]:
    """Return the folders of the logical CPUs in /sys."""
    return entries(root, "sys/devices/system/cpu/cpu[0-9]*")


def fields(text: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of the form ``key : value`` of /proc/cpuinfo."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()
