"""Enrol a person by embeddings, unless another person with this face is enrolled already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from edgeface.errors import EnrolmentRefused, InputError, MissingError
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.records import NewTemplate, Person, Template, check_name, unit_vector
from edgeface.gallery.retention import without_hashes
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.recognize.index import Index
from edgeface.recognize.known import fit_threshold, thresholds_for
from edgeface.recognize.threshold import Threshold, load_thresholds

_OTHERS = 10
"""Templates of other people that each new one is compared with."""

_DUPLICATE_FAR = 1e-4 * (1 + 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRules:
    """Limits of similarity for enrolment, with one contract's embeddings.

    Attributes
    ----------
    duplicate_above, agree_above
        Cosine similarities above which another person's template is taken for the same face, and above which two
        templates are taken for one person's.
    """

    duplicate_above: float
    agree_above: float
    contract_id: str

    def __post_init__(self) -> None:
        for name in ("duplicate_above", "agree_above"):
            if not -1 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected a cosine from -1 to 1, found {getattr(self, name)}")

    @classmethod
    def from_thresholds(cls, thresholds: Sequence[Threshold]) -> EnrolRules:
        """Take one threshold to tell people apart, and the most permissive to compare templates of one person.

        A new face is compared with all people: at a FAR of 1e-4 it is refused wrongly with a chance of about a tenth
        in a gallery of a thousand, and then enrolled by force; at 1e-2 nearly every face would be. At much lower
        rates the same person is too often not recognised under another name. So it is the threshold of 1e-4, or
        the most permissive below it, or, where all are above, the strictest.

        `InputError` is raised if there are no thresholds, `ContractError` if they are of several contracts.
        """
        if not thresholds:
            raise InputError("enrolment: expected calibrated thresholds, found none")
        require_same_contract(*(each.contract_id for each in thresholds), what="thresholds")
        by_rate = sorted(thresholds, key=lambda each: each.assured_far)
        strict = [each for each in by_rate if each.assured_far <= _DUPLICATE_FAR]
        return cls(
            duplicate_above=(strict[-1] if strict else by_rate[0]).cosine,
            agree_above=by_rate[-1].cosine,
            contract_id=by_rate[0].contract_id,
        )

    @classmethod
    def shipped(cls, model: ModelContract | str) -> EnrolRules:
        """Return the rules by `thresholds_for` a model or its contract's id; `MissingError` if there are none."""
        thresholds = thresholds_for(model)
        if not thresholds:
            contract_id = model if isinstance(model, str) else model.contract_id
            raise MissingError(
                f"enrolment: no threshold is known for contract {contract_id}; one is needed to find people who are "
                "enrolled already. Calibrate: edgeface calibrate PEOPLE --model IR"
            )
        return cls.from_thresholds(thresholds)

    @classmethod
    def choose(cls, given: str | float | Path | None, model: ModelContract | str) -> EnrolRules:
        """Return the rules that a user names for a gallery of this contract, given by itself or its id.

        `given` is a file of `save_thresholds`, or a cosine similarity, also as text, for both limits; None: `shipped`.
        `InputError` is raised for anything else, `MissingError` if nothing is given and nothing is known.
        """
        if given is None:
            return cls.shipped(model)
        try:
            value = float(given)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            known = load_thresholds(Path(given))  # type: ignore[arg-type]
            if not isinstance(model, str):
                known = tuple(fit_threshold(each, model) for each in known)
            return cls.from_thresholds(known)
        contract_id = model if isinstance(model, str) else model.contract_id
        return cls(duplicate_above=value, agree_above=value, contract_id=contract_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookalike:
    """Another enrolled person whose face this is, by the rules; `similarity` is a cosine."""

    person: Person
    similarity: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"id": self.person.id, "name": self.person.name, "similarity": self.similarity}


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Two templates of one person that do not agree: numbers of new ones, or a new and a stored one."""

    new: int
    other: int | Template
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What `enrol` did.

    Attributes
    ----------
    person, created
        The person as stored now, and whether the person is new.
    template_ids, already
        Ids of the templates that were added, and how many of the given ones this person had already.
    lookalikes
        Other people with this face, in spite of whom the person was enrolled by force; most similar first.
    disagreements
        Pairs to be looked at: one of the photos is of another person, or bad.
    sources
        Photo of each given template, by which `Disagreement` counts; empty where there are no files.
    """

    person: Person
    created: bool
    template_ids: tuple[int, ...]
    already: int
    lookalikes: tuple[Lookalike, ...]
    disagreements: tuple[Disagreement, ...]
    sources: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `sources` must name the photos."""
        return {
            **self.person.to_dict(),
            "metadata": without_hashes(self.person),
            "new_person": self.created,
            "new_templates": list(self.template_ids),
            "already": self.already,
            "lookalikes": [each.to_dict() for each in self.lookalikes],
            "disagreements": [
                {
                    "new": self.sources[each.new],
                    "other": self.sources[each.other] if isinstance(each.other, int) else None,
                    "template": None if isinstance(each.other, int) else each.other.id,
                    "similarity": each.similarity,
                }
                for each in self.disagreements
            ],
        }


def enrol(
    store: GalleryStore,
    name: str,
    templates: Sequence[NewTemplate],
    *,
    rules: EnrolRules,
    index: Index | None = None,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    force: bool = False,
    sources: Sequence[str] = (),
) -> Enrolment:
    """Add templates to the person of this name, or to a new person.

    The search for other people and the write are one transaction: two processes cannot enrol one face under two
    names. A template that is stored already, by the digest of its photo or by its embedding, is not added again.

    Parameters
    ----------
    store
        The gallery.
    name
        See `check_name`.
    templates
        At least one.
    rules
        Of the gallery's contract.
    index
        Of this store; None: one is made. Make one `LiveIndex` to enrol many people.
    labels, metadata
        Replace those of a known person; None: keep them.
    force
        Enrol a face that another person is enrolled with, and photos that do not look like one person.
    sources
        Photo of each template. Photos must look like one person, together with the templates that are stored; of
        templates without photos, those that do not are only reported.

    Raises
    ------
    ContractError
        If a template or the rules are of another contract than the gallery.
    EnrolmentRefused
        If the face is another person's, photos show several people, or there are no templates; nothing is changed.
    """
    require_same_contract(store.info.contract_id, rules.contract_id, what="gallery and rules of enrolment")
    if not templates:
        raise EnrolmentRefused(f"{name}: expected at least one usable photo, found none; the person was not enrolled")
    vectors = np.stack([unit_vector(each, store.info) for each in templates])
    index = LiveIndex(store) if index is None else index
    require_same_contract(store.info.contract_id, index.contract_id, what="gallery and index")
    with store.writing():
        person = store.find(name)
        name = check_name(name) if person is None else person.name
        mine = store.templates_of(person.id) if person else ()
        new = _not_yet_there(templates, vectors, mine)
        if sources and new and not force:
            _require_one_person(name, vectors[new], [sources[row] for row in new], mine, rules)
        with index.snapshot() as snapshot:
            lookalikes = _lookalikes(store, snapshot, vectors, person, rules)
        if lookalikes and not force:
            raise _refusal(name, lookalikes)
        disagreements = tuple(_disagreements(vectors, new, mine, rules))
        created = person is None
        if person is None:
            person = store.add_person(name, labels=labels or (), metadata=metadata)
        elif labels is not None or metadata is not None:
            person = store.update_person(person.id, labels=labels, metadata=metadata)
        ids = store.add_templates(person.id, [templates[row] for row in new])
        person = store.person(person.id)
    return Enrolment(
        person=person,
        created=created,
        template_ids=ids,
        already=len(templates) - len(new),
        lookalikes=lookalikes,
        disagreements=disagreements,
        sources=tuple(sources),
    )


def _lookalikes(
    store: GalleryStore, index: Index, vectors: np.ndarray, person: Person | None, rules: EnrolRules
) -> tuple[Lookalike, ...]:
    best: dict[int, float] = {}
    own, count = (person.id, person.template_count) if person else (0, 0)
    for vector in vectors:
        hits = index.search(Embedding(vector, rules.contract_id), k=_OTHERS + count)
        for person_id, score in zip(hits.person_ids.tolist(), hits.scores.tolist(), strict=True):
            if person_id != own and score > rules.duplicate_above:
                best[person_id] = max(score, best.get(person_id, -1.0))
    ranked = sorted(best.items(), key=lambda item: -item[1])
    return tuple(Lookalike(person=store.person(each), similarity=score) for each, score in ranked)


def _refusal(name: str, lookalikes: Sequence[Lookalike]) -> EnrolmentRefused:
    others = ", ".join(f"{each.person.name!r} (similarity {each.similarity:.3f})" for each in lookalikes)
    return EnrolmentRefused(
        f"{name}: expected a face that no other person is enrolled with, found that of {others}; add the photos to "
        "that person, forget one of the two, or enrol both with --force",
        reason="lookalike",
        details=[each.to_dict() for each in lookalikes],
    )


def _require_one_person(
    name: str, vectors: np.ndarray, sources: Sequence[str], mine: Sequence[Template], rules: EnrolRules
) -> None:
    """Refuse photos that fall into groups whose mean similarities to each other are not above `agree_above`.

    The groups are those of average linkage (Sokal and Michener, 1958). One bad photo of a person is easily below the
    limit with another one, and seldom with all. A group that has a stored template is accepted.
    """
    every = np.concatenate([vectors, *(each.embedding.vector[np.newaxis] for each in mine)]).astype(np.float64)
    if len(every) < 2:
        return
    distances = np.clip(1 - every @ every.T, 0, 2)
    np.fill_diagonal(distances, 0)
    labels = fcluster(linkage(squareform(distances, checks=False), "average"), 1 - rules.agree_above, "distance")
    stored = set(labels[len(vectors) :].tolist())
    groups = [np.flatnonzero(labels[: len(vectors)] == label) for label in dict.fromkeys(labels.tolist())]
    strange = [rows for rows in groups if len(rows) and labels[rows[0]] not in stored]
    if len(strange) < 2 and not (strange and stored):
        return
    told = "; ".join(", ".join(sources[row] for row in rows[:3]) + ", ..." * (len(rows) > 3) for rows in strange[:4])
    raise EnrolmentRefused(
        f"{name}: expected photos of one person, found several people by their faces"
        f"{' and by those enrolled' if stored else ''}: {told}; put each person's photos into a folder of "
        "their own, or enrol all as one with --force",
        reason="several-people",
        details=[{"photos": [sources[row] for row in rows.tolist()]} for rows in strange],
    )


def _not_yet_there(templates: Sequence[NewTemplate], vectors: np.ndarray, mine: Sequence[Template]) -> list[int]:
    """Return the rows to add: templates that are not stored yet, each once."""
    digests = {each.source_sha256 for each in mine} - {""}
    stored = {each.embedding.vector.tobytes() for each in mine}
    new = []
    for row, each in enumerate(templates):
        if each.source_sha256 not in digests and vectors[row].tobytes() not in stored:
            new.append(row)
            stored.add(vectors[row].tobytes())
            digests |= {each.source_sha256} - {""}
    return new


def _disagreements(
    vectors: np.ndarray, new: Sequence[int], mine: Sequence[Template], rules: EnrolRules
) -> Iterator[Disagreement]:
    for position, row in enumerate(new):
        others: list[tuple[int | Template, np.ndarray]] = [(each, each.embedding.vector) for each in mine]
        others += [(other, vectors[other]) for other in new[:position]]
        for other, vector in others:
            similarity = float(vectors[row].astype(np.float64) @ vector.astype(np.float64))
            if similarity <= rules.agree_above:
                yield Disagreement(new=row, other=other, similarity=similarity)
