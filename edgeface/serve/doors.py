"""Route what is decided at the doors: the events, a stream of new ones, and how the cameras are.

`edgeface.kiosk.doorkeeper` watches; here is what it is asked for. Event ids of the stream are the numbers of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Path, Query, Request
from pydantic import AwareDatetime, Field
from starlette.responses import Response, StreamingResponse

from edgeface.errors import EdgeFaceError
from edgeface.serve.answers import Answer, Cosine, Share
from edgeface.serve.bodies import read_upload
from edgeface.serve.openapi import PREFIX, photo_body, problems
from edgeface.serve.people_answers import LARGEST, Count, PageQuery, PersonId
from edgeface.serve.problems import Problem
from edgeface.serve.routing import Administers, Compute, Enrols, Recognises, Served, address_of
from edgeface.serve.service import Caller, Service

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from edgeface.gallery.records import Person
    from edgeface.vision.image import Image

router = APIRouter(prefix=f"{PREFIX}/kiosk", tags=["kiosk"])

HEARTBEAT = 5.0
"""Seconds between two messages of a stream without events; the key is checked again then."""
_POLL, _LOOK = 0.1, 1.0
"""Seconds between two looks for new events, and at the cameras."""
_PAGE = 100
Kind = Literal["known", "unknown", "inconclusive", "spoof"]


class EventSource(Protocol):
    """What watches the doors of a service, as routes see it; safe to call from threads."""

    @property
    def gallery(self) -> str | None:
        """Name of the gallery that is watched with; None: the configuration has no kiosk."""

    @property
    def names(self) -> bool:
        """Whether streams tell the names of people."""

    @property
    def most_streams(self) -> int:
        """Most streams at once."""

    @property
    def last(self) -> int:
        """Number of the newest event; read without waiting."""

    @property
    def closed(self) -> str:
        """Why nobody can be known now; empty while the cameras are watched."""

    @property
    def pins(self) -> bool:
        """Whether people may be known by a PIN."""

    def picture(self, camera: str) -> bytes:
        """Return the newest picture of a camera, a JPEG file; `Problem` if there is none to be shown."""

    def show(self, camera: str, image: Image) -> None:
        """Take the newest picture of a camera of the source ``browser``; `Problem` for another camera."""

    def admit(self, camera: str, person: Person | None) -> str:
        """Let somebody be known by a PIN, or, None, tell that one was wrong; return the event's kind."""

    def cameras(self) -> Mapping[str, Mapping[str, Any]]:
        """Return how each camera is, by name: the fields of `DoorCamera`."""

    @property
    def decisions(self) -> Mapping[tuple[str, str], int]:
        """How many decisions were recorded since the start, by camera and kind."""

    def outbox(self) -> Mapping[str, tuple[int, int]]:
        """Return how many events each target is still to be told, and how many it is not told any more."""

    def events(
        self, *, after: int, limit: int, names: bool = True, **filters: Any
    ) -> Sequence[tuple[int, Mapping[str, Any]]]:
        """Return numbers and fields of events, in order; `filters` are those of `DoorEventsQuery`."""


