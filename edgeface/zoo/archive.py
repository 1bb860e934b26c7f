"""An archive from a stranger in; regular files inside one folder, and nothing else, out."""

from __future__ import annotations

import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from edgeface.errors import ArchiveError
from edgeface.zoo.files import CHUNK, writing
from edgeface.zoo.schema import relative_path

Format = Literal["zip", "tar", "gztar"]


_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    NotImplementedError,
)
"""What zipfile and tarfile raise for archives that are cut, altered or of a kind they do not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may become.

    Attributes
    ----------
    total_bytes
        Of all unpacked files; the largest download of the zoo unpacks to under 300 MB.
    files
        How many files and folders.
    ratio
        Unpacked bytes for each byte of the archive. Weights hardly compress and text not beyond 20; a zip
        bomb reaches 1000. Archives that stay below `ratio_floor` bytes are let through.
    """

    total_bytes: int = 8 << 30
    files: int = 20_000
    ratio: int = 200
    ratio_floor: int = 16 << 20


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


@dataclass(slots=True)
class _Budget:
    """Counts what was really unpacked; the sizes that an archive declares may lie."""

    archive: Path
    limits: Limits
    bytes: int = 0
    files: int = 0
    names: set[PurePosixPath] = field(default_factory=set)

    def add_member(self, path: PurePosixPath) -> None:
        self.files += 1
        if self.files > self.limits.files:
            raise ArchiveError(f"{self.archive}: expected at most {self.limits.files:,} files, found more")
        if path in self.names:
            raise ArchiveError(f"{self.archive}: expected each file once, found {path} twice")
        self.names.add(path)

    def add_bytes(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.limits.total_bytes:
            raise ArchiveError(
                f"{self.archive}: expected at most {self.limits.total_bytes:,} bytes unpacked, found more"
            )
        packed = max(self.archive.stat().st_size, 1)
        if self.bytes > max(self.limits.ratio_floor, self.limits.ratio * packed):
            raise ArchiveError(
                f"{self.archive}: {packed:,} bytes unpack to more than {self.limits.ratio} times as many: "
                "refused as a decompression bomb"
            )


def unpack(archive: Path, folder: Path, *, format: Format, limits: Limits = Limits()) -> None:
    """Unpack `archive` into `folder`, which the caller made for this and removes when this fails.

    Parameters
    ----------
    archive
        Nothing of it is trusted: neither names nor sizes nor types.
    folder
        A temporary folder; files that are already in it are never overwritten.
    format
        ``zip``, ``tar``, or ``gztar`` (a gzip-compressed tar), Open Model Zoo's words.
    limits
        How much it may unpack to.

    Raises
    ------
    ArchiveError
        If the archive is damaged, encrypted, too large, or names an absolute path, a parent, a link, a
        device, or a file twice.
    OutputError
        If the folder cannot be written.
    """
    members = _zip_members(archive) if format == "zip" else _tar_members(archive, format)
    budget = _Budget(archive, limits)
    with closing(members):
        while True:
            try:
                member = next(members, None)
                if member is None:
                    return
                _unpack_member(member, folder, budget)
            except _DAMAGED as error:
                raise ArchiveError(f"{archive}: expected an intact {format} archive: {error}") from error


def _unpack_member(member: _Member, folder: Path, budget: _Budget) -> None:
    try:
        relative = PurePosixPath(relative_path(member.name))
    except ValueError as error:
        raise ArchiveError(f"{budget.archive}: {error}, found {member.name!r}") from None
    budget.add_member(relative)
    target = folder / relative
    with writing(target):
        try:
            if member.is_folder:
                target.mkdir(parents=True, exist_ok=True)
            else:
                _write_member(member, target, budget)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise ArchiveError(
                f"{budget.archive}: expected names that do not collide, found {member.name!r}"
            ) from None


def _write_member(member: _Member, target: Path, budget: _Budget) -> None:
    try:
        packed = member.open()
    except OSError as error:
        raise ArchiveError(f"{budget.archive}: expected an intact archive: {error}") from error
    assert packed is not None  # tarfile gives None for links only, which never come this far
    with packed:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as unpacked:
            while chunk := _read(packed, budget.archive):
                budget.add_bytes(len(chunk))
                unpacked.write(chunk)


def _read(packed: IO[bytes], archive: Path) -> bytes:
    try:
        return packed.read(CHUNK)
    except OSError as error:  # gzip and tarfile say so of damaged input; it is not the disk
        raise ArchiveError(f"{archive}: expected an intact archive: {error}") from error


def _zip_members(path: Path) -> Generator[_Member, None, None]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(
                    f"{path}: expected files and folders only, found {info.filename!r}, a link or device"
                )
            if info.flag_bits & 0x1:
                raise ArchiveError(f"{path}: expected no encryption, found {info.filename!r} encrypted")
            yield _Member(
                # as stored: zipfile quietly cuts names at NUL, and turns backslashes on Windows
                info.orig_filename,
                info.file_size,
                info.orig_filename.endswith("/"),
                lambda info=info: archive.open(info),  # type: ignore[misc]
            )


def _tar_members(path: Path, format: Format) -> Generator[_Member, None, None]:
    try:
        with tarfile.open(path, "r:gz" if format == "gztar" else "r:") as archive:
            for info in archive:
                if not (info.isfile() or info.isdir()):
                    raise ArchiveError(
                        f"{path}: expected files and folders only, found {info.name!r}, a link or device"
                    )
                yield _Member(
                    info.name,
                    info.size,
                    info.isdir(),
                    lambda info=info: archive.extractfile(info),  # type: ignore[misc]
                )
    except OSError as error:
        raise ArchiveError(f"{path}: expected an intact {format} archive: {error}") from error
