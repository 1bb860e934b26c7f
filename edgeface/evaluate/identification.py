"""Evaluate 1:N identification in an open set, with the error rates of NIST FRTE.

A *mated* probe shows an enrolled person, a *non-mated* probe a person who is not enrolled. With N people enrolled, at
threshold T (Grother, Ngan, Hanaoka, *Face Recognition Technology Evaluation, Part 2: Identification*, NISTIR 8271,
section "Metrics"):

FPIR(N, T)
    share of the non-mated probes whose best candidate scores above T;
FNIR(N, R, T)
    share of the mated probes whose own person is not among the best R candidates or scores at most T.

Rank-1 is ``1 - FNIR(N, 1, -inf)``, the closed-set hit rate. Identification is FNIR with R = 1. NIST accepts scores at
or above T; edgeface accepts scores strictly above T. A tie between the own person and another one counts as an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.evaluate.faces import CROPS, Embedded, FaceSource, embed_images
from edgeface.evaluate.pairs import images_of_people
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.recognize.metrics import Metric, pairwise
from edgeface.recognize.open_set import SearchThreshold, threshold_from_probes
from edgeface.recognize.threshold import require_rate
from edgeface.runtime.adapter import Flip
from edgeface.stats import clopper_pearson

PROTOCOL = "open-set-1"
"""Name of the protocol (`split_people`, one enrolled image a person, cosine similarity)."""

FPIRS = (0.01, 0.001, 0.1)
"""Default target false positive identification rates."""

RANKS = (1, 5, 10, 20)

Doubles = NDArray[np.float64]
Rows = NDArray[np.intp]
Vectors = NDArray[np.float32]

_BLOCK = 512
"""Probes that are compared with all enrolled people at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Enrolled images and probes, as rows of the embeddings.

    Attributes
    ----------
    people : (N,) intp
        Person of each row.
    enrolled : (P,) intp
        One row of each person who has several, ordered by person.
    mated : (M,) intp
        The other rows of these people.
    nonmated : (U,) intp
        Rows of people who have only one.
    """

    people: Rows
    enrolled: Rows
    mated: Rows
    nonmated: Rows


def split_people(people: Rows, names: Sequence[str], *, seed: int = 0) -> Split:
    """Enrol one image of each person who has several; people with one image are not enrolled.

    The enrolled image depends only on the seed and the person's name (SHA-256), not on other people or on the version
    of a random generator.

    `people` (N,) intp are the person of each row, an index into `names`; ascending.

    Raises
    ------
    InputError
        If no person or every person has several images.
    """
    labels, starts, counts = np.unique(people, return_index=True, return_counts=True)
    several = counts > 1
    if not several.any() or several.all():
        raise InputError(
            "expected both people with several images, who are enrolled, and people with one image, who are not; "
            f"found {int(several.sum())} people with several images and {int((~several).sum())} with one"
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
    """Results of searching the gallery with every probe.

    Attributes
    ----------
    mate_score, mate_rank : (M,)
        For each mated probe: score of its own person, and number of people who score at least as high, itself included.
    candidate, candidate_score : (U,)
        For each non-mated probe: its best candidate, an index into ``Split.enrolled``, and its score.
    """

    mate_score: Doubles
    mate_rank: Rows
    candidate: Rows
    candidate_score: Doubles

    def hit_rate(self, rank: int) -> float:
        """Return the share of mated probes whose own person is among the best `rank` candidates (the CMC curve)."""
        return float(np.mean(self.mate_rank <= rank))

    def fpir(self, threshold: float) -> float:
        """Return the share of non-mated probes whose best candidate scores above the threshold."""
        return float(np.mean(self.candidate_score > threshold))

    def fnir(self, threshold: float, *, rank: int = 1) -> float:
        """Return the share of mated probes whose own person is not among the best `rank` or scores too low."""
        return float(np.mean(~((self.mate_rank <= rank) & (self.mate_score > threshold))))

    def det(self) -> tuple[Doubles, Doubles]:
        """Return FPIR and FNIR (rank 1) at the score of every non-mated probe, thresholds descending."""
        thresholds = np.unique(self.candidate_score)[::-1]
        accepted = np.searchsorted(np.sort(self.candidate_score), thresholds, side="right")
        fpir = 1.0 - accepted / len(self.candidate_score)
        found = np.sort(self.mate_score[self.mate_rank == 1])
        missed = len(self.mate_score) - len(found) + np.searchsorted(found, thresholds, side="right")
        return fpir, missed / len(self.mate_score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operating:
    """Error rates at the threshold for one target FPIR, with 95 % Clopper-Pearson intervals.

    The intervals assume independent probes. Several probes of one person are not independent, so the true intervals are
    a little wider.

    Attributes
    ----------
    threshold
        Target FPIR, measured FPIR and threshold.
    fnir, fnir_interval
        FNIR at that threshold.
    """

    threshold: SearchThreshold
    fnir: float
    fnir_interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
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
    """Compare every probe with all enrolled people by cosine similarity, in float64.

    `vectors` are (N, D) float32, with rows as in ``split.people``.

    Raises
    ------
    InputError
        If an embedding is all zeros.
    """
    gallery = vectors[split.enrolled]
    own = np.searchsorted(split.people[split.enrolled], split.people[split.mated])
    mate_score = np.empty(len(split.mated))
    mate_rank = np.empty(len(split.mated), np.intp)
    for block, scores in _compare(vectors, split.mated, gallery):
        mate_score[block] = scores[np.arange(len(scores)), own[block]]
        mate_rank[block] = (scores >= mate_score[block, None]).sum(axis=1)
    candidate_score = np.empty(len(split.nonmated))
    candidate = np.empty(len(split.nonmated), np.intp)
    for block, scores in _compare(vectors, split.nonmated, gallery):
        candidate[block] = scores.argmax(axis=1)
        candidate_score[block] = scores.max(axis=1)
    return Searches(mate_score, mate_rank, candidate, candidate_score)


def operate_at(searches: Searches, fpir: float, *, gallery_size: int, contract_id: str) -> Operating:
    """Measure the error rates at the threshold for a target FPIR in (0, 1), for one template a person enrolled."""
    threshold = threshold_from_probes(
        searches.candidate_score, fpir=fpir, gallery_size=gallery_size, contract_id=contract_id
    )
    missed, mated = searches.fnir(threshold.value), len(searches.mate_score)
    return Operating(threshold=threshold, fnir=missed, fnir_interval=clopper_pearson(round(missed * mated), mated))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class IdentificationEvaluation:
    """Open-set evaluation of one model.

    Attributes
    ----------
    images, names
        Paths of the images relative to their folder, and names of the people.
    split, searches, embedded
        Enrolled images and probes, the results of the searches, and the embeddings.
    operating
        Error rates at each target FPIR; ``threshold`` in the JSON answer is that of the first.
    seed, flip
        Seed of the split, and how mirror images were used.
    unread
        Photos and folders that cannot be read or are in no person's folder, and why.
    """

    images: tuple[str, ...]
    names: tuple[str, ...]
    split: Split
    searches: Searches
    operating: tuple[Operating, ...]
    embedded: Embedded
    seed: int
    flip: Flip | None
    unread: Mapping[Path, str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types: the answer of `edgeface evaluate identification`."""
        mated = len(self.split.mated)
        hits = round(self.searches.hit_rate(1) * mated)
        return {
            "protocol": PROTOCOL,
            "seed": self.seed,
            "metric": "cosine",
            "enrolled": len(self.split.enrolled),
            "mated": mated,
            "nonmated": len(self.split.nonmated),
            "rank1": hits / mated,
            "rank1_interval": list(clopper_pearson(hits, mated)),
            "cmc": {str(rank): self.searches.hit_rate(rank) for rank in RANKS},
            "fnir": {f"{each.threshold.fpir:g}": each.fnir for each in self.operating},
            "threshold": self.operating[0].threshold.value,
            "operating_points": [each.to_dict() for each in self.operating],
            "flip": self.flip,
            "unread": [{"path": str(path), "error": why} for path, why in self.unread.items()],
        } | self.embedded.to_dict()


