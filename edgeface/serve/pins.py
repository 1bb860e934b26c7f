"""Let people without a face here be known by a PIN: off unless the configuration of the kiosk says `pins: true`.

A person gives the number of the person and a PIN of 4 to 12 digits. The gallery keeps scrypt (RFC 7914) of it under a
salt of its own, so that a copy of the gallery costs 50 ms a guess. Digits can be guessed, unlike keys: after five wrong
ones a number is refused for fifteen minutes, whoever asks, and an address is limited as with wrong keys.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from edgeface.gallery.records import Person
from edgeface.gallery.retention import CONSENT, PIN, Consent
from edgeface.serve.answers import Answer
from edgeface.serve.bodies import read_object
from edgeface.serve.doors import Kind
from edgeface.serve.enrol import check_person, describe, find_person, record_consent, update_person
from edgeface.serve.openapi import PREFIX, json_body, problems
from edgeface.serve.people import Id, parse_fields
from edgeface.serve.people_answers import NewPerson, PersonAnswer, PersonId
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.routing import Compute, Enrols, Recognises, Served, address_of

router = APIRouter(prefix=PREFIX, tags=["people"])
_COST, _BLOCK, _MEMORY = 1 << 14, 8, 64 << 20
"""Parameters n and r of scrypt, with p = 1, which take 16 MiB; and the most memory it may take."""
Digits = Annotated[str, Field(pattern=r"^[0-9]{4,12}$")]


class Pin(BaseModel):
    """A PIN to store."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    pin: Digits
    """4 to 12 digits."""


class PersonByPin(NewPerson, Pin):
    """A person who is known by a PIN, and has no face here."""


class PinAttempt(Pin):
    """Somebody at a door."""

    person_id: PersonId
    """The number that they were told."""
    camera: Annotated[str, Field(min_length=1, max_length=63)]
    """At which door."""


class PinAnswer(Answer):
    """What was decided; the stream and the log of the kiosk have the event."""

    kind: Kind
    """known: the PIN was right; unknown: it was not; inconclusive: it was, but nobody can be known now."""


