"""Read a network that dlib serialized (.dat), without dlib, and build it as a raw OpenVINO model.

The file is a stream of values whose order is that of the layers: first a version for each layer from the output to the
input, then the layers from the input to the output, each with a name, its fields, and what training left behind. A
reader that mistakes one field mistakes everything after it, so every byte has to be accounted for.

The stream has no identifiers of tags: a tag and a skip to a tag look alike. They are told apart as residual networks
use them: one mark alone is a tag, two in a row are a tag and then a skip to the tag before it. Other uses are refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.recipe import Recipe
from edgeface.convert.source import SourceModel, digest_of_weights, read_bytes
from edgeface.errors import InputError, ModelFormatError, NotSupportedError
from edgeface.model.opset import ops
from edgeface.untrusted import reading

Floats = NDArray[np.float32]

SCALE = 256.0
"""Divisor of the pixels in `input_rgb_image_sized`; it is not in the file (dlib, dnn/input.h)."""

_MOST_LAYERS = 10_000
_LARGEST_MAP = 1 << 24
"""Values of one feature map of one image; the largest of the published network has 0.2 million."""
_LAYER, _MARK, _INNERMOST = 2, 1, 3
"""Versions of a layer above others, of a tag or skip, and of the layer above the input."""
_NOT_A_NUMBER = {32000: math.inf, 32001: -math.inf, 32002: math.nan}
"""Exponents that stand for values without mantissa (dlib, float_details.h)."""


@dataclass(frozen=True, slots=True)
class _Convolution:
    kernels: Floats  # (out, in, height, width)
    bias: Floats  # (out,)
    strides: tuple[int, int]  # this and the next along height, width
    padding: tuple[int, int]
    relu: bool


@dataclass(frozen=True, slots=True)
class _Affine:
    """``x * gamma + beta``; (1, channels, 1, 1), or one factor a value of the map."""

    gamma: NDArray[np.float64]
    beta: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Pool:
    kind: Literal["max", "avg"]
    window: tuple[int, int]  # (0, 0): the whole map
    strides: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Dense:
    weights: Floats  # (in, out)
    bias: Floats | None  # (out,)


_Simple = Literal["relu", "add", "tag", "swap"]  # "swap": tag the value, and go on with the one tagged before
_Step = _Convolution | _Affine | _Pool | _Dense | _Simple
_Kind = TypeVar("_Kind")


def load_dlib(path: Path, recipe: Recipe) -> SourceModel:
    """Read a dlib network of the layers that its residual face recognition networks are made of.

    Parameters
    ----------
    path
        A file that dlib's `serialize` wrote of a network under `loss_metric`, as trained or with its batch norms
        turned into affine layers.
    recipe
        Its size and mean, where they are given, have to be those of the file.

    Returns
    -------
    SourceModel
        (?, 3, H, W) float32 RGB of ``(x - mean) / 256`` to (?, D), not normalised.

    Raises
    ------
    ModelFormatError
        If the file is no such stream: truncated, damaged, or of another version.
    NotSupportedError
        If it has a layer, or tags in an order, that is not converted.
    InputError
        If the recipe contradicts the file.
    """
    content = read_bytes(path)
    stream = _Stream(content, path)
    with reading(path, "a network that dlib wrote", error=ModelFormatError):
        size, mean, steps = _read_network(stream)
    _check_recipe(path, recipe, size, mean)
    return SourceModel(
        model=_build(steps, size, path),
        layout="NCHW",
        framework="dlib",
        sha256=hashlib.sha256(content).hexdigest(),
        weights_id=digest_of_weights(stream.arrays, _structure_of(steps, size)),
        normalized=False,
        input="input_rgb_image_sized",
        output="loss_metric",
    )


def _check_recipe(path: Path, recipe: Recipe, size: tuple[int, int], mean: tuple[float, float, float]) -> None:
    if recipe.size not in (None, size):
        shown = "x".join(map(str, size))
        raise InputError(path=path, expected=f"crops of {recipe.size}", found=str(size), remedy=f"pass --size {shown}")
    if not np.allclose(mean, recipe.mean, atol=1e-3) or set(recipe.scale) != {SCALE}:
        shown = ",".join(f"{each:.6g}" for each in mean)
        raise InputError(
            path=path,
            expected=f"a network for (x - {recipe.mean}) / {recipe.scale}",
            found=f"one for (x - ({shown})) / {SCALE:g}",
            remedy=f"pass --mean {shown} --scale {SCALE:g}",
        )


@dataclass(slots=True)
class _Stream:
    """The values of a file, one after another; `arrays` collects the weights, kernels as HWIO."""

    content: bytes
    path: Path
    at: int = 0
    arrays: list[NDArray[Any]] = field(default_factory=list)

    def damaged(self, expected: str, found: object) -> ModelFormatError:
        """Return the error for what was found before this place."""
        remedy = "the file is damaged or of another version of dlib: copy it again"
        return ModelFormatError(path=self.path, expected=expected, found=f"{found} at byte {self.at:,}", remedy=remedy)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > (left := len(self.content) - self.at):
            raise ModelFormatError(
                path=self.path,
                expected=f"{count:,} more bytes at byte {self.at:,}",
                found=f"{left:,}",
                remedy="the file is truncated: copy it again",
            )
        self.at += count
        return self.content[self.at - count : self.at]

    def integer(self, what: str, low: int, high: int) -> int:
        """Read a compact integer: a control byte of sign (0x80) and count (low nibble), and that many bytes."""
        control = self.take(1)[0]
        count = control & 0x0F
        if control & 0x70 or not 1 <= count <= 8:
            raise self.damaged(f"{what}, an integer of 1 to 8 bytes", f"control byte 0x{control:02x}")
        value = int.from_bytes(self.take(count), "little") * (-1 if control & 0x80 else 1)
        if not low <= value <= high:
            raise self.damaged(f"{what} from {low} to {high}", value)
        return value

    def real(self, what: str) -> float:
        """Read a number as two integers: ``mantissa * 2**exponent``."""
        mantissa = self.integer(what, -(1 << 63), (1 << 63) - 1)
        exponent = self.integer(f"the exponent of {what}", -(1 << 15), (1 << 15) - 1)
        if exponent in _NOT_A_NUMBER:
            return _NOT_A_NUMBER[exponent]
        try:
            return math.ldexp(mantissa, exponent)
        except OverflowError:
            raise self.damaged(what, f"{mantissa} * 2**{exponent}") from None

    def reals(self, what: str, count: int) -> list[float]:
        """Read numbers that have to be finite."""
        values = [self.real(what) for _ in range(count)]
        if not all(map(math.isfinite, values)):
            raise self.damaged(f"{what}, finite", values)
        return values

    def pair(self, what: str, low: int = 0) -> tuple[int, int]:
        """Read an amount along rows and one along columns."""
        return self.integer(what, low, 1 << 16), self.integer(what, low, 1 << 16)

    def text(self, what: str) -> str:
        """Read a name."""
        name = self.take(self.integer(f"the length of {what}", 1, 64))
        if not name.isascii() or not name.decode("latin-1").isprintable():
            raise self.damaged(what, name)
        return name.decode()

    def flag(self, what: str) -> bool:
        """Read a truth value, an ASCII digit."""
        if (value := self.take(1)) not in (b"0", b"1"):
            raise self.damaged(f"{what}, 0 or 1", value)
        return value == b"1"

    def version(self, what: str, wanted: int) -> None:
        """Read a version number, and refuse another one."""
        if (found := self.integer(f"the version of {what}", 0, 1 << 16)) != wanted:
            raise self.damaged(f"version {wanted} of {what}", f"version {found}")

    def shape(self, what: str) -> tuple[int, int, int, int]:
        """Read samples, channels, rows and columns."""
        first, second, rows, columns = (self.integer(f"the shape of {what}", 0, 1 << 31) for _ in range(4))
        return first, second, rows, columns

    def alias(self, what: str) -> tuple[int, int, int, int]:
        """Read the shape of a part of a layer's parameters."""
        self.version(what, 1)
        return self.shape(what)

    def tensor(self, what: str) -> Floats:
        """Read float32 values, flat; nothing is allocated for values that the file does not have."""
        self.version(what, 2)
        return np.frombuffer(self.take(4 * math.prod(self.shape(what))), "<f4")

    def parameters(self, what: str) -> Floats:
        """Read a layer's parameters, which have to be finite."""
        values = self.tensor(what)
        if not values.size or not np.isfinite(values).all():
            raise self.damaged(f"finite values of {what}", "none" if not values.size else "others")
        return values


