"""MTCNN: detect faces with a cascade of three small networks, P-Net, R-Net and O-Net.

Boxes equal those of davidsandberg/facenet, `src/align/detect_face.py`, including its rounding, because the face models
were trained on its boxes. Unlike it, this works in batches: of images, of scales and of candidates.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ImageError, InputError
from edgeface.runtime.schedule import Outputs
from edgeface.vision.area import AreaBatch, AreaImage
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image, check_memory
from edgeface.vision.mtcnn_nets import find_nets
from edgeface.vision.networks import NetworkDetector, Networks, check_images
from edgeface.vision.nms import nms

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_CELL, _STRIDE = 12, 2
"""Side of P-Net's window in pixels, and its step."""
_FACTOR = 0.709
"""From one scale of the pyramid to the next: about the square root of 1/2."""
_THRESHOLDS = (0.6, 0.7, 0.7)
"""Lowest probability of a face in P-, R- and O-Net."""
_LOWEST_LOGIT = math.log(_THRESHOLDS[0] / (1 - _THRESHOLDS[0]))
"""The first of them as a logit, which is P-Net's output."""
_NMS_SCALE, _NMS = 0.5, 0.7
"""Largest overlap within one scale, and everywhere else."""

_REQUEST_PIXELS = 1 << 16
"""Most pixels of the images of one scale in a request; `_LARGEST_BATCH` limits the boxes. With larger requests the
layers' results leave the core's cache, which costs a tenth of the speed."""
_TILE = 187
"""Cells on a side of P-Net's maps that are computed together, from 384 pixels. For each of them a request needs some
200 bytes, which it keeps."""
_SHARE, _SHARE_PIXELS = 16, 1 << 22
"""Most images, and pixels, that go through the cascade together: limits the tables of sums to about 50 MB."""
_FIXED = 64 << 20
"""Bytes that detection needs besides 8 for each pixel of the first scale: 3 of its colours, 5 of its maps."""
_MOST_PROPOSALS = 200_000
"""Places per photo; 60 megapixels have up to 100,000 (1,600 a megapixel at most in real photos). To compare each with
each takes a minute for so many, and grows with their square."""
_ALWAYS, _PROPOSALS_PER_PIXEL = 20_000, 0.004
"""Places that every photo may have, and how many more for each pixel: a small photo made for it takes seconds only."""
_LARGEST_BATCH = {"rnet": 32, "onet": 8}


