"""The stream of the doors over a WebSocket: a real server, and the client of `websockets`."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_ir import write_tiny_ir
from unit.serve.conftest import OPEN, converse, load_squares, serving
from unit.serve.test_door_page import Script
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from edgeface.serve import connection, doors, sockets
from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.rates import Rates
from edgeface.serve.server import make_server
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]
NAMED = "https://intranet.example"
UPGRADE = (
    "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Door:
    """A service whose doors a script decides at, and keys to it."""

    def __init__(self, service: Service, script: Script, streams: doors.Streams, port: int) -> None:
        self.service, self.script, self.streams, self.port = service, script, streams, port
        self.key = service.keys.add("panel", Role.recognise)[1]
        self.measures = service.keys.add("metrics", Role.metrics)[1]

    @contextlib.contextmanager
    def open(
        self, first: Any = None, *, key: str | None = None, origin: str | None = None, **more: Any
    ) -> Iterator[ClientConnection]:
        headers = {} if key is None else {"x-api-key": key}
        headers |= more.pop("headers", {})
        url = f"ws://127.0.0.1:{self.port}{more.pop('path', sockets.SOCKET)}"
        with connect(url, additional_headers=headers, origin=origin, proxy=None, **more) as opened:  # type: ignore[arg-type]
            if first is not None:
                opened.send(first if isinstance(first, (str, bytes)) else json.dumps(first))
            yield opened

    def refusal(self, **given: Any) -> tuple[int, str]:
        """Status and code of a request that is refused before it is accepted."""
        with pytest.raises(InvalidStatus) as caught, self.open(**given):
            pass
        answer = caught.value.response
        return answer.status_code, json.loads(answer.body or b"{}").get("code", "")

    def settle(self) -> None:
        until = time.monotonic() + 10
        while self.streams._open:
            assert time.monotonic() < until
            time.sleep(0.01)


def read(opened: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(opened.recv(timeout=10))
    return message


def ended(opened: ClientConnection) -> tuple[int, str]:
    """Code and reason with which the server ends it, after whatever it tells before."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            opened.recv(timeout=10)
    assert opened.close_code
    return opened.close_code, opened.close_reason or ""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder, script = tmp_path_factory.mktemp("sockets"), Script()
    given = {
        "state": folder / "state",
        "models": {"default": {"model": str(write_tiny_ir(folder))}},
        "galleries": {"default": OPEN},
        "limits": {"workers": 1},
        "origins": [NAMED],
    }
    with Service(Settings.model_validate(given), load=load_squares) as service:
        app = create_app(service, script)
        with serving(service, make_server(app, service.settings)) as port:
            yield Door(service, script, app.state.streams, port)


@pytest.fixture
def door(served: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """As if nothing had happened before."""
    served.script.told.clear()
    monkeypatch.setattr(served.service, "rates", Rates(per_key=1000, per_address=1000, wrong_per_address=1000))
    yield served
    served.settle()


def test_a_socket_tells_what_the_stream_of_events_tells(door: Door) -> None:
    door.script.say("unknown")
    stream = http.client.HTTPConnection("127.0.0.1", door.port, timeout=10)
    stream.request("GET", f"{doors.PREFIX}/kiosk/stream", headers={"x-api-key": door.key, "Last-Event-ID": "0"})
    lines = iter(stream.getresponse())
    with contextlib.closing(stream), door.open({"key": door.key, "last_event_id": 0}) as opened:
        told = [read(opened), read(opened)]
        streamed = [
            json.loads(line[6:]) for line, _ in zip(lines, range(6), strict=False) if line.startswith(b"data: ")
        ]
    assert [(each["event"], each.get("id")) for each in told] == [("status", None), ("visit", 1)]
    assert 0 <= told[1]["data"].pop("age") < 10
    assert streamed[1].pop("age") < 10
    assert [each["data"] for each in told] == streamed
    assert streamed[0]["open"] is True


def test_asking_for_the_headers_of_a_stream_holds_none(door: Door) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", door.port, timeout=5)) as asking:
        for _ in range(2):  # the connection is free again
            asking.request("HEAD", f"{doors.PREFIX}/kiosk/stream", headers={"x-api-key": door.key})
            answer = asking.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
            assert answer.headers["content-type"].startswith("text/event-stream")


def test_a_socket_tells_at_once_and_resumes_from_the_last_number(door: Door) -> None:
    with door.open({"key": door.key}) as opened:
        assert read(opened)["event"] == "status"
        door.script.say("known", "Ada")
        visit = read(opened)
    assert (visit["id"], visit["data"]["kind"], visit["data"]["name"]) == (1, "known", "Ada")
    door.script.say("spoof")
    with door.open(key=door.key, headers={"Last-Event-ID": "1"}) as header, door.open({"key": door.key}) as fresh:
        assert read(header)["event"] == read(fresh)["event"] == "status"
        assert read(header)["id"] == 2
        door.script.say("unknown")
        assert read(header)["id"] == read(fresh)["id"] == 3


def test_only_a_page_of_the_service_or_of_a_named_origin_may_open_it(door: Door) -> None:
    own = f"http://127.0.0.1:{door.port}"
    for origin in (own, NAMED, None):
        with door.open({"key": door.key}, origin=origin) as opened:
            assert read(opened)["event"] == "status"
    others = ["https://evil.example", own.replace("http", "https"), f"{own}0", "http://127.0.0.1", "null", ""]
    for origin in others:
        assert door.refusal(key=door.key, headers={"Origin": origin}) == (403, "wrong-origin"), origin
    host, two = own.removeprefix("http://"), f"origin: https://evil.example\r\norigin: {own}\r\n"
    head = f"GET {sockets.SOCKET} HTTP/1.1\r\nhost: {host}\r\n{two}"
    assert converse(door.port, (head + UPGRADE).encode()).startswith(b"HTTP/1.1 400 ")


def test_without_a_key_in_time_it_is_closed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "KEY_SECONDS", 0.1)
    with door.open() as opened:
        assert ended(opened) == (4401, "no-key")


