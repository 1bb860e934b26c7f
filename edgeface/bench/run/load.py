"""Compile a model as the settings ask, and run inferences that a scenario can time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino as ov

from edgeface.bench.run.benchmark_model import BenchmarkModel, Shapes, read_benchmark_model
from edgeface.bench.schema import Execution, RunSettings
from edgeface.errors import DeviceError, InferenceError, InputError
from edgeface.files import Closing
from edgeface.limits import require_room_to_compile
from edgeface.runtime import DevicePlan, Embedder, ExecutionReport, ImageFormat, default_plan
from edgeface.runtime.adapter import UNPACKED, must_unpack, unpack_weights
from edgeface.runtime.devices import resolve_device
from edgeface.runtime.plan import describe_execution
from edgeface.runtime.schedule import reason_of

_PLANNED = ("hint", "precision", "streams", "requests", "threads")
"""Settings that are fields of `DevicePlan` too."""
_DTYPES = {"u8": np.uint8, "f16": np.float16, "f32": np.float32}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel(Closing):
    """A compiled model; a context manager that releases it.

    `settings` are those to record: the caller's, with the plan's device options and the batch. `target` runs the
    inferences, `execution` is read back, `device` is OpenVINO's name, `embedder` is None unless end to end.
    """

    benchmark_model: BenchmarkModel
    settings: RunSettings
    target: Target
    execution: Execution
    device: str
    embedder: Embedder | None
    core: ov.Core
    plan: DevicePlan

    def profiled(self) -> tuple[ov.CompiledModel, Sequence[np.ndarray]]:
        """Compile the model again to time its layers, one inference at a time on all threads, and make its inputs."""
        plan = dataclasses.replace(self.plan, hint="LATENCY", streams=None, requests=None)
        compiled = _compile(self.core, self.benchmark_model, plan, {"PERF_COUNT": True})
        return compiled, random_inputs(compiled, seed=self.settings.seed or 0)

    def close(self) -> None:
        """Close the embedder, if there is one."""
        if self.embedder is not None:
            self.embedder.close()


def load(
    model: Path,
    settings: RunSettings,
    *,
    core: ov.Core,
    plan: DevicePlan | None = None,
    shapes: Shapes | None = None,
    image_format: ImageFormat | None = None,
) -> LoadedModel:
    """Read a model as `read_benchmark_model` does, and compile it.

    `plan` replaces device, hint, precision, streams, requests and threads of the settings. Errors are those of
    `edgeface.bench.run.runner.benchmark`.
    """
    resolved = resolve_device(plan.device if plan else settings.device, core=core)
    if plan is None:
        plan = default_plan(resolved, batch_buckets=(1,), **{name: getattr(settings, name) for name in _PLANNED})
        plan = dataclasses.replace(plan, extra={**plan.extra, **settings.extra})
    else:
        plan = dataclasses.replace(plan, device=resolved.device)
    settings = settings.model_copy(
        update={name: getattr(plan, name) for name in _PLANNED}
        # Recorded are no folders, such as that of the cache.
        | {"extra": {name: value for name, value in plan.extra.items() if os.sep not in str(value)}}
        | {"device": resolved.requested}
    )
    batch = settings.batch
    if batch is None and plan.batch_buckets != (1,):
        batch = plan.batch_buckets[-1 if settings.scenario == "offline" else 0]
    if settings.end_to_end and image_format is None:
        image_format = ImageFormat()
    if settings.end_to_end and batch not in (None, 1):
        raise InputError(
            f"--end-to-end requires batch size 1, found {batch}: the Embedder forms batches itself; leave --batch out"
        )
    benchmark_model = read_benchmark_model(model, core=core, batch=batch, shapes=shapes, image_format=image_format)
    settings = settings.model_copy(
        update={"batch": benchmark_model.batch, "input_format": _words(image_format) if image_format else None}
    )
    embedder: Embedder | None = None
    target: Target
    if settings.end_to_end:
        embedder, target, report = _embedder(benchmark_model, plan, image_format or ImageFormat(), settings)
        binding = "pinning not told"
    else:
        compiled = _compile(core, benchmark_model, plan, {})
        report = describe_execution(compiled, plan, resolved=resolved, core=core)
        if must_unpack(benchmark_model.model, plan.device):
            report = dataclasses.replace(report, notes=(*report.notes, UNPACKED))
        binding = _binding(compiled)
        target = OpenVinoTarget(
            compiled,
            requests=1 if settings.scenario == "single-stream" else plan.requests or report.optimal_requests or 1,
            inputs=random_inputs(compiled, seed=settings.seed or 0),
            items=benchmark_model.batch,
        )
    return LoadedModel(
        benchmark_model=benchmark_model,
        settings=settings,
        target=target,
        execution=_execution(report, target, binding),
        device=resolved.device,
        embedder=embedder,
        core=core,
        plan=plan,
    )


def _compile(
    core: ov.Core, benchmark_model: BenchmarkModel, plan: DevicePlan, more: dict[str, Any]
) -> ov.CompiledModel:
    require_room_to_compile()
    config = plan.compile_config() | more
    config.pop("CACHE_DIR", None)
    model = benchmark_model.model
    if must_unpack(model, plan.device):
        model = unpack_weights(model.clone())
    try:
        return core.compile_model(model, plan.device, config)
    except RuntimeError as error:
        raise DeviceError(
            f"{benchmark_model.path}: {plan.device} cannot compile this model: {reason_of(error)}"
        ) from error


def _embedder(
    benchmark_model: BenchmarkModel, plan: DevicePlan, image_format: ImageFormat, settings: RunSettings
) -> tuple[Embedder, EmbedderTarget, ExecutionReport]:
    assert benchmark_model.contract is not None  # an image format needs one
    embedder = Embedder.load(benchmark_model.path, plan=plan, image_format=image_format, allow_seeded=True)
    random, report = np.random.default_rng(settings.seed or 0), embedder.execution
    crop = random.integers(0, 256, image_format.image_shape(benchmark_model.contract))
    # Queued crops start without waiting for this thread.
    slots = 2 * (plan.requests or report.optimal_requests or 1) * plan.batch_buckets[-1]
    return embedder, EmbedderTarget(embedder, crop.astype(_DTYPES[image_format.dtype]), slots=slots), report


def _execution(report: ExecutionReport, target: Target, binding: str) -> Execution:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    return Execution(
        devices=report.execution_devices,
        full_names=report.full_names,
        precision=report.precision,
        streams=report.streams,
        requests=target.slots,
        threads=report.threads,
        affinity=f"{binding}; the process may use {cores}",
        notes=report.notes,
    )


def _binding(compiled: ov.CompiledModel) -> str:
    try:
        return "pinned to cores" if compiled.get_property("ENABLE_CPU_PINNING") else "not pinned"
    except RuntimeError:
        return "pinning not told"


def _words(image_format: ImageFormat) -> str:
    size = image_format.size
    shown = "" if size is None else f" {size}" if isinstance(size, str) else f" {size[1]}x{size[0]}"
    return f"{image_format.dtype} {image_format.layout} {image_format.color}{shown}"


Done = Callable[[int], None]


class Target(Protocol):
    """What a scenario runs: at most `slots` inferences at the same time, each of `items` items (its batch)."""

    slots: int
    items: int

    def infer(self) -> None:
        """Run one inference in this thread, and wait for it."""

    def listen(self, done: Done) -> None:
        """Register `done(slot)`, which is called in any thread when an inference of `start` is complete."""

    def start(self, slot: int) -> None:
        """Start an inference in a free slot, from 0."""

    def failure(self) -> Exception | None:
        """Return the error of an inference that will never complete; asked when one is overdue."""


class OpenVinoTarget:
    """Infer requests whose inputs are filled once, as in benchmark_app: no copies in or out.

    Each of the `requests` gets a copy of `inputs`, one array for each input of the model; an inference has `items`
    items.
    """

    def __init__(self, compiled: ov.CompiledModel, *, requests: int, inputs: Sequence[np.ndarray], items: int) -> None:
        self.slots, self.items = requests, items
        self._requests = [compiled.create_infer_request() for _ in range(requests)]
        for request in self._requests:
            for index, array in enumerate(inputs):
                request.get_input_tensor(index).data[...] = array

    def infer(self) -> None:
        """Run the first request in this thread; outputs are not copied."""
        self._requests[0].infer(share_outputs=True)

    def listen(self, done: Done) -> None:
        """Set the callback of every request."""
        for slot, request in enumerate(self._requests):
            request.set_callback(done, slot)

    def start(self, slot: int) -> None:
        """Start a request with its inputs unchanged."""
        self._requests[slot].start_async()

    def failure(self) -> Exception | None:
        """Ask every request: OpenVINO calls no callback after an error."""
        for request in self._requests:
            try:
                request.wait_for(0)
            except RuntimeError as error:
                return InferenceError(f"inference failed: {reason_of(error)}")
        return None


class EmbedderTarget:
    """An `edgeface.runtime.Embedder` that embeds one crop per inference, copies in and out included.

    The embedder is not closed. The crop is in its `image_format`; `slots` crops are in flight, queued ones
    included.
    """

    items = 1

    def __init__(self, embedder: Embedder, crop: np.ndarray, *, slots: int) -> None:
        self.slots = slots
        self._embedder, self._crop = embedder, crop
        self._done: Done = lambda slot: None
        self._failed: Exception | None = None

    def infer(self) -> None:
        """Embed one crop and wait."""
        self._embedder.infer(self._crop)

    def listen(self, done: Done) -> None:
        """Register the callback."""
        self._done = done

    def start(self, slot: int) -> None:
        """Submit one crop."""
        self._embedder.submit(self._crop).add_done_callback(lambda future: self._finish(future, slot))

    def failure(self) -> Exception | None:
        """Return the error of a failed future."""
        return self._failed

    def _finish(self, future: Future[np.ndarray], slot: int) -> None:
        if (error := future.exception()) is None:
            self._done(slot)
        elif isinstance(error, Exception):
            self._failed = error


def random_inputs(model: Any, *, seed: int) -> list[np.ndarray]:
    """Make one random array for each input of a model with static shapes.

    Images, that is, inputs of four dimensions with one or three channels, get whole numbers of 0-255; other
    floating-point inputs 0 to 1; integers and booleans 0 and 1, which are valid indices.
    """
    random = np.random.default_rng(seed)
    arrays = []
    for port in model.inputs:
        shape, dtype = tuple(port.shape), np.dtype(port.element_type.to_dtype())
        if len(shape) == 4 and {1, 3} & {shape[1], shape[3]} and (dtype.kind == "f" or dtype == np.uint8):
            values: np.ndarray = random.integers(0, 256, shape)
        else:
            values = random.random(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        arrays.append(values.astype(dtype))
    return arrays
