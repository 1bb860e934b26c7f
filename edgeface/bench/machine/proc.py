"""Files of /proc and /sys in, their text and numbers out, or why they cannot be read.

Every function takes the `root` of the file system, so that tests give a made-up machine, and no reason tells
where that root is. Damaged text is a reason too: nothing here raises.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgeface.bench.machine.reading import Fact, Unknown

__all__ = [
    "absent",
    "cpu_folders",
    "cpu_list",
    "damaged",
    "entries",
    "fields",
    "integer",
    "is_folder",
    "quiet_text",
    "read_integer",
    "read_text",
]

_LARGEST = 2**64
_RANGE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def absent(reason: str) -> Unknown:
    """Say that a fact is not to be had, and why."""
    return Unknown(unknown=f"not readable here: {reason}")


def damaged(path: str) -> Unknown:
    """Say that a file's text is not what the kernel documents."""
    return absent(f"/{path} is not of the form that the kernel documents")


def read_text(root: Path, path: str) -> Fact[str]:
    """Text of a file without surrounding blanks; bytes that are no UTF-8 are replaced."""
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
    """Text of a file, empty where it cannot be read: for files that only add to others."""
    text = read_text(root, path)
    return "" if isinstance(text, Unknown) else text


def integer(text: str) -> int | None:
    """A decimal number in the range of the kernel's own types, or None."""
    # A run of digits too long for int() is damage, not a number.
    if not re.fullmatch(r"-?[0-9]{1,20}", text.strip()):
        return None
    value = int(text)
    return value if -_LARGEST < value < _LARGEST else None


def read_integer(root: Path, path: str) -> Fact[int]:
    """A file that holds one whole number."""
    text = read_text(root, path)
    if isinstance(text, Unknown):
        return text
    value = integer(text)
    return damaged(path) if value is None else value


def entries(root: Path, pattern: str) -> list[str]:
    """Paths below the root that fit a pattern, numbers inside names in order of size: ``cpu2`` before ``cpu10``."""
    try:
        found = [path.relative_to(root).as_posix() for path in root.glob(pattern)]
    except OSError:  # a folder that vanished or may not be listed
        return []
    return sorted(
        found,
        key=lambda path: [int(part) if part.isascii() and part.isdigit() else part for part in _parts(path)],
    )


def is_folder(root: Path, path: str) -> bool:
    """Whether there is a folder, whatever the path holds."""
    return os.path.isdir(os.path.join(root, path))  # noqa: PTH112, PTH118 - pathlib raises on some paths


def cpu_folders(root: Path) -> list[str]:
    """Folders of the logical CPUs in /sys."""
    return entries(root, "sys/devices/system/cpu/cpu[0-9]*")


def fields(text: str) -> Iterator[tuple[str, str]]:
    """Lines of the form ``key : value`` as /proc/cpuinfo, meminfo and status have them."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


def cpu_list(text: str) -> tuple[int, ...] | None:
    """Numbers in the kernel's list format, ``0-3,8``; None for anything else."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < 1 << 16:
            return None
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def _parts(path: str) -> list[str]:
    # Text and digits alternate from the start, so that equal positions compare equal kinds.
    return re.split(r"([0-9]+)", path)
