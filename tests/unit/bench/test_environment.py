"""What is read of a machine: made-up ones, damaged ones, and this one against other sources."""

from __future__ import annotations

import getpass
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.bench.machine.environment import Environment, read_environment
from edgeface.bench.machine.hardware import last_cache_bytes, read_container, read_machine
from edgeface.bench.machine.snapshot import Snapshot, joules, summarize_interval, take_snapshot
from edgeface.bench.reading import Unknown, known

Files = dict[str, str]
CPU = "sys/devices/system/cpu"


def cache(index: int, level: int, kind: str, size: str) -> Files:
    folder = f"{CPU}/cpu0/cache/index{index}"
    return {f"{folder}/level": f"{level}\n", f"{folder}/type": f"{kind}\n", f"{folder}/size": f"{size}\n"}


LAPTOP: Files = {
    "proc/cpuinfo": "\n\n".join(
        f"processor\t: {cpu}\nmodel name\t: Intel(R) Core(TM) i5-1335U\ncpu MHz\t\t: 2500.000\n"
        "flags\t\t: fpu sse4_2 avx fma f16c avx2 avx_vnni"
        for cpu in range(4)
    )
    + "\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0 total=1\n",
    "proc/self/cgroup": "0::/user.slice/session-3.scope\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/session-3.scope/cpu.stat": "usage_usec 5\nnr_throttled 0\nthrottled_usec 0\n",
    f"{CPU}/cpu0/topology/physical_package_id": "0\n",
    **cache(0, 1, "Data", "48K"),
    **cache(1, 1, "Instruction", "32K"),
    **cache(2, 2, "Unified", "1280K"),
    **cache(3, 3, "Unified", "12M"),
    **{f"{CPU}/cpu{cpu}/cpufreq/scaling_governor": "powersave\n" for cpu in range(4)},
    **{f"{CPU}/cpu{cpu}/thermal_throttle/core_throttle_count": "3\n" for cpu in range(4)},
    **{f"{CPU}/cpu{cpu}/thermal_throttle/package_throttle_count": "10\n" for cpu in range(4)},
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000\n",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl:0:0/name": "dram\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "1000\n",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": "7\n",
}
AMD_VM: Files = {
    "proc/cpuinfo": "\n\n".join(
        f"processor\t: {cpu}\nmodel name\t: AMD EPYC\nphysical id\t: 0\ncore id\t\t: {cpu}\n"
        "cpu MHz\t\t: 2445.426\nflags\t\t: sse4_2 avx avx2 fma f16c hypervisor"
        for cpu in range(2)
    )
    + "\n"
}
CONTAINER: Files = {
    **AMD_VM,
    ".dockerenv": "",
    "proc/self/cgroup": "0::/\n",
    "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
    "sys/fs/cgroup/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/memory.max": "2147483648\n",
    "sys/fs/cgroup/cpu.stat": "usage_usec 9\nnr_throttled 4\nthrottled_usec 2500000\n",
}
CONTAINER_V1: Files = {
    **AMD_VM,
    "proc/1/cgroup": "4:memory:/docker/0123456789abcdef\n",
    # The host's path, of which a container without a cgroup namespace sees only the end.
    "proc/self/cgroup": "4:memory:/docker/0123456789abcdef\n3:cpu,cpuacct:/docker/0123456789abcdef\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 3\nthrottled_time 1500000000\n",
}
ARM: Files = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd aes fphp asimdhp asimddp\nCPU implementer\t: 0x41\n"
    "CPU part\t: 0xd0b\n\nprocessor\t: 1\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n\n"
    "Serial\t\t: 10000000secret\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "ondemand\n",
    "sys/firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "54300\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "critical\n",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "110000\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "passive\n",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "80000\n",
}
MACHINES = {"laptop": LAPTOP, "vm": AMD_VM, "container": CONTAINER, "container v1": CONTAINER_V1, "arm": ARM}


def build(root: Path, files: Files) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    return build(tmp_path, LAPTOP)


Sensors = Callable[..., None]


@pytest.fixture
def sensors(monkeypatch: pytest.MonkeyPatch) -> Sensors:
    """Make psutil's functions return what is given by their names."""

    def pretend(**answers: Any) -> None:
        for name, answer in answers.items():
            monkeypatch.setattr(psutil, name, lambda *_, answer=answer, **__: answer)

    return pretend


def cpu_times(user: float, nice: float, system: float, idle: float, *others: float) -> SimpleNamespace:
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
    return SimpleNamespace(**dict(zip(names, (user, nice, system, idle, *others), strict=False)))


