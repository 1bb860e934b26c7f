"""Adapt a model to the caller's images: type, colour, layout, size and mirroring become part of the graph.

Nothing is left to do per image in Python. Values are 0-255 in every dtype.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import openvino as ov
from openvino.preprocess import ColorFormat, PrePostProcessor, PreProcessSteps, ResizeAlgorithm

from edgeface.errors import ContractError, InputError
from edgeface.model.contract import Alignment, ModelContract
from edgeface.model.opset import ops
from edgeface.runtime.devices import split_device

try:
    from openvino.passes import ConstantFolding, Manager
except ImportError:  # OpenVINO 2024
    from openvino.runtime.passes import ConstantFolding, Manager

ImageLayout = Literal["NHWC", "NCHW"]
ColorOrder = Literal["BGR", "RGB", "GRAY", "BGRX", "RGBX", "NV12", "I420"]
Dtype = Literal["u8", "f16", "f32"]
Resize = Literal["linear", "antialias"]
Flip = Literal["average", "concatenate"]
"""How the embedding of a face and that of its mirror image are combined. ``concatenate``: one behind the other, twice
as long and not normalised again, as davidsandberg/facenet's evaluation does (`src/validate_on_lfw.py`, `evaluate`).
``average``: their mean, normalised again if the contract's embeddings are; comparable with plain embeddings."""

