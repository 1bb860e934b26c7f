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
_SCALES = {
    "cosine": (-1.0, 1.0),
    "cosine-distance": (0.0, 2.0),
    "squared-l2": (0.0, 4.0),
    "arccos": (0.0, 1.0),
    "euclidean": (0.0, np.inf),
}


class Metric(str, Enum):
    """How two embeddings are compared. All but ``euclidean`` are of their directions: the lengths do not matter.

    ``cosine``: similarity ``a.b / (|a| |b|)``, in [-1, 1]. ``cosine-distance``: 1 - cosine, in [0, 2].
    ``squared-l2``: ``|a/|a| - b/|b||^2``, in [0, 4] (FaceNet, Schroff et al. 2015, equation 1, whose embeddings have
    length 1; those of other models are normalised first). ``arccos``: angle as a share of a half turn,
    ``arccos(cosine) / pi``, in [0, 1]; distance metric 1 of davidsandberg/facenet (`facenet.py`, `distance`), where
    float32 rounding past a cosine of 1 gives NaN: here the cosine is clipped. ``euclidean``: ``|a - b|`` of the
    embeddings as the model gives them, from 0; dlib's rule is 0.6 on this scale.
    """

    cosine = "cosine"
    cosine_distance = "cosine-distance"
    squared_l2 = "squared-l2"
    arccos = "arccos"
    euclidean = "euclidean"

    @property
    def is_similarity(self) -> bool:
        """Whether a larger score means more alike; the others are distances."""
        return self is Metric.cosine

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest score there can be."""
        return _SCALES[self.value]

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return {"cosine": "cosine similarity", "euclidean": "Euclidean distance"}.get(
            self.value, self.value.replace("-", " ")
        )

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
        If the metric is not ``euclidean``, and an embedding has length 0 or is not finite.

    Examples
    --------
    >>> a, b = np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])
    >>> [float(paired(metric, a, b)[0]) for metric in (Metric.euclidean, Metric.squared_l2)]
    [5.0, 2.0]
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
        one, two = _prepared(metric, left), _prepared(metric, right)
        if metric in _OF_DIFFERENCES:
            difference = one - two
            scores[start : start + rows] = np.einsum("nd,nd->n", difference, difference)
        else:
            scores[start : start + rows] = _from_cosine(metric, np.einsum("nd,nd->n", one, two))
    return np.sqrt(scores, out=scores) if metric is Metric.euclidean else scores


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
        If the metric is not ``euclidean``, and an embedding has length 0 or is not finite.
    """
    if np.ndim(a) != 2 or np.ndim(b) != 2 or np.shape(a)[1] != np.shape(b)[1]:
        raise ContractError(f"expected arrays (N, D) and (M, D) of one length D, found {np.shape(a)} and {np.shape(b)}")
    scores = np.empty((len(a), len(b)))
    right = _prepared(metric, b)
    right_squares = np.einsum("md,md->m", right, right) if metric in _OF_DIFFERENCES else None
    rows = max(1, _BLOCK_VALUES // max(1, right.shape[1], len(right)))
    for start in range(0, len(a), rows):
        left = _prepared(metric, a[start : start + rows])
        out = np.matmul(left, right.T, out=scores[start : start + rows])
        if right_squares is None:
            _from_cosine(metric, out)
            continue
        # |a-b|^2 = |a|^2 + |b|^2 - 2 a.b; in float64 what cancels near 0 is of the order 1e-16.
        out *= -2.0
        out += np.einsum("nd,nd->n", left, left)[:, None] + right_squares
        np.maximum(out, 0.0, out=out)
    return np.sqrt(scores, out=scores) if metric is Metric.euclidean else scores


_OF_DIFFERENCES = (Metric.squared_l2, Metric.euclidean)


def _prepared(metric: Metric, vectors: Floats) -> Doubles:
    return np.asarray(vectors, np.float64) if metric is Metric.euclidean else unit_rows(vectors)


def unit_rows(vectors: Floats) -> Doubles:
    """Scale each row of (N, D) to length 1; raise InputError, which names the row, if a length is 0 or not finite."""
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
