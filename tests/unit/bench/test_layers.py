"""What each executed layer did, and how long all must take at least: closed forms."""

from __future__ import annotations

import dataclasses

import pytest

from edgeface.bench.machine.peak import Peak
from edgeface.bench.machine.products import Product
from edgeface.bench.machine.reading import Unknown
from edgeface.bench.run.executed import ExecutedLayer
from edgeface.bench.run.layers import attainable_seconds, describe_layers, has_eight_bit
from edgeface.model.flops import LayerWork, Work


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
            gflops_per_second=value,
            executed="f32",
            kernel="",
            form="MatMul",
            shape=(1, 1, 1),
            milliseconds=1.0,
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
    fused, added = describe_layers(
        [executed("a", "f32", "a", "relu"), executed("reorder", "f32")], WORK, inferences=20
    )
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
    assert least == pytest.approx(
        2 / 400 + 1 / 100
    )  # b is in none of them, so the run's own precision counts


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
