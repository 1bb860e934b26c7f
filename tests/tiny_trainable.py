"""Photos of people who differ in colour and pattern, and a small network of three blocks to train on them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openvino as ov
from contracts import sample_contract

from edgeface.convert.ir import save_ir
from edgeface.model.opset import ops

SIZE, DIM = 16, 8


def write_photos(root: Path, people: int, photos: int, *, seed: int = 0) -> Path:
    """Write people who differ in colour and pattern, each with photos of another light."""
    rng = np.random.default_rng(seed)
    for person in range(people):
        pattern = rng.integers(40, 200, (4, 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
        (root / f"P{seed}_{person:02}").mkdir(parents=True, exist_ok=True)
        for photo in range(photos):
            noise = rng.normal(0, 15, (4, 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
            image = (pattern * rng.uniform(0.8, 1.2) + noise).clip(0, 255)
            cv2.imwrite(str(root / f"P{seed}_{person:02}" / f"{photo}.png"), image.astype(np.uint8))
    return root


def face_net(*, seed: int = 3) -> ov.Model:
    """(B, 3, 16, 16) raw images to (B, 8) of unit length: a strided convolution, a residual one, a dense layer."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)

    image = ops.parameter([-1, 3, SIZE, SIZE], np.float32, name="image")
    centred = ops.multiply(ops.subtract(image, np.float32(120)), np.float32(1 / 64))
    x = ops.convolution(centred, normal(8, 3, 4, 4), [4, 4], [0, 0], [0, 0], [1, 1])
    y = ops.convolution(ops.relu(x), normal(8, 8, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1])
    z = ops.add(ops.add(y, normal(1, 8, 1, 1)), x)
    dense = ops.matmul(ops.reshape(z, np.array([0, -1]), special_zero=True), normal(DIM, 128), False, True)
    model = ov.Model([ops.normalize_l2(dense, np.array([1]), 1e-10, "max")], [image], "faces")
    model.input(0).set_names({"image"})
    model.output(0).set_names({"embeddings"})
    return model


def write_net(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    return save_ir(face_net(), folder, sample_contract(**{"embedding_dim": DIM, **changes}))[0]
