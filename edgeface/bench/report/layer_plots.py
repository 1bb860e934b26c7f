"""A result's layers and peak in, the roofline plot and the layers that take the most time out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeface.bench.machine.peak import Peak
from edgeface.bench.machine.reading import known
from edgeface.bench.result import BenchmarkResult
from edgeface.bench.schema import Layer
from edgeface.drawing import Axes, Plot, Words, logarithmic, rounded

__all__ = ["LayerRow", "roofline_plot", "top_layers"]

_TOP = 12


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer in the table: `share` of the time of all layers, `rate` in GFLOP/s."""

    layer: Layer
    share: float
    rate: float | None


def top_layers(result: BenchmarkResult) -> list[LayerRow]:
    """The layers that take the most time, longest first."""
    total = sum(layer.ms for layer in result.layers) or 1.0
    longest = sorted(result.layers, key=lambda layer: -layer.ms)[:_TOP]
    return [LayerRow(layer, layer.ms / total, _rate(layer)) for layer in longest]


def roofline_plot(result: BenchmarkResult) -> Plot | None:
    """Each layer's GFLOP/s over its operations a byte, below what the machine attains.

    Williams, Waterman and Patterson, "Roofline", CACM 52 (2009), 65-76. The area of a dot is its share of the time.
    None if there are no layers with work, or no peak.
    """
    layers = [layer for layer in result.layers if layer.gflops and layer.bytes and layer.ms > 0]
    bandwidth = known(result.peak.bandwidth) if result.peak else None
    if result.peak is None or bandwidth is None or not layers:
        return None
    roofs = _roofs(result.peak, layers)
    rates = np.array([_rate(layer) or 0.0 for layer in layers])
    intensities = np.array([(layer.gflops or 0.0) * 1e9 / (layer.bytes or 1) for layer in layers])
    top = max([*roofs.values(), float(rates.max())])
    slope = bandwidth.gb_per_second
    ridge = top / slope
    frame = Axes(
        logarithmic(
            "operations a byte",
            min(float(intensities.min()) / 1.5, ridge / 10),
            max(float(intensities.max()), ridge) * 3,
        ),
        logarithmic("GFLOP/s", max(float(rates.min()) / 2, top / 1e4), top * 1.6),
    )
    least, most = _ends(frame)
    shapes, words = [], []
    for precision, roof in roofs.items():
        bend = roof / slope
        shapes.append(frame.line([least, bend, most], [least * slope, roof, roof], "cut"))
        label = f"{precision}: {rounded(roof, 3)} GFLOP/s"
        words.append(Words(frame.width - 2, float(frame.down(roof)) - 5, label, "end", "strong"))
    total = sum(layer.ms for layer in result.layers)
    for layer, intensity, rate in zip(layers, intensities, rates, strict=True):
        radius = max(2.0, 40 * (layer.ms / total / np.pi) ** 0.5)
        title = (
            f"{layer.name}: {layer.kind}, {rounded(layer.ms, 3)} ms, {rounded(rate, 3)} GFLOP/s, "
            f"{rounded(intensity, 3)} operations a byte"
        )
        shapes += frame.dots([intensity], [rate], "dot", radius=round(radius, 1), titles=[title])
    return Plot(
        "Roofline",
        frame,
        tuple(shapes),
        tuple(words),
        legend=(("dot", "a layer; its area is its share of the time"), ("cut", "attainable, measured here")),
        note=f"Below the slope memory sets the limit, {rounded(slope, 3)} GB/s; a layer whose data stay in the cache "
        "may lie above it.",
    )


def _ends(frame: Axes) -> tuple[float, float]:
    """Values at the two ends of the x axis: its scale is linear in the logarithm."""
    at_one, at_ten = frame.x.scale(np.array([1.0, 10.0]))
    decade = float(at_ten - at_one)
    return 10 ** (-float(at_one) / decade), 10 ** ((1 - float(at_one)) / decade)


def _roofs(peak: Peak, layers: list[Layer]) -> dict[str, float]:
    """Attainable GFLOP/s of the precisions that layers executed in; of all, if none of those was measured."""
    found: dict[str, float] = {
        name: rate for name in map(str, peak.products) if (rate := peak.gflops_per_second(name)) is not None
    }
    executed = {layer.precision for layer in layers}
    return {name: rate for name, rate in found.items() if name in executed} or found


def _rate(layer: Layer) -> float | None:
    return None if layer.gflops is None or layer.ms <= 0 else layer.gflops / layer.ms * 1e3
