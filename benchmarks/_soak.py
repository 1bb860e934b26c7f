"""Ask a service for everything it has, in every way that clients have of asking: what `serve.py --only soak` runs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from _run import side_by_side

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tiny_ir import tiny_crop, write_tiny_ir

API = "/api/edgeface/v1"
PEOPLE = f"{API}/galleries/default/people"
CLIENTS = 8
FACENET_SHARE = 0.036  # of what is begun: a person takes six requests
SWAPS = 20
"""How often the tiny model is loaded anew, and the configuration taken anew, in one run."""


def configure(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a configuration with a tiny model that takes crops, and with FaceNet and its gallery as `facenet`."""
    (folder / "tiny").mkdir()
    tiny = {"model": str(write_tiny_ir(folder / "tiny")), "detector": None}
    return given | {
        "models": {"default": tiny, "facenet": given["models"]["default"]},
        "galleries": {
            "default": {"threshold": 0.999, "gate": False, "keep_images": True},
            "facenet": given["galleries"]["default"] | {"model": "facenet"},
        },
    }


class Soak:
    """Clients of all kinds, each of which has its own connection and its own dice.

    Attributes
    ----------
    answers
        How often each kind of request was answered with each status, e.g. ``answers["identify", 200]``. Status 0: it
        left without waiting for an answer.
    faults
        What no client should be given: 5xx, but for 503 with Retry-After.
    """

    def __init__(self, port: int, key: str, pid: int, photos: list[bytes]) -> None:
        self._port, self._key, self._pid, self._photos = port, key, pid, photos
        colours = np.random.default_rng(0).integers(20, 250, (500, 3))
        self._crops = [cv2.imencode(".png", tiny_crop(each))[1].tobytes() for each in colours]
        self._lock, self._names = threading.Lock(), 0
        self.answers, self.faults = Counter[tuple[str, int]](), Counter[str]()

    def run(self, requests: int, seed: int) -> None:
        """Ask so many times, or a few more: what enrols somebody also forgets them."""
        until = sum(self.answers.values()) + requests
        failed = threading.Event()

        def work(number: int) -> None:
            try:
                with contextlib.closing(_Client(self, random.Random(seed * CLIENTS + number))) as client:
                    while sum(self.answers.values()) < until and not failed.is_set():
                        client.ask_something()
            except BaseException:
                failed.set()  # the others stop too
                raise

        side_by_side(work, CLIENTS)

    def change(self) -> None:
        """Load a model anew, and let the service take its configuration anew, while it is asked."""
        with contextlib.closing(_Client(self, random.Random(0))) as client:
            client.send("swap", "POST", "/v2/repository/models/default/load")
        os.kill(self._pid, signal.SIGHUP)

    def count(self, kind: str, status: int, problem: str = "") -> None:
        """Count an answer."""
        with self._lock:
            self.answers[kind, status] += 1
            if problem:
                self.faults[f"{kind} {status} {problem:.200}"] += 1

    def new_name(self) -> str:
        """Return a name that nobody has."""
        with self._lock:
            self._names += 1
            return f"Zoë {self._names}"


