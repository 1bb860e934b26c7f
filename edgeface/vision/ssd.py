"""face-detection-retail-0004: detect faces with Intel's SSD of 200 boxes, and find landmarks with a second network.

The second one is landmarks-regression-retail-0009. Both are described in Open Model Zoo,
`models/intel/<name>/README.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import openvino as ov

from edgeface.errors import ModelFormatError
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image
from edgeface.vision.networks import NetworkDetector, Networks, check_images, read_network

_SIDE, _LANDMARKS_SIDE = 300, 48


class RetailSSD(NetworkDetector):
    """See `edgeface.vision.detector.Detector` for `detect`.

    The whole image is resized to 300 x 300, so faces smaller than about a fifteenth of its side are not found; those
    smaller than `min_size` are left out. Boxes are clipped to the image. The model is face-detection-retail-0004.xml,
    the landmarks model landmarks-regression-retail-0009.xml, without which landmarks are NaN. The networks are called
    ``model`` and ``landmarks``.
    """

    name = "retail-0004"
    default_threshold = 0.5  # Open Model Zoo, `demos/common/python/models/ssd.py`

    def _read(self, model: Path | None, landmarks_model: Path | None) -> tuple[Networks, Sequence[Path]]:
        networks = {"model": _read_shaped(model, [1, 3, _SIDE, _SIDE], [1, 1, 200, 7])}
        if landmarks_model is not None:
            given = [1, 3, _LANDMARKS_SIDE, _LANDMARKS_SIDE]
            networks["landmarks"] = _read_shaped(landmarks_model, given, [1, 10, 1, 1])
        return networks, [model] if model else []

    def detect(self, images: Sequence[Image]) -> list[Faces]:
        """See `Detector.detect`. Images are computed concurrently, and so are the landmarks of all faces."""
        check_images(images)
        outputs = self._run("model", (_blob(image, _SIDE) for image in images))
        found = [self._decode(output, image) for (output,), image in zip(outputs, images, strict=True)]
        points = self._find_landmarks(images, [boxes for boxes, _ in found])
        faces = []
        for boxes, scores in found:
            faces.append(Faces(boxes, points[: len(boxes)], scores))
            points = points[len(boxes) :]
        return faces

    def _decode(self, output: np.ndarray, image: Image) -> tuple[np.ndarray, np.ndarray]:
        """Read boxes and scores, best first, from rows of image number, label, confidence, x0, y0, x1, y1."""
        height, width = image.shape[:2]
        rows = output[0, 0]
        rows = rows[: np.argmax(rows[:, 0] < 0)] if (rows[:, 0] < 0).any() else rows  # -1 ends the list
        boxes = np.clip(rows[:, 3:], 0, 1) * np.array([width, height] * 2, np.float32)
        sides = boxes[:, 2:] - boxes[:, :2]
        good = (rows[:, 2] >= self._threshold) & (sides >= self._min_size).all(axis=1)
        order = np.flatnonzero(good)[np.argsort(-rows[good, 2], kind="stable")]
        return boxes[order], rows[order, 2]

    def _find_landmarks(self, images: Sequence[Image], boxes: Sequence[np.ndarray]) -> np.ndarray:
        """Find the landmarks of all boxes of all images: (N, 5, 2) float32."""
        every = np.concatenate([np.empty((0, 4), np.float32), *boxes])
        if "landmarks" not in self._engines or not len(every):
            return np.full((len(every), 5, 2), np.nan, np.float32)
        crops = ((image, box) for image, part in zip(images, boxes, strict=True) for box in part)
        blobs = (
            _blob(image[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))], _LANDMARKS_SIDE)
            for image, (x0, y0, x1, y1) in crops
        )
        outputs = self._run("landmarks", blobs)
        relative = np.stack([output[0].reshape(5, 2) for output in outputs])
        low, high = np.floor(every[:, None, :2]), np.ceil(every[:, None, 2:])
        return np.asarray(low + relative * (high - low), np.float32)


def _read_shaped(path: Path | None, given: list[int], wanted: list[int]) -> ov.Model:
    network = read_network(path)
    found = [
        list(port.partial_shape.to_shape()) if port.partial_shape.is_static else None
        for port in (*network.inputs, *network.outputs)
    ]
    if found != [given, wanted]:
        raise ModelFormatError(f"{path}: expected an input {given} and an output {wanted}, found {found}")
    return network


def _blob(image: Image, side: int) -> np.ndarray:
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized.transpose(2, 0, 1)[None], np.float32)
