"""The parts of a result: what ran, how it was asked to and how it did, and what each scenario adds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from edgeface.bench.machine.reading import Frozen
from edgeface.stats import LatencyKey

Scenario = Literal["single-stream", "multi-stream", "server", "offline", "kiosk"]
LATENCY_KEYS: tuple[LatencyKey, ...] = ("p50", "p90", "p95", "p99", "p99.9", "mean", "min", "max")
"""Ends of a 95 % confidence interval; None: there are too few samples to bound it on that side."""

Positive = Annotated[float, Field(ge=0)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ResultPart(Frozen):
    """Of a result; its numbers are numbers."""

    model_config = ConfigDict(allow_inf_nan=False)


class ModelInfo(ResultPart):
    """What was measured. None: not known, as in what was imported.

    Attributes
    ----------
    name
        The contract's, else the file's without its suffix.
    contract_id
        None: the model has no contract.
    digest
        SHA-256 over the bytes of the .xml and then the .bin, or of the .onnx.
    format
        Of the file.
    precision
        What most of the MACs are stored as: ``FP32``, ``FP16``, ``INT8``; the contract's, if there is one.
    parameters
        Values that the file stores as weights.
    gflops
        10^9 operations for one item, in Open Model Zoo's way of counting.
    gflops_mac2
        The same, 2 x MAC.
    int8_share
        Share of the MACs that the IR asks for in 8 bits.
    weight_bytes, activation_bytes
        As `edgeface.model.flops.Work` says; activations of one item.
    inputs
        Shape of each input as it was executed, with the batch.
    uncounted
        Kinds of operations that `gflops` leaves out.
    """

    name: str
    contract_id: str | None
    digest: Digest | None
    format: Literal["ir", "onnx"] | None
    precision: str | None
    parameters: Whole | None
    gflops: Positive | None
    gflops_mac2: Positive | None
    int8_share: Share | None
    weight_bytes: Whole | None
    activation_bytes: Whole | None
    inputs: dict[str, tuple[int, ...]]
    uncounted: tuple[str, ...] = ()


class RunSettings(ResultPart):
    """What was asked for. None: left to the device or to the harness.

    Attributes
    ----------
    scenario
        See `edgeface.bench.run.scenarios`.
    device
        As the caller wrote it.
    hint, precision, streams, requests, threads
        As in `edgeface.runtime.DevicePlan`.
    batch
        Items of one inference; None: the model's own, or 1.
    input_format
        What images the model was given, as words; None: what the model itself takes.
    end_to_end
        Whether images went through `edgeface.runtime.Embedder`, copies in and out included.
    seed
        Of inputs and arrivals.
    duration_s, min_count
        Both were to be reached.
    max_duration_s
        At which a run ends in any case.
    warm_up_s
        At most this long it was waited for times to become stable.
    extra
        Further OpenVINO properties.
    """

    scenario: Scenario
    device: str
    hint: str | None = None
    precision: str | None = None
    streams: int | None = None
    requests: int | None = None
    threads: int | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    input_format: str | None = None
    end_to_end: bool = False
    seed: int | None = None
    duration_s: Positive | None = None
    min_count: Whole | None = None
    max_duration_s: Positive | None = None
    warm_up_s: Positive | None = None
    extra: dict[str, str | int | float | bool] = Field(default_factory=dict)


class Execution(ResultPart):
    """What really ran, read back from the compiled model. None: the device does not say.

    Attributes
    ----------
    devices, full_names
        By OpenVINO's name and by the maker's.
    precision
        Of the arithmetic: ``f32``, ``bf16``, ``f16``; with ``+i8`` where layers were seen to execute in 8 bits.
    streams, requests, threads
        As compiled, and the infer requests that were in flight.
    affinity
        Whether threads were pinned to cores; and the cores that the process might use.
    notes
        What differs from `Settings`.
    """

    devices: tuple[str, ...]
    full_names: tuple[str, ...]
    precision: str | None
    streams: int | None
    requests: int | None
    threads: int | None
    affinity: str | None
    notes: tuple[str, ...] = ()


class LayerTiming(ResultPart):
    """One layer as it executed, measured in a pass of its own: one inference of a batch at a time, on all threads.

    Attributes
    ----------
    name, kind, exec_type
        The runtime's names of the layer, its type and its kernel.
    ms
        Median wall time.
    count
        Inferences that the median is of.
    gflops
        10^9 operations of what was fused into it, Open Model Zoo's way; None: the layer is the runtime's own.
    bytes
        Weights and activations that it reads and writes, in the types that the runtime stores them in.
    precision
        Of its arithmetic.
    """

    name: str
    kind: str
    exec_type: str
    ms: Positive
    count: Whole
    gflops: Positive | None
    bytes: Whole | None
    precision: str | None


class EarlyStopping(ResultPart):
    """MLPerf Inference's rule for a percentile: `edgeface.stats.early_stopping`.

    Attributes
    ----------
    percentile
        0 to 100.
    needed
        Queries below which nothing can be said.
    estimate_ms
        With 99 % confidence the percentile is not above it; None: too few queries.
    """

    percentile: Annotated[float, Field(gt=0, lt=100)]
    needed: Whole
    estimate_ms: Positive | None


class Validity(ResultPart):
    """Whether the run was long enough for what it says.

    Attributes
    ----------
    duration_met, count_met
        Minimum duration and count.
    warm_up_s
        How long it was warmed up.
    warmed_up
        Whether times were stable when measuring began.
    stationary
        Whether they stayed so; None: too few samples to tell.
    early_stopping
        Of the scenario's percentile.
    """

    duration_met: bool
    count_met: bool
    warm_up_s: Positive
    warmed_up: bool
    stationary: bool | None
    early_stopping: EarlyStopping | None


class ServerTrial(ResultPart):
    """One offered rate.

    Attributes
    ----------
    rate
        Queries a second that were scheduled.
    achieved
        Queries a second that were completed.
    count
        Queries.
    latency_ms
        At the percentile, from the scheduled arrival.
    met
        Whether it is within the bound by the early-stopping rule, that is with 99 % confidence.
    ended_early
        Whether it was given up because the bound could not be met any more.
    """

    rate: Positive
    achieved: Positive
    count: Whole
    latency_ms: Positive | None
    met: bool
    ended_early: bool = False


class ServerResult(ResultPart):
    """The highest rate of Poisson arrivals that meets a bound.

    Attributes
    ----------
    bound_ms, percentile
        What must hold: `percentile` per cent of the queries within `bound_ms`.
    rate
        Queries a second; None: no rate that was tried met it.
    tries
        In the order in which they were made.
    """

    bound_ms: Positive
    percentile: Annotated[float, Field(gt=0, lt=100)]
    rate: Positive | None
    tries: tuple[ServerTrial, ...]


class MultiStreamResult(ResultPart):
    """Queries of several samples; latency is that of a whole query.

    Attributes
    ----------
    samples_per_query
        MLPerf's is 8.
    """

    samples_per_query: Annotated[int, Field(ge=1)]


class KioskResult(ResultPart):
    """A video at its own frame rate through detection, tracking and recognition.

    Attributes
    ----------
    frame_rate
        Of the video, frames a second.
    frames, dropped
        That were due, and those that came while an earlier one was still waiting.
    faces
        Sights of a face in frames that were processed.
    identities
        Tracks that got an embedding.
    time_to_identity_ms
        From the moment a track's first frame was due to its first embedding; latency of a frame is `latency_ms`.
    video_digest
        SHA-256 of the file.
    """

    frame_rate: Positive
    frames: Whole
    dropped: Whole
    faces: Whole
    identities: Whole
    time_to_identity_ms: dict[LatencyKey, Positive] = Field(default_factory=dict)
    video_digest: Digest | None = None
