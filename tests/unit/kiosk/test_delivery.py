"""Deliveries and webhooks: each event at least once, in order of its person, signed, and only where it may go."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from unit.kiosk.conftest import Endpoint, visit, wait_until

from edgeface.errors import InputError
from edgeface.kiosk import delivery
from edgeface.kiosk.delivery import Deliveries, Undelivered, WebhookSender, sign, verify_signature
from edgeface.kiosk.events import EventLog, LoggedEvent
from edgeface.kiosk.outcome import VisitKind
from edgeface.kiosk.targets import Webhook

SECRET = b"s" * 32


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@dataclasses.dataclass
class Told:
    """A target of the test's own, which refuses while it is told to."""

    strict: bool = False
    refuses: set[int] = dataclasses.field(default_factory=set)
    down: bool = False
    got: list[int] = dataclasses.field(default_factory=list)
    tries: int = 0

    def send(self, event: LoggedEvent) -> None:
        self.tries += 1
        if self.down or event.sequence in self.refuses:
            raise Undelivered("it is down")
        self.got.append(event.sequence)

    def close(self) -> None: ...


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with contextlib.closing(EventLog(tmp_path / "events.sqlite", targets={"a": set(VisitKind)})) as log:
        yield log


def webhook(endpoint: Endpoint | str, **settings: object) -> WebhookSender:
    url = endpoint if isinstance(endpoint, str) else f"{endpoint.url}/events"
    return WebhookSender(Webhook.model_validate({"url": url, "secret": "env:UNUSED"} | settings), SECRET)


# Delivering


