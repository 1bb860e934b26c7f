"""The remote embedder against OpenVINO Model Server's documented answers, and against servers that lie, stall or die.

Model Server is no Python package and does not run here. `ModelServer` answers as its documentation and source say
(written from docs/model_server_rest_api_kfs.md, docs/binary_input_kfs.md, docs/parameters.md and
src/http_rest_api_handler.cpp of openvinotoolkit/model_server; no recording of a server): the input as the layout of
config.json shows it, the values of model_info as text, versions as a list, no contract in an answer, no key.
`edgeface serve` itself is asked by tests/unit/serve/test_remote_embedder.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_ir import TINY_SIZE, tiny_crop, write_tiny_ir

import edgeface
from edgeface.errors import (
    ContractError,
    DeadlineExceeded,
    DeviceError,
    EngineClosed,
    InferenceError,
    InputError,
    ModelNotFoundError,
    Overloaded,
)
from edgeface.runtime import DevicePlan, Embedder, ImageFormat
from edgeface.runtime import replica as replica_module
from edgeface.runtime.address import RemoteAddress
from edgeface.runtime.wire import ANSWER_BYTES, Question, read_answer
from edgeface.scale.ovms import export_ovms

pytestmark = pytest.mark.timeout(60)
CROPS = np.stack([tiny_crop(color) for color in ((250, 20, 20), (20, 200, 80), (90, 90, 200))])
HEADER = "Inference-Header-Content-Length"
Reply = Callable[[BaseHTTPRequestHandler], None]


class ModelServer:
    """Serves versions of exported IRs over HTTP as Model Server documents it; `reply` replaces its answers to infer."""

    def __init__(self, *irs: Path, layout: str = "NHWC") -> None:
        self.versions = {str(number): self._load(ir, layout) for number, ir in enumerate(irs, 1)}
        self.metadata: Callable[[dict[str, Any]], Any] = lambda metadata: metadata
        self.reply: Reply | None = None
        self.asked: list[str] = []
        self.binary = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.describe(self)

            def do_POST(self) -> None:
                outer.infer(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # clients that leave are the subject here
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def _load(ir: Path, layout: str) -> Any:
        model = ov.Core().read_model(ir)
        shown = {key: model.get_rt_info(["model_info", key]).astype(str) for key in model.rt_info["model_info"]}
        return layout, shown, ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def describe(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        name, _, version = handler.path.removeprefix("/v2/models/").partition("/versions/")
        if name != "tiny" or (version and version not in self.versions):
            return send(handler, {"error": "Model with requested name is not found"}, 404)
        layout, shown, _ = self.versions[version or max(self.versions)]
        shape = [-1, TINY_SIZE, TINY_SIZE, 3] if layout == "NHWC" else [-1, 3, TINY_SIZE, TINY_SIZE]
        metadata = {
            "name": "tiny",
            "versions": sorted(self.versions),
            "platform": "OpenVINO",
            "inputs": [{"name": "image", "datatype": "FP32", "shape": shape}],
            "outputs": [{"name": "embeddings", "datatype": "FP32", "shape": [-1, 3]}],
            "rt_info": {"model_info": shown},
        }
        send(handler, self.metadata(metadata))
        return None

    def infer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        if self.reply is not None:
            return self.reply(handler)
        head = json.loads(body[: int(handler.headers[HEADER])])
        (given,) = head["inputs"]
        version = max(self.versions)
        layout, _, compiled = self.versions[version]
        sides = [TINY_SIZE, TINY_SIZE, 3] if layout == "NHWC" else [3, TINY_SIZE, TINY_SIZE]
        if given["datatype"] != "FP32" or given["shape"][1:] != sides:
            return send(handler, {"error": "Invalid input precision or shape"}, 400)
        pixels = np.frombuffer(body[int(handler.headers[HEADER]) :], "<f4").reshape(given["shape"])
        planes = pixels.transpose(0, 3, 1, 2) if layout == "NHWC" else pixels
        vectors = compiled.create_infer_request().infer(planes.copy())[0]
        return answer(handler, vectors, version=version, binary=self.binary)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def send(handler: BaseHTTPRequestHandler, value: Any, status: int = 200, tail: bytes = b"", **headers: str) -> None:
    head = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Length": str(len(head) + len(tail)), **headers}.items():
        handler.send_header(name.replace("_", "-"), text)
    if tail:
        handler.send_header(HEADER, str(len(head)))
    handler.end_headers()
    handler.wfile.write(head + tail)


def answer(
    handler: BaseHTTPRequestHandler, vectors: Any, *, version: str = "1", binary: bool = True, **more: Any
) -> None:
    """Answer an embedding; `more` replaces fields of the output."""
    array = np.asarray(vectors, np.float32)
    entry: dict[str, Any] = {"name": "embeddings", "datatype": "FP32", "shape": list(array.shape)}
    entry |= {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.ravel().tolist()}
    output = {"model_name": "tiny", "model_version": version, "outputs": [entry | more]}
    send(handler, output, tail=array.tobytes() if binary else b"")


@pytest.fixture(scope="module")
def irs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported IRs: two of one contract, one of another, and one before its export."""
    folder = tmp_path_factory.mktemp("irs")
    made = {"plain": write_tiny_ir(folder)}
    made["tiny"] = export_ovms([made["plain"]], folder / "models")[0].ir
    (folder / "b").mkdir()
    made["other"] = export_ovms([write_tiny_ir(folder / "b", source="b")], folder / "others")[0].ir
    return made


