"""Write small networks in dlib's stream format, and compute them with NumPy.

A network is a list of layers from the input to the output. Tags have numbers here, which dlib does not write.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

MEAN = (122.782, 117.001, 104.298)


def integer(value: int) -> bytes:
    magnitude = abs(value)
    count = max(1, (magnitude.bit_length() + 7) // 8)
    return bytes([count | (0x80 if value < 0 else 0)]) + magnitude.to_bytes(count, "little")


def real(value: float) -> bytes:
    if not math.isfinite(value):
        return integer(0) + integer(32002 if math.isnan(value) else 32000 + (value < 0))
    fraction, exponent = math.frexp(value)
    mantissa, exponent = int(fraction * 2**53), exponent - 53
    while mantissa and mantissa % 256 == 0:
        mantissa, exponent = mantissa // 256, exponent + 8
    return integer(mantissa) + integer(exponent)


def text(value: str) -> bytes:
    return integer(len(value)) + value.encode()


def shape(*sides: int) -> bytes:
    return b"".join(map(integer, sides))


def tensor(values: Any, *sides: int) -> bytes:
    array = np.asarray(values, "<f4")
    return integer(2) + shape(*(sides or (array.size, 1, 1, 1))) + array.tobytes()


def alias(*sides: int) -> bytes:
    return integer(1) + shape(*sides)


EMPTY = tensor([], 0, 0, 0, 0)
MULTIPLIERS = real(1.0) * 4


@dataclass
class Layer:
    """A layer as bytes, and as what it computes of (N, C, H, W) float64."""

    fields: bytes
    compute: Any


@dataclass
class Net:
    """Layers, and the sequence of "tag"s, "skip"s and "add"s among them."""

    size: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    layers: list[Layer | tuple[str, int]] = field(default_factory=list)

    def draw(self, *sides: int) -> np.ndarray:
        return self.rng.normal(0, 0.3, sides).astype(np.float32)

    def add(self, fields: bytes, compute: Any) -> Net:
        self.layers.append(Layer(fields, compute))
        return self

    def con(
        self, channels: int, filters: int, window: int, stride: int, pad: int, name: str = "con_4", biased: bool = True
    ) -> Net:
        kernels, bias = self.draw(filters, channels, window, window), self.draw(filters) * biased
        values = np.concatenate([kernels.ravel(), bias]) if biased else kernels
        fields = text(name) + tensor(values) + shape(filters, window, window, stride, stride, pad, pad)
        fields += alias(*kernels.shape) + (alias(1, filters, 1, 1) if biased else alias(0, 0, 0, 0)) + MULTIPLIERS
        fields += (b"1" if biased else b"0") if name != "con_4" else b""
        fields += b"1" if name == "con_6" else b""

        def compute(x: np.ndarray) -> np.ndarray:
            padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
            windows = sliding_window_view(padded, (window, window), axis=(2, 3))[:, :, ::stride, ::stride]
            y = np.einsum("nchwij,fcij->nfhw", windows, kernels) + bias.reshape(-1, 1, 1)
            return np.maximum(y, 0) if name == "con_6" else y

        return self.add(fields, compute)

    def affine(self, channels: int, side: int = 1, name: str = "affine_", disabled: bool = False) -> Net:
        gamma, beta = self.draw(1, channels, side, side) + 1, self.draw(1, channels, side, side)
        fields = text(name) + tensor(np.concatenate([gamma.ravel(), beta.ravel()]))
        fields += alias(*gamma.shape) * 2 + integer(side > 1)
        fields += b"01"[disabled : disabled + 1] if name == "affine_2" else b""
        return self.add(fields, lambda x: x if disabled else x * gamma + beta)

    def norm(self, channels: int, name: str = "bn_con2") -> Net:
        gamma, beta, mean = (self.draw(1, channels, 1, 1) + shift for shift in (1, 0, 0))
        variance = self.draw(1, channels, 1, 1) ** 2
        fields = text(name) + tensor(np.concatenate([gamma.ravel(), beta.ravel()])) + alias(*gamma.shape) * 2
        fields += tensor(mean) + tensor(variance) + integer(100) + integer(1000) + MULTIPLIERS + real(1e-4)
        return self.add(fields, lambda x: gamma * (x - mean) / np.sqrt(variance.astype(float) + 1e-4) + beta)

    def relu(self, name: str = "relu_", disabled: bool = False) -> Net:
        fields = text(name) + (b"01"[disabled : disabled + 1] if name == "relu_2" else b"")
        return self.add(fields, lambda x: x if disabled else np.maximum(x, 0))

    def pool(self, kind: str, window: int, stride: int, pad: int = 0) -> Net:
        fields = text(f"{kind}_pool_2") + shape(window, window, stride, stride, pad, pad)

        def compute(x: np.ndarray) -> np.ndarray:
            edges = ((0, 0), (0, 0), (pad, pad), (pad, pad))
            padded = np.pad(x, edges, constant_values=np.nan)
            side = window or x.shape[2]
            windows = sliding_window_view(padded, (side, side), axis=(2, 3))[:, :, ::stride, ::stride]
            return (np.nanmax if kind == "max" else np.nanmean)(windows, axis=(4, 5))

        return self.add(fields, compute)

    def dense(self, inputs: int, outputs: int, name: str = "fc_2", mode: int = 1) -> Net:
        weights, bias = self.draw(inputs, outputs), self.draw(outputs) * (mode == 0)
        values = np.concatenate([weights.ravel(), bias]) if mode == 0 else weights
        fields = text(name) + integer(outputs) + integer(inputs) + tensor(values) + alias(inputs, outputs, 1, 1)
        fields += (alias(1, outputs, 1, 1) if mode == 0 else alias(0, 0, 0, 0)) + integer(mode) + MULTIPLIERS
        fields += b"1" if name == "fc_3" else b""
        return self.add(fields, lambda x: (x.reshape(len(x), -1) @ weights + bias)[:, :, None, None])

    def tag(self, number: int) -> Net:
        self.layers.append(("tag", number))
        return self

    def skip(self, number: int) -> Net:
        self.layers.append(("skip", number))
        return self

    def add_prev(self, number: int) -> Net:
        self.layers.append(("add", number))
        return self

    def to_bytes(self, *, tail: bytes = b"000" + EMPTY * 3) -> bytes:
        """Serialize the network as dlib does."""
        versions = [1 if isinstance(layer, tuple) and layer[0] != "add" else 2 for layer in self.layers]
        head = integer(1) + text("loss_metric_2") + real(0.04) + real(0.6)
        head += b"".join(map(integer, [*versions[:0:-1], 3]))
        head += text("input_rgb_image_sized") + b"".join(real(float(np.float32(each))) for each in MEAN)
        head += shape(self.size, self.size)
        body = b""
        for position, layer in enumerate(self.layers):
            if isinstance(layer, tuple) and layer[0] != "add":
                continue
            body += (layer.fields if isinstance(layer, Layer) else text("add_prev_")) + tail
            body += integer(1) if position == 0 else b""
        return head + body

    def compute(self, x: np.ndarray) -> np.ndarray:
        """Compute (N, 3, size, size) -> (N, D)."""
        tags: dict[int, np.ndarray] = {}
        for layer in self.layers:
            if isinstance(layer, Layer):
                x = layer.compute(x)
            elif layer[0] == "tag":
                tags[layer[1]] = x
            elif layer[0] == "skip":
                x = tags[layer[1]]
            else:
                other = tags[layer[1]]
                total = np.zeros(np.maximum(x.shape, other.shape))
                for part in (x, other):
                    total[tuple(slice(side) for side in part.shape)] += part
                x = total
        return x.reshape(len(x), -1)


def small_net() -> Net:
    """A residual network of every layer: 21 x 21 to 6 numbers, padded in channels and in rows and columns."""
    net = Net(21).con(3, 4, 5, 2, 0).affine(4).relu().pool("max", 3, 2)  # 4 x 4
    net.tag(1).con(4, 4, 3, 1, 1).affine(4).relu().con(4, 4, 3, 1, 1).affine(4).add_prev(1).relu()
    net.tag(1).con(4, 8, 3, 2, 0).affine(8).relu().con(8, 8, 3, 1, 1).affine(8)  # 1 x 1
    net.tag(2).skip(1).pool("avg", 2, 2).add_prev(2).relu()  # 2 x 2
    return net.pool("avg", 0, 1).dense(8, 6)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change, insert, delete, repeat or cut a few bytes; mostly among the first, where the structure is."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), rng.choice([200, len(data)])))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind == 3:
            del data[at : at + rng.randint(1, 9)]
        else:
            data[at : at + 4] = data[at : at + 4] * 2
    return bytes(data)
