"""Read and write the result of a run: one JSON document with every sample."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from edgeface.bench.machine.environment import Environment
from edgeface.bench.machine.peak import Peak
from edgeface.bench.reading import Frozen
from edgeface.bench.schema import (
    Execution,
    KioskResult,
    LayerTiming,
    ModelInfo,
    MultiStreamResult,
    Positive,
    ResultPart,
    RunSettings,
    SearchResult,
    ServerResult,
    Validity,
)
from edgeface.errors import InputError
from edgeface.files import write_atomically
from edgeface.stats import Interval, LatencyKey
from edgeface.untrusted import RESULT_BYTES, RESULT_SAMPLES, read_json

SCHEMA: Literal["edgeface.bench/3"] = "edgeface.bench/3"
"""Name and version of the document. A new version needs a step in `_MIGRATIONS`."""

FILE_NAME = "result.json"
"""What a run is called in its folder."""


class BenchmarkResult(ResultPart):
    """One run.

    Attributes
    ----------
    schema
        `SCHEMA`.
    created
        Start of the run: ISO 8601, UTC.
    edgeface
        Version of edgeface; None: another program measured, see `source`.
    source
        ``edgeface``, or the program that wrote an imported report.
    latency_ms, latency_interval_ms
        Latency of a query, with 95 % confidence intervals of the percentiles and of the mean.
    throughput_fps, throughput_interval
        Items per second.
    cpu_ms
        CPU time of the process per item, all threads.
    gflops
        10^9 operations per item, as Open Model Zoo counts; `gflops_per_second` is that times the throughput.
    efficiency
        2 x MAC x throughput over the attainable peak of the precision that executed. The peak is that of matrix
        products, so only they count.
    environment, peak
        None: not known, as in an imported report; `peak` also if it was not measured.
    layers
        In order of execution; empty if they were not timed.
    disturbed, disturbances
        Whether something else affected the figures, and what.
    unwatched
        What could not be watched on this machine, and why.
    partial
        Whether the run was interrupted.
    samples
        None: an imported report has none.
    """

    schema_: Literal["edgeface.bench/3"] = Field(default=SCHEMA, alias="schema")
    created: str
    edgeface: str | None
    source: str = "edgeface"
    model: ModelInfo
    environment: Environment | None
    settings: RunSettings
    execution: Execution
    validity: Validity | None = None
    latency_ms: dict[LatencyKey, Positive]
    latency_interval_ms: dict[LatencyKey, Interval] = Field(default_factory=dict)
    throughput_fps: Positive | None
    throughput_interval: Interval | None = None
    cpu_ms: Positive | None = None
    gflops: Positive | None = None
    gflops_per_second: Positive | None = None
    efficiency: Positive | None = None
    peak: Peak | None = None
    layers: tuple[LayerTiming, ...] = ()
    server: ServerResult | None = None
    multi_stream: MultiStreamResult | None = None
    kiosk: KioskResult | None = None
    search: SearchResult | None = None
    disturbed: bool | None
    disturbances: tuple[str, ...] = ()
    unwatched: tuple[str, ...] = ()
    partial: bool = False
    samples: Samples | None = None

    def __repr__(self) -> str:
        figures = {"p50": (self.latency_ms.get("p50"), " ms"), "throughput": (self.throughput_fps, "/s")}
        shown = "".join(f", {name} {value:.4g}{unit}" for name, (value, unit) in figures.items() if value)
        return f"BenchmarkResult({self.model.name}, {self.settings.scenario} on {self.settings.device}{shown})"

    def to_dict(self, *, samples: bool = True) -> dict[str, Any]:
        """Return every field as JSON types, with the raw samples unless `samples` is False."""
        return self.model_dump(mode="json", by_alias=True, exclude=None if samples else {"samples"})

    def write(self, folder: Path) -> Path:
        """Write folder/result.json atomically; OutputError if it cannot be written."""
        path = folder / FILE_NAME
        with write_atomically(path) as staged:
            staged.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> BenchmarkResult:
        """Read a result.json, or the one in a folder, of this schema version or an older one.

        Raises
        ------
        InputError
            If the file is absent, is not a result, or has a newer schema version.
        """
        file = path / FILE_NAME if path.is_dir() else path
        document = read_json(file, _WHAT, limit=RESULT_BYTES)
        return cls.from_dict(document, source=str(file))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, source: str = "result") -> BenchmarkResult:
        """Build a result from what `to_dict` returned, of this schema version or an older one.

        `source` is the name of the file in error messages. InputError is raised if it is not a result, and names
        the first field that is wrong.
        """
        try:
            return cls.model_validate(upgrade(document, source=source))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False)
            first = problems[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            found = repr(first["input"])
            what = f"{first['msg'].removeprefix('Value error, ')}, found {found[:77] + '...' if found[80:] else found}"
            if first["type"] == "missing":
                what = "this field is missing"
            raise InputError(f"{source}: {where}: {what}{more}") from error


Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts a document to the next schema version."""

