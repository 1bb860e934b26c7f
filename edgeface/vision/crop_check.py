"""Check what is given for an aligned crop: its shape, whether it can show a face, and that it is no whole photo."""

from __future__ import annotations

import contextlib
import functools
import threading

import cv2

from edgeface.errors import DeviceError, MissingError
from edgeface.model.contract import Alignment
from edgeface.vision.detector import Detector
from edgeface.vision.image import Image
from edgeface.vision.quality import find_no_face

_LARGEST_CROP = 4
_LEAST_FACE = 0.7
"""Height of the largest face in a crop, in heights of the crop. MTCNN finds 0.37 to 0.74 (99 %: below 0.65) in photos
of LFW, 0.76 and more in crops of box recipes, 0.79 and more in those of landmark recipes, in 200 to 400 of each."""
_LEAST_OF_THE_BOX = 0.9
"""The same, in heights of the box without the margin that the contract asks for."""
_SIDE = 160
"""Height in pixels at which a face is looked for, with half of it as replicated surroundings on each side."""
_LOWEST_SCORE = 0.3
"""MTCNN's threshold here: a face that fills the image scores low."""
_one_at_a_time = threading.Lock()


def find_no_crop(image: Image, alignment: Alignment, size: tuple[int, int]) -> str | None:
    """Say why an image cannot be a crop that was aligned for a model; None: it can.

    An image of exactly `size` is taken for a crop if it may show a face; in others MTCNN looks for one. A face that is
    too small for a crop tells that the image is a photo. If there is none the image passes, because MTCNN does not find
    the face of one in 25 crops that end at the eyebrows; so it does if MTCNN's weights are not installed.

    Parameters
    ----------
    image : (H, W, 3) uint8, BGR
        What was given for a crop.
    alignment, size
        Of the model's contract. A crop may be up to four times as large, and has the shape of `size`. Where the recipe
        is a box, whose sides are resized one by one, it may also have that of a box around a face: of 7,701 faces of
        LFW, width / height is 0.64 to 0.98.
    """
    return _find_wrong_shape(image, alignment, size) or find_no_face(image) or _find_photo(image, alignment, size)


def _find_wrong_shape(image: Image, alignment: Alignment, size: tuple[int, int]) -> str | None:
    height, width = image.shape[:2]
    shape = width / height * size[0] / size[1]
    low, high = (0.64, 1.1) if alignment.recipe.startswith("mtcnn-box") else (0.95, 1.05)
    if low <= shape <= high and max(height / size[0], width / size[1]) <= _LARGEST_CROP:
        return None
    return (
        f"expected a crop of {size[1]}x{size[0]} pixels, or of its shape and at most {_LARGEST_CROP} times as large, "
        f"found {width}x{height}; if it is a photo, leave out --crops (in Python, load with a detector)"
    )


def _find_photo(image: Image, alignment: Alignment, size: tuple[int, int]) -> str | None:
    if image.shape[:2] == tuple(size) or alignment.recipe == "none":  # a recipe of someone else's leaves any margin
        return None
    height = size[0] if alignment.recipe == "mtcnn-box-output-margin" else image.shape[0]
    least = min(_LEAST_FACE, _LEAST_OF_THE_BOX * (1 - alignment.margin / height))
    share = _measure_face(image)
    if share is None or share >= least:
        return None
    return (
        f"expected a crop, whose face takes {least:.0%} of its height or more, found a face of {share:.0%} of it: this "
        "is a photo; leave out --crops (in Python, load with a detector)"
    )


def _measure_face(image: Image) -> float | None:
    """Return the height of the largest face that is found, in heights of the image; None if none is found."""
    with contextlib.suppress(MissingError, DeviceError):
        detector = _load_detector()
        height, width = image.shape[:2]
        interpolation = cv2.INTER_AREA if height > _SIDE else cv2.INTER_LINEAR
        scaled = cv2.resize(image, (max(1, round(width * _SIDE / height)), _SIDE), interpolation=interpolation)
        around = (_SIDE // 2,) * 4
        (faces,) = detector.detect([cv2.copyMakeBorder(scaled, *around, cv2.BORDER_REPLICATE)])
        return max((float(box[3] - box[1]) / _SIDE for box in faces.boxes), default=None)
    return None


def _load_detector() -> Detector:
    with _one_at_a_time:
        return _detector()


@functools.cache
def _detector() -> Detector:
    """Load MTCNN at the first image that needs it; it stays for the life of the process."""
    from edgeface.vision.mtcnn import MTCNN  # most processes never need it

    return MTCNN(min_size=_SIDE // 4, threshold=_LOWEST_SCORE)
