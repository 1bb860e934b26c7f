"""Read frames from photos, folders, videos, cameras and network streams, ahead of the consumer in one thread."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np

from edgeface.errors import ImageError, InputError, MissingError
from edgeface.files import FileIdentity
from edgeface.text import encoded_user, without_secrets
from edgeface.vision.formats import VIDEO_SUFFIXES
from edgeface.vision.image import DecodedFile, Image, read_image, read_photo_file
from edgeface.vision.listing import list_photos

_log = logging.getLogger(__name__)

_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://")
_NETWORK_TIMEOUT = 5.0
"""Seconds after which OpenCV gives up opening a stream or waiting for its next frame."""
_UNUSABLE_FRAMES = 10
"""Empty or malformed frames in a row after which a live source is opened again."""
_READERS = 2
"""Photos that are decoded at the same time."""
_WAITING_PIXELS = 1 << 24
"""Pixels of the frames that wait for the consumer, where these are two or more: bounds memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a source.

    Attributes
    ----------
    image : (H, W, 3) uint8, BGR
    index
        From 0; live sources skip the numbers of dropped frames.
    timestamp
        Seconds, rising. Videos: time from the beginning. Live sources: monotonic time from opening to the frame's
        arrival. Photos: their number.
    source
        The file, or the address of the camera, without user and password.
    file
        Of photos: which bytes the image was made of. None otherwise.
    reduced
        How many times more pixels the photo has on each side than the image: 1, 2, 4 or 8.
    examined
        What a pipeline with a tracker did: ``detected`` its faces, ``tracked`` those of the frame before, or
        ``skipped`` it because nothing moved. None otherwise.
    """

    image: Image
    index: int
    timestamp: float
    source: str
    file: FileIdentity | None = None
    reduced: int = 1
    examined: Literal["detected", "tracked", "skipped"] | None = None


Opener = Callable[[str | int], Any]
"""Opens a camera, an address or a video: returns an object with `cv2.VideoCapture`'s read, get, isOpened, release."""


