"""CalibrationSet crops in, the reasons why they would teach a model the wrong ranges out.

Each check counts crops that look wrong and holds their share to a limit by the lower end of its Clopper-Pearson
interval: a set is refused only if so many would be seen in fewer than one of two hundred sets at the limit, however
small the set is. What was measured on LFW stands beside each limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeface.quantize.calibration import CalibrationSet
from edgeface.stats import clopper_pearson
from edgeface.vision.detector import Detector

__all__ = ["Flaw", "find_flaws", "looks_empty", "looks_swapped"]

_CONFIDENCE = 0.99
_DARKEST, _BRIGHTEST, _FLATTEST = 20.0, 235.0, 8.0
"""Mean gray value, and standard deviation, beyond which a crop shows nothing; 3,012 crops of LFW have means from 46
to 185 and deviations from 23 on."""
_COLORLESS = 2.0
"""Mean distance of the channels from their gray, below which a crop tells nothing of their order."""
_MOST_FACELESS, _MOST_EMPTY, _MOST_SWAPPED, _MOST_REPEATED = 0.1, 0.05, 0.05, 0.5


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong with a calibration set.

    Attributes
    ----------
    reason
        What was expected, what was found, and what to do.
    count, of
        Pictures that look wrong, of how many.
    """

    reason: str
    count: int
    of: int


def find_flaws(calibration: CalibrationSet, *, detector: Detector | None = None) -> tuple[Flaw, ...]:
    """Look for what makes a calibration set useless.

    Parameters
    ----------
    calibration
        Its crops, and the photographs that gave none.
    detector
        Looks for a face in each crop of a set that came as crops; without one that is not checked.

    Returns
    -------
    tuple of Flaw
        Empty if nothing is wrong.
    """
    crops = np.concatenate([calibration.crops, calibration.held_out])
    faceless, looked_at = len(calibration.without_face), len(crops) + len(calibration.without_face)
    if not calibration.detected and detector is not None:
        faceless, looked_at = sum(not len(faces) for faces in detector.detect(list(crops))), len(crops)
    colored, swapped = looks_swapped(crops)
    return tuple(
        _flaws(
            [
                (
                    faceless,
                    looked_at,
                    _MOST_FACELESS,
                    "a face in nearly every picture, found none in {share}; calibrate with photographs of faces such "
                    "as the model will see",
                ),
                (
                    int(looks_empty(crops).sum()),
                    len(crops),
                    _MOST_EMPTY,
                    "well exposed faces, found {share} black, white or without contrast; look at the pictures",
                ),
                (
                    int(swapped.sum()),
                    int(colored.sum()),
                    _MOST_SWAPPED,
                    "skin that is redder than blue, found {share} of the coloured crops the other way round: red and "
                    "blue were exchanged when they were saved (OpenCV writes and reads BGR, most others RGB)",
                ),
                (
                    len(crops) - len({crop.tobytes() for crop in crops}),
                    len(crops),
                    _MOST_REPEATED,
                    "different pictures, found {share} that repeat others; calibrate with many people",
                ),
            ]
        )
    )


def looks_empty(crops: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each crop (N, H, W, 3) is too dark, too bright or too flat to show a face: (N,) bool."""
    gray = crops.mean(axis=3, dtype=np.float32)
    mean, spread = gray.mean(axis=(1, 2)), gray.std(axis=(1, 2))
    return np.asarray((mean < _DARKEST) | (mean > _BRIGHTEST) | (spread < _FLATTEST))


def looks_swapped(crops: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each BGR crop has colour at all, and whether its middle is then bluer than red.

    Haemoglobin and melanin absorb blue light more than red, so that skin of every tone reflects more red (Angelopoulou,
    "Understanding the color of human skin", SPIE 4299, 2001). Of 3,000 coloured crops of LFW one is bluer.

    Returns
    -------
    colored, swapped : (N,) bool
        The second is False where the first is.
    """
    height, width = crops.shape[1:3]
    middle = crops[:, height // 4 : height - height // 4, width // 4 : width - width // 4].astype(np.float32)
    chroma = np.abs(middle - middle.mean(axis=3, keepdims=True)).mean(axis=(1, 2, 3))
    blue, red = middle[..., 0].mean(axis=(1, 2)), middle[..., 2].mean(axis=(1, 2))
    colored = chroma >= _COLORLESS
    return np.asarray(colored), np.asarray(colored & (red < blue))


def _flaws(checks: Sequence[tuple[int, int, float, str]]) -> list[Flaw]:
    found = []
    for count, of, limit, expected in checks:
        if of and clopper_pearson(count, of, confidence=_CONFIDENCE)[0] > limit:
            share = f"{count} of {of}"
            found.append(Flaw(f"calibration set: expected {expected.format(share=share)}", count, of))
    return found
