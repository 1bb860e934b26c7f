"""What is read of a machine: made-up ones, file by file, damaged ones, and this one against other sources."""

from __future__ import annotations

import getpass
import os
import resource
import socket
import sys
from pathlib import Path

import openvino as ov
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.bench.machine.container import read_container
from edgeface.bench.machine.energy import joules, read_energy
from edgeface.bench.machine.environment import Environment, Moment, observe, read_environment, stretch
from edgeface.bench.machine.hardware import last_cache_bytes, read_machine
from edgeface.bench.machine.proc import cpu_list
from edgeface.bench.machine.reading import Unknown, known

Files = dict[str, str]
CPU = "sys/devices/system/cpu"
STATUS = "Name:\tpython\nCpus_allowed_list:\t{}\n"
MEMORY = "MemTotal:       {total} kB\nMemFree: 1 kB\nMemAvailable:   {free} kB\n"


def cores(siblings: list[str], *, package: str = "0") -> Files:
    """Topology: one string of thread siblings a logical CPU."""
    files = {}
    for cpu, group in enumerate(siblings):
        files[f"{CPU}/cpu{cpu}/topology/thread_siblings_list"] = f"{group}\n"
        files[f"{CPU}/cpu{cpu}/topology/physical_package_id"] = f"{package}\n"
    return files


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
    "proc/meminfo": MEMORY.format(total=16_000_000, free=9_000_000),
    "proc/stat": "cpu  1000 200 300 4000 500 60 40 0 700 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n",
    # utime to cstime are 700, 20, 3 and 1 ticks; the name tries to look like fields.
    "proc/self/stat": "42 (a) b (1 2 3) S 1 2 3 4 5 6 7 8 9 10 700 20 3 1 20 0 1 0\n",
    "proc/self/status": STATUS.format("0-3"),
    "proc/self/task/42/children": "43 44 ",
    "proc/43/stat": "43 (sh) S 42 2 3 4 5 6 7 8 9 10 50 5 0 0 20 0\n",
    "proc/43/task/43/children": "45",
    "proc/45/stat": "45 (dd) R 43 2 3 4 5 6 7 8 9 10 100 0 0 0 20 0\n",
    "proc/loadavg": "0.52 0.40 0.30 1/500 1234\n",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0 total=1\n",
    "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
    "proc/self/cgroup": "0::/user.slice/session-3.scope\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
    "sys/fs/cgroup/user.slice/memory.max": "max\n",
    "sys/fs/cgroup/user.slice/session-3.scope/cpu.stat": "usage_usec 5\nnr_throttled 0\nthrottled_usec 0\n",
    **cores(["0-1", "0-1", "2-3", "2-3"]),
    **cache(0, 1, "Data", "48K"),
    **cache(1, 1, "Instruction", "32K"),
    **cache(2, 2, "Unified", "1280K"),
    **cache(3, 3, "Unified", "12M"),
    **{f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq": f"{3_000_000 + cpu * 100_000}\n" for cpu in range(4)},
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
    "sys/class/hwmon/hwmon1/name": "coretemp\n",
    "sys/class/hwmon/hwmon1/temp1_input": "61000\n",
    "sys/class/hwmon/hwmon1/temp1_label": "Package id 0\n",
    "sys/class/hwmon/hwmon1/temp1_max": "100000\n",
    "sys/class/hwmon/hwmon1/temp2_input": "0\n",
}
AMD_VM: Files = {
    "proc/cpuinfo": "\n\n".join(
        f"processor\t: {cpu}\nmodel name\t: AMD EPYC\nphysical id\t: 0\ncore id\t\t: {cpu}\n"
        "cpu MHz\t\t: 2445.426\nflags\t\t: sse4_2 avx avx2 fma f16c hypervisor"
        for cpu in range(2)
    )
    + "\n",
    "proc/meminfo": MEMORY.format(total=24_684_096, free=20_000_000),
    "proc/stat": "cpu  600 0 200 150 0 0 0 50 0 0\n",
    "proc/self/stat": "7 (python) R 1 2 3 4 5 6 7 8 9 10 300 0 0 0 20 0\n",
    "proc/self/status": STATUS.format("0-1"),
}
CONTAINER: Files = {
    **AMD_VM,
    ".dockerenv": "",
    "proc/self/status": STATUS.format("0-1,5"),
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
    "proc/meminfo": MEMORY.format(total=8_000_000, free=7_000_000),
    "proc/stat": "cpu  10 0 10 80 0 0 0 0 0 0\n",
    "proc/self/stat": "7 (python) R 1 2 3 4 5 6 7 8 9 10 5 0 0 0 20 0\n",
    **cores(["0", "1"]),
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
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


# --- machines ----------------------------------------------------------------------------------------------


def test_laptop_is_described_from_its_files(laptop: Path) -> None:
    machine = read_machine(laptop)
    assert machine.cpu_model == "Intel(R) Core(TM) i5-1335U"
    assert (machine.sockets, machine.cores, machine.threads) == (1, 2, 4)
    assert machine.flags == ("sse4_2", "avx", "fma", "f16c", "avx2", "avx_vnni")
    assert machine.cache_bytes == {"L1d": 48 << 10, "L2": 1280 << 10, "L3": 12 << 20}
    assert last_cache_bytes(machine) == 12 << 20
    assert machine.memory_bytes == 16_000_000 << 10
    assert machine.hypervisor is False
    assert machine.kernel == "6.8.0-45-generic"


def test_two_sockets_whose_cores_share_numbers_are_told_apart(tmp_path: Path) -> None:
    block = "processor : {}\nphysical id : {}\ncore id : {}\nflags : avx2\nmodel name : X\n"
    text = "\n".join(block.format(cpu, cpu // 4, cpu % 4 // 2) for cpu in range(8))
    machine = read_machine(build(tmp_path, {"proc/cpuinfo": text}))
    assert (machine.sockets, machine.cores, machine.threads) == (2, 4, 8)


def test_board_of_an_arm_machine_is_named_and_its_serial_number_is_not(tmp_path: Path) -> None:
    machine = read_machine(build(tmp_path, ARM))
    assert machine.cpu_model == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.flags == ("asimd", "asimdhp", "asimddp", "fphp")
    assert (machine.sockets, machine.cores, machine.threads) == (1, 2, 2)
    assert isinstance(machine.hypervisor, Unknown)
    assert "secret" not in machine.model_dump_json()


def test_what_is_not_there_has_its_reason(tmp_path: Path) -> None:
    machine, moment = read_machine(tmp_path), observe(tmp_path)
    assert machine.cpu_model == Unknown(unknown="not readable here: /proc/cpuinfo does not exist")
    assert "proc/stat does not exist" in str(moment.cpu_s)
    assert "powercap" in str(moment.energy_uj)
    assert "hwmon" in str(moment.temperature_c)
    assert all(isinstance(moment.model_dump()[name], dict) for name in ("own_cpu_s", "load_1m", "governor"))


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
    assert container.affinity == (0, 1, 2, 3)


def test_limits_of_a_container_by_cgroup_2(tmp_path: Path) -> None:
    container = read_container(build(tmp_path, CONTAINER))
    assert container.model_dump() == {
        "inside": True, "cgroup": 2, "cpu_limit": 1.5, "memory_limit_bytes": 2 << 30, "affinity": (0, 1, 5),
    }  # fmt: skip


def test_limits_of_a_container_by_cgroup_1_under_the_hosts_path(tmp_path: Path) -> None:
    root = build(tmp_path, CONTAINER_V1)
    container = read_container(root)
    assert (container.inside, container.cgroup) == (True, 1)
    assert (container.cpu_limit, container.memory_limit_bytes) == (0.5, 512 << 20)
    assert observe(root).quota_throttled_s == 1.5


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3,8", (0, 1, 2, 3, 8)), ("5", (5,)), ("3-1", None), ("", None), ("0-99999999", None), ("a", None)],
)
def test_lists_of_cpus(text: str, expected: tuple[int, ...] | None) -> None:
    assert cpu_list(text) == expected


# --- moments -----------------------------------------------------------------------------------------------


def test_moment_of_the_laptop(laptop: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    moment = observe(laptop)
    # busy: user nice system irq softirq; idle: idle iowait; guest is part of user.
    assert moment.cpu_s == {"busy": 1600 / ticks, "idle": 4500 / ticks, "steal": 0.0}
    # 724 of its own and its dead children; 55 of a child, 100 of that one's child; 44 is gone already.
    assert moment.own_cpu_s == (724 + 55 + 100) / ticks
    assert moment.frequency_mhz == (3000.0, 3100.0, 3200.0, 3300.0)
    assert moment.governor == ("powersave",)
    assert moment.throttle_count == 4 * 3 + 4 * 10
    assert moment.quota_throttled_s == 0.0
    assert (moment.load_1m, moment.memory_available_bytes) == (0.52, 9_000_000 << 10)
    assert moment.memory_stall_s == 2.5
    assert moment.energy_uj == {"package-0": 262143000000, "package-0/dram": 1000}
    assert moment.temperature_c == {"coretemp Package id 0": 61.0}
    assert moment.temperature_limit_c == {"coretemp Package id 0": 100.0}


def test_thermal_zones_stand_in_for_hwmon_with_the_point_where_the_kernel_slows_down(tmp_path: Path) -> None:
    moment = observe(build(tmp_path, ARM))
    assert moment.temperature_c == {"cpu-thermal": 54.3}
    assert moment.temperature_limit_c == {"cpu-thermal": 80.0}


def test_nominal_frequency_of_a_virtual_machine_is_not_taken_for_a_measured_one(tmp_path: Path) -> None:
    assert "nominal" in str(observe(build(tmp_path, AMD_VM)).frequency_mhz)


def test_frequency_without_a_driver_is_what_the_kernel_measures(tmp_path: Path) -> None:
    assert observe(build(tmp_path, {"proc/cpuinfo": LAPTOP["proc/cpuinfo"]})).frequency_mhz == (2500.0,) * 4


def test_energy_closed_to_users_names_the_cure(laptop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "chmod a+r" in str(read_energy(laptop))


def moments(tmp_path: Path, *changes: Files, seconds: float = 2.0) -> list[Moment]:
    """The laptop now and after each change, `seconds` apart."""
    found = []
    for number, files in enumerate(({}, *changes)):
        build(tmp_path, files if number else LAPTOP)
        found.append(observe(tmp_path).model_copy(update={"clock_s": 100.0 + number * seconds}))
    return found


def test_stretch_between_two_moments(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    # 4 CPUs for 2 s: busy 200 of 800 ticks at 100 Hz, 80 stolen; 120 of them are this process's.
    first, last = moments(
        tmp_path,
        {
            "proc/stat": "cpu  1150 200 350 4400 620 60 40 80 700 0\n",
            "proc/self/stat": LAPTOP["proc/self/stat"].replace("700 20 3 1", "800 40 3 1"),
            "sys/class/powercap/intel-rapl:0/energy_uj": "19671149\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "3001000\n",
            "sys/class/hwmon/hwmon1/temp1_input": "83000\n",
            "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2600000\n",
            f"{CPU}/cpu2/thermal_throttle/core_throttle_count": "5\n",
        },
    )
    found = stretch([first, last])
    assert (found.seconds, found.busy_share, found.steal_share) == pytest.approx((2.0, 200 / 800, 80 / 800))
    assert (found.own_cpus, found.other_cpus) == (
        pytest.approx(120 / ticks / 2),
        pytest.approx(80 / ticks / 2),
    )
    # The package's counter wrapped: 0.32885 J to its range, one step to 0, 19.671149 J from there.
    assert found.energy_j == {"package-0": pytest.approx(20.0), "package-0/dram": 3.0}
    assert found.power_w == {"package-0": pytest.approx(10.0), "package-0/dram": 1.5}
    assert found.temperature_c == {"coretemp Package id 0": 83.0}
    assert (found.throttled, found.memory_stall_s) == (2, pytest.approx(0.1))
    assert found.frequency_mhz == (3000.0, 3150.0, 3300.0)


def test_children_that_nobody_waited_for_do_not_make_time_negative(tmp_path: Path) -> None:
    first, last = moments(tmp_path, {"proc/43/stat": "", "proc/43/task/43/children": ""})
    assert stretch([first, last]).own_cpus == 0.0


@given(
    wraps_at=st.integers(1_000_000, 1 << 48),
    start=st.floats(0, 1),
    steps=st.lists(st.floats(0, 0.999), max_size=30),
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
    found = read_environment([observe(root), observe(root)], root=root)
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
    build(root, {f"sys/fs/cgroup/user-{SECRET}.slice/cpu.max": "damaged", "proc/loadavg": "damaged"})
    build(root, {"proc/self/stat": f"42 ({SECRET}) S {'1 ' * 30}"})
    for variable in ("USER", "LOGNAME", "HOME", "HOSTNAME"):
        monkeypatch.setenv(variable, SECRET)
    monkeypatch.setattr(socket, "gethostname", lambda: SECRET)
    monkeypatch.setattr(getpass, "getuser", lambda: SECRET)
    monkeypatch.setattr(sys, "argv", [f"/home/{SECRET}/edgeface", "bench"])
    monkeypatch.chdir(root)
    return root


def test_host_user_and_paths_are_nowhere_unless_asked_for(private: Path) -> None:
    seen = [observe(private), observe(private)]
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
    seen = [observe(private)] * 2
    identity = read_environment(seen, root=private, identify=True).identity
    assert identity is not None
    assert isinstance(identity.user, Unknown)


# --- damage ------------------------------------------------------------------------------------------------

CORE = ov.Core()
FUZZED = {**LAPTOP, **CONTAINER_V1, **{k: v for k, v in ARM.items() if k not in LAPTOP}}
DAMAGE = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(str.encode),
    st.sampled_from(
        [b"", b"\0", b"-1", b"9" * 5000, b"cpu " + b"9" * 400, b"nan", b"1e999", b"0-", b":" * 50]
    ),
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
        found = read_environment([observe(fuzzed), observe(fuzzed)], root=fuzzed, core=CORE)
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
    found = stretch([observe(root), observe(root)])
    assert found.seconds >= 0
    assert read_machine(root).architecture
    assert read_container(root).inside in (True, False)


# --- this machine, against other sources -------------------------------------------------------------------


def test_this_machine_agrees_with_the_operating_system() -> None:
    machine, container, moment = read_machine(), read_container(), observe()
    assert machine.threads == os.cpu_count()
    assert machine.memory_bytes == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.01
    )
    assert machine.kernel == os.uname().release
    assert container.affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert known(moment.load_1m) == pytest.approx(os.getloadavg()[0], abs=1.0)


def test_own_time_agrees_with_getrusage() -> None:
    dead = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    expected = own.ru_utime + own.ru_stime + dead.ru_utime + dead.ru_stime
    # Living children, of a parallel run of the tests, may add to it.
    assert (known(observe().own_cpu_s) or 0.0) >= expected - 0.1
