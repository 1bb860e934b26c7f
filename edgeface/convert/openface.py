"""Read OpenFace nn4.small2 from Keras-OpenFace's CSV files or a Keras .h5, and build its network.

The network is that of the pretrained Torch file, which differs from the published `nn4.small2.def.lua`
(cmusatyalab/openface, issues 349 and 351), as the Keras port (iwantooxxoox/Keras-OpenFace) has it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.hdf5 import read_keras_arrays
from edgeface.convert.recipe import Recipe
from edgeface.convert.source import SourceModel, digest_of_files, digest_of_weights
from edgeface.errors import InputError, ModelFormatError, NotSupportedError
from edgeface.files import sha256_of
from edgeface.model.opset import ops
from edgeface.untrusted import read_regular, reading

log = logging.getLogger(__name__)

SIZE = 96
EMBEDDING_SIZE = 128
BATCH_NORM_EPSILON = 1e-5

Array = NDArray[np.float32]
Key = tuple[str, str]
"""Names of a layer and of one of its arrays, as Keras has them: ``("conv1", "kernel")``."""

LRNS: dict[str, tuple[int, float] | None] = {"keras": (11, 1.1e-3), "torch": (5, 1e-4), "none": None}
"""Window and alpha of the local response normalisation, with alpha / window as OpenVINO's LRN takes it.

Keras-OpenFace calls `tf.nn.lrn(x, alpha=1e-4, beta=0.75)`: a window of 11, alpha not divided by it. Torch has
`SpatialCrossMapLRN(5, 1e-4, 0.75)`. Keras-OpenFace's first .h5 has none.
"""


class _Inception(NamedTuple):
    """An inception block: channels of its convolutions, None where it has no such branch.

    `three` and `five` are a 1x1 convolution and one of 3x3 or 5x5; `pooled` is the 1x1 convolution after the pool, and
    where that is None, the pool's output is the branch's.
    """

    name: str
    three: tuple[int, int]
    five: tuple[int, int] | None
    pool: Literal["max", "l2"]
    pooled: int | None
    one: int | None
    stride: int = 1


_BLOCKS = (
    _Inception("inception_3a", (96, 128), (16, 32), "max", 32, 64),
    _Inception("inception_3b", (96, 128), (32, 64), "l2", 64, 64),
    _Inception("inception_3c", (128, 256), (32, 64), "max", None, None, stride=2),
    _Inception("inception_4a", (96, 192), (32, 64), "l2", 128, 256),
    _Inception("inception_4e", (160, 256), (64, 128), "max", None, None, stride=2),
    _Inception("inception_5a", (96, 384), None, "l2", 96, 256),
    _Inception("inception_5b", (96, 384), None, "max", 96, 256),
)


def load_openface(path: Path, recipe: Recipe) -> SourceModel:
    """Read OpenFace nn4.small2 from a folder of CSV files or a Keras .h5.

    Rows of the model are the raw output of the last layer, not of unit length. The local response normalisation is
    `recipe.lrn`, else the file's: Keras's for CSV files; of an .h5, Keras's if it has such layers, else none.

    Raises ModelFormatError with every array that is missing or of the wrong size, or if the file is damaged;
    NotSupportedError for the .h5 of another model; InputError if the recipe wants crops of another size;
    ExtraNotInstalledError if an .h5 is given and h5py is not installed.
    """
    if recipe.size not in (None, (SIZE, SIZE)):
        raise InputError(
            path=path,
            expected=f"a recipe of {SIZE}x{SIZE} crops, which OpenFace nn4.small2 takes",
            found=str(recipe.size),
        )
    if path.is_dir():
        arrays, lrn = _read_folder(path), "keras"
        sha256 = digest_of_files([_csv_path(path, key) for key in SHAPES])
    else:
        arrays, lrn = _read_h5(path)
        sha256 = sha256_of(path)
    lrn = recipe.lrn or lrn
    log.info("%s: OpenFace nn4.small2 with local response normalisation %r", path, lrn)
    # The normalisation has no weights but changes the numbers: other models than Keras's have other identities.
    settings = [] if lrn == "keras" else [np.array(LRNS[lrn] or (0, 0), np.float32)]
    return SourceModel(
        model=_build(arrays, LRNS[lrn]),
        layout="NCHW",
        framework="keras",
        sha256=sha256,
        weights_id=digest_of_weights([*arrays.values(), *settings], []),
        normalized=False,
    )


def is_openface_folder(path: Path) -> bool:
    """Return whether a folder has CSV files with the names of Keras-OpenFace's."""
    return any(_csv_path(path, (layer, "kernel")).is_file() for layer in ("conv1", "conv2", "conv3", "dense_layer"))


# --- the arrays -------------------------------------------------------------------------------------------------------


class _Convolution(NamedTuple):
    layer: str
    side: int  # of the kernel, in pixels
    inside: int  # channels
    outside: int


