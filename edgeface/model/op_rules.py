"""Compute the MACs and Open Model Zoo FLOPs of one OpenVINO operation.

Open Model Zoo's published GFLOPs were computed by openvinotoolkit/model_analyzer. Its rules live in
``model_analyzer/layer_provider.py`` (operations with a formula) and ``model_analyzer/uncounted_layers.py``
(operations it knows but has no formula for); every elementary step - multiply, add, compare, exp, sqrt, log -
costs one. A rule here is marked

``[omz]``
    the formula of ``layer_provider.py``;
``[ours]``
    model_analyzer has none, so the elementary steps of the operation's definition are counted the same way.

Where model_analyzer's code cannot do what its formula says, the formula is followed and the entry says so.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import numpy as np

Node = Any
"""An ``openvino.Node``; OpenVINO ships no type information that mypy could follow."""


class Cost(NamedTuple):
    """Arithmetic of one node."""

    macs: int  # multiply-accumulates of convolutions and matrix products; 0 for everything else
    flops: int  # floating-point operations in Open Model Zoo's way of counting


Rule = Callable[[Node], Cost | None]
"""Cost of a node with static shapes, or None where the rule does not cover this use of the operation."""


def in_shape(node: Node, port: int) -> list[int]:
    """Static shape of one input, in elements."""
    return [int(extent) for extent in node.input(port).get_shape()]


def out_shape(node: Node) -> list[int]:
    """Static shape of the first output, in elements.

    model_analyzer adds up all outputs, which doubles a MaxPool-8 for the indices that are not computed.
    """
    return [int(extent) for extent in node.output(0).get_shape()]


def _products(macs: int) -> Cost:
    return Cost(macs, 2 * macs)


def _convolution(node: Node) -> Cost:
    # [omz] Convolution: 2 x (C_in / group) x kernel, an output element. Weights are [C_out, C_in, *kernel].
    return _products(prod(out_shape(node)) * prod(in_shape(node, 1)[1:]))


def _group_convolution(node: Node) -> Cost:
    # [omz] GroupConvolution: the same with weights [group, C_out / group, C_in / group, *kernel].
    return _products(prod(out_shape(node)) * prod(in_shape(node, 1)[2:]))


def _deconvolution(node: Node, *, grouped: bool) -> Cost:
    """Count a transposed convolution; weights are [(group,) C_in / group, C_out / group, *kernel].

    MACs: every input element meets C_out / group x kernel weights. [omz] Deconvolution: an output element
    costs 2 x (C_in / group) x kernel / stride, which is twice the MACs but for what happens at the borders.
    """
    channels_in, channels_out, *kernel = in_shape(node, 1)[int(grouped) :]
    macs = prod(in_shape(node, 0)) * channels_out * prod(kernel)
    per_element = 2 * channels_in * prod(kernel)
    return Cost(macs, prod(out_shape(node)) * per_element // prod(node.get_attributes()["strides"]))


def _matmul(node: Node) -> Cost:
    # [omz] GEMM: 2 x the first operand's last extent, an output element. That is the inner extent unless the
    # operand is transposed; the inner one is meant.
    first = in_shape(node, 0)
    transposed = node.get_attributes()["transpose_a"] and len(first) > 1
    return _products(prod(out_shape(node)) * (first[-2] if transposed else first[-1]))


def _attention(node: Node) -> Cost:
    # [ours] The matrix products [L, E] x [E, S] and [L, S] x [S, E_v], and on each of the L x S scores one
    # scaling and a softmax (5, below); a mask is not counted.
    *heads, queries, value_width = out_shape(node)
    keys, key_width = in_shape(node, 1)[-2:]
    scores = prod(heads) * queries * keys
    macs = scores * (key_width + value_width)
    return Cost(macs, 2 * macs + 6 * scores)


def _pooling(node: Node) -> Cost:
    # [omz] Pooling: one comparison or addition a kernel element, an output element.
    return Cost(0, prod(out_shape(node)) * prod(node.get_attributes()["kernel"]))


def _lrn(node: Node) -> Cost:
    # [omz] Norm (today's LRN): (mul + add) x ROI + div with ROI = 2 x size, times size once more for a norm
    # across channels. That looks the wrong way round - a window inside a channel is the square one - but it
    # is the tool's formula.
    size = int(node.get_attributes()["size"])
    across_channels = prod(in_shape(node, 1)) == 1
    roi = 2 * size * (size if across_channels else 1)
    return Cost(0, prod(out_shape(node)) * (2 * roi + 1))


def _power(node: Node) -> Cost:
    # [omz] Power: mul + add + (power - 1) x mul for a constant scalar power. (The code compares a method
    # with 1 and so never gets there.) [ours] Fractional and negative powers, such as the root that ends an
    # L2 pooling, make no sense in that formula and cost one, like Sqrt.
    power = _constant_scalar(node.input_value(1).get_node())
    steps = int(power) + 1 if power is not None and power >= 1 and power == int(power) else 1
    return Cost(0, prod(out_shape(node)) * steps)


def _mvn(node: Node) -> Cost:
    # [omz] MVN: 5 with variance, 2 without. (The code compares the boolean with the string '1'.)
    return Cost(0, prod(out_shape(node)) * (5 if node.get_attributes()["normalize_variance"] else 2))


def _gelu(node: Node) -> Cost:
    # [ours] 0.5 x (1 + erf(x / sqrt 2)): div, erf, add, mul, mul. 0.5 x (1 + tanh(a (x + b x^3))): 2 mul
    # for the cube, mul, add, mul, a tanh of 6 [omz], add, mul, mul.
    tanh = str(node.get_attributes().get("approximation_mode", "ERF")).upper() == "TANH"
    return Cost(0, prod(out_shape(node)) * (14 if tanh else 5))


def _interpolate(node: Node) -> Cost | None:
    # [omz] Interp: 9, bilinear. [ours] nearest only copies. The cubic and Pillow modes have no rule.
    mode = str(node.get_attributes()["mode"]).lower()
    if mode == "nearest":
        return Cost(0, 0)
    return Cost(0, 9 * prod(out_shape(node))) if mode.startswith("linear") else None


def _reduce(node: Node) -> Cost:
    # [ours] One addition or multiplication an input element.
    return Cost(0, prod(in_shape(node, 0)))


def _reduce_mean(node: Node) -> Cost:
    # [ours] ... and one division an output element.
    return Cost(0, prod(in_shape(node, 0)) + prod(out_shape(node)))


def _per_output_element(flops: int) -> Rule:
    return lambda node: Cost(0, flops * prod(out_shape(node)))


def _constant_scalar(node: Node) -> float | None:
    """Value of a one-element constant, also behind the Convert of a compressed IR."""
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or np.size(node.data) != 1:
        return None
    return float(np.ravel(node.data)[0])


# [omz] Add, Subtract, Multiply, Divide, Exp, Log, Round, Less..., Clamp, Relu, ..., an output element.
_OMZ_ELEMENTWISE = {
    1: "Add Subtract Multiply Divide Exp Log Round Less LessEqual Greater GreaterEqual",
    2: "Relu PRelu Clamp BatchNormInference",
    3: "Sigmoid Elu SoftPlus GRN",
    4: "HSwish HardSigmoid NormalizeL2 ReduceL1 ReduceL2",
    5: "Softmax Swish Acosh Asinh Atanh",
    6: "LogSoftmax Tanh",
    10: "Mish",
}
# [ours] One elementary function or comparison each; SquaredDifference is sub and mul; HSigmoid is
# min(max(x + 3, 0), 6) / 6; Selu is Elu and a scale; GroupNormalization is an MVN (5) with scale and shift.
_OUR_ELEMENTWISE = {
    1: "Maximum Minimum Equal NotEqual LogicalAnd LogicalOr LogicalXor LogicalNot Sqrt Erf Abs Negative Sign "
    "Floor Ceiling Mod FloorMod Sin Cos Tan Asin Acos Atan Sinh Cosh CumSum",
    2: "SquaredDifference",
    4: "HSigmoid Selu",
    7: "GroupNormalization",
}
# Move, select or convert values and compute nothing. [omz] NonMathLayer, which has ReduceMin, ReduceMax and
# Select too. [ours] Convert, FakeQuantize, Transpose, Broadcast and others that model_analyzer names and
# has no formula for: changes of format or place, not arithmetic.
_FREE = """
    Reshape Squeeze Unsqueeze Transpose Concat Split VariadicSplit Slice StridedSlice Gather GatherND
    GatherElements GatherTree ScatterUpdate ScatterNDUpdate ScatterElementsUpdate Pad Tile Broadcast OneHot
    Range Reverse ReverseSequence Roll ShuffleChannels DepthToSpace SpaceToDepth BatchToSpace SpaceToBatch
    Select ReduceMin ReduceMax ShapeOf PriorBox PriorBoxClustered Convert ConvertLike FakeQuantize
    FakeConvert ExtractImagePatches ReadValue Assign Identity
