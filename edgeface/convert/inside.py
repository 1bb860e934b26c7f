"""Notice preprocessing that a graph already has: its first operations are run on plain images and seen to be affine.

What they compute is measured rather than read off, so it does not matter how they are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.recipe import Recipe, is_raw
from edgeface.errors import InputError
from edgeface.model.contract import Layout

_ARITHMETIC = frozenset({"Add", "Subtract", "Multiply", "Divide", "Power", "BatchNormInference"})
_REORDERING = frozenset({"Gather", "Split", "VariadicSplit", "Concat", "StridedSlice", "Slice", "Squeeze", "Unsqueeze"})
_LOOKED_THROUGH = frozenset(
    {"Identity", "Convert", "Transpose", "Clamp", "Minimum", "Maximum", "Round", "FakeQuantize"}
)
_CONVOLUTIONS = frozenset({"GroupConvolution"})
"""One kernel a channel; a 1 x 1 convolution that mixes colours is learned, and the network's first layer."""
_STANDARDISED = 16
"""Widest range of an image that was divided already; what was not is 0-255."""
_LOW, _STEP = 0.25, 0.5
"""Values that are inside the range of whatever is clamped: 0-1, -1 to 1 after a mean, and 0-255."""


@dataclass(frozen=True, slots=True)
class _FirstSteps:
    """What the first operations compute: ``factor * x + shift`` of each channel of the input, (3,) float64.

    `names` are the operations in their order; `affine` is false if the result is something else.
    """

    factor: NDArray[np.float64]
    shift: NDArray[np.float64]
    names: list[str]
    affine: bool = True


def notice_preprocessing(
    model: ov.Model, *, layout: Layout, size: tuple[int, int], recipe: Recipe, path: Path
) -> list[str]:
    """Say what the first operations of a model do to its image; refuse a recipe that repeats it.

    They repeat it if both bring values of 0-255 down to a range of at most 16, or if they subtract a mean outside the
    range that the recipe leaves.

    Raises InputError if they do, or if the recipe standardises and what they compute is not understood.
    """
    steps = _first_steps(model, layout, size)
    if steps is None:
        return []
    done = ", ".join(dict.fromkeys(steps.names))
    if not steps.affine or np.any(steps.factor == 0):
        if is_raw(recipe):
            return [f"its first operations change the image ({done})"]
        raise InputError(
            path=path,
            expected="no preprocessing in the graph, or some that scales each channel",
            found=f"first operations that do something else ({done})",
            remedy="pass --mean 0 --scale 1 if they are the model's preprocessing; else export the model without them",
        )
    factor, shift = steps.factor, steps.shift
    if np.allclose(factor, 1, atol=1e-5) and np.allclose(shift, 0, atol=1e-5):
        return [f"its first operations reorder the image ({done}); the recipe's colours are those before"]
    mean, divisor = -shift / factor, 1 / factor
    told = f"(x - {_numbers(mean)}) / {_numbers(divisor)} ({done})"
    low = (0 - np.array(recipe.mean)) / np.array(recipe.scale)
    high = (255 - np.array(recipe.mean)) / np.array(recipe.scale)
    both_divide = np.all(np.abs(high - low) <= _STANDARDISED) and np.all(255 * np.abs(factor) <= _STANDARDISED)
    outside = np.all((mean <= np.minimum(low, high)) | (mean >= np.maximum(low, high)))
    if both_divide or (outside and not np.allclose(mean, 0, atol=1e-3)):
        raise InputError(
            f"{path}: its first operations compute {told} already, which the recipe's mean {list(recipe.mean)} and "
            f"scale {list(recipe.scale)} would repeat; pass --mean 0 --scale 1"
        )
    return [f"its first operations compute {told} of what the recipe gives"]


def _numbers(values: NDArray[np.float64]) -> str:
    same = np.ptp(values) <= 1e-4 * np.abs(values).max()
    return f"{values[0]:.5g}" if same else "[" + ", ".join(f"{value:.5g}" for value in values) + "]"


