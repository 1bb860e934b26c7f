"""Check whether and how well this machine runs models, and what would make it run better."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import psutil

from edgeface.errors import install_line
from edgeface.model.opset import ops
from edgeface.runtime.devices import DeviceCore, DeviceInfo, list_devices
from edgeface.runtime.probe import in_container, missing_devices, read_text

Status = Literal["ok", "note", "problem"]

OPENVINO_FLOOR = (2024, 6, 0)
"""As in pyproject.toml."""

_LEAST_MEMORY = 1 << 30
"""Bytes. FaceNet in float32, two streams, takes about 400 MB with OpenVINO's own libraries."""

_FLAGS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "VNNI": ("avx512_vnni",),
    "AVX-VNNI": ("avx_vnni",),
    "BF16": ("avx512_bf16",),
    "AMX": ("amx_tile", "amx_int8", "amx_bf16"),
}
"""Instructions that OpenVINO's CPU plugin uses, and their flags in /proc/cpuinfo."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was checked, what was found, and what to do about it (may be empty).

    A `status` of ``note``: it works, and could be better; ``problem``: models cannot run, on this device or at all.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types; `cure` repeats `remedy` under its former name."""
        return {**dataclasses.asdict(self), "cure": self.remedy}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, and the devices on which a small model gave the right numbers: without one no model can run here."""

    runs_on: tuple[str, ...]
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return {"runs_on": list(self.runs_on), "checks": [check.to_dict() for check in self.checks]}


def trouble_on(device: str) -> str | None:
    """Run a small matrix product on a device; return what went wrong, or None."""
    row = ops.parameter([1, 4], ov.Type.f32)
    model = ov.Model([ops.matmul(row, np.eye(4, dtype=np.float32) * 3, False, False)], [row])
    given = np.arange(4, dtype=np.float32)[np.newaxis]
    try:
        found = ov.Core().compile_model(model, device)([given])[0]
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]
    return None if np.array_equal(found, given * 3) else f"expected {given * 3}, found {found}"


def examine(
    *, root: Path = Path("/"), core: DeviceCore | None = None, try_out: Callable[[str], str | None] = trouble_on
) -> Diagnosis:
    """Check everything that decides whether and how well models run here.

    Parameters
    ----------
    root, core, try_out
        Root of the file system, `openvino.Core`, and `trouble_on`; tests pass made-up ones.
    """
    core = core or ov.Core()
    devices = [_device(device, try_out(device.name)) for device in list_devices(core)]
    absent = missing_devices(core.available_devices, root=root)
    checks = (
        _openvino(ov.__version__),
        *devices,
        *(Check(item.name, "note", f"not here: {item.reason}", item.remedy) for item in absent),
        _instructions(root),
        _memory(root),
        _cpu_limit(root),
        *_extras(),
    )
    return Diagnosis(tuple(check.name for check in devices if check.status == "ok"), checks)


def _openvino(version: str) -> Check:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    floor = ".".join(map(str, OPENVINO_FLOOR))
    if numbers < OPENVINO_FLOOR:
        return Check("OpenVINO", "problem", version, f"pip install 'openvino>={floor}'")
    return Check("OpenVINO", "ok", version)


def _device(device: DeviceInfo, trouble: str | None) -> Check:
    if trouble:
        remedy = "pip install --force-reinstall openvino" if device.name == "CPU" else "update its driver"
        return Check(device.name, "problem", f"{device.full_name}: {trouble}", remedy)
    return Check(device.name, "ok", f"{device.full_name}; a small model ran and gave the right numbers")


def _instructions(root: Path) -> Check:
    if platform.machine() not in ("x86_64", "AMD64"):
        return Check("CPU instructions", "ok", platform.machine())
    line = re.search(r"^flags\s*:(.*)$", read_text(root / "proc/cpuinfo"), re.MULTILINE)
    if line is None:
        return Check("CPU instructions", "note", "unknown: no flags in /proc/cpuinfo")
    flags = set(line[1].split())
    present = [name for name, needed in _FLAGS.items() if flags.issuperset(needed)]
    found = ", ".join(present) or "none beyond SSE"
    if "AVX2" not in present:
        return Check("CPU instructions", "note", f"{found}; expect low speed", "run where the CPU has AVX2")
    if not {"VNNI", "AVX-VNNI"} & set(present):
        found += "; no VNNI, so INT8 gains less"
        return Check("CPU instructions", "note", found, "measure an INT8 model before relying on it")
    return Check("CPU instructions", "ok", found)


def _memory(root: Path) -> Check:
    memory = psutil.virtual_memory()
    left, most = memory.available, memory.total
    found = f"{_gib(left)} of {_gib(most)} available"
    limit = _cgroup_number(root, "memory.max", "memory/memory.limit_in_bytes")
    if limit is not None and limit < most:
        used = _cgroup_number(root, "memory.current", "memory/memory.usage_in_bytes") or 0
        left = min(left, limit - used)
        found += f"; cgroup limit {_gib(limit)}, {_gib(used)} of it used"
    if left < _LEAST_MEMORY:
        return Check("memory", "note", found, f"keep {_gib(_LEAST_MEMORY)} free for one model and its cache")
    return Check("memory", "ok", found)


def _cpu_limit(root: Path) -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{usable} logical CPUs usable" + (", in a container" if in_container(root) else "")
    quota = _cpu_quota(root)
    if quota is not None and quota < usable:
        # OpenVINO sizes its thread pool by affinity; threads beyond the quota are throttled, not refused.
        remedy = f"give plans threads={max(1, int(quota))}, or pin the container with --cpuset-cpus"
        return Check("CPU limit", "note", f"{found}; the cgroup allows {quota:g} CPUs of time", remedy)
    return Check("CPU limit", "ok", f"{found}; no cgroup limit below that")


def _extras() -> list[Check]:
    """Check every optional extra, from the metadata of the installed package."""
    try:
        metadata = importlib.metadata.metadata("edgeface")
    except importlib.metadata.PackageNotFoundError:
        return [Check("extras", "note", "unknown: edgeface is not installed", "pip install -e .")]
    needs: dict[str, list[str]] = {name: [] for name in metadata.get_all("Provides-Extra") or ()}
    for requirement in metadata.get_all("Requires-Dist") or ():
        if found := re.match(r"([\w.-]+).*extra\s*==\s*['\"]([\w.-]+)['\"]", requirement):
            needs.setdefault(found[2], []).append(found[1])
    checks = []
    for extra, packages in needs.items():
        absent = [package for package in packages if not _installed(package)]
        name = f"extra {extra}"
        if absent:
            remedy = f"{install_line(extra)}, if you need it"
            checks.append(Check(name, "note", f"not installed: {', '.join(absent)}", remedy))
        else:
            checks.append(Check(name, "ok", f"installed: {', '.join(packages)}"))
    return checks


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _cgroup_number(root: Path, version_2: str, version_1: str) -> int | None:
    for name in (version_2, version_1):
        text = read_text(root / "sys/fs/cgroup" / name)
        if text.isdigit():
            return int(text)
    return None


def _cpu_quota(root: Path) -> float | None:
    """Read the cgroup's limit of CPU time in CPUs (quota / period), or None."""
    quota, _, period = read_text(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if not period:
        quota = read_text(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = read_text(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
