"""What each executed layer computes and how long all must take at least: closed forms, and real models."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edgeface.bench.machine.executed import (
    ExecutedLayer,
    assign_work,
    describe_layers,
    executed_layers,
    has_eight_bit,
    time_layers,
)
from edgeface.bench.machine.peak import Peak, attainable_seconds
from edgeface.bench.machine.products import Product
from edgeface.bench.reading import Unknown
from edgeface.errors import InputError
from edgeface.model.flops import LayerWork, Work, count_work
from edgeface.model.opset import ops


def worked(name: str, macs: int, flops: int, *, int8: bool = False) -> LayerWork:
    return LayerWork(
        name=name,
        kind="Convolution",
        macs=macs,
        flops_omz=flops,
        parameters=0,
        parameters_omz=0,
        weight_bytes=0,
        activation_bytes=0,
        int8=int8,
    )


def executed(name: str, precision: str, *operations: str) -> ExecutedLayer:
    return ExecutedLayer(
        name=name,
        kind="Convolution",
        operations=operations,
        precision=precision,
        kernel="some_kernel",
        bytes=100,
        weight_bytes=10,
        milliseconds=2.0,
    )


WORK = Work(
    layers=(worked("a", 10**9, 2 * 10**9), worked("relu", 0, 5), worked("b", 5 * 10**8, 10**9, int8=True)),
    uncounted=(),
    batch=1,
)


def peak(**gflops: float) -> Peak:
    def product(value: float) -> Product:
        return Product(
            gflops_per_second=value, executed="f32", kernel="", form="MatMul", shape=(1, 1, 1), milliseconds=1.0
        )

    none = Unknown(unknown="not here")
    return Peak(
        device="CPU",
        full_name="A CPU",
        openvino="1",
        streams=1,
        threads=2,
        products={name: product(value) for name, value in gflops.items()},  # type: ignore[misc]
        bandwidth=none,
        seconds=1.0,
    )


def test_a_layer_has_the_operations_of_what_was_fused_into_it() -> None:
    fused, added = describe_layers([executed("a", "f32", "a", "relu"), executed("reorder", "f32")], WORK, inferences=20)
    assert (fused.gflops, fused.ms, fused.count, fused.bytes) == (2 + 5e-9, 2.0, 20, 100)
    assert fused.exec_type == "some_kernel"
    assert added.gflops is None


def test_work_that_the_runtime_split_is_counted_once_and_where_it_takes_longest() -> None:
    split = (
        dataclasses.replace(executed("a_part", "f32", "a"), milliseconds=0.1),
        executed("a", "u8", "a", "relu"),
        dataclasses.replace(executed("a_out", "f32", "a"), milliseconds=0.2),
    )
    layers = describe_layers(split, WORK, inferences=20)
    assert [layer.gflops for layer in layers] == [0.0, 2 + 5e-9, 0.0]
    assert has_eight_bit(split, WORK)
    least = attainable_seconds(WORK, peak(f32=100.0, i8=400.0), split, precision="f32")
    assert least == pytest.approx(2 / 400 + 1 / 100)  # b is in none of them, so the run's own precision counts


def test_every_product_takes_its_own_precisions_time() -> None:
    machine = peak(f32=100.0, i8=400.0)
    mixed = (executed("a", "f32", "a"), executed("b", "u8", "b"))
    assert attainable_seconds(WORK, machine, mixed, precision="f32") == pytest.approx(2 / 100 + 1 / 400)
    assert has_eight_bit(mixed, WORK)
    floating = (executed("a", "f32", "a"), executed("b", "f32", "b"))
    assert attainable_seconds(WORK, machine, floating, precision="f32") == pytest.approx(3 / 100)
    assert not has_eight_bit(floating, WORK)


def test_without_layers_the_models_own_word_counts() -> None:
    machine = peak(f32=100.0, i8=400.0)
    assert attainable_seconds(WORK, machine, precision="f32") == pytest.approx(2 / 100 + 1 / 400)


def test_an_unknown_peak_leaves_the_time_unknown() -> None:
    assert attainable_seconds(WORK, peak(f32=100.0), precision="f32") is None
    assert attainable_seconds(WORK, peak(i8=400.0), precision="bf16") is None


def work_of(*layers: tuple[str, str, int, int], inputs: dict[str, tuple[str, ...]] | None = None) -> Work:
    """Layers as (name, kind, MACs, FLOPs of Open Model Zoo)."""
    return Work(
        layers=tuple(
            LayerWork(
                name=name,
                kind=kind,
                macs=macs,
                flops_omz=flops,
                parameters=0,
                parameters_omz=0,
                weight_bytes=0,
                activation_bytes=0,
                int8=False,
                inputs=(inputs or {}).get(name, ()),
            )
            for name, kind, macs, flops in layers
        ),
        uncounted=(),
        batch=1,
    )


def ran(
    name: str, *operations: str, ms: float, moved: int = 0, precision: str = "f32", kind: str = "Convolution"
) -> ExecutedLayer:
    return ExecutedLayer(
        name=name,
        kind=kind,
        operations=operations,
        precision=precision,
        kernel="k",
        bytes=moved,
        weight_bytes=0,
        milliseconds=ms,
    )


# --- operations of executed layers ---------------------------------------------------------------------------


def gflops(work: Work, *executed: ExecutedLayer) -> list[int | None]:
    """Operations of each layer."""
    found = describe_layers(executed, work, inferences=3)
    return [None if layer.gflops is None else round(layer.gflops * 1e9) for layer in found]


def test_operations_of_fused_layers_add_up_and_layers_of_the_runtime_have_none() -> None:
    work = work_of(
        ("conv", "Convolution", 50_000_000, 100_000_000),
        ("bias", "Add", 0, 1_000_000),
        ("relu", "Relu", 0, 2_000_000),
        ("pool", "MaxPool", 0, 4_000_000),
    )
    executed = [
        ran("reorder", ms=0.5, moved=8_000_000, kind="Reorder"),
        ran("conv", "conv", "bias", "relu", ms=2.0, moved=2_000_000),
        ran("pool", "pool", ms=1.5, moved=20_000_000, kind="Pooling"),
    ]
    assert gflops(work, *executed) == [None, 103_000_000, 4_000_000]


def test_what_the_runtime_fused_without_naming_it_counts_with_what_it_reads() -> None:
    inputs = {"relu": ("conv",), "pool": ("relu",)}
    work = work_of(("conv", "Convolution", 5, 10), ("relu", "Relu", 0, 4), ("pool", "MaxPool", 0, 3), inputs=inputs)
    executed = [ran("conv", "conv", ms=1.0), ran("pool", "pool", ms=1.0)]
    assert gflops(work, *executed) == [14, 3]
    assert assign_work(work, executed)[1] == ()


def test_a_product_that_no_layer_names_is_told() -> None:
    work = work_of(("a", "Convolution", 50, 100), ("b", "MatMul", 50, 100), inputs={"b": ("a",)})
    executed = [ran("a", "a", ms=1.0)]
    assert assign_work(work, executed)[1] == ("b",)
    assert gflops(work, *executed) == [100]


def test_an_operation_that_the_runtime_split_counts_for_its_longest_part() -> None:
    work = work_of(("norm", "MVN", 0, 1000))
    executed = [ran("mean", "norm", ms=0.1), ran("scale", "norm", ms=0.4), ran("shift", "norm", ms=0.2)]
    assert gflops(work, *executed) == [0, 1000, 0]


# --- what OpenVINO makes of a model --------------------------------------------------------------------------


def network(*, int8: bool = False) -> ov.Model:
    """Convolution with bias and ReLU, pooling, product: what the CPU plugin fuses and what it does not."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return ops.constant(random.standard_normal(shape, dtype=np.float32))

    def limits(value: Any, low: float, high: float, levels: int) -> Any:
        ends = [ops.constant(np.float32(end)) for end in (low, high, low, high)]
        return ops.fake_quantize(value, *ends, levels) if int8 else value

    x = ops.parameter([1, 32, 64, 64], np.float32, name="x")
    kernel = limits(weights(64, 32, 3, 3), -4, 4, 255)
    conv = ops.convolution(limits(x, 0, 1, 256), kernel, [1, 1], [1, 1], [1, 1], [1, 1], name="conv")
    relu = ops.relu(ops.add(conv, weights(1, 64, 1, 1), name="bias"), name="relu")
    pool = ops.max_pool(limits(relu, 0, 64, 256), [2, 2], [1, 1], [0, 0], [0, 0], [2, 2], name="pool").output(0)
    flat = ops.reshape(pool, np.array([1, -1]), False)
    product = ops.matmul(flat, limits(weights(16, 65536), -4, 4, 255), False, True, name="product")
    return ov.Model([ops.relu(product, name="end")], [x], "network")


