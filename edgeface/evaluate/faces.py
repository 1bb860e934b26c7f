"""Cut one aligned face crop from each image of a list, ahead of the model, and embed the crops."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import FaceError, InputError
from edgeface.files import stopwatch
from edgeface.model.contract import Alignment, ModelContract
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.runtime.adapter import Flip
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import ExecutionReport
from edgeface.untrusted import read_npz
from edgeface.vision.align import align
from edgeface.vision.crop_check import find_no_crop
from edgeface.vision.detector import Detector
from edgeface.vision.formats import IMAGE_SUFFIXES
from edgeface.vision.image import Image, read_image

_CENTRE: Final = np.array([65 / 250, 55 / 250, 185 / 250, 200 / 250])
"""Box that is cut where no face is found, as shares of width and height: where LFW's faces are, and where the reference
detections put their one failure."""

_AS_IT_IS: Final = Alignment("mtcnn-box-margin", 0)
"""Cut the box without a margin and resize it bilinearly."""

_THREADS = 2
_CHUNK = 8
"""Images that one thread decodes and a detector sees together."""
_AHEAD = 8
"""Chunks that are cut ahead of the model."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Face boxes that were detected before.

    Attributes
    ----------
    rows
        Row of each image, by its name (``Name/Name_0001``).
    boxes, landmarks : (N, 4) and (N, 5, 2) float32
        As in `edgeface.vision.detector.Faces`, the boxes with a margin, clipped; landmarks are NaN if there are none.
    found : (N,) bool
        False where no face was found.
    """

    rows: dict[str, int]
    boxes: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    found: NDArray[np.bool_]

    def find(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return the box (4,) and landmarks (5, 2) of an image (suffix optional), None if there is no face."""
        row = self.row(name)
        return (self.boxes[row], self.landmarks[row]) if row is not None and self.found[row] else None

    def row(self, name: str) -> int | None:
        """Return the row of an image (suffix optional), None if there is none."""
        return self.rows.get(name, self.rows.get(str(PurePosixPath(name).with_suffix(""))))


class FaceSource(NamedTuple):
    """Source of faces: boxes found earlier, or a detector, or neither if the images are aligned crops.

    `text` names it in answers and reports. The boxes are used without a further margin.
    """

    boxes: Boxes | None = None
    detector: Detector | None = None
    text: str = ""


CROPS = FaceSource()


def load_boxes(path: Path) -> Boxes:
    """Read a .npz of `names`, `boxes` (N, 4) and, optionally, `points` (N, 10) as x1..x5, y1..y5, in pixels.

    Points that are all 0 mark an image without a face. Raise InputError if the arrays do not fit each other.
    """
    arrays = read_npz(path, "a .npz of names, boxes and points", names=("names", "boxes", "points"))
    names, boxes = arrays.get("names", np.empty(0)), arrays.get("boxes", np.empty(0))
    points = arrays.get("points", np.full((names.size, 10), np.nan))
    shapes = names.shape, boxes.shape, points.shape
    if not names.size or shapes != ((names.size,), (names.size, 4), (names.size, 10)):
        raise InputError(
            f"{path}: expected names (N,), boxes (N, 4) and points (N, 10), found "
            f"{names.shape}, {boxes.shape} and {points.shape}"
        )
    if not all(np.issubdtype(array.dtype, np.number) for array in (boxes, points)):
        raise InputError(f"{path}: expected numeric boxes and points, found {boxes.dtype} and {points.dtype}")
    return Boxes(
        rows={str(name): row for row, name in enumerate(names)},
        boxes=boxes.astype(np.float32),
        landmarks=points.reshape(-1, 2, 5).transpose(0, 2, 1).astype(np.float32),
        found=~(points == 0).all(axis=1),
    )


