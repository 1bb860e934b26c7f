"""Watch several cameras with one model and one gallery, and give one event a visit."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator

import numpy as np

import edgeface
from edgeface.analyzer import FaceAnalyzer
from edgeface.errors import InputError, Overloaded
from edgeface.files import Closing
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.keys import find_key
from edgeface.gallery.opening import open_gallery
from edgeface.gallery.records import detector_note
from edgeface.kiosk.camera import Camera, CameraHealth, ZoneDetector, smallest_face
from edgeface.kiosk.decision import STALE, Decider
from edgeface.kiosk.outcome import VisitEvent
from edgeface.kiosk.publisher import EventPublisher
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.visits import Visits
from edgeface.pipeline.pipeline import Pipeline
from edgeface.serve.service import find_version
from edgeface.vision.detector import Faces
from edgeface.vision.image import Image
from edgeface.vision.quality import QualityGate
from edgeface.vision.source import Frame, Opener

_log = logging.getLogger(__name__)

_AGAIN = 1.0
"""Seconds after which a camera whose analysis failed is watched again."""
_POLL = 0.25
"""Seconds between looks at whether everything has ended."""


class DoorWatch(Closing):
    """Watches the cameras from the start on, each in its own thread; iterate over it for the events.

    A context manager. It ends when all cameras are files that have ended, or it is closed. Live cameras are watched
    for ever: what fails is logged, told by `health`, and tried again.

    Parameters
    ----------
    settings
        Cameras, and when a person is known.
    analyzer
        With a detector and, unless the settings say otherwise, liveness models: without these nobody is known. It is
        not closed.
    index
        Of the gallery; its store is not closed.
    record
        Is given each event before it is yielded. One that it fails on is told to nobody.
    open_capture
        Used instead of `cv2.VideoCapture`.

    Attributes
    ----------
    unrecorded
        Why the last event could not be recorded; empty if it was.

    Raises
    ------
    InputError
        If there is no detector, or a source is neither a camera nor a file.
    ContractError
        If the gallery is of another model.
    """

    def __init__(
        self,
        settings: WatchSettings,
        analyzer: FaceAnalyzer,
        index: LiveIndex,
        *,
        record: Callable[[VisitEvent], object] = lambda event: None,
        open_capture: Opener | None = None,
    ) -> None:
        if analyzer.detector is None:
            raise InputError(expected="an analyzer with a detector", found="none", remedy="name a detector")
        self._settings, self._analyzer, self._record, self.unrecorded = settings, analyzer, record, ""
        self._events: queue.Queue[tuple[float, VisitEvent]] = queue.Queue(settings.queue)
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._decider = Decider(settings.decision, analyzer.contract, index, self._emit)
        self.cameras: dict[str, Camera] = {}
        with contextlib.ExitStack() as undo:
            for name, each in settings.cameras.items():
                self.cameras[name] = camera = Camera(name, each, open_capture=open_capture)
                undo.callback(camera.close)
            undo.pop_all()
        self._threads = [
            threading.Thread(target=self._work, args=(camera,), name=f"edgeface-watch-{name}", daemon=True)
            for name, camera in self.cameras.items()
        ]
        for thread in self._threads:
            thread.start()

    @property
    def contract_id(self) -> str:
        """Of the embeddings."""
        return self._analyzer.contract.contract_id

    @property
    def health(self) -> dict[str, CameraHealth]:
        """How each camera is, by its name."""
        return {name: camera.health for name, camera in self.cameras.items()}

    def __iter__(self) -> Iterator[VisitEvent]:
        """Yield events as they are decided and recorded; a known person whose event waited too long is inconclusive.

        Raises
        ------
        EdgeFaceError
            If a file cannot be read, or a model fails on one.
        """
        while not self._stop.is_set():
            ended = not any(thread.is_alive() for thread in self._threads)
            try:
                at, event = self._events.get(timeout=0 if ended else _POLL)
            except queue.Empty:
                if not ended:
                    continue
                if self._error is not None:
                    raise self._error from None
                return
            waited = time.monotonic() - at
            if event.person_id is not None and waited > STALE and self.cameras[event.camera].live:
                self._decider.forget(event.person_id)
                event = event.closed(f"the event waited {waited:.1f} s to be taken")
            if self._recorded(event):
                yield event

    def _recorded(self, event: VisitEvent) -> bool:
        try:
            self._record(event)
        except Exception as error:  # e.g. the disk is full: the door stays closed, and the cameras are watched
            self.unrecorded = f"events cannot be recorded: {error}"
            _log.exception("%s: an event could not be recorded", event.camera)
            if event.person_id is not None:
                self._decider.forget(event.person_id)
            return False
        self.unrecorded = ""
        return True

    def admit(self, event: VisitEvent) -> VisitEvent:
        """Emit an event that was decided without a look, such as by a PIN, and return it.

        A person who cannot be known now is closed out as at a camera. Raises Overloaded if events are not taken.
        """
        event = dataclasses.replace(event, gallery_id=self._decider.gallery_id)
        with self._decider.lock:
            if event.person_id is not None and (why := self._decider.why_closed(event.person_id, 0.0)):
                event = event.closed(why)
            if not self._decider.emit(event):
                raise Overloaded("events are not taken: the queue is full")
        return event

    def _emit(self, event: VisitEvent) -> bool:
        """Queue an event; when the queue is full a live camera's is lost, and a file waits."""
        camera = self.cameras[event.camera]
        while not self._stop.is_set():
            try:
                self._events.put((time.monotonic(), event), block=not camera.live, timeout=_POLL)
                return True
            except queue.Full:
                if camera.live:
                    camera.error = "events are not taken: the queue is full"
                    _log.error("%s: %s", camera.name, camera.error)
                    return False
        return False

    def _work(self, camera: Camera) -> None:
        visits = Visits(camera.name, self._decider)
        while not self._stop.is_set():
            try:
                self._follow(camera, visits)
                visits.end("the recording ended")
                return
            except Exception as error:  # whatever failed: nobody is known, and the camera is watched again
                camera.error = f"{type(error).__name__}: {error}"
                visits.end(f"the analysis failed: {error}")
                if not camera.live:
                    self._error = error
                    return
                _log.exception("%s: the analysis failed", camera.name)
                self._stop.wait(_AGAIN)

    def _follow(self, camera: Camera, visits: Visits) -> None:
        """Analyze a camera's frames until it ends or something fails."""
        assert self._analyzer.detector is not None
        decision = self._settings.decision
        pipeline = Pipeline.for_camera(
            ZoneDetector(self._analyzer.detector, self._settings.cameras[camera.name]),
            self._analyzer.embedder,
            looks=decision.looks,
            gate=QualityGate() if decision.gate else None,
            liveness=self._analyzer.liveness if decision.liveness else None,
        )
        with contextlib.closing(pipeline.run(self._prepared(camera, visits))) as results:
            for frame, faces in results:
                age = time.monotonic() - frame.timestamp if camera.live else 0.0
                visits.see(frame.image, faces, frame.timestamp, age=age)
                camera.finish(frame, busy=bool(faces))

    def _prepared(self, camera: Camera, visits: Visits) -> Generator[Frame, None, None]:
        """Yield a camera's frames; before the first, let all networks prepare for frames of this size.

        Otherwise the first face would wait for it. The first frame of a live camera is old then, and left out.
        """
        prepared = False
        with contextlib.closing(camera.frames(visits.end)) as frames:
            for frame in frames:
                if not prepared:
                    prepared = True
                    _prepare(self._analyzer, frame.image)
                    if camera.live:
                        continue
                yield frame

    def stop(self) -> None:
        """Let the iteration end soon; for signal handlers."""
        self._stop.set()

    def close(self) -> None:
        """Stop all cameras, and wait for them; closing again does nothing."""
        self.stop()
        for camera in self.cameras.values():
            camera.close()
        for thread in self._threads:
            thread.join(timeout=10)


