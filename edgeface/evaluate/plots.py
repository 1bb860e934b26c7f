"""Curves and histograms of an evaluation in, their plots out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeface.drawing import Frame, Plot, linear, logarithmic, percent, probit
from edgeface.drawing.axes import Doubles
from edgeface.evaluate.curves import Roc
from edgeface.evaluate.openset import Searches

__all__ = ["cmc_plot", "det_plot", "histogram_plot", "identification_plot", "roc_plot", "scores_plot"]

_BINS = 60
_DEEPEST_RANK = 100
_DET_RATES = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.4)


def roc_plot(roc: Roc) -> Plot:
    """True over false accept rate, the latter on a logarithmic axis: errors that matter are rare ones."""
    least = _least_rate(roc)
    bottom = min(0.9, np.floor(roc.tar_at(least) * 10) / 10)
    frame = Frame(
        logarithmic("false accept rate", least, 1, words=percent),
        linear("true accept rate (VAL)", bottom, 1, words=percent),
    )
    return Plot("ROC", frame, (frame.line(roc.far, roc.tar, "curve"),))


def det_plot(roc: Roc) -> Plot:
    """False reject over false accept rate, both as normal deviates (Martin et al., Eurospeech 1997).

    Scores that are normally distributed give a straight line; where it meets the diagonal is the equal error rate.
    """
    low, high = _least_rate(roc) / 2, 0.5
    frame = Frame(
        probit("false accept rate", low, high, _DET_RATES, words=percent),
        probit("false reject rate", low, high, _DET_RATES, words=percent),
    )
    inside = (roc.far <= high) & (1 - roc.tar <= high)
    if not inside.any():  # a model that tells nobody apart; the curve lies outside
        inside[:] = True
    far, frr = (np.clip(rates[inside], low, high) for rates in (roc.far, 1 - roc.tar))
    return Plot("DET", frame, (frame.line([low, high], [low, high], "guide"), frame.line(far, frr, "curve")))


def histogram_plot(distances: Doubles, same: NDArray[np.bool_], threshold: float, *, metric: str) -> Plot:
    """Share of the genuine and of the impostor pairs in each of 60 classes of distance."""
    edges = np.linspace(min(0.0, float(distances.min())), float(distances.max()), _BINS + 1)
    genuine, impostor = (np.histogram(distances[kind], edges)[0] / kind.sum() for kind in (same, ~same))
    top = max(float(genuine.max()), float(impostor.max()))
    frame = Frame(
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
        legend=(("good", "one person"), ("bad", "two people"), ("cut", f"threshold {threshold:.3f}")),
    )


def identification_plot(searches: Searches) -> Plot:
    """FNIR over FPIR, both as normal deviates: the DET curve of an open set."""
    fpir, fnir = searches.det()
    low = 0.5 / max(len(searches.candidate_score), len(searches.mate_score))
    frame = Frame(
        probit("false positive identification rate", low, 0.6, _DET_RATES, words=percent),
        probit("false negative identification rate", low, 0.6, _DET_RATES, words=percent),
    )
    inside = (fpir <= 0.6) & (fnir <= 0.6)
    if not inside.any():  # nobody is told apart; the curve lies outside
        inside[:] = True
    curve = frame.line(np.clip(fpir[inside], low, 0.6), np.clip(fnir[inside], low, 0.6), "curve")
    return Plot("DET, open set", frame, (frame.line([low, 0.6], [low, 0.6], "guide"), curve))


def cmc_plot(searches: Searches) -> Plot:
    """Share of the mated probes whose own person is among the best candidates, over how many those are."""
    ranks = np.arange(1, _DEEPEST_RANK + 1)
    rates = np.array([searches.hit_rate(int(rank)) for rank in ranks])
    bottom = min(0.9, np.floor(float(rates[0]) * 10) / 10)
    frame = Frame(
        logarithmic("rank", 1, _DEEPEST_RANK),
        linear("hit rate, closed set", bottom, 1, words=percent),
    )
    return Plot("CMC", frame, (frame.line(ranks, rates, "curve"),))


def scores_plot(searches: Searches, threshold: float) -> Plot:
    """Share of the mated and of the non-mated probes in each of 60 classes of their deciding score."""
    own, other = searches.mate_score, searches.candidate_score
    both = np.concatenate([own, other])
    edges = np.linspace(float(both.min()), float(both.max()) + 1e-9, _BINS + 1)
    mated, nonmated = (np.histogram(kind, edges)[0] / len(kind) for kind in (own, other))
    frame = Frame(
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
            ("good", "own person"),
            ("bad", "best of all, nobody enrolled"),
            ("cut", f"threshold {threshold:.3f}"),
        ),
    )


def _least_rate(roc: Roc) -> float:
    """Smallest error rate the data can show: one pair of the rarer kind."""
    steps = np.concatenate([np.diff(roc.far), np.diff(roc.tar)])
    return float(min(steps[steps > 1e-12].min(), 0.01))
