"""List the devices of this machine, and resolve device names to those that OpenVINO can use."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import openvino as ov
import psutil

from edgeface.errors import DeviceError, InputError
from edgeface.runtime.probe import missing_devices

_log = logging.getLogger(__name__)

_VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")
_PHYSICAL = ("CPU", "GPU", "NPU")
_GPU_KINDS = {"IGPU": "integrated", "DGPU": "discrete"}
_RETIRED = ("MYRIAD", "VPU", "HDDL")
_BATCH_SIZE = re.compile(r"\(\d+\)$")
_NAME = re.compile(rf"({'|'.join(_PHYSICAL)})(\.\d+)?")


@functools.cache
def shared_core() -> ov.Core:
    """Return the one `openvino.Core` of this process: each Core loads its own plugins."""
    return ov.Core()


class DeviceCore(Protocol):
    """The part of `openvino.Core` that is used here; tests describe absent hardware with it."""

    available_devices: list[str]

    def get_property(self, device_name: str, property: str) -> Any:
        """Read one property of a device."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device that OpenVINO sees.

    Attributes
    ----------
    name, full_name
        OpenVINO's name (``CPU``, ``GPU``, ``GPU.1``, ``NPU``), and the maker's.
    kind
        ``integrated`` or ``discrete``; None for a CPU, and where the driver does not say.
    capabilities
        ``FP32``, ``FP16``, ``BF16``, ``INT8``, ``EXPORT_IMPORT`` (compiled models can be cached) and so on.
    streams
        (fewest, most) streams; None for a device without streams.
    architecture, driver
        As reported by the plugin, or None. Only the NPU plugin reports its driver.
    memory_bytes
        Memory of the device, for a CPU of the machine; None: unknown.
    """

    name: str
    full_name: str
    kind: str | None
    capabilities: tuple[str, ...]
    streams: tuple[int, int] | None
    architecture: str | None
    driver: str | None
    memory_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class ResolvedDevice:
    """A device name, resolved on this machine.

    Attributes
    ----------
    requested, device
        The name that the caller gave, and the one for `openvino.Core.compile_model`.
    notes
        One sentence for each part that was translated, left out or replaced; also logged.
    config
        OpenVINO properties that belong to the translation, such as the hint that replaces MULTI.
    fallback
        Whether a fallback device, or a later device of an AUTO list, replaces the requested one.
    """

    requested: str
    device: str
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    fallback: bool = False


def list_devices(core: DeviceCore | None = None) -> list[DeviceInfo]:
    """Describe every device that OpenVINO sees, in its order."""
    core = core or ov.Core()
    return [_describe(core, name) for name in core.available_devices]


def split_device(device: str) -> tuple[str | None, tuple[str, ...]]:
    """Split ``AUTO:GPU,CPU`` into ``("AUTO", ("GPU", "CPU"))`` and ``GPU.1`` into ``(None, ("GPU.1",))``.

    The number in ``BATCH:CPU(4)`` is left out; devices that AUTO must avoid (``-GPU``) stay in the list.

    Examples
    --------
    >>> split_device("AUTO:GPU,CPU")
    ('AUTO', ('GPU', 'CPU'))
    """
    virtual, colon, rest = device.partition(":")
    if not colon and virtual not in _VIRTUAL:
        return None, (device,)
    if virtual == "BATCH":
        rest = _BATCH_SIZE.sub("", rest)
    return virtual, tuple(name for name in rest.split(",") if name)


def physical_name(device: str, present: Sequence[str]) -> str | None:
    """Return the name under which OpenVINO lists a device (``GPU.0`` for ``GPU``), or None if it is absent."""
    same = (device, f"{device}.0", device.removesuffix(".0"))
    return next((name for name in same if name in present), None)


def resolve_device(text: str, *, fallback: Sequence[str] = (), core: DeviceCore | None = None) -> ResolvedDevice:
    """Resolve a device name to one that this machine can run.

    ``iGPU`` and ``dGPU`` are the integrated and the discrete one of several GPUs. ``MYRIAD``, ``VPU`` and ``HDDL``
    mean the NPU. ``MULTI:A,B`` becomes ``AUTO:A,B`` with the hint CUMULATIVE_THROUGHPUT. The list of AUTO is an order
    of preference: absent devices are left out and reported. HETERO, BATCH and MULTI need every device of their list.
    Case does not matter.

    Parameters
    ----------
    text
        ``CPU``, ``GPU``, ``GPU.1``, ``iGPU``, ``NPU``, ``AUTO``, ``AUTO:GPU,CPU``, ``HETERO:GPU,CPU``,
        ``BATCH:GPU(8)``, ``MULTI:GPU,CPU``.
    fallback
        Names to try in this order when `text` is absent. Empty: an absent device is an error.
    core : openvino.Core
        Used to list the devices.

    Raises
    ------
    InputError
        If the name is not one of the above.
    DeviceError
        If the device and every fallback are absent; the message says why, what to do, and which devices there are.
    """
    core = core or ov.Core()
    refusals: list[DeviceError] = []
    for candidate in (text, *fallback):
        try:
            resolved = _resolve(candidate, core)
        except DeviceError as error:
            refusals.append(error)
            continue
        if refusals:
            reasons = tuple(str(refusal) for refusal in refusals)
            notes = (*reasons, f"{resolved.device} is used instead, as the fallback allows", *resolved.notes)
            resolved = dataclasses.replace(resolved, requested=text, notes=notes, fallback=True)
        for note in resolved.notes:
            _log.warning("%s", note)
        return resolved
    raise refusals[0]


def _resolve(text: str, core: DeviceCore) -> ResolvedDevice:
    device = text.strip().upper()
    virtual, members = split_device(device)
    if virtual is None:
        name, said = _resolve_one(device, core)
        return ResolvedDevice(text, name, said)
    least, most = {"AUTO": (0, 99), "BATCH": (1, 1)}.get(virtual, (1, 99))
    if virtual not in _VIRTUAL or not least <= len(members) <= most:
        raise _unknown(text)

    found: list[str] = []
    avoided: list[str] = []
    notes: list[str] = []
    first_refusal: DeviceError | None = None
    replaced = False
    for member in members:
        if virtual == "AUTO" and member.startswith("-"):
            avoided.append(member)
            continue
        try:
            name, said = _resolve_one(member, core)
        except DeviceError as error:
            if virtual != "AUTO":
                raise
            first_refusal = first_refusal or error
            replaced = replaced or not found
            notes.append(f"{text}: {member} is left out: {error}")
        else:
            notes.extend(said)
            if name not in found:
                found.append(name)
    if first_refusal and not found:
        raise first_refusal

    config: dict[str, Any] = {}
    suffix = ""
    if virtual == "MULTI":
        virtual = "AUTO"
        config["PERFORMANCE_HINT"] = "CUMULATIVE_THROUGHPUT"
        notes.append(f"{text}: MULTI is deprecated; AUTO with the hint CUMULATIVE_THROUGHPUT follows it")
    elif virtual == "BATCH" and (size := _BATCH_SIZE.search(device)):
        suffix = size[0]
    listed = ",".join((*found, *avoided))
    name = f"{virtual}:{listed}{suffix}" if listed else virtual
    return ResolvedDevice(text, name, tuple(notes), config, fallback=replaced)


def _resolve_one(device: str, core: DeviceCore) -> tuple[str, tuple[str, ...]]:
    """Return OpenVINO's name of a present physical device, and notes about it."""
    present = core.available_devices
    if device in _GPU_KINDS:
        kind = _GPU_KINDS[device]
        if name := next((gpu for gpu in present if gpu.startswith("GPU") and _kind(core, gpu) == kind), None):
            return name, ()
        raise _absent(f"no {kind} GPU", "GPU", core)
    if device in _RETIRED:
        history = f"{device}: support ended with OpenVINO 2022.3 LTS; the NPU replaces it"
        if name := physical_name("NPU", present):
            return name, (f"{history}; {name} is used",)
        raise _absent(f"{history}; no NPU", "NPU", core)
    if not _NAME.fullmatch(device):
        raise _unknown(device)
    if physical_name(device, present) is None:
        raise _absent(f"no {device}", device, core)
    return "CPU" if device == "CPU.0" else device, ()  # the CPU plugin refuses a number


