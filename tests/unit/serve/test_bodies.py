"""Hostile bodies: bombs, malformed forms, garbage, names that want to be paths or SQL; and browsers of any origin."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import random
import struct
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_ir import BLUE
from unit.serve.conftest import MakeService, client_of, converse, enrol, jpeg, serving

from edgeface.serve.bodies import parse_form, parse_object
from edgeface.serve.problems import Problem
from edgeface.serve.service import Service
from edgeface.serve.settings import Limits

pytestmark = pytest.mark.timeout(60)
ANALYZE = "/api/edgeface/v1/analyze"
EMBED = "/api/edgeface/v1/embed"
PNG = {"content-type": "image/png"}
FORM = "multipart/form-data; boundary=B"


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG of this size by its header, gray, with this data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Images


def test_an_image_that_unpacks_to_much_more_than_its_file_is_refused_before_it_is_decoded(client: TestClient) -> None:
    bomb = png(60_000, 60_000, zlib.compress(bytes(1 << 20)))
    wide = png(2**31 - 1, 1, zlib.compress(bytes(1000)))
    animated = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    frames = animated[:33] + png(1, 1, b"")[33:-12].replace(b"IDAT", b"acTL") + animated[33:]
    for photo in (bomb, wide, frames, bomb[:1000]):
        began = time.perf_counter()
        answer = client.post(ANALYZE, content=photo, headers=PNG)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad-image"), answer.text
        assert time.perf_counter() - began < 1


def test_a_body_that_is_compressed_is_refused_and_not_unpacked(client: TestClient) -> None:
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "x"):
        headers = {**PNG, "content-encoding": encoding}
        answer = client.post(ANALYZE, content=gzip.compress(bytes(1 << 24)), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "content-encoding")
    assert client.post(ANALYZE, content=jpeg(BLUE), headers={**PNG, "content-encoding": "identity"}).status_code == 200


# JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"photo": ' + b"9" * 100_000 + b"}",
        b'{"photo": 1e999999999}',
        b'{"photo": "", "photo": ""}',
        b'{"photo": "\xff"}',
        b'{"a": [' + b"0," * 1_000_000 + b"0]}",
        b'{"photo": [' + b"[]," * 100_000 + b"[]]}",
        b"\xff\xfe{\x00}\x00",
        b'{"photo": NaN}',
        b"null",
        b'"/etc/passwd"',
    ],
)
def test_json_that_is_a_bomb_or_damaged_is_refused_quickly(client: TestClient, body: bytes) -> None:
    for path in (ANALYZE, f"{ANALYZE}/batch"):
        began = time.perf_counter()
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422)
        assert time.perf_counter() - began < 1


@pytest.mark.parametrize("text", ["!", "QQ", "QQ=", "Q\udc41==", "=" * 100, "data:image/png;base64", "Q" * 101, "\x00"])
def test_what_is_no_base64_is_no_photo(client: TestClient, text: str) -> None:
    answer = client.post(ANALYZE, content=json.dumps({"photo": text}), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "not-base64")


def test_base64_of_garbage_is_no_image(client: TestClient) -> None:
    chance = random.Random(1)
    for size in (0, 1, 100, 100_000):
        answer = client.post(ANALYZE, json={"photo": base64.b64encode(chance.randbytes(size)).decode()})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad-image")


@settings(max_examples=100)
@given(
    st.binary(max_size=300)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_bytes_are_an_object_or_a_problem(body: bytes) -> None:
    try:
        assert isinstance(parse_object(body), dict)
    except Problem as problem:
        assert problem.status in (400, 422)  # noqa: PT017


# Forms


def part(name: str, data: bytes, more: str = "") -> bytes:
    return (
        f'--B\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"{more}\r\n\r\n'.encode()
        + data
        + b"\r\n"
    )


def test_a_form_is_read_as_rfc_7578_has_it(client: TestClient) -> None:
    photo = jpeg(BLUE)
    for body in (
        part("photo", photo) + b"--B--",
        b"preamble\r\n" + part("photo", photo) + b"--B--\r\nepilogue --B",
        part("photo", photo).replace(b"--B\r\n", b"--B \t\r\n") + b"--B--\r\n",
        part("photo", photo, "\r\nContent-Type: image/png") + b"--B--\r\n",
        part("photo", photo).replace(b'name="photo"', b"name=photo").replace(b"Content-D", b"CONTENT-d") + b"--B--\r\n",
        part("photo", photo).replace(b'; filename="a.png"', b"\r\nContent-Type: image/png") + b"--B--\r\n",
    ):
        answer = client.post(ANALYZE, content=body, headers={"content-type": FORM})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["faces"]) == 1
    quoted = client.post(
        ANALYZE,
        content=part("photo", photo).replace(b"--B", b"--a b") + b"--a b--",
        headers={"content-type": 'multipart/form-data; charset=utf-8; boundary="a b"'},
    )
    assert quoted.status_code == 200


def test_the_parts_of_a_form_are_copied_byte_for_byte() -> None:
    data = [bytes(range(256)) * 3, b"", b"\r\n", b"\r\n-", b"x--B", b"\r\n--", b"x\r\n\r\ny"]
    names = ['a"b', "门", "..\\x", "'; DROP TABLE people; --"]
    body = b"".join(part(names[n % 4].replace('"', "%22").replace("\\", "\\\\"), each) for n, each in enumerate(data))
    found = list(parse_form(body + b"--B--", FORM))
    assert [each.data for each in found] == data
    assert [each.name for each in found] == [names[n % 4] for n in range(len(data))]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B--\r\n",
        b"--B",
        b"--B\r\n",
        part("photo", b"x"),
        part("photo", b"x") + b"--B",
        part("photo", b"x") + b"--C--",
        b"--B\r\n\r\nx\r\n--B--",
        b'--B\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n',
        b"--B\r\n" + b"X: y\r\n" * 200_000 + b"\r\nx\r\n--B--",
        b"--B\r\nContent-Disposition: form-data; name=" + b"y" * 1_000_000 + b"\r\n\r\nx\r\n--B--",
        part("photo", b"x") * 5000 + b"--B--",
        b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 70_000 + b"\r\n--B--",
        b'--B\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--B--',
        b"\r\n--" * 1_000_000,
        b"\r\n--A" * 1_000_000,
        b"\r" * 5_000_000,
        part("photo", b"\r\n--Boundary") + b"--B--",
    ],
)
def test_a_malformed_form_is_refused_quickly(client: TestClient, body: bytes) -> None:
    for path in (ANALYZE, f"{ANALYZE}/batch"):
        began = time.perf_counter()
        answer = client.post(path, content=body, headers={"content-type": FORM})
        assert answer.status_code in (400, 422), answer.text[:300]
        assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; boundary=C",
        'multipart/form-data; boundary="',
    ],
)
def test_a_form_of_another_boundary_is_refused(client: TestClient, kind: str) -> None:
    answer = client.post(ANALYZE, content=part("photo", jpeg(BLUE)) + b"--B--", headers={"content-type": kind})
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed-body")


@pytest.mark.parametrize("rounds", [200, pytest.param(20_000, marks=pytest.mark.nightly)])
def test_a_form_of_any_bytes_is_parts_or_a_problem(rounds: int) -> None:
    chance, whole = random.Random(rounds), part("photo", b"x" * 40) + part("b", b"y") + b"--B--\r\n"
    for _ in range(rounds):
        body = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            at = chance.randrange(len(body))
            body[at : at + chance.choice((0, 1, 5))] = chance.choice(
                (b"\r\n", b"--B", b'"', b";", b"\r\n\r\n", b"\xff")
            )
        try:
            assert sum(len(each.data) for each in parse_form(bytes(body), FORM)) <= len(body)
        except Problem as problem:
            assert problem.code == "malformed-body"  # noqa: PT017


def test_parsing_the_worst_form_of_the_largest_size_takes_less_than_decoding_a_photo() -> None:
    size, slowest = 16 << 20, 0.0
    for filling in (b"\r\n--", b"\r\n--A", b"\r", b"\n", b"--B", b"-"):
        body = part("photo", filling * (size // len(filling)))
        began = time.process_time()
        with contextlib.suppress(Problem):
            list(parse_form(body, FORM))
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 0.5


def test_no_photo_of_a_request_is_written_to_a_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    for name in ("SpooledTemporaryFile", "TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(f"tempfile.{name}", refuse)
    photo = cv2.imencode(".bmp", np.zeros((1000, 1000, 3), np.uint8))[1].tobytes()
    assert client.post(ANALYZE, files={"photo": photo}).status_code == 200


# Bodies without a length, over a socket


def chunked(service: Service, *chunks: bytes) -> list[bytes]:
    head = (
        f"POST {ANALYZE} HTTP/1.1\r\nhost: a\r\nx-api-key: {service.first_key}\r\ncontent-type: image/png\r\n"
        "transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )
    return [head.encode(), *(b"%x\r\n" % len(chunk) + chunk + b"\r\n" for chunk in chunks)]


def test_a_body_without_a_length_is_read_up_to_the_limit(make_service: MakeService) -> None:
    service = make_service(limits={"body_bytes": 200_000, "workers": 1, "body_seconds": 2})
    photo = jpeg(BLUE)
    with serving(service) as port:
        pieces = [photo[at : at + 7] for at in range(0, len(photo), 7)]
        assert converse(port, b"".join(chunked(service, *pieces)) + b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        endless = converse(port, *chunked(service, *[bytes(50_000)] * 20))
        assert endless.startswith(b"HTTP/1.1 413 ")
        for wrong in (b"zz\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"5\rabcde\r\n"):
            assert converse(port, chunked(service)[0] + wrong).startswith(b"HTTP/1.1 400 ")


def test_endless_trailers_and_chunk_extensions_end_the_connection(make_service: MakeService) -> None:
    service = make_service(limits={"workers": 1, "body_seconds": 5})
    with serving(service) as port:
        trailer = b"0\r\n" + b"x-a: " + b"y" * 60_000
        answer = converse(port, *chunked(service, jpeg(BLUE)), trailer, *[b"z" * 60_000] * 40)
        assert not answer.startswith(b"HTTP/1.1 200 ")
        extension = b"1;" + b"e" * 60_000
        answer = converse(port, chunked(service)[0], extension, *[b"e" * 60_000] * 40)
        assert not answer.startswith(b"HTTP/1.1 200 ")


# Names


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "default'; DROP TABLE people; --",
        "default\x00",
        "\u202edefault",
        "\uff24\uff25fault",
        "default/",
        "x" * 5000,
        "门",
        "${jndi:ldap://a}",
        "{{7*7}}",
        "",
    ],
)
def test_a_name_that_is_a_path_or_sql_names_nothing(client: TestClient, service: Service, name: str) -> None:
    enrol(service, "Ada", BLUE)
    photo = jpeg(BLUE)
    for path, key in (("identify", "gallery"), ("analyze", "model"), ("embed/batch", "model")):
        answer = client.post(f"/api/edgeface/v1/{path}", params={key: name}, files={"photo": photo})
        assert answer.status_code == (200 if not name else 404), answer.text
    for path in ("models/{}", "models/{}/thresholds"):
        answer = client.get("/api/edgeface/v1/" + path.format(urllib.parse.quote(name, safe="")))
        assert answer.status_code == 404
    assert service.gallery("default").store.find("Ada")


def test_file_names_are_given_back_and_used_for_nothing(client: TestClient) -> None:
    names = ["../../x.png", "/etc/passwd", "C:\\x", "门.png", "a\u202e.png"]
    answer = client.post(EMBED + "/batch", files=[("photo", (name, jpeg(BLUE))) for name in names])
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert all("result" in line for line in lines)
    assert [line["name"] for line in lines][:2] == names[:2]


# Browsers


def origins(client: TestClient, method: str, origin: str | None, **headers: str) -> Any:
    given = {} if origin is None else {"origin": origin}
    return client.request(method, ANALYZE, headers=given | headers)


@pytest.fixture
def door(make_service: MakeService) -> Iterator[TestClient]:
    with client_of(make_service(origins=["https://door.example"])) as client:
        yield client


def test_a_named_origin_may_ask_first_without_a_key_and_read_every_answer(door: TestClient) -> None:
    asked = origins(
        door, "OPTIONS", "https://door.example", **{"access-control-request-method": "POST", "x-api-key": ""}
    )
    assert asked.status_code == 204
    assert asked.headers["access-control-allow-origin"] == "https://door.example"
    assert "x-api-key" in asked.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in asked.headers
    for headers, status in (({}, 415), ({"x-api-key": "no"}, 401)):
        answer = origins(door, "POST", "https://door.example", **headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://door.example"
        assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(
    "origin", ["https://door.example.evil", "http://door.example", "https://door.example:8443", "null", "", "*", None]
)
def test_no_other_origin_is_told_anything(door: TestClient, origin: str | None) -> None:
    for method, headers in (("OPTIONS", {"access-control-request-method": "POST", "x-api-key": ""}), ("POST", {})):
        answer = origins(door, method, origin, **headers)
        assert answer.status_code == (401 if method == "OPTIONS" else 415)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "Origin" in answer.headers["vary"]


def test_without_named_origins_there_is_no_cors_at_all(client: TestClient) -> None:
    answer = origins(client, "OPTIONS", "https://door.example", **{"access-control-request-method": "POST"})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]


def test_head_is_answered_as_get_without_a_body(client: TestClient) -> None:
    for path in ("/health/live", "/api/edgeface/v1/models", "/docs"):
        got, headed = client.get(path), client.head(path)
        assert (headed.status_code, headed.content) == (200, b"")
        assert headed.headers["content-length"] == got.headers["content-length"]
    assert client.head(ANALYZE).status_code == 405
    assert client.head("/api/edgeface/v1/models", headers={"x-api-key": ""}).status_code == 401


def test_every_answer_has_the_headers_of_safety(client: TestClient) -> None:
    for answer in (client.get("/health/live"), client.get("/nowhere"), client.get("/docs"), client.post(ANALYZE)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]


def test_as_many_embeddings_as_faces_may_be_sent_in_one_body() -> None:
    given = {"embeddings": [[0.123456] * 512] * Limits().faces}
    assert parse_object(json.dumps(given).encode()) == given
    with pytest.raises(Problem, match="commas"):
        parse_object(json.dumps([[0] * 1000] * 41).encode())
