"""OpenFace nn4.small2 as its publishers write it, with seeded weights: CSV files, and .h5 in Keras 2's layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.convert.openface import SHAPES

Weights = Mapping[tuple[str, str], np.ndarray]

LETTERS = {"kernel": "w", "bias": "b", "gamma": "w", "beta": "b", "moving_mean": "m", "moving_variance": "v"}
WITHOUT_WEIGHTS = ["input_1", "lrn_1", "lrn_2", "norm_layer"]


def seeded_arrays(seed: int = 0) -> dict[tuple[str, str], np.ndarray]:
    """Float32 weights by layer and name; batch norms after conv1 and conv3 are large, so that LRN matters."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for (layer, part), shape in SHAPES.items():
        if part == "kernel":
            values = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        elif part == "gamma":
            values = rng.uniform(10, 30, shape) if layer in ("bn1", "bn3") else rng.uniform(0.5, 1.5, shape)
        elif part == "moving_variance":
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.1, shape)
        arrays[layer, part] = values.astype(np.float32)
    return arrays


def csv_name(layer: str, part: str) -> str:
    return f"{'dense' if layer == 'dense_layer' else layer}_{LETTERS[part]}.csv"


def write_csv(path: Path, values: np.ndarray) -> None:
    path.write_text(",".join(map(repr, values.astype(np.float64).ravel().tolist())))


def write_csv_folder(folder: Path, arrays: Weights) -> Path:
    """Torch's order of axes: OIHW, and (out, in)."""
    folder.mkdir(parents=True, exist_ok=True)
    for (layer, part), values in arrays.items():
        write_csv(folder / csv_name(layer, part), values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T)
    return folder


def write_h5(
    path: Path, arrays: Weights, *, group: str = "model_weights", suffix: str = ":0", others: Any = WITHOUT_WEIGHTS
) -> Path:
    """The tree that tf_keras 2.21 writes (compared); `group` "" is that of save_weights, `suffix` "" is Keras 3's."""
    import h5py

    layers: dict[str, list[str]] = {name: [] for name in others}
    for layer, part in arrays:
        layers.setdefault(layer, []).append(part)
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        file.attrs["model_config"] = "\x80\x05 neither JSON nor anything to be run"
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, parts in layers.items():
            entry = root.create_group(layer)
            entry.attrs["weight_names"] = [f"{layer}/{part}{suffix}".encode() for part in parts]
            for part in parts:
                entry[f"{layer}/{part}{suffix}"] = arrays[layer, part]
    return path
