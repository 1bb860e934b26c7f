"""PyTorch state dictionaries with the published weights, against TensorFlow's embeddings and facenet-pytorch itself."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.testing import assert_array_equal
from torch_states import state_of, write_legacy, write_zip

from edgeface.convert import convert
from edgeface.convert.converter import format_of
from edgeface.convert.parity import embed_with_ir, run_model
from edgeface.convert.pytorch import inception_resnet_v1_keys, load_pytorch
from edgeface.convert.recipe import Recipe
from edgeface.convert.source import SourceModel
from edgeface.convert.tensorflow import load_tensorflow
from edgeface.model.contract import Alignment, ModelContract
from edgeface.torch_file import read_torch
from edgeface.zoo.catalog import load_catalog
from edgeface.zoo.store import ModelStore

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

FACENET = "facenet-20180408-102900"
LIVENESS = {"2.7_80x80_MiniFASNetV2.pth": (334, 434_560), "4_0_0_80x80_MiniFASNetV1SE.pth": (370, 433_586)}


def recipe_of(size: int, *, normalized: bool = True) -> Recipe:
    return Recipe(name="x", size=(size, size), alignment=Alignment("none"), normalized=normalized)


@pytest.fixture(scope="module")
def state(weights: dict[str, Any]) -> dict[str, np.ndarray]:
    return state_of(weights)


@pytest.fixture(scope="module")
def tensorflow_weights_id(real_pb: Path) -> str:
    return load_tensorflow(real_pb, size=(160, 160)).weights_id


def test_the_keys_are_those_of_facenet_pytorch(data: Path) -> None:
    rows = [line.split("\t") for line in (data / "pytorch/inception_resnet_v1_keys.tsv").read_text().splitlines()]
    found = inception_resnet_v1_keys()
    for key, shape, name, _ in rows:
        if key.endswith("num_batches_tracked"):
            continue
        assert str(found[key][1]) == shape, key
        assert name in ("-", found[key][0]), key
    assert len(rows) == len(found) + 112
    assert found.keys() < {row[0] for row in rows}


def test_the_graph_of_160_pixels_has_the_bytes_that_it_always_had(real_pb: Path) -> None:
    digest = "b5eae210906bab2b6b9dd7d096cb1581b0c0fe2302c199389ab1369f1d159ef4"
    assert hashlib.sha256(real_pb.read_bytes()).hexdigest() == digest


def test_a_state_dictionary_gives_the_golden_embeddings_and_the_id_of_the_tensorflow_route(
    state: dict[str, np.ndarray], golden: Any, real_ir: Path, tmp_path: Path
) -> None:
    path = write_zip(tmp_path / "x.pt", state)

    result = convert(path, tmp_path / "out", name=FACENET)

    assert np.abs(embed_with_ir(result.ir, golden.images) - golden.embeddings).max() <= 1e-5
    contract = ModelContract.read_from(ov.Core().read_model(real_ir))
    assert result.contract.contract_id == contract.contract_id
    assert (result.contract.framework, contract.framework) == ("pytorch", "tf")


def test_the_zoos_state_dictionary_converts_by_its_name(
    state: dict[str, np.ndarray], golden: Any, tmp_path: Path
) -> None:
    """The published file is not here: one of its form, with the weights that are, a prefix and a classifier, is."""
    name = "inception-resnet-v1-vggface2"
    logits = {"logits.weight": np.zeros((9, 512), np.float32), "logits.bias": np.zeros(9, np.float32)}
    wrapped = {f"module.backbone.{key}": value for key, value in (state | logits).items()}

    path = write_legacy(tmp_path / "x.pt", wrapped)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    published = load_catalog()[name]
    file = published.files[0].model_copy(update={"sha256": sha256, "size": path.stat().st_size})
    assert published.conversion is not None
    conversion = published.conversion.model_copy(update={"sha256": sha256})
    entry = published.model_copy(update={"files": [file], "conversion": conversion})
    store = ModelStore(tmp_path / "store")
    store.add_blob(entry, file, path, sha256=sha256, source="here")
    store.materialise(entry)

    result = convert(name, store=store, catalog={name: entry})

    assert result.ir == store.ir_path(name)
    assert np.abs(embed_with_ir(result.ir, golden.images) - golden.embeddings).max() <= 1e-5
    alignment = result.contract.alignment
    assert (alignment.recipe, alignment.margin) == ("mtcnn-box-output-margin", 14)
    assert (result.contract.name, result.contract.normalized) == (name, True)
    assert format_of(Path("mine.pth")).default_recipe == name


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dictionary_that_torch_saved_has_the_same_weights(
    state: dict[str, np.ndarray], tensorflow_weights_id: str, tmp_path: Path, zipped: bool
) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    assert load_pytorch(path, recipe_of(160)).weights_id == tensorflow_weights_id


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """facenet-pytorch's network, without its detector, which needs torchvision."""
    pytest.importorskip("torch")
    if (spec := importlib.util.find_spec("facenet_pytorch")) is None or not spec.submodule_search_locations:
        pytest.skip("facenet-pytorch is not installed")
    package = types.ModuleType("facenet_pytorch")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "facenet_pytorch", package)
    return importlib.import_module("facenet_pytorch.models.inception_resnet_v1").InceptionResnetV1().eval()


@pytest.mark.parametrize(("size", "normalized"), [(160, True), (512, False)])
def test_facenet_pytorch_agrees_on_trained_batch_norms_at_any_size_raw_or_not(
    state: dict[str, np.ndarray], network: Any, tmp_path: Path, size: int, normalized: bool
) -> None:
    """Fine-tuned models have batch norms with a scale, and the seed's takes 512 x 512 and keeps the length."""
    import torch

    rng = np.random.default_rng(0)
    trained = {
        key: value if not key.endswith("bn.weight") else rng.uniform(0.8, 1.2, value.shape).astype(np.float32)
        for key, value in state.items()
    }
    network.load_state_dict({key: torch.from_numpy(value) for key, value in trained.items()})
    images = rng.uniform(0, 1, (2, 3, size, size)).astype(np.float32)

    source: SourceModel = load_pytorch(write_zip(tmp_path / "x.pt", trained), recipe_of(size, normalized=normalized))

    assert source.normalized is normalized
    found = run_model(source.model, np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    raw: list[Any] = []
    network.last_bn.register_forward_hook(lambda _, __, output: raw.append(output.numpy()))
    with torch.no_grad():
        unit = network(torch.from_numpy(images)).numpy()
    expected = unit if normalized else raw[0]
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3) == normalized


@pytest.mark.parametrize("name", LIVENESS)
def test_the_liveness_networks_are_read_as_torch_reads_them(data: Path, name: str) -> None:
    tensors, parameters = LIVENESS[name]

    found = read_torch(data / "liveness" / name)

    assert len(found) == tensors
    trained = [value for key, value in found.items() if not key.endswith(("running_mean", "running_var", "tracked"))]
    assert sum(value.size for value in trained) == parameters
    assert all(key.startswith("module.") and np.isfinite(value).all() for key, value in found.items())
    torch = pytest.importorskip("torch")
    for key, value in torch.load(data / "liveness" / name, weights_only=True, map_location="cpu").items():
        assert_array_equal(found[key], value.numpy())
