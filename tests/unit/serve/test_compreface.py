"""CompreFace's paths: what its SDK and double-take send is answered as CompreFace answers it."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import subprocess
import sys
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_ir import BLUE, GREEN, RED, SIDE, TEAL, tiny_crop
from unit.serve.conftest import OPEN, MakeService, TestClient, client_of, enrol, jpeg, serving

from edgeface.serve.keys import Role
from edgeface.serve.service import Service

RECOGNITION = "/api/v1/recognition"
C0, C1 = 1.1362496, 5.803152427
"""Of FaceNet 20180408-102900, from CompreFace's facenet.py."""
NEARLY_BLUE = (220, 60, 20)


def similarity(a: Any, b: Any) -> float:
    """CompreFace's similarity of two colours, from its own formula."""
    a, b = (np.array(each, float) / np.linalg.norm(each) for each in (a, b))
    return (math.tanh((C0 - float(np.linalg.norm(a - b))) * C1) + 1) / 2


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    """A client with the one key that double-take has for recognition and training."""
    with client_of(service, Role.enrol) as client:
        yield client


def add(client: TestClient, subject: str, *colours: Any, **more: Any) -> Any:
    files = {"file": ("a.png", jpeg(*colours))}
    return client.post(f"{RECOGNITION}/faces", params={"subject": subject, **more}, files=files)


def recognize(client: TestClient, photo: bytes, query: str = "") -> Any:
    return client.post(f"{RECOGNITION}/recognize?{query}", files={"file": ("a.png", photo)})


# The clients themselves


