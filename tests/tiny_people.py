"""Crops of people whom a tiny network tells apart, but only if its colours, range of values and sides are right."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openvino as ov
from contracts import sample_contract

from edgeface.model.contract import Color, Layout
from edgeface.model.opset import ops

SIZE = 16
HALF, RAW, UNIT = (127.5, 128.0), (0.0, 1.0), (0.0, 255.0)
"""Mean and scale."""


def write_people(folder: Path) -> Path:
    """Write 2 crops of each of 6 people: a person is a pattern of red in the left half, the rest differs by photo."""
    rng = np.random.default_rng(1)
    for number in range(6):
        pattern = rng.integers(70, 185, (4, 2)).repeat(4, axis=0).repeat(4, axis=1)
        for photo in range(2):
            image = rng.integers(70, 185, (4, 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
            image[:, :8, 2] = pattern + rng.integers(-9, 10, pattern.shape)
            path = folder / f"P{number}" / f"P{number}_000{photo + 1}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image.astype(np.uint8))
    return folder


def red_network(
    *,
    color: Color = "RGB",
    values: tuple[float, float] = HALF,
    layout: Layout = "NCHW",
    batch: int = -1,
    weights: tuple[float, float, float] = (1.0, 0.0, 0.0),
    bgr_input: bool = True,
) -> ov.Model:
    """Build a network made for RGB and (x - 127.5) / 128, behind the recipe `color` and `values`.

    Its embedding is the left half of the planes, weighted by `weights` in the order R, G, B. With `bgr_input` the
    recipe is in the network, whose input is raw BGR, as in an IR of edgeface; else its input is RGB, standardised.
    """
    shape = [batch, 3, SIZE, SIZE] if layout == "NCHW" else [batch, SIZE, SIZE, 3]
    image = ops.parameter(shape, np.float32, name="image")
    planes = image if layout == "NCHW" else ops.transpose(image, ops.constant(np.array([0, 3, 1, 2])))
    order = weights
    if bgr_input:
        planes = (planes - ops.constant(values[0], np.float32)) / ops.constant(values[1], np.float32)
        order = weights if color == "BGR" else weights[::-1]
    seen = np.zeros((1, 3, SIZE, SIZE), np.float32)
    seen[..., :8] = np.reshape(order, (1, 3, 1, 1))
    flat = ops.reshape(planes, ops.constant(np.array([0, 3, SIZE * SIZE])), special_zero=True)
    rows = ops.reduce_sum(flat * ops.constant(seen.reshape(1, 3, -1)), ops.constant(np.array([1])), keep_dims=False)
    model = ov.Model([rows], [image], "red")
    model.input(0).set_names({"image"})
    model.output(0).set_names({"embeddings"})
    return model


def write_red_ir(
    path: Path,
    *,
    color: Color = "RGB",
    values: tuple[float, float] = HALF,
    layout: Layout = "NCHW",
    batch: int = -1,
    weights: tuple[float, float, float] = (1.0, 0.0, 0.0),
    **changes: object,
) -> Path:
    """Write the network of `red_network` with a contract that tells the recipe, except for `color`."""
    model = red_network(color=color, values=values, layout=layout, batch=batch, weights=weights)
    mean, scale = values
    fields: dict[str, object] = {"mean": (mean,) * 3, "scale": (scale,) * 3, "layout": layout, "normalized": False}
    sample_contract(input_size=(SIZE, SIZE), embedding_dim=SIZE * SIZE, **{**fields, **changes}).write_to(model)
    ov.save_model(model, path, compress_to_fp16=False)
    return path
