"""Define what every reader of a model file returns, and what readers share: the identity of weights, the frontends."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import frontend

from edgeface.errors import ConversionError, ModelFormatError
from edgeface.files import sha256_of
from edgeface.model.contract import Layout
from edgeface.untrusted import LAYER_BYTES, MODEL_BYTES, read_regular, reading

_FRONTEND_FAILURES = (
    RuntimeError,
    frontend.GeneralFailure,
    frontend.InitializationFailure,
    frontend.NotImplementedFailure,
    frontend.OpConversionFailure,
    frontend.OpValidationFailure,
)
"""What the frontend raises; its failures have no base class of their own."""
_FRONTEND_CHATTER = ("Check '", "Exception from", "FrontEnd API failed", "Summary:", "To facilitate")
"""How the lines of its messages start that tell a user nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModel:
    """A raw OpenVINO model of standardised images, and where it is from.

    Attributes
    ----------
    model
        One input, float32, (?, H, W, 3) or (?, 3, H, W) as `layout` says, in the colour order of the recipe, of
        ``(x - mean) / scale``; one output (?, D). Weights are float32 constants.
    layout
        ``NCHW`` or ``NHWC``, of that input.
    framework
        ``tf``, ``onnx``, ``pytorch``, ``keras``, ``dlib`` or ``openvino``.
    sha256
        Of the file; of several files, over the lines ``digest  name`` of each.
    weights_id
        `digest_of_weights` of the weights as the file holds them, before anything is folded.
    normalized
        Whether rows have unit length; None where that is not known, and the recipe is believed until the check.
    seeded
        Whether the file says that its weights are random.
    input, output
        Names of the ports in the source, kept as aliases; empty where it has none.
    """

    model: ov.Model
    layout: Layout
    framework: str
    sha256: str
    weights_id: str
    normalized: bool | None
    seeded: bool = False
    input: str = ""
    output: str = ""


def digest_of_weights(arrays: Iterable[NDArray[Any]], structure: Sequence[str]) -> str:
    """Return the SHA-256 of a network's weights and of what it does with them, for `SourceModel.weights_id`.

    `arrays` are in an order that follows from the network, not from their names: shape and little-endian float32 values
    in C order are hashed. Kernels of different libraries are brought into one order of axes first (TensorFlow's,
    HWIO), so that the same weights have one digest whatever file carried them. `structure` has a line for each
    operation: the same weights in other layers, or with another stride, are another model.

    Examples
    --------
    >>> a, b = np.ones((2, 3)), np.zeros(4)
    >>> digest_of_weights([a, b], ["Conv"]) == digest_of_weights([b, a], ["Conv"])
    False
    """
    with ThreadPoolExecutor(2) as pool:  # hashing leaves the interpreter's lock
        digests = list(pool.map(_digest_of, arrays))
    return hashlib.sha256("\n".join([*digests, *structure]).encode()).hexdigest()


def weights_id_of(model: ov.Model) -> str:
    """Return the digest of a model's weights in their order and of what it does with them."""
    return digest_of_weights(float_constants(model), structure_of(model))


def read_bytes(path: Path, *, limit: int = MODEL_BYTES) -> bytes:
    """Read a model file; say what it is if it is no model.

    Raises ModelFormatError if the file is absent, no regular file, empty, larger than `limit`, a Git LFS pointer, an
    HTML page, an archive or a text graph.
    """
    with reading(path, "a readable model file", error=ModelFormatError):
        content = read_regular(path, limit=limit)
    if not content:
        raise ModelFormatError(f"{path}: expected a model, found an empty file; download it again")
    start = content[:64].lstrip().lower()
    for signature, found in _NOT_A_MODEL:
        if start.startswith(signature):
            raise ModelFormatError(f"{path}: expected a binary model, found {found}")
    return content


_NOT_A_MODEL = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with: git lfs pull"),
    (b"<!doctype html", "an HTML page: the download was refused or needs a confirmation; download it again"),
    (b"<html", "an HTML page: the download was refused or needs a confirmation; download it again"),
    (b"pk\x03\x04", "a zip archive; unpack it and give the model inside"),
    (b"node {", "a graph in text form; freeze it into a binary .pb first"),
)


def float_constants(model: ov.Model) -> Iterator[NDArray[np.float32]]:
    """Return the floating-point constants of a model, for `digest_of_weights` where no file of arrays is at hand."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().is_real():
            yield np.asarray(node.data, np.float32)


_FEW = 16
"""Values up to which a constant belongs to the structure."""


def structure_of(model: ov.Model) -> list[str]:
    """Return a line for each operation of a model: its type, its attributes, and where its inputs come from."""
    numbers: dict[str, int] = {}
    lines = []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        inputs = [f"{numbers[port.get_node().get_name()]}:{port.get_index()}" for port in node.input_values()]
        values = node.get_attributes()
        if kind == "Constant" and (not node.get_element_type().is_real() or node.data.size <= _FEW):
            values = {"data": np.asarray(node.data).tolist()}  # axes, shapes and factors; weights have their own digest
        elif kind in ("Constant", "Parameter", "Result"):
            values = {}
        lines.append(f"{kind}({', '.join(inputs)}) {sorted(values.items())}")
        numbers[node.get_name()] = len(numbers)
    return lines


def _digest_of(array: NDArray[Any]) -> str:
    values = np.ascontiguousarray(array, "<f4")
    digest = hashlib.sha256(f"{array.shape}\n".encode())
    digest.update(values.tobytes() if values.nbytes < 1 << 12 else values.data)
    return digest.hexdigest()


def digest_of_files(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a model of several files, over the lines ``digest  name`` of each."""
    lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def run_frontend(framework: str, file: Path, path: Path) -> ov.Model:
    """Convert a file by OpenVINO's frontend of a framework; `path` is the file's name in messages.

    Raises ConversionError with the frontend's reason.
    """
    reader = frontend.FrontEndManager().load_by_framework(framework)
    try:
        model = reader.convert(reader.load(str(file)))
    except _FRONTEND_FAILURES as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
        reason = [line for line in lines if not line.startswith(_FRONTEND_CHATTER)] or lines[-1:]
        raise ConversionError(f"{path}: OpenVINO cannot convert this graph: {' '.join(reason[:3])}") from error
    for node in model.get_ops():
        for port in node.outputs():
            axes = port.get_partial_shape()
            sides = [] if axes.rank.is_dynamic else [axis.get_length() for axis in axes if axis.is_static]
            if math.prod(sides) * port.get_element_type().size > LAYER_BYTES:
                raise ConversionError(
                    path=path,
                    expected=f"layers of at most {LAYER_BYTES:,} bytes for one image",
                    found=f"{node.get_friendly_name()!r} of {axes}",
                )
    return model