def evaluate_identification(
    images: Path,
    model: Path,
    faces: FaceSource = CROPS,
    *,
    fpirs: Sequence[float] = FPIRS,
    seed: int = 0,
    flip: Flip | None = None,
    device: str = "CPU",
    allow_seeded: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> IdentificationEvaluation:
    """Enrol one image of each person who has several; search with all other images.

    People with one image are not enrolled: their images are the non-mated probes.

    Parameters
    ----------
    images
        Folder that holds one folder a person.
    fpirs
        Target false positive identification rates, each in (0, 1).
    seed, flip
        Seed of the choice of the enrolled images, and how mirror images are used.
    model, faces, device, allow_seeded, progress
        See `edgeface.evaluate.evaluate_model`.

    Raises
    ------
    InputError
        If there are not people with several images and people with one, images are broken, or a rate is not in (0, 1).
    """
    if not fpirs:
        raise InputError("FPIR: expected at least one target rate")
    for fpir in fpirs:
        require_rate("fpir", fpir)
    listed = images_of_people(images)
    split = split_people(listed.people, listed.names, seed=seed)
    embedded = embed_images(
        images, listed.images, model, faces, flip=flip, device=device, allow_seeded=allow_seeded, progress=progress
    )
    searches = search(embedded.vectors, split)
    return IdentificationEvaluation(
        images=listed.images,
        names=listed.names,
        unread=listed.unread,
        split=split,
        searches=searches,
        operating=tuple(
            operate_at(searches, fpir, gallery_size=len(split.enrolled), contract_id=embedded.contract.contract_id)
            for fpir in fpirs
        ),
        embedded=embedded,
        seed=seed,
        flip=flip,
    )


def _draw(name: str, count: int, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % int(count)


def _compare(
    vectors: NDArray[np.float32], probes: Rows, gallery: NDArray[np.float32]
) -> Iterator[tuple[slice, Doubles]]:
    """Yield blocks of probes and their scores against the gallery."""
    for start in range(0, len(probes), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield block, pairwise(Metric.cosine, vectors[probes[block]], gallery)
