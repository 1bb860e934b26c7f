"""A drop-in for the `face_recognition` package, on OpenVINO: change one import and keep the program.

    from edgeface.compat import face_recognition

Encodings come from dlib's own network (`dlib-face-recognition-resnet-v1` in the zoo), so that 0.6 stays the tolerance
and stored encodings can be compared with new ones. Faces and landmarks are found by MTCNN. What differs from the
original is in docs/face_recognition.md: `face_landmarks` is not there, because the original's points are not MTCNN's.

Images are RGB, as in the original; the rest of edgeface takes BGR. The models are loaded by the first call that needs
them, once a process, and serve all threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

import edgeface
from edgeface.errors import ContractError, FaceError, ImageError, InputError
from edgeface.gallery.encodings import DLIB_CONTRACT_ID
from edgeface.model.contract import Alignment
from edgeface.runtime.embedder import Embedder
from edgeface.vision.align import align
from edgeface.vision.image import Image, read_image
from edgeface.vision.mtcnn import MTCNN

__all__ = [
    "batch_face_locations",
    "compare_faces",
    "configure",
    "face_distance",
    "face_encodings",
    "face_locations",
    "load_image_file",
]

Location = tuple[int, int, int, int]
"""Top, right, bottom, left of a face in pixels."""
Encoding = NDArray[np.float64]
"""(128,) float64, not of unit length."""

MODEL = "dlib-face-recognition-resnet-v1"
"""Zoo name of the network that the original uses."""

_SMALLEST_FACE = 60
"""Pixels: shorter side, at least, of MTCNN's box around a face that fills the 80 pixels of dlib's window. Each
upsampling of the image halves it."""
_SMALLEST_MTCNN = 12
"""Pixels: the window of MTCNN's first network."""
_SIDE, _LOWER = 0.49, 0.05
"""Side of the original's square box in units of MTCNN's width plus height, and how much lower its centre lies in units
of the height: medians over 1,100 photos of LFW, where the boxes then overlap by 0.82 (intersection over union)."""
_CHIP = 1.1
"""Side of the square that is encoded where no landmarks are found, in units of the box. dlib's chips of LFW faces are
1.076 times the mean side of MTCNN's box, and their centre is that of the original's box within a fiftieth."""
_FACE = 0.5
"""Probability that a given location shows a face, below which its landmarks are not used."""

_TURN, _SHIFT, _SCALE = 3.0, 0.02, (0.97, 1.0)
_EDGE = 3
"""Degrees, share of the side, and range of the scale of jittered copies, and pixels of the chip's edge that they leave
out (dlib, `jitter_image` in image_transforms/interpolation.h)."""


class _File(Protocol):
    def read(self) -> bytes: ...


@dataclass(slots=True)
class _Models:
    """The networks of this process, made at first use."""

    model: str | Path = MODEL
    device: str = "CPU"
    lock: threading.Lock = field(default_factory=threading.Lock)
    detectors: dict[int, MTCNN] = field(default_factory=dict)
    loaded: Embedder | None = None

    def detector(self, min_size: int) -> MTCNN:
        with self.lock:
            if min_size not in self.detectors:
                self.detectors[min_size] = MTCNN(device=self.device, min_size=min_size)
            return self.detectors[min_size]

    def embedder(self) -> Embedder:
        with self.lock:
            if self.loaded is None:
                embedder = Embedder.load(edgeface.find_model(self.model), device=self.device)
                contract = embedder.contract
                original = replace(contract, precision="FP32", layout="NCHW", color="BGR", lineage=None).contract_id
                if original != DLIB_CONTRACT_ID:
                    embedder.close()
                    raise ContractError(
                        path=self.model,
                        expected=f"dlib's network, contract {DLIB_CONTRACT_ID} or one made from it: the tolerance of "
                        "0.6 holds for no other",
                        found=f"{contract.name}, contract {contract.contract_id}",
                        remedy=f"use {MODEL}, or an IR that was quantized from it; other models belong to "
                        "edgeface.load()",
                    )
                self.loaded = embedder
            return self.loaded


