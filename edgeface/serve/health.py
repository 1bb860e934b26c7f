"""Say whether the service lives and can answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from edgeface.errors import EdgeFaceError, SnapshotTooOldError
from edgeface.serve.answers import Answer
from edgeface.serve.service import Service, self_test
from edgeface.serve.snapshots import describe_age

router = APIRouter(prefix="/health", tags=["health"])
_log = logging.getLogger(__name__)

PROBE_SECONDS = 10.0
"""Between two probes of a service that nobody asks: FaceNet takes 0.3 % of a core so."""
LOST_SECONDS = 30.0
"""Without an answer of the engine after which the service does not live."""


class LiveAnswer(Answer):
    """Whether the event loop and the models answer."""

    live: bool
    """They do."""


class ReadyAnswer(Answer):
    """Whether the service can answer, and what is in the way."""

    ready: bool
    """It can."""
    reasons: list[str]
    """Empty if it is ready."""
    degraded: list[str]
    """What does not work while the service can answer all the same: cameras, and the servers of galleries that are
    answered from a snapshot, with its age."""


class Probe:
    """Embeds an image with each model from time to time, so that a device that hangs or is lost is noticed."""

    def __init__(self, service: Service) -> None:
        self._service, self._seen = service, time.monotonic()

    @property
    def answers(self) -> bool:
        """Whether all models answered lately."""
        return time.monotonic() - self._seen < LOST_SECONDS

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                await asyncio.to_thread(self._probe)
                self._seen = time.monotonic()
            except Exception:
                _log.exception("a model does not answer")

    def _probe(self) -> None:
        for name in self._service.models.names():
            with self._service.models.use(name) as model:
                self_test(model.analyzer)


@router.get("/live", response_model=LiveAnswer, responses={503: {"model": LiveAnswer, "description": "They do not."}})
async def live(request: Request) -> JSONResponse:
    """Answer 200 while the event loop and the models answer, else 503."""
    answers = request.app.state.probe.answers
    return JSONResponse({"live": answers}, 200 if answers else 503)


@router.get(
    "/ready",
    response_model=ReadyAnswer,
    responses={503: {"model": ReadyAnswer, "description": "It cannot, for a while."}},
)
async def ready(request: Request) -> JSONResponse:
    """Answer 200 if all galleries can be read, their models are loaded, and the queue has room; else 503."""
    reasons, degraded = await find_reasons(request.app.state), request.app.state.streams.degraded()
    degraded = [*degraded, *await asyncio.to_thread(_find_degraded, request.app.state.service)]
    answer = {"ready": not reasons, "reasons": reasons, "degraded": degraded}
    return JSONResponse(answer, 503 if reasons else 200)


async def find_reasons(state: Any) -> list[str]:
    """Return why the application of this state cannot answer; none if it can."""
    reasons = await asyncio.to_thread(_find_reasons, state.service)
    return [*reasons, "the queue is full"] if state.work.full else reasons


def _find_degraded(service: Service) -> Iterator[str]:
    """Yield which galleries are answered from a snapshot because their server is away, and what waits for somebody."""
    for name, gallery in service.galleries.items():
        if (keeper := gallery.keeper) is None:
            continue
        if keeper.away and (age := keeper.seconds()) is not None:
            yield f"the server of the gallery {name} is away; its snapshot is {describe_age(age)} old"
        with contextlib.suppress(EdgeFaceError):  # the queue's file is gone: whoever uses it is told
            counts = keeper.queue.count()
            if counts["queued"]:
                yield f"the gallery {name}: {counts['queued']} enrolments or erasures wait for its server"
            if counts["conflict"]:
                yield f"the gallery {name}: {counts['conflict']} enrolments or erasures are in conflict: decide them"


def _find_reasons(service: Service) -> list[str]:
    needed = {gallery.options.model for gallery in service.galleries.values()}  # others may be unloaded on purpose
    reasons = [f"the model {name} is not loaded" for name in sorted(needed - {*service.models.names()})]
    for name, gallery in service.galleries.items():
        try:
            gallery.searched.generation()
            if gallery.keeper is not None:
                gallery.keeper.require_fresh()
        except SnapshotTooOldError as error:
            reasons.append(str(error))
        except Exception as error:  # whatever it is, it cannot be searched
            _log.warning("gallery %s: %s", name, error)
            reasons.append(f"the gallery {name} cannot be read")
    return reasons
