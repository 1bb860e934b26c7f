"""A command that a service answers: the same answer and the same errors, of the service that was named or of none."""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_ir import BLUE, GREEN, RED, SquareDetector, write_tiny_ir
from unit.serve.conftest import OPEN, enrol, jpeg, load_squares, serving

import edgeface
from edgeface.cli import main, remote
from edgeface.errors import InputError, RequestError
from edgeface.pipeline.table import EmbeddingTable
from edgeface.serve.enrol import record_consent, update_person
from edgeface.serve.problems import Problem
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
        people = {name: enrol(made, name, colour) for name, colour in {"Ada": RED, "Bob": BLUE, "Eve": GREEN}.items()}
        consent = record_consent({"text_version": "1", "expires": "2026-01-01T00:00:00Z"}, "0badcafe")
        update_person(made.gallery(None), people["Eve"], consent=consent)
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
        "expired": jpeg(GREEN, RED),
        "three": jpeg(BLUE, RED, GREEN),
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


@pytest.fixture
def both(
    service: Service, photos: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command by the service and by a model here, with `here` besides; both say and return the same."""
    load = edgeface.load

    def load_here(model: Any, *, detector: Any, **options: Any) -> edgeface.FaceAnalyzer:
        known = {name: options[name] for name in ("device", "hint", "allow_seeded")}
        return load(model, detector=SquareDetector(), **known)

    monkeypatch.setattr(edgeface, "load", load_here)
    monkeypatch.setattr(edgeface, "load_detector", lambda *_, **__: contextlib.nullcontext(SquareDetector()))
    state, (server, ir) = service.settings.state, (os.environ["EDGEFACE_SERVER"], service.settings.models["default"])
    stands = {"default": str(state / "galleries" / "default.gallery")}
    of_process = {
        "verify": ["--model", str(ir.model)],
        "detect": [],
        "embed": ["--model", str(ir.model)],
        "identify": ["--model", str(ir.model), "--key", f"file:{state / 'keys' / 'default.key'}"],
    }

    def run(command: str, *words: str, here: tuple[str, ...] = ()) -> tuple[int, str, str]:
        monkeypatch.setenv("EDGEFACE_SERVER", server)
        code = main([command, *words])
        served = capsys.readouterr()
        monkeypatch.delenv("EDGEFACE_SERVER")
        words = tuple(stands.get(word, word) for word in words)
        assert main([command, *words, *of_process[command], *here]) == code
        local = capsys.readouterr()
        assert served.err == local.err
        if "--json" in words:
            read = functools.partial(json.loads, parse_float=lambda text: round(float(text), 5))
            first, second = (read(each.out) for each in (served, local))
            second.pop("calibrated_on", None)  # may name a folder, and a service tells none
            assert first.keys() == second.keys()
            differ = dict.fromkeys({"gallery", "hint", "detector"} & first.keys())
            assert first | differ == second | differ
        else:
            assert served.out == local.out
        return code, served.out, served.err

    return run


BY_HAND = ("--threshold", "0.95", "--no-gate")
"""Of the gallery that the service has."""


@pytest.mark.parametrize("form", [[], ["--json"], ["--strict"]])
def test_detect_says_the_same_by_the_service(both: Any, photos: dict[str, str], form: list[str]) -> None:
    asked = [photos[name] for name in ("two", "nobody", "broken", "red")]
    code, out, err = both("detect", *asked, *form, here=("--min-size", "40"))  # which the service's detector has
    assert code == ("--strict" in form)
    assert "broken.png: " in err
    if not form:
        assert out.splitlines()[:2] == [f"{photos['two']}: 2 faces", "  0.8000  40x40 at (0, 0)"]
    assert both("detect", photos["broken"], *form)[0] == 2


@pytest.mark.parametrize("form", [[], ["--json"], ["--strict"]])
def test_identify_says_the_same_by_the_service(both: Any, photos: dict[str, str], form: list[str]) -> None:
    asked = [photos[name] for name in ("two", "expired", "nobody", "broken")]
    code, out, err = both("identify", *asked, "--gallery", "default", *form, here=BY_HAND)
    assert code == ("--strict" in form)
    assert "the threshold was given by hand" in err
    assert "Ada" in out
    assert "Eve" not in out  # her consent has expired
    if not form:
        assert "unknown (consent expired)" in out
    assert both("identify", photos["nobody"], "-g", "default", *form, here=BY_HAND)[0] == 1
    assert both("identify", photos["broken"], "-g", "default", *form, here=BY_HAND)[0] == 2


@pytest.mark.parametrize("faces", ["largest", "all"])
def test_embed_writes_the_same_by_the_service(
    both: Any, photos: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faces: str
) -> None:
    output, served = tmp_path / "faces.npz", tmp_path / "served.npz"
    write = EmbeddingTable.save

    def keep(table: EmbeddingTable, path: Path) -> None:  # the first one is the service's; a model here begins anew
        if served.exists() or path != output:
            return write(table, path)
        return write(table, served)

    monkeypatch.setattr(EmbeddingTable, "save", keep)
    asked = [photos[name] for name in ("three", "nobody", "broken", "red")]
    for form in ([], ["--json"]):
        code, _, err = both("embed", *asked, "-o", str(output), "--faces", faces, *form)
        assert code == 0
        assert "nobody.png: expected a face, found none\n" in err
        first, second = EmbeddingTable.load(served), EmbeddingTable.load(output)
        for name in ("vectors", "boxes", "scores"):
            np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-6)
        for name in ("paths", "modified", "sizes", "digests", "faces"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert (first.contract_id, first.settings) == (second.contract_id, second.settings)
        assert len(first) == (4 if faces == "all" else 2)
        served.unlink(), output.unlink()


def test_verify_says_the_same_by_the_service(both: Any, photos: dict[str, str]) -> None:
    for form in ([], ["--json"]):
        assert both("verify", photos["red"], photos["two"], "--threshold", "0.5", *form)[0] in (0, 1)
        assert both("verify", photos["red"], photos["nobody"], "--threshold", "0.5", *form)[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["identify", "red", "-g", "people.gallery"], "--gallery: expected the name of a gallery of the service in"),
        (["identify", "red", "-g", "default", "--no-gate"], "does not take --no-gate; unset EDGEFACE_SERVER"),
        (["identify", "red", "-g", "default", "--margin", "0.1"], "does not take --margin"),
        (["identify", "red", "-g", "default", "--model", "x"], "--model: expected the model of the gallery default"),
        (["identify", "red"], "the following arguments are required: --gallery"),
        (["detect", "red", "--draw", "marked"], "does not take --draw"),
        (["detect", "red", "--min-size", "10"], "does not take --min-size"),
        (["detect", "red", "--detector", "mtcnn"], "--detector: expected the detector of the service in"),
        (["-v", "detect", "red", "--device", "GPU"], "does not take --device"),
        (["embed", "red", "-o", "faces.npz", "--model", "x"], "there is no model 'x'; the models are default, or"),
        (["embed", ".", "-o", "faces.npz"], ".: expected photos by name, where the service in EDGEFACE_SERVER embeds"),
        (["embed", "red", "-o", "there.npz"], "there.npz: expected a new file, where the service in"),
        (["verify", "red", "blue", "--far", "nan"], "far: expected a rate"),
        (["identify", "red", "-g", "default", "--fpir", "1"], "fpir: expected a rate"),
        (["identify", "red", "-g", "default", "--fpir", "low"], "--fpir: invalid rate value: 'low'"),
        (["embed", "red", "-o", "faces.txt"], "expected a name that ends in .npz or .parquet"),
    ],
)
def test_what_the_service_cannot_follow_is_an_error_that_says_what_to_do(
    photos: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").write_bytes(b"")
    assert main([photos.get(word, word) for word in words]) == 2
    told = capsys.readouterr()
    assert not told.out
    assert message in told.err
    assert not (tmp_path / "faces.npz").exists()


def test_a_service_that_is_busy_is_asked_again(
    service: Service, photos: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, authenticate = list[float](), service.authenticate

    def refuse_once(*given: Any) -> Any:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise Problem(503, "overloaded", "busy", retry_after=0.01)
        return authenticate(*given)

    monkeypatch.setattr(service, "authenticate", refuse_once)
    monkeypatch.setattr(time, "sleep", lambda seconds: asked.append(seconds))
    assert main(["detect", photos["red"]]) == 0
    assert asked[1] == 1.0
    assert capsys.readouterr().out.startswith(f"{photos['red']}: 1 face\n")


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("http://door.example:8000", False),
        ("http://192.0.2.7", False),
        ("http://0.0.0.0:1", False),
        ("http://127.0.0.1.example:1", False),
        ("http://localhost:1", True),
        ("http://127.8.8.8:1", True),
        ("http://[::1]:1", True),
    ],
)
def test_a_key_is_sent_in_the_clear_to_no_other_machine_unless_that_is_allowed(
    photos: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    allowed: bool,
) -> None:
    monkeypatch.setenv("EDGEFACE_SERVER", address)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert main(["detect", photos["red"]]) == (3 if allowed else 2)
    assert ("set EDGEFACE_SERVER_INSECURE=1" in capsys.readouterr().err) is not allowed
    monkeypatch.setenv("EDGEFACE_SERVER_INSECURE", "1")
    assert main(["detect", photos["red"]]) == 3


def refuse(*_: Any, **__: Any) -> None:
    raise ConnectionRefusedError


def test_a_photo_that_is_too_large_for_the_service_fails_no_other(
    service: Service, photos: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = tmp_path / "huge.png"
    huge.write_bytes(Path(photos["red"]).read_bytes() + bytes(service.settings.limits.body_bytes))
    assert main(["detect", str(huge), photos["red"]]) == 0
    told = capsys.readouterr()
    assert f"{photos['red']}: 1 face" in told.out
    assert f"{huge}: expected a body of at most" in told.err


@pytest.mark.parametrize(
    ("other", "options", "code", "kind", "message"),
    [
        ("nobody", [], 2, "FaceError", "nobody.png: expected a face, found none"),
        ("broken", [], 2, "ImageError", "broken.png: "),
        ("absent", [], 2, "ImageError", "absent.png: expected a photo, found no such file; check its path"),
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
    for key in ("secret\n", "clé-secret"):
        monkeypatch.setenv("EDGEFACE_SERVER_KEY", key)
        assert main(["verify", photos["red"], photos["blue"]]) == 2
        told = capsys.readouterr().err
        assert "EDGEFACE_SERVER_KEY: expected a key" in told
        assert "secret" not in told
    monkeypatch.setenv("EDGEFACE_SERVER_KEY", "another")
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


NO_NUMBER = (
    '{"model": "m", "contract_id": "c", "width": 1, "settings": {"detector": {"name": "d", "min_size": 1}}, '
    '"height": 1, "faces": [{"box": [0, 0, 1, 1], "landmarks": [], "score": NaN}]}'
)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        *(("verify", each) for each in ("<html>", "[]", "null", "{}", '{"model": 3}')),
        ("verify", '{"model": "m", "contract_id": "x"}'),
        pytest.param("verify", "[" * 200_000, id="deep"),
        ("detect", NO_NUMBER),
    ],
)
def test_what_another_program_answers_is_no_decision(
    command: str,
    answer: str,
    photos: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
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
        code = main([command, photos["red"], photos["blue"]])
        server.shutdown()
    assert code == 3  # 1 would be: different people
    told = capsys.readouterr()
    assert not told.out
    assert "found an answer of another program" in told.err


def test_the_two_ids_of_an_ir_of_edgeface_0_1_are_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ask", lambda *_: {"name": "facenet", "contract_id": "4c0ebb72970188bf"})
    connection = http.client.HTTPConnection("127.0.0.1")
    found = remote._about(connection, {"model": "default", "contract_id": "c9c4145b201ace67"})
    assert found["name"] == "facenet"
    with pytest.raises(RequestError, match="changed its model"):
        remote._about(connection, {"model": "default", "contract_id": "25d7f3eec4ac66ac"})


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
