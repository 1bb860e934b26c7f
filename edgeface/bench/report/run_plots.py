"""Plot one result: latencies, throughput over time, and the roofline of its layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeface.bench.machine.peak import Peak
from edgeface.bench.reading import known
from edgeface.bench.result import BenchmarkResult, Samples
from edgeface.bench.schema import LayerTiming
from edgeface.drawing import Axes, Axis, Plot, Shape, Words, counted, linear, logarithmic, nines, rounded
from edgeface.drawing.axes import Doubles
from edgeface.drawing.plot import Anchor
from edgeface.stats import QUANTILES, LatencyKey

_BINS = 60
_POINTS = 300
"""Most points along a time axis."""
_MARKED: tuple[LatencyKey, ...] = ("p50", "p90", "p99")
_ANCHORS: tuple[Anchor, ...] = ("end", "start", "start")
"""Anchors of their labels, which would otherwise overlap."""
_SHOWN = 0.995
"""Share of the queries that the histogram shows at most; outliers would leave no room for the rest."""


def run_plots(result: BenchmarkResult) -> list[Plot]:
    """Plot the raw samples, if there are at least two."""
    if result.samples is None or result.samples.count < 2:
        return []
    return [
        _histogram(result, result.samples.latencies_ms),
        _percentiles(result, result.samples.latencies_ms),
        _timeline(result.samples),
        _throughput(result, result.samples),
    ]


def _histogram(result: BenchmarkResult, latencies: Doubles) -> Plot:
    middle, wide, last = np.quantile(latencies, (0.5, 0.95, _SHOWN))
    low, high = float(latencies.min()), float(min(last, middle + 4 * (wide - middle)))
    high = max(high, low * 1.001)
    edges = np.linspace(low, high, _BINS + 1)
    heights = np.histogram(latencies, edges)[0]
    frame = Axes(linear("latency (ms)", low, high), linear("queries", 0, float(heights.max()) * 1.08, wanted=4))
    marked = [key for key in _MARKED if result.latency_ms.get(key, np.inf) <= high]
    shapes, words = [frame.columns(edges, heights, "fill")], []
    for key, anchor in zip(marked, _ANCHORS, strict=False):
        value = result.latency_ms[key]
        shapes.append(frame.upright(value, "cut"))
        side = anchor if frame.x.place(value) > 0.1 else "start"  # far left there is the y axis
        words.append(frame.words(value, heights.max() * 1.08, key, anchor=side, lift=3, kind="strong"))
    note = ""
    if beyond := int((latencies > high).sum()):
        note = (
            f"{counted(beyond, 'query', 'queries')} of {len(latencies):,} beyond, up to {rounded(latencies.max())} ms"
        )
    return Plot("Latency", frame, tuple(shapes), tuple(words), note=note)


def _percentiles(result: BenchmarkResult, latencies: Doubles) -> Plot:
    ordered = np.sort(latencies)
    shares = (np.arange(len(ordered)) + 0.5) / len(ordered)
    frame = Axes(nines("percentile", float(min(shares[-1], 0.99999))), _latency_axis(ordered))
    whiskers = tuple(
        frame.pillar(share, low, high, "cut", title=f"{key}: {rounded(low)} to {rounded(high)} ms")
        for key, share in QUANTILES.items()
        for low, high in [result.latency_interval_ms.get(key, (None, None))]
        if low is not None and high is not None and share <= shares[-1]
    )
    return Plot(
        "Percentiles",
        frame,
        (frame.line(shares, ordered, "curve"), *whiskers),
        legend=(("cut", "95 % interval"),) if whiskers else (),
    )


def _timeline(samples: Samples) -> Plot:
    times, latencies = samples.starts_ns * 1e-9, samples.latencies_ms
    frame = Axes(linear("time (s)", 0, float(times[-1])), _latency_axis(latencies))
    if len(times) <= _POINTS:
        return Plot("Latency over time", frame, frame.dots(times, latencies, "fill", radius=2))
    bins = np.array_split(np.arange(len(times)), _POINTS)
    middle, low, high = np.array([np.quantile(latencies[each], (0.5, 0, 1)) for each in bins]).T
    at = np.array([times[each].mean() for each in bins])
    shapes: tuple[Shape, ...] = (frame.band(at, low, high, "range"), frame.line(at, middle, "curve"))
    each = counted(len(times) // _POINTS, "query", "queries")
    return Plot(
        "Latency over time", frame, shapes, legend=(("", f"median of about {each}"), ("range", "shortest to longest"))
    )


def _throughput(result: BenchmarkResult, samples: Samples) -> Plot:
    ends = np.sort(samples.ends_s)
    windows = int(np.clip(samples.count // 10, 2, 40))
    edges = np.linspace(0, float(ends[-1]), windows + 1)
    rates = np.histogram(ends, edges)[0] * samples.items / np.diff(edges)
    frame = Axes(
        linear("time (s)", 0, float(edges[-1])), linear("items per second", 0, float(rates.max()) * 1.15, wanted=4)
    )
    shapes: list[Shape] = [frame.columns(edges, rates, "fill")]
    words: list[Words] = []
    if result.throughput_fps is not None:
        shapes.append(frame.level(result.throughput_fps, "cut"))
        last, rate = float(edges[-1]), result.throughput_fps
        words.append(frame.words(last, rate, rounded(rate), anchor="end", kind="strong", lift=5))
    return Plot("Throughput over time", frame, tuple(shapes), tuple(words))


def _latency_axis(latencies: Doubles) -> Axis:
    """Build an axis from a little below the shortest to the longest; logarithmic if they are far apart."""
    low, high = float(latencies.min()), float(latencies.max())
    if low > 0 and high > 4 * low:
        return logarithmic("latency (ms)", low * 0.9, high * 1.05)
    return linear("latency (ms)", max(0.0, low - 0.1 * (high - low)), high * 1.02)


_TOP = 12


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A row of the layer table: `share` of the time of all layers, `rate` in GFLOP/s."""

    layer: LayerTiming
    share: float
    rate: float | None


