"""Device plans as data, and what a compiled model says about how it runs."""

from __future__ import annotations

import json
import logging

import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.errors import InputError
from edgeface.runtime.devices import ResolvedDevice, resolve_device
from edgeface.runtime.plan import DevicePlan, default_plan, describe_execution

try:
    from openvino import opset8 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset8 as ops

pytestmark = pytest.mark.timeout(60)

counts = st.none() | st.integers(1, 64)
plans = st.builds(
    DevicePlan,
    device=st.sampled_from(["CPU", "GPU.1", "AUTO:GPU,CPU", "HETERO:GPU,CPU", "BATCH:CPU(4)"]),
    precision=st.sampled_from([None, "f32", "bf16", "f16"]),
    hint=st.sampled_from([None, "LATENCY", "THROUGHPUT"]),
    streams=counts,
    requests=counts,
    threads=counts,
    batch_buckets=st.sets(st.integers(1, 64), min_size=1).map(sorted).map(tuple),
    extra=st.dictionaries(st.text(min_size=1), st.booleans() | st.integers() | st.text(), max_size=3),
)


@pytest.fixture
def model() -> ov.Model:
    row = ops.parameter([1, 8], ov.Type.f32)
    return ov.Model([ops.relu(row)], [row])


@given(plans)
def test_a_plan_survives_json(plan):
    again = DevicePlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert hash(again) == hash(plan)


def test_a_plan_file_is_read_and_needs_the_device_only(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"device": "CPU"}')
    assert DevicePlan.read(path) == DevicePlan(device="CPU")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a device plan in JSON"),
        ("[]", r"expected an object with a device plan, found \[\]"),
        ("{}", "device: expected an OpenVINO device name, found ''"),
        ('{"device": 3}', "device: expected an OpenVINO device name, found 3"),
        ('{"device": "CPU", "stream": 2}', "expected only the fields batch_buckets, .* found stream too"),
        ('{"device": "CPU", "streams": "2"}', "streams: expected a positive number, found '2'"),
        ('{"device": "CPU", "streams": true}', "streams: expected a positive number, found True"),
        ('{"device": "CPU", "batch_buckets": 4}', "batch_buckets: expected ascending positive numbers .* found 4"),
        ('{"device": "CPU", "batch_buckets": ["4"]}', "batch_buckets: expected ascending positive numbers"),
        ('{"device": "CPU", "extra": [1]}', r"extra: expected an object, found \[1\]"),
        ('{"device": "CPU", "precision": ["f32"]}', r"precision: expected one of .* found \['f32'\]"),
    ],
)
def test_a_plan_file_that_is_wrong_is_named_with_expected_and_found(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"plan.json: {message}"):
        DevicePlan.read(path)


def test_a_plan_file_of_an_earlier_version_may_have_an_empty_cache_dir(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"device": "CPU", "cache_dir": null}')
    assert DevicePlan.read(path) == DevicePlan(device="CPU")


