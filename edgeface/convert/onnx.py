"""Read an ONNX model of one image and one embedding, without the onnx package.

The file is parsed and its sizes are checked before OpenVINO's ONNX frontend sees it. The frontend, and one run on
random images, work in a child process with a bound on its memory: a damaged file can crash native code, or let it
allocate what one changed number says.

Field numbers are those of onnx/onnx.proto3.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.apart import Converted, convert_apart, process_apart
from edgeface.convert.graphdef import parse_message
from edgeface.convert.inside import notice_preprocessing
from edgeface.convert.ir import flatten_output, take_floats
from edgeface.convert.recipe import Recipe, is_raw
from edgeface.convert.source import SourceModel, digest_of_files, digest_of_weights, read_bytes, run_frontend
from edgeface.errors import ConversionError, InputError, ModelFormatError
from edgeface.files import sha256_of
from edgeface.model.contract import Layout
from edgeface.model.opset import ops
from edgeface.protobuf import build_messages
from edgeface.untrusted import IMPORT_RATIO, reading

log = logging.getLogger(__name__)

_SCHEMA = """
ModelProto      ir_version=1:int64 graph=7:GraphProto
GraphProto      node=1*NodeProto initializer=5*TensorProto input=11*ValueInfoProto output=12*ValueInfoProto
GraphProto      sparse_initializer=15*bytes
ValueInfoProto  name=1:string
NodeProto       input=1*string output=2*string name=3:string op_type=4:string attribute=5*AttributeProto domain=7:string
AttributeProto  name=1:string f=2:float i=3:int64 s=4:bytes t=5:TensorProto g=6:bytes floats=7*float ints=8*int64
AttributeProto  tensors=10*TensorProto graphs=11*bytes
TensorProto     dims=1*int64 data_type=2:int32 float_data=4*float int32_data=5*int32 int64_data=7*int64 name=8:string
TensorProto     raw_data=9:bytes double_data=10*double uint64_data=11*uint64 external_data=13*Entry
TensorProto     data_location=14:int32
Entry           key=1:string value=2:string
"""
_ModelProto: Any = build_messages(_SCHEMA, "edgeface.onnx")["ModelProto"]

_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""Bytes of one number, by TensorProto.DataType; strings, complex and sub-byte types are no part of a recogniser."""
_VALUE_FIELDS = {1: "float_data", 7: "int64_data", 11: "double_data", 12: "uint64_data", 13: "uint64_data"}
_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 10, 11, 16
_INT32, _INT64 = 6, 7
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def load_onnx(path: Path, recipe: Recipe) -> SourceModel:
    """Read an ONNX file whose one input is an image, and keep the output that is the embedding.

    The layout is read from the file, from where its 3 channels are. A fixed batch becomes dynamic where the graph
    allows it. Weights may lie in files beside it (external data), inside its folder.

    Raises
    ------
    ModelFormatError
        If the file is damaged, no ONNX model, or weights beside it are missing or too short.
    ConversionError
        If the model is not one image in and one embedding out, or OpenVINO cannot convert it.
    InputError
        If the recipe contradicts the file, or leaves out what the file does not say.
    """
    with process_apart() as process:
        files, weights_id = _read(path, recipe.output)
        size = sum(file.stat().st_size for file in files)
        model, found = convert_apart(process, _import, path, recipe, path=path, size=size)
    imported = _Imported(**found)
    for note in imported.notes:
        log.info("%s: %s", path, note)
    return SourceModel(
        model=model,
        layout=imported.layout,
        framework="onnx",
        sha256=sha256_of(path) if len(files) == 1 else digest_of_files(files),
        weights_id=weights_id,
        normalized=imported.normalized,
        input=imported.input,
        output=imported.output,
    )


# --- the file -------------------------------------------------------------------------------------------------------


def _read(path: Path, output: str | None) -> tuple[list[Path], str]:
    """Check a file; return it with the files beside it that hold its weights, and the identity of the weights."""
    graph = parse_message(_ModelProto, read_bytes(path), path, framework="an ONNX").graph
    with reading(path, "an ONNX model", error=ModelFormatError):
        files = [path, *_check_tensors(graph, path)]
        _check_graph(graph, path)
        structure, used = _structure_of(graph, output)
        weights = dict(_weights(graph, path, most=IMPORT_RATIO * sum(file.stat().st_size for file in files)))
        return files, digest_of_weights([weights[name] for name in used if name in weights], structure)


