"""Layers under their roof: hand arithmetic on made-up times, and real models executed here."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.bench.machine.peak import Bandwidth, Peak, Product
from edgeface.bench.machine.reading import Unknown
from edgeface.bench.roofline import (
    Roofline,
    attainable,
    roof,
    roofline,
)
from edgeface.bench.run.executed import ExecutedLayer, executed_layers, time_layers
from edgeface.errors import InputError
from edgeface.model.flops import LayerWork, Work, count_work
from edgeface.model.opset import ops


def product(gflops_per_second: float, executed: str) -> Product:
    return Product(
        gflops_per_second=gflops_per_second,
        executed=executed,
        kernel="gemm",
        form="MatMul",
        shape=(512, 512, 512),
        milliseconds=1.0,
    )


def peak_of(*, f32: float | None = 100.0, i8: float | None = 400.0, gb: float | None = 20.0) -> Peak:
    missing = Unknown(unknown="not available here")
    moved = Bandwidth(gb_per_second=gb or 0, copy_gb_per_second=1, triad_gb_per_second=1, bytes=1, threads=1)
    return Peak(
        device="CPU",
        full_name="a CPU",
        openvino="2026",
        streams=1,
        threads=2,
        products={
            "f32": missing if f32 is None else product(f32, "f32"),
            "i8": missing if i8 is None else product(i8, "u8"),
        },
        bandwidth=missing if gb is None else moved,
        seconds=1.0,
    )


PEAK = peak_of()


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


# --- the roof ------------------------------------------------------------------------------------------------


def test_roof_is_flat_above_the_ridge_and_a_slope_below() -> None:
    # 100 GFLOP/s over 20 GB/s: the ridge is at 5 operations a byte.
    assert [attainable(PEAK, "f32", at) for at in (0.0, 1.0, 4.0, 5.0, 50.0)] == [
        0.0,
        20.0,
        80.0,
        100.0,
        100.0,
    ]


@given(low=st.floats(0, 1e4), high=st.floats(0, 1e4))
def test_roof_never_falls_and_never_passes_the_peak(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert attainable(PEAK, "u8", low) <= attainable(PEAK, "u8", high) <= 400.0


def test_precisions_meet_by_the_runtimes_names_and_others_stand_below_f32() -> None:
    assert [roof(PEAK, name) for name in ("f32", "i8", "u8", "i32", "bf16", "")] == [
        100.0, 400.0, 400.0, 100.0, 100.0, 100.0,
    ]  # fmt: skip
    assert roof(peak_of(i8=None), "u8") == 100.0


def test_a_peak_without_f32_is_refused() -> None:
    with pytest.raises(InputError, match="no figure for 'bf16' and none for 'f32'"):
        roof(peak_of(f32=None), "bf16")


def test_without_a_bandwidth_arithmetic_alone_is_the_limit() -> None:
    peak = peak_of(gb=None)
    assert attainable(peak, "f32", 0.001) == 100.0
    found = roofline(
        work_of(("c", "Convolution", 500_000, 10**6)), [ran("c", "c", ms=1.0, moved=10**9)], peak
    )
    assert (found.gb_per_second, found.layers[0].bound) == (None, "compute")


# --- layers by hand ------------------------------------------------------------------------------------------


def test_layers_by_hand_arithmetic() -> None:
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
        ran("view", "view", ms=0.0, kind="Reshape"),
    ]
    found = roofline(work, executed, PEAK)
    reorder, conv, pool = found.layers
    # 103 MFLOP in 2 ms: 51.5 GFLOP/s of 100; 2 MB would take 0.1 ms.
    assert (conv.gflops, conv.gflops_per_second) == pytest.approx((0.103, 51.5))
    assert (conv.intensity, conv.share, conv.bound) == (pytest.approx(51.5), pytest.approx(0.515), "compute")
    assert conv.attainable_gflops_per_second == 100.0
    # 20 MB at 20 GB/s take 1 ms of 1.5; 4 MFLOP over 20 MB: 0.2 a byte, 4 GFLOP/s at most.
    assert (pool.bound, pool.share) == ("memory", pytest.approx(2 / 3))
    assert (pool.intensity, pool.attainable_gflops_per_second) == (pytest.approx(0.2), pytest.approx(4.0))
    # Moves 8 MB and computes nothing.
    assert (reorder.gflops, reorder.intensity, reorder.bound) == (0.0, 0.0, "memory")
    assert reorder.share == pytest.approx(0.8)
    # The whole: 100 MFLOP of products in 4 ms.
    assert (found.milliseconds, found.gflops) == (4.0, 0.1)
    assert (found.gflops_per_second, found.efficiency) == pytest.approx((25.0, 0.25))
    assert found.roofs == {"f32": 100.0}
    assert found.unmatched == ()


def test_efficiency_holds_each_precision_to_its_own_peak() -> None:
    work = work_of(
        ("a", "Convolution", 50_000_000, 100_000_000), ("b", "Convolution", 50_000_000, 100_000_000)
    )
    executed = [ran("a", "a", ms=1.0, precision="u8"), ran("b", "b", ms=1.0)]
    # 0.1 GFLOP at 400 and at 100 GFLOP/s: 0.25 + 1 ms of 2.
    assert roofline(work, executed, PEAK).efficiency == pytest.approx(0.625)


def test_what_the_runtime_fused_without_naming_it_counts_with_what_it_reads() -> None:
    inputs = {"relu": ("conv",), "pool": ("relu",)}
    work = work_of(
        ("conv", "Convolution", 5, 10), ("relu", "Relu", 0, 4), ("pool", "MaxPool", 0, 3), inputs=inputs
    )
    executed = [ran("conv", "conv", ms=1.0), ran("pool", "pool", ms=1.0)]
    found = roofline(work, executed, PEAK)
    assert [round(layer.gflops * 1e9) for layer in found.layers] == [14, 3]
    assert found.unmatched == ()


def test_a_product_that_no_layer_names_is_told_and_still_part_of_the_model() -> None:
    work = work_of(("a", "Convolution", 50, 100), ("b", "MatMul", 50, 100), inputs={"b": ("a",)})
    found = roofline(work, [ran("a", "a", ms=1.0)], PEAK)
    assert found.unmatched == ("b",)
    assert found.gflops == 200 / 1e9
    assert found.layers[0].gflops == 100 / 1e9


def test_an_operation_that_the_runtime_split_counts_for_its_longest_part() -> None:
    work = work_of(("norm", "MVN", 0, 1000))
    executed = [ran("mean", "norm", ms=0.1), ran("scale", "norm", ms=0.4), ran("shift", "norm", ms=0.2)]
    assert [layer.gflops * 1e9 for layer in roofline(work, executed, PEAK).layers] == pytest.approx(
        [0, 1000, 0]
    )


def test_layers_without_times_are_refused() -> None:
    with pytest.raises(InputError, match="PERF_COUNT"):
        roofline(work_of(("a", "Convolution", 1, 2)), [ran("a", "a", ms=0.0)], PEAK)


def test_roofline_survives_json() -> None:
    found = roofline(work_of(("a", "Convolution", 5, 9)), [ran("a", "a", ms=1.0, moved=7)], PEAK)
    assert Roofline.model_validate_json(found.model_dump_json()) == found


def test_efficiency_is_not_known_where_the_peak_is_not() -> None:
    work = work_of(("a", "Convolution", 5, 10))
    assert roofline(work, [ran("a", "a", ms=1.0, precision="u8")], peak_of(i8=None)).efficiency is None


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
    pool = ops.max_pool(limits(relu, 0, 64, 256), [2, 2], [1, 1], [0, 0], [0, 0], [2, 2], name="pool").output(
        0
    )
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
    found = roofline(count_work(model), layers, PEAK)
    assert found.unmatched == ()
    assert sum(layer.gflops for layer in found.layers) == pytest.approx(count_work(model).gflops_omz)
    assert found.milliseconds == pytest.approx(sum(layer.milliseconds for layer in layers))


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
    found = roofline(work, layers, PEAK)
    assert found.unmatched == ()
    assert found.efficiency == pytest.approx(2e-6 * work.macs / 400 / found.milliseconds)


def test_constants_and_ends_are_no_layers() -> None:
    layers = executed_layers(ov.Core().compile_model(network(), "CPU"))
    assert not isinstance(layers, Unknown)
    assert not {layer.kind for layer in layers} & {"Const", "Input", "Output", "Parameter", "Result"}


def test_a_model_compiled_without_counters_is_refused_with_the_cure() -> None:
    compiled = ov.Core().compile_model(network(), "CPU", {"PERF_COUNT": False})
    with pytest.raises(InputError, match="PERF_COUNT"):
        time_layers(compiled, [np.ones((1, 32, 64, 64), np.float32)], inferences=1)


def test_no_inference_is_refused() -> None:
    with pytest.raises(InputError, match="1 or more, not 0"):
        time_layers(None, [], inferences=0)
