"""MTCNN: a cascade of three small networks, each refining what the one before let through.

Faithful to davidsandberg/facenet, `src/align/detect_face.py`, down to its rounding, because the face models were
trained on boxes that it drew; but batched: over images, over scales and over candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.vision.detect import Faces
from edgeface.vision.image import Image
from edgeface.vision.infer import Closing, Outputs, Pool, check_images
from edgeface.vision.mtcnn_nets import build_net, load_weights
from edgeface.vision.nms import nms

__all__ = ["MTCNN"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_CELL, _STRIDE = 12, 2
"""Side of P-Net's window in pixels, and its step."""
_FACTOR = 0.709
"""From one scale of the pyramid to the next: about the square root of a half."""
_THRESHOLDS = (0.6, 0.7, 0.7)
"""Lowest probability of a face in P-, R- and O-Net."""
_NMS_SCALE, _NMS = 0.5, 0.7
"""Largest overlap within one scale, and everywhere else."""

_REQUEST_PIXELS = 1 << 18
"""Pictures of one scale share a request up to this many pixels: bounds P-Net's memory at about 30 MB."""
_SHARE = 8
"""Images that go through the cascade together."""
_FLOAT_SIZE = 1 << 20
"""Larger images (about 600 x 600) are not copied as floats: four times the memory for a quarter of the time."""
_LARGEST_BATCH = {"rnet": 64, "onet": 16}


@dataclass(frozen=True, slots=True)
class _Level:
    """One scale of all images that have the same size."""

    images: Ints
    number: int
    scale: float
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """K boxes (K, 4) in the reference's coordinates, which count pixels from 1 and include x1 and y1, and the
    image (K,) that each belongs to. Always in ascending order of images.
    """

    boxes: Floats
    owners: Ints

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: Ints) -> _Candidates:
        return _Candidates(self.boxes[index], self.owners[index])