def _tensors(graph: Any) -> Iterator[tuple[str, Any]]:
    """Return (name, tensor) of every initializer and of every tensor that a node holds."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            tensors = [attribute.t] if attribute.HasField("t") else []
            for tensor in (*tensors, *attribute.tensors):
                yield (node.output[0] if node.output else node.name), tensor


def _check_tensors(graph: Any, path: Path) -> list[Path]:
    """Require that every tensor has the numbers that its shape says; return the files beside `path` that hold some."""
    files: dict[Path, None] = {}
    for name, tensor in _tensors(graph):
        item = _ITEM_BYTES.get(tensor.data_type)
        if item is None:
            raise ModelFormatError(
                f"{path}: tensor {name!r}: expected numbers, found ONNX data type {tensor.data_type}"
            )
        if any(size < 0 for size in tensor.dims):
            raise ModelFormatError(f"{path}: tensor {name!r}: expected a shape, found {list(tensor.dims)}")
        expected = math.prod(tensor.dims)
        if tensor.data_location == 1:
            file, _, length = _external(tensor, path)
            files[file], found = None, length / item
        elif tensor.raw_data:
            found = len(tensor.raw_data) / item
        else:
            found = len(getattr(tensor, _VALUE_FIELDS.get(tensor.data_type, "int32_data")))
        if found != expected:
            raise ModelFormatError(
                f"{path}: tensor {name!r}: expected {expected:,} numbers for its shape {list(tensor.dims)}, found "
                f"{found:,.10g}; the file is truncated or damaged"
            )
    return list(files)


def _external(tensor: Any, path: Path) -> tuple[Path, int, int]:
    """Return file, offset and length in bytes of a tensor's external data.

    Raises ModelFormatError if the file is outside the model's folder, absent, or too short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    relative = PurePosixPath(location)
    file = path.parent / relative
    inside = path.parent.resolve() in file.resolve().parents
    if not location or "\0" in location or relative.is_absolute() or ".." in relative.parts or not inside:
        raise ModelFormatError(
            f"{path}: tensor {tensor.name!r}: expected weights in a file of the model's folder, found {location!r}"
        )
    if not file.is_file():
        raise ModelFormatError(f"{path}: expected its weights in {file}, found no such file; copy it beside the model")
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", file.stat().st_size - offset))
    except ValueError as error:
        raise ModelFormatError(f"{path}: tensor {tensor.name!r}: expected an offset in bytes: {error}") from error
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise ModelFormatError(
            f"{file}: expected bytes {offset:,} to {offset + length:,} for tensor {tensor.name!r}, found "
            f"{file.stat().st_size:,} bytes; the file is truncated or another model's"
        )
    return file, offset, length


def _check_graph(graph: Any, path: Path) -> None:
    if not graph.node:
        raise ModelFormatError(f"{path}: expected an ONNX graph, found one without nodes; is it really an .onnx?")
    for node in graph.node:
        if node.op_type in _CONTROL_FLOW or any(each.g or each.graphs for each in node.attribute):
            raise ConversionError(
                f"{path}: expected a network without control flow, found {node.op_type} {node.name!r}; export the "
                "model in inference mode"
            )
    if graph.sparse_initializer:
        raise ConversionError(f"{path}: expected dense weights, found {len(graph.sparse_initializer)} sparse tensors")