def _prepare(analyzer: FaceAnalyzer, image: Image) -> None:
    """Let the networks of an analyzer compute something for the first time, on an image of a camera."""
    assert analyzer.detector is not None
    analyzer.detector.detect([image])
    height, width = analyzer.contract.input_size
    analyzer.embedder.embed(np.full((1, height, width, 3), 127, np.uint8))
    if analyzer.liveness is not None:
        size = np.array(image.shape[1::-1], np.float32)
        landmarks = (size / 2 + np.zeros((1, 5, 2))).astype(np.float32)
        box = np.concatenate([size * 0.45, size * 0.55])[np.newaxis]
        analyzer.liveness.check(image, Faces(box, landmarks, np.ones(1, np.float32)))


@contextlib.contextmanager
def open_watch(settings: WatchSettings) -> Iterator[DoorWatch]:
    """Open the gallery and the log of events, load the models that the settings name, and watch.

    With a log events are recorded and told before they are yielded.

    Raises
    ------
    InputError, MissingError
        If there is no gallery, or anything that the settings name cannot be opened or loaded. Without liveness models
        nothing is watched, unless the settings say that they are not needed.

    Examples
    --------
    >>> with open_watch(load_watch_settings(Path("watch.yml"))) as watch:  # doctest: +SKIP
    ...     for event in watch:
    ...         print(event.kind.value, event.name)
    known Ada Lovelace
    """
    decision, model = settings.decision.for_log(settings.events), settings.model
    settings = settings.model_copy(update={"decision": decision})
    if settings.gallery is None:
        raise InputError(expected="a gallery", found="none", remedy="name one with 'gallery', or --gallery")
    with contextlib.ExitStack() as opened:
        key = find_key(settings.key, beside=settings.gallery)
        with open_gallery(settings.gallery, key=key) as store:  # without it no model is loaded
            made_with = store.detectors()
        detector = edgeface.choose_detector(made_with) if model.detector == "auto" else model.detector
        publisher = None
        if settings.log is not None:
            publisher = opened.enter_context(EventPublisher(settings.log, settings.events, cameras=settings.cameras))
        checker = None
        if decision.liveness:
            checker = edgeface.load_liveness(
                decision.liveness_models, device=model.device, threshold=decision.liveness_threshold
            )
            opened.callback(checker.close)
        analyzer = opened.enter_context(
            edgeface.load(
                find_version(model.model)[0],
                device=model.device,
                detector=detector,
                min_size=smallest_face(model.min_size, settings.cameras),
                liveness=checker or False,
                cache_dir=settings.cache,
                allow_seeded=model.allow_seeded,
            )
        )
        if detector and (note := detector_note(made_with, detector)):
            _log.warning("%s: %s", settings.gallery, note)
        contract_id = analyzer.contract.contract_id
        store = opened.enter_context(open_gallery(settings.gallery, key=key, contract_id=contract_id))
        if publisher is not None:
            opened.enter_context(publisher.following(store))
        record = (lambda event: None) if publisher is None else publisher.publish
        yield opened.enter_context(DoorWatch(settings, analyzer, LiveIndex(store), record=record))
