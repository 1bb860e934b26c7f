"""Measure how fast a device multiplies matrices in one precision."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import openvino as ov

from edgeface.bench.machine.executed import EIGHT_BIT, executed_layers
from edgeface.bench.reading import Frozen, Reading, Unknown
from edgeface.model.opset import ops

Precision = Literal["f32", "bf16", "f16", "i8"]
Shape = tuple[int, int, int]
"""(m, k, n) of [m, k] x [k, n]."""
Form = Literal["MatMul", "Convolution"]
"""Form of the product: a 1x1 convolution of k channels into n over m pixels is one too, and the runtime may have a
faster kernel for it (AVX2 without VNNI, 8 bits: 313 against 120 GOP/s)."""

_FEWEST = 3
"""Fewest products of a measurement, however long they take."""


class Product(Frozen):
    """The fastest matrix product in one precision."""

    # 10^9 operations per second, 2 x MAC, sustained by all streams; integer operations for ``i8``
    gflops_per_second: float
    executed: str  # Precision read back from the compiled model; ``u8`` for ``i8``, whose first operand is unsigned
    kernel: str  # The runtime's name of the implementation
    # See `Form`, and (m, k, n) of [m, k] x [k, n]
    form: Form
    shape: Shape
    milliseconds: float  # Median time of one product, by the runtime's own profile, without layout changes around it


@dataclass(frozen=True, slots=True)
class CompiledProduct:
    """A compiled matrix product as the runtime executes it: one input, constant weights.

    `layer` is the runtime's name of the product; the other fields are those of `Product`.
    """

    model: Any
    layer: str
    form: Form
    shape: Shape
    executed: str
    kernel: str


def compile_product(
    core: ov.Core, device: str, precision: Precision, form: Form, shape: Shape, config: Mapping[str, Any]
) -> Reading[CompiledProduct]:
    """Compile a product with constant weights, as in a network, with the device properties `config`.

    Return why this device does not multiply in this precision if it does not: what executes is read back.
    """
    hint = {} if precision == "i8" else {"INFERENCE_PRECISION_HINT": precision}
    try:
        model = _product(precision, form, shape)
        compiled = core.compile_model(model, device, {**config, **hint, "PERF_COUNT": True})
    except RuntimeError as error:
        return Unknown(unknown=f"{device} refuses {precision}: {str(error).strip().splitlines()[-1]}")
    layers = executed_layers(compiled)
    if isinstance(layers, Unknown):
        return layers
    # There may be layout changes beside the product; only the product reads the weights.
    product = max(layers, key=lambda layer: layer.weight_bytes, default=None)
    if product is None or product.weight_bytes == 0:
        return Unknown(unknown=f"{device} shows no matrix product in its executed graph")
    wanted = EIGHT_BIT if precision == "i8" else (precision,)
    if product.precision not in wanted:
        return Unknown(unknown=f"not available here: {device} executes {precision} as {product.precision}")
    return CompiledProduct(compiled, product.name, form, shape, product.precision, product.kernel)


def measure_product(compiled: CompiledProduct, *, streams: int, seconds: float) -> list[float]:
    """Multiply repeatedly for some seconds, in all streams in parallel.

    Return the seconds of each product, without the first of each stream.
    """
    requests = [compiled.model.create_infer_request() for _ in range(streams)]
    for request in requests:
        request.set_input_tensor(ov.Tensor(_operand(compiled)))
    barrier = threading.Barrier(streams)

    def run(request: Any) -> list[float]:
        found: list[float] = []
        try:
            request.infer()
            barrier.wait()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(found) < _FEWEST:
                started = time.perf_counter()
                request.infer()
                elapsed = time.perf_counter() - started
                found.append(_layer_seconds(request, compiled.layer) or elapsed)
        except RuntimeError:
            barrier.abort()  # or the other streams would wait forever
            raise
        return found

    with ThreadPoolExecutor(streams) as pool:
        return [value for found in pool.map(run, requests) for value in found]


def best(measured: Iterable[tuple[CompiledProduct, list[float]]], *, streams: int) -> Product:
    """Return the product with the highest median speed."""
    timed = [(compiled, statistics.median(times)) for compiled, times in measured]
    compiled, seconds = max(timed, key=lambda each: prod(each[0].shape) / each[1])
    return Product(
        gflops_per_second=streams * 2.0 * prod(compiled.shape) / seconds / 1e9,
        executed=compiled.executed,
        kernel=compiled.kernel,
        form=compiled.form,
        shape=compiled.shape,
        milliseconds=seconds * 1e3,
    )


def _layer_seconds(request: Any, name: str) -> float:
    """Return the time of one layer in the last inference; 0 where the plugin does not tell."""
    times = (layer.real_time for layer in request.get_profiling_info() if layer.node_name == name)
    return float(sum(time.total_seconds() for time in times))


def _operand(compiled: CompiledProduct) -> np.ndarray[Any, Any]:
    port = compiled.model.input(0)
    random = np.random.default_rng(0)
    shape = tuple(port.get_shape())
    if port.get_element_type() == ov.Type.u8:
        return random.integers(0, 255, shape, dtype=np.uint8)
    return random.standard_normal(shape, dtype=np.float32)


def _product(precision: Precision, form: Form, shape: Shape) -> ov.Model:
    """Build [m, k] x [k, n]; for ``i8`` of u8 and i8 values with a scale, requantized to u8 as between two layers."""
    m, k, n = shape
    height = 1 << (m.bit_length() // 2)  # sides of m pixels that differ by a factor of 2 at most
    left = [m, k] if form == "MatMul" else [1, k, height, m // height]
    right = [n, k] if form == "MatMul" else [n, k, 1, 1]
    random = np.random.default_rng(1)
    if precision != "i8":
        x = ops.parameter(left, np.float32)
        kernel = ops.constant(random.standard_normal(right, dtype=np.float32))
        return ov.Model([_multiply(x, kernel, form)], [x], "product")
    x = ops.parameter(left, np.uint8)
    kernel = ops.constant(random.integers(-127, 127, right, dtype=np.int8))
    scale = ops.constant(np.full([n] + [1] * (len(right) - 1), 0.01, np.float32))
    real = ops.multiply(ops.convert(x, "f32"), ops.constant(np.float32(0.01)))
    product = _multiply(real, ops.multiply(ops.convert(kernel, "f32"), scale), form)
    low, high = ops.constant(np.float32(0)), ops.constant(np.float32(255))
    return ov.Model([ops.fake_quantize(product, low, high, low, high, 256)], [x], "product")


def _multiply(x: Any, kernel: Any, form: Form) -> Any:
    if form == "MatMul":
        return ops.matmul(x, kernel, False, True)
    return ops.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