def _weights(graph: Any, path: Path, *, most: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """Return (name, array) of the floating-point tensors; kernels as HWIO, weights of dense layers as (in, out).

    Raises ModelFormatError if they have more than `most` bytes together: several may name the same external bytes.
    """
    kernels, dense = set(), set()
    for node in graph.node:
        if node.op_type in _CONVOLUTIONS and len(node.input) > 1:
            kernels.add(node.input[1])
        if node.op_type == "Gemm" and len(node.input) > 1 and any(a.name == "transB" and a.i for a in node.attribute):
            dense.add(node.input[1])
    for name, tensor in _tensors(graph):
        if tensor.data_type not in (_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16):
            continue
        most -= 4 * math.prod(tensor.dims)
        if most < 0:
            raise ModelFormatError(path=path, expected="tensors of their own values", found="some that share them")
        array = _array(tensor, path)
        if name in kernels and array.ndim > 2:
            yield name, array.transpose(*range(2, array.ndim), 1, 0)
        else:
            yield name, array.T if name in dense and array.ndim == 2 else array


def _structure_of(graph: Any, output: str | None) -> tuple[list[str], list[str]]:
    """Return a line for each node: its type, its attributes, and where its inputs come from; and for the output.

    The names of the tensors are returned too, in the order of their use.

    A layout change of the image itself is left out: it is the same network for images of another layout.
    """
    made = {each.name: "image" for each in graph.input} | {name: _shown(each) for name, each in _tensors(graph)}
    lines: list[str] = []
    used: dict[str, None] = {}
    for node in graph.node:
        used |= dict.fromkeys(node.input)
        inputs = [made.get(name, "none") for name in node.input]
        if node.op_type == "Constant" and any(each.HasField("t") for each in node.attribute):
            continue
        if node.op_type == "Transpose" and inputs == ["image"]:
            made |= dict.fromkeys(node.output, "image")
            continue
        told = sorted((a.name, a.f, a.i, a.s.hex(), list(a.floats), list(a.ints)) for a in node.attribute)
        made |= {name: f"{len(lines)}:{slot}" for slot, name in enumerate(node.output)}
        lines.append(f"{node.domain}.{node.op_type}({', '.join(inputs)}) {told}")
    chosen = [output] if output is not None else [each.name for each in graph.output]
    return [*lines, *(made.get(name, "none") for name in chosen)], list(used)


def _shown(tensor: Any) -> str:
    """Return a tensor's shape; of whole numbers, which are axes, shapes and indices, the values."""
    kind = {_INT32: "<i4", _INT64: "<i8"}.get(tensor.data_type)
    if kind is None or tensor.data_location == 1:
        return f"tensor {list(tensor.dims)}"
    if tensor.raw_data:
        return f"tensor {np.frombuffer(tensor.raw_data, kind).tolist()}"
    return f"tensor {list(tensor.int64_data if kind == '<i8' else tensor.int32_data)}"


def _array(tensor: Any, path: Path) -> NDArray[Any]:
    kind = {_FLOAT: "<f4", _FLOAT16: "<f2", _DOUBLE: "<f8", _BFLOAT16: "<u2"}[tensor.data_type]
    if tensor.data_location == 1:
        file, offset, length = _external(tensor, path)
        values = np.fromfile(file, kind, length // np.dtype(kind).itemsize, offset=offset)
    elif tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, kind)
    elif tensor.data_type in (_FLOAT16, _BFLOAT16):  # the bits of a half, each in an int32
        values = np.array(tensor.int32_data, np.int64).astype("<u2").view(kind)
    else:
        values = np.array(getattr(tensor, _VALUE_FIELDS[tensor.data_type]), kind)
    if tensor.data_type == _BFLOAT16:
        values = (values.astype("<u4") << 16).view("<f4")
    return values.reshape(tuple(tensor.dims))


# --- the graph ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Imported:
    """What the child process found; its model lies in a file."""

    layout: Layout
    normalized: bool
    input: str
    output: str
    notes: list[str]


def _import(path: Path, recipe: Recipe) -> Converted:
    """Convert the file with OpenVINO's frontend, and measure what the file does not say."""
    model = _choose_output(run_frontend("onnx", path, path), recipe, path)
    layout = _layout_of(model, recipe, path)
    names = model.input(0).get_any_name(), model.output(0).get_any_name()
    take_floats(model, raw=is_raw(recipe), source=str(path))
    flatten_output(model)
    if len(found := model.output(0).get_partial_shape()) != 2:
        raise ConversionError(f"{path}: expected an output of (batch, embedding), found {found}; see --output")
    size = _resize(model, layout, recipe, path)
    sides = (size[1], size[2]) if layout == "NCHW" else (size[0], size[1])
    notes = notice_preprocessing(model, layout=layout, size=sides, recipe=recipe, path=path)
    freed = _free_the_batch(model)
    if (
        freed is not None
        and _same_rows(model, freed, size, recipe, path)
        and _rows(freed, size, recipe, path).independent
    ):
        model = freed
        notes.append("its batch is fixed; it was made dynamic")
    rows = _rows(model, size, recipe, path)
    if not rows.independent:
        raise ConversionError(f"{path}: expected rows that do not depend on the other images of a batch, found some")
    return model, dataclasses.asdict(_Imported(layout, rows.normalized, *names, notes))


def _choose_output(model: ov.Model, recipe: Recipe, path: Path) -> ov.Model:
    names = [port.get_any_name() for port in model.outputs]
    chosen = [port for port in model.outputs if recipe.output in port.get_names()]
    if recipe.output is not None and not chosen:
        raise InputError(f"{path}: expected an output {recipe.output!r} (--output), found {', '.join(names)}")
    if recipe.output is None and len(names) != 1:
        raise InputError(
            f"{path}: expected one output, found {len(names)} ({', '.join(names)}); choose one with --output NAME"
        )
    if len(model.inputs) != 1:
        found = ", ".join(port.get_any_name() for port in model.inputs)
        raise ConversionError(f"{path}: expected one input, an image, found {len(model.inputs)} ({found})")
    if len(names) == 1:
        return model
    return ov.Model([chosen[0].get_node()], model.get_parameters(), model.get_friendly_name())


def _layout_of(model: ov.Model, recipe: Recipe, path: Path) -> Layout:
    """Return the layout, by which of axes 1 and 3 has 3 channels; where both may, the recipe's."""
    shape = model.input(0).get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4:
        raise ConversionError(f"{path}: expected an image of 4 axes as input, found {shape}")
    axes: tuple[tuple[Layout, int], ...] = (("NCHW", 1), ("NHWC", 3))
    found = [layout for layout, axis in axes if shape[axis].is_static and shape[axis] == 3]
    found = found or [layout for layout, axis in axes if shape[axis].is_dynamic]
    if not found:
        raise ConversionError(f"{path}: expected an image of 3 channels as input, found {shape}")
    if recipe.layout is not None and recipe.layout not in found:
        raise InputError(f"{path}: its input {shape} is {found[0]}, found --layout {recipe.layout}; leave it out")
    if len(found) == 2 and recipe.layout is None:
        raise InputError(f"{path}: its input {shape} does not say where the channels are; pass --layout NCHW or NHWC")
    return recipe.layout or found[0]


def _constant(port: Any) -> NDArray[Any] | None:
    """Return the value of a Constant, numbers with a point as float64; None for any other node."""
    node = port.get_node()
    if node.get_type_name() != "Constant":
        return None
    return np.asarray(node.data, np.float64) if node.get_element_type().is_real() else np.asarray(node.data)


def _resize(model: ov.Model, layout: Layout, recipe: Recipe, path: Path) -> tuple[int, ...]:
    """Fix height and width, and return the shape of one image, (3, H, W) or (H, W, 3)."""
    batch, *axes = model.input(0).get_partial_shape()
    sides = list(axes[1:] if layout == "NCHW" else axes[:2])
    if recipe.size is None and any(side.is_dynamic for side in sides):
        raise InputError(f"{path}: it takes images of any size; pass the size of its crops with --size")
    size = recipe.size or tuple(side.get_length() for side in sides)
    if any(side.is_static and side != wanted for side, wanted in zip(sides, size, strict=True)):
        wanted, found = (" x ".join(map(str, each)) for each in (size, sides))
        raise ConversionError(f"{path}: expected a model of {wanted} images (--size), found one of {found}")
    image = (3, *size) if layout == "NCHW" else (*size, 3)
    try:
        model.reshape(ov.PartialShape([batch, *image]))
    except RuntimeError as error:
        wanted, found = (" x ".join(map(str, each)) for each in (size, sides))
        raise ConversionError(f"{path}: expected a model of {wanted} images, found one of {found}") from error
    return image


def _free_the_batch(model: ov.Model) -> ov.Model | None:
    """Return the model with a dynamic batch; None if its batch is dynamic already, or the graph holds it fixed.

    Exporters write a batch of 1 into the shapes of Reshape operations, where one axis can be left to OpenVINO, and
    into constants that are concatenated with rows, such as a transformer's class token.
    """
    shape = model.input(0).get_partial_shape()
    if shape[0].is_dynamic:
        return None
    model = model.clone()
    (parameter,) = model.get_parameters()
    batch = ops.gather(ops.shape_of(parameter), ops.constant(np.array([0])), ops.constant(np.array(0)))
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Reshape":
            _free_reshape(node, shape[0].get_length())
        elif node.get_type_name() == "Concat" and node.get_attributes()["axis"] != 0:
            for port in node.inputs():
                token = port.get_source_output()
                axes = token.get_partial_shape()
                if _is_constant(token.get_node()) and axes[0].is_static and axes[0].get_length() == 1:
                    ones = ops.constant(np.ones(len(axes) - 1, np.int64))
                    repeated = ops.broadcast(token, ops.concat([batch, ones], 0), broadcast_spec="BIDIRECTIONAL")
                    port.replace_source_output(repeated.output(0))
    try:
        model.reshape(ov.PartialShape([-1, *list(shape)[1:]]))
    except RuntimeError:
        return None
    return model if model.output(0).get_partial_shape()[0].is_dynamic else None


def _free_reshape(node: Any, batch: int) -> None:
    """Leave the first axis of a Reshape with a constant shape to OpenVINO."""
    wanted = _constant(node.input_value(1))
    if wanted is None or wanted.size < 2 or 0 in wanted or (-1 in wanted[1:] and wanted[0] != batch):
        return
    freed = wanted.astype(np.int64)
    freed[0] = 0 if -1 in wanted[1:] else -1  # 0 stands for the axis of what is reshaped
    replacement = ops.reshape(node.input_value(0), ops.constant(freed), True)
    replacement.output(0).set_names(node.output(0).get_names())
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(replacement.output(0))


def _is_constant(node: Any) -> bool:
    inputs = [port.get_node() for port in node.input_values()]
    return bool(node.get_type_name() == "Constant") or (bool(inputs) and all(_is_constant(each) for each in inputs))


def _same_rows(fixed: ov.Model, freed: ov.Model, image: Sequence[int], recipe: Recipe, path: Path) -> bool:
    """Whether a model whose batch was made dynamic computes of the fixed batch what it did before."""
    images = _images(fixed.input(0).get_partial_shape()[0].get_length(), image, recipe)
    (before,) = _run(fixed, [images], path)
    try:
        (after,) = _run(freed, [images], path)
    except ConversionError:
        return False
    return before.shape == after.shape and np.allclose(before, after, rtol=0, atol=1e-4 * np.abs(before).max())


def _images(count: int, image: Sequence[int], recipe: Recipe) -> NDArray[np.float32]:
    """Return random images that were standardised as the recipe says."""
    raw = np.random.default_rng(0).uniform(0, 255, (count, *image))
    channels = (3, 1, 1) if image[0] == 3 else (3,)
    images: NDArray[np.float64] = (raw - np.reshape(recipe.mean, channels)) / np.reshape(recipe.scale, channels)
    return images.astype(np.float32)


def _run(model: ov.Model, batches: Sequence[NDArray[np.float32]], path: Path) -> list[NDArray[np.float32]]:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    try:
        compiled = ov.Core().compile_model(model, "CPU", options)
        return [np.array(compiled(batch)[0]) for batch in batches]
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1:]
        raise ConversionError(f"{path}: OpenVINO cannot run this graph: {' '.join(reason)}") from error


