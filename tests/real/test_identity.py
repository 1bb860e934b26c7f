"""One set of weights has one identity, whatever file carried it, and one threshold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from tiny_graphs import write_checkpoint
from torch_states import state_of, write_zip

from edgeface.convert import adopt, convert
from edgeface.convert.facenet_graph import build_graph
from edgeface.convert.messages import DT_FLOAT, MetaGraphDef, SavedModel, set_shape
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import read_contract, read_ir
from edgeface.recognize.known import shipped_thresholds

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]

FACENET = "facenet-20180408-102900"


def variable_graph(weights: dict[str, np.ndarray]) -> Any:
    """The graph as training leaves it: weights are variables, whose values lie in a checkpoint."""
    graph = build_graph(weights)
    for node in graph.node:
        if node.name in weights:
            node.op = "VariableV2"
            for key in list(node.attr):
                del node.attr[key]
            node.attr["dtype"].type = DT_FLOAT
            set_shape(node.attr["shape"].shape, weights[node.name].shape)
    return graph


def write_saved_model(folder: Path, graph: Any, weights: dict[str, np.ndarray]) -> Path:
    folder = folder / "saved"
    (folder / "variables").mkdir(parents=True)
    write_checkpoint(folder / "variables" / "variables", weights, checksums=False)
    saved = SavedModel()
    saved.meta_graphs.add().graph_def.CopyFrom(graph)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def write_meta(folder: Path, graph: Any, weights: dict[str, np.ndarray]) -> Path:
    (folder / "checkpoint").mkdir()
    meta = folder / "checkpoint" / "model.meta"
    meta.write_bytes(MetaGraphDef(graph_def=graph).SerializeToString())
    write_checkpoint(folder / "checkpoint" / "model.ckpt-1", weights, checksums=False)
    return meta


def write_state(folder: Path, graph: Any, weights: dict[str, np.ndarray]) -> Path:
    return write_zip(folder / "x.pt", state_of(weights))


@pytest.mark.parametrize(
    "write", [write_meta, *(pytest.param(each, marks=pytest.mark.nightly) for each in (write_saved_model, write_state))]
)
def test_the_same_weights_from_another_file_are_the_same_model(
    weights: dict[str, np.ndarray], real_ir: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    found = convert(write(tmp_path, variable_graph(weights), weights), tmp_path / "out", name=FACENET).contract

    require_same_model(found, read_contract(real_ir)[1])


@pytest.mark.nightly
def test_the_same_weights_in_a_foreign_ir_are_the_same_model(real_ir: Path, tmp_path: Path) -> None:
    foreign = read_ir(real_ir)
    foreign = ov.Model(foreign.get_results(), foreign.get_parameters(), "foreign")  # without the contract
    ov.save_model(foreign, tmp_path / "foreign.xml", compress_to_fp16=False)

    found = adopt(tmp_path / "foreign.xml", tmp_path / "out", name=FACENET).contract

    require_same_model(found, read_contract(real_ir)[1])


def require_same_model(found: ModelContract, frozen: ModelContract) -> None:
    """`frozen` is of the frozen graph."""
    assert found.contract_id == frozen.contract_id == "c9c4145b201ace67"
    assert found.provenance == frozen.provenance == "published"
    assert found.source_sha256 != frozen.source_sha256
    assert shipped_thresholds(found.contract_id)
