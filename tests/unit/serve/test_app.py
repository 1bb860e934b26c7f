"""What every request passes: its key, its limits, its answer's form; and one photo, identified."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from tiny_ir import BLUE, GREEN, RED
from unit.serve.conftest import OPEN, MakeService, client_of, converse, enrol, jpeg, serving

from edgeface.serve.app import OPEN_PATHS, describe
from edgeface.serve.keys import Role
from edgeface.serve.people_answers import PersonAnswer
from edgeface.serve.service import Service

pytestmark = pytest.mark.timeout(60)
IDENTIFY = "/api/edgeface/v1/identify"


def test_a_photo_is_identified_in_every_form_it_can_be_sent_in(client: TestClient, service: Service) -> None:
    ada = enrol(service, "Ada", BLUE)
    photo = jpeg(BLUE, None, GREEN)
    answers = [
        client.post(IDENTIFY, content=photo, headers={"content-type": "image/png"}),
        client.post(IDENTIFY, files={"photo": photo}),
        client.post(IDENTIFY, json={"photo": base64.b64encode(photo).decode()}),
        client.post(IDENTIFY, json={"photo": "data:image/png;base64," + base64.b64encode(photo).decode()}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        first, second = answer.json()["faces"]
        assert (first["verdict"], first["person_id"], first["person"]) == ("accepted", ada, "Ada")
        assert (second["verdict"], second["person"]) == ("unknown", None)


@pytest.mark.parametrize("photo", ["http://somewhere/a.jpg", "file:///etc/passwd", "/etc/passwd", 7, None])
def test_neither_an_address_nor_a_path_is_read(client: TestClient, photo: object) -> None:
    answer = client.post(IDENTIFY, json={"photo": photo})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_everything_but_health_needs_a_key_and_a_role(client: TestClient, service: Service) -> None:
    with client_of(service, Role.metrics) as measuring:
        for path, methods in client.app.openapi()["paths"].items():  # type: ignore[attr-defined]
            for method in methods:
                if path not in OPEN_PATHS:
                    assert client.request(method, path, headers={"x-api-key": ""}).status_code == 401, path
                    assert measuring.request(method, path).status_code == (200 if path == "/metrics" else 403), path


def test_the_openapi_names_role_and_answers_of_every_operation() -> None:
    for path, methods in describe()["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                assert "$ref" in answer or answer["description"] != "Successful Response", (method, path, status)
            if path not in OPEN_PATHS:
                assert operation["x-role"] in {role.value for role in Role}, (method, path)
                assert {"401", "403", "429", "503"} <= operation["responses"].keys(), (method, path)


def test_the_checked_in_openapi_is_that_of_this_version() -> None:
    file = Path(__file__).parents[3] / "docs" / "openapi.json"
    assert json.loads(file.read_text()) == describe(), "renew it: edgeface serve --openapi > docs/openapi.json"


def test_a_key_opens_what_its_role_includes_and_its_own_gallery(make_service: MakeService) -> None:
    service = make_service(galleries={"default": OPEN, "north": OPEN})
    photo = {"photo": jpeg(RED)}
    with client_of(service, Role.metrics) as client:
        assert client.post(IDENTIFY, files=photo).status_code == 403
    with client_of(service, Role.recognise, gallery="north") as client:
        assert client.post(IDENTIFY, files=photo).json()["gallery"] == "north"
        assert client.post(IDENTIFY, params={"gallery": "default"}, files=photo).status_code == 404
    with client_of(service, Role.recognise) as client:
        assert client.post(IDENTIFY, files=photo, headers={"x-api-key": "0" * 36}).status_code == 401
        key = client.headers["x-api-key"]
        bearer = {"authorization": f"Bearer {key}", "x-api-key": ""}
        assert client.post(IDENTIFY, files=photo, headers=bearer).status_code == 200


def test_what_is_too_large_is_refused_by_its_headers_and_by_what_arrives(make_service: MakeService) -> None:
    service = make_service(limits={"body_bytes": 1000, "image_pixels": 3000, "workers": 1})
    with client_of(service) as client:
        assert client.post(IDENTIFY, content=b"x" * 1001).status_code == 413
        parts = (b"x" * 600 for _ in range(3))
        assert client.post(IDENTIFY, content=parts, headers={"content-type": "image/png"}).status_code == 413
        answer = client.post(IDENTIFY, content=jpeg(RED, RED), headers={"content-type": "image/png"})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad-image")


def test_answers_carry_the_headers_of_safety_and_the_requests_id(client: TestClient) -> None:
    answer = client.get("/health/live", headers={"x-request-id": "door-7"})
    assert answer.headers["x-request-id"] == "door-7"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/health/live", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_what_is_not_there_and_what_is_malformed_is_a_problem_with_a_code(client: TestClient) -> None:
    for answer, status, code in [
        (client.get("/nowhere"), 404, "no-such-path"),
        (client.get(IDENTIFY), 405, "method"),
        (client.post(IDENTIFY, content=b"{", headers={"content-type": "application/json"}), 400, "malformed-body"),
        (client.post(IDENTIFY, content=b"<a>", headers={"content-type": "text/html"}), 415, "media-type"),
        (client.post(IDENTIFY, params={"fpir": 2}, files={"photo": b"x"}), 422, "bad-input"),
        (client.post(IDENTIFY, params={"gallery": "no"}, files={"photo": b"x"}), 404, "no-such-gallery"),
        (client.post(IDENTIFY, files={"photo": b"no image"}), 422, "bad-image"),
        (client.post(IDENTIFY, files={"other": b"x"}), 422, "missing-photo"),
        (client.post(IDENTIFY, headers={"x-request-timeout": "-1"}), 400, "bad-timeout"),
    ]:
        assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_an_internal_failure_is_answered_counted_and_logged_as_one_and_tells_nobody_what_failed(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(origins=["https://door.example"])

    def fail(*given: object, **options: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(service, "identify", fail)
    with client_of(service) as client, caplog.at_level("INFO"):
        sent = {"origin": "https://door.example", "x-request-id": "r1"}
        answer = client.post(IDENTIFY, files={"photo": jpeg(RED)}, headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert "secret" not in answer.text
        headers = {"x-request-id": "r1", "access-control-allow-origin": "https://door.example"}
        assert headers.items() <= dict(answer.headers).items()
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert f'edgeface_requests_total{{code="500",endpoint="{IDENTIFY}"}} 1.0' in client.get("/metrics").text
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_nobody_without_a_key_fills_the_log(make_service: MakeService, caplog: pytest.LogCaptureFixture) -> None:
    service = make_service(keys={})
    caplog.set_level("INFO")
    ask = b"GET /docs HTTP/1.1\r\nhost: a\r\n\r\n"
    with serving(service) as port:
        head = f"POST {IDENTIFY} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n"
        wrong = head.encode() + b"\r\n", ask.replace(b"/docs", b"/health/live"), ask, b"OPTIONS" + ask[3:]
        for each in wrong:
            last = each.replace(b"host: a", b"host: a\r\nconnection: close")
            answers = converse(port, each * 29 + last).split(b"HTTP/1.1 ")[1:]
            assert len(answers) == 30
            if each == wrong[0]:
                assert (answers[0][:3], answers[29][:3]) == (b"401", b"429")
        assert converse(port, b"no HTTP\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert 10 < len([record for record in caplog.records if record.name != "httpx"]) < 30


def test_a_proxy_may_leave_its_path_or_take_it_away(make_service: MakeService) -> None:
    with client_of(make_service(listen={"root_path": "/face"})) as client:
        form = {"api_key": client.headers.pop("x-api-key")}
        for root in ("", "/face"):
            assert client.get(f"{root}/health/live").status_code == 200  # without a key
            assert client.get(f"{root}{IDENTIFY}").json()["code"] == "no-key"
            answer = client.post(f"{root}/v1/vision/face/recognize", data=form, files={"image": jpeg(RED)})
            assert answer.json()["success"]


def test_an_answer_that_is_wrong_is_logged_without_what_is_in_it() -> None:
    with pytest.raises(ValidationError) as caught:
        PersonAnswer.model_validate({"id": "x", "name": "Ada Lovelace", "labels": "Ada Lovelace"})
    assert "Ada" not in str(caught.value)


def test_bodies_that_arrive_at_once_are_held_up_to_what_can_be_computed_or_wait(make_service: MakeService) -> None:
    limits = {"workers": 1, "queue": 1, "body_bytes": 1 << 20, "connections": 64}
    service = make_service(limits=limits)
    key = str(service.first_key).encode()
    head = (
        b"POST " + IDENTIFY.encode() + b" HTTP/1.1\r\nhost: a\r\nx-api-key: " + key + b"\r\ncontent-type: image/png\r\n"
    )
    head += b"content-length: 1000000\r\n\r\n"
    with serving(service) as port, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(4)]
        for connection in connections[:2]:
            connection.sendall(head + bytes(990_000))
        time.sleep(0.3)
        connections[2].sendall(head + bytes(200_000))
        assert connections[2].recv(100).startswith(b"HTTP/1.1 503 ")
        for connection in connections[:2]:
            connection.sendall(bytes(10_000))
            assert connection.recv(100).startswith(b"HTTP/1.1 422 ")
        connections[3].sendall(head + bytes(1_000_000))
        assert connections[3].recv(100).startswith(b"HTTP/1.1 422 ")