@dataclass(frozen=True, slots=True)
class _Rows:
    """Whether rows of embeddings are the same in any batch, and whether they have unit length."""

    independent: bool
    normalized: bool


def _rows(model: ov.Model, image: Sequence[int], recipe: Recipe, path: Path) -> _Rows:
    """Embed random images one by one, and together where the batch is dynamic."""
    shape = model.input(0).get_partial_shape()
    images = _images(3 if shape[0].is_dynamic else shape[0].get_length(), image, recipe)
    batches = [images, *(images[each : each + 1] for each in range(len(images)) if shape[0].is_dynamic)]
    together, *alone = _run(model, batches, path)
    if not alone:  # of a fixed batch, the first row has to stay when the other images change
        (others,) = _run(model, [np.concatenate([images[:1], 255 - images[1:]])], path)
        alone = [others[:1], together[1:]]
    if not np.isfinite(together).all():
        raise ConversionError(f"{path}: expected finite embeddings, found others; the file is damaged")
    lengths = np.linalg.norm(together, axis=-1)
    largest = np.abs(together).max()
    apart = np.concatenate([each.ravel() for each in alone])
    same = apart.size == together.size and np.allclose(apart, together.ravel(), rtol=0, atol=1e-4 * max(largest, 1e-30))
    return _Rows(bool(same), bool(np.allclose(lengths, 1, atol=1e-4)))
