"""Watch the doors inside `edgeface serve`, with its models and galleries; whatever fails, the service goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

import edgeface
from edgeface.analyzer import FaceAnalyzer
from edgeface.errors import InputError
from edgeface.files import Closing
from edgeface.gallery.records import Person, Proof
from edgeface.kiosk.camera import BROWSER, Camera, smallest_face
from edgeface.kiosk.forgetting import forget_in
from edgeface.kiosk.outcome import VisitEvent, VisitKind
from edgeface.kiosk.publisher import EventPublisher
from edgeface.kiosk.settings import CameraSettings, DecisionSettings, WatchSettings
from edgeface.kiosk.targets import EventSettings
from edgeface.kiosk.watch import DoorWatch
from edgeface.serve.problems import NotFound, Problem
from edgeface.serve.service import ServedGallery, ServedModel, Service
from edgeface.serve.settings import Name, Positive, Section, Settings
from edgeface.vision.detector import Detector
from edgeface.vision.image import Image

_log = logging.getLogger(__name__)

_POLL = 0.25
"""Seconds between looks at whether the configuration, the model or the gallery has changed."""
_AGAIN = 5.0
"""Seconds after which watching is tried again."""
_SLIMMEST = 16
"""How many times its shorter side the longer side of a browser's picture may be."""


class KioskSettings(Section):
    """Cameras that the service watches, and who is told."""

    cameras: Annotated[dict[Name, CameraSettings], Field(min_length=1)]
    """By name."""
    decision: DecisionSettings = DecisionSettings()
    """When a person is known."""
    gallery: Name | None = None
    """Gallery of the service, whose model finds and embeds the faces; null: the first one."""
    names: bool = False
    """Show the names of people at the door: the stream tells them."""
    pins: bool = False
    """Let people who have a PIN be known by it at the page /door, without a face."""
    streams: Positive = 16
    """Most pages and others that may follow the stream at once."""
    events: EventSettings = EventSettings()
    """How long events are kept in events.sqlite of the state folder, and who is told."""


class KioskServiceSettings(Settings):
    """The service's configuration with its cameras."""

    kiosk: KioskSettings | None = None
    """Cameras to watch; null: none."""

    @model_validator(mode="after")
    def _kiosk_finds_faces(self) -> KioskServiceSettings:
        if self.kiosk is None:
            return self
        name = self.kiosk.gallery or next(iter(self.galleries))
        if name not in self.galleries:
            raise ValueError(f"kiosk.gallery: expected one of {sorted(self.galleries)}, found {name!r}")
        if self.models[model := self.galleries[name].model].detector is None:
            raise ValueError(f"models.{model}.detector: expected one, which finds the faces of cameras; found null")
        return self