@dataclass(frozen=True, slots=True)
class _Level:
    """One scale of some images of a batch, and their indices among all images."""

    batch: AreaBatch
    part: slice
    images: Ints
    number: int
    scale: float
    size: tuple[int, int]

    @property
    def tiles(self) -> list[tuple[slice, slice]]:
        """Where P-Net's maps are divided, row by row: the whole maps, or tiles that are computed one by one."""
        # Pooling rounds up at the far edges, where the last windows reach one pixel beyond the image.
        rows, columns = ((side - _CELL + 1) // _STRIDE + 1 for side in self.size)
        return list(itertools.product(_parts(rows), _parts(columns)))

    def cut_tiles(self) -> Iterator[NDArray[np.float32]]:
        """Cut the pixels of each tile, so that the networks' results do not grow with the photo."""
        small = self.batch.shrink(self.part, *self.size)
        for rows, columns in self.tiles:
            yield small[:, _seen(rows), _seen(columns)].astype(np.float32, order="C")

    def join_maps(self, outputs: Iterator[Outputs]) -> NDArray[np.float32]:
        """Join the maps of the tiles, which are exactly those of the whole level."""
        tiles = self.tiles
        if len(tiles) == 1:
            return next(outputs)[0]
        (last_rows, last_columns) = tiles[-1]
        joined = np.empty((len(self.images), 5, last_rows.stop, last_columns.stop), np.float32)
        for rows, columns in tiles:
            (joined[:, :, rows, columns],) = next(outputs)
        return joined


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


class MTCNN(NetworkDetector):
    """The default detector. See `edgeface.vision.detector.Detector` for `detect`.

    Boxes and landmarks are the reference's numbers. The reference counts pixels from 1, and everything that was
    trained with it uses its boxes as if they counted from 0; so does this detector. The device must support dynamic
    shapes. The photo is searched at scales from ``12 / min_size`` down, at each of which P-Net sees faces of 12 pixels;
    time grows with the inverse square of `min_size`. A box whose shorter side ends below `min_size` is left out. The
    model is a folder of det1.npz, det2.npz and det3.npz, or of pnet.xml, rnet.xml and onet.xml as `edgeface quantize
    mtcnn --as mtcnn` writes them; None: the weights of the `mtcnn` package. The networks are called ``pnet``, ``rnet``
    and ``onet``.
    """

    name = "mtcnn"
    default_threshold = _THRESHOLDS[2]

    def __init__(self, model: Path | None = None, landmarks_model: None = None, **options: Any) -> None:
        super().__init__(model, landmarks_model, **options)
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="mtcnn")

    def _read(self, model: Path | None, landmarks_model: Path | None) -> tuple[Networks, Sequence[Path]]:
        return find_nets(model)

    def close(self) -> None:
        """See `Detector.close`."""
        self._threads.shutdown()
        super().close()

    def detect(self, images: Sequence[Image]) -> list[Faces]:
        """See `Detector.detect`. Images of one size, and many at a time, are fastest.

        Raises `ImageError` if this process may not use the memory that a large photo takes.
        """
        check_images(images)
        largest = max((image.shape[0] * image.shape[1] for image in images), default=1)
        searched = int(largest * (_CELL / self._min_size) ** 2)  # pixels of the first scale
        if searched > _SHARE_PIXELS:
            purpose = f"to find faces from {self._min_size} pixels on in a photo of {largest / 1e6:.1f} megapixels"
            check_memory(_FIXED + 8 * searched, purpose)
        share = max(1, min(_SHARE, _SHARE_PIXELS // largest))
        parts = [images[start : start + share] for start in range(0, len(images), share)]
        if len(parts) < 2:
            return self._detect(images) if parts else []
        # While one part waits for a network, another one cuts out boxes and sorts them.
        return list(itertools.chain.from_iterable(self._threads.map(self._detect, parts)))

    def locate(self, image: Image, boxes: NDArray[np.floating]) -> Faces:
        """Find box and landmarks of faces that are known to be there, with O-Net alone.

        O-Net runs twice: on the square around each given box, and on the one around the box that it finds there. Its
        landmarks then differ from those of `detect` by what they differ from one run to another (3 % of the distance
        of the eyes on LFW), whichever detector drew the boxes.

        Parameters
        ----------
        image : (H, W, 3) uint8, BGR
            The photo.
        boxes : (N, 4) float
            x0, y0, x1, y1, each of more than one pixel; a box may reach beyond the image.

        Returns
        -------
        Faces
            One for each box, in their order; the score is O-Net's probability that it shows a face.

        Raises
        ------
        InputError
            If the image has another shape or type, or a box has no extent.
        EngineClosed
            If the detector was closed.
        """
        check_images([image])
        found = np.asarray(boxes, np.float64).reshape(-1, 4) + np.array([1, 1, 0, 0])
        if not (found[:, :2] < found[:, 2:]).all():
            raise InputError("boxes: expected x0, y0, x1, y1 of more than a pixel, found one without extent")
        areas, owners = [AreaImage(image)], np.zeros(len(found), np.intp)
        for _ in range(2):
            candidates, scores, shifts, points = self._judge("onet", 48, areas, _Candidates(_square(found), owners))
            shifted = _shift(candidates.boxes, shifts, pixel=1)
            has_extent = (shifted[:, :2] < shifted[:, 2:]).all(axis=1, keepdims=True)
            found = np.where(has_extent, shifted, found)
        landmarks = _landmarks(candidates, points)
        return Faces(found.astype(np.float32), landmarks.astype(np.float32), scores.astype(np.float32))

    def _detect(self, images: Sequence[Image]) -> list[Faces]:
        areas = [AreaImage(image) for image in images]
        return self._decide(areas, self._refine(areas, self._propose(areas)))

    def _propose(self, images: Sequence[AreaImage]) -> _Candidates:
        """P-Net on every scale of every image."""
        levels = _levels(images, self._min_size)
        tiles = (tile for level in levels for tile in level.cut_tiles())
        with contextlib.closing(self._stream("pnet", tiles)) as outputs:
            parts = [_read_maps(level, level.join_maps(outputs)) for level in levels]
        if not parts:
            return _Candidates(np.empty((0, 4)), np.empty(0, np.intp))
        boxes, scores, shifts, owners, numbers = map(np.concatenate, zip(*parts, strict=True))
        for image, found in zip(images, np.bincount(owners, minlength=len(images)).tolist(), strict=True):
            most = min(_MOST_PROPOSALS, _ALWAYS + int(_PROPOSALS_PER_PIXEL * image.size[0] * image.size[1]))
            if found > most:
                raise ImageError(
                    expected=f"at most {most:,} places that P-Net takes for faces in a photo of its size",
                    found=f"{found:,}",
                    remedy="look for larger faces only, or scale the photo down",
                )
        levels_of_all = owners * (1 + max(level.number for level in levels)) + numbers
        kept = nms(boxes, scores, _NMS_SCALE, groups=levels_of_all, pixel=1)
        kept = kept[nms(boxes[kept], scores[kept], _NMS, groups=owners[kept], pixel=1)]
        boxes = _shift(boxes[kept], shifts[kept], pixel=0)
        return _Candidates(_square(boxes), owners[kept])

    def _refine(self, images: Sequence[AreaImage], candidates: _Candidates) -> _Candidates:
        """R-Net on every candidate."""
        candidates, scores, shifts, _ = self._judge("rnet", 24, images, candidates)
        passed = np.flatnonzero(scores > _THRESHOLDS[1])
        candidates, scores, shifts = candidates[passed], scores[passed], shifts[passed]
        kept = nms(candidates.boxes, scores, _NMS, groups=candidates.owners, pixel=1)
        boxes = _shift(candidates.boxes[kept], shifts[kept], pixel=1)
        return _Candidates(_square(boxes), candidates.owners[kept])

    def _decide(self, images: Sequence[AreaImage], candidates: _Candidates) -> list[Faces]:
        """O-Net on what is left."""
        candidates, scores, shifts, points = self._judge("onet", 48, images, candidates)
        passed = np.flatnonzero(scores > self._threshold)
        candidates, scores, shifts = candidates[passed], scores[passed], shifts[passed]
        landmarks = _landmarks(candidates, points[passed])
        boxes = _shift(candidates.boxes, shifts, pixel=1)
        owners = candidates.owners
        kept = nms(boxes, scores, _NMS, groups=owners, relative_to="smaller", pixel=1)
        kept = kept[(boxes[kept, 2:] - boxes[kept, :2]).min(axis=1, initial=np.inf) >= self._min_size]
        bounds = np.searchsorted(owners[kept], np.arange(1, len(images)))
        return [
            Faces(boxes[part].astype(np.float32), landmarks[part].astype(np.float32), scores[part].astype(np.float32))
            for part in np.split(kept, bounds)
        ]

    def _judge(
        self, name: str, side: int, images: Sequence[AreaImage], candidates: _Candidates
    ) -> tuple[_Candidates, Floats, Floats, Floats]:
        """Run a network on every box: probabilities (K,), regressions (K, 4), landmarks (K, 0 or 10).

        Boxes without extent are dropped.
        """
        has_extent = (candidates.boxes[:, 2:] >= candidates.boxes[:, :2]).all(axis=1)
        candidates = candidates[np.flatnonzero(has_extent)]
        total, largest = len(candidates), _LARGEST_BATCH[name]
        outputs = self._run(
            name,
            (
                _cut(images, candidates[np.arange(start, min(start + largest, total))], side)
                for start in range(0, total, largest)
            ),
        )
        found = np.concatenate([found for (found,) in outputs] or [np.empty((0, 15))])[:total].astype(np.float64)
        return candidates, _probability(found[:, 0]), found[:, 1:5], found[:, 5:]


def _levels(images: Sequence[AreaImage], min_size: int) -> list[_Level]:
    """List the scales for P-Net: the largest first, images of one size together."""
    same_size: dict[tuple[int, int], list[int]] = {}
    for index, picture in enumerate(images):
        same_size.setdefault(picture.size, []).append(index)
    levels = []
    for (width, height), indices in same_size.items():
        batch = AreaBatch([images[index] for index in indices])
        number, first = 0, _CELL / min_size
        side = min(height, width) * first
        while side >= _CELL:
            scale = first * _FACTOR**number
            size = int(np.ceil(height * scale)), int(np.ceil(width * scale))
            share = max(1, _REQUEST_PIXELS // (size[0] * size[1]))
            parts = [slice(start, start + share) for start in range(0, len(indices), share)]
            levels += [_Level(batch, part, np.array(indices[part]), number, scale, size) for part in parts]
            number += 1
            side *= _FACTOR
    return levels


def _parts(cells: int) -> list[slice]:
    """Divide a side of P-Net's maps."""
    return [slice(start, min(start + _TILE, cells)) for start in range(0, cells, _TILE)]


def _seen(cells: slice) -> slice:
    """Return the pixels that P-Net's windows of some cells see; the last ones may end at the image's edge."""
    return slice(cells.start * _STRIDE, (cells.stop - 1) * _STRIDE + _CELL)


def _read_maps(level: _Level, maps: NDArray[np.float32]) -> tuple[np.ndarray, ...]:
    """Read boxes, scores, regressions, images and level numbers of the cells of P-Net's maps that may be faces."""
    image, x, y = np.nonzero(maps[:, 0].transpose(0, 2, 1) >= _LOWEST_LOGIT)
    cells = np.stack([x, y], axis=1) * _STRIDE
    boxes = np.fix(np.concatenate([cells + 1, cells + _CELL], axis=1) / level.scale)
    # Where a scale has a single candidate the reference mirrors the map of regressions before it looks there.
    alone = np.bincount(image, minlength=len(level.images))[image] == 1
    column = np.where(alone, maps.shape[3] - 1 - x, x)
    numbers = np.full(len(image), level.number)
    return (boxes, _probability(maps[image, 0, y, x]), maps[image, 1:, y, column], level.images[image], numbers)


def _cut(images: Sequence[AreaImage], candidates: _Candidates, side: int) -> NDArray[np.float32]:
    """Cut out and resize every box.

    The batch is filled up to the next of a few sizes, four from each power of two to the next: a network prepares
    for a shape only once.
    """
    step = max(1, 1 << (len(candidates) - 1).bit_length() >> 3)
    batch = np.zeros((-(-len(candidates) // step) * step, side, side, 3), np.float32)
    boxes = (candidates.boxes.astype(np.intp) - (1, 1, 0, 0)).tolist()
    # One call of OpenCV a box: boxes have all sizes, and nothing else averages areas as the reference did.
    for into, owner, box in zip(batch, candidates.owners.tolist(), boxes, strict=False):
        images[owner].cut(*box, into)
    return batch


def _probability(logit: NDArray[np.floating]) -> Floats:
    """Compute in single precision, as the reference does: near 1 different logits give equal probabilities."""
    odds_against = np.exp(-np.maximum(logit.astype(np.float32), np.float32(-80)))
    return np.asarray(np.float32(1) / (np.float32(1) + odds_against), np.float64)


def _landmarks(candidates: _Candidates, points: Floats) -> Floats:
    """Turn x1..x5, y1..y5 in units of each box into (K, 5, 2) pixels."""
    corners, sides = candidates.boxes[:, :2], candidates.boxes[:, 2:] - candidates.boxes[:, :2] + 1
    relative = points.reshape(-1, 2, 5).transpose(0, 2, 1)
    return np.asarray(relative * sides[:, None] + corners[:, None] - 1)


def _shift(boxes: Floats, shifts: np.ndarray, *, pixel: int) -> Floats:
    """Move each corner by a regression in units of the box's sides, which include `pixel` or not."""
    sides = boxes[:, 2:] - boxes[:, :2] + pixel
    return np.asarray(boxes + shifts * np.tile(sides, 2))


def _square(boxes: Floats) -> Floats:
    """Grow the shorter side around the centre, and round towards zero."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longest = sides.max(axis=1, keepdims=True, initial=0)
    low = boxes[:, :2] + sides * 0.5 - longest * 0.5
    return np.fix(np.concatenate([low, low + longest], axis=1))
