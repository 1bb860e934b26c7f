"""How soon does a door decide, how long does a frame wait, and what does an idle camera cost? Prints JSON.

    python benchmarks/watch.py MODEL LIVENESS VIDEO [--yunet ONNX] [--seconds 20]

MODEL is an IR, LIVENESS a folder of liveness IRs, VIDEO a file with faces. YuNet detects if its file is given, else
MTCNN. The door runs in this process, over an empty gallery, as it would over a camera; its first frame waits until the
detector is compiled for the size of the frames.

door   VIDEO played at 15 frames a second again and again: slowest_ms is longest time from the arrival of a frame to
       the end of its analysis, decided_s the time from the start to each of the first events.
idle   a still scene of 1920x1080 with a camera's noise, as MPEG-4 at 15 frames a second: CPU time of this process in
       percent of one core, decoding included, after the first ten seconds.

Wall times are of this machine under the load that is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import edgeface
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.watch import DoorWatch

RATE, SETTLE = 15.0, 10.0


class Player:
    """A capture that gives the frames of a film when they are due, for ever."""

    def __init__(self, film: Path) -> None:
        self._film, self._capture = str(film), cv2.VideoCapture(str(film))
        self._due = time.monotonic()

    def isOpened(self) -> bool:  # noqa: N802
        return bool(self._capture.isOpened())

    def grab(self) -> bool:
        self._due += 1 / RATE
        time.sleep(max(0.0, self._due - time.monotonic()))
        if not self._capture.grab():
            self._capture = cv2.VideoCapture(self._film)
            return bool(self._capture.grab())
        return True

    def retrieve(self) -> tuple[bool, Any]:
        return self._capture.retrieve()

    def get(self, prop: int) -> float:
        return 0.0

    def release(self) -> None:
        self._capture.release()


def write_still(path: Path) -> None:
    """Write 20 seconds of a still scene with noise."""
    rng = np.random.default_rng(1)
    scene = cv2.resize(rng.integers(0, 255, (9, 16, 3), np.uint8), (1920, 1080), interpolation=cv2.INTER_CUBIC)
    noise = [rng.integers(0, 5, scene.shape, np.uint8) for _ in range(5)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (1920, 1080))
    for number in range(int(20 * RATE)):
        writer.write(cv2.add(scene, noise[number % 5]))
    writer.release()


def watch(film: Path, app: Any, index: LiveIndex, seconds: float, settle: float = 0.0) -> dict[str, Any]:
    """Watch a film for some seconds, after others that do not count."""
    events: list[float] = []
    with DoorWatch(WatchSettings(), app, index, open_capture=lambda _: Player(film)) as door:
        started = time.monotonic()

        def take() -> None:
            for _ in door:
                events.append(round(time.monotonic() - started, 2))

        threading.Thread(target=take, daemon=True).start()
        time.sleep(settle)
        cpu, before = time.process_time(), time.monotonic()
        time.sleep(seconds)
        share = (time.process_time() - cpu) / (time.monotonic() - before)
        health = door.health["door"]
    return {
        "analyzed": health.analyzed,
        "dropped": health.dropped,
        "slowest_ms": round(health.slowest * 1e3),
        "decided_s": events[:5],
        "cpu_percent_of_a_core": round(100 * share, 1),
    }


def main() -> None:
    """Run both, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("liveness", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--yunet", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    finder: Any = {"detector": "yunet", "detector_model": given.yunet} if given.yunet else {}
    with (
        tempfile.TemporaryDirectory() as folder,
        edgeface.load(given.model, liveness=given.liveness, min_size=64, **finder) as app,
        create_gallery(Path(folder) / "empty.gallery", contract=app.contract, key=None) as store,
    ):
        write_still(Path(folder) / "still.mp4")
        index = LiveIndex(store)
        found = {
            "load_average": os.getloadavg()[0],
            "door": watch(given.video, app, index, given.seconds),
            "idle": watch(Path(folder) / "still.mp4", app, index, given.seconds, SETTLE),
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
