"""What the page asks for people before it: what they agree to, and the code with which they are forgotten."""

from __future__ import annotations

import datetime
import json

from fastapi.testclient import TestClient
from tiny_ir import BLUE, RED
from unit.serve.conftest import OPEN, MakeService, client_of, enrol

from edgeface.serve.keys import Role
from edgeface.serve.openapi import PREFIX
from edgeface.serve.service import Service

PEOPLE, FORGET = f"{PREFIX}/galleries/default/people", f"{PREFIX}/forget"


def test_who_has_the_code_is_forgotten_without_a_key_and_it_is_proved(client: TestClient, service: Service) -> None:
    ada, grace = enrol(service, "Ada", BLUE), enrol(service, "Grace", RED)
    code = client.post(f"{PEOPLE}/{ada}/code").json()["code"]
    typed = code.lower().replace("-", " - ")
    nobody = {"x-api-key": ""}
    swapped = f"{grace}-{code.partition('-')[2]}"
    for wrong in (swapped, code[:-1], code + "0", "", "x", f"{ada}-", "9" * 90, "0" * 19 + "1" + "9" * 60):
        assert client.post(FORGET, json={"code": wrong}, headers=nobody).status_code in (404, 422), wrong
    done = client.post(FORGET, json={"code": typed}, headers=nobody)
    assert (done.status_code, done.json()["proved"], done.json()["person_id"]) == (200, True, ada)
    assert [each["name"] for each in client.get(PEOPLE).json()["people"]] == ["Grace"]
    assert client.post(FORGET, json={"code": code}, headers=nobody).status_code == 404


def test_only_the_hash_is_stored_and_no_answer_has_it(client: TestClient, service: Service) -> None:
    ada = enrol(service, "Ada", BLUE)
    first, code = (client.post(f"{PEOPLE}/{ada}/code").json()["code"] for _ in range(2))
    assert client.post(FORGET, json={"code": first}).status_code == 404, "the code before is void"
    stored = json.dumps(dict(service.gallery(None).store.person(ada).metadata))
    assert code.partition("-")[2].replace("-", "") not in stored.replace("-", "")
    changed = client.patch(f"{PEOPLE}/{ada}", json={"name": "Ada L", "metadata": {"room": 1}}).json()
    assert changed["metadata"] == {"room": 1}
    for key in ("forget_code", "pin", "consent"):
        assert client.patch(f"{PEOPLE}/{ada}", json={"metadata": {key: "x"}}).json()["code"] == "bad-metadata"
    assert client.post(FORGET, json={"code": code}).status_code == 200, "other changes keep it"


def test_wrong_codes_of_one_address_are_limited_and_nobody_is_forgotten(make_service: MakeService) -> None:
    service = make_service(keys={"wrong_per_address": 1.0})
    ada = enrol(service, "Ada", BLUE)
    with client_of(service) as client:
        statuses = [client.post(FORGET, json={"code": f"{ada}-{number}"}).status_code for number in range(14)]
        assert set(statuses[:9]) == {404}
        assert statuses[-1] == 429
        assert client.get(f"{PEOPLE}/{ada}").status_code == 200, "who has a key is not locked out"


def test_the_text_of_the_consent_is_that_of_the_configuration(make_service: MakeService) -> None:
    service = make_service(
        consent={"version": "2026-11", "texts": {"de": "Zutritt zur Werkstatt"}, "days": 30},
        galleries={"default": OPEN | {"keep_images": True}},
    )
    with client_of(service) as client:
        told = client.get(f"{PREFIX}/galleries/default/consent-text").json()
    left = datetime.datetime.fromisoformat(told.pop("expires")) - datetime.datetime.now(datetime.timezone.utc)
    assert 29.99 < left / datetime.timedelta(days=1) <= 30
    assert told == {"version": "2026-11", "texts": {"de": "Zutritt zur Werkstatt"}, "days": 30, "keeps_images": True}


def test_a_key_is_told_its_role_and_gallery(service: Service) -> None:
    with client_of(service, Role.enrol, gallery="default") as client:
        told = client.get(f"{PREFIX}/key").json()
        person = enrol(service, "Ada", BLUE)
        assert client.post(f"{PEOPLE}/{person}/code").status_code == 200
    assert (told["role"], told["gallery"], len(told["id"])) == ("enrol", "default", 8)
    with client_of(service, Role.recognise) as client:
        assert client.post(f"{PEOPLE}/{person}/code").status_code == 403
