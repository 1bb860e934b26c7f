"""Read and write the tensors of KServe V2 requests: JSON, the binary extension, and what gRPC carries.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md, and triton-inference-server/server,
docs/protocol/extension_binary_data.md. Nothing here knows of HTTP or of a model. Nothing is allocated for what a
request only says: each length, shape and product is compared with the bytes that are there.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.untrusted import parse_json

_NUMPY: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name.lower()).newbyteorder("<") for name in ("UINT8", "UINT16", "UINT32", "UINT64")},
    **{name: np.dtype(name.lower()).newbyteorder("<") for name in ("INT8", "INT16", "INT32", "INT64")},
    **{"FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"), "BOOL": np.dtype(bool)},
}
"""Datatypes of a fixed size; BYTES is the one that is not."""
_DATATYPES = (*_NUMPY, "BYTES")
MOST_TENSORS, MOST_DIMENSIONS, _NAME = 16, 8, 256
"""Most tensors of a request, dimensions of one, and characters of a name or an id."""
_JSON_TYPES: dict[str, set[type]] = {"BOOL": {bool}, "BYTES": {str}, "FP32": {int, float}, "FP64": {int, float}}


@dataclass(frozen=True, slots=True, eq=False)
class InferTensor:
    """A named tensor.

    Attributes
    ----------
    name, datatype, shape
        As in the protocol, e.g. ``image_batch``, ``FP32``, (1, 3, 160, 160).
    values
        An array of this shape; for BYTES the elements in row-major order.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """What is to be computed.

    Attributes
    ----------
    inputs
        The tensors; empty if there is `body`.
    body
        The one input of a request without JSON, whose name, datatype and shape the model says; else None.
    outputs
        Names of the outputs that are asked for, and whether each is to be sent as bytes; None: all there are.
    binary
        Whether outputs are sent as bytes where `outputs` is None.
    id
        Comes back with the answer; empty: none.
    """

    inputs: tuple[InferTensor, ...] = ()
    body: bytes | None = None
    outputs: Mapping[str, bool] | None = None
    binary: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferAnswer:
    """What was computed: outputs in the order asked for, by which version of which model."""

    model: str
    version: str
    outputs: tuple[InferTensor, ...]
    id: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


def _refuse(where: str, expected: str, found: object) -> InputError:
    return InputError(path=where, expected=expected, found=f"{found!r:.80}" if not isinstance(found, str) else found)


# Values


def count_elements(where: str, shape: Sequence[Any]) -> int:
    """Return the product of a shape; InputError unless it is at most 8 whole numbers that are not negative."""
    if len(shape) > MOST_DIMENSIONS or not all(type(side) is int and 0 <= side < 1 << 32 for side in shape):
        raise _refuse(where, f"a shape of at most {MOST_DIMENSIONS} whole numbers", list(shape))
    if math.prod(max(1, side) for side in shape) >= 1 << 48:  # beside a 0 too: no array has such a shape
        raise _refuse(where, "a shape of fewer elements", list(shape))
    return math.prod(shape)


def tensor_from_bytes(name: str, datatype: str, shape: Sequence[int], content: bytes | memoryview) -> InferTensor:
    """Read a tensor from its little-endian, row-major bytes; InputError unless they are exactly as many as it needs.

    Examples
    --------
    >>> tensor_from_bytes("a", "INT16", [2], bytes([1, 0, 255, 255])).values
    array([ 1, -1], dtype=int16)
    """
    count = count_elements(name, shape)
    if datatype == "BYTES":
        return InferTensor(name, datatype, tuple(shape), _split(name, count, content))
    dtype = _NUMPY.get(datatype)
    if dtype is None:
        raise _refuse(name, f"a datatype of {', '.join(_DATATYPES)}", datatype)
    if len(content) != count * dtype.itemsize:
        raise _refuse(
            name, f"{count * dtype.itemsize:,} bytes for {datatype} of {list(shape)}", f"{len(content):,} bytes"
        )
    values = np.frombuffer(content, np.uint8) != 0 if datatype == "BOOL" else np.frombuffer(content, dtype)
    return InferTensor(name, datatype, tuple(shape), values.reshape(shape))


def _split(name: str, count: int, content: bytes | memoryview) -> tuple[bytes, ...]:
    elements, at, end = list[bytes](), 0, len(content)
    while at < end:
        length = int.from_bytes(content[at : at + 4], "little")
        if end - at < 4 or length > end - at - 4 or len(elements) == count:
            raise _refuse(name, f"{count:,} elements, each with its length in 4 bytes before it", "other bytes")
        elements.append(bytes(content[at + 4 : at + 4 + length]))
        at += 4 + length
    if len(elements) != count:
        raise _refuse(name, f"{count:,} elements of BYTES", f"{len(elements):,}")
    return tuple(elements)


