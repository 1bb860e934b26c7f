"""Answer many photos of one request, one line of JSON a photo, in their order, each as soon as it is computed."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from edgeface.serve.answers import Answer, BatchLine, ProblemAnswer
from edgeface.serve.bodies import decode_base64, media_type, parse_object, read_body, read_upload
from edgeface.serve.problems import Problem, problem_of

_log = logging.getLogger("edgeface.serve")
NDJSON = "application/x-ndjson"


class NdjsonResponse(StreamingResponse):
    """Lines of JSON."""

    media_type = NDJSON


@dataclass(frozen=True, slots=True)
class BatchPhoto:
    """One photo of a batch: its bytes, or what is wrong with it."""

    name: str | None
    data: bytes | Problem


async def read_batch(request: Request, most: int) -> list[BatchPhoto]:
    """Read the photos of a batch.

    Parameters
    ----------
    request
        Its body is ``multipart/form-data`` with the photos in fields ``photo``; ``application/json``, an object with a
        list ``photo`` of base64; or NDJSON, one object a line with ``photo`` in base64 and, if wanted, a ``name``.
    most
        Photos.

    Raises
    ------
    Problem
        If the body as a whole is malformed, has no photos, or more than `most`. A photo that is wrong has its problem.
    """
    kind = media_type(request)
    if kind in (NDJSON, "application/jsonl", "application/json"):
        body = await read_body(request)
        photos = await asyncio.to_thread(_read_json if kind == "application/json" else _read_lines, body, most)
    elif kind == "multipart/form-data":
        upload = await read_upload(request, "photo")
        refuse_fields(request, upload.fields)
        photos = [
            BatchPhoto(
                name or None, data if field == "photo" else Problem(422, "bad-input", f"{field!r:.80}: no such field")
            )
            for (field, data), name in zip(upload.photos, upload.names, strict=True)
        ]
    else:
        raise Problem(
            415, "media-type", f"expected multipart/form-data, application/json or {NDJSON}, found {kind!r:.80}"
        )
    if not 1 <= len(photos) <= most:
        raise Problem(422, "number-of-photos", f"expected 1 to {most} photos, found {len(photos)}")
    return photos


def refuse_fields(request: Request, fields: dict[str, Any]) -> None:
    """Raise `Problem` for fields of the body that are no photos: options are in the query, and none is ignored."""
    unknown = sorted(set(fields) - set(request.query_params))
    if unknown:
        raise Problem(
            422,
            "bad-input",
            f"expected photos in the body and options in the query, found {', '.join(unknown)!r:.200} in the body",
        )


def _read_json(body: bytes, most: int) -> list[BatchPhoto]:
    given = parse_object(body)
    texts = given.pop("photo", None)
    if not isinstance(texts, list) or given:
        raise Problem(422, "bad-input", "expected an object with nothing but a list 'photo' of base64")
    return [_decode(text, None) for text in texts[: most + 1]]


def _read_lines(body: bytes, most: int) -> list[BatchPhoto]:
    lines = [line for line in body.split(b"\n", most + 1)[: most + 1] if line.strip()]
    return [_read_line(line) for line in lines]


def _read_line(line: bytes) -> BatchPhoto:
    try:
        given = parse_object(line)
    except Problem as problem:
        return BatchPhoto(None, problem)
    text, name = given.pop("photo", None), given.pop("name", None)
    if given or not (name is None or (isinstance(name, str) and len(name) <= 1000 and name.isprintable())):
        return BatchPhoto(None, Problem(422, "bad-input", "expected an object of 'photo' and, if wanted, a 'name'"))
    return _decode(text, name)


def _decode(text: Any, name: str | None) -> BatchPhoto:
    try:
        return BatchPhoto(name, decode_base64(text, "photo"))
    except Problem as problem:
        return BatchPhoto(name, problem)


async def answer_lines(
    photos: Sequence[BatchPhoto], compute: Callable[[bytes], Awaitable[Answer]], *, at_once: int
) -> AsyncIterator[bytes]:
    """Yield a `BatchLine` of each photo, in their order; closing the generator cancels what is not computed yet.

    Parameters
    ----------
    photos
        From `read_batch`.
    compute
        Answers one photo; what it raises becomes a line.
    at_once
        Most photos that are computed, or whose answers wait for an earlier one.
    """
    begun: deque[asyncio.Task[bytes]] = deque()
    try:
        for number, photo in enumerate(photos):
            begun.append(asyncio.ensure_future(_line(number, photo, compute)))
            while begun and (begun[0].done() or len(begun) >= at_once):
                yield await begun[0]
                begun.popleft()
        while begun:
            yield await begun[0]
            begun.popleft()
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


async def _line(number: int, photo: BatchPhoto, compute: Callable[[bytes], Awaitable[Answer]]) -> bytes:
    line: dict[str, Any] = {"photo": number} | ({} if photo.name is None else {"name": photo.name})
    try:
        if isinstance(photo.data, Problem):
            raise photo.data
        line["result"] = await compute(photo.data)
    except Exception as error:
        line["problem"] = ProblemAnswer(**problem_of(error).to_dict())
        if line["problem"].code == "internal":
            _log.error("a photo of a batch failed", exc_info=error)
    return BatchLine[Any](**line).model_dump_json(exclude_unset=True).encode() + b"\n"
