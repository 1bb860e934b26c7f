"""Read what is uploaded for bulk enrolment: a ZIP archive with one folder a person, or NDJSON with a photo a line."""

from __future__ import annotations

import abc
import io
import stat
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

from edgeface.errors import GalleryError, ImageError, InputError
from edgeface.gallery.records import check_name
from edgeface.serve.bodies import decode_base64, parse_object
from edgeface.serve.problems import Problem
from edgeface.serve.settings import Limits
from edgeface.text import printable
from edgeface.untrusted import open_zip, reading
from edgeface.vision.formats import HEAD, kind_of
from edgeface.vision.listing import is_litter

UploadKind = Literal["zip", "ndjson"]
PERSON_PHOTOS = 256
"""Most photos of one person in a job: all pairs of them are compared."""
_LINE_EXTRA = 64 << 10
"""Of a line, beside the photo in base64."""


@dataclass(frozen=True, slots=True)
class JobPhoto:
    """A photo of an upload: its name there, and where it is."""

    name: str
    place: int
    size: int


class JobPhotos(abc.ABC):
    """The photos of an upload. To be made by `open_photos`.

    Attributes
    ----------
    people
        Photos by the name of their person, in the order of first photos.
    left_out
        How many files are no photos: hidden, written by a system, or something else.
    """

    def __init__(self, limits: Limits) -> None:
        self.people: dict[str, list[JobPhoto]] = {}
        self.left_out, self._limits, self._count = 0, limits, 0

    def add(self, person: str, photo: JobPhoto) -> None:
        """Count a photo."""
        try:
            photos = self.people.setdefault(check_name(person), [])
        except GalleryError as error:
            raise _refused("bad-name", f"{photo.name!r:.200}: {error}") from None
        photos.append(photo)
        self._count += 1
        if self._count > self._limits.job_photos:
            raise _refused("too-many-photos", f"expected at most {self._limits.job_photos} photos, found more")
        if len(photos) > PERSON_PHOTOS:
            raise _refused(
                "too-many-photos", f"{person!r:.80}: expected at most {PERSON_PHOTOS} photos of a person, found more"
            )

    @property
    def photos(self) -> int:
        """How many there are."""
        return self._count

    @abc.abstractmethod
    def read(self, photo: JobPhoto) -> bytes:
        """Return the file of a photo; ImageError if it is damaged, or too large."""

    def _require_size(self, photo: JobPhoto) -> None:
        if photo.size > self._limits.image_bytes:
            raise ImageError(
                f"{photo.name}: expected an image of at most {self._limits.image_bytes} bytes, found {photo.size}"
            )


def open_photos(file: BinaryIO, kind: UploadKind, limits: Limits) -> JobPhotos:
    """List the photos of an upload.

    Raises
    ------
    Problem
        422 if the upload is not what it should be as a whole: damaged, encrypted, a decompression bomb; with paths that
        lead out of it, links or names that are there twice; with a photo that is no person's, a person who cannot have
        that name, or more photos than the limit; or without any.
    """
    try:
        with reading("upload", f"an upload of the type {kind}"):
            photos = _Zip(file, limits) if kind == "zip" else _Lines(file, limits)
    except InputError as error:
        raise _refused("bad-upload", str(error)) from error
    if not photos.photos:
        raise _refused("missing-photo", f"expected photos in the upload, found none; {photos.left_out} are left out")
    return photos


def _refused(code: str, detail: str) -> Problem:
    return Problem(422, code, detail)


class _Zip(JobPhotos):
    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        super().__init__(limits)
        self._archive = open_zip(file)
        self._members = self._archive.infolist()
        seen, unpacked = set[str](), 0
        for place, member in enumerate(self._members):
            path = _checked_path(member)
            key = unicodedata.normalize("NFC", member.filename)
            if key in seen:
                raise InputError(expected="names that are there once", found=f"{member.filename!r:.200} twice")
            seen.add(key)
            unpacked += member.file_size  # zipfile never returns more of a member than it says here
            if unpacked > limits.job_unpacked:
                raise InputError(
                    expected=f"at most {limits.job_unpacked} bytes unpacked", found="more", remedy="send several jobs"
                )
            if not member.is_dir():
                self._judge(place, member, path)

    def _judge(self, place: int, member: zipfile.ZipInfo, path: PurePosixPath) -> None:
        """Count a file as a photo or as litter, as `list_people` does."""
        if any(is_litter(PurePosixPath(part)) for part in path.parts):
            self.left_out += 1
            return
        with self._archive.open(member) as file:
            kind = kind_of(file.read(HEAD), path.suffix.lower())
        if kind is None:
            self.left_out += 1
            return
        if len(path.parts) < 2:
            raise InputError(
                expected="one folder for each person (NAME/photo.jpg)", found=f"{member.filename!r:.200} in none"
            )
        self.add(path.parts[0], JobPhoto(str(path), place, member.file_size))

    def read(self, photo: JobPhoto) -> bytes:
        self._require_size(photo)
        try:
            with reading(photo.name, "an image file"), self._archive.open(self._members[photo.place]) as file:
                return file.read(photo.size)
        except InputError as error:
            raise ImageError(str(error)) from error


def _checked_path(member: zipfile.ZipInfo) -> PurePosixPath:
    """Return the path of a member; InputError unless it is a plain file or folder inside of the archive."""
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise InputError(expected="files and folders", found=f"{name!r:.200}, a link or a device")
    parts = name.removesuffix("/").split("/")
    inside = all(part and part.strip() not in (".", "..") for part in parts)
    if not inside or "\\" in name or ":" in parts[0][:2] or member.orig_filename != name or printable(name) != name:
        raise InputError(expected="paths inside the archive, with / between folders", found=f"{name!r:.200}")
    return PurePosixPath(name)


class _Lines(JobPhotos):
    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        super().__init__(limits)
        self._file, self._most = file, limits.image_bytes * 4 // 3 + _LINE_EXTRA
        place, number = 0, 0
        while line := file.readline(self._most + 1):
            number += 1
            if len(line) > self._most:
                raise InputError(expected=f"lines of at most {self._most} bytes", found=f"line {number} longer")
            if line.strip():
                person = self._read(line, number)[0]
                self.add(person, JobPhoto(f"line {number}", place, len(line)))
            place += len(line)

    @staticmethod
    def _read(line: bytes, number: int) -> tuple[str, str]:
        try:
            given = parse_object(line)
        except Problem as problem:
            raise InputError(expected="a JSON object a line", found=f"in line {number}: {problem}") from None
        person, photo = given.pop("person", None), given.pop("photo", None)
        if given or not isinstance(person, str) or not isinstance(photo, str):
            raise InputError(expected="an object of 'person' and 'photo'", found=f"another one in line {number}")
        return person, photo

    def read(self, photo: JobPhoto) -> bytes:
        self._file.seek(photo.place, io.SEEK_SET)
        line = self._file.read(photo.size)
        try:
            data = decode_base64(self._read(line, 0)[1], photo.name)
        except Problem as problem:
            raise ImageError(str(problem)) from None
        self._require_size(JobPhoto(photo.name, photo.place, len(data)))
        return data