def test_an_event_is_told_without_waiting_for_the_next_look_into_the_outbox(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_POLL", 600.0)
    target = Told()
    with Deliveries(log, {"a": target}):
        time.sleep(0.1)
        log.record(visit())
        wait_until(lambda: target.got, 60)
    assert log.deliveries() == []


def test_a_target_that_is_down_holds_up_no_other_and_is_told_all_when_it_is_back(tmp_path: Path) -> None:
    down, up = Told(strict=True, down=True), Told()
    targets = {key: set(VisitKind) for key in ("down", "up")}
    with (
        contextlib.closing(EventLog(tmp_path / "events.sqlite", targets=targets)) as log,
        Deliveries(log, {"down": down, "up": up}, shortest=0.01, longest=0.05),
    ):
        for _ in range(5):
            log.record(visit())
        wait_until(lambda: len(up.got) == 5 and down.tries >= 3)
        assert down.got == []
        assert {each.error for each in log.deliveries()} == {"it is down", None}
        down.down = False
        wait_until(lambda: not log.deliveries())
        assert down.got == up.got == [1, 2, 3, 4, 5]


def test_an_event_that_is_always_refused_holds_up_its_person_only(log: EventLog) -> None:
    target = Told(refuses={1})
    for person in (7, 7, 8, None):
        log.record(visit(person))
    with Deliveries(log, {"a": target}, shortest=0.01, longest=0.02):
        wait_until(lambda: target.got == [3, 4] and target.tries > 5)
        target.refuses.clear()
        wait_until(lambda: not log.deliveries())
    assert target.got == [3, 4, 1, 2]


def test_a_delivery_that_fails_is_dead_once_the_event_is_old_and_can_be_sent_again(log: EventLog) -> None:
    target = Told(down=True)
    log.record(visit(time=now() - datetime.timedelta(hours=3)))
    log.record(visit(time=now() - datetime.timedelta(hours=1)))
    with Deliveries(log, {"a": target}, give_up_hours=2, shortest=0.01, longest=0.02):
        wait_until(lambda: log.deliveries(dead=True))
        assert [each.sequence for each in log.deliveries(dead=False)] == [2]
        target.down = False
        assert log.resend() == 1
        wait_until(lambda: not log.deliveries())
    assert sorted(target.got) == [1, 2]


def test_pauses_grow_to_the_longest_and_never_all_alike(log: EventLog) -> None:
    with Deliveries(log, {}) as deliveries:
        pauses = {failures: [deliveries._pause(failures) for _ in range(50)] for failures in (0, 3, 6, 10_000)}
    for failures, most in ((0, 1), (3, 8), (6, 60), (10_000, 60)):
        assert most / 2 <= min(pauses[failures]) < max(pauses[failures]) <= most


def test_a_failure_of_our_own_ends_no_worker(log: EventLog, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Told):
        def send(self, event: LoggedEvent) -> None:
            if not self.tries:
                self.tries = 1
                raise ZeroDivisionError
            super().send(event)

    target = Broken()
    log.record(visit())
    with caplog.at_level(logging.CRITICAL), Deliveries(log, {"a": target}, shortest=0.01):
        wait_until(lambda: target.got == [1])


def test_two_processes_do_not_deliver_from_one_log(log: EventLog) -> None:
    with Deliveries(log, {}), pytest.raises(InputError, match="delivers its events"):
        Deliveries(log, {})
    Deliveries(log, {}).close()


_KIOSK = """
import os, sys, time
from pathlib import Path
from edgeface.kiosk.outcome import VisitEvent, VisitKind
from edgeface.kiosk.delivery import Deliveries, WebhookSender
from edgeface.kiosk.events import EventLog
from edgeface.kiosk.targets import Webhook

def kiosk(path, url):
    log = EventLog(path, targets={"hook": set(VisitKind)})
    sender = WebhookSender(Webhook(url=url, secret="env:UNUSED"), b"s" * 32)
    with Deliveries(log, {"hook": sender}, shortest=0.01, longest=0.05):
        while True:
            for person in range(1, 4):
                event = VisitEvent(camera="door", kind=VisitKind.known, person_id=person, name="Ada Lovelace",
                                   contract_id="0", frames=1, reason="")
                time.sleep(0.002)
                print("recorded", log.record(event).sequence, event.id, flush=True)

for line in sys.stdin:  # each line starts a kiosk in a process of its own, which another line kills
    if (pid := os.fork()) == 0:
        kiosk(Path(sys.argv[1]), sys.argv[2])
    print("pid", pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_no_event_is_lost_by_twenty_kills_and_each_person_is_told_in_order(tmp_path: Path, endpoint: Endpoint) -> None:
    path, chance = tmp_path / "events.sqlite", random.Random(16)
    endpoint.answers = lambda _: 204 if chance.random() < 0.9 else 503  # and the target fails, too
    with subprocess.Popen(
        [sys.executable, "-c", _KIOSK, str(path), endpoint.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as factory:
        assert factory.stdin
        assert factory.stdout
        recorded = []
        for turn in range(20):
            if turn == 19:
                endpoint.answers = lambda _: 503  # so that something is left to be told
            print("start", file=factory.stdin, flush=True)
            # Killed a moment after so many events, or, every fifth, while it starts.
            pid, events, soon = 0, chance.randint(1, 30), chance.uniform(0, 0.01)
            starting = turn % 5 == 0
            for line in factory.stdout:
                kind, *rest = line.split()
                if kind == "pid":
                    pid = int(rest[0])
                elif kind == "recorded" and len(rest) == 2 and len(rest[1]) == 32:
                    recorded.append(rest[1])
                    events -= 1
                elif "ended" in line:
                    break
                if pid and (starting or events <= 0):
                    threading.Timer(soon * (10 if starting else 1), os.kill, (pid, signal.SIGKILL)).start()
                    pid = 0
        factory.stdin.close()
    endpoint.answers = lambda _: 204
    with contextlib.closing(EventLog(path)) as log:
        left = len(log.deliveries())
        with Deliveries(log, {"hook": webhook(endpoint)}, shortest=0.01, longest=0.05):
            wait_until(lambda: not log.deliveries(), 120)
        logged = {event.id: event for event in log.events()}
    told = [json.loads(body)["id"] for _, body in endpoint.got]
    assert len(recorded) > 100
    assert left > 0
    assert set(recorded) <= set(logged) == set(told)
    # Of each person an event is told for the first time only after all earlier ones were acknowledged.
    order: dict[int | None, list[int]] = {}
    for each in dict.fromkeys(told):
        order.setdefault(logged[each].person_id, []).append(logged[each].sequence)
    assert all(numbers == sorted(numbers) for numbers in order.values())


# Webhooks


def test_a_webhook_is_sent_the_event_signed_and_without_the_name(
    log: EventLog, endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    event = log.record(visit())
    with contextlib.closing(webhook(endpoint)) as sender:
        sender.send(event)
    ((headers, body),) = endpoint.got
    assert json.loads(body) == event.to_dict(names=False)
    assert b"Lovelace" not in body
    assert endpoint.url not in caplog.text
    assert headers["x-edgeface-event"] == event.id
    assert headers["content-type"] == "application/json"
    assert verify_signature(SECRET, headers["x-edgeface-signature"], body)
    assert not verify_signature(b"t" * 32, headers["x-edgeface-signature"], body)
    assert not verify_signature(SECRET, headers["x-edgeface-signature"], body + b" ")
    assert not verify_signature(SECRET, headers["x-edgeface-signature"], body, now=time.time() + 301)


def test_a_webhook_is_told_names_where_configured(log: EventLog, endpoint: Endpoint) -> None:
    with contextlib.closing(webhook(endpoint, names=True)) as sender:
        sender.send(log.record(visit()))
    assert json.loads(endpoint.got[0][1])["name"] == "Ada Lovelace"


def test_the_signature_is_the_published_hmac() -> None:
    # printf '1700000000.{}' | openssl dgst -sha256 -hmac ssssssssssssssssssssssssssssssss
    wanted = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", SECRET.decode()],
        input=b"1700000000.{}",
        capture_output=True,
        check=True,
    ).stdout
    assert sign(SECRET, b"{}", 1_700_000_000) == f"t=1700000000,v1={wanted.split()[-1].decode()}"


@given(st.text("t=0123456789,v1abcdef. \u0660", max_size=80))
def test_no_other_text_is_a_signature(header: str) -> None:
    assert not verify_signature(SECRET, header, b"{}", now=0)
    assert not verify_signature(SECRET, f"t=0,v1={header}", b"{}", now=0)


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 429, 500, 503])
def test_any_answer_but_2xx_is_no_delivery_and_no_redirect_is_followed(
    log: EventLog, endpoint: Endpoint, status: int
) -> None:
    endpoint.answers = lambda _: status
    with contextlib.closing(webhook(endpoint)) as sender, pytest.raises(Undelivered, match=str(status)):
        sender.send(log.record(visit()))
    assert len(endpoint.got) == 1


def test_an_endpoint_that_does_not_answer_is_left_after_its_time(log: EventLog, endpoint: Endpoint) -> None:
    left = threading.Event()
    endpoint.answers = lambda _: 204 if left.wait(60) else 500
    with contextlib.closing(webhook(endpoint, timeout=0.1)) as sender, pytest.raises(Undelivered, match="Timeout"):
        sender.send(log.record(visit()))  # though nothing is answered before it has left
    left.set()


def test_an_endpoint_that_answers_byte_by_byte_is_left_too_and_no_address_is_logged(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(delivery, "_GRACE", 0.1)

    def drip() -> None:
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            while True:
                client.sendall(b"x")
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, daemon=True).start()
        url, started = f"http://127.0.0.1:{server.getsockname()[1]}/services/SECRET", time.monotonic()
        with contextlib.closing(webhook(url, timeout=0.2)) as sender, pytest.raises(Undelivered):
            sender.send(log.record(visit()))
        assert 0.2 < time.monotonic() - started < 2
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    ("url", "where", "allowed"),
    [
        ("http://127.0.0.1:1/x", "loopback", True),
        ("http://localhost:1/x", "loopback", True),
        ("http://[::1]:1/x", "loopback", True),
        ("http://192.168.7.7/x", "loopback", False),
        ("http://0.0.0.0/x", "lan", False),
        ("http://8.8.8.8/x", "lan", False),
        ("http://[::ffff:8.8.8.8]/x", "lan", False),
        ("http://169.254.169.254.nip.invalid/x", "lan", False),
    ],
)
def test_without_tls_an_event_goes_only_where_configured(log: EventLog, url: str, where: str, *, allowed: bool) -> None:
    event = log.record(visit())
    with contextlib.closing(webhook(url, plain_http=where, timeout=1)) as sender, pytest.raises(Undelivered) as caught:
        sender.send(event)
    assert ("ConnectError" in str(caught.value)) is allowed


OTHER = "ftp://host/x https:///x https://user:secret@host/x file:///etc/passwd https://host:0/ https://host:99999/"


@pytest.mark.parametrize(
    "url", [*OTHER.split(), "", "https://host:x/", "https://[::1/", "https://h\u00f6st/", "https://h/a\nb"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        webhook(url)


def test_a_certificate_of_an_unknown_authority_is_refused(log: EventLog, tmp_path: Path) -> None:
    issue = pytest.importorskip("edgeface.serve.authority").issue_server
    import http.server
    import ssl

    made = issue(tmp_path / "tls", ["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, event = f"https://localhost:{server.server_port}/", log.record(visit())
        with contextlib.closing(webhook(url)) as sender, pytest.raises(Undelivered, match=r"(?i)certificate"):
            sender.send(event)
        with contextlib.closing(webhook(url, ca=made.authority)) as sender:
            sender.send(event)
        server.shutdown()
