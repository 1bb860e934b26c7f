"""Answer CompreFace's paths for photos and embeddings, so that its clients need no change.

Bodies, statuses and codes are those of CompreFace 1.2. The collection of a key is its gallery. Beside what CompreFace
answers, a face has ``decision``, ``threshold`` and ``contract_id``, and each similarity the ``cosine`` it comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse, Response

from edgeface.gallery.records import Person
from edgeface.model.contract import ModelContract
from edgeface.model.embedding import Embedding, what_is_wrong
from edgeface.recognize.identify import Identification
from edgeface.serve.bodies import read_upload
from edgeface.serve.matching import (
    FaceQuery,
    PairComparer,
    detect_faces,
    pair_threshold,
    rank_embeddings,
    recognise,
    subject_like,
    verify_faces,
)
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.routing import Compute, Recognises, Served, shared
from edgeface.serve.service import ServedGallery, Service
from edgeface.serve.similarity import scale_of

PREFIX = "/api/v1"
router = APIRouter(prefix=PREFIX, include_in_schema=False)

# How problems are worded

_CODES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "no-key": (400, 20),
        "key-malformed": (400, 26),
        **dict.fromkeys(("key-unknown", "key-expired", "key-revoked", "no-such-gallery"), (404, 10)),
        "wrong-role": (403, 1),
        **dict.fromkeys(("method", "no-such-path"), (404, 0)),
        "no-face": (400, 28),
        **dict.fromkeys(("several-faces", "too-many-faces"), (400, 31)),
        **dict.fromkeys(("bad-image", "not-base64"), (400, 21)),
        **dict.fromkeys(("bad-parameter", "bad-name", "gallery"), (400, 26)),
        "missing-parameter": (400, 33),
        **dict.fromkeys(("missing-photo", "too-many-photos"), (400, 34)),
        **dict.fromkeys(("lookalike", "several-people", "poor-quality"), (400, 36)),
        **dict.fromkeys(("bad-argument", "bad-input", "malformed-body"), (400, 36)),
        "embedding-count": (400, 37),
        **dict.fromkeys(("no-such-subject", "no-such-person"), (404, 42)),
        "subject-exists": (400, 43),
        **dict.fromkeys(("no-such-image", "no-such-template"), (404, 44)),
        "prediction-count": (404, 400),
    }
)
"""By the word of a problem: status and code."""
_WORDS: Mapping[int, str] = MappingProxyType(
    {
        10: "Recognition service with this API Key not found",
        20: "Missing header: x-api-key",
        28: "No face is found in the given image",
    }
)
"""Messages that clients compare, and one that must not repeat the key."""


def render_compreface(problem: Problem) -> Response:
    """Word a problem as CompreFace does; what it has no code for keeps its status, with code 41 from 500 on, else 0."""
    word = problem.code
    if word == "no-usable-photo" and problem.errors:
        word = str(problem.errors[0]["code"])
    status, code = _CODES.get(word, (problem.status, 41 if problem.status >= 500 else 0))
    body = {"message": _WORDS.get(code, str(problem)), "code": code}
    if code == 28:
        body["detail"] = str(problem)
    headers = {name: value for name, value in problem.headers.items() if name == "Retry-After"}
    return JSONResponse(body, status, headers=headers)


# What a request asks for


_BOOLEANS = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}


def read_query(request: Request) -> FaceQuery:
    """Read a query as CompreFace does: what is empty or not known counts as absent."""
    given = request.query_params
    score = read_parameter(request, "det_prob_threshold", float, 0.0)
    if not 0 <= score <= 1:
        raise Problem(400, "bad-parameter", f"det_prob_threshold: expected 0 to 1, found {score:g}")
    predictions = read_parameter(request, "prediction_count", int, 1)
    if predictions < 1:
        raise Problem(404, "prediction-count", f"prediction_count: expected 1 or more, found {predictions}")
    return FaceQuery(
        limit=read_parameter(request, "limit", int, 0, least=0),
        predictions=predictions,
        least_score=score,
        plugins=frozenset(each.strip() for each in given.get("face_plugins", "").split(",")),
        status=read_parameter(request, "status", _boolean, False),
        detect=read_parameter(request, "detect_faces", _boolean, True),
    )


def read_parameter(
    request: Request, name: str, kind: Callable[[str], Any], default: Any, *, least: int | None = None
) -> Any:
    """Return a parameter of the query; `Problem` if it is of another kind, or below `least`."""
    text = request.query_params.get(name) or ""
    try:
        value = kind(text) if text else default
    except (ValueError, KeyError):
        raise Problem(400, "bad-argument", f"{name}: expected another value than {text!r:.40}") from None
    if least is not None and value < least:
        raise Problem(400, "bad-parameter", f"{name}: expected {least} or more, found {value}")
    return value


def _boolean(text: str) -> bool:
    return _BOOLEANS[text.strip().lower()]  # Python's clients send True


Wanted = Annotated[FaceQuery, Depends(read_query)]


def image_id(gallery: ServedGallery, template_id: int) -> str:
    """Return the UUID by which clients know a template, the same for as long as there is one.

    It is of version 8 (RFC 9562): 60 bits of the gallery's id, then the number of the template in 62. So there is no
    table of them to keep, and `template_of` reads the number back.
    """
    digits = gallery.store.info.gallery_id
    return str(uuid.UUID(f"{digits[:12]}8{digits[12:15]}{(1 << 63) | template_id:016x}"))


def template_of(gallery: ServedGallery, text: str) -> int:
    """Return the number of the template that an `image_id` names, whether or not it is there."""
    try:
        given = uuid.UUID(text)
    except ValueError:
        raise Problem(400, "bad-argument", f"image_id: expected a UUID, found {text!r:.40}") from None
    number = given.int & ((1 << 62) - 1)
    if image_id(gallery, number) != str(given):
        raise NotFound("image", text)
    return number


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object of a body without photos."""
    return (await read_upload(request)).fields


