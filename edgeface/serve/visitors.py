"""Route what the page asks for people before it: what they agree to, and a code with which they can be forgotten.

The code is random, told once, and stored as its SHA-256 only, with the person: 80 bits cannot be guessed, so a slow
hash would protect nothing more. It begins with the person's id, by which it is found.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
import secrets
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from edgeface.gallery.retention import CODE
from edgeface.serve.answers import Answer
from edgeface.serve.bodies import read_object
from edgeface.serve.enrol import find_person, update_person
from edgeface.serve.keys import Role
from edgeface.serve.offline import QUEUED, QueuedAnswer, forget_or_queue, render_erasure
from edgeface.serve.openapi import PREFIX, json_body, problems
from edgeface.serve.people import Id, parse_fields
from edgeface.serve.people_answers import LARGEST, ErasureAnswer
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.routing import Compute, Enrols, Recognises, Served, address_of
from edgeface.serve.service import ServedGallery, Service, WithoutKey

router = APIRouter(prefix=PREFIX, tags=["people"])
FORGET = f"{PREFIX}/forget"
"""Needs no key: who has the code may be forgotten."""
_ALPHABET, _LENGTH = "0123456789ABCDEFGHJKMNPQRSTVWXYZ", 16
"""Crockford's base 32, in which no letter looks like another; 80 bits."""


class KeyAnswer(Answer):
    """The key that asks."""

    id: str
    """Names it in logs."""
    role: Role
    """What it may do."""
    gallery: str | None
    """The only gallery it is for; null: all."""


class ConsentTextAnswer(Answer):
    """What people are asked to agree to."""

    version: str
    """Names the texts."""
    texts: dict[str, str]
    """What the face is used for, by language; empty: the page's own text."""
    days: int | None
    """After which the consent ends; null: not by itself."""
    expires: datetime.datetime | None
    """When a consent of now ends."""
    keeps_images: bool
    """Whether the part of each photo with the face is stored, and not only what is measured."""


class CodeAnswer(Answer):
    """The code with which a person can be forgotten."""

    person_id: int
    """Whose."""
    code: str
    """Told this once."""


class Code(BaseModel):
    """A code with which a person can be forgotten."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    code: str = Field(min_length=1, max_length=100)
    """As it was told; hyphens, blanks and case do not matter."""


@router.get("/key", tags=["models"])
async def own_key(caller: Recognises) -> KeyAnswer:
    """Say what the key that asks may do."""
    return KeyAnswer(id=caller.key.id, role=caller.key.role, gallery=caller.key.gallery)


@router.get("/galleries/{gallery}/consent-text")
async def consent_text(gallery: str, caller: Recognises, service: Served, compute: Compute) -> ConsentTextAnswer:
    """Return what people are asked to agree to before they are enrolled in a gallery."""
    served, asked = service.gallery(gallery, caller), service.settings.consent
    keeps: bool = await compute(lambda: served.info.keeps_images)
    now, expires = datetime.datetime.now(datetime.timezone.utc), None
    if asked.days is not None:
        expires = (now + datetime.timedelta(days=asked.days)).replace(microsecond=0)
    return ConsentTextAnswer(
        **asked.model_dump(exclude={"expired", "notice_days"}), expires=expires, keeps_images=keeps
    )


@router.post("/galleries/{gallery}/people/{person_id}/code")
async def new_code(gallery: str, person_id: Id, caller: Enrols, service: Served, compute: Compute) -> CodeAnswer:
    """Make a code with which this person can be forgotten; one that was made before is void."""
    served = service.gallery(gallery, caller)

    def make() -> CodeAnswer:
        text = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
        update_person(served, person_id, reserved={CODE: _hash(text)})
        service.note(caller, "code", gallery=served.name, people=[person_id])
        return CodeAnswer(person_id=person_id, code="-".join([str(person_id), *re.findall("....", text)]))

    answer: CodeAnswer = await compute(make)
    return answer


@router.post(
    "/forget", response_model=ErasureAnswer, openapi_extra=json_body(Code), responses=problems(404, 429) | QUEUED
)
async def forget_by_code(request: Request, service: Served, compute: Compute) -> Response:
    """Erase the person who was told this code, for good, and prove it. Needs no key; wrong codes are limited."""
    address = address_of(request.scope)
    service.admit_address(address)
    code = parse_fields(Code, await read_object(request)).code
    by = WithoutKey("code", request.scope["edgeface.request_id"])

    def erase() -> ErasureAnswer | QueuedAnswer:
        served, person_id = _find(service, code, address)
        return forget_or_queue(service, served, by, person_id)

    return render_erasure(await compute(erase))


def _find(service: Service, code: str, address: str) -> tuple[ServedGallery, int]:
    """Return whose code this is; `Problem` for a wrong one."""
    number, _, secret = code.replace(" ", "").partition("-")
    digest = _hash(secret)
    person_id = int(number) if number.isascii() and number.isdigit() and len(number) < 20 else 0
    if 0 < person_id <= LARGEST:
        for served in service.galleries.values():
            try:
                stored: Any = find_person(served, person_id).metadata.get(CODE, "")
            except NotFound:
                continue
            if isinstance(stored, str) and hmac.compare_digest(stored.encode(), digest.encode()):
                return served, person_id
    service.refuse_guess(address)
    raise Problem(404, "wrong-code", "expected the code of somebody who is enrolled, found another")


def _hash(secret: str) -> str:
    """Return the digest of a code's secret part, however it was typed."""
    plain = re.sub(r"[\s-]", "", secret).upper().translate(str.maketrans("OIL", "011"))
    return hashlib.sha256(plain.encode()).hexdigest()
