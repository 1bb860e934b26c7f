"""Build the ASGI application: what every request passes before and after its route."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
import traceback
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from edgeface.errors import EdgeFaceError, Overloaded
from edgeface.serve import (
    api,
    compreface,
    compreface_faces,
    deepstack,
    doors,
    health,
    job_routes,
    kserve,
    metrics,
    offline,
    pages,
    people,
    pins,
    sockets,
    visitors,
)
from edgeface.serve.cors import cors_headers, preflight
from edgeface.serve.jobs import JobRunner
from edgeface.serve.metrics import Metrics, choose_request_id, start_telemetry
from edgeface.serve.openapi import describe_api
from edgeface.serve.problems import Problem, is_operators, problem_of
from edgeface.serve.routing import address_of, render_problem
from edgeface.serve.service import Caller, Service
from edgeface.serve.work import WorkQueue
from edgeface.version import __version__

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("edgeface.serve")

_HEALTH = {"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"}
OPEN_PATHS = frozenset({*_HEALTH, visitors.FORGET}) | pages.PAGES
"""All that needs no key."""
ROUTERS = (
    health.router,
    metrics.router,
    api.router,
    people.router,
    offline.router,
    visitors.router,
    pins.router,
    job_routes.router,
    doors.router,
    pages.router,
)
"""What the OpenAPI document describes; others' APIs are described by others."""
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
)

_DIALECTS: dict[str, Callable[[Problem], Response]] = {
    f"{compreface.PREFIX}/": compreface.render_compreface,
    f"{deepstack.PREFIX}/": deepstack.render_deepstack,
    "/v2": kserve.render_problem,
}
"""How the paths below a prefix word their problems; as `render_problem` for all others."""


def render(path: str, problem: Problem) -> Response:
    """Word a problem as clients of this path expect it."""
    for prefix, renderer in _DIALECTS.items():
        if path.startswith(prefix):
            return renderer(problem)
    return render_problem(problem)


# What every request passes


class RequestGate:
    """Names each request, asks for its key, holds its limits, cancels it when its client leaves, and logs it.

    Pure ASGI, outside of everything else: what it refuses costs no more than its headers.
    """

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics) -> None:
        self._app, self.service, self.metrics = app, service, metrics
        self.held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if root := self.service.settings.listen.root_path:  # which a proxy takes away, or leaves there
            path = scope["path"]
            scope = dict(scope, root_path=root, path=path[len(root) :] if path.startswith(f"{root}/") else path)
        if scope["type"] == "websocket":
            await sockets.serve_socket(scope, receive, send, self.service, self.metrics)
            return
        exchange = _Exchange(self, scope, receive, send)
        answer = exchange.answer_browser()
        try:
            if answer is None:
                exchange.admit()
            await exchange.run(self._app if answer is None else answer)
        except Exception as error:
            if exchange.answers:
                raise
            refusal = await _answer_error(Request(scope), error)
            await refusal(scope, receive, exchange.send)
        finally:
            exchange.end()