class Doorkeeper(Closing):
    """Watches the cameras of a service's configuration from the start on, in threads of its own; a context manager.

    It begins anew when the configuration, the model or the gallery is another one, and tries again what failed.

    Parameters
    ----------
    service
        Its settings are `KioskServiceSettings`; with others nothing is watched.
    load_detector
        As `edgeface.load_detector`.
    """

    def __init__(self, service: Service, *, load_detector: Callable[..., Detector] = edgeface.load_detector) -> None:
        self._service, self._load_detector = service, load_detector
        self._publisher: EventPublisher | None = None
        self._watch: DoorWatch | None = None
        self._decisions = Counter[tuple[str, str]]()
        self._why, self._last = "watching has not begun", 0
        self._stop = threading.Event()
        service.elsewhere = self._forget
        self._thread = threading.Thread(target=self._keep, name="edgeface-doorkeeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching; closing again does nothing."""
        self._stop.set()
        self._thread.join()

    # What routes ask for; see `edgeface.serve.doors.EventSource`

    @property
    def _section(self) -> KioskSettings | None:
        settings = self._service.settings
        return settings.kiosk if isinstance(settings, KioskServiceSettings) else None

    @property
    def gallery(self) -> str | None:
        """Name of the gallery; None without a kiosk."""
        section = self._section
        return None if section is None else section.gallery or next(iter(self._service.settings.galleries))

    @property
    def names(self) -> bool:
        """Whether streams tell names."""
        return (section := self._section) is not None and section.names

    @property
    def most_streams(self) -> int:
        """Most streams at once."""
        return 0 if (section := self._section) is None else section.streams

    @property
    def last(self) -> int:
        """Number of the newest event."""
        return self._last

    @property
    def closed(self) -> str:
        """Why nobody can be known; empty while the cameras are watched and their events recorded."""
        watch = self._watch
        return self._why or ("" if watch is None else watch.unrecorded)

    @property
    def pins(self) -> bool:
        """Whether people may be known by a PIN."""
        return (section := self._section) is not None and section.pins

    def cameras(self) -> dict[str, dict[str, Any]]:
        """Return how the cameras are."""
        watch = self._watch
        return {
            name: dataclasses.asdict(each) | {"state": each.state.value, "picture": self._picture_of(name)}
            for name, each in ({} if watch is None else watch.health).items()
        }

    def _picture_of(self, name: str) -> str:
        """Return ``sent`` if a browser sends a camera's picture, ``shown`` if it can be read; empty: neither."""
        section = self._section
        options = None if section is None else section.cameras.get(name)
        return "" if options is None else "sent" if options.source == BROWSER else "shown" * options.picture

    def _camera(self, name: str) -> Camera:
        watch = self._watch
        if watch is None:
            raise Problem(503, "kiosk-closed", "no camera is watched; try again", retry_after=_AGAIN)
        if name not in watch.cameras:
            raise NotFound("camera", name)
        return watch.cameras[name]

    def picture(self, camera: str) -> bytes:
        """Return the newest picture of a camera, a JPEG file; `Problem` if there is none to be shown."""
        found = self._camera(camera).jpeg()
        if found is None:
            raise Problem(404, "no-picture", f"{camera}: its picture is not shown, or the camera is lost")
        return found

    def show(self, camera: str, image: Image) -> None:
        """Take the newest picture of a camera of the source ``browser``; `Problem` for another camera."""
        found = self._camera(camera)
        if self._picture_of(camera) != "sent":
            raise Problem(409, "no-browser-camera", f"{camera}: expected a camera of the source browser")
        short, long = sorted(image.shape[:2])
        if long > _SLIMMEST * short:  # reduced, nothing is left of it
            expected = f"expected sides that differ by at most {_SLIMMEST} times"
            raise Problem(422, "bad-image", f"{expected}, found {short}x{long}")
        found.show(image)

    def admit(self, camera: str, person: Person | None) -> str:
        """Let somebody be known at a camera by a PIN, or, None, tell that one was wrong; return the event's kind."""
        self._camera(camera)
        if (watch := self._watch) is None or self.closed:
            raise Problem(503, "kiosk-closed", "the door is closed; try again", retry_after=_AGAIN)
        who = {} if person is None else {"person_id": person.id, "name": person.name}
        event = VisitEvent(
            camera=camera,
            kind=VisitKind.unknown if person is None else VisitKind.known,
            contract_id=watch.contract_id,
            frames=0,
            reason="a wrong PIN was given" if person is None else "the PIN was right",
            **who,  # type: ignore[arg-type]
        )
        return watch.admit(event).kind.value

    @property
    def decisions(self) -> dict[tuple[str, str], int]:
        """How many decisions were recorded since the start, by camera and kind."""
        return dict(self._decisions)

    def outbox(self) -> dict[str, tuple[int, int]]:
        """Return how many events each target is still to be told, and how many it is not told any more."""
        publisher = self._publisher
        return {} if publisher is None else publisher.log.count_deliveries()

    def events(
        self, *, after: int, limit: int, names: bool = True, kind: str | None = None, **filters: Any
    ) -> list[tuple[int, dict[str, Any]]]:
        """Return numbers and fields of events; `Problem` while there is no log."""
        publisher = self._publisher
        if publisher is None:
            raise Problem(503, "kiosk-closed", "the event log is not open; try again", retry_after=_AGAIN)
        found = publisher.log.events(after=after, kind=None if kind is None else VisitKind(kind), **filters)
        return [(each.sequence, each.to_dict(names=names)) for each in itertools.islice(found, limit)]

    def _forget(self, gallery: ServedGallery, person_ids: Sequence[int]) -> Proof | None:
        """Forget people of a gallery in the log, also in one of a kiosk that is configured no more."""
        if not self._path.exists():
            return None
        publisher, gallery_id = self._publisher, gallery.info.gallery_id
        log = None if publisher is None else publisher.log
        return forget_in(self._path, person_ids, gallery_id=gallery_id, log=log)

    @property
    def _path(self) -> Path:
        return self._service.settings.state / "events.sqlite"

    # What its threads do

    def _keep(self) -> None:
        while not self._stop.is_set():
            section = self._section
            if section is None:
                self._stop.wait(_POLL)
                continue
            try:
                with EventPublisher(self._path, section.events, cameras=section.cameras) as publisher:
                    self._last = max((each.sequence for each in publisher.log.last(1)), default=0)
                    self._publisher = publisher
                    while self._goes_on(section):
                        self._try(section, publisher)
            except Exception as error:  # e.g. the log is damaged: nobody is known, and it is tried again
                self._fail(error)
                self._pause(section)
            finally:
                self._publisher = None

    def _goes_on(self, section: KioskSettings) -> bool:
        return not self._stop.is_set() and self._section == section

    def _pause(self, section: KioskSettings) -> None:
        until = time.monotonic() + _AGAIN
        while self._goes_on(section) and time.monotonic() < until:
            self._stop.wait(_POLL)

    def _fail(self, error: Exception) -> None:
        self._why = f"{type(error).__name__}: {error}"
        _log.exception("the doors are not watched")

    def _try(self, section: KioskSettings, publisher: EventPublisher) -> None:
        """Watch until the configuration, the model or the gallery is another one, or it fails."""
        try:
            self._watch_doors(section, publisher)
        except Exception as error:  # whatever it was: the service goes on, and it is tried again
            self._fail(error)
            self._pause(section)
        finally:
            self._watch, self._why = None, self._why or "watching begins anew"

    def _watch_doors(self, section: KioskSettings, publisher: EventPublisher) -> None:
        served = self._service.gallery(section.gallery)
        with self._service.models.use(served.options.model) as model, contextlib.ExitStack() as opened:
            index, analyzer = served.index, self._analyzer(section, model, opened)
            decision = section.decision.for_log(section.events)
            settings = WatchSettings(cameras=section.cameras, decision=decision, model=model.options)

            def record(event: VisitEvent) -> None:
                self._last = publisher.publish(event).sequence
                self._decisions[event.camera, event.kind.value] += 1

            watch = self._watch = opened.enter_context(DoorWatch(settings, analyzer, index, record=record))
            failed = list[Exception]()
            taking = threading.Thread(target=self._take, args=(watch, failed), name="edgeface-door-events")
            taking.start()
            opened.callback(taking.join)
            opened.callback(watch.close)  # before it is waited for
            opened.enter_context(publisher.following(served.searched))
            self._why = ""
            while self._goes_on(section) and not model.retired:
                if failed:
                    raise failed[0]
                if not taking.is_alive():
                    self._why = "all recordings have ended"
                try:
                    if self._service.gallery(section.gallery).index is not index:
                        return
                except Exception as error:  # it is away; each decision says so until it is back
                    _log.debug("gallery %s: %s", served.name, error)
                self._stop.wait(_POLL)

    def _analyzer(self, section: KioskSettings, model: ServedModel, opened: contextlib.ExitStack) -> FaceAnalyzer:
        """Return an analyzer of the model, with a detector for what counts at cameras, and with liveness if needed."""
        options, decision = model.options, section.decision
        if options.detector is None:
            raise InputError(expected="a model with a detector", found="none", remedy="name a detector")
        least = smallest_face(options.min_size, section.cameras)
        detector = self._load_detector(options.detector, device=options.device, min_size=least)
        opened.callback(detector.close)
        checker = None
        if decision.liveness:
            checker = edgeface.load_liveness(
                decision.liveness_models, device=options.device, threshold=decision.liveness_threshold
            )
            opened.callback(checker.close)
        return FaceAnalyzer(model.analyzer.embedder, detector, checker)

    def _take(self, watch: DoorWatch, failed: list[Exception]) -> None:
        try:
            for _ in watch:  # is recorded before it is given here
                pass
        except Exception as error:
            failed.append(error)