UNPACKED = (
    "the compressed weights are unpacked to float32 before they are compiled: with several streams OpenVINO's CPU "
    "plugin computes wrong results from compressed ones"
)
"""Note of a report on an unpacked model. Measured with 2026.4.1 and FaceNet with 8-bit weights: 5 of 8 models compiled
for two streams gave wrong embeddings (cosine below 0.99); of 24 unpacked ones none, and one stream is bit-equal."""
_PACKED = (ov.Type.i8, ov.Type.u8, ov.Type.i4, ov.Type.u4)
_NORM_EPSILON = 1e-10  # of TensorFlow's l2_normalize in FaceNet
_CHANNELS = {"BGR": 3, "RGB": 3, "GRAY": 1, "BGRX": 4, "RGBX": 4, "NV12": 1, "I420": 1}
_PLANAR_YUV = ("NV12", "I420")
_NUMPY: dict[str, np.dtype[Any]] = {"u8": np.dtype(np.uint8), "f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}
_OPENVINO = {"u8": ov.Type.u8, "f16": ov.Type.f16, "f32": ov.Type.f32}
_COLOR_FORMATS = {
    "BGR": ColorFormat.BGR,
    "RGB": ColorFormat.RGB,
    "NV12": ColorFormat.NV12_SINGLE_PLANE,
    "I420": ColorFormat.I420_SINGLE_PLANE,
}
_ALGORITHMS = {"linear": ResizeAlgorithm.RESIZE_LINEAR, "antialias": ResizeAlgorithm.RESIZE_BILINEAR_PILLOW}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """Format of the caller's images; the default is a crop as OpenCV holds it.

    Attributes
    ----------
    layout
        ``NHWC`` or ``NCHW``. NV12 and I420 are NHWC only: their one plane has no channels to move.
    color
        Channel order. The fourth channel of ``BGRX`` and ``RGBX`` is ignored. ``GRAY`` becomes three equal
        channels. ``NV12`` and ``I420`` are one plane of (H * 3/2, W, 1), limited-range BT.601, as cameras and video
        decoders return it.
    dtype
        ``u8``, ``f16`` or ``f32``; 0-255 in each.
    size
        (height, width) in pixels of the images; None: exactly the contract's; ``any``: each image its own.
        NV12 and I420 need even numbers. An image of another size is only resized: no face is searched in it, and it is
        not aligned. So the embeddings get a contract of their own, of the alignment ``none``, and are never compared
        with those of aligned crops, unless you vouch by `aligned`.
    aligned
        With `size`: you vouch that every image is a crop aligned as the model's contract says, only of another size.
        Not for photos: a face in a photo embedded whole does not match itself.
    resize
        How images are resized to the contract's size, in float32 and without rounding.
        ``linear``: four neighbours, half-pixel centres, edges repeated; `cv2.INTER_LINEAR` on float32.
        ``antialias``: a triangle as wide as the reduction, `PIL.Image.BILINEAR` on mode F; less aliasing from
        large images, about fifteen times the cost on a CPU.
    """

    layout: ImageLayout = "NHWC"
    color: ColorOrder = "BGR"
    dtype: Dtype = "u8"
    size: tuple[int, int] | Literal["any"] | None = None
    resize: Resize = "linear"
    aligned: bool = False

    def __post_init__(self) -> None:
        for what, allowed in (("layout", ImageLayout), ("color", ColorOrder), ("dtype", Dtype), ("resize", Resize)):
            if (value := getattr(self, what)) not in get_args(allowed):
                raise InputError(
                    f"image format: {what}: expected one of {', '.join(get_args(allowed))}, found {value!r}"
                )
        if self.color in _PLANAR_YUV and self.layout != "NHWC":
            raise InputError(f"image format: expected layout NHWC for {self.color}, found {self.layout}")
        if self.size is not None and self.size != "any":
            _require_size(self.size, even=self.color in _PLANAR_YUV)

    def contract_of(self, contract: ModelContract) -> ModelContract:
        """Return the contract of embeddings of such images by a model of this contract; see `size`."""
        if self.aligned or self.size in (None, contract.input_size):
            return contract
        return dataclasses.replace(contract, alignment=Alignment("none"))

    def image_shape(self, contract: ModelContract) -> tuple[int, int, int]:
        """Return the shape of one image, -1 where it is free."""
        size = self.size or contract.input_size
        height, width = (-1, -1) if size == "any" else size
        if self.color in _PLANAR_YUV and height > 0:
            height = height * 3 // 2
        channels = _CHANNELS[self.color]
        return (height, width, channels) if self.layout == "NHWC" else (channels, height, width)

    def batch_shape(self, n: int, contract: ModelContract) -> tuple[int, int, int, int]:
        """Return the shape of `n` images in one tensor, -1 where it is free."""
        return (n, *self.image_shape(contract))

    def check(self, array: np.ndarray, contract: ModelContract) -> None:
        """Raise `ContractError` unless `array` is one image of this format, ready to be read in place."""
        if not self._fits(array, self.image_shape(contract)):
            raise self._misfit(array, self.image_shape(contract), "one image", contract)

    def check_batch(self, array: np.ndarray, contract: ModelContract) -> None:
        """Raise `ContractError` unless `array` is one or more images of this format in one array."""
        if not self._fits(array, (-1, *self.image_shape(contract))):
            raise self._misfit(array, (-1, *self.image_shape(contract)), "a batch", contract)

    def _fits(self, array: Any, expected: tuple[int, ...]) -> bool:
        # Runs for every request: the common case takes one comparison a property.
        if not isinstance(array, np.ndarray) or array.dtype != _NUMPY[self.dtype]:
            return False
        shape = array.shape
        if shape != expected:
            if -1 not in expected or len(shape) != len(expected) or 0 in shape:
                return False
            if any(want not in (-1, found) for want, found in zip(expected, shape, strict=True)):
                return False
            if self.size == "any" and self.color in _PLANAR_YUV and (shape[-3] % 3 or shape[-2] % 2):
                return False
        return bool(array.flags.c_contiguous)

    def _misfit(self, array: Any, expected: tuple[int, ...], what: str, contract: ModelContract) -> ContractError:
        wanted = f"expected {what} of {_shape_text(expected)} {_NUMPY[self.dtype].name} {self.color}"
        if not isinstance(array, np.ndarray):
            why = "; cv2.imread and VideoCapture.read return None when they cannot read an image"
            return ContractError(
                f"{wanted} as a numpy array, found {type(array).__name__}{why if array is None else ''}"
            )
        found = f"found {_shape_text(array.shape)} {array.dtype}"
        if array.size == 0:
            return ContractError(f"{wanted}, {found}, which is empty")
        if not array.flags.c_contiguous and self._fits(np.empty_like(array, order="C"), expected):
            return ContractError(
                f"{wanted} in one C-contiguous block, {found} with strides {array.strides}; "
                "pass np.ascontiguousarray(image)"
            )
        return ContractError(f"{wanted}, {found}; {self._advice(array.shape, array.dtype, expected, contract)}")

    def _advice(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], expected: tuple[int, ...], contract: ModelContract
    ) -> str:
        """Say which `ImageFormat` would fit such an array, or what to change about the array."""
        if len(shape) == len(expected) - 1 and _CHANNELS[self.color] == 1 and shape == expected[:-1]:
            return "add the channel axis: image[..., np.newaxis]"
        name = next((name for name, known in _NUMPY.items() if known == dtype), None)
        image = shape[len(expected) - 3 :]
        if name is None or len(shape) != len(expected):
            return "pass images as ImageFormat describes them"
        layout = "NHWC" if image[-1] in (1, 3, 4) else "NCHW"
        channels = image[-1] if layout == "NHWC" else image[0]
        color = {
            1: self.color if _CHANNELS[self.color] == 1 else "GRAY",
            3: self.color if _CHANNELS[self.color] == 3 else "BGR",
            4: "BGRX",
        }.get(channels)
        if color is None:
            return "pass images as ImageFormat describes them"
        wanted = expected[-3:-1] if self.layout == "NHWC" else expected[-2:]
        sides = image[:2] if layout == "NHWC" else image[1:]
        fits = all(want in (-1, side) for want, side in zip(wanted, sides, strict=True))
        if not fits and sides != contract.input_size:
            return (
                "if it is a photo, edgeface.load().analyze(photo) finds, aligns and embeds its faces; "
                f"ImageFormat(size=) is only for crops that you aligned as the contract says ({contract.alignment})"
            )
        options: dict[str, Any] = {"layout": layout, "color": color, "dtype": name}
        options |= {"size": self.size, "aligned": self.aligned} if fits else {}
        defaults = {field.name: field.default for field in dataclasses.fields(ImageFormat)}
        given = ", ".join(f"{key}={value!r}" for key, value in options.items() if value != defaults[key])
        return f"if that is what it is, pass ImageFormat({given})"


