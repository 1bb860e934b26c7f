"""Peaks measured here, briefly: what they must satisfy on any machine, and that 8 bits are really executed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edgeface.bench.machine.peak import Peak, array_bytes, measure_bandwidth, measure_peak
from edgeface.bench.machine.products import compile_product, measure_product
from edgeface.bench.reading import Unknown, known
from edgeface.errors import DeviceError, InputError

CORE = ov.Core()
FORMS: Any = ("MatMul", "Convolution")


@pytest.fixture(scope="module")
def peak() -> Iterator[Peak]:
    with pytest.MonkeyPatch.context() as patch:  # arrays of a sixth of the memory
        patch.setattr("edgeface.bench.machine.peak.memory_available", lambda: 48 << 20)
        yield measure_peak(threads=1, seconds=0.02, core=CORE)


def test_every_precision_has_a_figure_or_a_reason(peak: Peak) -> None:
    assert list(peak.products) == ["f32", "bf16", "f16", "i8"]
    for precision, product in peak.products.items():
        if isinstance(product, Unknown):
            assert precision in str(product)
            assert peak.gflops_per_second(precision) is None
        else:
            assert product.gflops_per_second == peak.gflops_per_second(precision)
            m, k, n = product.shape
            rate = 2 * m * k * n / product.milliseconds / 1e6
            assert product.gflops_per_second == pytest.approx(rate)


def test_f32_and_8_bits_are_measured_on_every_cpu_and_really_executed(peak: Peak) -> None:
    single, byte = known(peak.products["f32"]), known(peak.products["i8"])
    assert single is not None
    assert byte is not None
    assert (single.executed, byte.executed in ("u8", "i8")) == ("f32", True)


def test_a_precision_that_the_device_does_not_claim_is_not_measured_under_its_name(peak: Peak) -> None:
    claimed = CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, capability in (("bf16", "BF16"), ("f16", "FP16")):
        if capability not in claimed:
            assert "executes" in str(peak.products[precision]) or "refuses" in str(peak.products[precision])


def test_peak_names_device_threads_and_version_and_survives_json(peak: Peak) -> None:
    assert (peak.device, peak.streams, peak.threads) == ("CPU", 1, 1)
    assert peak.full_name == CORE.get_property("CPU", "FULL_DEVICE_NAME").strip()
    assert peak.openvino == ov.__version__
    assert peak.seconds > 0
    assert Peak.model_validate_json(peak.model_dump_json()) == peak


def test_an_unknown_precision_has_no_figure(peak: Peak) -> None:
    assert peak.gflops_per_second("f64") is None


def test_bandwidth_is_the_better_of_copy_and_triad(peak: Peak) -> None:
    found = known(peak.bandwidth)
    assert found is not None
    assert found.gb_per_second == max(found.copy_gb_per_second, found.triad_gb_per_second) > 0
    assert (found.threads, found.bytes) == (1, 8 << 20)


def test_a_peak_is_above_what_numpy_without_blas_reaches(peak: Peak) -> None:
    # An independent floor for the unit: integer products in numpy are plain loops, far below any matrix kernel.
    left = np.ones((128, 128), np.int64)
    started = time.perf_counter()
    left @ left
    plain = 2 * 128**3 / (time.perf_counter() - started) / 1e9
    assert (peak.gflops_per_second("f32") or 0.0) > plain


@pytest.mark.parametrize("form", FORMS)
def test_8_bit_products_are_right_and_executed_in_8_bits(form: Any) -> None:
    compiled = compile_product(CORE, "CPU", "i8", form, (64, 32, 48), {})
    assert not isinstance(compiled, Unknown)
    assert compiled.executed in ("u8", "i8")
    # Up to 127: without VNNI, pairs of products are added in 16 bits, where 2 x 255 x 127 does not fit.
    given = np.random.default_rng(3).integers(0, 128, compiled.model.input(0).shape, dtype=np.uint8)
    found = compiled.model([given])[0]
    # What the graph says, by numpy: (0.01 x) (0.01 w), clipped to 0-255 and rounded.
    kernel = np.random.default_rng(1).integers(-127, 127, (48, 32), dtype=np.int8).astype(float)
    rows = given.reshape(64, 32) if form == "MatMul" else given.reshape(32, 64).T
    expected = np.clip(np.rint(rows.astype(float) @ kernel.T * 1e-4), 0, 255)
    expected = expected if form == "MatMul" else expected.T
    assert expected.max() > 3
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 1


@pytest.mark.parametrize("streams", [1, 2])
def test_every_stream_multiplies(streams: int) -> None:
    compiled = compile_product(CORE, "CPU", "f32", "MatMul", (64, 64, 64), {"NUM_STREAMS": streams})
    assert not isinstance(compiled, Unknown)
    times = measure_product(compiled, streams=streams, seconds=0.0)
    assert len(times) == 3 * streams  # the fewest that a median is taken of
    assert min(times) > 0


def test_arrays_are_several_times_the_last_cache_and_leave_room() -> None:
    gib = 1 << 30
    assert array_bytes(32 << 20, 20 * gib) == 128 << 20
    assert array_bytes(0, 20 * gib) == 64 << 20
    assert array_bytes(2 * gib, 20 * gib) == gib
    assert array_bytes(32 << 20, 120 << 20) <= 20 << 20
    assert array_bytes(12_345_678, 20 * gib) % 4096 == 0


def test_bandwidth_of_two_threads() -> None:
    found = measure_bandwidth(CORE, size=4 << 20, threads=2, passes=2)
    assert (found.threads, found.bytes) == (2, 4 << 20)
    assert min(found.copy_gb_per_second, found.triad_gb_per_second) > 0


@pytest.mark.parametrize("options", [{"streams": 0}, {"threads": 0}, {"seconds": 0.0}])
def test_a_peak_of_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="positive streams"):
        measure_peak(**options)


def test_an_absent_device_is_told() -> None:
    if "NPU" in CORE.available_devices:
        pytest.skip("there is an NPU here")
    with pytest.raises(DeviceError, match="NPU"):
        measure_peak("NPU")