@pytest.fixture(scope="module")
def expected(irs: dict[str, Path]) -> np.ndarray:
    with Embedder.load(irs["plain"], plan=DevicePlan(device="CPU", precision="f32")) as embedder:
        return embedder.embed(CROPS)


@pytest.fixture
def serve() -> Iterator[Callable[..., ModelServer]]:
    made: list[ModelServer] = []

    def start(*irs: Path, **options: Any) -> ModelServer:
        made.append(ModelServer(*irs, **options))
        return made[-1]

    yield start
    for server in made:
        server.close()


@pytest.fixture
def server(serve: Callable[..., ModelServer], irs: dict[str, Path]) -> ModelServer:
    return serve(irs["tiny"])


def address(*servers: ModelServer | int, model: str = "tiny") -> str:
    ports = (each if isinstance(each, int) else each.port for each in servers)
    return f"ovms://{','.join(f'127.0.0.1:{port}' for port in ports)}/{model}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# What Model Server documents


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("binary", [True, False])
def test_the_documented_answers_give_the_local_embeddings_in_either_layout(
    serve: Callable[..., ModelServer], irs: dict[str, Path], expected: np.ndarray, layout: str, binary: bool
) -> None:
    server = serve(irs["tiny"], layout=layout)
    server.binary = binary
    with Embedder.load(address(server)) as embedder:
        assert np.abs(embedder.embed(CROPS) - expected).max() <= 1e-6
        assert embedder.contract.name == "tiny"
        assert embedder.execution.execution_devices == (f"127.0.0.1:{server.port}",)