def test_a_plan_file_that_is_not_there_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="expected a device plan in JSON, found No such file"):
        DevicePlan.read(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": ""}, "device: expected an OpenVINO device name, found ''"),
        ({"precision": "FP32"}, "precision: expected one of f32, bf16, f16, or none, found 'FP32'"),
        ({"hint": "FAST"}, "hint: expected one of LATENCY, .* found 'FAST'"),
        ({"hint": "CUMULATIVE_THROUGHPUT"}, "expected a device AUTO or AUTO:..., found 'CPU'"),
        ({"streams": 0}, "streams: expected a positive number, found 0"),
        ({"requests": -1}, "requests: expected a positive number, found -1"),
        ({"threads": 1.5}, "threads: expected a positive number, found 1.5"),
        ({"batch_buckets": ()}, r"batch_buckets: expected ascending .* found \(\)"),
        ({"batch_buckets": (4, 2)}, r"batch_buckets: expected ascending .* found \(4, 2\)"),
        ({"device": "NPU", "streams": 2}, "streams: expected None, for an NPU has no streams, found 2"),
        ({"extra": {"X": [1]}}, r"extra\['X'\]: expected text, a number or a boolean, found \[1\]"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        DevicePlan(**{"device": "CPU", **options})


@pytest.mark.parametrize(
    ("device", "buckets"),
    [
        ("CPU", (1, 4)),
        ("GPU", (1, 2, 4, 8)),
        ("GPU.1", (1, 2, 4, 8)),
        ("NPU", (1, 2, 4, 8)),
        ("AUTO", (1,)),
        ("AUTO:GPU,CPU", (1, 2, 4, 8)),
        ("HETERO:CPU", (1,)),
        ("BATCH:GPU(8)", (1,)),
    ],
)
def test_devices_take_the_batches_that_suit_them(device, buckets):
    plan = default_plan(device)
    assert (plan.batch_buckets, plan.hint) == (buckets, "THROUGHPUT")
    one_at_a_time = (1,) if device == "CPU" else buckets
    assert default_plan(device, hint="LATENCY").batch_buckets == one_at_a_time
    assert default_plan(device, batch_buckets=(1, 16)).batch_buckets == (1, 16)


def test_a_multi_plan_runs_on_all_devices_whatever_hint_is_the_default():
    plan = default_plan(resolve_device("MULTI:CPU"))
    assert (plan.device, plan.hint, plan.extra) == ("AUTO:CPU", "CUMULATIVE_THROUGHPUT", {})


def test_config_holds_what_the_plan_says_and_extra_wins():
    assert DevicePlan(device="CPU").compile_config() == {}
    plan = DevicePlan(
        device="CPU",
        precision="f32",
        hint="LATENCY",
        streams=2,
        requests=4,
        threads=3,
        extra={"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False},
    )
    assert plan.compile_config() == {
        "PERFORMANCE_HINT": "LATENCY",
        "PERFORMANCE_HINT_NUM_REQUESTS": 4,
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 3,
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "ENABLE_CPU_PINNING": False,
    }


@pytest.mark.parametrize("device", ["CPU", "AUTO:CPU", "HETERO:CPU", "BATCH:CPU(4)", "AUTO"])
def test_what_executes_is_read_back_from_every_kind_of_device(model, device):
    plan = DevicePlan(device=device, precision="f32", streams=1, threads=1)
    report = describe_execution(ov.Core().compile_model(model, device, plan.compile_config()), plan)
    assert report.execution_devices == ("CPU",)
    assert report.full_names == (ov.Core().get_property("CPU", "FULL_DEVICE_NAME").strip(),)
    assert (report.precision, report.streams, report.threads) == ("f32", 1, 1)
    assert report.optimal_requests is not None
    assert not report.fallback
    assert report.notes == ()
    assert json.loads(json.dumps(report.to_dict()))["requested_device"] == device


def test_a_warm_cache_is_reported(model, tmp_path):
    plan = DevicePlan(device="CPU", extra={"CACHE_DIR": str(tmp_path)})
    loaded = []
    for _ in range(2):
        compiled = ov.Core().compile_model(model, "CPU", plan.compile_config())
        loaded.append(describe_execution(compiled, plan).loaded_from_cache)
    assert loaded == [False, True]


def test_arithmetic_that_was_not_asked_for_is_said_and_logged(model, caplog):
    caplog.set_level(logging.WARNING)
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1})
    report = describe_execution(compiled, DevicePlan(device="CPU", precision="bf16", streams=2))
    assert report.notes == ("precision: bf16 was requested, CPU uses f32", "streams: 2 was requested, CPU uses 1")
    assert caplog.messages == list(report.notes)


def test_another_device_than_asked_for_is_a_fallback_and_said(model, caplog):
    compiled = ov.Core().compile_model(model, "CPU")
    report = describe_execution(compiled, DevicePlan(device="AUTO:GPU,CPU"))
    assert report.fallback
    assert report.notes == ("AUTO:GPU,CPU was requested, CPU executes",)
    assert caplog.messages == list(report.notes)


def test_a_fallback_of_the_resolution_reaches_the_report(model):
    resolved = ResolvedDevice("GPU", "CPU", ("no GPU here", "CPU is used instead"), fallback=True)
    plan = default_plan(resolved)
    report = describe_execution(ov.Core().compile_model(model, "CPU"), plan, resolved=resolved)
    assert (report.requested_device, report.execution_devices) == ("GPU", ("CPU",))
    assert report.fallback
    assert report.notes == resolved.notes


def test_a_device_that_stands_in_while_auto_compiles_is_said():
    class Compiling:
        def get_property(self, name: str) -> object:
            if name == "EXECUTION_DEVICES":
                return ["(CPU)"]
            raise RuntimeError(name)

    report = describe_execution(Compiling(), DevicePlan(device="AUTO:GPU,CPU"))
    assert report.execution_devices == ("CPU",)
    assert report.fallback
    assert report.notes == ("CPU runs the model while it is compiled for AUTO:GPU,CPU",)
