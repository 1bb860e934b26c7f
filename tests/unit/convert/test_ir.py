"""Preprocessing folded in, and the checks that every IR has to pass."""

from __future__ import annotations

import errno
import itertools
import shutil
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from tiny_graphs import EMBEDDING, dense_weights, tiny_expected, tiny_facenet

from edgeface.convert import convert
from edgeface.convert.ir import (
    FreshProcessCheck,
    adapt_input,
    check_inference,
    check_structure,
    name_ports,
    publish_ir,
    save_ir,
)
from edgeface.convert.parity import run_model, to_input
from edgeface.errors import ContractError, ConversionError, EdgeFaceError, ModelFormatError, OutputError
from edgeface.model.contract import Color, Layout
from edgeface.model.ir_file import read_contract, read_ir

try:
    from openvino import opset8 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset8 as ops

MEAN, SCALE = (120.0, 127.5, 130.0), (128.0, 100.0, 64.0)  # all different: a swapped channel shows
SIZE = (11, 9)


@pytest.fixture(scope="module")
def tiny_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return convert(tiny_facenet().write(folder / "tiny.pb"), folder / "ir").ir


@pytest.fixture
def ir(tiny_ir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for path in (tiny_ir, tiny_ir.with_suffix(".bin")):
        shutil.copy(path, tmp_path)
    return tmp_path / tiny_ir.name


# --- preprocessing ----------------------------------------------------------------------------------------------


def convolution_model(pads: int) -> ov.Model:
    """What the TensorFlow frontend makes of a first convolution: NHWC, a transpose, a convolution."""
    kernels = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    image = ops.parameter(ov.PartialShape([-1, -1, -1, 3]), np.float32)
    y = ops.transpose(image, ops.constant(np.array([0, 3, 1, 2])))
    y = ops.convolution(y, ops.constant(kernels), [2, 2], [pads] * 2, [pads] * 2, [1, 1])
    return ov.Model([ops.reduce_mean(ops.relu(y), ops.constant(np.array([2, 3])))], [image], "conv")


@pytest.mark.parametrize("pads", [0, 1], ids=["folded-into-the-convolution", "in-front-of-a-padded-one"])
@pytest.mark.parametrize("batch", [None, 4])
def test_raw_images_of_any_layout_and_colour_give_what_standardised_rgb_gave(pads: int, batch: int | None) -> None:
    images = np.random.default_rng(1).integers(0, 256, (4, *SIZE, 3), np.uint8)
    standardised = ((images - np.array(MEAN)) / np.array(SCALE)).astype(np.float32)
    expected = run_model(convolution_model(pads), standardised)
    layouts: tuple[Layout, ...] = ("NCHW", "NHWC")
    colors: tuple[Color, ...] = ("BGR", "RGB")

    for layout, color in itertools.product(layouts, colors):
        adapted = adapt_input(
            convolution_model(pads), layout=layout, color=color, mean=MEAN, scale=SCALE, size=SIZE, batch=batch
        )
        found = run_model(adapted, to_input(images, layout=layout, color=color))
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{layout} {color}")
        height_and_width = [*SIZE, 3] if layout == "NHWC" else [3, *SIZE]
        assert adapted.input(0).get_partial_shape() == ov.PartialShape([batch or -1, *height_and_width])


def test_a_model_of_another_image_size_is_refused_with_both_sizes() -> None:
    image = ops.parameter([1, 96, 96, 3], np.float32)
    fixed = ops.add(image, ops.constant(np.ones((1, 96, 96, 3), np.float32)))
    model = ov.Model([fixed], [image], "openface")

    with pytest.raises(ConversionError, match=r"\[-1, 11, 9, 3\].*\[1,96,96,3\]"):
        adapt_input(model, layout="NCHW", color="BGR", mean=MEAN, scale=SCALE, size=SIZE, batch=None)


# --- structure --------------------------------------------------------------------------------------------------


def image_parameter(*shape: int) -> ov.Node:
    parameter = ops.parameter(ov.PartialShape(list(shape)), np.float32)
    parameter.output(0).set_names({f"image{shape}"})
    return parameter


def pooled(image: ov.Node) -> ov.Node:
    return ops.reduce_mean(image, ops.constant(np.array([2, 3])))


def test_an_embedding_model_has_nothing_to_complain_about() -> None:
    image = image_parameter(-1, 3, 8, 8)
    check_structure(ov.Model([pooled(image)], [image], "good"), source="good")


def two_outputs() -> ov.Model:
    image = image_parameter(-1, 3, 8, 8)
    return ov.Model([pooled(image), ops.relu(pooled(image))], [image], "m")


def two_inputs() -> ov.Model:
    first, second = image_parameter(-1, 3, 8, 8), image_parameter(-1, 3, 8, 9)
    return ov.Model([ops.add(pooled(first), pooled(second))], [first, second], "m")


def with_an_if() -> ov.Model:
    image = image_parameter(-1, 3, 8, 8)
    branches = []
    for op in (ops.relu, ops.negative):
        inner = image_parameter(-1, 3, 8, 8)
        branches.append(ov.Model([op(inner)], [inner], "branch"))
    condition = ops.reduce_logical_or(
        ops.greater(image, ops.constant(np.float32(0))), ops.constant(np.array([0, 1, 2, 3]))
    )
    choice = ops.if_op(condition.output(0))
    for number, branch in enumerate(branches):
        (choice.set_then_body, choice.set_else_body)[number](branch)
    choice.set_input(image.output(0), branches[0].get_parameters()[0], branches[1].get_parameters()[0])
    output = choice.set_output(branches[0].get_results()[0], branches[1].get_results()[0])
    return ov.Model([ops.reduce_mean(output, ops.constant(np.array([2, 3])))], [image], "m")


def dynamic_height() -> ov.Model:
    image = image_parameter(-1, 3, -1, 8)
    return ov.Model([pooled(image)], [image], "m")


def an_image_out() -> ov.Model:
    image = image_parameter(-1, 3, 8, 8)
    return ov.Model([ops.relu(image)], [image], "m")


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (two_outputs, "expected one output, found 2"),
        (two_inputs, r"expected one input, found 2 \(image\(-1, 3, 8, 8\), image\(-1, 3, 8, 9\)\)"),
        (with_an_if, "expected no condition, found 1 If operations"),
        (dynamic_height, r"expected static height, width and channels, found input shape \[\?,3,\?,8\]"),
        (an_image_out, r"expected an output of \(batch, embedding\), found \[\?,3,8,8\]"),
    ],
)
def test_another_structure_is_named(build: object, told: str) -> None:
    with pytest.raises(ConversionError, match=f"^model.xml: .*{told}"):
        check_structure(build(), source="model.xml")  # type: ignore[operator]


