"""Folders of photographs in, faces or aligned crops out, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import cv2

from edgeface.errors import ImageError, InputError, OutputError
from edgeface.files import write_atomically
from edgeface.model.contract import Alignment
from edgeface.vision.align import align
from edgeface.vision.detector import Detector, Faces
from edgeface.vision.image import Image, read_image
from edgeface.vision.source import find_files

__all__ = [
    "CropReport",
    "Detection",
    "Photo",
    "PictureFolder",
    "align_photos",
    "detect_photos",
    "find_photos",
    "list_some",
    "write_png",
]

_BATCH, _BATCH_PIXELS = 32, 1 << 24
"""Images, and pixels of all of them, that are held at a time."""
_SOME = 5
"""Failures that one message names."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A file, and its path below the place that was asked for, under which results are kept."""

    path: Path
    relative: Path


@dataclass(frozen=True, slots=True)
class Detection:
    """One readable photo and its faces."""

    photo: Photo
    image: Image
    faces: Faces


@dataclass(slots=True)
class CropReport:
    """What `align_photos` did: crops written, and the reason for every photo that has none."""

    written: list[Path] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)


def find_photos(places: Sequence[str | Path], *, output: Path | None = None) -> list[Photo]:
    """Find the images that files, folders and shell patterns name, each once.

    Parameters
    ----------
    places
        To search.
    output
        Where results will be written. If it lies inside a folder that is searched, what is in it was written by an
        earlier run, and is no photo.

    Raises
    ------
    InputError
        If a place names nothing.
    """
    photos: dict[Path, Photo] = {}
    written = output.resolve() if output else None
    for place in places:
        root, found = Path(place), find_files(place)
        is_folder = root.is_dir()
        if is_folder and written and root.resolve() in written.parents:
            found = [path for path in found if written not in path.resolve().parents]
        if not found:
            raise InputError(f"{place}: expected photos beside those in {output}, found none")
        for path in found:
            photos.setdefault(path, Photo(path, path.relative_to(root) if is_folder else Path(path.name)))
    return list(photos.values())


class PictureFolder:
    """Keeps pictures made of photos, by the photos' names, and never over a photo or over each other.

    Parameters
    ----------
    root
        The folder; made when the first picture is written.
    photos
        That must not be overwritten.
    """

    def __init__(self, root: Path, photos: Iterable[Photo]) -> None:
        self._root = root
        self._photos = {photo.path.resolve() for photo in photos}
        self._written: set[Path] = set()

    def write(self, photo: Photo, image: Image) -> Path:
        """Write the picture made of a photo as PNG, whole or not at all.

        Returns
        -------
        Path
            Where it is: below the folder as the photo is below the place that was searched.

        Raises
        ------
        InputError
            If a photo is there already, or the picture of another one.
        OutputError
            If it cannot be written.
        """
        target = self._root / photo.relative.with_suffix(".png")
        if target in self._written:
            raise InputError(f"another photo's picture is already called {target}")
        if target.resolve() in self._photos:
            raise InputError(f"{target} is a photo, which is not overwritten; choose another output folder")
        write_png(target, image)
        self._written.add(target)
        return target


def detect_photos(
    photos: Iterable[Photo], detector: Detector, *, failures: dict[Path, str]
) -> Iterator[Detection]:
    """Detect faces in every photo that can be read, in order; the others go into `failures` with the reason."""
    for batch in _read_batches(photos, failures):
        faces = detector.detect([image for _, image in batch])
        for (photo, image), found in zip(batch, faces, strict=True):
            yield Detection(photo, image, found)


def align_photos(
    photos: Sequence[Photo], output: Path, detector: Detector, alignment: Alignment, size: tuple[int, int]
) -> Iterator[CropReport]:
    """Write the aligned face of every photo below `output` as PNG, and yield the report after each.

    Where a photo has several faces it is the one of `Faces.largest`. What `PictureFolder` refuses to write is a
    failure.

    Raises
    ------
    OutputError
        If a crop cannot be written.
    """
    report, folder = CropReport(), PictureFolder(output, photos)
    for detection in detect_photos(photos, detector, failures=report.failures):
        image, faces = detection.image, detection.faces
        try:
            chosen = faces.largest(image.shape[:2])
            crop = align(image, faces.boxes[chosen], faces.landmarks[chosen], alignment, size)
            report.written.append(folder.write(detection.photo, crop))
        except OutputError:
            raise
        except InputError as error:
            report.failures[detection.photo.path] = str(error)
        yield report


def write_png(path: Path, image: Image) -> None:
    """Write an image whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise OutputError(f"{path}: OpenCV cannot encode this image as PNG")
    with write_atomically(path) as staged:
        staged.write_bytes(data.tobytes())


def list_some(failures: Mapping[Path, str]) -> str:
    """The first of many failures, for an error's one line."""
    named = "; ".join(f"{path}: {why}" for path, why in islice(failures.items(), _SOME))
    return named + (f"; and {len(failures) - _SOME:,} more" if len(failures) > _SOME else "")


def _read_batches(photos: Iterable[Photo], failures: dict[Path, str]) -> Iterator[list[tuple[Photo, Image]]]:
    batch: list[tuple[Photo, Image]] = []
    pixels = 0
    for photo in photos:
        try:
            image = read_image(photo.path)
        except ImageError as error:
            failures[photo.path] = str(error).removeprefix(f"{photo.path}: ")
            continue
        batch.append((photo, image))
        pixels += image.shape[0] * image.shape[1]
        if len(batch) == _BATCH or pixels >= _BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch
