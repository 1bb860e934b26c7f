"""Make an IR of a raw OpenVINO model: preprocessing, names, contract, files, and a check in a fresh process.

Every IR that edgeface writes has one input, one output, no `If`, static height, width and channels, unit-length
rows if the contract says so, and gives the same answer the first time as every time after.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.preprocess import ColorFormat, PrePostProcessor

from edgeface.convert.apart import WITHOUT_TOOLS
from edgeface.errors import ConversionError, EdgeFaceError, InputError, OutputError
from edgeface.files import output_errors, sha256_of
from edgeface.limits import require_room_to_compile
from edgeface.model.contract import Color, Layout
from edgeface.model.ir_file import any_contract_of, bind_xml, check_weights, read_ir
from edgeface.model.liveness_contract import LivenessContract
from edgeface.model.opset import ops
from edgeface.model.stored import StoredContract

_Contract = TypeVar("_Contract", bound=StoredContract)

BATCHES = (1, 2, 5)
TOLERANCE = 1e-5
"""Largest difference between two runs of the same FP32 network; summation order may change with the batch."""


def fold_constants(model: ov.Model) -> None:
    """Fold batch norms and other constant arithmetic into the weights, in place."""
    from openvino._offline_transformations import apply_moc_transformations  # no public name for it in any release

    apply_moc_transformations(model, cf=True)


def adapt_input(
    model: ov.Model,
    *,
    layout: Layout,
    color: Color,
    mean: tuple[float, float, float],
    scale: tuple[float, float, float],
    size: tuple[int, int],
    batch: int | None,
    model_layout: Layout = "NHWC",
    model_color: Color = "RGB",
) -> ov.Model:
    """Make a model of standardised images take raw images (float32 0-255) of this layout and colour order.

    The model's one input is (?, H, W, 3) or (?, 3, H, W), as `model_layout` says, and expects ``(x - mean) / scale``,
    per channel in the order of `model_color`, in units of the raw value. `size` is (height, width) in pixels; a
    `batch` of None is dynamic.

    Raises ConversionError if the model cannot take images of that size.
    """
    first = -1 if batch is None else batch
    wanted = [first, *size, 3] if model_layout == "NHWC" else [first, 3, *size]
    found = model.input(0).get_partial_shape()
    remedy = "; export it with a dynamic batch, or pass --batch 1" if batch is None and found[0].is_static else ""
    try:
        model.reshape(wanted)
        held = remedy and len(model.outputs) == 1 and model.output(0).get_partial_shape()[0].is_static
    except RuntimeError as error:
        raise ConversionError(f"expected a model that takes {wanted}, found one for {found}{remedy}") from error
    if held:
        raise ConversionError(f"expected a model that takes {wanted}, found one for {found}{remedy}")
    swapped = color != model_color
    if not _fold_into_first_convolution(
        model, layout=layout, swapped=swapped, mean=mean, scale=scale, model_layout=model_layout
    ):
        model = prepend_preprocessing(
            model,
            layout=layout,
            color=color,
            mean=mean,
            scale=scale,
            model_layout=model_layout,
            model_color=model_color,
        )
    fold_constants(model)
    model.validate_nodes_and_infer_types()
    return model


def _fold_into_first_convolution(
    model: ov.Model,
    *,
    layout: Layout,
    swapped: bool,
    mean: tuple[float, float, float],
    scale: tuple[float, float, float],
    model_layout: Layout,
) -> bool:
    """Fold preprocessing into the first convolution's weights and bias, if it has no padding.

    ``w * (x - m) / s = (w / s) * x - sum(w * m / s)``; padding would have to be `m` rather than 0, so a padded
    convolution is left alone.
    """
    (parameter,) = model.get_parameters()
    convolution = _only_consumer(parameter)
    if model_layout == "NHWC":
        if convolution is None or convolution.get_type_name() != "Transpose":
            return False
        convolution = _only_consumer(convolution)
    kernels = None if convolution is None else _unpadded_kernels(convolution)
    if convolution is None or kernels is None:
        return False
    scaled = kernels.astype(np.float64) / np.reshape(scale, (1, 3, 1, 1))
    bias = -(scaled * np.reshape(mean, (1, 3, 1, 1))).sum(axis=(1, 2, 3))
    if swapped:
        scaled = scaled[:, ::-1]
    convolution.input(1).replace_source_output(ops.constant(scaled.astype(np.float32)).output(0))
    consumers = convolution.output(0).get_target_inputs()
    shift = ops.add(convolution, ops.constant(bias.astype(np.float32).reshape(1, -1, 1, 1)))
    for consumer in consumers:
        consumer.replace_source_output(shift.output(0))
    if layout != model_layout:
        batch, *shape = parameter.get_partial_shape()
        height, width = shape[:2] if model_layout == "NHWC" else shape[1:]
        order = [3, height, width] if layout == "NCHW" else [height, width, 3]
        replacement = ops.parameter(ov.PartialShape([batch, *order]), np.float32)
        image = replacement if layout == "NCHW" else ops.transpose(replacement, ops.constant(np.array([0, 3, 1, 2])))
        convolution.input(0).replace_source_output(image.output(0))
        model.add_parameters([replacement])
        model.remove_parameter(parameter)
    return True


def _unpadded_kernels(convolution: Any) -> NDArray[Any] | None:
    """Return constant kernels (out, in, height, width) of a convolution without padding; None for other nodes."""
    if convolution.get_type_name() != "Convolution":
        return None
    attributes = convolution.get_attributes()
    padded = any(attributes["pads_begin"]) or any(attributes["pads_end"])
    if padded or attributes["auto_pad"] not in ("explicit", "valid"):
        return None
    source = convolution.input_value(1).get_node()
    if source.get_type_name() == "Constant":
        return np.asarray(source.data)
    inputs = [port.get_node() for port in source.input_values()]
    if source.get_type_name() == "Transpose" and all(node.get_type_name() == "Constant" for node in inputs):
        return np.asarray(inputs[0].data).transpose(inputs[1].data)  # TensorFlow's kernels, still HWIO
    return None


def _only_consumer(node: Any) -> Any:
    consumers = list(node.output(0).get_target_inputs())
    return consumers[0].get_node() if len(consumers) == 1 else None


def prepend_preprocessing(
    model: ov.Model,
    *,
    layout: Layout,
    color: Color,
    mean: tuple[float, float, float],
    scale: tuple[float, float, float],
    model_layout: Layout = "NHWC",
    model_color: Color = "RGB",
) -> ov.Model:
    """Put layout, colour order and ``(x - mean) / scale`` in front of a model of standardised images.

    `layout` and `color` are those of the new input (float32 0-255), `model_layout` and `model_color` those of the
    present one. `mean` and `scale` are per channel in the order of `model_color`, in units of the raw value.
    """
    processor = PrePostProcessor(model)
    image = processor.input()
    image.tensor().set_element_type(ov.Type.f32).set_layout(ov.Layout(layout))
    image.tensor().set_color_format(getattr(ColorFormat, color))
    image.model().set_layout(ov.Layout(model_layout))
    # Steps run in this order, so mean and scale see the model's colours.
    steps = image.preprocess().convert_color(getattr(ColorFormat, model_color))
    if any(mean):
        steps.mean(list(mean))
    if any(each != 1 for each in scale):
        steps.scale(list(scale))
    return processor.build()


def take_floats(model: ov.Model, *, raw: bool, source: str) -> None:
    """Make a model of whole numbers take float32 images of the same values, in place; others stay as they are.

    Values are rounded and cast as the model's input is. Integers hold images of 0-255, so what is already standardised
    (`raw` is false) would be cut to a few values.

    Raises InputError if the input is not `raw`, ConversionError for a type that does not hold 0-255.
    """
    (parameter,) = model.get_parameters()
    kind = parameter.get_element_type()
    if kind.is_real():
        return
    if kind in (ov.Type.i8, ov.Type.boolean) or kind.bitwidth < 8:
        raise ConversionError(path=source, expected="an input that holds values of 0-255", found=kind.get_type_name())
    if not raw:
        raise InputError(
            path=source,
            expected=f"mean 0 and scale 1, as its input is whole numbers ({kind.get_type_name()}) of 0-255",
            found="another mean or scale",
            remedy="pass --mean 0 --scale 1",
        )
    image = ops.parameter(parameter.get_partial_shape(), np.float32)
    image.output(0).set_names(parameter.output(0).get_names())
    cast = ops.convert(ops.round(image, "half_to_even"), kind.get_type_name())
    for target in parameter.output(0).get_target_inputs():
        target.replace_source_output(cast.output(0))
    model.add_parameters([image])
    model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def name_ports(model: ov.Model, *, inputs: Iterable[str], outputs: Iterable[str], layout: Layout) -> None:
    """Give the one input and the one output their names; the first of each is the friendly name too."""
    for port, names in ((model.input(0), list(inputs)), (model.output(0), list(outputs))):
        port.get_tensor().set_names(set(names) - {""})
        port.get_node().set_friendly_name(names[0])
    (parameter,) = model.get_parameters()
    parameter.set_layout(ov.Layout(layout))
    model.output(0).get_node().input_value(0).get_node().set_friendly_name(list(outputs)[-1])


def keep_output(model: ov.Model, name: str, *, source: str) -> ov.Model:
    """Return the model with this output alone; raise ConversionError with their names if there is none of this name."""
    for port in model.outputs:
        if name in port.get_names():
            return ov.Model([port.get_node()], model.get_parameters(), model.get_friendly_name())
    names = ", ".join(sorted(name for port in model.outputs for name in port.get_names()))
    raise ConversionError(f"{source}: expected an output {name!r}, found {names or 'outputs without names'}")


def flatten_output(model: ov.Model) -> None:
    """Make one output of (batch, D, 1, 1), or (batch, 1, 1, D), one of (batch, D), in place; others stay."""
    if len(model.outputs) != 1:
        return
    (result,) = model.get_results()
    shape = result.input_value(0).get_partial_shape()
    if len(shape) > 2 and embedding_axis(shape):
        flat = ops.reshape(result.input_value(0), ops.constant(np.array([0, -1])), True)
        result.input(0).replace_source_output(flat.output(0))
        model.validate_nodes_and_infer_types()


def embedding_axis(shape: ov.PartialShape) -> int:
    """Return the axis of an output that holds the embedding: the only one, beside the batch, that is not 1; 0: none."""
    axes = [axis for axis in range(1, len(shape)) if shape[axis].is_dynamic or shape[axis].get_length() != 1]
    return axes[0] if len(axes) == 1 else 0


def check_structure(model: ov.Model, *, source: str) -> None:
    """Refuse a model that does not have one image as input and one embedding as output.

    Raises ConversionError with each property that was expected and found.
    """
    problems = []
    if len(model.inputs) != 1:
        names = ", ".join(sorted(port.get_any_name() for port in model.inputs))
        problems.append(f"expected one input, found {len(model.inputs)} ({names})")
    if len(model.outputs) != 1:
        problems.append(f"expected one output, found {len(model.outputs)}")
    if conditions := [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() == "If"]:
        problems.append(f"expected no condition, found {len(conditions)} If operations such as {conditions[0]!r}")
    for port in model.inputs[:1]:
        shape = port.get_partial_shape()
        if len(shape) != 4 or any(shape[axis].is_dynamic for axis in (1, 2, 3)):
            problems.append(f"expected static height, width and channels, found input shape {shape}")
    for port in model.outputs[:1]:
        shape = port.get_partial_shape()
        if len(shape) != 2 or shape[1].is_dynamic:
            problems.append(f"expected an output of (batch, embedding), found {shape}")
    if problems:
        raise ConversionError(f"{source}: {'; '.join(problems)}")


def save_ir(model: ov.Model, folder: Path, contract: _Contract) -> tuple[Path, _Contract]:
    """Write ``<name>.xml`` and ``<name>.bin``; return the .xml and the contract that it holds.

    Raises OutputError if the folder is full or cannot be written to.
    """
    _with_weights(contract, _TO_BE_MEASURED).write_to(model, bound=True)
    path = folder / f"{contract.name}.xml"
    with output_errors(path):
        try:
            ov.save_model(model, path, compress_to_fp16=contract.precision == "FP16")
        except RuntimeError as error:  # OpenVINO gives no reason; the file system does
            _probe(path, 1 << 20)
            reason = str(error).strip().splitlines()[-1:]
            raise OutputError(f"{path}: OpenVINO could not write the IR: {' '.join(reason)}") from error
        _probe(path, 1 << 12)  # OpenVINO 2024 cuts an IR short on a full disk without an error
        weights = path.with_suffix(".bin")
        contract = _with_weights(contract, sha256_of(weights))
        xml = path.read_bytes()  # not as text: its encoding is not the user's locale
        path.write_bytes(xml.replace(_TO_BE_MEASURED.encode(), contract.weights_sha256.encode()))
        bind_xml(path)
    return path, contract


def _with_weights(contract: _Contract, digest: str) -> _Contract:
    return dataclasses.replace(contract, weights_sha256=digest)  # type: ignore[type-var]


def _probe(path: Path, size: int) -> None:
    """Raise the `OSError` of a file system that has no room for `size` more bytes beside `path`."""
    probe = path.with_suffix(".probe")  # as long a name as the one that failed
    probe.write_bytes(bytes(size))
    probe.unlink()


_TO_BE_MEASURED = hashlib.sha256(b"edgeface: digest of the .bin, known once it is written").hexdigest()


def publish_ir(staged: Path, output_dir: Path) -> Path:
    """Move a finished IR out of its staging folder; return the path of its .xml.

    The old .xml is moved away first: if the machine stops in between, there is no IR rather than half of two. It
    is moved back if the new one cannot take its place.
    """
    final, replaced = output_dir / staged.name, staged.with_suffix(".replaced")
    for path in (final, final.with_suffix(".bin")):
        if path.is_dir():
            raise OutputError(f"{path}: cannot write: expected a file to replace, found a folder")
    with output_errors(final):
        if final.exists():
            final.replace(replaced)
        try:
            staged.with_suffix(".bin").replace(final.with_suffix(".bin"))
        except OSError:
            if replaced.exists():
                replaced.replace(final)
            raise
        staged.replace(final)
    return final


class FreshProcessCheck:
    """Reads an IR back in a process that has run nothing before, and checks every property of this module.

    The process starts with the block, so that it is ready when the IR is written::

        with FreshProcessCheck() as check:
            path, contract = save_ir(...)
            check(path)
    """

    def __enter__(self) -> Callable[[Path], None]:
        self._process = subprocess.Popen(
            # This process's modules, not what lies in the working directory, which `-m` would put first.
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {_RUN_CHECK}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        return self._check

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stderr)):
            with contextlib.suppress(OSError):  # what was not written yet has no reader now
                pipe.close()

    def _check(self, path: Path) -> None:
        """Raise `ConversionError` with the first check that the IR fails."""
        try:
            _, stderr = self._process.communicate(os.fsencode(path), timeout=_CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            raise ConversionError(f"the check of the saved IR did not end within {_CHECK_SECONDS} s") from None
        if self._process.returncode != 0:
            lines = stderr.decode(errors="replace").strip().splitlines()
            reason = lines or [f"its process ended with {self._process.returncode}"]
            raise ConversionError(f"the IR failed its check after saving: {reason[-1]}")


_CHECK_SECONDS = 600
_RUN_CHECK = f"{WITHOUT_TOOLS}from edgeface.convert.ir import run_check; sys.exit(run_check())"


def check_inference(path: Path) -> None:
    """Compare the first inference at each batch size with a later one of the same images.

    The fault it looks for, FaceNets whose first inferences were silently wrong, shows only in a fresh process.

    Raises ConversionError if they differ, are not finite, are one embedding whatever the image, or lack unit length
    although the contract promises it; ModelFormatError if the IR cannot be read, or its .bin is not the one that the
    contract names.
    """
    model = read_ir(path)
    check_structure(model, source=str(path))
    contract = any_contract_of(model, path.read_bytes(), source=str(path))
    static = model.input(0).get_partial_shape()[0]
    batches = BATCHES if static.is_dynamic else (static.get_length(),)
    require_room_to_compile()
    with ThreadPoolExecutor(1) as beside:
        weights = beside.submit(sha256_of, path.with_suffix(".bin"))
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        check_weights(path, contract, weights.result())
    request = compiled.create_infer_request()
    images = random_images(contract, max(batches))
    if static.is_static:
        other = request.infer({0: random_images(contract, 1 + len(images))[1:]})[0].copy()
    first = {batch: request.infer({0: images[:batch]})[0].copy() for batch in batches}
    again = request.infer({0: images})[0].copy()
    rows = again if static.is_dynamic else np.concatenate([again, other])
    if not np.isfinite(rows).all():
        raise ConversionError("expected finite embeddings, found others; see whether mean and scale are the model's")
    if np.ptp(rows, axis=0).max() <= _ONE_EMBEDDING * np.abs(rows).max():
        raise ConversionError(
            f"expected another embedding of each image, found one of all {len(rows)} random images; see whether mean "
            "and scale are the model's"
        )
    for batch in batches:
        if first[batch].shape != (batch, contract.output_length):
            raise ConversionError(
                f"expected an output of {(batch, contract.output_length)}, found {first[batch].shape}"
            )
        difference = float(np.abs(first[batch] - again[:batch]).max())
        if not difference <= TOLERANCE:  # also catches NaN
            raise ConversionError(f"the first inference at batch {batch} differs from a later one by {difference:.3g}")
    if isinstance(contract, LivenessContract):
        if not np.allclose(again.sum(axis=1), 1, atol=1e-3):
            raise ConversionError(f"expected probabilities that add up to 1, found {again.sum(axis=1).tolist()}")
        return
    lengths = np.linalg.norm(again, axis=1)
    if contract.normalized and not np.allclose(lengths, 1, atol=1e-3):
        raise ConversionError(f"expected embeddings of unit length, found {lengths.min():.4f}..{lengths.max():.4f}")


_ONE_EMBEDDING = 1e-6
"""Largest difference between rows, as a fraction of their largest number, that rounding alone explains."""


def run_check() -> int:
    """Check the IR whose path comes on stdin; print on stderr why it failed, and return the exit code."""
    ov.Core().get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin while the IR is still being made
    path = os.fsdecode(sys.stdin.buffer.read())
    if not path:
        return 0  # the conversion failed before there was an IR
    try:
        check_inference(Path(path))
    except EdgeFaceError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def random_images(contract: StoredContract, batch: int) -> NDArray[np.float32]:
    """Return seeded raw images in the contract's layout and range, float32."""
    low, high = contract.value_range
    generator = np.random.default_rng(batch)
    return generator.uniform(low, high, contract.input_shape(batch)).astype(np.float32)
