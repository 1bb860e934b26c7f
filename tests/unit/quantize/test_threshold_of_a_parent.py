"""A threshold stays with the model it was calibrated on, even where the other one was made from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_net import write_tiny_net

from edgeface.errors import ContractError
from edgeface.model.contract import Lineage, ModelContract
from edgeface.model.ir_file import read_contract, read_ir
from edgeface.recognize import Metric, Threshold, calibrate
from edgeface.recognize.threshold import require_calibrated_for


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> ModelContract:
    return read_contract(write_tiny_net(tmp_path_factory.mktemp("parent")))[1]


@pytest.fixture(scope="module")
def child(parent: ModelContract) -> ModelContract:
    lineage = Lineage(
        parent_id=parent.contract_id,
        method="int8-mixed",
        settings="nncf",
        calibration_sha256="",
        mean_cosine=1,
        p01_cosine=1,
        min_cosine=1,
    )
    return dataclasses.replace(parent, precision="INT8", lineage=lineage)


def threshold(contract_id: str) -> Threshold:
    scores = np.linspace(-1, 1, 21)
    return calibrate(scores, scores - 1, fars=[0.1], contract_id=contract_id, metric=Metric.cosine)[0]


def test_a_models_own_threshold_is_taken(parent: ModelContract, child: ModelContract) -> None:
    require_calibrated_for(threshold(parent.contract_id), parent)
    require_calibrated_for(threshold(child.contract_id), child)


def test_the_parents_threshold_is_refused_with_the_way_to_a_new_one(
    parent: ModelContract, child: ModelContract
) -> None:
    with pytest.raises(ContractError, match=r"Calibrate again with 'edgeface calibrate.*--recalibrate") as caught:
        require_calibrated_for(threshold(parent.contract_id), child)

    assert parent.contract_id in str(caught.value)
    assert child.contract_id in str(caught.value)


def test_the_childs_threshold_and_a_strangers_are_refused_too(parent: ModelContract, child: ModelContract) -> None:
    for given, contract in ((child.contract_id, parent), ("0" * 16, child)):
        with pytest.raises(ContractError, match="expected one contract_id"):
            require_calibrated_for(threshold(given), contract)


def test_lineage_is_read_back_from_the_file(child: ModelContract, tmp_path: Path) -> None:
    import openvino as ov

    model = read_ir(write_tiny_net(tmp_path))
    child.write_to(model)
    ov.save_model(model, tmp_path / "child.xml", compress_to_fp16=False)

    assert read_contract(tmp_path / "child.xml")[1] == child
