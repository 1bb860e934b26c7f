"""A real HTTP server that misbehaves on request, and entries whose files it serves."""

from __future__ import annotations

import hashlib
import http.server
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeface import zoo
from edgeface.zoo.schema import ModelEntry

CONTENT = random.Random(7).randbytes(300_000)
QUICK = zoo.DownloadPolicy(attempts=3, timeout=5, backoff=0.01, longest_wait=5)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        owner = self.server.owner
        path = self.path.split("?")[0]
        with owner.lock:
            owner.requests.append((self.path, dict(self.headers)))
            steps = owner.steps.get(path, [])
            step = steps.pop(0) if steps else serve()
        content = owner.files.get(path)
        if content is None and step.__name__ == "ordinary":
            step = status(404)
        step(self, content or b"")

    def log_message(self, *_: Any) -> None:
        pass

    def begin(self, code: int, length: int | None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def hang_up(self) -> None:
        self.close_connection = True


Step = Callable[[Handler, bytes], None]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    owner: FaultyServer

    def handle_error(self, *_: Any) -> None:
        pass  # clients that stop reading are part of these tests


class FaultyServer:
    """Serves `files`; for a path with steps, each request takes the next one."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.steps: dict[str, list[Step]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def add(self, path: str, content: bytes, *steps: Step) -> str:
        self.files[path], self.steps[path] = content, list(steps)
        return self.url + path

    def ranges(self, path: str) -> list[str | None]:
        return [headers.get("Range") for found, headers in self.requests if found.split("?")[0] == path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _begin(handler: Handler, content: bytes) -> bytes:
    """Answer as a good server does, and return what is left to send."""
    asked, version = handler.headers.get("Range"), handler.headers.get("If-Range")
    if asked and version in (None, _etag(content)):
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            handler.begin(416, 0, Content_Range=f"bytes */{len(content)}")
            return b""
        where = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.begin(206, len(content) - start, ETag=_etag(content), Content_Range=where)
        return content[start:]
    handler.begin(200, len(content), ETag=_etag(content))
    return content


def serve() -> Step:
    def ordinary(handler: Handler, content: bytes) -> None:
        handler.wfile.write(_begin(handler, content))

    return ordinary


def dies_after(count: int) -> Step:
    def step(handler: Handler, content: bytes) -> None:
        handler.wfile.write(_begin(handler, content)[:count])
        handler.hang_up()

    return step


def status(code: int, **headers: str) -> Step:
    return lambda handler, _: handler.begin(code, 0, **headers)


def page(text: str, code: int = 200) -> Step:
    def step(handler: Handler, _: bytes) -> None:
        handler.begin(code, len(text), Content_Type="text/html; charset=utf-8")
        handler.wfile.write(text.encode())

    return step


def ignores_range() -> Step:
    def step(handler: Handler, content: bytes) -> None:
        handler.begin(200, len(content), ETag=_etag(content))
        handler.wfile.write(content)

    return step


def of_unknown_length(count: int | None = None) -> Step:
    def step(handler: Handler, content: bytes) -> None:
        handler.begin(200, None)
        handler.wfile.write(content[:count])

    return step


def hangs(seconds: float) -> Step:
    def step(handler: Handler, content: bytes) -> None:
        handler.wfile.write(_begin(handler, content)[: len(content) // 2])
        handler.wfile.flush()
        time.sleep(seconds)
        handler.hang_up()

    return step


def make_file(name: str, content: bytes, *sources: Any, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "source": sources[0],
        "alternative_sources": list(sources[1:]),
        **changes,
    }


def make_entry(*files: dict[str, Any], **changes: Any) -> ModelEntry:
    return ModelEntry.model_validate(
        {
            "name": "tiny",
            "description": "A model for tests.",
            "task_type": "face_recognition",
            "framework": "onnx",
            "license": "https://example.org/license",
            "files": files,
            **changes,
        }
    )


def no_trace(folder: Path) -> bool:
    """Whether a failed download left neither a blob nor a model."""
    return not any(path.is_file() for name in ("blobs", "models") for path in (folder / name).rglob("*"))


def tiny(server: FaultyServer, *steps: Any, content: bytes = CONTENT, **changes: Any) -> ModelEntry:
    return make_entry(make_file("model.bin", content, server.add("/model.bin", content, *steps), **changes))