"""


def kinds(names: str) -> frozenset[str]:
    """Operation types in a string of words, as ``node.get_type_name()`` writes them."""
    return frozenset(names.split())


DATA_DEPENDENT = kinds(
    """DetectionOutput NonMaxSuppression MulticlassNms MatrixNms Proposal NonZero Unique
    ExperimentalDetectronDetectionOutput ExperimentalDetectronGenerateProposalsSingleImage"""
)
"""Operations whose work depends on values as well as shapes, such as the number of boxes that survive."""


def _table() -> dict[str, Rule]:
    rules: dict[str, Rule] = {
        "Convolution": _convolution,
        "GroupConvolution": _group_convolution,
        "ConvolutionBackpropData": lambda node: _deconvolution(node, grouped=False),
        "GroupConvolutionBackpropData": lambda node: _deconvolution(node, grouped=True),
        "MatMul": _matmul,
        "ScaledDotProductAttention": _attention,
        "MaxPool": _pooling,
        "AvgPool": _pooling,
        "AdaptiveAvgPool": _reduce_mean,
        "AdaptiveMaxPool": _reduce,
        "LRN": _lrn,
        "MVN": _mvn,
        "Power": _power,
        "Gelu": _gelu,
        "Interpolate": _interpolate,
        "ReduceSum": _reduce,
        "ReduceProd": _reduce,
        "ReduceMean": _reduce_mean,
    }
    for table in (_OMZ_ELEMENTWISE, _OUR_ELEMENTWISE, {0: _FREE}):
        for flops, names in table.items():
            rules |= dict.fromkeys(kinds(names), _per_output_element(flops))
    return rules


RULES: dict[str, Rule] = _table()
"""Rule of each operation, keyed by ``node.get_type_name()``; an operation that is not here is not counted."""
