"""Cut face crops from photos, some to calibrate a model with, others to judge it, and find sets that would mislead.

Each check of a set compares the share of bad crops with a limit, by the lower end of its 99 % Clopper-Pearson interval.
So a set whose true share is at the limit is refused in fewer than one of two hundred cases, however small it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import FaceError, ImageError, InputError
from edgeface.model.contract import Alignment, ModelContract
from edgeface.model.opset import ops
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.runtime.adapter import ImageFormat, adapt
from edgeface.stats import clopper_pearson
from edgeface.vision.align import align
from edgeface.vision.crop_check import find_no_crop
from edgeface.vision.crops import detect_photos
from edgeface.vision.detector import Detector
from edgeface.vision.image import Image, read_image
from edgeface.vision.listing import Photo, list_photos

HELD_OUT = 200
"""Greatest number of held-out crops."""
_LEAST_HELD_OUT = 0.2
"""Share of the photos that are held out if there are few."""
_CONFIDENCE = 0.99
_DARKEST, _BRIGHTEST, _FLATTEST = 20.0, 235.0, 8.0
"""Limits of the mean grey value and of its standard deviation, 0-255. 3,012 crops of LFW have means from 46 to 185 and
deviations of at least 23."""
_COLORLESS = 2.0
"""Mean distance of the channels from grey, 0-255, below which the order of the channels cannot be told."""
_MOST_FACELESS, _MOST_EMPTY, _MOST_SWAPPED, _MOST_REPEATED = 0.1, 0.05, 0.05, 0.5

Crops = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CalibrationSet:
    """Crops to calibrate a model with, and other crops to judge it.

    Attributes
    ----------
    crops, held_out : (N, H, W, 3) and (M, H, W, 3) uint8, BGR, 0-255
        Crops to calibrate with, and other crops to compare with FP32.
    names
        Photos of `crops`, then of `held_out`.
    without_face, unreadable
        Photos without a face that can be aligned; files and folders that could not be read, and why.
    detected
        Whether a detector found the faces; False if the photos were aligned crops.
    """

    crops: Crops
    held_out: Crops
    names: tuple[str, ...]
    without_face: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    detected: bool = True

    @property
    def digest(self) -> str:
        """SHA-256 of the shape and the pixels of `crops`, stored as `Lineage.calibration_sha256`."""
        digest = hashlib.sha256(repr(self.crops.shape).encode())
        digest.update(np.ascontiguousarray(self.crops).data)
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "crops": len(self.crops),
            "held_out": len(self.held_out),
            "without_face": list(self.without_face),
            "unreadable": list(self.unreadable),
            "sha256": self.digest,
        }


def gather(
    photos: Sequence[Photo] | Path,
    contract: ModelContract,
    *,
    subset: int = 300,
    detector: Detector | None = None,
    seed: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> CalibrationSet:
    """Cut one face from each photo as the contract requires, and divide the crops at random.

    Parameters
    ----------
    photos
        Photos with faces, or their folder; of several faces the one of `Faces.largest` is cut.
    contract
        Contract of the model; it decides alignment and size.
    subset
        Greatest number of crops to calibrate with. Up to `HELD_OUT` others, and at least a fifth, are held out.
    detector
        Finds the faces; None if the photos are aligned crops.
    seed, progress
        Seed of the random division; called after every photo.

    Raises
    ------
    InputError
        If there are fewer than two photos.
    """
    failures: dict[Path, str] = {}
    if isinstance(photos, Path):
        found = list_photos([photos])
        photos, failures = found.photos, found.failures
    if len(photos) < 2:
        raise InputError(
            "calibration: expected at least 2 photos, one to calibrate with and one held out to measure accuracy, "
            f"found {len(photos)}"
        )
    ordered = sorted(photos, key=lambda photo: str(photo.relative))
    order = np.random.default_rng(seed).permutation(len(ordered))
    held_out = max(min(HELD_OUT, len(ordered) - subset), round(_LEAST_HELD_OUT * len(ordered)), 1)
    subset = min(subset, len(ordered) - held_out)
    chosen = [ordered[index] for index in order[: subset + held_out]]
    crops: list[Image] = []
    names: list[str] = []
    without_face: list[str] = []
    for done, (photo, crop) in enumerate(_crops(chosen, contract, detector, failures), start=1):
        progress(Progress("faces", done, len(chosen), unit="photos"))
        (without_face if crop is None else names).append(str(photo.relative))
        crops += [] if crop is None else [crop]
    stacked = np.stack(crops) if crops else np.empty((0, *contract.input_size, 3), np.uint8)
    # Photos without a face shorten both parts alike, so that neither is empty.
    cut = round(len(stacked) * subset / len(chosen))
    return CalibrationSet(
        crops=stacked[:cut],
        held_out=stacked[cut:],
        names=tuple(names),
        without_face=tuple(without_face),
        unreadable=tuple(f"{path}: {why.removeprefix(f'{path}: ')}" for path, why in failures.items()),
        detected=detector is not None,
    )


def to_inputs(crops: Crops, contract: ModelContract) -> list[NDArray[np.float32]]:
    """Convert crops to float32 `contract.input_shape(1)` each, by the adapter that the runtime compiles into models."""
    image = ops.parameter(list(contract.input_shape(-1)), np.float32)
    image.output(0).set_names({contract.input_name})
    passed_on = ov.Model([ops.result(image)], [image], "adapter")
    adapted = adapt(passed_on, contract, ImageFormat(), batch=1)
    compiled = ov.Core().compile_model(adapted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    return [request.infer({0: crop[np.newaxis]})[0].copy() for crop in crops]


def _crops(
    photos: Sequence[Photo], contract: ModelContract, detector: Detector | None, failures: dict[Path, str]
) -> Iterator[tuple[Photo, Image | None]]:
    size = contract.input_size
    if detector is None:
        for photo in photos:
            try:
                image = read_image(photo.path)
            except ImageError as error:
                failures[photo.path] = str(error)
                continue
            if wrong := find_no_crop(image, contract.alignment, size):
                failures[photo.path] = wrong
            else:
                yield photo, align(image, None, None, Alignment("none"), size)
        return
    for found in detect_photos(photos, detector, failures=failures):
        try:
            faces, image = found.faces, found.image
            chosen = faces.largest(image.shape[:2])
            crop = align(image, faces.boxes[chosen], faces.landmarks[chosen], contract.alignment, size)
        except FaceError:
            crop = None
        yield found.photo, crop


@dataclass(frozen=True, slots=True)
class Flaw:
    """A reason to refuse a calibration set, with the number of bad images and of images checked."""

    reason: str
    count: int
    of: int


def find_flaws(calibration: CalibrationSet, *, detector: Detector | None = None) -> tuple[Flaw, ...]:
    """Check a calibration set; the result is empty if it is usable.

    If the set was made of crops, `detector` looks for a face in each of them; None skips this check.
    """
    crops = np.concatenate([calibration.crops, calibration.held_out])
    faceless, looked_at = len(calibration.without_face), len(crops) + len(calibration.without_face)
    if not calibration.detected and detector is not None:
        faceless, looked_at = sum(not len(faces) for faces in detector.detect(list(crops))), len(crops)
    colored, swapped = looks_swapped(crops)
    repeated = len(crops) - len({crop.tobytes() for crop in crops})
    checks = (
        (
            (faceless, looked_at, _MOST_FACELESS),
            "a face in nearly every photo, but {share} have none; calibrate with photos like those in use",
        ),
        (
            (int(looks_empty(crops).sum()), len(crops), _MOST_EMPTY),
            "well exposed faces, found {share} black, white or without contrast; look at the photos",
        ),
        (
            (int(swapped.sum()), int(colored.sum()), _MOST_SWAPPED),
            "skin that is redder than blue, found the opposite in {share} coloured crops: red and blue were "
            "exchanged when the photos were saved (OpenCV uses BGR, most other libraries RGB)",
        ),
        (
            (repeated, len(crops), _MOST_REPEATED),
            "different photos, found {share} that repeat others; calibrate with many people",
        ),
    )
    return tuple(
        Flaw(f"calibration set: expected {expected.format(share=f'{count} of {of}')}", count, of)
        for (count, of, limit), expected in checks
        if of and clopper_pearson(count, of, confidence=_CONFIDENCE)[0] > limit
    )


def looks_empty(crops: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return whether each crop (N, H, W, 3) is too dark, too bright or too flat to show a face: (N,) bool."""
    gray = crops.mean(axis=3, dtype=np.float32)
    mean, spread = gray.mean(axis=(1, 2)), gray.std(axis=(1, 2))
    return np.asarray((mean < _DARKEST) | (mean > _BRIGHTEST) | (spread < _FLATTEST))


def looks_swapped(crops: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Detect crops whose red and blue channels are probably swapped.

    Haemoglobin and melanin absorb more blue than red light, so skin of every tone reflects more red (Angelopoulou,
    "Understanding the color of human skin", SPIE 4299, 2001). In 1 of 3,000 coloured LFW crops blue exceeds red.

    Returns
    -------
    colored, swapped : (N,) bool
        Whether the centre of the BGR crop has colour, and whether its blue exceeds its red. A crop without colour
        is never reported as swapped.
    """
    height, width = crops.shape[1:3]
    middle = crops[:, height // 4 : height - height // 4, width // 4 : width - width // 4].astype(np.float32)
    chroma = np.abs(middle - middle.mean(axis=3, keepdims=True)).mean(axis=(1, 2, 3))
    blue, red = middle[..., 0].mean(axis=(1, 2)), middle[..., 2].mean(axis=(1, 2))
    colored = chroma >= _COLORLESS
    return np.asarray(colored), np.asarray(colored & (red < blue))