def find_images(root: Path, images: Sequence[str]) -> list[Path]:
    """Find the file of every image of a list, with any image suffix; raise InputError if some are missing."""
    suffixes = ("", ".jpg", ".png", *sorted(IMAGE_SUFFIXES))
    files, missing = [], []
    for image in images:
        candidates = (root / f"{image}{suffix}" for suffix in suffixes)
        file = next((each for each in candidates if each.is_file()), None)
        files += [] if file is None else [file]
        missing += [image] if file is None else []
    if missing:
        raise InputError(
            f"{root}: expected an image for every name of the list, but {len(missing)} of {len(images)} are missing: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    return files


class FaceCutter:
    """Iterate over aligned crops, (H, W, 3) uint8 BGR, one for each image, in order.

    An image without a usable face gives its centre instead, and is listed in `failures`: every pair counts in the
    score. So is what was given for an aligned crop and cannot be one.

    Parameters
    ----------
    files, names
        The images, and their names in `Boxes` and `failures`.
    contract
        Contract of the model; it decides alignment and size.
    faces
        Source of the faces.

    Raises
    ------
    InputError
        If there are boxes, but for none of the names.
    """

    def __init__(
        self, files: Sequence[Path], names: Sequence[str], contract: ModelContract, faces: FaceSource = CROPS
    ) -> None:
        boxes = faces.boxes
        if boxes is not None and len(names) and all(boxes.row(name) is None for name in names):
            raise InputError(
                f"boxes: expected boxes of these images ({names[0]}, ...), found boxes of others "
                f"({next(iter(boxes.rows))}, ...)"
            )
        self._files, self._names = files, names
        self._contract = contract
        self.faces = faces
        self._places: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]] | None] = {}
        self._failed: dict[int, str] = {}

    def for_contract(self, contract: ModelContract) -> FaceCutter:
        """Return a cutter of the same faces for another model; what one of both detects the other does not again."""
        other = FaceCutter(self._files, self._names, contract, self.faces)
        other._places = self._places
        return other

    def __len__(self) -> int:
        return len(self._files)

    @property
    def failures(self) -> list[str]:
        """Names of the images, of those cut so far, in which no face was found."""
        return [self._names[index] for index in sorted(self._failed)]

    @property
    def reasons(self) -> dict[str, str]:
        """Why each of `failures` is one, by its name."""
        return {self._names[index]: self._failed[index] for index in sorted(self._failed)}

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
        """Cut the crop of one image again: (H, W, 3) uint8 BGR."""
        return self._cut([index])[0]

    def _cut(self, chunk: Sequence[int]) -> list[Image]:
        images = [read_image(self._files[index]) for index in chunk]
        if self.faces.boxes is not None:
            self._places |= {index: self.faces.boxes.find(self._names[index]) for index in chunk}
        elif self.faces.detector is not None and not self._places.keys() >= set(chunk):
            for index, image, faces in zip(chunk, images, self.faces.detector.detect(images), strict=True):
                chosen = faces.largest(image.shape[:2]) if len(faces) else None
                self._places[index] = None if chosen is None else (faces.boxes[chosen], faces.landmarks[chosen])
        return [self._align(index, image) for index, image in zip(chunk, images, strict=True)]

    def _align(self, index: int, image: Image) -> Image:
        size = self._contract.input_size
        if self.faces.boxes is None and self.faces.detector is None:
            if wrong := find_no_crop(image, self._contract.alignment, size):
                self._failed[index] = wrong
            return align(image, None, None, Alignment("none"), size)
        recipe = self._contract.alignment
        if self.faces.boxes is not None and recipe.recipe in ("mtcnn-box-margin", "mtcnn-box-output-margin"):
            recipe = _AS_IT_IS
        if (place := self._places[index]) is not None:
            try:
                return align(image, *place, recipe, size)
            except FaceError:
                pass  # counts as a failure, like an image without a face
        self._failed[index] = "expected a face, found none"
        height, width = image.shape[:2]
        return align(image, _CENTRE * [width, height, width, height], None, _AS_IT_IS, size)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Embedded:
    """Embeddings of a list of images.

    Attributes
    ----------
    vectors : (N, D) float32
        One row an image. With ``flip="concatenate"`` D is twice the model's dimension and the norm is not 1.
    cutter
        Cuts the crops again and lists the images without a face.
    execution
        Device and precision that really ran.
    seconds
        Wall time from the first image read to the last embedding.
    """

    vectors: NDArray[np.float32]
    model: Path
    contract: ModelContract
    cutter: FaceCutter
    execution: ExecutionReport
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the keys that the answers of all `edgeface evaluate` commands share."""
        failures = self.cutter.failures
        return {
            "faces": self.cutter.faces.text,
            "failures": len(failures),
            "failed_images": failures,
            "images": len(self.cutter),
            "model": {
                "path": str(self.model),
                "name": self.contract.name,
                "contract_id": self.contract.contract_id,
                "precision": self.contract.precision,
                "provenance": self.contract.provenance,
            },
            "device": list(self.execution.execution_devices),
            "device_name": list(self.execution.full_names),
            "arithmetic": self.execution.precision,
            "seconds": round(self.seconds, 3),
        }


def embed_images(
    images: Path,
    names: Sequence[str],
    model: Path,
    faces: FaceSource = CROPS,
    *,
    flip: Flip | None = None,
    device: str = "CPU",
    allow_seeded: bool = False,
    watch: Callable[[Image], object] | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Embedded:
    """Cut and embed every image; crops are cut ahead in other threads.

    Parameters
    ----------
    images, names
        Folder of the images, and their names relative to it; see `find_images`.
    model
        IR with a contract.
    faces
        Source of the faces.
    flip, device, progress
        Use of the mirror images, if any; OpenVINO device; called after every image.
    allow_seeded
        Embed with a model of random weights too.
    watch
        Called with each crop, in order.

    Raises
    ------
    InputError
        If images are missing or broken, or there are boxes, but for none of the names, or no image can be a crop.
    ContractError
        If the model has no contract, or its weights are seeded.
    """
    files = find_images(images, names)
    with Embedder.load(model, device=device, flip=flip, allow_seeded=allow_seeded) as embedder:
        cutter = FaceCutter(files, names, embedder.contract, faces)
        vectors = np.empty((len(files), embedder.contract.embedding_dim), np.float32)
        with stopwatch() as elapsed, contextlib.closing(iter(cutter)) as crops:
            for done, vector in enumerate(embedder.map(_watched(crops, watch)), start=1):
                vectors[done - 1] = vector
                progress(Progress("embedding", done, len(files), unit="images"))
            if faces.boxes is None and faces.detector is None and len(cutter.reasons) == len(files) > 0:
                raise InputError(
                    f"{images / names[0]}: {cutter.reasons[names[0]]}; the other images are no crops either"
                )
            return Embedded(
                vectors=vectors,
                model=model,
                contract=embedder.contract,
                cutter=cutter,
                execution=embedder.execution,
                seconds=elapsed(),
            )


def _watched(crops: Iterator[Image], watch: Callable[[Image], object] | None) -> Iterator[Image]:
    for crop in crops:
        if watch is not None:
            watch(crop)
        yield crop