def tensor_from_values(name: str, datatype: str, shape: Sequence[int], values: Collection[Any]) -> InferTensor:
    """Make a tensor of values in row-major order; InputError if there are more, fewer, or some of another type.

    Examples
    --------
    >>> tensor_from_values("a", "UINT8", [1, 2], [7, 255]).values
    array([[  7, 255]], dtype=uint8)
    """
    count = count_elements(name, shape)
    if datatype not in _DATATYPES or datatype == "FP16":
        raise _refuse(name, "FP16 as bytes" if datatype == "FP16" else f"one of {', '.join(_DATATYPES)}", datatype)
    if len(values) != count:
        raise _refuse(name, f"{count:,} values for the shape {list(shape)}", f"{len(values):,}")
    flat = list(values)
    if wrong := set(map(type, flat)) - _JSON_TYPES.get(datatype, {int}) - ({bytes} if datatype == "BYTES" else set()):
        raise _refuse(name, f"values of {datatype}", ", ".join(sorted(each.__name__ for each in wrong)))
    if datatype == "BYTES":
        try:
            texts = tuple(each if isinstance(each, bytes) else each.encode() for each in flat)
        except UnicodeEncodeError:
            raise _refuse(name, "text that UTF-8 can hold", "a surrogate") from None
        return InferTensor(name, datatype, tuple(shape), texts)
    dtype = _NUMPY[datatype]
    if dtype.kind in "iu" and flat:
        limits = np.iinfo(dtype)
        if not limits.min <= min(flat) <= max(flat) <= limits.max:
            raise _refuse(name, f"values of {datatype}", "a number out of its range")
    with np.errstate(over="ignore"):  # becomes infinite
        return InferTensor(name, datatype, tuple(shape), np.array(flat, dtype).reshape(shape))


def tensor_to_bytes(tensor: InferTensor) -> bytes:
    """Return the bytes from which `tensor_from_bytes` reads it."""
    if isinstance(tensor.values, tuple):
        return b"".join(len(each).to_bytes(4, "little") + each for each in tensor.values)
    return tensor.values.astype(_NUMPY[tensor.datatype], copy=False).tobytes()


# Requests and answers as JSON, with bytes after it


def decode_request(body: bytes, header_length: int | None = None) -> InferRequest:
    """Read the body of an inference request.

    Parameters
    ----------
    body
        JSON, and after it the bytes of the inputs that have no data in it, in their order.
    header_length
        Bytes of the JSON; None: all. 0: there is none, and the body is the one input.

    Raises
    ------
    InputError
        If anything about it is not as the protocol says.

    Examples
    --------
    >>> decode_request(b'{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "data": [0.5]}]}').inputs[0].values
    array([0.5], dtype=float32)
    """
    if header_length == 0:
        return InferRequest(body=body, binary=True)
    length = len(body) if header_length is None else header_length
    if not 0 < length <= len(body):
        raise _refuse("Inference-Header-Content-Length", f"at most the {len(body):,} bytes of the body", str(length))
    try:
        given = parse_json(body[:length].decode())
    except (ValueError, RecursionError) as error:
        raise _refuse("body", "JSON", f"{error}"[:200]) from error
    request = _Fields("body", given)
    binary = request.parameters().flag("binary_data_output")
    outputs = request.objects("outputs")
    wanted = {each.text("name"): each.parameters().flag("binary_data", binary) for each in outputs}
    if len(wanted) != len(outputs):
        raise _refuse("outputs", "each name once", "one twice")
    rest, tensors = memoryview(body)[length:], []
    for each in request.objects("inputs"):
        tensor, rest = _decode_input(each, rest)
        tensors.append(tensor)
    if len(rest):
        raise _refuse("body", "nothing behind the last input", f"{len(rest):,} bytes")
    return InferRequest(inputs=tuple(tensors), outputs=wanted or None, binary=binary, id=request.text("id", ""))


def _decode_input(given: _Fields, rest: memoryview) -> tuple[InferTensor, memoryview]:
    """Read one input, from its own data or the first of the remaining bytes; return what remains."""
    name, datatype, shape = given.text("name"), given.text("datatype"), given.get("shape", list)
    parameters = given.parameters()
    if "data" in given.values:
        data = given.get("data", list)
        return tensor_from_values(name, datatype, shape, _flatten(name, data, shape)), rest
    # With one input its size may be missing, as OpenVINO Model Server allows: it takes all there is.
    size = parameters.get("binary_data_size", int, len(rest))
    if not 0 <= size <= len(rest):
        raise _refuse(name, f"data, or a binary_data_size of at most the {len(rest):,} bytes left", str(size))
    return tensor_from_bytes(name, datatype, shape, rest[:size]), rest[size:]