def _convolutions() -> Iterator[_Convolution]:
    yield from (_Convolution("conv1", 7, 3, 64), _Convolution("conv2", 1, 64, 64), _Convolution("conv3", 3, 64, 192))
    inside = 192
    for block in _BLOCKS:
        branches = [block.three[1], block.pooled or inside, block.one or 0]
        for side, pair in ((3, block.three), (5, block.five)):
            if pair is not None:
                yield _Convolution(f"{block.name}_{side}x{side}_conv1", 1, inside, pair[0])
                yield _Convolution(f"{block.name}_{side}x{side}_conv2", side, *pair)
        if block.five is not None:
            branches.append(block.five[1])
        if block.pooled is not None:
            yield _Convolution(f"{block.name}_pool_conv", 1, inside, block.pooled)
        if block.one is not None:
            yield _Convolution(f"{block.name}_1x1_conv", 1, inside, block.one)
        inside = sum(branches)


def _batch_norm_of(convolution: str) -> str:
    return convolution.replace("conv", "bn")


def _shapes() -> Iterator[tuple[Key, tuple[int, ...]]]:
    for layer, side, inside, outside in _convolutions():
        yield (layer, "kernel"), (side, side, inside, outside)
        yield (layer, "bias"), (outside,)
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            yield (_batch_norm_of(layer), part), (outside,)
    yield ("dense_layer", "kernel"), (736, EMBEDDING_SIZE)
    yield ("dense_layer", "bias"), (EMBEDDING_SIZE,)


SHAPES = dict(_shapes())
"""Shapes of all arrays; kernels are HWIO."""

_CSV_SUFFIXES = {"kernel": "w", "bias": "b", "gamma": "w", "beta": "b", "moving_mean": "m", "moving_variance": "v"}


def _refuse(path: Path, missing: list[str], wrong: list[str]) -> None:
    """Raise ModelFormatError with every array that is missing or wrong, if there is one."""
    problems = [
        (len(names), word, ", ".join(names)) for word, names in (("missing", missing), ("wrong", wrong)) if names
    ]
    if problems:
        raise ModelFormatError(
            path=path,
            expected=f"the {len(SHAPES)} arrays of OpenFace nn4.small2",
            found="; ".join(f"{count} {word}: {names}" for count, word, names in problems),
            remedy="download what is missing or wrong again",
        )


# --- CSV files --------------------------------------------------------------------------------------------------------


def _csv_path(folder: Path, key: Key) -> Path:
    layer, part = key
    return folder / f"{layer.removesuffix('_layer')}_{_CSV_SUFFIXES[part]}.csv"


def _read_folder(folder: Path) -> dict[Key, Array]:
    """Read the CSV files of Keras-OpenFace: kernels are OIHW and dense ones (out, in), in C order."""
    arrays, missing, wrong = {}, [], []
    for key, shape in SHAPES.items():
        path = _csv_path(folder, key)
        if not path.is_file():
            missing.append(path.name)
            continue
        try:
            values = read_csv(path, math.prod(shape))
        except ModelFormatError as error:
            wrong.append(f"{path.name} (expected {error.expected}, found {error.found})")
            continue
        if len(shape) > 1:
            values = values.reshape(shape[3:] + shape[2:3] + shape[:2] if len(shape) == 4 else shape[::-1])
            values = np.ascontiguousarray(values.transpose((2, 3, 1, 0) if len(shape) == 4 else (1, 0)))
        arrays[key] = values
    _refuse(folder, missing, wrong)
    known = {_csv_path(folder, key).name for key in SHAPES}
    if others := sorted(path.name for path in folder.glob("*.csv") if path.name not in known):
        log.info("%s: these files belong to no layer and are not read: %s", folder, ", ".join(others))
    return arrays


def read_csv(path: Path, count: int) -> Array:
    """Read `count` decimals, separated by commas or line ends, as float32.

    Raises ModelFormatError if there are more or fewer, or one is no finite number.
    """
    expected = f"{count:,} numbers"
    with reading(path, expected, error=ModelFormatError):
        content = read_regular(path, limit=count * _LONGEST_NUMBER)
    fields = content.replace(b"\n", b",").rstrip(b", \r").split(b",")
    if len(fields) != count:
        found = f"{len(fields):,}" if fields != [b""] else "an empty file"
        raise ModelFormatError(path=path, expected=expected, found=found)
    try:
        values = np.fromiter(map(float, fields), np.float64, count)
    except ValueError as error:
        raise ModelFormatError(path=path, expected=expected, found=f"text that is no number ({error})") from None
    return _finite(values, path, expected)


_LONGEST_NUMBER = 40
"""Bytes of one number with its separator; published ones have at most 25."""


