"""Faces and a gallery's index in, who they are out, or that they are nobody, or that another look is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError
from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.recognize.assignment import assign
from edgeface.recognize.index import Index
from edgeface.recognize.open_set import SearchThreshold
from edgeface.recognize.people import PersonRule, pair_scores, rank_people

if TYPE_CHECKING:
    from edgeface.pipeline.observation import Face

__all__ = ["Identification", "Identifier", "TrackIdentifier", "Verdict"]


class Verdict(str, Enum):
    """What is answered to: who is this?"""

    accepted = "accepted"
    unknown = "unknown"
    inconclusive = "inconclusive"
    unusable = "unusable"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Identification:
    """Who one face is; true if the face was recognised.

    Attributes
    ----------
    verdict
        ``accepted``: the face is that of `person_id`. ``unknown``: no score exceeds the threshold.
        ``inconclusive``: one does, but the next person's is too close, or too few photos were seen; take another
        photo. ``unusable``: the face has no embedding; `face.reasons` say why.
    person_id
        The person that this face was assigned; None: there is none above the threshold who is not another face's.
    score
        Of `person_id`; without one, of the most similar person. None: the gallery is empty.
    runner_up_id, runner_up_score
        The most similar other person who is no other face's; None: there is none.
    looks
        Photos that were used.
    threshold
        What decided.
    rule
        How a person's score is computed from templates.
    person, runner_up
        Names of `person_id` and `runner_up_id`; None if they were not looked up.
    face
        What was identified; None where embeddings were.
    """

    verdict: Verdict
    person_id: int | None
    score: float | None
    runner_up_id: int | None
    runner_up_score: float | None
    looks: int
    threshold: SearchThreshold
    rule: PersonRule
    person: str | None = None
    runner_up: str | None = None
    face: Face | None = None

    @property
    def known(self) -> bool:
        """Whether the face was recognised as a person of the gallery."""
        return self.verdict is Verdict.accepted

    def __bool__(self) -> bool:
        return self.known

    def __repr__(self) -> str:
        who = self.person or (None if self.person_id is None else f"#{self.person_id}")
        score = None if self.score is None else round(self.score, 4)
        return f"Identification({self.verdict.value}, person={who!r}, score={score})"

    @property
    def margin(self) -> float | None:
        """How far the next person's score is below; None without one."""
        if self.score is None or self.runner_up_score is None:
            return None
        return self.score - self.runner_up_score

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            "verdict": self.verdict.value,
            "known": self.known,
            "person_id": self.person_id,
            "person": self.person,
            "score": self.score,
            "runner_up_id": self.runner_up_id,
            "runner_up": self.runner_up,
            "runner_up_score": self.runner_up_score,
            "margin": self.margin,
            "looks": self.looks,
            "threshold": self.threshold.value,
            "fpir": self.threshold.fpir,
            "rule": self.rule.name,
            "contract_id": self.threshold.contract_id,
        } | ({} if self.face is None else {"face": self.face.to_dict()})


