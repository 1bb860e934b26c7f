"""KServe V2 over HTTP, with a tiny model: the answers are those of the IR, and clients get what they look at."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
from fastapi.testclient import TestClient
from tiny_ir import TINY_SIZE, tiny_crop, write_tiny_ir
from unit.serve.conftest import MakeService, client_of

from edgeface.serve.keys import Role
from edgeface.serve.service import Service
from edgeface.version import __version__

SHAPE = [1, 3, TINY_SIZE, TINY_SIZE]
CROPS = np.stack([tiny_crop(color) for color in ((250, 20, 20), (20, 200, 80))])
PIXELS = CROPS.transpose(0, 3, 1, 2).astype(np.float32) + np.float32(0.37)  # not whole numbers


@pytest.fixture
def expected(service: Service) -> np.ndarray:
    """What OpenVINO computes of `PIXELS` with the IR itself, in float32."""
    return run_ir(service.settings.models["default"].model, PIXELS)


def run_ir(path: Any, pixels: np.ndarray) -> np.ndarray:
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(pixels)[0])


def ask(pixels: np.ndarray = PIXELS, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "FP32", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    return {"inputs": [tensor | changes]}


def rows(answer: dict[str, Any], number: int = 0) -> np.ndarray:
    output = answer["outputs"][number]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def post(client: TestClient, head: dict[str, Any], *tensors: bytes, **headers: str) -> Any:
    text = json.dumps(head).encode()
    headers |= {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    return client.post("/v2/models/default/infer", content=b"".join((text, *tensors)), headers=headers)


def test_what_clients_ask_before_they_infer(client: TestClient, service: Service) -> None:
    with service.models.use("default") as model:
        contract_id = model.contract.contract_id
    assert client.get("/v2").json() == {
        "name": "edgeface",
        "version": __version__,
        "extensions": ["binary_tensor_data", "model_repository"],
    }
    assert client.get("/v2/models").json() == {"models": ["default"]}
    for path in ("/v2/models/default", "/v2/models/default/versions/1"):
        assert client.get(f"{path}/ready").json() == {"name": "default", "ready": True}
        metadata = client.get(path).json()
        assert metadata["rt_info"]["model_info"]["contract_id"] == metadata["parameters"]["contract_id"] == contract_id
        assert metadata["rt_info"]["model_info"]["color"] == "BGR"
        del metadata["rt_info"], metadata["parameters"]
        assert metadata == {
            "name": "default",
            "versions": ["1"],
            "platform": "OpenVINO",
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]}],
            "outputs": [{"name": "embeddings", "datatype": "FP32", "shape": [-1, 3]}],
        }
    index = client.post("/v2/repository/index", json={})
    assert index.json() == [{"name": "default", "version": "1", "state": "READY", "reason": ""}]


def test_only_health_is_answered_without_a_key(service: Service) -> None:
    with client_of(service) as client:
        del client.headers["x-api-key"]
        assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
        for method, path in [
            ("GET", "/v2"),
            ("GET", "/v2/models"),
            ("GET", "/v2/models/default"),
            ("GET", "/v2/models/default/ready"),
            ("POST", "/v2/models/default/infer"),
            ("POST", "/v2/repository/index"),
            ("POST", "/v2/repository/models/default/load"),
            ("POST", "/v2/repository/models/default/unload"),
        ]:
            answer = client.request(method, path)
            assert answer.status_code == 401, path
            assert "x-api-key" in answer.json()["error"]


def test_a_key_comes_as_x_api_key_or_as_a_bearer_token_and_models_are_changed_by_administrators(
    service: Service,
) -> None:
    with client_of(service, Role.recognise) as client:
        assert client.post("/v2/models/default/infer", json=ask()).status_code == 200
        for action in ("load", "unload"):
            assert client.post(f"/v2/repository/models/default/{action}").status_code == 403
        client.headers["authorization"] = f"Bearer {client.headers.pop('x-api-key')}"
        assert client.get("/v2/models/default").status_code == 200
    with client_of(service, Role.metrics) as client:
        assert client.post("/v2/models/default/infer", json=ask()).status_code == 403
    with client_of(service, Role.admin, gallery="default") as client:  # models are not of one gallery
        for action in ("load", "unload"):
            assert client.post(f"/v2/repository/models/default/{action}").status_code == 403
        assert client.get("/metrics").status_code == 403


def test_no_path_is_redirected_and_errors_have_the_form_of_the_protocol(client: TestClient) -> None:
    for path in ("/v2/", "/v2/models/", "/v2/models/default/"):
        answer = client.get(path, follow_redirects=False)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
    assert client.get("/v2/models/default/infer").status_code == 405
    for path in ("/v2/models/other", "/v2/models/default/versions/2", "/v2/models/default/versions/x/ready"):
        assert (client.get(path).status_code, list(client.get(path).json())) == (404, ["error"])


@pytest.mark.slow
def test_json_gives_what_the_ir_computes(client: TestClient, expected: np.ndarray, service: Service) -> None:
    answer = client.post("/v2/models/default/versions/1/infer", json={"id": "7", **ask()}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("default", "1", "7")
    assert answer["parameters"] == {"contract_id": client.get("/v2/models/default").json()["parameters"]["contract_id"]}
    np.testing.assert_array_equal(rows(answer), expected)
    nested = client.post("/v2/models/default/infer", json=ask(data=PIXELS.tolist())).json()
    np.testing.assert_array_equal(rows(nested), expected)
    assert service.audit is not None
    assert [row.action for row in service.audit.rows()] == ["infer"] * 2


def test_bytes_give_what_the_ir_computes_and_come_back_as_they_were_asked_for(
    client: TestClient, expected: np.ndarray
) -> None:
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(PIXELS.shape),
        "parameters": {"binary_data_size": PIXELS.nbytes},
    }
    head: dict[str, Any] = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    answer = post(client, head, PIXELS.tobytes())
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["outputs"][0] == {
        "name": "embeddings",
        "datatype": "FP32",
        "shape": [2, 3],
        "parameters": {"binary_data_size": 24},
    }
    assert answer.content[length:] == expected.tobytes()
    head["outputs"] = [{"name": "embeddings", "parameters": {"binary_data": False}}]
    np.testing.assert_array_equal(rows(post(client, head, PIXELS.tobytes()).json()), expected)


def test_a_body_without_json_is_one_crop_as_numbers_or_as_an_image_file(client: TestClient, service: Service) -> None:
    path = service.settings.models["default"].model
    whole = CROPS.transpose(0, 3, 1, 2).astype(np.float32)
    file = cv2.imencode(".png", CROPS[0])[1].tobytes()
    for body in (whole[:1].tobytes(), file):
        answer = client.post("/v2/models/default/infer", content=body, headers={"Inference-Header-Content-Length": "0"})
        length = int(answer.headers["inference-header-content-length"])
        assert answer.content[length:] == run_ir(path, whole[:1]).tobytes()


def test_uint8_and_image_files_of_crops_give_what_the_same_numbers_give(client: TestClient, service: Service) -> None:
    whole = CROPS.transpose(0, 3, 1, 2)
    expected = run_ir(service.settings.models["default"].model, whole.astype(np.float32))
    answer = client.post("/v2/models/default/infer", json=ask(whole, datatype="UINT8")).json()
    np.testing.assert_array_equal(rows(answer), expected)
    files = [cv2.imencode(".png", crop)[1].tobytes() for crop in CROPS]
    content = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    head = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2]}]}  # one input: its size may be missing
    np.testing.assert_array_equal(rows(post(client, head, content).json()), expected)
    large = cv2.imencode(".png", cv2.resize(CROPS[0], (80, 64), interpolation=cv2.INTER_NEAREST))[1].tobytes()
    head["inputs"][0]["shape"] = [1]
    resized = rows(post(client, head, len(large).to_bytes(4, "little") + large).json())
    assert float(resized[0] @ expected[0]) > 0.999


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_tensors_are_in_the_layout_colour_order_and_range_of_the_ir(
    make_service: MakeService, tmp_path: Path, layout: str
) -> None:
    pytest.importorskip("openvino")
    from contracts import sample_contract

    from edgeface.convert.ir import save_ir
    from edgeface.model.contract import Alignment
    from edgeface.model.opset import ops

    shape = [-1, 3, 32, 32] if layout == "NCHW" else [-1, 32, 32, 3]
    image = ops.parameter(shape, np.float32, name="image")
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    shifted = ops.add(image, ops.constant(np.float32(0.1)))
    mean = ops.reduce_mean(shifted, ops.constant(np.array(axes)), keep_dims=False)
    model = ov.Model([ops.normalize_l2(mean, ops.constant(np.array([1])), 1e-10, "max")], [image], "other")
    model.input(0).set_names({"image", "also"})
    model.output(0).set_names({"embeddings", "same"})
    contract = sample_contract(
        name="other",
        input_size=(32, 32),
        embedding_dim=3,
        alignment=Alignment("none"),
        layout=layout,
        color="RGB",
        value_range=(-1, 1),
    )
    path = save_ir(model, tmp_path / "other", contract)[0]
    whole = CROPS[..., ::-1].astype(np.float32) / np.float32(127.5) - 1
    pixels = np.ascontiguousarray(whole.transpose(0, 3, 1, 2) if layout == "NCHW" else whole)
    expected = run_ir(path, pixels)
    with client_of(make_service(models={"default": {"model": str(path)}})) as client:
        metadata = client.get("/v2/models/default").json()
        assert metadata["inputs"][0]["shape"] == shape
        assert [each["name"] for each in metadata["outputs"]] == ["embeddings", "same"]
        answer = client.post("/v2/models/default/infer", json=ask(pixels, name="also")).json()
        for number in range(2):
            np.testing.assert_allclose(rows(answer, number), expected, atol=1e-6)
        one = ask(pixels) | {"outputs": [{"name": "same"}]}
        assert [each["name"] for each in client.post("/v2/models/default/infer", json=one).json()["outputs"]] == [
            "same"
        ]
        files = [cv2.imencode(".png", crop)[1].tobytes() for crop in CROPS]
        content = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        head = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2]}]}
        np.testing.assert_allclose(rows(post(client, head, content).json()), expected, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        ask(name="x"),
        {"inputs": []},
        {"inputs": ask()["inputs"] * 2},
        ask(shape=[2, 32, 32, 3]),
        ask(PIXELS[:0]),
        ask(np.repeat(PIXELS[:1, :, :1, :1], 33, axis=0)),
        ask(np.zeros((33, 3, 32, 32), np.float32)),
        ask(np.full(SHAPE, 1e30, np.float32)),
        ask(np.full(SHAPE, -600, np.float32)),
        ask() | {"outputs": [{"name": "other"}]},
        ask(datatype="INT8", data=[1] * PIXELS.size),
        ask(datatype="BYTES", shape=[1], data=["no image"]),
        ask(datatype="BYTES", shape=[1, 1], data=["no image"]),
        ask(datatype="BYTES", shape=[1], data=[base64.b64encode(b"x" * 100).decode()]),
    ],
)
def test_what_the_model_does_not_take_is_refused_with_400(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v2/models/default/infer", json=body)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(client: TestClient, value: float) -> None:
    pixels = PIXELS[:1].copy()
    pixels[0, 1, 2, 3] = value
    head = {"inputs": [{"name": "image", "datatype": "FP32", "shape": SHAPE}]}
    assert post(client, head, pixels.tobytes()).status_code == 400


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "²", "9" * 20, "100000"])
def test_a_length_of_the_json_that_does_not_fit_is_refused(client: TestClient, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    answer = client.post("/v2/models/default/infer", content=b"{}", headers=headers)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bodies_may_be_compressed_both_ways(client: TestClient, expected: np.ndarray, encoding: str) -> None:
    import zlib

    many = np.repeat(PIXELS, 16, axis=0)
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding, "Content-Type": "application/json"}
    body = compress(json.dumps(ask(many)).encode())
    answer = client.post("/v2/models/default/infer", content=body, headers=headers)
    assert answer.headers["content-encoding"] == encoding
    np.testing.assert_array_equal(rows(answer.json()), np.repeat(expected, 16, axis=0))


def test_a_compressed_body_unpacks_to_no_more_than_the_limit_of_bodies(make_service: MakeService) -> None:
    with client_of(make_service(limits={"body_bytes": 100_000})) as client:
        bomb = gzip.compress(b" " * 10_000_000)
        answer = client.post("/v2/models/default/infer", content=bomb, headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 400
        assert "at most 100,000 bytes unpacked" in answer.json()["error"]


# The repository


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """A folder of two versions, with contracts of their own, of the tiny model; the second in RGB."""
    folder = tmp_path / "versions"
    for number, color in (("1", "BGR"), ("2", "RGB")):
        write_tiny_ir(folder / number, color=color)
    (folder / "notes").mkdir()
    return folder


def two_models(make_service: MakeService, tmp_path: Path, versions: Path) -> Service:
    first = str(write_tiny_ir(tmp_path))
    return make_service(models={"default": {"model": first}, "second": {"model": str(versions)}})


def specific(*numbers: Any) -> dict[str, Any]:
    return {"parameters": {"config": json.dumps({"version_policy": {"specific": {"versions": numbers}}})}}


def test_the_highest_version_of_a_folder_is_loaded_and_any_other_on_demand(
    make_service: MakeService, tmp_path: Path, versions: Path
) -> None:
    with client_of(two_models(make_service, tmp_path, versions)) as client:
        load = "/v2/repository/models/second/load"
        first = client.get("/v2/models/second").json()
        assert first["versions"] == ["2"]
        assert client.post(load, json=specific(1)).json() == {"name": "second", "load": True}
        second = client.get("/v2/models/second").json()
        assert second["versions"] == ["1"]
        assert second["parameters"] != first["parameters"]
        assert client.get("/v2/models/second/versions/2").status_code == 404
        assert client.post(load).status_code == 200
        assert client.get("/v2/models/second/versions/2").status_code == 200
        shutil.copytree(versions / "1", versions / "11")
        assert client.post(load, json={}).status_code == 200
        assert client.get("/v2/models/second").json()["versions"] == ["11"]


def test_nothing_else_of_a_model_can_be_changed_by_a_request(
    make_service: MakeService, tmp_path: Path, versions: Path
) -> None:
    bodies: list[Any] = [
        specific(1, 2),
        specific("1"),
        specific(True),
        specific(),
        *({"parameters": {"config": config}} for config in ("{}", "[", "null", "\ud800", 5)),
        {"parameters": {"config": json.dumps({"version_policy": {"specific": {"versions": [1]}}, "backend": "x"})}},
        {"parameters": {"file:1/model.xml": "AAAA", **specific(1)["parameters"]}},
        {"parameters": {"model": "/etc/passwd"}},
        {"parameters": [1]},
        [],
    ]
    with client_of(two_models(make_service, tmp_path, versions)) as client:
        for body in bodies:
            answer = client.post("/v2/repository/models/second/load", content=json.dumps(body))
            assert answer.status_code == 400, body
        assert client.post("/v2/repository/models/second/load", content=b" " * 70_000).status_code == 413
        assert client.get("/v2/models/second").json()["versions"] == ["2"]


def test_what_cannot_be_loaded_leaves_the_version_before_and_tells_no_path(
    make_service: MakeService, tmp_path: Path, versions: Path
) -> None:
    with client_of(two_models(make_service, tmp_path, versions)) as client:
        (versions / "3").mkdir()
        (versions / "4").mkdir()
        shutil.copy(versions / "1" / "tiny.xml", versions / "4")
        (versions / "4" / "tiny.bin").write_bytes(b"x")
        for body, status in ((specific(3), 400), (specific(4), 400), (specific(9), 404), (specific(0), 404)):
            answer = client.post("/v2/repository/models/second/load", json=body)
            assert answer.status_code == status
            assert str(tmp_path) not in answer.text
            assert client.get("/v2/models/second").json()["versions"] == ["2"]
        for name in ("none", "..%2f..%2fetc", "default%00"):
            assert client.post(f"/v2/repository/models/{name}/load").status_code == 404
        assert client.post("/v2/repository/models/default/load", json=specific(1)).status_code == 400  # no folder


def test_a_model_that_a_gallery_was_not_made_with_does_not_take_over(make_service: MakeService, versions: Path) -> None:
    with client_of(make_service(models={"default": {"model": str(versions)}})) as client:
        answer = client.post("/v2/repository/models/default/load", json=specific(1))
        assert answer.status_code == 409
        assert client.get("/v2/models/default").json()["versions"] == ["2"]


def test_an_unloaded_model_is_listed_does_not_answer_and_comes_back(
    make_service: MakeService, tmp_path: Path, versions: Path
) -> None:
    with client_of(two_models(make_service, tmp_path, versions)) as client:
        assert client.post("/v2/repository/models/second/unload", json={"parameters": {}}).status_code == 200
        assert client.post("/v2/repository/models/second/unload").status_code == 404
        assert client.get("/v2/models/second/ready").status_code == 404
        assert client.get("/v2/health/ready").status_code == 200  # no gallery needs it
        unavailable = {"name": "second", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
        assert unavailable in client.post("/v2/repository/index").json()
        ready = client.post("/v2/repository/index", json={"ready": True}).json()
        assert [each["name"] for each in ready] == ["default"]
        assert client.post("/v2/repository/models/second/load").status_code == 200
        assert client.get("/v2/models/second/ready").status_code == 200


def test_a_file_that_was_replaced_does_not_answer_for_the_version_that_was_loaded(
    make_service: MakeService, tmp_path: Path, versions: Path
) -> None:
    service = two_models(make_service, tmp_path, versions)
    with client_of(service) as client:
        for name in ("tiny.xml", "tiny.bin"):
            shutil.copy(versions / "1" / name, versions / "2" / name)
        assert client.post("/v2/models/second/infer", json=ask()).status_code == 409
        assert client.post("/v2/repository/models/second/load").status_code == 200
        assert client.post("/v2/models/second/infer", json=ask()).status_code == 200


@pytest.mark.slow
def test_models_that_are_swapped_ten_times_under_load_lose_no_request_and_mix_no_versions(
    make_service: MakeService, tmp_path: Path
) -> None:
    """The second version gives the opposite vectors: the values prove which one answered."""
    versions, pixels, ids = tmp_path / "versions", PIXELS[:1], dict[str, str]()
    paths = {"1": write_tiny_ir(versions / "1"), "2": save_negated(write_tiny_ir(tmp_path, source="b"), versions / "2")}
    values = {number: run_ir(path, pixels) for number, path in paths.items()}
    service = make_service(
        models={"default": {"model": str(write_tiny_ir(tmp_path))}, "second": {"model": str(versions)}},
        limits={"workers": 2, "queue": 16},
        keys={"per_key": 1e6, "per_address": 1e6},
    )
    stop, wrong, counts = threading.Event(), list[Any](), list[int]()

    def ask_on(client: TestClient) -> None:
        count = 0
        while not stop.is_set():
            answer = client.post("/v2/models/second/infer", json=ask(pixels))
            if answer.status_code != 200:
                wrong.append(answer.text)
                continue
            given = answer.json()
            number = given["model_version"]
            if ids.setdefault(number, given["parameters"]["contract_id"]) != given["parameters"]["contract_id"]:
                wrong.append(given)
            if not np.allclose(rows(given), values[number], atol=1e-6):
                wrong.append(given)
            count += 1
        counts.append(count)

    with client_of(service) as client:
        threads = [threading.Thread(target=ask_on, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(10):
            answer = client.post("/v2/repository/models/second/load", json=specific(1 + turn % 2))
            assert answer.status_code == 200, answer.text
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert min(counts) > 0
    assert len(set(ids.values())) == 2


def save_negated(path: Path, folder: Path) -> Path:
    """Write an IR that gives the opposite vectors."""
    from edgeface.convert.ir import save_ir
    from edgeface.model.ir_file import read_contract
    from edgeface.model.opset import ops

    model, contract = read_contract(path)
    names, result = model.output(0).get_names(), model.output(0).get_node()
    source = result.input_value(0)
    source.set_names(set())
    negative = ops.negative(source)
    negative.output(0).set_names(names)
    result.input(0).replace_source_output(negative.output(0))
    model.validate_nodes_and_infer_types()
    return save_ir(model, folder, contract)[0]


def test_the_model_of_a_gallery_comes_back_too(client: TestClient) -> None:
    assert client.post("/v2/repository/models/default/unload").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503
    assert client.post("/v2/repository/models/default/load").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
