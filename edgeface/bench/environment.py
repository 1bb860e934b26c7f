"""A machine in, what a benchmark result has to say about it out; no host name, user name or path unless asked."""

from __future__ import annotations

from edgeface.bench.fact import Fact, Frozen

__all__ = [
    "Container",
    "Device",
    "Environment",
    "Identity",
    "Machine",
    "Moment",
    "Software",
    "Stretch",
]


class Machine(Frozen):
    """What does not change while a benchmark runs.

    Attributes
    ----------
    architecture
        As the kernel names it: ``x86_64``, ``aarch64``.
    cpu_model
        The maker's name of the CPU.
    sockets, cores, threads
        Physical packages, physical cores and logical CPUs of the whole machine.
    flags
        The instruction sets that OpenVINO makes use of, in the CPU's own words (``avx2``, ``avx512_vnni``).
    cache_bytes
        Of one cache at each level, keyed ``L1d``, ``L2``, ``L3``; instruction caches are left out.
    memory_bytes
        Physical memory.
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
    kernel: str


class Container(Frozen):
    """What this process may use of the machine.

    Attributes
    ----------
    inside
        Whether this process runs in a container.
    cgroup
        Version of control groups that limits were read from.
    cpu_limit
        CPUs of time; None: no limit.
    memory_limit_bytes
        None: no limit.
    affinity
        Logical CPUs that this process may run on.
    """

    inside: bool
    cgroup: Fact[int]
    cpu_limit: Fact[float | None]
    memory_limit_bytes: Fact[int | None]
    affinity: Fact[tuple[int, ...]]


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


class Moment(Frozen):
    """The machine at one instant; two of them make a `Stretch`.

    Attributes
    ----------
    utc
        Time of day, ISO 8601, UTC, whole seconds.
    clock_s
        Monotonic seconds; only differences mean anything.
    cpu_s
        Seconds that all logical CPUs together have spent since boot, keyed ``busy`` (the guest's own work),
        ``idle`` (waiting for disks included) and ``steal`` (given to other machines by the hypervisor).
    own_cpu_s
        CPU seconds of this process and its children, dead and alive.
    frequency_mhz
        Of every logical CPU.
    governor
        Frequency governors in use, in alphabetical order; usually one.
    throttle_count
        Times that cores and packages were slowed down for heat since boot.
    quota_throttled_s
        Seconds that the control group was kept waiting because its CPU time was used up.
    load_1m
        Load average of one minute.
    memory_available_bytes
        As the kernel estimates it.
    memory_stall_s
        Seconds since boot in which some task waited for memory (pressure stall information, ``some``).
    energy_uj
        Counters of energy in microjoules by zone (``package-0``); they wrap at `energy_range_uj`.
    energy_range_uj
        What each counter wraps at.
    temperature_c
        Degrees Celsius by sensor.
    """

    utc: str
    clock_s: float
    cpu_s: Fact[dict[str, float]]
    own_cpu_s: float
    frequency_mhz: Fact[tuple[float, ...]]
    governor: Fact[tuple[str, ...]]
    throttle_count: Fact[int]
    quota_throttled_s: Fact[float]
    load_1m: Fact[float]
    memory_available_bytes: Fact[int]
    memory_stall_s: Fact[float]
    energy_uj: Fact[dict[str, int]]
    energy_range_uj: Fact[dict[str, int]]
    temperature_c: Fact[dict[str, float]]


class Stretch(Frozen):
    """What happened from the first moment to the last.

    Attributes
    ----------
    seconds
        Wall time.
    busy_share, steal_share
        Of the CPU time of all logical CPUs, 0 to 1.
    own_cpus, other_cpus
        CPUs kept busy on average by this process and its children, and by everybody else in this machine.
    frequency_mhz
        (lowest, median, highest) of all samples of all CPUs.
    throttled
        Times that a core or package was slowed down for heat.
    quota_throttled_s
        Seconds that the control group waited for CPU time.
    memory_stall_s
        Seconds in which some task waited for memory.
    energy_j
        Joules by zone.
    power_w
        Mean watts by zone.
    temperature_c
        Highest of all samples, by sensor.
    """

    seconds: float
    busy_share: Fact[float]
    steal_share: Fact[float]
    own_cpus: float
    other_cpus: Fact[float]
    frequency_mhz: Fact[tuple[float, float, float]]
    throttled: Fact[int]
    quota_throttled_s: Fact[float]
    memory_stall_s: Fact[float]
    energy_j: Fact[dict[str, float]]
    power_w: Fact[dict[str, float]]
    temperature_c: Fact[dict[str, float]]


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
