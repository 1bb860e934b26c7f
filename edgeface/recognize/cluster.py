"""Embeddings of unknown people in, a label a person out: DBSCAN and Chinese Whispers on one graph of neighbours.

Two faces are neighbours when their cosine similarity is above a threshold. The similarities are computed in blocks
of rows, and only the pairs above the threshold are kept: memory grows with the neighbours, not with N squared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, InputError
from edgeface.model.embedding import Embeddings, require_same_contract
from edgeface.recognize.metrics import Metric
from edgeface.recognize.threshold import Threshold

__all__ = ["NOBODY", "Clusters", "chinese_whispers", "dbscan"]

NOBODY = -1
"""Label of a face that belongs to no cluster."""

_BLOCK_VALUES = 1 << 22
"""Similarities held at a time: 16 MiB of float32."""
_ROUNDS = 100

Labels = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Who is with whom.

    Attributes
    ----------
    labels : (N,) intp
        0, 1, ... in the order of each cluster's first face; `NOBODY` for a face that is in none.
    contract_id
        Of the embeddings.
    threshold
        Cosine similarity above which two faces were neighbours.
    """

    labels: Labels
    contract_id: str
    threshold: float

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return int(self.labels.max(initial=NOBODY)) + 1

    def members(self, label: int) -> Labels:
        """Rows of one cluster, or with `NOBODY` of those in none."""
        return np.flatnonzero(self.labels == label)


def dbscan(embeddings: Embeddings, threshold: Threshold | float, *, min_samples: int = 2) -> Clusters:
    """Density-based clustering (Ester, Kriegel, Sander, Xu, KDD 1996) with cosine similarity.

    A face with at least `min_samples` neighbours, itself counted, is a core; cores that are neighbours are one
    person, and a face next to a core joins it: the earliest cluster, if there are several. It chains: two people
    become one if a single row of in-between faces links them, so that its threshold has to be stricter than that
    of `chinese_whispers`.

    Parameters
    ----------
    embeddings
        (N, D) of one contract.
    threshold
        Calibrated for the same contract with metric cosine, or a cosine similarity.
    min_samples
        1: every face is in a cluster, and the clusters are the connected components.

    Returns
    -------
    Clusters
        The same as ``sklearn.cluster.DBSCAN(eps=1 - threshold, metric="cosine")``, but for pairs exactly at the
        threshold, which are no neighbours here.

    Raises
    ------
    ContractError
        If the threshold belongs to another contract.
    InputError
        If the threshold is no similarity, or `min_samples` is not positive.
    """
    if min_samples < 1:
        raise InputError(f"min_samples: expected 1 or more, found {min_samples}")
    value = _similarity(threshold, embeddings)
    graph = _neighbours(embeddings.vectors, value)
    core = graph.degrees + 1 >= min_samples
    component = _components(graph, core)
    labels = np.where(core, component, len(core))
    # A border face takes the lowest component of its cores; a component is named by its first core.
    inside = core[graph.others]
    np.minimum.at(labels, graph.rows[inside], labels[graph.others[inside]])
    return Clusters(_renumber(np.where(labels < len(core), labels, NOBODY)), embeddings.contract_id, value)