_models = _Models()


def configure(model: str | Path = MODEL, *, device: str = "CPU") -> None:
    """Choose the network's IR and the device of all later calls. The original has no such function.

    Parameters
    ----------
    model
        Zoo name or .xml of dlib's network, e.g. one that `edgeface quantize` made smaller.
    device
        OpenVINO device of this network and of the detector.

    Examples
    --------
    >>> configure(device="AUTO")
    >>> configure()
    """
    global _models
    _models = _Models(model, device)


def load_image_file(file: str | os.PathLike[str] | _File, mode: Literal["RGB", "L"] = "RGB") -> NDArray[np.uint8]:
    """Read an image.

    Parameters
    ----------
    file
        A path or an open binary file: JPEG, PNG, WebP or BMP. A photo that a camera stored turned is set upright,
        which the original does not do.
    mode
        ``RGB``, or ``L`` for gray.

    Returns
    -------
    (H, W, 3) uint8 RGB, or (H, W) uint8

    Raises
    ------
    ImageError
        If there is no such file, or it is no image, damaged or too large.
    InputError
        If the mode is another one.
    """
    _require("mode", mode, ("RGB", "L"))
    image = read_image(Path(file) if isinstance(file, str | os.PathLike) else file.read())
    code = cv2.COLOR_BGR2RGB if mode == "RGB" else cv2.COLOR_BGR2GRAY
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


def face_locations(
    img: NDArray[np.uint8], number_of_times_to_upsample: int = 1, model: Literal["hog", "cnn"] = "hog"
) -> list[Location]:
    """Find the faces of an image.

    Parameters
    ----------
    img : (H, W, 3) uint8 RGB, or (H, W) uint8
        As `load_image_file` returns it.
    number_of_times_to_upsample
        0 finds all faces of 80 pixels and more, 1 of 40, 2 of 20, and some that are smaller. The time grows fourfold
        with each.
    model
        ``hog`` and ``cnn`` name the original's detectors; here both are MTCNN.

    Returns
    -------
    list of (top, right, bottom, left)
        Whole pixels inside the image, best score first. Squares around the face as the original draws them, before
        they are trimmed.

    Raises
    ------
    ImageError
        If the image has another shape or type.
    InputError
        If an option has a value that the original does not document.
    """
    _require("model", model, ("hog", "cnn"))
    return batch_face_locations([img], number_of_times_to_upsample)[0]


def batch_face_locations(
    images: Sequence[NDArray[np.uint8]], number_of_times_to_upsample: int = 1, batch_size: int = 128
) -> list[list[Location]]:
    """Find the faces of several images, which may differ in size; see `face_locations`.

    Parameters
    ----------
    images, number_of_times_to_upsample
        As for `face_locations`.
    batch_size
        Most images that are in memory as BGR copies at a time. Results do not depend on it.

    Returns
    -------
    list of list of (top, right, bottom, left)
        The faces of each image.
    """
    for name, value, least in (
        ("number_of_times_to_upsample", number_of_times_to_upsample, 0),
        ("batch_size", batch_size, 1),
    ):
        if value < least:
            raise InputError(f"{name}: expected {least} or more, found {value}")
    smallest = max(_SMALLEST_MTCNN, _SMALLEST_FACE >> number_of_times_to_upsample)
    detector = _models.detector(smallest)
    locations: list[list[Location]] = []
    for start in range(0, len(images), batch_size):
        batch = [_as_bgr(image) for image in images[start : start + batch_size]]
        for image, faces in zip(batch, detector.detect(batch), strict=True):
            found = [_location(box.astype(np.float64), image) for box in faces.boxes]
            locations.append([each for each in found if each[0] < each[2] and each[3] < each[1]])
    return locations


