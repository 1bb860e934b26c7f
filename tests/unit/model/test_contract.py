"""The contract: what it holds, how it travels inside an IR, and what its identity covers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import numpy as np
import openvino as ov
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.errors import ContractError
from edgeface.model import contract as module
from edgeface.model.contract import Alignment, Lineage, Method, ModelContract
from edgeface.model.embedding import require_same_contract

try:
    from openvino import opset8 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset8 as ops

FACENET = ModelContract(
    name="facenet-20180408-102900",
    framework="tf",
    source_sha256="a" * 64,
    provenance="published",
    input_name="image_batch/placeholder_port_0",
    output_name="embeddings",
    input_size=(160, 160),
    layout="NCHW",
    color="BGR",
    value_range=(0.0, 255.0),
    mean=(127.5, 127.5, 127.5),
    scale=(128.0, 128.0, 128.0),
    embedding_dim=512,
    metric="cosine",
    normalized=True,
    alignment=Alignment("mtcnn-box-margin", 32),
    precision="FP32",
    converter_version="0.1.0",
    openvino_version="2026.4.1",
    weights_sha256="b" * 64,
)
QUANTIZED = Lineage(
    parent_id=FACENET.contract_id,
    method="int8-mixed",
    settings="nncf 3.4.0; 300 images",
    calibration_sha256="e" * 64,
    mean_cosine=0.999,
    p01_cosine=0.995,
    min_cosine=0.99,
)
# What an XML file can hold: no control characters and no surrogates.
TEXT = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff"))
NUMBER = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-1000, 1000)
DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64)
SHARE = st.floats(-1, 1)


def one_of(alias: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(get_args(alias))


def numbers(count: int, number: st.SearchStrategy[Any] = NUMBER) -> st.SearchStrategy[Any]:
    return st.tuples(*[number] * count)


LINEAGES = st.builds(
    Lineage,
    parent_id=st.text("0123456789abcdef", min_size=16, max_size=16),
    method=one_of(Method),
    settings=TEXT,
    calibration_sha256=DIGEST | st.just(""),
    mean_cosine=SHARE,
    p01_cosine=SHARE,
    min_cosine=SHARE,
    accuracy_drop=SHARE | st.none(),
)
CONTRACTS = st.builds(
    ModelContract,
    name=TEXT,
    framework=TEXT,
    source_sha256=DIGEST,
    provenance=one_of(module.Provenance),
    input_name=TEXT,
    output_name=TEXT,
    input_size=numbers(2, st.integers(1, 10_000)),
    layout=one_of(module.Layout),
    color=one_of(module.Color),
    value_range=numbers(2),
    mean=numbers(3),
    scale=numbers(3, NUMBER.filter(bool)),
    embedding_dim=st.integers(1, 100_000),
    metric=st.just("cosine"),
    normalized=st.booleans(),
    alignment=st.builds(Alignment, recipe=one_of(module.AlignmentRecipe), margin=st.integers(0, 1000)),
    precision=one_of(module.Precision),
    converter_version=TEXT,
    openvino_version=TEXT,
    weights_sha256=DIGEST | st.just(""),
    lineage=LINEAGES | st.none(),
)


def tiny_model() -> ov.Model:
    parameter = ops.parameter([1, 3], np.float32)
    return ov.Model([ops.relu(parameter)], [parameter], "tiny")


def saved_and_read(model: ov.Model, folder: Path) -> ov.Model:
    ov.save_model(model, folder / "tiny.xml")
    return ov.Core().read_model(folder / "tiny.xml")


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=examples(60))
@given(contract=CONTRACTS)
def test_any_contract_survives_the_way_through_a_file(contract: ModelContract, tmp_path: Path) -> None:
    model = tiny_model()
    contract.write_to(model)

    again = ModelContract.read_from(saved_and_read(model, tmp_path))

    assert again == contract
    assert again.contract_id == contract.contract_id


# --- identity ---------------------------------------------------------------------------------------------------

CHANGES_THE_NUMBERS = {
    "framework": "onnx",
    "source_sha256": "c" * 64,
    "input_size": (160, 112),
    "layout": "NHWC",
    "color": "RGB",
    "value_range": (0.0, 1.0),
    "mean": (127.5, 127.5, 127.0),
    "scale": (128.0, 127.5, 128.0),
    "embedding_dim": 128,
    "normalized": False,
    "alignment": Alignment("mtcnn-box-margin", 44),
    "precision": "FP16",
    "lineage": QUANTIZED,
    "weights_id": "e" * 64,
}
CHANGES_NO_NUMBER = {
    "name": "mine",
    "provenance": "unknown",
    "input_name": "x",
    "output_name": "y",
    "converter_version": "9.9",
    "openvino_version": "2030.1",
    "weights_sha256": "d" * 64,
}


def test_every_field_is_known_to_change_the_numbers_or_not() -> None:
    fields = {field.name for field in dataclasses.fields(ModelContract)}

    assert fields == {"metric", *CHANGES_THE_NUMBERS, *CHANGES_NO_NUMBER}  # there is but one metric so far


@pytest.mark.parametrize("field", CHANGES_THE_NUMBERS)
def test_what_changes_the_numbers_changes_the_id(field: str) -> None:
    other = dataclasses.replace(FACENET, **{field: CHANGES_THE_NUMBERS[field]})

    assert other.contract_id != FACENET.contract_id


@pytest.mark.parametrize("field", CHANGES_NO_NUMBER)
def test_names_and_versions_leave_the_id_alone(field: str) -> None:
    other = dataclasses.replace(FACENET, **{field: CHANGES_NO_NUMBER[field]})

    assert other.contract_id == FACENET.contract_id


def test_the_alignment_recipe_enters_the_id_besides_its_margin() -> None:
    other = dataclasses.replace(FACENET, alignment=Alignment("mtcnn-box-output-margin", 32))

    assert other.contract_id != FACENET.contract_id


def test_whole_and_decimal_numbers_are_the_same_contract() -> None:
    whole = dataclasses.replace(FACENET, value_range=(0, 255), scale=(128, 128, np.float32(128)))

    assert whole == FACENET
    assert whole.contract_id == FACENET.contract_id


def test_the_id_is_pinned() -> None:
    # Galleries are bound to it: a change here makes every enrolled face of every user useless.
    assert FACENET.contract_id == "6c539500eebd1936"


IDENTIFIED = dataclasses.replace(FACENET, weights_id="e" * 64)


@pytest.mark.parametrize("field", sorted({*CHANGES_THE_NUMBERS} - {"framework", "source_sha256", "weights_id"}))
def test_with_known_weights_what_changes_the_numbers_still_changes_the_id(field: str) -> None:
    assert dataclasses.replace(IDENTIFIED, **{field: CHANGES_THE_NUMBERS[field]}).contract_id != IDENTIFIED.contract_id


def test_with_known_weights_the_file_that_carried_them_leaves_the_id_alone() -> None:
    other = dataclasses.replace(IDENTIFIED, framework="pytorch", source_sha256="c" * 64)

    assert other.contract_id == IDENTIFIED.contract_id
    assert other.former_ids != IDENTIFIED.former_ids


@pytest.mark.parametrize("lineage", [None, QUANTIZED])
def test_the_id_of_edgeface_0_1_means_the_same_ir(lineage: Lineage | None) -> None:
    old = dataclasses.replace(FACENET, source_sha256="9" * 64)
    if lineage is not None:
        lineage = dataclasses.replace(lineage, parent_id=old.contract_id)
        old = dataclasses.replace(old, precision="INT8", lineage=lineage)
        lineage = dataclasses.replace(lineage, parent_id=dataclasses.replace(IDENTIFIED).contract_id)
    new = dataclasses.replace(old, weights_id="e" * 64, lineage=lineage)

    assert new.former_ids == (old.contract_id,)
    require_same_contract(new.contract_id, old.contract_id, what="gallery")
    with pytest.raises(ContractError, match="expected one contract_id"):
        require_same_contract(new.contract_id, dataclasses.replace(new, weights_id="f" * 64).contract_id, what="x")


def test_a_second_contract_that_claims_a_former_id_does_not_take_it_over() -> None:
    old = dataclasses.replace(FACENET, source_sha256="8" * 64)
    first = dataclasses.replace(old, weights_id="e" * 64)
    second = dataclasses.replace(old, weights_id="f" * 64)

    assert second.former_ids == first.former_ids == (old.contract_id,)
    assert module.current_id(old.contract_id) == first.contract_id
    with pytest.raises(ContractError, match="expected one contract_id"):
        require_same_contract(second.contract_id, old.contract_id, what="gallery")


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("provenance", "official"),
        ("layout", "CHW"),
        ("color", "GRAY"),
        ("metric", "euclidean"),
        ("precision", "FP8"),
        ("source_sha256", "A" * 64),
        ("source_sha256", ""),
        ("weights_sha256", "b" * 63),
        ("input_size", (0, 160)),
        ("input_size", (160,)),
        ("embedding_dim", 0),
        ("scale", (128.0, 0.0, 128.0)),
        ("scale", (128.0,)),
        ("mean", (1.0, 2.0)),
        ("mean", (1.0, 2.0, float("nan"))),
        ("value_range", (0.0, float("inf"))),
    ],
)
def test_an_impossible_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ContractError, match=field):
        dataclasses.replace(FACENET, **{field: value})


@pytest.mark.parametrize("margin", [-1, 1.5, "32"])
def test_an_impossible_margin_is_refused(margin: Any) -> None:
    with pytest.raises(ContractError, match="margin"):
        Alignment("mtcnn-box-margin", margin)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ContractError, match="alignment recipe"):
        Alignment("by-eye")  # type: ignore[arg-type]


# --- lineage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parent_id", "0" * 16),
        ("method", "int8-performance"),
        ("settings", "nncf 3.5.0; 300 images"),
        ("calibration_sha256", "f" * 64),
    ],
)
def test_what_a_quantized_models_numbers_come_from_enters_its_id(field: str, value: str) -> None:
    child = dataclasses.replace(FACENET, precision="INT8", lineage=QUANTIZED)
    other = dataclasses.replace(child, lineage=dataclasses.replace(QUANTIZED, **{field: value}))

    assert len({FACENET.contract_id, child.contract_id, other.contract_id}) == 3


def test_what_was_measured_of_a_quantized_model_leaves_its_id_alone() -> None:
    measured = dataclasses.replace(QUANTIZED, mean_cosine=0.1, p01_cosine=0.1, min_cosine=0.1, accuracy_drop=0.5)

    ids = {dataclasses.replace(FACENET, lineage=each).contract_id for each in (QUANTIZED, measured)}
    assert len(ids) == 1


def test_a_contract_without_lineage_is_stored_as_it_was_before_there_was_one() -> None:
    model = tiny_model()
    FACENET.write_to(model)

    assert "lineage" not in FACENET.to_dict()
    assert "lineage" not in model.rt_info["edgeface"]
    assert ModelContract.read_from(model).lineage is None
    assert ModelContract.from_dict(FACENET.to_dict()) == FACENET


def test_a_contract_written_over_that_of_a_quantized_model_leaves_no_lineage_behind() -> None:
    model = tiny_model()
    dataclasses.replace(FACENET, lineage=QUANTIZED).write_to(model)
    FACENET.write_to(model)

    assert ModelContract.read_from(model) == FACENET


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parent_id", "x" * 16),
        ("parent_id", "a" * 15),
        ("method", "int4"),
        ("calibration_sha256", "e" * 63),
        ("mean_cosine", float("nan")),
        ("min_cosine", None),
        ("min_cosine", True),
        ("accuracy_drop", "0.1"),
        ("settings", None),
        ("flavour", "vanilla"),
    ],
)
def test_an_impossible_lineage_is_refused(field: str, value: object) -> None:
    stored = dataclasses.replace(FACENET, lineage=QUANTIZED).to_dict()
    stored["lineage"][field] = value

    with pytest.raises(ContractError, match=field):
        ModelContract.from_dict(stored)


@pytest.mark.parametrize("field", sorted(FACENET.to_dict()))
def test_a_missing_field_is_named(field: str) -> None:
    stored = FACENET.to_dict()
    del stored[field]

    with pytest.raises(ContractError, match=rf"the fields {field} are missing"):
        ModelContract.from_dict(stored)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ContractError, match="unknown fields flavour"):
        ModelContract.from_dict({**FACENET.to_dict(), "flavour": "vanilla"})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelContract)])
@pytest.mark.parametrize("value", [None, 7.5, {"a": 1}])
def test_a_field_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(ContractError):
        ModelContract.from_dict({**FACENET.to_dict(), field: value})


def edited(folder: Path, old: str, new: str) -> ov.Model:
    model = tiny_model()
    FACENET.write_to(model)
    ov.save_model(model, folder / "tiny.xml")
    xml = (folder / "tiny.xml").read_text()
    assert old in xml
    (folder / "tiny.xml").write_text(xml.replace(old, new))
    return ov.Core().read_model(folder / "tiny.xml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('<color value="BGR"', '<color value="RGB"'),
        ('<layout value="NCHW"', '<layout value="NHWC"'),
        ("[127.5, 127.5, 127.5]", "[127.5, 127.5, 127.0]"),
        ('<embedding_dim value="512"', '<embedding_dim value="128"'),
        (f'<source_sha256 value="{"a" * 64}"', f'<source_sha256 value="{"e" * 64}"'),
    ],
)
def test_a_contract_edited_by_hand_is_refused(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(ContractError, match="it was edited by hand"):
        ModelContract.read_from(edited(tmp_path, old, new), source="tiny.xml")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[127.5, 127.5, 127.5]", "[127.5, 127.5", "field 'mean' is damaged"),
        ('<color value="BGR" />', "", "no field 'color'"),
        ('<color value="BGR" />', '<color value="BGR" /><tint value="1" />', "unknown fields tint"),
        ('<contract_version value="1"', '<contract_version value="4"', "found version 4"),
        ("<contract_version", "<contract_edition", "expected an IR with an edgeface contract, found none"),
    ],
)
def test_a_contract_that_cannot_be_understood_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ContractError, match=told) as caught:
        ModelContract.read_from(edited(tmp_path, old, new), source="tiny.xml")

    assert str(caught.value).startswith("tiny.xml: ")


def test_an_ir_without_a_contract_is_told_how_to_get_one() -> None:
    with pytest.raises(ContractError, match=r"'edgeface convert'.*'edgeface adopt'"):
        ModelContract.read_from(tiny_model())


# --- what others read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (5, 3, 160, 96)), ("NHWC", (5, 160, 96, 3))])
def test_the_input_shape_follows_the_layout(layout: str, shape: tuple[int, ...]) -> None:
    assert dataclasses.replace(FACENET, layout=layout, input_size=(160, 96)).input_shape(5) == shape


def test_model_api_finds_its_keys_and_no_second_normalisation() -> None:
    model = tiny_model()
    FACENET.write_to(model)

    found = {key: model.get_rt_info(["model_info", key]).astype(str) for key in model.rt_info["model_info"]}
    assert found["orig_height"] == found["orig_width"] == "160"
    assert found["reverse_input_channels"] == "False"
    assert not {"mean_values", "scale_values"} & found.keys()
