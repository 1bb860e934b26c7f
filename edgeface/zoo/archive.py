"""Unpack downloaded archives without trusting them: only regular files and folders, only inside one folder."""

from __future__ import annotations

import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple, TypeVar

from edgeface.errors import ArchiveError
from edgeface.zoo.schema import relative_path

Format = Literal["zip", "tar", "gztar"]
_T = TypeVar("_T")

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, ValueError, NotImplementedError)
"""What zipfile and tarfile raise for archives that are cut, altered or of a kind they do not know."""


# An archive may not become larger: the largest download of the zoo unpacks to under 300 MB. Weights hardly compress,
# and text by less than 20; a zip bomb reaches 1000. What stays below the floor is let through whatever its ratio.
LARGEST_TOTAL = 8 << 30
MOST_FILES = 20_000
LARGEST_RATIO, RATIO_FLOOR = 200, 16 << 20


class _Member(NamedTuple):
    name: str
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, *, format: Format) -> None:
    """Unpack `archive` into `folder`, which the caller made for this and removes when this fails.

    Neither its names nor its sizes nor its types are trusted, and files that are already there are not overwritten.
    `format` is ``zip``, ``tar``, or ``gztar`` (a gzip-compressed tar), as Open Model Zoo names them.

    Raises ArchiveError if the archive is damaged, encrypted, too large, or names an absolute path, a parent, a link,
    a device, or a file twice; OSError if the folder cannot be written.
    """
    unpacking = _Unpacking(archive, folder)
    members = _zip_members(archive) if format == "zip" else _tar_members(archive, format)
    try:
        for member in members:
            unpacking.add(member)
    except _DAMAGED as error:
        raise ArchiveError(f"{archive}: expected an intact {format} archive: {error}") from error


@dataclass(slots=True)
class _Unpacking:
    """Writes members, counting what was really unpacked: the sizes that an archive declares may be wrong."""

    archive: Path
    folder: Path
    bytes: int = 0
    names: set[PurePosixPath] = field(default_factory=set)

    def add(self, member: _Member) -> None:
        try:
            path = PurePosixPath(relative_path(member.name))
        except ValueError as error:
            raise ArchiveError(f"{self.archive}: {error}, found {member.name!r}") from None
        if len(self.names) == MOST_FILES:
            raise ArchiveError(f"{self.archive}: expected at most {MOST_FILES:,} files, found more")
        if path in self.names:
            raise ArchiveError(f"{self.archive}: expected each file once, found {path} twice")
        self.names.add(path)
        try:
            if member.is_folder:
                (self.folder / path).mkdir(parents=True, exist_ok=True)
            else:
                self._write(member, self.folder / path)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise ArchiveError(f"{self.archive}: {member.name!r} is a file and a folder at once") from None

    def _write(self, member: _Member, target: Path) -> None:
        packed = _reading(self.archive, member.open)
        assert packed is not None  # tarfile gives None for links only, which were refused before
        target.parent.mkdir(parents=True, exist_ok=True)
        with packed, target.open("xb") as unpacked:
            while chunk := _reading(self.archive, lambda: packed.read(1 << 20)):
                self._count(len(chunk))
                unpacked.write(chunk)

    def _count(self, count: int) -> None:
        self.bytes += count
        if self.bytes > LARGEST_TOTAL:
            raise ArchiveError(f"{self.archive}: expected at most {LARGEST_TOTAL:,} bytes unpacked, found more")
        packed = max(self.archive.stat().st_size, 1)
        if self.bytes > max(RATIO_FLOOR, LARGEST_RATIO * packed):
            raise ArchiveError(
                f"{self.archive}: {packed:,} bytes unpack to more than {LARGEST_RATIO} times as many: "
                "refused as a decompression bomb"
            )


def _reading(archive: Path, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except OSError as error:  # gzip and tarfile raise it for damaged input; it is not the disk
        raise ArchiveError(f"{archive}: expected an intact archive: {error}") from error


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(
                    f"{path}: expected files and folders only, found {info.filename!r}, a link or device"
                )
            if info.flag_bits & 0x1:
                raise ArchiveError(f"{path}: expected no encryption, found {info.filename!r} encrypted")
            name = info.orig_filename  # as stored: zipfile cuts names at NUL, and turns backslashes on Windows
            yield _Member(name, name.endswith("/"), partial(archive.open, info))


def _tar_members(path: Path, format: Format) -> Iterator[_Member]:
    with _reading(path, lambda: tarfile.open(path, "r:gz" if format == "gztar" else "r:")) as archive:
        while (info := _reading(path, archive.next)) is not None:
            if not (info.isfile() or info.isdir()):
                raise ArchiveError(f"{path}: expected files and folders only, found {info.name!r}, a link or device")
            yield _Member(info.name, info.isdir(), partial(archive.extractfile, info))
