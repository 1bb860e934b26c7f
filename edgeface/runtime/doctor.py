"""Check whether and how well this machine runs models, and what would make it run better."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
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
from edgeface.limits import cpu_limit, memory_left, memory_limit, read_text, shortage, usable_cores
from edgeface.model.opset import ops
from edgeface.runtime.devices import DeviceCore, DeviceInfo, list_devices
from edgeface.runtime.probe import in_container, missing_devices

Status = Literal["ok", "note", "problem"]

OPENVINO_FLOOR = (2024, 6, 0)
"""As in pyproject.toml."""

_LEAST_MEMORY = 1 << 30
"""Bytes. FaceNet in float32, two streams, takes about 400 MB with OpenVINO's own libraries."""

_PACKAGES = {
    **{name: name for name in ("openvino", "numpy", "pydantic", "typer", "rich", "jinja2", "cryptography", "filelock")},
    **{name: name for name in ("httpx", "platformdirs", "psutil", "scipy", "mtcnn", "joblib", "lz4")},
    **{"opencv-python-headless": "cv2", "protobuf": "google.protobuf", "PyYAML": "yaml"},
}
"""Packages that edgeface needs, as in pyproject.toml, and their modules."""
_ONLY_FILES = ("mtcnn",)
"""Packages of which only files are read; importing them needs what edgeface does not."""

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
        _limits(root),
        packages := _packages(),
        *_extras(),
    )
    usable = () if packages.status == "problem" else devices
    return Diagnosis(tuple(check.name for check in usable if check.status == "ok"), checks)


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
    limit, unused = memory_limit(root), memory_left(root)
    if limit is not None and unused is not None and limit < most:
        left = min(left, unused)
        found += f"; cgroup limit {_gib(limit)}, {_gib(unused)} of it unused"
    if left < _LEAST_MEMORY:
        return Check("memory", "note", found, f"keep {_gib(_LEAST_MEMORY)} free for one model and its cache")
    return Check("memory", "ok", found)


def _cpu_limit(root: Path) -> Check:
    allowed, quota = usable_cores(root), cpu_limit(root)
    found = f"{allowed} of {os.cpu_count()} logical CPUs usable" + (", in a container" if in_container(root) else "")
    if quota is None:
        return Check("CPU limit", "ok", f"{found}; no cgroup limit")
    return Check("CPU limit", "ok", f"{found}; the cgroup allows {quota:g} CPUs of time")


def _limits(root: Path) -> Check:
    if reason := shortage(root):
        return Check("limits", "note", reason, "raise this limit")
    return Check("limits", "ok", "enough address space and threads")


def _packages() -> Check:
    """Import what edgeface needs: several packages share one folder, and uninstalling one empties that of the other."""
    broken = {}
    for package, module in _PACKAGES.items():
        try:
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:  # no files, or a folder without code
                raise ImportError(f"no module {module}")
            if package not in _ONLY_FILES:
                importlib.import_module(module)
        except Exception as error:  # a damaged package may raise anything
            broken[package] = f"{package} ({error})"
    if broken:
        remedy = f"pip install --force-reinstall --no-deps {' '.join(broken)}"
        return Check("packages", "problem", f"missing or damaged: {', '.join(broken.values())}", remedy)
    return Check("packages", "ok", f"all {len(_PACKAGES)} that edgeface needs can be imported")


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


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
