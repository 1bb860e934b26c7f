"""One result in, the plots of its latencies out: histogram, timeline, percentiles, throughput over time."""

from __future__ import annotations

import numpy as np

from edgeface.bench.result import BenchmarkResult
from edgeface.bench.run.samples import Samples
from edgeface.drawing import Axes, Axis, Plot, Shape, Words, counted, linear, logarithmic, nines, rounded
from edgeface.drawing.axes import Doubles
from edgeface.drawing.plot import Anchor
from edgeface.stats import QUANTILES, LatencyKey

__all__ = ["run_plots"]

_BINS = 60
_POINTS = 300
"""Most points or columns along a time axis."""
_MARKED: tuple[LatencyKey, ...] = ("p50", "p90", "p99")
_ANCHORS: tuple[Anchor, ...] = ("end", "start", "start")
"""Of their names, which would else lie on each other."""
_SHOWN = 0.995
"""Percentile at which the histogram ends at the latest, or outliers would leave no room for the rest."""


def run_plots(result: BenchmarkResult) -> list[Plot]:
    """Everything that the raw samples show; nothing if there are fewer than two."""
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
    frame = Axes(
        linear("latency (ms)", low, high), linear("queries", 0, float(heights.max()) * 1.08, wanted=4)
    )
    marked = [key for key in _MARKED if result.latency_ms.get(key, np.inf) <= high]
    beyond = int((latencies > high).sum())
    return Plot(
        "Latency",
        frame,
        (
            frame.columns(edges, heights, "fill"),
            *(frame.upright(result.latency_ms[key], "cut") for key in marked),
        ),
        words=tuple(
            frame.words(
                result.latency_ms[key],
                heights.max() * 1.08,
                key,
                # Far left there is the y axis.
                anchor=anchor if frame.x.place(result.latency_ms[key]) > 0.1 else "start",
                lift=3,
                kind="strong",
            )
            for key, anchor in zip(marked, _ANCHORS, strict=False)
        ),
        note=f"{counted(beyond, 'query', 'queries')} of {len(latencies):,} beyond, up to {rounded(latencies.max())} ms"
        if beyond
        else "",
    )


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
        "Latency over time",
        frame,
        shapes,
        legend=(("", f"median of about {each}"), ("range", "shortest to longest")),
    )


def _throughput(result: BenchmarkResult, samples: Samples) -> Plot:
    ends = np.sort(samples.ends_s)
    windows = int(np.clip(samples.count // 10, 2, 40))
    edges = np.linspace(0, float(ends[-1]), windows + 1)
    rates = np.histogram(ends, edges)[0] * samples.items / np.diff(edges)
    frame = Axes(
        linear("time (s)", 0, float(edges[-1])),
        linear("items a second", 0, float(rates.max()) * 1.15, wanted=4),
    )
    shapes: list[Shape] = [frame.columns(edges, rates, "fill")]
    words: list[Words] = []
    if result.throughput_fps is not None:
        shapes.append(frame.level(result.throughput_fps, "cut"))
        words.append(
            frame.words(
                float(edges[-1]),
                result.throughput_fps,
                rounded(result.throughput_fps),
                anchor="end",
                kind="strong",
                lift=5,
            )
        )
    return Plot("Throughput over time", frame, tuple(shapes), tuple(words))


def _latency_axis(latencies: Doubles) -> Axis:
    """From a little below the shortest to the longest; of ratios where the longest is far away."""
    low, high = float(latencies.min()), float(latencies.max())
    if low > 0 and high > 4 * low:
        return logarithmic("latency (ms)", low * 0.9, high * 1.05)
    return linear("latency (ms)", max(0.0, low - 0.1 * (high - low)), high * 1.02)
