"""Find calibration sets that would give a model wrong ranges: no faces, blank images, red and blue exchanged.

Each check compares the share of bad crops with a limit, by the lower end of its 99 % Clopper-Pearson interval. So a set
whose true share is at the limit is refused in fewer than one of two hundred cases, however small it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeface.quantize.calibration import CalibrationSet
from edgeface.stats import clopper_pearson
from edgeface.vision.detector import Detector

_CONFIDENCE = 0.99
_DARKEST, _BRIGHTEST, _FLATTEST = 20.0, 235.0, 8.0
"""Limits of the mean grey value and of its standard deviation, 0-255. 3,012 crops of LFW have means from 46 to 185 and
deviations of at least 23."""
_COLORLESS = 2.0
"""Mean distance of the channels from grey, 0-255, below which the order of the channels cannot be told."""
_MOST_FACELESS, _MOST_EMPTY, _MOST_SWAPPED, _MOST_REPEATED = 0.1, 0.05, 0.05, 0.5


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
    """Return whether each BGR crop is coloured, and whether its centre is more blue than red.

    Haemoglobin and melanin absorb more blue than red light, so skin of every tone reflects more red (Angelopoulou,
    "Understanding the color of human skin", SPIE 4299, 2001). Of 3,000 coloured crops of LFW one is more blue.

    Returns
    -------
    colored, swapped : (N,) bool
        `swapped` is False where `colored` is.
    """
    height, width = crops.shape[1:3]
    middle = crops[:, height // 4 : height - height // 4, width // 4 : width - width // 4].astype(np.float32)
    chroma = np.abs(middle - middle.mean(axis=3, keepdims=True)).mean(axis=(1, 2, 3))
    blue, red = middle[..., 0].mean(axis=(1, 2)), middle[..., 2].mean(axis=(1, 2))
    colored = chroma >= _COLORLESS
    return np.asarray(colored), np.asarray(colored & (red < blue))
