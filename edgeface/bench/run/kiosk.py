"""Play a video at a camera's rate through a kiosk's pipeline: frames dropped, time to identity and to a decision."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import cv2
import numpy as np
import psutil

from edgeface.bench.run.load_generator import Recording, measured_share, measuring
from edgeface.bench.schema import KioskResult, Stage
from edgeface.errors import InputError
from edgeface.files import sha256_of
from edgeface.pipeline.flow import FaceFlow
from edgeface.pipeline.motion import MotionGate
from edgeface.pipeline.observation import Face
from edgeface.pipeline.pipeline import Pipeline
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.stats import LatencyKey, summarize
from edgeface.vision.liveness import Liveness, LivenessChecker
from edgeface.vision.liveness_track import decide_track
from edgeface.vision.source import Frame, FrameSource, open_source

LOOKS = 3
"""Looks at a face that a decision rests on, as `edgeface watch` has it unless configured."""
_PARTS = 8
"""Equal parts of a run whose CPU times are told: how much they vary says how certain the mean is."""
_WARM_UP = 8
"""Frames of the video that are analysed before the measurement: every network is then compiled."""
_DECODED, _STAGED, _AT_ONCE = 300, 16, 3
"""Frames that are decoded to time that alone, frames from all over the video in which the other stages are timed, and
faces of each that are embedded."""
_CAMERAS, _HELD = 3, 3
"""Captures that are opened to measure the memory of one, and frames of each that are held: the newest, the one that is
analysed, and the one that is decoded."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFile:
    """A video file, and the frames a second to play it at; `frames` is its length by its header, nearly right."""

    path: Path
    rate: float
    frames: int

    @classmethod
    def open(cls, path: Path, *, rate: float | None = None) -> VideoFile:
        """Read a video's frame rate, unless another is given, and its length; InputError if it is no such video."""
        capture = cv2.VideoCapture(str(path))
        try:
            own = capture.get(cv2.CAP_PROP_FPS) if capture.isOpened() else 0.0
            frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if own > 0 else 0
        finally:
            capture.release()
        if not path.is_file() or not own > 0 or frames < 1:
            raise InputError(f"{path} is not a video with a frame rate")
        return cls(path=path, rate=rate or own, frames=frames)

    def play(self, *, seconds: float) -> FrameSource:
        """Deliver its frames as a camera would; the video repeats when it ends.

        Frames are decoded in advance, and each is delivered when it is due. One that still waits when the next is
        due is dropped. Timestamps are the monotonic seconds at which frames were due.
        """
        return FrameSource(lambda stop: self._frames(stop, seconds), live=True, capacity=1)

    def _frames(self, stop: threading.Event, seconds: float) -> Iterator[Frame]:
        count = max(1, round(seconds * self.rate))
        began, number = time.perf_counter(), 0
        while number < count and not stop.is_set():
            capture = cv2.VideoCapture(str(self.path))
            first = number
            try:
                while number < count and not stop.is_set():
                    ok, image = capture.read()
                    if not ok:
                        break
                    due = began + number / self.rate
                    if (wait := due - time.perf_counter()) > 0 and stop.wait(wait):
                        return
                    yield Frame(np.asarray(image), number, due, str(self.path))
                    number += 1
            finally:
                capture.release()
            if number == first:
                raise InputError(f"{self.path}: OpenCV cannot decode a frame of this video")


