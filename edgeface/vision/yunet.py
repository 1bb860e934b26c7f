"""YuNet: detect faces with one small network for boxes, scores and five landmarks at three strides.

Wu, Peng, Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20, 2023; decoded as
`modules/objdetect/src/face_detect.cpp` of OpenCV does it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ModelFormatError
from edgeface.runtime.schedule import Outputs
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image
from edgeface.vision.networks import NetworkDetector, Networks, check_images, read_network
from edgeface.vision.nms import nms, overlaps

_STRIDES = (8, 16, 32)
_NMS = 0.3
"""Largest overlap, as in OpenCV."""
_SMALLEST = 12
"""Pixels that the smallest face has in the largest scaled image. YuNet finds faces of 10 to 300 pixels; of a larger
one it finds a part."""
_LONGEST_SIDE = 640
"""Photos up to this size are not scaled; larger ones are not scaled to less."""
_LAST = 800
"""Longest side of a scaled photo in which the largest faces are not too large."""
_STEP, _LARGEST = 4, 128
"""From one scale to the next, and the longer side of the largest face that is taken from any but the last one."""
_TILE = 1280
"""Longest side of what is computed at once, which bounds the memory. Tiles overlap by `_LARGEST` pixels."""
_SEEN, _AGAIN, _FACE_AGAIN = 36, 96, 64
"""Faces that were seen smaller are looked at again: side of that look, and the face's own there, in pixels."""
_BATCH = 16
"""Most of them in a request."""
_WITHIN, _SAME = 0.5, 0.5
"""Share of a small box within a large one that makes it a part of that, and overlap that makes two boxes one face."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What is computed at once: a part of a photo that was scaled, in pixels of the scaled photo.

    Faces count whose centre is in `core` (x0, y0, x1, y1) and whose longer side is at most `largest`.
    """

    scale: float
    left: float
    top: float
    width: int
    height: int
    core: tuple[float, float, float, float] = (-math.inf, -math.inf, math.inf, math.inf)
    largest: float = math.inf

    def place(self, faces: Faces) -> Faces:
        """Return the faces of the part that count, in pixels of the photo."""
        start = np.array([self.left, self.top], np.float32)
        boxes, landmarks = faces.boxes + np.tile(start, 2), faces.landmarks + start
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        mine = ((centres >= self.core[:2]) & (centres < self.core[2:])).all(axis=1) & (_sides(boxes) <= self.largest)
        scale = np.float32(self.scale)
        return Faces(boxes / scale, landmarks / scale, faces.scores)[mine]


