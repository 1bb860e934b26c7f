"""Who is forgotten because the consent has expired, and when."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tiny_ir import BLUE, GREEN, RED
from unit.serve.conftest import MakeService, TestClient, client_of, enrol, jpeg

from edgeface.cli import main
from edgeface.gallery.retention import Consent, erasure_batches, find_expired
from edgeface.serve import retention
from edgeface.serve.compreface import image_id
from edgeface.serve.enrol import record_consent, update_person
from edgeface.serve.keys import Role
from edgeface.serve.service import Service

NOW = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)


def consent_to(service: Service, person_id: int, expires: datetime | None) -> None:
    text = None if expires is None else expires.isoformat()
    consent = record_consent({"text_version": "1", "expires": text}, "0badcafe")
    update_person(service.gallery(None), person_id, consent=consent)


def sweep(service: Service, now: datetime) -> int:
    return retention.sweep_consents(service, clock=lambda: now)["default"]


def names(service: Service) -> list[str]:
    return [person.name for person in service.gallery(None).store.people()]


@pytest.fixture
def people(make_service: MakeService) -> Service:
    """Ada's consent ends now, Bob's never; Eve has given none."""
    service = make_service()
    ada, bob, _ = (enrol(service, name, colour) for name, colour in {"Ada": BLUE, "Bob": GREEN, "Eve": RED}.items())
    consent_to(service, ada, NOW)
    consent_to(service, bob, None)
    return service


def test_expiry_is_reported_first_and_forgotten_when_the_notice_is_over(people: Service) -> None:
    assert sweep(people, NOW - DAY) == 0
    assert people.expired == {"default": 0}
    for day in (0, 1, 6.9):
        assert sweep(people, NOW + day * DAY) == 0
        assert people.expired == {"default": 1}
    assert sweep(people, NOW + 7 * DAY) == 1
    assert names(people) == ["Bob", "Eve"]
    assert (people.expired, people.forgotten_expired) == ({"default": 0}, 1)
    assert people.audit is not None
    rows = [(row.action, row.key_id, row.people, row.decision) for row in people.audit.rows()]
    assert rows == [("consent-expired", "service", (1,), None), ("forget-expired", "service", (1,), "proved")]
    with client_of(people, Role.metrics) as client:
        told = client.get("/metrics").text
    assert 'edgeface_consents_expired{gallery="default"} 0.0' in told
    assert "edgeface_people_forgotten_expired_total 1.0" in told
    assert "Ada" not in told


@pytest.mark.parametrize(
    "api", ["own", "compreface", "compreface-embeddings", "deepstack", "template", "template-embeddings"]
)
def test_no_api_recognises_a_person_whose_consent_has_expired(people: Service, api: str) -> None:
    """Who is not forgotten yet; the others are recognised as before."""
    recognition, photos = "/api/v1/recognition", {colour: jpeg(colour) for colour in (BLUE, GREEN)}
    (template,) = people.gallery(None).store.templates_of(1)
    image = f"{recognition}/%s/{image_id(people.gallery(None), template.id)}/verify"

    def ask(client: TestClient, colour: tuple[int, int, int]) -> tuple[str | None, str | None]:
        """Who it is, and why not."""
        file, vectors = {"file": photos[colour]}, {"embeddings": [list(colour)]}
        if api == "own":
            (face,) = client.post("/api/edgeface/v1/identify", files={"photo": photos[colour]}).json()["faces"]
            assert face["verdict"] == ("accepted" if face["person"] else "unknown")
            return face["person"], face["reason"] or None
        if api == "deepstack":
            (face,) = client.post("/v1/vision/face/recognize", files={"image": photos[colour]}).json()["predictions"]
            return (None if face["userid"] == "unknown" else face["userid"]), face.get("reason")
        if api == "compreface":
            (face,) = client.post(f"{recognition}/recognize", files=file).json()["result"]
            return (face["subjects"] or [{"subject": None}])[0]["subject"], face.get("reason")
        if api == "compreface-embeddings":
            (face,) = client.post(f"{recognition}/embeddings/recognize", json=vectors).json()["result"]
            return (face["similarities"] or [{"subject": None}])[0]["subject"], face.get("reason")
        if api == "template":
            (face,) = client.post(image % "faces", files=file).json()["result"]
        else:
            (face,) = client.post(image % "embeddings/faces", json=vectors).json()["result"]
        assert (face["decision"] == "match") == (face["similarity"] > 0.9)
        return ("Ada" if face["decision"] == "match" else None), face.get("reason")

    with client_of(people) as client:
        consent_to(people, 1, datetime.now(timezone.utc) + DAY)
        assert ask(client, BLUE) == ("Ada", None)
        consent_to(people, 1, datetime.now(timezone.utc))
        assert ask(client, BLUE) == (None, "consent-expired")
        assert names(people) == ["Ada", "Bob", "Eve"]
        if "template" not in api:
            assert ask(client, GREEN) == ("Bob", None)
            assert people.audit is not None
            rows = [(row.people, row.decision) for row in people.audit.rows(action="identify")]
            assert rows == [((1,), "accepted"), ((), "consent-expired"), ((3,), "accepted")]


def test_the_notice_outlives_a_restart(people: Service, make_service: MakeService) -> None:
    sweep(people, NOW)
    people.close()
    again = make_service()
    assert sweep(again, NOW + 8 * DAY) == 1


def test_a_consent_that_is_renewed_in_time_ends_the_notice(people: Service) -> None:
    sweep(people, NOW)
    consent_to(people, 1, NOW + 10 * DAY)
    assert sweep(people, NOW + 8 * DAY) == 0
    assert sweep(people, NOW + 10 * DAY) == sweep(people, NOW + 16 * DAY) == 0  # the notice begins anew
    assert sweep(people, NOW + 17 * DAY) == 1


def test_a_clock_that_was_years_ahead_forgets_nobody(people: Service) -> None:
    consent_to(people, 1, NOW + 30 * DAY)
    sweep(people, NOW + 36_500 * DAY)
    assert sweep(people, NOW) == 0
    assert names(people) == ["Ada", "Bob", "Eve"]
    sweep(people, NOW + 30 * DAY)  # the report of that clock does not count, and does not stand in the way
    assert sweep(people, NOW + 36 * DAY) == 0
    assert sweep(people, NOW + 37 * DAY) == 1


def test_a_configuration_that_only_reports_forgets_nobody(make_service: MakeService) -> None:
    service = make_service(consent={"expired": "report", "notice_days": 0})
    consent_to(service, enrol(service, "Ada", BLUE), NOW)
    assert sweep(service, NOW + 400 * DAY) == 0
    assert (names(service), service.expired) == (["Ada"], {"default": 1})


def test_a_gallery_that_cannot_be_read_leaves_the_others_to_be_looked_after(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"threshold": 0.95, "gate": False}
    service = make_service(galleries={"away": options, "default": options}, consent={"notice_days": 0})
    consent_to_default = record_consent({"text_version": "1", "expires": NOW.isoformat()}, "k")
    ada = enrol(service, "Ada", BLUE)
    update_person(service.gallery("default"), enrol(service, "Bob", GREEN, "default"), consent=consent_to_default)
    assert ada == 1
    (service.settings.state / "galleries" / "away.gallery").unlink()
    assert retention.sweep_consents(service, clock=lambda: NOW + DAY) == {"default": 1}


def test_what_is_erased_at_once_is_bounded(people: Service) -> None:
    store = people.gallery(None).store
    assert list(erasure_batches(store, {})) == []
    (ada, bob) = ({1: None}, {3: list(range(600))})
    assert list(erasure_batches(store, ada | bob)) == [ada, bob]


def test_a_record_that_the_service_did_not_write_expires_nobody(people: Service) -> None:
    store = people.gallery(None).store
    for odd in ("gone", {"expires": "yesterday"}, {"expires": "2020-01-01"}, None, 7):
        store.update_person(1, metadata={"consent": odd})
        assert find_expired(store, NOW + DAY) == {}
    assert Consent.of(store.person(1)) is None


def test_the_command_lists_and_then_erases_with_proof(
    people: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = str(tmp_path / "state" / "galleries" / "default.gallery")
    key = ["--key", f"file:{tmp_path / 'state' / 'keys' / 'default.key'}"]
    consent_to(people, 1, datetime.now(timezone.utc) - DAY)

    def run(*words: str, code: int = 0) -> Any:
        assert main(["gallery", "expire", gallery, *key, "--json", *words]) == code
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    told, listed = run("--dry-run")
    assert (told["expired"], told["erased"]) == ([1], [])
    assert "Ada (#1): expired 20" in listed
    assert "pass --yes" in json.dumps(run(code=2))
    assert names(people) == ["Ada", "Bob", "Eve"]
    told, _ = run("--yes")
    assert [each["proved"] for each in told["erased"]] == [True]
    assert names(people) == ["Bob", "Eve"]
    assert run("--yes")[0]["expired"] == []
