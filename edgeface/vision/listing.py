"""Find the photos below files, folders and shell patterns, and name what of them cannot be read or is left out.

Every command that reads a folder reads it with `list_photos`; one that reads a folder of people, with `list_people`.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath

from edgeface.errors import InputError
from edgeface.vision.formats import HEAD, IMAGE_SUFFIXES, kind_of

_LITTER = frozenset(
    {"@eadir", "@tmp", "@recycle", "@__thumb", "#recycle", "#snapshot", "$recycle.bin", "system volume information"}
    | {
        "@recently-snapshot",
        "@sharebin",
        "~snapshot",
        "network trash folder",
        "temporary items",
        "recycler",
        "found.000",
    }
    | {"lost+found", "__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini"}
)
"""Lower-case names of what operating systems, NAS and photo managers write into folders of photos."""
_WHY_LITTER = "hidden, or written by a system"


@dataclass(frozen=True, slots=True)
class Photo:
    """A file, and its path below the folder that was searched, which names its results."""

    path: Path
    relative: Path


@dataclass(frozen=True, slots=True, eq=False)
class PhotoList:
    """What `list_photos` found.

    Attributes
    ----------
    photos
        Files to read, each once.
    failures
        Why a photo, a video or a folder is not read.
    left_out
        Why files and folders do not count: thumbnails, hidden files and other litter of systems; folders that are
        reached twice through links; what `cluster_folder` wrote among the photos.
    """

    photos: tuple[Photo, ...]
    failures: dict[Path, str]
    left_out: dict[Path, str]

    @property
    def files(self) -> list[Path]:
        """Paths of `photos`."""
        return [photo.path for photo in self.photos]


@dataclass(frozen=True, slots=True, eq=False)
class PeopleList:
    """What `list_people` found.

    Attributes
    ----------
    root
        The folder that holds the people's folders.
    people
        Photos of each person, sorted; none of a person whose photos cannot be read.
    loose
        Photos directly in `root`, which are nobody's.
    failures, left_out
        As in `PhotoList`.
    """

    root: Path
    people: dict[str, tuple[Path, ...]]
    loose: tuple[Path, ...]
    failures: dict[Path, str]
    left_out: dict[Path, str]


def list_photos(places: Sequence[str | Path], *, output: Path | None = None) -> PhotoList:
    """List the photos that files, folders and shell patterns name.

    Folders are searched with their subfolders, linked ones too, each once. A file is a photo by its content, or by its
    name. A file that is named by itself is taken for one in any case: reading it says what it is. Files below `output`,
    where results are written, are results of earlier runs and do not count.

    Raises
    ------
    InputError
        If a place does not exist, or there is nothing in it that may be a photo.
    """
    photos: dict[Path, Photo] = {}
    failures: dict[Path, str] = {}
    left_out: dict[Path, str] = {}
    for place in places:
        found = _Search.of(place, output)
        if not found.photos and not found.failures:
            raise _nothing_there(place, found, output)
        for photo in found.photos:
            photos.setdefault(photo.path, photo)
        failures |= found.failures
        left_out |= found.left_out
    return PhotoList(tuple(photos.values()), failures, left_out)


def list_people(root: str | Path) -> PeopleList:
    """List the photos of people: a person is a folder directly below `root`, whatever folders are below that.

    `root` may be a shell pattern; people are then the folders directly below its part without wildcards.

    Raises
    ------
    InputError
        If there is no such folder.
    """
    folder = _fixed_part(root)
    if not folder.is_dir():
        raise InputError(
            path=root,
            expected="a folder that holds one folder a person",
            found="a file" if folder.is_file() else "a folder that does not exist",
        )
    found = _Search.of(root)
    people: dict[str, list[Path]] = {
        each.relative_to(folder).parts[0]: [] for each in sorted(found.folders) if each != folder
    }
    loose: list[Path] = []
    for photo in found.photos:
        below = photo.path.relative_to(folder).parts
        (people.setdefault(below[0], []) if len(below) > 1 else loose).append(photo.path)
    photos = {name: tuple(files) for name, files in people.items()}
    return PeopleList(folder, photos, tuple(loose), found.failures, found.left_out)


class _Search:
    """One search of a place: photos in the order of their paths, folders that were entered, and what is not read."""

    def __init__(self, output: Path | None) -> None:
        self.photos: list[Photo] = []
        self.folders: list[Path] = []
        self.failures: dict[Path, str] = {}
        self.left_out: dict[Path, str] = {}
        self.has_results = False
        self._written = output.resolve() if output else None
        self._seen: dict[tuple[int, int], Path] = {}

    @classmethod
    def of(cls, place: str | Path, output: Path | None = None) -> _Search:
        """Search a file, a folder, or what a shell pattern matches."""
        search = cls(output)
        try:
            start = len(_fixed_part(place).parts)
            for path in _expand(place):
                parents = (Path(*path.parts[:end]) for end in range(start + 1, len(path.parts) + 1))
                if litter := next(filter(is_litter, parents), None):
                    search.left_out[litter] = _WHY_LITTER
                elif path.is_dir():
                    search._walk(path)
                elif path == Path(place):
                    search.photos.append(Photo(path, Path(path.name)))
                else:
                    search._judge(path, path.parent)
        except OSError as error:  # a name too long for any file
            raise InputError(
                f"{place}: expected a file, a folder or a pattern, found: {error.strerror or error}"
            ) from error
        search.photos.sort(key=lambda photo: photo.path)
        return search

    def _walk(self, root: Path) -> None:
        """Search a folder; linked folders last, so that a folder is found where it is, and not through a link."""
        folders, links = [root], list[Path]()
        while folders or links:
            folder = folders.pop() if folders else links.pop(0)
            try:
                if (why := self._known(folder)) and folder != root:
                    self.left_out[folder] = why
                    continue
                self.folders.append(folder)
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                self.failures[folder] = f"cannot list this folder: {error.strerror or error}"
                continue
            for entry in entries:
                path = folder / entry.name
                if not os.path.isdir(path) or is_litter(path):  # noqa: PTH112 - Path.is_dir raises where it may not look
                    self._judge(path, root)
                elif self._written and path.resolve() == self._written:
                    self.has_results = True
                elif entry.name == "people" and os.path.isfile(folder / "clusters.json"):  # noqa: PTH113 - as above
                    self.left_out[path] = "sorted by 'edgeface cluster': each photo is a copy"
                else:
                    (links if entry.is_symlink() else folders).append(path)

    def _known(self, folder: Path) -> str:
        """Return why a folder is not searched again; empty if it is new."""
        if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
            return "a link to a folder that holds it"
        status = folder.stat()
        first = self._seen.setdefault((status.st_dev, status.st_ino), folder)
        return "" if first is folder else f"the same folder as {first}"

    def _judge(self, path: Path, root: Path) -> None:
        """Count a file as a photo, a failure or litter, or pass over it."""
        suffix = path.suffix.lower()
        if is_litter(path):
            self.left_out[path] = _WHY_LITTER
            return
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise OSError(0, "it is no file")
            with path.open("rb") as file:
                kind = kind_of(file.read(HEAD), suffix)
        except OSError as error:
            is_link = path.is_symlink() and isinstance(error, FileNotFoundError)
            if is_link or suffix in IMAGE_SUFFIXES:
                self.failures[path] = "a link to nothing" if is_link else f"cannot read: {error.strerror or error}"
            if is_link and suffix not in IMAGE_SUFFIXES:  # it may have been a person's folder
                self.folders.append(path)
            return
        if kind and kind.readable:
            self.photos.append(Photo(path, path.relative_to(root)))
        elif kind:
            self.failures[path] = str(kind.refusal())


def _fixed_part(place: str | Path) -> Path:
    """Return a path, or the part of a shell pattern before its wildcards."""
    path = Path(place)
    if path.exists() or not glob.has_magic(str(place)):
        return path
    return Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))


def _expand(place: str | Path) -> Iterator[Path]:
    path, pattern = Path(place), str(place)
    if path.exists():
        yield path
        return
    for match in sorted(glob.iglob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        if "**" not in pattern or not Path(match).is_dir():  # ** matches the files of a folder, too
            yield Path(match)


def is_litter(path: PurePath) -> bool:
    """Return whether a file or folder is hidden, or of a name that systems write into folders of photos."""
    name = path.name.lower()
    return name.startswith((".", "synophoto_")) or name in _LITTER


def _nothing_there(place: str | Path, found: _Search, output: Path | None) -> InputError:
    if found.has_results:
        return InputError(f"{place}: expected photos outside {output}, which holds results, found none")
    if str(place).startswith(("http:/", "https:/")):
        return InputError(
            path=place, expected="a file, a folder or a pattern", found="an address", remedy="download the photos first"
        )
    expected = "photos in this folder" if found.folders else "a file, a folder or a pattern"
    without = f"none, besides {len(found.left_out)} that are left out" if found.left_out else "none"
    return InputError(path=place, expected=expected, found=without, remedy="check the path")
