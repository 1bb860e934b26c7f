"""Work, times and attainable peaks in, what limits each layer and how much of its limit it reaches out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from edgeface.bench.machine.peak import Peak
from edgeface.bench.machine.reading import Frozen, known
from edgeface.bench.run.executed import ExecutedLayer, assign_work
from edgeface.bench.run.layers import attainable_seconds
from edgeface.errors import InputError
from edgeface.model.flops import LayerWork, Work

__all__ = ["Bound", "LayerPoint", "Roofline", "attainable", "roof", "roofline"]

_EIGHT_BIT = ("i8", "u8", "int8", "uint8")

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
        Operations a byte: the plot's horizontal axis; 0 for a layer that only moves data.
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
        `milliseconds`. With one precision: `gflops_per_second` over that peak. None: a peak is not known.
    roofs
        10^9 operations a second by the precisions that the layers were executed in.
    gb_per_second
        The slope of the roof; None where memory was not measured, and then no layer is bound by it.
    unmatched
        Operations of the model that cost something and belong to no executed layer; their work is in `gflops`
        and in no layer.
    """

    layers: tuple[LayerPoint, ...]
    milliseconds: float
    gflops: float
    gflops_per_second: float
    efficiency: float | None
    roofs: dict[str, float]
    gb_per_second: float | None
    unmatched: tuple[str, ...]


def roof(peak: Peak, precision: str) -> float:
    """10^9 operations a second attainable in a precision, in the runtime's or in the peak's words.

    Where that precision has none, such as i32, the peak of f32 stands in: such layers multiply no matrices.

    Raises
    ------
    InputError
        If not even f32 was measured.
    """
    name = "i8" if precision in _EIGHT_BIT else precision
    value = peak.gflops_per_second(name) or peak.gflops_per_second("f32")
    if value is None:
        raise InputError(
            f"the peak has no figure for {precision!r} and none for 'f32', which stands in; measure_peak() has both"
        )
    return value


def attainable(peak: Peak, precision: str, intensity: float) -> float:
    """10^9 operations a second below the roof: min(peak, intensity x bandwidth).

    Source: Williams, Waterman, Patterson, "Roofline", CACM 52 (4), 2009.

    Parameters
    ----------
    peak
        Of the device.
    precision
        Executed.
    intensity
        Operations a byte.
    """
    bandwidth = known(peak.bandwidth)
    flat = roof(peak, precision)
    return flat if bandwidth is None else min(flat, intensity * bandwidth.gb_per_second)


def roofline(work: Work, executed: Sequence[ExecutedLayer], peak: Peak) -> Roofline:
    """Put a model under the roof of its device.

    Parameters
    ----------
    work
        Of the model as it was compiled, the same batch.
    executed
        Of :func:`edgeface.bench.run.executed.time_layers`.
    peak
        Of the same device, streams and threads.

    Raises
    ------
    InputError
        If no layer has a time, or the peak has no figure for f32.
    """
    total = sum(layer.milliseconds for layer in executed)
    if total <= 0:
        raise InputError(
            "no executed layer has a time; compile with {'PERF_COUNT': True} and use time_layers"
        )
    given, unmatched = assign_work(work, executed)
    points = tuple(
        _point(layer, each, peak)
        for layer, each in zip(executed, given, strict=True)
        if layer.milliseconds > 0
    )
    least = attainable_seconds(work, peak, executed, precision="f32")
    bandwidth = known(peak.bandwidth)
    return Roofline(
        layers=points,
        milliseconds=total,
        gflops=work.gflops_mac2,
        gflops_per_second=work.gflops_mac2 / total * 1e3,
        efficiency=None if least is None else least / total * 1e3,
        roofs={
            name: roof(peak, name) for name in sorted({point.precision for point in points if point.gflops})
        },
        gb_per_second=None if bandwidth is None else bandwidth.gb_per_second,
        unmatched=unmatched,
    )


def _point(layer: ExecutedLayer, work: Iterable[LayerWork], peak: Peak) -> LayerPoint:
    gflops = sum(each.flops_omz for each in work) / 1e9
    bandwidth = known(peak.bandwidth)
    computing = gflops / roof(peak, layer.precision) * 1e3
    moving = 0.0 if bandwidth is None else layer.bytes / bandwidth.gb_per_second / 1e6
    intensity = gflops * 1e9 / layer.bytes if layer.bytes else 0.0
    return LayerPoint(
        name=layer.name,
        kind=layer.kind,
        operations=layer.operations,
        precision=layer.precision,
        milliseconds=layer.milliseconds,
        gflops=gflops,
        bytes=layer.bytes,
        intensity=intensity,
        gflops_per_second=gflops / layer.milliseconds * 1e3,
        attainable_gflops_per_second=attainable(peak, layer.precision, intensity),
        share=max(computing, moving) / layer.milliseconds,
        bound="memory" if moving > computing else "compute",
    )