# --- the check of a saved IR ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_good_ir_passes_in_a_fresh_process(ir: Path) -> None:
    with FreshProcessCheck() as check:
        check(ir)


def flip_a_byte_of_the_bin(ir: Path) -> None:
    weights = ir.with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0x01
    weights.write_bytes(content)


def truncate_the_bin(ir: Path) -> None:
    weights = ir.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-1])


def remove_the_bin(ir: Path) -> None:
    ir.with_suffix(".bin").unlink()


def edit_the_contract(ir: Path) -> None:
    ir.write_text(ir.read_text().replace('<color value="BGR"', '<color value="RGB"'))


def remove_the_contract(ir: Path) -> None:
    ir.write_text(ir.read_text().replace("<edgeface>", "<other>").replace("</edgeface>", "</other>"))


def promise_another_length(ir: Path) -> None:
    _rewrite(ir, normalize=False)


def ignore_the_image(ir: Path) -> None:
    _rewrite(ir, factor=0.0)


def free_the_height(ir: Path) -> None:
    _rewrite(ir, height=-1)


def _rewrite(ir: Path, *, normalize: bool = True, height: int = 160, factor: float = 1.0) -> None:
    """Save another network under the same contract."""
    contract = read_contract(ir)[1]
    image = ops.parameter(ov.PartialShape([-1, 3, height, 160]), np.float32)
    seen = ops.add(ops.multiply(pooled(image), np.float32(factor)), np.float32(1 - factor))
    y = ops.matmul(seen, ops.constant(dense_weights()), False, False)
    if normalize:
        y = ops.normalize_l2(y, ops.constant(np.array([1])), 1e-12, "add")
    model = ov.Model([y], [image], "m")
    name_ports(model, inputs=["image"], outputs=["embeddings"], layout="NCHW")
    save_ir(model, ir.parent, contract)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_byte_of_the_bin, "is damaged or belongs to another IR"),
        (truncate_the_bin, "expected"),
        (remove_the_bin, r"expected an IR with its \.bin beside it"),
        (edit_the_contract, "it was edited by hand"),
        (remove_the_contract, "expected an IR with an edgeface contract, found none"),
        (promise_another_length, "expected embeddings of unit length"),
        (ignore_the_image, "expected another embedding of each image"),
        (free_the_height, "expected static height, width and channels"),
    ],
)
def test_a_saved_ir_that_breaks_a_promise_is_refused(ir: Path, damage: object, told: str) -> None:
    damage(ir)  # type: ignore[operator]

    with pytest.raises(EdgeFaceError, match=told):
        check_inference(ir)


