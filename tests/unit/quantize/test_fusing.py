"""A quantized network in fewer steps: the same numbers, and which operations are left."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from edgeface.model.opset import ops
from edgeface.quantize.compress import QuantizationRecipe, compress
from edgeface.quantize.fusing import fuse

pytest.importorskip("nncf", reason="NNCF is not installed: pip install 'edgeface[quantize]'")

RNG = np.random.default_rng(5)
CHANNELS = 16
WEIGHTS = {
    name: (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    for name, shape in {
        "stem": (CHANNELS, 3, 3, 3),
        "one": (8, CHANNELS, 1, 1),
        "two": (8, CHANNELS, 1, 1),
        "deep": (8, 8, 3, 3),
        "up": (CHANNELS, 16, 1, 1),
        "last": (32, CHANNELS),
    }.items()
}


def layer(source: ov.Node, name: str, *, relu: bool = True) -> ov.Node:
    kernel = WEIGHTS[name]
    pad = [kernel.shape[2] // 2] * 2
    made = ops.convolution(source, ops.constant(kernel), [1, 1], pad, pad, [1, 1])
    made.set_friendly_name(name)
    biased = ops.add(made, ops.constant(np.full((1, len(kernel), 1, 1), 0.1, np.float32)))
    return ops.relu(biased) if relu else biased


def block_net() -> ov.Model:
    """One residual block of two branches as Inception-ResNet has it, a pool, a product."""
    image = ops.parameter([-1, 3, 8, 8], np.float32, name="image")
    stem = layer(image, "stem")
    joined = ops.concat([layer(stem, "one"), layer(layer(stem, "two"), "deep")], 1)
    after = ops.relu(ops.add(layer(joined, "up", relu=False), stem))
    pooled = ops.reshape(ops.reduce_mean(after, np.array([2, 3]), keep_dims=True), np.array([0, -1]), True)
    rows = ops.matmul(pooled, ops.constant(WEIGHTS["last"]), False, True)
    return ov.Model([ops.relu(rows)], [image], "block")


def images(count: int = 8) -> list[np.ndarray]:
    return [RNG.uniform(0, 2, (1, 3, 8, 8)).astype(np.float32) for _ in range(count)]


def counted(model: ov.Model) -> Counter[str]:
    return Counter(op.get_type_name() for op in model.get_ops())


@pytest.fixture(scope="module")
def quantized() -> ov.Model:
    return compress(block_net(), images(), QuantizationRecipe())


def test_the_fused_model_computes_the_same(quantized: ov.Model) -> None:
    before, after = (ov.Core().compile_model(each, "CPU") for each in (quantized, fuse(quantized)))
    for image in images():
        wanted, found = before(image)[0], after(image)[0]
        assert np.abs(wanted).max() > 0.1
        # A value that lies on the border between two steps may fall to the other side.
        np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


def test_layers_that_read_the_same_become_one_and_the_product_a_convolution(quantized: ov.Model) -> None:
    before, after = counted(quantized), counted(fuse(quantized))
    assert (before["Convolution"], before["MatMul"], before["VariadicSplit"]) == (5, 1, 0)
    assert (after["Convolution"], after["MatMul"], after["VariadicSplit"]) == (5, 0, 1)


def test_the_residual_is_added_behind_a_rounding_too_fine_to_matter(quantized: ov.Model) -> None:
    made = fuse(quantized)
    fine = [
        op
        for op in made.get_ops()
        if op.get_type_name() == "FakeQuantize" and op.get_attributes()["levels"] == 1 << 20
    ]
    assert len(fine) == 1
    reader = next(iter(fine[0].output(0).get_target_inputs())).get_node()
    assert reader.get_type_name() == "Add"


def test_no_tensor_is_rounded_twice_to_the_same_limits(quantized: ov.Model) -> None:
    made = fuse(quantized)
    seen = Counter(
        (
            op.input_value(0).get_node().get_friendly_name(),
            np.asarray(op.input_value(2).get_node().data).tobytes(),
        )
        for op in made.get_ops()
        if op.get_type_name() == "FakeQuantize"
    )
    assert max(seen.values()) == 1


def test_the_same_model_comes_out_as_the_same_bytes_and_what_came_in_is_not_changed(
    quantized: ov.Model, tmp_path: Path
) -> None:
    before = counted(quantized)
    digests = set()
    for name in ("a", "b"):
        ov.save_model(fuse(quantized), tmp_path / f"{name}.xml", compress_to_fp16=False)
        digests.add(
            tuple(
                hashlib.sha256((tmp_path / f"{name}{end}").read_bytes()).hexdigest()
                for end in (".xml", ".bin")
            )
        )
    assert len(digests) == 1
    assert counted(quantized) == before


def test_a_model_in_floating_point_stays_as_it_is() -> None:
    assert counted(fuse(block_net())) == counted(block_net())
