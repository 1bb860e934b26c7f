"""Find which nodes are constant or 8-bit, and which layer owns which parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil, prod
from typing import Any

from edgeface.model.op_rules import Node, kinds

# Operations whose inputs after the first are axes, shapes and indices, not weights.
_FIRST_INPUT_ONLY = kinds(
    """Reshape Squeeze Unsqueeze Transpose Split VariadicSplit Slice StridedSlice Gather GatherND
    GatherElements Broadcast Pad Tile OneHot Interpolate TopK MVN NormalizeL2 LRN CumSum Roll Reverse
    ReverseSequence ReduceSum ReduceMean ReduceProd ReduceMin ReduceMax ReduceL1 ReduceL2
    AdaptiveAvgPool AdaptiveMaxPool"""
)
# get_params in model_analyzer's layer_provider.py and uncounted_layers.py takes the first input of these, no
# input of those, and every input of any other operation.
_OMZ_FIRST_INPUT_ONLY = kinds(
    """Reshape Squeeze Unsqueeze Transpose Split VariadicSplit StridedSlice Gather GatherND GatherTree
    GatherElements Broadcast Exp"""
)
_OMZ_NO_INPUT = kinds(
    """Convert FakeQuantize Pad OneHot DetectionOutput Less LessEqual Greater GreaterEqual BatchToSpace
    SpaceToBatch TensorIterator"""
)
# Values that were 8-bit stay so through these.
_KEEPS_PRECISION = kinds(
    """Convert MaxPool Relu Reshape Squeeze Unsqueeze Transpose Split VariadicSplit Slice StridedSlice Pad
    ShuffleChannels DepthToSpace SpaceToDepth Gather"""
)
# Without an input, or with constant ones only, and yet not constant.
_NEVER_CONSTANT = kinds("Parameter ReadValue RandomUniform Result")


def sources_of(node: Node) -> list[Node]:
    """Nodes that feed `node`, in the order of its inputs."""
    return [node.input_value(port).get_node() for port in range(node.get_input_size())]


def stored_bytes(port: Any) -> int:
    """Bytes of the tensor at a port, with types such as i4 packed; 0 where the shape is dynamic."""
    if port.get_partial_shape().is_dynamic:
        return 0
    bits: int = prod(port.get_shape()) * port.get_element_type().bitwidth
    return ceil(bits / 8)


def constant_nodes(nodes: Iterable[Node]) -> set[str]:
    """Name the nodes that need no input of the model: computed once when it is compiled, they are no work.

    Weights behind a decompression Convert or a FakeQuantize are such, and so is arithmetic on shapes. `nodes` are in
    topological order, and all inputs of the model static. Names are those of ``node.get_name()``, which are unique.
    """
    constant: set[str] = set()
    for node in nodes:
        kind = node.get_type_name()
        known = all(source.get_name() in constant for source in sources_of(node))
        if kind == "ShapeOf" or (known and kind not in _NEVER_CONSTANT):
            constant.add(node.get_name())
    return constant


def eight_bit_nodes(nodes: Iterable[Node], constant: set[str]) -> set[str]:
    """Name the nodes whose values are 8-bit numbers, possibly already rescaled to floating point.

    `nodes` are in topological order; `constant` is the result of :func:`constant_nodes`.
    """
    eight_bit: set[str] = set()
    for node in nodes:
        kind = node.get_type_name()
        sources = sources_of(node)
        first = bool(sources) and sources[0].get_name() in eight_bit
        if (
            (kind == "FakeQuantize" and node.get_attributes()["levels"] <= 256)
            or (node.get_output_size() and node.get_output_element_type(0).get_type_name() in ("i8", "u8"))
            or (first and kind in _KEEPS_PRECISION)
            # Dequantization: (value - zero point) x scale.
            or (first and kind in ("Subtract", "Multiply") and sources[1].get_name() in constant)
            or (kind == "Concat" and all(source.get_name() in eight_bit for source in sources))
        ):
            eight_bit.add(node.get_name())
    return eight_bit


class ParameterLedger:
    """Gives each constant to the first layer that asks, so that layers add up to the model."""

    def __init__(self, constant: set[str]) -> None:
        self._constant = constant
        self._given: set[tuple[str, str]] = set()

    def values(self, node: Node) -> int:
        """Count the values stored as weights: no quantization limits or scales, no axes, shapes or indices."""
        if node.get_type_name() == "FakeQuantize":
            return 0
        leaves = self._new_leaves(node, values_only=True)
        return sum(prod(leaf.get_output_shape(0)) for leaf in leaves)

    def bytes(self, node: Node) -> int:
        """Add up the stored bytes of those values and of their scales."""
        return sum(stored_bytes(leaf.output(0)) for leaf in self._new_leaves(node, values_only=False))

    def omz(self, node: Node) -> int:
        """Count the elements of constant inputs, as constant folding leaves them, that model_analyzer counts.

        Source: ``model_complexity.py`` (``get_total_params``) and ``layer_provider.py`` (``_get_params``).
        """
        kind = node.get_type_name()
        if kind in _OMZ_NO_INPUT:
            return 0
        return sum(
            prod(source.get_output_shape(0))
            for source in sources_of(node)[: 1 if kind in _OMZ_FIRST_INPUT_ONLY else None]
            if source.get_name() in self._constant and self._is_new("omz", source)
        )

    def _new_leaves(self, node: Node, *, values_only: bool) -> Iterator[Node]:
        for source in _value_sources(node):
            if source.get_name() in self._constant:
                for leaf in _leaves(source, values_only=values_only):
                    if self._is_new("values" if values_only else "bytes", leaf):
                        yield leaf

    def _is_new(self, purpose: str, node: Node) -> bool:
        count = len(self._given)
        self._given.add((purpose, node.get_name()))
        return len(self._given) > count


def _value_sources(node: Node) -> list[Node]:
    return sources_of(node)[: 1 if node.get_type_name() in _FIRST_INPUT_ONLY else None]


def _leaves(node: Node, *, values_only: bool) -> Iterator[Node]:
    """Yield the Constants behind a constant node; with `values_only`, no limits and scales of quantization."""
    kind = node.get_type_name()
    if kind == "Constant":
        yield node
        return
    if kind == "ShapeOf":
        return
    sources = _value_sources(node)
    if values_only and kind == "FakeQuantize":
        sources = sources[:1]
    elif values_only and kind in ("Subtract", "Multiply"):
        # (weights - zero point) x scale: the weights are the larger operand.
        sources = [max(sources, key=lambda source: prod(source.get_output_shape(0)))]
    for source in sources:
        yield from _leaves(source, values_only=values_only)
