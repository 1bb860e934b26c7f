"""A door with the real models: who is known, which photos are refused, and how soon."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edgeface
from edgeface.analyzer import FaceAnalyzer
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.kiosk.events import EventLog
from edgeface.kiosk.outcome import VisitEvent
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.watch import DoorWatch

pytestmark = pytest.mark.real
RATE = 15


@pytest.fixture(scope="module")
def analyzer(real_ir: Path, liveness_irs: Path) -> Iterator[FaceAnalyzer]:
    with edgeface.load(real_ir, liveness=liveness_irs, min_size=64) as loaded:
        yield loaded


def film(photos: list[Any], *, frames: int) -> Iterator[Any]:
    """Show each photo for some frames, moved by a few pixels and with a camera's noise."""
    height, width = photos[0].shape[:2]
    rng = np.random.default_rng(1)
    for number in range(frames * len(photos)):
        shift = np.array([[1, 0, 2 * np.sin(number / 7)], [0, 1, 2 * np.cos(number / 5)]], np.float32)
        frame = cv2.warpAffine(photos[number // frames], shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
        yield np.clip(frame + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)


def write_clip(path: Path, photos: list[Any], *, frames: int) -> str:
    height, width = photos[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (width, height))
    for frame in film(photos, frames=frames):
        writer.write(frame)
    writer.release()
    return str(path)


def watch(folder: Path, analyzer: FaceAnalyzer, clip: str, enrolled: list[Any], **decision: Any) -> list[VisitEvent]:
    settings = WatchSettings.model_validate({"cameras": {"door": {"source": clip}}, "decision": decision})
    with create_gallery(folder / "people.gallery", contract=analyzer.contract, key=None) as store:
        for number, photo in enumerate(enrolled):
            store.add_person(f"Person {number}", templates=[NewTemplate(embedding=analyzer.embed(photo))])
        with DoorWatch(settings, analyzer, LiveIndex(store)) as watching:
            return list(watching)


@pytest.mark.parametrize(
    ("name", "kind"), [("F1", "spoof"), pytest.param("F2", "spoof", marks=pytest.mark.nightly), ("T1", "known")]
)
def test_a_photo_of_an_enrolled_person_is_refused_and_the_person_is_known(
    data: Path, tmp_path: Path, analyzer: FaceAnalyzer, name: str, kind: str
) -> None:
    photo = cv2.imread(str(data / "liveness" / f"image_{name}.jpg"))
    clip = write_clip(tmp_path / "clip.avi", [photo], frames=2 * RATE)
    events = watch(tmp_path, analyzer, clip, [photo])
    assert [event.kind.value for event in events] == [kind]
    assert (events[0].name == "Person 0") == (kind == "known")
    if kind != "known":  # the same photo opens a door that does not ask for liveness: what refused it was liveness
        (tmp_path / "open").mkdir()
        (event,) = watch(tmp_path / "open", analyzer, clip, [photo], liveness=False)
        assert event.name == "Person 0"


def test_a_person_on_other_photos_is_known_within_a_second_of_the_first_usable_face(
    data: Path, tmp_path: Path, analyzer: FaceAnalyzer
) -> None:
    person = data / "lfw" / "images" / "George_W_Bush"
    photos = [cv2.imread(str(path)) for path in sorted(person.glob("*.jpg"))[:2]]
    clip = write_clip(tmp_path / "clip.avi", photos[1:], frames=RATE)  # one second, and no more
    events = watch(tmp_path, analyzer, clip, [photos[0]], liveness=False)
    assert [event.name for event in events] == ["Person 0"]


def test_one_face_of_a_video_is_known_and_the_others_are_not(
    data: Path, tmp_path: Path, analyzer: FaceAnalyzer
) -> None:
    video = data / "video" / "faces.mp4"
    capture = cv2.VideoCapture(str(video))
    frames = [capture.read()[1] for _ in range(41)]
    face = max(analyzer.analyze(frames[-1]), key=lambda each: float(each.box[0]))
    x0, y0, x1, y1 = (int(each) for each in face.box)
    around = frames[-1][max(0, y0 - 80) : y1 + 80, max(0, x0 - 80) : x1 + 80]
    events = watch(tmp_path, analyzer, str(video), [around], liveness=False)
    assert [event.name for event in events if event] == ["Person 0"]
    assert len(events) >= 2  # more people are in it
    (tmp_path / "empty").mkdir()
    assert not any(watch(tmp_path / "empty", analyzer, str(video), [], liveness=False))


def test_the_service_knows_the_person_and_refuses_the_photo(
    data: Path, tmp_path: Path, real_ir: Path, liveness_irs: Path
) -> None:
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    from edgeface.kiosk.doorkeeper import Doorkeeper, KioskServiceSettings
    from edgeface.serve.enrol import enrol_photos
    from edgeface.serve.service import Service

    photos = {name: cv2.imread(str(data / "liveness" / f"image_{name}.jpg")) for name in ("T1", "F1")}
    photos = {name.lower(): photo for name, photo in photos.items()}
    cameras = {
        name: {"source": write_clip(tmp_path / f"{name}.avi", [photo], frames=2 * RATE)}
        for name, photo in photos.items()
    }
    given = {
        "state": tmp_path / "state",
        "models": {"default": {"model": str(real_ir)}},
        "galleries": {"default": {"unencrypted": True}},
        "kiosk": {"cameras": cameras, "decision": {"liveness_models": liveness_irs}},
    }

    class Caller:
        key_id, request_id = "test", "test"

    with Service(KioskServiceSettings.model_validate(given)) as service:
        for name, photo in photos.items():
            done = enrol_photos(
                service, service.gallery(None), Caller(), name, [cv2.imencode(".png", photo)[1].tobytes()], force=True
            )
            assert done.person.template_count == 1
        with Doorkeeper(service) as keeper:
            until = time.monotonic() + 120
            while "recordings have ended" not in keeper.closed:
                assert time.monotonic() < until, keeper.closed
                time.sleep(0.1)
            events = [event for _, event in keeper.events(after=0, limit=9)]
    assert sorted((each["camera"], each["kind"], each["name"]) for each in events) == [
        ("f1", "spoof", None),
        ("t1", "known", "t1"),
    ]


@contextlib.contextmanager
def streaming(photo: Any) -> Iterator[str]:
    """Serve a photo that moves as a camera does that speaks Motion JPEG; give the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            rng = np.random.default_rng(1)
            with contextlib.suppress(OSError):  # the viewer left
                for number in range(100_000):
                    moved = np.roll(photo, number % 5, axis=1)
                    noisy = np.clip(moved + rng.normal(0, 2, photo.shape), 0, 255).astype(np.uint8)
                    jpeg = cv2.imencode(".jpg", noisy)[1].tobytes()
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
                    self.wfile.write(jpeg + b"\r\n")
                    time.sleep(1 / RATE)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/door.mjpg"
        server.shutdown()


def test_the_command_says_who_is_at_a_network_camera_records_it_and_ends_when_it_is_asked_to(
    data: Path, tmp_path: Path, analyzer: FaceAnalyzer, real_ir: Path, liveness_irs: Path
) -> None:
    photo = cv2.imread(str(data / "liveness" / "image_T1.jpg"))
    with create_gallery(tmp_path / "people.gallery", contract=analyzer.contract, key=None) as store:
        store.add_person("Ada Lovelace", templates=[NewTemplate(embedding=analyzer.embed(photo))])
    words = ["--gallery", "people.gallery", "--model", str(real_ir), "--log", "events.sqlite", "--json"]
    environment = os.environ | {
        "EDGEFACE_WATCH_DECISION__LIVENESS_MODELS": str(liveness_irs),
        "PYTHONPATH": os.pathsep.join([str(Path(edgeface.__file__).parents[1]), *sys.path]),
    }
    with (
        streaming(photo) as address,
        subprocess.Popen(
            [sys.executable, "-m", "edgeface", "watch", address, *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as command,
    ):
        try:
            assert command.stdout is not None
            told = json.loads(command.stdout.readline())
            command.send_signal(signal.SIGTERM)
            assert command.wait(30) == 0
        finally:
            command.kill()
    assert (told["kind"], told["name"], told["camera"]) == ("known", "Ada Lovelace", "camera-1")
    with contextlib.closing(EventLog(tmp_path / "events.sqlite", create=False)) as log:
        assert next(each.id for each in log.events()) == told["id"]
