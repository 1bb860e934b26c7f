"""Define TensorFlow's protobuf messages as far as conversion needs them, without TensorFlow.

Field numbers and types are those of tensorflow/core/framework/{graph,node_def,attr_value,tensor,tensor_shape}.proto
and tensorflow/core/protobuf/{meta_graph,saved_model,tensor_bundle}.proto. Fields that are not named here survive
reading and writing as unknown fields.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.protobuf import build_messages
from edgeface.untrusted import FILLED_BYTES

_SCHEMA = """
GraphDef          node=1*NodeDef library=2:FunctionLibrary versions=4:VersionDef
FunctionLibrary   function=1*bytes
VersionDef        producer=1:int32 min_consumer=2:int32
NodeDef           name=1:string op=2:string input=3*string device=4:string attr=5%AttrValue
AttrValue         s=2|bytes i=3|int64 f=4|float b=5|bool type=6|int32 shape=7|TensorShape tensor=8|Tensor list=1|List
List              s=2*bytes i=3*int64 f=4*float b=5*bool type=6*int32 shape=7*TensorShape
TensorShape       dim=2*Dim unknown_rank=3:bool
Dim               size=1:int64 name=2:string
Tensor            dtype=1:int32 tensor_shape=2:TensorShape tensor_content=4:bytes half_val=13*int32
Tensor            float_val=5*float double_val=6*double int_val=7*int32 string_val=8*bytes
Tensor            int64_val=10*int64 bool_val=11*bool
MetaGraphDef      graph_def=2:GraphDef signature_def=5%SignatureDef
SignatureDef      inputs=1%TensorInfo outputs=2%TensorInfo method_name=3:string
TensorInfo        name=1:string dtype=2:int32 tensor_shape=3:TensorShape
SavedModel        saved_model_schema_version=1:int64 meta_graphs=2*MetaGraphDef
BundleHeader      num_shards=1:int32 endianness=2:int32
BundleEntry       dtype=1:int32 shape=2:TensorShape shard_id=3:int32 offset=4:int64 size=5:int64 crc32c=6:fixed32
BundleEntry       slices=7*bytes
"""
"""In the notation of `edgeface.protobuf`."""

DTYPES: dict[int, np.dtype[Any]] = {
    number: np.dtype(name) for number, name in {1: "f4", 2: "f8", 3: "i4", 4: "u1", 9: "i8", 10: "?", 19: "f2"}.items()
}
"""tensorflow.DataType numbers (types.proto) that a face model's constants and variables have."""

DT_FLOAT, DT_INT32, DT_STRING, DT_INT64, DT_BOOL = 1, 3, 7, 9, 10

SEEDED_MARK = "edgeface_seeded_weights"
"""Name of a NoOp that marks a graph of random weights, which is useless for recognition."""

_VALUE_FIELDS = {1: "float_val", 2: "double_val", 3: "int_val", 4: "int_val", 9: "int64_val", 10: "bool_val"}


_MESSAGES = build_messages(_SCHEMA, "edgeface.tensorflow")
GraphDef: Any = _MESSAGES["GraphDef"]
NodeDef: Any = _MESSAGES["NodeDef"]
Tensor: Any = _MESSAGES["Tensor"]
MetaGraphDef: Any = _MESSAGES["MetaGraphDef"]
SavedModel: Any = _MESSAGES["SavedModel"]
BundleHeader: Any = _MESSAGES["BundleHeader"]
BundleEntry: Any = _MESSAGES["BundleEntry"]


def tensor_to_array(tensor: Any) -> NDArray[Any]:
    """Decode a TensorProto of numbers or booleans.

    Raises ValueError if its type is none of `DTYPES`, if it holds fewer bytes than its shape needs, or repeats a value
    in more than `FILLED_BYTES`.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ValueError(f"expected a tensor of numbers, found TensorFlow DataType {tensor.dtype}")
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if filled_bytes(tensor) > FILLED_BYTES:
        raise ValueError(f"expected at most {FILLED_BYTES:,} bytes of repeated values, found a tensor of {shape}")
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    if tensor.dtype == 19:
        values = np.array(tensor.half_val, np.uint16).view(np.float16)
    else:
        values = np.array(getattr(tensor, _VALUE_FIELDS[tensor.dtype]), dtype)
    if values.size == 0:
        return np.zeros(shape, dtype)
    # TensorFlow repeats the last value when fewer are given than the shape holds (tensor.proto).
    padding = math.prod(shape) - values.size
    return np.concatenate([values, np.repeat(values[-1:], max(padding, 0))]).reshape(shape)


def filled_bytes(tensor: Any) -> int:
    """Return how many bytes a TensorProto becomes that it does not hold, in Python's integers, which do not wrap.

    Raises ValueError for a negative size.
    """
    sizes: list[int] = [dim.size for dim in tensor.tensor_shape.dim]
    held: int = tensor.ByteSize()
    if min(sizes, default=0) < 0:
        raise ValueError(f"expected a tensor's shape, found {sizes}")
    dtype = DTYPES.get(tensor.dtype)
    return max(0, math.prod(sizes) * (dtype.itemsize if dtype else _TEXT_BYTES) - held)


_TEXT_BYTES = 32  # of an empty string in memory


def array_to_tensor(array: NDArray[Any], tensor: Any) -> None:
    """Encode an array of one of `DTYPES` into a TensorProto."""
    tensor.dtype = next(number for number, dtype in DTYPES.items() if dtype == array.dtype)
    set_shape(tensor.tensor_shape, array.shape)
    tensor.tensor_content = np.ascontiguousarray(array).tobytes()


def set_shape(message: Any, shape: tuple[int, ...]) -> None:
    """Write a shape into a TensorShapeProto; -1 is an unknown dimension, () a scalar."""
    message.SetInParent()  # a scalar's shape has no dimensions, and must not look as if there were none given
    for size in shape:
        message.dim.add(size=size)
