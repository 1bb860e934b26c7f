"""Read a model file, make it static, and describe it: any IR or ONNX file, of a face model or not."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import openvino as ov

from edgeface.bench.schema import ModelInfo
from edgeface.errors import ContractError, InputError, ModelFormatError
from edgeface.model.contract import ModelContract
from edgeface.model.flops import Work, batch_axis, count_work
from edgeface.model.ir_file import contract_of
from edgeface.model.stored import RT_INFO_KEY
from edgeface.runtime import ImageFormat
from edgeface.runtime.adapter import ColorOrder, Dtype, ImageLayout, Resize, adapt
from edgeface.runtime.schedule import reason_of

Shapes = Mapping[str, tuple[int, ...]]
"""Static shape by input name; the name ``""`` stands for the only input."""

_SIZE = re.compile(r"(\d+)x(\d+)")
_FORMATS: Mapping[str, Literal["ir", "onnx"]] = {".xml": "ir", ".onnx": "onnx"}
_FLOATING = {"f64": "FP64", "f32": "FP32", "f16": "FP16", "bf16": "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkModel:
    """A model to measure: `model`, an openvino.Model, is static and contains the adapter of the image format.

    `info` describes it for the result; `work` is that of `model` for a whole batch of `batch` items; `contract` is
    None if the model has none.
    """

    path: Path
    model: Any
    info: ModelInfo
    work: Work
    contract: ModelContract | None
    batch: int


def read_benchmark_model(
    path: Path,
    *,
    core: ov.Core,
    batch: int | None = None,
    shapes: Shapes | None = None,
    image_format: ImageFormat | None = None,
) -> BenchmarkModel:
    """Read a model, an .xml with its .bin beside it or an .onnx, and make it static.

    `batch` None is the model's own, or 1 where that is dynamic; `shapes` replace the model's own; `image_format` is
    that of the images that it is to take, which requires a contract.

    Raises
    ------
    InputError
        If the file is absent, a dimension other than the batch stays dynamic, or the shapes do not fit.
    ModelFormatError
        If OpenVINO cannot read it.
    ContractError
        If its contract is damaged, or missing although an image format was given.
    """
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise InputError(f"{path}: expected an OpenVINO IR (.xml) or an ONNX file (.onnx)")
    files = [path] if form == "onnx" else [path, path.with_suffix(".bin")]
    digest = _digest(files)
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise ModelFormatError(f"{path}: OpenVINO cannot read this model: {reason_of(error)}") from error
    if not (model.inputs and model.outputs):
        raise ModelFormatError(
            path=path, expected="a model with inputs and outputs", found=f"{len(model.inputs)} and {len(model.outputs)}"
        )
    contract = None
    if model.has_rt_info([RT_INFO_KEY, "contract_version"]):
        contract = contract_of(model, path.read_bytes(), source=str(path))
    _make_static(model, path, batch, shapes or {})
    bare = count_work(model)
    work = bare
    if image_format is not None:
        if contract is None:
            raise ContractError(
                f"{path} has no contract, which an input format requires; leave --input-format and --end-to-end out, "
                "or give the model a contract with 'edgeface adopt'"
            )
        if image_format.size == "any":
            raise InputError("the input format requires a size such as 640x480, found 'any'")
        model = adapt(model, contract, image_format, batch=bare.batch)
        work = count_work(model)
    info = ModelInfo(
        name=contract.name if contract else path.stem,
        contract_id=contract.contract_id if contract else None,
        provenance=contract.provenance if contract else None,
        digest=digest,
        format=form,
        precision=contract.precision if contract else _precision(model, bare),
        parameters=bare.parameters,
        gflops=bare.gflops_omz / bare.batch,
        gflops_mac2=bare.gflops_mac2 / bare.batch,
        int8_share=bare.int8_macs / bare.macs if bare.macs else 0.0,
        weight_bytes=bare.weight_bytes,
        activation_bytes=bare.activation_bytes // bare.batch,
        inputs={_name(port): tuple(int(side) for side in port.shape) for port in model.inputs},
        uncounted=tuple(sorted({f"{each.kind}: {each.reason}" for each in bare.uncounted})),
    )
    return BenchmarkModel(path=path, model=model, info=info, work=work, contract=contract, batch=bare.batch)


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Parse shapes in the form of benchmark_app: ``[1,3,224,224]`` or ``image[1,3,224,224],sizes[1,2]``."""
    shapes: dict[str, tuple[int, ...]] = {}
    rest = text.strip()
    while match := re.match(r"\s*([^\[\],\s]*)\s*\[\s*(\d+(?:\s*,\s*\d+)*|)\s*\]\s*(?:,|$)", rest):
        if match[1] in shapes:
            break
        shapes[match[1]] = tuple(int(side) for side in match[2].split(",") if side.strip())
        rest = rest[match.end() :]
    if rest or not shapes or ("" in shapes and len(shapes) > 1):
        raise InputError(f"shape: expected [1,3,224,224] or NAME[1,3,224,224],NAME[...], found {text!r}")
    return shapes


