"""Work, times and attainable peaks in, what limits each layer and how much of its limit it reaches out."""

from __future__ import annotations

from typing import Literal

from edgeface.bench.fact import Frozen

__all__ = ["Bound", "LayerPoint", "Roofline"]

Bound = Literal["compute", "memory"]


class LayerPoint(Frozen):
    """One operation as the runtime executed it: a point in the roofline plot.

    Attributes
    ----------
    name, kind
        As the runtime names them; ``Convolution``, ``FullyConnected``, ``Pooling``, ``Reorder``.
    operations
        The model's operations that it computes: a convolution with the bias and activation fused into it.
    precision
        It was executed in.
    milliseconds
        Median of several inferences.
    gflops
        10^9 operations in Open Model Zoo's way of counting, so that pooling and activations have some.
    bytes
        Weights, inputs and outputs as the runtime stores them, each moved once.
    intensity
        Operations a byte: the plot's horizontal axis.
    gflops_per_second
        The plot's vertical axis.
    attainable_gflops_per_second
        The roof above this intensity.
    share
        Least possible time over measured time, 0 to about 1; data that stay in a cache may exceed 1.
    bound
        Whether arithmetic or memory sets that least time.
    """

    name: str
    kind: str
    operations: tuple[str, ...]
    precision: str
    milliseconds: float
    gflops: float
    bytes: int
    intensity: float
    gflops_per_second: float
    attainable_gflops_per_second: float
    share: float
    bound: Bound


class Roofline(Frozen):
    """A model under its roof.

    Attributes
    ----------
    layers
        In order of execution; what takes no time is not there.
    milliseconds
        Sum of the layers' times.
    gflops
        10^9 operations of one inference, 2 x MAC.
    gflops_per_second
        `gflops` over `milliseconds`.
    efficiency
        Time that the multiplications would take at the attainable peak of their precisions, over
        `milliseconds`. With one precision: `gflops_per_second` over that peak.
    roofs
        10^9 operations a second by the precisions that the layers were executed in.
    gb_per_second
        The slope of the roof.
    unmatched
        Operations of the model that cost something and belong to no executed layer; their work is in `gflops`
        and in no layer.
    """

    layers: tuple[LayerPoint, ...]
    milliseconds: float
    gflops: float
    gflops_per_second: float
    efficiency: float
    roofs: dict[str, float]
    gb_per_second: float
    unmatched: tuple[str, ...]
