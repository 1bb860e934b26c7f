"""Folders of photographs in, faces or aligned crops out, in batches that fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2

from edgeface.contract import Alignment
from edgeface.errors import FaceError, ImageError, InputError, OutputError
from edgeface.files import write_atomically
from edgeface.vision.align import align
from edgeface.vision.detect import Detector, Faces
from edgeface.vision.image import Image, read_image
from edgeface.vision.source import find_files

__all__ = ["CropReport", "Detection", "Photo", "align_photos", "detect_photos", "find_photos", "write_png"]

_BATCH, _BATCH_PIXELS = 32, 1 << 24
"""Images, and pixels of all of them, that are held at a time."""


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


def find_photos(places: Sequence[str | Path]) -> list[Photo]:
    """Find the images that files, folders and shell patterns name, each once.

    Raises
    ------
    InputError
        If a place names nothing.
    """
    photos: dict[Path, Photo] = {}
    for place in places:
        root = Path(place)
        for path in find_files(place):
            relative = path.relative_to(root) if root.is_dir() else Path(path.name)
            photos.setdefault(path, Photo(path, relative))
    return list(photos.values())


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

    Where a photo has several faces it is the one of `Faces.largest`. Two photos whose crops would have the same
    name do not overwrite each other: the second one is a failure.

    Raises
    ------
    OutputError
        If a crop cannot be written.
    """
    report = CropReport()
    for detection in detect_photos(photos, detector, failures=report.failures):
        photo, image, faces = detection.photo, detection.image, detection.faces
        target = output / photo.relative.with_suffix(".png")
        try:
            if target in report.written:
                raise InputError(f"another photo's crop is already called {target.name}")
            chosen = faces.largest(image.shape[:2])
            crop = align(image, faces.boxes[chosen], faces.landmarks[chosen], alignment, size)
        except (FaceError, InputError) as error:
            report.failures[photo.path] = str(error)
        else:
            write_png(target, crop)
            report.written.append(target)
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