def plugin_versions(service: Service, gallery: ServedGallery, query: FaceQuery) -> dict[str, Any]:
    """Return what ``status=true`` adds to an answer."""
    if not query.status:
        return {}
    with service.models.use(gallery.options.model) as model:
        finder, name = model.analyzer.detector, model.contract.name
    found_by = "crop" if finder is None else finder.name
    return {"plugins_versions": {"detector": f"edgeface.{found_by}", "calculator": f"edgeface.{name}"}}


# Photos


@router.post("/recognition/recognize")
async def recognize(
    request: Request, query: Wanted, compute: Compute, caller: Recognises, service: Served
) -> dict[str, Any]:
    """Rank the people of the key's gallery for each face."""
    gallery = service.gallery(None, caller)
    photo = (await read_upload(request, "file")).photo("file")
    work = functools.partial(recognise, service, gallery, photo, query)
    answer = await compute(work, **shared(service, gallery, ("compreface", query), photo))
    decided = [each.identification for each in answer.ranked]
    await asyncio.to_thread(service.note_identifications, caller, gallery, decided)
    result = [answer.describe(each, query) for each in answer.ranked]
    return {"result": result, **plugin_versions(service, gallery, query)}


@router.post("/detection/detect")
async def detect(
    request: Request, query: Wanted, compute: Compute, caller: Recognises, service: Served
) -> dict[str, Any]:
    """Find the faces of a photo."""
    gallery = service.gallery(None, caller)
    photo = (await read_upload(request, "file")).photo("file")
    result = await compute(functools.partial(detect_faces, service, gallery, photo, query))
    return {"result": result, **plugin_versions(service, gallery, query)}


