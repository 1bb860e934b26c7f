"""A service with a tiny model, whose faces are squares and whose embeddings are their mean colours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_ir import SquareDetector, draw, write_tiny_ir

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httptools", reason="the extra 'serve' is not installed")
pytest.importorskip("websockets", reason="the extra 'serve' is not installed")

from fastapi.testclient import TestClient

import edgeface
from edgeface.gallery.records import KeptImage, NewTemplate
from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.server import make_server, serve_grpc, unix_socket
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

OPEN = {"threshold": 0.95, "gate": False}
"""A gallery of squares, which pass no gate."""
MakeService = Callable[..., Service]


class Clock:
    """Time that passes only where a test says so: seconds, as `time.time` gives them."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def load_squares(model: Any, *, detector: Any, min_size: int, **options: Any) -> edgeface.FaceAnalyzer:
    """As `edgeface.load`, with squares for faces."""
    return edgeface.load(model, detector=detector and SquareDetector(), **options)


def jpeg(*colours: Any) -> bytes:
    """A photo of faces of these colours side by side, as a PNG: nothing is lost."""
    return cv2.imencode(".png", draw(*colours))[1].tobytes()


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[MakeService]:
    """Make a service; what is given replaces keys of the configuration."""
    made: list[Service] = []

    def make(**changes: Any) -> Service:
        given = {
            "state": tmp_path / "state",
            "models": {"default": {"model": str(write_tiny_ir(tmp_path))}},
            "galleries": {"default": OPEN},
            "limits": {"workers": 2},
            "keys": {"wrong_per_address": 1000},
        }
        made.append(Service(Settings.model_validate(given | changes), load=load_squares))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    """A client with the first key, an administrator's."""
    with client_of(service) as client:
        yield client


def client_of(service: Service, role: Role | None = None, **options: Any) -> TestClient:
    """A client with a key of this role; None: the first key."""
    text = service.first_key if role is None else service.keys.add(role.value, role, **options)[1]
    return TestClient(create_app(service), headers={"x-api-key": text or ""}, raise_server_exceptions=False)


def enrol(service: Service, name: str, colour: tuple[int, int, int], gallery: str = "default") -> int:
    """Enrol a person by a colour, with its image if the gallery keeps images; return the id."""
    served = service.gallery(gallery)
    box, points = np.float32([0, 0, 40, 40]), np.full((5, 2), 20, np.float32)
    image = KeptImage(png=jpeg(colour), box=box, landmarks=points) if served.store.info.keeps_images else None
    with service.models.use(served.options.model) as model:
        template = NewTemplate(embedding=model.analyzer.embed(draw(colour)), image=image)
    return served.store.add_person(name, templates=[template]).id


@contextlib.contextmanager
def serving(service: Service, server: Any = None) -> Iterator[int]:
    """Serve on 127.0.0.1 by the real server, or this one, in a thread; give the port."""
    with serving_both(service, server) as (port, _):
        yield port


@contextlib.contextmanager
def serving_both(service: Service, server: Any = None) -> Iterator[tuple[int, str | None]]:
    """Serve by the real servers, in a thread; give the port of HTTP, and the address of gRPC if it is configured."""
    listener = socket.create_server(("127.0.0.1", 0))
    server, addresses = server or make_server(create_app(service), service.settings), queue.SimpleQueue[str | None]()
    app = server.config.app

    async def run() -> None:
        with unix_socket(service.settings.listen.socket) as local:
            async with serve_grpc(app.state, service.settings) as address:
                addresses.put(address)
                await server.serve([listener, *local])

    thread = threading.Thread(target=asyncio.run, args=[run()], daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], addresses.get(timeout=10)
    finally:
        app.state.streams.end()
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def converse(port: int, *sent: bytes, pause: float = 0.0) -> bytes:
    """Send these bytes one after another over one connection, and return all that comes until it is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            for part in sent:
                connection.sendall(part)
                time.sleep(pause)
        return b"".join(iter(lambda: _receive(connection), b""))


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


# The command, in a process of its own

_PROGRAM = textwrap.dedent(
    """
    import sys, time
    from unit.serve.conftest import load_squares
    from edgeface.serve import service
    from edgeface.cli import main

    service.Service.__init__.__kwdefaults__["load"] = load_squares
    identify, embed = service.Service.identify, service.ServedModel.embed_exactly
    def slowly(*given, **options):
        time.sleep(float(sys.argv.pop()) if sys.argv[-1].startswith("0.") else 0.3)
        return identify(*given, **options)
    def embed_slowly(*given):
        time.sleep(0.3)
        return embed(*given)
    service.Service.identify, service.ServedModel.embed_exactly = slowly, embed_slowly
    sys.exit(main(sys.argv[1:]))
    """
)


@contextlib.contextmanager
def run_command(folder: Path, listen: str = "port: 0", more: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run `edgeface serve` with squares for faces, and 0.3 s for an identification and for crops that are embedded."""
    config = folder / "serve.yml"
    ir = write_tiny_ir(folder)
    config.write_text(
        f"state: {folder / 'state'}\nmodels: {{default: {{model: {ir}}}}}\nlisten: {{{listen}}}\n"
        f"galleries: {{default: {{threshold: 0.95, gate: false}}}}\nlimits: {{workers: 1, queue: 3}}\n{more}"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "serve", "--config", str(config), "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answer_of(command: subprocess.Popen[str]) -> dict[str, str]:
    """What the command prints once it is ready."""
    assert command.stdout is not None
    lines = list(iter(command.stdout.readline, "}\n"))
    answer: dict[str, str] = json.loads("".join(lines) + "}")
    return answer