@pytest.mark.parametrize(
    ("image_format", "change"),
    [
        (ImageFormat(color="RGB"), lambda crop: crop[..., ::-1].copy()),
        (ImageFormat(layout="NCHW", dtype="f32"), lambda crop: crop.transpose(2, 0, 1).astype(np.float32).copy()),
        (ImageFormat(color="GRAY"), lambda crop: crop[..., :1].copy()),
        (ImageFormat(size="any", aligned=True), lambda crop: crop[:-6, :-4].copy()),
        (ImageFormat(size=(40, 48), aligned=True), lambda crop: np.pad(crop, ((4, 4), (8, 8), (0, 0)))),
        (ImageFormat(color="NV12"), lambda crop: np.tile(crop[..., :1], (2, 1, 1))[: TINY_SIZE * 3 // 2].copy()),
    ],
)
def test_every_image_format_is_adapted_as_for_a_local_model(
    server: ModelServer, irs: dict[str, Path], image_format: ImageFormat, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    image = change(CROPS[0])
    plan = DevicePlan(device="CPU", precision="f32")
    with (
        Embedder.load(irs["plain"], plan=plan, image_format=image_format) as local,
        Embedder.load(address(server), image_format=image_format) as remote,
    ):
        assert remote.contract.contract_id == local.contract.contract_id
        assert np.abs(remote.infer(image) - local.infer(image)).max() <= 1e-6
        with pytest.raises(ContractError, match="expected one image"):
            remote.submit(image[..., np.newaxis])


def test_a_new_version_of_the_contract_is_taken_and_one_of_another_contract_is_refused(
    serve: Callable[..., ModelServer], irs: dict[str, Path], expected: np.ndarray
) -> None:
    server = serve(irs["tiny"])
    with Embedder.load(address(server)) as embedder:
        embedder.embed(CROPS)
        server.versions["2"] = ModelServer._load(irs["tiny"], "NHWC")
        assert np.abs(embedder.embed(CROPS) - expected).max() <= 1e-6
        assert "/v2/models/tiny/versions/2" in server.asked
        server.versions["3"] = ModelServer._load(irs["other"], "NHWC")
        for _ in range(2):
            with pytest.raises(ContractError, match=r"expected contract_id .*cannot be compared"):
                embedder.embed(CROPS)
    with Embedder.load(address(server)) as embedder:
        assert embedder.contract.contract_id != replica_module.contract_at(irs["plain"]).contract_id
    pinned = replica_module.contract_at(irs["plain"]).contract_id
    with pytest.raises(ContractError, match="expected contract_id"):
        Embedder.load(f"{address(server)}?contract={pinned}")


def closing(handler: BaseHTTPRequestHandler) -> None:
    """Answer, and close the connection without a word."""
    answer(handler, [[1, 0, 0]])
    handler.close_connection = True


@pytest.mark.parametrize("seen_by", ["time", "a lost connection", "a failure"])
def test_a_server_that_starts_again_with_another_model_and_the_same_version_is_refused(
    serve: Callable[..., ModelServer], irs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, seen_by: str
) -> None:
    monkeypatch.setattr(replica_module, "_LOOK_SECONDS", 0.0 if seen_by == "time" else 60.0)
    server = serve(irs["tiny"])
    with Embedder.load(address(server)) as embedder:
        if seen_by == "a lost connection":
            server.reply = closing
        assert embedder.infer(CROPS[0]).shape == (3,)
        if seen_by == "a failure":
            server.reply = raw()
            with pytest.raises(InferenceError):
                embedder.infer(CROPS[0])
        server.reply = None
        server.versions["1"] = ModelServer._load(irs["other"], "NHWC")
        for _ in range(2):
            with pytest.raises(ContractError, match="cannot be compared"):
                embedder.infer(CROPS[0])


def test_a_server_that_shows_another_layout_after_a_restart_is_asked_in_that(
    serve: Callable[..., ModelServer], irs: dict[str, Path], expected: np.ndarray
) -> None:
    server = serve(irs["tiny"])
    with Embedder.load(address(server)) as embedder:
        server.versions["1"] = ModelServer._load(irs["tiny"], "NCHW")
        with pytest.raises(InferenceError, match="400"):
            embedder.infer(CROPS[0])
        assert np.abs(embedder.infer(CROPS[0]) - expected[0]).max() <= 1e-6


def test_a_contract_in_the_answer_is_looked_at_even_if_the_version_is_known(server: ModelServer) -> None:
    with Embedder.load(address(server)) as embedder:
        server.reply = lambda handler: send(
            handler,
            {
                "model_name": "tiny",
                "model_version": "1",
                "parameters": {"contract_id": "0" * 16},
                "outputs": [{"name": "embeddings", "datatype": "FP32", "shape": [1, 3], "data": [1, 0, 0]}],
            },
        )
        with pytest.raises(ContractError, match="0000000000000000"):
            embedder.infer(CROPS[0])


# Servers that are away, slow or wrong


def test_a_server_that_is_away_or_no_model_server_is_as_an_absent_device(server: ModelServer) -> None:
    with pytest.raises(DeviceError, match=r"expected a server of KServe V2, found .*refused"):
        Embedder.load(address(free_port()))
    with pytest.raises(ModelNotFoundError, match="404: Model with requested name is not found"):
        Embedder.load(address(server, model="other"))
    server.metadata = lambda metadata: b"<html>It works!</html>"
    with pytest.raises(DeviceError, match="expected an answer in JSON"):
        Embedder.load(address(server))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("rt_info"), "export the IR with 'edgeface export ovms'"),
        (lambda found: found["rt_info"].update(model_info=[]), "found none"),
        (lambda found: found["rt_info"]["model_info"].pop("contract_id"), "found none"),
        (lambda found: found["rt_info"]["model_info"].pop("color"), "the fields color are missing"),
        (lambda found: found["rt_info"]["model_info"].update(color="RGB"), "that it names, found the fields of"),
        (lambda found: found["rt_info"]["model_info"].update(mean="[0, 0"), "'mean' is damaged"),
        (lambda found: found["rt_info"]["model_info"].update(mean="[" * 5000), "'mean' is damaged"),
        (lambda found: found["rt_info"]["model_info"].update(mean=7), "wrong type"),
        (lambda found: found["inputs"].append(found["inputs"][0]), "one input and one output"),
        (lambda found: found["inputs"][0].update(shape=[-1, 3, 64, 64]), "one input and one output"),
        (lambda found: found["inputs"][0].update(datatype="UINT8"), "one input and one output"),
        (lambda found: found["outputs"][0].update(shape=[-1, 512]), "one input and one output"),
        (lambda found: found.pop("outputs"), "one input and one output"),
        (lambda found: found.update(outputs=[]), "one input and one output"),
        (lambda found: found.update(inputs=7), "one input and one output"),
    ],
)
def test_metadata_that_does_not_hold_together_is_a_contract_error(
    server: ModelServer, change: Callable[[Any], object], message: str
) -> None:
    def changed(metadata: dict[str, Any]) -> Any:
        metadata = json.loads(json.dumps(metadata))
        change(metadata)
        return metadata

    server.metadata = changed
    with pytest.raises(ContractError, match=message) as refused:
        Embedder.load(address(server))
    assert f"127.0.0.1:{server.port}" in str(refused.value)


