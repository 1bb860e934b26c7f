"""Device names, what is here, and why something is not: on described machines and on this one."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from edgeface.cli.app import main
from edgeface.errors import DeviceError, InputError
from edgeface.runtime.devices import list_devices, resolve_device, split_device
from edgeface.runtime.probe import Cause, can_load, missing_devices

try:
    from openvino import opset8 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset8 as ops

pytestmark = pytest.mark.timeout(60)


class DescribedCore:
    """The two members of `openvino.Core` that are used, for hardware that is not in this machine."""

    def __init__(self, **devices: dict[str, Any]) -> None:
        self.properties = {name.replace("_", "."): values for name, values in devices.items()}
        self.available_devices = list(self.properties)

    def get_property(self, device_name: str, property: str) -> Any:
        values = self.properties[device_name]
        return dict.fromkeys(values, "RO") if property == "SUPPORTED_PROPERTIES" else values[property]


CPU = {"FULL_DEVICE_NAME": "A CPU", "RANGE_FOR_STREAMS": (1, 8), "OPTIMIZATION_CAPABILITIES": ["FP32", "INT8"]}
ARC = {"FULL_DEVICE_NAME": "A card (dGPU)", "DEVICE_TYPE": "DISCRETE", "GPU_DEVICE_TOTAL_MEM_SIZE": 8 << 30}
IRIS = {"FULL_DEVICE_NAME": "A chip (iGPU)", "DEVICE_TYPE": "INTEGRATED", "DEVICE_ARCHITECTURE": "GPU: vendor=0x8086"}
NPU = {"FULL_DEVICE_NAME": "An NPU", "NPU_DRIVER_VERSION": 1023, "DEVICE_ARCHITECTURE": "4000"}
CPU_ONLY = DescribedCore(CPU=CPU)
LAPTOP = DescribedCore(CPU=CPU, GPU=IRIS, NPU=NPU)
WORKSTATION = DescribedCore(CPU=CPU, GPU_0=ARC, GPU_1=IRIS)


def test_this_machines_cpu_is_listed_with_what_it_can_do():
    cpu = next(device for device in list_devices() if device.name == "CPU")
    assert cpu.full_name == ov.Core().get_property("CPU", "FULL_DEVICE_NAME").strip()
    assert "FP32" in cpu.capabilities
    assert cpu.streams is not None
    assert cpu.streams[0] == 1
    assert cpu.memory_bytes is not None
    assert cpu.memory_bytes > 1 << 28


def test_only_supported_properties_are_asked_for():
    described = {device.name: device for device in list_devices(DescribedCore(CPU=CPU, GPU_0=ARC, GPU_1=IRIS, NPU=NPU))}
    assert described["GPU.0"].kind == "discrete"
    assert described["GPU.0"].memory_bytes == 8 << 30
    assert described["GPU.1"].kind == "integrated"
    assert described["GPU.1"].memory_bytes is None
    assert described["NPU"].driver == "1023"
    assert described["NPU"].streams is None
    assert described["CPU"].kind is None


@pytest.mark.parametrize(
    ("device", "parts"),
    [
        ("CPU", (None, ("CPU",))),
        ("GPU.1", (None, ("GPU.1",))),
        ("AUTO", ("AUTO", ())),
        ("AUTO:GPU,-CPU", ("AUTO", ("GPU", "-CPU"))),
        ("BATCH:GPU.0(8)", ("BATCH", ("GPU.0",))),
    ],
)
def test_a_device_splits_into_its_parts(device, parts):
    assert split_device(device) == parts


@pytest.mark.parametrize(
    ("core", "text", "device"),
    [
        (LAPTOP, "cpu", "CPU"),
        (LAPTOP, "CPU.0", "CPU"),
        (LAPTOP, "iGPU", "GPU"),
        (LAPTOP, "GPU.0", "GPU.0"),
        (LAPTOP, " npu ", "NPU"),
        (LAPTOP, "AUTO", "AUTO"),
        (LAPTOP, "auto:igpu,cpu", "AUTO:GPU,CPU"),
        (LAPTOP, "AUTO:-GPU", "AUTO:-GPU"),
        (LAPTOP, "AUTO:iGPU,GPU,CPU", "AUTO:GPU,CPU"),
        (LAPTOP, "HETERO:GPU,CPU", "HETERO:GPU,CPU"),
        (LAPTOP, "BATCH:GPU(8)", "BATCH:GPU(8)"),
        (LAPTOP, "BATCH:GPU", "BATCH:GPU"),
        (WORKSTATION, "GPU", "GPU"),
        (WORKSTATION, "GPU.1", "GPU.1"),
        (WORKSTATION, "iGPU", "GPU.1"),
        (WORKSTATION, "dGPU", "GPU.0"),
        (WORKSTATION, "AUTO:dGPU,iGPU", "AUTO:GPU.0,GPU.1"),
    ],
)
def test_names_people_use_become_openvinos_without_a_word(core, text, device):
    resolved = resolve_device(text, core=core)
    assert (resolved.device, resolved.notes, resolved.fallback) == (device, (), False)
    assert resolved.requested == text


@pytest.mark.parametrize("text", ["MYRIAD", "VPU", "HDDL"])
def test_the_old_vpu_is_the_npu_now_and_that_is_said(text, caplog):
    resolved = resolve_device(text, core=LAPTOP)
    assert resolved.device == "NPU"
    assert resolved.notes == (f"{text}: support ended with OpenVINO 2022.3 LTS; the NPU replaces it; NPU is used",)
    assert caplog.messages == list(resolved.notes)
    with pytest.raises(DeviceError, match=r"ended with OpenVINO 2022\.3 LTS; the NPU .* no NPU here"):
        resolve_device(text, core=CPU_ONLY)


def test_multi_becomes_auto_on_all_devices_at_once_and_that_is_said():
    resolved = resolve_device("MULTI:GPU,CPU", core=LAPTOP)
    assert resolved.device == "AUTO:GPU,CPU"
    assert resolved.config == {"PERFORMANCE_HINT": "CUMULATIVE_THROUGHPUT"}
    assert "MULTI is deprecated" in resolved.notes[0]


@pytest.mark.parametrize("text", ["GPU", "GPU.1", "iGPU", "NPU", "HETERO:GPU,CPU", "MULTI:CPU,NPU", "BATCH:GPU(4)"])
def test_an_absent_device_is_an_error_that_names_what_is_here(text):
    with pytest.raises(DeviceError, match=r"no (integrated )?[GN]PU(\.1)? here.*OpenVINO found CPU$") as refusal:
        resolve_device(text, core=CPU_ONLY)
    assert refusal.value.exit_code == 3


def test_a_gpu_of_another_kind_is_not_taken():
    with pytest.raises(DeviceError, match=r"no discrete GPU here; OpenVINO found CPU, GPU, NPU"):
        resolve_device("dGPU", core=LAPTOP)


def test_the_fallback_asked_for_is_taken_and_said(caplog):
    caplog.set_level(logging.WARNING)
    resolved = resolve_device("GPU", fallback=["NPU", "cpu"], core=CPU_ONLY)
    assert (resolved.requested, resolved.device, resolved.fallback) == ("GPU", "CPU", True)
    assert resolved.notes[0].startswith("no GPU here")
    assert resolved.notes[1].startswith("no NPU here")
    assert resolved.notes[2] == "CPU is used instead, as the fallback allows"
    assert caplog.messages == list(resolved.notes)
    with pytest.raises(DeviceError, match="no GPU here"):
        resolve_device("GPU", fallback=["NPU"], core=CPU_ONLY)


def test_auto_leaves_absent_devices_out_and_says_so():
    resolved = resolve_device("AUTO:GPU,CPU", core=CPU_ONLY)
    assert (resolved.device, resolved.fallback) == ("AUTO:CPU", True)
    assert resolved.notes[0].startswith("AUTO:GPU,CPU: GPU is left out: no GPU here")
    assert not resolve_device("AUTO:CPU,GPU", core=CPU_ONLY).fallback
    with pytest.raises(DeviceError, match="no GPU here"):
        resolve_device("AUTO:GPU,NPU", core=CPU_ONLY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "XPU",
        "GPU.x",
        "MULTI",
        "HETERO:",
        "BATCH",
        "FAST:CPU",
        "AUTO:CPU;GPU",
        "CPU(4)",
        "AUTO:CPU(4)",
        "BATCH:CPU,GPU(4)",
    ],
)
def test_a_name_that_is_none_is_wrong_use(text):
    with pytest.raises(InputError, match=r"device: expected CPU, GPU, .* found"):
        resolve_device(text, core=LAPTOP)


@pytest.mark.parametrize("text", ["CPU", "AUTO:CPU", "HETERO:CPU", "BATCH:CPU(4)", "MULTI:CPU"])
def test_what_is_resolved_compiles(text):
    parameter = ops.parameter([1, 4], ov.Type.f32)
    model = ov.Model([parameter], [parameter])
    resolved = resolve_device(text)
    ov.Core().compile_model(model, resolved.device, dict(resolved.config))


def a_machine(root: Path, *files: str, container: bool = False, gpu: bool = False, npu: bool = False) -> Path:
    for number, (wanted, pci_class) in enumerate([(gpu, "0x030000"), (npu, "0x120000")]):
        if wanted:
            device = root / f"sys/bus/pci/devices/0000:00:0{number}.0"
            device.mkdir(parents=True)
            (device / "vendor").write_text("0x8086\n")
            (device / "class").write_text(f"{pci_class}\n")
    for name in (*files, *([".dockerenv"] if container else [])):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def causes_of(root: Path, name: str, *, libraries: bool = True, may_open: bool = True) -> list[Cause]:
    missing = missing_devices(["CPU"], root=root, load=lambda _: libraries, may_open=lambda _: may_open)
    return list(next(item for item in missing if item.name == name).causes)


def test_devices_that_are_there_are_not_missing(tmp_path):
    assert missing_devices(LAPTOP.available_devices, root=tmp_path) == []
    assert [item.name for item in missing_devices(WORKSTATION.available_devices, root=tmp_path)] == ["NPU"]


@pytest.mark.parametrize("name", ["GPU", "NPU"])
def test_hardware_that_is_not_there_is_said_and_nothing_else(tmp_path, name):
    [cause] = causes_of(tmp_path, name, libraries=False)
    assert cause.reason == f"no Intel {name} on the PCI bus"


def test_another_makers_card_is_no_intel_gpu(tmp_path):
    a_machine(tmp_path, gpu=True)
    (tmp_path / "sys/bus/pci/devices/0000:00:00.0/vendor").write_text("0x10de\n")
    [cause] = causes_of(tmp_path, "GPU")
    assert "no Intel GPU" in cause.reason


@pytest.mark.parametrize(("name", "folder"), [("GPU", "/dev/dri"), ("NPU", "/dev/accel")])
def test_a_container_without_the_device_file_is_told_how_to_be_started(tmp_path, name, folder):
    cause = causes_of(a_machine(tmp_path, container=True, gpu=True, npu=True), name)[0]
    assert cause.reason == f"an Intel {name} is on the bus, but this container has no {folder}"
    assert f"--device {folder} --group-add" in cause.remedy


@pytest.mark.parametrize(("name", "driver"), [("GPU", "i915"), ("NPU", "intel_vpu")])
def test_a_host_without_the_device_file_lacks_the_kernel_driver(tmp_path, name, driver):
    cause = causes_of(a_machine(tmp_path, gpu=True, npu=True), name)[0]
    assert "its kernel driver is not loaded" in cause.reason
    assert f"modprobe {driver}" in cause.remedy


@pytest.mark.parametrize(("name", "node"), [("GPU", "dev/dri/renderD128"), ("NPU", "dev/accel/accel0")])
def test_a_device_file_that_may_not_be_opened_needs_its_group(tmp_path, name, node):
    root = a_machine(tmp_path, node, "etc/OpenCL/vendors/intel.icd", gpu=True, npu=True)
    [cause] = causes_of(root, name, may_open=False)
    path = root / node
    assert cause.reason == f"this user may not open /{node}, which belongs to the group {path.group()}"
    assert cause.remedy == f"sudo usermod -aG {path.group()} $USER, and log in again"
    (root / ".dockerenv").touch()
    [cause] = causes_of(root, name, may_open=False)
    assert cause.remedy == f"start the container with --group-add {path.stat().st_gid}"


def test_a_device_file_in_a_sandbox_that_hides_the_bus_is_followed_up(tmp_path):
    [cause] = causes_of(a_machine(tmp_path, "dev/dri/renderD128"), "GPU")
    assert cause.reason == "Intel's OpenCL driver is not installed"


def test_missing_libraries_are_named_each_with_its_package(tmp_path):
    root = a_machine(tmp_path, "dev/dri/renderD128", "dev/accel/accel0", gpu=True, npu=True)
    loader, driver = causes_of(root, "GPU", libraries=False)
    assert "libOpenCL.so.1" in loader.reason
    assert loader.remedy == "apt install ocl-icd-libopencl1"
    assert driver.remedy == "apt install intel-opencl-icd"
    loader, driver = causes_of(root, "NPU", libraries=False)
    assert "libze_loader.so.1" in loader.reason
    assert "the NPU driver is not installed" in driver.reason


def test_a_machine_that_has_everything_is_pointed_to_its_kernel_log(tmp_path):
    root = a_machine(tmp_path, "dev/dri/renderD128", "etc/OpenCL/vendors/intel.icd", gpu=True)
    [cause] = causes_of(root, "GPU")
    assert "but OpenVINO does not list it" in cause.reason


def test_the_dynamic_linker_is_asked_for_libraries():
    assert can_load("libc.so.6")
    assert not can_load("libno-such-thing.so.9")


def test_devices_command_answers_in_json_and_in_words(capsys):
    assert main(["devices", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "CPU" in [device["name"] for device in answer["devices"]]
    assert all(absent["causes"] for absent in answer["missing"])
    assert main(["devices"]) == 0
    assert capsys.readouterr().out.startswith("CPU  ")
