"""Embeddings of known and unknown people in, open-set identification error rates out, as NIST FRTE defines them.

A *mated* probe shows somebody who is enrolled, a *non-mated* one somebody who is not. With N people enrolled, at
a threshold T (Grother, Ngan, Hanaoka, *Face Recognition Technology Evaluation, Part 2: Identification*, NISTIR 8271,
section "Metrics"):

FPIR(N, T)
    share of the non-mated probes whose best candidate scores above T;
FNIR(N, R, T)
    share of the mated probes whose own person is not among the best R candidates, or not above T.

Rank-1 is ``1 - FNIR(N, 1, -inf)``: the closed-set hit rate. Identification is FNIR with R = 1. NIST accepts at or
above T; here, as everywhere in edgeface, strictly above. Where somebody else scores as high as the own person, that
counts against the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.recognize.metrics import Metric, pairwise
from edgeface.recognize.open_set import SearchThreshold, threshold_from_probes
from edgeface.stats import clopper_pearson

__all__ = ["FPIRS", "RANKS", "Operating", "Searches", "Split", "operate_at", "search", "split_people"]

FPIRS = (0.01, 0.001, 0.1)
"""Wanted false positive identification rates; the first is the one a single threshold is told for."""

RANKS = (1, 5, 10, 20)

Doubles = NDArray[np.float64]
Rows = NDArray[np.intp]

_BLOCK = 512
"""Probes compared with all enrolled people at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Who is enrolled, and with which images the gallery is searched.

    Attributes
    ----------
    people : (N,) intp
        Whose image each row is.
    enrolled : (P,) intp
        One row a person of several images, ordered by person.
    mated : (M,) intp
        The other rows of those people.
    nonmated : (U,) intp
        Rows of people of whom there is only one.
    """

    people: Rows
    enrolled: Rows
    mated: Rows
    nonmated: Rows


def split_people(people: Rows, names: Sequence[str], *, seed: int = 0) -> Split:
    """Enrol everybody of whom there are several images with one of them; whoever has only one stays unknown.

    Which image is enrolled follows from the seed and the person's name alone (SHA-256), so that it does not change
    with who else is there or with a version of a random generator.

    Parameters
    ----------
    people : (N,) intp
        Sorted rows of `names`.
    names
        Of the people.
    seed
        Another one enrols other images.

    Raises
    ------
    InputError
        If nobody has several images, or everybody has.
    """
    labels, starts, counts = np.unique(people, return_index=True, return_counts=True)
    several = counts > 1
    if not several.any() or several.all():
        raise InputError(
            f"expected people with several images, to enrol, and people with one, who stay unknown; found "
            f"{int(several.sum())} of the former and {int((~several).sum())} of the latter"
        )
    enrolled = np.array(
        [
            start + _draw(names[label], count, seed)
            for label, start, count in zip(labels[several], starts[several], counts[several], strict=True)
        ],
        np.intp,
    )
    known = np.isin(people, labels[several])
    known[enrolled] = False
    return Split(people, enrolled, np.flatnonzero(known), starts[~several].astype(np.intp))


@dataclass(frozen=True, slots=True, eq=False)
class Searches:
    """What searching a gallery found.

    Attributes
    ----------
    mate_score, mate_rank : (M,)
        Of every mated probe: its own person's score, and how many people score at least as much, itself counted.
    rival, rival_score : (M,)
        The best of the others, as a row of ``Split.enrolled``, and its score.
    candidate, candidate_score : (U,)
        Of every non-mated probe: the best person of all, and the score.
    """

    mate_score: Doubles
    mate_rank: Rows
    rival: Rows
    rival_score: Doubles
    candidate: Rows
    candidate_score: Doubles

    def hit_rate(self, rank: int) -> float:
        """Share of the mated probes whose own person is among the best `rank`: the CMC curve."""
        return float(np.mean(self.mate_rank <= rank))

    def fpir(self, threshold: float) -> float:
        """Share of the non-mated probes that are taken for somebody."""
        return float(np.mean(self.candidate_score > threshold))

    def fnir(self, threshold: float, *, rank: int = 1) -> float:
        """Share of the mated probes that are not recognised."""
        return float(np.mean(~((self.mate_rank <= rank) & (self.mate_score > threshold))))

    def det(self) -> tuple[Doubles, Doubles]:
        """FPIR and FNIR (rank 1) at every threshold that a non-mated probe can be accepted at, falling."""
        thresholds = np.unique(self.candidate_score)[::-1]
        accepted = np.searchsorted(np.sort(self.candidate_score), thresholds, side="right")
        fpir = 1.0 - accepted / len(self.candidate_score)
        found = np.sort(self.mate_score[self.mate_rank == 1])
        missed = len(self.mate_score) - len(found) + np.searchsorted(found, thresholds, side="right")
        return fpir, missed / len(self.mate_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operating:
    """Error rates at the threshold of one wanted FPIR, with 95 % Clopper-Pearson intervals.

    The intervals take the probes for independent; several of one person are not, so the truth is a little wider.

    Attributes
    ----------
    threshold
        The wanted FPIR, the one met, and the score between them.
    fnir, fnir_interval
        There.
    """

    threshold: SearchThreshold
    fnir: float
    fnir_interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "wanted": self.threshold.fpir,
            "threshold": self.threshold.value,
            "fpir": self.threshold.expected_fpir,
            "fpir_interval": list(self.threshold.fpir_interval),
            "fnir": self.fnir,
            "fnir_interval": list(self.fnir_interval),
            "supported": self.threshold.supported,
        }


def search(vectors: NDArray[np.float32], split: Split) -> Searches:
    """Compare every probe with everybody enrolled, by cosine similarity in float64.

    Parameters
    ----------
    vectors : (N, D) float32
        Rows as in ``split.people``.
    split
        Who is enrolled.

    Raises
    ------
    InputError
        If an embedding has no direction.
    """
    gallery = vectors[split.enrolled]
    own = np.searchsorted(split.people[split.enrolled], split.people[split.mated])
    mate_score, rival_score = np.empty((2, len(split.mated)))
    mate_rank, rival = np.empty((2, len(split.mated)), np.intp)
    for block in _blocks(len(split.mated)):
        scores = pairwise(Metric.cosine, vectors[split.mated[block]], gallery)
        rows = np.arange(len(scores))
        mate_score[block] = scores[rows, own[block]]
        mate_rank[block] = (scores >= mate_score[block, None]).sum(axis=1)
        scores[rows, own[block]] = -np.inf
        rival[block] = scores.argmax(axis=1)
        rival_score[block] = scores[rows, rival[block]]
    candidate_score = np.empty(len(split.nonmated))
    candidate = np.empty(len(split.nonmated), np.intp)
    for block in _blocks(len(split.nonmated)):
        scores = pairwise(Metric.cosine, vectors[split.nonmated[block]], gallery)
        candidate[block] = scores.argmax(axis=1)
        candidate_score[block] = scores.max(axis=1)
    return Searches(mate_score, mate_rank, rival, rival_score, candidate, candidate_score)


def operate_at(searches: Searches, fpir: float, *, gallery_size: int, contract_id: str) -> Operating:
    """Error rates where FPIR is no more than wanted.

    Parameters
    ----------
    searches
        What was found.
    fpir
        Wanted.
    gallery_size
        People enrolled, with one template each.
    contract_id
        Of the embeddings.

    Raises
    ------
    InputError
        If `fpir` is not between 0 and 1.
    """
    threshold = threshold_from_probes(
        searches.candidate_score, fpir=fpir, gallery_size=gallery_size, contract_id=contract_id
    )
    missed, mated = searches.fnir(threshold.value), len(searches.mate_score)
    return Operating(
        threshold=threshold, fnir=missed, fnir_interval=clopper_pearson(round(missed * mated), mated)
    )


def _draw(name: str, count: int, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % int(count)


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)]
