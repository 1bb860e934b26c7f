"""Read labelled pairs of images, from a list like LFW's pairs.txt or from one folder a person."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.untrusted import DOCUMENT_BYTES, read_regular, reading
from edgeface.vision.listing import list_people

_MOST_LISTED = 100
"""Malformed rows that one message lists."""

_ROW = "3 fields (name, n1, n2) or 4 (name1, n1, name2, n2), tab-separated"


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Labelled pairs of images, in the order of their list.

    Attributes
    ----------
    images
        Each image once: ``Name/Name_0001`` without suffix (list), or a relative path (folders).
    first, second : (P,) intp
        Indices into `images`, one a pair.
    same : (P,) bool
        True for genuine pairs (one person), False for impostor pairs.
    folds
        Number of cross-validation folds; 1 if the list names none.
    unread
        Photos and folders that are in no pair because they cannot be read, and why.
    """

    images: tuple[str, ...]
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    same: NDArray[np.bool_]
    folds: int
    unread: Mapping[Path, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.same)


@dataclass(frozen=True, slots=True, eq=False)
class PeopleImages:
    """Images of people, sorted by person and path.

    Attributes
    ----------
    images
        Paths relative to the folder, with forward slashes.
    people : (N,) intp
        Index of each image's person in `names`; ascending.
    names
        Folders that hold an image.
    empty
        Folders that hold none.
    unread
        Photos and folders that cannot be read or are in no person's folder, and why.
    """

    images: tuple[str, ...]
    people: NDArray[np.intp]
    names: tuple[str, ...]
    empty: tuple[str, ...]
    unread: Mapping[Path, str]


def read_pairs(path: Path) -> Pairs:
    """Read a list in the format of LFW's `pairs.txt`; raise InputError as `parse_pairs`, or if it cannot be read."""
    with reading(path, "a readable pairs list"):
        raw = read_regular(path, limit=DOCUMENT_BYTES)
    return parse_pairs(raw, source=str(path))


def parse_pairs(raw: bytes, *, source: str = "pairs") -> Pairs:
    r"""Parse a pairs list (LFW's README, "pairs.txt format").

    The header holds the number of sets and of pairs of each kind in a set, ``10<TAB>300``, or only the latter,
    ``1100``, as in LFW's View 1. Rows of 3 fields are genuine pairs, rows of 4 fields impostor pairs. Fields are
    separated by tabs, in a row without tabs by spaces.

    Raises
    ------
    InputError
        With the line number of every malformed row, at most 100, after `source`.

    Examples
    --------
    >>> pairs = parse_pairs(b"1\t1\nAnn\t1\t2\nAnn\t1\tBob\t1\n")
    >>> pairs.images, pairs.same.tolist()
    (('Ann/Ann_0001', 'Ann/Ann_0002', 'Bob/Bob_0001'), [True, False])
    """
    end = raw.find(b"\n", len(raw.rstrip()))  # of the last line that is not blank
    lines = (line.rstrip(b"\n").rstrip(b"\r") for line in io.BytesIO(raw if end < 0 else raw[:end]))
    folds, per_kind = _parse_header(next(lines, b"").removeprefix(b"\xef\xbb\xbf"), source)
    problems: list[str] = []
    left = 0
    rows: list[tuple[str, str, bool]] = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append(_parse_row(line))
        except ValueError as error:
            if len(problems) < _MOST_LISTED:
                problems.append(f"{source}:{number}: {error}")
            else:
                left += 1
    genuine = sum(same for _, _, same in rows)
    found = (genuine, len(rows) - genuine)
    if not problems and found != (folds * per_kind, folds * per_kind):
        problems.append(
            f"{source}:1: expected {folds * per_kind} genuine and {folds * per_kind} impostor pairs according to "
            f"the header, found {found[0]} and {found[1]}; the list may be truncated"
        )
    if problems:
        more = [f"... and {left} more malformed rows"] if left else []
        raise InputError("\n".join([*problems, *more]))
    return _collect(rows, folds=folds)