def top_layers(result: BenchmarkResult) -> list[LayerRow]:
    """Return the layers that take the most time, longest first."""
    total = sum(layer.ms for layer in result.layers) or 1.0
    longest = sorted(result.layers, key=lambda layer: -layer.ms)[:_TOP]
    return [LayerRow(layer, layer.ms / total, _rate(layer)) for layer in longest]


def roofline_plot(result: BenchmarkResult) -> Plot | None:
    """Plot each layer's GFLOP/s over its operations per byte, below what the machine attains.

    Williams, Waterman and Patterson, "Roofline", CACM 52 (2009), 65-76. The area of a dot is its share of the time.
    None if no layer has work, or the peak is not known.
    """
    layers = [layer for layer in result.layers if layer.gflops and layer.bytes and layer.ms > 0]
    bandwidth = known(result.peak.bandwidth) if result.peak else None
    if result.peak is None or bandwidth is None or not layers:
        return None
    roofs = _roofs(result.peak, layers)
    rates = np.array([_rate(layer) or 0.0 for layer in layers])
    intensities = np.array([(layer.gflops or 0.0) * 1e9 / (layer.bytes or 1) for layer in layers])
    top, slope = max([*roofs.values(), float(rates.max())]), bandwidth.gb_per_second
    ridge = top / slope
    least = min(float(intensities.min()) / 1.5, ridge / 10)
    most = max(float(intensities.max()), ridge) * 3
    frame = Axes(
        logarithmic("operations per byte", least, most),
        logarithmic("GFLOP/s", max(float(rates.min()) / 2, top / 1e4), top * 1.6),
    )
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
            f"{rounded(intensity, 3)} operations per byte"
        )
        shapes += frame.dots([intensity], [rate], "dot", radius=round(radius, 1), titles=[title])
    return Plot(
        "Roofline",
        frame,
        tuple(shapes),
        tuple(words),
        legend=(("dot", "a layer; area: share of the time"), ("cut", "attainable, measured here")),
        note=f"On the slope the memory is the limit, {rounded(slope, 3)} GB/s; a layer whose data stay in the "
        "cache may be above it.",
    )


def _roofs(peak: Peak, layers: list[LayerTiming]) -> dict[str, float]:
    """Return the attainable GFLOP/s of the precisions that layers executed in; of all if none of those is known."""
    found: dict[str, float] = {
        name: rate for name in map(str, peak.products) if (rate := peak.gflops_per_second(name)) is not None
    }
    executed = {layer.precision for layer in layers}
    return {name: rate for name, rate in found.items() if name in executed} or found


def _rate(layer: LayerTiming) -> float | None:
    return None if layer.gflops is None or layer.ms <= 0 else layer.gflops / layer.ms * 1e3
