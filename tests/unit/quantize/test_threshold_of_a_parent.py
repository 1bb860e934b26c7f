"""A threshold stays with its model; a compressed one takes its parent's where measurements show that they agree."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_net import write_tiny_net

from edgeface.errors import ContractError, MissingError
from edgeface.gallery import EnrolRules
from edgeface.model.contract import Lineage, ModelContract
from edgeface.model.embedding import Embedding
from edgeface.model.ir_file import read_contract, read_ir
from edgeface.quantize.gate import QuantizationLimits
from edgeface.recognize import Metric, Threshold, calibrate, save_thresholds, verify
from edgeface.recognize.known import choose_threshold, fit_threshold, own_path, thresholds_for
from edgeface.recognize.open_set import choose_search_threshold


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> ModelContract:
    return read_contract(write_tiny_net(tmp_path_factory.mktemp("parent")))[1]


def child_of(parent: ModelContract, *, min_cosine: float = 0.98, drop: float | None = 0.0005) -> ModelContract:
    lineage = Lineage(
        parent_id=parent.contract_id,
        method="int8-mixed",
        settings="nncf",
        calibration_sha256="",
        mean_cosine=0.999,
        p01_cosine=0.99,
        min_cosine=min_cosine,
        accuracy_drop=drop,
    )
    return dataclasses.replace(parent, precision="INT8", lineage=lineage)


@pytest.fixture(scope="module")
def child(parent: ModelContract) -> ModelContract:
    return child_of(parent)


def threshold(contract_id: str) -> Threshold:
    scores = np.linspace(-1, 1, 31)
    return calibrate(scores, scores - 1, fars=[0.1], contract_id=contract_id, metric=Metric.cosine)[0]


def test_a_models_own_threshold_is_taken_as_it_is(parent: ModelContract, child: ModelContract) -> None:
    for contract in (parent, child):
        own = threshold(contract.contract_id)
        assert fit_threshold(own, contract) is own


def test_the_parents_threshold_is_taken_with_the_measured_difference(
    parent: ModelContract, child: ModelContract
) -> None:
    given = threshold(parent.contract_id)
    taken = choose_threshold(given, child)
    assert (taken.value, taken.far, taken.contract_id) == (given.value, given.far, child.contract_id)
    for words in (parent.contract_id, "INT8", "0.9990 on average", "at least 0.9800", "changed by -0.0005"):
        assert words in taken.note
    face = Embedding([1.0, 0.0], child.contract_id)
    assert verify(face, face, taken).to_dict()["note"] == taken.note
    search = choose_search_threshold(given, child, fpir=0.5, gallery_size=3)
    assert search.contract_id == child.contract_id
    assert "0.9990 on average" in search.note(3)
    assert "not compared on labelled pairs" in fit_threshold(given, child_of(parent, drop=None)).note


@pytest.mark.parametrize(("min_cosine", "drop"), [(0.96, 0.0), (0.99, 0.0011)])
def test_the_threshold_of_a_parent_that_decides_otherwise_is_refused_with_the_way_to_a_new_one(
    parent: ModelContract, min_cosine: float, drop: float
) -> None:
    child = child_of(parent, min_cosine=min_cosine, drop=drop)
    with pytest.raises(ContractError, match=r"Calibrate again with 'edgeface calibrate.*--recalibrate") as caught:
        fit_threshold(threshold(parent.contract_id), child)
    for words in (parent.contract_id, child.contract_id, f"as low as {min_cosine:.4f}"):
        assert words in str(caught.value)


def test_what_the_gate_lets_through_by_default_agrees(parent: ModelContract) -> None:
    limits = QuantizationLimits()
    for cosine, drop, agrees in ((0, 0, True), (-1e-6, 0, False), (0, 1e-6, False)):
        made = child_of(parent, min_cosine=limits.min_cosine + cosine, drop=limits.max_drop + drop)
        assert made.lineage is not None
        assert made.lineage.agrees is agrees


def test_the_childs_threshold_and_a_strangers_are_refused(parent: ModelContract, child: ModelContract) -> None:
    for given, contract in ((child.contract_id, parent), ("0" * 16, child)):
        with pytest.raises(ContractError, match="expected one contract_id"):
            fit_threshold(threshold(given), contract)


def test_a_quantized_model_finds_what_is_known_of_its_parent(
    parent: ModelContract, child: ModelContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match="edgeface calibrate PEOPLE --model IR"):
        choose_threshold(None, child)
    save_thresholds(own_path(parent.contract_id), [threshold(parent.contract_id)])
    assert choose_threshold(None, child, far=0.1).contract_id == child.contract_id
    assert EnrolRules.shipped(child).contract_id == child.contract_id
    with pytest.raises(MissingError, match="parent's threshold does not hold"):
        choose_threshold(None, child_of(parent, min_cosine=0.9))
    save_thresholds(own_path(child.contract_id), [threshold(child.contract_id)])
    assert not thresholds_for(child)[0].inherited  # its own go before its parent's


def test_the_same_weights_in_another_form_have_the_same_thresholds(parent: ModelContract) -> None:
    assert (parent.precision, parent.layout, parent.color) == ("FP32", "NCHW", "BGR")
    given = threshold(parent.contract_id)
    half = fit_threshold(given, dataclasses.replace(parent, precision="FP16"))
    assert "in half precision cosines between faces changed by 0.0012 at most" in half.note
    other = dataclasses.replace(parent, layout="NHWC", color="RGB")
    assert fit_threshold(given, other).contract_id == other.contract_id != parent.contract_id
    assert not fit_threshold(given, other).inherited
    with pytest.raises(ContractError):
        fit_threshold(given, dataclasses.replace(parent, precision="FP16", source_sha256="f" * 64))


def test_lineage_is_read_back_from_the_file(child: ModelContract, tmp_path: Path) -> None:
    import openvino as ov

    model = read_ir(write_tiny_net(tmp_path))
    child.write_to(model)
    ov.save_model(model, tmp_path / "child.xml", compress_to_fp16=False)

    assert read_contract(tmp_path / "child.xml")[1] == child
