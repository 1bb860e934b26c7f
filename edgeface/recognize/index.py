"""Define what an index of templates can do, and score people by their templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.model.embedding import Embedding, Embeddings

_FIRST_LOOK = 16


@dataclass(frozen=True, slots=True, eq=False)
class Hits:
    """Templates that one probe was compared with, the most similar first; of equal scores the lower id first.

    Attributes
    ----------
    ids, person_ids : (K,) int64
        Of the templates, and of the person of each.
    scores : (K,) float64
        Cosine similarities in [-1, 1], computed from the float32 embeddings in float64 by every index: two indexes
        that find the same template give it the same score, bit by bit.
    """

    ids: NDArray[np.int64]
    person_ids: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)


@runtime_checkable
class Index(Protocol):
    """Templates of one contract, searched by cosine similarity.

    It may be used from several threads. Every method that takes embeddings raises `ContractError` for those of
    another contract or length, and `InputError` for one without a direction.
    """

    @property
    def contract_id(self) -> str:
        """Contract of every embedding in it."""

    @property
    def generation(self) -> int:
        """Generation of the gallery that it shows."""

    def __len__(self) -> int:
        """Return the number of templates."""

    def search(self, probe: Embedding, *, k: int = 1) -> Hits:
        """Return the `k` most similar templates, or all if there are fewer."""

    def search_batch(self, probes: Embeddings, *, k: int = 1) -> list[Hits]:
        """Search for several probes: `search` of each, at less cost."""

    def compare(self, probe: Embedding, person_ids: Sequence[int]) -> Hits:
        """Compare with every template of these people; a person who is not there has none."""

    def snapshot(self) -> AbstractContextManager[Index]:
        """Hold one generation of the gallery, for all that one decision needs.

        Everything that is asked of the index that it yields, names included, is answered from that one generation,
        even if the gallery is written to meanwhile. Keep the block short: it may hold up other users of the index.
        """

    def name_of(self, person_id: int) -> str | None:
        """Return the name of a person; None if the index knows templates but no names.

        Raises
        ------
        GalleryError
            If the gallery has no person of this id.
        """


@dataclass(frozen=True, slots=True)
class PersonRule:
    """Rule by which a person's score is computed: the mean of the `best` highest scores of templates.

    Attributes
    ----------
    best
        1 (rule ``max``): one similar template is enough. More (``mean-of-best-3``): one odd template counts for
        less, and a person needs several that are similar. All, if the person has fewer.
    """

    best: int = 1

    def __post_init__(self) -> None:
        if self.best < 1:
            raise InputError(f"rule: expected 1 template or more, found {self.best}")

    @property
    def name(self) -> str:
        """``max`` or ``mean-of-best-N``."""
        return "max" if self.best == 1 else f"mean-of-best-{self.best}"

    @classmethod
    def parse(cls, name: str) -> PersonRule:
        """Return the rule of this name.

        Raises
        ------
        InputError
            If no rule has this name.
        """
        if name == "max":
            return cls()
        if match := re.fullmatch(r"mean-of-best-([1-9]\d{0,2})", name):
            return cls(int(match[1]))
        raise InputError(f"rule: expected max or mean-of-best-N, found {name!r:.40}")


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """People, each once, and their scores (M,), the highest first; of equal scores the lower id first."""

    person_ids: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.person_ids)


def scores_of_people(hits: Hits, rule: PersonRule) -> Ranking:
    """Score people, all of whose templates must be among `hits`, as `Index.compare` returns them."""
    order = np.lexsort((-hits.scores, hits.person_ids))
    people, scores = hits.person_ids[order], hits.scores[order]
    ids, starts, counts = np.unique(people, return_index=True, return_counts=True)
    place = np.arange(len(people)) - np.repeat(starts, counts)
    used = place < rule.best
    sums = np.bincount(np.repeat(np.arange(len(ids)), counts)[used], scores[used], minlength=len(ids))
    means = sums / np.minimum(counts, rule.best)
    ranked = np.lexsort((ids, -means))
    return Ranking(ids[ranked], means[ranked])


def rank_people(index: Index, probe: Embedding, *, count: int = 2, rule: PersonRule | None = None) -> Ranking:
    """Find the most similar people, by all of their templates.

    A person's score is at most that of their best template. So people are taken in the order of their best templates
    until no person not yet seen can be among the first (Fagin's threshold algorithm). With an exact index the result
    is that of comparing every person.

    Parameters
    ----------
    index, probe
        The gallery's index, and the face to search for.
    count
        Most people to return.
    rule
        None: ``max``.

    Raises
    ------
    ContractError
        If the probe is of another contract.
    InputError
        If `count` is not positive.
    """
    if count < 1:
        raise InputError(f"people: expected a count of 1 or more, found {count}")
    rule, wanted = rule or PersonRule(), max(_FIRST_LOOK, 2 * count)
    while True:
        hits = index.search(probe, k=wanted)
        people = list(dict.fromkeys(hits.person_ids.tolist()))
        ranking = scores_of_people(index.compare(probe, people), rule)
        # No person who was not seen has a template above the last one.
        if len(hits) < wanted or np.count_nonzero(ranking.scores > hits.scores[-1]) >= count:
            return Ranking(ranking.person_ids[:count], ranking.scores[:count])
        wanted *= 4


def pair_scores(
    index: Index, probes: Sequence[Embedding], person_ids: NDArray[np.int64], rule: PersonRule
) -> NDArray[np.float64]:
    """Score every probe with every one of these people: (F, P) float64; -inf for people without templates."""
    scores = np.full((len(probes), len(person_ids)), -np.inf)
    for row, probe in enumerate(probes):
        ranking = scores_of_people(index.compare(probe, person_ids.tolist()), rule)
        scores[row, np.searchsorted(person_ids, ranking.person_ids)] = ranking.scores
    return scores
