"""Identify faces among the people of a gallery."""

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
from edgeface.pipeline.tracking import EmbeddingPolicy, assign
from edgeface.recognize.index import Index, PersonRule, pair_scores, rank_people
from edgeface.recognize.open_set import SearchThreshold

if TYPE_CHECKING:
    from edgeface.pipeline.observation import Face


class Verdict(str, Enum):
    """Outcome of an identification; true if it is ``accepted``."""

    accepted = "accepted"
    unknown = "unknown"
    inconclusive = "inconclusive"
    unusable = "unusable"

    def __bool__(self) -> bool:
        return self is Verdict.accepted


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
        Person that this face was assigned; None if no score exceeds the threshold, or that person is another face's.
    score
        Of `person_id`; without one, of the most similar person who is no other face's or, if all are, of the most
        similar one of those. None: the gallery has no templates, or the face no embedding.
    runner_up_id, runner_up_score
        The most similar other person who is no other face's, if any.
    taken
        Whether `score` is of a person who is another face's: every person of the gallery is.
    looks
        Photos that were used.
    threshold
        What decided.
    rule
        How a person's score is computed from templates.
    person, runner_up
        Names of `person_id` and `runner_up_id`, of the same generation of the gallery as the scores; None without
        one, and if the index knows no names.
    face
        What was identified; None where embeddings were.
    model
        Name of the model; None where embeddings were identified.
    reason
        Why nobody is named whom the scores would name, as ``consent-expired``; empty: the scores decided.
    """

    verdict: Verdict
    person_id: int | None = None
    score: float | None = None
    runner_up_id: int | None = None
    runner_up_score: float | None = None
    taken: bool = False
    looks: int = 0
    threshold: SearchThreshold
    rule: PersonRule
    person: str | None = None
    runner_up: str | None = None
    face: Face | None = None
    model: str | None = None
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether the face was recognised as a person of the gallery."""
        return bool(self.verdict)

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
            "taken": self.taken,
            "looks": self.looks,
            "threshold": self.threshold.value,
            "fpir": self.threshold.fpir,
            "measured_on": self.threshold.measured_on,
            "rule": self.rule.name,
            **({} if self.model is None else {"model": self.model}),
            **({"reason": self.reason} if self.reason else {}),
            "contract_id": self.threshold.contract_id,
        } | ({} if self.face is None else {"face": self.face.to_dict()})


class Identifier:
    """Identifies faces by one index, threshold and rule.

    Parameters
    ----------
    index
        Of the gallery.
    threshold
        Of the same contract; see `SearchThreshold.note` for whether it suits the gallery's size.
    rule
        How a person's score is computed. None: ``max``.
    margin
        How far, in cosine, the next person's score must be below; otherwise the verdict is inconclusive. By default
        only a tie is: the rates of `threshold` are measured without a margin. Cosines of models differ in spread: 0.05
        makes 0 % of the right answers inconclusive with FaceNet and 51 % with dlib's model (LFW, 100 people with two
        photos each, mean of ten draws).

    Raises
    ------
    ContractError
        If index and threshold are of different contracts.
    InputError
        If the margin is not from 0 to 2.
    """

    def __init__(
        self, index: Index, threshold: SearchThreshold, *, rule: PersonRule | None = None, margin: float = 0.0
    ) -> None:
        require_same_contract(index.contract_id, threshold.contract_id, what="identification")
        if not 0 <= margin <= 2:
            raise InputError(f"margin: expected a difference of cosines from 0 to 2, found {margin}")
        self.index, self.threshold, self.margin = index, threshold, margin
        self.rule = rule or PersonRule()

    def identify(self, probe: Embedding) -> Identification:
        """Identify one face; see `identify_frame`."""
        return self.identify_frame([probe])[0]

    def identify_frame(self, probes: Sequence[Embedding]) -> list[Identification]:
        """Identify the faces of one photo; no person is there twice.

        Of all ways to give each face at most one person above the threshold, and each person at most one face, the
        one is chosen whose scores exceed the threshold by the largest sum.

        Parameters
        ----------
        probes
            One for each face; there may be more of them than people.

        Raises
        ------
        ContractError
            If a probe is of another contract.
        """
        return self.identify_looks([[probe] for probe in probes])

    def identify_looks(self, looks: Sequence[Sequence[Embedding]]) -> list[Identification]:
        """Identify faces as `identify_frame`, by several photos of each; a person's score is the mean over them.

        The FPIR is at most that of one photo times their number, and in practice lower: a mean varies less.

        Parameters
        ----------
        looks
            For each face its photos, at least one.

        Raises
        ------
        ContractError
            If a probe is of another contract.
        InputError
            If a face has no photo.
        """
        if not all(looks):
            raise InputError("identification: expected at least one photo of each face, found none")
        if not looks:
            return []
        with self.index.snapshot() as index:  # search, second comparison and names are of one generation
            # In a best choice every face has one of its own first F people: at most F - 1 of those are others'. One
            # more is the runner-up. Of several photos, the first people of each are looked at.
            count = len(looks) + 1
            probes = [probe for faces in looks for probe in faces]
            seen = [rank_people(index, probe, count=count, rule=self.rule).person_ids for probe in probes]
            people = np.unique(np.concatenate(seen))
            scores = np.stack([pair_scores(index, faces, people, self.rule).mean(axis=0) for faces in looks])
            chosen = dict(assign(scores - self.threshold.value))
            return [
                self._decide(index, people, scores[i], chosen, i, looks=len(faces)) for i, faces in enumerate(looks)
            ]

    def _decide(
        self,
        index: Index,
        people: NDArray[np.int64],
        scores: NDArray[np.float64],
        assigned: Mapping[int, int],
        face: int,
        *,
        looks: int,
    ) -> Identification:
        chosen, taken = assigned.get(face, -1), {row for other, row in assigned.items() if other != face}
        ranked = [row for row in np.lexsort((people, -scores)).tolist() if np.isfinite(scores[row])]
        order = [row for row in ranked if row not in taken]
        first = chosen if chosen >= 0 else next(iter(order or ranked), -1)
        second = next((row for row in order if row != first), -1)
        verdict = Verdict.unknown if chosen < 0 else Verdict.accepted
        if chosen >= 0 and second >= 0:
            lead = scores[first] - scores[second]
            verdict = Verdict.inconclusive if lead < self.margin or lead <= 0 else verdict
        person_id = int(people[chosen]) if chosen >= 0 else None
        runner_up_id = int(people[second]) if second >= 0 else None
        return Identification(
            verdict=verdict,
            person_id=person_id,
            score=float(scores[first]) if first >= 0 else None,
            runner_up_id=runner_up_id,
            runner_up_score=float(scores[second]) if second >= 0 else None,
            taken=first in taken,
            looks=looks,
            threshold=self.threshold,
            rule=self.rule,
            person=None if person_id is None else index.name_of(person_id),
            runner_up=None if runner_up_id is None else index.name_of(runner_up_id),
        )


