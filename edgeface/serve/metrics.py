"""Measure the service for Prometheus: names by its conventions, base units, and never a person in a label."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from edgeface.errors import EdgeFaceError, ExtraNotInstalledError
from edgeface.runtime.counters import LatencyHistogram
from edgeface.serve.doors import EventSource
from edgeface.serve.routing import Measures
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings
from edgeface.serve.work import WorkQueue
from edgeface.version import __version__

if TYPE_CHECKING:
    from edgeface.serve.telemetry import RequestTracer

router = APIRouter(tags=["health"])
_log = logging.getLogger("edgeface.serve")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Upper bounds of OpenTelemetry's http.server.request.duration."""
_EVERY = 8
"""Of the engine's buckets, a quarter of an octave each, one is shown: a factor of four."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def choose_request_id(given: str) -> str:
    """Return the id that a client gave its request, if it can stand in a log; else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def start_telemetry(settings: Settings) -> RequestTracer | None:
    """Return what tells the collector of the configuration of each request; None if it names none.

    Raises ExtraNotInstalledError without the extra.
    """
    if settings.telemetry.endpoint is None:
        return None
    try:
        from edgeface.serve.telemetry import RequestTracer
    except ImportError as error:
        raise ExtraNotInstalledError("otel", needed_for="telemetry.endpoint") from error
    return RequestTracer(settings.telemetry.endpoint)