def _unknown(text: str) -> InputError:
    return InputError(
        f"device: expected CPU, GPU, GPU.1, iGPU, dGPU, NPU, AUTO, AUTO:GPU,CPU, HETERO:GPU,CPU, BATCH:GPU(8) "
        f"or MULTI:GPU,CPU, found {text!r}; 'edgeface devices' lists the devices of this machine"
    )


def _absent(what: str, device: str, core: DeviceCore) -> DeviceError:
    family = device.partition(".")[0]
    present = core.available_devices
    missing = next((item for item in missing_devices(present) if item.name == family), None)
    why = f": {missing.reason}; {missing.remedy}" if missing else ""
    return DeviceError(f"{what} here{why}; OpenVINO found {', '.join(present) or 'no device'}")


def read_property(core: DeviceCore, device: str, name: str) -> Any:
    """Read a device's property; None if the device does not have it."""
    if name not in core.get_property(device, "SUPPORTED_PROPERTIES"):
        return None  # asking anyway raises, with a text that differs from plugin to plugin
    return core.get_property(device, name)


def _kind(core: DeviceCore, device: str) -> str | None:
    kind = read_property(core, device, "DEVICE_TYPE")
    return None if kind is None else str(getattr(kind, "name", kind)).lower()


def _describe(core: DeviceCore, device: str) -> DeviceInfo:
    def read(*names: str) -> Any:
        values = (read_property(core, device, name) for name in names)
        return next((value for value in values if value not in (None, "")), None)

    streams = read("RANGE_FOR_STREAMS")
    driver = read("NPU_DRIVER_VERSION")
    memory = read("GPU_DEVICE_TOTAL_MEM_SIZE", "NPU_DEVICE_TOTAL_MEM_SIZE")
    if device == "CPU":
        memory = psutil.virtual_memory().total
    return DeviceInfo(
        name=device,
        full_name=str(read("FULL_DEVICE_NAME") or device).strip(),
        kind=None if device == "CPU" else _kind(core, device),
        capabilities=tuple(read("OPTIMIZATION_CAPABILITIES") or ()),
        streams=(int(streams[0]), int(streams[1])) if streams else None,
        architecture=read("DEVICE_ARCHITECTURE"),
        driver=None if driver is None else str(driver),
        memory_bytes=None if memory is None else int(memory),
    )