def degrees(label: str, current: float, high: float | None = None, critical: float | None = None) -> Any:
    return SimpleNamespace(label=label, current=current, high=high, critical=critical)


class Process:
    """A process of psutil's that has used some CPU time, or is gone."""

    def __init__(self, *seconds: float, children: tuple[Process, ...] = ()) -> None:
        self._seconds, self._children = seconds, children

    def cpu_times(self) -> tuple[float, ...]:
        if not self._seconds:
            raise psutil.NoSuchProcess(44)
        return (*self._seconds, 99.0)  # waiting for disks is no CPU time

    def children(self, *, recursive: bool) -> tuple[Process, ...]:
        assert recursive
        return self._children


# --- machines ----------------------------------------------------------------------------------------------


def test_laptop_is_described_from_its_files(laptop: Path) -> None:
    machine = read_machine(laptop)
    assert machine.cpu_model == "Intel(R) Core(TM) i5-1335U"
    assert machine.sockets == 1
    assert machine.flags == ("sse4_2", "avx", "fma", "f16c", "avx2", "avx_vnni")
    assert machine.cache_bytes == {"L1d": 48 << 10, "L2": 1280 << 10, "L3": 12 << 20}
    assert last_cache_bytes(machine) == 12 << 20
    assert machine.hypervisor is False


def test_cores_and_memory_are_psutils(laptop: Path, sensors: Sensors) -> None:
    sensors(virtual_memory=SimpleNamespace(total=16 << 30))
    assert read_machine(laptop).memory_bytes == 16 << 30
    machine = read_machine()
    assert (machine.cores, machine.threads) == (psutil.cpu_count(logical=False), psutil.cpu_count())


def test_sockets_are_counted_by_their_numbers(tmp_path: Path) -> None:
    block = "processor : {}\nphysical id : {}\ncore id : {}\nflags : avx2\nmodel name : X\n"
    text = "\n".join(block.format(cpu, cpu // 4, cpu % 4 // 2) for cpu in range(8))
    assert read_machine(build(tmp_path, {"proc/cpuinfo": text})).sockets == 2
    for cpu in range(3):
        build(tmp_path, {f"{CPU}/cpu{cpu}/topology/physical_package_id": f"{cpu}\n"})
    assert read_machine(tmp_path).sockets == 3


def test_board_of_an_arm_machine_is_named_and_its_serial_number_is_not(tmp_path: Path) -> None:
    machine = read_machine(build(tmp_path, ARM))
    assert machine.cpu_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.flags == ("asimd", "asimdhp", "asimddp", "fphp")
    assert isinstance(machine.hypervisor, Unknown)
    assert "secret" not in machine.model_dump_json()


def test_what_is_not_there_has_its_reason(tmp_path: Path, sensors: Sensors) -> None:
    sensors(sensors_temperatures={}, cpu_freq=[])
    machine, snapshot = read_machine(tmp_path), take_snapshot(tmp_path)
    assert machine.cpu_model == Unknown(unknown="not readable here: /proc/cpuinfo does not exist")
    assert "powercap" in str(snapshot.energy_uj)
    assert "hwmon" in str(snapshot.temperature_c)
    assert "cpufreq" in str(snapshot.frequency_mhz)
    assert isinstance(snapshot.model_dump()["governor"], dict)


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("cpu_times", "cpu_s"),
        ("Process", "own_cpu_s"),
        ("cpu_freq", "frequency_mhz"),
        ("getloadavg", "load_1m"),
        ("virtual_memory", "memory_available_bytes"),
        ("sensors_temperatures", "temperature_c"),
    ],
)
@pytest.mark.parametrize("error", [psutil.AccessDenied(), ValueError("x"), NotImplementedError()])
def test_what_psutil_cannot_tell_has_its_reason(
    function: str, field: str, error: Exception, laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(psutil, function, fail)
    assert isinstance(getattr(take_snapshot(laptop), field), Unknown)
    monkeypatch.delattr(psutil, function)  # a platform without it
    assert isinstance(getattr(take_snapshot(laptop), field), Unknown)


def test_a_file_that_may_not_be_read_says_so(laptop: Path) -> None:
    (laptop / "proc/cpuinfo").unlink()
    (laptop / "proc/cpuinfo").mkdir()  # root may read everything, except a folder as a file
    assert "Is a directory" in str(read_machine(laptop).cpu_model)


# --- containers --------------------------------------------------------------------------------------------


def test_no_limit_is_none_and_not_unknown(laptop: Path) -> None:
    container = read_container(laptop)
    assert (container.inside, container.cgroup) == (False, 2)
    assert container.cpu_limit is None
    assert container.memory_limit_bytes is None


def test_limits_of_a_container_by_cgroup_2(tmp_path: Path) -> None:
    container = read_container(build(tmp_path, CONTAINER))
    assert container.model_dump(exclude={"affinity"}) == {
        "inside": True, "cgroup": 2, "cpu_limit": 1.5, "memory_limit_bytes": 2 << 30,
    }  # fmt: skip


def test_limits_of_a_container_by_cgroup_1_under_the_hosts_path(tmp_path: Path) -> None:
    root = build(tmp_path, CONTAINER_V1)
    container = read_container(root)
    assert (container.inside, container.cgroup) == (True, 1)
    assert (container.cpu_limit, container.memory_limit_bytes) == (0.5, 512 << 20)
    assert take_snapshot(root).quota_throttled_s == 1.5


def test_the_tightest_group_around_a_process_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu",
        "sys/fs/cgroup/a/cpu.max": "100000 100000",
        "sys/fs/cgroup/a/b/cpu.max": "300000 100000",
        "sys/fs/cgroup/a/memory.max": "max",
        "sys/fs/cgroup/a/b/memory.max": "1000",
    }
    container = read_container(build(tmp_path, files))
    assert (container.cpu_limit, container.memory_limit_bytes) == (1.0, 1000)


