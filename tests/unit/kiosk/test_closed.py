"""Whatever fails, the door stays closed: in the command watch, and inside the service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
from tiny_ir import BLUE, SquareDetector, write_tiny_ir
from unit.kiosk.conftest import wait_until
from unit.kiosk.test_doorkeeper import DECISION, camera, settings_of, write_video
from unit.serve.conftest import enrol, load_squares

import edgeface
from edgeface.errors import EdgeFaceError
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery
from edgeface.kiosk import decision
from edgeface.kiosk.doorkeeper import Doorkeeper
from edgeface.kiosk.events import EventLog
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.watch import open_watch
from edgeface.model.ir_file import read_contract
from edgeface.runtime.embedder import Embedder
from edgeface.serve.service import Service

pytestmark = pytest.mark.timeout(60)


def fail(*_: object, **__: object) -> Any:
    raise RuntimeError("it is gone")


FAILURES: dict[str, tuple[str, Callable[[pytest.MonkeyPatch, Path, dict[str, Any]], object]]] = {
    "nothing": ("", lambda patch, folder, kiosk: None),
    "camera": ("missing.avi", lambda patch, folder, kiosk: kiosk["cameras"]["door"].update(source="missing.avi")),
    "model": ("it is gone", lambda patch, folder, kiosk: patch.setattr(Embedder, "submit", fail)),
    "gallery": ("it is gone", lambda patch, folder, kiosk: patch.setattr(LiveIndex, "snapshot", fail)),
    "gallery file": ("people.gallery", lambda patch, folder, kiosk: (folder / "people.gallery").unlink()),
    "liveness": (
        "nothing.xml",
        lambda patch, folder, kiosk: kiosk["decision"].update(liveness=True, liveness_models=folder / "nothing.xml"),
    ),
    "clock": ("not set", lambda patch, folder, kiosk: patch.setattr(decision, "_EARLIEST", time.time() + 1e6)),
    "log": ("it is gone", lambda patch, folder, kiosk: patch.setattr(EventLog, "record", fail)),
    "hook": ("", lambda patch, folder, kiosk: kiosk["events"]["door"].update(command=["/bin/false"])),
    "hook that hangs": ("", lambda patch, folder, kiosk: kiosk["events"]["door"].update(command=["/bin/sleep", "9"])),
}


def in_the_command(service: Service, kiosk: dict[str, Any]) -> str:
    """Watch to the end of the recording; return what went wrong."""
    given = {each: kiosk[each] for each in ("cameras", "decision", "events")}
    place = {"gallery": str(service.settings.state.parent / "people.gallery"), "log": service.settings.state / "log"}
    model = {"model": service.settings.models["default"].model}
    settings = WatchSettings.model_validate({**given, **place, "model": model})
    service.close()
    try:
        with open_watch(settings) as watch:
            events = list(watch)
    except (EdgeFaceError, RuntimeError) as error:
        return str(error)
    return " ".join([watch.unrecorded, *(event.reason for event in events)])


def in_the_service(service: Service, kiosk: dict[str, Any]) -> str:
    service.reload(settings_of(service.settings.state.parent, kiosk, galleries=service.settings.galleries))
    with Doorkeeper(service, load_detector=lambda *_, **__: SquareDetector()) as keeper:
        wait_until(lambda: keeper.closed not in ("watching has not begun", "watching begins anew", ""), 20)
        said = f"{keeper.closed} {keeper._watch.unrecorded if keeper._watch else ''}"
        reasons = [event["reason"] for _, event in keeper.events(after=0, limit=9)] if keeper._publisher else []
    return " ".join([said, *reasons])


@pytest.mark.parametrize("watched", [in_the_command, in_the_service])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_opens_no_door_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, watched: Callable[[Service, dict[str, Any]], str]
) -> None:
    load = edgeface.load
    monkeypatch.setattr(edgeface, "load", lambda model, **given: load(model, **given | {"detector": SquareDetector()}))
    place = {"place": str(tmp_path / "people.gallery"), "unencrypted": True, "threshold": 0.95, "gate": False}
    opened = tmp_path / "opened"
    kiosk: dict[str, Any] = {
        "cameras": {"door": camera(write_video(tmp_path / "door.avi", BLUE, None))},
        "decision": dict(DECISION),
        "events": {"door": {"command": ["/usr/bin/touch", str(opened)], "timeout": 0.2}},
    }
    create_gallery(place["place"], contract=read_contract(write_tiny_ir(tmp_path))[1], key=None).close()
    with Service(settings_of(tmp_path, None, galleries={"default": place}), load=load_squares) as service:
        enrol(service, "Ada", BLUE)
        expected, break_it = FAILURES[failure]
        break_it(monkeypatch, tmp_path, kiosk)
        began = time.monotonic()
        assert expected in watched(service, kiosk)
    if failure == "nothing":
        wait_until(opened.exists)
    assert opened.exists() == (failure == "nothing")
    assert time.monotonic() - began < 15
    assert not [each for each in threading.enumerate() if each.name.startswith(("door_", "edgeface-watch"))]
