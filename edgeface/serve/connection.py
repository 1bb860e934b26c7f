"""Bound what a connection may send before its request is known: uvicorn's protocol limits neither headers nor time."""

from __future__ import annotations

import asyncio
import sys
import types
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from edgeface.serve.sockets import SOCKET

HEADER_BYTES = 32 << 10
"""Of the request line and all headers of one request."""
HEADER_SECONDS = 10.0
"""From the first byte of a request, or from the beginning of a connection, to the end of its headers."""
FRAMING = 8
"""Bytes around a chunked body for each of its own, beyond `HEADER_BYTES`; chunks of one byte have five. Trailers and
extensions of chunks, which httptools keeps, are among them."""
MESSAGE_BYTES = 1 << 10
"""Of a message of a client over a WebSocket, which is its key."""
FRAME_BYTES, FRAME_SECONDS = 4 << 10, 10.0
"""Of all that such a client sends in this time: its key, and pings."""
SLOW_SECONDS = 5.0
"""For which a client of a WebSocket may leave unread what does not fit into the buffers of its connection."""


class HttpConnection(HttpToolsProtocol):
    """A connection that is closed if the headers of a request are too many, or arrive too slowly."""

    _late: asyncio.TimerHandle | None = None
    _in_headers = True
    _seen = 0
    _around = 0  # bytes after the headers that are no body
    _data = b""  # that is being read
    _framing = b""  # of the body of a request that offers another protocol
    _offered = False  # and whose body is not read yet

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first headers; refuse a connection beyond the limit, so that descriptors suffice."""
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self._refuse(b"503 Service Unavailable\r\nretry-after: 1")
        else:
            self._wait_for_headers()

    def _should_upgrade(self) -> bool:
        """Whether a request opens the only WebSocket that there is; others are refused by the `RequestGate`.

        One with a body, or before whose answer another has to come, is not: what follows has to be frames.
        """
        alone = (self.cycle is None or self.cycle.response_complete) and self.scope["method"] == "GET"
        bodies = {b"content-length", b"transfer-encoding"} & {name for name, _ in self.headers}
        named = self.url.partition(b"?")[0].endswith(SOCKET.encode())
        return bool(named and alone and not bodies and super()._should_upgrade())

    def _unsupported_upgrade_warning(self) -> None:
        """Go on in HTTP/1.1 with a request that offers another protocol, as Java's clients do (RFC 9110, 7.8).

        The parser has left its body to that protocol: another one reads it.
        """
        upgrade, self._offered = sys.exc_info()[1], False
        if self._framing and isinstance(upgrade, httptools.HttpParserUpgrade):
            reads = types.SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
            self.parser = httptools.HttpRequestParser(reads)
            super().data_received(b"POST / HTTP/1.1\r\nconnection: close\r\n" + self._framing + b"\r\n\r\n")
            super().data_received(self._data[upgrade.args[0] :])

    def data_received(self, data: bytes) -> None:
        """Count what arrives before the end of the headers."""
        self._data = data
        if self._in_headers:
            # Of what one read brings, up to 256 KiB, all is counted: headers and a body in one read are cut off where
            # the body begins, so that only the part before it counts.
            self._seen += len(data) if b"\r\n\r\n" not in data else data.index(b"\r\n\r\n")
            if self._seen > HEADER_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")
                return
        else:
            self._around += len(data)
        super().data_received(data)
        self._data = b""
        if self._around > HEADER_BYTES:
            self._refuse(b"400 Bad Request")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, whose bytes `edgeface.serve.app.RequestGate` counts."""
        self._around = max(0, self._around - (1 + FRAMING) * len(body))
        super().on_body(body)

    def on_message_begin(self) -> None:
        """Begin to wait for the headers of the next request."""
        super().on_message_begin()
        if not self._in_headers:
            self._seen = 0
            self._wait_for_headers()

    def on_headers_complete(self) -> None:
        """Stop waiting; refuse what may mean two things to two servers (RFC 9112, 6.1)."""
        self._stop_waiting()
        self._in_headers, self._seen, self._around = False, 0, 0
        names = [name for name, _ in self.headers]
        if max(map(names.count, (b"host", b"content-length"))) > 1 or {b"transfer-encoding", b"content-length"} <= {
            *names
        }:
            raise ValueError("headers that contradict each other")  # answered with 400
        super().on_headers_complete()
        if self.parser.should_upgrade() and not self._should_upgrade():
            self.cycle.keep_alive = False  # no other request is read from this connection
            kept = (b"content-length", b"transfer-encoding")
            self._framing = b"\r\n".join(b": ".join(each) for each in self.headers if each[0] in kept)
            self._offered = bool(self._framing)

    def on_message_complete(self) -> None:
        """End the body, unless there is one that is not read yet."""
        if not self._offered:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._stop_waiting()
        self._in_headers, self._around = True, 0
        self._late = self.loop.call_later(HEADER_SECONDS, self._refuse, b"408 Request Timeout")

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: bytes) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()


class SocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket that is closed if its client sends too much, even of pings, or does not read."""

    _late: asyncio.TimerHandle | None = None
    _seen, _until = 0, 0.0

    def data_received(self, data: bytes) -> None:
        """Count what follows the handshake, whose bytes `HttpConnection` has counted."""
        if self.handshake_initiated:
            now = self.loop.time()
            self._seen, self._until = (self._seen, self._until) if now < self._until else (0, now + FRAME_SECONDS)
            self._seen += len(data)
            if self._seen > FRAME_BYTES:
                self._refuse()
                return
        super().data_received(data)

    def pause_writing(self) -> None:
        """Wait until the client reads, but not for ever."""
        self.writable.clear()
        self._late = self.loop.call_later(SLOW_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting."""
        self.writable.set()
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self.resume_writing()
        super().connection_lost(exc)

    def _refuse(self) -> None:
        self.conn.fail(1008, "too many frames")
        if self.conn.close_sent is None:  # the handshake is not answered yet
            self.transport.abort()
        else:
            self.handle_parser_exception()
