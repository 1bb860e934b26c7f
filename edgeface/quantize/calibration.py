"""Photographs in, the face crops that calibrate a model out, and others that judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import FaceError, ImageError, InputError
from edgeface.model.contract import ModelContract
from edgeface.model.opset import ops
from edgeface.quantize.compress import Progress
from edgeface.runtime.adapter import ImageFormat, adapt
from edgeface.vision.align import align
from edgeface.vision.crops import Photo, detect_photos
from edgeface.vision.detector import Detector
from edgeface.vision.image import Image, read_image

__all__ = ["HELD_OUT", "CalibrationSet", "gather", "to_inputs"]

HELD_OUT = 200
"""Crops that judge, at most: their 1st percentile is then the second worst."""
_LEAST_HELD_OUT = 0.2
"""Share of the photographs that are kept to judge when there are few."""

Crops = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CalibrationSet:
    """Crops of one contract's recipe, none in both halves.

    Attributes
    ----------
    crops : (N, H, W, 3) uint8, BGR
        To calibrate with.
    held_out : (M, H, W, 3) uint8, BGR
        To compare with FP32.
    names
        Of the photographs of `crops`, then of `held_out`.
    without_face
        Photographs in which the detector found no face that can be aligned.
    unreadable
        Files that are no pictures.
    detected
        Whether a detector looked at the photographs; False if they were crops already.
    """

    crops: Crops
    held_out: Crops
    names: tuple[str, ...]
    without_face: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    detected: bool = True

    @property
    def digest(self) -> str:
        """SHA-256 over the shape and the pixels of `crops` in their order: `Lineage.calibration_sha256`."""
        digest = hashlib.sha256(repr(self.crops.shape).encode())
        digest.update(np.ascontiguousarray(self.crops).data)
        return digest.hexdigest()


def gather(
    photos: Sequence[Photo],
    contract: ModelContract,
    *,
    subset: int = 300,
    detector: Detector | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CalibrationSet:
    """Cut the faces of photographs the way the contract says, in an order drawn by the seed.

    Parameters
    ----------
    photos
        Where a picture shows several faces, it is the one of `Faces.largest`.
    contract
        QuantizationRecipe and size of the crop.
    subset
        Crops to calibrate with, at most; up to `HELD_OUT` others are held out, and at least a fifth of the photos.
    detector
        Finds the faces; without one the pictures are crops already.
    seed
        Draws which photographs are which.
    progress
        Called as photographs are read.

    Raises
    ------
    InputError
        If fewer than two pictures can be read.
    """
    if len(photos) < 2:
        raise InputError(
            f"calibration: expected at least 2 pictures, one to calibrate with and one to judge, found {len(photos)}"
        )
    ordered = sorted(photos, key=lambda photo: str(photo.relative))
    order = np.random.default_rng(seed).permutation(len(ordered))
    held_out = max(min(HELD_OUT, len(ordered) - subset), round(_LEAST_HELD_OUT * len(ordered)), 1)
    subset = min(subset, len(ordered) - held_out)
    chosen = [ordered[index] for index in order[: subset + held_out]]
    failures: dict[Path, str] = {}
    crops: list[Image] = []
    names: list[str] = []
    without_face: list[str] = []
    for done, (photo, crop) in enumerate(_crops(chosen, contract, detector, failures), start=1):
        if progress is not None:
            progress("faces", done, len(chosen))
        if crop is None:
            without_face.append(str(photo.relative))
        else:
            crops.append(crop)
            names.append(str(photo.relative))
    height, width = contract.input_size
    stacked = np.stack(crops) if crops else np.empty((0, height, width, 3), np.uint8)
    # Photographs without a face thin both halves out alike, so that neither is left with nothing.
    cut = round(len(stacked) * subset / len(chosen))
    return CalibrationSet(
        crops=stacked[:cut],
        held_out=stacked[cut:],
        names=tuple(names),
        without_face=tuple(without_face),
        unreadable=tuple(str(path) for path in failures),
        detected=detector is not None,
    )


def to_inputs(crops: Crops, contract: ModelContract) -> list[NDArray[np.float32]]:
    """Turn crops into what the IR's own input takes, by the very adapter that production compiles in.

    Returns
    -------
    list of arrays of `contract.input_shape(1)`, float32
    """
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
                yield photo, _resized(read_image(photo.path), size)
            except ImageError as error:
                failures[photo.path] = str(error)
        return
    for found in detect_photos(photos, detector, failures=failures):
        try:
            chosen = found.faces.largest(found.image.shape[:2])
            faces = found.faces
            yield (
                found.photo,
                align(found.image, faces.boxes[chosen], faces.landmarks[chosen], contract.alignment, size),
            )
        except FaceError:
            yield found.photo, None


def _resized(image: Image, size: tuple[int, int]) -> Image:
    from edgeface.model.contract import Alignment

    return align(image, None, None, Alignment("none"), size)