def test_the_sdk_of_compreface_works_unchanged(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK pins requests-toolbelt 0.9.1, which imports a part of urllib3 1 and does without it.
    monkeypatch.setitem(sys.modules, "urllib3.contrib.appengine", types.ModuleType("appengine"))
    sdk = pytest.importorskip("compreface", reason="the extra 'clients' is not installed")
    photo = tmp_path / "ada.png"
    photo.write_bytes(jpeg(BLUE))
    key = service.keys.add("sdk", Role.enrol)[1]
    with serving(service) as port:
        compreface = sdk.CompreFace("http://127.0.0.1", str(port), {"limit": 0, "prediction_count": 2, "status": True})
        recognition = compreface.init_face_recognition(key)
        faces, subjects = recognition.get_face_collection(), recognition.get_subjects()
        assert subjects.add("Grace") == {"subject": "Grace"}
        added = faces.add(str(photo), "Ada", {"det_prob_threshold": 0.5})
        other = faces.add(jpeg(GREEN), "Grace")
        assert (added["subject"], other["subject"]) == ("Ada", "Grace")
        assert faces.list()["faces"] == [other, added]
        (face,) = recognition.recognize(jpeg(NEARLY_BLUE))["result"]
        assert [each["subject"] for each in face["subjects"]] == ["Ada", "Grace"]
        assert face["subjects"][0]["similarity"] == pytest.approx(similarity(NEARLY_BLUE, BLUE), abs=1e-3)
        assert set(face["execution_time"]) == {"detector", "calculator"}
        (verified,) = faces.verify(jpeg(NEARLY_BLUE), added["image_id"], {"face_plugins": "landmarks,age"})["result"]
        assert verified["similarity"] == face["subjects"][0]["similarity"]
        (pair,) = compreface.init_face_verification(key).verify(jpeg(BLUE), jpeg(GREEN, NEARLY_BLUE))["result"]
        assert [each["decision"] for each in pair["face_matches"]] == [
            "match",
            "no-match",
        ]  # squares are found from the right
        found = compreface.init_face_detection(key).detect(jpeg(BLUE, RED), {"limit": 1, "face_plugins": "mask"})
        assert len(found["result"]) == 1
        assert subjects.update("Ada", "Ada Lovelace") == {"updated": True}
        assert subjects.list() == {"subjects": ["Grace", "Ada Lovelace"]}
        assert faces.delete(added["image_id"]) == {"image_id": added["image_id"], "subject": "Ada Lovelace"}
        assert faces.delete_all("Grace") == {"deleted": 1}
        assert subjects.delete("Ada Lovelace") == {"subject": "Ada Lovelace"}
        assert subjects.delete_all() == {"deleted": 1}
        assert recognition.recognize(jpeg(BLUE))["result"][0]["subjects"] == []
        assert recognition.recognize(jpeg(None)) == {
            "message": "No face is found in the given image",
            "code": 28,
            "detail": "file: expected a face, found none; use a photo with a larger or clearer face; "
            f"faces are looked for from {SIDE} pixels on (--min-size; in Python min_size)",
        }


def test_double_take_trains_recognizes_and_untrains(client: TestClient) -> None:
    assert add(client, "ada", BLUE).status_code == 201
    answer = recognize(client, jpeg(BLUE, RED), "det_prob_threshold=0.8&face_plugins=undefined")
    # As normalize() of double-take's compreface.js reads it, with its thresholds for a match and for unknown people.
    read = [
        (face["subjects"][0]["subject"], face["subjects"][0]["similarity"] * 100 >= 60, face["box"]["x_min"])
        for face in answer.json()["result"]
    ]
    assert sorted(read) == [("ada", False, 40), ("ada", True, 0)]
    assert recognize(client, jpeg(None), "det_prob_threshold=0.8").json()["code"] == 28
    assert client.delete(f"{RECOGNITION}/faces", params={"subject": "ada"}).json() == {"deleted": 1}
    assert client.delete(f"{RECOGNITION}/faces", params={"subject": "nobody"}).json() == {"deleted": 0}


def test_the_requests_of_the_document_work(service: Service, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("curl ") and RECOGNITION in line]
    assert len(lines) == 2
    for name in ("ada.jpg", "door.jpg"):
        (tmp_path / name).write_bytes(jpeg(BLUE))
    key = service.keys.add("curl", Role.enrol)[1]
    with serving(service) as port:
        added, recognized = (
            json.loads(
                subprocess.run(
                    ["sh", "-c", line.replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
                    cwd=tmp_path,
                    env={**os.environ, "KEY": key},
                    check=True,
                    capture_output=True,
                ).stdout
            )
            for line in lines
        )
    assert (added["subject"], recognized["result"][0]["subjects"][0]["subject"]) == ("Ada", "Ada")


# Bodies


def test_a_face_is_answered_as_compreface_answers_it(client: TestClient, service: Service) -> None:
    enrol(service, "Ada", BLUE)
    answer = recognize(client, jpeg(NEARLY_BLUE), "?&limit=0&status=True&face_plugins=calculator,landmarks,pose")
    (face,) = answer.json()["result"]
    assert face["box"] == {"probability": 0.9, "x_max": 40, "y_max": 40, "x_min": 0, "y_min": 0}
    assert face["embedding"] == pytest.approx(np.array(NEARLY_BLUE) / np.linalg.norm(NEARLY_BLUE), abs=0.01)
    assert (face["decision"], face["threshold"]) == ("accepted", OPEN["threshold"])
    assert face["contract_id"] == service.galleries["default"].store.info.contract_id
    (subject,) = face["subjects"]
    unit = (np.array(each) / np.linalg.norm(each) for each in (BLUE, NEARLY_BLUE))
    assert subject["cosine"] == pytest.approx(float(np.dot(*unit)), abs=1e-3)
    assert answer.json()["plugins_versions"] == {"detector": "edgeface.squares", "calculator": "edgeface.tiny"}
    plain = recognize(client, jpeg(NEARLY_BLUE)).json()
    assert plain.keys() == {"result"}
    assert not plain["result"][0].keys() & {"embedding", "landmarks", "execution_time"}


@pytest.mark.slow
def test_each_face_is_ranked_and_decided_by_itself(client: TestClient, service: Service) -> None:
    for name, colour in (("Ada", BLUE), ("Grace", GREEN), ("Mary", RED)):
        enrol(service, name, colour)
    faces = recognize(client, jpeg(BLUE, NEARLY_BLUE, TEAL), "prediction_count=99").json()["result"]
    ranked = [[each["subject"] for each in face["subjects"]] for face in faces]
    assert {len(each) for each in ranked} == {3}
    told = {face["box"]["x_min"]: (face["subjects"][0]["subject"], face["decision"]) for face in faces}
    assert told[0] == told[40] == ("Ada", "accepted")
    assert told[80][1] == "unknown"
    values = [each["similarity"] for each in faces[0]["subjects"]]
    assert values == sorted(values, reverse=True)


def test_faces_below_the_score_or_beyond_the_limit_are_left_out(client: TestClient) -> None:
    detect = "/api/v1/detection/detect"
    files = {"file": ("a.png", jpeg(BLUE, RED, GREEN))}  # of scores 0.9, 0.85 and 0.8
    count = [
        len(client.post(f"{detect}?{query}", files=files).json()["result"])
        for query in ("", "limit=2", "limit=0&det_prob_threshold=0.84", "&limit=&det_prob_threshold=")
    ]
    assert count == [3, 2, 2, 3]
    assert client.post(f"{detect}?det_prob_threshold=0.95", files=files).json()["code"] == 28


def test_a_crop_is_taken_as_it_is_without_detection(client: TestClient) -> None:
    crop = cv2.imencode(".png", tiny_crop(BLUE))[1].tobytes()
    (face,) = recognize(client, crop, "detect_faces=false&face_plugins=calculator").json()["result"]
    assert face["box"] == {"probability": 1.0, "x_max": 32, "y_max": 32, "x_min": 0, "y_min": 0}
    assert face["embedding"] == pytest.approx(np.array(BLUE) / np.linalg.norm(BLUE), abs=0.02)
    (refused,) = recognize(client, jpeg(BLUE, RED), "detect_faces=false").json()["result"]
    assert (refused["decision"], refused["subjects"]) == ("unusable", [])
    assert refused["reasons"]


def test_base64_works_like_multipart(client: TestClient) -> None:
    text = base64.b64encode(jpeg(BLUE)).decode()
    added = client.post(f"{RECOGNITION}/faces?subject=Ada", json={"file": text})
    assert added.status_code == 201
    (face,) = client.post(f"{RECOGNITION}/recognize", json={"file": text}).json()["result"]
    assert face["subjects"][0]["similarity"] == pytest.approx(similarity(BLUE, BLUE), abs=1e-5)
    verified = client.post("/api/v1/verification/verify", json={"source_image": text, "target_image": text}).json()
    (pair,) = verified["result"]
    assert pair["source_image_face"]["box"] == pair["face_matches"][0]["box"]
    image = added.json()["image_id"]
    (face,) = client.post(f"{RECOGNITION}/faces/{image}/verify", json={"file": text}).json()["result"]
    assert (face["subject"], face["decision"]) == ("Ada", "match")


def test_embeddings_are_ranked_and_compared(client: TestClient, service: Service) -> None:
    image = add(client, "Ada", BLUE).json()["image_id"]
    body = {"embeddings": [list(BLUE), list(TEAL)]}
    ranked = client.post(f"{RECOGNITION}/embeddings/recognize?prediction_count=3", json=body).json()["result"]
    assert [each["embedding"] for each in ranked] == body["embeddings"]
    values = [each["similarities"][0]["similarity"] for each in ranked]
    assert values == pytest.approx([similarity(BLUE, BLUE), similarity(TEAL, BLUE)], abs=1e-3)
    assert service.audit is not None
    rows = [(row.people, row.decision) for row in service.audit.rows(action="identify")]
    assert rows == [((1,), "accepted"), ((), "unknown")]
    same = client.post(f"{RECOGNITION}/embeddings/faces/{image}/verify", json=body).json()["result"]
    assert [each["similarity"] for each in same] == values
    pair = client.post("/api/v1/verification/embeddings/verify", json={"source": list(RED), "targets": [list(TEAL)]})
    assert pair.json()["result"][0]["similarity"] == pytest.approx(similarity(RED, TEAL), abs=1e-4)


# The collection


def test_an_image_id_is_a_uuid_that_stays_and_belongs_to_one_gallery(make_service: MakeService) -> None:
    service = make_service(galleries={"default": OPEN, "other": OPEN})
    with client_of(service, Role.enrol) as client, client_of(service, Role.enrol, gallery="other") as other:
        image = add(client, "Ada", BLUE).json()["image_id"]
        assert uuid.UUID(image).version == 8
        assert add(client, "Ada", BLUE).json()["image_id"] == image  # the same photo again
        client.post(f"{RECOGNITION}/subjects", json={"subject": "Ada L"})
        assert client.put(f"{RECOGNITION}/subjects/Ada", json={"subject": "Ada L"}).json() == {"updated": True}
        assert client.get(f"{RECOGNITION}/faces").json()["faces"] == [{"image_id": image, "subject": "Ada L"}]
        assert other.delete(f"{RECOGNITION}/faces/{image}").json()["code"] == 44
        assert other.get(f"{RECOGNITION}/subjects/").json() == {"subjects": []}
        changed = str(uuid.UUID(int=uuid.UUID(image).int ^ (1 << 80)))
        assert client.delete(f"{RECOGNITION}/faces/{changed}").json()["code"] == 44
        deleted = client.post(f"{RECOGNITION}/faces/delete", json=[changed, image, image]).json()
        assert deleted == [{"image_id": image, "subject": "Ada L"}]


@pytest.mark.slow
def test_faces_are_listed_by_pages(client: TestClient) -> None:
    images = [
        add(client, name, colour).json()["image_id"]
        for name, colour in (("Ada", BLUE), ("Grace", GREEN), ("Ada", NEARLY_BLUE), ("Mary", RED))
    ]
    in_order = [images[0], images[2], images[1], images[3]]
    pages = [client.get(f"{RECOGNITION}/faces?page={page}&size=3").json() for page in range(3)]
    assert [each["image_id"] for page in pages for each in page["faces"]] == in_order
    counts = {"page_size": 3, "total_pages": 2, "total_elements": 4}
    assert [page | {"faces": 0} for page in pages] == [counts | {"page_number": n, "faces": 0} for n in range(3)]
    mine = client.get(f"{RECOGNITION}/faces", params={"subject": "Grace"}).json()
    assert (mine["total_elements"], mine["faces"][0]["image_id"]) == (1, images[1])


@pytest.mark.slow
def test_all_faces_and_all_subjects_are_erased_in_bounded_batches(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.gallery.retention._AT_ONCE", 2)
    for name, colours in {"Ada": (BLUE, NEARLY_BLUE, (220, 40, 20)), "Grace": (GREEN,), "Mary": (RED,)}.items():
        for colour in colours:
            assert add(client, name, colour).status_code == 201
    assert client.delete(f"{RECOGNITION}/faces").json() == {"deleted": 5}
    assert client.get(f"{RECOGNITION}/faces").json()["total_elements"] == 0
    assert client.delete(f"{RECOGNITION}/subjects").json() == {"deleted": 3}
    assert client.get(f"{RECOGNITION}/subjects").json() == {"subjects": []}
    assert service.audit is not None
    assert [row.decision for row in service.audit.rows(action="forget")] == ["proved"] * 6


def test_only_a_gallery_that_keeps_images_gives_them_and_no_cache_may_keep_them(make_service: MakeService) -> None:
    service = make_service(galleries={"default": {**OPEN, "keep_images": True}, "other": OPEN})
    with client_of(service, Role.enrol) as client, client_of(service, Role.enrol, gallery="other") as other:
        image, lost = add(client, "Ada", BLUE).json()["image_id"], add(other, "Ada", BLUE).json()["image_id"]
        answer = client.get(f"{RECOGNITION}/faces/{image}/img")
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/png", "no-store")
        assert cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR).shape == (40, 40, 3)
        assert other.get(f"{RECOGNITION}/faces/{lost}/img").json()["code"] == 44
        assert client.get(f"/api/v1/static/{service.first_key}/images/{image}").status_code == 404


def test_names_in_paths_are_taken_whole(client: TestClient) -> None:
    for name in ("Zoë / Ωmega", "../x", "O'Brien; DROP TABLE people --"):
        assert client.post(f"{RECOGNITION}/subjects", json={"subject": name}).json() == {"subject": name}
        quoted = "".join(f"%{byte:02X}" for byte in name.encode())
        assert client.delete(f"{RECOGNITION}/subjects/{quoted}").json() == {"subject": name}


# Refusals

NO_UUID = "not-a-uuid"
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(("key", "status", "code"), [("", 400, 20), (NO_UUID, 400, 26), (UNKNOWN, 404, 10)])
def test_keys_are_refused_as_compreface_does_and_never_repeated(
    client: TestClient, key: str, status: int, code: int
) -> None:
    for method, path in (("GET", f"{RECOGNITION}/faces"), ("GET", "/api/v1/config"), ("POST", "/api/v1/consistence")):
        answer = client.request(method, path, headers={"x-api-key": key})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert not key or key not in answer.text


def test_a_key_for_recognition_changes_nothing_and_lists_nobody(service: Service) -> None:
    with client_of(service, Role.recognise) as client:
        answers = [
            add(client, "Ada", BLUE),
            client.get(f"{RECOGNITION}/subjects"),
            client.get(f"{RECOGNITION}/faces"),
            client.delete(f"{RECOGNITION}/faces"),
            client.delete(f"{RECOGNITION}/subjects"),
        ]
        assert [(each.status_code, each.json()["code"]) for each in answers] == [(403, 1)] * 5
        assert recognize(client, jpeg(BLUE)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "code"),
    [
        ("GET", "/recognize", {}, 404, 0),
        ("GET", "/nothing", {}, 404, 0),
        ("POST", "/recognize", {"files": {"file": ("a.png", b"GIF89a")}}, 400, 21),
        ("POST", "/recognize", {"json": {"file": "../../etc/passwd"}}, 400, 21),
        ("POST", "/recognize", {"json": {}}, 400, 34),
        ("POST", "/recognize", {"files": {"photo": ("a.png", b"1")}}, 400, 34),
        ("POST", "/recognize", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, 36),
        ("POST", "/recognize?limit=-1", {}, 400, 26),
        ("POST", "/recognize?limit=one", {}, 400, 36),
        ("POST", "/recognize?det_prob_threshold=2", {}, 400, 26),
        ("POST", "/recognize?det_prob_threshold=nan", {}, 400, 26),
        ("POST", "/recognize?prediction_count=0", {}, 404, 400),
        ("POST", "/recognize?status=maybe", {}, 400, 36),
        ("POST", "/faces", {}, 400, 33),
        ("GET", "/faces?page=-1", {}, 400, 26),
        ("GET", "/faces?subject=Nobody", {}, 404, 42),
        ("POST", "/subjects", {"json": {"name": "Ada"}}, 400, 26),
        ("POST", "/subjects", {"json": {"subject": " "}}, 400, 26),
        ("POST", "/subjects", {"json": {"subject": "unknown"}}, 400, 26),
        ("POST", "/subjects", {"json": {"subject": "Known"}}, 400, 43),
        ("PUT", "/subjects/Nobody", {"json": {"subject": "Ada"}}, 404, 42),
        ("DELETE", "/subjects/Nobody", {}, 404, 42),
        ("DELETE", "/subjects/", {}, 404, 42),
        ("DELETE", f"/faces/{NO_UUID}", {}, 400, 36),
        ("DELETE", f"/faces/{UNKNOWN}", {}, 404, 44),
        ("POST", "/faces/delete", {"json": {"ids": []}}, 400, 36),
        ("POST", f"/faces/{UNKNOWN}/verify", {"files": {"file": ("a.png", jpeg(BLUE))}}, 404, 44),
        ("POST", "/embeddings/recognize", {"json": {"embeddings": [[1, 2]]}}, 400, 37),
        ("POST", "/embeddings/recognize", {"json": {"embeddings": []}}, 400, 37),
        ("POST", "/embeddings/recognize", {"json": {"embeddings": [[0, 0, 0]]}}, 400, 36),
        ("POST", "/embeddings/recognize", {"json": {"embeddings": [[10**400, 0, 0]]}}, 400, 36),
        ("POST", "/embeddings/recognize", {"json": {"embeddings": [["1", 0, True]]}}, 400, 36),
    ],
)
def test_refusals_have_compreface_s_codes(
    client: TestClient, method: str, path: str, more: Any, status: int, code: int
) -> None:
    client.post(f"{RECOGNITION}/subjects", json={"subject": "Known"})
    answer = client.request(method, RECOGNITION + path, **more)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json().keys() <= {"message", "code", "detail"}


def test_enrolment_takes_one_face_that_is_nobody_else_s(client: TestClient) -> None:
    assert (add(client, "Ada", BLUE, RED).status_code, add(client, "Ada", BLUE, RED).json()["code"]) == (400, 31)
    assert add(client, "Ada", None).json()["code"] == 28
    # Of scores 0.9 and 0.8, the latter below the threshold:
    assert add(client, "Ada", BLUE, RED, det_prob_threshold=0.85).status_code == 201
    refused = add(client, "Grace", RED).json()
    assert (refused["code"], "'Ada'" in refused["message"]) == (36, True)
    two = client.post(
        "/api/v1/verification/verify",
        files={"source_image": ("a.png", jpeg(BLUE, RED)), "target_image": ("b.png", jpeg(BLUE))},
    )
    assert (two.status_code, two.json()["code"]) == (400, 31)


def test_a_full_queue_and_too_many_requests_say_when_to_come_back(make_service: MakeService) -> None:
    service = make_service(keys={"per_key": 0.2})
    with client_of(service, Role.enrol) as client:
        answers = [client.get(f"{RECOGNITION}/subjects") for _ in range(3)]
    assert (answers[-1].status_code, answers[-1].json()["code"]) == (429, 0)
    assert int(answers[-1].headers["retry-after"]) >= 1


def test_who_reads_names_and_images_is_in_the_audit_log(make_service: MakeService) -> None:
    service = make_service(galleries={"default": OPEN | {"keep_images": True}})
    assert service.audit is not None
    with client_of(service, Role.enrol) as client:
        ada = enrol(service, "Ada", BLUE)
        (face,) = client.get("/api/v1/recognition/faces").json()["faces"]
        client.get("/api/v1/recognition/subjects")
        image = f"/api/v1/recognition/faces/{face['image_id']}"
        assert client.get(f"{image}/img").status_code == 200
        assert client.post(f"{image}/verify", files={"file": jpeg(BLUE)}).status_code == 200
        people = "/api/edgeface/v1/galleries/default/people"
        for path in ("", f"/{ada}", f"/{ada}/consent", f"/{ada}/templates"):
            assert client.get(people + path).status_code == 200
    rows = [(row.action, tuple(row.people)) for row in service.audit.rows()]
    reads = [("read-image", (ada,)), ("verify", (ada,)), ("list", ()), *[("read", (ada,))] * 3]
    assert rows == [("list", ()), ("list", ()), *reads]