def chinese_whispers(
    embeddings: Embeddings, threshold: Threshold | float, *, min_samples: int = 1, seed: int = 0
) -> Clusters:
    """Cluster a graph by local majority (Biemann, TextGraphs 2006): the usual choice for photo collections.

    Every face begins alone. In each round every face, in random order, joins the cluster that its neighbours weigh
    most for, by the sum of their similarities; of equals it takes the earliest. It ends when nothing moves, or
    after 100 rounds. It does not chain as `dbscan` does: a few false neighbours are outvoted.

    Parameters
    ----------
    embeddings
        (N, D) of one contract.
    threshold
        Calibrated for the same contract with metric cosine, or a cosine similarity.
    min_samples
        Smaller clusters are dissolved: their faces are nobody's.
    seed
        Of the order; the same gives the same clusters.

    Raises
    ------
    ContractError
        If the threshold belongs to another contract.
    InputError
        If the threshold is no similarity, or `min_samples` is not positive.
    """
    if min_samples < 1:
        raise InputError(f"min_samples: expected 1 or more, found {min_samples}")
    value = _similarity(threshold, embeddings)
    graph = _neighbours(embeddings.vectors, value)
    labels = np.arange(len(embeddings))
    rng = np.random.default_rng(seed)
    connected = np.flatnonzero(graph.degrees)
    for _ in range(_ROUNDS):
        moved = False
        for row in rng.permutation(connected):
            around = slice(graph.starts[row], graph.starts[row + 1])
            candidates, votes = np.unique(labels[graph.others[around]], return_inverse=True)
            winner = candidates[np.bincount(votes, graph.weights[around]).argmax()]
            moved |= winner != labels[row]
            labels[row] = winner
        if not moved:
            break
    sizes = np.bincount(labels, minlength=len(labels))
    return Clusters(
        _renumber(np.where(sizes[labels] >= min_samples, labels, NOBODY)), embeddings.contract_id, value
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """Neighbours in compressed rows: those of face i are ``others[starts[i]:starts[i + 1]]``, rising, without i."""

    starts: Labels
    rows: NDArray[np.int32]
    others: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def degrees(self) -> Labels:
        return np.diff(self.starts)


def _neighbours(vectors: NDArray[np.float32], threshold: float) -> _Graph:
    count = len(vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise InputError("clustering: expected embeddings with a direction, found one of length 0")
    unit = vectors / lengths
    rows, others, weights = [], [], []
    height = max(1, _BLOCK_VALUES // max(1, count))
    for start in range(0, count, height):
        scores = unit[start : start + height] @ unit.T
        scores[
            np.arange(len(scores)), np.arange(start, start + len(scores))
        ] = -np.inf  # nobody's own neighbour
        row, other = np.nonzero(scores > threshold)
        rows.append((row + start).astype(np.int32))
        others.append(other.astype(np.int32))
        weights.append(scores[row, other])
    row_of = np.concatenate(rows or [np.empty(0, np.int32)])
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=count))]).astype(np.intp)
    return _Graph(
        starts,
        row_of,
        np.concatenate(others or [np.empty(0, np.int32)]),
        np.concatenate(weights or [np.empty(0, np.float32)]),
    )


def _components(graph: _Graph, core: NDArray[np.bool_]) -> Labels:
    """Lowest row that each core is connected with through cores.

    Labels are passed on to neighbours and shortened by pointer jumping until nothing changes (Shiloach and Vishkin,
    Journal of Algorithms 3, 1982), a number of rounds that is logarithmic in the longest chain.
    """
    labels = np.arange(len(core))
    inside = core[graph.rows] & core[graph.others]
    here, there = graph.rows[inside], graph.others[inside]
    while True:
        before = labels.copy()
        low = np.minimum(labels[here], labels[there])
        np.minimum.at(labels, labels[here], low)
        np.minimum.at(labels, here, low)
        while not np.array_equal(shorter := labels[labels], labels):
            labels = shorter
        if np.array_equal(before, labels):
            return labels


def _renumber(labels: Labels) -> Labels:
    """Number clusters by their first member."""
    kept = labels != NOBODY
    _, first, inverse = np.unique(labels[kept], return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.intp)
    ranks[np.argsort(first)] = np.arange(len(first))
    numbered = np.full(len(labels), NOBODY, np.intp)
    numbered[kept] = ranks[inverse]
    return numbered


def _similarity(threshold: Threshold | float, embeddings: Embeddings) -> float:
    if isinstance(threshold, Threshold):
        require_same_contract(embeddings.contract_id, threshold.contract_id, what="clustering")
        if threshold.metric is not Metric.cosine:
            raise ContractError(
                f"clustering: expected a threshold of metric cosine, found one of {threshold.metric.value}; "
                "calibrate one with --metric cosine"
            )
        return threshold.value
    if not -1 <= threshold <= 1:
        raise InputError(f"clustering: expected a cosine similarity from -1 to 1, found {threshold:g}")
    return float(threshold)
