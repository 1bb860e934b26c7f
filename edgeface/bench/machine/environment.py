"""Describe the machine and the software of a benchmark result; no host name, user name or path unless asked for."""

from __future__ import annotations

import getpass
import platform
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from edgeface.bench.machine.hardware import Container, Machine, read_container, read_machine
from edgeface.bench.machine.snapshot import IntervalStats, Snapshot, summarize_interval
from edgeface.bench.reading import Frozen, Reading, absent
from edgeface.runtime.devices import DeviceCore, list_devices
from edgeface.text import hide_secrets
from edgeface.version import __version__


class Device(Frozen):
    """One device that OpenVINO sees."""

    # OpenVINO's name and the maker's
    name: str
    full_name: str
    # As the plugin reports them
    architecture: Reading[str]
    driver: Reading[str]
    capabilities: tuple[str, ...]  # ``FP32``, ``BF16``, ``INT8`` and so on, as the plugin reports them


class Software(Frozen):
    """Versions of edgeface, OpenVINO, Python and NumPy, and every device that OpenVINO sees."""

    edgeface: str
    openvino: str
    python: str
    numpy: str
    devices: tuple[Device, ...]


class Identity(Frozen):
    """Host, user, working folder and command line; only in a result where they were asked for."""

    host: str
    user: Reading[str]
    folder: str
    command: tuple[str, ...]


class Environment(Frozen):
    """Everything around a result that may explain it."""

    # What does not change during a run
    machine: Machine
    container: Container
    software: Software
    # The machine's counters before and after the run
    start: Snapshot
    end: Snapshot
    during: IntervalStats  # What happened between them
    identity: Identity | None = None  # None unless asked for


def read_environment(
    snapshots: Sequence[Snapshot], *, core: DeviceCore | None = None, root: Path = Path("/"), identify: bool = False
) -> Environment:
    """Describe the environment of a benchmark that has just been run.

    `snapshots` were taken before, during and after the run, in order of time, at least two: see
    :func:`edgeface.bench.machine.disturbance.watch`. `core` lists the devices. With `identify` the host's name, the
    user's, the working folder and the command line are stored.
    """
    silent = absent("the plugin does not tell")
    devices = tuple(
        Device(
            name=info.name,
            full_name=info.full_name,
            architecture=info.architecture or silent,
            driver=info.driver or silent,
            capabilities=info.capabilities,
        )
        for info in list_devices(core)
    )
    return Environment(
        machine=read_machine(root),
        container=read_container(root),
        software=Software(
            edgeface=__version__,
            openvino=ov.__version__,
            python=platform.python_version(),
            numpy=np.__version__,
            devices=devices,
        ),
        start=snapshots[0],
        end=snapshots[-1],
        during=summarize_interval(snapshots),
        identity=_identity() if identify else None,
    )


def _identity() -> Identity:
    user: Reading[str]
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user number without a name
        user = absent("this user has no name")
    command = tuple(map(hide_secrets, sys.argv))
    return Identity(host=socket.gethostname(), user=user, folder=str(Path.cwd()), command=command)