class _Exchange:
    """One request and its answer."""

    def __init__(self, gate: RequestGate, scope: Scope, receive: Receive, send: Send) -> None:
        self._gate, self._metrics, service = gate, gate.metrics, gate.service
        self._service, self._scope, self._receive, self._send = service, scope, receive, send
        self._headers = {name.lower(): value for name, value in scope["headers"]}
        self._metrics.begin(self._headers.get(b"traceparent", b"").decode("latin-1"))
        self._id = choose_request_id(self._headers.get(b"x-request-id", b"").decode("latin-1"))
        self._began, self._received, self._held, self._status = time.monotonic(), 0, 0, 0
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Future[None] | None = None  # from the end of the body on
        self._why: str | None = None  # it was ended
        limits = service.settings.limits
        self._method = scope["method"]
        self._most, self._body_until = limits.body_bytes, self._began + limits.body_seconds
        self._most_held: float = limits.body_bytes * (limits.workers + limits.queue)
        if self._method == "POST" and job_routes.PATH.fullmatch(scope["path"]):
            self._most, self._body_until = limits.job_bytes, self._began + limits.job_seconds
            self._most_held = math.inf  # written to the disk as they arrive
        scope["edgeface.request_id"] = self._id
        if self._method == "HEAD":  # as GET, without the body (RFC 9110, section 9.3.2)
            self._scope = {**scope, "method": "GET", "edgeface.head": True}

    @property
    def answers(self) -> bool:
        """Whether an answer has begun, which no other can follow."""
        return self._status > 0

    def answer_browser(self) -> ASGIApp | None:
        """Return the answer to a preflight request, which has no key; None for all others."""
        return preflight(self._method, self._headers, self._service.settings.origins)

    def admit(self) -> None:
        """Raise `Problem` for what is refused by its headers alone."""
        if self._headers.get(b"upgrade", b"").lower() == b"websocket":
            raise Problem(400, "no-websocket", f"expected a request over HTTP: the only WebSocket is {sockets.SOCKET}")
        self._scope["edgeface.deadline"] = self._deadline()
        length = self._headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._most:
            raise self._too_large(length[:18].decode("latin-1"))
        if self._scope["path"] not in OPEN_PATHS:
            address = address_of(self._scope)
            if self._scope["path"] in deepstack.PATHS and not self._headers.keys() & {b"x-api-key", b"authorization"}:
                self._service.admit_address(address)  # the key is in the form
                return
            key = self._service.authenticate(self._headers, address)
            self._scope["edgeface.caller"] = Caller(key=key, request_id=self._id)

    def _deadline(self) -> float:
        most = self._service.settings.limits.seconds
        given = self._headers.get(b"x-request-timeout")
        try:
            seconds = most if given is None else float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise Problem(400, "bad-timeout", "X-Request-Timeout: expected seconds above 0")
        return self._began + min(seconds, most)

    def _too_large(self, found: str) -> Problem:
        return Problem(413, "too-large", f"expected a body of at most {self._most} bytes, found {found}")

    async def run(self, app: ASGIApp) -> None:
        """Let the routes answer; end them when the client has gone, or sends too slowly."""
        loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        late = loop.call_later(self._body_until - time.monotonic(), self._end, "slow")
        try:
            await app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if self._why is None:  # the service stops
                raise
            if self._why == "slow" and not self._status:
                slow = Problem(408, "too-slow", "the body did not arrive in time; send it faster, or send less")
                await render(self._scope["path"], slow)(self._scope, self._receive, self._closing)
            self._status = self._status or 499  # as nginx calls it
        finally:
            late.cancel()
            if self._watch is not None:
                self._watch.cancel()
            self._task = None

    def _end(self, why: str) -> None:
        if self._task is not None and not (why == "slow" and self._watch is not None):
            self._why = why
            self._task.cancel()

    async def receive(self) -> Message:
        """Give the body, of which no more arrives than the limit; from its end on, watch the client."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += (more := len(message.get("body", b"")))
            if self._most_held < math.inf:
                self._held += more
                self._gate.held += more
            if self._received > self._most:
                raise self._too_large(f"{self._received} so far")
            if self._gate.held > self._most_held:  # by many at once, before any of them could be refused for the queue
                raise Overloaded("more is being sent than can be held; try again in a second")
            if not message.get("more_body", False) and self._watch is None:
                self._watch = asyncio.ensure_future(self._gone())
        return message

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._end("gone")

    async def _closing(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"].append((b"connection", b"close"))
        await self.send(message)

    async def send(self, message: Message) -> None:
        """Pass the answer on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            there = {name.lower() for name, _ in message["headers"]}
            message = dict(message)
            message["headers"] = [
                *message["headers"],
                *((name, value) for name, value in _HEADERS if name not in there),
                *cors_headers(self._headers, self._service.settings.origins),
                (b"x-request-id", self._id.encode()),
            ]
        elif self._method == "HEAD":
            message = dict(message, body=b"")
        await self._send(message)

    def end(self) -> None:
        """Count the request, and log it."""
        self._gate.held -= self._held
        route = getattr(self._scope.get("route"), "path", "none")
        known = "edgeface.caller" in self._scope
        self._metrics.end(self._id, self._method, route, self._status, self._began, self._received, known=known)


def create_app(service: Service, events: doors.EventSource | None = None) -> FastAPI:
    """Return the application of a service; the service is closed by its owner, and so is what watches its doors.

    Everything but `OPEN_PATHS` needs a key, and every route names the role of it; `deepstack.PATHS` take it from the
    form.
    """
    limits, telemetry = service.settings.limits, start_telemetry(service.settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        probing = asyncio.ensure_future(app.state.probe.run())
        app.state.jobs.start()
        try:
            yield
        finally:
            probing.cancel()
            await asyncio.to_thread(app.state.jobs.stop)
            app.state.work.close()
            if telemetry is not None:
                await asyncio.to_thread(telemetry.close)

    app = FastAPI(
        title="edgeface",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # to an address made of the header Host
    )
    told = {} if telemetry is None else {"told": telemetry.waited}
    app.state.service, app.state.work = service, WorkQueue(limits.workers, limits.queue, **told)
    service.deliver = functools.partial(offline.deliver, service)
    app.state.probe, app.state.jobs = health.Probe(service), JobRunner(service, app.state.work)
    app.state.streams, app.state.guesses = doors.Streams(events), pins.Guesses()
    app.add_exception_handler(EdgeFaceError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    for router in (*ROUTERS, kserve.router, compreface.router, compreface_faces.router, deepstack.router):
        app.include_router(router)
    app.openapi = describe  # type: ignore[method-assign]
    measured = metrics.Metrics(service, app.state.work, telemetry, events)
    app.state.metrics, app.state.reads = measured, deepstack.KeylessReads()
    app.add_middleware(RequestGate, service=service, metrics=app.state.metrics)
    return app


@functools.cache
def describe() -> dict[str, Any]:
    """Return the OpenAPI document of the service, which depends on no configuration; it is not to be changed."""
    return describe_api([route for router in ROUTERS for route in router.routes])


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    if isinstance(error, RequestValidationError):
        problem = Problem(
            422, "bad-input", "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        )
    elif isinstance(error, HTTPException):
        code = {404: "no-such-path", 405: "method"}.get(error.status_code, "refused")
        problem = Problem(error.status_code, code, str(error.detail))
    else:
        problem = problem_of(error)
    if is_operators(problem):
        _log.error("request failed", exc_info=error, extra={"request_id": request.scope.get("edgeface.request_id")})
    traceback.clear_frames(error.__traceback__)  # in a cycle with a future: they would keep the body
    response = render(request.url.path, problem)
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)  # Allow, of 405
    return response
