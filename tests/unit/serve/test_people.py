"""People and templates over HTTP: enrol, list, change, consent, forget; and who may."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from tiny_ir import BLUE, GREEN, RED, write_tiny_ir
from unit.serve.conftest import OPEN, MakeService, client_of, enrol, jpeg

from edgeface.serve.keys import Role
from edgeface.serve.service import Service
from edgeface.serve.settings import Model

pytestmark = pytest.mark.timeout(60)
GALLERY = "/api/edgeface/v1/galleries/default"
PEOPLE = f"{GALLERY}/people"
NEAR_BLUE = (220, 26, 20)
KEPT = {"galleries": {"default": {**OPEN, "keep_images": True}}}


def base64_of(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


def add(client: TestClient, name: str, *photos: bytes, **fields: Any) -> Any:
    """Enrol by JSON, and return the answer."""
    return client.post(PEOPLE, json={"name": name, "photo": list(map(base64_of, photos)), **fields})


def test_a_person_is_enrolled_by_a_form_or_json_and_again_without_a_change(client: TestClient) -> None:
    photos = [("photo", ("1.png", jpeg(BLUE))), ("photo", ("2.png", b"no image"))]
    fields = {"name": " Ada  Lovelace ", "labels": '["door"]', "metadata": '{"desk": 7}'}
    made = client.post(PEOPLE, data=fields, files=photos)
    assert made.status_code == 201, made.text
    ada = made.json()
    assert (ada["name"], ada["labels"], ada["metadata"], ada["template_count"]) == (
        "Ada Lovelace",
        ["door"],
        {"desk": 7},
        1,
    )
    assert [(each["photo"], each["code"]) for each in ada["refused"]] == [("photo 2", "bad-image")]
    again = add(client, "Ada Lovelace", jpeg(BLUE), jpeg(NEAR_BLUE))
    assert again.status_code == 200
    assert (again.json()["already"], again.json()["id"], again.json()["template_count"]) == (1, ada["id"], 2)
    more = client.post(f"{PEOPLE}/{ada['id']}/templates", files={"photo": jpeg((214, 20, 20))})
    assert (more.status_code, more.json()["template_count"]) == (200, 3)
    found = client.get(f"{PEOPLE}/{ada['id']}").json()
    assert found == {key: more.json()[key] for key in found}


def test_who_is_refused_is_told_with_whom_and_which_photos(client: TestClient, service: Service) -> None:
    ada = add(client, "Ada", jpeg(BLUE)).json()["id"]
    alike = add(client, "Eve", jpeg(NEAR_BLUE))
    assert (alike.status_code, alike.json()["code"]) == (409, "lookalike")
    assert [(each["id"], each["name"]) for each in alike.json()["errors"]] == [(ada, "Ada")]
    assert "force=true" in alike.json()["detail"]
    assert service.audit is not None
    *_, row = service.audit.rows()  # the refusal names Ada, and so it identified her
    assert (row.action, row.people, row.decision) == ("enrol", (ada,), "lookalike")
    assert row.contract_id == service.galleries["default"].store.info.contract_id
    several = add(client, "Bob", jpeg(GREEN), jpeg(RED))
    assert (several.status_code, several.json()["code"]) == (409, "several-people")
    crowd = add(client, "Bob", jpeg(GREEN, RED))
    assert (crowd.status_code, crowd.json()["errors"][0]["code"]) == (422, "several-faces")
    assert (
        client.post(
            PEOPLE, params={"largest": True}, data={"name": "Bob"}, files={"photo": jpeg(GREEN, RED)}
        ).status_code
        == 201
    )
    assert [each["name"] for each in client.get(PEOPLE).json()["people"]] == ["Ada", "Bob"]


def test_only_an_administrator_enrols_by_force_and_who_recognises_reads_no_people(service: Service) -> None:
    enrol(service, "Ada", BLUE)
    forced = {"params": {"force": True}, "data": {"name": "Eve"}, "files": {"photo": jpeg(BLUE)}}
    with client_of(service, Role.enrol) as client:
        assert client.post(PEOPLE, **forced).status_code == 403
        assert client.post(f"{GALLERY}/check").status_code == 403
        assert client.get(f"{PEOPLE}/1").json()["name"] == "Ada"
    with client_of(service) as client:
        made = client.post(PEOPLE, **forced)
        assert (made.status_code, made.json()["lookalikes"][0]["name"]) == (201, "Ada")
        assert client.post(f"{GALLERY}/check").json() == {
            "intact": True,
            "rows": {"people": 2, "templates": 2, "images": 0, "staged": 0},
            "problems": [],
        }
    with client_of(service, Role.recognise) as client:
        for method, path in [("GET", PEOPLE), ("GET", f"{PEOPLE}/1"), ("DELETE", f"{PEOPLE}/1"), ("POST", PEOPLE)]:
            assert client.request(method, path).status_code == 403
        status = client.get(GALLERY).json()
        assert (status["people"], status["templates"], status["fits"], status["encrypted"]) == (2, 2, True, True)
        assert client.get("/api/edgeface/v1/galleries").json() == {"galleries": ["default"]}


def test_a_key_of_one_gallery_reaches_no_other(make_service: MakeService) -> None:
    service = make_service(galleries={"default": OPEN, "north": OPEN})
    ada = enrol(service, "Ada", BLUE)
    with client_of(service, Role.admin, gallery="north") as client:
        for method in ("GET", "PATCH", "DELETE"):
            assert client.request(method, f"{PEOPLE}/{ada}").json()["code"] == "no-such-gallery"
        assert client.get("/api/edgeface/v1/galleries").json() == {"galleries": ["north"]}
        assert client.get(PEOPLE.replace("default", "north")).json() == {"people": [], "next": None}
        assert client.get(PEOPLE.replace("default", "nor%00th")).status_code == 404


def test_a_person_is_renamed_labelled_and_keeps_what_is_not_given(client: TestClient, service: Service) -> None:
    ada, bob = enrol(service, "Ada", BLUE), enrol(service, "Bob", GREEN)
    place = f"{PEOPLE}/{ada}"
    changed = client.patch(place, json={"name": "Ada L.", "labels": ["b", "a"], "metadata": {"desk": 7}}).json()
    assert (changed["name"], changed["labels"], changed["metadata"]) == ("Ada L.", ["a", "b"], {"desk": 7})
    assert client.patch(place, json={}).json() == changed
    taken = client.patch(place, json={"name": "Bob"})
    assert (taken.status_code, taken.json()["code"], taken.json()["errors"]) == (409, "name-taken", [{"id": bob}])
    assert client.patch(place, json={"nickname": "A"}).json()["errors"][0]["field"] == "nickname"
    assert client.patch(place, data={"name": "A"}).status_code == 415


def test_consent_is_recorded_with_the_key_that_recorded_it(client: TestClient, service: Service) -> None:
    given = {"text_version": "2026-1", "expires": "2031-05-01T00:00:00Z"}
    place = f"{PEOPLE}/{add(client, 'Ada', jpeg(BLUE), consent=given).json()['id']}"
    consent = client.get(f"{place}/consent").json()["consent"]
    (key,) = service.keys.list()
    assert (consent["text_version"], consent["recorded_by"], consent["expires"]) == (
        "2026-1",
        key.id,
        "2031-05-01T00:00:00Z",
    )
    client.patch(place, json={"metadata": {"desk": 7}})
    assert client.get(place).json()["consent"] == consent
    assert client.patch(place, json={"metadata": {"consent": given}}).json()["code"] == "bad-metadata"
    renewed = client.put(f"{place}/consent", json={"text_version": "2027-1"}).json()["consent"]
    assert (renewed["text_version"], renewed["expires"]) == ("2027-1", None)
    for wrong in (
        {},
        {"text_version": "\ud800"},
        {"text_version": "1", "expires": "0001-01-01T00:00:00+14:00"},
        {"a": 1},
    ):
        body = json.dumps(wrong)
        answer = client.put(f"{place}/consent", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (422, "bad-consent"), wrong


def test_templates_are_listed_shown_and_forgotten_one_by_one(make_service: MakeService) -> None:
    service = make_service(**KEPT)
    with client_of(service) as client:
        place = f"{PEOPLE}/{add(client, 'Ada', jpeg(BLUE), jpeg(NEAR_BLUE)).json()['id']}/templates"
        first, second = client.get(place).json()["templates"]
        assert first["has_image"]
        assert len(first["source_sha256"]) == 64
        image = client.get(f"{place}/{first['id']}/image")
        assert (image.headers["content-type"], image.headers["cache-control"]) == ("image/png", "no-store")
        assert Image.open(io.BytesIO(image.content)).size == (40, 40)
        erased = client.delete(f"{place}/{first['id']}").json()
        assert (erased["templates"], erased["images"], erased["proved"]) == (1, 1, True)
        assert client.get(f"{place}/{first['id']}/image").json()["code"] == "no-such-template"
        assert [each["id"] for each in client.get(place).json()["templates"]] == [second["id"]]


def test_forgetting_answers_its_proof_without_places_and_leaves_nothing(
    client: TestClient, service: Service, tmp_path: Path
) -> None:
    ada = add(client, "Ada Lovelace", jpeg(BLUE), consent={"text_version": "1"}).json()["id"]
    answer = client.delete(f"{PEOPLE}/{ada}")
    done = answer.json()
    assert (answer.status_code, done["proved"], done["remains"]) == (200, True, [])
    assert done["searched"]["default.gallery"] > 0
    assert str(tmp_path) not in answer.text
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/templates"), ("GET", "/consent"), ("PATCH", "")]:
        gone = client.request(method, f"{PEOPLE}/{ada}{path}", json={} if method == "PATCH" else None)
        assert (gone.status_code, gone.json()["code"]) == (404, "no-such-person"), path
    assert service.audit is not None
    rows = [(row.action, row.people, row.decision) for row in service.audit.rows()]
    assert rows == [("enrol", (ada,), None), ("forget", (ada,), "proved")]


@pytest.mark.parametrize(
    "name",
    [
        "Zoë",
        "Zoe\u0308",
        "Ольга",
        "李小龍",
        "علي",
        "👩‍🚀".replace("\u200d", ""),
        "'; DROP TABLE people; --",
        "../../etc/passwd",
        "..\\..\\windows",
        "<script>alert(1)</script>",
        "%2e%2e%2f",
        "${jndi:ldap://x}",
        "Robert') OR 1=1 /*",
        "a/b?c#d",
        "😀" * 50,
        "ﬁ ligature",
    ],
)
def test_a_name_is_stored_as_it_is_seen_and_found_by_a_part_of_it(client: TestClient, name: str) -> None:
    made = add(client, name, jpeg(BLUE))
    assert made.status_code == 201, made.text
    assert add(client, f"  {name} ", jpeg(BLUE)).json()["id"] == made.json()["id"]
    assert client.get(f"{PEOPLE}/{made.json()['id']}").json()["name"] == made.json()["name"]
    found = client.get(PEOPLE, params={"name": name}).json()["people"]
    assert [each["id"] for each in found] == [made.json()["id"]]


@pytest.mark.parametrize(
    "name",
    ["", " ", "x" * 10_000, "a\0b", "a\u202eb", "\ud800", "#12", "# \uff11", "Unknown", "a\u200db", 7, None, ["Ada"]],
)
def test_a_name_that_cannot_be_seen_or_is_no_name_is_refused(client: TestClient, name: object) -> None:
    body = json.dumps({"name": name, "photo": base64_of(jpeg(BLUE))})
    answer = client.post(PEOPLE, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] in ("bad-name", "bad-input")
    assert client.get(PEOPLE).json()["people"] == []


@pytest.mark.parametrize("number", ["0", "-1", str(1 << 63), "9" * 400, "1e3", "x", "%00", "1%20OR%201=1"])
def test_ids_out_of_range_are_refused_and_never_an_internal_error(client: TestClient, number: str) -> None:
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/templates"), ("DELETE", "/templates/1")]:
        assert client.request(method, f"{PEOPLE}/{number}{path}").status_code == 422
    assert client.delete(f"{PEOPLE}/1/templates/{number}").status_code == 422
    assert client.get(PEOPLE, params={"after": number}).status_code == (200 if number == "0" else 422)
    assert client.get(f"{PEOPLE}/{(1 << 63) - 1}").json()["code"] == "no-such-person"


def test_hostile_bodies_are_refused(client: TestClient) -> None:
    photo = base64_of(jpeg(BLUE))
    for body, status in [
        ({"name": "Ada"}, 422),
        ({"name": "Ada", "photo": [photo], "force": True}, 422),
        ({"name": "Ada", "photo": "http://somewhere/a.jpg"}, 422),
        ({"name": "Ada", "photo": [photo], "metadata": {"a": 10**30}}, 400),
        ({"name": "Ada", "photo": [photo], "metadata": {"a": "x" * 20_000}}, 422),
        ({"name": "Ada", "photo": [photo], "metadata": [1]}, 422),
        ({"name": "Ada", "photo": [photo], "labels": ["a"] * 65}, 422),
        ({"name": "Ada", "photo": [photo], "labels": [{"a": 1}]}, 422),
        ({"name": "Ada", "photo": [photo] * 33}, 422),
    ]:
        answer = client.post(PEOPLE, json=body)
        assert answer.status_code == status, (body.keys(), answer.text)
    form = {"data": {"name": "Ada", "labels": "[door"}, "files": {"photo": jpeg(BLUE)}}
    assert client.post(PEOPLE, **form).json()["code"] == "bad-input"  # type: ignore[arg-type]
    assert client.post(PEOPLE, data={"name": "Ada"}, files={"face": jpeg(BLUE)}).status_code == 422
    assert client.post(f"{PEOPLE}?nosuch=1", json={"name": "Ada", "photo": photo}).status_code == 422
    assert client.get(PEOPLE).json()["people"] == []


def test_pages_miss_nobody_while_others_forget_and_enrol(client: TestClient, service: Service) -> None:
    store = service.gallery(None).store
    kept = [store.add_person(f"Kept {number}", labels=["x"]).id for number in range(20)]
    doomed = [store.add_person(f"Doomed {number}").id for number in range(10)]
    begun = threading.Event()

    def others() -> None:
        begun.wait(10)
        for number, each in enumerate(doomed):
            store.add_person(f"New {number}")
            store.forget(each)

    thread = threading.Thread(target=others)
    thread.start()
    seen, after = [], 0
    while after is not None:
        page = client.get(PEOPLE, params={"after": after, "limit": 3}).json()
        begun.set()
        assert len(page["people"]) <= 3
        seen += [each["id"] for each in page["people"]]
        after = page["next"]
    thread.join()
    assert seen == sorted(set(seen))
    assert set(kept) <= set(seen)
    labelled = client.get(PEOPLE, params={"label": "x", "name": "kEPT 1"}).json()["people"]
    assert len(labelled) == 11


def test_what_decides_in_a_gallery_is_told(client: TestClient, service: Service) -> None:
    enrol(service, "Ada", BLUE)
    told = client.get(f"{GALLERY}/threshold").json()
    assert (told["value"], told["basis"], told["templates"], told["fpir"]) == (0.95, "hand", 1, None)
    assert client.get(f"{GALLERY}/threshold", params={"fpir": 0.01}).json()["code"] == "bad-input"
    assert client.get(f"{GALLERY}/threshold", params={"fpir": 2}).status_code == 422


@pytest.mark.slow
def test_people_can_be_forgotten_while_the_gallery_is_of_another_model(
    client: TestClient, service: Service, tmp_path: Path
) -> None:
    ada = enrol(service, "Ada", BLUE)
    service.models.load("default", Model(model=str(write_tiny_ir(tmp_path / "b", name="b", source="b"))))
    assert client.get(GALLERY).json()["fits"] is False
    refused = add(client, "Bob", jpeg(GREEN))
    assert (refused.status_code, refused.json()["code"]) == (409, "other-contract")
    assert client.delete(f"{PEOPLE}/{ada}").json()["proved"]
