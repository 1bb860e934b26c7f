"""Read what a person consented to, find whose consent has expired, and erase many people a bounded number at a time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from edgeface.gallery.records import Person
from edgeface.gallery.store.base import GalleryStore

if TYPE_CHECKING:
    from edgeface.gallery.index.live import LiveIndex
    from edgeface.recognize.identify import Identification

CONSENT = "consent"
"""Key of a person's metadata that is reserved for `Consent`."""
CODE, PIN = "forget_code", "pin"
"""Keys that are reserved for hashes of what the service tells or is told; a short PIN can be guessed by its hash."""
EXPIRED = "consent-expired"
"""`Identification.reason` of an answer that names nobody, though the scores would."""
_AT_ONCE, _AT_ONCE_WITH_IMAGES = 512, 32
"""Templates of one erasure, which holds in memory what it searches for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """What a person agreed to: kept in the person's metadata, and so encrypted, exported and forgotten with them.

    Attributes
    ----------
    text_version
        Names the text that the person agreed to, 1 to 100 characters.
    recorded_by, recorded
        Id of the key that recorded it, and when.
    expires
        When it ends; None: not by itself.
    noticed
        When it was first reported to have ended; None: not yet.
    """

    text_version: str
    recorded_by: str
    recorded: datetime
    expires: datetime | None = None
    noticed: datetime | None = None

    def has_expired(self, now: datetime) -> bool:
        """Whether it has ended."""
        return self.expires is not None and self.expires <= now

    @classmethod
    def of_has_expired(cls, person: Person, now: datetime | None = None) -> bool:
        """Whether a person's consent has ended by `now`, None for the clock's time; False where there is none."""
        consent = cls.of(person)
        return consent is not None and consent.has_expired(now or datetime.now(timezone.utc))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        times = {name: getattr(self, name) for name in ("recorded", "expires", "noticed")}
        return {**dataclasses.asdict(self), **{name: time and time.isoformat() for name, time in times.items()}}

    @classmethod
    def of(cls, person: Person) -> Consent | None:
        """Return a person's record; None if there is none, or it is not one that the service wrote."""
        try:
            return cls.from_dict(person.metadata[CONSENT])
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Consent:
        """Return what `to_dict` gave; KeyError, TypeError or ValueError if it is something else."""
        expires, noticed = (
            None if each is None else parse_time(each) for each in (stored["expires"], stored.get("noticed"))
        )
        version, key = str(stored["text_version"]), str(stored["recorded_by"])
        recorded = parse_time(stored["recorded"])
        return cls(text_version=version, recorded_by=key, recorded=recorded, expires=expires, noticed=noticed)


def parse_time(text: Any) -> datetime:
    """Return a time with a zone, in UTC; TypeError or ValueError for anything else."""
    if not isinstance(text, str):
        raise TypeError("a time that is no text")
    time = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time.astimezone(timezone.utc)


def withhold(index: LiveIndex, found: Identification, now: datetime | None = None) -> Identification:
    """Return an answer that names nobody whose consent has ended by `now`, None for the clock's time.

    Call it in the `snapshot` of the answer, so that both are of one generation of the gallery.
    """

    def is_withheld(person_id: int | None) -> bool:
        return person_id is not None and Consent.of_has_expired(index.person(person_id), now)

    if is_withheld(found.runner_up_id):
        found = dataclasses.replace(found, runner_up_id=None, runner_up=None, runner_up_score=None)
    if is_withheld(found.person_id):
        unknown = type(found.verdict).unknown
        found = dataclasses.replace(found, verdict=unknown, person_id=None, person=None, score=None, reason=EXPIRED)
    return found


def without_hashes(person: Person) -> dict[str, Any]:
    """Return a person's metadata but for hashes of secrets, which no answer shows."""
    return {name: value for name, value in person.metadata.items() if name not in (CODE, PIN)}


def find_expired(store: GalleryStore, now: datetime) -> dict[int, Consent]:
    """Return the consents that have expired, by the ids of the people."""
    consents = {person.id: Consent.of(person) for person in store.people()}
    return {number: each for number, each in consents.items() if each is not None and each.has_expired(now)}


def erasure_batches(
    store: GalleryStore, wanted: Mapping[int, Sequence[int] | None]
) -> Iterator[dict[int, Sequence[int] | None]]:
    """Divide what `GalleryStore.forget_many` is to erase, so that each part is erased in bounded memory."""
    most = _AT_ONCE_WITH_IMAGES if store.info.keeps_images else _AT_ONCE
    left = dict(wanted)
    while left:
        counts = itertools.accumulate(
            store.person(person_id).template_count if ids is None else len(ids) for person_id, ids in left.items()
        )
        size = max(1, sum(1 for _ in itertools.takewhile(lambda count: count <= most, counts)))
        yield dict(itertools.islice(left.items(), size))
        left = dict(itertools.islice(left.items(), size, None))
