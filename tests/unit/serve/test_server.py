"""The real server: what comes over its sockets, how it stops, and what it takes anew."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import http.client
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from tiny_ir import BLUE
from unit.serve.conftest import MakeService, answer_of, converse, jpeg, run_command, serving

from edgeface.errors import InputError
from edgeface.serve import connection, health
from edgeface.serve.app import create_app
from edgeface.serve.audit import AuditLog
from edgeface.serve.authority import issue_client, issue_server
from edgeface.serve.keys import KeyStore
from edgeface.serve.server import _reload, make_server, renew_certificate
from edgeface.serve.service import Service
from edgeface.vision.detector import FoundBy

pytestmark = [pytest.mark.timeout(60), pytest.mark.slow]
IDENTIFY = "/api/edgeface/v1/identify"
END = "-----END CERTIFICATE-----\n"


def test_headers_that_are_endless_or_slow_close_the_connection(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.3)
    with serving(service) as port:
        line = b"x-a: " + b"y" * 1000 + b"\r\n"
        assert converse(port, b"GET / HTTP/1.1\r\nhost: a\r\n", *[line] * 40).startswith(b"HTTP/1.1 431 ")
        began = time.monotonic()
        assert converse(port, b"GET / HTTP/1.1\r\nhost: a\r\n").startswith(b"HTTP/1.1 408 ")
        assert converse(port).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 5
        alive = b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n"
        last = alive[:-2] + b"connection: close\r\n\r\n"
        answers = converse(port, alive, last[:20], last[20:], pause=0.1)
        assert answers.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 3\r\ntransfer-encoding: chunked",
        b"transfer-encoding: chunked\r\ncontent-length: 3",
        b"content-length: 3\r\ncontent-length: 4",
        b"content-length: 3\r\ncontent-length: 3",
        b"content-length: +3",
        b"content-length : 3",
        b"transfer-encoding: chunked, identity",
        b"transfer-encoding: xchunked",
        b"x-a: b\r\n folded: c",
        b"host: b",
    ],
)
def test_what_two_servers_may_read_differently_is_refused(service: Service, headers: bytes) -> None:
    request = (
        b"POST "
        + IDENTIFY.encode()
        + b" HTTP/1.1\r\nhost: a\r\n"
        + headers
        + b"\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"
    )
    with serving(service) as port:
        answer = converse(port, request)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_a_length_of_many_zeros_is_refused_and_no_failure(service: Service) -> None:
    head = f"POST {IDENTIFY} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {'0' * 5000}1\r\n\r\nx"
    with serving(service) as port:
        answer = converse(port, head.encode())
    assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


def test_a_body_that_trickles_is_ended(make_service: MakeService) -> None:
    service = make_service(limits={"body_seconds": 0.3, "workers": 1})
    head = f"POST {IDENTIFY} HTTP/1.1\r\nhost: a\r\nx-api-key: {service.first_key}\r\ncontent-length: 1000\r\n"
    with serving(service) as port:
        answer = converse(port, head.encode() + b"content-type: image/png\r\n\r\n", b"x")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "too-slow"


def test_a_client_that_leaves_takes_its_work_with_it(make_service: MakeService) -> None:
    service = make_service(limits={"workers": 1, "queue": 4})
    gate, computed = threading.Event(), []

    def identify(photo: bytes, *_: object, **__: object) -> tuple[list[object], FoundBy]:
        computed.append(photo)
        gate.wait(20)
        return [], FoundBy()

    service.identify = identify  # type: ignore[method-assign]
    with serving(service) as port, contextlib.ExitStack() as open_ones:
        connections = []
        for number in range(3):  # the first is computed, the others wait
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            open_ones.callback(client.close)
            headers = {"x-api-key": service.first_key or "", "content-type": "image/png"}
            client.request("POST", IDENTIFY, body=b"%d" % number, headers=headers)
            connections.append(client)
            time.sleep(0.1)
        connections[1].close()
        time.sleep(0.1)
        gate.set()
        assert [connections[number].getresponse().status for number in (0, 2)] == [200, 200]
        assert computed == [b"0", b"2"]


def test_a_model_that_does_not_answer_is_not_alive(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(health, "LOST_SECONDS", 0.3)
    with serving(service) as port:
        ask = b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        time.sleep(0.4)
        assert converse(port, ask).startswith(b"HTTP/1.1 200 ")
        with service.models.use("default") as model:
            model.analyzer.close()
        time.sleep(0.4)
        assert converse(port, ask).startswith(b"HTTP/1.1 503 ")


# The command, in a process of its own


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with run_command(tmp_path) as process:
        yield process


def test_sigterm_answers_what_was_accepted_and_refuses_the_rest(command: subprocess.Popen[str]) -> None:
    ready = answer_of(command)
    port = int(re.search(r":(\d+)$", ready["address"])[1])  # type: ignore[index]
    answers: list[tuple[int, str | None]] = []

    def ask(number: int) -> None:
        time.sleep(number * 0.05)
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("POST", IDENTIFY, jpeg(BLUE, *[None] * number), {"x-api-key": ready["first_key"]})
        with contextlib.closing(client):
            answer = client.getresponse()
            answers.append((answer.status, answer.getheader("retry-after")))

    def queued() -> float:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with contextlib.closing(client):
            client.request("GET", "/metrics", headers={"x-api-key": ready["first_key"]})
            found = re.search(r"^edgeface_queue_requests (\S+)$", client.getresponse().read().decode(), re.M)
        assert found
        return float(found[1])

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads[:3]:
        thread.start()
    until = time.monotonic() + 20
    while len(answers) + queued() < 3:  # all three are accepted: a first request may take longer than a pause
        assert time.monotonic() < until
    command.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    for thread in threads[3:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert command.wait(20) == 0
    accepted = [status for status, _ in answers if status == 200]
    assert len(accepted) >= 3
    assert all(status == 200 or (status, bool(retry)) == (503, True) for status, retry in answers)


def test_sighup_takes_what_is_right_and_keeps_what_was_for_what_is_wrong(
    command: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert command.stderr is not None
    ready = answer_of(command)
    config = tmp_path / "serve.yml"
    right = config.read_text()
    for text, said in [
        (right.replace("{default: {threshold", "{north: {threshold").replace("port: 0", "port: 1"), "for listen"),
        ("listen: {prot: 1}", "goes on as it was"),
    ]:
        config.write_text(text)
        command.send_signal(signal.SIGHUP)
        _wait_for(command.stderr, said)
    client = http.client.HTTPConnection("127.0.0.1", int(ready["address"].rpartition(":")[2]), timeout=30)
    client.request("POST", IDENTIFY, jpeg(BLUE), {"x-api-key": ready["first_key"], "content-type": "image/png"})
    assert json.loads(client.getresponse().read())["gallery"] == "north"


def _wait_for(stream: IO[str], text: str) -> None:
    """Read the log until it says this; from its descriptor, as what a buffer holds would not be waited for."""
    said, until = b"", time.monotonic() + 20
    while time.monotonic() < until and text.encode() not in said:
        if select.select([stream], [], [], 0.2)[0]:
            said += os.read(stream.fileno(), 65536)
    assert text in said.decode(), said.decode()


def test_systemd_is_told_of_the_beginning_the_end_and_that_the_engine_answers(tmp_path: Path) -> None:
    from edgeface.serve.server import notify

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, pytest.MonkeyPatch.context() as patch:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        patch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    notify("READY=1")  # nobody listens


def test_a_running_service_keeps_its_audit_log_and_follows_a_revocation(
    command: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert command.stderr is not None
    ready = answer_of(command)

    def ask() -> int:
        client = http.client.HTTPConnection("127.0.0.1", int(ready["address"].rpartition(":")[2]), timeout=30)
        with contextlib.closing(client):
            client.request("POST", IDENTIFY, jpeg(BLUE), {"x-api-key": ready["first_key"], "content-type": "image/png"})
            return client.getresponse().status

    assert ask() == 200
    _wait_for(command.stderr, "audit log: removed 0 rows; head ")
    with contextlib.closing(AuditLog(tmp_path / "state" / "audit.sqlite", create=False)) as log:
        (row,) = log.rows(action="identify")
        assert log.verify()
    with contextlib.closing(KeyStore(tmp_path / "state" / "keys.sqlite", create=False)) as store:
        until = time.monotonic() + 20
        while (key := store.list()[0]).last_used is None and time.monotonic() < until:
            time.sleep(0.1)
        assert (row.key_id, key.last_used) == (key.id, datetime.date.fromisoformat(row.time[:10]))
        store.revoke(key.id)
    time.sleep(0.5)
    assert ask() == 401


def test_certificates_of_the_own_authority_let_in_who_has_one_and_trusts_it(
    make_service: MakeService, tmp_path: Path
) -> None:
    made = issue_server(tmp_path / "tls")
    client = issue_client(tmp_path / "tls", "door-7")
    files = {"certificate": str(made.certificate), "key": str(made.key), "client_ca": str(made.authority)}
    service = make_service(tls=files)

    def ask(*, trust: Path | None, own: bool) -> int:
        context = ssl.create_default_context(cafile=trust)
        if own:
            context.load_cert_chain(client.certificate, client.key)
        asking = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
        with contextlib.closing(asking):
            asking.request("POST", IDENTIFY, jpeg(BLUE), {"x-api-key": service.first_key or ""})
            return asking.getresponse().status

    with serving(service) as port:
        assert ask(trust=made.authority, own=True) == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(trust=None, own=True)
        with pytest.raises(OSError):  # noqa: PT011 - by TLS 1.3 an alert after the handshake, or a reset
            ask(trust=made.authority, own=False)


def test_a_renewed_certificate_is_served_to_new_connections_and_a_broken_pair_is_not(
    make_service: MakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, other = issue_server(tmp_path / "tls"), issue_server(tmp_path / "other")
    service = make_service(tls={"certificate": str(made.certificate), "key": str(made.key)})
    context = ssl.create_default_context(cafile=made.authority)
    server = make_server(create_app(service), service.settings)

    def served() -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""

    def hang_up() -> None:
        """As SIGHUP does."""
        asyncio.run(_reload(service, lambda: service.settings, server.config))

    def on_disk() -> bytes:
        return ssl.PEM_cert_to_DER_cert(made.certificate.read_text().partition("-----END CERTIFICATE-----")[0] + END)

    with serving(service, server) as port:
        before = served()
        assert before == on_disk()
        old = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
        old.connect()
        issue_server(tmp_path / "tls")
        hang_up()
        assert served() == on_disk() != before
        good = made.key.read_bytes()
        for key in (other.key.read_bytes(), b"no key", good[:200]):
            made.key.write_bytes(key)
            with pytest.raises(InputError, match="the certificate before is served"):
                renew_certificate(server.config)
            assert served() == on_disk()
        made.key.unlink()
        hang_up()
        assert "the certificate was not taken" in caplog.text
        assert served() == on_disk()
        with contextlib.closing(old):  # what is connected stays so
            old.request("GET", "/health/live")
            assert old.getresponse().status == 200
