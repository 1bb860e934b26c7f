"""How soon does a door decide, how long does a frame wait, what does an idle camera cost, and is an event ever lost?

    python benchmarks/watch.py MODEL LIVENESS VIDEO PHOTOS [--yunet ONNX] [--only door person idle]
    python benchmarks/watch.py --only soak [--frames 50000] [--kills 20]

MODEL is an IR, LIVENESS a folder of liveness IRs, VIDEO a file with faces, PHOTOS a folder of photos of one person.
YuNet detects if its file is given, else MTCNN. The door runs in this process, as it would over a camera. Prints JSON.

door   VIDEO played at 15 frames a second again and again: slowest_ms is longest time from the arrival of a frame to
       the end of its analysis, decided_s the time from the start to each of the first events.
person nobody for two seconds, then PHOTOS, a second each, of a person who is enrolled by the first of them, without
       liveness: appeared_s is when the first photo was shown, decided_s when the person was known.
idle   a still scene of 1920x1080 with a camera's noise at 15 frames a second, as H.264 of each bitrate where there is
       FFmpeg's program, else as MPEG-4: CPU time of this process in percent of one core after the first ten seconds,
       and what decoding alone takes of it.
soak   see `_watch_soak.py`: a day of a camera's frames with a tiny model, kills and failures of all that is around.

Wall times are of this machine under the load that is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _watch_soak import soak

import edgeface
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.watch import DoorWatch

RATE, SETTLE = 15.0, 10.0
BITRATES = ("500k", "1M", "2M", "4M")


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


def write_still(folder: Path) -> dict[str, Path]:
    """Write 20 seconds of a still scene with noise, in each encoding that this machine can write."""
    rng = np.random.default_rng(1)
    scene = cv2.resize(rng.integers(0, 255, (9, 16, 3), np.uint8), (1920, 1080), interpolation=cv2.INTER_CUBIC)
    frames = [np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8) for _ in range(7)]
    order = [frames[3 * number % 7] for number in range(int(20 * RATE))]
    if shutil.which("ffmpeg") is None:
        writer = cv2.VideoWriter(str(folder / "still.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (1920, 1080))
        for frame in order:
            writer.write(frame)
        writer.release()
        return {"mpeg4": folder / "still.mp4"}
    raw = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", "1920x1080", "-r", str(RATE), "-i", "-"]
    coded = ["-c:v", "libx264", "-preset", "veryfast", "-bf", "0", "-g", "30", "-pix_fmt", "yuv420p"]
    files = {f"h264 {rate}": folder / f"still-{rate}.mp4" for rate in BITRATES}
    for rate, path in zip(BITRATES, files.values(), strict=True):
        command = ["ffmpeg", "-loglevel", "error", *raw, *coded, "-b:v", rate, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
            assert encoder.stdin is not None
            for frame in order:
                encoder.stdin.write(frame.tobytes())
    return files


def write_person(photos: Path, path: Path) -> Any:
    """Write two seconds without anybody and then photos 2 to 6 of a folder, a second each; return the first photo."""
    first, *others = [cv2.imread(str(each)) for each in sorted(photos.glob("*.jpg"))[:6]]
    height, width = first.shape[:2]
    writer, rng = (
        cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (width, height)),
        np.random.default_rng(1),
    )
    for number, photo in enumerate([np.full_like(first, 90)] * 2 + others):
        for turn in range(int(RATE)):
            moved = np.roll(cv2.resize(photo, (width, height)), turn % 3 * bool(number > 1), axis=1)
            writer.write(np.clip(moved + rng.normal(0, 2, moved.shape), 0, 255).astype(np.uint8))
    writer.release()
    return first


def decode(path: Path) -> float:
    """Decode a file, and return the CPU time in percent of a core at its rate."""
    capture, began, count = cv2.VideoCapture(str(path)), time.process_time(), 0
    while capture.grab():
        count += 1
    return round(100 * (time.process_time() - began) / max(count, 1) * RATE, 1)


def watch(
    film: Path, app: Any, index: LiveIndex, seconds: float, settle: float = 0.0, **decision: Any
) -> dict[str, Any]:
    """Watch a film for some seconds, after others that do not count."""
    events: list[tuple[str, float]] = []
    with DoorWatch(
        WatchSettings.model_validate({"decision": decision}), app, index, open_capture=lambda _: Player(film)
    ) as door:
        started = time.monotonic()

        def take() -> None:
            for event in door:
                events.append((event.kind.value, round(time.monotonic() - started, 2)))

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
    """Run what is asked for, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "liveness", "video", "photos"):
        parser.add_argument(name, type=Path, nargs="?")
    parser.add_argument("--yunet", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument(
        "--only", nargs="+", choices=("door", "person", "idle", "soak"), default=["door", "person", "idle"]
    )
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    found: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    if "soak" in given.only:
        found["soak"] = soak(given.frames, given.kills)
    if {"door", "person", "idle"} & set(given.only):
        with tempfile.TemporaryDirectory() as folder:
            found |= measure(given, Path(folder))
    print(json.dumps(found, indent=2))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure doors with the real model."""
    found: dict[str, Any] = {}
    finder: Any = {"detector": "yunet", "detector_model": given.yunet} if given.yunet else {}
    with (
        edgeface.load(given.model, liveness=given.liveness, min_size=64, **finder) as app,
        create_gallery(folder / "people.gallery", contract=app.contract, key=None) as store,
    ):
        index = LiveIndex(store)
        if "door" in given.only:
            found["door"] = watch(given.video, app, index, given.seconds)
        if "idle" in given.only:
            found["idle"] = {
                name: watch(path, app, index, given.seconds, SETTLE) | {"decode_percent_of_a_core": decode(path)}
                for name, path in write_still(folder).items()
            }
        if "person" in given.only:
            first = write_person(given.photos, folder / "person.avi")
            store.add_person("Person", templates=[NewTemplate(embedding=app.embed(first))])
            found["person"] = {"appeared_s": 2.0} | watch(folder / "person.avi", app, index, 6.5, liveness=False)
    return found


if __name__ == "__main__":
    main()
