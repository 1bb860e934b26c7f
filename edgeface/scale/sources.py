"""List the photos of folders, of lists (CSV, Parquet) and of tar shards, and read one wherever it lies."""

from __future__ import annotations

import csv
import glob
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

from edgeface.errors import ExtraNotInstalledError, ImageError, InputError
from edgeface.untrusted import open_regular, reading
from edgeface.vision.formats import IMAGE_SUFFIXES
from edgeface.vision.image import DecodedFile, ImageLimits, decode_photo, read_photo_file
from edgeface.vision.listing import is_litter, list_photos
from edgeface.zoo.archive import tar_members

_LISTS = (".csv", ".parquet")
_SHARD = ".tar"
_COLUMN = "path"
_LIMITS = ImageLimits()
_SECOND = 1_000_000_000
_LATEST = (1 << 63) / _SECOND
"""Seconds since 1970 whose nanoseconds a table can hold."""


class PhotoPlace(NamedTuple):
    """Where a photo's bytes lie.

    Attributes
    ----------
    source
        Its name in the table: the file's path; of a member of a shard, the shard's path, ``/``, and its name there.
    file, offset
        The absolute path, and where the bytes begin in it; -1: they are the whole file.
    size, modified
        Bytes, -1 if the file is absent; modification time in nanoseconds since 1970.
    """

    source: str
    file: str
    offset: int
    size: int
    modified: int


@dataclass(frozen=True, slots=True, eq=False)
class PhotoPlaces:
    """What `list_places` found: photos, each source once, in order; and as in `edgeface.vision.listing.PhotoList`."""

    photos: list[PhotoPlace]
    failures: dict[Path, str] = field(default_factory=dict)
    left_out: dict[Path, str] = field(default_factory=dict)


def list_places(places: Sequence[str | Path], *, output: Path | None = None) -> PhotoPlaces:
    """List the photos of files, folders and patterns, as `list_photos` does; of lists of paths; and of tar shards.

    Parameters
    ----------
    places
        A .csv or .parquet is a list: its column ``path`` names photos; relative paths begin at the list's folder.
        A .tar, or a pattern that ends in it, is a shard, as WebDataset writes them: its members whose names end as
        photos' do. Anything else is for `list_photos`.
    output
        Holds results, which do not count.

    Raises
    ------
    InputError
        If a place does not exist, is damaged as a whole, or there is no photo in all of them.
    """
    found = PhotoPlaces([])
    kinds = {place: Path(place).suffix.lower() for place in places}
    known: dict[str, PhotoPlace] = {}
    for place, kind in kinds.items():
        if kind in _LISTS:
            listed = _listed(Path(place))
        elif kind == _SHARD:
            listed = _in_shards(str(place), found.failures)
        else:
            photos = list_photos([place], output=output)
            found.failures.update(photos.failures)
            found.left_out.update(photos.left_out)
            listed = map(_whole_file, photos.files)
        for photo in listed:
            first = known.setdefault(photo.source, photo)
            if first.offset != photo.offset:
                found.left_out[Path(photo.source)] = "an earlier entry of its shard has this name"
    found.photos.extend(known.values())
    if not known and not found.failures:
        raise InputError(path=places[0] if places else None, expected="photos", found="none")
    return found


def read_place(place: PhotoPlace, *, reduced: int = 1) -> DecodedFile:
    """Read a photo as `read_photo_file` does; ImageError, which names the source, if it cannot be."""
    try:
        if place.offset < 0:
            return read_photo_file(Path(place.file), reduced=reduced)
        with open_regular(Path(place.file)) as file:
            file.seek(place.offset)
            content = file.read(min(place.size, _LIMITS.max_bytes + 1))
            return decode_photo(content, place.modified, reduced=reduced)
    except ImageError as error:
        reason = str(error).removeprefix(f"{place.file}: ")
        raise ImageError(f"{place.source}: {reason}", path=place.source) from error
    except (OSError, InputError) as error:
        raise ImageError(f"{place.source}: cannot read: {error}", path=place.source) from error


def _whole_file(path: Path) -> PhotoPlace:
    try:
        status = path.stat()
    except (OSError, ValueError):  # reading it will say why
        return PhotoPlace(str(path), str(path.absolute()), -1, -1, 0)
    return PhotoPlace(str(path), str(path.absolute()), -1, status.st_size, status.st_mtime_ns)


def _listed(path: Path) -> Iterator[PhotoPlace]:
    for name in _names_in_parquet(path) if path.suffix.lower() == ".parquet" else _names_in_csv(path):
        if name:
            yield _whole_file(path.parent / name)


def _names_in_csv(path: Path) -> Iterator[str]:
    with reading(path, f"a list of photos in CSV, with a column {_COLUMN!r}"), open_regular(path) as file:
        rows = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=""))
        if _COLUMN not in (rows.fieldnames or ()):
            raise InputError(found=f"the columns {', '.join(map(str, rows.fieldnames or ())):.200}", remedy="add it")
        for row in rows:
            yield row[_COLUMN] or ""


def _names_in_parquet(path: Path) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ExtraNotInstalledError("parquet", needed_for="a .parquet file") from error
    with reading(path, f"a list of photos in Parquet, with a column {_COLUMN!r} of text"), open_regular(path) as file:
        for batch in parquet.ParquetFile(file).iter_batches(columns=[_COLUMN]):
            if not batch.num_columns:
                raise InputError(found="none of that name", remedy="add it")
            for name in batch.column(0).to_pylist():
                if not isinstance(name, str | None):
                    raise InputError(found=type(name).__name__, remedy="write it as text")
                yield name or ""


def _in_shards(pattern: str, failures: dict[Path, str]) -> Iterator[PhotoPlace]:
    matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    if not matches:
        raise InputError(path=pattern, expected="a tar shard of photos", found="none", remedy="check the path")
    for path in map(Path, matches):
        try:
            yield from _members(path)
        except InputError as error:
            failures[path] = str(error).removeprefix(f"{path}: ")


def _members(path: Path) -> Iterator[PhotoPlace]:
    with tar_members(path, compressed=False, expected="a tar shard of photos, not compressed") as (archive, members):
        for each in members:
            name = PurePath(each.name)
            photo = each.isfile() and each.sparse is None and name.suffix.lower() in IMAGE_SUFFIXES
            if photo and not is_litter(name):
                modified = int(each.mtime * _SECOND) if abs(each.mtime) < _LATEST else 0  # nor is nan
                yield PhotoPlace(
                    str(Path(f"{path}/{each.name}")), str(path.absolute()), each.offset_data, each.size, modified
                )
        with reading(path, "a whole tar shard"), open_regular(path) as file:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes it for whole
                raise InputError(found="one that ends early")
