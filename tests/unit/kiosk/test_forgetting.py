"""Who is forgotten is forgotten in the events of the kiosk too, whoever forgets them."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kiosk_door import ADA, CONTRACT, embed
from unit.kiosk.conftest import NOON, Clock, visit, wait_until

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
import numpy as np
from fastapi.testclient import TestClient
from tiny_ir import BLUE, GREEN
from unit.serve.conftest import client_of, enrol, make_service  # noqa: F401  (fixture)

from edgeface.cli import main
from edgeface.gallery.opening import create_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.gallery.store.base import GalleryStore
from edgeface.kiosk.doorkeeper import Doorkeeper
from edgeface.kiosk.events import EventLog
from edgeface.kiosk.forgetting import forget_gone
from edgeface.kiosk.publisher import EventPublisher
from edgeface.kiosk.targets import EventSettings
from edgeface.serve.service import Service

CROP = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def service(make_service: Any) -> Iterator[Service]:  # noqa: F811
    """A service whose kiosk, which is configured no more, has seen Ada and Bob; the gallery b has an Ada too."""
    service = make_service(
        galleries={each: {"threshold": 0.95, "gate": False, "unencrypted": True} for each in ("default", "b")}
    )
    for gallery in ("default", "b"):
        assert [enrol(service, "Ada Lovelace", BLUE, gallery), enrol(service, "Bob Smith", GREEN, gallery)] == [1, 3]
    with contextlib.closing(EventLog(service.settings.state / "events.sqlite", crop_hours=1)) as log:
        for person, name in ((1, "Ada Lovelace"), (3, "Bob Smith")):
            for gallery in ("default", "b"):
                gallery_id = service.gallery(gallery).store.info.gallery_id
                log.record(visit(person, name, gallery_id=gallery_id, crop=CROP))
    with Doorkeeper(service):
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with client_of(service) as client:
        yield client


def names_of(service: Service) -> list[str | None]:
    with contextlib.closing(EventLog(service.settings.state / "events.sqlite", create=False)) as log:
        return [each.name for each in log.events()]


def test_the_api_forgets_in_the_events_of_that_gallery_and_the_proof_says_so(
    client: TestClient, service: Service
) -> None:
    done = client.delete("/api/edgeface/v1/galleries/default/people/1").json()
    assert done["proved"]
    assert {"events.sqlite", "default.gallery"} <= set(done["searched"])
    assert names_of(service) == [None, "Ada Lovelace", "Bob Smith", "Bob Smith"]  # the first was of this gallery


@pytest.mark.parametrize("path", ["/api/v1/recognition/subjects/Ada Lovelace", "/api/v1/recognition/subjects"])
def test_compreface_forgets_in_the_events_too(client: TestClient, service: Service, path: str) -> None:
    assert client.delete(path).status_code == 200
    expected = [None, "Ada Lovelace", "Bob Smith" if "Ada" in path else None, "Bob Smith"]
    assert names_of(service) == expected


def test_a_template_that_is_forgotten_leaves_the_events(client: TestClient, service: Service) -> None:
    (template,) = service.gallery(None).store.templates_of(1)
    assert client.delete(f"/api/edgeface/v1/galleries/default/people/1/templates/{template.id}").json()["proved"]
    assert None not in names_of(service)


def test_events_that_cannot_be_reached_leave_the_person_forgotten_and_not_proved(
    client: TestClient, service: Service
) -> None:
    (service.settings.state / "events.sqlite").write_bytes(b"damaged")
    done = client.delete("/api/edgeface/v1/galleries/default/people/1").json()
    assert (done["templates"], done["proved"]) == (1, False)
    assert done["remains"] == ["events.sqlite: not searched; run 'edgeface events purge'"]
    assert client.get("/api/edgeface/v1/galleries/default/people/1").status_code == 404


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[GalleryStore]:
    with create_gallery(tmp_path / "people.gallery", contract=CONTRACT, key=None) as store:
        for name in ("Ada Lovelace", "Grace Hopper"):
            store.add_person(name, templates=[NewTemplate(embedding=embed(ADA))])
        yield store


def test_whom_another_process_forgot_the_kiosk_forgets_while_it_runs(tmp_path: Path, gallery: GalleryStore) -> None:
    theirs = {"gallery_id": gallery.info.gallery_id}
    with EventPublisher(tmp_path / "events.sqlite", EventSettings()) as publisher:
        for person, name, ids in ((1, "Ada Lovelace", theirs), (3, "Grace Hopper", theirs), (1, "Ada Byron", {})):
            publisher.publish(visit(person, name, **ids))
        with publisher.following(gallery, every=0.01):
            gallery.forget(1)
            wait_until(lambda: [each.name for each in publisher.log.events()] == [None, "Grace Hopper", "Ada Byron"])
        assert forget_gone(publisher.log, gallery) == set()


def test_an_event_that_was_decided_before_and_is_recorded_later_has_no_name(log: EventLog, now: Clock) -> None:
    log.forget(7, gallery_id="a")
    late = log.record(visit(7, gallery_id="a", crop=CROP))
    assert (late.person_id, late.name, log.crop(late.id)) == (None, None, None)
    assert log.record(visit(7, gallery_id="b")).person_id == 7
    now.forward(60)  # a number that another gallery gives anew, as one that was restored from a copy
    assert log.record(visit(7, gallery_id="a", time=NOON + datetime.timedelta(seconds=60))).person_id == 7


def test_the_command_forgets_in_a_log_that_it_is_told_of_and_says_what_it_did_not_reach(
    tmp_path: Path, gallery: GalleryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    path, gallery_id = tmp_path / "events.sqlite", gallery.info.gallery_id
    with contextlib.closing(EventLog(path)) as log:
        log.record(visit(1, gallery_id=gallery_id))
        place = ["gallery", "forget", str(tmp_path / "people.gallery")]
        assert main([*place, "Ada Lovelace", "--yes", "--events", str(path), "--json"]) == 0
        done = json.loads(capsys.readouterr().out)
        assert done["proved"]
        assert "events.sqlite" in done["searched"]
        assert [each.name for each in log.events()] == [None]
    assert main([*place, "Grace Hopper", "--yes"]) == 0
    assert "edgeface events purge LOG --person 3" in capsys.readouterr().err