@router.post("/verification/verify")
async def verify_photos(
    request: Request, query: Wanted, compute: Compute, caller: Recognises, service: Served
) -> dict[str, Any]:
    """Compare the only face of ``source_image`` with all faces of ``target_image``."""
    gallery = service.gallery(None, caller)
    upload = await read_upload(request, "source_image", "target_image")
    photos = upload.photo("source_image"), upload.photo("target_image")
    answer = await compute(functools.partial(verify_faces, service, gallery, photos, query))
    await asyncio.to_thread(service.note, caller, "verify", gallery=gallery.name)
    return {"result": [{**answer, **plugin_versions(service, gallery, query)}]}


# Embeddings


@router.post("/recognition/embeddings/recognize")
async def recognize_embeddings(
    request: Request, query: Wanted, compute: Compute, caller: Recognises, service: Served
) -> dict[str, Any]:
    """Rank the people of the key's gallery for each embedding."""
    gallery = service.gallery(None, caller)
    given = (await read_object(request)).get("embeddings")

    def rank() -> tuple[list[dict[str, Any]], list[Identification | None]]:
        probes, scale = read_embeddings(service, gallery, given), scale_of(_contract(service, gallery))
        ranked = rank_embeddings(service, gallery, probes, query)
        age = {} if gallery.snapshot_age is None else {"snapshot_age": round(gallery.snapshot_age, 1)}
        found = [
            {"embedding": probe.vector.tolist(), "similarities": [subject_like(each, scale) for each in people]}
            | ({"reason": decided.reason} if decided is not None and decided.reason else {})
            | age
            for probe, (people, decided) in zip(probes, ranked, strict=True)
        ]
        return found, [decided for _, decided in ranked]

    result, decided = await compute(rank)
    await asyncio.to_thread(service.note_identifications, caller, gallery, decided)
    return {"result": result}


@router.post("/verification/embeddings/verify")
async def verify_embeddings(request: Request, compute: Compute, caller: Recognises, service: Served) -> dict[str, Any]:
    """Compare ``source`` with each of ``targets``."""
    gallery = service.gallery(None, caller)
    given = await read_object(request)

    def compare() -> list[dict[str, Any]]:
        (source,) = read_embeddings(service, gallery, [given.get("source")])
        return compare_embeddings(service, gallery, source, read_embeddings(service, gallery, given.get("targets")))

    result = await compute(compare)
    await asyncio.to_thread(service.note, caller, "verify", gallery=gallery.name)
    return {"result": result}


def compare_embeddings(
    service: Service,
    gallery: ServedGallery,
    reference: Embedding,
    probes: Sequence[Embedding],
    whose: Person | None = None,
) -> list[dict[str, Any]]:
    """Compare embeddings with one, as CompreFace answers it."""
    contract = _contract(service, gallery)
    comparer = PairComparer(reference, pair_threshold(gallery, contract), scale_of(contract), whose)
    return [{"embedding": probe.vector.tolist(), **comparer.compare(probe)} for probe in probes]


def read_embeddings(service: Service, gallery: ServedGallery, given: Any) -> list[Embedding]:
    """Return embeddings of JSON, which count as those of the gallery's model; `Problem` for other lists."""
    most, contract = service.settings.limits.faces, _contract(service, gallery)
    if not isinstance(given, list) or not 1 <= len(given) <= most:
        raise Problem(400, "embedding-count", f"expected a list of 1 to {most} embeddings, found another one")
    found = []
    for each in given:
        if not isinstance(each, list) or len(each) != contract.embedding_dim:
            raise Problem(400, "embedding-count", f"expected embeddings of {contract.embedding_dim} numbers")
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in each):
            raise Problem(400, "bad-argument", "expected embeddings of numbers")
        with np.errstate(over="ignore"), contextlib.suppress(OverflowError):
            vector = np.full(len(each), np.inf, np.float32)
            vector[:] = each
        if wrong := what_is_wrong(vector):
            raise Problem(400, "bad-argument", wrong)
        found.append(Embedding(vector, contract.contract_id))
    return found


def _contract(service: Service, gallery: ServedGallery) -> ModelContract:
    with service.models.use(gallery.options.model) as model:
        return model.contract
