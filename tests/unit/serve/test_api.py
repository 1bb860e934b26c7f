"""The own API: faces analyzed, verified, embedded and identified, one photo or many; models and thresholds."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tiny_ir import BLUE, GREEN, RED, TEAL, write_tiny_ir
from unit.serve.conftest import OPEN, MakeService, client_of, enrol, jpeg

from edgeface.recognize.known import own_path
from edgeface.recognize.metrics import Metric
from edgeface.recognize.threshold import calibrate, save_thresholds
from edgeface.serve import answers
from edgeface.serve.keys import Role
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = pytest.mark.timeout(60)
API = "/api/edgeface/v1"


def post(client: TestClient, path: str, *photos: bytes, **query: Any) -> Any:
    """Post photos as a form; one for an operation with one, photo_a and photo_b for verify."""
    names = ("photo_a", "photo_b") if path == "/verify" else ("photo",) * len(photos)
    return client.post(
        API + path, params=query, files=[(name, ("x.png", photo)) for name, photo in zip(names, photos, strict=True)]
    )


def lines_of(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


def test_analyze_tells_where_faces_are_and_embeds_them_only_if_asked(client: TestClient) -> None:
    photo = jpeg(BLUE, None, GREEN)
    answer = post(client, "/analyze", photo).json()
    assert (answer["model"], answer["version"], answer["width"], answer["height"]) == ("default", 1, 120, 40)
    assert [face["box"] for face in answer["faces"]] == [[0, 0, 40, 40], [80, 0, 120, 40]]
    assert [face["embedding"] for face in answer["faces"]] == [None, None]
    measured = answer["faces"][0]["measurements"]
    assert (measured["box_side"], measured["yaw"], measured["inside"]) == (40, None, 1)
    embedded = post(client, "/analyze", photo, embeddings=True).json()["faces"]
    vectors = np.array([face["embedding"] for face in embedded])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert vectors.argmax(axis=1).tolist() == [0, 1]  # mean blue, mean green
    (gated,) = post(client, "/analyze", jpeg(BLUE), embeddings=True, gate=True).json()["faces"]
    assert gated["embedding"] is None or not gated["reasons"]


@pytest.mark.parametrize(("size", "told"), [(None, {"gate": 32, "default": 20}), (24, {"min-size": 24})])
def test_answers_say_from_which_size_on_faces_were_looked_for_and_why(
    tmp_path: Path, size: int | None, told: dict[str, int]
) -> None:
    given = {
        "state": tmp_path / "state",
        "models": {"default": {"model": str(write_tiny_ir(tmp_path)), "detector": "mtcnn", "min_size": size}},
        "galleries": {"gated": {"threshold": 0.95}, "open": OPEN},
    }
    photo, found = jpeg(BLUE), dict[str, int]()
    with Service(Settings.model_validate(given)) as service, client_of(service) as client:
        for path, query, why in (
            ("/identify", {"gallery": "gated"}, "gate"),
            ("/identify", {"gallery": "open"}, "default"),
            ("/analyze", {"gate": True}, "gate"),
            ("/analyze", {}, "default"),
        ):
            answer = post(client, path, photo, **query).json()
            assert answer["detector"] == "mtcnn"
            assert answer["min_size_from"] == (why if size is None else "min-size")
            assert found.setdefault(answer["min_size_from"], answer["min_size"]) == answer["min_size"]
    assert found == told


def test_too_many_faces_are_refused_before_any_is_embedded(make_service: MakeService) -> None:
    service = make_service(limits={"faces": 2, "workers": 1})
    with client_of(service) as client, service.models.use("default") as model:
        before = model.analyzer.embedder.counters().done
        for path in ("/analyze", "/identify"):
            answer = post(client, path, jpeg(RED, GREEN, BLUE), **({"embeddings": True} if path == "/analyze" else {}))
            assert (answer.status_code, answer.json()["code"]) == (422, "too-many-faces")
        assert model.analyzer.embedder.counters().done == before
        assert post(client, "/analyze", jpeg(RED, GREEN)).status_code == 200


def test_verify_decides_by_a_given_threshold_and_by_that_of_a_rate(client: TestClient, service: Service) -> None:
    same, other = (jpeg(BLUE), jpeg(BLUE)), (jpeg(BLUE), jpeg(RED))
    for photos, matched in ((same, True), (other, False)):
        answer = post(client, "/verify", *photos, threshold=0.95).json()
        assert (answer["matched"], answer["threshold"], answer["far"]) == (matched, 0.95, None)
        assert answer["score"] > 0.99 if matched else answer["score"] < 0.5
    refused = post(client, "/verify", *same, far=0.01)
    assert (refused.status_code, refused.json()["code"]) == (409, "missing")
    with service.models.use("default") as model:
        contract_id = model.contract.contract_id
    random = np.random.default_rng(0)
    known = calibrate(
        random.uniform(0.9, 1, 400),
        random.uniform(0, 0.8, 40_000),
        fars=(0.01, 0.001),
        contract_id=contract_id,
        metric=Metric.cosine,
        created_from="/a/path",
        measured_on="squares",
    )
    own_path(contract_id).parent.mkdir(parents=True, exist_ok=True)
    save_thresholds(own_path(contract_id), known)
    try:
        for threshold in known:
            answer = post(client, "/verify", *same, far=threshold.far).json()
            assert (answer["matched"], answer["far"], answer["threshold"]) == (True, threshold.far, threshold.value)
        assert post(client, "/verify", *same).json()["far"] == 0.001
        answer = client.get(f"{API}/models/default/thresholds", params={"templates": 10})
        found = answer.json()
        assert [each["far"] for each in found["verification"]] == [0.01, 0.001]
        assert (found["search"]["fpir"], found["search"]["templates"]) == (0.01, 10)
        assert "/a/path" not in answer.text
        unknown = post(client, "/verify", *same, far=0.5)
        assert (unknown.status_code, unknown.json()["expected"]) == (422, "a calibrated rate (0.001, 0.01)")
    finally:
        own_path(contract_id).unlink()


def test_verify_compares_the_faces_whose_numbers_are_given(client: TestClient) -> None:
    two, one = jpeg(BLUE, RED), jpeg(RED)
    assert post(client, "/verify", two, one, threshold=0.95, face_a=2).json()["matched"]
    first = post(client, "/verify", two, one, threshold=0.95, face_a=1, face_b=1).json()
    assert (first["matched"], first["face_a"]["number"], first["face_a"]["total"]) == (False, 1, 2)
    absent = post(client, "/verify", two, one, threshold=0.95, face_a=3)
    assert (absent.status_code, absent.json()["found"]) == (422, "3")
    both = post(client, "/verify", two, one, threshold=0.95, far=0.01)
    assert both.status_code == 422


def test_embed_gives_the_vector_that_the_library_does(client: TestClient, service: Service) -> None:
    photo = jpeg(TEAL)
    answer = post(client, "/embed", photo).json()
    with service.models.use("default") as model:
        np.testing.assert_allclose(answer["embedding"], model.analyzer.embed(photo).vector, atol=1e-6)
        assert answer["contract_id"] == model.contract.contract_id
    assert post(client, "/embed", jpeg(None)).json()["code"] == "no-face"


def test_models_are_described_without_a_path(make_service: MakeService) -> None:
    service = make_service(galleries={"default": OPEN, "north": OPEN})
    with client_of(service, Role.recognise, gallery="north") as client:
        (listed,) = client.get(f"{API}/models").json()["models"]
        answer = client.get(f"{API}/models/default")
        known = answer.json()
        assert {name: known[name] for name in listed} == listed
        assert (known["device"], known["weights"], known["dimensions"]) == ("CPU", "FP32", 3)
        assert known["galleries"] == ["north"]  # what its key may use
        assert known["contract"]["alignment"]["recipe"] == "mtcnn-box-margin"
        assert str(service.settings.state.parent) not in answer.text
        assert client.get(f"{API}/models/none").json()["code"] == "no-such-model"
        assert client.get(f"{API}/models/default/thresholds").json()["verification"] == []


@pytest.mark.parametrize(
    ("path", "query"),
    [("/analyze", {"embedding": "true"}), ("/verify", {"fra": 0.1}), ("/identify", {"threshold": 0.1})],
)
def test_an_option_that_does_not_exist_is_refused_and_not_ignored(
    client: TestClient, path: str, query: dict[str, Any]
) -> None:
    photos = [jpeg(BLUE)] * (2 if path == "/verify" else 1)
    assert post(client, path, *photos, **query).status_code == 422
    in_body = client.post(API + path, data={"far": "0.1"}, files=[("photo", photos[0])])
    assert (in_body.status_code, in_body.json()["code"]) == (422, "bad-input")
    assert "far" in in_body.json()["detail"]


# Many photos


def test_a_batch_is_answered_in_its_order_and_a_bad_photo_is_a_line(client: TestClient, service: Service) -> None:
    ada = enrol(service, "Ada", BLUE)
    photos = [jpeg(BLUE), b"no image", jpeg(None), jpeg(GREEN)]
    texts = [base64.b64encode(photo).decode() for photo in photos]
    ndjson = "\n".join(json.dumps({"photo": text, "name": f"{n}"}) for n, text in enumerate(texts)) + "\n\n"
    sent = [
        client.post(f"{API}/identify/batch", files=[("photo", (f"{n}", photo)) for n, photo in enumerate(photos)]),
        client.post(f"{API}/identify/batch", content=ndjson, headers={"content-type": "application/x-ndjson"}),
        client.post(f"{API}/identify/batch", json={"photo": texts}),
    ]
    for answer, named in zip(sent, (True, True, False), strict=True):
        first, second, third, fourth = lines = lines_of(answer)
        for line in lines:
            answers.IdentifyLine.model_validate(line)
        assert [line["photo"] for line in lines] == [0, 1, 2, 3]
        assert [line.get("name") for line in lines] == (["0", "1", "2", "3"] if named else [None] * 4)
        assert first["result"]["faces"][0]["person_id"] == ada
        assert (second["problem"]["code"], "result" in second) == ("bad-image", False)
        assert third["result"]["faces"] == []
        assert fourth["result"]["faces"][0]["verdict"] == "unknown"


def test_a_malformed_line_costs_that_line(client: TestClient) -> None:
    good = json.dumps({"photo": base64.b64encode(jpeg(BLUE)).decode()})
    bad = ["{", '"x"', '{"photo": "/etc/passwd"}', '{"photo": 1}', "{}", '{"photo": "", "file": 1}', "\udcff"]
    bad.append(json.dumps({"photo": "", "name": "\ud800"}))
    body = "\n".join([good, *bad, good]).encode("utf-8", "surrogateescape")
    answer = client.post(f"{API}/embed/batch", content=body, headers={"content-type": "application/x-ndjson"})
    lines = lines_of(answer)
    assert ["result" in line for line in lines] == [True, *[False] * len(bad), True]
    assert {line["problem"]["status"] for line in lines[1:-1]} == {400, 422}


@pytest.mark.parametrize("number", [0, 4])
def test_a_batch_of_no_or_too_many_photos_is_refused_as_a_whole(make_service: MakeService, number: int) -> None:
    with client_of(make_service(limits={"images": 3, "workers": 1})) as client:
        line = json.dumps({"photo": base64.b64encode(jpeg(BLUE)).decode()}) + "\n"
        for answer in (
            client.post(f"{API}/embed/batch", content=line * number, headers={"content-type": "application/jsonl"}),
            client.post(f"{API}/embed/batch", json={"photo": [""] * number}),
            client.post(f"{API}/embed/batch", data={"a": "b"}, files=[("photo", b"x")] * number)
            if number
            else client.post(f"{API}/embed/batch", json={}),
        ):
            assert answer.status_code == 422, answer.text


def test_a_batch_waits_for_its_turn_where_one_request_is_refused(make_service: MakeService) -> None:
    service = make_service(limits={"workers": 1, "queue": 0})
    with client_of(service) as client:
        answer = post(client, "/embed/batch", *[jpeg((200, 10 * n, 0)) for n in range(12)])
        assert all("result" in line for line in lines_of(answer))


def test_a_batch_beyond_its_deadline_says_so_on_each_line(make_service: MakeService) -> None:
    service = make_service(limits={"workers": 1, "seconds": 0.3})
    held = threading.Event()
    read = service.read_photo

    def slowly(data: bytes, name: str = "photo") -> Any:
        if data == b"slow":
            held.wait(5)
        return read(data, name)

    service.read_photo = slowly  # type: ignore[method-assign]
    with client_of(service) as client:
        answer = post(client, "/embed/batch", jpeg(BLUE), b"slow", jpeg(RED))
        held.set()
    first, *late = lines_of(answer)
    assert "result" in first
    assert [line["problem"]["code"] for line in late] == ["deadline-exceeded"] * 2


# Shared work


def counting(service: Service) -> tuple[list[bytes], threading.Event]:
    """Hold and count what reads photos."""
    seen, gate, read = list[bytes](), threading.Event(), service.read_photo

    def held(data: bytes, name: str = "photo") -> Any:
        seen.append(data)
        gate.wait(10)
        return read(data, name)

    service.read_photo = held  # type: ignore[method-assign]
    return seen, gate


def test_requests_for_the_same_at_one_time_are_computed_once_and_each_is_in_the_audit_log(service: Service) -> None:
    enrol(service, "Ada", BLUE)
    (gallery,) = service.galleries.values()
    service.identify(jpeg(RED), gallery)  # no work is shared that began before the gallery was searched as it is now
    seen, gate = counting(service)
    photo = jpeg(BLUE)
    with client_of(service) as client, ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(post, client, "/identify", photo) for _ in range(4)]
        asked.append(pool.submit(post, client, "/identify", jpeg(RED)))  # is another question
        same = client.app.state.work._same  # type: ignore[attr-defined]
        wait_until(lambda: sum(each.waiting for each in same.copy().values()) == 5 and len(seen) >= 1)
        gate.set()
        codes = [each.result().status_code for each in asked]
        assert post(client, "/verify", photo, photo, threshold=0.9).json()["matched"]
    assert codes == [200] * 5
    assert seen == [photo, jpeg(RED), photo, photo] or seen == [jpeg(RED), photo, photo, photo]
    assert service.audit is not None
    rows = [(row.action, row.decision) for row in service.audit.rows()]
    assert rows.count(("identify", "accepted")) == 4
    assert rows.count(("identify", "unknown")) == 1
    assert rows.count(("verify", "matched")) == 1


def wait_until(reached: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(500):
        if reached():
            return
        pause.wait(0.01)
    raise AssertionError("not reached")
