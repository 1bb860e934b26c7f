"""Distances of labelled pairs in, error rates as functions of the threshold out.

Everywhere here a pair is accepted when its distance is strictly below the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Roc", "accept_rates", "exact_roc"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Roc:
    """Error rates over rising thresholds.

    Attributes
    ----------
    thresholds : (T,) float64
        Rising; the first accepts nothing.
    far, tar : (T,) float64
        Share of the impostor and of the genuine pairs accepted: false and true accept rate (VAL).
    """

    thresholds: Doubles
    far: Doubles
    tar: Doubles

    @property
    def auc(self) -> float:
        """Area under TAR over FAR by trapezoids, from (0, 0) to (1, 1).

        For the exact curve it is the probability that a genuine pair is closer than an impostor pair, ties
        counted half (Hanley and McNeil, Radiology 143, 1982).
        """
        far, tar = self._path()
        return float(np.sum(np.diff(far) * (tar[1:] + tar[:-1]) / 2.0))

    @property
    def eer(self) -> float:
        """Equal error rate: where the polyline through the points meets FAR = 1 - TAR.

        The root of 1 - x - TAR(x) that davidsandberg/facenet finds with `brentq` on the interpolated curve
        (`validate_on_lfw.py`), solved on its segment; exact also where the curve is vertical.
        """
        far, tar = self._path()
        excess = 1.0 - far - tar  # falls from 1 to -1
        after = int(np.argmax(excess <= 0.0))
        share = excess[after - 1] / (excess[after - 1] - excess[after])
        return float(far[after - 1] + share * (far[after] - far[after - 1]))

    def tar_at(self, far: float) -> float:
        """Largest true accept rate among the points whose false accept rate is at most `far`."""
        return float(self.tar[np.searchsorted(self.far, far + 1e-12, side="right") - 1])

    def _path(self) -> tuple[Doubles, Doubles]:
        """With the ends that every curve has, also one whose thresholds stop before everything is accepted."""
        return np.concatenate([[0.0], self.far, [1.0]]), np.concatenate([[0.0], self.tar, [1.0]])


def exact_roc(distances: NDArray[np.floating[Any]], same: NDArray[np.bool_]) -> Roc:
    """Build the curve that changes at every distinct distance.

    Parameters
    ----------
    distances : (P,) float
        Of the pairs; finite.
    same : (P,) bool
        Which are genuine; there must be both kinds.
    """
    thresholds = np.append(np.unique(distances), np.inf).astype(np.float64)
    far, tar = accept_rates(distances, same, thresholds)
    return Roc(thresholds, far, tar)


def accept_rates(
    distances: NDArray[np.floating[Any]], same: NDArray[np.bool_], thresholds: Doubles
) -> tuple[Doubles, Doubles]:
    """Measure the false and the true accept rate at each threshold: two arrays (T,) float64."""
    impostor, genuine = np.sort(distances[~same]), np.sort(distances[same])
    return (
        np.searchsorted(impostor, thresholds, side="left") / len(impostor),
        np.searchsorted(genuine, thresholds, side="left") / len(genuine),
    )
