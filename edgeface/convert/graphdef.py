"""Extract the inference graph from a TensorFlow GraphDef that also holds training.

Starting from the wanted output, each tensor is resolved: a Switch whose predicate is known passes one side on and
kills the other, a Merge is its live input, variables become constants. Control inputs count only where they hold a
constant to one branch of a condition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from edgeface.convert.messages import (
    DT_BOOL,
    DT_FLOAT,
    GraphDef,
    array_to_tensor,
    filled_bytes,
    set_shape,
    tensor_to_array,
)
from edgeface.errors import ConversionError, InputError, ModelFormatError
from edgeface.untrusted import FILLED_BYTES, reading

_PASS_THROUGH = frozenset(
    {"CheckNumerics", "Identity", "PreventGradient", "ReadVariableOp", "RefIdentity", "StopGradient"}
)
_PASS_THROUGH |= {"PlaceholderWithDefault"}  # its input is its value where nothing is fed
_SWITCHES = frozenset({"Switch", "RefSwitch"})
_MERGES = frozenset({"Merge", "RefMerge"})
_VARIABLES = frozenset({"Variable", "VariableV2", "VarHandleOp"})
_INPUTS = {**dict.fromkeys(_PASS_THROUGH, 1), **dict.fromkeys(_SWITCHES, 2), "LogicalNot": 1}
"""Inputs that an operation cannot do without."""
_TRAINING_NORMS = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
_UNFREEZABLE = frozenset({"Placeholder", "QueueDequeueUpToV2", "QueueDequeueManyV2", "QueueDequeueV2"})

_TOLD = frozenset({"strides", "padding", "explicit_paddings", "dilations", "ksize", "data_format", "epsilon", "alpha"})
_TOLD |= {"keep_dims", "transpose_a", "transpose_b", "depth_radius", "bias", "beta", "align_corners"}
"""Attributes that change what an operation computes."""

_LARGE = 4096
"""Values from which a constant is kept apart: kernels are, batch norm statistics are not."""


@dataclass(frozen=True, slots=True)
class Inference:
    """The graph that computes one output from one input, every variable a constant.

    Large float constants are in `weights`, by node name; in the graph a Placeholder of their shape stands for each, so
    that its readers need not copy a hundred megabytes.
    """

    graph: Any  # GraphDef without control inputs, Switch, Merge or variables
    weights: dict[str, NDArray[np.float32]]

    def arrays(self) -> Iterator[NDArray[np.float32]]:
        """Return every float constant, the large and the small ones."""
        yield from self.weights.values()
        for node in self.graph.node:
            if node.op == "Const" and node.attr["dtype"].type == DT_FLOAT:
                yield tensor_to_array(node.attr["value"].tensor)

    def structure(self) -> list[str]:
        """Return a line for each operation: its type, what it is told to do, and where its inputs come from."""
        numbers: dict[str, int] = {}
        lines = []
        for node in self.graph.node:
            inputs = [f"{numbers[name]}:{port}" for name, port in map(_split, node.input)]
            told = {
                key: node.attr[key].SerializeToString(deterministic=True).hex() for key in _TOLD if key in node.attr
            }
            if node.op == "Const" and node.attr["dtype"].type != DT_FLOAT:
                told["value"] = tensor_to_array(node.attr["value"].tensor).tolist()
            operation = node.op.removesuffix("V2").removesuffix("V3")
            lines.append(f"{operation}({', '.join(inputs)}) {sorted(told.items())}")
            numbers[node.name] = len(numbers)
        return lines


def parse_message(message_type: Any, content: bytes, path: Path, *, framework: str = "a TensorFlow") -> Any:
    """Parse a protobuf message.

    Raises ModelFormatError if the bytes are truncated or no message of this type.
    """
    with reading(path, f"{framework} {message_type.DESCRIPTOR.name}", error=ModelFormatError):
        try:
            return message_type.FromString(content)
        except DecodeError as error:
            raise InputError(
                found=f"{len(content):,} bytes that do not parse as one",
                remedy="the file is truncated or damaged: download it again and compare its checksum",
            ) from error


def prune(
    graph: Any,
    *,
    input: str,
    output: str,
    shape: tuple[int, ...],
    known: Mapping[str, bool],
    variables: Mapping[str, NDArray[Any]],
    source: str,
) -> Inference:
    """Return the graph that computes `output` from `input`, without what only training needs.

    `graph` is a GraphDef and is consumed. `input` becomes the one Placeholder, of `shape` (-1 where it is dynamic).
    `known` has the values of boolean placeholders, such as ``{"phase_train": False}``, and `variables` those of
    variables, for a graph that is not frozen. `source` is the file's name in messages.

    Raises ConversionError if the output needs another placeholder, an unknown variable, a node that is not in
    the graph, a loop, or a batch norm that is still in training mode.
    """
    resolver = _Resolver({node.name: node for node in graph.node}, input, known, variables, source)
    root = resolver.resolve(output)
    if root is None:
        raise ConversionError(f"{source}: {output!r} is only computed while training; nothing to convert")
    live = GraphDef()
    live.versions.CopyFrom(graph.versions)
    live.library.CopyFrom(graph.library)
    weights: dict[str, NDArray[np.float32]] = {}
    filled = 0
    for name in _topological(resolver, root):
        node = resolver.nodes.get(name)
        filled += filled_bytes(node.attr["value"].tensor) if node is not None and node.op == "Const" else 0
        if filled > FILLED_BYTES:
            raise ConversionError(
                f"{source}: expected constants that repeat a value in at most {FILLED_BYTES:,} bytes, found more, up "
                f"to {name!r}; this is no face embedding model"
            )
        value = _large_constant(name, resolver)
        if value is not None:
            weights[name] = value
            _write_placeholder(live.node.add(), name, value.shape)
        elif name == input:
            _write_placeholder(live.node.add(), name, shape)
        else:
            _copy_node(live.node.add(), name, resolver)
    if input not in (node.name for node in live.node):
        raise ConversionError(f"{source}: {output!r} does not depend on {input!r}: this is no face embedding model")
    return Inference(graph=live, weights=weights)


@dataclass(slots=True)
class _Resolver:
    """Resolves each tensor with the known predicates; None stands for a tensor that is never computed."""

    nodes: Mapping[str, Any]
    input: str
    known: Mapping[str, bool]
    variables: Mapping[str, NDArray[Any]]
    source: str
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Nodes that become constants: frozen variables, known predicates."""
    _resolved: dict[str, str | None] = field(default_factory=dict)
    _inputs: dict[str, list[str]] = field(default_factory=dict)

    def resolve(self, tensor: str) -> str | None:
        """Resolve a tensor name iteratively: real graphs are deeper than Python's stack."""
        stack, open_tensors = [tensor], {tensor}
        while stack:
            current = stack[-1]
            waiting = next((need for need in self._needs(current) if need not in self._resolved), None)
            if waiting is None:
                if current not in self._resolved:
                    self._resolved[current] = self._step(current)
                open_tensors.discard(stack.pop())
                continue
            if waiting in open_tensors:
                raise ConversionError(
                    f"{self.source}: the graph has a cycle through {waiting!r}; FaceNet graphs have none"
                )
            open_tensors.add(waiting)
            stack.append(waiting)
        return self._resolved[tensor]

    def inputs(self, name: str) -> list[str]:
        """Resolved data inputs of a live node."""
        if name == self.input or name in self.constants:
            return []
        resolved = [self._resolved[tensor] for tensor in self._data_inputs(name)]
        return [tensor for tensor in resolved if tensor is not None]

    def _needs(self, tensor: str) -> Iterator[str]:
        """Tensors to resolve before this one can be; a Switch asks for its predicate first."""
        name, index = _split(tensor)
        if name == self.input or name in self.known:
            return
        node = self._node(name)
        inputs = self._data_inputs(name)
        if node.op in _SWITCHES and len(inputs) == 2:
            yield inputs[1]
            if inputs[1] in self._resolved and self._truth(inputs[1]) in (None, bool(index)):
                yield inputs[0]
        else:
            yield from inputs or self._pivots(name)

    def _step(self, tensor: str) -> str | None:
        """Resolve one tensor whose needs are resolved."""
        name, index = _split(tensor)
        if name == self.input:
            return name
        if name in self.known:
            self.constants[name] = np.array(self.known[name])
            return name
        node, inputs = self._node(name), self._data_inputs(name)
        if node.op in _SWITCHES:
            truth = self._truth(inputs[1])
            if truth is None:
                raise ConversionError(
                    f"{self.source}: {name!r} branches on {inputs[1]!r}, whose value is not known; "
                    f"expected a graph whose only condition is {', '.join(self.known)}"
                )
            return self._resolved[inputs[0]] if truth == bool(index) else None
        if node.op in _MERGES:
            alive = [self._resolved[each] for each in inputs if self._resolved[each] is not None]
            if len(alive) > 1 or index != 0:
                raise ConversionError(
                    f"{self.source}: expected one live input of Merge {name!r} and only its value in use, "
                    f"found {len(alive)} and output {index}; the graph was cut by another tool"
                )
            return alive[0] if alive else None
        if node.op in _VARIABLES:
            return self._freeze(name, node)
        if any(self._resolved[each] is None for each in inputs or self._pivots(name)):
            return None
        if node.op in _PASS_THROUGH:
            return self._resolved[inputs[0]]
        if node.op == "LogicalNot" and (truth := self._truth(inputs[0])) is not None:
            self.constants[name] = np.array(not truth)
        elif node.op in _UNFREEZABLE:
            raise ConversionError(
                f"{self.source}: the output needs {node.op} {name!r} besides the input {self.input!r}; "
                "expected a model with one image input"
            )
        elif node.op in _TRAINING_NORMS and ("is_training" not in node.attr or node.attr["is_training"].b):
            raise ConversionError(
                f"{self.source}: batch norm {name!r} is in training mode; freeze the graph for inference"
            )
        return tensor.removesuffix(":0")

    def _truth(self, tensor: str) -> bool | None:
        """Value of a resolved predicate, if it is a known boolean constant."""
        resolved = self._resolved[tensor]
        if resolved is None:
            return None
        if resolved in self.constants:
            return bool(self.constants[resolved])
        node = self.nodes.get(resolved)
        if node is None or node.op != "Const" or node.attr["dtype"].type != DT_BOOL:
            return None
        return bool(tensor_to_array(node.attr["value"].tensor).all())

    def _freeze(self, name: str, node: Any) -> str:
        shared = node.attr["shared_name"].s.decode() or name
        for key in (shared, name):
            if key in self.variables:
                self.constants[name] = self.variables[key]
                return name
        raise ConversionError(
            f"{self.source}: variable {name!r} has no value; expected a frozen graph, or a checkpoint beside the .meta"
        )

    def _node(self, name: str) -> Any:
        if name in self.nodes:
            return self.nodes[name]
        raise ConversionError(
            f"{self.source}: the graph refers to {name!r}, which it does not contain; "
            "the file is truncated or was cut by another tool"
        )

    def _data_inputs(self, name: str) -> list[str]:
        if name not in self._inputs:
            node = self._node(name)
            data = [each.removesuffix(":0") for each in node.input if not each.startswith("^")]
            if len(data) < (needed := _INPUTS.get(node.op, 0)):
                raise ConversionError(
                    f"{self.source}: expected {node.op} {name!r} with {needed} inputs, found {len(data)}; the file is "
                    "damaged or was cut by another tool"
                )
            self._inputs[name] = data
        return self._inputs[name]

    def _pivots(self, name: str) -> list[str]:
        """Switch outputs that decide whether a node without data inputs runs.

        `tf.cond` ties the constants of a branch to the branch by a control input on an Identity of the Switch of
        its predicate; nothing else tells them from the other branch's.
        """
        controls = [self.nodes.get(each[1:]) for each in self._node(name).input if each.startswith("^")]
        guards = [node.input[0] for node in controls if node is not None and node.op == "Identity" and node.input]
        sources = [(each, self.nodes.get(_split(each)[0])) for each in guards]
        return [each.removesuffix(":0") for each, node in sources if node is not None and node.op in _SWITCHES]


