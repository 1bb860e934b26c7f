"""A video at its own frame rate: frames come when they are due, and those that come too fast are dropped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_ir import write_tiny_ir

from edgeface.bench.run.kiosk import KioskTrack, VideoFile, run_kiosk, time_stages
from edgeface.errors import InputError
from edgeface.model.embedding import Embedding
from edgeface.pipeline.observation import Face
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.tracking import Tracker
from edgeface.runtime import Embedder
from edgeface.vision.detector import Faces
from edgeface.vision.liveness import Liveness

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


def test_another_frame_rate_is_played_on_request(video: VideoFile) -> None:
    slow = VideoFile.open(video.path, rate=5.0)
    with slow.play(seconds=0.6) as source:
        times = [frame.timestamp for frame in source]
    np.testing.assert_allclose(np.diff(times), 0.2)


@pytest.mark.slow
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
    assert (kiosk.detected, kiosk.tracked, kiosk.skipped) == (len(recording), 0, 0)
    assert len(kiosk.identity_ms) == 1
    assert kiosk.decisions == 0  # two looks at any quality are the policy's, and a decision needs three


def test_each_stage_is_timed_alone(video: VideoFile, tmp_path: Path) -> None:
    busy = OneFace(0.0)
    found = busy.detect

    def detect(images: Sequence[np.ndarray]) -> list[Faces]:
        began = time.process_time()
        while time.process_time() < began + 0.01:
            pass
        return found(images)

    busy.detect = detect  # type: ignore[method-assign]
    with Embedder.load(write_tiny_ir(tmp_path)) as embedder:
        measured = time_stages(video, Pipeline(busy, embedder, tracker=Tracker(), prefetch=1), None)  # type: ignore[arg-type]
    stages = measured["stage_ms"]
    assert set(stages) == {"decode", "convert", "motion", "detect", "follow", "embed"}
    assert 10 <= stages["detect"] < 40
    assert max(ms for name, ms in stages.items() if name != "detect") < 10
    assert measured["frame_size"] == (120, 160)
    assert measured["resident_bytes"] > 1 << 24
    assert measured["camera_bytes"] >= 0


def look(number: int, *, live: str | None = "live", usable: bool = True) -> Face:
    """A look at one face."""
    judged = live and Liveness(
        verdict=live, score={"live": 0.9}.get(live, 0.1), threshold=0.5, scores={}, reasons=(), contract_ids=()
    )
    vector = np.array([np.cos(number / 9), np.sin(number / 9)], np.float32)
    nowhere = np.zeros(4, np.float32)
    return Face(
        box=nowhere, landmarks=np.zeros((5, 2), np.float32), score=0.9, quality=None, liveness=judged,
        embedding=Embedding(vector, "c" * 16) if usable else None, reasons=() if usable else ("too small",), track_id=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "decided", "spoof"),
    [
        (["live"] * 3, 2, False),
        (["live", "inconclusive", "live", "live"], 3, False),
        (["inconclusive"] * 9, None, False),
        (["spoof"] * 3, 2, True),
        ([None] * 3, 2, False),  # liveness is not asked for
    ],
)
def test_a_decision_takes_three_looks_that_are_live_or_a_spoof(
    verdicts: list[str | None], decided: int | None, spoof: bool
) -> None:
    track = KioskTrack()
    track.see(look(0, usable=False), 8.0, 8.01, liveness=True)  # nobody can decide about that
    for number, verdict in enumerate(verdicts):
        for _ in range(2):  # a look that is repeated is none
            due = 10.0 + number / 10
            track.see(look(number, live=verdict), due, due + 0.02, liveness=verdict is not None)
    assert track.identity_ms == pytest.approx(20)
    assert track.decision_ms == (None if decided is None else pytest.approx(20 + 100 * decided))
    assert track.spoof == spoof
    assert track.embeddings == len(verdicts)
