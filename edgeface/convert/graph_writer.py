"""Nodes by name in, a GraphDef in TensorFlow 1's style out, `tf.cond` included."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeface.convert.messages import DT_BOOL, DT_FLOAT, GraphDef, array_to_tensor, set_shape

__all__ = ["Conditional", "GraphWriter"]


class GraphWriter:
    """Appends nodes to a GraphDef; a tensor is its name."""

    def __init__(self) -> None:
        self.graph = GraphDef()
        self.graph.versions.producer = 24  # TensorFlow 1.7

    def constant(self, name: str, value: Any, *controls: str) -> str:
        """Append a constant; its name comes back."""
        node = self.graph.node.add(name=name, op="Const")
        node.input.extend(controls)
        array_to_tensor(np.asarray(value), node.attr["value"].tensor)
        node.attr["dtype"].type = node.attr["value"].tensor.dtype
        return name

    def node(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        """Append an operation with its attributes; its name comes back."""
        node = self.graph.node.add(name=name, op=op)
        node.input.extend(inputs)
        for key, value in attributes.items():
            _set_attribute(node.attr[key], key, value)
        return name


class Conditional:
    """`tf.cond(phase_train, ...)` of TensorFlow 1: Switch in, Merge out, one Switch a tensor and branch."""

    def __init__(self, writer: GraphWriter, path: str) -> None:
        self._writer, self._path = writer, path
        self._switches: dict[tuple[str, bool], str] = {}
        self._merges = 0
        switch = writer.node(f"{path}/Switch", "Switch", "phase_train", "phase_train", T=DT_BOOL)
        self._pivot = writer.node(f"{path}/switch_t", "Identity", f"{switch}:1", T=DT_BOOL)
        writer.node(f"{path}/switch_f", "Identity", switch, T=DT_BOOL)
        self._predicate = writer.node(f"{path}/pred_id", "Identity", "phase_train", T=DT_BOOL)

    def when_true(self, tensor: str) -> str:
        """A tensor as the true branch sees it."""
        return f"{self._switch(tensor, branch=True)}:1"

    def when_false(self, tensor: str) -> str:
        """A tensor as the false branch sees it."""
        return self._switch(tensor, branch=False)

    def constant_when_true(self, name: str, value: Any) -> str:
        """A constant of the true branch."""
        return self._writer.constant(f"{self._path}/{name}", value, f"^{self._pivot}")

    def merge(self, when_false: str, when_true: str) -> str:
        """Whichever of the two was computed."""
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
