"""A run from a model file to a result: every scenario, what is read back, what is refused, what Ctrl-C leaves."""

from __future__ import annotations

import contextlib
import functools
import signal
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from burning import burning_core
from tiny_ir import write_tiny_ir

from edgeface.bench.machine.peak import measure_peak
from edgeface.bench.reading import Unknown
from edgeface.bench.result import BenchmarkResult
from edgeface.bench.run.load import OpenVinoTarget, load, random_inputs
from edgeface.bench.run.load_generator import RunLimits
from edgeface.bench.run.runner import DEFAULTS, ScenarioOptions, benchmark
from edgeface.bench.run.scenarios import offline, single_stream
from edgeface.bench.schema import RunSettings
from edgeface.errors import ContractError, DeviceError, InferenceError, InputError
from edgeface.model.opset import ops
from edgeface.progress import Progress, ProgressCallback
from edgeface.runtime import DevicePlan, ImageFormat
from edgeface.runtime.adapter import UNPACKED

pytestmark = pytest.mark.timeout(180)
QUICK = {"duration_s": 0.1, "max_duration_s": 0.3, "min_count": 5, "warm_up_s": 0.05}
OLD = ov.__version__.startswith("2024")


def settings(**changes: Any) -> RunSettings:
    return DEFAULTS.model_copy(update={**QUICK, **changes})


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ir(tmp_path_factory.mktemp("ir"))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline", "server"])
@pytest.mark.parametrize("end_to_end", [False, True])
def test_every_scenario_gives_a_result_that_can_be_read_again(ir: Path, scenario: Any, end_to_end: bool) -> None:
    own = {"bound_ms": 1000.0, "percentile": 90.0} if scenario == "server" else {}
    run = settings(scenario=scenario, end_to_end=end_to_end, hint="THROUGHPUT", requests=3)
    result = benchmark(ir, run, options=ScenarioOptions(**own), peak=False, layers=False)
    assert BenchmarkResult.from_dict(result.to_dict()) == result
    samples = result.samples
    assert samples is not None
    assert samples.count > 0
    items = 8 if scenario == "multi-stream" else 1
    assert samples.items == items
    ordered = np.sort(samples.latencies_ms)
    assert result.latency_ms["p50"] == pytest.approx(ordered[(len(ordered) - 1) // 2], rel=1e-6)
    assert result.throughput_fps == pytest.approx(items * samples.count / samples.ends_s.max(), rel=1e-6)
    assert result.gflops_per_second == pytest.approx(result.gflops * result.throughput_fps)  # type: ignore[operator]
    assert result.execution.devices == ("CPU",)
    alone = scenario == "single-stream" and not end_to_end
    assert result.execution.requests == (1 if alone else 6 if end_to_end else 3)  # with those in the queue
    assert result.settings.input_format == ("u8 NHWC BGR" if end_to_end else None)
    assert (result.server is not None) == (scenario == "server")
    assert result.environment is not None
    assert result.environment.identity is None
    watched = ("steal_share", "other_cpus", "frequency_mhz", "throttled", "quota_throttled_s", "memory_stall_s")
    during = result.environment.during
    hidden = [isinstance(getattr(during, name), Unknown) for name in (*watched, "temperature_c")]
    assert len(result.unwatched) == sum(hidden)


def test_layers_are_timed_in_a_pass_of_their_own(ir: Path) -> None:
    result = benchmark(ir, settings(), peak=False)
    assert result.layers
    assert all(layer.ms >= 0 and layer.count > 0 for layer in result.layers)  # OpenVINO counts whole microseconds
    assert any(layer.ms > 0 for layer in result.layers)
    assert result.peak is None
    assert result.efficiency is None


def test_a_plan_takes_the_place_of_the_settings(ir: Path) -> None:
    plan = DevicePlan(device="CPU", streams=1, requests=3, batch_buckets=(1, 4), extra={"ENABLE_CPU_PINNING": False})
    run = settings(scenario="offline", hint="THROUGHPUT", streams=2)
    result = benchmark(ir, run, plan=plan, peak=False, layers=False)
    assert (result.settings.hint, result.settings.streams, result.settings.batch) == (None, 1, 4)
    assert (result.execution.streams, result.execution.requests) == (1, 3)
    assert result.execution.affinity is not None
    assert result.execution.affinity.startswith("not pinned")
    assert result.model.inputs == {"image": (4, 3, 32, 32)}
    assert result.samples is not None
    assert result.samples.items == 4


def test_an_image_format_is_measured_in_the_graph(ir: Path) -> None:
    images = ImageFormat(color="RGB", size=(48, 64))
    result = benchmark(ir, settings(batch=2), image_format=images, peak=False, layers=False)
    assert result.settings.input_format == "u8 NHWC RGB 64x48"
    assert result.model.inputs == {"image": (2, 48, 64, 3)}


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"scenario": "server"}, {}, InputError, "requires a latency bound"),
        ({"scenario": "server"}, {"bound_ms": 5.0, "percentile": 100.0}, InputError, "between 0 and 100"),
        (
            {},
            {"bound_ms": 5.0},
            InputError,
            "the single-stream scenario takes no bound ms: that is an option of the scenario server",
        ),
        ({"scenario": "offline"}, {"samples_per_query": 4}, InputError, "of the scenario multi-stream"),
        ({"scenario": "server"}, {"bound_ms": 5.0, "samples_per_query": 4}, InputError, "multi-stream"),
        ({"duration_s": 2.0, "max_duration_s": 1.0}, {}, InputError, "at least the duration, 2 s, found 1 s"),
        ({"scenario": "kiosk"}, {}, InputError, "requires a video and a detector"),
        ({"scenario": "multi-stream"}, {"samples_per_query": 0}, InputError, "samples per query must be 1 or more"),
        ({"end_to_end": True, "batch": 4}, {}, InputError, "--end-to-end requires batch size 1"),
        ({"end_to_end": True}, {"image_format": ImageFormat(size="any")}, InputError, "found 'any'"),
        ({"device": "NPU"}, {}, DeviceError, "no NPU here"),
        ({"device": "TPU"}, {}, InputError, "device: expected CPU"),
        ({"hint": "FAST"}, {}, InputError, "hint: expected one of"),
    ],
)
def test_what_does_not_go_together_is_refused(
    ir: Path, changes: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    images = options.get("image_format")
    scenario = ScenarioOptions(**{name: each for name, each in options.items() if name != "image_format"})
    with pytest.raises(error, match=message):
        benchmark(ir, settings(**changes), options=scenario, image_format=images, peak=False, layers=False)


@pytest.mark.alone
@pytest.mark.slow
def test_a_peak_that_somebody_disturbed_is_told_for_the_efficiency_would_be_too_high(
    ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = functools.partial(measure_peak, precisions=("f32",))  # which takes long enough to be disturbed
    monkeypatch.setattr("edgeface.bench.run.runner.measure_peak", one)
    with contextlib.ExitStack() as stack:

        def burn(progress: Progress) -> None:
            if progress.stage == "measure the peak":
                stack.enter_context(burning_core())

        result = benchmark(ir, settings(), layers=False, progress=burn)
    assert result.peak is not None
    assert result.disturbed
    assert any(reason.startswith("while the peak was measured, other processes kept") for reason in result.disturbances)


def interrupt(stage: str) -> ProgressCallback:
    """Press Ctrl-C in a stage; when some queries are answered if that is the measurement."""

    def press(progress: Progress) -> None:
        if progress.stage == stage and (stage != "measure" or progress.done > 0.1):
            signal.raise_signal(signal.SIGINT)

    return press


def test_a_longer_duration_moves_the_longest_unless_that_is_given(ir: Path) -> None:
    run = settings(duration_s=130.0, max_duration_s=None, min_count=1)
    result = benchmark(ir, run, peak=False, layers=False, progress=interrupt("measure"))
    assert result.settings.max_duration_s == 130.0


def test_end_to_end_needs_a_contract(tmp_path: Path) -> None:
    image = ops.parameter([1, 3, 8, 8], np.float32, name="image")
    ov.save_model(ov.Model([ops.relu(image)], [image], "plain"), tmp_path / "plain.xml")
    with pytest.raises(ContractError, match="has no contract, which an input format requires"):
        benchmark(tmp_path / "plain.xml", settings(end_to_end=True), peak=False)


@pytest.mark.parametrize("when", ["measure", "time layers", "warm up"])
def test_ctrl_c_keeps_what_there_is(ir: Path, when: str) -> None:
    run = settings(duration_s=60.0 if when == "measure" else 0.1, max_duration_s=60.0)
    if when == "warm up":
        with pytest.raises(KeyboardInterrupt):
            benchmark(ir, run, peak=False, progress=interrupt(when))
        return
    result = benchmark(ir, run, peak=False, progress=interrupt(when))
    assert result.partial
    assert result.layers == ()
    assert result.samples is not None
    assert result.samples.count > 3


def test_inputs_suit_what_they_are_for() -> None:
    parameters = [
        ops.parameter([1, 3, 8, 8], np.float32),
        ops.parameter([2, 5], np.float32),
        ops.parameter([3], np.int64),
        ops.parameter([1, 8, 8, 3], np.uint8),
    ]
    model = ov.Model([ops.result(parameter) for parameter in parameters], parameters, "inputs")
    picture, vector, index, bytes_ = random_inputs(model, seed=1)
    assert picture.max() > 200
    assert (picture == np.round(picture)).all()
    assert 0 <= vector.min() <= vector.max() <= 1
    assert set(index) <= {0, 1}
    assert bytes_.dtype == np.uint8
    for one, other in zip(random_inputs(model, seed=1), (picture, vector, index, bytes_), strict=True):
        np.testing.assert_array_equal(one, other)


class Failing(getattr(ov, "Op", object)):  # type: ignore[misc]
    """The identity, until the fifth time."""

    def __init__(self, inputs: list[Any] | None = None) -> None:
        super().__init__(self)
        self.times = 0
        if inputs is not None:
            self.set_arguments(inputs)
            self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, inputs: list[Any]) -> Failing:
        return Failing(inputs)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
        self.times += 1
        if self.times >= 5:
            raise ValueError("overheated")
        outputs[0].data[...] = inputs[0].data
        return True


@pytest.mark.slow
@pytest.mark.skipif(OLD, reason="OpenVINO 2024 has no operations written in Python")
@pytest.mark.parametrize("load", [single_stream, offline])
def test_an_inference_that_fails_is_raised_although_openvino_calls_nobody(load: Any) -> None:
    image = ops.parameter([4], np.float32, name="image")
    model = ov.Model([ops.result(Failing([image.output(0)]).output(0))], [image], "failing")
    compiled = ov.Core().compile_model(model, "CPU")
    target = OpenVinoTarget(compiled, requests=2, inputs=[np.zeros(4, np.float32)], items=1)
    with pytest.raises((InferenceError, RuntimeError), match="overheated"):
        load(target, RunLimits(duration_s=30.0, min_count=1, max_duration_s=30.0))


@pytest.mark.parametrize("end_to_end", [False, True])
def test_compressed_weights_are_unpacked_and_that_is_noted(end_to_end: bool) -> None:
    ir = Path(__file__).parents[2] / "fixtures" / "0_1" / "models" / "weights" / "net.xml"
    settings = RunSettings(device="CPU", scenario="single-stream", end_to_end=end_to_end)
    with load(ir, settings, core=ov.Core()) as loaded:
        loaded.target.infer()
        assert UNPACKED in loaded.execution.notes
