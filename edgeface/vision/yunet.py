"""YuNet: detect faces with one small network for boxes, scores and five landmarks at three strides.

Wu, Peng, Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 20, 2023; decoded as
`modules/objdetect/src/face_detect.cpp` of OpenCV does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeface.errors import ModelFormatError
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image
from edgeface.vision.networks import NetworkDetector, Networks, check_images, read_network
from edgeface.vision.nms import nms

_STRIDES = (8, 16, 32)
_NMS = 0.3
"""Largest overlap, as in OpenCV."""
_LONGEST_SIDE = 640
"""Larger images are scaled down to this. YuNet finds faces of 10 to 300 pixels; of a larger one it finds a part."""


class YuNet(NetworkDetector):
    """See `edgeface.vision.detector.Detector` for `detect`.

    The model is yunet_n_dynamic.onnx, or an export with another fixed size; its network is called ``model``. Of the
    faces that it finds, those smaller than `min_size` are left out.
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
        self._order = [
            next(i for i, output in enumerate(network.outputs) if name in output.names)
            for name in (f"{head}_{stride}" for stride in _STRIDES for head in ("cls", "obj", "bbox", "kps"))
        ]
        return {"model": network}, [model] if model else []

    def detect(self, images: Sequence[Image]) -> list[Faces]:
        """See `Detector.detect`. Images are computed concurrently, each at its own size."""
        check_images(images)
        scales = [self._scale(image) for image in images]
        prepared = (self._prepare(image, scale) for image, scale in zip(images, scales, strict=True))
        outputs = self._run("model", prepared)
        return [
            self._decode([output[index][0] for index in self._order], self._shape(image, scale), scale)
            for output, image, scale in zip(outputs, images, scales, strict=True)
        ]

    def _scale(self, image: Image) -> float:
        if self._fixed is None:
            return float(min(1, _LONGEST_SIDE / max(image.shape[:2])))
        return float(min(self._fixed[0] / image.shape[0], self._fixed[1] / image.shape[1]))

    def _shape(self, image: Image, scale: float) -> tuple[int, int]:
        """Return height and width of the network's input: the scaled image's, rounded up to multiples of 32."""
        if self._fixed is not None:
            return self._fixed
        height, width = _scaled(image, scale)
        return -(-height // 32) * 32, -(-width // 32) * 32

    def _prepare(self, image: Image, scale: float) -> np.ndarray:
        """Put the scaled image in the top left corner of a black (1, 3, H, W) float32."""
        height, width = _scaled(image, scale)
        padded = np.zeros((1, 3, *self._shape(image, scale)), np.float32)
        if scale != 1:
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
        padded[0, :, :height, :width] = image.transpose(2, 0, 1)
        return padded

    def _decode(self, outputs: Sequence[np.ndarray], shape: tuple[int, int], scale: float) -> Faces:
        boxes, landmarks, scores = [], [], []
        for level, stride in enumerate(_STRIDES):
            face, present, box, points = outputs[4 * level : 4 * level + 4]
            score = np.sqrt(np.clip(face[:, 0], 0, 1) * np.clip(present[:, 0], 0, 1))
            found = np.flatnonzero(score >= self._threshold)
            row, column = np.divmod(found, shape[1] // stride)
            anchor = np.stack([column, row], axis=1).astype(np.float32)
            centre, half = anchor + box[found, :2], np.exp(box[found, 2:]) / 2
            boxes.append(np.concatenate([centre - half, centre + half], axis=1) * stride / scale)
            landmarks.append((anchor[:, None] + points[found].reshape(-1, 5, 2)) * stride / scale)
            scores.append(score[found])
        faces = Faces(
            np.concatenate(boxes).astype(np.float32),
            np.concatenate(landmarks).astype(np.float32),
            np.concatenate(scores).astype(np.float32),
        )
        sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
        faces = faces[np.flatnonzero(sides.min(axis=1, initial=np.inf) >= self._min_size)]
        return faces[nms(faces.boxes, faces.scores, _NMS)]


def _scaled(image: Image, scale: float) -> tuple[int, int]:
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return height, width
