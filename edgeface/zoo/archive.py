"""Unpack downloaded archives without trusting them: only regular files and folders, only inside one folder."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, cast

from edgeface.errors import ArchiveError
from edgeface.untrusted import (
    ARCHIVE_BYTES,
    ARCHIVE_FILES,
    ARCHIVE_FLOOR,
    ARCHIVE_RATIO,
    DEEPEST,
    HEADER_BYTES,
    Metered,
    open_regular,
    open_zip,
    reading,
)
from edgeface.zoo.schema import relative_path

Format = Literal["zip", "tar", "gztar"]
_LONGEST_NAME = 255  # bytes, of Linux's file systems


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
    for member in _zip_members(archive) if format == "zip" else _tar_members(archive, compressed=format == "gztar"):
        unpacking.add(member)


@dataclass(slots=True)
class _Unpacking:
    """Writes members, counting what was really unpacked: the sizes that an archive declares may be wrong."""

    archive: Path
    folder: Path
    written: int = 0
    names: set[PurePosixPath] = field(default_factory=set)

    def add(self, member: _Member) -> None:
        try:
            path = PurePosixPath(relative_path(member.name))
        except ValueError as error:
            raise ArchiveError(f"{self.archive}: {error}, found {member.name!r:.200}") from None
        if len(path.parts) > DEEPEST or max(len(os.fsencode(part)) for part in (*path.parts, "")) > _LONGEST_NAME:
            raise ArchiveError(
                f"{self.archive}: expected names of at most {_LONGEST_NAME} bytes in at most {DEEPEST} folders, found "
                f"{member.name!r:.200}"
            )
        if len(self.names) == ARCHIVE_FILES:
            raise ArchiveError(f"{self.archive}: expected at most {ARCHIVE_FILES:,} files, found more")
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
        with intact(self.archive):
            packed = member.open()
        assert packed is not None  # tarfile gives None for links only, which were refused before
        target.parent.mkdir(parents=True, exist_ok=True)
        with packed, target.open("xb") as unpacked:
            while chunk := self._read(packed):
                self._count(len(chunk))
                unpacked.write(chunk)

    def _read(self, packed: IO[bytes]) -> bytes:
        with intact(self.archive):
            return packed.read(1 << 20)

    def _count(self, count: int) -> None:
        self.written += count
        if self.written > ARCHIVE_BYTES:
            raise ArchiveError(f"{self.archive}: expected at most {ARCHIVE_BYTES:,} bytes unpacked, found more")
        packed = max(self.archive.stat().st_size, 1)
        if self.written > max(ARCHIVE_FLOOR, ARCHIVE_RATIO * packed):
            raise ArchiveError(
                f"{self.archive}: {packed:,} bytes unpack to more than {ARCHIVE_RATIO} times as many: "
                "refused as a decompression bomb"
            )


def intact(path: Path, expected: str = "an intact archive") -> contextlib.AbstractContextManager[None]:
    """Turn what a damaged archive makes its parser raise into an ArchiveError."""
    return reading(path, expected, error=ArchiveError, remedy="download it again")


def _zip_members(path: Path) -> Iterator[_Member]:
    with contextlib.ExitStack() as opened:
        with intact(path):
            archive = opened.enter_context(open_zip(opened.enter_context(open_regular(path))))
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(
                    f"{path}: expected files and folders only, found {info.filename!r}, a link or device"
                )
            name = info.orig_filename  # as stored: zipfile cuts names at NUL, and turns backslashes on Windows
            yield _Member(name, name.endswith("/"), partial(archive.open, info))


def _tar_members(path: Path, *, compressed: bool) -> Iterator[_Member]:
    with tar_members(path, compressed=compressed) as (archive, members):
        for info in members:
            if not (info.isfile() or info.isdir()):
                raise ArchiveError(f"{path}: expected files and folders only, found {info.name!r}, a link or device")
            yield _Member(info.name, info.isdir(), partial(archive.extractfile, info))


@contextlib.contextmanager
def tar_members(
    path: Path, *, expected: str = "an intact archive", compressed: bool = False
) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
    """Open a tar archive, and list its members one by one; raise ArchiveError if it is damaged.

    Their headers are read within `HEADER_BYTES` each: a compressed megabyte can hold a name of a gigabyte.
    """
    with contextlib.ExitStack() as opened:
        with intact(path, expected):
            file: IO[bytes] = opened.enter_context(open_regular(path))
            if compressed:
                file = cast(IO[bytes], opened.enter_context(gzip.GzipFile(fileobj=file)))
            metered: Any = Metered(file)
            metered.left = HEADER_BYTES
            archive = opened.enter_context(tarfile.TarFile(fileobj=metered))  # reads the first header

        def members() -> Iterator[tarfile.TarInfo]:
            while True:
                with intact(path):
                    metered.left = HEADER_BYTES
                    info = archive.next()
                    metered.left = math.inf
                if info is None:
                    return
                yield info

        yield archive, members()
