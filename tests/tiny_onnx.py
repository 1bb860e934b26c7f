"""Small ONNX recognisers, written with the onnx package; weights come from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class OnnxGraph:
    """Collects nodes and initializers of a graph."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.random = np.random.default_rng(seed)

    def value(self, array: Any, dtype: Any = np.float32) -> str:
        """Add an initializer; return its name."""
        name = f"value_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(array, dtype), name))
        return name

    def weights(self, *shape: int, scale: float | None = None) -> str:
        """Add random weights, by default such that variances stay."""
        scale = 1 / np.sqrt(np.prod(shape[1:])) if scale is None else scale
        return self.value(self.random.normal(0, scale, shape))

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node of one output; return the output's name."""
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"n_{output}", **attributes))
        return output

    def model(self, shape: Sequence[Any], outputs: dict[str, Sequence[Any]], *, dtype: int = TensorProto.FLOAT) -> Any:
        """Return the checked model; its input is named ``image``."""
        graph = helper.make_graph(
            self.nodes,
            "recogniser",
            [helper.make_tensor_value_info("image", dtype, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, each) for name, each in outputs.items()],
            self.initializers,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(made)
        return made


def write_arcface(
    path: Path,
    *,
    batch: Any = "batch",
    size: Any = 112,
    layout: str = "NCHW",
    first: str = "",
    last: str = "",
    outputs: int = 1,
    channels: int = 3,
    dtype: int = TensorProto.FLOAT,
    **saving: Any,
) -> Path:
    """Write a convolutional recogniser of 16 numbers in the manner of insightface's.

    `first` are the first operations on the image: ``arithmetic`` (also ``constant first``, ``clipped``, ``split`` and
    ``depthwise``), ``norm`` or ``reversed``. `last` is the end: ``unit`` length, ``maps`` of (batch, 16, 1, 1), a
    Reshape by a fixed ``shape`` or to a ``vector``, a ``tall`` Reshape whose first axis is not the batch, a class
    ``token`` for a batch of 1, or a ``mixed`` batch, whose rows depend on each other.
    """
    graph = OnnxGraph()
    x = "image"
    if dtype != TensorProto.FLOAT:
        x = graph.node("Cast", x, to=TensorProto.FLOAT)
    if layout == "NHWC":
        x = graph.node("Transpose", x, perm=[0, 3, 1, 2])
    if first == "arithmetic":
        x = graph.node("Mul", graph.node("Sub", x, graph.value([127.5])), graph.value([0.0078125]))
    elif first == "constant first":
        x = graph.node("Sub", graph.value([127.5]), graph.node("Identity", x))
        x = graph.node("Mul", graph.value([-0.0078125]), x)
    elif first == "clipped":
        x = graph.node("Clip", x, graph.value(0), graph.value(255))
        x = graph.node("Div", graph.node("Sub", x, graph.value([127.5])), graph.value([128]))
    elif first == "split":
        parts = [f"part_{each}" for each in range(3)]
        graph.nodes.append(helper.make_node("Split", [x], parts, axis=1))
        halves = [
            graph.node("Div", graph.node("Sub", each, graph.value([127.5])), graph.value([128])) for each in parts
        ]
        x = graph.node("Concat", *halves, axis=1)
    elif first == "depthwise":
        kernel, bias = graph.value(np.full((3, 1, 1, 1), 1 / 128)), graph.value(np.full(3, -127.5 / 128))
        x = graph.node("Conv", x, kernel, bias, group=3, kernel_shape=[1, 1])
    elif first == "norm":
        ones = np.ones(3)
        norm = [graph.value(each) for each in (ones, 0 * ones, 127.5 * ones, 64.0**2 * ones)]
        x = graph.node("BatchNormalization", x, *norm, epsilon=2e-5)
    elif first == "reversed":
        x = graph.node("Gather", x, graph.value([2, 1, 0], np.int64), axis=1)
    x = graph.node(
        "Conv", x, graph.weights(8, channels, 3, 3), graph.weights(8, scale=0.1), kernel_shape=[3, 3],
        pads=[1, 1, 1, 1], strides=[2, 2],
    )  # fmt: skip
    x = graph.node("PRelu", x, graph.value(np.full((8, 1, 1), 0.25)))
    x = graph.node("Conv", x, graph.weights(16, 8, 3, 3), strides=[2, 2])
    x = graph.node("Relu", x)
    if last == "maps":
        graph.node("GlobalAveragePool", x, output="embedding")
        made = graph.model(_shape(batch, size, layout, channels), {"embedding": [batch, 16, 1, 1]})
        onnx.save(made, str(path), **saving)
        return path
    x = graph.node("GlobalAveragePool", x)
    if last == "shape":
        x = graph.node("Reshape", x, graph.value([1, 16], np.int64))
    else:
        x = graph.node("Flatten", x, axis=1)
    if last == "token":
        x = graph.node(
            "Concat", graph.weights(1, 1, 16), graph.node("Unsqueeze", x, graph.value([1], np.int64)), axis=1
        )
        x = graph.node("ReduceMean", x, axes=[1], keepdims=0)
    if last == "vector":
        x = graph.node("Unsqueeze", graph.node("Reshape", x, graph.value([16], np.int64)), graph.value([0], np.int64))
    if last == "tall":
        x = graph.node("Reshape", x, graph.value([1, 2, 8], np.int64))
        x = graph.node("Reshape", graph.node("Transpose", x, perm=[1, 0, 2]), graph.value([1, -1], np.int64))
    if last == "mixed":
        x = graph.node("Sub", x, graph.node("ReduceMean", x, axes=[0], keepdims=1))
    if outputs == 2:
        graph.node("Tanh", x, output="attributes")
    if last == "unit":
        x = graph.node("Gemm", x, graph.weights(16, 16), graph.weights(16), transB=1)
        graph.node("Div", x, graph.node("ReduceL2", x, axes=[1], keepdims=1), output="embedding")
    else:
        graph.node("Gemm", x, graph.weights(16, 16), graph.weights(16), transB=1, output="embedding")
    names = ["attributes", "embedding"][-outputs:]
    made = graph.model(_shape(batch, size, layout, channels), {name: [batch, 16] for name in names}, dtype=dtype)
    onnx.save(made, str(path), **saving)
    return path


def _shape(batch: Any, size: Any, layout: str, channels: int) -> list[Any]:
    return [batch, channels, size, size] if layout == "NCHW" else [batch, size, size, channels]


def write_face_transformer(path: Path, *, depth: int, seed: int = 0) -> Path:
    """Write Face Transformer's P8S8 network, in the form of its author's export, with random weights.

    Patches of 8 x 8 pixels as vectors in the order (row, column, channel), the class token first, attention scaled by
    512 ** -0.5 although a head has 64 numbers, exact GELU, and a layer norm of the class token as the embedding.
    """
    graph = OnnxGraph(seed)
    width, heads, patches, hidden = 512, 8, 196, 2048
    batch = graph.node("Gather", graph.node("Shape", "input_image"), graph.value(0, np.int64), axis=0)
    batch = graph.node("Unsqueeze", batch, graph.value([0], np.int64))

    def reshape(x: str, *shape: int) -> str:
        rest = graph.value(shape, np.int64)
        return graph.node("Reshape", x, graph.node("Concat", batch, rest, axis=0))

    def norm(x: str, output: str = "") -> str:
        centred = graph.node("Sub", x, graph.node("ReduceMean", x, axes=[-1]))
        square = graph.node("ReduceMean", graph.node("Mul", centred, centred), axes=[-1])
        unit = graph.node("Div", centred, graph.node("Sqrt", graph.node("Add", square, graph.value(1e-5))))
        scaled = graph.node("Mul", unit, graph.value(graph.random.normal(1, 0.1, width)))
        return graph.node("Add", scaled, graph.weights(width, scale=0.1), output=output)

    def linear(x: str, inputs: int, outputs: int, *, bias: bool = True) -> str:
        x = graph.node("MatMul", x, graph.value(graph.random.normal(0, inputs**-0.5, (inputs, outputs))))
        return graph.node("Add", x, graph.weights(outputs, scale=0.1)) if bias else x

    def attend(x: str) -> str:
        qkv = reshape(linear(x, width, 3 * width, bias=False), patches + 1, 3, heads, 64)
        qkv = graph.node("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (graph.node("Gather", qkv, graph.value(each, np.int64), axis=0) for each in range(3))
        scores = graph.node("MatMul", q, graph.node("Transpose", k, perm=[0, 1, 3, 2]))
        weights = graph.node("Softmax", graph.node("Mul", scores, graph.value(512**-0.5)), axis=-1)
        mixed = graph.node("Transpose", graph.node("MatMul", weights, v), perm=[0, 2, 1, 3])
        return linear(reshape(mixed, patches + 1, width), width, width)

    def mlp(x: str) -> str:
        x = linear(x, width, hidden)
        erf = graph.node("Erf", graph.node("Mul", x, graph.value(0.5**0.5)))
        gelu = graph.node("Mul", graph.node("Mul", x, graph.value(0.5)), graph.node("Add", erf, graph.value(1.0)))
        return linear(gelu, hidden, width)

    x = graph.node("Transpose", reshape("input_image", 3, 14, 8, 14, 8), perm=[0, 2, 4, 3, 5, 1])
    x = linear(reshape(x, patches, 192), 192, width)
    token = graph.node(
        "Expand", graph.weights(1, 1, width), graph.node("Concat", batch, graph.value([1, width], np.int64), axis=0)
    )
    x = graph.node("Concat", token, x, axis=1)
    x = graph.node("Add", x, graph.weights(1, patches + 1, width, scale=0.1))
    for _ in range(depth):
        x = graph.node("Add", attend(norm(x)), x)
        x = graph.node("Add", mlp(norm(x)), x)
    norm(graph.node("Gather", x, graph.value(0, np.int64), axis=1), output="output")
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "face_transformer",
            [helper.make_tensor_value_info("input_image", TensorProto.FLOAT, ["batch_size", 3, 112, 112])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch_size", width])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.save(made, str(path))
    return path