def test_version_1_writes_no_limit_as_a_huge_number(tmp_path: Path) -> None:
    files = CONTAINER_V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert read_container(build(tmp_path, files)).memory_limit_bytes is None


# --- snapshots ---------------------------------------------------------------------------------------------


def test_a_snapshot_maps_what_psutil_tells(laptop: Path, sensors: Sensors) -> None:
    sensors(
        cpu_times=cpu_times(10, 2, 3, 40, 5, 0.6, 0.4, 7, 1),
        # 7.24 of its own and its dead children; 0.55 of a child, 1 of that one's child; one is gone already.
        Process=Process(7.0, 0.2, 0.03, 0.01, children=(Process(0.5, 0.05, 0, 0), Process(), Process(1, 0, 0, 0))),
        cpu_freq=[SimpleNamespace(current=3000.0), SimpleNamespace(current=3100.0)],
        getloadavg=(0.52, 0.4, 0.3),
        virtual_memory=SimpleNamespace(available=9 << 30, total=16 << 30),
        sensors_temperatures={
            "coretemp": [degrees("Package id 0", 61.0, 100.0, 105.0), degrees("Core 0", 0.0)],
            "nvme": [degrees("", 40.0, None, 85.0), degrees("", 41.0, 65261.8, None)],
        },
    )
    snapshot = take_snapshot(laptop)
    # busy: user nice system irq softirq; idle: idle iowait; guest is part of user.
    assert snapshot.cpu_s == pytest.approx({"busy": 16.0, "idle": 45.0, "steal": 7.0})
    assert snapshot.own_cpu_s == pytest.approx(7.24 + 0.55 + 1.0)
    assert snapshot.frequency_mhz == (3000.0, 3100.0)
    assert (snapshot.load_1m, snapshot.memory_available_bytes) == (0.52, 9 << 30)
    assert snapshot.temperature_c == {"coretemp Package id 0": 61.0, "nvme": 40.0, "nvme (2)": 41.0}
    assert snapshot.temperature_limit_c == {"coretemp Package id 0": 100.0, "nvme": 85.0}


def test_a_snapshot_of_what_psutil_does_not_tell(laptop: Path) -> None:
    snapshot = take_snapshot(laptop)
    assert snapshot.governor == ("powersave",)
    assert snapshot.throttle_count == 4 * 3 + 4 * 10
    assert snapshot.quota_throttled_s == 0.0
    assert snapshot.memory_stall_s == 2.5
    assert snapshot.energy_uj == {"package-0": 262143000000, "package-0/dram": 1000}


def test_the_limit_of_a_thermal_zone_is_where_the_kernel_slows_down(tmp_path: Path, sensors: Sensors) -> None:
    sensors(sensors_temperatures={"cpu-thermal": [degrees("", 54.3, 110.0, 110.0)]})
    snapshot = take_snapshot(build(tmp_path, ARM))
    assert snapshot.temperature_c == {"cpu-thermal": 54.3}
    assert snapshot.temperature_limit_c == {"cpu-thermal": 80.0}


