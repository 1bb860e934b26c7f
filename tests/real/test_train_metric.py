"""A projection behind FaceNet's published weights, from its graph and from facenet-pytorch's state dictionary."""

from __future__ import annotations

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
from edgeface.train import MetricSettings, Optimisation, train_metric  # noqa: E402

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["graph", "state dictionary"])
def ir(request: pytest.FixtureRequest, real_ir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "graph":
        return real_ir
    folder = tmp_path_factory.mktemp("state")
    state = state_of(request.getfixturevalue("weights"))
    return convert(write_zip(folder / "x.pt", state), folder / "out", name="facenet-20180408-102900").ir


def test_the_trained_ir_is_the_projection_of_tensorflows_embeddings(
    ir: Path, data: Path, golden: Any, tmp_path: Path
) -> None:
    found = [each for each in sorted((data / "lfw" / "images").iterdir()) if len(list(each.iterdir())) == 3][:6]
    (tmp_path / "people").mkdir()
    for person in found:
        (tmp_path / "people" / person.name).symlink_to(person)
    outcome = train_metric(
        tmp_path / "people",
        tmp_path / "out",
        ir,
        FaceSource(load_boxes(data / "lfw" / "mtcnn_reference.npz")),
        settings=MetricSettings(resolutions=(14,), keep=0.1),
        optimisation=Optimisation(epochs=3, batch=16, rate=1e-2, patience=0),
        force=True,
        cache=tmp_path / "cache",
    )
    assert outcome.ir is not None
    trained, contract = read_contract(outcome.ir)
    assert contract.lineage is not None
    assert contract.lineage.parent_id == read_contract(ir)[1].contract_id
    constants = [np.array(node.data) for node in trained.get_ordered_ops() if node.get_type_name() == "Constant"]
    (weight,) = [each for each in constants if each.shape == (512, 512)]
    (bias,) = [each for each in constants[-6:] if each.shape == (1, 512)]
    expected = golden.embeddings + golden.embeddings @ weight.T + bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    images = to_input(golden.images, layout="NCHW", color="BGR")
    assert np.abs(run_model(read_ir(outcome.ir), images) - expected).max() < 1e-5
    assert np.abs(expected - golden.embeddings).max() > 1e-2