def test_wrong_keys_and_roles_are_refused_and_wrong_keys_are_bounded(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "00000000-0000-4000-8000-000000000000"
    other = door.service.keys.add("other", Role.admin, gallery="other")[1]
    for key, status, code in [
        (wrong, 401, "key-unknown"),
        (door.measures, 403, "wrong-role"),
        (other, 404, "no-such-gallery"),
    ]:
        assert door.refusal(key=key) == (status, code)
        with door.open({"key": key}) as opened:
            assert ended(opened) == (4000 + status, code)
    monkeypatch.setattr(door.service, "rates", Rates(per_key=1000, per_address=1000, wrong_per_address=0.1))
    for code in (4401, 4429):
        with door.open({"key": wrong}) as opened:
            assert ended(opened)[0] == code
    with door.open({"key": door.key}) as opened:  # who has a right one is not kept out
        assert read(opened)["event"] == "status"


@pytest.mark.parametrize(
    ("first", "code"),
    [("{", 4422), ("[]", 4422), (b"\x00", 4422), ({"kye": "a"}, 4422), ({"key": 1}, 4422), ("x" * 2000, 1009)],
)
def test_another_first_message_is_refused(door: Door, first: Any, code: int) -> None:
    with door.open(first) as opened:
        assert ended(opened)[0] == code


@pytest.mark.parametrize("number", [-1, 1 << 63])
def test_a_number_that_no_event_has_is_refused(door: Door, number: int) -> None:
    with door.open({"key": door.key, "last_event_id": number}) as opened:
        assert ended(opened)[0] == 4422


def test_a_key_in_the_address_is_refused_and_logged_nowhere(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert door.refusal(path=f"{sockets.SOCKET}?key={door.key}") == (400, "bad-input")
    with door.open({"key": door.key}) as opened:
        read(opened)
    door.settle()
    until = time.monotonic() + 10
    while not caplog.records:  # which is written after the stream ended
        assert time.monotonic() < until
    lines = [each for each in caplog.records if each.name in ("edgeface.serve", "uvicorn.error")]
    assert [(each.getMessage(), each.__dict__.get("status")) for each in lines] == [("request", 101)]


def test_sockets_and_streams_of_events_are_bounded_together(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door.script, "most_streams", 1)
    with door.open({"key": door.key}) as opened:
        assert read(opened)["event"] == "status"
        assert door.refusal(key=door.key) == (503, "overloaded")
        with door.open({"key": door.key}) as second:
            assert ended(second) == (4503, "overloaded")
        stream = http.client.HTTPConnection("127.0.0.1", door.port, timeout=10)
        with contextlib.closing(stream):
            stream.request("GET", f"{doors.PREFIX}/kiosk/stream", headers={"x-api-key": door.key})
            assert stream.getresponse().status == 503
    door.settle()
    with door.open({"key": door.key}) as opened:
        assert read(opened)["event"] == "status"


def test_it_ends_with_its_key_and_with_its_gallery_and_with_the_service(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "HEARTBEAT", 0.0)
    monkeypatch.setattr(doors, "_LOOK", 0.0)
    key, text = door.service.keys.add("old", Role.recognise)
    with door.open({"key": text}) as opened:
        read(opened)
        door.service.keys.revoke(key.id)
        assert ended(opened) == (4401, "key-revoked")
    for thing, name, value in ((door.script, "gallery", "other"), (door.streams, "ending", True)):
        with monkeypatch.context() as patch, door.open(key=door.key) as opened:
            read(opened)
            patch.setattr(thing, name, value)
            assert ended(opened)[0] == 1001


def test_a_client_that_goes_on_talking_is_closed(door: Door) -> None:
    with door.open({"key": door.key}) as opened:
        read(opened)
        opened.send("more")
        assert ended(opened)[0] == 1008
    with door.open({"key": door.key}) as opened:
        read(opened)
        with contextlib.suppress(ConnectionClosed):
            for number in range(100):
                opened.ping(b"%100d" % number)
        assert ended(opened)[0] in (1008, 1006)  # the second: what it still sent was answered with a reset


def test_a_client_that_does_not_read_is_closed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SLOW_SECONDS", 0.2)
    for _ in range(400):  # more than the buffers of the kernel take
        door.script.say("known", "x" * 30_000)
    head = f"GET {sockets.SOCKET} HTTP/1.1\r\nhost: a\r\nx-api-key: {door.key}\r\nlast-event-id: 0\r\n{UPGRADE}"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", door.port))
        slow.sendall(head.encode())
        until = time.monotonic() + 10
        while not door.streams._open:
            assert time.monotonic() < until
        door.settle()


@pytest.mark.parametrize(
    "head",
    [
        f"GET {sockets.SOCKET}/ HTTP/1.1\r\nhost: a\r\n",
        f"POST {sockets.SOCKET} HTTP/1.1\r\nhost: a\r\n",
        f"GET {sockets.SOCKET} HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n",
        f"GET {sockets.SOCKET} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n",
        f"GET /health/live?{sockets.SOCKET} HTTP/1.1\r\nhost: a\r\n",
    ],
)
def test_nothing_else_is_taken_for_the_beginning_of_a_socket(door: Door, head: str) -> None:
    answer = converse(door.port, (head + UPGRADE).encode() + b"abcGET /health/live HTTP/1.1\r\nhost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
