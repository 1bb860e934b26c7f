"""Describe the layers of Inception-ResNet-v1 once, for several interpreters.

The architecture is davidsandberg/facenet's `src/models/inception_resnet_v1.py`: 132 convolutions (111 with batch
norm, 21 residual ones with a bias), one fully connected layer, 23.5 million values. `walk` hands the layers, in
order, to an interpreter: one writes a TensorFlow graph, one runs them in numpy.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeVar

SCOPE = "InceptionResnetV1"
INPUT_SIZE = 160
BATCH_NORM_EPSILON = 0.001

Padding = Literal["SAME", "VALID"]
T = TypeVar("T")


class Interpreter(Protocol[T]):
    """The meaning of each layer; `T` stands for a tensor of (N, H, W, C)."""

    def convolution(
        self,
        name: str,
        x: T,
        channels: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        normalized: bool = True,
        relu: bool = True,
    ) -> T:
        """Convolution, then batch norm (`normalized`) or a bias, then Relu."""

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

    `x` stands for the (N, 160, 160, 3) input, RGB, standardised; `embedding_size` is 512 for the published models.
    """
    x = net.convolution("Conv2d_1a_3x3", x, 32, (3, 3), stride=2, padding="VALID")
    x = net.convolution("Conv2d_2a_3x3", x, 32, (3, 3), padding="VALID")
    x = net.convolution("Conv2d_2b_3x3", x, 64, (3, 3))
    x = net.max_pool("MaxPool_3a_3x3", x)
    x = net.convolution("Conv2d_3b_1x1", x, 80, (1, 1), padding="VALID")
    x = net.convolution("Conv2d_4a_3x3", x, 192, (3, 3), padding="VALID")
    x = net.convolution("Conv2d_4b_3x3", x, 256, (3, 3), stride=2, padding="VALID")
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


def _block35(net: Interpreter[T], name: str, x: T) -> T:
    narrow = net.convolution(f"{name}/Branch_0/Conv2d_1x1", x, 32, (1, 1))
    middle = net.convolution(f"{name}/Branch_1/Conv2d_0a_1x1", x, 32, (1, 1))
    middle = net.convolution(f"{name}/Branch_1/Conv2d_0b_3x3", middle, 32, (3, 3))
    wide = net.convolution(f"{name}/Branch_2/Conv2d_0a_1x1", x, 32, (1, 1))
    wide = net.convolution(f"{name}/Branch_2/Conv2d_0b_3x3", wide, 32, (3, 3))
    wide = net.convolution(f"{name}/Branch_2/Conv2d_0c_3x3", wide, 32, (3, 3))
    return _residual(net, name, x, [narrow, middle, wide], channels=256, scale=0.17, relu=True)


def _block17(net: Interpreter[T], name: str, x: T) -> T:
    narrow = net.convolution(f"{name}/Branch_0/Conv2d_1x1", x, 128, (1, 1))
    wide = net.convolution(f"{name}/Branch_1/Conv2d_0a_1x1", x, 128, (1, 1))
    wide = net.convolution(f"{name}/Branch_1/Conv2d_0b_1x7", wide, 128, (1, 7))
    wide = net.convolution(f"{name}/Branch_1/Conv2d_0c_7x1", wide, 128, (7, 1))
    return _residual(net, name, x, [narrow, wide], channels=896, scale=0.10, relu=True)


def _block8(net: Interpreter[T], name: str, x: T, *, scale: float, relu: bool) -> T:
    narrow = net.convolution(f"{name}/Branch_0/Conv2d_1x1", x, 192, (1, 1))
    wide = net.convolution(f"{name}/Branch_1/Conv2d_0a_1x1", x, 192, (1, 1))
    wide = net.convolution(f"{name}/Branch_1/Conv2d_0b_1x3", wide, 192, (1, 3))
    wide = net.convolution(f"{name}/Branch_1/Conv2d_0c_3x1", wide, 192, (3, 1))
    return _residual(net, name, x, [narrow, wide], channels=1792, scale=scale, relu=relu)


def _residual(net: Interpreter[T], name: str, x: T, branches: list[T], *, channels: int, scale: float, relu: bool) -> T:
    joined = net.concatenate(f"{name}/concat", branches)
    update = net.convolution(f"{name}/Conv2d_1x1", joined, channels, (1, 1), normalized=False, relu=False)
    return net.residual(name, x, update, scale, relu=relu)


def _reduction_a(net: Interpreter[T], name: str, x: T) -> T:
    strided = net.convolution(f"{name}/Branch_0/Conv2d_1a_3x3", x, 384, (3, 3), stride=2, padding="VALID")
    deep = net.convolution(f"{name}/Branch_1/Conv2d_0a_1x1", x, 192, (1, 1))
    deep = net.convolution(f"{name}/Branch_1/Conv2d_0b_3x3", deep, 192, (3, 3))
    deep = net.convolution(f"{name}/Branch_1/Conv2d_1a_3x3", deep, 256, (3, 3), stride=2, padding="VALID")
    return net.concatenate(f"{name}/concat", [strided, deep, net.max_pool(f"{name}/Branch_2/MaxPool_1a_3x3", x)])


def _reduction_b(net: Interpreter[T], name: str, x: T) -> T:
    first = net.convolution(f"{name}/Branch_0/Conv2d_0a_1x1", x, 256, (1, 1))
    first = net.convolution(f"{name}/Branch_0/Conv2d_1a_3x3", first, 384, (3, 3), stride=2, padding="VALID")
    second = net.convolution(f"{name}/Branch_1/Conv2d_0a_1x1", x, 256, (1, 1))
    second = net.convolution(f"{name}/Branch_1/Conv2d_1a_3x3", second, 256, (3, 3), stride=2, padding="VALID")
    third = net.convolution(f"{name}/Branch_2/Conv2d_0a_1x1", x, 256, (1, 1))
    third = net.convolution(f"{name}/Branch_2/Conv2d_0b_3x3", third, 256, (3, 3))
    third = net.convolution(f"{name}/Branch_2/Conv2d_1a_3x3", third, 256, (3, 3), stride=2, padding="VALID")
    pooled = net.max_pool(f"{name}/Branch_3/MaxPool_1a_3x3", x)
    return net.concatenate(f"{name}/concat", [first, second, third, pooled])