class MTCNN(Closing):
    """The default detector. See `edgeface.vision.detect.Detector` for `detect`.

    Boxes and landmarks are the reference's own numbers. It counts pixels from 1, and its boxes are used as if
    they counted from 0 by everything that was trained with it; so they are here.

    Parameters
    ----------
    device
        An OpenVINO device that takes dynamic shapes: pictures may have any size.
    weights
        Folder of det1.npz, det2.npz and det3.npz; by default the `mtcnn` package's.
    min_size
        Smallest face to find, in pixels. Time grows with its inverse square.
    threshold
        Lowest probability of a face in O-Net; by default 0.7.
    """

    name = "mtcnn"

    def __init__(
        self,
        *,
        device: str = "CPU",
        weights: Path | None = None,
        min_size: int = 20,
        threshold: float | None = None,
    ) -> None:
        layers = load_weights(weights)
        self._min_size = min_size
        self._threshold = _THRESHOLDS[2] if threshold is None else threshold
        self._pnet = Pool(build_net("pnet", layers), device=device)
        self._rnet = Pool(build_net("rnet", layers), device=device)
        self._onet = Pool(build_net("onet", layers), device=device)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="mtcnn")

    def close(self) -> None:
        """See `Detector.close`."""
        self._threads.shutdown()
        for pool in (self._pnet, self._rnet, self._onet):
            pool.close()

    def detect(self, images: Sequence[Image]) -> list[Faces]:
        """See `Detector.detect`. Images of one size, and many at a time, are fastest."""
        check_images(images)
        parts = [images[start : start + _SHARE] for start in range(0, len(images), _SHARE)]
        if len(parts) < 2:
            return self._detect(images) if parts else []
        # Threads, so that while one part waits for a network another one cuts out boxes and sorts them.
        return list(itertools.chain.from_iterable(self._threads.map(self._detect, parts)))

    def _detect(self, images: Sequence[Image]) -> list[Faces]:
        return self._decide(images, self._refine(images, self._propose(images)))

    def _propose(self, images: Sequence[Image]) -> _Candidates:
        """P-Net on every scale of every image."""
        levels = _levels(images, self._min_size)
        outputs = self._pnet.map(_pyramid(images, levels))
        parts = [_read_maps(level, *output) for level, output in zip(levels, outputs, strict=True)]
        if not parts:
            return _Candidates(np.empty((0, 4)), np.empty(0, np.intp))
        boxes, scores, shifts, owners, numbers = map(np.concatenate, zip(*parts, strict=True))
        levels_of_all = owners * (1 + max(level.number for level in levels)) + numbers
        kept = nms(boxes, scores, _NMS_SCALE, groups=levels_of_all, pixel=1)
        kept = kept[nms(boxes[kept], scores[kept], _NMS, groups=owners[kept], pixel=1)]
        boxes = _shift(boxes[kept], shifts[kept], pixel=0)
        return _Candidates(_square(boxes), owners[kept])

    def _refine(self, images: Sequence[Image], candidates: _Candidates) -> _Candidates:
        """R-Net on every candidate."""
        candidates, (scores, shifts) = _run(self._rnet, "rnet", 24, images, candidates)
        passed = np.flatnonzero(scores > _THRESHOLDS[1])
        candidates, scores, shifts = candidates[passed], scores[passed], shifts[passed]
        kept = nms(candidates.boxes, scores, _NMS, groups=candidates.owners, pixel=1)
        boxes = _shift(candidates.boxes[kept], shifts[kept], pixel=1)
        return _Candidates(_square(boxes), candidates.owners[kept])

    def _decide(self, images: Sequence[Image], candidates: _Candidates) -> list[Faces]:
        """O-Net on what is left."""
        candidates, (scores, shifts, points) = _run(self._onet, "onet", 48, images, candidates)
        passed = np.flatnonzero(scores > self._threshold)
        candidates, scores, shifts = candidates[passed], scores[passed], shifts[passed]
        corners, sides = candidates.boxes[:, :2], candidates.boxes[:, 2:] - candidates.boxes[:, :2] + 1
        relative = points[passed].reshape(-1, 2, 5).transpose(0, 2, 1)
        landmarks = relative * sides[:, None] + corners[:, None] - 1
        boxes = _shift(candidates.boxes, shifts, pixel=1)
        owners = candidates.owners
        kept = nms(boxes, scores, _NMS, groups=owners, relative_to="smaller", pixel=1)
        bounds = np.searchsorted(owners[kept], np.arange(1, len(images)))
        return [
            Faces(
                boxes[part].astype(np.float32),
                landmarks[part].astype(np.float32),
                scores[part].astype(np.float32),
            )
            for part in np.split(kept, bounds)
        ]


