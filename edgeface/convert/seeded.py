"""Make weights from a seed for an Inception-ResNet-v1 that tells images apart.

Random weights alone map every image to nearly the same embedding (cosine 0.9999), so that a test on them cannot
fail. Here every layer's batch norm statistics are those that random images really have there,
so that signals neither vanish nor drown in what all images share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.convert.inception_resnet_v1 import BATCH_NORM_EPSILON, INPUT_SIZE, SCOPE, Convolution, walk
from edgeface.errors import InputError

Array = NDArray[np.float32]
_CELLS = (1, 2, 8, 32)
"""Pixels a side of one random colour, from fine noise to coarse blotches."""
_CONTRASTS = (1.0, 1.0, 0.5, 0.15)


def seeded_weights(seed: int, embedding_size: int = 512) -> dict[str, NDArray[Any]]:
    """Make float32 weights by published TensorFlow variable name, from a seed; kernels are HWIO.

    Weights are drawn after He et al. 2015 (arXiv 1502.01852); moving means and variances are measured on random images.
    Raises InputError if the seed is negative, or there is no output.
    """
    if seed < 0 or embedding_size < 1:
        raise InputError(
            f"seeded weights: expected a seed of at least 0 and an embedding size of at least 1, "
            f"found {seed} and {embedding_size}"
        )
    net = _Calibration(np.random.default_rng(seed))
    walk(net, _random_images(np.random.default_rng([seed, 1])), embedding_size)
    return net.weights


def _random_images(generator: np.random.Generator) -> Array:
    """(N, 160, 160, 3) standardised images from coarse blotches to fine noise."""
    images = []
    for cell in _CELLS:
        for contrast in _CONTRASTS:
            colors = generator.uniform(0, 255, (INPUT_SIZE // cell, INPUT_SIZE // cell, 3))
            background = generator.uniform(0, 255, 3)
            colors = background + contrast * (colors - background)
            images.append(colors.repeat(cell, axis=0).repeat(cell, axis=1))
    return ((np.stack(images) - 127.5) / 128).astype(np.float32)


class _Calibration:
    """Runs the layers in numpy, drawing weights and measuring statistics as it goes."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.weights: dict[str, NDArray[Any]] = {}
        self._generator = generator

    def convolution(self, layer: Convolution, x: Array) -> Array:
        (rows, columns), stride = layer.kernel, layer.stride
        weights = self._draw(f"{SCOPE}/{layer.name}/weights", (rows, columns, x.shape[-1], layer.channels))
        if layer.padding == "SAME":
            x = np.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
        y = np.zeros((), np.float32)
        height, width = (x.shape[1] - rows) // stride + 1, (x.shape[2] - columns) // stride + 1
        for row, column in np.ndindex(rows, columns):
            window = x[:, row : row + stride * height : stride, column : column + stride * width : stride, :]
            y = y + window @ weights[row, column]
        if layer.normalized:
            y = self._normalize(layer.name, y)
        else:
            self.weights[f"{SCOPE}/{layer.name}/biases"] = np.zeros(layer.channels, np.float32)
        return np.maximum(y, np.float32(0)) if layer.relu else y

    def max_pool(self, name: str, x: Array) -> Array:
        size = (x.shape[1] - 3) // 2 + 1
        windows = [x[:, row:, column:][:, : 2 * size : 2, : 2 * size : 2] for row, column in np.ndindex(3, 3)]
        pooled: Array = np.maximum.reduce(windows)
        return pooled

    def concatenate(self, name: str, xs: list[Array]) -> Array:
        return np.concatenate(xs, axis=-1)

    def residual(self, name: str, x: Array, update: Array, scale: float, *, relu: bool) -> Array:
        y = x + np.float32(scale) * update
        return np.maximum(y, 0) if relu else y

    def head(self, name: str, x: Array, embedding_size: int) -> Array:
        pooled = x.mean(axis=(1, 2))
        weights = self._draw(f"{SCOPE}/Bottleneck/weights", (pooled.shape[1], embedding_size))
        return self._normalize("Bottleneck", pooled @ weights)

    def _draw(self, name: str, shape: tuple[int, ...]) -> Array:
        deviation = np.sqrt(2 / np.prod(shape[:-1]))
        weights: Array = (self._generator.standard_normal(shape) * deviation).astype(np.float32)
        self.weights[name] = weights
        return weights

    def _normalize(self, name: str, y: Array) -> Array:
        axes = tuple(range(y.ndim - 1))
        mean, variance = y.mean(axis=axes), y.var(axis=axes)
        prefix = f"{SCOPE}/{name}/BatchNorm"
        self.weights[f"{prefix}/beta"] = np.zeros_like(mean)
        self.weights[f"{prefix}/moving_mean"] = mean
        self.weights[f"{prefix}/moving_variance"] = variance
        normalized: Array = (y - mean) / np.sqrt(variance + np.float32(BATCH_NORM_EPSILON))
        return normalized
