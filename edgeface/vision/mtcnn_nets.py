"""Build MTCNN's three networks as OpenVINO models from its published weights.

Zhang et al., "Joint Face Detection and Alignment using Multitask Cascaded Convolutional Networks", 2016. The
weights were trained on transposed RGB images; here the kernels are transposed instead, for upright BGR images.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import MissingError, ModelFormatError
from edgeface.model.opset import ops
from edgeface.untrusted import read_npz
from edgeface.vision.networks import read_network

NetName = Literal["pnet", "rnet", "onet"]
_NAMES: tuple[NetName, ...] = ("pnet", "rnet", "onet")
Array = NDArray[np.float32]

_HEADS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"pnet": ("conv4-2", "conv4-1"), "rnet": ("conv5-2", "conv5-1"), "onet": ("conv6-2", "conv6-3", "conv6-1")}
)
"""Names of the output layers in det*.npz: box regression, (landmarks,) face or not."""

_POOLS: Mapping[str, tuple[tuple[int, str] | None, ...]] = MappingProxyType(
    {
        "pnet": ((2, "same_upper"), None, None),
        "rnet": ((3, "same_upper"), (3, "valid"), None, None),
        "onet": ((3, "same_upper"), (3, "valid"), (2, "same_upper"), None, None),
    }
)
"""Max pooling of stride 2 after each hidden layer: window and padding (davidsandberg/facenet,
`src/align/detect_face.py`, classes PNet, RNet and ONet)."""

_MEAN, _SCALE = 127.5, 0.0078125
"""The reference feeds ``(x - 127.5) * 0.0078125``."""

_SIDES: Mapping[str, int] = MappingProxyType({"pnet": -1, "rnet": 24, "onet": 48})


@dataclass(frozen=True, slots=True)
class NetLayer:
    """A convolution; a dense layer is a convolution over the whole remaining image."""

    kernel: Array  # (out, in, height, width) for upright images; the first layer's inputs in the order B, G, R
    bias: Array  # (out,)
    slope: Array | None  # (out,), of the following PReLU; None for the heads


Weights = Mapping[NetName, Sequence[NetLayer]]
"""Hidden layers in order, then the heads as in `_HEADS`."""


def find_nets(folder: Path | None = None) -> tuple[Mapping[NetName, Callable[[], ov.Model]], Sequence[Path]]:
    """Return what loads each of the three networks, and list their three files.

    They are a folder's pnet.xml, rnet.xml and onet.xml, else built from weights as `load_weights` reads them, which
    raises the same errors.
    """
    if folder is not None and folder.is_file():
        raise ModelFormatError(
            path=folder,
            expected="a folder of MTCNN's weights",
            found="a file",
            remedy="name the detector that it is of: --detector yunet (in Python detector='yunet') or retail-0004",
        )
    if folder is not None and (folder / "pnet.xml").is_file():
        files = [folder / f"{name}.xml" for name in _NAMES]
        return {name: partial(read_network, file) for name, file in zip(_NAMES, files, strict=True)}, files
    files = [_wheel_file(name) if folder is None else _npz_file(name, folder) for name in _NAMES]
    return {name: partial(_load_net, name, folder) for name in _NAMES}, files


def _load_net(name: NetName, folder: Path | None) -> ov.Model:
    return build_net(name, {name: _read_layers(name, folder)})


def load_weights(folder: Path | None = None) -> Weights:
    """Load the weights of the three networks.

    Parameters
    ----------
    folder
        Folder of det1.npz, det2.npz and det3.npz, the arrays of davidsandberg's det*.npy; None: the same weights
        from the `mtcnn` package.

    Raises
    ------
    MissingError
        If a file is missing.
    ModelFormatError
        If the arrays are not MTCNN's.
    """
    return MappingProxyType({name: _read_layers(name, folder) for name in _NAMES})


def _read_layers(name: NetName, folder: Path | None) -> Sequence[NetLayer]:
    return _read_wheel(name) if folder is None else _read_npz(name, folder)


def build_net(name: NetName, weights: Weights, *, batch: int = -1) -> ov.Model:
    """Build one network.

    Its input is (N, H, W, 3) float32 BGR 0-255: of any H and W for P-Net; 24 for R-Net and 48 for O-Net. Its one
    output, ``found``, is of (N, C, H', W') for P-Net, else (N, C): the logit of a face, 4 regressions of the box
    and, for O-Net, x1..x5, y1..y5 of the landmarks, so that C is 5 or 15.

    A batch of -1 is any N.
    """
    side, layers, pools = _SIDES[name], weights[name], _POOLS[name]
    image = ops.parameter([batch, side, side, 3], np.float32, name="image")
    image.output(0).set_names({"image"})
    x = ops.transpose(image, np.array([0, 3, 1, 2]))
    last = len(pools) if name == "pnet" else len(pools) - 1
    convolutions, dense = layers[1:last], layers[last : len(pools)]
    for layer, pool in zip([_with_raw_input(layers[0]), *convolutions], pools, strict=False):
        x = ops.prelu(_convolve(x, layer), layer.slope)
        if pool:
            window, padding = pool
            x = ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [window] * 2, auto_pad=padding).output(0)
    if dense:
        x = ops.reshape(x, np.array([0, dense[0].kernel[0].size]), special_zero=True)
    for layer in dense:
        x = ops.prelu(_multiply(x, layer), layer.slope)
    heads = _join_heads(layers[len(pools) :])
    found = _multiply(x, heads) if dense else _convolve(x, heads)
    found.output(0).set_names({"found"})
    return ov.Model([ops.result(found)], [image], name)


def _with_raw_input(layer: NetLayer) -> NetLayer:
    """Fold the standardisation into the first layer, which has no padding."""
    shift = layer.kernel.sum(axis=(1, 2, 3), dtype=np.float64) * _MEAN * _SCALE
    return NetLayer(layer.kernel * np.float32(_SCALE), (layer.bias - shift).astype(np.float32), layer.slope)


def _join_heads(heads: Sequence[NetLayer]) -> NetLayer:
    """Join the heads into one layer. A softmax over two classes needs only the difference of their logits."""
    *regressions, classes = heads
    logit = NetLayer(classes.kernel[1:] - classes.kernel[:1], classes.bias[1:] - classes.bias[:1], None)
    joined = [logit, *regressions]
    return NetLayer(
        np.concatenate([each.kernel for each in joined]), np.concatenate([each.bias for each in joined]), None
    )


def _convolve(x: Any, layer: NetLayer) -> Any:
    product = ops.convolution(x, layer.kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    return ops.add(product, layer.bias.reshape(1, -1, 1, 1))


def _multiply(x: Any, layer: NetLayer) -> Any:
    """Apply a dense layer as a matrix product, several times as fast as a convolution."""
    product = ops.matmul(x, layer.kernel.reshape(len(layer.bias), -1), False, True)
    return ops.add(product, layer.bias.reshape(1, -1))


def _wheel_file(name: NetName) -> Path:
    package, reader = importlib.util.find_spec("mtcnn"), importlib.util.find_spec("joblib")
    if package is None or package.origin is None or reader is None:
        raise MissingError("MTCNN's weights come with the package mtcnn; install it with: pip install mtcnn==1.0.0")
    path = Path(package.origin).parent / "assets" / "weights" / f"{name}.lz4"
    if not path.is_file():
        raise MissingError(
            f"{path}: the weights of mtcnn 1.0.0 are missing; install them with: pip install mtcnn==1.0.0"
        )
    return path


def _read_wheel(name: NetName) -> Sequence[NetLayer]:
    """Read layers from the `mtcnn` wheel: a flat list of arrays, upright kernels (height, width, in, out)."""
    path = _wheel_file(name)
    import joblib  # the package itself is not imported: that would ask for TensorFlow

    arrays = joblib.load(path)
    count = len(_POOLS[name])
    hidden = [arrays[3 * index : 3 * index + 3] for index in range(count)]
    rest = arrays[3 * count :]
    heads = [(*rest[index : index + 2], None) for index in range(0, len(rest), 2)]
    return _layers(name, [*hidden, *heads], transposed=False, source=path)


def _npz_file(name: NetName, folder: Path) -> Path:
    path = folder / f"det{_NAMES.index(name) + 1}.npz"
    if not path.is_file():
        raise MissingError(f"{path}: expected MTCNN's weights, found no file")
    return path


def _read_npz(name: NetName, folder: Path) -> Sequence[NetLayer]:
    """Read layers from det*.npz: arrays by name, kernels (width, height, in, out) for transposed images."""
    path = _npz_file(name, folder)
    slopes = "PReLU" if name == "pnet" else "prelu"
    stored = read_npz(path, "MTCNN's weights", error=ModelFormatError)
    try:
        hidden = [
            (stored[f"conv{n}/weights"], stored[f"conv{n}/biases"], stored[f"{slopes}{n}/alpha"])
            for n in range(1, len(_POOLS[name]) + 1)
        ]
        heads = [(stored[f"{head}/weights"], stored[f"{head}/biases"], None) for head in _HEADS[name]]
    except KeyError as error:
        raise ModelFormatError(f"{path}: expected MTCNN's weights, found no array {error}") from error
    return _layers(name, [*hidden, *heads], transposed=True, source=path)


def _layers(name: NetName, arrays: Sequence[Sequence[Any]], *, transposed: bool, source: Path) -> Sequence[NetLayer]:
    layers: list[NetLayer] = []
    hidden = len(_POOLS[name])
    try:
        for index, (kernel, bias, slope) in enumerate(arrays):
            inputs = len(layers[min(index, hidden) - 1].bias) if index else 3
            side = round((kernel.size / inputs / len(bias)) ** 0.5)
            sideways = transposed or kernel.ndim == 2  # even the wheel's dense layers count columns first
            kernel = kernel.reshape(side, side, inputs, len(bias))
            kernel = kernel.transpose(3, 2, 1, 0) if sideways else kernel.transpose(3, 2, 0, 1)
            if index == 0:
                kernel = kernel[:, ::-1]  # trained on RGB, fed BGR
            layers.append(NetLayer(np.ascontiguousarray(kernel), bias, None if slope is None else slope.ravel()))
    except (ValueError, AttributeError, TypeError) as error:
        raise ModelFormatError(f"{source}: these are not MTCNN's weights: {error}") from error
    return layers