_MIGRATIONS: Mapping[int, Migration] = {1: lambda document: document, 2: lambda document: document}
"""By the version that each converts from. 2 adds fields of the kiosk scenario, which a reader of 1 refuses; 3 what
`edgeface plan` needs, and the search scenario."""


def upgrade(
    document: Mapping[str, Any],
    *,
    source: str = "result",
    schema: str = SCHEMA,
    migrations: Mapping[int, Migration] = _MIGRATIONS,
) -> dict[str, Any]:
    """Convert a document of an older schema version to the current one; the document is not modified.

    `source` is the name of the file in error messages, `schema` and `migrations` the version to convert to and the
    steps to it. InputError is raised if the version is missing, newer or unknown.
    """
    name, _, current = schema.partition("/")
    found = document.get("schema") if isinstance(document, Mapping) else None
    kind, _, number = found.partition("/") if isinstance(found, str) else ("", "", "")
    if kind != name or not number.isascii() or not number.isdigit():
        raise InputError(f"{source}: expected a benchmark result with schema {schema!r}, found {found!r}")
    version, wanted = int(number), int(current)
    if version > wanted:
        raise InputError(
            f"{source}: expected {schema} or older, found {found}, which a newer edgeface wrote; update edgeface"
        )
    steps = range(version, wanted)
    if any(step not in migrations for step in steps):
        raise InputError(f"{source}: expected {schema}, found {found}, an unknown version")
    upgraded = dict(document)
    for step in steps:
        upgraded = {**migrations[step](upgraded), "schema": f"{name}/{step + 1}"}
    return upgraded


class Samples(Frozen):
    """Every query that was measured, in order of start.

    Attributes
    ----------
    count : int
        Number of queries.
    items : int
        Items of one query: the batch, or the samples of a MultiStream query.
    start_ns : str
        Nanoseconds from the start of the measurement to the start of each query, for the Server scenario to its
        scheduled arrival: differences from one to the next, int64 little-endian, zlib, base64.
    latency_ms : str
        Milliseconds from there to its completion: float32 little-endian (relative error 10^-7), zlib, base64.
    """

    count: Annotated[int, Field(ge=0, le=RESULT_SAMPLES)]
    items: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    start_ns: str
    latency_ms: str

    @model_validator(mode="after")
    def _check(self) -> Samples:
        latencies = self.latencies_ms
        if not np.isfinite(latencies).all() or (latencies < 0).any():
            raise ValueError("latencies must be finite and 0 or more")
        if (np.diff(self.starts_ns) < 0).any():
            raise ValueError("queries must be sorted by start time")
        return self

    @classmethod
    def pack(cls, starts_ns: NDArray[np.int64], latencies_ms: NDArray[np.floating], *, items: int = 1) -> Samples:
        """Sort queries by their starts, and compress them.

        `starts_ns`, (N,) int64, count from the start of the measurement; `latencies_ms`, (N,), are in the same
        order; a query has `items` items.
        """
        order = np.argsort(starts_ns, kind="stable")
        starts = np.asarray(starts_ns, np.int64)[order]
        return cls(
            count=len(starts),
            items=items,
            start_ns=_packed(np.diff(starts, prepend=0).astype("<i8")),
            latency_ms=_packed(np.asarray(latencies_ms)[order].astype("<f4")),
        )

    @property
    def starts_ns(self) -> NDArray[np.int64]:
        """(N,) int64, ascending: nanoseconds from the start of the measurement."""
        return np.cumsum(_unpacked(self.start_ns, "<i8", self.count), dtype=np.int64)

    @property
    def latencies_ms(self) -> NDArray[np.float64]:
        """(N,) float64, in the order of `starts_ns`."""
        return _unpacked(self.latency_ms, "<f4", self.count).astype(np.float64)

    @property
    def ends_s(self) -> NDArray[np.float64]:
        """(N,) float64, seconds from the start of the measurement to each completion, in the order of `starts_ns`."""
        return self.starts_ns * 1e-9 + self.latencies_ms * 1e-3


def _packed(array: NDArray[np.generic]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 6)).decode("ascii")


_WHAT = "a benchmark result in JSON, written by 'edgeface bench run -o DIR'"


def _unpacked(text: str, dtype: str, count: int) -> NDArray[np.generic]:
    size = count * np.dtype(dtype).itemsize
    try:
        inflate = zlib.decompressobj()
        # One byte more than announced is enough to know that there is too much, however much there is.
        content = inflate.decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise ValueError(f"not compressed samples: {error}") from error
    if len(content) != size or (size and not inflate.eof):
        raise ValueError(f"expected {count} samples, found {'more' if len(content) > size else 'fewer'}")
    return np.frombuffer(content, dtype)