class Identifier:
    """Says who faces are, by one index, threshold and rule.

    Parameters
    ----------
    index
        Of the gallery.
    threshold
        Of its contract; see `SearchThreshold.note` for whether it suits the gallery's size.
    rule
        How people are scored. None: ``max``.
    margin
        How far the next person must be behind, in cosine; otherwise the answer is to ask again.

    Raises
    ------
    ContractError
        If index and threshold are of different contracts.
    InputError
        If the margin is negative.
    """

    def __init__(
        self, index: Index, threshold: SearchThreshold, *, rule: PersonRule | None = None, margin: float = 0.0
    ) -> None:
        require_same_contract(index.contract_id, threshold.contract_id, what="identification")
        if not margin >= 0:
            raise InputError(f"margin: expected 0 or more, found {margin}")
        self.index, self.threshold, self.margin = index, threshold, margin
        self.rule = rule or PersonRule()

    def identify(self, probe: Embedding) -> Identification:
        """Who one face is.

        Raises
        ------
        ContractError
            If the probe is of another contract.
        """
        return self.identify_frame([probe])[0]

    def identify_frame(self, probes: Sequence[Embedding]) -> list[Identification]:
        """Who the faces of one picture are: nobody is there twice.

        Of all ways to give each face at most one person above the threshold, and each person at most one face, the
        one with the largest sum of what scores exceed the threshold by.

        Parameters
        ----------
        probes
            One a face; there may be more of them than people.

        Raises
        ------
        ContractError
            If a probe is of another contract.
        """
        return self._identify([[probe] for probe in probes])

    def identify_looks(self, looks: Sequence[Sequence[Embedding]]) -> list[Identification]:
        """As `identify_frame`, with several pictures of each face; a person's score is the mean over them.

        A stranger whose mean is above the threshold was above it in at least one picture, so the FPIR is at most that
        of one picture times their number, and in practice below that of one: a mean strays less.

        Parameters
        ----------
        looks
            For each face its pictures, at least one.

        Raises
        ------
        ContractError
            If a probe is of another contract.
        InputError
            If a face has no picture.
        """
        if not all(looks):
            raise InputError("identification: expected at least one picture of each face, found none")
        return self._identify(looks)

    def _identify(self, looks: Sequence[Sequence[Embedding]]) -> list[Identification]:
        if not looks:
            return []
        with self.index.snapshot() as index:
            return self._identify_in(index, looks)

    def _identify_in(self, index: Index, looks: Sequence[Sequence[Embedding]]) -> list[Identification]:
        """Search, compare again, and read names, all in one generation of the gallery."""
        # In a best choice every face has one of its own first F people: at most F - 1 of those are others'. One more
        # is the runner-up. Of several pictures, the first people of each are looked at.
        count = len(looks) + 1
        seen = [
            rank_people(index, probe, count=count, rule=self.rule).person_ids
            for probes in looks
            for probe in probes
        ]
        people = np.unique(np.concatenate(seen))
        scores = np.stack([pair_scores(index, probes, people, self.rule).mean(axis=0) for probes in looks])
        chosen = assign(scores - self.threshold.value)
        return [
            self._named(
                index,
                self._decide(people, scores[face], int(chosen[face]), np.delete(chosen, face), len(probes)),
            )
            for face, probes in enumerate(looks)
        ]

    @staticmethod
    def _named(index: Index, answer: Identification) -> Identification:
        person, runner_up = (
            None if each is None else index.name_of(each) for each in (answer.person_id, answer.runner_up_id)
        )
        return replace(answer, person=person, runner_up=runner_up)

    def _decide(
        self,
        people: NDArray[np.int64],
        scores: NDArray[np.float64],
        chosen: int,
        taken: NDArray[np.intp],
        looks: int,
    ) -> Identification:
        free = np.isfinite(scores)
        free[taken[taken >= 0]] = False
        order = [row for row in np.lexsort((people, -scores)).tolist() if free[row]]
        first = chosen if chosen >= 0 else next(iter(order), -1)
        second = next((row for row in order if row != first), -1)
        verdict = Verdict.unknown if chosen < 0 else Verdict.accepted
        if chosen >= 0 and second >= 0 and scores[first] - scores[second] < self.margin:
            verdict = Verdict.inconclusive
        return Identification(
            verdict=verdict,
            person_id=int(people[chosen]) if chosen >= 0 else None,
            score=float(scores[first]) if first >= 0 else None,
            runner_up_id=int(people[second]) if second >= 0 else None,
            runner_up_score=float(scores[second]) if second >= 0 else None,
            looks=looks,
            threshold=self.threshold,
            rule=self.rule,
        )


class TrackIdentifier:
    """Says who the tracks of a film are, by their last pictures together; from one thread.

    Parameters
    ----------
    identifier
        That compares.
    looks
        How many pictures of a track are kept.
    needed
        Before so many were seen, nobody is accepted: the answer is to ask again.

    Raises
    ------
    InputError
        If not 1 <= needed <= looks.
    """

    def __init__(self, identifier: Identifier, *, looks: int = 5, needed: int = 1) -> None:
        if not 1 <= needed <= looks:
            raise InputError(f"tracks: expected 1 <= needed <= looks, found {needed} and {looks}")
        self._identifier, self._looks, self._needed = identifier, looks, needed
        self._tracks: dict[int, deque[Embedding]] = {}

    def update(
        self, faces: Mapping[int, Embedding], *, alive: Collection[int] | None = None
    ) -> dict[int, Identification]:
        """Take the faces of a frame, and say who they are.

        Parameters
        ----------
        faces
            By track, as in `edgeface.pipeline.observation.Face`. The same vector again is no new picture.
        alive
            Tracks that may come back; others are forgotten. None: all that were ever seen.

        Returns
        -------
        dict
            For the tracks of this frame.

        Raises
        ------
        ContractError
            If an embedding is of another contract; then nothing was taken.
        """
        for face in faces.values():
            require_same_contract(self._identifier.index.contract_id, face.contract_id, what="tracks")
        if alive is not None:
            keep = {*alive, *faces}
            self._tracks = {track: looks for track, looks in self._tracks.items() if track in keep}
        for track, face in faces.items():
            looks = self._tracks.setdefault(track, deque(maxlen=self._looks))
            if not looks or not np.array_equal(looks[-1].vector, face.vector):
                looks.append(face)
        found = self._identifier.identify_looks([list(self._tracks[track]) for track in faces])
        return {track: self._patient(answer) for track, answer in zip(faces, found, strict=True)}

    def _patient(self, answer: Identification) -> Identification:
        if answer.verdict is not Verdict.accepted or answer.looks >= self._needed:
            return answer
        return replace(answer, verdict=Verdict.inconclusive)
