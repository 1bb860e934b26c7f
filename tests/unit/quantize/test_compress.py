"""What NNCF makes of a tiny network by each recipe, and that it keeps quiet about it."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from extras import need_nncf
from tiny_net import SIZE, skin_crops, tiny_net, write_tiny_net

from edgeface.convert import convert
from edgeface.errors import ConversionError, InputError
from edgeface.model.ir_file import read_ir
from edgeface.progress import Progress
from edgeface.quantize.compress import QuantizationRecipe, compress, is_transformer, residuals_of, tail_of
from edgeface.quantize.gate import cosines, embed

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

need_nncf()


def inputs(count: int = 12) -> list[np.ndarray]:
    return [crop.transpose(2, 0, 1)[None].astype(np.float32) for crop in skin_crops(count)]


def digest(model: ov.Model, folder: Path) -> tuple[str, str]:
    path = folder / "saved.xml"
    ov.save_model(model, path, compress_to_fp16=False)
    return tuple(hashlib.sha256(path.with_suffix(end).read_bytes()).hexdigest() for end in (".xml", ".bin"))  # type: ignore[return-value]


def rounded(model: ov.Model) -> set[str]:
    """Friendly names of operations that read a FakeQuantize."""
    return {
        op.get_friendly_name()
        for op in model.get_ops()
        for port in op.input_values()
        if port.get_node().get_type_name() == "FakeQuantize"
    }


def weights_of(model: ov.Model, name: str) -> np.ndarray:
    """The 8-bit weights of a layer."""
    node = next(op for op in model.get_ops() if op.get_friendly_name() == name).input_value(1).get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return np.asarray(node.data)


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_net(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def quantized(ir: Path) -> ov.Model:
    return compress(read_ir(ir), inputs(), QuantizationRecipe())


@pytest.mark.slow
def test_the_layers_compute_in_8_bits_and_the_embeddings_stay_close(quantized: ov.Model) -> None:
    before, after = embed(tiny_net(), inputs()), embed(quantized, inputs())

    assert {"a", "b", "c"} <= rounded(quantized)
    assert (before * after).sum(axis=1).min() > 0.99
    assert np.abs(before - after).max() > 0


def test_unit_length_and_residuals_stay_in_floating_point(quantized: ov.Model) -> None:
    assert tail_of(tiny_net()) == ("unit",)
    assert residuals_of(tiny_net()) == ("residual",)
    assert not {"unit", "residual"} & rounded(quantized)
    assert np.linalg.norm(embed(quantized, inputs()), axis=1) == pytest.approx(1, abs=1e-5)


def test_no_sum_of_two_products_can_saturate_16_bits(quantized: ov.Model) -> None:
    # vpmaddubsw adds two products of an unsigned and a signed byte into 16 bits.
    full = compress(tiny_net(), inputs(), QuantizationRecipe(half_range="none"))
    for name in ("a", "b", "c"):
        assert 2 * 255 * np.abs(weights_of(quantized, name).astype(int)).max() <= 32767
        assert 2 * 255 * np.abs(weights_of(full, name).astype(int)).max() > 32767


def test_the_same_inputs_and_seed_give_the_same_files(quantized: ov.Model, ir: Path, tmp_path: Path) -> None:
    tiny_net()  # moves the counter by which OpenVINO names nodes
    again = compress(read_ir(ir), inputs(), QuantizationRecipe())

    assert digest(again, tmp_path) == digest(quantized, tmp_path)


def test_an_ignored_layer_stays_in_floating_point() -> None:
    kept = compress(tiny_net(), inputs(), QuantizationRecipe(ignored=("b",)))

    assert "b" not in rounded(kept)
    assert weights_of(kept, "b").dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "bias"), [("int8-mixed", "accurate"), ("int8-performance", "none")])
def test_every_preset_and_bias_correction_gives_a_model_that_is_close(preset: str, bias: str) -> None:
    made = compress(tiny_net(), inputs(), QuantizationRecipe(method=preset, bias_correction=bias))  # type: ignore[arg-type]

    assert (embed(tiny_net(), inputs()) * embed(made, inputs())).sum(axis=1).min() > 0.98


def test_weights_alone_need_no_images_and_leave_activations_alone() -> None:
    made = compress(tiny_net(), [], QuantizationRecipe(method="weights"))

    assert weights_of(made, "b").dtype == np.int8
    assert not rounded(made)
    assert (embed(tiny_net(), inputs()) * embed(made, inputs())).sum(axis=1).min() > 0.999


def test_a_softmax_whose_result_is_multiplied_makes_a_transformer() -> None:
    x = ops.parameter([1, 4, 4], np.float32)
    attention = ov.Model([ops.matmul(ops.softmax(x, 2), x, False, False)], [x])
    classifier = ov.Model([ops.softmax(x, 2)], [x])

    assert is_transformer(attention)
    assert not is_transformer(classifier)
    assert not is_transformer(tiny_net())


def attention_net() -> ov.Model:
    """A small transformer's first half block with one channel that is ten times as loud as the others."""
    rng = np.random.default_rng(3)

    def weights(rows: int, columns: int) -> object:
        return ops.constant(rng.normal(0, 0.2, (rows, columns)).astype(np.float32))

    image = ops.parameter([1, 3, SIZE, SIZE], np.float32, "image")
    tokens = ops.reshape(image, np.array([1, -1, 3 * SIZE]), False)
    loud = np.ones((1, 1, 3 * SIZE), np.float32)
    loud[..., 5] = 10
    x = ops.multiply(ops.divide(tokens, np.float32(255)), ops.constant(loud))
    query, key, value = (ops.matmul(x, weights(3 * SIZE, 16), False, False) for _ in range(3))
    mixed = ops.matmul(ops.softmax(ops.matmul(query, key, False, True), 2), value, False, False)
    pooled = ops.reduce_mean(mixed, np.array([1]), False)
    made = ops.matmul(pooled, weights(16, 8), False, False)
    return ov.Model([ops.normalize_l2(made, np.array([1]), 1e-12, "add")], [image], "attention")


