"""Read MiniFASNet liveness models from their PyTorch state dictionaries, and build their network, without torch.

The architecture is minivision-ai/Silent-Face-Anti-Spoofing's `src/model_lib/MiniFASNet.py`: 3x3 convolutions, then four
stages of depthwise blocks of which three are residual, then a depthwise convolution over the last feature map and two
matrices. Its variants differ in the channels, which the weights tell, and in whether the last block of a stage weighs
its channels (squeeze and excitation: "SE").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.source import SourceModel, digest_of_weights, structure_of
from edgeface.errors import ConversionError
from edgeface.files import sha256_of
from edgeface.model.opset import ops
from edgeface.torch_file import read_torch

BATCH_NORM_EPSILON = 1e-5
"""Of torch's BatchNorm2d and BatchNorm1d."""

_STAGES = (("conv_23", 0), ("conv_3", 4), ("conv_34", 0), ("conv_4", 6), ("conv_45", 0), ("conv_5", 2))
"""Name of each stage and its number of residual blocks; 0: one block that halves the feature map."""
_ANCHOR = "conv1.conv.weight"

Weights = Mapping[str, NDArray[Any]]


def load_minifasnet(path: Path, *, size: tuple[int, int], classes: int) -> SourceModel:
    """Read the state dictionary of a MiniFASNet, without torch.

    Parameters
    ----------
    path
        A .pth, of either of PyTorch's formats. Its keys may have a prefix such as ``module.``.
    size
        (height, width) of a crop in pixels.
    classes
        Number of classes.

    Returns
    -------
    SourceModel
        Takes (?, 3, height, width) float32 of raw BGR values, 0 to 255; returns (?, classes) probabilities: the
        network's logits through a softmax.

    Raises
    ------
    ModelFormatError
        If the file is damaged, or is no state dictionary.
    ConversionError
        If it is that of another network, or for other crops or classes.
    """
    state = read_torch(path)
    prefixes = {key.removesuffix(_ANCHOR) for key in state if key.endswith(_ANCHOR)}
    if len(prefixes) != 1:
        raise _another_network(path, f"{len(state)} tensors, {len(prefixes)} of them called {_ANCHOR}")
    (prefix,) = prefixes
    net = _Network({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    try:
        model = net.build(size)
    except (KeyError, ValueError, RuntimeError) as error:  # RuntimeError: shapes that OpenVINO refuses
        reason = str(error).strip().splitlines() or ["its tensors do not fit together"]
        raise _another_network(path, f"one without it: {reason[-1]:.200}") from error
    ignored = {key for key in net.weights if key.endswith(".num_batches_tracked")}
    if unused := sorted(net.weights.keys() - net.used - ignored):
        raise _another_network(path, f"{len(unused)} tensors more: {', '.join(unused[:5])}")
    found = model.output(0).get_partial_shape()
    if found != ov.PartialShape([-1, classes]):
        raise _another_network(path, f"an output of {found} where (?, {classes}) is expected")
    arrays = [net.weights[key] for key in net.used]
    if not all(np.isfinite(array).all() for array in arrays):
        raise _another_network(path, "numbers that are not finite")
    return SourceModel(
        model=model,
        layout="NCHW",
        framework="pytorch",
        sha256=sha256_of(path),
        weights_id=digest_of_weights(arrays, structure_of(model)),
        normalized=None,
    )


def _another_network(path: Path, found: str) -> ConversionError:
    return ConversionError(
        path=path,
        expected="the state dictionary of a MiniFASNet of upstream's architecture",
        found=found,
        remedy="download it again: edgeface zoo download minifasnet-v2,minifasnet-v1se",
    )


class _Network:
    """Builds OpenVINO nodes of (?, C, H, W); `used` lists the keys in the order of the network."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.used: dict[str, None] = {}

    def build(self, size: tuple[int, int]) -> ov.Model:
        """Raise KeyError, ValueError or RuntimeError where a tensor is missing or of a shape that does not fit."""
        image = ops.parameter([-1, 3, *size], np.float32, name="image")
        x = self.block(image, "conv1", stride=2, padding=1)
        x = self.block(x, "conv2_dw", padding=1)
        for stage, residuals in _STAGES:
            if not residuals:
                x = self.depthwise(x, stage, stride=2)
            for index in range(residuals):
                x = ops.add(x, self.depthwise(x, f"{stage}.model.{index}", stride=1))
        x = self.block(x, "conv_6_sep")
        x = self.normalize(self.convolve(x, "conv_6_dw"), "conv_6_dw.bn")
        shape = x.output(0).get_partial_shape()
        if shape != ov.PartialShape([-1, shape[1], 1, 1]):
            raise ValueError(f"crops of {size[0]} x {size[1]} pixels leave a feature map of {shape}")
        x = ops.reshape(x, np.array([0, -1]), True)
        x = self.normalize(self.multiply(x, "linear"), "bn")
        return ov.Model([ops.softmax(self.multiply(x, "prob"), 1)], [image], "minifasnet")

    def depthwise(self, x: Any, name: str, *, stride: int) -> Any:
        """Expand by 1x1, convolve each channel by 3x3, project by 1x1; weigh the channels if there is an SE module."""
        x = self.block(x, f"{name}.conv")
        x = self.block(x, f"{name}.conv_dw", stride=stride, padding=1)
        x = self.normalize(self.convolve(x, f"{name}.project"), f"{name}.project.bn")
        module = f"{name}.se_module"
        if f"{module}.fc1.weight" not in self.weights:
            return x
        weight = ops.reduce_mean(x, np.array([2, 3]), True)
        weight = ops.relu(self.normalize(self.convolve(weight, module, of="fc1"), f"{module}.bn1"))
        weight = ops.sigmoid(self.normalize(self.convolve(weight, module, of="fc2"), f"{module}.bn2"))
        return ops.multiply(x, weight)

    def block(self, x: Any, name: str, *, stride: int = 1, padding: int = 0) -> Any:
        """Convolution, batch norm, PReLU."""
        x = self.normalize(self.convolve(x, name, stride=stride, padding=padding), f"{name}.bn")
        return ops.prelu(x, self.array(f"{name}.prelu.weight", 1))

    def convolve(self, x: Any, name: str, *, of: str = "conv", stride: int = 1, padding: int = 0) -> Any:
        """Convolution without bias; kernels of one input channel belong to one channel each."""
        kernels, pads = self.array(f"{name}.{of}.weight", 4), [padding, padding]
        inputs = x.output(0).get_partial_shape()[1].get_length()
        if kernels.shape[1] == 1 and kernels.shape[0] == inputs:
            grouped = kernels[:, None]
            return ops.group_convolution(x, grouped, [stride, stride], pads, pads, [1, 1], name=name)
        return ops.convolution(x, kernels, [stride, stride], pads, pads, [1, 1], name=name)

    def normalize(self, x: Any, name: str) -> Any:
        """Batch norm."""
        parts = [self.array(f"{name}.{part}", 1) for part in ("weight", "bias", "running_mean", "running_var")]
        return ops.batch_norm_inference(x, *parts, BATCH_NORM_EPSILON)

    def multiply(self, x: Any, name: str) -> Any:
        """Matrix of (out, in) without bias."""
        return ops.matmul(x, self.array(f"{name}.weight", 2), False, True)

    def array(self, key: str, axes: int) -> NDArray[np.float32]:
        """Return weights, and note that they are used."""
        if key not in self.weights:
            raise ValueError(f"expected a tensor {key}, found none")
        array = self.weights[key]
        if array.dtype.kind != "f" or array.ndim != axes or not array.size:
            raise ValueError(f"{key}: expected floats of {axes} axes, found {array.dtype} of shape {array.shape}")
        self.used[key] = None
        return np.ascontiguousarray(array, np.float32)