def run(model: ov.Model) -> tuple[ExecutedLayer, ...]:
    compiled = ov.Core().compile_model(model, "CPU", {"PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32"})
    layers = time_layers(compiled, [np.ones((1, 32, 64, 64), np.float32)], inferences=3)
    assert not isinstance(layers, Unknown)
    return layers


def test_fused_operations_are_matched_and_bytes_are_those_of_the_fused_layer() -> None:
    model = network()
    layers = run(model)
    (conv,) = (layer for layer in layers if layer.kind == "Convolution")
    assert {"bias", "relu"} <= set(conv.operations)
    assert (conv.precision, conv.milliseconds > 0) == ("f32", True)
    # 32 and 64 channels of 64 x 64 in and out, 64 kernels of 32 x 3 x 3, 64 biases; nothing between them.
    assert conv.weight_bytes == 4 * (64 * 32 * 9 + 64)
    assert conv.bytes == conv.weight_bytes + 4 * (32 + 64) * 64 * 64
    work = count_work(model)
    assert assign_work(work, layers)[1] == ()
    described = describe_layers(layers, work, inferences=3)
    assert sum(layer.gflops or 0 for layer in described) == pytest.approx(work.gflops_omz)
    assert [layer.ms for layer in described] == [layer.milliseconds for layer in layers]


