"""Find out why OpenVINO does not see a GPU or an NPU, and what to do about it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeface.limits import read_text

_INTEL = "0x8086"
_NPU = "https://github.com/intel/linux-npu-driver/releases"


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason why a device is missing, and its remedy: a command, or where to read on."""

    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class MissingDevice:
    """A device, GPU or NPU, that OpenVINO does not see, and all causes in the order in which to deal with them."""

    name: str
    causes: tuple[Cause, ...]

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return "; ".join(cause.reason for cause in self.causes)

    @property
    def remedy(self) -> str:
        """All remedies in one line."""
        return "; then ".join(dict.fromkeys(cause.remedy for cause in self.causes))

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types; `cure` repeats `remedy` under its former name."""
        return {"name": self.name, "causes": [{**asdict(c), "cure": c.remedy} for c in self.causes]}


def can_load(library: str) -> bool:
    """Check whether the dynamic linker finds a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def can_open(device: Path) -> bool:
    """Check whether this user may read and write a device file."""
    return os.access(device, os.R_OK | os.W_OK)


@dataclass(frozen=True, slots=True)
class _Family:
    """What a kind of device needs on Linux, from the bus to the library."""

    name: str
    pci_class: str
    nodes: str
    no_driver: Cause
    no_node: Cause
    libraries: tuple[tuple[tuple[str, ...], Cause], ...]
    """Alternative names of each library, and the cause if none of them is found."""


# PCI base class 03 is a display controller, 12 a processing accelerator (PCI Code and ID Assignment, 1.11).
_FAMILIES = (
    _Family(
        name="GPU",
        pci_class="0x03",
        nodes="dev/dri/renderD*",
        no_driver=Cause(
            "an Intel GPU is on the bus, but there is no /dev/dri/renderD*: its kernel driver is not loaded",
            "load i915 or xe (sudo modprobe i915); a new GPU may need a newer kernel",
        ),
        no_node=Cause(
            "an Intel GPU is on the bus, but this container has no /dev/dri",
            "start it with --device /dev/dri --group-add $(stat -c %g /dev/dri/renderD128), taken on the host",
        ),
        libraries=(
            (
                ("libOpenCL.so.1",),
                Cause("the OpenCL loader libOpenCL.so.1 is not installed", "apt install ocl-icd-libopencl1"),
            ),
            (
                ("etc/OpenCL/vendors/*intel*.icd",),
                Cause("Intel's OpenCL driver is not installed", "apt install intel-opencl-icd"),
            ),
        ),
    ),
    _Family(
        name="NPU",
        pci_class="0x12",
        nodes="dev/accel/accel*",
        no_driver=Cause(
            "an Intel NPU is on the bus, but there is no /dev/accel/accel*: its kernel driver is not loaded",
            f"load intel_vpu (sudo modprobe intel_vpu; Linux 6.6 or newer) and install intel-fw-npu from {_NPU}",
        ),
        no_node=Cause(
            "an Intel NPU is on the bus, but this container has no /dev/accel",
            "start it with --device /dev/accel --group-add $(stat -c %g /dev/accel/accel0), taken on the host",
        ),
        libraries=(
            (
                ("libze_loader.so.1",),
                Cause("the Level Zero loader libze_loader.so.1 is not installed", "apt install libze1"),
            ),
            (
                ("libze_intel_npu.so.1", "libze_intel_vpu.so.1"),
                Cause("the NPU driver is not installed", f"install intel-level-zero-npu from {_NPU}"),
            ),
        ),
    ),
)


def missing_devices(
    present: Sequence[str],
    *,
    root: Path = Path("/"),
    load: Callable[[str], bool] = can_load,
    may_open: Callable[[Path], bool] = can_open,
) -> list[MissingDevice]:
    """Explain why OpenVINO does not see a GPU or an NPU.

    Parameters
    ----------
    present
        OpenVINO's names of the devices that it sees; these are not missing.
    root, load, may_open
        Root of the file system, `can_load` and `can_open`; tests pass made-up ones.
    """
    families = {name.partition(".")[0] for name in present}
    return [
        MissingDevice(family.name, tuple(_causes(family, root, load, may_open)))
        for family in _FAMILIES
        if family.name not in families
    ]


def in_container(root: Path = Path("/")) -> bool:
    """Check whether this process runs inside a container."""
    if any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv", "run/secrets/kubernetes.io")):
        return True
    groups = read_text(root / "proc/1/cgroup")
    return any(engine in groups for engine in ("docker", "kubepods", "containerd", "libpod", "lxc"))


def _causes(
    family: _Family, root: Path, load: Callable[[str], bool], may_open: Callable[[Path], bool]
) -> Iterator[Cause]:
    nodes = sorted(root.glob(family.nodes))
    devices = sorted(root.glob("sys/bus/pci/devices/*"))
    # Some sandboxes hide the bus and still pass device files.
    if not any(_is_intel(device, family.pci_class) for device in devices) and (devices or not nodes):
        yield Cause(f"no Intel {family.name} on the PCI bus", "run on another device")
        return

    found = False
    if not nodes:
        found = True
        yield family.no_node if in_container(root) else family.no_driver
    elif not any(may_open(node) for node in nodes):
        found = True
        yield Cause(
            f"this user may not open /{nodes[0].relative_to(root)}, which belongs to the group {_group(nodes[0])}",
            f"start the container with --group-add {nodes[0].stat().st_gid}"
            if in_container(root)
            else f"sudo usermod -aG {_group(nodes[0])} $USER, and log in again",
        )
    for names, cause in family.libraries:
        if not any(any(root.glob(name)) if "/" in name else load(name) for name in names):
            found = True
            yield cause
    if not found:
        yield Cause(
            f"everything that the Intel {family.name} needs is there, but OpenVINO does not list it",
            "check 'dmesg | grep -iE \"i915|xe|vpu\"' and, for a GPU, 'clinfo -l'",
        )


def _is_intel(device: Path, pci_class: str) -> bool:
    return read_text(device / "vendor") == _INTEL and read_text(device / "class").startswith(pci_class)


def _group(path: Path) -> str:
    try:
        return path.group()
    except KeyError:  # containers rarely know the host's groups by name
        return str(path.stat().st_gid)
