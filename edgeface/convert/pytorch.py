"""Read PyTorch recognisers: facenet-pytorch's InceptionResnetV1 from its state dictionary, others from the module.

A state dictionary holds weights and no network. That of facenet-pytorch's InceptionResnetV1 fits FaceNet's own
architecture, of which it is a port, so its weights get TensorFlow's names and go the way of a FaceNet graph: the same
weights have the same identity by both routes.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.convert.facenet_graph import build_graph
from edgeface.convert.inception_resnet_v1 import SCOPE, Convolution, walk
from edgeface.convert.recipe import Recipe
from edgeface.convert.source import SourceModel, digest_of_weights, structure_of
from edgeface.convert.tensorflow import load_graph
from edgeface.errors import ConversionError, ExtraNotInstalledError, InputError
from edgeface.files import sha256_of
from edgeface.torch_file import read_torch

_ANCHOR = "conv2d_1a.conv.weight"
_BLOCKS = {"Repeat/block35": "repeat_1", "Repeat_1/block17": "repeat_2", "Repeat_2/block8": "repeat_3"}
_STATISTICS = {"bias": "beta", "weight": "gamma", "running_mean": "moving_mean", "running_var": "moving_variance"}
_MOST_NAMED = 12


def load_pytorch(path: Path, recipe: Recipe) -> SourceModel:
    """Read a state dictionary of facenet-pytorch's InceptionResnetV1, without torch.

    Its keys may have a prefix, as those of a module that holds the network have. The classifier ``logits.*`` is left
    out. The output has unit length, unless the recipe says raw: then it is what `last_bn` returns.

    Raises
    ------
    ModelFormatError
        If the file is damaged, or is no state dictionary.
    ConversionError
        If it is that of another network; every key that is missing, unexpected or of another shape is named.
    InputError
        If the recipe has no size, or one below 75 pixels a side.
    """
    if recipe.size is None:
        raise InputError(f"{path}: expected a recipe with the size of a crop, found none; pass --size")
    weights = _tensorflow_weights(read_torch(path), path)
    graph = build_graph(weights, queue=False, size=recipe.size)
    source = load_graph(graph, path=path, sha256=sha256_of(path), framework="pytorch", size=recipe.size)
    if recipe.normalized is False:
        _leave_unnormalized(source.model)
    return dataclasses.replace(source, normalized=recipe.normalized is not False)


def load_module(module: Any, recipe: Recipe) -> SourceModel:
    """Trace a `torch.nn.Module` of the caller's in evaluation mode, and convert it with OpenVINO.

    It takes images (B, 3, H, W), or (B, H, W, 3) if the recipe's layout is NHWC, and returns embeddings (B, D). The
    recipe needs a size.

    Raises
    ------
    ExtraNotInstalledError
        If torch is not installed.
    InputError
        If the recipe has no size.
    ConversionError
        If the module cannot be traced or converted.
    """
    try:
        import torch
    except ImportError as error:
        raise ExtraNotInstalledError("train", needed_for="converting a PyTorch module") from error
    name = type(module).__name__
    if recipe.size is None:
        raise InputError(path=name, expected="a recipe with the size of a crop", found="none", remedy="give its size")
    layout = recipe.layout or "NCHW"
    shape = (3, *recipe.size) if layout == "NCHW" else (*recipe.size, 3)
    was_training = module.training
    module.eval()
    try:
        images = torch.rand(2, *shape)
        with torch.no_grad():
            lengths = torch.linalg.vector_norm(module(images), dim=1)
        model = ov.convert_model(module, example_input=images, input=[-1, *shape])
    except Exception as error:  # whatever the caller's own code raises in it
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConversionError(
            path=name,
            expected=f"a module that takes (B, {', '.join(map(str, shape))}) and can be traced",
            found=lines[0],
            remedy="export it with torch.onnx.export, and convert the .onnx",
        ) from error
    finally:
        module.train(was_training)
    arrays = [value.detach().cpu().numpy() for value in module.state_dict().values() if value.is_floating_point()]
    weights_id = digest_of_weights(map(_in_tensorflow_order, arrays), structure_of(model))
    return SourceModel(
        model=model,
        layout=layout,
        framework="pytorch",
        sha256=weights_id,
        weights_id=weights_id,
        normalized=bool(np.abs(lengths.numpy() - 1).max() < 1e-3),
    )


def _leave_unnormalized(model: ov.Model) -> None:
    """Return what `tf.nn.l2_normalize` takes: the first factor of the product that it returns."""
    (result,) = model.get_results()
    product = result.input_value(0).get_node()
    if product.get_type_name() != "Multiply":
        raise ConversionError(f"expected a product as the last operation, found {product.get_type_name()}")
    result.input(0).replace_source_output(product.input_value(0))


def _tensorflow_weights(state: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a state dictionary by TensorFlow name, in TensorFlow's order of axes."""
    prefixes = {key.removesuffix(_ANCHOR) for key in state if key.endswith(_ANCHOR)}
    last = f"{min(prefixes, default='')}last_linear.weight"
    if len(prefixes) != 1 or last not in state or state[last].ndim != 2:
        raise ConversionError(
            path=path,
            expected="the state dictionary of facenet-pytorch's InceptionResnetV1",
            found=f"{len(state)} tensors of another network: {_listed(state)}",
            remedy="export the model to ONNX with torch.onnx.export and convert that, or convert the module in Python "
            "with edgeface.convert.convert_module",
        )
    (prefix,) = prefixes
    wanted = inception_resnet_v1_keys(len(state[last]))
    found = {key.removeprefix(prefix): key for key in state if key.startswith(prefix)}
    ignored = {key for key in found if key.startswith("logits.") or key.endswith(".num_batches_tracked")}
    strange = [key for key in state if not key.startswith(prefix)] + [
        found[key] for key in found if key not in wanted and key not in ignored
    ]
    missing = [prefix + key for key in wanted if key not in found]
    misshaped = [
        f"{found[key]} {state[found[key]].shape} instead of {shape}"
        for key, (_, shape) in wanted.items()
        if key in found and state[found[key]].shape != shape
    ]
    integers = [found[key] for key in wanted if key in found and state[found[key]].dtype.kind != "f"]
    groups = {"missing": missing, "unexpected": strange, "of another shape": misshaped, "not of floats": integers}
    if any(groups.values()):
        raise ConversionError(
            path=path,
            expected="the keys of facenet-pytorch's InceptionResnetV1",
            found="; ".join(f"{len(keys)} {what}: {_listed(keys)}" for what, keys in groups.items() if keys),
            remedy="save the whole state dictionary of that network alone",
        )
    weights = {name: _in_tensorflow_order(state[found[key]]) for key, (name, _) in wanted.items()}
    # A batch norm without a scale is what the published weights have, and what their identity is taken from.
    return {name: value for name, value in weights.items() if not (name.endswith("/gamma") and np.all(value == 1))}