def parse_image_format(text: str) -> ImageFormat:
    """Parse an image format, words in any order: ``u8 NHWC BGR 640x480``; missing words take the default."""
    fields: dict[str, Any] = {}
    for word in text.split():
        if match := _SIZE.fullmatch(word.lower()):
            fields["size"] = (int(match[2]), int(match[1]))
            continue
        for name, choices in (("dtype", Dtype), ("layout", ImageLayout), ("color", ColorOrder), ("resize", Resize)):
            found = next((choice for choice in get_args(choices) if choice.lower() == word.lower()), None)
            if found is not None:
                fields[name] = found
                break
        else:
            raise InputError(f"input format: expected words such as 'u8 NHWC BGR 640x480', found {word!r}")
    return ImageFormat(**fields)


def _make_static(model: Any, path: Path, batch: int | None, shapes: Shapes) -> None:
    """Set the requested shapes, then every dynamic batch."""
    if batch is not None and batch < 1:
        raise InputError(f"batch: expected 1 or more, found {batch}")
    wanted: dict[int, Any] = {}
    left = dict(shapes)
    for index, port in enumerate(model.inputs):
        shape = port.partial_shape
        for name in ("", *port.get_names(), port.node.get_friendly_name()):
            if name in left and (name or len(model.inputs) == 1):
                shape = ov.PartialShape(list(left.pop(name)))
        axis = batch_axis(port.node, shape)
        if axis is not None and (batch is not None or shape[axis].is_dynamic):
            shape[axis] = batch or 1
        if shape.is_dynamic:
            example = ",".join("224" if side.is_dynamic else str(side) for side in shape)
            raise InputError(
                f"{path}: input {_name(port)!r} is {shape}, dynamic in more than its batch; give it a size, such as "
                f"--shape '{_name(port)}[{example}]'"
            )
        wanted[index] = shape
    if left:
        names = ", ".join(_name(port) for port in model.inputs)
        unknown = ", ".join(name or "a shape without a name" for name in left)
        raise InputError(f"{path}: shape: expected the inputs {names}, found {unknown}")
    try:
        model.reshape(wanted)
    except RuntimeError as error:
        shown = ", ".join(str(shape) for shape in wanted.values())
        raise InputError(f"{path}: the model does not take inputs of {shown}: {reason_of(error)}") from error


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise InputError(f"{file}: expected a model to read: {error.strerror}") from error
    return digest.hexdigest()


def _precision(model: Any, work: Work) -> str | None:
    """Return the type of most floating-point constants by bytes; INT8 if most multiplications are in 8 bits."""
    if 2 * work.int8_macs > work.macs:
        return "INT8"
    stored: Counter[str] = Counter()
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and (kind := node.get_element_type().get_type_name()) in _FLOATING:
            stored[kind] += node.get_byte_size()
    return _FLOATING[stored.most_common(1)[0][0]] if stored else None


def _name(port: Any) -> str:
    return str(port.get_any_name() if port.get_names() else port.node.get_friendly_name())
