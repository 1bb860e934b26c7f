"""Arrays larger than any cache in, bytes a second between memory and cores out."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov

from edgeface.bench.machine.reading import Frozen
from edgeface.model.opset import ops

__all__ = ["Bandwidth", "array_bytes", "measure_bandwidth"]

_CACHES = 4
"""Times the last cache: what is left in it from the last pass is a quarter of an array at most (STREAM's rule)."""

_LEAST, _MOST = 64 << 20, 1 << 30
_ROWS = 1024
"""OpenVINO divides the first dimension of an operation among its threads."""


class Bandwidth(Frozen):
    """What moves between memory and cores.

    Attributes
    ----------
    gb_per_second
        10^9 bytes a second, the better of copy and triad.
    copy_gb_per_second
        a = b by ``memcpy``, in threads of this process.
    triad_gb_per_second
        a = b + s c by OpenVINO, as layers that only add and scale do it. Both are counted the way of McCalpin's
        STREAM: each byte read or written once, although a store that does not bypass the cache also reads.
    bytes
        Of one array.
    threads
        That moved it.
    """

    gb_per_second: float
    copy_gb_per_second: float
    triad_gb_per_second: float
    bytes: int
    threads: int


def array_bytes(last_cache: int, available: int) -> int:
    """Size of one array: several times the last cache, and of three arrays at most half of what is free."""
    wanted = min(max(_CACHES * last_cache, _LEAST), _MOST, max(available // 6, 1 << 20))
    return wanted // (4 * _ROWS) * (4 * _ROWS)


def measure_bandwidth(core: ov.Core, *, size: int, threads: int, passes: int = 7) -> Bandwidth:
    """Stream through memory.

    Parameters
    ----------
    core : openvino.Core
        Runs the triad on the CPU.
    size
        Bytes of one array, of `array_bytes`.
    threads
        To use.
    passes
        To take the median of; one more warms up.
    """
    copy = 2 * size / _copy_seconds(size, threads, passes) / 1e9
    triad = 3 * size / _triad_seconds(core, size, threads, passes) / 1e9
    return Bandwidth(
        gb_per_second=max(copy, triad),
        copy_gb_per_second=copy,
        triad_gb_per_second=triad,
        bytes=size,
        threads=threads,
    )


def _copy_seconds(size: int, threads: int, passes: int) -> float:
    # ones, not zeros: pages of zeros are one and the same page until they are written to.
    source, target = np.ones(size // 4, np.float32), np.ones(size // 4, np.float32)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    barrier = threading.Barrier(threads + 1)

    def run(to: np.ndarray[Any, Any], of: np.ndarray[Any, Any]) -> None:
        for _ in range(passes + 1):
            barrier.wait()
            np.copyto(to, of)
            barrier.wait()

    workers = [threading.Thread(target=_unless_broken, args=(run, *part), daemon=True) for part in parts]
    for worker in workers:
        worker.start()

    def one_pass() -> None:
        barrier.wait()
        barrier.wait()

    try:
        return _median_seconds(one_pass, passes)
    finally:
        barrier.abort()  # after Ctrl-C the workers would wait for ever, and keep the arrays
        for worker in workers:
            worker.join()


def _unless_broken(run: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(threading.BrokenBarrierError):
        run(*arguments)


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