PhotoReader = Callable[[Path], DecodedFile]
"""Reads a photo, and says which bytes it was made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays before a live source is opened again.

    Attributes
    ----------
    first, longest
        Seconds; each delay is twice the last one, shortened at random by up to a half, so that many kiosks do not
        open one camera at the same time.
    attempts
        Failures in a row that are an error; None: never give up.
    """

    first: float = 0.5
    longest: float = 30.0
    attempts: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.longest or (self.attempts is not None and self.attempts < 1):
            raise InputError(f"backoff: expected 0 < first <= longest and attempts of 1 or more, found {self}")

    def delay(self, failures: int) -> float:
        """Return the delay in seconds after this many failures in a row."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)


def open_source(
    source: str | Path | int | Sequence[Path],
    *,
    capacity: int = 4,
    backoff: Backoff | None = None,
    on_bad: Callable[[Path, ImageError], None] | None = None,
    open_capture: Opener | None = None,
    interval: Callable[[], float] | None = None,
    hardware: bool = False,
    read_photo: PhotoReader = read_photo_file,
) -> FrameSource:
    """Open a source of frames.

    Parameters
    ----------
    source
        A photo, a folder or a pattern such as ``photos/*.jpg``, as `list_photos` takes them; a list of photos; a
        video file; a camera's number, as int or text; or an address such as ``rtsp://``.
    capacity
        Frames read ahead of the consumer.
    backoff
        Delays for cameras and addresses.
    on_bad
        Called, in the reader's thread, with each photo or folder that cannot be read and its error; None: the error
        ends the source.
    open_capture
        Used instead of `cv2.VideoCapture`.
    interval
        Asked before each frame of a camera or an address: seconds since the last frame within which others are taken
        from it, but not converted to pixels, which costs more than to decode a still picture.
    hardware
        Let FFmpeg decode an address on a graphics processor where it can.
    read_photo
        Reads each photo, given its path; raises ImageError.

    Raises
    ------
    InputError
        If there is nothing to read.
    """
    opener = open_capture or (lambda target: _open_capture(target, hardware=hardware))
    if isinstance(source, str) and source.isdecimal():
        source = int(source)
    if isinstance(source, int) and source < 0:
        raise InputError(f"camera {source}: expected a number from 0")
    if isinstance(source, int) or (isinstance(source, str) and source.lower().startswith(_STREAMS)):
        target, retry, box = source, backoff or Backoff(), _Mailbox(1, newest_wins=True)

        def counted(target: str | int) -> Any:
            box.attempts += 1
            return opener(target)

        return FrameSource(lambda stop: _live(target, counted, retry, stop, interval), live=True, box=box)
    if not isinstance(source, str | Path):
        files, failures = list(source), dict[Path, str]()
    elif (video := Path(source)).is_file() and video.suffix.lower() in VIDEO_SUFFIXES:
        return FrameSource(lambda stop: _video(video, opener), live=False, capacity=capacity)
    else:
        found = list_photos([source])
        files, failures = sorted([*found.files, *found.failures]), found.failures
    return FrameSource(lambda stop: _photos(files, failures, on_bad, read_photo), live=False, capacity=capacity)


class FrameSource:
    """Frames from one thread that reads ahead; made by `open_source`.

    Iterate over it once, in one thread. Files give every frame, and reading waits for the consumer. Live sources give
    the newest frame and drop those that the consumer was too slow for. An error of the reader is raised in place of
    the frame. The thread ends with the source: at `close`, at the end of a `with` block, or without references.
    """

    def __init__(
        self,
        read: Callable[[threading.Event], Iterator[Frame]],
        *,
        live: bool,
        capacity: int = 4,
        box: _Mailbox | None = None,
    ) -> None:
        if capacity < 1:
            raise InputError(f"capacity: expected 1 or more frames, found {capacity}")
        self.live = live
        self._box = box or _Mailbox(capacity, newest_wins=live)
        # The thread knows the mailbox and not the source, so that a forgotten source can be collected.
        self._thread = threading.Thread(target=_fill, args=(self._box, read), name="edgeface-source", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, self._box.close)

    @property
    def dropped(self) -> int:
        """Frames of a live source that newer ones replaced."""
        return self._box.dropped

    @property
    def attempts(self) -> int:
        """How often a live source was opened, with success or without."""
        return self._box.attempts

    @property
    def newest(self) -> float:
        """Timestamp of the newest frame that arrived, taken or not; -1 before the first one."""
        return self._box.newest

    def read(self, timeout: float | None = None) -> Frame | None:
        """Return the next frame, or None at the end; TimeoutError if none came within `timeout` seconds."""
        return self._box.take(timeout)

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        frame = self.read()
        if frame is None:
            raise StopIteration
        return frame

    def close(self, *, timeout: float = _NETWORK_TIMEOUT + 1.0) -> None:
        """Stop reading, from any thread; wait `timeout` seconds for the reader's, which ends when OpenCV returns."""
        self._box.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
            if self._thread.is_alive():
                _log.warning("a source is still inside OpenCV %.1f s after it was closed", timeout)

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Mailbox:
    """A bounded queue of frames, its end and its error."""

    def __init__(self, capacity: int, *, newest_wins: bool) -> None:
        self.stop = threading.Event()
        self.dropped = self.attempts = 0
        self.newest = -1.0
        self._capacity, self._newest_wins = capacity, newest_wins
        self._frames: deque[Frame] = deque()
        self._ended = self._taking = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, frame: Frame) -> None:
        with self._changed:
            if self._newest_wins and len(self._frames) == self._capacity:
                self._frames.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self.stop.is_set() or self._has_room(frame))
            self._frames.append(frame)
            self.newest = frame.timestamp
            self._changed.notify_all()

    def _has_room(self, frame: Frame) -> bool:
        if not self._frames:  # what leaves no room for another does not wait here: it is handed over
            return self._newest_wins or self._taking or 2 * _pixels(frame) <= _WAITING_PIXELS
        pixels = sum(map(_pixels, (*self._frames, frame)))
        return len(self._frames) < self._capacity and pixels <= _WAITING_PIXELS

    def end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def take(self, timeout: float | None) -> Frame | None:
        with self._changed:
            self._taking = True
            self._changed.notify_all()
            try:
                if not self._changed.wait_for(lambda: bool(self._frames) or self._ended or self.stop.is_set(), timeout):
                    raise TimeoutError
            finally:
                self._taking = False
            if self.stop.is_set():
                return None
            if self._frames:
                self._changed.notify_all()
                return self._frames.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        self.stop.set()
        with self._changed:
            self._frames.clear()
            self._changed.notify_all()


def _pixels(frame: Frame) -> int:
    height, width = frame.image.shape[:2]
    return int(height * width)


def _fill(box: _Mailbox, read: Callable[[threading.Event], Iterator[Frame]]) -> None:
    error: BaseException | None = None
    frames = read(box.stop)
    try:
        for frame in frames:
            if box.stop.is_set():
                break
            box.put(frame)
            del frame  # its pixels are the consumer's now
    except BaseException as raised:  # whatever it is belongs to the consumer
        error = raised
    finally:
        frames.close()  # type: ignore[attr-defined]  # a generator: releases the capture
        box.end(error)


def _photos(
    files: Sequence[Path],
    failures: Mapping[Path, str],
    on_bad: Callable[[Path, ImageError], None] | None,
    read_photo: PhotoReader,
) -> Iterator[Frame]:
    """Yield photos in order; the next ones are decoded meanwhile, and not before the last one was taken."""

    def read(index: int, path: Path) -> Frame:
        if path in failures:
            raise ImageError(f"{path}: {failures[path]}", path=path)
        image, file, reduced = read_photo(path)
        return Frame(image, index, float(index), str(path), file, reduced)

    coming, ahead = enumerate(files), deque[Future[Frame]]()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="edgeface-reader") as pool:
        try:
            for path in files:
                ahead.extend(pool.submit(read, *each) for each in itertools.islice(coming, _READERS - len(ahead)))
                try:
                    yield ahead.popleft().result()  # in no variable, which would hold its pixels
                except ImageError as error:
                    if on_bad is None:
                        raise
                    on_bad(path, error)
        finally:
            for each in ahead:
                each.cancel()


def _video(path: Path, opener: Opener) -> Iterator[Frame]:
    capture = opener(str(path))
    try:
        rate = capture.get(cv2.CAP_PROP_FPS) if capture.isOpened() else 0.0
        last = -1.0
        for index in itertools.count():
            ok, image = capture.read()
            if not ok:
                break
            at = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Files without times report 0 for every frame; the frame rate gives the time then.
            timestamp = at if at > last else last + (1 / rate if rate > 0 else 1 / 25) if index else max(at, 0.0)
            last = timestamp
            yield Frame(_as_image(image, str(path)), index, timestamp, str(path))
        if last < 0:
            raise InputError(f"{path}: expected a video, found a file that OpenCV cannot decode a frame of")
    finally:
        capture.release()


def _live(
    target: str | int,
    opener: Opener,
    backoff: Backoff,
    stop: threading.Event,
    interval: Callable[[], float] | None = None,
) -> Iterator[Frame]:
    """Yield frames as they arrive. When they stop, close, wait and open again."""
    name = f"camera {target}" if isinstance(target, int) else without_secrets(target)
    started, failures, index = time.monotonic(), 0, 0
    last = 0.0
    while not stop.is_set():
        capture, unusable = opener(target), 0
        try:
            while capture.isOpened() and not stop.is_set() and unusable < _UNUSABLE_FRAMES:
                if interval is not None and not capture.grab():
                    break
                if interval is not None and time.monotonic() < last + interval():
                    continue
                ok, pixels = capture.read() if interval is None else capture.retrieve()
                if not ok:
                    break
                last = time.monotonic()
                try:
                    image = _as_image(pixels, name)
                except ImageError:  # many cameras give an empty frame now and then
                    unusable += 1
                    _log.warning("%s: an empty or malformed frame is left out", name)
                    continue
                failures = unusable = 0
                yield Frame(image, index, time.monotonic() - started, name)
                index += 1
        finally:
            capture.release()
        failures += 1
        if backoff.attempts is not None and failures >= backoff.attempts:
            raise MissingError(
                f"{name}: no frames in {failures} attempts; check that it is connected, switched on "
                "and not in use by another program"
            )
        if stop.is_set():
            return
        delay = backoff.delay(failures)
        _log.warning("%s: no frames; attempt %d in %.1f s", name, failures + 1, delay)
        stop.wait(delay)


def _open_capture(target: str | int, *, hardware: bool) -> Any:
    if isinstance(target, int) or not target.lower().startswith(_STREAMS):
        return cv2.VideoCapture(target)
    milliseconds = int(_NETWORK_TIMEOUT * 1000)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    if hardware:  # without a processor that can, or of another codec, FFmpeg decodes in software
        limits += [cv2.CAP_PROP_HW_ACCELERATION, cv2.VIDEO_ACCELERATION_ANY]
    return cv2.VideoCapture(encoded_user(target), cv2.CAP_FFMPEG, limits)


def _as_image(image: Any, name: str) -> Image:
    """Convert a frame: infrared cameras have one channel, capture cards four."""
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{name}: expected a frame, found {type(image).__name__}")
    return read_image(image)
