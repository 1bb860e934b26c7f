"""Measure what a device attains at most: operations per second by precision, bytes per second from memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgeface.bench.machine.executed import EIGHT_BIT, ExecutedLayer, assign_work
from edgeface.bench.machine.hardware import last_cache_bytes, read_machine
from edgeface.bench.machine.products import (
    CompiledProduct,
    Form,
    Precision,
    Product,
    best,
    compile_product,
    measure_product,
)
from edgeface.bench.machine.snapshot import memory_available
from edgeface.bench.reading import Frozen, Reading, Unknown, known
from edgeface.errors import InputError
from edgeface.model.flops import Work
from edgeface.model.opset import ops
from edgeface.runtime.devices import read_property, resolve_device, split_device

PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "f16", "i8")

_ROUNDS = 3
_FORMS: tuple[Form, ...] = ("MatMul", "Convolution")
_SIZES = (512, 1024, 2048, 4096, 8192)

_CACHES = 4
"""Size of an array over the last cache: at most a quarter is left in the cache from the last pass (STREAM's rule)."""
_LEAST, _MOST = 64 << 20, 1 << 30
_ROWS = 1024
"""OpenVINO divides the first dimension of an operation among its threads."""


class Bandwidth(Frozen):
    """Memory bandwidth.

    Bytes are counted as in McCalpin's STREAM: each byte read or written once, although a store that does not bypass
    the cache also reads.
    """

    gb_per_second: float  # 10^9 bytes per second, the better of copy and triad
    copy_gb_per_second: float  # a = b by ``memcpy``, in threads of this process
    triad_gb_per_second: float  # a = b + s c by OpenVINO, as in layers that only add and scale
    bytes: int  # Size of one array
    threads: int  # Number of threads


class Peak(Frozen):
    """What a device attained without other load."""

    # OpenVINO's name and the maker's
    device: str
    full_name: str
    openvino: str  # Version
    # That it was measured with
    streams: int
    threads: Reading[int]
    # Fastest matrix product by precision, or why the device does not have that precision
    products: dict[Precision, Reading[Product]]
    bandwidth: Reading[Bandwidth]  # Of the memory that the device works on
    seconds: float  # Duration of the measurement

    def gflops_per_second(self, precision: str) -> float | None:
        """Return 10^9 operations per second attainable in a precision, or None where it was not measured."""
        product = self.products.get(precision)  # type: ignore[call-overload]
        return None if product is None or isinstance(product, Unknown) else product.gflops_per_second


def measure_peak(
    device: str = "CPU",
    *,
    precisions: Sequence[Precision] = PRECISIONS,
    streams: int = 1,
    threads: int | None = None,
    seconds: float = 0.3,
    core: ov.Core | None = None,
    root: Path = Path("/"),
) -> Peak:
    """Measure what a device attains at most; takes some 2 s per precision and 1 s for the memory.

    Square matrices are multiplied in every precision, as a matrix product and as a 1x1 convolution, which is one too.
    Sizes grow while one product takes less than `seconds` / 6; they take turns, and the best median counts. Memory
    bandwidth is measured on the CPU only: that of another device would be its bus's.

    The result says why one of the `precisions` is missing. `streams` products run in parallel, on `threads` CPU threads
    all together (None: OpenVINO's choice); one shape takes `seconds` in one round. The size of the caches is read below
    `root`.

    Raises
    ------
    InputError
        If a number is not positive, or the device's name is invalid.
    DeviceError
        If the device is absent.
    """
    if streams < 1 or (threads is not None and threads < 1) or seconds <= 0:
        raise InputError(
            f"measuring a peak requires positive streams, threads and seconds, found {streams}, {threads}, {seconds}"
        )
    started = time.perf_counter()
    core = core or ov.Core()
    # AUTO, HETERO and BATCH compute on others: the first one is measured, or the first of all for a bare AUTO.
    _, members = split_device(resolve_device(device, core=core).device)
    present = [member for member in members if not member.startswith("-") and member != "AUTO"]
    name = (present or core.available_devices)[0]
    config: dict[str, int] = {}
    if name != "NPU":  # which has no streams
        config["NUM_STREAMS"] = streams
    if threads is not None and name == "CPU":
        config["INFERENCE_NUM_THREADS"] = threads
    products = {
        precision: _fastest(core, name, precision, config, streams=streams, seconds=seconds) for precision in precisions
    }
    used = _threads(core, name, config)
    bandwidth: Reading[Bandwidth] = Unknown(unknown=f"not measured: memory is streamed on the CPU only, not on {name}")
    if name == "CPU":
        size = array_bytes(last_cache_bytes(read_machine(root)), known(memory_available()) or 1 << 30)
        bandwidth = measure_bandwidth(core, size=size, threads=known(used) or os.cpu_count() or 1)
    return Peak(
        device=name,
        full_name=str(read_property(core, name, "FULL_DEVICE_NAME") or name).strip(),
        openvino=ov.__version__,
        streams=streams,
        threads=used,
        products=products,
        bandwidth=bandwidth,
        seconds=time.perf_counter() - started,
    )


def _fastest(
    core: ov.Core, device: str, precision: Precision, config: dict[str, int], *, streams: int, seconds: float
) -> Reading[Product]:
    measured: list[tuple[CompiledProduct, list[float]]] = []
    for form in _FORMS:
        for size in _SIZES:
            compiled = compile_product(core, device, precision, form, (size, size, size), config)
            if isinstance(compiled, Unknown):
                if not measured:
                    return compiled
                break
            measured.append((compiled, []))
            slowest = max(measure_product(compiled, streams=streams, seconds=0))
            if 8 * slowest > seconds / 6:  # the next size takes eight times as long
                break
    for _ in range(_ROUNDS):
        for compiled, times in measured:
            times += measure_product(compiled, streams=streams, seconds=seconds / _ROUNDS)
    return best(measured, streams=streams)


def _threads(core: ov.Core, device: str, config: dict[str, int]) -> Reading[int]:
    compiled = compile_product(core, device, "f32", "MatMul", (16, 16, 16), config)
    if isinstance(compiled, Unknown):
        return compiled
    try:
        return int(compiled.model.get_property("INFERENCE_NUM_THREADS"))
    except RuntimeError:
        return Unknown(unknown=f"{device} has no threads of the CPU")


def array_bytes(last_cache: int, available: int) -> int:
    """Return the size of one array: several times the last cache; three arrays take at most half of the free memory."""
    wanted = min(max(_CACHES * last_cache, _LEAST), _MOST, max(available // 6, 1 << 20))
    return wanted // (4 * _ROWS) * (4 * _ROWS)


def measure_bandwidth(core: ov.Core, *, size: int, threads: int, passes: int = 7) -> Bandwidth:
    """Measure memory bandwidth with arrays of `size` bytes; medians of `passes` passes, after one that warms up."""
    copy = 2 * size / _copy_seconds(size, threads, passes) / 1e9
    triad = 3 * size / _triad_seconds(core, size, threads, passes) / 1e9
    return Bandwidth(
        gb_per_second=max(copy, triad), copy_gb_per_second=copy, triad_gb_per_second=triad, bytes=size, threads=threads
    )


def _copy_seconds(size: int, threads: int, passes: int) -> float:
    # ones, not zeros: pages of zeros are one and the same page until they are written to.
    source, target = np.ones(size // 4, np.float32), np.ones(size // 4, np.float32)
    parts = np.array_split(target, threads), np.array_split(source, threads)
    with ThreadPoolExecutor(threads) as pool:
        return _median_seconds(lambda: list(pool.map(np.copyto, *parts)), passes)


def _triad_seconds(core: ov.Core, size: int, threads: int, passes: int) -> float:
    shape = [_ROWS, size // 4 // _ROWS]
    b, c = ops.parameter(shape, np.float32), ops.parameter(shape, np.float32)
    model = ov.Model([ops.add(b, ops.multiply(c, ops.constant(np.float32(3))))], [b, c], "triad")
    config = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", config).create_infer_request()
    arrays = [np.ones(shape, np.float32) for _ in range(3)]
    for port, array in enumerate(arrays[:2]):
        request.set_input_tensor(port, ov.Tensor(array, shared_memory=True))
    request.set_output_tensor(ov.Tensor(arrays[2], shared_memory=True))
    return _median_seconds(request.infer, passes)


def _median_seconds(run: Callable[[], Any], passes: int) -> float:
    run()
    times = []
    for _ in range(passes):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def attainable_seconds(
    work: Work, peak: Peak, executed: Sequence[ExecutedLayer] = (), *, precision: str | None
) -> float | None:
    """Return the least seconds for one inference: each product at the peak of the precision that it executes in.

    `executed` gives the precision of each product; without it products run in 8 bits where the model asks for it.
    All others run in `precision`. None: the peak of a precision that is needed is not known.
    """
    given, _ = assign_work(work, executed)
    precisions = {part.name: layer.precision for layer, parts in zip(executed, given, strict=True) for part in parts}
    seconds = 0.0
    for layer in work.layers:
        if not layer.macs:
            continue
        found = precisions.get(layer.name) or ("i8" if layer.int8 and not executed else precision or "f32")
        attained = peak.gflops_per_second("i8" if found in EIGHT_BIT else found)
        if attained is None:
            return None
        seconds += layer.flops_mac2 / (attained * 1e9)
    return seconds or None
