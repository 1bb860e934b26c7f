"""Route the service's own API: faces of photos, models, and many photos in one request."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from edgeface.recognize.identify import Identification
from edgeface.serve import faces
from edgeface.serve.answers import (
    AnalyzeAnswer,
    AnalyzeLine,
    Answer,
    EmbedAnswer,
    EmbedLine,
    IdentifyAnswer,
    IdentifyLine,
    ModelDetailAnswer,
    ModelsAnswer,
    ThresholdsAnswer,
    VerifyAnswer,
)
from edgeface.serve.batch import NdjsonResponse, answer_lines, read_batch, refuse_fields
from edgeface.serve.bodies import read_upload
from edgeface.serve.faces import AnalyzeOptions, EmbedOptions, IdentifyOptions, ThresholdOptions, VerifyOptions
from edgeface.serve.openapi import PREFIX, batch_body, photo_body, problems
from edgeface.serve.routing import Compute, Computing, Recognises, Served, shared
from edgeface.serve.service import ServedGallery, Service
from edgeface.vision.detector import FoundBy

router = APIRouter(prefix=PREFIX, tags=["faces"])
_ONE = photo_body("photo")


@dataclass(frozen=True, slots=True)
class _Task:
    """What an operation makes of a photo.

    `work` is shared by all who ask for the `same` at a time, of a model or a gallery that does not change meanwhile;
    `finish` makes each one's answer of what it returned, and writes the audit log.
    """

    service: Service
    reads: ServedGallery | str
    work: Callable[[bytes], Any]
    same: Hashable
    finish: Callable[[Any], Answer] | None = None

    async def answer(self, run: Callable[..., Awaitable[Any]], photo: bytes) -> Answer:
        """Compute the answer by a method of `Computing`."""
        same = shared(self.service, self.reads, self.same, photo)
        result = await run(functools.partial(self.work, photo), **same)
        return result if self.finish is None else await asyncio.to_thread(self.finish, result)


async def _answer_one(request: Request, compute: Computing, task: _Task) -> Response:
    upload = await read_upload(request, "photo")
    refuse_fields(request, upload.fields)
    return _render(await task.answer(compute, upload.photo("photo")))


def _render(answer: Answer) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _answer_many(request: Request, service: Service, compute: Computing, task: _Task) -> NdjsonResponse:
    limits = service.settings.limits
    photos = await read_batch(request, limits.images)
    one = functools.partial(task.answer, compute.when_free)
    return NdjsonResponse(answer_lines(photos, one, at_once=limits.workers))


def _analyzing(service: Service, options: AnalyzeOptions) -> _Task:
    service.models.require(name := faces.name_of_model(service, options))
    return _Task(service, name, functools.partial(faces.analyze, service, options), ("analyze", options))


def _embedding(service: Service, options: EmbedOptions) -> _Task:
    service.models.require(name := faces.name_of_model(service, options))
    return _Task(service, name, functools.partial(faces.embed, service, options), ("embed", options))


def _identifying(service: Service, options: IdentifyOptions, caller: Recognises) -> _Task:
    gallery = service.gallery(options.gallery, caller)

    def finish(answered: tuple[list[Identification], FoundBy]) -> IdentifyAnswer:
        found, found_by = answered
        service.note_identifications(caller, gallery, found)
        answer = {"gallery": gallery.name, "snapshot_age": gallery.snapshot_age, **asdict(found_by)}
        return IdentifyAnswer.model_validate(answer | {"faces": [each.to_dict() for each in found]})

    work = functools.partial(service.identify, gallery=gallery, fpir=options.fpir)
    return _Task(service, gallery, work, ("identify", options.fpir), finish)


@router.post("/analyze", response_model=AnalyzeAnswer, openapi_extra=_ONE, responses=problems(404))
async def analyze(
    request: Request, compute: Compute, caller: Recognises, service: Served, options: Annotated[AnalyzeOptions, Query()]
) -> Response:
    """Find the faces of a photo: boxes, landmarks and quality; embeddings if asked for."""
    return await _answer_one(request, compute, _analyzing(service, options))


@router.post(
    "/verify", response_model=VerifyAnswer, openapi_extra=photo_body("photo_a", "photo_b"), responses=problems(404, 409)
)
async def verify(
    request: Request, compute: Compute, caller: Recognises, service: Served, options: Annotated[VerifyOptions, Query()]
) -> Response:
    """Decide whether two photos show one person, by the threshold of a false accept rate."""
    upload = await read_upload(request, "photo_a", "photo_b")
    refuse_fields(request, upload.fields)
    photos = [upload.photo(name) for name in ("photo_a", "photo_b")]
    same = shared(service, faces.name_of_model(service, options), ("verify", options), *photos)
    answer: VerifyAnswer = await compute(functools.partial(faces.verify, service, options, *photos), **same)
    decision = "matched" if answer.matched else "different"
    await asyncio.to_thread(service.note, caller, "verify", decision=decision, contract_id=answer.contract_id)
    return _render(answer)


@router.post("/identify", response_model=IdentifyAnswer, openapi_extra=_ONE, responses=problems(404, 409))
async def identify(
    request: Request,
    compute: Compute,
    caller: Recognises,
    service: Served,
    options: Annotated[IdentifyOptions, Query()],
) -> Response:
    """Identify the faces of a photo among the people of a gallery."""
    return await _answer_one(request, compute, _identifying(service, options, caller))


@router.post("/embed", response_model=EmbedAnswer, openapi_extra=_ONE, responses=problems(404))
async def embed(
    request: Request, compute: Compute, caller: Recognises, service: Served, options: Annotated[EmbedOptions, Query()]
) -> Response:
    """Embed one face of a photo, the largest one near its centre."""
    return await _answer_one(request, compute, _embedding(service, options))


# Many photos in one request

_BATCH: dict[str, Any] = {"response_class": NdjsonResponse, "openapi_extra": batch_body()}


@router.post("/analyze/batch", response_model=AnalyzeLine, responses=problems(404), **_BATCH)
async def analyze_batch(
    request: Request, compute: Compute, caller: Recognises, service: Served, options: Annotated[AnalyzeOptions, Query()]
) -> Response:
    """Analyze several photos; answer one line of JSON a photo, in their order, as soon as it is computed."""
    return await _answer_many(request, service, compute, _analyzing(service, options))


@router.post("/identify/batch", response_model=IdentifyLine, responses=problems(404), **_BATCH)
async def identify_batch(
    request: Request,
    compute: Compute,
    caller: Recognises,
    service: Served,
    options: Annotated[IdentifyOptions, Query()],
) -> Response:
    """Identify the faces of several photos; answer one line of JSON a photo, in their order."""
    return await _answer_many(request, service, compute, _identifying(service, options, caller))


@router.post("/embed/batch", response_model=EmbedLine, responses=problems(404), **_BATCH)
async def embed_batch(
    request: Request, compute: Compute, caller: Recognises, service: Served, options: Annotated[EmbedOptions, Query()]
) -> Response:
    """Embed one face of each of several photos; answer one line of JSON a photo, in their order."""
    return await _answer_many(request, service, compute, _embedding(service, options))


# Models


@router.get("/models", tags=["models"])
async def models(caller: Recognises, service: Served) -> ModelsAnswer:
    """List the models that answer."""
    return ModelsAnswer(models=faces.list_models(service, caller))


@router.get("/models/{model}", tags=["models"])
async def model(model: str, caller: Recognises, service: Served) -> ModelDetailAnswer:
    """Describe a model: what computes it, and its contract."""
    return faces.describe_model(service, model, caller)


@router.get("/models/{model}/thresholds", tags=["models"])
async def thresholds(
    model: str, caller: Recognises, service: Served, compute: Compute, options: Annotated[ThresholdOptions, Query()]
) -> ThresholdsAnswer:
    """Return a model's thresholds of verification by false accept rate, and one of identification if asked for."""
    answer: ThresholdsAnswer = await compute(functools.partial(faces.thresholds, service, model, options))
    return answer