def _topological(resolver: _Resolver, root: str) -> list[str]:
    """Names of the live nodes, inputs before those that use them."""
    order: dict[str, None] = {}
    stack: list[tuple[str, bool]] = [(_split(root)[0], False)]
    while stack:
        name, done = stack.pop()
        if name in order:
            continue
        if done:
            order[name] = None
            continue
        stack.append((name, True))
        stack.extend((_split(each)[0], False) for each in resolver.inputs(name))
    return list(order)


def _large_constant(name: str, resolver: _Resolver) -> NDArray[np.float32] | None:
    """Return the value of a node if it is a large float constant, which is kept apart; else None."""
    value = resolver.constants.get(name)
    node = resolver.nodes.get(name)
    if value is None and name != resolver.input and node is not None and node.op == "Const":
        tensor = node.attr["value"].tensor
        sizes = [dim.size for dim in tensor.tensor_shape.dim]
        if tensor.dtype == DT_FLOAT and math.prod(sizes) >= _LARGE:
            value = tensor_to_array(tensor)
    return value if value is not None and value.dtype == np.float32 and value.size >= _LARGE else None


def _write_placeholder(target: Any, name: str, shape: Sequence[int]) -> None:
    target.name, target.op = name, "Placeholder"
    target.attr["dtype"].type = DT_FLOAT
    set_shape(target.attr["shape"].shape, tuple(shape))


def _copy_node(target: Any, name: str, resolver: _Resolver) -> None:
    if name in resolver.constants:
        target.name, target.op = name, "Const"
        array_to_tensor(resolver.constants[name], target.attr["value"].tensor)
        target.attr["dtype"].type = target.attr["value"].tensor.dtype
        return
    target.CopyFrom(resolver.nodes[name])
    del target.input[:]
    target.input.extend(resolver.inputs(name))
    for attribute in ("_class", "_output_shapes"):  # colocation and shapes of nodes that are gone
        target.attr.pop(attribute, None)


def _split(tensor: str) -> tuple[str, int]:
    """Node and output of a tensor's name; a colon before anything but a number is part of the node's."""
    name, _, index = tensor.partition(":")
    if index and not index.isdecimal():
        return tensor, 0
    return name, int(index or 0)
