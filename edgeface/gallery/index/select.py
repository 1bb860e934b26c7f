"""Approximate scores and their bounds in, exactly the best templates out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.gallery.index.table import Table
from edgeface.recognize.index import Hits

__all__ = ["best", "contenders", "exact_hits"]

_BLOCK_ROWS = 2048


def contenders(scores: NDArray[np.float32], bound: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """Rows that may be among the `k` best, and all that are.

    A row is out only if `k` others are better even where their scores are too high, and its own too low, by all
    that the bound allows.

    Parameters
    ----------
    scores : (N,) float32
        Approximate.
    bound : (N,) or () float
        How far at most each is from the truth.
    k
        From 1 to N.
    """
    lowest = scores - bound
    kth = lowest.max() if k == 1 else np.partition(lowest, len(lowest) - k)[len(lowest) - k]
    return np.flatnonzero(scores + bound >= kth)


def exact_hits(table: Table, rows: NDArray[np.intp], probe: NDArray[np.float32], k: int) -> Hits:
    """The `k` best of these rows: cosine similarity in float64, equal scores by rising id.

    Parameters
    ----------
    table
        Whose rows they are.
    rows : (M,) intp
        What to compare.
    probe : (D,) float32
        Of any length but 0.
    k
        How many to keep at most.
    """
    wanted = probe.astype(np.float64)
    wanted /= np.sqrt(np.sum(wanted * wanted))
    scores = np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        vectors = table.vectors[rows[part]].astype(np.float64)
        # Summed along each row by itself: a score does not depend on which others are computed with it.
        lengths = np.sqrt(np.sum(vectors * vectors, axis=1))
        scores[part] = np.sum(vectors * wanted, axis=1) / lengths
    scores = scores.clip(-1.0, 1.0)
    return best(table.ids[rows], table.person_ids[rows], scores, k)


def best(ids: NDArray[np.int64], person_ids: NDArray[np.int64], scores: NDArray[np.float64], k: int) -> Hits:
    """The `k` best of these templates, in the order of `Hits`."""
    order = np.lexsort((ids, -scores))[:k]
    return Hits(ids[order], person_ids[order], scores[order])