def _flatten(name: str, data: list[Any], shape: list[Any]) -> list[Any]:
    """Return flat data as it is, and nested data flat, if its lists are as long as the shape says."""
    count_elements(name, shape)
    if not data or not isinstance(data[0], list):
        return data
    if shape[:1] != [len(data)]:
        raise _refuse(name, f"data of the shape {shape}", f"{len(data):,} lists")
    for side in shape[1:]:
        if not all(isinstance(each, list) and len(each) == side for each in data):
            raise _refuse(name, f"flat data, or lists nested as {shape}", "others")
        data = list(chain.from_iterable(data))
    return data


@dataclass(frozen=True, slots=True)
class _Fields:
    """An object of JSON, whose fields are read by type."""

    where: str
    values: dict[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.values, dict):
            raise _refuse(self.where, "an object", type(self.values).__name__)

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """Return a field; InputError if it is missing without a default, or of another type."""
        value = self.values.get(name, default)
        if type(value) is not kind:
            raise _refuse(f"{self.where}.{name}", f"a value of the type {kind.__name__}", type(value).__name__)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.get(name, bool, default))

    def text(self, name: str, default: str | None = None) -> str:
        return check_text(f"{self.where}.{name}", self.get(name, str, default), empty=default is not None)

    def objects(self, name: str) -> list[_Fields]:
        items = self.get(name, list, [])
        if len(items) > MOST_TENSORS:
            raise _refuse(f"{self.where}.{name}", f"at most {MOST_TENSORS}", f"{len(items):,}")
        return [_Fields(name, each) for each in items]

    def parameters(self) -> _Fields:
        """Return the parameters; InputError for those that this service cannot heed without a wrong answer."""
        found = _Fields(f"{self.where}.parameters", self.get("parameters", dict, {}))
        refuse_extensions(found.where, found.values)
        return found


def check_text(where: str, text: str, *, empty: bool = False) -> str:
    """Return a name or an id; InputError if it is long or has control characters, or is empty and must not be."""
    if len(text) > _NAME or not text.isprintable() or not (text or empty):
        raise _refuse(where, f"1 to {_NAME} printable characters", f"{text!r:.40}")
    return text


def refuse_extensions(where: str, parameters: Mapping[str, Any]) -> None:
    """Raise InputError for parameters that this service cannot heed, and must not leave out."""
    for name in ("shared_memory_region", "classification"):
        if parameters.get(name):
            raise _refuse(f"{where}.{name}", "none: this service has no such extension", "one")


def encode_answer(answer: InferAnswer, request: InferRequest) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how many bytes of it are JSON; None: all.

    FP16 has no form in JSON, and is always sent as bytes.
    """
    outputs, parts = [], []
    for tensor in answer.outputs:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        binary = request.binary if request.outputs is None else request.outputs[tensor.name]
        if binary or tensor.datatype == "FP16":
            parts.append(tensor_to_bytes(tensor))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        elif isinstance(tensor.values, tuple):
            entry["data"] = [each.decode("utf-8", "replace") for each in tensor.values]
        else:
            entry["data"] = tensor.values.ravel().tolist()
        outputs.append(entry)
    given: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    given |= {"id": answer.id} if answer.id else {}
    given |= {"parameters": dict(answer.parameters)} if answer.parameters else {}
    head = json.dumps(given | {"outputs": outputs}, separators=(",", ":"), allow_nan=False).encode()
    return b"".join((head, *parts)), len(head) if parts else None


def unpack(content: bytes, encoding: str, *, limit: int) -> bytes:
    """Return what was compressed by ``gzip`` or ``deflate``; any more than `limit` bytes are not unpacked.

    Raises InputError if it is more, cut, damaged, followed by something, or of another encoding.
    """
    if encoding in ("", "identity"):
        return content
    if encoding not in ("gzip", "deflate"):
        raise _refuse("Content-Encoding", "gzip, deflate or none", encoding)
    stream = zlib.decompressobj(zlib.MAX_WBITS + (16 if encoding == "gzip" else 0))
    try:
        unpacked = stream.decompress(content, limit + 1)
    except zlib.error as error:
        raise _refuse("body", encoding, f"damage: {error}") from error
    if len(unpacked) > limit:
        raise _refuse("body", f"at most {limit:,} bytes unpacked", "more")
    if not stream.eof or stream.unused_data:
        raise _refuse("body", f"one whole stream of {encoding}", "a part of one, or more behind it")
    return unpacked


def pack(content: bytes, accepted: str) -> tuple[bytes, str]:
    """Compress an answer as the client accepts it (the value of Accept-Encoding); return it and its encoding."""
    offers = (each.replace(" ", "").lower().partition(";") for each in accepted.split(","))
    names = {name for name, _, weight in offers if weight.rstrip("0") not in ("q=", "q=0.")}
    encoding = next((each for each in ("gzip", "deflate") if each in names), "")
    if not encoding or len(content) < _SMALL:
        return content, ""
    stream = zlib.compressobj(1, wbits=zlib.MAX_WBITS + (16 if encoding == "gzip" else 0))
    return stream.compress(content) + stream.flush(), encoding


_SMALL = 1024
"""Bytes of an answer that is not worth compressing."""
