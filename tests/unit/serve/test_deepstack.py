"""DeepStack's paths of faces, as its clients ask them: the key in the form, behind the photo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tiny_ir import BLUE, GREEN, RED
from unit.serve.conftest import MakeService, TestClient, client_of, enrol, jpeg, serving

from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.service import Service

FACE = "/v1/vision/face"


@pytest.fixture
def anonymous(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


def send(client: TestClient, path: str, key: str, *colours: Any, **fields: str) -> Any:
    files = {"image": ("a.png", jpeg(*colours))} if colours else {"none": (None, "")}
    return client.post(f"{FACE}/{path}", data={**fields, "api_key": key} if key else fields, files=files)


def test_double_take_trains_recognizes_and_untrains(anonymous: TestClient, service: Service) -> None:
    key = service.keys.add("double-take", Role.enrol)[1]
    trained = send(anonymous, "register", key, BLUE, userid="ada")
    assert (trained.status_code, trained.json()) == (200, {"success": True, "message": "face added"})
    found = send(anonymous, "recognize", key, BLUE, RED).json()
    assert found["success"] is True
    unknown, ada = sorted(found["predictions"], key=lambda each: each["x_min"], reverse=True)
    box = {"x_min": 0, "y_min": 0, "x_max": 40, "y_max": 40}
    assert ada == {"userid": "ada", "confidence": 1.0, "decision": "accepted", **box}
    assert (unknown["userid"], unknown["confidence"], unknown["x_min"]) == ("unknown", 0.0, 40)
    assert send(anonymous, "recognize", key, None).json() == {"success": True, "predictions": []}
    for _ in range(2):
        assert send(anonymous, "delete", key, userid="ada").json() == {"success": True}
    assert service.galleries["default"].store.people() == ()


def test_the_python_client_of_deepstack_works_unchanged(service: Service) -> None:
    core = pytest.importorskip("deepstack.core", reason="the extra 'clients' is not installed")
    with serving(service) as port:
        face = core.DeepstackFace(ip="127.0.0.1", port=port, api_key=service.keys.add("ha", Role.enrol)[1])
        assert face.register("Ada", jpeg(BLUE)) == "face added"
        assert core.get_recognized_faces(face.recognize(jpeg(BLUE, GREEN))) == {"Ada": 100.0}


def test_a_name_needs_the_gallery_s_threshold_and_the_confidence_asked_for(
    anonymous: TestClient, service: Service
) -> None:
    key, nearly = service.keys.add("a", Role.recognise)[1], (220, 60, 20)
    enrol(service, "Ada", BLUE)
    (sure,) = send(anonymous, "recognize", key, nearly, min_confidence="0.5").json()["predictions"]
    assert 0.9 < sure["confidence"] < 1
    (unsure,) = send(anonymous, "recognize", key, nearly, min_confidence="1").json()["predictions"]
    assert (sure["userid"], unsure["userid"]) == ("Ada", "unknown")
    (other,) = send(anonymous, "recognize", key, (220, 140, 20), min_confidence="0.1").json()["predictions"]
    assert other["userid"] == "unknown"  # similar enough for the client, and not for the gallery
    assert send(anonymous, "recognize", key, BLUE, min_confidence="nan").status_code == 400


def test_keys_and_roles_hold_in_the_form_too(anonymous: TestClient, service: Service) -> None:
    recognises = service.keys.add("a", Role.recognise)[1]
    for key, status in (("", 401), ("x" * 36, 401), ("ключ", 401), (recognises, 403)):
        answer = send(anonymous, "register", key, BLUE, userid="ada")
        assert (answer.status_code, answer.json()["success"]) == (status, False)
        assert not key or key not in answer.text
    asked = anonymous.post(f"{FACE}/recognize?api_key={recognises}", files={"image": ("a.png", jpeg(BLUE))})
    assert asked.status_code == 400
    with client_of(service, Role.enrol) as client:  # a key in the header does too
        assert send(client, "register", "", BLUE, userid="ada").status_code == 200
        assert send(client, "register", "", GREEN).json()["error"].startswith("expected a name")
        assert send(client, "register", "", None, userid="ada").status_code == 400
        assert send(client, "register", "", BLUE, userid="bob").json()["code"] == 400  # ada's face
        assert client.post(f"{FACE}/match").json()["success"] is False


def test_bodies_before_their_keys_are_few_and_counted_by_address(make_service: MakeService) -> None:
    service = make_service(keys={"per_address": 0.2})
    app = create_app(service)
    with TestClient(app) as client:
        app.state.reads._free = 0
        full = send(client, "recognize", "", BLUE)
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        app.state.reads._free = 8
        answers = [send(client, "recognize", "", BLUE).status_code for _ in range(2)]
    assert answers == [401, 429]
    assert app.state.reads._free == 8
