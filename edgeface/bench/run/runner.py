"""Run a benchmark: compile the model, warm it up, measure it while the machine is watched, explain the figures."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov

from edgeface.bench.machine.disturbance import watch
from edgeface.bench.machine.environment import read_environment
from edgeface.bench.machine.executed import ExecutedLayer, describe_layers, has_eight_bit, time_layers
from edgeface.bench.machine.peak import Peak, attainable_seconds, measure_peak
from edgeface.bench.reading import Unknown
from edgeface.bench.result import BenchmarkResult, Samples
from edgeface.bench.run.benchmark_model import Shapes
from edgeface.bench.run.kiosk import LOOKS, VideoFile, run_kiosk, time_stages
from edgeface.bench.run.load import LoadedModel, load
from edgeface.bench.run.load_generator import Recording, RunLimits
from edgeface.bench.run.scenarios import (
    PERCENTILES,
    find_rate,
    is_stationary,
    minimum_count,
    multi_stream,
    offline,
    single_stream,
    warm_up,
)
from edgeface.bench.run.search import run_search
from edgeface.bench.schema import EarlyStopping, Execution, MultiStreamResult, RunSettings, Validity
from edgeface.errors import ContractError, InputError
from edgeface.pipeline.motion import MotionGate
from edgeface.pipeline.pipeline import Pipeline
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.runtime import DevicePlan, ImageFormat
from edgeface.stats import early_stopping_estimate, queries_needed, rate_interval, summarize
from edgeface.version import __version__
from edgeface.vision.detector import Detector
from edgeface.vision.liveness import LivenessChecker
from edgeface.vision.quality import QualityGate

_log = logging.getLogger(__name__)

DEFAULTS = RunSettings(
    scenario="single-stream", device="CPU", seed=0, duration_s=20.0, max_duration_s=120.0, warm_up_s=10.0
)
"""Settings of a run unless others are given."""

_PROFILED = 20
"""Inferences of the pass that times the layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioOptions:
    """Options that only one scenario takes; None where the scenario is another."""

    # Server: `percentile` per cent of the queries must be answered within `bound_ms`. The bound is required; the
    # percentile is 99 unless given.
    bound_ms: float | None = None
    percentile: float | None = None
    samples_per_query: int | None = None  # MultiStream; None: 8
    # Kiosk; the first two are required. Detector and checker are not closed.
    video: VideoFile | None = None
    detector: Detector | None = None
    liveness: LivenessChecker | None = None
    # Search: templates of the gallery, required, and how the index stores them; None: as a gallery's index does
    templates: int | None = None
    storage: Literal["float32", "int8", "graph"] | None = None


_BELONGS: Mapping[str, tuple[str, ...]] = {
    "server": ("bound_ms", "percentile"),
    "multi-stream": ("samples_per_query",),
    "kiosk": ("video", "detector", "liveness"),
    "search": ("templates", "storage"),
}
"""Fields of `ScenarioOptions` by the scenario that takes them."""


@dataclass(slots=True)
class _Explained:
    """What was measured afterwards to explain the figures, as far as it got."""

    layers: tuple[ExecutedLayer, ...] = ()
    peak: Peak | None = None
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    disturbances: tuple[str, ...] = ()