def _read_network(stream: _Stream) -> tuple[tuple[int, int], tuple[float, float, float], list[_Step]]:
    """Read size, mean and layers, from the input up."""
    stream.version("a network with a loss layer", 1)
    if (loss := stream.text("the loss layer's name")) != "loss_metric_2":
        raise _not_converted(stream, f"the loss layer {loss}", "loss_metric_2")
    stream.reals("the loss layer's margin and threshold", 2)
    versions = _read_versions(stream)
    size, mean = _read_input(stream)
    steps: list[_Step] = []
    for position, version in enumerate(versions):
        if version == _MARK:
            steps.append("tag")
            continue
        if (step := _read_layer(stream)) is not None:
            steps.append(step)
        for what in ("whether it was set up", "whether its gradient is stale", "whether its output is disabled"):
            stream.flag(what)
        for what in ("a gradient", "a cached output", "a gradient"):
            stream.tensor(what)
        if position == 0 and stream.integer("the expansion factor", 0, 1 << 31) != 1:
            raise stream.damaged("an expansion factor of 1", "another one")
    if stream.at != len(stream.content):
        raise stream.damaged("the end of the file", f"{len(stream.content) - stream.at:,} more bytes")
    return size, mean, steps


def _read_versions(stream: _Stream) -> list[int]:
    """Read the version of each layer; return them from the input up."""
    versions: list[int] = []
    while not versions or versions[-1] != _INNERMOST:
        if len(versions) == _MOST_LAYERS:
            raise stream.damaged(f"at most {_MOST_LAYERS:,} layers", "more")
        versions.append(stream.integer("the version of a layer", _MARK, _INNERMOST))
    return versions[::-1]