def test_layers_of_an_8_bit_model_are_executed_and_weighed_in_8_bits() -> None:
    model = network(int8=True)
    layers = run(model)
    (conv,) = (layer for layer in layers if layer.kind == "Convolution")
    assert conv.precision in ("u8", "i8")
    # Weights of one byte, inputs and outputs of one byte, biases (and scales) of four.
    assert 64 * 32 * 9 <= conv.weight_bytes <= 64 * 32 * 9 + 4 * 4 * 64
    assert conv.bytes - conv.weight_bytes == (32 + 64) * 64 * 64
    work = count_work(model)
    assert work.int8_macs == work.macs
    assert assign_work(work, layers)[1] == ()
    assert has_eight_bit(layers, work)
    least = attainable_seconds(work, peak(i8=400.0), layers, precision="f32")
    assert least == pytest.approx(2e-9 * work.macs / 400)


def test_constants_and_ends_are_no_layers() -> None:
    layers = executed_layers(ov.Core().compile_model(network(), "CPU"))
    assert not isinstance(layers, Unknown)
    assert not {layer.kind for layer in layers} & {"Const", "Input", "Output", "Parameter", "Result"}


def test_a_model_compiled_without_counters_is_refused_with_the_remedy() -> None:
    compiled = ov.Core().compile_model(network(), "CPU", {"PERF_COUNT": False})
    with pytest.raises(InputError, match="PERF_COUNT"):
        time_layers(compiled, [np.ones((1, 32, 64, 64), np.float32)], inferences=1)


def test_no_inference_is_refused() -> None:
    with pytest.raises(InputError, match="1 or more, not 0"):
        time_layers(None, [], inferences=0)
