"""An IR whose .xml was changed after it was written is refused, whatever was changed."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from contracts import sample_contract
from tiny_net import tiny_net, write_tiny_net

from edgeface.convert.inspection import inspect_ir
from edgeface.convert.ir import check_inference
from edgeface.errors import ContractError, ModelFormatError
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import contract_of, read_contract
from edgeface.model.opset import ops
from edgeface.model.stored import CONTRACT_VERSION
from edgeface.runtime import Embedder, encrypt_ir

KEY = bytes(range(32))


def changed(ir: Path, old: str, new: str) -> Path:
    text = ir.read_text(encoding="utf-8")
    assert text.count(old) == 1
    ir.write_text(text.replace(old, new), encoding="utf-8")
    return ir


def test_any_digit_of_a_layer_that_was_changed_is_refused_by_name(tmp_path: Path) -> None:
    ir = write_tiny_net(tmp_path)
    written, rng = ir.read_text(encoding="utf-8"), random.Random(1)
    digits = [found.start() for found in re.finditer(r'(?<=["\d,.])\d', written)]
    model = ov.Core().read_model(ir)
    for place in rng.sample(digits, 200):
        other = rng.choice([digit for digit in "0123456789" if digit != written[place]])
        edited = f"{written[:place]}{other}{written[place + 1 :]}"
        # The model as it was read from the original: whatever OpenVINO makes of the edit, the text is not that one.
        with pytest.raises(ModelFormatError, match=r"expected the \.xml as it was written"):
            contract_of(model, edited.encode(), source="tiny.xml")
    assert contract_of(model, written.encode(), source="tiny.xml").name == "tiny"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name="a" type="Convolution"', 'name="A" type="Convolution"'),
        ('<provenance value="unknown" />', '<provenance value="published" />'),
        ('<name value="tiny" />', '<name value="facenet" />'),
        ('<model_name value="tiny" />', '<model_name value="facenet" />'),
    ],
)
def test_a_name_or_a_field_outside_the_contract_id_cannot_be_edited_unseen(tmp_path: Path, old: str, new: str) -> None:
    ir = changed(write_tiny_net(tmp_path), old, new)
    for read in (read_contract, Embedder.load, inspect_ir, check_inference, lambda path: encrypt_ir(path, KEY, path)):
        with pytest.raises(ModelFormatError, match=r"found one that was changed"):
            read(ir)


def test_the_digest_of_the_xml_cannot_be_left_out(tmp_path: Path) -> None:
    ir = write_tiny_net(tmp_path)
    text = ir.read_text(encoding="utf-8")
    ir.write_text(re.sub(r'<file_sha256 value="\w+" />', "", text), encoding="utf-8")
    with pytest.raises(ContractError, match="no field 'file_sha256'"):
        read_contract(ir)
    ir.write_text(re.sub(r'(?<=<file_sha256 value=")\w+', "", text), encoding="utf-8")
    with pytest.raises(ModelFormatError, match="was changed"):
        read_contract(ir)


def test_the_digest_of_the_xml_leaves_contract_and_id_as_they_are(tmp_path: Path) -> None:
    contract = read_contract(write_tiny_net(tmp_path, weights_id="b" * 64))[1]
    assert (
        contract.contract_id == sample_contract(scale=(128, 128, 128), embedding_dim=8, weights_id="b" * 64).contract_id
    )
    assert 'contract_version value="3"' in (tmp_path / "tiny.xml").read_text(encoding="utf-8")
    assert CONTRACT_VERSION == 3


@pytest.mark.parametrize("written", [2, 0, "wide"])
def test_an_ir_of_other_outputs_than_the_contracts_one_is_refused(tmp_path: Path, written: int | str) -> None:
    model = tiny_net()
    (image,) = model.get_parameters()
    unit = model.get_results()[0].input_value(0)
    outputs = {2: [unit, unit], 0: [ops.reduce_sum(unit, 1)], "wide": [ops.concat([unit, unit], 1)]}[written]
    other = ov.Model(outputs, [image], "tiny")
    sample_contract(embedding_dim=8).write_to(other)
    ov.save_model(other, tmp_path / "other.xml", compress_to_fp16=False)
    with pytest.raises(ContractError, match=r"expected one input, and one output of \(batch, 8\)"):
        read_contract(tmp_path / "other.xml")


def test_an_ir_of_two_inputs_is_refused(tmp_path: Path) -> None:
    a, b = (ops.parameter([-1, 3, 16, 16], np.float32, name=name) for name in "ab")
    rows = ops.reduce_mean(ops.add(a, b), np.array([2, 3]))
    model = ov.Model([rows], [a, b], "two")
    sample_contract(embedding_dim=3).write_to(model)
    assert isinstance(ModelContract.read_from(model), ModelContract)
    with pytest.raises(ContractError, match="found 2 inputs"):
        contract_of(model, b"", source="two.xml")
