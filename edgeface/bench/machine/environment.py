"""A machine in, what a benchmark result has to say about it out; no host name, user name or path unless asked."""

from __future__ import annotations

import getpass
import platform
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.bench.machine.container import Container, read_container
from edgeface.bench.machine.hardware import Machine, read_machine
from edgeface.bench.machine.proc import absent
from edgeface.bench.machine.reading import Fact, Frozen
from edgeface.bench.machine.snapshot import Moment, Stretch, observe, stretch
from edgeface.runtime.devices import DeviceCore, DeviceInfo, list_devices
from edgeface.version import __version__

__all__ = [
    "Container",
    "Device",
    "Environment",
    "Identity",
    "Machine",
    "Moment",
    "Software",
    "Stretch",
    "observe",
    "read_environment",
]


class Device(Frozen):
    """One device that OpenVINO sees.

    Attributes
    ----------
    name, full_name
        OpenVINO's name and the maker's.
    architecture, driver
        As the plugin reports them.
    capabilities
        ``FP32``, ``BF16``, ``INT8`` and so on, as the plugin reports them.
    """

    name: str
    full_name: str
    architecture: Fact[str]
    driver: Fact[str]
    capabilities: tuple[str, ...]


class Software(Frozen):
    """What computes.

    Attributes
    ----------
    edgeface, openvino, python, numpy
        Versions.
    devices
        Everything that OpenVINO sees.
    """

    edgeface: str
    openvino: str
    python: str
    numpy: str
    devices: tuple[Device, ...]


class Identity(Frozen):
    """Who and where; only in a result where it was asked for."""

    host: str
    user: Fact[str]
    folder: str
    command: tuple[str, ...]


class Environment(Frozen):
    """Everything around a result that may explain it.

    Attributes
    ----------
    machine, container, software
        What does not change during a run.
    start, end
        The machine before and after.
    during
        What happened between them.
    identity
        None unless asked for.
    """

    machine: Machine
    container: Container
    software: Software
    start: Moment
    end: Moment
    during: Stretch
    identity: Identity | None = None


def read_environment(
    moments: Sequence[Moment],
    *,
    core: DeviceCore | None = None,
    root: Path = Path("/"),
    identify: bool = False,
) -> Environment:
    """Describe everything around a benchmark that has just been run.

    Parameters
    ----------
    moments
        Of the run, in order of time, two at least: `observe` before and after, or the moments of
        :func:`edgeface.bench.machine.disturbance.watch`.
    core : openvino.Core
        Asked for the devices.
    root
        Where the file system begins; tests give a made-up one.
    identify
        Whether to tell the host's name, the user's, the working folder and the command line.
    """
    return Environment(
        machine=read_machine(root),
        container=read_container(root),
        software=Software(
            edgeface=__version__,
            openvino=ov.__version__,
            python=platform.python_version(),
            numpy=np.__version__,
            devices=tuple(_device(info) for info in list_devices(core)),
        ),
        start=moments[0],
        end=moments[-1],
        during=stretch(moments),
        identity=_identity() if identify else None,
    )


def _device(info: DeviceInfo) -> Device:
    silent = absent("the plugin does not tell")
    return Device(
        name=info.name,
        full_name=info.full_name,
        architecture=info.architecture or silent,
        driver=info.driver or silent,
        capabilities=info.capabilities,
    )


def _identity() -> Identity:
    user: Fact[str]
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user number without a name
        user = absent("this user has no name")
    return Identity(host=socket.gethostname(), user=user, folder=str(Path.cwd()), command=tuple(sys.argv))