class Guesses:
    """How many wrong guesses were made at each secret, in bounded memory; for all threads.

    Parameters
    ----------
    most, seconds
        After so many wrong guesses in a row, none is taken for so long.
    remembered
        Secrets; those guessed at least recently are forgotten first.
    clock
        Seconds that never go back.

    Examples
    --------
    >>> guesses = Guesses(most=2, seconds=60, clock=lambda: 0.0)
    >>> guesses.take("Ada"), guesses.take("Ada"), guesses.take("Ada")
    (0.0, 0.0, 60.0)
    """

    def __init__(
        self,
        *,
        most: int = 5,
        seconds: float = 900.0,
        remembered: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._seconds, self._remembered, self._clock = most, seconds, remembered, clock
        self._lock, self._made = threading.Lock(), OrderedDict[Hashable, tuple[int, float]]()

    def take(self, secret: Hashable) -> float:
        """Count a guess before it is checked; return the seconds to wait, 0 if it may be made."""
        with self._lock:
            now, (count, last) = self._clock(), self._made.get(secret, (0, 0.0))
            if count >= self._most:
                if (wait := last + self._seconds - now) > 0:
                    return wait
                count = 0
            self._made[secret] = count + 1, now
            self._made.move_to_end(secret)
            if len(self._made) > self._remembered:
                self._made.popitem(last=False)
            return 0.0

    def right(self, secret: Hashable) -> None:
        """Forget the guesses before a right one."""
        with self._lock:
            self._made.pop(secret, None)


@router.post(
    "/galleries/{gallery}/people-by-pin", status_code=201, openapi_extra=json_body(PersonByPin), responses=problems(409)
)
async def add_person_by_pin(
    request: Request, gallery: str, caller: Enrols, service: Served, compute: Compute
) -> PersonAnswer:
    """Add a person who is known by a PIN; the id in the answer is the number that goes with it."""
    served = service.gallery(gallery, caller)
    given = parse_fields(PersonByPin, await read_object(request))
    reserved: dict[str, Any] = {PIN: _hash(given.pin)}
    if given.consent is not None:
        reserved[CONSENT] = record_consent(given.consent, caller.key.id).to_dict()

    def add() -> PersonAnswer:
        check_person(name=given.name, labels=given.labels, metadata=given.metadata)
        with served.store.writing():
            if (other := served.store.find(given.name)) is not None:
                raise Problem(409, "name-taken", f"another person has this name, id {other.id}")
            metadata = {**(given.metadata or {}), **reserved}
            person = served.store.add_person(given.name, labels=given.labels or (), metadata=metadata)
        service.note(caller, "enrol", gallery=served.name, people=[person.id], decision="pin")
        return PersonAnswer.model_validate(describe(person))

    answer: PersonAnswer = await compute(add)
    return answer


@router.put(
    "/galleries/{gallery}/people/{person_id}/pin",
    status_code=204,
    openapi_extra=json_body(Pin),
    response_description="The PIN is stored.",
)
async def set_pin(
    request: Request, gallery: str, person_id: Id, caller: Enrols, service: Served, compute: Compute
) -> None:
    """Store a PIN by which this person can be known, in place of the one before; the person needs no template."""
    served = service.gallery(gallery, caller)
    pin = parse_fields(Pin, await read_object(request)).pin

    def store() -> None:
        update_person(served, person_id, reserved={PIN: _hash(pin)})
        service.note(caller, "pin", gallery=served.name, people=[person_id])

    await compute(store)


@router.delete(
    "/galleries/{gallery}/people/{person_id}/pin", status_code=204, response_description="There is no PIN any more."
)
async def remove_pin(gallery: str, person_id: Id, caller: Enrols, service: Served, compute: Compute) -> None:
    """Remove a person's PIN."""
    served = service.gallery(gallery, caller)

    def remove() -> None:
        update_person(served, person_id, reserved={PIN: None})
        service.note(caller, "pin", gallery=served.name, people=[person_id], decision="removed")

    await compute(remove)


@router.post("/kiosk/pin", tags=["kiosk"], openapi_extra=json_body(PinAttempt), responses=problems(404))
async def give_pin(request: Request, caller: Recognises, service: Served, compute: Compute) -> PinAnswer:
    """Be known at a door by a PIN; each attempt is an event of the kiosk. 429 after five wrong ones for a number."""
    source = request.app.state.streams.require(service, caller)
    if not source.pins:
        raise Problem(404, "no-pins", "there are no PINs; the configuration of the kiosk has the key pins")
    given = parse_fields(PinAttempt, await read_object(request))
    served, guesses = service.gallery(source.gallery, caller), request.app.state.guesses
    address, secret = address_of(request.scope), (served.name, given.person_id)

    def decide() -> PinAnswer:
        service.refuse_guess(address)  # before it is looked at: what is refused tells nothing, and is no attempt
        if wait := guesses.take(secret):
            raise Problem(429, "too-often", "expected fewer wrong PINs for this number", retry_after=wait)
        person = _whose(served, given.person_id, given.pin)
        if person is not None:
            guesses.right(secret)
            service.rates.right_guess(address)
        kind: Literal["known", "unknown", "inconclusive"] = source.admit(given.camera, person)
        people = [] if person is None else [person.id]
        service.note(caller, "pin-attempt", gallery=served.name, people=people, decision=kind)
        return PinAnswer(kind=kind)

    answer: PinAnswer = await compute(decide)
    return answer


def _whose(served: Any, person_id: int, pin: str) -> Person | None:
    """Return the person if the PIN is theirs and their consent has not ended; it takes as long if there is none."""
    try:
        person = find_person(served, person_id, searched=True)
    except NotFound:
        person = None
    stored = None if person is None else person.metadata.get(PIN)
    salt, _, digest = (stored if isinstance(stored, str) else f"{'0' * 32}$").partition("$")
    right = hmac.compare_digest(_hash(pin, salt).partition("$")[2], digest)
    return person if person and right and digest and not Consent.of_has_expired(person) else None


def _hash(pin: str, salt: str | None = None) -> str:
    salt = salt or secrets.token_hex(16)
    digest = hashlib.scrypt(pin.encode(), salt=salt.encode(), n=_COST, r=_BLOCK, p=1, maxmem=_MEMORY)
    return f"{salt}${digest.hex()}"
