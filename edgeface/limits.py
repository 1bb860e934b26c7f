"""Read the limits that control groups and ulimit set to this process, of CPU time, memory and number of tasks.

A limit holds for a group and for all groups below it, so that the tightest of all groups around this process counts.
Functions that read files take the `root` of the file system, so that tests can use a made-up machine. Nothing here
raises because of what the files contain. Sources: the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edgeface.errors import MissingError

GROUPS = "sys/fs/cgroup"
_NO_LIMIT = 1 << 60
"""Version 1 writes "no memory limit" as the largest number of pages that fits, which differs between page sizes."""
_ROOT = Path("/")
_GIB = 1 << 30


def read_text(path: Path) -> str:
    """Read a small text file; an unreadable one is empty."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def group_folders(controller: str, root: Path = _ROOT) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all groups around it, the innermost first.

    Inside a container without a cgroup namespace /proc/self/cgroup has the host's path, of which only the end is
    mounted; folders that are not there are skipped.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mounts = (controllers, controller) if controllers else ("",)
        group = PurePosixPath("/" + path.strip("/"))
        if ".." in group.parts:
            continue  # outside of what this namespace shows
        for level in (group, *group.parents):
            for mount in dict.fromkeys(mounts):
                folder = root / GROUPS / mount / str(level).strip("/")
                if os.path.isdir(folder):  # noqa: PTH112 - pathlib raises on some paths
                    yield folder


