"""A model file and settings in, a result out: compiled, warmed up, measured while the machine is watched, explained."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from edgeface.bench.machine.disturbance import watch
from edgeface.bench.machine.environment import read_environment
from edgeface.bench.machine.peak import Peak, attainable_seconds, measure_peak
from edgeface.bench.machine.reading import Unknown
from edgeface.bench.result import BenchmarkResult, Samples
from edgeface.bench.run.benchmark_model import Shapes
from edgeface.bench.run.executed import (
    ExecutedLayer,
    describe_layers,
    has_eight_bit,
    time_layers,
)
from edgeface.bench.run.kiosk import VideoFile, run_kiosk
from edgeface.bench.run.load import LoadedModel, load
from edgeface.bench.run.load_generator import Progress, Recording, RunLimits
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
from edgeface.bench.schema import (
    EarlyStopping,
    Execution,
    KioskResult,
    MultiStreamResult,
    RunSettings,
    ServerResult,
    Validity,
)
from edgeface.errors import InputError
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.tracking import Tracker
from edgeface.runtime import DevicePlan, ImageFormat
from edgeface.stats import early_stopping_estimate, queries_needed, rate_interval, summarize
from edgeface.version import __version__
from edgeface.vision.detector import Detector

__all__ = [
    "DEFAULTS",
    "Extras",
    "Stage",
    "benchmark",
]

_log = logging.getLogger(__name__)

DEFAULTS = RunSettings(
    scenario="single-stream", device="CPU", seed=0, duration_s=20.0, max_duration_s=120.0, warm_up_s=10.0
)
"""What a run does unless told otherwise."""

_BELONGS: Mapping[str, tuple[str, ...]] = {
    "server": ("bound_ms", "percentile"),
    "multi-stream": ("samples_per_query",),
    "kiosk": ("film", "detector"),
}
"""Fields of `Extras` that one scenario takes, and no other may have."""

_PROFILED = 20
"""Inferences of the profile."""

Stage = Callable[[str], Progress | None]
"""Called with the name of each stage that begins; may answer with what is to be told how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What only some runs need.

    Attributes
    ----------
    plan
        In place of the settings' device, hint, precision, streams, requests and threads.
    shapes
        Of inputs that are dynamic.
    image_format
        What images the model is to take; needs a contract.
    bound_ms, percentile
        Of the Server scenario: the bound must be given, the percentile is 99 unless it is.
    samples_per_query
        Of MultiStreamResult; None: 8.
    film, detector
        Of the kiosk; the detector is not closed.
    peak
        What the device attains, if it is known; else whether to measure it.
    layers
        Whether to time the layers, in a pass of their own.
    identify
        Whether to tell host, user, folder and command line.
    """

    plan: DevicePlan | None = None
    shapes: Shapes | None = None
    image_format: ImageFormat | None = None
    bound_ms: float | None = None
    percentile: float | None = None
    samples_per_query: int | None = None
    film: VideoFile | None = None
    detector: Detector | None = None
    peak: Peak | bool = True
    layers: bool = True
    identify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Measured:
    """What a scenario came to."""

    recording: Recording
    server: ServerResult | None = None
    multi_stream: MultiStreamResult | None = None
    kiosk: KioskResult | None = None


@dataclass(slots=True)
class _Explained:
    """What was found out after the measurement, as far as it got."""

    layers: tuple[ExecutedLayer, ...] = ()
    peak: Peak | None = None
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    disturbances: tuple[str, ...] = ()


def benchmark(
    model: Path, settings: RunSettings = DEFAULTS, *, extras: Extras | None = None, stage: Stage | None = None
) -> BenchmarkResult:
    """Run one benchmark.

    Ctrl-C during the measurement ends it and gives what was measured, marked as partial; before that, it is raised.

    Parameters
    ----------
    model
        An .xml with its .bin beside it, or an .onnx.
    settings
        What to measure; None in a field of `DEFAULTS` that has a value there takes that.
    extras
        What only some runs need.
    stage
        Told what is being done.

    Raises
    ------
    InputError
        If the model or the settings are wrong, or contradict each other.
    DeviceError
        If the device is absent or cannot compile the model; nothing else is taken in its place.
    InferenceError
        If the device fails.
    """
    extras, tell = extras or Extras(), stage or (lambda name: None)

    def begin(name: str) -> Progress | None:
        _log.info("%s: %s", model.name, name)
        return tell(name)

    settings = _complete(settings, extras)
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    core = ov.Core()
    begin("load")
    loaded = load(
        model, settings, core=core, plan=extras.plan, shapes=extras.shapes, image_format=extras.image_format
    )
    with loaded:
        begin("warm up")
        alone = settings.scenario in ("single-stream", "kiosk")
        warmth = warm_up(loaded.target, alone=alone, longest_s=settings.warm_up_s or 0.0)
        with watch() as watched:
            measured = _measure(loaded, settings, extras, begin("measure"))
        explained = _explain(loaded, extras, begin, interrupted=measured.recording.interrupted)
        environment = read_environment(watched.snapshots, core=core, identify=extras.identify)
    recording, disturbances = measured.recording, (*watched.verdict.reasons, *explained.disturbances)
    result = BenchmarkResult(
        created=created,
        edgeface=__version__,
        model=loaded.benchmark_model.info,
        environment=environment,
        settings=loaded.settings,
        execution=_execution(loaded, explained),
        validity=_validity(recording, loaded.settings, extras, warmth),
        latency_ms={},
        throughput_fps=None,
        peak=explained.peak,
        layers=describe_layers(explained.layers, loaded.benchmark_model.work, inferences=_PROFILED),
        server=measured.server,
        multi_stream=measured.multi_stream,
        kiosk=measured.kiosk,
        disturbed=bool(disturbances),
        disturbances=disturbances,
        unwatched=watched.verdict.unwatched,
        partial=recording.interrupted or explained.interrupted,
        samples=Samples.pack(recording.starts_ns, recording.latencies_ms, items=recording.items),
    )
    return result.model_copy(update=_figures(loaded, measured, explained)) if len(recording) else result


def _figures(loaded: LoadedModel, measured: _Measured, explained: _Explained) -> dict[str, Any]:
    """Everything that is computed from the samples."""
    recording, benchmark_model = measured.recording, loaded.benchmark_model
    items = recording.items
    estimates, intervals = summarize(recording.latencies_ms)
    throughput = recording.items_per_second
    figures: dict[str, Any] = {
        "latency_ms": estimates,
        "latency_interval_ms": intervals,
        "throughput_fps": throughput,
        "cpu_ms": 1e3 * recording.cpu_s / (len(recording) * items),
        "gflops": benchmark_model.info.gflops,
    }
    if measured.kiosk is not None:  # a frame is not an inference of this model
        return figures
    low, high = rate_interval(recording.ends_s)
    figures["throughput_interval"] = (low and low * items, high and high * items)
    if benchmark_model.info.gflops is not None:
        figures["gflops_per_second"] = benchmark_model.info.gflops * throughput
    if explained.peak is not None:
        precision = loaded.execution.precision
        least = attainable_seconds(
            benchmark_model.work, explained.peak, explained.layers, precision=precision
        )
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


def _complete(settings: RunSettings, extras: Extras) -> RunSettings:
    """Fill in defaults, and refuse what does not go together."""
    scenario = settings.scenario
    for owner, names in _BELONGS.items():
        strange = [name for name in names if owner != scenario and getattr(extras, name) is not None]
        if strange:
            raise InputError(
                f"{scenario}: expected no {strange[0].replace('_', ' ')}, which is of the scenario {owner}; choose "
                "that, or leave it out"
            )
    given = {name: getattr(DEFAULTS, name) for name in ("seed", "duration_s", "warm_up_s")}
    missing = {name: value for name, value in given.items() if getattr(settings, name) is None}
    if settings.min_count is None:
        missing["min_count"] = minimum_count(scenario, extras.percentile)
    settings = settings.model_copy(update=missing)
    least, most = settings.duration_s or 0.0, settings.max_duration_s
    if most is None:
        settings = settings.model_copy(update={"max_duration_s": max(least, DEFAULTS.max_duration_s or 0.0)})
    elif most < least:
        raise InputError(
            f"expected a longest duration of at least the duration, {least:g} s, found {most:g} s"
        )
    if scenario == "server" and not extras.bound_ms:
        raise InputError("server: expected a bound on the latency in milliseconds, found none")
    if extras.percentile is not None and not 0 < extras.percentile < 100:
        raise InputError(f"server: expected a percentile between 0 and 100, found {extras.percentile}")
    if scenario == "kiosk" and (extras.film is None or extras.detector is None):
        raise InputError("kiosk: expected a video and a detector, found none")
    if scenario == "kiosk" and (extras.image_format or settings.batch not in (None, 1)):
        raise InputError(
            "kiosk: the pipeline makes its own crops, one at a time; leave input format and batch out"
        )
    if extras.samples_per_query is not None and extras.samples_per_query < 1:
        raise InputError(f"multi-stream: expected 1 sample a query or more, found {extras.samples_per_query}")
    return settings.model_copy(update={"end_to_end": settings.end_to_end or scenario == "kiosk"})


def _measure(
    loaded: LoadedModel, settings: RunSettings, extras: Extras, progress: Progress | None
) -> _Measured:
    assert settings.duration_s is not None and settings.min_count is not None  # noqa: PT018
    limits = RunLimits(
        duration_s=settings.duration_s,
        min_count=settings.min_count,
        max_duration_s=settings.max_duration_s or settings.duration_s,
    )
    target = loaded.target
    if settings.scenario == "single-stream":
        return _Measured(recording=single_stream(target, limits, progress))
    if settings.scenario == "offline":
        return _Measured(recording=offline(target, limits, progress))
    if settings.scenario == "multi-stream":
        recording = multi_stream(target, limits, progress, samples=extras.samples_per_query or 8)
        return _Measured(
            recording=recording, multi_stream=MultiStreamResult(samples_per_query=recording.items)
        )
    if settings.scenario == "server":
        assert extras.bound_ms is not None
        server, recording = find_rate(
            target,
            limits,
            bound_ms=extras.bound_ms,
            percentile=extras.percentile or PERCENTILES["server"],
            seed=settings.seed or 0,
            progress=progress,
        )
        return _Measured(recording=recording, server=server)
    assert extras.film is not None and loaded.embedder is not None  # noqa: PT018
    pipeline = Pipeline(extras.detector, loaded.embedder, tracker=Tracker(), prefetch=1)
    kiosk, recording = run_kiosk(extras.film, pipeline, seconds=settings.duration_s, progress=progress)
    return _Measured(recording=recording, kiosk=kiosk)


def _explain(loaded: LoadedModel, extras: Extras, stage: Stage, *, interrupted: bool) -> _Explained:
    """Time the layers and measure the peak, each by itself, so that neither has a share in the measurement."""
    explained = _Explained(interrupted=interrupted)
    if interrupted:
        return explained
    try:
        if extras.layers:
            stage("time layers")
            compiled, inputs = loaded.profiled()
            found = time_layers(compiled, inputs, inferences=_PROFILED)
            if isinstance(found, Unknown):
                explained.notes.append(f"layers: {found}")
            else:
                explained.layers = found
        if extras.peak is True:
            stage("measure the peak")
            with watch() as watched:
                explained.peak = measure_peak(loaded.device, core=loaded.core)
            # A peak that is too low makes the efficiency too high.
            explained.disturbances = tuple(
                f"while the peak was measured, {reason}" for reason in watched.verdict.reasons
            )
        elif extras.peak:
            explained.peak = extras.peak
    except KeyboardInterrupt:
        explained.interrupted = True
    return explained


def _validity(
    recording: Recording, settings: RunSettings, extras: Extras, warmth: tuple[float, bool]
) -> Validity:
    scenario, latencies = settings.scenario, recording.latencies_ms
    percentile = extras.percentile or PERCENTILES.get(scenario)
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
