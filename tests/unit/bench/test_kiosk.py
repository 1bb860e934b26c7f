"""A video at its own frame rate: frames come when they are due, and those that come too fast are dropped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_ir import write_tiny_ir

from edgeface.bench.run.kiosk import VideoFile, run_kiosk
from edgeface.errors import InputError
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.tracking import Tracker
from edgeface.runtime import Embedder
from edgeface.vision.detector import Faces

pytestmark = pytest.mark.timeout(120)
RATE, FRAMES = 20.0, 8


class OneFace:
    """Finds a face in the middle of every frame, after some time."""

    name = "one"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        time.sleep(self._seconds)
        box = np.array([[40, 30, 100, 90]], np.float32)
        unit = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]], np.float32)
        faces = Faces(box, (unit * 60 + [40, 30])[None].astype(np.float32), np.array([0.9], np.float32))
        return [faces for _ in images]


@pytest.fixture
def video(tmp_path: Path) -> VideoFile:
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, (160, 120))
    random = np.random.default_rng(0)
    for _ in range(FRAMES):
        writer.write(random.integers(0, 256, (120, 160, 3)).astype(np.uint8))
    writer.release()
    return VideoFile.open(path)


def test_a_video_tells_its_rate_and_length(video: VideoFile, tmp_path: Path) -> None:
    assert video.rate == RATE
    assert video.frames == FRAMES
    (tmp_path / "no.avi").write_bytes(b"no video")
    for path in (tmp_path / "no.avi", tmp_path / "absent.avi"):
        with pytest.raises(InputError, match="not a video with a frame rate"):
            VideoFile.open(path)


def test_frames_come_no_earlier_than_they_are_due_and_the_video_repeats(video: VideoFile) -> None:
    count = 2 * FRAMES + 3
    with video.play(seconds=count / RATE) as source:
        seen = [(frame.index, frame.timestamp, time.perf_counter()) for frame in source]
    indices = [index for index, _, _ in seen]
    assert indices == sorted(indices)
    assert indices[-1] == count - 1
    for index, due, came in seen:
        assert due - seen[0][1] == pytest.approx((index - seen[0][0]) / RATE)
        assert came >= due


@pytest.mark.slow
def test_a_slow_pipeline_drops_frames_and_identifies_all_the_same(video: VideoFile, tmp_path: Path) -> None:
    told: list[float] = []
    with Embedder.load(write_tiny_ir(tmp_path)) as embedder:
        slow = Pipeline(OneFace(2.5 / RATE), embedder, tracker=Tracker(), prefetch=1)  # type: ignore[arg-type]
        kiosk, recording = run_kiosk(video, slow, seconds=2.0, progress=lambda each: told.append(each.done))
    assert kiosk.frames == 40
    assert kiosk.dropped == 40 - len(recording)
    assert kiosk.dropped >= 15  # it can take two of five
    assert kiosk.identities == 1
    assert kiosk.faces >= 1
    assert kiosk.time_to_identity_ms["p50"] >= 2.5 / RATE * 1e3
    assert recording.latencies_ms.min() >= 2.5 / RATE * 1e3  # a frame is late from the moment it was due
    assert told == sorted(told)
