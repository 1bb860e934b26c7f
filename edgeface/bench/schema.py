"""Define the parts of a benchmark result: model, settings, execution, and what each scenario adds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from edgeface.bench.reading import Frozen
from edgeface.model.contract import Provenance
from edgeface.stats import LatencyKey

Scenario = Literal["single-stream", "multi-stream", "server", "offline", "kiosk", "search"]
Positive = Annotated[float, Field(ge=0)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(gt=0, lt=100)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ResultPart(Frozen):
    """Base of the parts of a result; numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class ModelInfo(ResultPart):
    """The model that was measured. None: not known, as in an imported report."""

    name: str  # The contract's, else the file's without its suffix
    contract_id: str | None = None  # None: the model has no contract
    provenance: Provenance | None = None  # Of its weights, as the contract says
    digest: Digest | None = None  # SHA-256 over the bytes of the .xml and then the .bin, or of the .onnx
    format: Literal["ir", "onnx"] | None = None  # Format of the file
    # What most of the MACs are stored as: ``FP32``, ``FP16``, ``INT8``; the contract's, if there is one
    precision: str | None = None
    parameters: Whole | None = None  # Number of weights in the file
    # 10^9 operations per item, as Open Model Zoo counts and as 2 x MAC
    gflops: Positive | None = None
    gflops_mac2: Positive | None = None
    int8_share: Share | None = None  # Share of the MACs that the IR asks for in 8 bits
    # See `edgeface.model.flops.Work`; activations of one item
    weight_bytes: Whole | None = None
    activation_bytes: Whole | None = None
    inputs: dict[str, tuple[int, ...]]  # Shape of each input as executed, with the batch
    uncounted: tuple[str, ...] = ()  # Kinds of operations that `gflops` leaves out


class RunSettings(ResultPart):
    """What was asked for. None: the device or `edgeface.bench.run.runner.DEFAULTS` decides."""

    scenario: Scenario  # See `edgeface.bench.run.scenarios`
    device: str  # As the caller wrote it
    # See `edgeface.runtime.DevicePlan`
    hint: str | None = None
    precision: str | None = None
    streams: int | None = None
    requests: int | None = None
    threads: int | None = None
    batch: Annotated[int, Field(ge=1)] | None = None  # Batch size; None: the model's own, or 1
    input_format: str | None = None  # Image format that the model was given, in words; None: the model's own input
    end_to_end: bool = False  # Whether crops went through `edgeface.runtime.Embedder`, copies in and out included
    seed: int | None = None  # Random seed of inputs and arrivals
    # Minimum duration and number of queries; both have to be reached
    duration_s: Positive | None = None
    min_count: Whole | None = None
    max_duration_s: Positive | None = None  # Maximum duration, even if the number of queries is not reached
    warm_up_s: Positive | None = None  # Maximum time to wait for stable latencies
    extra: dict[str, str | int | float | bool] = Field(default_factory=dict)


class Execution(ResultPart):
    """What ran, read back from the compiled model. None: the device does not tell."""

    # OpenVINO's names and the makers'
    devices: tuple[str, ...]
    full_names: tuple[str, ...]
    # Inference precision: ``f32``, ``bf16``, ``f16``; with ``+i8`` where layers executed in 8 bits
    precision: str | None = None
    # As compiled, and the infer requests in flight
    streams: int | None = None
    requests: int | None = None
    threads: int | None = None
    affinity: str | None = None  # Whether threads were pinned to cores, and the cores that the process may use
    notes: tuple[str, ...] = ()  # What differs from `RunSettings`


class LayerTiming(ResultPart):
    """One layer as executed, measured in a separate pass: one inference at a time, on all threads."""

    # The runtime's names of the layer, its type and its kernel
    name: str
    kind: str
    exec_type: str
    ms: Positive  # Median wall time of `count` inferences
    count: Whole
    # 10^9 operations, fused ones included, as Open Model Zoo counts; None: a layer that the runtime added
    gflops: Positive | None
    # Weights and activations that it reads and writes, in the types that the runtime stores them in
    bytes: Whole | None
    precision: str | None  # Inference precision


class EarlyStopping(ResultPart):
    """MLPerf Inference's early-stopping rule for a percentile: `edgeface.stats.early_stopping_estimate`."""

    percentile: Percent  # 0 to 100
    needed: Whole  # Fewest queries for an estimate
    estimate_ms: Positive | None  # Upper bound of the percentile with 99 % confidence; None: too few queries