def _levels(images: Sequence[Image], min_size: int) -> list[_Level]:
    """What P-Net has to look at: the largest scale first, images of one size together."""
    same_size: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        same_size.setdefault((image.shape[0], image.shape[1]), []).append(index)
    levels = []
    for (height, width), indices in same_size.items():
        number, first = 0, _CELL / min_size
        side = min(height, width) * first
        while side >= _CELL:
            scale = first * _FACTOR**number
            size = int(np.ceil(height * scale)), int(np.ceil(width * scale))
            share = max(1, _REQUEST_PIXELS // (size[0] * size[1]))
            levels += [
                _Level(np.array(indices[start : start + share]), number, scale, size)
                for start in range(0, len(indices), share)
            ]
            number += 1
            side *= _FACTOR
    return levels


def _pyramid(images: Sequence[Image], levels: Sequence[_Level]) -> Iterator[NDArray[np.float32]]:
    """P-Net's batches. OpenCV averages floats faster than bytes, and P-Net rounds them as OpenCV would."""
    sources = [image.astype(np.float32) if image.size <= _FLOAT_SIZE else image for image in images]
    for level in levels:
        batch = np.empty((len(level.images), *level.size, 3), np.float32)
        for picture, image in zip(batch, level.images, strict=True):
            picture[:] = cv2.resize(sources[image], level.size[::-1], interpolation=cv2.INTER_AREA)
        yield batch


def _read_maps(level: _Level, face: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, ...]:
    """Boxes, scores, regressions, images and level numbers of the cells of P-Net's maps that may be faces."""
    image, x, y = np.nonzero(face.transpose(0, 2, 1) >= _THRESHOLDS[0])
    cells = np.stack([x, y], axis=1) * _STRIDE
    boxes = np.fix(np.concatenate([cells + 1, cells + _CELL], axis=1) / level.scale)
    # Where a scale has a single candidate the reference mirrors the map of regressions before it looks there.
    alone = np.bincount(image, minlength=len(level.images))[image] == 1
    column = np.where(alone, face.shape[2] - 1 - x, x)
    numbers = np.full(len(image), level.number)
    return (
        boxes,
        face[image, y, x].astype(np.float64),
        shift[image, :, y, column],
        level.images[image],
        numbers,
    )


def _run(
    pool: Pool, name: str, side: int, images: Sequence[Image], candidates: _Candidates
) -> tuple[_Candidates, list[np.ndarray]]:
    """Run a network on the picture inside every box; boxes without extent are dropped, as nothing is in them."""
    has_extent = (candidates.boxes[:, 2:] >= candidates.boxes[:, :2]).all(axis=1)
    candidates = candidates[np.flatnonzero(has_extent)]
    total, largest = len(candidates), _LARGEST_BATCH[name]
    starts = range(0, total, largest)
    outputs: list[Outputs] = pool.map(
        _cut(images, candidates[np.arange(start, min(start + largest, total))], side) for start in starts
    )
    if not outputs:
        return candidates, [np.empty(0), np.empty((0, 4)), np.empty((0, 10))][: 2 if name == "rnet" else 3]
    joined = [np.concatenate(parts)[:total] for parts in zip(*outputs, strict=True)]
    return candidates, [output.astype(np.float64) for output in joined]


def _cut(images: Sequence[Image], candidates: _Candidates, side: int) -> NDArray[np.float32]:
    """Cut out and resize every box; what lies outside its image is black.

    The batch is filled up to the next power of two: a network sees a handful of shapes, and prepares for a
    shape only once.
    """
    batch = np.zeros((1 << (len(candidates) - 1).bit_length(), side, side, 3), np.float32)
    sizes = np.array([image.shape[1::-1] for image in images])[candidates.owners]
    low, high = candidates.boxes[:, :2].astype(np.intp) - 1, candidates.boxes[:, 2:].astype(np.intp)
    inside_low, inside_high = np.clip(low, 0, sizes), np.clip(high, 0, sizes)
    whole = ((inside_low == low) & (inside_high == high)).all(axis=1)
    columns = np.concatenate([inside_low, inside_high, inside_low - low, high - low], axis=1).tolist()
    # One call of OpenCV a box: boxes have all sizes, and nothing else averages areas as the reference did.
    for crop, owner, unclipped, (x0, y0, x1, y1, left, top, width, height) in zip(
        batch, candidates.owners.tolist(), whole.tolist(), columns, strict=False
    ):
        picture = images[owner][y0:y1, x0:x1].astype(np.float32)
        if not unclipped:
            framed = np.zeros((height, width, 3), np.float32)
            framed[top : top + y1 - y0, left : left + x1 - x0] = picture
            picture = framed
        cv2.resize(picture, (side, side), dst=crop, interpolation=cv2.INTER_AREA)
    return batch


def _shift(boxes: Floats, shifts: np.ndarray, *, pixel: int) -> Floats:
    """Move each corner by a regression in units of the box's sides; the reference counts them both ways."""
    sides = boxes[:, 2:] - boxes[:, :2] + pixel
    return np.asarray(boxes + shifts * np.tile(sides, 2))


def _square(boxes: Floats) -> Floats:
    """Grow the shorter side about the centre, and round towards zero."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longest = sides.max(axis=1, keepdims=True, initial=0)
    low = boxes[:, :2] + sides * 0.5 - longest * 0.5
    return np.fix(np.concatenate([low, low + longest], axis=1))
