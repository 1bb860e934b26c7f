"""Answer DeepStack's paths of faces, which CodeProject.AI, double-take and Home Assistant's integration ask too.

Its clients have the key in the field ``api_key`` of the form, so that it is known only once the body is read. What may
be read before is bounded by `KeylessReads`, and by the rate of the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from edgeface.errors import FaceError, Overloaded
from edgeface.serve.bodies import Upload, read_upload
from edgeface.serve.enrol import enrol_photos, erase
from edgeface.serve.keys import Role
from edgeface.serve.matching import FaceQuery, RankedFace, RankedPhoto, recognise
from edgeface.serve.problems import Problem
from edgeface.serve.routing import Compute, Served, require_role, shared
from edgeface.serve.service import Caller

PREFIX = "/v1/vision"
PATHS = frozenset(f"{PREFIX}/face/{name}" for name in ("recognize", "register", "delete"))
"""Paths whose key may be in the form."""
router = APIRouter(prefix=f"{PREFIX}/face", include_in_schema=False)


def render_deepstack(problem: Problem) -> Response:
    """Word a problem as DeepStack does."""
    status = 400 if problem.status in (409, 415, 422) else problem.status
    return JSONResponse({"success": False, "error": str(problem), "code": status}, status, headers=problem.headers)


class KeylessReads:
    """Bodies that are read before it is known whose they are: at most eight at a time."""

    def __init__(self) -> None:
        self._free = 8

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Read one; `Overloaded` if there are as many already."""
        if not self._free:
            raise Overloaded("as many forms are read as may be before their keys are known; try again in a second")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


@dataclass(frozen=True, slots=True)
class KeyedForm:
    """A request's form, and who sent it."""

    caller: Caller
    upload: Upload


def _form(role: Role) -> Any:
    async def read(request: Request, service: Served) -> KeyedForm:
        if "api_key" in request.query_params:
            raise Problem(400, "key-in-address", "expected api_key in the form: addresses are written into logs")
        caller: Caller | None = request.scope.get("edgeface.caller")
        if caller is not None:
            return KeyedForm(require_role(caller, role), await read_upload(request, "image"))
        with request.app.state.reads.one():
            upload = await read_upload(request, "image")
        text, address = str(upload.fields.get("api_key", "")), request.client.host if request.client else ""
        key = service.authenticate({b"x-api-key": text.encode("latin-1", "replace")}, address)
        request.scope["edgeface.caller"] = caller = Caller(key=key, request_id=request.scope["edgeface.request_id"])
        return KeyedForm(require_role(caller, role), upload)

    return Depends(read)


@router.post("/recognize")
async def recognize(
    compute: Compute, form: Annotated[KeyedForm, _form(Role.recognise)], service: Served
) -> dict[str, Any]:
    """Name the faces of a photo: those that the gallery's threshold accepts, if they reach ``min_confidence`` too."""
    gallery, photo = service.gallery(None, form.caller), form.upload.photo("image")
    least = _confidence(form.upload.fields.get("min_confidence"))
    work = functools.partial(recognise, service, gallery, photo, FaceQuery())
    try:
        answer = await compute(work, **shared(service, gallery, "deepstack", photo))
    except FaceError:
        return {"success": True, "predictions": []}
    decided = [each.identification for each in answer.ranked]
    await asyncio.to_thread(service.note_identifications, form.caller, gallery, decided)
    return {"success": True, "predictions": [_prediction(answer, each, least) for each in answer.ranked]}


def _confidence(text: Any) -> float:
    try:
        value = float(text or 0)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value <= 1:
        raise Problem(400, "bad-argument", f"min_confidence: expected 0 to 1, found {text!r:.40}")
    return value


def _prediction(answer: RankedPhoto, ranked: RankedFace, least: float) -> dict[str, Any]:
    face = answer.describe(ranked, FaceQuery())
    best: dict[str, Any] = face["subjects"][0] if face["subjects"] else {"subject": "", "similarity": 0.0}
    known = bool(ranked.identification) and best["similarity"] >= least
    box = {name: face["box"][name] for name in ("x_min", "y_min", "x_max", "y_max")}
    named = {"userid": best["subject"], "confidence": best["similarity"]}
    why = {"decision": face.get("decision")} | {key: face[key] for key in ("reason", "snapshot_age") if key in face}
    return (named if known else {"userid": "unknown", "confidence": 0.0}) | box | why


@router.post("/register")
async def register(compute: Compute, form: Annotated[KeyedForm, _form(Role.enrol)], service: Served) -> dict[str, Any]:
    """Enrol a person by the photos of a form, whatever the names of their fields."""
    gallery, name = service.gallery(None, form.caller), _userid(form)
    photos = [data for _, data in form.upload.photos]
    if not photos:
        raise Problem(400, "missing-photo", "expected a photo in the field 'image', found none")

    await compute(functools.partial(enrol_photos, service, gallery, form.caller, name, photos))
    return {"success": True, "message": "face added"}


@router.post("/delete")
async def delete(compute: Compute, form: Annotated[KeyedForm, _form(Role.enrol)], service: Served) -> dict[str, Any]:
    """Erase a person for good; one who is not there is no error, as in DeepStack."""
    gallery, name = service.gallery(None, form.caller), _userid(form)

    def forget() -> None:
        person = gallery.store.find(name)
        if person is not None:
            erase(service, gallery, form.caller, {person.id: None})

    await compute(forget)
    return {"success": True}


def _userid(form: KeyedForm) -> str:
    name = form.upload.fields.get("userid")
    if not isinstance(name, str) or not name:
        raise Problem(400, "missing-parameter", "expected a name in the field 'userid', found none")
    return name
