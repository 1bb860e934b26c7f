"""Training on FaceNet's published weights and LFW, against TensorFlow's embeddings and facenet-pytorch's gradients."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_states import state_of, write_zip

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from edgeface.convert import convert  # noqa: E402
from edgeface.convert.parity import run_model, to_input  # noqa: E402
from edgeface.evaluate.faces import FaceSource, load_boxes  # noqa: E402
from edgeface.model.ir_file import read_contract, read_ir  # noqa: E402
from edgeface.train import HeadSettings, Optimisation, TrainableTail, pairs_of_strangers, train_head  # noqa: E402
from edgeface.train.network import count_blocks  # noqa: E402

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

FACENET = "facenet-20180408-102900"
MANY = 8
"""Photos of a person who is trained on."""


@pytest.fixture(scope="module")
def state(weights: dict[str, Any]) -> dict[str, np.ndarray]:
    return state_of(weights)


def embed(tail: TrainableTail, images: np.ndarray) -> np.ndarray:
    inputs = to_input(images, layout="NCHW", color="BGR")
    with torch.no_grad():
        return tail(torch.from_numpy(tail.features([each[np.newaxis] for each in inputs]))).numpy()


@pytest.mark.parametrize("blocks", [1, 2, 8, 30])
def test_the_last_blocks_in_torch_give_tensorflows_embeddings(real_ir: Path, golden: Any, blocks: int) -> None:
    count = 24 if blocks < 9 else 4
    found = embed(TrainableTail(real_ir, blocks), golden.images[:count])
    assert np.abs(found - golden.embeddings[:count]).max() < 1e-5


def test_facenet_has_as_many_blocks_as_inception_resnet_v1(real_ir: Path) -> None:
    """Six convolutions, 5 + 10 + 5 + 1 residual blocks, two reductions, one fully connected layer."""
    assert count_blocks(read_ir(real_ir)) == 6 + 21 + 2 + 1


def test_a_state_dictionary_of_facenet_pytorch_is_trained_as_facenets_graph_is(
    state: dict[str, np.ndarray], golden: Any, real_ir: Path, tmp_path: Path
) -> None:
    made = convert(write_zip(tmp_path / "x.pt", state), tmp_path / "out", name=FACENET)
    found = embed(TrainableTail(made.ir, 2), golden.images)
    assert np.abs(found - golden.embeddings).max() < 1e-5
    assert made.contract.contract_id == read_contract(real_ir)[1].contract_id


def test_the_gradients_are_those_of_facenet_pytorch(
    state: dict[str, np.ndarray], golden: Any, real_ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the fully connected layer and of the last residual block's projection, for the same sum of embeddings."""
    if (spec := importlib.util.find_spec("facenet_pytorch")) is None or not spec.submodule_search_locations:
        pytest.skip("facenet-pytorch is not installed")
    package = types.ModuleType("facenet_pytorch")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "facenet_pytorch", package)
    network = importlib.import_module("facenet_pytorch.models.inception_resnet_v1").InceptionResnetV1().eval()
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    images = golden.images[:3]
    rgb = torch.from_numpy(((images.transpose(0, 3, 1, 2) - 127.5) / 128).astype(np.float32))
    weights = torch.randn(512, generator=torch.Generator().manual_seed(0))
    (network(rgb) * weights).sum().backward()
    expected = {
        (512, 1792): network.last_linear.weight.grad.numpy(),
        (1792, 384, 1, 1): network.block8.conv2d.weight.grad.numpy(),
    }

    tail = TrainableTail(real_ir, 2)
    inputs = to_input(images, layout="NCHW", color="BGR")
    features = torch.from_numpy(tail.features([each[np.newaxis] for each in inputs]))
    (tail(features) * weights).sum().backward()
    found = {tuple(weight.shape): weight.grad.numpy() for weight in tail.weights.values()}

    for shape, gradient in expected.items():
        assert np.abs(found[shape] - gradient).max() < 1e-4 * np.abs(gradient).max()


@pytest.fixture(scope="module")
def faces(data: Path) -> FaceSource:
    return FaceSource(load_boxes(data / "lfw" / "mtcnn_reference.npz"), None, "reference MTCNN")


def link(people: list[Path], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for person in people:
        (folder / person.name).symlink_to(person)
    return folder


def photographed(data: Path, photos: int) -> list[Path]:
    """The people of LFW's pairs with so many photos."""
    every = sorted((data / "lfw" / "images").iterdir())
    return [person for person in every if len(list(person.iterdir())) >= photos]


@pytest.mark.parametrize(("count", "photos"), [(20, 187), pytest.param(70, 651, marks=pytest.mark.nightly)])
def test_a_head_on_the_frozen_model_names_lfws_people_and_the_embedder_stays_what_it_was(
    data: Path, real_ir: Path, faces: FaceSource, golden: Any, tmp_path: Path, count: int, photos: int
) -> None:
    people = photographed(data, MANY)
    assert [person.name for person in people[:3]] == ["Abdullah_Gul", "Alejandro_Toledo", "Alvaro_Uribe"]
    assert len(people) == 70
    people = people[:count]
    root = link(people, tmp_path / "people")
    done = train_head(
        root, tmp_path / "out", real_ir, faces, settings=HeadSettings(min_photos=MANY), cache=tmp_path / "cache"
    )
    assert done.ir is not None
    assert len(done.faces) == photos
    assert done.judgement.accuracy >= 0.97
    assert done.history.seconds < 60
    images = to_input(golden.images, layout="NCHW", color="BGR")
    before, after = (run_model(read_ir(path), images) for path in (real_ir, done.ir))
    assert np.abs(before - after).max() <= 1e-5
    assert np.abs(after - golden.embeddings).max() <= 1e-5
    assert done.contract.contract_id == read_contract(real_ir)[1].contract_id


def test_finetuned_blocks_are_judged_on_people_who_were_not_trained_on(
    data: Path, real_ir: Path, faces: FaceSource, tmp_path: Path
) -> None:
    people = photographed(data, MANY)[:8]
    others = [person for person in photographed(data, 4) if len(list(person.iterdir())) < MANY][:15]
    root = link(people, tmp_path / "people")
    strangers = pairs_of_strangers(link(others, tmp_path / "others"), root, faces=faces, most=60)
    done = train_head(
        root,
        tmp_path / "out",
        real_ir,
        faces,
        settings=HeadSettings(min_photos=MANY, unfreeze=2),
        optimisation=Optimisation(epochs=2, rate=1e-3, patience=0),
        strangers=strangers,
        force=True,
        cache=tmp_path / "cache",
    )
    assert done.ir is not None
    assert done.judgement.accuracy > 0.9
    change = done.verification
    assert change is not None
    assert change.pairs == len(strangers.pairs) > 100
    assert min(change.accuracy.before, change.accuracy.after) > 0.9
    model, contract = read_contract(done.ir)
    _, parent = read_contract(real_ir)
    assert contract.contract_id != parent.contract_id
    assert contract.lineage is not None
    assert contract.lineage.parent_id == parent.contract_id
    assert 0.5 < contract.lineage.mean_cosine < 0.99999
    assert model.input(0).get_partial_shape() == read_ir(real_ir).input(0).get_partial_shape()
