"""dlib's stream format: every value, every layer, and files that are not what they seem."""

from __future__ import annotations

import dataclasses
import math
import random
import resource
import time
import tracemalloc
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from dlib_files import EMPTY, MEAN, MULTIPLIERS, Net, alias, integer, mutate, real, shape, small_net, tensor, text
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.convert import convert
from edgeface.convert.dlib import _Stream, load_dlib
from edgeface.convert.recipe import Recipe, RecipeParts
from edgeface.convert.source import SourceModel
from edgeface.errors import EdgeFaceError, InputError, ModelFormatError, NotSupportedError
from edgeface.model.contract import Alignment

RECIPE = Recipe(name="tiny", mean=MEAN, scale=(256.0,) * 3, alignment=Alignment("none"))


def stream(content: bytes) -> _Stream:
    return _Stream(content, Path("net.dat"))


def load(tmp_path: Path, content: bytes, recipe: Recipe = RECIPE) -> SourceModel:
    path = tmp_path / "net.dat"
    path.write_bytes(content)
    return load_dlib(path, recipe)


def infer(model: ov.Model, images: np.ndarray) -> np.ndarray:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(images.astype(np.float32))[0])


def residual_of_training() -> Net:
    """As trainers leave it: batch norms, biases and ReLUs where the flags of later versions put them."""
    net = Net(12).con(3, 5, 3, 1, 1, "con_5", biased=False).norm(5).relu("relu_2").pool("max", 3, 2, 1)  # 6 x 6
    net.tag(1).con(5, 5, 3, 1, 1, "con_6").affine(5, name="affine_2").add_prev(1).relu("relu_2", disabled=True)
    net.affine(5, name="affine_2", disabled=True).affine(5, side=6).pool("avg", 3, 2, 1)  # 3 x 3
    return net.dense(45, 7, "fc_3", mode=0).norm(7, "bn_fc2").dense(7, 4, mode=0)


@pytest.mark.parametrize("make", [small_net, residual_of_training])
def test_the_network_computes_what_its_layers_say(tmp_path: Path, make) -> None:
    net = make()
    images = np.random.default_rng(1).normal(0, 1, (3, 3, net.size, net.size))
    source = load(tmp_path, net.to_bytes())
    assert np.allclose(infer(source.model, images), net.compute(images), rtol=1e-5, atol=1e-5)
    assert (source.framework, source.layout, source.normalized, source.seeded) == ("dlib", "NCHW", False, False)


def test_what_training_left_behind_is_read_over(tmp_path: Path) -> None:
    left = b"110" + tensor(np.ones(12), 2, 3, 2, 1) * 3
    plain, trained = (load(tmp_path, small_net().to_bytes(**options)) for options in ({}, {"tail": left}))
    assert plain.weights_id == trained.weights_id
    assert plain.sha256 != trained.sha256


def test_the_identity_of_weights_does_not_depend_on_the_version_of_a_layer(tmp_path: Path) -> None:
    def net(convolution: str, affine: str) -> bytes:
        return Net(8).con(3, 4, 3, 1, 0, convolution).affine(4, name=affine).pool("avg", 0, 1).to_bytes()

    old, new = (load(tmp_path, net(*names)).weights_id for names in (("con_4", "affine_"), ("con_5", "affine_2")))
    assert old == new


def test_the_same_weights_with_another_stride_or_pool_are_another_model(tmp_path: Path) -> None:
    def net(stride: int, kind: str) -> str:
        content = Net(8).con(3, 4, 3, stride, 0).affine(4).pool(kind, 0, 1).to_bytes()
        return load(tmp_path, content).weights_id

    assert len({net(1, "avg"), net(2, "avg"), net(1, "max")}) == 3


@given(st.integers(-(2**63) + 1, 2**63 - 1))
@settings(max_examples=examples(300))
def test_integers_survive(value: int) -> None:
    written = integer(value)
    read = stream(written)
    assert read.integer("a number", -(2**63), 2**63) == value
    assert read.at == len(written)


