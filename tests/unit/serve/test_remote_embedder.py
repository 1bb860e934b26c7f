"""The remote embedder and `edgeface serve`, over both protocols: the same embeddings, galleries and errors as here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_ir import RED, draw, write_tiny_ir
from unit.serve.conftest import OPEN, load_squares, serving_both
from unit.serve.test_kserve import CROPS

pytest.importorskip("grpc", reason="the extra 'remote' is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra 'remote' is not installed")

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import edgeface
from edgeface.cli import main
from edgeface.errors import (
    ContractError,
    DeadlineExceeded,
    DeviceError,
    InferenceError,
    InputError,
    ModelNotFoundError,
    Overloaded,
)
from edgeface.gallery.opening import create_gallery, open_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.runtime import DevicePlan, Embedder
from edgeface.runtime.replica import contract_at
from edgeface.scale.ovms import export_ovms
from edgeface.serve.authority import issue_server
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = pytest.mark.timeout(60)
BOTH = pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])


class Served:
    """`edgeface serve` with an exported repository, and its addresses."""

    def __init__(self, service: Service, port: int, grpc_address: str, scheme: str = "ovms") -> None:
        self.service, self.port, self.scheme = service, port, scheme
        self.grpc_port = int(grpc_address.rpartition(":")[2])

    def address(self, protocol: str = "HTTP", model: str = "tiny") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/{model}" + f"?grpc={self.grpc_port}" * (protocol == "gRPC")


def settings(folder: Path, ir: Path, **changes: Any) -> Settings:
    given = {
        "state": folder / "state",
        "listen": {"grpc_port": 0},
        "models": {"tiny": {"model": str(ir)}},
        "galleries": {"default": OPEN | {"model": "tiny"}},
        "limits": {"workers": 2, "queue": 16},
        "keys": {"per_key": 1e6, "per_address": 1e6, "wrong_per_address": 1e6},
    }
    return Settings.model_validate(given | changes)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    export_ovms([write_tiny_ir(folder)], folder / "models")
    with (
        Service(settings(folder, folder / "models" / "tiny"), load=load_squares) as service,
        serving_both(service) as (port, address),
    ):
        assert address is not None
        yield Served(service, port, address)


@pytest.fixture(autouse=True)
def _key(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_SERVER_KEY", served.service.first_key or "")


@pytest.fixture
def local(served: Served) -> Iterator[Embedder]:
    with (
        served.service.models.use("tiny") as model,
        Embedder.load(model.path, plan=DevicePlan(device="CPU", precision="f32")) as embedder,
    ):
        yield embedder


@BOTH
def test_the_embeddings_are_the_local_ones(served: Served, local: Embedder, protocol: str) -> None:
    with Embedder.load(served.address(protocol)) as remote:
        assert np.abs(remote.embed(CROPS) - local.embed(CROPS)).max() <= 1e-6
        assert np.abs(remote.infer(CROPS[0]) - local.infer(CROPS[0])).max() <= 1e-6
        assert remote.contract.contract_id == local.contract.contract_id
        for _ in range(2):  # a model that is loaded again is another version of the same contract
            served.service.load_model("tiny")
            assert np.abs(remote.embed(CROPS) - local.embed(CROPS)).max() <= 1e-6


@pytest.mark.slow
def test_galleries_of_local_embeddings_take_the_remote_ones_and_no_others(
    served: Served, local: Embedder, tmp_path: Path
) -> None:
    address = served.address("HTTP")
    with (
        load_squares(address, detector="mtcnn", min_size=20) as app,
        load_squares(address, detector=None, min_size=20) as crops,
        create_gallery(str(tmp_path / "a.gallery"), contract=local.contract, key=None) as store,
    ):
        assert crops.verify(CROPS[0], CROPS[0], threshold=0.5)
        with served.service.models.use("tiny") as model:
            store.add_person("Red", templates=[NewTemplate(embedding=model.analyzer.embed(draw(RED)))])
        (found,) = app.identify(draw(RED), store, threshold=0.99, gate=None)
        assert found.person == "Red"
    other = write_tiny_ir(tmp_path, source="b")
    with (
        create_gallery(str(tmp_path / "b.gallery"), contract=contract_at(other), key=None) as store,
        load_squares(address, detector="mtcnn", min_size=20) as app,
        pytest.raises(ContractError),
    ):
        app.identify(draw(RED), store, threshold=0.9, gate=None)


def test_commands_take_the_address(served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crop = tmp_path / "crop.png"
    cv2.imwrite(str(crop), CROPS[0])
    address = served.address("gRPC")
    words = ["embed", str(crop), "--crops", "-o", str(tmp_path / "out.npz"), "--model", address, "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["rows"], answer["contract_id"]) == (1, contract_at(address).contract_id)
    gallery = str(tmp_path / "people.gallery")
    assert main(["gallery", "create", gallery, "--unencrypted", "--model", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["contract_id"] == answer["contract_id"]
    with open_gallery(gallery) as store:
        assert store.info.contract_id == answer["contract_id"]
    gone = address.replace(str(served.port), "1")
    assert main(["verify", str(crop), str(crop), "--crops", "--model", gone, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "DeviceError"


@BOTH
def test_a_key_is_needed_and_a_model_that_is_there(
    served: Served, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    with pytest.raises(ModelNotFoundError):
        Embedder.load(served.address(protocol, model="other"))
    for wrong in (f"{served.address()}?grpc={served.port}", served.address("gRPC").replace(str(served.port), "1")):
        with pytest.raises(DeviceError, match="expected a server of KServe V2"):
            Embedder.load(wrong)
    monkeypatch.setenv("EDGEFACE_SERVER_KEY", "x" * 36)
    with pytest.raises(InputError, match="EDGEFACE_SERVER_KEY"):
        Embedder.load(served.address(protocol))
    monkeypatch.delenv("EDGEFACE_SERVER_KEY")
    with pytest.raises(InputError, match="EDGEFACE_SERVER_KEY"):
        Embedder.load(served.address(protocol))


@pytest.mark.slow
def test_tls_needs_a_certificate_of_a_known_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = issue_server(tmp_path / "tls", addresses=False)
    tls = {"certificate": str(issued.certificate), "key": str(issued.key)}
    ir = write_tiny_ir(tmp_path)
    with (
        Service(settings(tmp_path, ir, tls=tls), load=load_squares) as service,
        serving_both(service) as (port, address),
    ):
        assert address is not None
        monkeypatch.setenv("EDGEFACE_SERVER_KEY", service.first_key or "")
        served = Served(service, port, address, "ovms+tls")
        with pytest.raises(DeviceError, match=r"(?i)certificate.*SSL_CERT_FILE"):
            Embedder.load(served.address())
        monkeypatch.setenv("SSL_CERT_FILE", str(issued.authority))
        for protocol in ("HTTP", "gRPC"):
            with Embedder.load(served.address(protocol).replace("127.0.0.1", "localhost")) as remote:
                assert remote.embed(CROPS).shape == (2, 3)
        with pytest.raises(DeviceError):
            Embedder.load(served.address().replace("ovms+tls", "ovms"))


# A gRPC server that lies, beside the HTTP of the service, from which the contract comes


class Liar(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers what it is told to."""

    reply: Callable[[Any, Any], Any]

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.reply(request, context)