def adapt(model: ov.Model, contract: ModelContract, image_format: ImageFormat, *, batch: int | None) -> ov.Model:
    """Add the conversion from the caller's images to the model's input to the graph.

    The order of the steps defines the result: (1) YUV to colour, or the fourth channel
    dropped, in the image's own dtype (f16 YUV in float32); (2) conversion to float32; (3) resize; (4) channel
    order, and GRAY to three channels; (5) layout. Resizing follows (1) because a plane with subsampled chroma
    cannot be resized, and (2) because rounding to u8 would cost up to half a level; it precedes (4), which
    commutes with it, because the model's small image is cheaper to permute than the caller's large one.

    Without a resize every format except YUV is exact. YUV differs from OpenCV's
    conversion by at most one level in u8 and half a level in f16 and f32; luma below 16, which no camera sends,
    is extrapolated here and clamped there. A linear resize differs from OpenCV's on float32 by less than 0.005.

    Returns
    -------
    openvino.Model
        A clone whose input takes `image_format.batch_shape(batch or -1, contract)`: a batch of None is dynamic. Names
        of inputs and outputs and rt_info are kept.

    Raises
    ------
    ContractError
        If the model has no input of the contract's name and shape.
    InputError
        If the batch is not positive, or the contract's size is odd and the images are NV12 or I420.
    """
    if batch is not None and batch < 1:
        raise InputError(f"batch: expected a positive number or None, found {batch}")
    yuv = image_format.color in _PLANAR_YUV
    if image_format.size is None:
        _require_size(contract.input_size, even=yuv)

    adapted = model.clone()
    _set_batch(adapted, contract, -1 if batch is None else batch)
    processor = PrePostProcessor(adapted)
    entry = processor.input(contract.input_name)
    entry.model().set_layout(ov.Layout(contract.layout))
    tensor = entry.tensor()
    tensor.set_element_type(_OPENVINO[image_format.dtype])
    tensor.set_layout(ov.Layout(image_format.layout))
    if yuv:
        tensor.set_color_format(_COLOR_FORMATS[image_format.color])
        size = image_format.size or contract.input_size
        if size == "any":
            tensor.set_spatial_dynamic_shape()
        else:
            tensor.set_spatial_static_shape(*size)
    else:
        tensor.set_shape(list(image_format.batch_shape(-1 if batch is None else batch, contract)))
    _add_steps(entry.preprocess(), contract, image_format)
    return processor.build()


def with_mirror(model: ov.Model, contract: ModelContract, flip: Flip) -> ov.Model:
    """Return a clone of a model that also embeds every mirror image; inputs and outputs keep their names."""
    mirrored = model.clone()
    port = mirrored.input(contract.input_name)
    consumers = port.get_target_inputs()
    axis = contract.layout.index("W")
    width = contract.input_size[1]
    backwards = ops.constant(np.arange(width - 1, -1, -1, dtype=np.int32))
    mirror = ops.gather(port, backwards, ops.constant(axis, np.int32))
    both = ops.concat([port, mirror], 0)
    for consumer in consumers:
        consumer.replace_source_output(both.output(0))
    mirrored.validate_nodes_and_infer_types()  # or a fixed batch is still that of half the images

    result = mirrored.output(contract.output_name).get_node()
    embeddings = result.input_value(0)
    names = embeddings.get_names()
    halves = ops.split(embeddings, ops.constant(0, np.int32), 2)
    if flip == "concatenate":
        joined = ops.concat([halves.output(0), halves.output(1)], 1)
    else:
        joined = ops.multiply(ops.add(halves.output(0), halves.output(1)), ops.constant(np.float32(0.5)))
        if contract.normalized:
            joined = ops.normalize_l2(joined, ops.constant(np.array([1], np.int64)), _NORM_EPSILON, "max")
    embeddings.set_names(set())
    joined.output(0).set_names(names)
    result.input(0).replace_source_output(joined.output(0))
    mirrored.validate_nodes_and_infer_types()
    return mirrored