def _read_input(stream: _Stream) -> tuple[tuple[int, int], tuple[float, float, float]]:
    if (name := stream.text("the input layer's name")) != "input_rgb_image_sized":
        raise _not_converted(stream, f"the input layer {name}", "input_rgb_image_sized")
    red, green, blue = stream.reals("a mean", 3)
    return stream.pair("a size of the input", 1), (red, green, blue)


def _read_layer(stream: _Stream) -> _Step | None:
    """Read a layer's name and fields; None is a layer that changes nothing."""
    name = stream.text("a layer's name")
    if name not in _LAYERS:
        raise _not_converted(stream, f"the layer {name}", ", ".join(sorted(_LAYERS)))
    return _LAYERS[name](stream, name)


def _not_converted(stream: _Stream, found: str, expected: str) -> NotSupportedError:
    remedy = "edgeface converts dlib's residual face recognition networks"
    return NotSupportedError(path=stream.path, expected=expected, found=found, remedy=remedy)


def _read_convolution(stream: _Stream, name: str) -> _Convolution:
    values = stream.parameters("a convolution's parameters")
    count, window = stream.integer("the number of filters", 1, 1 << 24), stream.pair("a filter's size")
    strides, padding = stream.pair("a stride", 1), stream.pair("a padding")
    shape, biases = stream.alias("filters"), stream.alias("biases")
    stream.reals("a multiplier", 4)
    biased = name == "con_4" or stream.flag("whether it has biases")
    relu = name == "con_6" and stream.flag("whether it has a ReLU")
    kernels = math.prod(shape)
    if shape[0] != count or shape[2:] != window or values.size != kernels + count * biased:
        raise stream.damaged(f"{count} filters of {window}", f"{values.size:,} parameters for {shape} and {biases}")
    bias = values[kernels:] if biased else np.zeros(count, np.float32)
    weights = values[:kernels].reshape(shape)
    stream.arrays += [weights.transpose(2, 3, 1, 0), *([bias] if biased else [])]
    return _Convolution(weights, bias, strides, padding, relu)


