"""A result's file in, the result with a name to show out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeface.bench.compare.comparable import doubts
from edgeface.bench.compare.imported import read_any
from edgeface.bench.result import FILE_NAME, BenchmarkResult
from edgeface.errors import InputError

__all__ = ["Entry", "read_entries"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A result under the name that a report gives it, and the folder of several that it was found in."""

    name: str
    result: BenchmarkResult
    folder: str = ""

    @property
    def doubts(self) -> list[str]:
        """What makes its figures doubtful."""
        return doubts(self.result)


def read_entries(paths: Sequence[Path]) -> list[Entry]:
    """Read result files, runs' folders and folders of those, in that order; names are told apart.

    Raises
    ------
    InputError
        If one of them is no result, or a folder holds none.
    """
    found: list[tuple[str, Path, str]] = []
    for path in paths:
        if path.is_dir() and not (path / FILE_NAME).is_file():
            files = sorted(path.rglob(FILE_NAME))
            if not files:
                raise InputError(f"{path}: expected a {FILE_NAME}, or folders with one in each, found none")
            folder = path.name or str(path)
            inside = [(str(file.parent.relative_to(path)), file) for file in files]
            found += [(f"{folder}/{name}" if len(paths) > 1 else name, file, folder) for name, file in inside]
        else:
            of = path.parent if path.name == FILE_NAME else path
            name = of.name if of.is_dir() else path.stem
            found.append((name or str(path), path, ""))
    entries: list[Entry] = []
    for name, file, within in found:
        taken = {each.name for each in entries}
        number = next(
            n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name} ({n})") not in taken
        )
        entries.append(Entry(name if number == 1 else f"{name} ({number})", read_any(file), within))
    return entries
