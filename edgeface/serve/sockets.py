"""Tell over a WebSocket what `doors.kiosk_stream` tells: for clients of networks that hold back Server-Sent Events.

A browser cannot set headers on a WebSocket, so the key may come in the first message; never in the address.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from edgeface.errors import EdgeFaceError
from edgeface.serve.cors import may_open_socket
from edgeface.serve.doors import Messages, Streams, begin_stream
from edgeface.serve.keys import Role
from edgeface.serve.metrics import Metrics, choose_request_id
from edgeface.serve.openapi import PREFIX
from edgeface.serve.problems import Problem, problem_of
from edgeface.serve.routing import render_problem, require_role
from edgeface.serve.service import Caller, Service

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

SOCKET = f"{PREFIX}/kiosk/socket"
KEY_SECONDS = 5.0
"""Within which the first message has to come."""
_GOING_AWAY, _POLICY, _OWN = 1001, 1008, 4000
"""Codes of RFC 6455, section 7.4: the stream ended, the client sent what is not expected; and, with the status of HTTP
added, a problem."""


class _Opening(BaseModel):
    """The first message of a client that has set no header."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    last_event_id: int | None = None


async def serve_socket(scope: Scope, receive: Receive, send: Send, service: Service, metrics: Metrics) -> None:
    """Answer a request for a WebSocket, from its handshake to its end; count it, and log it, as all requests."""
    headers = {name.lower(): value for name, value in scope["headers"]}
    metrics.begin(headers.get(b"traceparent", b"").decode("latin-1"))
    request_id = choose_request_id(headers.get(b"x-request-id", b"").decode("latin-1"))
    exchange = _SocketExchange(WebSocket(scope, receive, send), headers, service, request_id)
    began, status = time.monotonic(), 500
    try:
        status = await exchange.run()
    finally:
        metrics.end(request_id, "GET", SOCKET, status, began, 0, known=exchange.known)


class _SocketExchange:
    """One WebSocket."""

    def __init__(self, socket: WebSocket, headers: dict[bytes, bytes], service: Service, request_id: str) -> None:
        self._socket, self._headers, self._service, self._id = socket, headers, service, request_id
        self._address = socket.client.host if socket.client else ""
        self._streams: Streams = socket.app.state.streams
        self.known = False

    async def run(self) -> int:
        """Tell what is to be told; return the status of HTTP that tells how it went."""
        accepted = False
        try:
            self._admit()
            if self._headers.keys() & {b"x-api-key", b"authorization"}:
                given = self._headers.get(b"last-event-id", b"").decode("latin-1")
                messages, most = await self._begin(self._headers, given)
                await self._socket.accept()
                accepted = True
            else:
                self._service.admit_address(self._address)
                await self._socket.accept()
                accepted = True
                opening = await self._read_opening()
                given = "" if opening.last_event_id is None else str(opening.last_event_id)
                messages, most = await self._begin({b"x-api-key": opening.key.encode("latin-1", "replace")}, given)
            with self._streams.counted(most):
                await self._follow(messages)
        except WebSocketDisconnect:
            return 101 if self.known else 499
        except EdgeFaceError as error:
            return await self._refuse(problem_of(error), accepted=accepted)
        return 101

    def _admit(self) -> None:
        """Raise `Problem` for what is refused by its address and its origin."""
        if self._socket.scope["path"] != SOCKET:
            raise Problem(404, "no-such-path", "Not Found")
        scheme, named = self._socket.scope["scheme"], self._service.settings.origins
        if not may_open_socket(self._headers, scheme, named):  # websockets refuses several of them
            raise Problem(403, "wrong-origin", "expected a page of this service, or of an origin that origins names")
        if self._socket.scope["query_string"]:
            raise Problem(400, "bad-input", "expected no query: the key is in the first message, as addresses are kept")

    async def _read_opening(self) -> _Opening:
        """Return the first message; `Problem` if there is none in time, or it is another one."""
        try:
            text = await asyncio.wait_for(self._socket.receive_text(), KEY_SECONDS)
            return _Opening.model_validate_json(text)
        except asyncio.TimeoutError:
            self._service.authenticate({}, self._address)
        except (ValidationError, KeyError):  # KeyError: it is binary
            self._service.refuse_guess(self._address)
        raise Problem(422, "bad-input", 'expected {"key": "...", "last_event_id": 12}, the number only to resume')

    async def _begin(self, headers: dict[bytes, bytes], given: str) -> tuple[Messages, int]:
        authenticate = functools.partial(self._service.authenticate, headers, self._address)
        caller = Caller(key=authenticate(), request_id=self._id)
        self.known = True
        return await begin_stream(
            self._streams, self._service, require_role(caller, Role.recognise), given, authenticate
        )

    async def _follow(self, messages: Messages) -> None:
        """Send messages until they end, or the client sends anything: it has nothing more to say."""
        telling, hearing = asyncio.ensure_future(self._tell(messages)), asyncio.ensure_future(self._socket.receive())
        try:
            await asyncio.wait({telling, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done():
                telling.result()
                await self._close(_GOING_AWAY)
            elif hearing.result()["type"] == "websocket.receive":
                await self._close(_POLICY, "nothing is expected after the first message")
        finally:
            for task in (telling, hearing):
                task.cancel()
            await asyncio.gather(telling, hearing, return_exceptions=True)
            await messages.aclose()

    async def _tell(self, messages: Messages) -> None:
        async for each in messages:
            await self._socket.send_json(each)

    async def _refuse(self, problem: Problem, *, accepted: bool) -> int:
        if accepted:
            await self._close(_OWN + problem.status, problem.code)
        else:
            answer = render_problem(problem)
            answer.headers["x-request-id"] = self._id
            del answer.headers["content-length"]  # which uvicorn before 0.54 adds once more
            with contextlib.suppress(WebSocketDisconnect):
                await self._socket.send_denial_response(answer)
        return problem.status

    async def _close(self, code: int, reason: str = "") -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the second: it was closed just now
            await self._socket.close(code, reason)
