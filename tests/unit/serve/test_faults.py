"""What fails around the service: its database, its disk, its device, its clock; and who floods it."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny_ir import BLUE, GREEN, RED, TEAL, write_tiny_ir
from unit.serve.conftest import OPEN, Clock, MakeService, client_of, converse, enrol, jpeg, load_squares, serving
from unit.serve.test_jobs import ZIP, archive, finish
from unit.serve.test_sharing import held

import edgeface
from edgeface.errors import InferenceError
from edgeface.gallery.opening import create_gallery
from edgeface.runtime import Engine
from edgeface.serve import connection, health
from edgeface.serve.keys import Role
from edgeface.serve.server import _feed_watchdog
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = pytest.mark.timeout(120)
API = "/api/edgeface/v1"
IDENTIFY, PEOPLE = f"{API}/identify", f"{API}/galleries/default/people"


def people_in(answer: Any) -> list[str | None]:
    assert answer.status_code == 200, answer.text
    return [face["person"] for face in answer.json()["faces"]]


def identify(client: TestClient, *colours: Any) -> Any:
    return client.post(IDENTIFY, content=jpeg(*colours), headers={"content-type": "image/png"})


def add(client: TestClient, name: str, colour: Any) -> Any:
    return client.post(PEOPLE, data={"name": name}, files={"photo": jpeg(colour)})


# Its database


@pytest.fixture
def two(cluster: Any, tmp_path: Path) -> Iterator[tuple[TestClient, TestClient]]:
    """Clients of two services on one gallery of a PostgreSQL server."""
    ir = write_tiny_ir(tmp_path)
    place = f"{cluster.url}?gallery=doors_{uuid.uuid4().hex[:8]}"
    with edgeface.load(ir, detector=None) as app:
        create_gallery(place, contract=app.contract, key=bytes(range(32))).close()
    (tmp_path / "key").write_text(bytes(range(32)).hex())
    (tmp_path / "key").chmod(0o600)
    gallery = {"place": place, "key": f"file:{tmp_path / 'key'}", **OPEN}
    with contextlib.ExitStack() as stack:
        clients = []
        for name in ("north", "south"):
            given = {"models": {"default": {"model": str(ir)}}, "galleries": {"default": gallery}}
            settings = Settings.model_validate({"state": tmp_path / name, "limits": {"workers": 2}, **given})
            service = stack.enter_context(Service(settings, load=load_squares))
            clients.append(stack.enter_context(client_of(service)))
        yield clients[0], clients[1]


def test_services_on_one_postgresql_gallery_see_each_others_people_and_outlive_its_restart(
    cluster: Any, two: tuple[TestClient, TestClient]
) -> None:
    north, south = two
    assert add(north, "Ada", BLUE).status_code == 201
    assert people_in(identify(south, BLUE, RED)) == ["Ada", None]  # at once, not only within a second
    cluster.stop()
    try:
        for answer in (identify(south, BLUE), add(north, "Bob", GREEN), south.get(PEOPLE)):
            assert (answer.status_code, answer.json()["code"]) == (503, "gallery-server-away")
            assert answer.headers["retry-after"] == "1"
            assert "127.0.0.1" not in answer.text
        began = time.monotonic()
        assert north.get("/health/ready").json()["reasons"] == ["the gallery default cannot be read"]
        assert time.monotonic() - began < 2
        assert north.get("/health/live").status_code == 200
        assert "edgeface_build_info" in north.get("/metrics").text
        assert north.post(f"{API}/embed", files={"photo": jpeg(BLUE)}).status_code == 200  # needs no gallery
    finally:
        cluster.start()
    until = time.monotonic() + 1
    while identify(south, BLUE).status_code != 200:
        assert time.monotonic() < until
    assert add(north, "Bob", GREEN).status_code == 201
    assert people_in(identify(south, BLUE, GREEN)) == ["Ada", "Bob"]
    assert south.get("/health/ready").status_code == 200


def test_a_photo_is_not_identified_as_before_what_another_service_changed(
    two: tuple[TestClient, TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    north, south = two
    service = south.app.state.service  # type: ignore[attr-defined]
    with held(monkeypatch, service, "identify", lambda: people_in(identify(south, BLUE))) as before:
        assert add(north, "Ada", BLUE).status_code == 201
        assert people_in(identify(south, BLUE)) == ["Ada"]
    assert before.result() == [None]


def test_a_job_on_a_postgresql_gallery_enrols_for_all_services(two: tuple[TestClient, TestClient]) -> None:
    north, south = two
    upload = archive(("Ada/1.png", jpeg(BLUE)), ("Bob/1.png", jpeg(GREEN)), ("Bob/2.png", jpeg(None)))
    answer = north.post(f"{API}/galleries/default/jobs", content=upload, headers=ZIP)
    job = finish(north, answer.headers["location"])
    assert (job["state"], job["enrolled"], job["refused"]) == ("done", 2, 1)
    assert people_in(identify(south, BLUE, GREEN)) == ["Ada", "Bob"]
    assert south.get(answer.headers["location"]).status_code == 404  # a job is its service's


# Its disk


def test_a_full_disk_refuses_what_must_be_written_and_loses_nothing_that_was_acknowledged(
    make_service: MakeService, small_disk: Path
) -> None:
    service = make_service(state=small_disk / "state")
    with client_of(service) as client:
        assert add(client, "Ada", BLUE).status_code == 201
        rest = small_disk / "rest"
        with contextlib.suppress(OSError), rest.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        named, known = iter(range(10_000)), ["Ada"]
        while (made := add(client, f"p{next(named)}", GREEN if len(known) == 1 else TEAL)).status_code == 201:
            known.append(made.json()["name"])
        assert (made.status_code, made.json()["code"]) in {(507, "cannot-write"), (409, "lookalike")}
        while (answer := identify(client, BLUE)).status_code == 200:  # until there is no space for the audit log either
            assert next(named) < 5000
        assert (answer.status_code, answer.json()["code"]) == (507, "cannot-write")  # never unrecorded
        assert str(small_disk) not in answer.text
        assert client.get("/health/live").status_code == 200
        assert client.get(PEOPLE).status_code == 507
        rest.unlink()
        assert [each["name"] for each in client.get(PEOPLE).json()["people"]] == known
        assert people_in(identify(client, BLUE)) == ["Ada"]
        assert add(client, "Eve", RED).status_code == 201
        assert [each["name"] for each in client.get(PEOPLE).json()["people"]] == [*known, "Eve"]
        assert client.post(f"{API}/galleries/default/check").json()["intact"]
    assert service.audit is not None
    assert service.audit.verify()


# Its device


def test_a_lost_device_is_said_to_clients_to_the_probe_and_to_systemd(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(health, "LOST_SECONDS", 0.2)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "40000")

    def lost(*_: object, **__: object) -> Any:
        raise InferenceError("default on CPU: the device was lost at /dev/dri/renderD128")

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, client_of(service) as client:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        feeding = client.portal.start_task_soon(_feed_watchdog, client.app.state.probe)  # type: ignore[union-attr,attr-defined]
        assert systemd.recv(100) == b"WATCHDOG=1"
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "submit", lost)
            patch.setattr(Engine, "infer", lost)
            answer = identify(client, BLUE)
            assert (answer.status_code, answer.json()["code"]) == (503, "device-failed")
            assert answer.headers["retry-after"]
            assert "/dev" not in answer.text
            time.sleep(0.3)
            assert client.get("/health/live").status_code == 503
            systemd.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while systemd.recv(100):
                    pass
            systemd.settimeout(0.2)
            with pytest.raises(TimeoutError):  # so systemd restarts the service
                systemd.recv(100)
        assert systemd.recv(100) == b"WATCHDOG=1"  # it is back
        assert client.get("/health/live").status_code == 200
        feeding.cancel()


# Its clock


def test_a_clock_that_is_set_back_revives_no_key_and_breaks_neither_the_audit_log_nor_rates(
    service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.audit is not None
    monkeypatch.setattr(service.keys, "_clock", clock)
    monkeypatch.setattr(service.audit, "_clock", clock)
    expires = service.keys.now()
    day = 86_400
    with client_of(service, Role.recognise, expires=expires.replace(year=expires.year + 1)) as client:
        assert people_in(identify(client, BLUE)) == [None]
        clock.now += 367 * day
        answer = identify(client, BLUE)
        assert (answer.status_code, answer.json()["code"]) == (401, "key-expired")
        clock.now -= 700 * day
        assert identify(client, BLUE).json()["code"] == "key-expired"
    with client_of(service) as client:
        assert people_in(identify(client, BLUE)) == [None]
        service.audit.maintain(365)
        assert len([*service.audit.rows(action="identify")]) == 2  # neither is too old by either clock
        assert service.audit.verify()


# Who floods it


def test_two_thousand_wrong_keys_at_once_cost_little_and_keep_out_nobody_with_a_right_one(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(limits={"workers": 1}, keys={})
    wrong = b"".join(
        b"POST %s HTTP/1.1\r\nhost: a\r\nx-api-key: 00000000-0000-4000-8000-%012d\r\ncontent-length: 0\r\n\r\n"
        % (IDENTIFY.encode(), number)
        for number in range(50)
    )
    statuses: list[bytes] = []

    def flood(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sender:
            for _ in range(10):
                sender.sendall(wrong)
                found = b""
                while found.count(b"HTTP/1.1 ") < 50 or found.count(b"\r\n\r\n") < 50:
                    found += sender.recv(1 << 20)
                statuses.extend(part[:3] for part in found.split(b"HTTP/1.1 ")[1:])

    enrol(service, "Ada", BLUE)
    right = f"GET {API}/models HTTP/1.1\r\nhost: a\r\nx-api-key: {service.first_key}\r\nconnection: close\r\n\r\n"
    caplog.set_level("INFO", "edgeface.serve")
    with serving(service) as port:
        converse(port, right.encode())
        threads = [threading.Thread(target=flood, args=[port]) for _ in range(4)]
        before = resource.getrusage(resource.RUSAGE_SELF)
        for thread in threads:
            thread.start()
        asked = 0
        while any(thread.is_alive() for thread in threads) or not asked:
            assert converse(port, right.encode()).startswith(b"HTTP/1.1 200 ")
            asked += 1
        after = resource.getrusage(resource.RUSAGE_SELF)
    assert len(statuses) == 2000
    assert set(statuses) == {b"401", b"429"}
    assert statuses.count(b"401") < 30
    assert len(caplog.records) < 100 + 2 * asked  # a flood does not fill the log
    assert (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2000 < 0.005
    assert after.ru_maxrss - before.ru_maxrss < 20_000  # KiB


def test_connections_beyond_the_limit_are_refused_and_closed_and_those_that_say_nothing_end(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.5)
    service = make_service(limits={"connections": 10, "workers": 1})
    alive = b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    with serving(service) as port, contextlib.ExitStack() as held:
        for _ in range(10):
            held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)).sendall(b"GET /")
        time.sleep(0.1)
        before = len([*Path("/proc/self/fd").iterdir()])
        for _ in range(20):
            answer = converse(port)  # it need not say anything
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in answer
        assert len([*Path("/proc/self/fd").iterdir()]) <= before
        until = time.monotonic() + 5
        while not converse(port, alive).startswith(b"HTTP/1.1 200 "):
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket"])
def test_any_websocket_but_that_of_the_doors_is_refused_and_says_so(service: Service, upgrade: str) -> None:
    head = f"GET {API}/models HTTP/1.1\r\nhost: a\r\nx-api-key: {service.first_key}\r\norigin: https://evil.example\r\n"
    more = f"connection: Upgrade\r\nupgrade: {upgrade}\r\nsec-websocket-version: 13\r\nsec-websocket-key: AQID\r\n\r\n"
    with serving(service) as port:
        answer = converse(port, (head + more).encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"no-websocket"' in answer
        assert b"connection: close" in answer
        http2 = f"{head}connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n"
        assert converse(port, http2.encode()).startswith(b"HTTP/1.1 200 ")  # as clients of HTTP/2 ask first


@pytest.mark.parametrize("chunked", [False, True])
def test_a_photo_that_offers_http2_is_answered_over_http1(service: Service, chunked: bool) -> None:
    """As Java's client sends it; what follows on the connection is no part of it, and not read."""
    enrol(service, "Ada", BLUE)
    photo = jpeg(BLUE)
    framing, body = f"content-length: {len(photo)}", photo
    if chunked:
        framing, body = "transfer-encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(photo), photo)
    head = f"POST {IDENTIFY} HTTP/1.1\r\nhost: a\r\nx-api-key: {service.first_key}\r\ncontent-type: image/png\r\n"
    head += f"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n{framing}\r\n\r\n"
    sent = head.encode() + body
    with serving(service) as port:
        for parts in ([sent], [sent[at : at + 50] for at in range(0, len(sent), 50)]):
            answer = converse(port, *parts, pause=0.001)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b'"person":"Ada"' in answer
        answer = converse(port, sent + b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1