def face_encodings(
    face_image: NDArray[np.uint8],
    known_face_locations: Sequence[Location] | None = None,
    num_jitters: int = 1,
    model: Literal["small", "large"] = "small",
) -> list[Encoding]:
    """Compute the encoding of each face of an image.

    Parameters
    ----------
    face_image : (H, W, 3) uint8 RGB, or (H, W) uint8
        As `load_image_file` returns it.
    known_face_locations
        (top, right, bottom, left) of each face, of `face_locations` or from elsewhere. None: those of
        `face_locations`. Every location gets an encoding, also one without a face.
    num_jitters
        1 encodes the face as it is. More: the mean over so many copies that are slightly turned, scaled, shifted and,
        every other one, mirrored, as in the original; the copies of equal calls are equal.
    model
        Names the original's landmark predictors; here both are MTCNN's five points.

    Returns
    -------
    list of (128,) float64
        In the order of the locations.

    Raises
    ------
    ImageError
        If the image has another shape or type.
    InputError
        If a location has no extent inside the image, or an option has an undocumented value.
    ModelNotFoundError
        If the network is not there; the text says how to get it.
    """
    _require("model", model, ("small", "large"))
    if num_jitters < 1:
        raise InputError(f"num_jitters: expected 1 or more, found {num_jitters}")
    image = _as_bgr(face_image)
    locations = face_locations(face_image) if known_face_locations is None else known_face_locations
    if not len(locations):
        return []
    embedder = _models.embedder()
    chips = _cut_chips(image, _as_boxes(locations, image), embedder.contract.alignment, embedder.contract.input_size)
    if num_jitters == 1:
        return list(embedder.embed(chips).astype(np.float64))
    return [embedder.embed(_jitter(chip, num_jitters)).astype(np.float64).mean(axis=0) for chip in chips]


def face_distance(
    face_encodings: Sequence[ArrayLike] | NDArray[Any], face_to_compare: ArrayLike
) -> NDArray[np.float64]:
    """Compute the Euclidean distance of each encoding to one.

    Parameters
    ----------
    face_encodings : (N, D), or a list of N encodings
        May be empty.
    face_to_compare : (D,)
        The other encoding.

    Returns
    -------
    (N,) float64

    Raises
    ------
    InputError
        If the encodings are not of one length, or not finite real numbers.

    Examples
    --------
    >>> face_distance([np.zeros(128), np.ones(128)], np.zeros(128)).round(2).tolist()
    [0.0, 11.31]
    >>> face_distance([], np.zeros(128)).shape
    (0,)
    """
    if len(face_encodings) == 0:
        return np.empty(0)
    try:
        known, other = _as_reals(face_encodings), _as_reals(face_to_compare)
    except (TypeError, ValueError) as error:
        raise InputError(f"encodings: expected numbers of one length, found {error}") from error
    if known.ndim != 2 or other.shape not in [(known.shape[1],), (1, known.shape[1])]:
        raise InputError(
            expected="encodings (N, D) and one encoding (D,)",
            found=f"shapes {known.shape} and {other.shape}",
            remedy="pass a list of encodings first and one encoding second; face_encodings returns a list",
        )
    if not (np.isfinite(known).all() and np.isfinite(other).all()):
        raise InputError(expected="encodings of finite numbers", found="NaN, infinity, or None")
    with np.errstate(over="ignore"):  # the distance of numbers that are too large for float64 is infinite
        return np.asarray(np.linalg.norm(known - other, axis=1))


def compare_faces(
    known_face_encodings: Sequence[ArrayLike] | NDArray[Any], face_encoding_to_check: ArrayLike, tolerance: float = 0.6
) -> list[bool]:
    """Say for each known encoding whether it is of the same person as another one.

    Parameters
    ----------
    known_face_encodings, face_encoding_to_check
        As for `face_distance`.
    tolerance
        Largest distance of one person's encodings. On LFW, 0.6 accepts one impostor in 200.

    Returns
    -------
    list of bool
        One for each known encoding.

    Examples
    --------
    >>> compare_faces([np.zeros(128), np.ones(128)], np.full(128, 0.01))
    [True, False]
    """
    if not 0 <= tolerance < np.inf:
        raise InputError(f"tolerance: expected a distance of 0 or more, found {tolerance!r}")
    return [bool(each) for each in face_distance(known_face_encodings, face_encoding_to_check) <= tolerance]


