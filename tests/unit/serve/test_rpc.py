"""KServe V2 over gRPC, asked by Triton's own clients: the answers are the Embedder's, and every limit of HTTP holds."""

from __future__ import annotations

import contextlib
import gc
import re
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_ir import write_tiny_ir
from unit.serve import test_kserve
from unit.serve.conftest import OPEN, answer_of, load_squares, run_command, serving_both
from unit.serve.test_kserve import CROPS, run_ir, save_negated, specific

pytest.importorskip("grpc", reason="the extra 'grpc' is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra 'clients' is not installed")
pytest.importorskip("tritonclient.http", reason="the extra 'clients' is not installed")

import grpc
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from google.protobuf import descriptor_pool
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

import edgeface.serve
from edgeface.errors import EdgeFaceError, InputError
from edgeface.serve import kserve, rpc
from edgeface.serve.authority import issue_client, issue_server
from edgeface.serve.keys import Role
from edgeface.serve.server import check
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = pytest.mark.timeout(60)
PIXELS = np.ascontiguousarray(test_kserve.PIXELS)
SERVICE = "/inference.GRPCInferenceService/"
Code = grpc.StatusCode


class Served:
    """A service that answers over both protocols, and its clients."""

    def __init__(self, service: Service, http_port: int, address: str) -> None:
        self.service, self.http_port, self.address = service, http_port, address
        self.client = triton.InferenceServerClient(address)
        self.channel = grpc.insecure_channel(address)

    @property
    def key(self) -> dict[str, str]:
        """Headers with the first key, a new dictionary each time: Triton's client writes into it."""
        return {"x-api-key": self.service.first_key or ""}

    def key_of(self, role: Role, **options: Any) -> dict[str, str]:
        return {"x-api-key": self.service.keys.add(role.value, role, **options)[1]}

    def call(self, method: str, message: Any = b"", *, metadata: Any = None, **options: Any) -> Any:
        """Send a message, or bytes that may be none; return the answer's bytes."""
        ask = self.channel.unary_unary(SERVICE + method)
        content = message if isinstance(message, bytes) else message.SerializeToString()
        given = tuple((self.key if metadata is None else metadata).items())
        return ask(content, metadata=given, timeout=options.pop("timeout", 10), **options)

    def infer(self, message: Any, **options: Any) -> Any:
        return pb.ModelInferResponse.FromString(self.call("ModelInfer", message, **options))

    def refusal(self, method: str, message: Any = b"", **options: Any) -> Any:
        with pytest.raises(grpc.RpcError) as refused:
            self.call(method, message, **options)
        return refused.value


@contextlib.contextmanager
def serve_both(folder: Path, **changes: Any) -> Iterator[Served]:
    given = {
        "state": folder / "state",
        "listen": {"grpc_port": 0},
        "models": {"default": {"model": str(write_tiny_ir(folder))}},
        "galleries": {"default": OPEN},
        "limits": {"workers": 2, "queue": 16},
        "keys": {"per_key": 1e6, "per_address": 1e6, "wrong_per_address": 1e6},
    }
    with (
        Service(Settings.model_validate(given | changes), load=load_squares) as service,
        serving_both(service) as (port, address),
    ):
        assert address is not None
        served = Served(service, port, address)
        yield served
        served.channel.close()
        served.client.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    versions = folder / "versions"
    write_tiny_ir(versions / "1")
    save_negated(write_tiny_ir(folder, source="b"), versions / "2")
    models = {"default": {"model": str(write_tiny_ir(folder))}, "second": {"model": str(versions)}}
    with serve_both(folder, models=models) as both:
        yield both


@pytest.fixture(scope="module")
def expected(served: Served) -> np.ndarray:
    """What the Embedder gives, which is what OpenVINO computes with the IR itself."""
    with served.service.models.use("default") as model:
        embedded = model.embed_exactly(PIXELS)
    np.testing.assert_array_equal(embedded, run_ir(served.service.settings.models["default"].model, PIXELS))
    return embedded