def _finite(values: NDArray[Any], path: Path, expected: str) -> Array:
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ModelFormatError(path=path, expected=expected, found="some that are not finite in float32")
    return values


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def _read_h5(path: Path) -> tuple[dict[Key, Array], str]:
    """Read a Keras .h5; return the arrays and the kind of normalisation."""
    wanted: dict[str, dict[str, tuple[int, ...]]] = {}
    for (layer, part), shape in SHAPES.items():
        wanted.setdefault(layer, {})[part] = shape
    stored = read_keras_arrays(path, wanted)
    if not wanted.keys() & set(stored.layers):
        some = ", ".join(stored.layers[:4])
        raise NotSupportedError(
            path=path,
            expected="the .h5 of OpenFace nn4.small2",
            found=f"a Keras model of other layers ({some}, ...)",
            remedy="save it from Keras as a SavedModel with model.export('FOLDER'), and convert that folder",
        )
    missing, wrong = [], []
    arrays = {}
    for key, shape in SHAPES.items():
        name = "/".join(key)
        if key in stored.arrays:
            try:
                arrays[key] = _finite(stored.arrays[key], path, "")
            except ModelFormatError as error:
                wrong.append(f"{name} (found {error.found})")
        elif key in stored.found:
            wrong.append(f"{name} (expected {shape}, found {stored.found[key]})")
        else:
            missing.append(name)
    _refuse(path, missing, wrong)
    return arrays, "keras" if any("lrn" in layer.lower() for layer in stored.layers) else "none"


# --- the network ------------------------------------------------------------------------------------------------------


def _build(arrays: Mapping[Key, Array], lrn: tuple[int, float] | None) -> ov.Model:
    """Build the network of (?, 3, 96, 96) RGB in 0-1, with (?, 128) raw embeddings."""
    net = _Network(arrays, lrn)
    image = ops.parameter([-1, 3, SIZE, SIZE], np.float32, name="image")
    x = net.convolve(image, "conv1", stride=2, padding=3)
    x = net.normalize(net.max_pool(x, padding=1))
    x = net.convolve(x, "conv2")
    x = net.normalize(net.convolve(x, "conv3", padding=1))
    x = net.max_pool(x, padding=1)
    for block in _BLOCKS:
        x = net.inception(block, x)
    x = ops.avg_pool(x, [1, 1], [0, 0], [0, 0], [3, 3], True)
    flat = ops.reshape(x, np.array([-1, 736]), False)
    dense = ops.matmul(flat, arrays["dense_layer", "kernel"], False, False)
    return ov.Model([ops.add(dense, arrays["dense_layer", "bias"])], [image], "openface_nn4_small2")


class _Network:
    """Builds OpenVINO nodes, NCHW."""

    def __init__(self, arrays: Mapping[Key, Array], lrn: tuple[int, float] | None) -> None:
        self._arrays, self._lrn = arrays, lrn

    def inception(self, block: _Inception, x: Any) -> Any:
        """Run the branches of a block; the pooled one is padded with zeros to the size of the others."""
        branches = []
        for side, pair in ((3, block.three), (5, block.five)):
            if pair is not None:
                y = self.convolve(x, f"{block.name}_{side}x{side}_conv1")
                layer = f"{block.name}_{side}x{side}_conv2"
                branches.append(self.convolve(y, layer, stride=block.stride, padding=side // 2))
        pooled = self.max_pool(x) if block.pool == "max" else self.l2_pool(x)
        if block.pooled is not None:
            pooled = self.convolve(pooled, f"{block.name}_pool_conv")
        lacking = _side_of(branches[0]) - _side_of(pooled)
        before, after = [0, 0, lacking // 2, lacking // 2], [0, 0, *[lacking - lacking // 2] * 2]
        branches.append(ops.pad(pooled, before, after, "constant", np.float32(0)))
        if block.one is not None:
            branches.append(self.convolve(x, f"{block.name}_1x1_conv"))
        return ops.concat(branches, 1)

    def convolve(self, x: Any, layer: str, *, stride: int = 1, padding: int = 0) -> Any:
        """Convolution with bias, batch norm, Relu."""
        kernel = np.ascontiguousarray(self._arrays[layer, "kernel"].transpose(3, 2, 0, 1))
        pads = [padding, padding]
        y = ops.convolution(x, kernel, [stride, stride], pads, pads, [1, 1], name=layer)
        y = ops.add(y, self._arrays[layer, "bias"].reshape(1, -1, 1, 1))
        parts = ("gamma", "beta", "moving_mean", "moving_variance")
        norm = [self._arrays[_batch_norm_of(layer), part] for part in parts]
        return ops.relu(ops.batch_norm_inference(y, *norm, BATCH_NORM_EPSILON))

    def max_pool(self, x: Any, *, padding: int = 0) -> Any:
        """Maximum over 3x3 with stride 2. No value is negative, so padding is as good as with zeros."""
        pads = [padding, padding]
        return ops.max_pool(x, [2, 2], [1, 1], pads, pads, [3, 3]).output(0)

    def l2_pool(self, x: Any) -> Any:
        """Root of the sum of squares over 3x3 with stride 3."""
        mean = ops.avg_pool(ops.multiply(x, x), [3, 3], [0, 0], [0, 0], [3, 3], True)
        return ops.sqrt(ops.multiply(mean, np.float32(9)))

    def normalize(self, x: Any) -> Any:
        """Local response normalisation over channels."""
        if self._lrn is None:
            return x
        window, alpha = self._lrn
        return ops.lrn(x, np.array([1]), alpha, 0.75, 1.0, window)


def _side_of(x: Any) -> int:
    output = x if isinstance(x, ov.Output) else x.output(0)
    side: int = output.get_partial_shape()[2].get_length()
    return side
