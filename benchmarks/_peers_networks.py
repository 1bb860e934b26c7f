"""FaceNet's weights by TensorFlow name in, the same network for ONNX Runtime and for PyTorch out.

Both are written from the description that the converter uses (`edgeface.convert.inception_resnet_v1`), with batch
norm already folded into the convolutions: what each peer would be shipped as, and the best that it can be given.
Input (N, 3, 160, 160) float32, RGB, (x - 127.5) / 128; output (N, 512) float32, unit length.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeface.convert.inception_resnet_v1 import BATCH_NORM_EPSILON, INPUT_SIZE, SCOPE, Convolution, walk

__all__ = ["INPUT", "OUTPUT", "onnx_model", "torch_model"]

INPUT, OUTPUT = "image", "embedding"

Weights = Mapping[str, NDArray[np.float32]]


def onnx_model(weights: Weights, path: Path) -> Path:
    """Write the network as ONNX, opset 17, with a dynamic batch."""
    import onnx
    from onnx import TensorProto, helper

    net = _OnnxNet(weights)
    walk(net, INPUT, _embedding_size(weights))
    shape = ["N", 3, INPUT_SIZE, INPUT_SIZE]
    graph = helper.make_graph(
        net.nodes,
        "facenet",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", _embedding_size(weights)])],
        net.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def torch_model(weights: Weights) -> Any:
    """Build the network as a `torch.nn.Module` in evaluation mode."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleDict()

        def forward(self, x: Any) -> Any:
            return walk(_TorchNet(weights, self.layers), x, _embedding_size(weights))

    net = Net()
    with torch.inference_mode():
        net(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE))  # the first pass makes the layers
    return net.eval()


class _Folded(NamedTuple):
    """A convolution or a matrix: kernel (O, I, H, W) or (O, I), bias (O,)."""

    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]


def _fold(weights: Weights, path: str, *, normalized: bool) -> _Folded:
    kernel = weights[f"{path}/weights"].astype(np.float64)
    kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
    if normalized:
        variance = weights[f"{path}/BatchNorm/moving_variance"].astype(np.float64)
        scale = 1 / np.sqrt(variance + BATCH_NORM_EPSILON)
        bias = weights[f"{path}/BatchNorm/beta"] - weights[f"{path}/BatchNorm/moving_mean"] * scale
        kernel = kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
    else:
        bias = weights[f"{path}/biases"]
    return _Folded(np.ascontiguousarray(kernel, np.float32), bias.astype(np.float32))


def _pads(layer: Convolution) -> tuple[int, int]:
    """Pixels a side; every SAME convolution of this network has stride 1 and an odd kernel."""
    if layer.padding == "VALID":
        return 0, 0
    if layer.stride != 1:
        raise ValueError(f"expected stride 1 where the padding is SAME, found {layer.stride}")
    return layer.kernel[0] // 2, layer.kernel[1] // 2


def _embedding_size(weights: Weights) -> int:
    return int(weights[f"{SCOPE}/Bottleneck/weights"].shape[1])


class _OnnxNet:
    """Interprets the layers as ONNX nodes; a tensor is its name."""

    def __init__(self, weights: Weights) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._weights = weights

    def convolution(self, layer: Convolution, x: str) -> str:
        folded = _fold(self._weights, f"{SCOPE}/{layer.name}", normalized=layer.normalized)
        parts = [self._constant(f"{layer.name}/{kind}", value) for kind, value in folded._asdict().items()]
        strides, pads = [layer.stride] * 2, list(_pads(layer) * 2)
        y = self._node(layer.name, "Conv", x, *parts, kernel_shape=layer.kernel, strides=strides, pads=pads)
        return self._node(f"{layer.name}/Relu", "Relu", y) if layer.relu else y

    def max_pool(self, name: str, x: str) -> str:
        return self._node(name, "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])

    def concatenate(self, name: str, xs: list[str]) -> str:
        return self._node(name, "Concat", *xs, axis=1)

    def residual(self, name: str, x: str, update: str, scale: float, *, relu: bool) -> str:
        scaled = self._node(f"{name}/mul", "Mul", update, self._constant(f"{name}/scale", np.float32(scale)))
        y = self._node(f"{name}/add", "Add", x, scaled)
        return self._node(f"{name}/Relu", "Relu", y) if relu else y

    def head(self, name: str, x: str, embedding_size: int) -> str:
        pooled = self._node(f"{name}/pool", "GlobalAveragePool", x)
        flat = self._node(f"{name}/flat", "Flatten", pooled)
        matrix, bias = _fold(self._weights, f"{SCOPE}/Bottleneck", normalized=True)
        parts = self._constant("Bottleneck/kernel", matrix), self._constant("Bottleneck/bias", bias)
        y = self._node("Bottleneck", "Gemm", flat, *parts, transB=1)
        length = self._node("length", "ReduceL2", y, axes=[1], keepdims=1)
        return self._node(OUTPUT, "Div", y, length)

    def _node(self, name: str, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


class _TorchNet:
    """Interprets the layers as PyTorch calls; a tensor is a tensor. Layers are made when they are met first."""

    def __init__(self, weights: Weights, layers: Any) -> None:
        self._weights, self._layers = weights, layers

    def convolution(self, layer: Convolution, x: Any) -> Any:
        import torch

        name = layer.name
        if name not in self._layers:
            folded = _fold(self._weights, f"{SCOPE}/{name}", normalized=layer.normalized)
            options = {"stride": layer.stride, "padding": _pads(layer)}
            made = torch.nn.Conv2d(x.shape[1], layer.channels, layer.kernel, **options)
            self._layers[name] = _filled(made, folded)
        y = self._layers[name](x)
        return torch.relu_(y) if layer.relu else y

    def max_pool(self, name: str, x: Any) -> Any:
        import torch

        return torch.nn.functional.max_pool2d(x, 3, 2)

    def concatenate(self, name: str, xs: list[Any]) -> Any:
        import torch

        return torch.cat(xs, 1)

    def residual(self, name: str, x: Any, update: Any, scale: float, *, relu: bool) -> Any:
        import torch

        y = torch.add(x, update, alpha=scale)
        return torch.relu_(y) if relu else y

    def head(self, name: str, x: Any, embedding_size: int) -> Any:
        import torch

        if name not in self._layers:
            folded = _fold(self._weights, f"{SCOPE}/Bottleneck", normalized=True)
            self._layers[name] = _filled(torch.nn.Linear(x.shape[1], embedding_size), folded)
        return torch.nn.functional.normalize(self._layers[name](x.mean((2, 3))))


def _filled(layer: Any, folded: _Folded) -> Any:
    import torch

    layer.weight.data, layer.bias.data = (torch.from_numpy(each) for each in folded)
    return layer.requires_grad_(False)
