"""How a device shall run a model, as data, and a report of how it does run it."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import openvino as ov

from edgeface.errors import InputError
from edgeface.limits import limited_cores, usable_cores
from edgeface.runtime.devices import (
    DeviceCore,
    ResolvedDevice,
    read_property,
    resolve_device,
    shared_core,
    split_device,
)
from edgeface.untrusted import read_json

_log = logging.getLogger(__name__)

InferencePrecision = Literal["f32", "bf16", "f16"]
Hint = Literal["LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"]
PropertyValue = str | int | float | bool

_BUCKETS = (1, 2, 4, 8)
_CPU_BUCKETS: tuple[int, ...] = (1, 4)
"""More at once gain 1 % (``docs/roofline.md``), and the first waits for the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """How a device shall run a model. None leaves a choice to the device.

    Attributes
    ----------
    device
        OpenVINO's device name, as `resolve_device` returns it.
    precision
        Inference precision, whatever the precision of the stored weights. ``f32`` also sets ACCURACY mode: numbers
        that repeat from device to device.
    hint
        What OpenVINO tunes streams and requests for. CUMULATIVE_THROUGHPUT uses all devices of an AUTO list at once.
    streams
        Number of parallel streams. An NPU has none.
    requests
        Infer requests in flight; None: the compiled model's optimal number.
    batch_buckets
        Batch sizes to compile, ascending; a batch is padded to the next one. Where a CPU computes in floating point,
        several are one model, which takes any number of images up to the largest without padding. Of an IR whose batch
        is fixed only the first is compiled.
    threads
        CPU threads over all streams.
    extra
        Further OpenVINO properties; they override the fields above.
    """

    device: str
    precision: InferencePrecision | None = None
    hint: Hint | None = None
    streams: int | None = None
    requests: int | None = None
    batch_buckets: tuple[int, ...] = (1,)
    threads: int | None = None
    extra: Mapping[str, PropertyValue] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        named = isinstance(self.device, str) and bool(self.device)
        _require(named, "device", "an OpenVINO device name", self.device)
        virtual, members = split_device(self.device)
        for what, chosen, allowed in (("precision", self.precision, InferencePrecision), ("hint", self.hint, Hint)):
            choices = get_args(allowed)
            _require(chosen is None or chosen in choices, what, f"one of {', '.join(choices)}, or none", chosen)
        for name in ("streams", "requests", "threads"):
            value = getattr(self, name)
            _require(value is None or (_is_whole(value) and value > 0), name, "a positive number", value)
        buckets = self.batch_buckets
        ascending = (
            isinstance(buckets, tuple)
            and bool(buckets)
            and all(_is_whole(size) and size > 0 for size in buckets)
            and all(low < high for low, high in itertools.pairwise(buckets))
        )
        _require(ascending, "batch_buckets", "ascending positive numbers such as 1, 2, 4", buckets)
        if self.hint == "CUMULATIVE_THROUGHPUT":
            _require(virtual == "AUTO", "hint CUMULATIVE_THROUGHPUT", "a device AUTO or AUTO:...", self.device)
        if self.streams is not None and members[:1] == ("NPU",):
            _require(False, "streams", "None, for an NPU has no streams", self.streams)
        _require(isinstance(self.extra, Mapping), "extra", "an object", self.extra)
        for name, value in self.extra.items():
            _require(isinstance(value, PropertyValue), f"extra[{name!r}]", "text, a number or a boolean", value)

    def compile_config(self) -> dict[str, Any]:
        """Return the properties for `openvino.Core.compile_model`.

        OpenVINO counts the CPUs of the machine, not those whose time a control group allows: on a limited CPU the
        default of `threads` is the limit, rounded up.

        Examples
        --------
        >>> DevicePlan(device="CPU", hint="LATENCY", threads=2).compile_config()
        {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_NUM_THREADS': 2}
        """
        wanted = {
            "PERFORMANCE_HINT": self.hint,
            "PERFORMANCE_HINT_NUM_REQUESTS": self.requests,
            "NUM_STREAMS": self.streams,
            "INFERENCE_NUM_THREADS": self.threads or (limited_cores() if self.device == "CPU" else None),
            "INFERENCE_PRECISION_HINT": self.precision,
            "EXECUTION_MODE_HINT": "ACCURACY" if self.precision == "f32" else None,
        }
        return {name: value for name, value in wanted.items() if value is not None} | dict(self.extra)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        stored = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return {**stored, "batch_buckets": list(self.batch_buckets), "extra": dict(self.extra)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], *, source: str = "plan") -> DevicePlan:
        """Rebuild a plan from `to_dict`; only `device` is required. `source` names the file in messages.

        `cache_dir`, which plans of 0.1 have, is read as the property `CACHE_DIR`.

        Raises
        ------
        InputError
            If a field is missing, unknown or of the wrong type.
        """
        if not isinstance(stored, Mapping):
            raise InputError(f"{source}: expected an object with a device plan, found {stored!r:.80}")
        known = {item.name for item in dataclasses.fields(cls)}
        values = dict(stored)
        if (folder := values.pop("cache_dir", None)) is not None and isinstance(values.get("extra", {}), Mapping):
            values["extra"] = {"CACHE_DIR": folder, **values.get("extra", {})}
        if unknown := sorted(values.keys() - known):
            raise InputError(
                f"{source}: expected only the fields {', '.join(sorted(known))}, found {', '.join(unknown)} too"
            )
        if isinstance(buckets := values.get("batch_buckets"), list):
            values["batch_buckets"] = tuple(buckets)
        try:
            return cls(**{"device": "", **values})
        except InputError as error:
            raise InputError(f"{source}: {error}") from error

    @classmethod
    def read(cls, path: Path) -> DevicePlan:
        """Read a plan from a JSON file; `InputError` if it cannot be read, is not JSON or is not a plan."""
        return cls.from_dict(read_json(path, "a device plan in JSON"), source=str(path))


