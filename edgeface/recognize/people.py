"""Scores of templates in, scores of people out, by a rule that has a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.model.embedding import Embedding
from edgeface.recognize.index import Hits, Index

__all__ = ["PersonRule", "Ranking", "pair_scores", "rank_people", "scores_of_people"]

_FIRST_LOOK = 16


@dataclass(frozen=True, slots=True)
class PersonRule:
    """How the templates of a person become one score: the mean of the `best` highest, or of all if there are fewer.

    Attributes
    ----------
    best
        1: the highest (rule ``max``), which finds a person by any good picture. More (``mean-of-best-3``): one odd
        template counts for less, and a person needs several that fit.
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
        """The rule of this name.

        Raises
        ------
        InputError
            If there is none.
        """
        if name == "max":
            return cls()
        if match := re.fullmatch(r"mean-of-best-([1-9]\d{0,2})", name):
            return cls(int(match[1]))
        raise InputError(f"rule: expected max or mean-of-best-N, found {name!r:.40}")


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """People by falling score, of equal scores the lower id first.

    Attributes
    ----------
    person_ids : (M,) int64
        Each once.
    scores : (M,) float64
        By the rule.
    """

    person_ids: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.person_ids)


def scores_of_people(hits: Hits, rule: PersonRule) -> Ranking:
    """Score the people of some templates, all of whose templates must be among them.

    Parameters
    ----------
    hits
        As `Index.compare` returns them.
    rule
        How a person is scored.
    """
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
    """The most similar people, by all of their templates.

    A person's score is at most that of their best template. So people are taken in the order of their best templates,
    all of theirs are compared, and the search goes on until nobody who has not been seen can be among the first
    (Fagin's threshold algorithm). With an exact index the answer is that of comparing everybody.

    Parameters
    ----------
    index
        Of the gallery.
    probe
        The face.
    count
        How many people at least, if there are so many.
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
        # Whoever was not seen has no template above the last one.
        if len(hits) < wanted or np.count_nonzero(ranking.scores > hits.scores[-1]) >= count:
            return Ranking(ranking.person_ids[:count], ranking.scores[:count])
        wanted *= 4


def pair_scores(
    index: Index, probes: Sequence[Embedding], person_ids: NDArray[np.int64], rule: PersonRule
) -> NDArray[np.float64]:
    """Every probe with every one of these people: (F, P) float64; -inf where somebody is gone meanwhile."""
    scores = np.full((len(probes), len(person_ids)), -np.inf)
    for row, probe in enumerate(probes):
        ranking = scores_of_people(index.compare(probe, person_ids.tolist()), rule)
        scores[row, np.searchsorted(person_ids, ranking.person_ids)] = ranking.scores
    return scores
