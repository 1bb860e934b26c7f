"""Sweeps: what is measured, skipped and absent; going on after an interruption; plans that load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from tiny_ir import write_tiny_ir

from edgeface.bench.result import BenchmarkResult
from edgeface.bench.run import sweep as module
from edgeface.bench.run.runner import DEFAULTS
from edgeface.bench.run.sweep import Sweep, SweepAxes, SweepStep, sweep
from edgeface.errors import DeviceError, InputError
from edgeface.model.opset import ops
from edgeface.runtime import DevicePlan, Embedder

pytestmark = pytest.mark.slow
SHORT = DEFAULTS.model_copy(update={"duration_s": 0.05, "min_count": 20, "max_duration_s": 0.5, "warm_up_s": 0.05})
AXES = SweepAxes(hints=("LATENCY", "THROUGHPUT"), batches=(1, 2))


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ir(tmp_path_factory.mktemp("model"))


def run(ir: Path, folder: Path, axes: SweepAxes = AXES, **options) -> tuple[Sweep, list[SweepStep]]:
    steps: list[SweepStep] = []
    options = {"settings": SHORT, "peak": False, **options}
    return sweep(ir, folder, axes=axes, on_step=steps.append, **options), steps


@pytest.fixture(scope="module")
def swept(ir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    return run(ir, folder)[0], folder


@pytest.fixture
def copied(swept: tuple[Sweep, Path], tmp_path: Path) -> Path:
    """A copy of the folder, to spoil."""
    return Path(shutil.copytree(swept[1], tmp_path / "copied"))


def test_every_combination_is_measured_alone_and_under_load(swept: tuple[Sweep, Path]) -> None:
    found, folder = swept
    assert list(found.results) == [
        f"CPU_{hint}_batch-{batch}/{scenario}"
        for hint in ("latency", "throughput")
        for batch in (1, 2)
        for scenario in ("single-stream", "offline")
    ]
    assert (found.skipped, found.failed, found.absent) == ((), (), ())
    for name, result in found.results.items():
        assert BenchmarkResult.read(folder / name) == result
        assert result.settings.batch == int(name[name.index("batch-") + 6])
        assert result.settings.hint == name.split("_")[1].upper()
        assert result.throughput_fps > 0


def test_the_best_plans_load_and_embed(swept: tuple[Sweep, Path], ir: Path) -> None:
    found, folder = swept
    alone = {k: v.latency_ms["p90"] for k, v in found.results.items() if k.endswith("single-stream")}
    loaded = {k: v.throughput_fps for k, v in found.results.items() if k.endswith("offline")}
    assert found.best["latency"] == (min(alone, key=alone.__getitem__), folder / "latency.json")
    assert found.best["throughput"] == (max(loaded, key=loaded.__getitem__), folder / "throughput.json")
    crop = np.full((32, 32, 3), (10, 20, 200), np.uint8)
    for name, path in found.best.values():
        plan = DevicePlan.read(path)
        assert plan.hint == found.results[name].settings.hint
        assert plan.batch_buckets == (found.results[name].settings.batch,)
        for given in (path, str(path)):
            with Embedder.load(ir, plan=given) as embedder:
                np.testing.assert_allclose(embedder.embed(crop), [[0.0497, 0.0994, 0.9938]], atol=1e-3)


def test_a_plan_file_that_is_none_is_named(ir: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match=r"plan.json: device: expected an OpenVINO device name"):
        Embedder.load(ir, plan=tmp_path / "plan.json")


def test_what_is_done_is_not_done_again_and_what_is_half_written_is(swept: tuple[Sweep, Path], ir: Path) -> None:
    before, folder = swept
    names = list(before.results)
    half, partial = folder / names[1] / "result.json", folder / names[2] / "result.json"
    half.write_bytes(half.read_bytes()[:1000])
    partial.write_text(json.dumps(json.loads(partial.read_text()) | {"partial": True}))
    after, steps = run(ir, folder)
    assert [step.name for step in steps if not step.found] == names[1:3]
    assert [step.number for step in steps] == list(range(1, 9))
    assert {step.total for step in steps} == {8}
    assert all(after.results[name] == before.results[name] for name in names if name not in names[1:3])
    assert all(BenchmarkResult.read(folder / name) == after.results[name] for name in names)


def test_axes_may_grow(swept: tuple[Sweep, Path], ir: Path) -> None:
    _, folder = swept
    _, steps = run(ir, folder, SweepAxes(hints=("LATENCY", None), batches=(1,)))
    assert [step.found for step in steps] == [True, True, False, False]


def test_other_settings_or_another_model_are_not_mixed_in(swept: tuple[Sweep, Path], ir: Path, tmp_path: Path) -> None:
    _, folder = swept
    with pytest.raises(InputError, match=r"holds a sweep of duration_s 0.05, not 0.2: .* choose another folder"):
        run(ir, folder, settings=SHORT.model_copy(update={"duration_s": 0.2}))
    with pytest.raises(InputError, match=r"holds a sweep of model [0-9a-f]{64}, not [0-9a-f]{64}"):
        run(write_tiny_ir(tmp_path / "other", name="other", source="b"), folder)
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(InputError, match="does not hold the settings of a sweep"):
        run(ir, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"duration_s": 0.06},
        {"min_count": 21},
        {"max_duration_s": 0.6},
        {"warm_up_s": 0.06},
        {"seed": 1},
        {"threads": 1},
        {"end_to_end": True},
        {"extra": {"ENABLE_CPU_PINNING": False}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_sweep_with_another_setting_is_not_resumed(
    swept: tuple[Sweep, Path], ir: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"holds a sweep of {next(iter(change))} "):
        run(ir, swept[1], settings=SHORT.model_copy(update=change))


def test_a_sweep_with_or_without_peaks_is_not_resumed_as_the_other(swept: tuple[Sweep, Path], ir: Path) -> None:
    with pytest.raises(InputError, match="holds a sweep of peak False, not True"):
        run(ir, swept[1], peak=True)


@pytest.mark.parametrize(
    "axes",
    [
        {"devices": ("AUTO:CPU",)},
        {"hints": (None,), "batches": (4,)},
        {"precisions": ("f32",)},
        {"streams": (1,)},
        {"requests": (2,)},
        {"batches": (3,)},
    ],
    ids=lambda axes: next(iter(axes)),
)
def test_a_value_of_an_axis_that_was_not_measured_is_measured(
    swept: tuple[Sweep, Path], ir: Path, axes: dict[str, Any]
) -> None:
    given = {"hints": ("LATENCY",), "batches": (1,)} | axes
    found, steps = run(ir, swept[1], SweepAxes(**given))
    assert [step.found for step in steps] == [False, False]
    again, steps = run(ir, swept[1], SweepAxes(**given))
    assert [step.found for step in steps] == [True, True]
    assert again.results == found.results


@pytest.mark.parametrize("name", ["hint", "precision", "streams", "requests", "batch", "scenario", "device"])
def test_a_result_of_other_settings_in_the_folder_of_a_run_is_measured_again(ir: Path, copied: Path, name: str) -> None:
    path = copied / "CPU_latency_batch-1" / "single-stream" / "result.json"
    stored = json.loads(path.read_text())
    other = {"hint": "THROUGHPUT", "precision": "bf16", "scenario": "multi-stream", "device": "AUTO"}
    stored["settings"][name] = other.get(name, 7)
    path.write_text(json.dumps(stored))
    _, steps = run(ir, copied, SweepAxes(hints=("LATENCY",), batches=(1,)))
    assert [step.found for step in steps] == [False, True]


@pytest.mark.parametrize("name", ["cpu", "cpus", "cpu_limit", "openvino", "inputs"])
def test_a_sweep_of_another_machine_is_not_gone_on_with(ir: Path, copied: Path, name: str) -> None:
    stored = json.loads((copied / "sweep.json").read_text())
    older = {key: value for key, value in stored.items() if key != name}
    (copied / "sweep.json").write_text(json.dumps(older))
    _, steps = run(ir, copied)  # what an older version wrote says less, and is gone on with
    assert all(step.found for step in steps)
    (copied / "sweep.json").write_text(json.dumps({**stored, name: "another"}))
    with pytest.raises(InputError, match=f"holds a sweep of {name} another, not"):
        run(ir, copied)


def test_a_model_of_any_size_is_swept_at_the_one_that_is_given(tmp_path: Path) -> None:
    image = ops.parameter([1, 3, -1, -1], np.float32, name="image")
    ov.save_model(ov.Model([ops.relu(image)], [image], "any"), tmp_path / "any.xml")
    axes = SweepAxes(hints=("LATENCY",), batches=(None,))
    with pytest.raises(InputError, match="give it a size"):
        run(tmp_path / "any.xml", tmp_path / "sweep", axes)
    found, _ = run(tmp_path / "any.xml", tmp_path / "sweep", axes, shapes={"": (1, 3, 8, 16)})
    assert {result.model.inputs["image"] for result in found.results.values()} == {(1, 3, 8, 16)}
    with pytest.raises(InputError, match="holds a sweep of inputs"):
        run(tmp_path / "any.xml", tmp_path / "sweep", axes, shapes={"": (1, 3, 16, 16)})


def test_an_absent_device_is_reported_and_nothing_takes_its_place(ir: Path, tmp_path: Path) -> None:
    found, _ = run(ir, tmp_path / "both", SweepAxes(devices=("NPU", "CPU"), hints=("LATENCY",)))
    (absent,) = found.absent
    assert absent.name == "NPU"
    assert "NPU" in absent.reason
    assert {result.settings.device for result in found.results.values()} == {"CPU"}
    with pytest.raises(DeviceError, match="NPU"):
        run(ir, tmp_path / "none", SweepAxes(devices=("NPU",)))


def test_combinations_that_contradict_themselves_are_skipped_with_the_reason(ir: Path, tmp_path: Path) -> None:
    axes = SweepAxes(
        hints=("LATENCY", "CUMULATIVE_THROUGHPUT"), streams=(2, 100_000), requests=(1, 2), precisions=("f32",)
    )
    found, _ = run(ir, tmp_path, axes)
    assert list(found.results) == [
        f"CPU_latency_f32_streams-2_requests-2_batch-1/{scenario}" for scenario in ("single-stream", "offline")
    ]
    reasons = {left.name: left.reason for left in found.skipped}
    assert len(reasons) == 7
    assert reasons["CPU_latency_f32_streams-2_requests-1_batch-1"] == "1 requests cannot keep 2 streams busy"
    assert "at most" in reasons["CPU_latency_f32_streams-100000_requests-2_batch-1"] or (
        "cannot keep" in reasons["CPU_latency_f32_streams-100000_requests-2_batch-1"]
    )
    assert "AUTO" in reasons["CPU_cumulative_throughput_f32_streams-2_requests-2_batch-1"]


def test_ctrl_c_drops_the_run_it_met_and_keeps_those_before(
    ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., BenchmarkResult] = module.benchmark
    made = []

    def interrupted(*given, **options) -> BenchmarkResult:
        made.append(real(*given, **options))
        return made[-1].model_copy(update={"partial": True}) if len(made) == 3 else made[-1]

    monkeypatch.setattr(module, "benchmark", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(ir, tmp_path)
    assert len(list(tmp_path.rglob("result.json"))) == 2
    monkeypatch.undo()
    _, steps = run(ir, tmp_path)
    assert [step.found for step in steps] == [True, True] + [False] * 6


def test_a_sweep_is_json(swept: tuple[Sweep, Path]) -> None:
    stored = swept[0].to_dict()
    assert json.loads(json.dumps(stored)) == stored
    assert stored["best"]["latency"]["plan"].endswith("latency.json")