class Validity(ResultPart):
    """Whether the run was long enough and stable."""

    # Whether the minimum duration and number of queries were reached
    duration_met: bool
    count_met: bool
    warm_up_s: Positive  # Duration of the warm-up
    warmed_up: bool  # Whether latencies were stable when the measurement began
    stationary: bool | None  # Whether they stayed stable; None: too few samples to tell
    early_stopping: EarlyStopping | None  # Of the scenario's percentile


class ServerTrial(ResultPart):
    """One rate that was offered."""

    # Queries per second that were scheduled, and that were completed
    rate: Positive
    achieved: Positive
    count: Whole  # Number of queries
    latency_ms: Positive | None  # At the percentile, from the scheduled arrival
    met: bool  # Whether it is within the bound with 99 % confidence (early-stopping rule)
    ended_early: bool = False  # Whether the trial ended because the bound could not be met any more


class ServerResult(ResultPart):
    """The highest rate of Poisson arrivals at which `percentile` per cent of the queries are within `bound_ms`."""

    bound_ms: Positive
    percentile: Percent
    rate: Positive | None  # Queries per second; None: no rate met the bound
    tries: tuple[ServerTrial, ...]  # Trials in their order


class MultiStreamResult(ResultPart):
    """Queries of several samples (MLPerf's have 8); latency is that of a whole query."""

    samples_per_query: Annotated[int, Field(ge=1)]


class SearchResult(ResultPart):
    """A gallery that was made, searched for the two most similar people; a query is one probe."""

    # Templates in the gallery, and the people whom they show
    templates: Annotated[int, Field(ge=1)]
    people: Annotated[int, Field(ge=1)]
    storage: str  # See `edgeface.bench.run.search.make_index`
    dim: Annotated[int, Field(ge=1)]  # Values of an embedding
    index_bytes: Whole  # Memory of the index, embeddings included
    build_cpu_s: Positive  # CPU time of making the index
    found: Share  # Share of the probes whose person was found first


Stage = Literal["decode", "convert", "motion", "detect", "follow", "embed", "liveness"]


class KioskResult(ResultPart):
    """A video at a camera's frame rate through detection, tracking and recognition."""

    frame_rate: Positive  # Frames per second
    detector: str | None = None  # Its name; None: unknown
    # Frames that were due, and those dropped because an earlier one was still waiting
    frames: Whole
    dropped: Whole
    # Frames in which faces were detected, were followed from the one before, and in which nothing moved; None: unknown
    detected: Whole | None = None
    tracked: Whole | None = None
    skipped: Whole | None = None
    faces: Whole  # Faces found in all frames that were processed
    identities: Whole  # Tracks that got an embedding
    # From the time a track's first usable frame was due to its first embedding, and that of each track; the latency of
    # a frame is `latency_ms`
    time_to_identity_ms: dict[LatencyKey, Positive] = Field(default_factory=dict)
    identity_ms: tuple[Positive, ...] = ()
    # The same to three looks, each of them live where that is judged, or to a spoof
    liveness: bool = False
    decisions: Whole | None = None
    spoofs: Whole | None = None
    time_to_decision_ms: dict[LatencyKey, Positive] = Field(default_factory=dict)
    decision_ms: tuple[Positive, ...] = ()
    embeddings: Whole | None = None  # Looks: crops that were embedded
    # CPU time, milliseconds, of one frame, or for `embed` and `liveness` of one look, of each stage alone, measured
    # after the run: `edgeface.bench.run.kiosk.time_stages`; empty: not measured
    stage_ms: dict[Stage, Positive] = Field(default_factory=dict)
    frame_size: tuple[Whole, Whole] | None = None  # Height and width
    # Memory of the process after the run, and what each further camera adds for decoding
    resident_bytes: Whole | None = None
    camera_bytes: Whole | None = None
    cpu_parts_ms: tuple[Positive, ...] = ()  # CPU time a frame in each of equal parts of the run, in their order
    video_digest: Digest | None = None  # SHA-256 of the file

    @property
    def dropped_share(self) -> float:
        """Share of the frames that were dropped."""
        return self.dropped / self.frames if self.frames else 0.0