def _read_affine(stream: _Stream, name: str) -> _Affine | None:
    values = stream.parameters("an affine layer's parameters")
    gamma, beta = _halves(stream, values)
    stream.integer("the mode of an affine layer", 0, 1)
    return None if name == "affine_2" and stream.flag("whether it is disabled") else _Affine(gamma, beta)


def _read_batch_norm(stream: _Stream, name: str) -> _Affine:
    """Read a batch norm as the affine layer that it is in inference (dlib, `affine_(const bn_&)`)."""
    values = stream.parameters("a batch norm's parameters")
    gamma, beta = _halves(stream, values)
    mean, variance = stream.parameters("means"), stream.parameters("variances")
    for what in ("the number of updates", "the window of the statistics"):
        stream.integer(what, 0, 1 << 62)
    stream.reals("a multiplier", 4)
    (epsilon,) = stream.reals("epsilon", 1)
    if not mean.size == variance.size == gamma.size or epsilon <= 0 or variance.min() < 0:
        raise stream.damaged(f"means and variances of {gamma.size} channels", f"{mean.size} and {variance.size}")
    stream.arrays += [mean, variance]
    factor = gamma / np.sqrt(variance.reshape(gamma.shape).astype(np.float64) + epsilon)
    return _Affine(factor, beta - mean.reshape(gamma.shape) * factor)