@given(st.floats())
@settings(max_examples=examples(300))
def test_floats_survive_to_the_last_bit(value: float) -> None:
    found = stream(real(value)).real("a number")
    assert found == value or (math.isnan(found) and math.isnan(value))


@given(st.integers(0, 255).filter(lambda control: control & 0x70 or not 1 <= control & 15 <= 8))
@settings(max_examples=examples(100))
def test_control_bytes_of_the_old_text_form_and_of_impossible_lengths_are_named(control: int) -> None:
    with pytest.raises(ModelFormatError, match=f"control byte 0x{control:02x}"):
        stream(bytes([control]) + bytes(20)).integer("a number", 0, 1)


def test_a_number_that_no_double_holds_is_named() -> None:
    with pytest.raises(ModelFormatError, match=r"2\*\*30000"):
        stream(integer(1) + integer(30000)).real("a number")


NET = small_net().to_bytes()
CONVOLUTION = NET.index(text("con_4"))


def changed(old: bytes, new: bytes) -> bytes:
    assert old in NET
    return NET.replace(old, new, 1)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", ModelFormatError, "expected a model, found an empty file; download it again"),
        (b"\x08\x01" + NET, ModelFormatError, "version of a network"),
        (integer(2) + NET[2:], ModelFormatError, "version 1 of a network with a loss layer, found version 2"),
        (changed(text("loss_metric_2"), text("loss_binary_hinge_")), NotSupportedError, "loss_binary_hinge_"),
        (changed(text("input_rgb_image_sized"), text("input")), NotSupportedError, "the input layer input"),
        (changed(text("avg_pool_2"), text("concat_")), NotSupportedError, "the layer concat_"),
        (changed(text("con_4"), text("con_\x00")), ModelFormatError, "a layer's name"),
        (changed(real(0.6), real(math.nan)), ModelFormatError, "finite"),
        (changed(integer(2) + integer(1) + integer(2), integer(2) + integer(4)), ModelFormatError, "from 1 to 3"),
        (NET + b"0", ModelFormatError, "expected the end of the file, found 1 more bytes"),
        (changed(text("loss_metric_2"), b"\x71" + text("loss_metric_2")[1:]), ModelFormatError, "control byte 0x71"),
        (changed(text("con_4") + tensor([0])[:2], text("con_4") + integer(3)), ModelFormatError, "version 2 of"),
        (changed(b"000" + EMPTY, b"002" + EMPTY), ModelFormatError, "0 or 1"),
        (Net(8).con(3, 4, 9, 1, 0).to_bytes(), ModelFormatError, r"filters of 3 channels and \[9, 9\]"),
        (Net(8).con(4, 4, 3, 1, 0).to_bytes(), ModelFormatError, "filters of 4 channels"),
        (Net(8).con(3, 4, 3, 1, 0).affine(5).to_bytes(), ModelFormatError, "an affine layer"),
        (Net(8).con(3, 4, 3, 1, 0).dense(9, 2).to_bytes(), ModelFormatError, "9 inputs"),
        (Net(8).con(3, 4, 3, 1, 0).pool("max", 2, 2, 2).to_bytes(), ModelFormatError, "padding"),
        (Net(60_000).con(3, 4, 3, 1, 1).to_bytes(), NotSupportedError, "feature maps of at most"),
    ],
)
def test_what_a_file_has_wrong_is_named(tmp_path: Path, content: bytes, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load(tmp_path, content)
    assert "net.dat" in str(caught.value)


def chain(*marks: str) -> bytes:
    """A network whose tags, skips and sums come in this order, with a layer between them where a name is given."""
    net = Net(8).con(3, 4, 3, 1, 0)
    for mark in marks:
        getattr(net, mark)(1) if mark in ("tag", "skip", "add_prev") else net.relu()
    return net.pool("avg", 0, 1).to_bytes()


@pytest.mark.parametrize(
    "marks",
    [
        ("add_prev",),
        ("tag", "relu"),
        ("tag", "skip", "relu", "add_prev"),
        ("tag", "relu", "tag", "relu", "add_prev", "add_prev"),
        ("tag", "relu", "tag", "skip", "skip", "relu", "add_prev"),
    ],
)
def test_tags_in_an_order_that_could_mean_two_things_are_refused(tmp_path: Path, marks: tuple[str, ...]) -> None:
    with pytest.raises(NotSupportedError, match="tags or skips in another order"):
        load(tmp_path, chain(*marks))


def test_a_file_cut_anywhere_is_truncated(tmp_path: Path) -> None:
    for length in [*range(0, 200), *random.Random(0).sample(range(len(NET)), 100)]:
        with pytest.raises(ModelFormatError):
            load(tmp_path, NET[:length])


def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    huge = text("con_4") + integer(2) + shape(2**30, 2**30, 2**30, 2**30)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match="more bytes"):
            load(tmp_path, NET[:CONVOLUTION] + huge + NET[CONVOLUTION:])
        with pytest.raises(ModelFormatError, match="at most 10,000 layers"):
            load(tmp_path, NET[: NET.index(integer(2) * 2)] + integer(2) * 100_000)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_batch_norm_of_impossible_statistics_is_named(tmp_path: Path) -> None:
    fields = text("bn_con2") + tensor([1, 0]) + alias(1, 1, 1, 1) * 2 + tensor([0]) + tensor([-1]) + integer(0) * 2
    net = Net(8).con(3, 1, 3, 1, 0).add(fields + MULTIPLIERS + real(1e-4), None)
    with pytest.raises(ModelFormatError, match="means and variances"):
        load(tmp_path, net.to_bytes())


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    net = Net(8).con(3, 1, 3, 1, 0)
    net.draw = lambda *sides: np.full(sides, np.nan, np.float32)  # type: ignore[method-assign]
    with pytest.raises(ModelFormatError, match="finite values"):
        load(tmp_path, net.affine(1).to_bytes())


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"size": (22, 21)}, "--size 21x21"),
        ({"mean": (0.0, 0.0, 0.0)}, "--mean 122.782,117.001,104.298 --scale 256"),
        ({"scale": (255.0, 255.0, 255.0)}, "--scale 256"),
    ],
)
def test_a_recipe_that_contradicts_the_file_is_refused(tmp_path: Path, wrong: dict, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        load(tmp_path, NET, dataclasses.replace(RECIPE, **wrong))


@pytest.mark.slow
def test_a_file_of_ones_own_is_converted_and_a_damaged_one_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.dat"
    path.write_bytes(NET)
    told = RecipeParts(size=21, alignment="none")
    result = convert(path, tmp_path / "out", recipe=told)
    assert (result.contract.provenance, result.contract.framework) == ("unknown", "dlib")
    assert (result.contract.input_size, result.contract.embedding_dim) == ((21, 21), 6)
    images = np.random.default_rng(2).integers(0, 256, (2, 21, 21, 3)).astype(float)  # RGB
    expected = small_net().compute(((images - np.float32(MEAN)) / 256).transpose(0, 3, 1, 2))
    found = infer(ov.Core().read_model(result.ir), images[..., ::-1].transpose(0, 3, 1, 2))
    assert np.abs(found - expected).max() < 1e-5
    path.write_bytes(NET[:-20])
    with pytest.raises(ModelFormatError, match="truncated"):
        convert(path, tmp_path / "second", recipe=told)
    assert not (tmp_path / "second").exists() or not any((tmp_path / "second").iterdir())


@pytest.mark.parametrize("rounds", [150, pytest.param(2000, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])])
def test_a_mutated_file_is_read_or_refused_by_name(tmp_path: Path, rounds: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(rounds):
        content = mutate(NET, random.Random(seed))
        start = time.monotonic()
        try:
            load(tmp_path, content)
        except EdgeFaceError as error:
            assert "net.dat" in str(error)  # noqa: PT017 - most files are refused, and some are still networks
        assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # KiB
