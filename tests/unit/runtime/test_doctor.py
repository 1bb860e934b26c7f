"""The doctor on made-up machines and on this one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeface.cli.app import main
from edgeface.limits import cpu_limit, limited_cores, memory_left, memory_limit, tasks_left, usable_cores
from edgeface.runtime import doctor
from edgeface.runtime.doctor import Check, Diagnosis, examine, trouble_on
from edgeface.runtime.plan import DevicePlan

pytestmark = pytest.mark.timeout(60)

XEON = "avx2 avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 amx_tile amx_int8 amx_bf16"

GROUPS = {"proc__self__cgroup": "5:cpu,cpuacct:/\n4:memory:/\n0::/\n"}


class CpuCore:
    available_devices = ["CPU"]  # noqa: RUF012 - as openvino.Core has it

    def get_property(self, device_name: str, property: str) -> Any:
        return {"SUPPORTED_PROPERTIES": {"FULL_DEVICE_NAME": "RO"}, "FULL_DEVICE_NAME": "A CPU"}[property]


def a_machine(root: Path, **files: str) -> Path:
    """Files by name; two underscores stand for a slash, since these are keywords."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def check(name: str, root: Path) -> Check:
    diagnosis = examine(root=root, core=CpuCore(), try_out=lambda _: None)
    return next(item for item in diagnosis.checks if item.name == name)


def test_the_cpu_of_this_machine_gives_the_right_numbers():
    assert trouble_on("CPU") is None


def test_a_device_that_fails_is_a_problem_with_its_reason(tmp_path):
    diagnosis = examine(root=tmp_path, core=CpuCore(), try_out=lambda _: "illegal instruction")
    assert diagnosis.runs_on == ()
    assert (
        Check("CPU", "problem", "A CPU: illegal instruction", "pip install --force-reinstall openvino")
        in diagnosis.checks
    )


def test_absent_devices_are_notes_with_reason_and_remedy(tmp_path):
    assert check("GPU", tmp_path) == Check(
        "GPU", "note", "not here: no Intel GPU on the PCI bus", "run on another device"
    )


@pytest.mark.parametrize(
    ("flags", "status", "found"),
    [
        (XEON, "ok", "AVX2, AVX-512, VNNI, BF16, AMX"),
        ("avx2 avx_vnni", "ok", "AVX2, AVX-VNNI"),
        ("avx2", "note", "AVX2; no VNNI, so INT8 gains less"),
        ("avx2 avx512f", "note", "AVX2; no VNNI, so INT8 gains less"),
        ("sse4_2", "note", "none beyond SSE; expect low speed"),
    ],
)
def test_instructions_that_matter_are_named(tmp_path, monkeypatch, flags, status, found):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    a_machine(tmp_path, proc__cpuinfo=f"processor\t: 0\nflags\t\t: fpu {flags} ht\n")
    instructions = check("CPU instructions", tmp_path)
    assert (instructions.status, instructions.found) == (status, found)
    assert bool(instructions.remedy) == (status == "note")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    described = SimpleNamespace(total=16 << 30, available=8 << 30)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: described)


@pytest.mark.usefixtures("memory")
def test_memory_is_read_from_the_machine(tmp_path):
    assert check("memory", tmp_path) == Check("memory", "ok", "8.0 GiB of 16.0 GiB available")


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("limit", "used"),
    [
        ("sys__fs__cgroup__memory.max", "sys__fs__cgroup__memory.current"),
        ("sys__fs__cgroup__memory__memory.limit_in_bytes", "sys__fs__cgroup__memory__memory.usage_in_bytes"),
    ],
    ids=["cgroup 2", "cgroup 1"],
)
def test_a_cgroup_that_leaves_too_little_memory_is_noted(tmp_path, limit, used):
    a_machine(tmp_path, **GROUPS, **{limit: f"{1 << 30}\n", used: f"{1 << 29}\n"})
    found = check("memory", tmp_path)
    assert found.status == "note"
    assert found.found == "8.0 GiB of 16.0 GiB available; cgroup limit 1.0 GiB, 0.5 GiB of it unused"


