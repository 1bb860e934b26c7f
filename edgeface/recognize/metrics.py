"""Compare embeddings, vectorised and in bounded memory.

Scores are computed in float64: float32 is too coarse for distances near 0.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, InputError

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]

_BLOCK_VALUES = 1 << 21
"""Values of one temporary array: 16 MiB of float64, whatever the size of the input."""
_SCALES = {"cosine": (-1.0, 1.0), "cosine-distance": (0.0, 2.0), "squared-l2": (0.0, 4.0), "arccos": (0.0, 1.0)}


class Metric(str, Enum):
    """How two embeddings are compared.

    ``cosine``: similarity ``a.b / (|a| |b|)``, in [-1, 1]. ``cosine-distance``: 1 - cosine, in [0, 2].
    ``squared-l2``: ``sum((a - b)^2)`` (FaceNet, Schroff et al. 2015, equation 1), in [0, 4] for unit vectors.
    ``arccos``: angle as a share of a half turn, ``arccos(cosine) / pi``, in [0, 1]; distance metric 1 of
    davidsandberg/facenet (`facenet.py`, `distance`), where float32 rounding past a cosine of 1 gives NaN: here the
    cosine is clipped.
    """

    cosine = "cosine"
    cosine_distance = "cosine-distance"
    squared_l2 = "squared-l2"
    arccos = "arccos"

    @property
    def is_similarity(self) -> bool:
        """Whether a larger score means more alike; the others are distances."""
        return self is Metric.cosine

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest score of unit vectors."""
        return _SCALES[self.value]

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return "cosine similarity" if self is Metric.cosine else self.value.replace("-", " ")

    def as_distance(self, scores: Doubles) -> Doubles:
        """Turn this metric's scores into numbers of which the smaller is the more alike, and back again."""
        return -scores if self.is_similarity else scores


def paired(metric: Metric, a: Floats, b: Floats) -> Doubles:
    """Compare row i of `a` with row i of `b`.

    Parameters
    ----------
    metric
        What to compute.
    a, b : (N, D) float
        Embeddings.

    Returns
    -------
    (N,) float64
        Scores on the metric's own scale.

    Raises
    ------
    ContractError
        If the shapes differ.
    InputError
        If the metric is of an angle and an embedding has length 0 or is not finite.
    """
    if np.ndim(a) != 2 or np.shape(a) != np.shape(b):
        raise ContractError(
            f"expected two arrays of one shape (N, D), found {np.shape(a)} and {np.shape(b)}; "
            "they come from different models or were not paired"
        )
    rows = max(1, _BLOCK_VALUES // max(1, a.shape[1]))
    scores = np.empty(len(a))
    for start in range(0, len(a), rows):
        left, right = a[start : start + rows], b[start : start + rows]
        if metric is Metric.squared_l2:
            difference = np.asarray(left, np.float64) - np.asarray(right, np.float64)
            scores[start : start + rows] = np.einsum("nd,nd->n", difference, difference)
        else:
            scores[start : start + rows] = _from_cosine(metric, np.einsum("nd,nd->n", _unit(left), _unit(right)))
    return scores


def pairwise(metric: Metric, a: Floats, b: Floats) -> Doubles:
    """Compare every row of `a` with every row of `b`.

    Parameters
    ----------
    metric
        What to compute.
    a, b : (N, D) float, (M, D) float
        Embeddings, for example probes and a gallery.

    Returns
    -------
    (N, M) float64
        Scores on the metric's own scale. Temporaries stay within 16 MiB of float64 and one copy of `b`.

    Raises
    ------
    ContractError
        If the lengths D differ.
    InputError
        If the metric is of an angle and an embedding has length 0 or is not finite.
    """
    if np.ndim(a) != 2 or np.ndim(b) != 2 or np.shape(a)[1] != np.shape(b)[1]:
        raise ContractError(f"expected arrays (N, D) and (M, D) of one length D, found {np.shape(a)} and {np.shape(b)}")
    scores = np.empty((len(a), len(b)))
    squares = metric is Metric.squared_l2
    right = np.asarray(b, np.float64) if squares else _unit(b)
    right_squares = np.einsum("md,md->m", right, right) if squares else None
    rows = max(1, _BLOCK_VALUES // max(1, right.shape[1], len(right)))
    for start in range(0, len(a), rows):
        block = a[start : start + rows]
        out = scores[start : start + rows]
        if right_squares is not None:
            # |a-b|^2 = |a|^2 + |b|^2 - 2 a.b; in float64 what cancels near 0 is of the order 1e-16.
            left = np.asarray(block, np.float64)
            np.matmul(left, right.T, out=out)
            out *= -2.0
            out += np.einsum("nd,nd->n", left, left)[:, None] + right_squares
            np.maximum(out, 0.0, out=out)
        else:
            _from_cosine(metric, np.matmul(_unit(block), right.T, out=out))
    return scores


def _unit(vectors: Floats) -> Doubles:
    doubles = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(doubles, axis=-1, keepdims=True)
    wrong = ~(np.isfinite(lengths) & (lengths > 0))
    if wrong.any():
        raise InputError(
            f"expected nonzero, finite embeddings, found {int(wrong.sum())} of length 0 or not finite, "
            f"the first at row {int(np.flatnonzero(wrong)[0])}"
        )
    return np.asarray(doubles / lengths)


def _from_cosine(metric: Metric, cosines: Doubles) -> Doubles:
    """Turn cosines into scores, in place. Rounding can carry a cosine past 1 by one unit in the last place."""
    np.clip(cosines, -1.0, 1.0, out=cosines)
    if metric is Metric.cosine_distance:
        np.subtract(1.0, cosines, out=cosines)
    elif metric is Metric.arccos:
        np.divide(np.arccos(cosines, out=cosines), np.pi, out=cosines)
    return cosines
