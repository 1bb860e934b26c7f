"""The service's own API."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from edgeface.serve.bodies import read_upload
from edgeface.serve.problems import PROBLEM_RESPONSES
from edgeface.serve.routing import Compute, Recognises, Served

PREFIX = "/api/edgeface/v1"
router = APIRouter(prefix=PREFIX, tags=["faces"], responses=PROBLEM_RESPONSES)


@router.post("/identify")
async def identify(
    request: Request,
    compute: Compute,
    caller: Recognises,
    service: Served,
    gallery: str | None = None,
    fpir: Annotated[float | None, Query(gt=0, lt=1)] = None,
) -> dict[str, Any]:
    """Identify the faces of a photo among the people of a gallery."""
    served = service.gallery(gallery, caller)
    photo = (await read_upload(request, "photo")).photo("photo")
    same = ("identify", served.name, fpir, hashlib.sha256(photo).digest())
    faces = await compute(functools.partial(service.identify, photo, served, fpir=fpir), same=same)
    await asyncio.to_thread(service.note_identifications, caller, served, faces)
    return {"gallery": served.name, "faces": [face.to_dict() for face in faces]}
