"""A PIN at the door: right, wrong, guessed too often, and of people without a face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny_ir import BLUE
from unit.serve.conftest import Clock, enrol
from unit.serve.test_door_page import Script

from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.openapi import PREFIX
from edgeface.serve.pins import Guesses
from edgeface.serve.rates import Rates
from edgeface.serve.service import Service

GALLERY, GIVEN = f"{PREFIX}/galleries/default", f"{PREFIX}/kiosk/pin"


class Door(Script):
    """Takes who is admitted, as a door that is open."""

    pins = True

    def admit(self, camera: str, person: Any) -> str:
        self.say("unknown" if person is None else "known", person and person.name)
        return str(self.told[-1]["kind"])


@pytest.fixture
def door(service: Service) -> Iterator[tuple[TestClient, Door]]:
    door = Door()
    key = service.keys.add("panel", Role.enrol)[1]
    app = create_app(service, door)
    app.state.guesses = Guesses(clock=Clock())
    with TestClient(app, headers={"x-api-key": key}, raise_server_exceptions=False) as client:
        yield client, door


def give(client: TestClient, person: int, pin: str) -> Any:
    return client.post(GIVEN, json={"person_id": person, "pin": pin, "camera": "door"})


def test_somebody_without_a_face_is_known_by_the_pin_and_by_no_other(
    service: Service, door: tuple[TestClient, Door]
) -> None:
    client, script = door
    made = client.post(f"{GALLERY}/people-by-pin", json={"name": "Ada", "pin": "48151623", "labels": ["lab"]}).json()
    assert (made["template_count"], made["metadata"]) == (0, {})
    assert client.post(f"{GALLERY}/people-by-pin", json={"name": "Ada", "pin": "1234"}).status_code == 409
    grace = enrol(service, "Grace", BLUE)  # who has none
    for person, pin in ((made["id"], "48151624"), (grace, "0000"), (99, "1234")):
        assert give(client, person, pin).json() == {"kind": "unknown"}
    assert give(client, made["id"], "48151623").json() == {"kind": "known"}
    assert [each["kind"] for each in script.told] == ["unknown"] * 3 + ["known"]
    assert script.told[-1]["name"] == "Ada"
    stored = json.dumps(dict(service.gallery(None).store.person(made["id"]).metadata))
    assert "48151623" not in stored
    assert client.delete(f"{GALLERY}/people/{made['id']}/pin").status_code == 204
    assert give(client, made["id"], "48151623").json()["kind"] == "unknown"


def test_nobody_is_known_by_a_pin_when_the_consent_has_ended(door: tuple[TestClient, Door]) -> None:
    client, _ = door
    given = {"name": "Ada", "pin": "4815", "consent": {"text_version": "1", "expires": "2026-01-01T00:00:00Z"}}
    number = client.post(f"{GALLERY}/people-by-pin", json=given).json()["id"]
    assert give(client, number, "4815").json() == {"kind": "unknown"}
    client.put(f"{GALLERY}/people/{number}/consent", json={"text_version": "2", "expires": None})
    assert give(client, number, "4815").json() == {"kind": "known"}


@pytest.mark.parametrize("pin", ["123", "1" * 13, "12a4", "١٢٣٤", "", " 1234"])
def test_a_pin_is_four_to_twelve_digits(pin: str, service: Service, door: tuple[TestClient, Door]) -> None:
    ada = enrol(service, "Ada", BLUE)
    assert door[0].put(f"{GALLERY}/people/{ada}/pin", json={"pin": pin}).status_code == 422


def test_after_five_wrong_pins_the_right_one_is_refused_too_for_a_while(
    service: Service, door: tuple[TestClient, Door]
) -> None:
    client, script = door
    ada, clock = enrol(service, "Ada", BLUE), Clock()
    client.app.state.guesses = Guesses(clock=clock)  # type: ignore[attr-defined]
    assert client.put(f"{GALLERY}/people/{ada}/pin", json={"pin": "4815"}).status_code == 204
    assert [give(client, ada, "0000").status_code for _ in range(5)] == [200] * 5
    refused = give(client, ada, "4815")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "900")
    clock.now += 901
    assert give(client, ada, "4815").json() == {"kind": "known"}
    assert len(script.told) == 6


def test_beyond_the_rate_of_its_address_no_pin_is_looked_at_and_right_ones_take_nothing_of_it(
    service: Service, door: tuple[TestClient, Door]
) -> None:
    client, script = door
    ada = enrol(service, "Ada", BLUE)
    assert client.put(f"{GALLERY}/people/{ada}/pin", json={"pin": "4815"}).status_code == 204
    service.rates = Rates(per_key=1e3, per_address=1e3, wrong_per_address=1.0, clock=Clock())
    assert {give(client, ada, "4815").json()["kind"] for _ in range(12)} == {"known"}
    said = [give(client, 1000 + number, "4815") for number in range(14)]
    assert [each.status_code for each in said] == [200] * 10 + [429] * 4
    assert len(script.told) == 22  # each that was looked at is an event
    assert give(client, ada, "4815").status_code == 429, "else what is refused would tell which PIN is right"


def test_without_the_configuration_there_are_no_pins(door: tuple[TestClient, Door]) -> None:
    client, script = door
    script.pins = False
    assert give(client, 1, "4815").json()["code"] == "no-pins"
    assert script.told == []
