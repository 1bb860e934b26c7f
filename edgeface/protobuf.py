"""Build protobuf messages from a schema in a few lines, without generated code.

They live in a descriptor pool of their own. In the default pool no two packages of one process can define the same
message, and TensorFlow, ONNX and tritonclient define theirs there.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = re.compile(r"(\w+)=(\d+)([:*|%])(\w+)")
_Field = descriptor_pb2.FieldDescriptorProto


def build_messages(schema: str, package: str) -> dict[str, Any]:
    """Return the message classes of a schema by name: one line a message, or several, each its name and its fields.

    A field is name=number, then `:` single, `*` repeated, `|` one of several or `%` a map from string, then its type:
    one of protobuf's, or a message of the schema.

    Examples
    --------
    >>> Point = build_messages("Point x=1:int32 label=2:string", "example")["Point"]
    >>> Point.FromString(Point(x=3, label="a").SerializeToString()).x
    3
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    lines = [line.split() for line in schema.strip().splitlines()]
    messages = {name: file.message_type.add(name=name) for name in dict.fromkeys(line[0] for line in lines)}
    for name, *fields in lines:
        for field in fields:
            _add_field(messages[name], field, messages.keys(), package)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}


def _add_field(message: Any, text: str, messages: Collection[str], package: str) -> None:
    match = _FIELD.fullmatch(text)
    assert match is not None, text
    name, number, cardinality, kind = match.groups()
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if cardinality == "|":
        if not message.oneof_decl:
            message.oneof_decl.add(name="value")
        field.oneof_index = 0
    if cardinality == "%":  # on the wire, a map is a repeated message of key and value
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key=1:string", messages, package)
        _add_field(entry, f"value=2:{kind}", messages, package)
        kind = f"{message.name}.{entry.name}"
    if cardinality in "*%":
        field.label = _Field.LABEL_REPEATED
    if cardinality == "%" or kind in messages:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
    else:
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")
