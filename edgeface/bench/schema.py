"""Define the parts of a benchmark result: model, settings, execution, and what each scenario adds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from edgeface.bench.reading import Frozen
from edgeface.stats import LatencyKey

Scenario = Literal["single-stream", "multi-stream", "server", "offline", "kiosk"]
Positive = Annotated[float, Field(ge=0)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(gt=0, lt=100)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ResultPart(Frozen):
    """Base of the parts of a result; numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class ModelInfo(ResultPart):
    """The model that was measured. None: not known, as in an imported report.

    Attributes
    ----------
    name
        The contract's, else the file's without its suffix.
    contract_id
        None: the model has no contract.
    digest
        SHA-256 over the bytes of the .xml and then the .bin, or of the .onnx.
    format
        Format of the file.
    precision
        What most of the MACs are stored as: ``FP32``, ``FP16``, ``INT8``; the contract's, if there is one.
    parameters
        Number of weights in the file.
    gflops, gflops_mac2
        10^9 operations per item, as Open Model Zoo counts and as 2 x MAC.
    int8_share
        Share of the MACs that the IR asks for in 8 bits.
    weight_bytes, activation_bytes
        See `edgeface.model.flops.Work`; activations of one item.
    inputs
        Shape of each input as executed, with the batch.
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
    """What was asked for. None: the device or `edgeface.bench.run.runner.DEFAULTS` decides.

    Attributes
    ----------
    scenario
        See `edgeface.bench.run.scenarios`.
    device
        As the caller wrote it.
    hint, precision, streams, requests, threads, extra
        See `edgeface.runtime.DevicePlan`.
    batch
        Batch size; None: the model's own, or 1.
    input_format
        Image format that the model was given, in words; None: the model's own input.
    end_to_end
        Whether crops went through `edgeface.runtime.Embedder`, copies in and out included.
    seed
        Random seed of inputs and arrivals.
    duration_s, min_count
        Minimum duration and number of queries; both have to be reached.
    max_duration_s
        Maximum duration, even if the number of queries is not reached.
    warm_up_s
        Maximum time to wait for stable latencies.
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
    """What ran, read back from the compiled model. None: the device does not tell.

    Attributes
    ----------
    devices, full_names
        OpenVINO's names and the makers'.
    precision
        Inference precision: ``f32``, ``bf16``, ``f16``; with ``+i8`` where layers executed in 8 bits.
    streams, requests, threads
        As compiled, and the infer requests in flight.
    affinity
        Whether threads were pinned to cores, and the cores that the process may use.
    notes
        What differs from `RunSettings`.
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
    """One layer as executed, measured in a separate pass: one inference at a time, on all threads.

    Attributes
    ----------
    name, kind, exec_type
        The runtime's names of the layer, its type and its kernel.
    ms
        Median wall time of `count` inferences.
    gflops
        10^9 operations, fused ones included, as Open Model Zoo counts; None: a layer that the runtime added.
    bytes
        Weights and activations that it reads and writes, in the types that the runtime stores them in.
    precision
        Inference precision.
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
    """MLPerf Inference's early-stopping rule for a percentile: `edgeface.stats.early_stopping_estimate`.

    Attributes
    ----------
    percentile
        0 to 100.
    needed
        Fewest queries for an estimate.
    estimate_ms
        Upper bound of the percentile with 99 % confidence; None: too few queries.
    """

    percentile: Percent
    needed: Whole
    estimate_ms: Positive | None


class Validity(ResultPart):
    """Whether the run was long enough and stable.

    Attributes
    ----------
    duration_met, count_met
        Whether the minimum duration and number of queries were reached.
    warm_up_s
        Duration of the warm-up.
    warmed_up
        Whether latencies were stable when the measurement began.
    stationary
        Whether they stayed stable; None: too few samples to tell.
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
    """One rate that was offered.

    Attributes
    ----------
    rate, achieved
        Queries per second that were scheduled, and that were completed.
    count
        Number of queries.
    latency_ms
        At the percentile, from the scheduled arrival.
    met
        Whether it is within the bound with 99 % confidence (early-stopping rule).
    ended_early
        Whether the trial ended because the bound could not be met any more.
    """

    rate: Positive
    achieved: Positive
    count: Whole
    latency_ms: Positive | None
    met: bool
    ended_early: bool = False


class ServerResult(ResultPart):
    """The highest rate of Poisson arrivals at which `percentile` per cent of the queries are within `bound_ms`.

    Attributes
    ----------
    rate
        Queries per second; None: no rate met the bound.
    tries
        Trials in their order.
    """

    bound_ms: Positive
    percentile: Percent
    rate: Positive | None
    tries: tuple[ServerTrial, ...]


class MultiStreamResult(ResultPart):
    """Queries of several samples (MLPerf's have 8); latency is that of a whole query."""

    samples_per_query: Annotated[int, Field(ge=1)]


class KioskResult(ResultPart):
    """A video at its own frame rate through detection, tracking and recognition.

    Attributes
    ----------
    frame_rate
        Frames per second of the video.
    frames, dropped
        Frames that were due, and those dropped because an earlier one was still waiting.
    faces
        Faces found in all frames that were processed.
    identities
        Tracks that got an embedding.
    time_to_identity_ms
        From the time a track's first frame was due to its first embedding; the latency of a frame is `latency_ms`.
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