@pytest.mark.slow
def test_a_transformers_loud_channels_are_smoothed_into_its_weights() -> None:
    made = compress(attention_net(), inputs(), QuantizationRecipe())

    smoothed = [op for op in made.get_ops() if "smooth_quant" in op.get_friendly_name()]
    assert smoothed, "SmoothQuant divides activations before they are rounded"
    assert not any(
        "smooth_quant" in op.get_friendly_name()
        for op in compress(tiny_net(), inputs(), QuantizationRecipe()).get_ops()
    )
    assert (embed(attention_net(), inputs()) * embed(made, inputs())).sum(axis=1).min() > 0.95


@pytest.mark.slow
def test_a_face_transformer_keeps_its_embeddings_in_int8(tmp_path: Path) -> None:
    """Face Transformer's blocks at full width, two of them, as its ONNX file is converted."""
    pytest.importorskip("onnx")
    from tiny_onnx import write_face_transformer

    path = write_face_transformer(tmp_path / "vit.onnx", depth=2)
    model = ov.Core().read_model(convert(path, tmp_path / "out", name="facetransformer-octuplet").ir)
    rng = np.random.default_rng(4)
    colours = rng.uniform(0, 255, (6, 1, 3, 2, 2)).astype(np.float32)
    photos = list(colours.repeat(56, axis=3).repeat(56, axis=4))

    made = compress(model, photos, QuantizationRecipe())

    assert is_transformer(model)
    assert any("smooth_quant" in op.get_friendly_name() for op in made.get_ops())
    matmuls = {op.get_friendly_name() for op in made.get_ops() if op.get_type_name() == "MatMul"}
    assert len(matmuls & rounded(made)) >= 2 * 4  # of each block: qkv, projection, both layers of the MLP
    before, after = embed(model, photos), embed(made, photos)
    assert cosines(before, after).min() > 0.999
    assert cosines(before - before.mean(axis=0), after - after.mean(axis=0)).min() > 0.99  # what differs between photos


@pytest.mark.slow
def test_nncfs_accuracy_control_puts_back_only_what_the_cosine_needs() -> None:
    expected = embed(tiny_net(), inputs())
    plain = cosines(expected, embed(compress(tiny_net(), inputs(), QuantizationRecipe()), inputs())).mean()
    wanted = 1 - (1 - plain) / 2

    made = compress(tiny_net(), inputs(), QuantizationRecipe(control=wanted))

    layers = {"a", "b", "c", "d"}
    assert plain < wanted <= cosines(expected, embed(made, inputs())).mean()
    assert 0 < len(layers & rounded(made)) < len(layers)
    assert f"mean cosine {wanted:g}" in QuantizationRecipe(control=wanted).settings
    with pytest.raises(InputError, match="a method that quantizes activations"):
        QuantizationRecipe(method="weights", control=0.99)


def test_what_cannot_be_done_is_named() -> None:
    with pytest.raises(InputError, match="no operation nowhere"):
        compress(tiny_net(), inputs(), QuantizationRecipe(ignored=("nowhere",)))
    with pytest.raises(InputError, match="at least one image"):
        compress(tiny_net(), [], QuantizationRecipe())
    with pytest.raises(ConversionError, match="NNCF cannot quantize"):
        compress(tiny_net(), [np.zeros((1, 3, SIZE + 1, SIZE), np.float32)], QuantizationRecipe())
    with pytest.raises(InputError, match="method"):
        QuantizationRecipe(method="int4")  # type: ignore[arg-type]


def test_progress_counts_every_calibration_input() -> None:
    told: list[Progress] = []
    compress(tiny_net(), inputs(5), QuantizationRecipe(), progress=told.append)

    assert [each for each in told if each.stage == "calibration"][:5] == [
        Progress("calibration", n, 5, "images") for n in range(1, 6)
    ]
    assert told[-1].stage == "bias correction"


@pytest.mark.slow
def test_nncf_prints_nothing_and_reports_to_nobody() -> None:
    code = (
        "import logging; before = logging.getLoggerClass(); import edgeface, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tiny_net import skin_crops, tiny_net\n"
        "from edgeface.quantize.compress import QuantizationRecipe, compress\n"
        "import numpy as np\n"
        "compress(tiny_net(), [c.transpose(2, 0, 1)[None].astype(np.float32) for c in skin_crops(3)],\n"
        "QuantizationRecipe())\n"
        "assert logging.getLoggerClass() is before\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_numpys_generator_and_stdout_are_given_back() -> None:
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    stdout = sys.stdout
    compress(tiny_net(), inputs(3), QuantizationRecipe(seed=1))

    assert sys.stdout is stdout
    assert np.array_equal(np.random.random(3), expected)
    assert logging.getLoggerClass() is logging.Logger or logging.getLoggerClass().__module__ != "nncf"