def raw(*parts: bytes, pause: float = 0.0, more: bytes = b"", hang: float = 0.0) -> Reply:
    """Send these bytes instead of an answer, `more` again and again, and leave or hang."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        for part in parts:
            handler.wfile.write(part)
            handler.wfile.flush()
            time.sleep(pause)
        while more:
            handler.wfile.write(more)
        time.sleep(hang)

    return reply


OK = b"HTTP/1.1 200 OK\r\n"
WRONG: dict[str, tuple[Reply, str]] = {
    "a wrong length": (lambda handler: answer(handler, [[1, 0, 0, 0]]), "FP32 .1, 3."),
    "two rows": (lambda handler: answer(handler, [[1, 0, 0], [1, 0, 0]]), "FP32 .1, 3."),
    "another datatype": (lambda handler: answer(handler, [[1, 0, 0]], datatype="FP64"), "FP64"),
    "a shape that is none": (lambda handler: answer(handler, [[1, 0, 0]], shape="[1, 3]"), "FP32 .1, 3."),
    "NaN": (lambda handler: answer(handler, [[1, np.nan, 0]]), "NaN or infinity"),
    "infinity": (lambda handler: answer(handler, [[1, np.inf, 0]]), "NaN or infinity"),
    "zeros": (lambda handler: answer(handler, [[0, 0, 0]]), "with a direction"),
    "a length that makes everybody alike": (lambda handler: answer(handler, [[100, 0, 0]]), "of length 1, found 100"),
    "too few bytes": (lambda handler: answer(handler, [[1, 0]], shape=[1, 3]), "8 bytes"),
    "too many numbers": (lambda handler: answer(handler, [[1, 0, 0]], binary=False, data=[1, 0, 0, 0]), "4 numbers"),
    "words for numbers": (lambda handler: answer(handler, [[1, 0, 0]], binary=False, data=["a"] * 3), "KServe V2"),
    "numbers beyond float32": (
        lambda handler: answer(handler, [[1, 0, 0]], binary=False, data=[1e300, 0, 0]),
        "NaN or infinity",
    ),
    "another output": (lambda handler: answer(handler, [[1, 0, 0]], name="logits"), "KServe V2"),
    "no outputs": (lambda handler: send(handler, {"model_name": "tiny"}), "KServe V2"),
    "a list": (lambda handler: send(handler, [1]), "KServe V2"),
    "no JSON": (lambda handler: send(handler, b"\xff\xfe{"), "an answer in JSON"),
    "JSON without end": (lambda handler: send(handler, b"[" * 100_000), "an answer in JSON"),
    "a header length beyond the body": (lambda handler: send(handler, {}, **{HEADER: "x"}), "KServe V2"),
    "a refusal": (lambda handler: send(handler, {"error": "Invalid input"}, 400), "400: Invalid input"),
    "a failure without words": (lambda handler: send(handler, b"", 500), "found 500"),
    "a redirection": (lambda handler: send(handler, b"", 302, Location="http://127.0.0.1/"), "found 302"),
    "4 GB by its header": (raw(OK, b"Content-Length: 4294967296\r\n\r\n"), "at most 1,048,576 bytes, found more"),
    "4 GB in chunks": (
        raw(OK, b"Transfer-Encoding: chunked\r\n\r\n", more=b"10000\r\n" + bytes(65536) + b"\r\n"),
        "at most 1,048,576 bytes, found more",
    ),
    "an answer that breaks off": (raw(OK, b"Content-Length: 100\r\n\r\n{"), "broke off"),
    "no answer at all": (raw(), "closed connection without response"),
    "another protocol": (raw(b"220 mail ready\r\n"), "does not speak HTTP"),
    "headers without end": (raw(OK, *[b"X-A: " + b"y" * 1000 + b"\r\n"] * 200), "more than 100 headers"),
    "a line without end": (raw(OK, b"X-A: " + b"y" * 100_000), "header line"),
}


@pytest.fixture(scope="module")
def lying(irs: dict[str, Path]) -> Iterator[tuple[ModelServer, Embedder]]:
    server = ModelServer(irs["tiny"])
    with Embedder.load(address(server)) as embedder:
        yield server, embedder
    server.close()


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_is_an_inference_error_that_says_what_was_expected(
    lying: tuple[ModelServer, Embedder], kind: str
) -> None:
    server, embedder = lying
    before = embedder.counters()
    server.reply, message = WRONG[kind]
    began = time.monotonic()
    with pytest.raises(InferenceError, match=message):
        embedder.infer(CROPS[0], deadline=5.0)
    assert time.monotonic() - began < 3
    server.reply = None
    assert embedder.infer(CROPS[0]).shape == (3,)  # and the next one is answered
    after = embedder.counters()
    assert (after.failed - before.failed, after.done - before.done) == (1, 1)


@pytest.mark.parametrize(
    "reply",
    [
        raw(hang=1.0),
        raw(OK, b"Content-Length: 10\r\n\r\n", hang=1.0),
        raw(*[bytes([each]) for each in OK + b"X-A: b" * 20], pause=0.05),
        raw(OK, b"Content-Length: 60\r\n\r\n", *[b"{"] * 60, pause=0.05),
    ],
    ids=["silence", "silence after headers", "headers byte by byte", "a body byte by byte"],
)
def test_a_server_that_hangs_or_trickles_is_given_up_at_the_deadline(server: ModelServer, reply: Reply) -> None:
    with Embedder.load(address(server)) as embedder:
        server.reply = reply
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            embedder.infer(CROPS[0], deadline=0.3)
        assert time.monotonic() - began < 0.8
        assert embedder.counters().expired == 1


def test_metadata_of_gigabytes_is_not_read(server: ModelServer) -> None:
    server.metadata = lambda metadata: b" " * (ANSWER_BYTES + 1)
    with pytest.raises(DeviceError, match="at most 1,048,576 bytes"):
        Embedder.load(address(server))


def test_metadata_that_never_comes_ends_the_loading(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "_LOAD_SECONDS", 0.2)

    def slowly(metadata: Any) -> Any:
        time.sleep(0.5)
        return metadata

    server.metadata = slowly
    with pytest.raises(DeviceError, match="no answer in time"):
        Embedder.load(address(server))


# Replicas


def test_another_replica_answers_when_one_dies_hangs_or_refuses(
    serve: Callable[..., ModelServer], irs: dict[str, Path], expected: np.ndarray
) -> None:
    first, second = serve(irs["tiny"]), serve(irs["tiny"])
    with Embedder.load(address(first, second)) as embedder:
        for reply in (
            raw(),
            raw(hang=1.0),
            lambda handler: send(handler, b"", 503),
            lambda handler: send(handler, {}, 404),
        ):
            first.reply = reply
            for replica in embedder._generations[0].serving._replicas:  # type: ignore[attr-defined]
                replica.rests_until = 0.0
            for crop, row in zip(CROPS, expected, strict=True):
                assert np.abs(embedder.infer(crop, deadline=1.0) - row).max() <= 1e-6
        assert embedder.counters().failed == 0


def test_a_replica_that_was_away_at_the_load_is_looked_at_before_it_is_used(
    serve: Callable[..., ModelServer], irs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "_REST_SECONDS", 0.0)
    here, port = serve(irs["tiny"]), free_port()
    with Embedder.load(address(port, here)) as embedder:
        for _ in range(3):
            embedder.embed(CROPS)
        late = serve(irs["other"])
        replica = embedder._generations[0].serving._replicas[0]  # type: ignore[attr-defined]
        replica._http._port = late.port  # it comes up, with another model
        with pytest.raises(ContractError, match="cannot be compared"):
            embedder.embed(np.concatenate([CROPS] * 4))
    with pytest.raises(ContractError, match="cannot be compared"):
        Embedder.load(address(here, late))


def test_busy_servers_are_asked_again_until_the_deadline(server: ModelServer) -> None:
    left = [3]

    def busy(handler: BaseHTTPRequestHandler) -> None:
        left[0] -= 1
        if left[0] >= 0:
            return send(handler, {"error": "overloaded"}, 503)
        return answer(handler, [[1, 0, 0]])

    with Embedder.load(address(server)) as embedder:
        server.reply = busy
        assert embedder.infer(CROPS[0], deadline=2.0).tolist() == [1, 0, 0]
        left[0] = 10**9
        with pytest.raises(Overloaded, match="503: overloaded; still so at the request's deadline"):
            embedder.infer(CROPS[0], deadline=0.2)


# The interface of a local one


def test_policies_cancellation_and_closing_are_as_an_engines(server: ModelServer) -> None:
    gate = threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        gate.wait(5)
        answer(handler, [[1, 0, 0]])

    server.reply = wait
    with Embedder.load(address(server), queue_depth=2) as embedder:
        running = [embedder.submit(CROPS[0]) for _ in range(4)]
        until = time.monotonic() + 5
        while embedder.counters().running < 4 and time.monotonic() < until:
            time.sleep(0.005)
        oldest, newer = (embedder.submit(CROPS[0], policy="drop-oldest") for _ in range(2))
        with pytest.raises(Overloaded):
            embedder.submit(CROPS[0], policy="reject")
        with pytest.raises(DeadlineExceeded):
            embedder.submit(CROPS[0], policy="block", deadline=0.05)
        newest = embedder.submit(CROPS[0], policy="drop-oldest")
        with pytest.raises(Overloaded):
            oldest.result(1)
        assert newer.cancel()
        with pytest.raises(CancelledError):
            newer.result()
        expiring = embedder.submit(CROPS[0], deadline=0.05)
        with pytest.raises(DeadlineExceeded):  # though all threads wait for the server
            expiring.result(1)
        gate.set()
        assert [each.result(5).tolist() for each in (*running, newest)] == [[1, 0, 0]] * 5
        counters = embedder.counters()
        assert (counters.done, counters.dropped, counters.cancelled, counters.expired) == (5, 1, 1, 1)
        assert counters.submitted == 8
    with pytest.raises(EngineClosed):
        embedder.submit(CROPS[0])


def test_closing_without_draining_resolves_what_waits_for_a_server_that_hangs(server: ModelServer) -> None:
    server.reply = raw(hang=2.0)
    embedder = Embedder.load(address(server))
    waiting = [embedder.submit(CROPS[0]) for _ in range(6)]
    began = time.monotonic()
    embedder.close(drain=False)
    for each in waiting:
        with pytest.raises(EngineClosed):
            each.result(0)
    assert time.monotonic() - began < 0.5


def test_many_threads_share_one_embedder_and_its_connections(server: ModelServer, expected: np.ndarray) -> None:
    with Embedder.load(address(server)) as embedder, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: embedder.infer(CROPS[number % 3]), range(60)))
        assert np.abs(np.array(found) - np.tile(expected, (20, 1))).max() <= 1e-6
        assert [row.tolist() for row in embedder.map(iter(CROPS))] == [row.tolist() for row in embedder.embed(CROPS)]
        serving = embedder._generations[0].serving
        assert len(serving._replicas[0]._http._idle) <= 8  # type: ignore[attr-defined]


def test_a_forked_child_refuses(server: ModelServer) -> None:
    with Embedder.load(address(server)) as embedder:
        embedder.infer(CROPS[0])
        if not (child := os.fork()):
            code = 1
            with contextlib.suppress(BaseException):
                try:
                    embedder.infer(CROPS[0])
                except EngineClosed:
                    code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        embedder.infer(CROPS[0])


def test_what_only_a_local_model_can_do_is_refused(server: ModelServer, irs: dict[str, Path]) -> None:
    for options in ({"flip": "average"}, {"plan": DevicePlan(device="CPU")}, {"key": bytes(32)}, {"fallback": ["CPU"]}):
        with pytest.raises(InputError, match=next(iter(options))):
            Embedder.load(address(server), **options)  # type: ignore[arg-type]
    with Embedder.load(address(server)) as embedder:
        with pytest.raises(InputError, match="swap"):
            embedder.swap(irs["tiny"])
        embedder.infer(CROPS[0])


def test_the_front_door_takes_an_address_even_as_a_path(server: ModelServer) -> None:
    for model in (address(server), Path(address(server))):
        with edgeface.load(model, detector=None) as app:
            assert app.precision is None
            assert app.embed(CROPS[0]).contract_id == app.contract.contract_id


# Addresses and keys


@pytest.mark.parametrize(
    "text",
    [
        "ovms://",
        "ovms://host/model",
        "ovms://host:8000",
        "ovms://host:8000/",
        "ovms://host:0/model",
        "ovms://host:65536/model",
        "ovms://:8000/model",
        "ovms://a:1,/model",
        "ovms://a:1/model/versions/2",
        "ovms://user:word@a:1/model",
        "ovms://a:1/model?grpc=x",
        "ovms://a:1/model?contract=short",
        "ovms://a:1/model?other=1",
        "ovms://a:1/model?grpc=1&grpc=2&grpc=3",
        "ovms://::1:8000/model",
        "ovms://a:1/mo del",
        "ovms+http://a:1/model",
    ],
)
def test_an_address_that_is_none_is_refused_without_asking_anybody(text: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT") as refused:
        RemoteAddress.parse(text)
    assert "word" not in str(refused.value)


def test_a_refused_address_keeps_its_slashes_and_names_its_options() -> None:
    with pytest.raises(InputError, match=r"found ovms://a:1/model\S* with other;"):
        RemoteAddress.parse(Path("ovms://a:1/model?other=1"))


def test_addresses_name_replicas_model_port_and_contract() -> None:
    found = RemoteAddress.parse("ovms+tls://[::1]:8000,b:80/m?contract=0123456789abcdef&grpc=9000")
    assert found == RemoteAddress((("::1", 8000), ("b", 80)), "m", True, 9000, "0123456789abcdef")
    assert str(found) == "ovms+tls://[::1]:8000,b:80/m"
    assert not RemoteAddress.names("models/ovms.xml")


def test_a_key_goes_to_this_machine_or_by_tls_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_SERVER_KEY", "secret")

    def sent(text: str) -> bool:
        parsed = RemoteAddress.parse(text)
        return "x-api-key" in replica_module.Replica(parsed, *parsed.replicas[0])._http._headers

    assert sent("ovms://127.0.0.1:1/m")
    assert sent("ovms://localhost:1/m")
    assert sent("ovms+tls://cloud.example:1/m")
    assert not sent("ovms://cloud.example:1/m")
    assert not sent("ovms://127.0.0.1.example:1/m")


def test_keys_and_hosts_that_can_be_none_are_errors_and_no_failures(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for host in ("a..b", "x" * 70 + ".example", "\udcff"):
        with pytest.raises(DeviceError):
            Embedder.load(f"ovms://{host}:1/tiny")
    monkeypatch.setenv("EDGEFACE_SERVER_KEY", "a\nb: c")
    with pytest.raises(InputError, match="printable"):
        Embedder.load(address(server))


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_an_input_error(server: ModelServer, status: int) -> None:
    with Embedder.load(address(server)) as embedder:
        server.reply = lambda handler: send(handler, {"error": "no"}, status)
        with pytest.raises(InputError, match="EDGEFACE_SERVER_KEY"):
            embedder.infer(CROPS[0])


# Parsers


GOOD = json.dumps(
    {
        "model_name": "tiny",
        "model_version": "1",
        "parameters": {"contract_id": "0" * 16},
        "outputs": [{"name": "a", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}],
    }
).encode()
QUESTION = Question("tiny", "image", "a", 3)


@given(st.data())
def test_a_damaged_answer_is_an_embedding_of_the_length_or_an_inference_error(data: st.DataObject) -> None:
    content = bytearray(GOOD + np.float32([0.6, 0.8, 0]).tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    length = data.draw(st.sampled_from([str(len(GOOD)), None, "0", "-1", "1e3", "99999999"]))
    with contextlib.suppress(InferenceError):
        found = read_answer("server", QUESTION, bytes(content), length)
        assert (found.vector.shape, found.vector.dtype) == ((3,), np.float32)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just("a"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "data", "shape"]), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["name", "data", "shape", "datatype", "parameters"]), VALUES), VALUES)
def test_json_of_any_kind_is_an_embedding_or_an_inference_error(output: dict[str, Any], parameters: Any) -> None:
    entry = {"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 0, 0]} | output
    content = json.dumps({"outputs": [entry], "parameters": parameters}).encode()
    with contextlib.suppress(InferenceError):
        assert read_answer("server", QUESTION, content, None).vector.shape == (3,)


PART = st.sampled_from([*"ovms:/+,a1?=&[]@ ", "ovms://", "a:80", "/m", "?grpc=", "&contract=", "0" * 16])


@given(st.lists(PART, max_size=8).map("".join))
def test_a_text_is_an_address_or_an_input_error(text: str) -> None:
    with contextlib.suppress(InputError):
        found = RemoteAddress.parse(text)
        assert RemoteAddress.parse(str(found)).replicas == found.replicas