class YuNet(NetworkDetector):
    """See `edgeface.vision.detector.Detector` for `detect`.

    The model is yunet_n_dynamic.onnx, or an export with another fixed size; its network is called ``model``. A photo
    of more than 640 pixels is scaled so that a face of `min_size` keeps 12, but not below 640; if it is still much
    larger, it is searched at a quarter of that again, and so on, for the larger faces. Faces of less than 36 pixels in
    a scaled photo are then located in the photo's own pixels. Of the faces that are found, those smaller
    than `min_size` are left out.
    """

    name = "yunet"
    default_threshold = 0.7  # OpenCV's 0.9 loses small faces

    def _read(self, model: Path | None, landmarks_model: Path | None) -> tuple[Networks, Sequence[Path]]:
        network = read_network(model)
        names = {name for output in network.outputs for name in output.names}
        expected = {f"{head}_{stride}" for head in ("cls", "obj", "bbox", "kps") for stride in _STRIDES}
        if len(network.inputs) != 1 or not expected <= names:
            raise ModelFormatError(f"{model}: expected YuNet's outputs cls_8 to kps_32, found {sorted(names)}")
        shape = network.input(0).partial_shape
        self._fixed = None if shape.is_dynamic else (shape[2].get_length(), shape[3].get_length())
        self._batch = _BATCH if shape[0].is_dynamic else 1
        self._order = [
            next(i for i, output in enumerate(network.outputs) if name in output.names)
            for name in (f"{head}_{stride}" for stride in _STRIDES for head in ("cls", "obj", "bbox", "kps"))
        ]
        return {"model": network}, [model] if model else []

    def detect(self, images: Sequence[Image]) -> list[Faces]:
        """See `Detector.detect`. Images are computed concurrently, each at its own size."""
        check_images(images)
        plans = [self._plan(*image.shape[:2]) for image in images]
        prepared = (blob for image, plan in zip(images, plans, strict=True) for blob in self._prepare(image, plan))
        with contextlib.closing(self._stream("model", prepared)) as outputs:
            found = [self._join(plan, [self._decode(next(outputs), look) for look in plan]) for plan in plans]
        return self._locate(images, plans, found)

    def _locate(self, images: Sequence[Image], plans: Sequence[list[_Look]], found: Sequence[Faces]) -> list[Faces]:
        """Look once more at faces that were seen small, in the photo's own pixels: boxes and landmarks get exact."""
        again = [
            (number, index, *closer)
            for number, (image, plan, faces) in enumerate(zip(images, plans, found, strict=True))
            for index, box in enumerate(faces.boxes)
            if (closer := _look_closer(image, plan, box)) is not None
        ]
        groups = [again[start : start + self._batch] for start in range(0, len(again), self._batch)]
        blobs = (np.concatenate([self._blob(part, _AGAIN, _AGAIN) for *_, part in group]) for group in groups)
        for group, outputs in zip(groups, self._run("model", blobs), strict=True):
            for row, (number, index, look, _) in enumerate(group):
                old, seen = found[number], self._of_size(self._decode(outputs, look, row))
                shared = overlaps(old.boxes[[index]], seen.boxes)[0]
                if shared.max(initial=0) > _SAME:
                    best = shared.argmax()
                    old.boxes[index], old.landmarks[index] = seen.boxes[best], seen.landmarks[best]
        return list(found)

    def _plan(self, height: int, width: int) -> list[_Look]:
        """Choose what is computed of a photo, the finest scale first."""
        if self._fixed is not None:
            return _looks(height, width, min(self._fixed[0] / height, self._fixed[1] / width), tile=max(self._fixed))
        longest = max(height, width)
        scale = min(1, max(_LONGEST_SIDE / longest, _SMALLEST / self._min_size))
        looks: list[_Look] = []
        while longest * scale > _LAST:
            looks += _looks(height, width, scale, largest=_LARGEST)
            scale /= _STEP
        return looks + _looks(height, width, scale)

    def _prepare(self, image: Image, plan: Sequence[_Look]) -> Iterator[np.ndarray]:
        """Scale a photo, each time from the scale before, and yield the network's input for each part."""
        height, width = image.shape[:2]
        for scale, looks in itertools.groupby(plan, lambda look: look.scale):
            image = _resize(image, _scaled(height, scale), _scaled(width, scale))
            for look in looks:
                left, top = int(look.left), int(look.top)
                part = image[top : top + look.height, left : left + look.width]
                yield self._blob(part, look.height, look.width)

    def _blob(self, part: Image, height: int, width: int) -> np.ndarray:
        """Put pixels in the top left corner of a black (1, 3, H, W) float32."""
        padded = np.zeros((1, 3, *self._input(height, width)), np.float32)
        height, width = part.shape[:2]
        padded[0, :, :height, :width] = part.transpose(2, 0, 1)
        return padded

    def _input(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the network's input: rounded up to multiples of 32."""
        return self._fixed or (-(-height // 32) * 32, -(-width // 32) * 32)

    def _decode(self, outputs: Outputs, look: _Look, row: int = 0) -> Faces:
        boxes, landmarks, scores = [], [], []
        columns = self._input(look.height, look.width)[1]
        for level, stride in enumerate(_STRIDES):
            face, present, box, points = (outputs[index][row] for index in self._order[4 * level : 4 * level + 4])
            score = np.sqrt(np.clip(face[:, 0], 0, 1) * np.clip(present[:, 0], 0, 1))
            found = np.flatnonzero(score >= self._threshold)
            down, right = np.divmod(found, columns // stride)
            anchor = np.stack([right, down], axis=1).astype(np.float32)
            centre, half = anchor + box[found, :2], np.exp(box[found, 2:]) / 2
            boxes.append(np.concatenate([centre - half, centre + half], axis=1) * stride)
            landmarks.append((anchor[:, None] + points[found].reshape(-1, 5, 2)) * stride)
            scores.append(score[found])
        parts = (np.concatenate(part).astype(np.float32) for part in (boxes, landmarks, scores))
        return look.place(Faces(*parts))

    def _join(self, plan: Sequence[_Look], found: Sequence[Faces]) -> Faces:
        """Keep the best of boxes that overlap. What a finer scale finds within a face that is large there is a part."""
        joined = Faces.empty()
        by_scale = itertools.groupby(zip(plan[::-1], found[::-1], strict=True), lambda each: each[0].scale)
        for scale, each in by_scale:
            faces = self._of_size(_concatenate([faces for _, faces in each]))
            faces = faces[nms(faces.boxes, faces.scores, _NMS)]
            large = joined[_sides(joined.boxes) * scale > _LARGEST]
            within = overlaps(large.boxes, faces.boxes, relative_to="smaller") > _WITHIN
            parts = within & (large.scores[:, None] > faces.scores)
            joined = _concatenate([joined, faces[np.flatnonzero(~parts.any(axis=0))]])
        return joined[nms(joined.boxes, joined.scores, _NMS)]

    def _of_size(self, faces: Faces) -> Faces:
        """Leave out the faces below the smallest size."""
        sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
        return faces[np.flatnonzero(sides.min(axis=1, initial=np.inf) >= self._min_size)]


def _looks(height: int, width: int, scale: float, *, largest: float = math.inf, tile: int = _TILE) -> list[_Look]:
    """Divide a scaled photo into parts of at most `tile` pixels a side that overlap, each with a core of its own."""
    return [
        _Look(scale, left, top, right - left, bottom - top, (x0, y0, x1, y1), largest)
        for top, bottom, y0, y1 in _divide(_scaled(height, scale), tile)
        for left, right, x0, x1 in _divide(_scaled(width, scale), tile)
    ]


def _divide(length: int, tile: int) -> list[tuple[int, int, float, float]]:
    """Return begin and end of each part of a length, and of its core; the first and last core are open."""
    count, half = max(1, -(-(length - _LARGEST) // (tile - _LARGEST))), _LARGEST // 2
    edges = [-math.inf, *(length * number / count for number in range(1, count)), math.inf]
    return [
        (int(max(0, low - half)), int(min(length, high + half)), low, high) for low, high in itertools.pairwise(edges)
    ]


def _look_closer(image: Image, plan: Sequence[_Look], box: NDArray[np.float32]) -> tuple[_Look, Image] | None:
    """Return how to look at a face in the photo's own pixels, and these, scaled; None if little is gained."""
    height, width = image.shape[:2]
    side = float(_sides(box[None])[0])
    first = next(look.scale for look in plan if side * look.scale <= look.largest)
    scale = min(1, _FACE_AGAIN / side)
    if first == 1 or side * first >= _SEEN:
        return None
    x0, y0, x1, y1 = (
        int(np.clip(round((low + high) / 2 + way * _AGAIN / 2 / scale), 0, end))
        for way in (-1, 1)
        for low, high, end in ((box[0], box[2], width), (box[1], box[3], height))
    )
    if x0 == x1 or y0 == y1:
        return None
    part = _resize(image[y0:y1, x0:x1], *(min(_AGAIN, _scaled(end, scale)) for end in (y1 - y0, x1 - x0)))
    return _Look(scale, x0 * scale, y0 * scale, _AGAIN, _AGAIN), part


def _resize(image: Image, height: int, width: int) -> Image:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _scaled(side: int, scale: float) -> int:
    return max(1, round(side * scale))


def _sides(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the longer side of each box."""
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=-np.inf))


def _concatenate(parts: Sequence[Faces]) -> Faces:
    return Faces(*(np.concatenate([getattr(each, name) for each in parts]) for name in Faces.__slots__))
