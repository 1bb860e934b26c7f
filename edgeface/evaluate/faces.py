"""Image files in, one aligned crop each out, cut ahead of the model by a small pool of threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import FaceError, InputError
from edgeface.model.contract import Alignment, ModelContract
from edgeface.pipeline.table import read_npz
from edgeface.vision.align import align
from edgeface.vision.detector import Detector
from edgeface.vision.image import IMAGE_SUFFIXES, Image, read_image

__all__ = ["Boxes", "FaceCutter", "find_images", "load_boxes"]

_CENTRE: Final = np.array([65 / 250, 55 / 250, 185 / 250, 200 / 250])
"""What is cut where no face is found, as shares of width and height: the place of the face in LFW, as the
reference detections have it for their one failure."""

_AS_IT_IS: Final = Alignment("mtcnn-box-margin", 0)
"""Cut the box, resize bilinearly."""

_THREADS = 2
_CHUNK = 8
"""Images that one thread decodes, and a detector sees, together; more would hold more photographs in memory."""
_AHEAD = 8
"""Chunks that may be cut and not yet embedded."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Where the faces are, measured once.

    Attributes
    ----------
    rows
        Row of an image's name (``Name/Name_0001``).
    boxes : (N, 4) float32
        x0, y0, x1, y1 in pixels, with the margin already added and clipped.
    landmarks : (N, 5, 2) float32
        As in `edgeface.vision.detector.Faces`; NaN where the file has none.
    found : (N,) bool
        False where the detector failed.
    """

    rows: dict[str, int]
    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    found: NDArray[np.bool_]

    def find(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Box and landmarks of an image, named with or without its suffix; None if nothing was found in it."""
        row = self._row(name)
        return (self.boxes[row], self.landmarks[row]) if row is not None and self.found[row] else None

    def lists(self, name: str) -> bool:
        """Whether this image was looked at."""
        return self._row(name) is not None

    def _row(self, name: str) -> int | None:
        return self.rows.get(name, self.rows.get(str(PurePosixPath(name).with_suffix(""))))


def load_boxes(path: Path) -> Boxes:
    """Read a .npz of `names`, `boxes` (N, 4) and, optionally, `points` (N, 10) as x1..x5, y1..y5.

    Points that are all 0 mark an image in which nothing was found.

    Raises
    ------
    InputError
        If the file is not there, not such a .npz, or its arrays do not fit each other.
    """
    arrays = read_npz(path, expected="a .npz of names, boxes and points")
    names, boxes = arrays.get("names", np.empty(0)), arrays.get("boxes", np.empty(0))
    points = arrays.get("points", np.full((names.size, 10), np.nan))
    shapes = names.shape, boxes.shape, points.shape
    if names.ndim != 1 or not len(names) or shapes[1:] != ((len(names), 4), (len(names), 10)):
        raise InputError(
            f"{path}: expected names (N,), boxes (N, 4) and points (N, 10), found "
            f"{names.shape}, {boxes.shape} and {points.shape}"
        )
    if not all(np.issubdtype(array.dtype, np.number) for array in (boxes, points)):
        raise InputError(
            f"{path}: expected boxes and points in numbers, found {boxes.dtype} and {points.dtype}"
        )
    return Boxes(
        rows={str(name): row for row, name in enumerate(names)},
        boxes=boxes.astype(np.float32),
        landmarks=points.reshape(-1, 2, 5).transpose(0, 2, 1).astype(np.float32),
        found=~(points == 0).all(axis=1),
    )


