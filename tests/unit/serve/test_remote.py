"""A command that a service answers: the same answer and the same errors, of the service that was named or of none."""

from __future__ import annotations

import http.server
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_ir import BLUE, RED, write_tiny_ir
from unit.serve.conftest import OPEN, jpeg, load_squares, serving

from edgeface.cli import main
from edgeface.errors import InputError
from edgeface.serve.server import unix_socket
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("remote")
    given = {
        "state": folder / "state",
        "models": {"default": {"model": str(write_tiny_ir(folder))}},
        "galleries": {"default": OPEN},
        "listen": {"socket": folder / "socket"},
    }
    with Service(Settings.model_validate(given), load=load_squares) as made, serving(made):
        wait_for(folder / "socket")
        yield made


def wait_for(path: Path) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX) as client:
            if not client.connect_ex(str(path)):
                return
        time.sleep(0.01)


@pytest.fixture
def photos(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("EDGEFACE_SERVER", f"unix:{service.settings.listen.socket}")
    monkeypatch.setenv("EDGEFACE_SERVER_KEY", service.first_key or "")
    made = {
        "red": jpeg(RED),
        "two": jpeg(RED, BLUE),
        "blue": jpeg(BLUE),
        "nobody": jpeg(None),
        "broken": jpeg(RED)[:60],
    }
    for name, content in made.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    return {name: str(tmp_path / f"{name}.png") for name in (*made, "absent")}


def test_the_service_decides_as_a_model_here_would(
    service: Service, photos: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with service.models.use("default") as model:
        known = model.analyzer.verify(photos["red"], photos["blue"], threshold=0.5)
    assert main(["verify", photos["red"], photos["blue"], "--threshold", "0.5", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["matched"], answer["score"], answer["contract_id"]) == (
        False,
        pytest.approx(known.score, abs=1e-6),
        model.contract.contract_id,
    )
    assert answer["b"]["path"] == photos["blue"]
    assert main(["verify", photos["red"], photos["two"], "--threshold", "0.5", "--face-b", "1"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("same person: cosine 1.0000 > 0.5000\nmodel: tiny (")
    assert "Choose another" not in told.err
    main(["verify", photos["red"], photos["two"], "--threshold", "0.5"])
    assert f"{photos['two']}: 2 faces; compared number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "options", "code", "kind", "message"),
    [
        ("nobody", [], 2, "FaceError", "nobody.png: expected a face, found none"),
        ("broken", [], 2, "ImageError", "broken.png: "),
        ("absent", [], 2, "ImageError", "absent.png: expected a photo, found No such file"),
        ("blue", ["--face-b", "2"], 2, "InputError", "blue.png: expected a face number from 1 to 1, found 2"),
        ("blue", ["--device", "GPU"], 2, "InputError", "unset EDGEFACE_SERVER to use a model of this process"),
        ("blue", ["--model", "other"], 2, "InputError", "there is no model 'other'"),
    ],
)
def test_errors_are_those_of_the_command_and_name_its_photos(
    photos: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    other: str,
    options: list[str],
    code: int,
    kind: str,
    message: str,
) -> None:
    assert main(["verify", photos["red"], photos[other], "--threshold", "0.5", "--json", *options]) == code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == kind
    assert message in error["message"]


def test_no_other_model_decides_where_the_service_or_the_key_is_wrong(
    photos: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_SERVER_KEY", "another")
    assert main(["verify", photos["red"], photos["blue"]]) == 2
    assert "EDGEFACE_SERVER_KEY: expected a key" in capsys.readouterr().err
    for address, code in {
        "unix:/tmp/there is none": 3,
        "http://127.0.0.1:1": 3,
        "ftp://a": 2,
        "/tmp/socket": 2,
        "http://127.0.0.1:bad": 2,
        "http://[::1": 2,
    }.items():
        monkeypatch.setenv("EDGEFACE_SERVER", address)
        assert main(["verify", photos["red"], photos["blue"]]) == code
        told = capsys.readouterr()
        assert not told.out
        assert address in told.err


@pytest.mark.parametrize("answer", ["<html>", "[]", "null", "{}", '{"model": 3}', '{"model": "m", "contract_id": "x"}'])
def test_what_another_program_answers_is_no_decision(
    answer: str, photos: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Liar(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("EDGEFACE_SERVER", f"http://127.0.0.1:{server.server_port}")
        code = main(["verify", photos["red"], photos["blue"]])
        server.shutdown()
    assert code == 3  # 1 would be: different people
    told = capsys.readouterr()
    assert not told.out
    assert "found an answer of another program" in told.err


def test_asking_a_service_imports_next_to_nothing() -> None:
    program = "import sys; from edgeface.cli import main; main(['verify', __file__, __file__]); print(*sys.modules)"
    run = [sys.executable, "-c", f"__file__ = {__file__!r}; {program}"]
    environment = {**os.environ, "EDGEFACE_SERVER": "unix:/tmp/there is none"}
    done = subprocess.run(run, capture_output=True, check=True, timeout=60, text=True, env=environment)
    loaded = set(done.stdout.split())
    assert "edgeface.cli.remote" in loaded
    assert not {"typer", "rich", "numpy", "pydantic", "yaml", "openvino", "cv2", "httpx", "asyncio"} & loaded


def test_the_socket_is_its_user_s_alone_replaces_a_dead_one_and_no_living_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with unix_socket(path) as (listener,):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        listener.listen()
        with pytest.raises(InputError, match="a program listens there"), unix_socket(path):
            pass
        assert path.is_socket()
    assert not path.exists()
    path.write_text("a file")
    with pytest.raises(InputError, match=r"choose another with listen\.socket"), unix_socket(path):
        pass
    assert path.read_text() == "a file"


def test_a_plain_socket_beside_tls_is_refused(tmp_path: Path) -> None:
    tls = {"certificate": tmp_path / "a", "key": tmp_path / "b"}
    with pytest.raises(ValueError, match=r"listen\.socket: it is served plain"):
        Settings.model_validate({"listen": {"socket": tmp_path / "socket"}, "tls": tls})
