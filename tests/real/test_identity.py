"""One set of weights has one identity, whatever file carried it, and one threshold."""

from __future__ import annotations

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
from edgeface.model.ir_file import read_ir
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
    (folder / "variables").mkdir(parents=True)
    write_checkpoint(folder / "variables" / "variables", weights, checksums=False)
    saved = SavedModel()
    saved.meta_graphs.add().graph_def.CopyFrom(graph)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def test_the_same_weights_from_five_files_are_one_model(
    weights: dict[str, np.ndarray], real_pb: Path, real_ir: Path, tmp_path: Path
) -> None:
    graph = variable_graph(weights)
    (tmp_path / "checkpoint").mkdir()
    meta = tmp_path / "checkpoint" / "model.meta"
    meta.write_bytes(MetaGraphDef(graph_def=graph).SerializeToString())
    write_checkpoint(tmp_path / "checkpoint" / "model.ckpt-1", weights, checksums=False)
    foreign = read_ir(real_ir)
    foreign = ov.Model(foreign.get_results(), foreign.get_parameters(), "foreign")  # without the contract
    ov.save_model(foreign, tmp_path / "foreign.xml", compress_to_fp16=False)

    found = {
        "frozen graph": convert(real_pb, tmp_path / "1", name=FACENET).contract,
        "checkpoint": convert(meta, tmp_path / "2", name=FACENET).contract,
        "SavedModel": convert(
            write_saved_model(tmp_path / "saved", graph, weights), tmp_path / "3", name=FACENET
        ).contract,
        "state dictionary": convert(
            write_zip(tmp_path / "x.pt", state_of(weights)), tmp_path / "4", name=FACENET
        ).contract,
        "foreign IR": adopt(tmp_path / "foreign.xml", tmp_path / "5", name=FACENET).contract,
    }

    assert {name: each.contract_id for name, each in found.items()} == dict.fromkeys(found, "c9c4145b201ace67")
    assert {each.provenance for each in found.values()} == {"published"}
    assert len({each.source_sha256 for each in found.values()}) == 5
    assert shipped_thresholds(found["checkpoint"].contract_id)
