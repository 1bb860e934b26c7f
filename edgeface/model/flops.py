"""Count the FLOPs, MACs, parameters and bytes of a model and of each of its layers.

Two ways of counting arithmetic, always reported under their names:

``mac2``
    2 x the multiply-accumulates of convolutions and matrix products, as papers count.
``omz``
    Open Model Zoo's way, which also counts additions, activations and pooling:
    :mod:`edgeface.model.op_rules`.

And two of counting parameters:

``folded``
    the values that the IR stores as weights, each once, as they are after whatever folding the IR went
    through: no quantization limits and scales, no axes, shapes and indices.
``omz``
    the elements of constant inputs after constant folding, by the rules of Open Model Zoo's tool
    (:class:`edgeface.model.op_weights.ParameterLedger`); axes and the like are partly in.

Against the figures published on Open Model Zoo's model pages, batch 1:

=================================  ==========  ======  ==================================================
model                               published     omz  difference, operation by operation (GFLOPs)
=================================  ==========  ======  ==================================================
facenet-20180408-102900                 2.846  2.8468  +0.0031 Add of a bias, -0.0021 Eltwise
face-detection-retail-0004              1.067  1.0711  +0.0040 Add of a bias
face-reidentification-retail-0095       0.588  0.5905  +0.0042 Add of a bias, -0.0021 Eltwise
landmarks-regression-retail-0009        0.021  0.0210  +0.0001 Add of a bias
=================================  ==========  ======  ==================================================

Before IR v10 a convolution contained its bias, which was not counted, and an ``Eltwise`` of two inputs cost 3;
today's IR has an ``Add`` or ``Multiply``, which costs 1. Counted the old way all four come out as published
(``tests/real/test_flops_real.py``). On IR v10 openvinotoolkit/model_analyzer itself gets 1.0711, 0.5905 and
0.0210 (its ``tests/data/IRv10_models.json``), and so does this.

FaceNet has 23,432,032 values in kernels, 20,992 in biases of the residual convolutions and 14,800 shifts of
folded batch norms: 23,467,824; published are 23.469 M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import openvino as ov

from edgeface.errors import InputError
from edgeface.model.op_rules import DATA_DEPENDENT, RULES, Cost, Node
from edgeface.model.op_weights import ParameterLedger, constant_nodes, eight_bit_nodes, sources_of, stored_bytes

Reason = Literal["unknown operation", "unknown mode", "depends on the data", "dynamic shape"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """Work of one operation that runs at inference.

    Attributes
    ----------
    name, kind : str
        Friendly name (the runtime's profile uses it too) and operation type.
    macs, flops_omz : int
        Multiply-accumulates; 0 unless `kind` is a convolution or a matrix product. FLOPs in Open Model Zoo's way.
    parameters, parameters_omz : int
        Values, counted the folded and the Open Model Zoo way. A constant that several layers read belongs to
        the first of them, so that layers add up to the model.
    weight_bytes : int
        Bytes of those constants as the IR stores them, with quantization limits and scales.
    activation_bytes : int
        Bytes of all inputs and outputs that are not constant.
    int8 : bool
        Whether both operands of the product are 8-bit: behind a FakeQuantize or an i8 or u8 tensor. What the
        IR asks for; the device may execute it otherwise.
    inputs : tuple of str
        Names of the layers that it reads.
    """

    name: str
    kind: str
    macs: int
    flops_omz: int
    parameters: int
    parameters_omz: int
    weight_bytes: int
    activation_bytes: int
    int8: bool
    inputs: tuple[str, ...] = ()

    @property
    def flops_mac2(self) -> int:
        """Floating-point operations, 2 x MAC."""
        return 2 * self.macs

    @property
    def int8_macs(self) -> int:
        """MACs on 8-bit operands."""
        return self.macs if self.int8 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncounted:
    """An operation whose arithmetic is missing from the totals, and why."""

    name: str
    kind: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Work of a model, for one inference of `batch` items.

    Attributes
    ----------
    layers : tuple of LayerWork
        In execution order. Constants, and what can be computed from them alone, are no work and not here; an
        uncounted operation is, with its parameters and bytes and no arithmetic.
    uncounted : tuple of Uncounted
        What the arithmetic leaves out.
    """

    layers: tuple[LayerWork, ...]
    uncounted: tuple[Uncounted, ...]
    batch: int

    @property
    def macs(self) -> int:
        """MACs, those on 8-bit operands included."""
        return sum(layer.macs for layer in self.layers)

    @property
    def int8_macs(self) -> int:
        """MACs on 8-bit operands."""
        return sum(layer.int8_macs for layer in self.layers)

    @property
    def gflops_mac2(self) -> float:
        """10^9 operations, 2 x MAC, whatever their precision: the same for a model and its INT8 version."""
        return 2 * self.macs / 1e9

    @property
    def gflops_omz(self) -> float:
        """10^9 operations in Open Model Zoo's way, whatever their precision (its tool's GFLOPs + GIOPs)."""
        return sum(layer.flops_omz for layer in self.layers) / 1e9

    @property
    def parameters(self) -> int:
        """Values that the IR stores as weights."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def mparams_folded(self) -> float:
        """10^6 values that the IR stores as weights."""
        return self.parameters / 1e6

    @property
    def mparams_omz(self) -> float:
        """10^6 parameters in Open Model Zoo's way."""
        return sum(layer.parameters_omz for layer in self.layers) / 1e6

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as the IR stores them."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations, if every layer read its inputs from memory and wrote its outputs there."""
        return sum(layer.activation_bytes for layer in self.layers)


def count_work(model: Any, *, batch: int = 1) -> Work:
    """Count the work of one inference of an `openvino.Model`, which is left as it is.

    `batch` is what a dynamic batch is set to. With the default, a batch that the model fixes stays and `Work.batch`
    tells it.

    Raises InputError if `batch` is not positive or contradicts a fixed batch, if an input is dynamic in another
    dimension, or if the model does not take that batch.
    """
    static, batch = _with_batch(model, batch)
    nodes = static.get_ordered_ops()
    constant = constant_nodes(nodes)
    eight_bit = eight_bit_nodes(nodes, constant)
    ledger = ParameterLedger(constant)
    layers: list[LayerWork] = []
    uncounted: list[Uncounted] = []
    for node in nodes:
        name, kind = node.get_friendly_name(), node.get_type_name()
        if node.get_name() in constant or kind in ("Parameter", "Result"):
            continue
        cost = _cost(node)
        if not isinstance(cost, Cost):
            uncounted.append(Uncounted(name=name, kind=kind, reason=cost))
            cost = Cost(0, 0)
        sources = sources_of(node)
        operands = [source.get_name() for source in sources[:2]]
        layer = LayerWork(
            name=name,
            kind=kind,
            macs=cost.macs,
            flops_omz=cost.flops,
            parameters=ledger.values(node),
            parameters_omz=ledger.omz(node),
            weight_bytes=ledger.bytes(node),
            activation_bytes=_activation_bytes(node, constant),
            int8=cost.macs > 0 and eight_bit.issuperset(operands),
            inputs=tuple(
                source.get_friendly_name()
                for source in sources
                if source.get_name() not in constant and source.get_type_name() != "Parameter"
            ),
        )
        layers.append(layer)
    return Work(layers=tuple(layers), uncounted=tuple(uncounted), batch=batch)


def _cost(node: Node) -> Cost | Reason:
    kind = node.get_type_name()
    if kind in DATA_DEPENDENT:
        return "depends on the data"
    if kind not in RULES:
        return "unknown operation"
    if any(port.get_partial_shape().is_dynamic for port in (*node.inputs(), *node.outputs())):
        return "dynamic shape"
    cost = RULES[kind](node)
    return cost if cost is not None else "unknown mode"


def _activation_bytes(node: Node, constant: set[str]) -> int:
    sources = zip(node.inputs(), sources_of(node), strict=True)
    read = sum(stored_bytes(port) for port, source in sources if source.get_name() not in constant)
    # An output that is not read is not computed, such as MaxPool's indices.
    return read + sum(stored_bytes(port) for port in node.outputs() if port.get_target_inputs())


def _with_batch(model: Any, batch: int) -> tuple[Any, int]:
    """Clone the model with its dynamic batch set, and say which batch holds."""
    if batch < 1:
        raise InputError(f"batch must be 1 or more, not {batch}")
    static = model.clone()
    shapes: dict[int, Any] = {}
    fixed: set[int] = set()
    dynamic = False
    for index, parameter in enumerate(static.get_parameters()):
        shape = shapes[index] = parameter.get_partial_shape()
        axis = batch_axis(parameter, shape)
        if axis is not None and shape[axis].is_dynamic:
            shape[axis] = batch
            dynamic = True
        elif axis is not None:
            fixed.add(shape[axis].get_length())
        if shape.is_dynamic:
            raise InputError(
                f"input {parameter.get_friendly_name()!r} is dynamic in more than its batch ({shape}), "
                "so its FLOPs depend on the input size; set one first: model.reshape([...])"
            )
    if not dynamic:
        return static, _fixed_batch(fixed, batch)
    try:
        static.reshape(shapes)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"the model does not take batch {batch}: {reason}") from error
    return static, batch


def batch_axis(parameter: Node, shape: Any) -> int | None:
    """Where the layout has N, else the first dimension; None for a scalar and for an unknown rank."""
    if shape.rank.is_dynamic or len(shape) == 0:
        return None
    layout = parameter.get_layout()
    # The last dimension is -1 where a layout ends in "...N".
    return ov.layout_helpers.batch_idx(layout) % len(shape) if ov.layout_helpers.has_batch(layout) else 0


def _fixed_batch(fixed: set[int], batch: int) -> int:
    # Inputs that differ in front, such as an image and a row of sizes, have no batch in common.
    found = fixed.pop() if len(fixed) == 1 else 1
    if batch not in (1, found):
        raise InputError(
            f"the model's batch size is fixed at {found}; its work for batch {batch} cannot be counted; "
            "convert it with a dynamic batch, or leave batch out"
        )
    return found
