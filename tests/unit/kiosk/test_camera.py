"""A camera that vanishes, freezes, idles and comes back."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from kiosk_door import wait_until

from edgeface.kiosk.camera import Camera, CameraState, ZoneDetector
from edgeface.kiosk.settings import CameraSettings
from edgeface.pipeline.motion import MotionGate
from edgeface.vision.detector import Faces

pytestmark = pytest.mark.timeout(20)


class Lens:
    """A capture of 100 frames a second: noise, a still picture, or nothing."""

    def __init__(self, what: str = "noise") -> None:
        self.what, self.opened, self.read_frames, self.grabbed = what, 0, 0, 0
        self._rng = np.random.default_rng(1)

    def __call__(self, target: str | int) -> Lens:
        self.opened += 1
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return self.what != "nothing"

    def grab(self) -> bool:
        time.sleep(0.01)
        self.grabbed += 1
        return self.what != "nothing"

    def retrieve(self) -> tuple[bool, np.ndarray | None]:
        self.read_frames += 1
        if self.what == "nothing":
            return False, None
        image = np.full((48, 64, 3), 80, np.uint8)
        if self.what == "noise":
            image += self._rng.integers(0, 4, image.shape, np.uint8)
        if self.what == "moving":
            image[:] = self._rng.integers(0, 255)
        return True, image

    def get(self, prop: int, /) -> float:
        return 0.0

    def release(self) -> None: ...


class Running:
    """A camera whose frames are taken by a thread."""

    def __init__(self, lens: Lens, **settings: Any) -> None:
        self.camera = Camera("door", CameraSettings(source="0", **settings), open_capture=lens)
        self.frames: list[float] = []
        self.breaks: list[str] = []
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        for frame in self.camera.frames(self.breaks.append):
            self.frames.append(frame.timestamp)
            self.camera.finish(frame, busy=False)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.camera.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_a_camera_that_gives_nothing_is_lost_told_once_and_connected_when_it_is_back() -> None:
    lens = Lens()
    with Running(lens, lost_seconds=0.3) as door:
        wait_until(lambda: door.camera.state is CameraState.connected)
        lens.what = "nothing"
        wait_until(lambda: door.camera.state is CameraState.lost and len(door.breaks) == 1)
        lens.what = "noise"
        wait_until(lambda: door.camera.state is CameraState.connected)
    assert len(door.breaks) == 1
    assert "lost" in door.breaks[0]
    assert lens.opened >= 2
    assert door.frames == sorted(set(door.frames))  # time never goes back


def test_a_still_picture_is_frozen_the_camera_is_opened_again_and_no_frame_is_repeated() -> None:
    lens = Lens("still")
    with Running(lens, frozen_seconds=0.3, idle_fps=60) as door:
        wait_until(lambda: door.camera.state is CameraState.frozen and lens.opened >= 3)
        assert door.camera.health.freezes == 1  # until it moves again
        assert door.camera.health.reconnects >= 2
        assert len(door.frames) == 1
        assert len(door.breaks) == 1
        lens.what = "noise"
        wait_until(lambda: door.camera.state is CameraState.connected)


def test_a_recording_that_has_ended_is_lost_and_shows_no_picture(tmp_path: Path) -> None:
    film = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for shade in (0, 90, 180):
        writer.write(np.full((48, 64, 3), shade, np.uint8))
    writer.release()
    with contextlib.closing(Camera("door", CameraSettings(source=str(film), picture=True))) as camera:
        frames = camera.frames()
        assert next(frames) is not None
        assert (camera.state, camera.jpeg() is None) == (CameraState.connected, False)
        assert list(frames)
        assert (camera.state, camera.jpeg()) == (CameraState.lost, None)


def test_while_nothing_moves_frames_are_neither_converted_nor_looked_at() -> None:
    lens = Lens()
    with Running(lens, idle_fps=10, active_fps=50) as door:
        wait_until(lambda: bool(door.frames))
        door.camera._motion._open_until = 0.0
        wait_until(lambda: lens.grabbed > 5)
        looked, read, grabbed = len(door.frames), lens.read_frames, lens.grabbed
        wait_until(lambda: lens.grabbed > grabbed + 40)
        assert lens.read_frames - read < 20
        assert len(door.frames) <= looked + 1
        lens.what = "moving"
        wait_until(lambda: len(door.frames) > looked + 5)


def test_motion_counts_only_inside_the_zones() -> None:
    still = np.zeros((90, 160, 3), np.uint8)
    moving = still.copy()
    moving[20:60, 100:140] = 255
    for zone, moved in ((((0, 0), (0.5, 0), (0.5, 1), (0, 1)), False), (((0.5, 0), (1, 0), (1, 1), (0.5, 1)), True)):
        gate = MotionGate([zone])
        gate.moved(still)
        assert gate.moved(moving) == moved


def test_faces_that_are_too_small_or_outside_the_zones_do_not_count() -> None:
    boxes = np.array([[10, 10, 90, 90], [110, 10, 190, 90], [10, 110, 50, 150], [-60, 0, 20, 80]], np.float32)

    class Four:
        name, settings = "four", {}

        def detect(self, images: Any) -> list[Faces]:
            return [Faces(boxes, np.zeros((4, 5, 2), np.float32), np.ones(4, np.float32)) for _ in images]

    image = np.zeros((200, 200, 3), np.uint8)
    left = CameraSettings(zones=(((0, 0), (0.5, 0), (0.5, 1), (0, 1)),), min_face=64)
    (found,) = ZoneDetector(Four(), left).detect([image])  # type: ignore[arg-type]
    assert found.boxes.tolist() == boxes[[0, 3]].tolist()
    (found,) = ZoneDetector(Four(), CameraSettings(min_face=30)).detect([image])  # type: ignore[arg-type]
    assert len(found) == 4