def test_nominal_frequency_of_a_virtual_machine_is_not_taken_for_a_measured_one(
    tmp_path: Path, sensors: Sensors
) -> None:
    sensors(cpu_freq=[SimpleNamespace(current=2500.0)])
    assert "nominal" in str(take_snapshot(build(tmp_path / "vm", AMD_VM)).frequency_mhz)
    files = {"proc/cpuinfo": LAPTOP["proc/cpuinfo"]}
    assert take_snapshot(build(tmp_path / "real", files)).frequency_mhz == (2500.0,)


def test_energy_closed_to_users_names_the_remedy(laptop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "chmod a+r" in str(take_snapshot(laptop).energy_uj)


def later(first: Snapshot, seconds: float, **changes: Any) -> Snapshot:
    return first.model_copy(update={"clock_s": first.clock_s + seconds} | changes)


def test_what_happened_between_two_snapshots(laptop: Path) -> None:
    first = take_snapshot(laptop).model_copy(
        update={
            "cpu_s": {"busy": 16.0, "idle": 45.0, "steal": 0.0},
            "own_cpu_s": 7.0,
            "frequency_mhz": (3000.0, 3100.0, 3200.0, 3300.0),
            "temperature_c": {"cpu": 61.0},
        }
    )
    build(
        laptop,
        {
            "sys/class/powercap/intel-rapl:0/energy_uj": "19671149\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "3001000\n",
            "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2600000\n",
            f"{CPU}/cpu2/thermal_throttle/core_throttle_count": "5\n",
        },
    )
    second = take_snapshot(laptop)
    # 4 CPUs for 2 s: busy for 2 of 8 s, 0.8 stolen; 1.2 are this process's.
    last = second.model_copy(
        update={
            "clock_s": first.clock_s + 2.0,
            "cpu_s": {"busy": 18.0, "idle": 50.2, "steal": 0.8},
            "own_cpu_s": 8.2,
            "frequency_mhz": first.frequency_mhz,
            "temperature_c": {"cpu": 83.0},
        }
    )
    found = summarize_interval([first, last])
    assert (found.seconds, found.busy_share, found.steal_share) == pytest.approx((2.0, 2 / 8, 0.8 / 8))
    assert (found.own_cpus, found.other_cpus) == (pytest.approx(0.6), pytest.approx(0.4))
    # The package's counter wrapped: 0.32885 J to its range, one step to 0, 19.671149 J from there.
    assert found.energy_j == {"package-0": pytest.approx(20.0), "package-0/dram": 3.0}
    assert found.power_w == {"package-0": pytest.approx(10.0), "package-0/dram": 1.5}
    assert found.temperature_c == {"cpu": 83.0}
    assert (found.throttled, found.memory_stall_s) == (2, pytest.approx(0.1))
    assert found.frequency_mhz == (3000.0, 3150.0, 3300.0)


def test_children_that_nobody_waited_for_do_not_make_time_negative(laptop: Path) -> None:
    first = take_snapshot(laptop).model_copy(update={"own_cpu_s": 8.0})
    assert summarize_interval([first, later(first, 2.0, own_cpu_s=7.0)]).own_cpus == 0.0


@given(
    wraps_at=st.integers(1_000_000, 1 << 48), start=st.floats(0, 1), steps=st.lists(st.floats(0, 0.999), max_size=30)
)
def test_joules_between_readings_add_up_however_often_the_counter_wraps(
    wraps_at: int, start: float, steps: list[float]
) -> None:
    counter = int(start * wraps_at)
    total, used = 0, 0.0
    for step in steps:
        passed = int(step * wraps_at)
        after = (counter + passed) % (wraps_at + 1)
        found = joules(counter, after, wraps_at=wraps_at, seconds=wraps_at / 1e9 / 2)
        used += known(found) or 0.0
        total, counter = total + passed, after
    assert used == pytest.approx(total / 1e6, abs=1e-3)


def test_a_counter_that_may_have_wrapped_twice_is_not_trusted() -> None:
    # 262 kJ last 262 s at 1 kW.
    assert joules(0, 5_000_000, wraps_at=262_143_328_850, seconds=262) == 5.0
    assert isinstance(joules(0, 5_000_000, wraps_at=262_143_328_850, seconds=263), Unknown)
    assert isinstance(joules(5, 4, wraps_at=None, seconds=1), Unknown)


# --- the whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MACHINES)
def test_environment_survives_json_on_every_machine(name: str, tmp_path: Path) -> None:
    root = build(tmp_path, MACHINES[name])
    found = read_environment([take_snapshot(root), take_snapshot(root)], root=root)
    assert Environment.model_validate_json(found.model_dump_json()) == found
    assert found.software.devices[0].name == "CPU"


SECRET = "zq-private"


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose every name, path and argument has `SECRET` in it."""
    root = tmp_path / SECRET
    build(root, LAPTOP)
    build(root, dict.fromkeys(("etc/hostname", "proc/sys/kernel/hostname", "proc/self/environ"), SECRET))
    build(root, {"proc/self/cgroup": f"0::/user-{SECRET}.slice\n"})
    build(root, {f"sys/fs/cgroup/user-{SECRET}.slice/cpu.max": "damaged"})
    for variable in ("USER", "LOGNAME", "HOME", "HOSTNAME"):
        monkeypatch.setenv(variable, SECRET)
    monkeypatch.setattr(socket, "gethostname", lambda: SECRET)
    monkeypatch.setattr(getpass, "getuser", lambda: SECRET)
    monkeypatch.setattr(sys, "argv", [f"/home/{SECRET}/edgeface", "bench"])
    monkeypatch.chdir(root)
    return root


def test_host_user_and_paths_are_nowhere_unless_asked_for(private: Path) -> None:
    seen = [take_snapshot(private), take_snapshot(private)]
    silent = read_environment(seen, root=private)
    assert silent.identity is None
    assert SECRET not in silent.model_dump_json()
    told = read_environment(seen, root=private, identify=True)
    assert told.identity is not None
    assert (told.identity.host, told.identity.user, told.identity.folder) == (SECRET, SECRET, str(private))
    assert told.model_copy(update={"identity": None}) == silent


def test_a_user_without_a_name_is_no_error(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    seen = [take_snapshot(private)] * 2
    identity = read_environment(seen, root=private, identify=True).identity
    assert identity is not None
    assert isinstance(identity.user, Unknown)


# --- damage ------------------------------------------------------------------------------------------------

CORE: Any = SimpleNamespace(available_devices=[])
FUZZED = {**LAPTOP, **CONTAINER_V1, **{k: v for k, v in ARM.items() if k not in LAPTOP}}
DAMAGE = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(str.encode),
    st.sampled_from([b"", b"\0", b"-1", b"9" * 5000, b"cpu " + b"9" * 400, b"nan", b"1e999", b"0-", b":" * 50]),
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("fuzzed"), FUZZED)


@settings(max_examples=examples(100))
@given(name=st.sampled_from(sorted(FUZZED)), damage=DAMAGE, cut=st.integers(0, 400), replace=st.booleans())
def test_damaged_files_are_facts_that_cannot_be_read_and_never_an_error(
    fuzzed: Path, name: str, damage: bytes, cut: int, replace: bool
) -> None:
    path = fuzzed / name
    whole = FUZZED[name].encode()
    try:
        path.write_bytes(damage if replace else whole[:cut] + damage + whole[cut:])
        found = read_environment([take_snapshot(fuzzed), take_snapshot(fuzzed)], root=fuzzed, core=CORE)
        assert Environment.model_validate_json(found.model_dump_json()) == found
    finally:
        path.write_bytes(whole)


@settings(max_examples=examples(12))
@given(damage=DAMAGE)
def test_a_machine_of_nothing_but_damage_is_described_too(
    damage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    for name in FUZZED:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damage)
    found = summarize_interval([take_snapshot(root), take_snapshot(root)])
    assert found.seconds >= 0
    assert read_machine(root).architecture
    assert read_container(root).inside in (True, False)


# --- this machine, against other sources -------------------------------------------------------------------


def test_this_machine_agrees_with_the_operating_system() -> None:
    machine, container, snapshot = read_machine(), read_container(), take_snapshot()
    assert machine.threads == os.cpu_count()
    assert machine.memory_bytes == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.01)
    assert machine.kernel == os.uname().release
    assert container.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert known(snapshot.load_1m) == pytest.approx(os.getloadavg()[0], abs=1.0)


def test_own_time_agrees_with_getrusage() -> None:
    dead = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    expected = own.ru_utime + own.ru_stime + dead.ru_utime + dead.ru_stime
    # Living children, of a parallel run of the tests, may add to it.
    assert (known(take_snapshot().own_cpu_s) or 0.0) >= expected - 0.1
