"""The whole of it from a configuration: what is recorded is told, and what is not recorded opens no door."""

from __future__ import annotations

import datetime
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from unit.kiosk.conftest import Endpoint, visit, wait_until

from edgeface.errors import EdgeFaceError, GalleryKeyError, InputError
from edgeface.kiosk.delivery import verify_signature
from edgeface.kiosk.publisher import EventPublisher
from edgeface.kiosk.targets import EventSettings

SECRET = "5e" * 32


@pytest.fixture
def settings(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventSettings:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    text = f"""
    webhooks:
      office: {{url: {endpoint.url}/all, secret: "env:WEBHOOK_SECRET"}}
      guard: {{url: {endpoint.url}/guard, secret: "env:WEBHOOK_SECRET", kinds: [spoof, unknown]}}
    door: {{command: [/usr/bin/touch, {tmp_path}/opened]}}
    """
    return EventSettings.model_validate(yaml.safe_load(text))


def fresh(person: int | None = 7) -> Any:
    return visit(person, time=datetime.datetime.now(datetime.timezone.utc))


def test_an_event_is_told_to_whom_its_kind_is_for_and_opens_the_door(
    settings: EventSettings, endpoint: Endpoint, tmp_path: Path
) -> None:
    with EventPublisher(tmp_path / "events.sqlite", settings) as publisher:
        publisher.publish(fresh(None))
        wait_until(lambda: not publisher.log.deliveries())
        assert len(endpoint.got) == 2
        assert not (tmp_path / "opened").exists()
        event = publisher.publish(fresh())
        wait_until(lambda: not publisher.log.deliveries() and (tmp_path / "opened").exists())
    headers, body = endpoint.got[2]
    assert json.loads(body)["id"] == event.id
    assert len(endpoint.got) == 3
    assert verify_signature(bytes.fromhex(SECRET), headers["x-edgeface-signature"], body)


def test_an_event_that_cannot_be_recorded_opens_no_door(settings: EventSettings, tmp_path: Path) -> None:
    quiet = settings.model_copy(update={"webhooks": {}})
    with EventPublisher(tmp_path / "events.sqlite", quiet) as publisher:
        with sqlite3.connect(publisher.log.path, isolation_level=None) as other:
            publisher.log._file._connection.execute("PRAGMA busy_timeout = 10")  # type: ignore[union-attr]
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(EdgeFaceError):
                publisher.publish(fresh())
            other.execute("ROLLBACK")
        (tmp_path / "events.sqlite").unlink()
        with pytest.raises(EdgeFaceError):
            publisher.publish(fresh())
    assert not (tmp_path / "opened").exists()


def test_what_cannot_start_says_why_and_leaves_nothing_open(
    settings: EventSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.sqlite"
    with EventPublisher(path, settings), pytest.raises(InputError, match="delivers its events"):
        EventPublisher(path, settings)
    monkeypatch.delenv("WEBHOOK_SECRET")
    with pytest.raises(GalleryKeyError, match="WEBHOOK_SECRET"):
        EventPublisher(path, settings)
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    EventPublisher(path, settings).close()


def test_the_configuration_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
    settings = EventSettings.model_validate(yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]))
    assert settings.door is not None
    assert settings.webhooks["office"].kinds == ("known",)