def default_plan(device: str | ResolvedDevice, **changes: Any) -> DevicePlan:
    """Make a plan for a device.

    On a CPU for throughput, each stream computes up to four images that wait; for latency, one. GPU and NPU have static
    batch sizes.

    Parameters
    ----------
    device
        OpenVINO's name, or a result of `resolve_device`, whose properties are kept.
    **changes
        Fields of `DevicePlan`, which replace the defaults.

    Raises
    ------
    InputError
        If the options contradict the device or each other.
    """
    extra: dict[str, PropertyValue] = {}
    if isinstance(device, ResolvedDevice):
        extra = dict(device.config)
        device = device.device
    virtual, members = split_device(device)
    # BATCH collects batches by itself. AUTO without a list has not chosen yet, and batch 1 runs everywhere.
    accelerated = virtual != "BATCH" and bool(members) and members[0].startswith(("GPU", "NPU"))
    options: dict[str, Any] = {"hint": "THROUGHPUT", **changes}
    if "PERFORMANCE_HINT" in extra:
        options["hint"] = extra.pop("PERFORMANCE_HINT")
    in_turn = _CPU_BUCKETS if device == "CPU" and options["hint"] == "THROUGHPUT" else (1,)
    options.setdefault("batch_buckets", _BUCKETS if accelerated else in_turn)
    return DevicePlan(device=device, extra={**extra, **options.pop("extra", {})}, **options)


def resolve_plan(plan: DevicePlan, fallback: Sequence[str] = ()) -> tuple[DevicePlan, ResolvedDevice]:
    """Replace a plan's device by one that this machine can run; see `resolve_device` for `fallback` and the errors."""
    resolved = resolve_device(plan.device, fallback=fallback, core=shared_core())
    if resolved.device == plan.device and not resolved.config:
        return plan, resolved
    config = dict(resolved.config)
    hint = config.pop("PERFORMANCE_HINT", plan.hint)
    return dataclasses.replace(plan, device=resolved.device, hint=hint, extra={**config, **plan.extra}), resolved


def share_threads(
    plans: Sequence[DevicePlan], *, weights: Sequence[float] | None = None, total: int | None = None
) -> tuple[DevicePlan, ...]:
    """Divide the CPU's threads among models that run side by side, so that they do not compete for cores.

    Parameters
    ----------
    plans
        One for each model. Plans for other devices are returned unchanged.
    weights
        Relative demand of each model, for example its GFLOPs; None: equal.
    total
        Threads to divide; None: the cores that this process may use.

    Returns
    -------
    tuple of DevicePlan
        In the same order. Every model gets at least one thread. The sum is `total` unless there are more models.
    """
    weights = [1.0] * len(plans) if weights is None else list(weights)
    if len(weights) != len(plans) or any(weight <= 0 for weight in weights):
        raise InputError(f"weights: expected {len(plans)} positive numbers, found {weights}")
    total = total or usable_cores()
    on_cpu = [i for i, plan in enumerate(plans) if "CPU" in plan.device]
    # Largest remainder: whole parts first, then one more to those that were cut the most.
    exact = {i: total * weights[i] / sum(weights[j] for j in on_cpu) for i in on_cpu}
    threads = {i: max(1, int(exact[i])) for i in on_cpu}
    for i in sorted(on_cpu, key=lambda i: int(exact[i]) - exact[i]):
        if sum(threads.values()) < total:
            threads[i] += 1
    return tuple(
        dataclasses.replace(plan, threads=threads[i]) if i in threads else plan for i, plan in enumerate(plans)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionReport:
    """What executes a model, read back from the compiled model. None: the plugin does not report it.

    Attributes
    ----------
    requested_device, execution_devices, full_names
        The name that the caller gave, and the devices that execute, by OpenVINO's and by the maker's name.
    precision
        Inference precision: ``f32``, ``bf16``, ``f16``; ``dynamic``: each operation in its own type.
    hint
        What the plan asked to be fast: ``LATENCY``, one request that uses all threads; ``THROUGHPUT``, many at a time.
    streams, optimal_requests, threads
        As compiled.
    loaded_from_cache, fallback
        Whether compilation was skipped, and whether another device than the requested one executes.
    notes
        One sentence for each difference from the request; also logged.
    """

    requested_device: str
    execution_devices: tuple[str, ...]
    full_names: tuple[str, ...]
    precision: str | None
    hint: str | None
    streams: int | None
    optimal_requests: int | None
    threads: int | None
    loaded_from_cache: bool | None
    fallback: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}