def _as_reals(encodings: ArrayLike | Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Convert numbers to float64; raise TypeError for complex, text and objects, which numpy converts too."""
    given = np.asarray(encodings)
    if given.size and given.dtype.kind not in "fiu":
        raise TypeError(f"an array of {given.dtype}")
    return given.astype(np.float64)


def _require(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}: expected {' or '.join(allowed)}, found {value!r}")


def _as_bgr(image: NDArray[np.uint8]) -> Image:
    """Convert what the original takes: (H, W, 3) RGB or (H, W)."""
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or not image.size
        or (image.ndim == 3 and image.shape[2] != 3)
    ):
        raise ImageError(
            expected="an image (H, W, 3) uint8 RGB or (H, W) uint8",
            found=f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__,
            remedy="read it with load_image_file",
        )
    code = cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), code), np.uint8)


def _location(box: NDArray[np.float64], image: Image) -> Location:
    """Draw MTCNN's box as the original would, and trim it to the image."""
    width, height = box[2:] - box[:2]
    half = _SIDE * (width + height) / 2
    x, y = (box[:2] + box[2:]) / 2 + [0, _LOWER * height]
    left, top, right, bottom = (round(float(value)) for value in (x - half, y - half, x + half, y + half))
    return max(top, 0), min(right, image.shape[1]), min(bottom, image.shape[0]), max(left, 0)


def _as_boxes(locations: Sequence[Location], image: Image) -> NDArray[np.float64]:
    """Convert locations to (N, 4) x0, y0, x1, y1."""
    try:
        boxes = np.asarray(locations, np.float64)[:, [3, 0, 1, 2]]
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"known_face_locations: expected (top, right, bottom, left) of each face, found {error}"
        ) from error
    height, width = image.shape[:2]
    inside = np.clip(boxes, 0, [width, height, width, height])
    wrong = np.flatnonzero(~((inside[:, :2] + 1 <= inside[:, 2:]).all(axis=1)))
    if len(wrong):
        raise InputError(
            expected=f"locations (top, right, bottom, left) inside the image of {width}x{height} pixels",
            found=f"{locations[wrong[0]]}",
            remedy="pass what face_locations returned for this image",
        )
    return boxes


def _cut_chips(image: Image, boxes: NDArray[np.float64], alignment: Alignment, size: tuple[int, int]) -> list[Image]:
    """Cut each face out by its landmarks, or by its box where there are none."""
    faces = _models.detector(_SMALLEST_FACE).locate(image, boxes)
    chips = []
    for box, landmarks, score in zip(boxes, faces.landmarks, faces.scores, strict=True):
        try:
            if score < _FACE:
                raise FaceError(expected="a face", found=f"one with a probability of {score:.2f}")
            chips.append(align(image, None, landmarks, alignment, size))
        except FaceError:
            scale = size[0] / (_CHIP * (box[2:] - box[:2]).mean())
            shift = np.array(size[::-1]) / 2 - scale * (box[:2] + box[2:]) / 2
            matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
            chips.append(np.asarray(cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR), np.uint8))
    return chips


def _jitter(chip: Image, count: int) -> list[Image]:
    """Make `count` copies of a chip, slightly turned, scaled and shifted; every other one is mirrored."""
    rng = np.random.default_rng(count)
    side = chip.shape[0]
    inner = side - 2 * _EDGE
    copies = []
    for number in range(count):
        zoom = side / inner * rng.uniform(*_SCALE)
        centre = (side - 1) / 2 + rng.uniform(-_SHIFT, _SHIFT, 2) * inner
        matrix = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), rng.uniform(-_TURN, _TURN), zoom)
        matrix[:, 2] += (side - 1) / 2 - centre
        copy = cv2.warpAffine(chip, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        copies.append(np.ascontiguousarray(copy[:, ::-1]) if number % 2 else np.asarray(copy, np.uint8))
    return copies
