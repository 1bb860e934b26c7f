"""Events as the kiosk decides them, a log of them, and an endpoint that is told them."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kiosk_door import door, make_door, store  # noqa: F401  (fixtures)

from edgeface.kiosk.events import EventLog
from edgeface.kiosk.outcome import VisitEvent, VisitKind


class Clock:
    """Time that passes only where a test says so: seconds, as `time.time` gives them."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


NOON = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.timezone.utc)


def visit(person: int | None = 7, name: str = "Ada Lovelace", **changes: Any) -> VisitEvent:
    """Return the event of a known person, or of another kind for None."""
    kind = VisitKind.unknown if person is None else VisitKind.known
    fields: dict[str, Any] = {
        "time": NOON,
        "camera": "door",
        "kind": kind,
        "person_id": person,
        "name": None if person is None else name,
        "score": 0.75,
        "threshold": 0.5,
        "contract_id": "0123456789abcdef",
        "frames": 5,
        "liveness": 0.875,
        "reason": "score above the threshold",
    }
    return VisitEvent(**fields | changes)


@pytest.fixture
def now() -> Clock:
    return Clock(NOON.timestamp())


@pytest.fixture
def log(tmp_path: Path, now: Clock) -> Iterator[EventLog]:
    with contextlib.closing(EventLog(tmp_path / "events.sqlite", clock=now, crop_hours=2, unknown_crop_hours=1)) as log:
        yield log


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


@dataclass
class Endpoint:
    """A real HTTP server that keeps what it is sent."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: Callable[[bytes], int] = lambda _: 204
    """From a body to the status of its answer."""


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    endpoint = Endpoint()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(length := int(self.headers["Content-Length"]))
            if len(body) < length:  # the client was killed
                self.close_connection = True
                return
            endpoint.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(endpoint.answers(body))
            self.send_header("Content-Length", "0")
            self.send_header("Location", f"{endpoint.url}/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of a connection that a kill ended
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint.url = f"http://127.0.0.1:{server.server_port}"
        yield endpoint
        server.shutdown()


@pytest.fixture
def endpoint(server: Endpoint) -> Endpoint:
    server.got, server.answers = [], lambda _: 204
    return server