class Metrics:
    """The metrics of one service, in a registry of their own; `telemetry` is told of each request, too."""

    def __init__(
        self,
        service: Service,
        work: WorkQueue,
        telemetry: RequestTracer | None = None,
        doors: EventSource | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._service, self._work, self._telemetry, self._doors = service, work, telemetry, doors
        self._requests = Counter(
            "edgeface_requests_total", "Requests answered.", ["endpoint", "code"], registry=self.registry
        )
        self._seconds = Histogram(
            "edgeface_request_duration_seconds",
            "From a request's headers to its answer's end.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge("edgeface_requests_in_flight", "Requests under way.", registry=self.registry)
        self.registry.register(self)

    def begin(self, traceparent: str) -> None:
        """Count a request that has come; `end` is called in the same task. The header names a span of the client."""
        self._in_flight.inc()
        if self._telemetry is not None:
            self._telemetry.begin(traceparent)

    def end(
        self, request_id: str, method: str, route: str, status: int, began: float, received: int, *, known: bool
    ) -> None:
        """Count a request, and write one line of it: no name of a person, and no query; `route` is its template.

        Of a client that asks too often, or that is not `known` by a key, the metrics tell enough: it shall not fill
        the disk. What is refused for its key is logged as often as it is told so.
        """
        seconds = time.monotonic() - began
        self._in_flight.dec()
        if self._telemetry is not None:
            self._telemetry.end(method, route, status, request_id)
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        line = {"request_id": request_id, "method": method, "route": route, "status": status}
        level = logging.INFO if (known or status == 401 or status >= 500) and status != 429 else logging.DEBUG
        _log.log(level, "request", extra=line | {"seconds": round(seconds, 4), "bytes": received})

    def collect(self) -> Iterator[Metric]:
        """Read what others count: the queue, the engines and the galleries; called by the registry."""
        yield GaugeMetricFamily("edgeface_queue_requests", "Requests computed or waiting.", self._work.outstanding)
        refused = CounterMetricFamily("edgeface_queue_refused", "Requests refused: the queue was full.")
        refused.add_metric([], self._work.refused)
        yield refused
        yield _histogram("edgeface_queue_wait_seconds", "Until a thread was free.", [((), self._work.waits)], ())
        info = GaugeMetricFamily(
            "edgeface_build_info", "What runs.", labels=["version", "openvino", "model", "contract_id"]
        )
        inferences: list[tuple[tuple[str, ...], LatencyHistogram]] = []
        for name in self._service.models.names():
            with self._service.models.use(name) as model:
                info.add_metric([__version__, _openvino(), name, model.contract.contract_id], 1)
                device = self._service.settings.models[name].device
                inferences.append(((name, device), model.analyzer.embedder.counters().latency))
        yield info
        yield _histogram(
            "edgeface_inference_duration_seconds", "Of one crop, with waiting.", inferences, ("model", "device")
        )
        outcomes = CounterMetricFamily("edgeface_identifications", "Faces that were identified.", labels=["outcome"])
        for verdict, count in self._service.outcomes.items():
            outcomes.add_metric([verdict.value], count)
        yield outcomes
        jobs = GaugeMetricFamily("edgeface_jobs", "Jobs that wait or run.", labels=["state"])
        for state, number in self._service.jobs.count().items():
            jobs.add_metric([state], number)
        yield jobs
        photos = CounterMetricFamily("edgeface_job_photos", "Photos of jobs.", labels=["outcome"])
        for outcome, number in self._service.jobs.photos.items():
            photos.add_metric([outcome], number)
        yield photos
        expired = GaugeMetricFamily("edgeface_consents_expired", "Consents that have expired.", labels=["gallery"])
        for name, number in self._service.expired.items():
            expired.add_metric([name], number)
        yield expired
        forgotten = CounterMetricFamily("edgeface_people_forgotten_expired", "People forgotten when consent expired.")
        forgotten.add_metric([], self._service.forgotten_expired)
        yield forgotten
        templates = GaugeMetricFamily("edgeface_gallery_templates", "Templates.", labels=["gallery"])
        for name, gallery in self._service.galleries.items():
            with contextlib.suppress(EdgeFaceError):  # away or replaced: the rest is as worth knowing
                templates.add_metric([name], len(gallery.index))
        yield templates
        yield from _measure_snapshots(self._service)
        if self._doors is not None and self._doors.gallery is not None:
            yield from _measure_doors(self._doors)

    def describe(self) -> list[Metric]:
        """Return nothing: what `collect` yields is read when it is asked for, not when it is registered."""
        return []


def _measure_snapshots(service: Service) -> Iterator[Metric]:
    """Read how old the snapshots of galleries are, and what waits for their servers."""
    age = GaugeMetricFamily("edgeface_gallery_snapshot_age_seconds", "Since its server answered.", labels=["gallery"])
    most = GaugeMetricFamily("edgeface_gallery_snapshot_limit_seconds", "Oldest that answers.", labels=["gallery"])
    queued = GaugeMetricFamily("edgeface_gallery_queue", "Asked while it was away.", labels=["gallery", "state"])
    for name, gallery in service.galleries.items():
        if (keeper := gallery.keeper) is None:
            continue
        seconds = keeper.seconds()
        age.add_metric([name], float("inf") if seconds is None else seconds)
        most.add_metric([name], 3600 * keeper.options.max_age_hours)
        with contextlib.suppress(EdgeFaceError):
            counts = keeper.queue.count()
            for state in ("queued", "conflict", "erased"):
                queued.add_metric([name, state], counts[state])
    yield from (age, most, queued)


def _measure_doors(doors: EventSource) -> Iterator[Metric]:
    """Read how the cameras are, what was decided before them, and what is still to be told of it."""
    yield GaugeMetricFamily("edgeface_kiosk_open", "Cameras are watched and events recorded.", int(not doors.closed))
    cameras, label = doors.cameras(), ["camera"]
    up = GaugeMetricFamily("edgeface_camera_up", "Pictures come, and change.", labels=label)
    state = GaugeMetricFamily("edgeface_camera_state", "1 for the state it is in.", labels=["camera", "state"])
    age = GaugeMetricFamily("edgeface_camera_last_frame_age_seconds", "Since its newest frame.", labels=label)
    for name, camera in cameras.items():
        up.add_metric([name], int(camera["state"] == "connected"))
        for each in ("connected", "frozen", "lost"):
            state.add_metric([name, each], int(camera["state"] == each))
        if camera["age"] is not None:
            age.add_metric([name], camera["age"])
    yield from (up, state, age)
    for metric, field, text in (
        ("frames", "analyzed", "Frames in which faces were looked for."),
        ("dropped_frames", "dropped", "Frames that newer ones replaced."),
        ("reconnects", "reconnects", "Times that it was opened again."),
        ("freezes", "freezes", "Times that its picture froze."),
    ):
        counted = CounterMetricFamily(f"edgeface_camera_{metric}", text, labels=label)
        for name, camera in cameras.items():
            counted.add_metric([name], camera[field])
        yield counted
    decisions = CounterMetricFamily("edgeface_camera_decisions", "Decisions recorded.", labels=["camera", "kind"])
    for (name, kind), count in doors.decisions.items():
        decisions.add_metric([name, kind], count)
    waiting = GaugeMetricFamily("edgeface_events_undelivered", "Events still to be told.", labels=["target"])
    dead = GaugeMetricFamily("edgeface_events_dead", "Events that are not told any more.", labels=["target"])
    with contextlib.suppress(EdgeFaceError):  # the log is away: the rest is as worth knowing
        for target, counts in doors.outbox().items():
            waiting.add_metric([target], counts[0])
            dead.add_metric([target], counts[1])
    yield from (decisions, waiting, dead)


def _openvino() -> str:
    import openvino

    return str(openvino.get_version())


def _histogram(
    name: str, text: str, values: list[tuple[tuple[str, ...], LatencyHistogram]], labels: tuple[str, ...]
) -> Metric:
    family = HistogramMetricFamily(name, text, labels=labels)
    for given, latency in values:
        buckets, seen = [], 0
        for bucket, count in enumerate(latency.counts):
            seen += count
            if bucket % _EVERY == _EVERY - 1:
                buckets.append((f"{latency.upper_bound(bucket):.6g}", seen))
        family.add_metric([*given], [*buckets, ("+Inf", seen)], latency.total_seconds)
    return family


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "All metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request, caller: Measures) -> Response:
    """Return all metrics in the text format of Prometheus."""
    measured: Any = request.app.state.metrics
    return Response(await asyncio.to_thread(generate_latest, measured.registry), media_type=CONTENT_TYPE_LATEST)