@pytest.mark.parametrize("damage", [flip_a_byte_of_the_bin, edit_the_contract, remove_the_bin])
def test_the_fresh_process_tells_why_it_refused(ir: Path, damage: object) -> None:
    damage(ir)  # type: ignore[operator]

    with FreshProcessCheck() as check, pytest.raises(ConversionError) as caught:
        check(ir)

    assert str(caught.value).startswith("the IR failed its check after saving: ")
    assert str(ir.with_suffix("")) in str(caught.value)


@pytest.mark.parametrize("name", [" größe .xml", "new\nline.xml"])
def test_the_fresh_process_finds_an_ir_of_any_name(ir: Path, name: str) -> None:
    renamed = ir.rename(ir.with_name(name))
    ir.with_suffix(".bin").rename(renamed.with_suffix(".bin"))

    with FreshProcessCheck() as check:
        check(renamed)


def test_the_check_runs_this_edgeface_whatever_lies_in_the_working_directory(
    ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('not the real numpy')")
    monkeypatch.chdir(tmp_path)

    with FreshProcessCheck() as check:
        check(ir)


# --- files ------------------------------------------------------------------------------------------------------


def test_an_ir_in_place_of_another_replaces_both_files(ir: Path, tmp_path: Path) -> None:
    published = tmp_path / "out"
    published.mkdir()
    (published / ir.name).write_text("old")
    (published / "tiny.bin").write_text("old")
    expected = ir.read_bytes(), ir.with_suffix(".bin").read_bytes()

    publish_ir(ir, published)

    assert expected == ((published / ir.name).read_bytes(), (published / "tiny.bin").read_bytes())


@pytest.mark.parametrize("in_the_way", ["tiny.xml", "tiny.bin"])
def test_a_folder_in_the_way_leaves_everything_as_it_was(ir: Path, tmp_path: Path, in_the_way: str) -> None:
    published = tmp_path / "out"
    (published / in_the_way).mkdir(parents=True)
    (other,) = {"tiny.xml", "tiny.bin"} - {in_the_way}
    (published / other).write_text("old")

    with pytest.raises(OutputError, match="expected a file to replace, found a folder"):
        publish_ir(ir, published)

    assert (published / in_the_way).is_dir()
    assert (published / other).read_text() == "old"


def test_an_ir_that_cannot_be_put_in_place_leaves_the_old_one(
    ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, rename = tmp_path / "out", Path.replace
    published.mkdir()
    (published / "tiny.xml").write_text("old")

    def refuse_the_bin(self: Path, target: Path) -> Path:
        if target == published / "tiny.bin":
            raise PermissionError(errno.EPERM, "immutable")  # as after chattr +i
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse_the_bin)
    with pytest.raises(OutputError, match="choose a folder that can be written"):
        publish_ir(ir, published)

    assert (published / "tiny.xml").read_text() == "old"


@pytest.mark.parametrize(("name", "told"), [("absent.xml", "found nothing there"), ("a.onnx", "found a .onnx")])
def test_what_is_no_ir_is_named(tmp_path: Path, name: str, told: str) -> None:
    if name == "a.onnx":
        (tmp_path / name).write_bytes(b"\x08\x07")

    with pytest.raises(ModelFormatError, match=told):
        read_ir(tmp_path / name)


def test_a_damaged_xml_is_named(ir: Path) -> None:
    ir.write_bytes(ir.read_bytes()[:1000])

    with pytest.raises(ModelFormatError, match=r"the \.xml is damaged, or"):
        read_ir(ir)


def test_the_tiny_ir_computes_what_numpy_computes(tiny_ir: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (5, 160, 160, 3), np.uint8)

    found = run_model(read_ir(tiny_ir), to_input(images, layout="NCHW", color="BGR"))

    assert found.shape == (5, EMBEDDING)
    np.testing.assert_allclose(found, tiny_expected((images - 127.5) / 128, dense_weights()), atol=1e-4)


def test_a_contract_error_names_the_ir(ir: Path) -> None:
    remove_the_contract(ir)

    with pytest.raises(ContractError, match=str(ir)):
        check_inference(ir)
