"""A device in, what it can attain at most out: operations a second by precision, bytes a second from memory."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import openvino as ov

from edgeface.bench.machine.bandwidth import Bandwidth, array_bytes, measure_bandwidth
from edgeface.bench.machine.counters import memory_available
from edgeface.bench.machine.hardware import last_cache_bytes, read_machine
from edgeface.bench.machine.products import (
    Compiled,
    Form,
    Precision,
    Product,
    best,
    compile_product,
    measure_product,
)
from edgeface.bench.machine.reading import Fact, Frozen, Unknown, known
from edgeface.errors import InputError
from edgeface.runtime.devices import read_property, resolve_device, split_device

__all__ = ["PRECISIONS", "Bandwidth", "Peak", "Precision", "Product", "measure_peak"]

PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "f16", "i8")

_ROUNDS = 3
_FORMS: tuple[Form, ...] = ("MatMul", "Convolution")
_SIZES = (512, 1024, 2048, 4096, 8192)


class Peak(Frozen):
    """What a device attained with nothing in its way.

    Attributes
    ----------
    device, full_name
        OpenVINO's name and the maker's.
    openvino
        Version.
    streams, threads
        That it was measured with.
    products
        By precision; for one that is not to be had, why.
    bandwidth
        Of the memory that the device works on.
    seconds
        That the measurement took.
    """

    device: str
    full_name: str
    openvino: str
    streams: int
    threads: Fact[int]
    products: dict[Precision, Fact[Product]]
    bandwidth: Fact[Bandwidth]
    seconds: float

    def gflops_per_second(self, precision: str) -> float | None:
        """10^9 operations a second attainable in a precision, or None where it was not measured."""
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
    """Measure what a device attains at most: takes some 2 s a precision and 1 s for the memory.

    Every precision is multiplied as a matrix product and as a 1x1 convolution, which is one too, in squares that
    grow as long as one takes less than `seconds` / 6; they take turns, and the best median counts. Memory is
    streamed on the CPU only: what would be measured of another device is its bus.

    Parameters
    ----------
    device
        As people write it.
    precisions
        To try; one that the device executes as another is named with its reason.
    streams
        Products that run side by side.
    threads
        Of the CPU, for all streams together; None: as many as OpenVINO takes.
    seconds
        Of one shape in one round.
    core : openvino.Core
        Compiles and runs.
    root
        Where the file system begins, for the size of the caches.

    Raises
    ------
    InputError
        If a number is not positive, or a name is not a device's.
    DeviceError
        If the device is absent.
    """
    if streams < 1 or (threads is not None and threads < 1) or seconds <= 0:
        raise InputError(
            f"a peak needs at least one stream and one thread and some time, not {streams}, {threads}, {seconds}"
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
        precision: _fastest(core, name, precision, config, streams=streams, seconds=seconds)
        for precision in precisions
    }
    used = _threads(core, name, config)
    return Peak(
        device=name,
        full_name=str(read_property(core, name, "FULL_DEVICE_NAME") or name).strip(),
        openvino=ov.__version__,
        streams=streams,
        threads=used,
        products=products,
        bandwidth=_bandwidth(core, used, root)
        if name == "CPU"
        else Unknown(unknown=f"not measured: memory is streamed on the CPU only, not on {name}"),
        seconds=time.perf_counter() - started,
    )


def _fastest(
    core: ov.Core, device: str, precision: Precision, config: dict[str, int], *, streams: int, seconds: float
) -> Fact[Product]:
    measured: list[tuple[Compiled, list[float]]] = []
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


def _threads(core: ov.Core, device: str, config: dict[str, int]) -> Fact[int]:
    compiled = compile_product(core, device, "f32", "MatMul", (16, 16, 16), config)
    if isinstance(compiled, Unknown):
        return compiled
    try:
        return int(compiled.model.get_property("INFERENCE_NUM_THREADS"))
    except RuntimeError:
        return Unknown(unknown=f"{device} has no threads of the CPU")


def _bandwidth(core: ov.Core, threads: Fact[int], root: Path) -> Bandwidth:
    available = known(memory_available(root)) or 1 << 30
    size = array_bytes(last_cache_bytes(read_machine(root)), available)
    used = known(threads) or os.cpu_count() or 1
    return measure_bandwidth(core, size=size, threads=used)