def must_unpack(model: ov.Model, device: str) -> bool:
    """Check whether a model for this device needs `unpack_weights`: only its weights are of 4 or 8 bits."""
    nodes = model.get_ops()
    return (
        "CPU" in (split_device(device)[1] or ("CPU",))
        and any(
            node.get_type_name() == "Constant"
            and node.get_element_type() in _PACKED
            and any(port.get_node().get_type_name() == "Convert" for port in node.output(0).get_target_inputs())
            for node in nodes
        )
        and not is_quantized(model)
    )


def is_quantized(model: ov.Model) -> bool:
    """Check whether a model computes in 8 bits."""
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


def unpack_weights(model: ov.Model) -> ov.Model:
    """Replace compressed weights of a model, in place, by float32 constants; see `UNPACKED`."""
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    return model


def flip_contract(contract: ModelContract, flip: Flip | None) -> ModelContract:
    """Return the contract of the combined embeddings; concatenated ones have another `contract_id`."""
    if flip != "concatenate":
        return contract
    return dataclasses.replace(contract, embedding_dim=2 * contract.embedding_dim, normalized=False)


def _set_batch(model: ov.Model, contract: ModelContract, batch: int) -> None:
    shape = ov.PartialShape(list(contract.input_shape(batch)))
    try:
        port = model.input(contract.input_name)
    except RuntimeError as error:
        names = ", ".join(name for port in model.inputs for name in port.get_names()) or "none"
        raise ContractError(
            f"expected an input {contract.input_name!r} as the contract says, found the inputs {names}; "
            "convert the model again"
        ) from error
    if not port.partial_shape.compatible(ov.PartialShape(list(contract.input_shape(-1)))):
        raise ContractError(
            f"expected an input of shape {shape} as the contract says, found {port.partial_shape}; "
            "convert the model again"
        )
    if port.partial_shape != shape:
        model.reshape({port: shape})


def _add_steps(steps: PreProcessSteps, contract: ModelContract, image_format: ImageFormat) -> None:
    color, axis = image_format.color, image_format.layout.index("C")
    if color in ("BGRX", "RGBX"):
        # PrePostProcessor knows these two in NHWC only.
        steps.custom(lambda image: ops.slice(image, [0], [3], [1], [axis]).output(0))
    if color in _PLANAR_YUV:
        if image_format.dtype == "f16":
            steps.convert_element_type(ov.Type.f32)
        steps.convert_color(_COLOR_FORMATS[contract.color])
    steps.convert_element_type(ov.Type.f32)
    if image_format.size not in (None, contract.input_size):
        steps.resize(_ALGORITHMS[image_format.resize])
    if color == "GRAY":
        steps.custom(lambda image: ops.concat([image, image, image], axis).output(0))
    elif color[:3] in ("BGR", "RGB") and color[:3] != contract.color:
        steps.reverse_channels()
    low, high = contract.value_range
    if (low, high) != (0.0, 255.0):
        steps.scale(255.0 / (high - low))
        steps.mean(-low)


def _require_size(size: tuple[int, int], *, even: bool) -> None:
    rule = "two even positive numbers" if even else "two positive numbers"
    whole = isinstance(size, tuple) and len(size) == 2 and all(type(side) is int for side in size)
    if not whole or min(size) < 1 or (even and (size[0] % 2 or size[1] % 2)):
        raise InputError(f"image format: size: expected {rule} (height, width), 'any' or None, found {size!r}")


def _shape_text(shape: tuple[int, ...]) -> str:
    names = {4: "NHWC", 3: "HWC"}.get(len(shape), "")
    if -1 in shape[-3:] and len(names) == len(shape) and shape[-3] != -1:
        names = names.replace("HWC", "CHW")
    # A free axis goes by its letter.
    parts = [names[i] if side == -1 else str(side) for i, side in enumerate(shape)]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
