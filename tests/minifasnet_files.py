"""A MiniFASNet of a few channels and seeded weights, as a state dictionary and as an IR, without any real data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgeface.model.liveness_contract import LivenessContract
from edgeface.model.opset import ops
from edgeface.vision.detector import Faces

BLOCKS = {"conv_23": 0, "conv_3": 4, "conv_34": 0, "conv_4": 6, "conv_45": 0, "conv_5": 2}


def state_of_minifasnet(*, se: bool, size: int = 80, seed: int = 0, prefix: str = "module.") -> dict[str, np.ndarray]:
    """Return tensors under upstream's keys; `se`: the last block of each residual stage weighs its channels."""
    rng = np.random.default_rng(seed)
    state: dict[str, np.ndarray] = {}

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    def norm(name: str, channels: int) -> None:
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -1, 1), ("running_mean", -1, 1), ("running_var", 1, 2)):
            state[f"{name}.{part}"] = rng.uniform(low, high, channels).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.array(1)

    def block(name: str, out: int, inputs: int, kernel: int) -> None:
        layer(f"{name}.conv", out, inputs, kernel, kernel)
        norm(f"{name}.bn", out)
        state[f"{name}.prelu.weight"] = rng.uniform(0, 0.5, out).astype(np.float32)

    def depthwise(name: str, inputs: int, inner: int, out: int, *, weighs: bool) -> None:
        block(f"{name}.conv", inner, inputs, 1)
        block(f"{name}.conv_dw", inner, 1, 3)
        layer(f"{name}.project.conv", out, inner, 1, 1)
        norm(f"{name}.project.bn", out)
        if weighs:
            layer(f"{name}.se_module.fc1", out // 4, out, 1, 1)
            norm(f"{name}.se_module.bn1", out // 4)
            layer(f"{name}.se_module.fc2", out, out // 4, 1, 1)
            norm(f"{name}.se_module.bn2", out)

    block("conv1", 4, 3, 3)
    block("conv2_dw", 4, 1, 3)
    channels = 4
    for stage, residuals in BLOCKS.items():
        if residuals:
            for index in range(residuals):
                weighs = se and index == residuals - 1
                depthwise(f"{stage}.model.{index}", channels, 3, channels, weighs=weighs)
        else:
            depthwise(stage, channels, 5, channels + 4, weighs=False)
            channels += 4
    block("conv_6_sep", 6, channels, 1)
    layer("conv_6_dw.conv", 6, 1, size // 16, size // 16)
    norm("conv_6_dw.bn", 6)
    layer("linear", 5, 6)
    norm("bn", 5)
    layer("prob", 3, 5)
    return {prefix + key: value for key, value in state.items()}


def liveness_contract(**changes: Any) -> LivenessContract:
    """Return a contract of a model of 8 x 8 pixels, with `changes`."""
    fields: dict[str, Any] = {
        "name": "tiny-liveness",
        "framework": "pytorch",
        "source_sha256": "0" * 64,
        "weights_id": "1" * 64,
        "provenance": "unknown",
        "input_name": "image",
        "output_name": "probabilities",
        "input_size": (8, 8),
        "layout": "NCHW",
        "color": "BGR",
        "value_range": (0.0, 255.0),
        "crop_scale": 2.0,
        "crop": "shifted",
        "classes": ("flat", "live", "other"),
        "precision": "FP32",
        "converter_version": "0",
        "openvino_version": "0",
    }
    return LivenessContract(**(fields | changes))


def write_liveness_ir(folder: Path, **changes: Any) -> Path:
    """Write an IR that answers by the crop's mean colour: blue is flat, green live, red other."""
    from edgeface.convert.ir import save_ir

    contract = liveness_contract(**changes)
    image = ops.parameter([-1, 3, *contract.input_size], np.float32, name="image")
    image.output(0).set_names({"image"})
    colour = ops.divide(ops.reduce_mean(image, np.array([2, 3]), False), np.float32(25))
    answer = ops.softmax(colour, 1)
    answer.output(0).set_names({"probabilities"})
    folder.mkdir(exist_ok=True)
    path, _ = save_ir(ov.Model([answer], [image], "tiny_liveness"), folder, contract)
    return path


LANDMARKS = np.array([[36, 40], [64, 40], [50, 55], [38, 72], [62, 72]], np.float32)
"""Of a frontal face in a box of 100 x 100."""


def faces_at(*boxes: tuple[float, float, float, float], landmarks: bool = True) -> Faces:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    points = array[:, None, :2] + LANDMARKS * ((array[:, 2:] - array[:, :2]) / 100)[:, None]
    scores = np.ones(len(array), np.float32)
    return Faces(array, (points if landmarks else points * np.nan).astype(np.float32), scores)


def frame(color: tuple[int, int, int] = (40, 200, 40), *, size: tuple[int, int] = (480, 640), seed: int = 0) -> Any:
    """Draw a frame of blocks whose mean colour is darker, with the contrast that a face has."""
    blocks = np.random.default_rng(seed).uniform(0.6, 1.0, (size[0] // 8 + 1, size[1] // 8 + 1, 1))
    grown = blocks.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]]
    return np.rint(np.array(color) * grown).clip(0, 255).astype(np.uint8)


class MiddleDetector:
    """Finds a frontal face of 100 x 100 in the middle of every frame that is not black."""

    name = "middle"
    settings: dict[str, Any] = {"name": "middle"}  # noqa: RUF012

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        middles = ((image.shape[1] / 2, image.shape[0] / 2, bool(image.any())) for image in images)
        return [faces_at(*[(x - 50, y - 50, x + 50, y + 50)] * found) for x, y, found in middles]

    def close(self) -> None: ...
