"""A convolutional IR with a contract, small enough to quantize in a test: seeded kernels, a residual, unit length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from contracts import sample_contract

from edgeface.convert.ir import save_ir

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

SIZE = 16
DIM = 8


def tiny_net(*, seed: int = 0) -> ov.Model:
    """(B, 3, 16, 16) raw images to (B, 8) of unit length: convolutions called a to c, a dense layer called d."""
    rng = np.random.default_rng(seed)

    def convolve(x: ov.Output, name: str, out: int, inside: int, side: int) -> ov.Node:
        kernel = rng.normal(0, (2 / (inside * side * side)) ** 0.5, (out, inside, side, side))
        edge = side // 2
        y = ops.convolution(x, kernel.astype(np.float32), [1, 1], [edge, edge], [edge, edge], [1, 1], name=name)
        return ops.relu(ops.add(y, rng.normal(0, 0.1, (1, out, 1, 1)).astype(np.float32)))

    image = ops.parameter([-1, 3, SIZE, SIZE], np.float32, name="image")
    x = convolve(ops.multiply(image, np.float32(1 / 128)), "a", 16, 3, 3)
    y = ops.add(convolve(x, "b", 16, 16, 3), x, name="residual")
    z = convolve(y, "c", 16, 16, 1)
    flat = ops.reduce_mean(z, np.array([2, 3]), keep_dims=False)
    dense = ops.matmul(flat, rng.normal(0, 1, (16, DIM)).astype(np.float32), False, False, name="d")
    unit = ops.normalize_l2(dense, np.array([1]), 1e-10, "max", name="unit")
    model = ov.Model([unit], [image], "tiny")
    model.input(0).set_names({"image"})
    model.output(0).set_names({"embeddings"})
    return model


def write_tiny_net(folder: Path, *, name: str = "tiny", seed: int = 0, **changes: object) -> Path:
    """Write the model as folder/name.xml with its contract; its pictures are crops as they are."""
    model = tiny_net(seed=seed)
    own = {"source_sha256": "a" * 64, "scale": (128, 128, 128), "embedding_dim": DIM}
    folder.mkdir(parents=True, exist_ok=True)
    return save_ir(model, folder, sample_contract(**(own | {"name": name} | changes)))[0]


def skin_crops(count: int, *, seed: int = 0) -> np.ndarray:
    """(count, 16, 16, 3) uint8 BGR: blotches redder than blue, no two alike."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 190, (count, 4, 4, 1)) + np.array([0, 25, 55])
    noise = rng.integers(-20, 20, (count, SIZE, SIZE, 3))
    return (coarse.repeat(4, axis=1).repeat(4, axis=2) + noise).clip(0, 255).astype(np.uint8)
