"""Benchmarks of published models: the work is as published, and OpenVINO's own program tells the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgeface
from edgeface.bench import BenchmarkResult, ScenarioOptions, benchmark, read_any
from edgeface.bench.run.kiosk import VideoFile
from edgeface.bench.run.runner import DEFAULTS
from edgeface.vision.load import load_detector

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
QUICK = DEFAULTS.model_copy(
    update={"duration_s": 0.5, "max_duration_s": 1.0, "min_count": 1, "warm_up_s": 0.1, "hint": "LATENCY"}
)


@pytest.mark.slow
def test_facenet_has_the_published_work(real_ir: Path) -> None:
    result = benchmark(real_ir, QUICK, peak=False)
    assert result.gflops == pytest.approx(2.846, rel=0.005)
    assert result.model.parameters == pytest.approx(23.469e6, rel=0.005)
    assert result.model.contract_id
    assert result.throughput_fps is not None
    assert result.gflops_per_second == pytest.approx(2.846 * result.throughput_fps, rel=0.005)
    # What the layers did, all together, is what the model is.
    assert sum(layer.gflops or 0 for layer in result.layers) == pytest.approx(result.gflops, rel=0.01)


def test_an_onnx_file_is_measured_at_the_size_that_it_is_given(data: Path) -> None:
    model, shapes = data / "yunet" / "yunet_n_dynamic.onnx", {"": (1, 3, 64, 96)}
    result = benchmark(model, QUICK, shapes=shapes, peak=False, layers=False)
    assert (result.model.format, result.model.contract_id) == ("onnx", None)
    assert result.model.inputs == {"input": (1, 3, 64, 96)}
    assert result.latency_ms["p50"] > 0


def test_benchmark_apps_own_report_is_read(data: Path, tmp_path: Path) -> None:
    model = data / "omz/landmarks-regression-retail-0009/FP32/landmarks-regression-retail-0009.xml"
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(model), "-d", "CPU", "-niter", "20"]
    command += ["-hint", "latency", "-report_type", "no_counters", "-json_stats", "-report_folder", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    theirs = read_any(tmp_path / "benchmark_report.json")
    assert (theirs.model.name, theirs.settings.scenario) == (model.stem, "single-stream")
    assert set(theirs.latency_ms) == {"p50", "mean", "min", "max"}
    assert theirs.throughput_fps is not None
    assert theirs.throughput_fps > 0


@pytest.mark.alone
@pytest.mark.slow
def test_a_kiosk_identifies_the_people_of_a_real_video(real_ir: Path, liveness_irs: Path, data: Path) -> None:
    run = QUICK.model_copy(update={"scenario": "kiosk", "duration_s": 3.0, "max_duration_s": 3.0})
    yunet = data / "yunet" / "yunet_n_dynamic.onnx"
    with load_detector("yunet", model=yunet) as detector, edgeface.load_liveness(liveness_irs) as checker:
        video = VideoFile.open(data / "video" / "faces.mp4")
        options = ScenarioOptions(video=video, detector=detector, liveness=checker)
        result = benchmark(real_ir, run, options=options, peak=False, layers=False)
    kiosk = result.kiosk
    assert kiosk is not None
    assert (kiosk.frame_rate, kiosk.frames) == (25.0, 75)
    assert result.samples is not None
    assert kiosk.frames == kiosk.dropped + result.samples.count
    assert kiosk.faces > 0
    assert kiosk.identities > 0
    assert kiosk.time_to_identity_ms["min"] > 0
    assert (kiosk.detector, kiosk.liveness) == ("yunet", True)
    assert result.samples.count == (kiosk.detected or 0) + (kiosk.tracked or 0) + (kiosk.skipped or 0)
    assert (result.gflops_per_second, result.efficiency) == (None, None)
    assert BenchmarkResult.from_dict(result.to_dict()) == result
