"""Write FaceNet's original training-and-inference graph (.pb) from weights or from a seed.

It replaces the published file where there is no network, and has what that has: the input queue, `phase_train`
conditions around batch norms, their moving averages and a dropout, and `label_batch`. No TensorFlow is needed.

    python -m edgeface.convert.facenet_graph (--weights FILE.npz | --seed N) [--embedding-size 512] -o OUT.pb
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeface.convert.inception_resnet_v1 import BATCH_NORM_EPSILON, INPUT_SIZE, SCOPE, Convolution, cells_of, walk
from edgeface.convert.messages import (
    DT_BOOL,
    DT_FLOAT,
    DT_INT32,
    DT_INT64,
    SEEDED_MARK,
    GraphDef,
    array_to_tensor,
    set_shape,
)
from edgeface.convert.seeded import seeded_weights
from edgeface.errors import EdgeFaceError, InputError
from edgeface.files import write_atomically
from edgeface.untrusted import read_npz

DROPOUT_KEEP = 0.4
"""Of the released CASIA-WebFace model (its training command in davidsandberg's wiki)."""
MOVING_AVERAGE_DECAY = 0.995
"""`train_softmax.py`, batch_norm_params."""

BatchNormOp = Literal["FusedBatchNorm", "FusedBatchNormV3"]


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz of weights keyed by TensorFlow variable name; raise InputError if it is none."""
    return read_npz(path, "an .npz with TensorFlow variables")


def write_graph(weights: Mapping[str, NDArray[Any]], path: Path, *, seeded: bool = False) -> Path:
    """Write the graph for these weights; the bytes depend on the weights alone.

    A graph of seeded weights carries a mark, so that everything made from it can say what it is.
    """
    graph = build_graph(weights)
    if seeded:
        graph.node.add(name=SEEDED_MARK, op="NoOp")
    with write_atomically(path) as partial:
        partial.write_bytes(graph.SerializeToString(deterministic=True))
    return path


def build_graph(
    weights: Mapping[str, NDArray[Any]],
    *,
    batch_norm: BatchNormOp = "FusedBatchNormV3",
    queue: bool = True,
    size: tuple[int, int] = (INPUT_SIZE, INPUT_SIZE),
) -> Any:
    """Build the GraphDef of float32 weights by TensorFlow name; kernels HWIO.

    Batch norm has no gamma in the released files; where ``.../BatchNorm/gamma`` is among the weights, it is used.
    `batch_norm` is the operation of the released files (TensorFlow 1.7) or of today's TensorFlow. Without `queue`,
    `image_batch` is a plain placeholder. `size` is (height, width) of the images, in pixels.

    Raises InputError if a weight is missing, superfluous, or of the wrong shape, or the size is too small.
    """
    bottleneck = weights.get(f"{SCOPE}/Bottleneck/weights")
    if bottleneck is None:
        raise InputError(f"weights: expected {SCOPE}/Bottleneck/weights among them, found {len(weights)} other arrays")
    writer = _FaceNetWriter(weights, batch_norm, size)
    image = writer.inputs(queue=queue)
    walk(writer, image, int(bottleneck.shape[1]))
    if unused := sorted(weights.keys() - writer.used):
        raise InputError(f"weights: {len(unused)} arrays belong to no layer, the first is {unused[0]!r}")
    return writer.graph


class _Conditional:
    """`tf.cond(phase_train, ...)` of TensorFlow 1: a Switch for each tensor and branch, and Merges."""

    def __init__(self, writer: _FaceNetWriter, path: str) -> None:
        self._writer, self._path = writer, path
        self._switches: dict[tuple[str, bool], str] = {}
        self._merges = 0
        switch = writer.node(f"{path}/Switch", "Switch", "phase_train", "phase_train", T=DT_BOOL)
        self._pivot = writer.node(f"{path}/switch_t", "Identity", f"{switch}:1", T=DT_BOOL)
        writer.node(f"{path}/switch_f", "Identity", switch, T=DT_BOOL)
        self._predicate = writer.node(f"{path}/pred_id", "Identity", "phase_train", T=DT_BOOL)

    def when_true(self, tensor: str) -> str:
        """Return a tensor as the true branch sees it."""
        return f"{self._switch(tensor, branch=True)}:1"

    def when_false(self, tensor: str) -> str:
        """Return a tensor as the false branch sees it."""
        return self._switch(tensor, branch=False)

    def constant_when_true(self, name: str, value: Any) -> str:
        """Append a constant of the true branch."""
        return self._writer.constant(f"{self._path}/{name}", value, f"^{self._pivot}")

    def merge(self, when_false: str, when_true: str) -> str:
        """Append the Merge that passes on the branch that was computed."""
        name = f"{self._path}/Merge" + (f"_{self._merges}" if self._merges else "")
        self._merges += 1
        return self._writer.node(name, "Merge", when_false, when_true, N=2, T=DT_FLOAT)

    def _switch(self, tensor: str, *, branch: bool) -> str:
        key = (tensor, branch)
        if key not in self._switches:
            name = f"{self._path}/Switch_{len(self._switches) + 1}"
            self._switches[key] = self._writer.node(name, "Switch", tensor, self._predicate, T=DT_FLOAT)
        return self._switches[key]


_TYPES = frozenset({"T", "U", "Tidx", "Tshape", "dtype", "out_type"})


def _set_attribute(attribute: Any, key: str, value: Any) -> None:
    if key in _TYPES:
        attribute.type = value
    elif key == "component_types":
        attribute.list.type.extend(value)
    elif key == "shape":
        set_shape(attribute.shape, value)
    elif key == "shapes":
        for shape in value:
            set_shape(attribute.list.shape.add(), shape)
    elif isinstance(value, bool):
        attribute.b = value
    elif isinstance(value, int):
        attribute.i = value
    elif isinstance(value, float):
        attribute.f = value
    elif isinstance(value, bytes):
        attribute.s = value
    else:
        attribute.list.i.extend(value)


class _FaceNetWriter:
    """Interprets the layers as TensorFlow nodes; a tensor is its name."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], batch_norm: BatchNormOp, size: tuple[int, int]) -> None:
        self.graph = GraphDef()
        self.graph.versions.producer = 24  # TensorFlow 1.7
        self.used: set[str] = set()
        self._weights = weights
        self._batch_norm = batch_norm
        self._size = size
        self._channels: dict[str, int] = {}

    def inputs(self, *, queue: bool) -> str:
        self.node("batch_size", "Placeholder", dtype=DT_INT32, shape=())
        self.node("phase_train", "Placeholder", dtype=DT_BOOL, shape=())
        if queue:
            types = [DT_FLOAT, DT_INT64]
            fifo = self.node(
                "batch_join/fifo_queue",
                "FIFOQueueV2",
                component_types=types,
                shapes=[(*self._size, 3), ()],
                capacity=360,
                container=b"",
                shared_name=b"",
            )
            inputs = (fifo, "batch_size")
            self.node("batch_join", "QueueDequeueUpToV2", *inputs, component_types=types, timeout_ms=-1)
            image = self.node("image_batch", "Identity", "batch_join", T=DT_FLOAT)
            self.node("label_batch", "Identity", "batch_join:1", T=DT_INT64)
        else:
            image = self.node("image_batch", "Placeholder", dtype=DT_FLOAT, shape=(-1, *self._size, 3))
        image = self.node("input", "Identity", image, T=DT_FLOAT)
        self._channels[image] = 3
        return image

    def convolution(self, layer: Convolution, x: str) -> str:
        path, channels = f"{SCOPE}/{layer.name}", layer.channels
        weights = self._variable(f"{path}/weights", (*layer.kernel, self._channels[x], channels))
        y = self.node(
            f"{path}/Conv2D",
            "Conv2D",
            x,
            weights,
            T=DT_FLOAT,
            strides=[1, layer.stride, layer.stride, 1],
            padding=layer.padding.encode(),
            data_format=b"NHWC",
            use_cudnn_on_gpu=True,
            dilations=[1, 1, 1, 1],
        )
        if layer.normalized:
            y = self._conditional_batch_norm(f"{path}/BatchNorm", y, channels)
        else:
            bias = self._variable(f"{path}/biases", (channels,))
            y = self.node(f"{path}/BiasAdd", "BiasAdd", y, bias, T=DT_FLOAT, data_format=b"NHWC")
        if layer.relu:
            y = self.node(f"{path}/Relu", "Relu", y, T=DT_FLOAT)
        self._channels[y] = channels
        return y

    def max_pool(self, name: str, x: str) -> str:
        return self._pool(f"{SCOPE}/{name}/MaxPool", "MaxPool", x, window=(3, 3), stride=(2, 2))

    def concatenate(self, name: str, xs: list[str]) -> str:
        axis = self.constant(f"{SCOPE}/{name}/axis", np.array(3, np.int32))
        y = self.node(f"{SCOPE}/{name}", "ConcatV2", *xs, axis, N=len(xs), T=DT_FLOAT, Tidx=DT_INT32)
        self._channels[y] = sum(self._channels[x] for x in xs)
        return y

    def residual(self, name: str, x: str, update: str, scale: float, *, relu: bool) -> str:
        path = f"{SCOPE}/{name}"
        factor = self.constant(f"{path}/mul/y", np.float32(scale))
        scaled = self.node(f"{path}/mul", "Mul", update, factor, T=DT_FLOAT)
        y = self.node(f"{path}/add", "Add", x, scaled, T=DT_FLOAT)
        if relu:
            y = self.node(f"{path}/Relu", "Relu", y, T=DT_FLOAT)
        self._channels[y] = self._channels[x]
        return y

    def head(self, name: str, x: str, embedding_size: int) -> str:
        path, channels = f"{SCOPE}/{name}", self._channels[x]
        cells = (cells_of(self._size[0]), cells_of(self._size[1]))
        pooled = self._pool(f"{path}/AvgPool_1a_8x8/AvgPool", "AvgPool", x, window=cells, stride=cells)
        flat_shape = self.constant(f"{path}/Flatten/shape", np.array([-1, channels], np.int32))
        flat = self.node(f"{path}/Flatten/Reshape", "Reshape", pooled, flat_shape, T=DT_FLOAT, Tshape=DT_INT32)
        dropped = self._conditional_dropout(f"{path}/Dropout", flat)
        path = f"{SCOPE}/Bottleneck"
        weights = self._variable(f"{path}/weights", (channels, embedding_size))
        y = self.node(f"{path}/MatMul", "MatMul", dropped, weights, T=DT_FLOAT, transpose_a=False, transpose_b=False)
        # A fused batch norm takes images only: each embedding becomes an image of one pixel.
        pixel = self.constant(f"{path}/BatchNorm/shape", np.array([-1, 1, 1, embedding_size], np.int32))
        y = self.node(f"{path}/BatchNorm/Reshape", "Reshape", y, pixel, T=DT_FLOAT, Tshape=DT_INT32)
        y = self._conditional_batch_norm(f"{path}/BatchNorm", y, embedding_size)
        row = self.constant(f"{path}/BatchNorm/shape_1", np.array([-1, embedding_size], np.int32))
        y = self.node(f"{path}/BatchNorm/Reshape_1", "Reshape", y, row, T=DT_FLOAT, Tshape=DT_INT32)
        return self._l2_normalize("embeddings", y)

    # --- what only training needs -------------------------------------------------------------------------------

    def _conditional_batch_norm(self, path: str, x: str, channels: int) -> str:
        """`tf.cond(phase_train, batch statistics, moving averages)`, then the update of the averages."""
        if f"{path}/gamma" in self._weights:
            gamma = self._variable(f"{path}/gamma", (channels,))
        else:
            gamma = self.constant(f"{path}/Const", np.ones(channels, np.float32))
        beta = self._variable(f"{path}/beta", (channels,))
        mean = self._variable(f"{path}/moving_mean", (channels,))
        variance = self._variable(f"{path}/moving_variance", (channels,))
        cond = _Conditional(self, f"{path}/cond")
        nothing = [cond.constant_when_true(f"Const_{index}", np.zeros(0, np.float32)) for index in range(2)]
        training = self._fused_batch_norm(
            f"{path}/cond/{self._batch_norm}",
            [*(cond.when_true(each) for each in (x, gamma, beta)), *nothing],
            is_training=True,
        )
        inference = self._fused_batch_norm(
            f"{path}/cond/{self._batch_norm}_1",
            [cond.when_false(each) for each in (x, gamma, beta, mean, variance)],
            is_training=False,
        )
        y, batch_mean, batch_variance = (
            cond.merge(f"{inference}{output}", f"{training}{output}") for output in ("", ":1", ":2")
        )
        return self._moving_average_update(path, y, {mean: batch_mean, variance: batch_variance})

    def _moving_average_update(self, path: str, y: str, batch_statistics: Mapping[str, str]) -> str:
        """`variable -= (variable - statistic) * (1 - decay)` while training; frozen, an AssignSub is a Sub."""
        cond = _Conditional(self, f"{path}/cond_1")
        updates = []
        for index, (variable, statistic) in enumerate(batch_statistics.items()):
            average = f"{path}/cond_1/AssignMovingAvg_{index}"
            decay = cond.constant_when_true(f"AssignMovingAvg_{index}/decay", np.float32(1 - MOVING_AVERAGE_DECAY))
            difference = self.node(
                f"{average}/sub", "Sub", cond.when_true(variable), cond.when_true(statistic), T=DT_FLOAT
            )
            step = self.node(f"{average}/mul", "Mul", difference, decay, T=DT_FLOAT)
            reference = cond.when_true(variable.removesuffix("/read"))
            updates.append(self.node(average, "Sub", reference, step, T=DT_FLOAT))
        forced = self.node(
            f"{path}/cond_1/Identity", "Identity", cond.when_true(y), *(f"^{update}" for update in updates), T=DT_FLOAT
        )
        return cond.merge(cond.when_false(y), forced)

    def _conditional_dropout(self, path: str, x: str) -> str:
        """`tf.cond(phase_train, dropout, identity)`."""
        cond = _Conditional(self, f"{path}/cond")
        active = cond.when_true(x)
        keep = cond.constant_when_true("dropout/keep_prob", np.float32(DROPOUT_KEEP))
        shape = self.node(f"{path}/cond/dropout/Shape", "Shape", active, T=DT_FLOAT, out_type=DT_INT32)
        uniform = self.node(
            f"{path}/cond/dropout/random_uniform", "RandomUniform", shape, T=DT_INT32, dtype=DT_FLOAT, seed=0, seed2=0
        )
        shifted = self.node(f"{path}/cond/dropout/add", "Add", keep, uniform, T=DT_FLOAT)
        mask = self.node(f"{path}/cond/dropout/Floor", "Floor", shifted, T=DT_FLOAT)
        scaled = self.node(f"{path}/cond/dropout/div", "RealDiv", active, keep, T=DT_FLOAT)
        dropped = self.node(f"{path}/cond/dropout/mul", "Mul", scaled, mask, T=DT_FLOAT)
        return cond.merge(cond.when_false(x), dropped)

    # --- nodes --------------------------------------------------------------------------------------------------

    def constant(self, name: str, value: Any, *controls: str) -> str:
        """Append a constant and return its name."""
        node = self.graph.node.add(name=name, op="Const")
        node.input.extend(controls)
        array_to_tensor(np.asarray(value), node.attr["value"].tensor)
        node.attr["dtype"].type = node.attr["value"].tensor.dtype
        return name

    def node(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        """Append an operation with its attributes and return its name."""
        node = self.graph.node.add(name=name, op=op)
        node.input.extend(inputs)
        for key, value in attributes.items():
            _set_attribute(node.attr[key], key, value)
        return name

    def _fused_batch_norm(self, name: str, inputs: list[str], *, is_training: bool) -> str:
        extra = {"U": DT_FLOAT} if self._batch_norm == "FusedBatchNormV3" else {}
        options = {"epsilon": BATCH_NORM_EPSILON, "data_format": b"NHWC", "is_training": is_training, **extra}
        return self.node(name, self._batch_norm, *inputs, T=DT_FLOAT, **options)

    def _l2_normalize(self, name: str, x: str) -> str:
        """`tf.nn.l2_normalize(x, 1, 1e-10)`."""
        square = self.node(f"{name}/Square", "Square", x, T=DT_FLOAT)
        axis = self.constant(f"{name}/Sum/reduction_indices", np.array(1, np.int32))
        total = self.node(f"{name}/Sum", "Sum", square, axis, T=DT_FLOAT, Tidx=DT_INT32, keep_dims=True)
        epsilon = self.constant(f"{name}/Maximum/y", np.float32(1e-10))
        floor = self.node(f"{name}/Maximum", "Maximum", total, epsilon, T=DT_FLOAT)
        inverse = self.node(f"{name}/Rsqrt", "Rsqrt", floor, T=DT_FLOAT)
        return self.node(name, "Mul", x, inverse, T=DT_FLOAT)

    def _pool(self, name: str, op: str, x: str, *, window: tuple[int, int], stride: tuple[int, int]) -> str:
        steps = {"ksize": [1, *window, 1], "strides": [1, *stride, 1]}
        y = self.node(name, op, x, T=DT_FLOAT, **steps, padding=b"VALID", data_format=b"NHWC")
        self._channels[y] = self._channels[x]
        return y

    def _variable(self, name: str, shape: tuple[int, ...]) -> str:
        """A frozen variable: a constant and the Identity that reads it."""
        value = self._weights.get(name)
        if value is None or value.shape != shape:
            found = "none" if value is None else f"shape {value.shape}"
            raise InputError(f"weights: expected {name!r} of shape {shape}, found {found}")
        self.used.add(name)
        constant = self.constant(name, value.astype(np.float32, copy=False))
        return self.node(f"{name}/read", "Identity", constant, T=DT_FLOAT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in this module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m edgeface.convert.facenet_graph", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, help=".npz keyed by TensorFlow variable name")
    source.add_argument("--seed", type=int, help="random weights that tell images apart and recognise no one")
    parser.add_argument("--embedding-size", type=int, default=512, help="with --seed (default: 512)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .pb to write")
    options = parser.parse_args(arguments)
    try:
        if options.weights is None:
            weights = seeded_weights(options.seed, options.embedding_size)
        else:
            weights = read_weights(options.weights)
        write_graph(weights, options.output, seeded=options.weights is None)
    except EdgeFaceError as error:
        sys.stderr.write(f"facenet_graph: {error}\n")
        return error.exit_code
    kind = "published-form weights" if options.weights else "SEEDED weights: this model recognises no one"
    sys.stderr.write(f"{options.output}: {options.output.stat().st_size:,} bytes, {kind}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
