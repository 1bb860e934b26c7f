"""The TensorFlow reference: MTCNN's original graphs inside davidsandberg's control flow, one image at a time.

This is what edgeface's detector is measured against and checked with. It follows
`facenet/src/align/detect_face.py` step by step, loops and all, and shares nothing with `edgeface.vision`: the
weights are the original ones, the pictures are RGB, and every one is transposed on its way into a network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Array = np.ndarray
Net = Callable[[Array], list[Array]]

_SPECS: dict[str, tuple[str, int | None, list[tuple[str, Any]], list[str]]] = {
    "pnet": ("det1.npz", None, [("PReLU1", (2, "SAME")), ("PReLU2", None), ("PReLU3", None)], ["conv4-1", "conv4-2"]),
    "rnet": (
        "det2.npz",
        24,
        [("prelu1", (3, "SAME")), ("prelu2", (3, "VALID")), ("prelu3", None), ("prelu4", None)],
        ["conv5-1", "conv5-2"],
    ),
    "onet": (
        "det3.npz",
        48,
        [
            ("prelu1", (3, "SAME")),
            ("prelu2", (3, "VALID")),
            ("prelu3", (2, "SAME")),
            ("prelu4", None),
            ("prelu5", None),
        ],
        ["conv6-1", "conv6-2", "conv6-3"],
    ),
}
"""File, side, (activation, pooling) of the hidden layers, heads: the face or not, boxes, (landmarks)."""


class TensorFlowMTCNN:
    """The three graphs in one TensorFlow 1 session, as the reference holds them.

    Parameters
    ----------
    folder
        With det1.npz, det2.npz and det3.npz.
    threads
        Of the session; None leaves TensorFlow its own choice.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        import tensorflow as tf

        v1 = tf.compat.v1
        graph = tf.Graph()
        with graph.as_default():
            fetches = {name: _build(v1, name, folder) for name in _SPECS}
        config = v1.ConfigProto(intra_op_parallelism_threads=threads or 0)
        self._session = v1.Session(graph=graph, config=config)
        self._nets: dict[str, Net] = {
            name: lambda x, given=given, wanted=wanted: self._session.run(wanted, {given: x})
            for name, (given, wanted) in fetches.items()
        }

    def detect(
        self, rgb: Array, *, minsize: int = 20, thresholds: tuple[float, ...] = (0.6, 0.7, 0.7)
    ) -> tuple[Array, Array]:
        """Find the faces of one (H, W, 3) uint8 RGB image: boxes with scores (N, 5), points (10, N)."""
        boxes = self._first_stage(rgb, minsize, thresholds[0])
        if len(boxes):
            boxes = self._second_stage(rgb, boxes, thresholds[1])
        if len(boxes):
            return self._third_stage(rgb, boxes, thresholds[2])
        return np.empty((0, 5)), np.empty((10, 0))

    def _first_stage(self, rgb: Array, minsize: int, threshold: float) -> Array:
        height, width = rgb.shape[:2]
        found = np.empty((0, 9))
        smallest, scale = min(height, width) * 12 / minsize, 12 / minsize
        count = 0
        while smallest >= 12:
            current = scale * 0.709**count
            size = int(np.ceil(width * current)), int(np.ceil(height * current))
            picture = (cv2.resize(rgb, size, interpolation=cv2.INTER_AREA) - 127.5) * 0.0078125
            face, shift = self._nets["pnet"](np.transpose(picture[None], (0, 2, 1, 3)))
            boxes = _boxes_of_map(face[0, :, :, 1], shift[0], current, threshold)
            found = np.append(found, boxes[_nms(boxes, 0.5, "Union")], axis=0)
            smallest *= 0.709
            count += 1
        found = found[_nms(found, 0.7, "Union")]
        sides = np.tile(found[:, 2:4] - found[:, 0:2], 2)
        found = np.hstack([found[:, :4] + found[:, 5:9] * sides, found[:, 4:5]])
        return _to_whole_squares(found)

    def _second_stage(self, rgb: Array, boxes: Array, threshold: float) -> Array:
        face, shift = self._nets["rnet"](_cut_out(rgb, boxes, 24))
        passed = np.where(face[:, 1] > threshold)[0]
        boxes = np.hstack([boxes[passed, :4], face[passed, 1:2]])
        pick = _nms(boxes, 0.7, "Union")
        return _to_whole_squares(_calibrate(boxes[pick], shift[passed][pick]))

    def _third_stage(self, rgb: Array, boxes: Array, threshold: float) -> tuple[Array, Array]:
        face, shift, points = self._nets["onet"](_cut_out(rgb, boxes, 48))
        passed = np.where(face[:, 1] > threshold)[0]
        boxes, points = np.hstack([boxes[passed, :4], face[passed, 1:2]]), points[passed].T
        width, height = boxes[:, 2] - boxes[:, 0] + 1, boxes[:, 3] - boxes[:, 1] + 1
        points[0:5] = np.tile(width, (5, 1)) * points[0:5] + np.tile(boxes[:, 0], (5, 1)) - 1
        points[5:10] = np.tile(height, (5, 1)) * points[5:10] + np.tile(boxes[:, 1], (5, 1)) - 1
        boxes = _calibrate(boxes, shift[passed])
        pick = _nms(boxes, 0.7, "Min")
        return boxes[pick], points[:, pick]


