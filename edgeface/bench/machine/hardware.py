"""Describe the CPU, the memory and what a container may use of them."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import psutil

from edgeface import limits
from edgeface.bench.reading import (
    Frozen,
    Reading,
    Unknown,
    absent,
    cpu_folders,
    damaged,
    entries,
    fields,
    integer,
    is_folder,
    known,
    quiet_text,
    read_text,
    sense,
)
from edgeface.runtime.probe import in_container

_FLAGS = (
    # x86: what OpenVINO's CPU plugin chooses its kernels by.
    *("sse4_2", "avx", "fma", "f16c", "avx2", "avx_vnni", "avx_vnni_int8", "avx_ne_convert"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    # ARM: half precision, dot products, matrix products.
    *("asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme"),
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Machine(Frozen):
    """Properties of a machine that do not change during a benchmark."""

    architecture: str  # As the kernel names it: ``x86_64``, ``aarch64``
    cpu_model: Reading[str]  # The maker's name of the CPU, or of the board where the CPU has none
    # Physical packages, physical cores and logical CPUs of the whole machine
    sockets: Reading[int]
    cores: Reading[int]
    threads: Reading[int]
    # The instruction sets that OpenVINO uses, in the kernel's words (``avx2``, ``avx512_vnni``)
    flags: Reading[tuple[str, ...]]
    # Size of one data or unified cache of each level, keyed ``L1d``, ``L2``, ``L3``
    cache_bytes: Reading[dict[str, int]]
    memory_bytes: Reading[int]  # All memory that the kernel manages
    hypervisor: Reading[bool]  # Whether this is a virtual machine, by the CPU's own flag
    kernel: Reading[str]  # Release of the kernel


class Container(Frozen):
    """What this process may use of the machine."""

    inside: bool  # Whether this process runs in a container
    cgroup: Reading[int]  # Version of the control groups that limits were read from: 1 or 2
    # CPU time in CPUs, the lowest limit of all groups around this process; None: no limit
    cpu_limit: Reading[float | None]
    memory_limit_bytes: Reading[int | None]  # The same for memory
    affinity: Reading[tuple[int, ...]]  # Logical CPUs that this process may run on


def read_machine(root: Path = Path("/")) -> Machine:
    """Describe the machine; never raises, whatever the files contain."""
    text = read_text(root, "proc/cpuinfo")
    # One block for each CPU; on ARM the last block describes the board.
    blocks = re.split(r"\n\s*\n", known(text) or "")
    cpus = [block for each in blocks if (block := dict(fields(each)))]
    why = text if isinstance(text, Unknown) else damaged("proc/cpuinfo")
    features = _first(cpus, "flags", "Features")
    flags = None if features is None else features.split()
    # ARM's /proc/cpuinfo has numbers for the CPU; the device tree has the board's name.
    board = quiet_text(root, "sys/firmware/devicetree/base/model") or _first(cpus, "Model", "Hardware")
    numbers = [f"{key} {value}" for key in ("CPU implementer", "CPU part") if (value := _first(cpus, key))]
    packages = {quiet_text(root, f"{folder}/topology/physical_package_id") for folder in cpu_folders(root)} - {""} or {
        cpu["physical id"] for cpu in cpus if "physical id" in cpu
    }
    hypervisor: Reading[bool] = absent("this CPU has no flag for virtual machines")
    if flags is None:
        hypervisor = why
    elif _first(cpus, "flags") is not None:
        hypervisor = "hypervisor" in flags
    return Machine(
        architecture=platform.machine(),
        cpu_model=_first(cpus, "model name") or board or ", ".join(numbers) or why,
        sockets=len(packages) or why,
        cores=sense(lambda: psutil.cpu_count(logical=False), "the number of cores"),
        threads=sense(lambda: psutil.cpu_count(), "the number of logical CPUs"),
        flags=why if flags is None else tuple(flag for flag in _FLAGS if flag in flags),
        cache_bytes=_caches(root),
        memory_bytes=sense(lambda: psutil.virtual_memory().total, "the size of the memory"),
        hypervisor=hypervisor,
        kernel=platform.release() or absent("the kernel does not tell its release"),
    )


def last_cache_bytes(machine: Machine) -> int:
    """Return the size of the largest cache, 0 where it is not known."""
    return max((known(machine.cache_bytes) or {}).values(), default=0)


def _first(cpus: list[dict[str, str]], *keys: str) -> str | None:
    return next((cpu[key] for key in keys for cpu in cpus if cpu.get(key)), None)


def _caches(root: Path) -> Reading[dict[str, int]]:
    sizes: dict[str, int] = {}
    for folder in entries(root, "sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*"):
        level, kind = integer(quiet_text(root, f"{folder}/level")), quiet_text(root, f"{folder}/type")
        size = re.fullmatch(r"(\d{1,12})([KMG]?)", quiet_text(root, f"{folder}/size"), re.ASCII)
        if level is not None and kind in ("Data", "Unified") and size and int(size[1]):
            name = f"L{level}{'d' if kind == 'Data' else ''}"
            # Cores of two kinds have caches of two sizes; the larger one counts.
            sizes[name] = max(int(size[1]) * _UNITS[size[2]], sizes.get(name, 0))
    return dict(sorted(sizes.items())) or absent("/sys/devices/system/cpu/cpu0/cache tells no sizes")


def read_container(root: Path = Path("/")) -> Container:
    """Describe what this process may use; never raises, whatever the files contain."""
    version: Reading[int] = absent("/sys/fs/cgroup is not mounted")
    if quiet_text(root, f"{limits.GROUPS}/cgroup.controllers"):
        version = 2
    elif any(is_folder(root, f"{limits.GROUPS}/{name}") for name in ("memory", "cpu", "cpu,cpuacct")):
        version = 1
    missing = version if isinstance(version, Unknown) else None
    return Container(
        inside=in_container(root),
        cgroup=version,
        cpu_limit=missing or limits.cpu_limit(root),
        memory_limit_bytes=missing or limits.memory_limit(root),
        affinity=sense(lambda: tuple(psutil.Process().cpu_affinity() or ()), "the affinity"),
    )


def quota_throttled_seconds(root: Path = Path("/")) -> Reading[float]:
    """Return the seconds that this process's control group was throttled because its CPU quota was used up."""
    for folder in limits.group_folders("cpu", root):
        for line in limits.read_text(folder / "cpu.stat").splitlines():
            key, _, number = line.partition(" ")
            per_second = {"throttled_usec": 1e6, "throttled_time": 1e9}.get(key)
            value = integer(number)
            if per_second and value is not None:
                return value / per_second
    return absent("no cpu.stat of this process's control group tells throttled time")