def cpu_limit(root: Path = _ROOT) -> float | None:
    """Return the CPU time that this process may use, in CPUs (quota / period); None: no limit."""
    limits = []
    for folder in group_folders("cpu", root):
        quota, _, period = read_text(folder / "cpu.max").partition(" ")
        if not quota:  # version 1
            quota, period = (read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        used, each = _number(quota), _number(period)
        if used and each:
            limits.append(used / each)
    return min(limits, default=None)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that this process's group may use; None: no limit."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that this process's group may use beyond those it uses already; None: no limit.

    Pages of files that were not used lately count as free: the kernel takes them back before it kills a process.
    """
    return min((max(0, limit - used) for limit, used in _memory(root)), default=None)


def memory_available(root: Path = _ROOT) -> int | None:
    """Return the bytes that this process can still use: by its group, by ulimit and by the machine; None: unknown."""
    machine = read_text(root / "proc/meminfo")
    left = [memory_left(root), *(left for _, left, _ in _left_by_ulimit(root))]
    if (free := _kilobytes(machine, "MemAvailable")) is not None:
        left.append(free + (_kilobytes(machine, "SwapFree") or 0))
    return min((each for each in left if each is not None), default=None)


def _left_by_ulimit(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the flag of each limit that ulimit sets to memory, the bytes that are left of it, and the limit."""
    own = read_text(root / "proc/self/status")
    for flag, kind, field in (("-v", resource.RLIMIT_AS, "VmSize"), ("-d", resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and (used := _kilobytes(own, field)) is not None:
            yield flag, max(0, limit - used), limit


def _kilobytes(text: str, field: str) -> int | None:
    """Read a field of /proc/meminfo or /proc/self/status in bytes."""
    found = re.search(rf"^{field}:\s*(\d{{1,15}}) kB$", text, re.ASCII | re.MULTILINE)
    return int(found[1]) << 10 if found else None


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of each group that has a limit, in bytes."""
    for folder in group_folders("memory", root):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _number(read_text(folder / limit_name))
            if limit is not None and limit < _NO_LIMIT:
                used = _number(read_text(folder / used_name)) or 0
                idle = re.findall(
                    r"^(?:total_)?inactive_file (\d{1,15})$", read_text(folder / "memory.stat"), re.M | re.A
                )
                yield limit, max(0, used - max(map(int, idle), default=0))


def tasks_left(root: Path = _ROOT) -> int | None:
    """Return how many processes and threads this process's group may still start (pids.max); None: no limit."""
    left = []
    for folder in group_folders("pids", root):
        most = _number(read_text(folder / "pids.max"))
        if most is not None:
            left.append(max(0, most - (_number(read_text(folder / "pids.current")) or 0)))
    return min(left, default=None)


def usable_cores(root: Path = _ROOT) -> int:
    """Count the logical CPUs that this process may use: by affinity, and by the limit of CPU time, rounded up."""
    return limited_cores(root) or _affinity()


def limited_cores(root: Path = _ROOT) -> int | None:
    """Return the limit of CPU time, rounded up to whole CPUs; None if it is not below the CPUs of the affinity."""
    limit = cpu_limit(root)
    return math.ceil(limit) if limit is not None and math.ceil(limit) < _affinity() else None


def shortage(root: Path = _ROOT) -> str | None:
    """Name a limit that is too low for models; None if there is none.

    What a library does at such a limit depends on where it is met: OpenVINO finds no device or calls a good file
    damaged, OpenBLAS interrupts the process, others crash or wait for ever. Measured with FaceNet and MTCNN on 2 CPUs:
    2.2 GiB of address space, 0.8 GiB of data, 21 threads; each library has threads for every further CPU.
    """
    cores = _affinity()
    for flag, kind, what, needed in (
        ("-v", resource.RLIMIT_AS, "address space", 2 * _GIB + cores * _GIB // 6),
        ("-d", resource.RLIMIT_DATA, "data", _GIB // 2 + cores * _GIB // 6),
    ):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY and limit < needed:
            need, has = (f"{size / _GIB:.1f} GiB" for size in (needed, limit))
            return f"models need about {need} of {what}, and ulimit {flag} allows {has}"
    tasks = 12 + 5 * cores
    left = tasks_left(root)
    if left is not None and left < tasks:
        return f"models need about {tasks} threads, and pids.max of this control group allows {left} more"
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.getuid() and limit != resource.RLIM_INFINITY and limit < _MANY_TASKS and limit - _own_tasks(root) < tasks:
        return f"models need about {tasks} threads, and ulimit -u allows this user {limit} in all"
    return None


TO_COMPILE = {"-v": (_GIB // 4, _GIB // 8), "-d": (_GIB // 8, _GIB // 16)}
"""Bytes of address space and of data that compiling and running one network takes: in all, and more for each CPU.

Below them OpenVINO's `compile_model` fails, aborts the process, or waits for ever for a thread that did not start.
Measured with OpenVINO 2026.4.1 on 2 CPUs, each limit five times or more: FaceNet (FP32, INT8) and dlib's network fail
with 250 MiB of address space left (and at times load with 150), and work with 300; FaceNet fails with 120 MiB of data
and works with 200. The networks of MTCNN, which follow in the same process, take up to 290 MiB of address space.
"""


def require_room_to_compile(root: Path = _ROOT) -> None:
    """Raise MissingError if ulimit leaves too little memory for OpenVINO to compile a network (`TO_COMPILE`)."""
    for flag, left, limit in _left_by_ulimit(root):
        base, each = TO_COMPILE[flag]
        needed = base + each * _affinity()
        if left < needed:
            raise MissingError(
                expected=f"{needed >> 20} MiB of memory to compile a model",
                found=f"{left >> 20} MiB, which ulimit {flag} of {limit >> 20} MiB leaves",
                remedy="raise this limit, or let the process use fewer CPUs: taskset",
            )


_MANY_TASKS = 4096
"""A limit on a user's tasks above which they are not counted."""


def _own_tasks(root: Path) -> int:
    """Count the threads of all processes of this user."""
    count = 0
    for process in (root / "proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if process.stat().st_uid == os.getuid():
                count += sum(1 for _ in (process / "task").iterdir())
    return count


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(text: str) -> int | None:
    """Parse a whole number from 0 of at most 20 digits; None for anything else: ``max``, -1."""
    return int(text) if re.fullmatch(r"\d{1,20}", text, re.ASCII) else None
