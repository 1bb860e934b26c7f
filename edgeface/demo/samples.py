"""Photographs that are at hand in, aligned crops and the pairs worth comparing out."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.demo.source import MODEL

__all__ = ["Pair", "golden_pairs", "sample_pairs"]

Crop = NDArray[np.uint8]

_ASTRONAUT_FACE = (66, 186, 163, 283)
"""Rows and columns of Eileen Collins's face, with MTCNN's margin, in scikit-image's 512x512 astronaut."""
_SAME = [(index, index + 1) for index in range(0, 16, 2)]
_DIFFERENT = [(index, index + 1) for index in range(16, 24, 2)]
"""Rows of golden.npz, see the README of the data folder."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two (160, 160, 3) uint8 RGB crops, and what they are to each other."""

    a: Crop
    b: Crop
    relation: Literal[
        "same person", "different people", "same photo, mirrored", "same photo, darker", "noise"
    ]


def golden_pairs(data: Path | None) -> list[Pair]:
    """Eight real pairs of one person and four of two people, or none where there is no data."""
    path = data / MODEL / "golden.npz" if data else None
    if path is None or not path.is_file():
        return []
    with np.load(path) as stored:
        images = stored["images"]
    return [
        *(Pair(images[a], images[b], "same person") for a, b in _SAME),
        *(Pair(images[a], images[b], "different people") for a, b in _DIFFERENT),
    ]


def sample_pairs() -> list[Pair]:
    """A photograph against itself mirrored and darkened, and against noise."""
    crop = _sample_crop()
    noise = np.random.default_rng(0).integers(0, 256, crop.shape, np.uint8)
    darker = (crop * 0.6).astype(np.uint8)
    return [
        Pair(crop, np.ascontiguousarray(crop[:, ::-1]), "same photo, mirrored"),
        Pair(crop, darker, "same photo, darker"),
        Pair(crop, noise, "noise"),
    ]


def _sample_crop(size: int = 160) -> Crop:
    """The astronaut that scikit-image ships (extra `demo`), or blotches where it is not installed."""
    if importlib.util.find_spec("skimage") is None:
        blotches = np.random.default_rng(1).integers(0, 256, (10, 10, 3), np.uint8)
        return _resize(blotches, size)
    from skimage.data import astronaut

    top, bottom, left, right = _ASTRONAUT_FACE
    face = np.ascontiguousarray(astronaut()[top:bottom, left:right])
    return _resize(face, size)


def _resize(image: Crop, size: int) -> Crop:
    resized: Crop = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return resized
