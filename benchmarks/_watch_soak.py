"""Run a kiosk for a day's frames while cameras, broker and endpoint fail and it is killed: `watch.py --only soak`.

The kiosk is a process of its own, `python _watch_soak.py CONFIG.json`: four cameras, the tiny model of the tests, a
gallery of three people, an event log, a webhook and an MQTT broker. Each camera plays a clip of squares for faces as
fast as it goes, is lost for a second each two minutes of the clip (at 15 frames a second), and frozen the next time.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny_ir import BLUE, GREEN, RED, TEAL, SquareDetector, draw, write_tiny_ir

import edgeface
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.opening import create_gallery, open_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.kiosk.events import EventLog
from edgeface.kiosk.publisher import EventPublisher
from edgeface.kiosk.settings import WatchSettings
from edgeface.kiosk.targets import EventSettings
from edgeface.kiosk.watch import DoorWatch

PEOPLE = {"Blue": BLUE, "Green": GREEN, "Teal": TEAL}
CAMERAS, RATE = 4, 60.0
SHOWN, EMPTY = 60, 30
"""Frames of each visit, and without anybody between two."""
FAULT = 120 * 15
"""Frames between two faults of a camera: two minutes of the clip."""
SECRET = "5e" * 32
MOSQUITTO = "/usr/sbin/mosquitto"


# The kiosk


class Clip:
    """A capture that plays visits of people and of a stranger, from a frame on, and fails from time to time."""

    def __init__(self, camera: int, frames: Sequence[Any], first: int) -> None:
        self._camera, self._frames, self._number = camera, frames, first + camera * 37
        self._due, self._fault_ends, self._fault = time.monotonic(), 0.0, 0

    def open(self) -> Clip:
        """Open it again, as after a loss."""
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return not self._is_faulty("lost")

    def _is_faulty(self, kind: str) -> bool:
        if time.monotonic() >= self._fault_ends and self._number // FAULT > self._fault:
            self._fault, self._fault_ends = self._number // FAULT, time.monotonic() + 1.5
        return time.monotonic() < self._fault_ends and kind == ("lost", "frozen")[self._fault % 2]

    def grab(self) -> bool:
        self._due = max(self._due + 1 / RATE, time.monotonic() - 0.1)
        time.sleep(max(0.0, self._due - time.monotonic()))
        if not self._is_faulty("frozen"):
            self._number += 1
        return not self._is_faulty("lost")

    def retrieve(self) -> tuple[bool, Any]:
        return True, self._frames[self._number % len(self._frames)]

    def get(self, prop: int) -> float:
        return 0.0

    def release(self) -> None: ...


def draw_clip() -> list[Any]:
    """Return the frames of one round: each is another picture."""
    rng, frames = np.random.default_rng(1), list[Any]()
    for colour in (BLUE, GREEN, RED, TEAL):
        for number in range(SHOWN + EMPTY):
            square = draw(colour if number < SHOWN else None, margin=1) * (1 - 0.004 * (number % 25))
            frames.append(np.maximum(square.astype(np.uint8), rng.integers(0, 40, (120, 120, 3), np.uint8)))
    return frames


def be_kiosk(config: dict[str, Any]) -> None:
    """Watch until SIGTERM; print each event once it is recorded and, each half second, how it goes."""
    folder, frames = Path(config["folder"]), draw_clip()
    cameras = {
        f"door-{n}": {"source": str(n), "min_face": 20, "idle_fps": 60, "active_fps": 60} for n in range(CAMERAS)
    }
    for camera in cameras.values():
        camera |= {"lost_seconds": 0.5, "frozen_seconds": 0.7}
    decision = {"threshold": 0.95, "gate": False, "liveness": False, "looks": 1, "patience": 0.8, "cooldown": 0.5}
    settings = WatchSettings.model_validate(
        {"cameras": cameras, "decision": decision, "log": folder / "events.sqlite"} | config["told"]
    )
    clips = [Clip(number, frames, config["first"]) for number in range(CAMERAS)]
    with (
        edgeface.load(folder / "tiny.xml", detector=SquareDetector(), cache_dir=folder) as app,
        open_gallery(folder / "people.gallery", key=None) as store,
        EventPublisher(folder / "events.sqlite", settings.events, cameras=cameras) as publisher,
        publisher.following(store),
        DoorWatch(
            settings, app, LiveIndex(store), record=publisher.publish, open_capture=lambda n: clips[int(n)].open()
        ) as watch,
    ):
        signal.signal(signal.SIGTERM, lambda *_: watch.stop())

        def report() -> None:
            process = psutil.Process()
            while True:
                health = watch.health.values()
                told = {
                    "frames": sum(each.analyzed for each in health),
                    "dropped": sum(each.dropped for each in health),
                    "reconnects": sum(each.reconnects for each in health),
                    "freezes": sum(each.freezes for each in health),
                    "slowest": max(each.slowest for each in health),
                    "waiting": sum(waiting for waiting, _ in publisher.log.count_deliveries().values()),
                    "rss": process.memory_info().rss,
                    "cpu": time.process_time(),
                }
                print("status", json.dumps(told), flush=True)
                time.sleep(0.5)

        threading.Thread(target=report, daemon=True).start()
        for event in watch:
            print("event", event.id, flush=True)


# Who is told


class Endpoint:
    """A webhook that is away from time to time, answers 503, or hangs up when it has the event."""

    def __init__(self) -> None:
        self.told, self._dice, self.port, self._server = list[str](), random.Random(16), 0, None
        self.start()

    def start(self) -> None:
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(length := int(self.headers["Content-Length"]))
                chance = endpoint._dice.random()
                if len(body) == length and chance > 0.05:
                    endpoint.told.append(json.loads(body)["id"])
                    if chance > 0.1:
                        self.send_response(204)
                        self.end_headers()
                        return
                elif chance < 0.025:
                    self.send_error(503)
                self.close_connection = True  # it has the event, and the kiosk is not told so

            def log_message(self, *_: object) -> None: ...

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = allow_reuse_address = True

            def handle_error(self, *_: object) -> None: ...

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class Broker:
    """A mosquitto on a free port, which keeps what it has acknowledged over a restart, and one who listens to it."""

    def __init__(self, folder: Path) -> None:
        from paho.mqtt import client as paho

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.told, self._config = list[str](), folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n"
            f"persistence_location {folder}/\nmax_queued_messages 0\n"
        )
        self.start()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="soak", clean_session=False)
        self._client.on_connect = lambda client, *_: client.subscribe("edgeface/+/+/event", 1)
        self._client.on_message = lambda _client, _data, message: self.told.append(json.loads(message.payload)["id"])
        subscribed = threading.Event()  # what is published before is kept for nobody
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", self.port)
        self._client.loop_start()
        if not subscribed.wait(30):
            raise RuntimeError("the broker cannot be reached")

    def start(self) -> None:
        self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self.stop()


# The run


class _Kiosk:
    """One life of the kiosk."""

    def __init__(self, config: dict[str, Any]) -> None:
        path = Path(config["folder"]) / "config.json"
        path.write_text(json.dumps(config))
        environment = os.environ | {"SOAK_SECRET": SECRET, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (path.with_name("kiosk.log")).open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(path)], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.told, self.status, self.memory = list[str](), dict[str, Any](), list[tuple[int, int]]()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, rest = line.rstrip("\n").partition(" ")
            if kind == "event" and len(rest) == 32:
                self.told.append(rest)
            elif kind == "status" and rest.endswith("}"):
                self.status = json.loads(rest)
                self.memory.append((self.status["frames"], self.status["rss"]))

    def wait(self, until: Callable[[dict[str, Any]], bool], seconds: float) -> bool:
        """Wait until its status is so, and return whether that came; it must live."""
        end = time.monotonic() + seconds
        while not (self.status and until(self.status)):
            if self.process.poll() is not None:
                raise RuntimeError(f"the kiosk ended by itself, with {self.process.returncode}; see kiosk.log")
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def end(self, number: int) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@contextlib.contextmanager
def failing(*targets: Any, every: float) -> Iterator[list[int]]:
    """Take one of the targets away for three seconds, again and again, while a block runs; give how often."""
    ending, count = threading.Event(), [0]

    def fail() -> None:
        while not ending.wait(every):
            target = targets[count[0] % len(targets)]
            target.stop()
            ending.wait(3.0)
            target.start()
            count[0] += 1

    thread = threading.Thread(target=fail)
    thread.start()
    try:
        yield count
    finally:
        ending.set()
        thread.join()


def soak(frames: int = 50_000, kills: int = 20, *, seed: int = 16, outage_every: float = 12.0) -> dict[str, Any]:
    """Run a kiosk for so many frames, kill it so often on the way, and compare who was told with its log."""
    dice, lives, began = random.Random(seed), list[_Kiosk](), time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as opened:
        folder = Path(name)
        with (
            edgeface.load(write_tiny_ir(folder), detector=SquareDetector()) as app,
            create_gallery(folder / "people.gallery", contract=app.contract, key=None) as store,
        ):
            for person, colour in PEOPLE.items():
                store.add_person(person, templates=[NewTemplate(embedding=app.embed(draw(colour)))])
        endpoint, broker = Endpoint(), Broker(folder)
        opened.callback(broker.close)
        opened.callback(endpoint.stop)
        hook = {"url": f"http://127.0.0.1:{endpoint.port}/", "secret": "env:SOAK_SECRET"}
        told = {"events": {"webhooks": {"soak": hook}, "mqtt": {"host": "127.0.0.1", "port": broker.port}}}

        def start() -> _Kiosk:
            first = sum(life.status.get("frames", 0) for life in lives) // CAMERAS
            lives.append(_Kiosk({"folder": name, "first": first, "told": told}))
            opened.callback(lives[-1].process.kill)
            return lives[-1]

        codes = list[int]()
        with failing(endpoint, broker, every=outage_every) as outages:
            for turn in range(kills):
                life, least = start(), int(frames * 0.4 / max(kills, 1))
                if turn % 5 or kills == 1:  # others are killed while they start
                    life.wait(lambda status, least=least: status["frames"] >= least, 300)
                time.sleep(dice.uniform(0, 2))
                codes.append(life.end(signal.SIGKILL))
            last, done = start(), sum(life.status.get("frames", 0) for life in lives)
            last.wait(lambda status: done + status["frames"] >= frames, 3600)
        codes.append(last.end(signal.SIGTERM))
        os.environ["SOAK_SECRET"] = SECRET
        with EventPublisher(folder / "events.sqlite", EventSettings.model_validate(told["events"])) as publisher:
            end = time.monotonic() + 120  # what is left is told at the next start
            while publisher.log.deliveries() and time.monotonic() < end:
                time.sleep(0.1)
        with contextlib.closing(EventLog(folder / "events.sqlite", create=False)) as log:
            logged, left = list(log.events()), len(log.deliveries())
        end = time.monotonic() + 15
        while len(set(broker.told)) < len(logged) - left and time.monotonic() < end:
            time.sleep(0.1)
        printed = [each for life in lives for each in life.told]
        log_text = (folder / "kiosk.log").read_text()
    sequence, person = (
        {each.id: each.sequence for each in logged},
        {each.id: each.person_id or each.camera for each in logged},
    )
    return {
        "frames": sum(life.status.get("frames", 0) for life in lives),
        "dropped": sum(life.status.get("dropped", 0) for life in lives),
        "seconds": round(time.monotonic() - began),
        "cpu_seconds": round(sum(life.status.get("cpu", 0) for life in lives)),
        "kills": codes.count(-signal.SIGKILL),
        "ended_by_sigterm": codes[-1] == 0,
        "outages_of_broker_and_endpoint": outages[0],
        "cameras_lost": sum(life.status.get("reconnects", 0) for life in lives),
        "cameras_frozen": sum(life.status.get("freezes", 0) for life in lives),
        "events": len(logged),
        "events_by_kind": dict(Counter(each.kind.value for each in logged)),
        "printed_and_not_in_the_log": len(set(printed) - set(sequence)),
        "left_undelivered": left,
        **{
            f"{name}_{what}": value
            for name, ids in (("webhook", endpoint.told), ("mqtt", broker.told))
            for what, value in _compare(ids, sequence, person).items()
        },
        "memory": _memory(lives[-1].memory),
        "tracebacks": [each[:2000] for each in log_text.split("Traceback")[1:]],
    }


def _compare(told: Sequence[str], sequence: dict[str, int], person: dict[str, object]) -> dict[str, int]:
    """Compare what one target was told with the log: what it lacks, what it has besides, and what is out of order."""
    first, last, wrong = list(dict.fromkeys(told)), dict[object, int](), 0
    for each in first:
        lane = person.get(each)
        wrong += sequence.get(each, 0) < last.get(lane, 0)
        last[lane] = max(last.get(lane, 0), sequence.get(each, 0))
    return {
        "told": len(told),
        "told_again": len(told) - len(first),
        "missing": len(set(sequence) - set(first)),
        "not_in_the_log": len(set(first) - set(sequence)),
        "out_of_order_of_a_person": wrong,
    }


def _memory(seen: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Say how the memory of the last, longest life went: at a tenth of its frames, at its end, and its slope."""
    settled = [(frames, rss) for frames, rss in seen if frames >= seen[-1][0] / 10]
    slope = np.polyfit(*np.array(settled, np.float64).T, 1)[0] if len(settled) > 2 else 0.0
    return {
        "frames": seen[-1][0],
        "first_mb": round(settled[0][1] / 2**20, 1),
        "last_mb": round(settled[-1][1] / 2**20, 1),
        "mb_per_10000_frames": round(slope * 10_000 / 2**20, 2),
    }


if __name__ == "__main__":
    be_kiosk(json.loads(Path(sys.argv[1]).read_text()))