def ask(pixels: np.ndarray = PIXELS, *, raw: bytes | None = None, **changes: Any) -> Any:
    tensor = {"name": "image", "datatype": "FP32", "shape": list(pixels.shape)}
    message = pb.ModelInferRequest(model_name="default", inputs=[tensor | changes])
    message.raw_input_contents.append(pixels.tobytes() if raw is None else raw)
    return message


def reason(error: Any) -> str:
    """The problem's code, from google.rpc.Status in the metadata."""
    metadata = dict(error.trailing_metadata())
    status = rpc._MESSAGES["Status"].FromString(metadata["grpc-status-details-bin"])
    assert (status.code, status.message) == (error.code().value[0], error.details())
    assert status.details[0].type_url == "type.googleapis.com/google.rpc.ErrorInfo"
    return str(rpc._MESSAGES["ErrorInfo"].FromString(status.details[0].value).reason)


# What clients of Triton do


def test_tritonclients_of_both_kinds_get_the_embedders_vectors_by_bytes_and_by_json(
    served: Served, expected: np.ndarray
) -> None:
    over_http = triton_http.InferenceServerClient(f"127.0.0.1:{served.http_port}")
    for module, client in ((triton, served.client), (triton_http, over_http)):
        for binary in (True, False) if module is triton_http else (True,):
            tensor = module.InferInput("image", list(PIXELS.shape), "FP32")
            tensor.set_data_from_numpy(PIXELS, **({} if binary else {"binary_data": False}))
            output = module.InferRequestedOutput("embeddings", **({} if binary else {"binary_data": False}))
            for outputs in (None, [output]):
                found = client.infer("default", [tensor], outputs=outputs, request_id="7", headers=served.key)
                np.testing.assert_array_equal(found.as_numpy("embeddings"), expected)
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("default", headers=served.key)
        assert not client.is_model_ready("other", headers=served.key)
    response = found.get_response() if module is triton else None
    assert response is None or response.id == "7"
    over_http.close()