def _build(v1: Any, name: str, folder: Path) -> tuple[Any, list[Any]]:
    file, side, hidden, heads = _SPECS[name]
    weights = np.load(folder / file)
    given = x = v1.placeholder("float32", [None, side, side, 3])
    for number, (activation, pool) in enumerate(hidden, 1):
        x = _layer(v1, x, weights, f"conv{number}")
        alpha = v1.constant(weights[f"{activation}/alpha"])
        x = v1.nn.relu(x) + alpha * -v1.nn.relu(-x)
        if pool:
            x = v1.nn.max_pool(x, [1, pool[0], pool[0], 1], [1, 2, 2, 1], padding=pool[1])
    logits, *others = (_layer(v1, x, weights, head) for head in heads)
    return given, [v1.nn.softmax(logits), *others]


def _layer(v1: Any, x: Any, weights: Any, name: str) -> Any:
    kernel = weights[f"{name}/weights"]
    if kernel.ndim == 4:
        x = v1.nn.conv2d(x, v1.constant(kernel), strides=[1, 1, 1, 1], padding="VALID")
    else:
        x = v1.matmul(v1.reshape(x, [-1, len(kernel)]), v1.constant(kernel))
    return v1.nn.bias_add(x, v1.constant(weights[f"{name}/biases"]))


def _boxes_of_map(face: Array, shift: Array, scale: float, threshold: float) -> Array:
    """Cells of P-Net's map, whose axes are still x, y, that may be faces: box, score, regression (N, 9)."""
    x, y = np.where(face >= threshold)
    if len(x) == 1:
        shift = np.flipud(shift)
    cells = np.vstack([x, y]).T
    low, high = np.fix((2 * cells + 1) / scale), np.fix((2 * cells + 12) / scale)
    return np.hstack([low, high, face[x, y][:, None], shift[x, y]])


def _nms(boxes: Array, threshold: float, method: str) -> Array:
    x1, y1, x2, y2, score = boxes[:, :5].T
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    left, pick = np.argsort(score), []
    while left.size:
        best, rest = left[-1], left[:-1]
        pick.append(best)
        width = np.maximum(0, np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + 1)
        height = np.maximum(0, np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + 1)
        shared = width * height
        whole = np.minimum(area[best], area[rest]) if method == "Min" else area[best] + area[rest] - shared
        left = rest[shared / whole <= threshold]
    return np.array(pick, np.int16)


def _calibrate(boxes: Array, shift: Array) -> Array:
    sides = np.tile(boxes[:, 2:4] - boxes[:, 0:2] + 1, 2)
    return np.hstack([boxes[:, :4] + shift * sides, boxes[:, 4:]])


def _to_whole_squares(boxes: Array) -> Array:
    boxes = boxes.copy()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    longest = np.maximum(width, height)
    boxes[:, 0] += width * 0.5 - longest * 0.5
    boxes[:, 1] += height * 0.5 - longest * 0.5
    boxes[:, 2:4] = boxes[:, 0:2] + longest[:, None]
    boxes[:, :4] = np.fix(boxes[:, :4])
    return boxes


def _cut_out(rgb: Array, boxes: Array, side: int) -> Array:
    """Pictures in the boxes, black outside the image, standardised and transposed: (N, side, side, 3)."""
    height, width = rgb.shape[:2]
    cut = np.zeros((side, side, 3, len(boxes)))
    for k, (x1, y1, x2, y2) in enumerate(boxes[:, :4].astype(int)):
        part = np.zeros((y2 - y1 + 1, x2 - x1 + 1, 3))
        top, bottom, left, right = max(y1, 1), min(y2, height), max(x1, 1), min(x2, width)
        part[top - y1 : bottom - y1 + 1, left - x1 : right - x1 + 1] = rgb[top - 1 : bottom, left - 1 : right]
        cut[:, :, :, k] = cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA)
    return np.transpose((cut - 127.5) * 0.0078125, (3, 1, 0, 2))
