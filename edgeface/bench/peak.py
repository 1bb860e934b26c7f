"""A device in, what it can attain at most out: operations a second by precision, bytes a second from memory."""

from __future__ import annotations

from typing import Literal

from edgeface.bench.fact import Fact, Frozen, Unknown

__all__ = ["Bandwidth", "Peak", "Precision", "Product"]

Precision = Literal["f32", "bf16", "f16", "i8"]


class Product(Frozen):
    """The fastest matrix product that was found in one precision.

    Attributes
    ----------
    gflops_per_second
        10^9 operations a second, 2 x MAC, sustained; integer operations for ``i8``.
    executed
        What the device really multiplies in, read back from the compiled model.
    kernel
        The runtime's name of the implementation.
    shape
        (m, k, n) of [m, k] x [k, n].
    milliseconds
        Median time of one product.
    """

    gflops_per_second: float
    executed: str
    kernel: str
    shape: tuple[int, int, int]
    milliseconds: float


class Bandwidth(Frozen):
    """What moves between memory and cores.

    Attributes
    ----------
    gb_per_second
        10^9 bytes a second, the better of copy and triad.
    copy_gb_per_second, triad_gb_per_second
        a = b, and a = b + s c (McCalpin's STREAM), each byte read or written counted once.
    bytes
        Of one array; far larger than the last cache.
    threads
        That moved it.
    """

    gb_per_second: float
    copy_gb_per_second: float
    triad_gb_per_second: float
    bytes: int
    threads: int


class Peak(Frozen):
    """What a device attained with nothing in its way.

    Attributes
    ----------
    device, full_name
        OpenVINO's name and the maker's.
    openvino
        Version.
    streams, threads
        That it was measured with.
    products
        By precision; for one that is not to be had, why.
    bandwidth
        Of the memory that the device works on.
    seconds
        That the measurement took.
    """

    device: str
    full_name: str
    openvino: str
    streams: int
    threads: Fact[int]
    products: dict[Precision, Fact[Product]]
    bandwidth: Fact[Bandwidth]
    seconds: float

    def gflops_per_second(self, precision: str) -> float | None:
        """10^9 operations a second attainable in a precision, or None where it was not measured."""
        product = self.products.get(precision)  # type: ignore[call-overload]
        return None if product is None or isinstance(product, Unknown) else product.gflops_per_second
