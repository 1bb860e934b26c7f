"""Picture files in, templates to enrol out, or why a picture is not fit."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edgeface.errors import ImageError
from edgeface.gallery.records import KeptImage, NewTemplate
from edgeface.pipeline.pipeline import Face, Pipeline
from edgeface.vision.image import Image, ImageLimits, read_image
from edgeface.vision.source import Frame

__all__ = ["Portrait", "cut_out", "portraits"]

_AROUND = 0.6
"""Of the box's sides: how much is kept around it. Recipes that align by landmarks reach up to half a side beyond."""
_PIXELS_AROUND = 32
"""At least: recipes by box add a margin in pixels of the picture."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Portrait:
    """One picture.

    Attributes
    ----------
    path
        Its file.
    template
        None if it is not fit.
    refusal
        Why not.
    """

    path: Path
    template: NewTemplate | None = None
    refusal: str = ""


def portraits(
    files: Sequence[Path], pipeline: Pipeline, *, crops: bool, keep_images: bool, largest: bool = False
) -> Generator[Portrait, None, None]:
    """Make a template of the face in each picture.

    Parameters
    ----------
    files
        Pictures of one face each.
    pipeline
        Finds all faces, holds them to its quality gate, and embeds them.
    crops
        Whether the pictures are aligned crops and the pipeline has no detector.
    keep_images
        Whether to keep the part of the picture that shows the face.
    largest
        Of several faces take the largest one. Otherwise such a picture is refused: nobody said who is meant.

    Yields
    ------
    Portrait
        One for each file, in order.
    """
    digests: dict[int, str] = {}
    failed: dict[int, str] = {}

    def frames() -> Iterator[Frame]:
        for index, path in enumerate(files):
            try:
                with path.open("rb") as file:
                    content = file.read(ImageLimits().max_bytes + 1)  # one more, and it is refused
                image = read_image(content)
            except (OSError, ImageError) as error:
                failed[index] = str(error)
                continue
            digests[index] = hashlib.sha256(content).hexdigest()
            yield Frame(image, index, float(index), str(path))

    next_index = 0
    with contextlib.closing(pipeline.run(frames())) as answers:
        for frame, faces in answers:
            for index in range(next_index, frame.index):
                yield Portrait(path=files[index], refusal=failed[index])
            next_index = frame.index + 1
            refusal, face = _choose(faces, frame.image, largest=largest)
            if face is None or face.embedding is None:
                yield Portrait(path=files[frame.index], refusal=refusal)
                continue
            template = NewTemplate(
                embedding=face.embedding,
                quality=float("nan") if face.quality is None else face.quality.score,
                source_sha256=digests.pop(frame.index),
                image=cut_out(frame.image, face, aligned=crops) if keep_images else None,
            )
            yield Portrait(path=files[frame.index], template=template)
    for index in range(next_index, len(files)):
        yield Portrait(path=files[index], refusal=failed[index])


def _choose(faces: Sequence[Face], image: Image, *, largest: bool) -> tuple[str, Face | None]:
    if not faces:
        return "expected a face, found none; use a picture with a larger or clearer face", None
    if len(faces) > 1 and not largest:
        return (
            f"expected one face, found {len(faces)}; use a picture of one person, or take the largest face of each "
            "with --largest",
            None,
        )
    height, width = image.shape[:2]

    def prominence(face: Face) -> float:  # as `Faces.largest`, by the facenet rule
        x0, y0, x1, y1 = map(float, face.box)
        away = ((x0 + x1) / 2 - width / 2) ** 2 + ((y0 + y1) / 2 - height / 2) ** 2
        return float((x1 - x0) * (y1 - y0) - 2 * away)

    face = max(faces, key=prominence)
    return "; ".join(face.reasons), face


def cut_out(image: Image, face: Face, *, aligned: bool) -> KeptImage:
    """Keep the part of a picture from which any recipe can align this face, pixel by pixel.

    Parameters
    ----------
    image : (H, W, 3) uint8, BGR
        The picture.
    face
        Found in it.
    aligned
        Whether the picture is a crop that was aligned already: all of it is kept.

    Raises
    ------
    ImageError
        If it cannot be encoded.
    """
    x0, y0, x1, y1 = map(float, face.box)
    dx, dy = (max(_PIXELS_AROUND, _AROUND * side) for side in (x1 - x0, y1 - y0))
    left, top = (int(max(0, np.floor(low))) for low in (x0 - dx, y0 - dy))
    right, bottom = int(np.ceil(x1 + dx)), int(np.ceil(y1 + dy))
    part = image if aligned else image[top:bottom, left:right]
    offset = np.array([0, 0] if aligned else [left, top], np.float32)
    encoded, png = cv2.imencode(".png", part)
    if not encoded:
        raise ImageError("gallery: expected a picture that can be kept, found one that cannot be encoded")
    return KeptImage(
        png=png.tobytes(),
        box=(face.box.reshape(2, 2) - offset).reshape(4).astype(np.float32),
        landmarks=(face.landmarks - offset).astype(np.float32),
        aligned=aligned,
    )