def run_kiosk(
    video: VideoFile,
    pipeline: Pipeline,
    *,
    seconds: float,
    liveness: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> tuple[KioskResult, Recording]:
    """Play a video to a pipeline at a camera's rate, repeatedly, for some seconds.

    The pipeline has a tracker and ``prefetch=1``: frames that it takes in advance would wait in it. `liveness` says
    whether it judges that; a decision needs it then. A query of the recording is a frame that was processed; it starts
    when the frame was due.
    """
    with open_source(video.path) as film:
        for _ in pipeline.run(itertools.islice(film, _WARM_UP)):
            pass
    due_frames = max(1, round(seconds * video.rate))
    tracks: dict[int, KioskTrack] = {}
    examined: Counter[str | None] = Counter()
    faces = last = 0
    with measuring() as recorder, video.play(seconds=seconds) as source:
        cpu = [time.process_time()]
        for frame, found in pipeline.run(source):
            now = time.perf_counter_ns()
            recorder.rows.append((round(frame.timestamp * 1e9), now))
            cpu.append(time.process_time())
            examined[frame.examined] += 1
            faces, last = faces + len(found), frame.index + 1
            for face in found:
                if face.track_id is not None:
                    tracks.setdefault(face.track_id, KioskTrack()).see(
                        face, frame.timestamp, now * 1e-9, liveness=liveness
                    )
            progress(measured_share((frame.index + 1) / due_frames))
            if recorder.interrupted:
                break
    recording = recorder.recording(1)
    shown = last if recording.interrupted else due_frames
    waits = [each.identity_ms for each in tracks.values() if each.identity_ms is not None]
    decided = [each.decision_ms for each in tracks.values() if each.decision_ms is not None]
    kiosk = KioskResult(
        frame_rate=video.rate,
        frames=shown,
        dropped=max(0, shown - len(recording)),
        detected=examined["detected"],
        tracked=examined["tracked"],
        skipped=examined["skipped"],
        faces=faces,
        identities=len(waits),
        time_to_identity_ms=_summary(waits),
        identity_ms=tuple(waits),
        liveness=liveness,
        decisions=len(decided),
        spoofs=sum(each.spoof for each in tracks.values()),
        time_to_decision_ms=_summary(decided),
        decision_ms=tuple(decided),
        embeddings=sum(each.embeddings for each in tracks.values()),
        cpu_parts_ms=_parts(cpu),
        video_digest=sha256_of(video.path),
    )
    return kiosk, recording


def time_stages(video: VideoFile, pipeline: Pipeline, liveness: LivenessChecker | None) -> dict[str, Any]:
    """Measure the CPU time of each stage of a pipeline alone, and memory, as fields of `KioskResult`.

    Frames are taken from all over the video; each stage computes them one by one, so that its CPU time is that of
    nothing else.
    """
    resident = psutil.Process().memory_info().rss
    spent: dict[Stage, list[float]] = {name: [] for name in get_args(Stage)}

    def timed(stage: Stage, work: Callable[[], _T], clock: Callable[[], float] = time.process_time) -> _T:
        began = clock()
        done = work()
        spent[stage].append(1e3 * (clock() - began))
        return done

    motion, flow, size = MotionGate(), FaceFlow(), (0, 0)
    capture = cv2.VideoCapture(str(video.path))
    try:
        for _ in range(min(video.frames, _DECODED)):
            timed("decode", capture.grab)
        for number in range(_STAGED):  # of each part of the video two frames, for a face to be followed
            capture.set(cv2.CAP_PROP_POS_FRAMES, number * max(2, video.frames // _STAGED) % video.frames)
            # The decoder's threads go on with the next frames meanwhile.
            read = [timed("convert", capture.retrieve, time.thread_time) for _ in range(2) if capture.grab()]
            if len(read) < 2 or not all(ok for ok, _ in read):
                continue
            image, after = (np.asarray(each) for _, each in read)
            timed("motion", functools.partial(motion.moved, image))
            size = (image.shape[0], image.shape[1])
            faces = [each for each in timed("detect", functools.partial(pipeline.find, image)) if not each.reasons]
            for face in faces[:_AT_ONCE]:
                timed("embed", functools.partial(pipeline.embed, image, face))
                if liveness is not None:
                    timed("liveness", functools.partial(liveness.check, image, Face.stack([face])))
            if faces:
                flow.see(image)
                timed("follow", functools.partial(flow.follow, after, Face.stack(faces)))
    finally:
        capture.release()
    return {
        "stage_ms": {name: float(np.mean(times)) for name, times in spent.items() if times},
        "frame_size": size,
        "resident_bytes": resident,
        "camera_bytes": _camera_bytes(video),
    }


def _camera_bytes(video: VideoFile) -> int:
    """Measure the memory that decoding one more video of this kind takes, with the frames that wait."""
    process, captures, frames = psutil.Process(), [], []
    before = process.memory_info().rss
    try:
        for _ in range(_CAMERAS):
            captures.append(cv2.VideoCapture(str(video.path)))
            frames += [captures[-1].read() for _ in range(_HELD)]
            for _ in range(_WARM_UP):  # by then the decoder has all the pictures that it refers to
                captures[-1].grab()
        return max(0, process.memory_info().rss - before) // _CAMERAS
    finally:
        for each in captures:
            each.release()


@dataclass(slots=True)
class KioskTrack:
    """What is known of one face, and milliseconds from when it was first usable."""

    usable: float | None = None
    last: np.ndarray | None = None
    embeddings: int = 0
    looks: int = 0
    judged: deque[Liveness] = field(default_factory=lambda: deque(maxlen=2 * LOOKS))
    identity_ms: float | None = None
    decision_ms: float | None = None
    spoof: bool = False

    def see(self, face: Face, due: float, now: float, *, liveness: bool) -> None:
        """Take a frame's face; a look counts only if it is live, as in `edgeface.kiosk.visits`."""
        if self.usable is None and not face.reasons:
            self.usable = due
        if face.embedding is None or self.usable is None:
            return
        vector = face.embedding.vector
        if self.last is not None and np.array_equal(vector, self.last):
            return
        self.embeddings += 1
        self.last, since = vector, 1e3 * (now - self.usable)
        if self.identity_ms is None:
            self.identity_ms = since
        self.looks += bool(face.liveness) or not liveness
        if face.liveness is not None:
            self.judged.append(face.liveness)
        if self.decision_ms is None:
            verdict = decide_track(self.judged, least=LOOKS).verdict if self.judged else "live"
            self.spoof = verdict == "spoof"
            if self.spoof or (verdict == "live" and self.looks >= LOOKS):
                self.decision_ms = since


def _summary(times: list[float]) -> dict[LatencyKey, float]:
    return summarize(np.array(times))[0] if times else {}


def _parts(cpu: list[float]) -> tuple[float, ...]:
    """Return the CPU time a frame, milliseconds, of each part of the run; none if there are too few frames."""
    times = 1e3 * np.diff(cpu)
    return tuple(float(each.mean()) for each in np.array_split(times, _PARTS)) if len(times) >= 2 * _PARTS else ()