def find_images(root: Path, images: Sequence[str]) -> list[Path]:
    """Find the file of every image of a list, whatever its suffix.

    Raises
    ------
    InputError
        Naming the first of those that are not there.
    """
    files = [_find_image(root, image) for image in images]
    if missing := [image for image, file in zip(images, files, strict=True) if file is None]:
        raise InputError(
            f"{root}: expected an image for every name of the list, found none for {len(missing)} of "
            f"{len(images)}: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    return [file for file in files if file is not None]


class FaceCutter:
    """Iterates over aligned crops, one an image, in order, and remembers where it found the faces.

    Where none is found, or it cannot be aligned, the middle of the picture is cut instead and the image is
    counted in `failures`: a pair that nobody can compare would otherwise vanish from the score.

    Parameters
    ----------
    files, names
        The images, and what `Boxes` and `failures` call them.
    contract
        Of the model: recipe and size of the crop.
    boxes
        Measured before; their margin is taken as it is.
    detector
        Finds the faces if there are no `boxes`. Without either, the images are crops already.

    Raises
    ------
    InputError
        If `boxes` knows none of the names, and so was measured on other images.
    """

    def __init__(
        self,
        files: Sequence[Path],
        names: Sequence[str],
        contract: ModelContract,
        *,
        boxes: Boxes | None = None,
        detector: Detector | None = None,
    ) -> None:
        if boxes is not None and len(names) and not any(map(boxes.lists, names)):
            raise InputError(
                f"boxes: expected those of these images ({names[0]}, ...), found those of others "
                f"({next(iter(boxes.rows))}, ...)"
            )
        self._files, self._names = files, names
        self._contract = contract
        self._boxes, self._detector = boxes, detector
        self._places: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]] | None] = {}
        self._failed: set[int] = set()

    def __len__(self) -> int:
        return len(self._files)

    @property
    def failures(self) -> list[str]:
        """Names of the images so far in which no face could be cut."""
        return [self._names[index] for index in sorted(self._failed)]

    def __iter__(self) -> Generator[Image, None, None]:
        chunks = [range(start, min(start + _CHUNK, len(self))) for start in range(0, len(self), _CHUNK)]
        ahead: deque[Future[list[Image]]] = deque()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="edgeface-cut") as pool:
            try:
                for chunk in chunks:
                    ahead.append(pool.submit(self._cut, chunk))
                    if len(ahead) >= _AHEAD:
                        yield from ahead.popleft().result()
                while ahead:
                    yield from ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def crop(self, index: int) -> Image:
        """Cut one image again: (height, width, 3) uint8 BGR."""
        picture = read_image(self._files[index])
        if index not in self._places:
            self._locate([index], [picture])
        return self._align(index, picture)

    def _cut(self, chunk: Sequence[int]) -> list[Image]:
        pictures = [read_image(self._files[index]) for index in chunk]
        self._locate(chunk, pictures)
        return [self._align(index, picture) for index, picture in zip(chunk, pictures, strict=True)]

    def _locate(self, chunk: Sequence[int], pictures: Sequence[Image]) -> None:
        if self._boxes is not None:
            for index in chunk:
                self._places[index] = self._boxes.find(self._names[index])
        elif self._detector is not None:
            for index, picture, faces in zip(chunk, pictures, self._detector.detect(pictures), strict=True):
                if len(faces):
                    chosen = faces.largest((picture.shape[0], picture.shape[1]))
                    self._places[index] = faces.boxes[chosen], faces.landmarks[chosen]
                else:
                    self._places[index] = None

    def _align(self, index: int, picture: Image) -> Image:
        size = self._contract.input_size
        if self._boxes is None and self._detector is None:
            return align(picture, None, None, Alignment("none"), size)
        recipe = self._contract.alignment
        if self._boxes is not None and recipe.recipe in ("mtcnn-box-margin", "mtcnn-box-output-margin"):
            recipe = _AS_IT_IS
        if (place := self._places[index]) is not None:
            try:
                return align(picture, *place, recipe, size)
            except FaceError:
                pass  # a box or landmarks that cannot be aligned are a failure like no face at all
        self._failed.add(index)
        height, width = picture.shape[:2]
        return align(picture, _CENTRE * [width, height, width, height], None, _AS_IT_IS, size)


def _find_image(root: Path, image: str) -> Path | None:
    path = root / image
    candidates = [path.with_name(path.name + suffix) for suffix in (".jpg", ".png", *sorted(IMAGE_SUFFIXES))]
    return next((each for each in [*candidates, path] if each.is_file()), None)
