"""Describe the layers of Inception-ResNet-v1 once, for several interpreters.

The architecture is davidsandberg/facenet's `src/models/inception_resnet_v1.py`: 132 convolutions (111 with batch
norm, 21 residual ones with a bias), one fully connected layer, 23.5 million values. `walk` hands the layers, in
order, to an interpreter: one writes a TensorFlow graph, one runs them in numpy.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, TypeVar

from edgeface.errors import InputError

SCOPE = "InceptionResnetV1"
INPUT_SIZE = 160
SMALLEST_SIZE = 75
BATCH_NORM_EPSILON = 0.001

Padding = Literal["SAME", "VALID"]
T = TypeVar("T")


class Convolution(NamedTuple):
    """A convolution, then batch norm (`normalized`) or a bias, then Relu; its name ends with the kernel's size."""

    name: str
    channels: int
    stride: int = 1
    padding: Padding = "SAME"
    normalized: bool = True
    relu: bool = True

    @property
    def kernel(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.name.rpartition("_")[2].split("x")
        return int(height), int(width)


class Interpreter(Protocol[T]):
    """The meaning of each layer; `T` stands for a tensor of (N, H, W, C)."""

    def convolution(self, layer: Convolution, x: T) -> T:
        """See `Convolution`."""

    def max_pool(self, name: str, x: T) -> T:
        """Maximum over 3x3 with stride 2, no padding."""

    def concatenate(self, name: str, xs: list[T]) -> T:
        """Join along the channels."""

    def residual(self, name: str, x: T, update: T, scale: float, *, relu: bool) -> T:
        """``x + scale * update``, then Relu."""

    def head(self, name: str, x: T, embedding_size: int) -> T:
        """Global average pool, dropout, fully connected layer with batch norm, to unit length."""


def walk(net: Interpreter[T], x: T, embedding_size: int) -> T:
    """Hand every layer to an interpreter.

    `x` stands for the (N, H, W, 3) input, RGB, standardised; `embedding_size` is 512 for the published models.
    """
    x = net.convolution(Convolution("Conv2d_1a_3x3", 32, stride=2, padding="VALID"), x)
    x = net.convolution(Convolution("Conv2d_2a_3x3", 32, padding="VALID"), x)
    x = net.convolution(Convolution("Conv2d_2b_3x3", 64), x)
    x = net.max_pool("MaxPool_3a_3x3", x)
    x = net.convolution(Convolution("Conv2d_3b_1x1", 80, padding="VALID"), x)
    x = net.convolution(Convolution("Conv2d_4a_3x3", 192, padding="VALID"), x)
    x = net.convolution(Convolution("Conv2d_4b_3x3", 256, stride=2, padding="VALID"), x)
    for index in range(1, 6):
        x = _block35(net, f"Repeat/block35_{index}", x)
    x = _reduction_a(net, "Mixed_6a", x)
    for index in range(1, 11):
        x = _block17(net, f"Repeat_1/block17_{index}", x)
    x = _reduction_b(net, "Mixed_7a", x)
    for index in range(1, 6):
        x = _block8(net, f"Repeat_2/block8_{index}", x, scale=0.20, relu=True)
    x = _block8(net, "Block8", x, scale=1.0, relu=False)
    return net.head("Logits", x, embedding_size)


def cells_of(pixels: int) -> int:
    """Return the rows (or columns) of the last feature map for images of so many; the head averages over all of them.

    Raises InputError for fewer than 75 pixels, of which nothing would be left.

    Examples
    --------
    >>> cells_of(160), cells_of(512)
    (3, 14)
    """
    if pixels < SMALLEST_SIZE:
        raise InputError(
            f"size: expected at least {SMALLEST_SIZE} x {SMALLEST_SIZE} pixels for {SCOPE}, found a side of {pixels}"
        )
    pixels = _strided(pixels) - 2  # Conv2d_1a, Conv2d_2a
    pixels = _strided(pixels) - 2  # MaxPool_3a, Conv2d_4a
    return _strided(_strided(_strided(pixels)))  # Conv2d_4b, Mixed_6a, Mixed_7a


def _strided(pixels: int) -> int:
    return (pixels - 3) // 2 + 1


def _block35(net: Interpreter[T], name: str, x: T) -> T:
    narrow = _branch(net, f"{name}/Branch_0", x, ("1x1", 32))
    middle = _branch(net, f"{name}/Branch_1", x, ("0a_1x1", 32), ("0b_3x3", 32))
    wide = _branch(net, f"{name}/Branch_2", x, ("0a_1x1", 32), ("0b_3x3", 32), ("0c_3x3", 32))
    return _residual(net, name, x, [narrow, middle, wide], channels=256, scale=0.17, relu=True)


def _block17(net: Interpreter[T], name: str, x: T) -> T:
    narrow = _branch(net, f"{name}/Branch_0", x, ("1x1", 128))
    wide = _branch(net, f"{name}/Branch_1", x, ("0a_1x1", 128), ("0b_1x7", 128), ("0c_7x1", 128))
    return _residual(net, name, x, [narrow, wide], channels=896, scale=0.10, relu=True)


def _block8(net: Interpreter[T], name: str, x: T, *, scale: float, relu: bool) -> T:
    narrow = _branch(net, f"{name}/Branch_0", x, ("1x1", 192))
    wide = _branch(net, f"{name}/Branch_1", x, ("0a_1x1", 192), ("0b_1x3", 192), ("0c_3x1", 192))
    return _residual(net, name, x, [narrow, wide], channels=1792, scale=scale, relu=relu)


def _residual(net: Interpreter[T], name: str, x: T, branches: list[T], *, channels: int, scale: float, relu: bool) -> T:
    joined = net.concatenate(f"{name}/concat", branches)
    update = net.convolution(Convolution(f"{name}/Conv2d_1x1", channels, normalized=False, relu=False), joined)
    return net.residual(name, x, update, scale, relu=relu)


def _reduction_a(net: Interpreter[T], name: str, x: T) -> T:
    strided = _branch(net, f"{name}/Branch_0", x, ("1a_3x3", 384))
    deep = _branch(net, f"{name}/Branch_1", x, ("0a_1x1", 192), ("0b_3x3", 192), ("1a_3x3", 256))
    return net.concatenate(f"{name}/concat", [strided, deep, net.max_pool(f"{name}/Branch_2/MaxPool_1a_3x3", x)])


def _reduction_b(net: Interpreter[T], name: str, x: T) -> T:
    first = _branch(net, f"{name}/Branch_0", x, ("0a_1x1", 256), ("1a_3x3", 384))
    second = _branch(net, f"{name}/Branch_1", x, ("0a_1x1", 256), ("1a_3x3", 256))
    third = _branch(net, f"{name}/Branch_2", x, ("0a_1x1", 256), ("0b_3x3", 256), ("1a_3x3", 256))
    pooled = net.max_pool(f"{name}/Branch_3/MaxPool_1a_3x3", x)
    return net.concatenate(f"{name}/concat", [first, second, third, pooled])


def _branch(net: Interpreter[T], name: str, x: T, *layers: tuple[str, int]) -> T:
    """Hand over convolutions in a row, by name and channels; `1a` has stride 2 and no padding."""
    for layer, channels in layers:
        strided = layer.startswith("1a")
        convolution = Convolution(
            f"{name}/Conv2d_{layer}", channels, stride=2 if strided else 1, padding="VALID" if strided else "SAME"
        )
        x = net.convolution(convolution, x)
    return x