class _Client:
    """One client at a time: it keeps its connection for some requests, and leaves it for others."""

    def __init__(self, soak: Soak, dice: random.Random) -> None:
        self._soak, self._dice = soak, dice
        self._connection = http.client.HTTPConnection("127.0.0.1", soak._port, timeout=60)
        kinds: list[tuple[float, Callable[[], None]]] = [
            (FACENET_SHARE, self._facenet),
            (0.25, self._identify),
            (0.15, self._others),
            (0.02, self._batch),
            (0.02, self._person),
            (0.12, self._infer),
            (0.10, self._compreface),
            (0.04, self._deepstack),
            (0.12, self._read),
            (0.04, self._wrong_key),
            (0.04, self._garbage),
            (0.02, self._bomb),
            (0.03, self._leave),
            (0.01, self._trickle),
            (0.01, self._hold),
        ]
        self._shares, self._kinds = zip(*kinds, strict=True)

    def close(self) -> None:
        """Leave."""
        self._connection.close()

    def ask_something(self) -> None:
        """Ask for one thing, over the connection that is open or, as often, a new one."""
        if self._dice.random() < 0.5:
            self._connection.close()
        self._dice.choices(self._kinds, self._shares)[0]()

    def send(
        self, kind: str, method: str, path: str, body: bytes | dict[str, Any] | None = None, **headers: str
    ) -> Any:
        """Ask, count the answer, and return what its JSON holds; None if it is another status than 2xx."""
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"content-type": "application/json"} | headers
        given = {"x-api-key": self._soak._key, "content-type": "image/png"} | headers
        for again in (True, False):
            try:
                self._connection.request(method, path, body, given)
                answer = self._connection.getresponse()
                content = answer.read()
                break
            except (ConnectionError, http.client.HTTPException):  # a connection that was idle for too long, or full
                self._connection.close()
                if not again:
                    raise
        if (answer.getheader("connection") or "") == "close":
            self._connection.close()
        refused = answer.status == 503 and (answer.getheader("retry-after") or path == "/health/ready")
        problem = content.decode(errors="replace") if answer.status >= 500 and not refused else ""
        self._soak.count(kind, answer.status, problem)
        understood = answer.status < 300 and answer.getheader("content-type") == "application/json"
        return json.loads(content) if understood else None

    def _crop(self) -> bytes:
        return self._dice.choice(self._soak._crops)

    def _facenet(self) -> None:
        self.send("facenet", "POST", f"{API}/identify?gallery=facenet", self._dice.choice(self._soak._photos))

    def _identify(self) -> None:
        form = self._dice.choice([_as_it_is, _as_form, _as_json])
        content, kind = form(self._crop(), "photo")
        self.send("identify", "POST", f"{API}/identify", content, **{"content-type": kind})

    def _others(self) -> None:
        path = self._dice.choice(["analyze", "embed", "verify"])
        if path == "verify":
            body = {"photo_a": _text(self._crop()), "photo_b": _text(self._crop())}
            self.send(path, "POST", f"{API}/verify?threshold=0.9", body)
        else:
            self.send(path, "POST", f"{API}/{path}", self._crop())

    def _batch(self) -> None:
        self.send("batch", "POST", f"{API}/identify/batch", {"photo": [_text(self._crop()) for _ in range(4)]})

    def _person(self) -> None:
        """Enrol somebody, ask for them, change them, and forget them."""
        name = self._soak.new_name()
        made = self.send("enrol", "POST", f"{PEOPLE}?force=true", {"name": name, "photo": [_text(self._crop())]})
        if made is None:
            return
        place = f"{PEOPLE}/{made['id']}"
        self.send("template", "POST", f"{place}/templates?force=true", self._crop())
        self.send("person", "GET", place)
        self.send("change", "PATCH", place, {"metadata": {"desk": 7}})
        self.send("consent", "PUT", f"{place}/consent", {"text_version": "1"})
        while self.send("forget", "DELETE", place) is None:  # refused while others write
            time.sleep(0.05)

    def _infer(self) -> None:
        pixels = np.full((1, 3, 32, 32), self._dice.randrange(1, 256), np.float32)  # of 0 the tiny model has none
        tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": list(pixels.shape)}
        path = "/v2/models/default/infer"
        if self._dice.random() < 0.5:
            self.send("infer", "POST", path, {"inputs": [tensor | {"data": pixels.ravel().tolist()}]})
            return
        tensor["parameters"] = {"binary_data_size": pixels.nbytes}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
        self.send("infer", "POST", path, head + pixels.tobytes(), **headers)

    def _compreface(self) -> None:
        content, kind = _as_form(self._crop(), "file")
        headers, api = {"content-type": kind}, "/api/v1/recognition"
        if self._dice.random() < 0.9:
            self.send("compreface", "POST", f"{api}/recognize?detect_faces=false", content, **headers)
            return
        subject = urllib.parse.quote(self._soak.new_name())
        self.send("compreface add", "POST", f"{api}/faces?subject={subject}", content, **headers)
        self.send("compreface list", "GET", f"{api}/faces?size=5")
        self.send("compreface delete", "DELETE", f"{api}/subjects/{subject}")

    def _deepstack(self) -> None:
        content, kind = _as_form(self._crop(), "image", api_key=self._soak._key)
        self.send("deepstack", "POST", "/v1/vision/face/recognize", content, **{"content-type": kind})

    def _read(self) -> None:
        paths = ["/health/live", "/health/ready", "/metrics", "/nowhere", "/v2", "/v2/models/default", PEOPLE]
        paths += [f"{API}/openapi.json", f"{API}/models", f"{API}/galleries/default", "/api/v1/recognition/subjects"]
        self.send("read", "GET", self._dice.choice(paths))

    def _wrong_key(self) -> None:
        key = self._dice.choice(["", "x", "00000000-0000-4000-8000-000000000000", str(self._dice.random())])
        self.send("wrong key", "POST", f"{API}/identify", self._crop(), **{"x-api-key": key})

    def _garbage(self) -> None:
        photo = bytearray(self._crop())
        for _ in range(self._dice.randrange(1, 50)):
            photo[self._dice.randrange(len(photo))] = self._dice.randrange(256)
        cut = bytes(photo[: self._dice.randrange(1, len(photo))])
        kind = self._dice.choice(["image/png", "application/json", "multipart/form-data; boundary=a", "text/plain"])
        path = self._dice.choice([f"{API}/identify", PEOPLE, "/v2/models/default/infer", "/api/v1/detection/detect"])
        self.send("garbage", "POST", path, cut, **{"content-type": kind})

    def _bomb(self) -> None:
        """Send what is small and would be large: an image of a gigabyte, JSON of many values, many headers."""
        kind = self._dice.choice(["pixels", "values", "headers"])
        if kind == "pixels":
            self.send("bomb", "POST", f"{API}/identify", _HUGE_PNG)
        elif kind == "values":
            json_type = {"content-type": "application/json"}
            self.send("bomb", "POST", f"{API}/identify", b"[" * 200_000, **json_type)
        else:
            with self._socket() as connection:
                answer = b""
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x-a: b\r\n" * 5000)
                    answer = connection.recv(100)
            self._soak.count("bomb", int(answer[9:12] or 0))

    def _leave(self) -> None:
        photo, path = self._crop(), f"{API}/identify"
        if self._dice.random() < 0.1:
            photo, path = self._soak._photos[0], f"{API}/identify?gallery=facenet"
        with self._socket() as connection:
            connection.sendall(self._head(path, len(photo)) + photo[: self._dice.choice([0, 10, None])])
        self._soak.count("leave", 0)

    def _trickle(self) -> None:
        with self._socket() as connection:
            for byte in self._head(f"{API}/identify", 100)[: self._dice.randrange(1, 60)]:
                connection.send(bytes([byte]))
                time.sleep(0.001)
        self._soak.count("trickle", 0)

    def _hold(self) -> None:
        with self._socket():
            time.sleep(0.5 * self._dice.random())
        self._soak.count("hold", 0)

    def _socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._soak._port), timeout=60)

    def _head(self, path: str, length: int) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\nx-api-key: {self._soak._key}\r\n"
        return f"{head}content-length: {length}\r\ncontent-type: image/png\r\n\r\n".encode()


def _as_it_is(photo: bytes, name: str) -> tuple[bytes, str]:
    return photo, "image/png"


def _as_json(photo: bytes, name: str) -> tuple[bytes, str]:
    return json.dumps({name: _text(photo)}).encode(), "application/json"


def _as_form(photo: bytes, name: str, **fields: str) -> tuple[bytes, str]:
    parts = [f'name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()]
    parts.append(f'name="{name}"; filename="a.png"\r\n\r\n'.encode() + photo)
    body = b"".join(b"--limit\r\ncontent-disposition: form-data; " + part + b"\r\n" for part in parts)
    return body + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def _text(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_HUGE_PNG = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    + _chunk(b"IEND", b"")
)