def describe_execution(
    compiled: ov.CompiledModel,
    plan: DevicePlan,
    *,
    resolved: ResolvedDevice | None = None,
    core: DeviceCore | None = None,
) -> ExecutionReport:
    """Report what executes a compiled model, and log a warning where it differs from the plan.

    Notes and fallback of `resolved`, a result of `resolve_device`, are added to the report.
    """
    core = core or ov.Core()
    raw = tuple(_read(compiled, "EXECUTION_DEVICES") or ())
    executing = tuple(name.strip("()") for name in raw)
    inner = _read(compiled, "DEVICE_PROPERTIES") or {}
    # AUTO and HETERO answer for the devices inside them under DEVICE_PROPERTIES; the first one is reported.
    first: Mapping[str, Any] = next((inner[name] for name in executing if name in inner), {})

    def read(name: str) -> Any:
        value = _read(compiled, name)
        return first.get(name) if value is None else value

    notes: list[str] = []
    if any(name.startswith("(") for name in raw):
        # AUTO's notation for a device that runs the model until compilation for the chosen one has finished.
        notes.append(f"{', '.join(executing)} runs the model while it is compiled for {plan.device}")
    precision = _type_name(read("INFERENCE_PRECISION_HINT"))
    threads, streams = read("INFERENCE_NUM_THREADS"), read("NUM_STREAMS")
    differs = _not_asked_for(plan, executing)
    if differs and not notes:
        notes.append(differs)
    for what, wanted, found in (
        ("precision", plan.precision, precision),
        ("streams", plan.streams, streams),
        ("threads", plan.threads, threads),
    ):
        if wanted is not None and found is not None and wanted != found:
            notes.append(f"{what}: {wanted} was requested, {plan.device} uses {found}")
    for note in notes:
        _log.warning("%s", note)
    return ExecutionReport(
        requested_device=resolved.requested if resolved else plan.device,
        execution_devices=executing,
        full_names=tuple(str(read_property(core, name, "FULL_DEVICE_NAME") or name).strip() for name in executing),
        precision=precision,
        hint=plan.hint,
        streams=_whole(streams),
        optimal_requests=_whole(read("OPTIMAL_NUMBER_OF_INFER_REQUESTS")),
        threads=_whole(threads),
        loaded_from_cache=_read(compiled, "LOADED_FROM_CACHE"),
        fallback=bool(differs) or bool(resolved and resolved.fallback),
        notes=(*(resolved.notes if resolved else ()), *notes),
    )


def _not_asked_for(plan: DevicePlan, executing: Sequence[str]) -> str | None:
    """Return a sentence if the executing devices are not the plan's."""
    virtual, members = split_device(plan.device)
    wanted = [name for name in members if not name.startswith("-")]
    if virtual == "AUTO" and plan.hint != "CUMULATIVE_THROUGHPUT":
        wanted = wanted[:1]  # the others replace the first one if it is absent
    if (
        not executing
        or not wanted
        or {n.removesuffix(".0") for n in wanted} == {n.removesuffix(".0") for n in executing}
    ):
        return None
    return f"{plan.device} was requested, {', '.join(executing)} executes"


def _read(compiled: ov.CompiledModel, name: str) -> Any:
    # BATCH returns its device's property without listing it as supported: try and see.
    try:
        return compiled.get_property(name)
    except RuntimeError:
        return None


def _type_name(value: Any) -> str | None:
    """``f32`` for `openvino.Type.f32`; 2024 says ``undefined`` where 2026 says ``dynamic``."""
    if value is None:
        return None
    name = value.get_type_name() if isinstance(value, ov.Type) else str(value)
    return "dynamic" if name == "undefined" else name


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, what: str, expected: str, found: object) -> None:
    if not holds:
        raise InputError(f"{what}: expected {expected}, found {found!r}")