def test_the_program_of_the_document_works(served: Served, expected: np.ndarray) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(import tritonclient.*?)```", page, re.S)
    names = {"crops": PIXELS, **{name.replace("x-api-", ""): text for name, text in served.key.items()}}
    exec(program.replace("127.0.0.1:8001", served.address), names)
    np.testing.assert_array_equal(names["embeddings"], expected)


def test_tritonclient_reads_metadata_and_the_repository(served: Served) -> None:
    client, key = served.client, served.key
    server = client.get_server_metadata(headers=key, as_json=True)
    assert server == kserve.SERVER
    model = client.get_model_metadata("default", "1", headers=key, as_json=True)
    assert model == {
        "name": "default",
        "versions": ["1"],
        "platform": "OpenVINO",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": ["-1", "3", "32", "32"]}],
        "outputs": [{"name": "embeddings", "datatype": "FP32", "shape": ["-1", "3"]}],
    }
    index = client.get_model_repository_index(headers=key)
    assert [(each.name, each.version, each.state) for each in index.models] == [
        ("default", "1", "READY"),
        ("second", "2", "READY"),
    ]


def test_the_answer_names_version_contract_and_request_and_has_its_values_as_the_request_had_them(
    served: Served, expected: np.ndarray
) -> None:
    with served.service.models.use("default") as model:
        contract_id = model.contract.contract_id
    raw = served.infer(ask())
    assert (raw.model_name, raw.model_version, raw.parameters["contract_id"].string_param) == (
        "default",
        "1",
        contract_id,
    )
    assert raw.raw_output_contents[0] == expected.tobytes()
    typed = ask()
    typed.ClearField("raw_input_contents")
    typed.id = "x"
    typed.inputs[0].contents.fp32_contents.extend(PIXELS.ravel().tolist())
    answer = served.infer(typed)
    assert (answer.id, list(answer.outputs[0].shape), len(answer.raw_output_contents)) == ("x", [2, 3], 0)
    np.testing.assert_array_equal(np.array(answer.outputs[0].contents.fp32_contents, np.float32), expected.ravel())


def test_half_floats_whole_numbers_and_image_files_give_what_the_same_numbers_give(served: Served) -> None:
    whole = CROPS.transpose(0, 3, 1, 2)
    path = served.service.settings.models["default"].model
    expected = run_ir(path, whole.astype(np.float32)).tobytes()
    files = [cv2.imencode(".png", crop)[1].tobytes() for crop in CROPS]
    asked = [
        ask(whole.astype(np.float16), datatype="FP16"),
        ask(whole, datatype="UINT8"),
        ask(datatype="BYTES", shape=[2], raw=b"".join(struct.pack("<I", len(file)) + file for file in files)),
    ]
    assert [served.infer(each).raw_output_contents[0] for each in asked] == [expected] * 3
    typed = pb.ModelInferRequest(model_name="default", inputs=[{"name": "image", "datatype": "BYTES", "shape": [2]}])
    typed.inputs[0].contents.bytes_contents.extend(files)
    assert np.array(served.infer(typed).outputs[0].contents.fp32_contents, np.float32).tobytes() == expected
    halves = PIXELS.astype(np.float16)
    found = served.infer(ask(halves, datatype="FP16")).raw_output_contents[0]
    assert found == run_ir(path, halves.astype(np.float32)).tobytes()


def test_messages_live_beside_those_of_triton_in_one_process() -> None:
    default = descriptor_pool.Default()
    assert pb.ModelInferRequest.DESCRIPTOR.file.pool is default
    assert rpc._MESSAGES["Infer"].DESCRIPTOR.file.pool is not default
    with pytest.raises(KeyError):
        default.FindMessageTypeByName("edgeface.kserve.Infer")


def test_kubernetes_asks_without_a_key_and_reflection_is_off(served: Served) -> None:
    ask_health = served.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert ask_health(b"", timeout=5) == b"\x08\x01"  # SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        ask_health(b"\x0a\x01x", timeout=5)
    assert unknown.value.code() is Code.NOT_FOUND
    reflection = served.channel.unary_unary("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    with pytest.raises(grpc.RpcError) as off:
        reflection(b"", timeout=5)
    assert off.value.code() is Code.UNIMPLEMENTED


# Keys


@pytest.mark.parametrize("method", sorted(rpc._METHODS.keys() - {"ServerLive", "ServerReady"}))
def test_nothing_but_health_is_answered_without_a_key(served: Served, method: str) -> None:
    error = served.refusal(method, metadata={})
    assert (error.code(), reason(error)) == (Code.UNAUTHENTICATED, "NO_KEY")
    wrong = served.refusal(method, metadata={"x-api-key": str(uuid.uuid4())})
    assert (wrong.code(), reason(wrong)) == (Code.UNAUTHENTICATED, "KEY_UNKNOWN")


def test_keys_have_roles_and_end_and_come_as_bearer_tokens_too(served: Served, expected: np.ndarray) -> None:
    import datetime

    recognise, metrics = served.key_of(Role.recognise), served.key_of(Role.metrics)
    bearer = {"authorization": f"Bearer {recognise['x-api-key']}"}
    assert served.infer(ask(), metadata=bearer).raw_output_contents[0] == expected.tobytes()
    local = served.key_of(Role.admin, gallery="default")
    for key, method, word in (
        (metrics, "ModelInfer", "WRONG_ROLE"),
        (recognise, "RepositoryModelLoad", "WRONG_ROLE"),
        (recognise, "RepositoryModelUnload", "WRONG_ROLE"),
        (local, "RepositoryModelUnload", "ONE_GALLERY"),
    ):
        error = served.refusal(method, ask() if method == "ModelInfer" else b"", metadata=key)
        assert (error.code(), reason(error)) == (Code.PERMISSION_DENIED, word)
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=1)
    expired = served.key_of(Role.recognise, expires=soon)
    time.sleep(1.1)
    error = served.refusal("ModelInfer", ask(), metadata=expired)
    assert (error.code(), reason(error)) == (Code.UNAUTHENTICATED, "KEY_EXPIRED")


def test_a_key_that_asks_too_often_is_told_when_to_try_again(tmp_path: Path) -> None:
    with serve_both(tmp_path, keys={"per_key": 0.5}) as served:
        errors = []
        for _ in range(8):
            try:
                served.call("ServerMetadata")
            except grpc.RpcError as error:
                errors.append(error)
        assert {(error.code(), reason(error)) for error in errors} == {(Code.RESOURCE_EXHAUSTED, "TOO_OFTEN")}
        metadata = dict(errors[0].trailing_metadata())
        status = rpc._MESSAGES["Status"].FromString(metadata["grpc-status-details-bin"])
        assert status.details[1].type_url == "type.googleapis.com/google.rpc.RetryInfo"
        delay = rpc._MESSAGES["RetryInfo"].FromString(status.details[1].value).retry_delay
        assert 0 < delay.seconds + delay.nanos / 1e9 <= 10


# What is hostile


def _of(**changes: Any) -> bytes:
    content: bytes = ask(**changes).SerializeToString()
    return content


def _typed(shape: list[int], datatype: str = "FP32", **contents: Any) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype=datatype, shape=shape, contents=contents)
    content: bytes = pb.ModelInferRequest(model_name="default", inputs=[tensor]).SerializeToString()
    return content


def _both() -> bytes:
    message = ask()
    message.inputs[0].contents.fp32_contents.append(1)
    content: bytes = message.SerializeToString()
    return content


HOSTILE = {
    "cut": _of()[:-1],
    "no protobuf": b"\xff" * 100,
    "an empty message": b"",
    "a huge shape": _of(shape=[2**31, 2**31, 2**31]),
    "a shape of many": _of(shape=[1] * 100_000),
    "a negative shape": _of(shape=[-2, 3, 32, 32]),
    "another shape": _of(shape=[2, 32, 32, 3]),
    "fewer bytes": _of(raw=PIXELS.tobytes()[:-1]),
    "more bytes": _of(raw=PIXELS.tobytes() + b"\0"),
    "no bytes": _of(raw=b""),
    "half of the bytes": _of(datatype="FP64"),
    "no datatype": _of(datatype=""),
    "another datatype": _of(datatype="FP33"),
    "a long datatype": _of(datatype="F" * 100_000),
    "whole numbers": _of(datatype="INT32"),
    "another name": _of(name="other"),
    "a long name": _of(name="n" * 100_000),
    "a name of two lines": _of(name="a\nb"),
    "a BYTES length beyond the end": _of(datatype="BYTES", shape=[1], raw=b"\xff\xff\xff\xff"),
    "BYTES that are no image": _of(datatype="BYTES", shape=[1], raw=b"\x01\0\0\0x"),
    "two bytes for one input": _of() + pb.ModelInferRequest(raw_input_contents=[b"x"]).SerializeToString(),
    "both kinds of contents": _both(),
    "17 inputs": b"".join([b"\x0a\x07default", *[b"\x2a\x00"] * 17]),
    "a million inputs": b"\x0a\x07default" + b"\x2a\x00" * 1_000_000,
    "a million parameters": b"\x0a\x07default" + b"\x22\x00" * 1_000_000,
    "a million raw contents": _of() + b"\x3a\x00" * 1_000_000,
    "an input that is no message": b"\x0a\x07default\x2a\x01\xff",
    "fewer values": _typed([1, 3, 32, 32], fp32_contents=[1.0]),
    "values of another type": _typed([1], int_contents=[1]),
    "values of two types": _typed([1], fp32_contents=[1.0], int_contents=[1]),
    "half floats as values": _typed([1], "FP16", fp32_contents=[1.0]),
    "values without a datatype": _typed([1], "", fp32_contents=[1.0]),
    "no finite numbers": _of(raw=np.full_like(PIXELS, np.nan).tobytes()),
    "shared memory": _of(parameters={"shared_memory_region": {"string_param": "x"}}),
    "an output twice": _of() + pb.ModelInferRequest(outputs=[{"name": "embeddings"}] * 2).SerializeToString(),
    "another output": _of() + pb.ModelInferRequest(outputs=[{"name": "other"}]).SerializeToString(),
    "text that is not UTF-8": b"\x0a\x01\xff",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_request_that_is_wrong_is_an_invalid_argument_that_repeats_little_of_it(
    served: Served, content: bytes
) -> None:
    error = served.refusal("ModelInfer", content)
    assert error.code() is Code.INVALID_ARGUMENT, error
    assert reason(error) in ("BAD_INPUT", "MALFORMED_BODY", "BAD_IMAGE")
    assert 10 < len(error.details()) <= 1000


def test_what_is_not_there_is_not_found(served: Served) -> None:
    for message in (ask(), ask()):
        message.model_name = "other"
        assert served.refusal("ModelInfer", message).code() is Code.NOT_FOUND
    message = ask()
    message.model_version = "9"
    assert served.refusal("ModelInfer", message).code() is Code.NOT_FOUND
    for name in ("other", "../../etc", "default\0"):
        error = served.refusal("ModelMetadata", pb.ModelMetadataRequest(name=name))
        assert (error.code(), reason(error)) == (Code.NOT_FOUND, "NO_SUCH_MODEL")


@given(st.data())
def test_damaged_messages_are_answered_or_refused_by_a_code_of_ours(served: Served, data: st.DataObject) -> None:
    """Some damage hits the pixels, and is a right request; nothing becomes an internal failure."""
    content = bytearray(_of(raw=PIXELS[:1].tobytes(), shape=[1, 3, 32, 32]))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 60)) % len(content)] = data.draw(st.integers(0, 255))
    with contextlib.suppress(grpc.RpcError):
        served.call("ModelInfer", bytes(content))
        return
    error = served.refusal("ModelInfer", bytes(content))
    assert error.code() in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), error


# Limits


def test_a_message_is_bounded_before_it_is_decoded_and_packed_ones_when_they_are_unpacked(tmp_path: Path) -> None:
    with serve_both(tmp_path, limits={"body_bytes": 100_000}) as served:
        assert served.refusal("ModelInfer", b"x" * 100_001).code() is Code.RESOURCE_EXHAUSTED
        bomb = served.refusal("ModelInfer", b"\0" * 10_000_000, compression=grpc.Compression.Gzip)
        assert bomb.code() is Code.RESOURCE_EXHAUSTED
        packed = served.infer(ask(), compression=grpc.Compression.Gzip)
        assert packed.raw_output_contents
        error = served.refusal("RepositoryModelLoad", b"\x22\x00" * 40_000)
        assert (error.code(), reason(error)) == (Code.RESOURCE_EXHAUSTED, "TOO_LARGE")


def test_connections_are_bounded_and_a_silent_one_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "HEADER_SECONDS", 0.5)
    with serve_both(tmp_path, limits={"connections": 2}) as served, contextlib.ExitStack() as stack:
        host, _, port = served.address.partition(":")
        silent = [stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(3)]
        time.sleep(0.2)
        assert served.refusal("ServerLive").code() is Code.UNAVAILABLE
        for connection in silent:
            while connection.recv(100):
                pass
        assert served.call("ServerLive", wait_for_ready=True)


def test_a_message_that_is_refused_is_not_kept(served: Served) -> None:
    """Not even until Python collects cycles, for which it sees no reason: to it a message is one small object."""

    def count() -> int:
        return sum(type(each) is rpc._MESSAGES["Infer"] for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = count()
        for _ in range(5):
            served.refusal("ModelInfer", HOSTILE["fewer values"])
        until = time.monotonic() + 5
        while count() > before and time.monotonic() < until:
            time.sleep(0.05)
        assert count() <= before
    finally:
        gc.enable()


def test_a_message_that_does_not_arrive_is_ended_and_an_absent_one_refused(tmp_path: Path) -> None:
    with serve_both(tmp_path, limits={"body_seconds": 0.3}) as served:
        stop = threading.Event()
        slow = served.channel.stream_unary(SERVICE + "ModelInfer")
        metadata = tuple(served.key.items())
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as late:
            slow((stop.wait(5) and b"" for _ in range(1)), metadata=metadata, timeout=10)
        stop.set()
        assert (late.value.code(), reason(late.value)) == (Code.DEADLINE_EXCEEDED, "TOO_SLOW")
        assert time.monotonic() - began < 3
        with pytest.raises(grpc.RpcError) as none:
            slow(iter(()), metadata=metadata, timeout=10)
        assert none.value.code() is Code.INVALID_ARGUMENT


def test_deadlines_cancellation_and_a_full_queue_are_those_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, computed = threading.Event(), list[str]()
    infer = kserve.infer

    def wait(service: Any, caller: Any, name: str, version: Any, request: Any) -> Any:
        computed.append(request.id)
        gate.wait(20)
        return infer(service, caller, name, version, request)

    monkeypatch.setattr(kserve, "infer", wait)

    def begin(served: Served, name: str, timeout: float = 20) -> Any:
        message = ask()
        message.id = name
        method = served.channel.unary_unary(SERVICE + "ModelInfer")
        found = method.future(message.SerializeToString(), metadata=tuple(served.key.items()), timeout=timeout)
        time.sleep(0.1)
        return found

    with serve_both(tmp_path, limits={"workers": 1, "queue": 2}) as served:
        first, second, third = begin(served, "first"), begin(served, "second"), begin(served, "third", 0.3)
        error = served.refusal("ModelInfer", ask())
        assert (error.code(), reason(error)) == (Code.UNAVAILABLE, "OVERLOADED")
        assert not served.client.is_server_ready()
        assert third.exception(5).code() is Code.DEADLINE_EXCEEDED
        second.cancel()
        time.sleep(0.1)
        gate.set()
        assert first.result(10)
        fourth = begin(served, "fourth")
        assert fourth.result(10)
        assert computed == ["first", "fourth"]


# The repository


def test_an_administrator_loads_and_unloads_while_requests_run_and_none_is_lost(served: Served) -> None:
    values = {
        str(number): run_ir(served.service.settings.models["second"].model + f"/{number}/{name}.xml", PIXELS)
        for number, name in ((1, "tiny"), (2, "tiny"))
    }
    np.testing.assert_allclose(values["1"], -values["2"], atol=1e-6)
    stop, wrong, seen = threading.Event(), list[Any](), list[str]()

    def ask_on() -> None:
        message = ask()
        message.model_name = "second"
        while not stop.is_set():
            try:
                answer = served.infer(message)
            except grpc.RpcError as error:
                wrong.append(error)
                continue
            found = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 3)
            seen.append(answer.model_version)
            if not np.array_equal(found, values[answer.model_version]):
                wrong.append(answer)

    threads = [threading.Thread(target=ask_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in (1, 2):
        served.client.load_model("second", headers=served.key, config=specific(number)["parameters"]["config"])
        until = len(seen) + 4
        while len(seen) < until and not wrong:
            time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert {"1", "2"} <= {*seen}
    served.client.unload_model("second", headers=served.key)
    assert not served.client.is_model_ready("second", headers=served.key)
    index = served.client.get_model_repository_index(headers=served.key)
    assert [each.reason for each in index.models] == ["", "unloaded"]
    served.call("RepositoryModelLoad", b"\x0a\x06second")  # KServe's message has the name first
    assert served.client.is_model_ready("second", "2", headers=served.key)
    assert served.service.audit is not None
    actions = [row.action for row in served.service.audit.rows()]
    assert [each for each in actions if each != "infer"] == ["model.load", "model.load", "model.unload", "model.load"]


def test_nothing_else_of_a_model_is_changed_and_a_load_that_fails_tells_no_path(served: Served) -> None:
    for options in (
        {"config": "{}"},
        {"config": specific(1)["parameters"]["config"], "files": {"file:1/model.xml": b"x"}},
    ):
        with pytest.raises(InferenceServerException) as refused:
            served.client.load_model("second", headers=served.key, **options)
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    for name, code in (("none", "NOT_FOUND"), ("../default", "NOT_FOUND"), ("", "INVALID_ARGUMENT")):
        with pytest.raises(InferenceServerException) as refused:
            served.client.load_model(name, headers=served.key)
        assert refused.value.status() == f"StatusCode.{code}"
    with pytest.raises(InferenceServerException) as refused:
        served.client.load_model("default", headers=served.key, config=specific(7)["parameters"]["config"])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert str(served.service.settings.state.parent) not in refused.value.message()


# What the operator sees


def test_requests_are_logged_counted_and_named(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "edgeface.serve"):
        method = served.channel.unary_unary(SERVICE + "ModelInfer")
        metadata = (*served.key.items(), ("x-request-id", "door-7"))
        _, call = method.with_call(ask().SerializeToString(), metadata=metadata, timeout=10)
        assert dict(call.trailing_metadata())["x-request-id"] == "door-7"
        error = served.refusal("ModelInfer", b"x", metadata=dict(metadata))
        assert dict(error.trailing_metadata())["x-request-id"] == "door-7"
        time.sleep(0.05)
    lines = [(each.request_id, each.method, each.route, each.status, each.bytes) for each in caplog.records]  # type: ignore[attr-defined]
    lines = [line for line in lines if line[0] == "door-7"]  # the test before may have its last line written now
    route = SERVICE + "ModelInfer"
    assert lines == [("door-7", "gRPC", route, 200, len(_of())), ("door-7", "gRPC", route, 400, 1)]
    over_http = triton_http.InferenceServerClient(f"127.0.0.1:{served.http_port}")
    text = over_http._get("metrics", served.key, None).read().decode()
    over_http.close()
    assert f'edgeface_requests_total{{code="200",endpoint="{route}"}}' in text
    assert "edgeface_requests_in_flight 1.0" in text
    assert served.service.audit is not None
    assert list(served.service.audit.rows())[-1].request_id == "door-7"


def test_tls_is_by_the_same_files_and_asks_for_certificates_of_clients(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    issue_server(folder, ["192.168.1.20"])  # which gRPC's clients cannot check
    issued, client = issue_server(folder, addresses=False), issue_client(folder, "door")
    tls = {"certificate": str(issued.certificate), "key": str(issued.key), "client_ca": str(issued.authority)}
    authority = issued.authority.read_bytes()
    with serve_both(tmp_path, tls=tls) as served:
        pair = client.key.read_bytes(), client.certificate.read_bytes()
        for credentials, answers in (
            (grpc.ssl_channel_credentials(authority, *pair), True),
            (grpc.ssl_channel_credentials(authority), False),
            (None, False),
        ):
            channel = grpc.secure_channel if credentials else grpc.insecure_channel
            with channel(
                served.address.replace("127.0.0.1", "localhost"), *([credentials] if credentials else [])
            ) as opened:
                live = opened.unary_unary(SERVICE + "ServerLive")
                if answers:
                    assert live(b"", timeout=5) == b"\x08\x01"
                else:
                    with pytest.raises(grpc.RpcError) as refused:
                        live(b"", timeout=5)
                    assert refused.value.code() is Code.UNAVAILABLE


def test_the_port_and_the_extra_are_checked(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = {"port": 0, "grpc_port": int(served.address.rpartition(":")[2])}
    taken = served.service.settings.model_dump() | {"state": tmp_path, "listen": listen}
    with pytest.raises(InputError, match=r"listen\.grpc_port"):
        check(Settings.model_validate(taken))
    monkeypatch.setitem(sys.modules, "edgeface.serve.rpc", None)
    monkeypatch.delattr(edgeface.serve, "rpc")
    with pytest.raises(EdgeFaceError, match="extra 'grpc'"):
        check(Settings.model_validate(taken | {"listen": {"port": 0, "grpc_port": 0}}))
    assert check(Settings.model_validate(taken | {"listen": {"port": 0}}))["models"]


def test_sigterm_answers_what_was_accepted_over_grpc_and_refuses_the_rest(tmp_path: Path) -> None:
    with run_command(tmp_path, "port: 0, grpc_port: 0") as command:
        ready = answer_of(command)
        metadata = (("x-api-key", ready["first_key"]),)
        with grpc.insecure_channel(ready["grpc_address"]) as channel:
            infer = channel.unary_unary(SERVICE + "ModelInfer")
            content = ask().SerializeToString()
            accepted = [infer.future(content, metadata=metadata, timeout=20) for _ in range(3)]
            time.sleep(0.25)
            command.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            refused = infer.future(content, metadata=metadata, timeout=20)
            assert refused.exception(20).code() is Code.UNAVAILABLE
            assert reason(refused.exception()) == "CLOSING"
            assert len({each.result(20) for each in accepted}) == 1
        assert command.wait(20) == 0
