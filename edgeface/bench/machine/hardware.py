"""/proc and /sys in, what a benchmark says of the CPU and the memory out; also caches, which set sizes of tests."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from edgeface.bench.machine.proc import (
    absent,
    cpu_folders,
    damaged,
    entries,
    fields,
    integer,
    is_folder,
    quiet_text,
    read_text,
)
from edgeface.bench.machine.reading import Fact, Frozen, Unknown

__all__ = ["Machine", "last_cache_bytes", "read_machine"]

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
    """What does not change while a benchmark runs.

    Attributes
    ----------
    architecture
        As the kernel names it: ``x86_64``, ``aarch64``.
    cpu_model
        The maker's name of the CPU; of the board where the CPU has none.
    sockets, cores, threads
        Physical packages, physical cores and logical CPUs of the whole machine.
    flags
        The instruction sets that OpenVINO makes use of, in the kernel's words (``avx2``, ``avx512_vnni``).
    cache_bytes
        Of one cache at each level, keyed ``L1d``, ``L2``, ``L3``; instruction caches are left out.
    memory_bytes
        All memory that the kernel manages.
    hypervisor
        Whether this is a virtual machine, by the CPU's own flag.
    kernel
        Release of the kernel.
    """

    architecture: str
    cpu_model: Fact[str]
    sockets: Fact[int]
    cores: Fact[int]
    threads: Fact[int]
    flags: Fact[tuple[str, ...]]
    cache_bytes: Fact[dict[str, int]]
    memory_bytes: Fact[int]
    hypervisor: Fact[bool]
    kernel: Fact[str]


def read_machine(root: Path = Path("/")) -> Machine:
    """Describe the machine; never raises, whatever the files hold."""
    found = read_text(root, "proc/cpuinfo")
    cpus = _processors("" if isinstance(found, Unknown) else found)
    why = found if isinstance(found, Unknown) else damaged("proc/cpuinfo")
    flags = _words(cpus, "flags", "Features")
    sockets, cores, threads = _topology(root, cpus, why)
    kernel = read_text(root, "proc/sys/kernel/osrelease")
    return Machine(
        architecture=platform.machine(),
        cpu_model=_model(root, cpus, why),
        sockets=sockets,
        cores=cores,
        threads=threads,
        flags=why if flags is None else tuple(flag for flag in _FLAGS if flag in flags),
        cache_bytes=_caches(root),
        memory_bytes=_memory(root),
        hypervisor=_hypervisor(cpus, flags, why),
        kernel=kernel or damaged("proc/sys/kernel/osrelease"),
    )


def last_cache_bytes(machine: Machine) -> int:
    """Bytes of the largest cache, 0 where it is not known."""
    return 0 if isinstance(machine.cache_bytes, Unknown) else max(machine.cache_bytes.values(), default=0)


def _processors(text: str) -> list[dict[str, str]]:
    """One dictionary a block of /proc/cpuinfo; on ARM the last block describes the board."""
    blocks = [dict(fields(block)) for block in re.split(r"\n\s*\n", text)]
    return [block for block in blocks if block]


def _first(cpus: list[dict[str, str]], *keys: str) -> str | None:
    return next((cpu[key] for key in keys for cpu in cpus if cpu.get(key)), None)


def _words(cpus: list[dict[str, str]], *keys: str) -> list[str] | None:
    line = _first(cpus, *keys)
    return None if line is None else line.split()


def _model(root: Path, cpus: list[dict[str, str]], why: Unknown) -> Fact[str]:
    # ARM's /proc/cpuinfo has numbers for the CPU; the device tree has the board's name.
    board = quiet_text(root, "sys/firmware/devicetree/base/model") or _first(cpus, "Model", "Hardware")
    numbers = [f"{key} {value}" for key in ("CPU implementer", "CPU part") if (value := _first(cpus, key))]
    return _first(cpus, "model name") or board or ", ".join(numbers) or why


def _hypervisor(cpus: list[dict[str, str]], flags: list[str] | None, why: Unknown) -> Fact[bool]:
    if flags is None:
        return why
    if _first(cpus, "flags") is None:
        return absent("this CPU has no flag for virtual machines")
    return "hypervisor" in flags


def _topology(root: Path, cpus: list[dict[str, str]], why: Unknown) -> tuple[Fact[int], Fact[int], Fact[int]]:
    """Count sockets, cores and logical CPUs; /sys first, because ARM's /proc/cpuinfo has no topology."""
    folders = [folder for folder in cpu_folders(root) if is_folder(root, f"{folder}/topology")]
    siblings = {quiet_text(root, f"{folder}/topology/thread_siblings_list") for folder in folders} - {""}
    packages = {quiet_text(root, f"{folder}/topology/physical_package_id") for folder in folders} - {""}
    if siblings and packages:
        return len(packages), len(siblings), len(folders)
    threads = sum("processor" in cpu for cpu in cpus)
    packages = {cpu["physical id"] for cpu in cpus if "physical id" in cpu}
    places = {(cpu.get("physical id"), cpu["core id"]) for cpu in cpus if "core id" in cpu}
    return len(packages) or why, len(places) or why, threads or why


def _caches(root: Path) -> Fact[dict[str, int]]:
    sizes: dict[str, int] = {}
    for folder in entries(root, "sys/devices/system/cpu/cpu[0-9]*/cache/index[0-9]*"):
        level, kind = quiet_text(root, f"{folder}/level"), quiet_text(root, f"{folder}/type")
        size = _size(quiet_text(root, f"{folder}/size"))
        if integer(level) is not None and kind in ("Data", "Unified") and size:
            name = f"L{integer(level)}{'d' if kind == 'Data' else ''}"
            # Cores of two kinds have caches of two sizes; the larger one counts.
            sizes[name] = max(size, sizes.get(name, 0))
    return dict(sorted(sizes.items())) or absent("/sys/devices/system/cpu/cpu0/cache tells no sizes")


def _size(text: str) -> int | None:
    """Bytes of ``512K``."""
    match = re.fullmatch(r"(\d{1,12})([KMG]?)", text, re.ASCII)
    return int(match[1]) * _UNITS[match[2]] if match else None


def _memory(root: Path) -> Fact[int]:
    text = read_text(root, "proc/meminfo")
    if isinstance(text, Unknown):
        return text
    kilobytes = integer(dict(fields(text)).get("MemTotal", "").removesuffix("kB"))
    return damaged("proc/meminfo") if kilobytes is None else kilobytes << 10
