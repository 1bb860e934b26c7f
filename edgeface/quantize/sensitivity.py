"""A compressed model and its parent in, the layers that cost most accuracy out, and the model without them.

Each group of layers is put back into floating point alone, and what that wins in cosine is its sensitivity: the
measure of NNCF's accuracy control, without its re-quantizations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import ConversionError
from edgeface.model.opset import ops
from edgeface.quantize.structure import WEIGHTED, is_constant

__all__ = ["GROUPS", "Group", "groups_of", "rank", "revert"]

GROUPS = 12
"""Groups that a model's layers are divided into, at most; ranking them takes as many short runs."""

Group = tuple[str, ...]
"""Friendly names of layers that follow each other."""


def groups_of(model: ov.Model, *, count: int = GROUPS) -> tuple[Group, ...]:
    """Divide a model's layers with weights into groups of about one size, in the order in which they are computed."""
    names = [op.get_friendly_name() for op in model.get_ordered_ops() if _has_weights(op)]
    chunks = np.array_split(np.arange(len(names)), min(count, len(names)) or 1)
    return tuple(tuple(names[index] for index in chunk) for chunk in chunks if len(chunk))


def rank(
    compressed: ov.Model,
    parent: ov.Model,
    groups: Sequence[Group],
    score: Callable[[ov.Model], float],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[float, Group]]:
    """Sort groups by what the score wins when a group alone is put back, greatest gain first."""
    base = score(compressed)
    gains = []
    for done, group in enumerate(groups, start=1):
        gains.append((score(revert(compressed, parent, group)) - base, group))
        if progress is not None:
            progress(done, len(groups))
    return sorted(gains, key=lambda each: -each[0])


def revert(compressed: ov.Model, parent: ov.Model, names: Sequence[str]) -> ov.Model:
    """Return a clone of a compressed model whose named layers compute in floating point with the parent's weights.

    Raises
    ------
    ConversionError
        If a layer of that name is not in both.
    """
    model = compressed.clone()
    here, there = _by_name(model), _by_name(parent)
    if missing := sorted(set(names) - (here.keys() & there.keys())):
        raise ConversionError(
            f"layers to put back: expected them in both models, missing {', '.join(missing)}"
        )
    for name in names:
        _restore(here[name], there[name])
        for reader, original in zip(_biases(here[name]), _biases(there[name]), strict=False):
            _restore(reader, original)
    for op in model.get_ops():
        if op.get_type_name() == "FakeQuantize" and (readers := _readers(op)) and readers <= set(names):
            for port in list(op.output(0).get_target_inputs()):  # behind a pool or a concatenation
                port.replace_source_output(op.input_value(0))
    model.validate_nodes_and_infer_types()
    return model


def _readers(op: Any) -> set[str]:
    """Names of the layers with weights that what an operation gives goes into, before it is rounded again."""
    found, waiting, seen = set(), [op], set()
    while waiting:
        for port in waiting.pop().output(0).get_target_inputs():
            reader = port.get_node()
            name = reader.get_friendly_name()
            if reader.get_type_name() in WEIGHTED:
                found.add(name)
            elif name not in seen and reader.get_type_name() not in ("FakeQuantize", "Result"):
                seen.add(name)
                waiting.append(reader)
    return found


def _restore(op: Any, original: Any) -> None:
    """Give an operation the original's constants, and its other inputs as they were before they were rounded."""
    for port, source in zip(op.inputs(), original.input_values(), strict=True):
        rounded = port.get_source_output().get_node()
        if is_constant(source.get_node()):
            port.replace_source_output(_float_copy(source.get_node()).output(0))
        elif rounded.get_type_name() == "FakeQuantize":
            port.replace_source_output(rounded.input_value(0))


def _float_copy(node: Any) -> Any:
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    data: NDArray[Any] = np.asarray(node.data)
    return ops.constant(data.astype(np.float32) if data.dtype.kind == "f" else data)


def _biases(op: Any) -> list[Any]:
    """Return the additions of a constant that read this layer."""
    readers = [port.get_node() for port in op.output(0).get_target_inputs()]
    return [
        reader
        for reader in readers
        if reader.get_type_name() == "Add"
        and any(is_constant(port.get_node()) for port in reader.input_values())
    ]


def _has_weights(op: Any) -> bool:
    if op.get_type_name() not in WEIGHTED:
        return False
    return any(_comes_from_constant(port.get_node()) for port in op.input_values())


def _comes_from_constant(node: Any) -> bool:
    """Whether nothing but constants leads to a node: weights, be they compressed or not."""
    if node.get_type_name() == "Parameter":
        return False
    return all(_comes_from_constant(port.get_node()) for port in node.input_values())


def _by_name(model: ov.Model) -> dict[str, Any]:
    return {op.get_friendly_name(): op for op in model.get_ops()}