@pytest.fixture(scope="module")
def liar() -> Iterator[tuple[Liar, int]]:
    made = Liar()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(made, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, port
    server.stop(None)


def said(values: Any = (1.0, 0.0, 0.0), *, raw: bool = True, **changes: Any) -> Callable[[Any, Any], Any]:
    """Answer an embedding; `changes` replace fields of the output."""
    array = np.array([values], np.float32)
    fields = {"name": "embeddings", "datatype": "FP32", "shape": list(array.shape)} | changes
    message = pb.ModelInferResponse(model_name="tiny", model_version="1")
    output = message.outputs.add(**fields)
    if raw:
        message.raw_output_contents.append(array.tobytes())
    else:
        output.contents.fp32_contents.extend(array.ravel().tolist())
    return lambda request, context: message


def refused(code: Any) -> Callable[[Any, Any], Any]:
    return lambda request, context: context.abort(code, "for a reason")


def late(request: Any, context: Any) -> Any:
    time.sleep(0.6)
    return said()(request, context)


def of_another_contract(request: Any, context: Any) -> Any:
    message = said()(request, context)
    message.parameters["contract_id"].string_param = "0" * 16
    return message


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (said((1, 0, 0, 0)), InferenceError, "FP32"),
        (said(datatype="FP64"), InferenceError, "FP64"),
        (said(shape=[1, 4]), InferenceError, "FP32"),
        (said((1, np.nan, 0)), InferenceError, "NaN"),
        (said((5, 0, 0)), InferenceError, "of length 1, found 5"),
        (said((1, 0), raw=False, shape=[1, 3]), InferenceError, "2 numbers"),
        (said(name="logits"), InferenceError, "the output embeddings"),
        (lambda request, context: pb.ModelInferResponse(), InferenceError, "the output embeddings"),
        (said(np.ones(1 << 19)), InferenceError, "larger than max"),
        (of_another_contract, ContractError, "0000000000000000"),
        (refused(grpc.StatusCode.INVALID_ARGUMENT), InferenceError, "for a reason"),
        (refused(grpc.StatusCode.NOT_FOUND), InferenceError, "for a reason"),
        (refused(grpc.StatusCode.UNAUTHENTICATED), InputError, "EDGEFACE_SERVER_KEY"),
        (refused(grpc.StatusCode.RESOURCE_EXHAUSTED), Overloaded, "for a reason"),
        (late, DeadlineExceeded, "no answer"),
    ],
)
def test_a_wrong_answer_over_grpc_is_a_clear_error(
    served: Served, liar: tuple[Liar, int], reply: Any, error: type[Exception], message: str
) -> None:
    liar[0].reply = reply
    with Embedder.load(f"{served.address()}?grpc={liar[1]}") as remote:
        began = time.monotonic()
        with pytest.raises(error, match=message):
            remote.infer(CROPS[0], deadline=0.4)
        assert time.monotonic() - began < 5
        liar[0].reply = said(raw=False)
        assert remote.infer(CROPS[0]).tolist() == [1, 0, 0]


def test_without_the_extra_grpc_says_how_to_install_it_and_http_needs_none(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(edgeface.ExtraNotInstalledError, match="remote"):
        Embedder.load(served.address("gRPC"))
    with Embedder.load(served.address()) as remote:
        assert remote.embed(CROPS).shape == (2, 3)


@pytest.mark.slow
def test_a_service_that_stops_is_answered_for_by_the_other(served: Served, tmp_path: Path) -> None:
    with Service(settings(tmp_path, write_tiny_ir(tmp_path), listen={}), load=load_squares) as service:
        service.authenticate = served.service.authenticate  # type: ignore[method-assign]
        with serving_both(service) as (port, _):
            remote = Embedder.load(f"ovms://127.0.0.1:{port},127.0.0.1:{served.port}/tiny")
            first = remote.embed(CROPS)
        with remote:
            assert np.array_equal(remote.embed(np.concatenate([CROPS] * 5))[:2], first)
