"""IRs of other tools: what their input expects is measured or told, and nobody's weights are promoted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from contracts import sample_contract
from tiny_net import DIM, SIZE, tiny_net, write_tiny_net

from edgeface.cli import main
from edgeface.convert import adopt
from edgeface.convert.adoption import recognise
from edgeface.convert.inspection import AdoptionNeeds, inspect_ir
from edgeface.convert.parity import draw_faces, embed_with_ir, fingerprint_of, run_model, to_input, unit_rows
from edgeface.convert.recipe import parse_recipe
from edgeface.errors import ContractError, ConversionError, InputError, MissingError, ModelNotFoundError, NegativeResult
from edgeface.model.ir_file import read_contract
from edgeface.model.opset import ops
from edgeface.zoo.catalog import Catalog, load_catalog
from edgeface.zoo.schema import ModelEntry

MEAN, SCALE = (10.0, 20.0, 30.0), (0.5, 1.0, 2.0)
WEIGHTS_ID = "c" * 64


def foreign(
    folder: Path,
    *,
    seed: int = 0,
    layout: str = "NCHW",
    map_like: bool = False,
    extra: bool = False,
    name: str = "foreign",
) -> Path:
    """An IR without a contract, of a static batch, as old tools write them."""
    model = tiny_net(seed=seed)
    image, rows = model.get_parameters()[0], model.output(0).get_node().input_value(0)
    if map_like:
        rows = ops.reshape(rows, ops.constant(np.array([0, DIM, 1, 1])), True).output(0)
    outputs = [rows, ops.reduce_mean(rows, np.array([1]), keep_dims=False).output(0)] if extra else [rows]
    outside = ov.Model(outputs, [image], "foreign")
    if layout == "NHWC":
        processor = ov.preprocess.PrePostProcessor(outside)
        processor.input().tensor().set_layout(ov.Layout("NHWC"))
        processor.input().model().set_layout(ov.Layout("NCHW"))
        outside = processor.build()
    outside.reshape([1, *list(outside.input(0).get_partial_shape())[1:]])
    for number, port in enumerate(outside.outputs):
        port.set_names({f"out{number}"})
    path = folder / f"{name}.xml"
    ov.save_model(outside, path, compress_to_fp16=False)
    return path


def mixed(folder: Path, batch: int) -> Path:
    """An IR whose rows depend on the rest of the batch."""
    image = ops.parameter([batch, 3, SIZE, SIZE], np.float32)
    rows = ops.reduce_mean(image, np.array([2, 3]), keep_dims=False)
    largest = ops.reduce_max(rows, np.array([0, 1]), keep_dims=True)
    rows = ops.add(ops.divide(rows, largest), np.array([[1, 2, 3]], np.float32))
    path = folder / "mixed.xml"
    ov.save_model(ov.Model([rows], [image], "mixed"), path)
    return path


def told(**changes: Any) -> Any:
    return parse_recipe(**({"color": "BGR", "mean": 0, "scale": 1, "alignment": "none"} | changes))


def catalog(path: Path | None = None, **conversion: Any) -> Catalog:
    """A zoo of one entry: the tiny network, of standardised RGB images."""
    entry = load_catalog()["facenet-20180408-102900"]
    assert entry.preprocessing
    assert entry.embedding
    assert entry.conversion
    changed: dict[str, Any] = {
        "name": "tiny-entry",
        "preprocessing": entry.preprocessing.model_copy(
            update={"size": (SIZE, SIZE), "mean": MEAN, "scale": SCALE, "color": "RGB"}
        ),
        "embedding": entry.embedding.model_copy(update={"dim": DIM}),
        "conversion": entry.conversion.model_copy(
            update={"weights_id": WEIGHTS_ID, "sha256": None, "fingerprint": None} | conversion
        ),
    }
    return Catalog([ModelEntry.model_copy(entry, update=changed)], source="test.yml")


def standardised(images: np.ndarray) -> np.ndarray:
    mean, scale = (np.float32(each).reshape(1, 3, 1, 1) for each in (MEAN, SCALE))
    return (to_input(images, layout="NCHW", color="RGB") - mean) / scale


def fingerprint(seed: int = 0) -> tuple[float, ...]:
    rows = fingerprint_of(run_model(tiny_net(seed=seed), standardised(draw_faces((SIZE, SIZE)))))
    return tuple(map(float, rows.ravel()))


# --- by recipe --------------------------------------------------------------------------------------------------


def test_rows_that_depend_on_the_rest_of_a_dynamic_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"do not depend on the other images of a batch.*a batch of 1"):
        adopt(mixed(tmp_path, -1), tmp_path / "out", recipe=told(), catalog=catalog())

    result = adopt(mixed(tmp_path, 1), tmp_path / "out", recipe=told(), catalog=catalog())
    assert list(result.outputs.values()) == ["[1,3]"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_recipe_is_folded_into_the_ir(layout: str, tmp_path: Path) -> None:
    ir = foreign(tmp_path, layout=layout, map_like=layout == "NCHW")
    before = ir.read_bytes()

    result = adopt(ir, tmp_path / "out", recipe=told(color="RGB", mean=MEAN, scale=SCALE), catalog=catalog())

    contract = read_contract(result.ir)[1]
    assert contract == result.contract
    assert (contract.name, contract.layout, contract.color, contract.normalized) == ("foreign", layout, "RGB", True)
    assert (contract.provenance, contract.embedding_dim) == ("unknown", DIM)
    assert list(result.outputs.values()) == [f"[?,{DIM}]"]  # the static batch of 1 is gone, and the map is flat
    images = draw_faces((SIZE, SIZE))
    expected = run_model(tiny_net(), standardised(images))
    np.testing.assert_allclose(embed_with_ir(result.ir, images), expected, atol=1e-5)
    assert ir.read_bytes() == before


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    ir = foreign(tmp_path, extra=True)
    with pytest.raises(ConversionError, match="expected one output, found 2"):
        adopt(ir, tmp_path / "out", recipe=told())
    with pytest.raises(ConversionError, match="expected an output 'out7', found out0, out1"):
        adopt(ir, tmp_path / "out", recipe=told(output="out7"))

    contract = adopt(ir, tmp_path / "out", recipe=told(output="out0", name="mine")).contract

    assert (contract.name, contract.embedding_dim) == ("mine", DIM)


@pytest.mark.parametrize(
    ("recipe", "error", "said"),
    [
        ({"color": "BGR"}, InputError, "pass --mean --scale --alignment, or a recipe file"),
        ({**told().told(), "size": 112}, ConversionError, r"expected an input of 3 x 112 x 112 .* found \[1,3,16,16\]"),
        ({**told().told(), "layout": "NHWC"}, ConversionError, "and --layout NHWC"),
        ({**told().told(), "normalized": False}, ConversionError, "found one that normalises them"),
        ({}, ModelNotFoundError, "no model 'foreign' in .*pass --color --mean --scale --alignment"),
    ],
)
def test_what_is_missing_or_contradicts_the_file_is_said(
    recipe: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        adopt(foreign(tmp_path), tmp_path / "out", recipe=parse_recipe(**recipe))
    assert not list(tmp_path.glob("out/*"))


def test_an_unknown_name_is_told_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean facenet-20180408-102900"):
        adopt(tmp_path / "absent.xml", tmp_path / "out", name="facenet-20180408", golden=tmp_path / "absent.npz")


def test_a_zoo_model_without_golden_vectors_or_fingerprint_says_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"--golden FILE\.npz .* --color, --mean and --scale"):
        adopt(foreign(tmp_path), tmp_path / "out", name="tiny-entry", catalog=catalog())


@pytest.mark.parametrize("name", ["../elsewhere", ""])
def test_a_name_stays_inside_the_output_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a plain file name"):
        adopt(foreign(tmp_path), tmp_path / "out", name=name, recipe=told())


@pytest.mark.parametrize("provenance", ["seeded", "unknown", "published"])
def test_an_ir_with_a_contract_is_not_adopted(provenance: str, tmp_path: Path) -> None:
    ir = write_tiny_net(tmp_path, provenance=provenance)

    with pytest.raises(ContractError, match=f"expected an IR without a contract, found one .*{provenance} weights"):
        adopt(ir, tmp_path / "out", name="tiny-entry", catalog=catalog(fingerprint=fingerprint()))


def test_inspecting_an_ir_without_a_contract_tells_the_options_that_adopt_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, several = foreign(tmp_path), foreign(tmp_path, map_like=True, extra=True, name="several")

    found = inspect_ir(plain, catalog=catalog())
    assert (found.contract, found.inputs) == (None, {"image": "[1,3,16,16] f32"})
    assert found.adoption == AdoptionNeeds(
        options=("--color RGB|BGR", "--mean X|X,X,X", "--scale X|X,X,X", "--alignment RECIPE[:MARGIN]"),
        names=("tiny-entry",),
    )
    needs = inspect_ir(several, catalog=catalog()).adoption
    assert needs is not None
    assert "--output out0|out1" in needs.options

    assert main(["inspect", str(plain)]) == 0
    assert f"edgeface adopt {plain} -o DIR --color RGB|BGR --mean" in capsys.readouterr().out
    assert main(["inspect", str(plain), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["contract"] is answer["fingerprint"] is None
    assert answer["adopt"]["options"][0] == "--color RGB|BGR"


def test_inspecting_an_ir_that_cannot_be_adopted_says_why(tmp_path: Path) -> None:
    row = ops.parameter([1, 7], np.float32)
    ov.save_model(
        ov.Model([ops.reshape(row, ops.constant(np.array([1, 7, 1, 1, 1])), False)], [row]), tmp_path / "x.xml"
    )

    needs = inspect_ir(tmp_path / "x.xml").adoption

    assert needs is not None
    assert needs.problems == ("expected one input, an image of three channels, found [1,7]",)
    assert not needs.options


def test_the_fingerprint_that_inspect_shows_is_what_a_zoo_entry_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adopted = adopt(foreign(tmp_path), tmp_path / "out", recipe=told(color="RGB", mean=MEAN, scale=SCALE)).ir

    assert main(["inspect", str(adopted), "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["fingerprint"] == pytest.approx(fingerprint(), abs=1e-5)


# --- by fingerprint and by golden vectors -----------------------------------------------------------------------


def test_a_fingerprint_reads_the_input_and_identifies_the_weights(tmp_path: Path) -> None:
    zoo = catalog(fingerprint=fingerprint())

    contract = adopt(foreign(tmp_path), tmp_path / "out", name="tiny-entry", catalog=zoo).contract

    assert (contract.color, contract.mean, contract.scale) == ("RGB", MEAN, SCALE)
    assert (contract.provenance, contract.weights_id) == ("published", WEIGHTS_ID)
    with pytest.raises(NegativeResult, match="this is another model"):
        adopt(foreign(tmp_path, seed=1), tmp_path / "out", name="tiny-entry", catalog=zoo)


def test_golden_vectors_alone_publish_nothing(tmp_path: Path) -> None:
    ir, golden = foreign(tmp_path, seed=1), tmp_path / "golden.npz"
    images = draw_faces((SIZE, SIZE))
    np.savez(golden, images=images, embeddings=run_model(tiny_net(seed=1), standardised(images)))

    result = adopt(ir, tmp_path / "out", name="tiny-entry", golden=golden, catalog=catalog(fingerprint=fingerprint()))

    assert result.parity
    assert (result.contract.provenance, result.contract.color) == ("unknown", "RGB")
    assert result.contract.weights_id != WEIGHTS_ID


def test_a_fingerprint_takes_precision_into_account_and_promotes_no_seeded_ir() -> None:
    zoo = catalog(fingerprint=fingerprint())
    contract = sample_contract(embedding_dim=DIM, weights_id="d" * 64)
    exact = np.reshape(fingerprint(), (2, -1))
    rounded = exact + 1e-4 * np.sign(np.sin(np.arange(exact.size))).reshape(exact.shape)

    def recognised(found: np.ndarray, **changes: Any) -> str:
        return recognise(dataclasses.replace(contract, **changes), found, zoo.values()).provenance

    assert recognised(exact) == recognised(exact, precision="FP16") == "published"
    assert recognised(rounded, precision="FP16") == "published"
    assert recognised(rounded) == "unknown"
    assert recognised(exact, precision="INT8") == "unknown"
    assert recognised(exact, provenance="seeded") == "seeded"
    assert recognised(np.reshape(fingerprint(1), (2, -1)), precision="FP16") == "unknown"


def test_drawn_faces_never_change() -> None:
    drawn = {size: hashlib.sha256(draw_faces(size).tobytes()).hexdigest()[:16] for size in ((160, 160), (112, 96))}

    assert drawn == {(160, 160): "22fca1af62aba13b", (112, 96): "3ad26d68601109a0"}
    assert np.linalg.norm(unit_rows(np.arange(6.0).reshape(2, 3)), axis=1) == pytest.approx([1, 1])


def test_preprocessing_inside_is_noticed_and_not_repeated(tmp_path: Path) -> None:
    model = tiny_net()
    processor = ov.preprocess.PrePostProcessor(model)
    processor.input().model().set_layout(ov.Layout("NCHW"))
    processor.input().preprocess().mean([127.5, 127.5, 127.5])
    path = tmp_path / "foreign.xml"
    ov.save_model(processor.build(), path, compress_to_fp16=False)

    # OpenVINO 2024 leaves the network's own factor before its first layer.
    with pytest.raises(InputError, match=r"compute \(x - 127.5\) / (1|128) .*pass --mean 0 --scale 1"):
        adopt(path, tmp_path / "out", name="mine", recipe=told(mean="127.5", scale="128"))
    assert adopt(path, tmp_path / "out", name="mine", recipe=told()).ir.is_file()


def test_an_input_of_whole_numbers_gets_raw_images_or_is_refused(tmp_path: Path) -> None:
    processor = ov.preprocess.PrePostProcessor(tiny_net())
    processor.input().tensor().set_element_type(ov.Type.u8)
    path = tmp_path / "foreign.xml"
    ov.save_model(processor.build(), path, compress_to_fp16=False)

    with pytest.raises(InputError, match="mean 0 and scale 1"):
        adopt(path, tmp_path / "out", name="mine", recipe=told(mean="127.5", scale="128"))
    ir = adopt(path, tmp_path / "out", name="mine", recipe=told()).ir

    images = draw_faces((SIZE, SIZE))
    expected = run_model(tiny_net(), to_input(images, layout="NCHW", color="BGR"))
    np.testing.assert_allclose(embed_with_ir(ir, images), expected, atol=1e-5)