def pairs_from_folders(root: Path, *, most: int = 1_000_000, seed: int = 0) -> Pairs:
    """Pair the images below a folder that holds one folder a person, ``root/Name/anything.jpg``.

    Genuine pairs are all pairs of images of one person, impostor pairs all pairs of images of two people. Of more than
    `most` pairs of a kind, this many are drawn at random.

    Raises
    ------
    InputError
        If there are fewer than two people, or no person has two images.
    """
    found = images_of_people(root)
    images, people = found.images, found.people
    here = np.arange(len(people))
    ends = np.searchsorted(people, people, side="right")  # of each image's person, who is one run of rows
    genuine = _draw_pairs(here + 1, ends, most=most, seed=seed)
    impostor = _draw_pairs(ends, np.full(len(people), len(people)), most=most, seed=seed)
    if not len(genuine) or not len(impostor):
        raise InputError(
            f"{root}: expected images of at least two people and at least two images of one person, found "
            f"{len(images)} images of {len(found.names)} people"
            + "".join(f"; {path}: {why}" for path, why in list(found.unread.items())[:3])
        )
    first, second = np.concatenate([genuine, impostor]).T
    same = np.arange(len(first)) < len(genuine)
    return Pairs(images, first, second, same, folds=1, unread=found.unread)


def images_of_people(root: Path) -> PeopleImages:
    """List the images of `list_people`: of one folder a person, ``root/Name/anything.jpg``, in any depth below it."""
    found = list_people(root)
    unread = found.failures | dict.fromkeys(found.loose, "in no person's folder")
    listed = {name: files for name, files in found.people.items() if files}
    return PeopleImages(
        images=tuple(path.relative_to(root).as_posix() for files in listed.values() for path in files),
        people=np.repeat(np.arange(len(listed)), [len(files) for files in listed.values()]).astype(np.intp),
        names=tuple(listed),
        empty=tuple(name for name, files in found.people.items() if not files),
        unread=unread,
    )


def _draw_pairs(starts: NDArray[np.intp], ends: NDArray[np.intp], *, most: int, seed: int) -> NDArray[np.intp]:
    """Pair image i with all of ``starts[i]`` to ``ends[i] - 1``, or draw `most` of these pairs: (P, 2), ascending.

    Pairs are numbered, so that only the drawn ones take memory.
    """
    last = np.cumsum(ends - starts)
    total = int(last[-1]) if len(last) else 0
    if total <= most:
        numbers = np.arange(total)
    else:
        rng = np.random.default_rng(seed)
        numbers = np.empty(0, np.int64)
        while len(numbers) < most:
            numbers = np.union1d(numbers, rng.integers(total, size=most))
        numbers = np.sort(rng.choice(numbers, most, replace=False))
    first = np.searchsorted(last, numbers, side="right")
    return np.stack([first, ends[first] - (last[first] - numbers)], axis=1).astype(np.intp)


def _parse_header(line: bytes, source: str) -> tuple[int, int]:
    fields = line.split()
    numbers = [int(field) for field in fields if field.isdigit() and len(field) < 10]
    if len(fields) not in (1, 2) or len(numbers) != len(fields) or min(numbers) < 1:
        raise InputError(
            f"{source}:1: expected a header with the number of sets and of pairs of each kind in a set, like "
            f"'10<TAB>300', found {_shown(line)}"
        )
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _parse_row(line: bytes) -> tuple[str, str, bool]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"expected UTF-8 text, found {_shown(line)}") from None
    fields = text.split("\t") if "\t" in text else text.split()
    if len(fields) == 3:
        first, second = _image(fields[0], fields[1]), _image(fields[0], fields[2])
    elif len(fields) == 4:
        first, second = _image(fields[0], fields[1]), _image(fields[2], fields[3])
        if fields[0] == fields[2]:
            raise ValueError(f"expected two people, found {fields[0]!r} twice")
    else:
        raise ValueError(f"expected {_ROW}, found {len(fields)} in {_shown(line)}")
    if first == second:
        raise ValueError(f"expected two images, found {first!r} twice")
    return first, second, len(fields) == 3


def _image(name: str, number: str) -> str:
    """Return ``Name/Name_0001``. Names that would lead out of the image folder are refused."""
    if not name or name != name.strip() or name in (".", "..") or any(c in "/\\" or c < " " for c in name):
        raise ValueError(f"expected a person's name that is a valid folder name, found {name!r:.80}")
    if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) > 0):
        raise ValueError(f"expected an image number from 1, found {number!r:.80}")
    return f"{name}/{name}_{int(number):04d}"


def _shown(line: bytes) -> str:
    return repr(line[:80].decode("utf-8", errors="replace")) + ("..." if len(line) > 80 else "")


def _collect(rows: list[tuple[str, str, bool]], *, folds: int) -> Pairs:
    index: dict[str, int] = {}
    numbers = [index.setdefault(image, len(index)) for row in rows for image in row[:2]]
    ends = np.array(numbers, np.intp).reshape(-1, 2)
    return Pairs(tuple(index), ends[:, 0], ends[:, 1], np.array([row[2] for row in rows], np.bool_), folds)
