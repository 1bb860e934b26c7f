"""Rank the layers of a compressed model by their effect on accuracy, and put some back into floating point.

The sensitivity of a group of layers is the gain in cosine when it alone is put back into floating point, as in NNCF's
accuracy control but without quantizing again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import ConversionError
from edgeface.model.opset import ops
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.quantize.compress import WEIGHTED, is_constant

GROUPS = 12
"""Greatest number of groups of layers; ranking takes one short run for each."""

Group = tuple[str, ...]
"""Friendly names of consecutive layers."""


def groups_of(model: ov.Model, *, count: int = GROUPS) -> tuple[Group, ...]:
    """Divide the layers with weights into groups of about equal size, in execution order."""
    names = [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_type_name() in WEIGHTED and any(_comes_from_constant(port.get_node()) for port in op.input_values())
    ]
    chunks = np.array_split(np.arange(len(names)), min(count, len(names)) or 1)
    return tuple(tuple(names[index] for index in chunk) for chunk in chunks if len(chunk))


def rank(
    compressed: ov.Model,
    parent: ov.Model,
    groups: Sequence[Group],
    score: Callable[[ov.Model], float],
    *,
    progress: ProgressCallback = ignore_progress,
) -> list[tuple[float, Group]]:
    """Return the gain in score when a group alone is put back, and the group; greatest gain first."""
    base = score(compressed)
    gains = []
    for done, group in enumerate(groups, start=1):
        gains.append((score(revert(compressed, parent, group)) - base, group))
        progress(Progress("sensitivity", done, len(groups), unit="groups"))
    return sorted(gains, key=lambda each: -each[0])


def revert(compressed: ov.Model, parent: ov.Model, names: Sequence[str]) -> ov.Model:
    """Return a copy of a compressed model in which the named layers are the parent's, in floating point."""
    model = compressed.clone()
    here, there = ({op.get_friendly_name(): op for op in each.get_ops()} for each in (model, parent))
    if missing := sorted(set(names) - (here.keys() & there.keys())):
        raise ConversionError(
            f"layers to restore: expected them in both models, but these are missing: {', '.join(missing)}"
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
    """Return the names of the layers with weights that read an operation before it is rounded again."""
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
    """Give an operation the constants of the original and remove the rounding of its other inputs."""
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
    """Return the additions of a constant to the output of a layer."""
    return [
        reader
        for reader in (port.get_node() for port in op.output(0).get_target_inputs())
        if reader.get_type_name() == "Add" and any(is_constant(port.get_node()) for port in reader.input_values())
    ]


def _comes_from_constant(node: Any) -> bool:
    """Whether only constants lead to a node: weights, compressed or not."""
    if node.get_type_name() == "Parameter":
        return False
    return all(_comes_from_constant(port.get_node()) for port in node.input_values())
