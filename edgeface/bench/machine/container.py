"""/proc and /sys/fs/cgroup in, how much of the machine this process may use out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from edgeface.bench.machine.proc import (
    absent,
    cpu_list,
    damaged,
    fields,
    integer,
    is_folder,
    quiet_text,
    read_text,
)
from edgeface.bench.machine.reading import Fact, Frozen, Unknown
from edgeface.runtime.probe import in_container

__all__ = ["Container", "quota_throttled_seconds", "read_container"]

N = TypeVar("N", int, float)

_GROUPS = "sys/fs/cgroup"
_NO_LIMIT = 1 << 60
"""Version 1 writes "no limit" as the largest number of pages that fits, which differs between page sizes."""


class Container(Frozen):
    """What this process may use of the machine.

    Attributes
    ----------
    inside
        Whether this process runs in a container.
    cgroup
        Version of the control groups that limits were read from: 1 or 2.
    cpu_limit
        CPUs of time, the least of all groups that this process is in; None: no limit.
    memory_limit_bytes
        The same for memory.
    affinity
        Logical CPUs that this process may run on.
    """

    inside: bool
    cgroup: Fact[int]
    cpu_limit: Fact[float | None]
    memory_limit_bytes: Fact[int | None]
    affinity: Fact[tuple[int, ...]]


def read_container(root: Path = Path("/")) -> Container:
    """Describe what this process may use; never raises, whatever the files hold."""
    version = _version(root)
    if isinstance(version, Unknown):
        return Container(
            inside=_inside(root),
            cgroup=version,
            cpu_limit=version,
            memory_limit_bytes=version,
            affinity=_affinity(root),
        )
    cpu = _cpus_v2 if version == 2 else _cpus_v1
    memory = _memory_v2 if version == 2 else _memory_v1
    return Container(
        inside=_inside(root),
        cgroup=version,
        cpu_limit=_least(root, "cpu", cpu),
        memory_limit_bytes=_least(root, "memory", memory),
        affinity=_affinity(root),
    )


def quota_throttled_seconds(root: Path = Path("/")) -> Fact[float]:
    """Seconds that this process's control group was kept waiting because its CPU time was used up."""
    for folder in _folders(root, "cpu"):
        for line in quiet_text(root, f"{folder}/cpu.stat").splitlines():
            key, _, number = line.partition(" ")
            per_second = {"throttled_usec": 1e6, "throttled_time": 1e9}.get(key)
            value = integer(number)
            if per_second and value is not None:
                return value / per_second
    return absent("no cpu.stat of this process's control group tells throttled time")


def _inside(root: Path) -> bool:
    try:
        return in_container(root)
    except UnicodeDecodeError:  # a group's name in another encoding; engines name theirs in ASCII
        return False


def _version(root: Path) -> Fact[int]:
    if quiet_text(root, f"{_GROUPS}/cgroup.controllers"):
        return 2
    if any(is_folder(root, f"{_GROUPS}/{name}") for name in ("memory", "cpu", "cpu,cpuacct")):
        return 1
    return absent("/sys/fs/cgroup is not mounted")


def _folders(root: Path, controller: str) -> Iterator[str]:
    """Folders of this process's group and of all groups around it, the innermost first.

    Inside a container without a cgroup namespace /proc/self/cgroup tells the host's path, of which only the
    end is mounted; what is not there is passed over.
    """
    for line in quiet_text(root, "proc/self/cgroup").splitlines():
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
                folder = "/".join(part for part in (_GROUPS, mount, str(level).strip("/")) if part)
                if is_folder(root, folder):
                    yield folder


def _least(root: Path, controller: str, read: Callable[[Path, str], N | None]) -> N | None:
    limits = [read(root, folder) for folder in _folders(root, controller)]
    return min((limit for limit in limits if limit is not None), default=None)


def _cpus_v2(root: Path, folder: str) -> float | None:
    quota, _, period = quiet_text(root, f"{folder}/cpu.max").partition(" ")
    return _share(quota, period)


def _cpus_v1(root: Path, folder: str) -> float | None:
    return _share(
        quiet_text(root, f"{folder}/cpu.cfs_quota_us"), quiet_text(root, f"{folder}/cpu.cfs_period_us")
    )


def _share(quota: str, period: str) -> float | None:
    """Quota over period; ``max`` and -1 stand for no limit."""
    used, each = integer(quota), integer(period)
    return used / each if used is not None and each is not None and used > 0 and each > 0 else None


def _memory_v2(root: Path, folder: str) -> int | None:
    return integer(quiet_text(root, f"{folder}/memory.max"))


def _memory_v1(root: Path, folder: str) -> int | None:
    limit = integer(quiet_text(root, f"{folder}/memory.limit_in_bytes"))
    return None if limit is None or limit >= _NO_LIMIT else limit


def _affinity(root: Path) -> Fact[tuple[int, ...]]:
    text = read_text(root, "proc/self/status")
    if isinstance(text, Unknown):
        return text
    return cpu_list(dict(fields(text)).get("Cpus_allowed_list", "")) or damaged("proc/self/status")
