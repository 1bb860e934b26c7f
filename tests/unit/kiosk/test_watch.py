"""Cameras, one model and one gallery together, on squares for faces."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from kiosk_door import wait_until
from tiny_ir import BLUE, RED, SquareDetector, draw, write_tiny_ir

import edgeface
from edgeface.analyzer import FaceAnalyzer
from edgeface.errors import InputError
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.gallery.store.base import GalleryStore
from edgeface.kiosk.camera import CameraState
from edgeface.kiosk.events import EventLog
from edgeface.kiosk.outcome import VisitEvent
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.watch import DoorWatch

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def analyzer(tmp_path: Path) -> Iterator[FaceAnalyzer]:
    with edgeface.load(write_tiny_ir(tmp_path), detector=SquareDetector()) as loaded:
        yield loaded


@pytest.fixture
def people(tmp_path: Path, analyzer: FaceAnalyzer) -> Iterator[GalleryStore]:
    with create_gallery(tmp_path / "g.gallery", contract=analyzer.contract, key=None) as store:
        store.add_person("Blue", templates=[NewTemplate(embedding=analyzer.embed(draw(BLUE)))])
        yield store


def configure(sources: dict[str, str], **changes: Any) -> WatchSettings:
    decision = {"threshold": 0.95, "gate": False, "liveness": False, "patience": 1.0} | changes.pop("decision", {})
    cameras = {name: {"source": source, "min_face": 20, "lost_seconds": 0.5} for name, source in sources.items()}
    return WatchSettings.model_validate({"cameras": cameras, "decision": decision, **changes})


class Squares:
    """Cameras, by number, of 50 frames a second: a square of a colour that flickers, so that no two are the same."""

    def __init__(self, *colours: Any) -> None:
        self.colours = list(colours)
        self.count = 0

    def __call__(self, target: Any) -> Any:
        squares = self

        class Capture:
            def isOpened(self) -> bool:  # noqa: N802
                return True

            def grab(self) -> bool:
                time.sleep(0.02)
                return squares.colours[target] != "lost"

            def retrieve(self) -> tuple[bool, Any]:
                squares.count += 1
                if squares.colours[target] == "lost":
                    return False, None
                return True, picture(squares.colours[target], squares.count)

            def get(self, prop: int, /) -> float:
                return 0.0

            def release(self) -> None: ...

        return Capture()


def picture(colour: Any, number: int) -> np.ndarray:
    """A square in noise, a little darker from frame to frame."""
    noise = np.random.default_rng(number).integers(0, 40, (120, 120, 3), np.uint8)
    return np.maximum((draw(colour, margin=1) * (1 - 0.004 * (number % 25))).astype(np.uint8), noise)


def events_of(watch: DoorWatch, count: int) -> list[VisitEvent]:
    return [event for _, event in zip(range(count), watch, strict=False)]


def write_clip(path: Path, colours: list[Any]) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 15, (120, 120))
    for number, colour in enumerate(colours):
        writer.write(picture(colour, number))
    writer.release()
    return str(path)


def test_a_film_gives_one_event_a_visit_and_then_ends(
    tmp_path: Path, analyzer: FaceAnalyzer, people: GalleryStore
) -> None:
    clip = write_clip(tmp_path / "a.avi", [BLUE] * 20 + [None] * 30 + [RED] * 30 + [None] * 30)
    with DoorWatch(configure({"film": clip}), analyzer, LiveIndex(people)) as watch:
        events = list(watch)
        health = watch.health["film"]
    assert [(event.kind.value, event.name, event.camera) for event in events] == [
        ("known", "Blue", "film"),
        ("unknown", None, "film"),
    ]
    assert health.analyzed > 30


def test_several_cameras_and_one_that_is_lost(analyzer: FaceAnalyzer, people: GalleryStore) -> None:
    squares = Squares(BLUE, RED)
    settings = configure({"front": "0", "yard": "1"})
    with DoorWatch(settings, analyzer, LiveIndex(people), open_capture=squares) as watch:
        found = {event.camera: event for event in events_of(watch, 2)}
        assert found["front"].name == "Blue"
        assert found["yard"].kind.value == "unknown"
        squares.colours[1] = "lost"
        wait_until(lambda: watch.health["yard"].state is CameraState.lost)
        assert watch.health["front"].state is CameraState.connected
        assert watch.health["front"].slowest < 1.0


def test_without_liveness_models_nobody_is_known(analyzer: FaceAnalyzer, people: GalleryStore) -> None:
    settings = configure({"front": "0"}, decision={"liveness": True})
    with DoorWatch(settings, analyzer, LiveIndex(people), open_capture=Squares(BLUE)) as watch:
        (event,) = events_of(watch, 1)
    assert event.kind.value == "inconclusive"
    assert "liveness" in event.reason


def test_while_the_model_fails_nobody_is_known_and_the_camera_is_watched_again(
    analyzer: FaceAnalyzer, people: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def fail(*_: object, **__: object) -> Any:
            raise RuntimeError("the device is gone")

        patched.setattr(analyzer.embedder, "submit", fail)
        watch = DoorWatch(configure({"front": "0"}), analyzer, LiveIndex(people), open_capture=Squares(BLUE))
        wait_until(lambda: "the device is gone" in watch.health["front"].error)
        assert watch._events.empty()
    with watch:
        assert events_of(watch, 1)[0].name == "Blue"


def test_an_event_that_waited_too_long_names_nobody(
    analyzer: FaceAnalyzer, people: GalleryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DoorWatch(configure({"front": "0"}), analyzer, LiveIndex(people), open_capture=Squares(BLUE)) as watch:
        wait_until(lambda: not watch._events.empty())
        monkeypatch.setattr("edgeface.kiosk.watch.STALE", 0.0)
        (event,) = events_of(watch, 1)
    assert event.kind.value == "inconclusive"
    assert event.person_id is None


def test_a_full_queue_holds_up_no_live_camera_and_lets_nobody_in(analyzer: FaceAnalyzer, people: GalleryStore) -> None:
    squares = Squares(RED, None)
    settings = configure({"yard": "0", "front": "1"}, queue=1)
    with DoorWatch(settings, analyzer, LiveIndex(people), open_capture=squares) as watch:
        wait_until(watch._events.full)
        squares.colours[1] = BLUE
        wait_until(lambda: "queue is full" in watch.health["front"].error)
        assert [event.kind.value for event in events_of(watch, 2)] == ["unknown", "known"]


def test_a_source_that_is_not_there_is_named(analyzer: FaceAnalyzer, people: GalleryStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.avi"):
        DoorWatch(configure({"film": str(tmp_path / "nothing.avi")}), analyzer, LiveIndex(people))
    (tmp_path / "broken.avi").write_bytes(b"RIFF")
    with (
        DoorWatch(configure({"film": str(tmp_path / "broken.avi")}), analyzer, LiveIndex(people)) as watch,
        pytest.raises(InputError, match=r"broken\.avi"),
    ):
        list(watch)


def test_an_event_is_recorded_before_it_is_told_and_what_cannot_be_recorded_is_told_to_nobody(
    tmp_path: Path, analyzer: FaceAnalyzer, people: GalleryStore
) -> None:
    log, full = EventLog(tmp_path / "events.sqlite"), [True]

    def record(event: VisitEvent) -> None:
        if full[0]:
            raise OSError("No space left on device")
        log.record(event)

    settings = configure({"front": "0"}, decision={"anti_passback": 3600.0, "cooldown": 0.0})
    with (
        contextlib.closing(log),
        DoorWatch(
            settings, analyzer, LiveIndex(people), record=record, open_capture=(squares := Squares(BLUE))
        ) as watch,
    ):
        told: list[VisitEvent] = []
        threading.Thread(target=lambda: told.extend(watch), daemon=True).start()
        wait_until(lambda: "No space left" in watch.unrecorded)
        assert told == list(log.events()) == []
        full[0], squares.colours[0] = False, None
        time.sleep(1.2)  # the visit has ended
        squares.colours[0] = BLUE
        wait_until(lambda: bool(told))  # who was not let in has not passed
        assert (told[0].name, watch.unrecorded) == ("Blue", "")
        assert [each.id for each in log.events()] == [told[0].id]


def test_targets_without_a_log_are_refused() -> None:
    with pytest.raises(ValueError, match="name a file with log"):
        configure({"front": "0"}, events={"door": {"command": ["/bin/true"]}})
