"""Draw the curves and histograms of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgeface.drawing import Axes, Plot, linear, logarithmic, percent, probit
from edgeface.drawing.axes import Doubles
from edgeface.evaluate.identification import Searches
from edgeface.evaluate.protocol import Roc

_BINS = 60
_DEEPEST_RANK = 100
_DET_RATES = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.4)


def roc_plot(roc: Roc) -> Plot:
    """Draw the true accept rate over the false accept rate, the latter on a logarithmic axis."""
    least = _least_rate(roc)
    bottom = min(0.9, np.floor(roc.tar_at(least) * 10) / 10)
    frame = Axes(
        logarithmic("false accept rate", least, 1, words=percent),
        linear("true accept rate (VAL)", bottom, 1, words=percent),
    )
    return Plot("ROC", frame, (frame.line(roc.far, roc.tar, "curve"),))


def det_plot(roc: Roc) -> Plot:
    """Draw the false reject over the false accept rate, both as normal deviates (Martin et al., Eurospeech 1997).

    Normally distributed scores give a straight line; it meets the diagonal at the equal error rate.
    """
    labels = ("false accept rate", "false reject rate")
    return _det("DET", labels, roc.far, 1 - roc.tar, _least_rate(roc) / 2, 0.5)


def resolution_plot(named: Mapping[str, Mapping[int, float]]) -> Plot:
    """Draw accuracies over the resolution of one photo of each pair, a line for each name, in pixels."""
    pixels = sorted({each for accuracies in named.values() for each in accuracies})
    lowest = min(value for accuracies in named.values() for value in accuracies.values())
    frame = Axes(
        logarithmic("pixels of the smaller photo", pixels[0] * 0.9, pixels[-1] * 1.1),
        linear("accuracy", max(0.0, np.floor(lowest * 10) / 10), 1, words=percent),
    )
    shapes = [
        shape
        for (_, accuracies), kind in zip(named.items(), ("curve", "whisker other"), strict=False)
        for shape in (
            frame.line(sorted(accuracies), [accuracies[each] for each in sorted(accuracies)], kind),
            *frame.dots(sorted(accuracies), [accuracies[each] for each in sorted(accuracies)], "dot"),
        )
    ]
    legend = tuple(zip(("curve", "other"), named, strict=False)) if len(named) > 1 else ()
    return Plot("Low resolution", frame, tuple(shapes), legend=legend)


def identification_plot(searches: Searches) -> Plot:
    """Draw FNIR over FPIR, both as normal deviates: the open-set DET curve."""
    low = 0.5 / max(len(searches.candidate_score), len(searches.mate_score))
    labels = ("false positive identification rate", "false negative identification rate")
    return _det("DET, open set", labels, *searches.det(), low, 0.6)


def histogram_plot(distances: Doubles, same: NDArray[np.bool_], threshold: float, *, metric: str) -> Plot:
    """Draw the histograms of the distances of genuine and impostor pairs, in 60 bins."""
    edges = np.linspace(min(0.0, float(distances.min())), float(distances.max()), _BINS + 1)
    return _histograms(
        ("Distances", f"{metric} distance", "share of pairs"),
        edges,
        {"genuine": distances[same], "impostor": distances[~same]},
        threshold,
    )


def scores_plot(searches: Searches, threshold: float) -> Plot:
    """Draw the histograms of the scores of mated and non-mated probes, in 60 bins."""
    own, other = searches.mate_score, searches.candidate_score
    both = np.concatenate([own, other])
    return _histograms(
        ("Scores", "cosine similarity", "share of probes"),
        np.linspace(float(both.min()), float(both.max()) + 1e-9, _BINS + 1),
        {"mated, own person": own, "non-mated, best candidate": other},
        threshold,
    )


def liveness_plot(live: Doubles, attacks: Doubles, threshold: float) -> Plot:
    """Draw the histograms of the scores of live faces and of attacks, each at least one, in 60 bins."""
    return _histograms(
        ("Scores", "probability of a live face", "share of presentations"),
        np.linspace(0.0, 1.0, _BINS + 1),
        {"live faces": live, "attacks": attacks},
        threshold,
    )


def cmc_plot(searches: Searches) -> Plot:
    """Draw the closed-set hit rate over the rank."""
    ranks = np.arange(1, _DEEPEST_RANK + 1)
    rates = np.array([searches.hit_rate(int(rank)) for rank in ranks])
    bottom = min(0.9, np.floor(float(rates[0]) * 10) / 10)
    frame = Axes(logarithmic("rank", 1, _DEEPEST_RANK), linear("hit rate, closed set", bottom, 1, words=percent))
    return Plot("CMC", frame, (frame.line(ranks, rates, "curve"),))


def _det(title: str, labels: tuple[str, str], x: Doubles, y: Doubles, low: float, high: float) -> Plot:
    across, up = (probit(label, low, high, _DET_RATES, words=percent) for label in labels)
    frame = Axes(across, up)
    inside = (x <= high) & (y <= high)
    if not inside.any():  # the whole curve lies outside
        inside[:] = True
    curve = frame.line(np.clip(x[inside], low, high), np.clip(y[inside], low, high), "curve")
    return Plot(title, frame, (frame.line([low, high], [low, high], "guide"), curve))


def _histograms(titles: tuple[str, str, str], edges: Doubles, kinds: dict[str, Doubles], threshold: float) -> Plot:
    """Draw two histograms, the good kind first, as shares of their kind."""
    shares = [np.histogram(values, edges)[0] / len(values) for values in kinds.values()]
    title, x, y = titles
    frame = Axes(
        linear(x, float(edges[0]), float(edges[-1])),
        linear(y, 0.0, float(max(share.max() for share in shares)), wanted=4, words=percent),
    )
    columns = [frame.columns(edges, share, kind) for share, kind in zip(shares, ("good", "bad"), strict=True)]
    legend = [*zip(("good", "bad"), kinds, strict=True), ("cut", f"threshold {threshold:.3f}")]
    return Plot(title, frame, (*columns, frame.upright(threshold, "cut")), legend=tuple(legend))


def _least_rate(roc: Roc) -> float:
    """Return the smallest error rate that the data can show: one pair of the rarer kind."""
    steps = np.concatenate([np.diff(roc.far), np.diff(roc.tar)])
    return float(min(steps[steps > 1e-12].min(), 0.01))
