"""Watch one camera: whether it lives, whether something moves, and which frames are worth a look."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import cv2
import numpy as np

from edgeface.files import Closing
from edgeface.kiosk.settings import CameraSettings
from edgeface.pipeline.motion import MotionGate, mask_of
from edgeface.text import without_secrets
from edgeface.vision.detector import SMALLEST_FACE, Detector, Faces
from edgeface.vision.image import Image
from edgeface.vision.source import Frame, FrameSource, Opener, open_source

_log = logging.getLogger(__name__)

BROWSER = "browser"
"""Source of a camera whose pictures are handed to `Camera.show`."""
_SHOWN = 1280
"""Longer side in pixels of the largest picture that is shown."""
_POLL = 0.25
"""Seconds between two looks at whether a camera that gives no frame is lost."""
_EARLY = 0.75
"""Share of the time between two frames after which the next one may come: cameras are not punctual, and one of the
wanted rate must not lose every second frame."""
_STRIDE = 8
"""Every so many rows and columns are compared to notice a repeated picture: noise changes them in a living one."""


class CameraState(str, Enum):
    """How a camera is."""

    connected = "connected"
    frozen = "frozen"
    lost = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraHealth:
    """How a camera is, and what was made of its frames.

    Attributes
    ----------
    state
        ``lost`` before its first frame too, and after the last one of a file.
    source
        Its address, without user and password.
    age
        Seconds since the newest frame arrived; None before the first one, and of a file.
    analyzed, dropped
        Frames in which faces were looked for, and that were replaced by newer ones before.
    reconnects, freezes
        How often it was opened again, with success or without, and how often its picture froze.
    latency, slowest
        Seconds from the arrival of a frame to the end of its analysis: the last one, and the longest; of live cameras.
    error
        What last went wrong; empty if nothing did.
    """

    state: CameraState
    source: str
    age: float | None
    analyzed: int
    dropped: int
    reconnects: int
    freezes: int
    latency: float
    slowest: float
    error: str


class Camera:
    """Gives the frames of one camera that are worth a look, newest first, and opens it again whenever it fails.

    Timestamps of a live camera are monotonic time (`time.monotonic`), those of a file begin with it.

    Parameters
    ----------
    name
        Of the camera, for the log.
    settings
        What to open, and how.
    open_capture
        As of `open_source`.

    Raises
    ------
    InputError
        If the source is neither a camera nor a file.
    """

    def __init__(self, name: str, settings: CameraSettings, *, open_capture: Opener | None = None) -> None:
        self.name, self.error, self._closed = name, "", False
        self._settings, self._opener = settings, open_capture
        self._handed = queue.Queue[Image](1)
        self._newest: Image | None = None
        self._encoding, self._encoded = threading.Lock(), b""
        self._encoded_from: Image | None = None
        self._motion = MotionGate(settings.zones)
        self._last = -np.inf
        self._digest, self._changed, self._frozen, self._lost = -1, time.monotonic(), False, False
        self._ended = False
        self._analyzed, self._dropped, self._latency, self._slowest = 0, 0, 0.0, 0.0
        self._attempts = self._freezes = 0
        self._open()

    def _open(self) -> None:
        self._opened = time.monotonic()
        if self._settings.source == BROWSER:
            handed, opened = self._handed, self._opened
            self._source = FrameSource(lambda stop: _take(handed, opened, stop), live=True, capacity=1)
        else:
            self._source = open_source(
                self._settings.source,
                open_capture=self._opener,
                interval=lambda: self._interval * _EARLY,
                hardware=self._settings.hardware_decode,
            )
        self.live = self._source.live

    @property
    def _interval(self) -> float:
        """Seconds between two frames that are looked at."""
        return 1 / (self._settings.active_fps if self._motion.is_open(self._last) else self._settings.idle_fps)

    @property
    def state(self) -> CameraState:
        """Whether pictures come, and change."""
        if self._ended or self._source.newest < 0 or self._is_silent():
            return CameraState.lost
        return CameraState.frozen if self._frozen else CameraState.connected

    @property
    def health(self) -> CameraHealth:
        """How it is."""
        return CameraHealth(
            state=self.state,
            source=without_secrets(self._settings.source),
            age=self._age if self.live and self._source.newest >= 0 else None,
            analyzed=self._analyzed,
            dropped=self._dropped + self._source.dropped,
            reconnects=max(0, self._attempts + self._source.attempts - 1),
            freezes=self._freezes,
            latency=self._latency,
            slowest=self._slowest,
            error=self.error,
        )

    def frames(self, on_break: Callable[[str], None] = lambda reason: None) -> Generator[Frame, None, None]:
        """Yield the frames in which to look for faces; end with the file, or when the camera is closed.

        `on_break` is called, in this thread, with the reason when the picture freezes or the camera is lost.
        """
        self._on_break = on_break
        while True:
            try:
                frame = self._source.read(_POLL)
            except TimeoutError:
                self._notice_loss()
                continue
            if frame is None:
                self._ended = True
                return
            self._lost = False
            if self._settings.picture:
                self._newest = frame.image
            if self.live:
                frame = replace(frame, timestamp=self._opened + frame.timestamp)
            if self._is_new(frame) and self._is_due(frame) and self._motion.opens(frame.image, frame.timestamp):
                yield frame

    def show(self, image: Image) -> None:
        """Hand over the newest picture of a camera of the source `BROWSER`; one that was not taken yet is dropped."""
        with contextlib.suppress(queue.Empty):
            self._handed.get_nowait()
            self._dropped += 1
        with contextlib.suppress(queue.Full):  # another one was handed over meanwhile
            self._handed.put_nowait(image)

    def jpeg(self) -> bytes | None:
        """Return the newest picture as a JPEG file; None while the camera is lost, or if it is not to be shown.

        It is encoded once, for however many ask.
        """
        newest = self._newest
        if newest is None or self.state is CameraState.lost:
            return None
        with self._encoding:
            if self._encoded_from is not newest:
                scale = min(1.0, _SHOWN / max(newest.shape[:2]))
                shown = cv2.resize(newest, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                self._encoded = cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
                self._encoded_from = newest
            return self._encoded

    def finish(self, frame: Frame, *, busy: bool) -> None:
        """Take note that a frame was analyzed, and whether somebody is there."""
        self._analyzed += 1
        if busy:
            self._motion.keep_open(frame.timestamp)
        if self.live:
            self._latency = time.monotonic() - frame.timestamp
            self._slowest = max(self._slowest, self._latency)

    def _is_silent(self) -> bool:
        return self.live and self._age > self._settings.lost_seconds

    @property
    def _age(self) -> float:
        """Seconds since the newest frame, or since the camera was opened."""
        return time.monotonic() - self._opened - max(0.0, self._source.newest)

    def _notice_loss(self) -> None:
        if not self._lost and self._is_silent():
            self._lost = True
            self._report(f"the camera was lost: no frame for {self._settings.lost_seconds:g} s")

    def _is_new(self, frame: Frame) -> bool:
        """Whether a frame differs from the last one; if none did for long, open the camera again."""
        digest = zlib.crc32(frame.image[::_STRIDE, ::_STRIDE].tobytes())
        if digest != self._digest:
            self._digest, self._changed, self._frozen = digest, frame.timestamp, False
            return True
        if frame.timestamp - self._changed >= self._settings.frozen_seconds:
            if not self._frozen:
                self._freezes += 1
                self._report(f"the picture is frozen: no change for {self._settings.frozen_seconds:g} s")
            self._frozen, self._changed = True, frame.timestamp
            if self.live:
                self._dropped += self._source.dropped
                self._attempts += self._source.attempts
                self._source.close()
                self._open()
                if self._closed:
                    self._source.close()
        return False

    def _is_due(self, frame: Frame) -> bool:
        if frame.timestamp < self._last + self._interval * _EARLY:
            return False
        self._last = frame.timestamp
        return True

    def _report(self, reason: str) -> None:
        self.error = reason
        _log.warning("%s: %s", self.name, reason)
        self._on_break(reason)

    def close(self) -> None:
        """Stop reading; `frames` then ends."""
        self._closed = True
        self._source.close()


def _take(handed: queue.Queue[Image], opened: float, stop: threading.Event) -> Generator[Frame, None, None]:
    """Yield pictures as they are handed over."""
    index = 0
    while not stop.is_set():
        with contextlib.suppress(queue.Empty):
            image = handed.get(timeout=_POLL)
            yield Frame(image, index, time.monotonic() - opened, BROWSER)
            index += 1


def smallest_face(asked: int | None, cameras: Mapping[str, CameraSettings]) -> int:
    """Return from which size on one detector looks for all cameras: what counts at any of them, not below `asked`."""
    return max(asked or SMALLEST_FACE, min(each.min_face for each in cameras.values()))


class ZoneDetector(Closing):
    """A detector that finds only the faces that count at a camera: large enough, with their centre in a zone.

    Closing it does nothing: `detector` belongs to somebody else.
    """

    def __init__(self, detector: Detector, settings: CameraSettings) -> None:
        self._detector, self._least, self._zones = detector, settings.min_face, settings.zones
        self.name, self.settings = detector.name, detector.settings

    def detect(self, images: Sequence[Image]) -> list[Faces]:
        """See `Detector.detect`."""
        return [self._count(image, faces) for image, faces in zip(images, self._detector.detect(images), strict=True)]

    def _count(self, image: Image, faces: Faces) -> Faces:
        if not len(faces):
            return faces
        low, high = faces.boxes[:, :2], faces.boxes[:, 2:]
        size = np.array(image.shape[1::-1], np.float32)
        x, y = np.clip((low + high) / 2, 0, size - 1).astype(int).T
        large = (high - low).min(axis=1) >= self._least
        return faces[large & mask_of(self._zones, (image.shape[0], image.shape[1]))[y, x]]

    def close(self) -> None:
        """Do nothing."""