class TrackIdentifier:
    """Identifies the tracks of a video by the last photos of each; use it from one thread.

    Parameters
    ----------
    identifier
        Compares the faces.
    looks
        How many photos of a track to keep.
    needed
        Photos that an accepted verdict needs, from 1 to `looks`; with fewer it is inconclusive.
    policy
        That of the pipeline which embeds the tracks (`Pipeline.policy`); None: the default one.

    Raises
    ------
    InputError
        If `needed` is not from 1 to `looks`, or more photos than the policy makes of a track: it would never decide.
    """

    def __init__(
        self, identifier: Identifier, *, looks: int = 5, needed: int = 1, policy: EmbeddingPolicy | None = None
    ) -> None:
        if not 1 <= needed <= looks:
            raise InputError(f"tracks: expected 1 <= needed <= looks, found {needed} and {looks}")
        policy = policy or EmbeddingPolicy()
        if needed > policy.looks:
            raise InputError(
                f"tracks: expected a policy that makes the needed {needed} photos of every track, found one that may "
                f"make no more than {policy.looks}; give this and the pipeline the same policy, such as "
                f"EmbeddingPolicy(least={needed}, most={max(needed, policy.most)}) or one with refresh"
            )
        self._identifier, self._looks, self._needed = identifier, looks, needed
        self._tracks: dict[int, deque[Embedding]] = {}

    def update(
        self, faces: Mapping[int, Embedding], *, alive: Collection[int] | None = None
    ) -> dict[int, Identification]:
        """Take the faces of a frame, and identify them.

        Parameters
        ----------
        faces
            By track id, as `edgeface.pipeline.pipeline.Pipeline.run` gives them. A repeated vector is no new photo.
        alive
            Tracks that may be seen again; others are forgotten. None: all that were ever seen.

        Returns
        -------
        dict
            For the tracks of this frame.

        Raises
        ------
        ContractError
            If an embedding is of another contract; then no face was taken.
        """
        for face in faces.values():
            require_same_contract(self._identifier.index.contract_id, face.contract_id, what="tracks")
        if alive is not None:
            keep = {*alive, *faces}
            self._tracks = {track: looks for track, looks in self._tracks.items() if track in keep}
        for track, face in faces.items():
            looks = self._tracks.setdefault(track, deque(maxlen=self._looks))
            if not any(np.array_equal(look.vector, face.vector) for look in looks):
                looks.append(face)
        found = self._identifier.identify_looks([list(self._tracks[track]) for track in faces])
        return {
            track: replace(answer, verdict=Verdict.inconclusive) if answer and answer.looks < self._needed else answer
            for track, answer in zip(faces, found, strict=True)
        }
