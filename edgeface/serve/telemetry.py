"""Tell an OpenTelemetry collector of each request: one span, with one for each wait in the queue and each computation.

A span has the route's template, the status and the request id: no path, query, address, key, image or person. It is
imported, with the extra ``otel``, only where the configuration names a collector.
"""

from __future__ import annotations

import contextvars
import threading
import time
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from edgeface.version import __version__

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_EXPORT_SECONDS = 5
_FLUSH_SECONDS = 2.0
"""For what was not sent yet when the service stops."""


class RequestTracer:
    """Sends spans from a thread of its own, in batches; what a collector does not take is dropped, never waited for.

    Each request calls `begin` and `end` in one task, and `waited` in that one or in tasks that it began.

    Parameters
    ----------
    endpoint
        Of OTLP over HTTP, e.g. ``http://127.0.0.1:4318/v1/traces``. The SDK's environment variables hold for the rest,
        e.g. OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS.
    """

    def __init__(self, endpoint: str) -> None:
        named = Resource.create({"service.name": "edgeface", "service.version": __version__})
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("edgeface.serve", __version__)
        self._parents = TraceContextTextMapPropagator()
        self._span: contextvars.ContextVar[Any] = contextvars.ContextVar("edgeface_span", default=None)

    def begin(self, traceparent: str) -> None:
        """Begin the span of a request, below the one that its header of W3C Trace Context names."""
        parent = self._parents.extract({"traceparent": traceparent}, Context())
        self._span.set(self._tracer.start_span("request", parent, SpanKind.SERVER))

    def waited(self, asked: float, began: float | None, ended: float) -> None:
        """Tell how long a request waited for a thread, and for the result; `began` None: it was never computed.

        Times are those of `time.monotonic`. Shared work may have begun before it was asked for.
        """
        if (span := self._span.get()) is None:
            return
        parent, start = set_span_in_context(span, Context()), asked if began is None else max(asked, began)
        if began is None or began > asked:
            self._tracer.start_span("queue", parent, start_time=_epoch(asked)).end(
                _epoch(ended if began is None else began)
            )
        if began is not None:
            self._tracer.start_span("compute", parent, start_time=_epoch(start)).end(_epoch(ended))

    def end(self, method: str, route: str, status: int, request_id: str) -> None:
        """End the span of a request; `route` is its template, or ``none``."""
        if (span := self._span.get()) is None:
            return
        self._span.set(None)
        span.set_attribute("edgeface.request_id", request_id)
        if method == "gRPC":
            span.update_name(route.strip("/"))
            span.set_attributes({"rpc.system": "grpc", "rpc.method": route.strip("/"), "edgeface.status": status})
        else:
            method = method if method in _METHODS else "_OTHER"
            span.update_name(method if route == "none" else f"{method} {route}")
            span.set_attributes({"http.request.method": method, "http.response.status_code": status})
            if route != "none":
                span.set_attribute("http.route", route)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left, for two seconds at most; what comes later is dropped."""
        closing = threading.Thread(target=self._provider.shutdown, name="edgeface-telemetry", daemon=True)
        closing.start()
        closing.join(_FLUSH_SECONDS)


def _epoch(monotonic: float) -> int:
    """Return a time of `time.monotonic` as nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
