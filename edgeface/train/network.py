"""Run the last blocks of an IR in torch, train them, and write them back into the IR.

The first blocks stay in OpenVINO, whose CPU kernels are faster and which needs no gradients there. A block is what lies
between two tensors that everything behind depends on: in Inception-ResNet-v1 the fully connected layer, each residual
block, each reduction, each convolution of the stem. The graph of the IR is kept, so an IR whose constants are written
back unchanged is the same IR.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgeface.errors import InputError, NotSupportedError
from edgeface.model.ir_file import read_ir
from edgeface.model.opset import ops
from edgeface.progress import Progress, ProgressCallback, ignore_progress

_WEIGHTED = frozenset({"Convolution", "GroupConvolution", "MatMul"})
_BATCH = 16
"""Crops that OpenVINO runs at a time."""


def count_blocks(model: ov.Model) -> int:
    """Return the number of blocks with weights that a model has, which is the most that can be trained."""
    return len(_starts(model))


def run_batches(network: nn.Module | None, features: NDArray[np.float32], *, batch: int = 256) -> NDArray[np.float32]:
    """Return what a network makes of features, without gradients; None passes them on."""
    if network is None:
        return features
    with torch.no_grad():
        rows = [network(torch.from_numpy(features[start : start + batch])) for start in range(0, len(features), batch)]
        found: NDArray[np.float32] = torch.cat(rows).numpy()
    return found


class TrainableTail(nn.Module):  # type: ignore[misc]
    """The last blocks of an IR as a torch module: features in, embeddings out.

    Batch norms are constants that conversion has folded into the weights: their statistics stay, whatever the batch.

    Parameters
    ----------
    ir
        FP32 IR with one input and one output.
    blocks
        Number of last blocks that are trained, at least 1.

    Raises
    ------
    InputError
        If the IR has fewer blocks.
    NotSupportedError
        If one of the blocks has an operation that is not known here.

    Examples
    --------
    >>> tail = TrainableTail(Path("facenet.xml"), blocks=2)  # doctest: +SKIP
    >>> embeddings = tail(torch.from_numpy(tail.features(images)))  # doctest: +SKIP
    """

    def __init__(self, ir: Path, blocks: int) -> None:
        super().__init__()
        self._ir = ir
        model = read_ir(ir)
        starts = _starts(model)
        if not 1 <= blocks <= len(starts):
            raise InputError(
                path=ir,
                expected=f"1 to {len(starts)} last blocks to unfreeze, as many as the model has",
                found=f"{blocks}",
            )
        operations = model.get_ordered_ops()
        self._cut = starts[-blocks]
        self._trunk = ov.Model([operations[self._cut].output(0)], model.get_parameters(), "trunk")
        index = {node.get_name(): number for number, node in enumerate(operations)}
        self._steps: list[tuple[int, Any, list[int]]] = []
        self._fixed: dict[int, Any] = {}
        self.weights = nn.ParameterDict()
        for number in range(self._cut + 1, len(operations)):
            node = operations[number]
            kind = node.get_type_name()
            if kind == "Constant":
                continue
            inputs = [index[port.get_node().get_name()] for port in node.input_values()]
            if kind != "Result" and kind not in _OPERATIONS:
                raise NotSupportedError(
                    f"{ir}: its operation {kind} ({node.get_friendly_name()}) cannot be trained; unfreeze fewer blocks"
                )
            for place, source in enumerate(inputs):
                constant = operations[source]
                if constant.get_type_name() == "Constant" and str(source) not in self.weights:
                    value = np.array(constant.data)
                    if _is_trainable(kind, place, value):
                        self.weights[str(source)] = nn.Parameter(torch.from_numpy(value.astype(np.float32)))
                    else:
                        self._fixed[source] = torch.from_numpy(value) if value.dtype.kind == "f" else value.tolist()
            if kind != "Result":
                self._steps.append((number, node, inputs))

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings (N, D) of features, as `features` returns them."""
        values: dict[int, Any] = {self._cut: features, **self._fixed}
        values.update({int(name): weight for name, weight in self.weights.items()})
        result = features
        for number, node, inputs in self._steps:
            result = _OPERATIONS[node.get_type_name()](node.get_attributes(), *(values[each] for each in inputs))
            values[number] = result
        return result

    def features(
        self, images: Sequence[NDArray[np.float32]], *, progress: ProgressCallback = ignore_progress
    ) -> NDArray[np.float32]:
        """Run the first blocks in OpenVINO, in FP32 on the CPU.

        Parameters
        ----------
        images : N arrays (1, ...) float32
            As the IR takes them: `edgeface.quantize.calibration.to_inputs` makes them of crops.
        progress
            Called after each batch, with the stage "features".

        Returns
        -------
        (N, ...) float32
            What the trained blocks take.
        """
        compiled = ov.Core().compile_model(self._trunk, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        request = compiled.create_infer_request()
        rows = []
        for start in range(0, len(images), _BATCH):
            batch = np.concatenate(images[start : start + _BATCH])
            rows.append(request.infer({0: batch})[0].copy())
            progress(Progress("features", start + len(batch), len(images), "crops"))
        return np.concatenate(rows)

    def write_into(self, model: ov.Model) -> ov.Model:
        """Put the trained weights into a model that was read from the same IR; return it."""
        operations = model.get_ordered_ops()
        for name, weight in self.weights.items():
            node = operations[int(name)]
            value = np.ascontiguousarray(weight.detach().numpy().reshape(node.data.shape), np.float32)
            for consumer in node.output(0).get_target_inputs():
                consumer.replace_source_output(ops.constant(value).output(0))
        return model


def _starts(model: ov.Model) -> list[int]:
    """Return the places, among the ordered operations, of the tensors that blocks with weights start from.

    All that comes later depends on such a tensor and on constants only.
    """
    operations = model.get_ordered_ops()
    index = {node.get_name(): number for number, node in enumerate(operations)}
    depends = np.zeros(len(operations), np.bool_)
    last_use = np.arange(len(operations))
    for number, node in enumerate(operations):
        sources = [index[port.get_node().get_name()] for port in node.input_values()]
        depends[number] = node.get_type_name() == "Parameter" or bool(depends[sources].any())
        last_use[sources] = number
    starts, cut, reach, weighted = list[int](), -1, -1, False
    for number in np.flatnonzero(depends).tolist():
        node = operations[number]
        weighted |= node.get_type_name() in _WEIGHTED
        if reach <= number:  # nothing from before is used later
            if weighted and cut >= 0:
                starts.append(cut)
            cut, weighted = number, False
        reach = max(reach, int(last_use[number]))
    return starts


def _is_trainable(kind: str, place: int, value: NDArray[Any]) -> bool:
    """Whether a constant is a weight, a bias or a scale; single numbers belong to the architecture."""
    if value.dtype.kind != "f" or value.size < 2:
        return False
    return (kind in _WEIGHTED and place == 1) or kind in ("Add", "Multiply")


def _padded(x: Tensor, attributes: dict[str, Any], value: float = 0.0) -> Tensor:
    begin, end = attributes["pads_begin"], attributes["pads_end"]
    pads = [pad for pair in zip(reversed(begin), reversed(end), strict=True) for pad in pair]
    return functional.pad(x, pads, value=value) if any(pads) else x


def _convolution(attributes: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    return functional.conv2d(
        _padded(x, attributes), weight, stride=attributes["strides"], dilation=attributes["dilations"]
    )


def _group_convolution(attributes: dict[str, Any], x: Tensor, weight: Tensor) -> Tensor:
    groups, per_group = weight.shape[:2]
    return functional.conv2d(
        _padded(x, attributes),
        weight.reshape(groups * per_group, *weight.shape[2:]),
        stride=attributes["strides"],
        dilation=attributes["dilations"],
        groups=groups,
    )


def _max_pool(attributes: dict[str, Any], x: Tensor) -> Tensor:
    padded = _padded(x, attributes, -torch.inf)
    ceil = attributes["rounding_type"] != "floor"
    return functional.max_pool2d(padded, attributes["kernel"], attributes["strides"], ceil_mode=ceil)


def _average_pool(attributes: dict[str, Any], x: Tensor) -> Tensor:
    if attributes["pads_begin"] != attributes["pads_end"]:
        raise NotSupportedError("AvgPool: expected equal padding on both sides to train through, found other padding")
    return functional.avg_pool2d(
        x,
        attributes["kernel"],
        attributes["strides"],
        attributes["pads_begin"],
        ceil_mode=attributes["rounding_type"] != "floor",
        count_include_pad=not attributes["exclude-pad"],
    )


def _pad(attributes: dict[str, Any], x: Tensor, begin: list[int], end: list[int], value: Any = 0.0) -> Tensor:
    if attributes["pad_mode"] != "constant":
        raise NotSupportedError(f"Pad: expected constant padding to train through, found {attributes['pad_mode']}")
    return _padded(x, {"pads_begin": begin, "pads_end": end}, float(value))


def _reshape(attributes: dict[str, Any], x: Tensor, shape: list[int]) -> Tensor:
    if attributes["special_zero"]:
        shape = [x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    return x.reshape(shape)


def _matmul(attributes: dict[str, Any], a: Tensor, b: Tensor) -> Tensor:
    a = a.mT if attributes["transpose_a"] else a
    return a @ (b.mT if attributes["transpose_b"] else b)


def _axes(axes: Any) -> list[int]:
    return list(axes) if isinstance(axes, list) else [axes]


def _normalize(attributes: dict[str, Any], x: Tensor, axes: Any) -> Tensor:
    squares = (x * x).sum(_axes(axes), keepdim=True)
    length = squares + attributes["eps"] if attributes["eps_mode"] == "add" else squares.clamp(min=attributes["eps"])
    return x / length.sqrt()


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda _, a, b: a + b,
    "AvgPool": _average_pool,
    "Concat": lambda attributes, *xs: torch.cat(xs, attributes["axis"]),
    "Convolution": _convolution,
    "Divide": lambda _, a, b: a / b,
    "GroupConvolution": _group_convolution,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Maximum": lambda _, a, b: torch.maximum(a, b),
    "Multiply": lambda _, a, b: a * b,
    "NormalizeL2": _normalize,
    "PRelu": lambda _, x, slope: torch.where(x > 0, x, x * slope.reshape(-1, *[1] * (x.ndim - 2))),
    "Pad": _pad,
    "Power": lambda _, x, power: x**power,
    "ReduceMean": lambda attributes, x, axes: x.mean(_axes(axes), keepdim=attributes["keep_dims"]),
    "ReduceSum": lambda attributes, x, axes: x.sum(_axes(axes), keepdim=attributes["keep_dims"]),
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshape,
    "Sqrt": lambda _, x: x.sqrt(),
    "Squeeze": lambda _, x, axes: x.squeeze(tuple(_axes(axes))),
    "Subtract": lambda _, a, b: a - b,
    "Transpose": lambda _, x, order: x.permute(order),
}
"""What each operation does, given its attributes and its inputs: OpenVINO's operation set specification."""