def _in_tensorflow_order(array: NDArray[Any]) -> NDArray[np.float32]:
    """Bring kernels from (out, in, height, width) to (height, width, in, out), matrices from (out, in) to (in, out)."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array if axes is None else array.transpose(axes), np.float32)


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    rest = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return ", ".join(keys[:_MOST_NAMED]) + rest


def inception_resnet_v1_keys(embedding_size: int = 512) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return facenet-pytorch's keys that have weights, each with its TensorFlow name and PyTorch shape.

    Kernels are (out, in, height, width). The names are those of `models/inception_resnet_v1.py` of facenet-pytorch
    2.6.0: the layers of one branch are numbered where there are several.

    Examples
    --------
    >>> inception_resnet_v1_keys()["repeat_1.0.branch1.1.conv.weight"]
    ('InceptionResnetV1/Repeat/block35_1/Branch_1/Conv2d_0b_3x3/weights', (32, 32, 3, 3))
    """
    layers = _Layers()
    walk(layers, 3, embedding_size)
    branches: dict[str, list[str]] = defaultdict(list)
    for layer, _ in layers.convolutions:
        branches[layer.name.rpartition("/")[0]].append(layer.name)
    keys: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer, inputs in layers.convolutions:
        branch, _, own = layer.name.rpartition("/")
        name, shape = f"{SCOPE}/{layer.name}", (layer.channels, inputs, *layer.kernel)
        if not layer.normalized:
            module = f"{_module_of(branch)}.conv2d"
            keys[f"{module}.weight"] = (f"{name}/weights", shape)
            keys[f"{module}.bias"] = (f"{name}/biases", (layer.channels,))
            continue
        if not branch:
            module = own.rpartition("_")[0].lower()
        elif len(branches[branch]) == 1:
            module = _module_of(branch)
        else:
            module = f"{_module_of(branch)}.{branches[branch].index(layer.name)}"
        keys[f"{module}.conv.weight"] = (f"{name}/weights", shape)
        keys.update(_batch_norm_keys(f"{module}.bn", name, layer.channels))
    keys["last_linear.weight"] = (f"{SCOPE}/Bottleneck/weights", (embedding_size, layers.features))
    return keys | _batch_norm_keys("last_bn", f"{SCOPE}/Bottleneck", embedding_size)


def _batch_norm_keys(module: str, name: str, channels: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"{module}.{ours}": (f"{name}/BatchNorm/{theirs}", (channels,)) for ours, theirs in _STATISTICS.items()}


def _module_of(path: str) -> str:
    """Return the module of a block or branch, e.g. ``repeat_1.0.branch1`` of ``Repeat/block35_1/Branch_1``."""
    block, _, branch = path.partition("/Branch_")
    kind, _, number = block.rpartition("_")
    module = f"{_BLOCKS[kind]}.{int(number) - 1}" if kind in _BLOCKS else block.lower()
    return f"{module}.branch{branch}" if branch else module


class _Layers:
    """Lists the convolutions with the channels that they take; a tensor is its number of channels."""

    def __init__(self) -> None:
        self.convolutions: list[tuple[Convolution, int]] = []
        self.features = 0

    def convolution(self, layer: Convolution, x: int) -> int:
        self.convolutions.append((layer, x))
        return layer.channels

    def max_pool(self, name: str, x: int) -> int:
        return x

    def concatenate(self, name: str, xs: list[int]) -> int:
        return sum(xs)

    def residual(self, name: str, x: int, update: int, scale: float, *, relu: bool) -> int:
        return x

    def head(self, name: str, x: int, embedding_size: int) -> int:
        self.features = x
        return embedding_size
