"""Play a video at its own frame rate through a pipeline: frames dropped, and time to identity."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edgeface.bench.run.load_generator import Recording, measured_share, measuring
from edgeface.bench.schema import KioskResult
from edgeface.errors import InputError
from edgeface.files import sha256_of
from edgeface.pipeline.pipeline import Pipeline
from edgeface.progress import ProgressCallback, ignore_progress
from edgeface.stats import summarize
from edgeface.vision.source import Frame, FrameSource


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFile:
    """A video file at its own frame rate; `frames` is the length by its header, which may be wrong by a few."""

    path: Path
    rate: float
    frames: int

    @classmethod
    def open(cls, path: Path) -> VideoFile:
        """Read the frame rate and the length of a video; InputError if it is not a video, or has no frame rate."""
        capture = cv2.VideoCapture(str(path))
        try:
            rate = capture.get(cv2.CAP_PROP_FPS) if capture.isOpened() else 0.0
            frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if rate > 0 else 0
        finally:
            capture.release()
        if not path.is_file() or not rate > 0 or frames < 1:
            raise InputError(f"{path} is not a video with a frame rate")
        return cls(path=path, rate=rate, frames=frames)

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
    video: VideoFile, pipeline: Pipeline, *, seconds: float, progress: ProgressCallback = ignore_progress
) -> tuple[KioskResult, Recording]:
    """Play a video to a pipeline at its own frame rate, repeatedly, for some seconds.

    The pipeline has a tracker and ``prefetch=1``: frames that it takes in advance would wait in it. A query of the
    recording is a frame that was processed; it starts when the frame was due.
    """
    due_frames = max(1, round(seconds * video.rate))
    first_seen: dict[int, float] = {}
    identified: dict[int, float] = {}
    faces = last = 0
    with measuring() as recorder, video.play(seconds=seconds) as source:
        for frame, found in pipeline.run(source):
            now = time.perf_counter_ns()
            recorder.rows.append((round(frame.timestamp * 1e9), now))
            faces, last = faces + len(found), frame.index + 1
            for face in found:
                if face.track_id is None:
                    continue
                first_seen.setdefault(face.track_id, frame.timestamp)
                if face.embedding is not None:
                    identified.setdefault(face.track_id, now * 1e-9)
            progress(measured_share((frame.index + 1) / due_frames))
            if recorder.interrupted:
                break
    recording = recorder.recording(1)
    waits = np.array([1e3 * (at - first_seen[track]) for track, at in identified.items()])
    shown = last if recording.interrupted else due_frames
    kiosk = KioskResult(
        frame_rate=video.rate,
        frames=shown,
        dropped=max(0, shown - len(recording)),
        faces=faces,
        identities=len(identified),
        time_to_identity_ms=summarize(waits)[0] if len(waits) else {},
        video_digest=sha256_of(video.path),
    )
    return kiosk, recording