@pytest.mark.usefixtures("memory")
def test_a_cgroup_without_a_limit_limits_nothing(tmp_path):
    a_machine(
        tmp_path, **GROUPS, **{"sys__fs__cgroup__memory.max": "max\n", "sys__fs__cgroup__cpu.max": "max 100000\n"}
    )
    assert check("memory", tmp_path).found == "8.0 GiB of 16.0 GiB available"
    assert check("CPU limit", tmp_path).status == "ok"


@pytest.mark.parametrize(
    "files",
    [
        {"sys__fs__cgroup__cpu.max": "50000 100000\n"},
        {"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "50000\n", "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000\n"},
    ],
    ids=["cgroup 2", "cgroup 1"],
)
def test_a_cpu_quota_is_told_and_makes_fewer_threads(tmp_path, monkeypatch, files):
    root = a_machine(tmp_path, **GROUPS, **files)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    found = check("CPU limit", root).found
    assert found == f"1 of {os.cpu_count()} logical CPUs usable; the cgroup allows 0.5 CPUs of time"
    assert usable_cores(root) == limited_cores(root) == 1


def test_limits_of_the_groups_around_this_process_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    described = {
        "proc__self__cgroup": "0::/a/b\n",
        "sys__fs__cgroup__a__cpu.max": "250000 100000\n",
        "sys__fs__cgroup__a__b__cpu.max": "max 100000\n",
        "sys__fs__cgroup__a__memory.max": "1000\n",
        "sys__fs__cgroup__a__memory.current": "900\n",
        "sys__fs__cgroup__a__b__memory.max": "5000\n",
        "sys__fs__cgroup__a__pids.max": "10\n",
        "sys__fs__cgroup__a__pids.current": "7\n",
    }
    root = a_machine(tmp_path, **described)
    assert (cpu_limit(root), usable_cores(root)) == (2.5, 3)
    assert (memory_limit(root), memory_left(root), tasks_left(root)) == (1000, 100, 3)


def test_a_plan_for_a_limited_cpu_has_as_many_threads_as_the_limit_allows(monkeypatch):
    monkeypatch.setattr("edgeface.runtime.plan.limited_cores", lambda: 3)
    assert DevicePlan(device="CPU").compile_config()["INFERENCE_NUM_THREADS"] == 3
    assert DevicePlan(device="CPU", threads=5).compile_config()["INFERENCE_NUM_THREADS"] == 5
    assert "INFERENCE_NUM_THREADS" not in DevicePlan(device="GPU").compile_config()


def test_a_package_of_which_only_the_folder_is_left_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "cv3").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "_PACKAGES", {"opencv-python-headless": "cv3", "numpy": "numpy"})
    diagnosis = examine(root=tmp_path, core=CpuCore(), try_out=lambda _: None)
    found = next(each for each in diagnosis.checks if each.name == "packages")
    assert (found.status, diagnosis.runs_on) == ("problem", ())
    assert found.found == "missing or damaged: opencv-python-headless (no module cv3)"
    assert found.remedy == "pip install --force-reinstall --no-deps opencv-python-headless"


def test_a_machine_without_proc_is_examined_all_the_same(tmp_path):
    diagnosis = examine(root=tmp_path, core=CpuCore(), try_out=lambda _: None)
    assert diagnosis.runs_on == ("CPU",)
    assert all(item.status != "problem" for item in diagnosis.checks)


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("2026.4.1-22982-e213a147257-releases/2026/4", "ok"),
        ("2024.6.0-17404-4c0f47d2335", "ok"),
        ("2023.3.0-1", "problem"),
    ],
)
def test_an_openvino_below_the_floor_is_a_problem(tmp_path, monkeypatch, version, status):
    monkeypatch.setattr(doctor.ov, "__version__", version)
    assert check("OpenVINO", tmp_path).status == status


def test_doctor_command_says_where_models_run(capsys):
    assert main(["doctor", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "CPU" in answer["runs_on"]
    assert {"OpenVINO", "CPU", "CPU instructions", "memory", "CPU limit"} <= {c["name"] for c in answer["checks"]}
    assert main(["doctor"]) == 0
    assert "models run here, on CPU" in capsys.readouterr().out


def test_doctor_command_exits_3_where_nothing_runs(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: Diagnosis((), (Check("CPU", "problem", "broken", "mend it"),)))
    assert main(["doctor"]) == 3
    assert "no model can run here" in capsys.readouterr().out