class DoorEventsQuery(PageQuery):
    """Of a list of events; `after` and `next` are numbers of events."""

    since: AwareDatetime | None = None
    """First time; with a zone."""
    until: AwareDatetime | None = None
    """Time before which; with a zone."""
    kind: Kind | None = None
    """Outcome."""
    camera: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Name of the camera."""
    person_id: PersonId | None = None
    """Of the gallery."""


class DoorEvent(Answer):
    """One decision at a door."""

    sequence: Count
    """Rises with each event; there are gaps where events were removed."""
    id: str
    """Of the event, as webhooks and MQTT tell it."""
    time: datetime.datetime
    """When it was decided, UTC."""
    camera: str
    """Name of the camera."""
    kind: Kind
    """Outcome."""
    person_id: int | None
    """Null unless known, and once the person was forgotten."""
    name: str | None
    """Of the person."""
    score: Cosine | None
    """Of the most similar person; null: nobody was compared."""
    threshold: Cosine | None
    """What the score has to exceed."""
    contract_id: str
    """Of the embeddings."""
    frames: Count
    """Crops that were compared."""
    liveness: Share | None
    """Probability that the face is live; null: not judged."""
    reason: str
    """What decided."""


class DoorEventsAnswer(Answer):
    """A page of events."""

    events: list[DoorEvent]
    """By rising number."""
    next: int | None
    """`after` of the next page; null: this is the last one."""


class DoorCamera(Answer):
    """How a camera is."""

    state: Literal["connected", "frozen", "lost"]
    """Whether pictures come, and change."""
    source: str
    """Its address, without user and password."""
    picture: Literal["", "shown", "sent"] = ""
    """Whether its picture can be read, or is sent by a browser; empty: neither."""
    age: float | None
    """Seconds since its newest frame; null: there was none, or it is a file."""
    analyzed: Count
    """Frames in which faces were looked for."""
    dropped: Count
    """Frames that newer ones replaced."""
    reconnects: Count
    """How often it was opened again, with success or without."""
    freezes: Count
    """How often its picture froze."""
    latency: float
    """Seconds from the arrival of a frame to the end of its analysis, of the last one."""
    slowest: float
    """The longest of them."""
    error: str
    """What last went wrong."""


class DoorsAnswer(Answer):
    """How the cameras are, and whether anybody can be known."""

    open: bool
    """The cameras are watched, and events recorded."""
    reason: str
    """Why not; empty if they are."""
    cameras: dict[str, DoorCamera]
    """By name; empty while none is watched."""


class Streams:
    """The streams of one application, of which there are not too many; used from its event loop."""

    def __init__(self, source: EventSource | None) -> None:
        self.source, self.ending, self._open = source, False, 0

    def require(self, service: Service, caller: Caller) -> EventSource:
        """Return what watches; `Problem` if nothing does, or with a gallery that the key is not for."""
        if self.source is None or self.source.gallery is None:
            raise Problem(404, "no-kiosk", "there is no kiosk; configure one with the key kiosk")
        service.gallery(self.source.gallery, caller)
        return self.source

    def refuse_if_full(self, most: int) -> None:
        """Raise `Problem` if there are too many streams, or the service stops."""
        if self._open >= most or self.ending:
            raise Problem(503, "overloaded", f"{self._open} streams are open, which is the limit", retry_after=5.0)

    @contextlib.contextmanager
    def counted(self, most: int) -> Iterator[None]:
        """Count a stream until the block ends; `Problem` as `refuse_if_full`."""
        self.refuse_if_full(most)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def degraded(self) -> list[str]:
        """Return which cameras nobody can be known at; for everybody, so that it says no more."""
        if self.source is None or self.source.gallery is None:
            return []
        if self.source.closed:
            return ["the cameras are not watched, or their events not recorded"]
        states = {name: each["state"] for name, each in self.source.cameras().items()}
        return [f"the camera {name} is {state}" for name, state in sorted(states.items()) if state != "connected"]

    def end(self) -> None:
        """End all streams soon, because the service stops."""
        self.ending = True


def _streams(request: Request) -> Streams:
    streams: Streams = request.app.state.streams
    return streams


@router.get("/events", responses=problems(404))
async def kiosk_events(
    request: Request, caller: Enrols, service: Served, query: Annotated[DoorEventsQuery, Query()]
) -> DoorEventsAnswer:
    """List what was decided at the doors, page by page: who came when."""
    source = _streams(request).require(service, caller)
    most = min(query.limit, service.settings.limits.people_page)
    filters = query.model_dump(exclude={"limit"})

    def read() -> DoorEventsAnswer:
        found = source.events(**filters, limit=most)
        people = [query.person_id] if query.person_id else []
        service.note(caller, "kiosk-events", gallery=source.gallery, people=people)
        last = found[-1][0] if len(found) == most else None
        return DoorEventsAnswer.model_validate({"events": [event for _, event in found], "next": last})

    return await asyncio.to_thread(read)


@router.get("/cameras", responses=problems(404))
async def kiosk_cameras(request: Request, caller: Administers, service: Served) -> DoorsAnswer:
    """Say how the cameras are, and whether anybody can be known now."""
    source = _streams(request).require(service, caller)
    cameras, why = await asyncio.to_thread(source.cameras), source.closed
    return DoorsAnswer.model_validate({"open": not why, "reason": why, "cameras": cameras})


_PICTURE = "/cameras/{camera}/picture"
Camera = Annotated[str, Path(min_length=1, max_length=63)]


@router.get(
    _PICTURE,
    response_class=Response,
    responses=problems(404, 503)
    | {200: {"description": "A JPEG.", "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def camera_picture(
    request: Request, camera: Camera, caller: Recognises, service: Served, compute: Compute
) -> Response:
    """Return the newest picture of a camera, if the configuration lets it be shown."""
    source = _streams(request).require(service, caller)
    return Response(await compute(functools.partial(source.picture, camera)), media_type="image/jpeg")


@router.post(
    _PICTURE,
    status_code=204,
    openapi_extra=photo_body("photo"),
    response_description="The picture is the camera's newest.",
    responses=problems(404, 409, 503),
)
async def send_picture(request: Request, camera: Camera, caller: Recognises, service: Served, compute: Compute) -> None:
    """Send the newest picture of a camera whose source is the browser; what is decided comes by the stream."""
    photo = (await read_upload(request, "photo")).photo("photo")
    source = _streams(request).require(service, caller)
    await compute(lambda: source.show(camera, service.read_photo(photo)))


@router.get(
    "/stream",
    response_class=StreamingResponse,
    responses=problems(404)
    | {200: {"description": "Server-Sent Events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def kiosk_stream(request: Request, caller: Recognises, service: Served) -> StreamingResponse:
    """Stream decisions as Server-Sent Events, until the client goes; `Last-Event-ID` resumes from the log.

    `visit` has a decision, without the name unless the configuration shows names, and its `age` in seconds: what is
    old says nothing about who is there now. `status` comes at the beginning, after each change and every five seconds:
    `open`, the state of each camera, whose `pictures` are `shown` or `sent`, and whether there are `pins`. A client
    that gets neither for longer must treat the door as closed.
    """
    streams, given = _streams(request), request.headers.get("last-event-id", "")
    if "edgeface.head" in request.scope:  # what would be streamed has no end
        streams.require(service, caller)
        return StreamingResponse((), media_type="text/event-stream")
    headers = {name.lower(): value for name, value in request.scope["headers"]}
    address = address_of(request.scope)
    authenticate = functools.partial(service.authenticate, headers, address)
    messages, most = await begin_stream(streams, service, caller, given, authenticate)
    await request.body()  # from its end on the gate notices that the client goes
    return _EventStream(messages, streams, most)


class _EventStream(StreamingResponse):
    """Server-Sent Events, one of the streams of which there are not too many; whatever ends it closes its generator."""

    def __init__(self, messages: Messages, streams: Streams, most: int) -> None:
        super().__init__(self._lines(messages), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._messages, self._streams, self._most = messages, streams, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._streams.counted(self._most):
                await super().__call__(scope, receive, send)
        finally:
            await self._messages.aclose()

    @staticmethod
    async def _lines(messages: Messages) -> AsyncIterator[str]:
        with contextlib.suppress(EdgeFaceError):  # the client asks again, and is told why
            async for each in messages:
                head = f"id: {each['id']}\n" if "id" in each else ""
                yield f"{head}event: {each['event']}\ndata: {json.dumps(each['data'])}\n\n"


Messages = AsyncGenerator[dict[str, Any], None]
"""What a stream tells: `event`, `data`, and `id`, which is the number of a decision."""


async def begin_stream(
    streams: Streams, service: Service, caller: Caller, given: str, authenticate: Callable[[], object]
) -> tuple[Messages, int]:
    """Return the messages of a stream, and how many streams there may be; `Problem` for a caller who gets none.

    `given` is the number of the last event that the client has, empty for none; `authenticate` raises `Problem` once
    the key has ended, which ends the messages.
    """
    source = streams.require(service, caller)
    if given and not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= LARGEST):
        raise Problem(422, "bad-input", "the last event: expected the number of an event")
    after = min(int(given), source.last) if given else source.last
    streams.refuse_if_full(source.most_streams)
    await asyncio.to_thread(service.note, caller, "kiosk-stream", gallery=source.gallery)
    return _tell(streams, source, authenticate, after), source.most_streams


async def _tell(streams: Streams, source: EventSource, authenticate: Callable[[], object], after: int) -> Messages:
    """Yield messages until the service stops, the key ends or another gallery is watched with."""
    gallery, told, beat, look = source.gallery, dict[str, Any](), 0.0, 0.0
    while not streams.ending and source.gallery == gallery:
        waiting = source.last > after
        if waiting or time.monotonic() >= look:
            now, status = time.monotonic(), _status(source)
            if status != told or now >= beat:
                authenticate()
                told, beat = status, now + HEARTBEAT
                # before a decision: clients show none at a door that they hold to be closed
                yield {"event": "status", "data": status}
            look = now + _LOOK
        if waiting:
            found = await asyncio.to_thread(source.events, after=after, limit=_PAGE, names=source.names)
            for after, event in found:
                yield {"event": "visit", "id": after, "data": _visit(event)}
        await asyncio.sleep(_POLL)


def _visit(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return a decision with its age: large, too, if the clock was set back since."""
    when = datetime.datetime.fromisoformat(event["time"])
    age = (datetime.datetime.now(datetime.timezone.utc) - when).total_seconds()
    return {**event, "age": round(abs(age), 3)}


def _status(source: EventSource) -> dict[str, Any]:
    cameras = source.cameras()
    states = {name: each["state"] for name, each in cameras.items()}
    pictures = {name: each["picture"] for name, each in cameras.items() if each.get("picture")}
    return {"open": not source.closed, "cameras": states, "pictures": pictures, "pins": source.pins}
