"""A model file and settings in, something that can be timed and what really runs it out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import openvino as ov

from edgeface.bench.run.benchmark_model import Shapes, Subject, read_subject
from edgeface.bench.run.target import EmbedderTarget, OpenVinoTarget, Target, random_inputs
from edgeface.bench.schema import Execution, Settings
from edgeface.errors import DeviceError, InputError
from edgeface.runtime import DevicePlan, Embedder, ExecutionReport, ImageFormat, default_plan
from edgeface.runtime.devices import ResolvedDevice, resolve_device
from edgeface.runtime.plan import describe_execution
from edgeface.runtime.schedule import reason_of

__all__ = ["Loaded", "load"]


_DTYPES = {"u8": np.uint8, "f16": np.float16, "f32": np.float32}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A compiled model; a context manager that releases it.

    Attributes
    ----------
    subject
        The model.
    settings
        With the plan's in place of those that the caller gave, and the batch.
    target
        What is timed.
    execution
        What runs, read back.
    device
        As OpenVINO knows it.
    embedder
        None unless end to end.
    """

    subject: Subject
    settings: Settings
    target: Target
    execution: Execution
    device: str
    embedder: Embedder | None
    core: ov.Core
    plan: DevicePlan

    def profiled(self) -> tuple[ov.CompiledModel, Sequence[np.ndarray]]:
        """Compile the model again, to time its layers one inference at a time on all threads; and make its inputs."""
        plan = dataclasses.replace(self.plan, hint="LATENCY", streams=None, requests=None)
        compiled = _compile(self.core, self.subject, plan, {"PERF_COUNT": True})
        return compiled, random_inputs(compiled, seed=self.settings.seed or 0)

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.embedder is not None:
            self.embedder.close()


def load(
    model: Path,
    settings: Settings,
    *,
    core: ov.Core,
    plan: DevicePlan | None = None,
    shapes: Shapes | None = None,
    image_format: ImageFormat | None = None,
) -> Loaded:
    """Read and compile.

    Parameters
    ----------
    model
        An .xml with its .bin beside it, or an .onnx.
    settings
        What was asked for.
    core : openvino.Core
        Compiles.
    plan
        In place of the settings' device, hint, precision, streams, requests and threads.
    shapes, image_format
        As `read_subject` takes them.

    Raises
    ------
    InputError
        If the model or the settings are wrong.
    DeviceError
        If the device is absent, or cannot compile the model.
    """
    resolved = resolve_device(plan.device if plan else settings.device, core=core)
    plan = _plan(settings, resolved) if plan is None else dataclasses.replace(plan, device=resolved.device)
    settings = settings.model_copy(
        update={name: getattr(plan, name) for name in ("hint", "precision", "streams", "requests", "threads")}
        | {"extra": _without_paths(plan.extra), "device": resolved.requested}
    )
    batch = settings.batch
    if batch is None and plan.batch_buckets != (1,):
        batch = plan.batch_buckets[-1 if settings.scenario == "offline" else 0]
    if settings.end_to_end and image_format is None:
        image_format = ImageFormat()
    if settings.end_to_end and batch not in (None, 1):
        raise InputError(
            f"batch: expected 1 end to end, where the plan's buckets gather batches, found {batch}; leave it out"
        )
    subject = read_subject(model, core=core, batch=batch, shapes=shapes, image_format=image_format)
    settings = settings.model_copy(
        update={"batch": subject.batch, "input_format": _words(image_format) if image_format else None}
    )
    embedder: Embedder | None = None
    target: Target
    if settings.end_to_end:
        embedder, target, report = _embedder(subject, plan, image_format or ImageFormat(), settings)
        pinned = None
    else:
        compiled = _compile(core, subject, plan, {})
        report = describe_execution(compiled, plan, resolved=resolved, core=core)
        pinned = _pinned(compiled)
        alone = settings.scenario == "single-stream"
        target = OpenVinoTarget(
            compiled,
            requests=1 if alone else plan.requests or report.optimal_requests or 1,
            inputs=random_inputs(compiled, seed=settings.seed or 0),
            items=subject.batch,
        )
    return Loaded(
        subject=subject,
        settings=settings,
        target=target,
        execution=_execution(report, target, pinned),
        device=resolved.device,
        embedder=embedder,
        core=core,
        plan=plan,
    )


def _without_paths(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a result tells of further properties: no folder, such as that of the cache."""
    return {name: value for name, value in extra.items() if not (isinstance(value, str) and os.sep in value)}


def _plan(settings: Settings, resolved: ResolvedDevice) -> DevicePlan:
    plan = default_plan(
        resolved,
        hint=settings.hint,
        precision=settings.precision,
        streams=settings.streams,
        requests=settings.requests,
        threads=settings.threads,
        batch_buckets=(1,),
    )
    return dataclasses.replace(plan, extra={**plan.extra, **settings.extra})


def _compile(core: ov.Core, subject: Subject, plan: DevicePlan, more: dict[str, Any]) -> ov.CompiledModel:
    config = plan.compile_config() | more
    config.pop("CACHE_DIR", None)
    try:
        return core.compile_model(subject.model, plan.device, config)
    except RuntimeError as error:
        raise DeviceError(
            f"{subject.path}: {plan.device} cannot compile this model: {reason_of(error)}"
        ) from error


def _embedder(
    subject: Subject, plan: DevicePlan, image_format: ImageFormat, settings: Settings
) -> tuple[Embedder, EmbedderTarget, ExecutionReport]:
    assert subject.contract is not None  # an image format needs one
    embedder = Embedder.load(subject.path, plan=plan, image_format=image_format)
    random = np.random.default_rng(settings.seed or 0)
    crop = random.integers(0, 256, image_format.image_shape(subject.contract)).astype(
        _DTYPES[image_format.dtype]
    )
    report = embedder.execution
    # What is queued takes the place of what is ready without waiting for this thread.
    together = 2 * (plan.requests or report.optimal_requests or 1) * plan.batch_buckets[-1]
    return embedder, EmbedderTarget(embedder, crop, slots=together), report


def _execution(report: ExecutionReport, target: Target, pinned: bool | None) -> Execution:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    binding = {True: "pinned to cores", False: "not pinned", None: "pinning not told"}[pinned]
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


def _pinned(compiled: ov.CompiledModel) -> bool | None:
    try:
        return bool(compiled.get_property("ENABLE_CPU_PINNING"))
    except RuntimeError:
        return None


def _words(image_format: ImageFormat) -> str:
    size = image_format.size
    shown = "" if size is None else f" {size}" if isinstance(size, str) else f" {size[1]}x{size[0]}"
    return f"{image_format.dtype} {image_format.layout} {image_format.color}{shown}"
