"""Detect and align the faces of many photos, in batches that fit into memory, and write the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeface.errors import ImageError, InputError, OutputError
from edgeface.files import write_atomically
from edgeface.model.contract import Alignment
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.vision.align import align
from edgeface.vision.detector import Detector, Faces
from edgeface.vision.image import Image, read_image
from edgeface.vision.listing import Photo

_BATCH, _BATCH_PIXELS = 32, 1 << 24
"""Most photos, and pixels of all of them, in memory at a time."""
_SOME = 5
"""Most failures that a message names."""
_GREEN, _WHITE, _BLACK = (80, 200, 60), (255, 255, 255), (20, 20, 20)
_FRACTION = 16
"""With `shift=4` OpenCV draws at sixteenths of a pixel."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One readable photo and its faces."""

    photo: Photo
    image: Image
    faces: Faces

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types, without pixels: path, width, height, and box, landmarks and score of each face.

        Faces come from left to right, as `FaceAnalyzer.analyze` numbers them.
        """
        height, width = self.image.shape[:2]
        faces = [
            {
                "box": np.round(box.astype(float), 2).tolist(),
                "landmarks": np.round(points.astype(float), 2).tolist() if np.isfinite(points).all() else None,
                "score": round(float(score), 6),
            }
            for box, points, score in sorted(
                zip(self.faces.boxes, self.faces.landmarks, self.faces.scores, strict=True),
                key=lambda face: float(face[0][0]),
            )
        ]
        return {"path": str(self.photo.path), "width": width, "height": height, "faces": faces}


@dataclass(slots=True)
class CropReport:
    """Result of `align_photos`: the crops written, and the reason for each photo without one."""

    written: list[Path] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)


class ImageFolder:
    """Writes images into a folder under the names of their photos; never over one of `photos` or another result."""

    def __init__(self, root: Path, photos: Iterable[Photo]) -> None:
        self._root = root
        self._photos = {photo.path.resolve() for photo in photos}
        self._written: set[Path] = set()

    def write(self, photo: Photo, image: Image) -> Path:
        """Write the image made from a photo as PNG, below the folder as the photo is below the place searched.

        Raises
        ------
        InputError
            If a photo, or the result of another photo, has that name.
        OutputError
            If it cannot be written.
        """
        target = self._root / photo.relative.with_suffix(".png")
        if target in self._written:
            raise InputError(f"{target}: the result of another photo would get the same name")
        if target.resolve() in self._photos:
            raise InputError(f"{target}: this is a photo and is not overwritten; choose another output folder")
        write_png(target, image)
        self._written.add(target)
        return target


def detect_photos(
    photos: Iterable[Photo], detector: Detector, *, failures: dict[Path, str], drawn: ImageFolder | None = None
) -> Iterator[Detection]:
    """Detect faces in every photo that can be read, in order.

    `failures` gets the reason for each photo that cannot be read, that the detector refuses, or whose drawing `drawn`
    refuses; `drawn` gets a copy of each photo with its faces marked.

    Raises
    ------
    OutputError
        If a drawing cannot be written.
    """
    for batch in _read_batches(photos, failures):
        for photo, image, found in _detect(batch, detector, failures):
            if drawn:
                try:
                    drawn.write(photo, draw_faces(image, found))
                except OutputError:  # also an InputError
                    raise
                except InputError as error:
                    failures[photo.path] = str(error)
            yield Detection(photo, image, found)


def _detect(
    batch: Sequence[tuple[Photo, Image]], detector: Detector, failures: dict[Path, str]
) -> Iterator[tuple[Photo, Image, Faces]]:
    try:
        faces = detector.detect([image for _, image in batch])
    except ImageError as error:
        if len(batch) == 1:
            failures[batch[0][0].path] = str(error)
            return
        for each in batch:  # one photo fails no other
            yield from _detect([each], detector, failures)
        return
    for (photo, image), found in zip(batch, faces, strict=True):
        yield photo, image, found


def align_photos(
    photos: Sequence[Photo],
    output: Path,
    detector: Detector,
    alignment: Alignment,
    size: tuple[int, int],
    *,
    progress: ProgressCallback = ignore_progress,
) -> CropReport:
    """Write the aligned `Faces.largest` of every photo below `output` as PNG.

    Raises
    ------
    OutputError
        If a crop cannot be written.
    """
    report, folder = CropReport(), ImageFolder(output, photos)
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
        progress(Progress("aligning", len(report.written) + len(report.failures), len(photos), "photos"))
    return report


def write_png(path: Path, image: Image) -> None:
    """Write an image of faces as PNG, completely or not at all; only its owner may read it.

    Raises `OutputError` if it cannot be written.
    """
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise OutputError(f"{path}: OpenCV cannot encode this image as PNG")
    with write_atomically(path, private=True) as staged:
        staged.write_bytes(data.tobytes())


def list_some(failures: Mapping[Path, str]) -> str:
    """Name the first of many failures in one line."""
    named = "; ".join(f"{path}: {why}" for path, why in islice(failures.items(), _SOME))
    return named + (f"; and {len(failures) - _SOME:,} more" if len(failures) > _SOME else "")


def draw_faces(
    image: Image,
    faces: Faces,
    *,
    labels: Sequence[str] | None = None,
    colors: Sequence[tuple[int, int, int]] | None = None,
) -> Image:
    """Draw boxes, landmarks and labels on a copy of an image; line width grows with the image's size.

    A face's label is its score, and its color (B, G, R) green, unless they are given.
    """
    canvas = image.copy()
    width = max(1, round(max(image.shape[:2]) / 500))
    texts = labels or [f"{score:.2f}" for score in faces.scores]
    for box, landmarks, text, color in zip(
        faces.boxes, faces.landmarks, texts, colors or [_GREEN] * len(faces), strict=True
    ):
        x0, y0, x1, y1 = (round(float(value)) for value in box)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), _BLACK, width + 2, cv2.LINE_AA)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color, width, cv2.LINE_AA)
        radius = float(np.clip((x1 - x0) / 50, 1.5, 3 * width))
        for point in landmarks[np.isfinite(landmarks).all(axis=1)]:
            x, y = (round(float(value) * _FRACTION) for value in point)
            for ink, grow in ((_BLACK, 1.0), (_WHITE, 0.0)):
                size = round((radius + grow) * _FRACTION)
                cv2.circle(canvas, (x, y), size, ink, cv2.FILLED, cv2.LINE_AA, shift=4)
        _label(canvas, text, (x0, y0), width, color)
    return canvas


def _label(canvas: Image, text: str, corner: tuple[int, int], width: int, color: tuple[int, int, int]) -> None:
    """Write text above a box, or inside it if there is no room above."""
    scale = 0.4 + 0.1 * width
    (wide, high), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, width)
    x = int(np.clip(corner[0], 0, max(0, canvas.shape[1] - wide - 4)))
    y = corner[1] - below - 2 if corner[1] > high + below + 4 else max(corner[1], 0) + high + below
    cv2.rectangle(canvas, (x, y - high - 3), (x + wide + 4, y + below), color, cv2.FILLED)
    cv2.putText(canvas, text, (x + 2, y), cv2.FONT_HERSHEY_SIMPLEX, scale, _BLACK, width, cv2.LINE_AA)


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