def _first_steps(model: ov.Model, layout: Layout, size: tuple[int, int]) -> _FirstSteps | None:
    """Run the first operations on plain images, one channel at a time; None if there are none."""
    model = model.clone()
    count = model.input(0).get_partial_shape()[0]
    batch = 8 if count.is_dynamic else count.get_length()
    model.reshape([batch, 3, *size] if layout == "NCHW" else [batch, *size, 3])
    last, names = _last_step(model)
    if last is None:
        return None
    colors = np.full((5, 3), _LOW, np.float32)
    colors[[1, 2, 3], [0, 1, 2]] += _STEP
    colors[4] += _STEP / 2
    axes = (0, 1, 4, 2, 3) if layout == "NCHW" else (0, 1, 2, 3, 4)
    images = np.broadcast_to(colors[:, None, None, None, :], (5, 1, *size, 3)).transpose(axes)[:, 0]
    found = _means(ov.Model([last], model.get_parameters(), "first steps"), images, batch)
    base, channels = found[0].astype(np.float64), found[1:4].astype(np.float64)
    gains = (channels - base) / _STEP  # (input channel, output channel)
    strongest = np.abs(gains).argmax(axis=1)
    kept = np.zeros_like(gains)
    kept[[0, 1, 2], strongest] = gains[[0, 1, 2], strongest]
    largest = np.abs(gains).max()
    middle = base + gains.sum(axis=0) * _STEP / 2
    affine = (
        np.allclose(gains, kept, atol=1e-3 * largest)
        and len(set(strongest)) == 3
        and np.allclose(middle, found[4], atol=1e-3 * largest)
    )
    factor = gains[[0, 1, 2], strongest]
    shift = base[strongest] - factor * _LOW
    if affine and strongest.tolist() == [2, 1, 0]:
        names.append("channels reversed")
    return _FirstSteps(factor, shift, names, bool(affine))


def _means(steps: ov.Model, images: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """Return the mean of each of the three channels, (N, 3), of what the operations make of each image."""
    compiled = ov.Core().compile_model(steps, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for image in images:
        made = compiled({0: np.ascontiguousarray(np.broadcast_to(image, (batch, *image.shape)))})[0][0]
        found.append(made.mean(axis=(1, 2) if made.shape[0] == 3 else (0, 1)))
    return np.array(found)


def _last_step(model: ov.Model) -> tuple[Any, list[str]]:
    """Return the output at which the first operations end, and their names; None if there are none.

    They change values and places of the three channels, and nothing else: they end at the first layer.
    """
    seen = {parameter.get_name() for parameter in model.get_parameters()}
    constant: set[str] = set()
    last, names = None, list[str]()
    for node in model.get_ordered_ops():
        name, kind = node.get_name(), node.get_type_name()
        inputs = [port.get_node().get_name() for port in node.input_values()]
        if kind in ("Constant", "ShapeOf") or (inputs and all(each in constant for each in inputs)):
            constant.add(name)
        elif inputs and all(each in seen or each in constant for each in inputs) and _is_step(node, kind):
            seen.add(name)
            if kind in _ARITHMETIC | _REORDERING | _CONVOLUTIONS:
                names.append(kind)
            if node.get_output_size() == 1 and _is_image(node.get_output_partial_shape(0)) and names:
                last = node.output(0)
    return last, names


def _is_step(node: Any, kind: str) -> bool:
    if kind in _CONVOLUTIONS:
        kernel = list(node.input_value(1).get_partial_shape())
        output = node.get_output_partial_shape(0)
        pointwise = all(axis.is_static and axis == 1 for axis in kernel[-2:])
        return pointwise and output[1].is_static and output[1] == 3 and _is_image(node.input_value(0).partial_shape)
    return kind in _ARITHMETIC | _REORDERING | _LOOKED_THROUGH


def _is_image(shape: ov.PartialShape) -> bool:
    return len(shape) == 4 and any(shape[axis].is_static and shape[axis] == 3 for axis in (1, 3))