def _halves(stream: _Stream, values: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the shapes of gamma and beta; return both, (1, channels, rows, columns)."""
    shape, other = stream.alias("gamma"), stream.alias("beta")
    if shape != other or shape[0] != 1 or values.size != 2 * math.prod(shape):
        raise stream.damaged("gamma and beta of one shape", f"{values.size:,} parameters for {shape} and {other}")
    gamma, beta = values.reshape(2, *shape)
    stream.arrays += [gamma.ravel(), beta.ravel()]
    return gamma.astype(np.float64), beta.astype(np.float64)


def _read_relu(stream: _Stream, name: str) -> _Simple | None:
    return None if name == "relu_2" and stream.flag("whether it is disabled") else "relu"


def _read_pool(stream: _Stream, name: str) -> _Pool:
    window, strides, padding = stream.pair("a window"), stream.pair("a stride", 1), stream.pair("a padding")
    if min(window) == 0 and (max(window) > 0 or max(padding) > 0):
        raise stream.damaged("a window along rows and columns, or the whole map without padding", (window, padding))
    return _Pool("max" if name == "max_pool_2" else "avg", window, strides, padding)


def _read_add(stream: _Stream, name: str) -> _Simple:
    return "add"


def _read_dense(stream: _Stream, name: str) -> _Dense:
    outputs, inputs = (stream.integer(f"the number of {each}", 1, 1 << 24) for each in ("outputs", "inputs"))
    values = stream.parameters("a fully connected layer's parameters")
    shape, biases = stream.alias("weights"), stream.alias("biases")
    biased = stream.integer("the bias mode", 0, 1) == 0
    stream.reals("a multiplier", 4)
    biased = (name == "fc_2" or stream.flag("whether it has biases")) and biased
    if shape != (inputs, outputs, 1, 1) or values.size not in (inputs * outputs, inputs * outputs + outputs):
        raise stream.damaged(f"weights of {inputs} x {outputs}", f"{values.size:,} parameters for {shape}, {biases}")
    weights, bias = values[: inputs * outputs].reshape(inputs, outputs), values[inputs * outputs :]
    if biased and not bias.size:
        raise stream.damaged(f"{outputs} biases", "none")
    stream.arrays += [weights, *([bias] if biased else [])]
    return _Dense(weights, bias if biased else None)


_LAYERS: dict[str, Callable[[_Stream, str], _Step | None]] = {
    **dict.fromkeys(("con_4", "con_5", "con_6"), _read_convolution),
    **dict.fromkeys(("affine_", "affine_2"), _read_affine),
    **dict.fromkeys(("bn_con2", "bn_fc2"), _read_batch_norm),
    **dict.fromkeys(("relu_", "relu_2"), _read_relu),
    **dict.fromkeys(("max_pool_2", "avg_pool_2"), _read_pool),
    "add_prev_": _read_add,
    **dict.fromkeys(("fc_2", "fc_3"), _read_dense),
}
"""Reader of the fields of each layer, by the name that begins it."""


@dataclass(frozen=True, slots=True)
class _Value:
    """A feature map (?, channels, height, width); `shape` is without the batch."""

    node: Any
    shape: tuple[int, int, int]


def _build(steps: list[_Step], size: tuple[int, int], path: Path) -> ov.Model:
    """Build the network of these layers."""
    image = ops.parameter(ov.PartialShape([-1, 3, *size]), np.float32)
    value, tagged = _Value(image, (3, *size)), list[_Value]()
    for step in _simplified(steps, path):
        if step == "tag":
            tagged.append(value)
        elif step == "swap" and tagged:
            value, tagged[-1] = tagged[-1], value
        elif step == "add" and tagged:
            value = _add(value, tagged.pop())
        elif step in ("add", "swap") or len(tagged) > 1:
            raise _strange_tags(path)
        else:
            value = _apply(step, value, path)
        if math.prod(value.shape) > _LARGEST_MAP:
            raise NotSupportedError(
                path=path, expected=f"feature maps of at most {_LARGEST_MAP:,} values", found=f"one of {value.shape}"
            )
    if tagged:
        raise _strange_tags(path)
    return ov.Model([_flat(value)], [image], "dlib")


def _structure_of(steps: list[_Step], size: tuple[int, int]) -> list[str]:
    """Return a line for each layer, for `digest_of_weights`."""
    lines = [str(size)]
    for step in steps:
        shown = {name: getattr(step, name, None) for name in ("kind", "window", "strides", "padding", "relu")}
        lines.append(f"{step if isinstance(step, str) else type(step).__name__} {shown}")
    return lines


def _strange_tags(path: Path) -> NotSupportedError:
    return NotSupportedError(
        path=path,
        expected="residual blocks, one after another: a tag, layers, perhaps a second tag and a skip, and add_prev",
        found="tags or skips in another order",
        remedy="edgeface converts dlib's residual face recognition networks",
    )


def _simplified(steps: list[_Step], path: Path) -> list[_Step]:
    """Fold affine layers into the convolutions before them, and two marks in a row into a swap."""
    simple: list[_Step] = []
    for step in steps:
        last = simple[-1] if simple else None
        if isinstance(step, _Affine) and isinstance(last, _Convolution) and not last.relu:
            if step.gamma.shape == (1, len(last.bias), 1, 1):
                kernels, bias = last.kernels * step.gamma.reshape(-1, 1, 1, 1), last.bias * step.gamma.ravel()
                bias += step.beta.ravel()
                step = _Convolution(
                    kernels.astype(np.float32), bias.astype(np.float32), last.strides, last.padding, relu=False
                )
                simple.pop()
        elif step == "tag" and last in ("tag", "swap"):
            if last == "swap":
                raise _strange_tags(path)
            simple.pop()
            step = "swap"
        simple.append(step)
    return simple


def _apply(step: _Step, value: _Value, path: Path) -> _Value:
    """Apply a layer of one input."""
    channels, height, width = value.shape
    if step == "relu":
        return _Value(ops.relu(value.node), value.shape)
    if isinstance(step, _Pool):
        return _pool(step, value, path)
    if isinstance(step, _Convolution):
        return _convolve(step, value, path)
    if isinstance(step, _Affine):
        if step.gamma.shape not in ((1, channels, 1, 1), (1, *value.shape)):
            raise _misfit(path, f"an affine layer of {step.gamma.shape[1:]}", value)
        scaled = ops.multiply(value.node, ops.constant(step.gamma.astype(np.float32)))
        return _Value(ops.add(scaled, ops.constant(step.beta.astype(np.float32))), value.shape)
    assert isinstance(step, _Dense)
    inputs, outputs = step.weights.shape
    if inputs != channels * height * width:
        raise _misfit(path, f"a fully connected layer of {inputs} inputs", value)
    node = ops.matmul(_flat(value), ops.constant(np.ascontiguousarray(step.weights)), False, False)
    if step.bias is not None:
        node = ops.add(node, ops.constant(step.bias.reshape(1, -1)))
    return _Value(ops.reshape(node, ops.constant(np.array([0, outputs, 1, 1])), True), (outputs, 1, 1))


def _convolve(step: _Convolution, value: _Value, path: Path) -> _Value:
    count, channels, *window = step.kernels.shape
    rows, columns = _output_size(value, (window[0], window[1]), step.strides, step.padding)
    if channels != value.shape[0] or rows < 1 or columns < 1:
        raise _misfit(path, f"filters of {channels} channels and {window}", value)
    kernels = ops.constant(np.ascontiguousarray(step.kernels, np.float32))
    node = ops.convolution(value.node, kernels, step.strides, step.padding, step.padding, (1, 1))
    node = ops.add(node, ops.constant(step.bias.reshape(1, -1, 1, 1)))
    return _Value(ops.relu(node) if step.relu else node, (count, rows, columns))


def _pool(step: _Pool, value: _Value, path: Path) -> _Value:
    channels, height, width = value.shape
    window = step.window if any(step.window) else (height, width)
    rows, columns = _output_size(value, window, step.strides, step.padding)
    if rows < 1 or columns < 1 or any(pad >= side for pad, side in zip(step.padding, window, strict=True)):
        raise _misfit(path, f"a pool over {window} with padding {step.padding}", value)
    if step.kind == "avg":  # a mean of what is inside the map: padding does not count
        node = ops.avg_pool(value.node, step.strides, step.padding, step.padding, window, True, "floor")
    else:
        node = ops.max_pool(value.node, step.strides, (1, 1), step.padding, step.padding, window, "floor").output(0)
    return _Value(node, (channels, rows, columns))


def _output_size(
    value: _Value, window: tuple[int, int], strides: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    rows, columns = (
        1 + (side + 2 * pad - length) // stride
        for side, length, stride, pad in zip(value.shape[1:], window, strides, padding, strict=True)
    )
    return rows, columns


def _add(first: _Value, second: _Value) -> _Value:
    """Add two maps; the smaller one is padded with zeros behind its channels, rows and columns (`add_prev_`)."""
    channels, rows, columns = (max(sides) for sides in zip(first.shape, second.shape, strict=True))
    shape = channels, rows, columns
    nodes = []
    for value in (first, second):
        missing = [0, *(wanted - has for wanted, has in zip(shape, value.shape, strict=True))]
        zeros = ops.constant(np.zeros(4, np.int64))
        nodes.append(
            ops.pad(value.node, zeros, ops.constant(np.array(missing)), "constant") if any(missing) else value.node
        )
    return _Value(ops.add(nodes[0], nodes[1]), shape)


def _flat(value: _Value) -> Any:
    return ops.reshape(value.node, ops.constant(np.array([0, math.prod(value.shape)])), True)


def _misfit(path: Path, layer: str, value: _Value) -> ModelFormatError:
    remedy = "the file is damaged: copy it again"
    return ModelFormatError(
        path=path, expected=f"{layer} that fits the layer before", found=str(value.shape), remedy=remedy
    )