def benchmark(
    model: Path,
    settings: RunSettings = DEFAULTS,
    *,
    options: ScenarioOptions | None = None,
    plan: DevicePlan | None = None,
    shapes: Shapes | None = None,
    image_format: ImageFormat | None = None,
    peak: Peak | bool = True,
    layers: bool = True,
    identify: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> BenchmarkResult:
    """Run one benchmark.

    Ctrl-C during the measurement ends it and returns what was measured, marked as partial; before that, it is raised.

    Parameters
    ----------
    model, shapes, image_format
        As for `edgeface.bench.run.benchmark_model.read_benchmark_model`.
    settings, plan
        What to measure; where `DEFAULTS` has a value, None stands for it. A plan replaces device, hint, precision,
        streams, requests and threads.
    options
        Options of the scenario.
    peak
        What the device attains, if that is known; else whether to measure it.
    layers
        Whether to time the layers, in a pass of their own.
    identify
        Whether to store host, user, folder and command line in the result.
    progress
        Called when each stage begins, and during the measurement.

    Raises
    ------
    InputError
        If the model or the settings are wrong, or contradict each other.
    DeviceError
        If the device is absent or cannot compile the model; no other device replaces it.
    InferenceError
        If the device fails.
    """
    options = options or ScenarioOptions()

    def begin(stage: str) -> None:
        _log.info("%s: %s", model.name, stage)
        progress(Progress(stage, 0))

    settings = _complete(settings, options, image_format)
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    core = ov.Core()
    begin("load")
    with load(model, settings, core=core, plan=plan, shapes=shapes, image_format=image_format) as loaded:
        begin("warm up")
        alone = settings.scenario in ("single-stream", "kiosk")
        warmth = (0.0, True)
        if settings.scenario != "search":  # which warms up by itself
            warmth = warm_up(loaded.target, alone=alone, longest_s=settings.warm_up_s or 0.0)
        with watch() as watched:
            begin("measure")
            recording, parts = _measure(loaded, settings, options, progress)
        explained = _Explained(interrupted=recording.interrupted)
        if not explained.interrupted:
            _explain(explained, loaded, begin, peak=peak, layers=layers)
        environment = read_environment(watched.snapshots, core=core, identify=identify)
    verdict = watched.verdict
    result = BenchmarkResult(
        created=created,
        edgeface=__version__,
        model=loaded.benchmark_model.info,
        environment=environment,
        settings=loaded.settings,
        execution=_execution(loaded, explained),
        validity=_validity(recording, loaded.settings, options, warmth),
        latency_ms={},
        throughput_fps=None,
        peak=explained.peak,
        layers=describe_layers(explained.layers, loaded.benchmark_model.work, inferences=_PROFILED),
        **parts,
        disturbed=bool(verdict.reasons or explained.disturbances),
        disturbances=(*verdict.reasons, *explained.disturbances),
        unwatched=verdict.unwatched,
        partial=recording.interrupted or explained.interrupted,
        samples=Samples.pack(recording.starts_ns, recording.latencies_ms, items=recording.items),
    )
    return result.model_copy(update=_figures(loaded, recording, explained)) if len(recording) else result


def _figures(loaded: LoadedModel, recording: Recording, explained: _Explained) -> dict[str, Any]:
    """Compute the figures of the result from the samples."""
    benchmark_model, items, throughput = loaded.benchmark_model, recording.items, recording.items_per_second
    estimates, intervals = summarize(recording.latencies_ms)
    figures: dict[str, Any] = {
        "latency_ms": estimates,
        "latency_interval_ms": intervals,
        "throughput_fps": throughput,
        "cpu_ms": 1e3 * recording.cpu_s / (len(recording) * items),
        "gflops": benchmark_model.info.gflops,
    }
    if loaded.settings.scenario == "kiosk":  # a frame is not an inference of this model
        return figures
    if loaded.settings.scenario == "search":
        return figures | {"gflops": None}
    low, high = rate_interval(recording.ends_s)
    figures["throughput_interval"] = (low and low * items, high and high * items)
    if benchmark_model.info.gflops is not None:
        figures["gflops_per_second"] = benchmark_model.info.gflops * throughput
    if explained.peak is not None:
        precision = loaded.execution.precision
        least = attainable_seconds(benchmark_model.work, explained.peak, explained.layers, precision=precision)
        figures["efficiency"] = least and least / benchmark_model.batch * throughput
    return figures


def _execution(loaded: LoadedModel, explained: _Explained) -> Execution:
    execution = loaded.execution
    eight = "+i8" if has_eight_bit(explained.layers, loaded.benchmark_model.work) else ""
    return execution.model_copy(
        update={
            "precision": execution.precision and execution.precision + eight,
            "notes": (*execution.notes, *explained.notes),
        }
    )


def _complete(settings: RunSettings, options: ScenarioOptions, image_format: ImageFormat | None) -> RunSettings:
    """Fill in defaults, and refuse options that contradict each other."""
    scenario = settings.scenario
    for owner, names in _BELONGS.items():
        strange = [name for name in names if owner != scenario and getattr(options, name) is not None]
        if strange:
            raise InputError(
                f"the {scenario} scenario takes no {strange[0].replace('_', ' ')}: that is an option of the scenario "
                f"{owner}"
            )
    least = DEFAULTS.duration_s if settings.duration_s is None else settings.duration_s
    defaults = {
        "seed": DEFAULTS.seed,
        "duration_s": least,
        "warm_up_s": DEFAULTS.warm_up_s,
        "max_duration_s": max(least or 0.0, DEFAULTS.max_duration_s or 0.0),
    }
    if settings.min_count is None:
        defaults["min_count"] = minimum_count(scenario, options.percentile)
    if settings.max_duration_s is not None and settings.max_duration_s < (least or 0.0):
        raise InputError(
            f"the maximum duration must be at least the duration, {least:g} s, found {settings.max_duration_s:g} s"
        )
    if scenario == "server" and not options.bound_ms:
        raise InputError("the server scenario requires a latency bound in milliseconds")
    if options.percentile is not None and not 0 < options.percentile < 100:
        raise InputError(f"the percentile must be between 0 and 100, found {options.percentile}")
    if scenario == "kiosk" and (options.video is None or options.detector is None):
        raise InputError("the kiosk scenario requires a video and a detector")
    if scenario == "kiosk" and (image_format or settings.batch not in (None, 1)):
        raise InputError("the kiosk scenario makes its own crops, one at a time: it takes no input format or batch")
    if scenario == "search" and not options.templates:
        raise InputError("the search scenario requires a number of templates, 1 or more")
    if options.samples_per_query is not None and options.samples_per_query < 1:
        raise InputError(f"samples per query must be 1 or more, found {options.samples_per_query}")
    missing = {name: value for name, value in defaults.items() if getattr(settings, name) is None}
    return settings.model_copy(update=missing | {"end_to_end": settings.end_to_end or scenario == "kiosk"})


def _measure(
    loaded: LoadedModel, settings: RunSettings, options: ScenarioOptions, progress: ProgressCallback
) -> tuple[Recording, dict[str, Any]]:
    """Run the scenario; return what it recorded, and its own part of the result by field."""
    least, target = settings.duration_s or 0.0, loaded.target
    limits = RunLimits(
        duration_s=least, min_count=settings.min_count or 0, max_duration_s=settings.max_duration_s or least
    )
    if settings.scenario == "single-stream":
        return single_stream(target, limits, progress), {}
    if settings.scenario == "offline":
        return offline(target, limits, progress), {}
    if settings.scenario == "multi-stream":
        recording = multi_stream(target, limits, progress, samples=options.samples_per_query or 8)
        return recording, {"multi_stream": MultiStreamResult(samples_per_query=recording.items)}
    if settings.scenario == "server":
        assert options.bound_ms is not None
        percentile, seed = options.percentile or PERCENTILES["server"], settings.seed or 0
        server, recording = find_rate(
            target, limits, bound_ms=options.bound_ms, percentile=percentile, seed=seed, progress=progress
        )
        return recording, {"server": server}
    if settings.scenario == "search":
        contract = loaded.benchmark_model.contract
        if contract is None:
            raise ContractError(
                expected="a model with a contract", found="none", remedy="give it one with 'edgeface adopt'"
            )
        search, recording = run_search(
            options.templates or 0,
            options.storage,
            limits,
            dim=contract.embedding_dim,
            contract_id=contract.contract_id,
            seed=settings.seed or 0,
            progress=progress,
        )
        return recording, {"search": search}
    assert options.video is not None and loaded.embedder is not None  # noqa: PT018
    assert options.detector is not None
    pipeline = Pipeline.for_camera(
        options.detector,
        loaded.embedder,
        looks=LOOKS,
        gate=QualityGate(),
        motion=MotionGate(),
        liveness=options.liveness,
    )
    judges = options.liveness is not None
    kiosk, recording = run_kiosk(options.video, pipeline, seconds=least, liveness=judges, progress=progress)
    more: dict[str, Any] = {"detector": options.detector.name}
    if not recording.interrupted:
        more |= time_stages(options.video, pipeline, options.liveness)
    return recording, {"kiosk": kiosk.model_copy(update=more)}


def _explain(
    explained: _Explained, loaded: LoadedModel, begin: Callable[[str], None], *, peak: Peak | bool, layers: bool
) -> None:
    """Time the layers and measure the peak, each by itself, so that neither affects the measurement."""
    try:
        if layers and loaded.settings.scenario != "search":
            begin("time layers")
            compiled, inputs = loaded.profiled()
            found = time_layers(compiled, inputs, inferences=_PROFILED)
            if isinstance(found, Unknown):
                explained.notes.append(f"layers: {found}")
            else:
                explained.layers = found
        if peak is True and loaded.settings.scenario != "search":
            begin("measure the peak")
            with watch() as watched:
                explained.peak = measure_peak(loaded.device, core=loaded.core)
            # A peak that is too low makes the efficiency too high.
            explained.disturbances = tuple(
                f"while the peak was measured, {reason}" for reason in watched.verdict.reasons
            )
        elif isinstance(peak, Peak):
            explained.peak = peak
    except KeyboardInterrupt:
        explained.interrupted = True


def _validity(
    recording: Recording, settings: RunSettings, options: ScenarioOptions, warmth: tuple[float, bool]
) -> Validity:
    scenario, latencies = settings.scenario, recording.latencies_ms
    percentile = options.percentile or PERCENTILES.get(scenario)
    early = None
    if percentile is not None:
        early = EarlyStopping(
            percentile=percentile,
            needed=queries_needed(percentile / 100),
            estimate_ms=early_stopping_estimate(np.sort(latencies), percentile / 100),
        )
    return Validity(
        duration_met=recording.wall_s >= (settings.duration_s or 0.0) and not recording.interrupted,
        count_met=len(recording) >= (settings.min_count or 0),
        warm_up_s=warmth[0],
        warmed_up=warmth[1],
        stationary=is_stationary(latencies) if scenario != "kiosk" else None,
        early_stopping=early,
    )
