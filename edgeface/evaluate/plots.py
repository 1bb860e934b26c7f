"""Draw the curves and histograms of an evaluation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeface.drawing import Axes, Plot, linear, logarithmic, percent, probit
from edgeface.drawing.axes import Doubles
from edgeface.evaluate.identification import Searches
from edgeface.evaluate.protocol import Roc

__all__ = ["cmc_plot", "det_plot", "histogram_plot", "identification_plot", "roc_plot", "scores_plot"]

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
    low, high = _least_rate(roc) / 2, 0.5
    frame = Axes(
        probit("false accept rate", low, high, _DET_RATES, words=percent),
        probit("false reject rate", low, high, _DET_RATES, words=percent),
    )
    inside = (roc.far <= high) & (1 - roc.tar <= high)
    if not inside.any():  # the whole curve lies outside
        inside[:] = True
    far, frr = (np.clip(rates[inside], low, high) for rates in (roc.far, 1 - roc.tar))
    return Plot("DET", frame, (frame.line([low, high], [low, high], "guide"), frame.line(far, frr, "curve")))


def histogram_plot(distances: Doubles, same: NDArray[np.bool_], threshold: float, *, metric: str) -> Plot:
    """Draw the histograms of the distances of genuine and impostor pairs, in 60 bins."""
    edges = np.linspace(min(0.0, float(distances.min())), float(distances.max()), _BINS + 1)
    genuine, impostor = (np.histogram(distances[kind], edges)[0] / kind.sum() for kind in (same, ~same))
    top = max(float(genuine.max()), float(impostor.max()))
    frame = Axes(
        linear(f"{metric} distance", float(edges[0]), float(edges[-1])),
        linear("share of pairs", 0.0, top, wanted=4, words=percent),
    )
    return Plot(
        "Distances",
        frame,
        (
            frame.columns(edges, genuine, "good"),
            frame.columns(edges, impostor, "bad"),
            frame.upright(threshold, "cut"),
        ),
        legend=(("good", "genuine"), ("bad", "impostor"), ("cut", f"threshold {threshold:.3f}")),
    )


def identification_plot(searches: Searches) -> Plot:
    """Draw FNIR over FPIR, both as normal deviates: the open-set DET curve."""
    fpir, fnir = searches.det()
    low = 0.5 / max(len(searches.candidate_score), len(searches.mate_score))
    frame = Axes(
        probit("false positive identification rate", low, 0.6, _DET_RATES, words=percent),
        probit("false negative identification rate", low, 0.6, _DET_RATES, words=percent),
    )
    inside = (fpir <= 0.6) & (fnir <= 0.6)
    if not inside.any():  # the whole curve lies outside
        inside[:] = True
    curve = frame.line(np.clip(fpir[inside], low, 0.6), np.clip(fnir[inside], low, 0.6), "curve")
    return Plot("DET, open set", frame, (frame.line([low, 0.6], [low, 0.6], "guide"), curve))


def cmc_plot(searches: Searches) -> Plot:
    """Draw the closed-set hit rate over the rank."""
    ranks = np.arange(1, _DEEPEST_RANK + 1)
    rates = np.array([searches.hit_rate(int(rank)) for rank in ranks])
    bottom = min(0.9, np.floor(float(rates[0]) * 10) / 10)
    frame = Axes(
        logarithmic("rank", 1, _DEEPEST_RANK),
        linear("hit rate, closed set", bottom, 1, words=percent),
    )
    return Plot("CMC", frame, (frame.line(ranks, rates, "curve"),))


def scores_plot(searches: Searches, threshold: float) -> Plot:
    """Draw the histograms of the scores of mated and non-mated probes, in 60 bins."""
    own, other = searches.mate_score, searches.candidate_score
    both = np.concatenate([own, other])
    edges = np.linspace(float(both.min()), float(both.max()) + 1e-9, _BINS + 1)
    mated, nonmated = (np.histogram(kind, edges)[0] / len(kind) for kind in (own, other))
    frame = Axes(
        linear("cosine similarity", float(edges[0]), float(edges[-1])),
        linear(
            "share of probes", 0.0, max(float(mated.max()), float(nonmated.max())), wanted=4, words=percent
        ),
    )
    return Plot(
        "Scores",
        frame,
        (
            frame.columns(edges, mated, "good"),
            frame.columns(edges, nonmated, "bad"),
            frame.upright(threshold, "cut"),
        ),
        legend=(
            ("good", "mated, own person"),
            ("bad", "non-mated, best candidate"),
            ("cut", f"threshold {threshold:.3f}"),
        ),
    )


def _least_rate(roc: Roc) -> float:
    """Return the smallest error rate that the data can show: one pair of the rarer kind."""
    steps = np.concatenate([np.diff(roc.far), np.diff(roc.tar)])
    return float(min(steps[steps > 1e-12].min(), 0.01))
