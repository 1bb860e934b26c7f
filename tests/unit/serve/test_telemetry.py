"""Traces of requests, as a collector gets them over HTTP: what is in them, what never is, and who waits for them."""

from __future__ import annotations

import contextlib
import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tiny_ir import BLUE
from unit.serve.conftest import MakeService, client_of, enrol, jpeg, serving_both

pytest.importorskip("opentelemetry.sdk", reason="the extra 'otel' is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from edgeface.errors import ExtraNotInstalledError, InputError
from edgeface.serve import telemetry
from edgeface.serve.metrics import start_telemetry
from edgeface.serve.settings import Settings, load_settings

pytestmark = pytest.mark.timeout(60)
API = "/api/edgeface/v1"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(http.server.ThreadingHTTPServer):
    """A receiver of OTLP over HTTP; `status` None: it takes what is sent, and never answers."""

    daemon_threads = True

    def __init__(self, status: int | None = 200) -> None:
        self.sent, self.requests, self.free = b"", list[ExportTraceServiceRequest](), threading.Event()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                collector.sent += content
                collector.requests.append(ExportTraceServiceRequest.FromString(content))
                if status is None:
                    collector.free.wait(20)
                self.send_response(status or 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def settings(self) -> dict[str, str]:
        return {"endpoint": f"http://127.0.0.1:{self.server_port}/v1/traces"}

    @property
    def spans(self) -> list[Span]:
        batches = [
            scope for each in self.requests for resource in each.resource_spans for scope in resource.scope_spans
        ]
        return [span for batch in batches for span in batch.spans]


@contextlib.contextmanager
def collecting(status: int | None = 200) -> Iterator[Collector]:
    with Collector(status) as collector:
        thread = threading.Thread(target=collector.serve_forever, args=[0.02])
        thread.start()
        yield collector
        collector.free.set()
        collector.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def test_a_request_is_one_span_below_the_clients_with_its_wait_and_its_computation(make_service: MakeService) -> None:
    with collecting() as collector:
        service = make_service(telemetry=collector.settings)
        enrol(service, "Ada", BLUE)
        began = time.time_ns()
        with client_of(service) as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "door-7", "tracestate": "a=Ada"}
            answer = client.post(f"{API}/identify?gallery=default", files={"photo": jpeg(BLUE)}, headers=headers)
            assert answer.json()["faces"][0]["person"] == "Ada"
        (root,) = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
        children = {span.name: span for span in collector.spans if span.parent_span_id == root.span_id}
        assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
        assert root.name == f"POST {API}/identify"
        assert attributes(root) == {
            "edgeface.request_id": "door-7",
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "http.route": f"{API}/identify",
        }
        assert set(children) == {"queue", "compute"}
        queue, compute = children["queue"], children["compute"]
        assert (attributes(queue), attributes(compute)) == ({}, {})
        order = [began, root.start_time_unix_nano, queue.start_time_unix_nano, queue.end_time_unix_nano]
        order += [compute.end_time_unix_nano, root.end_time_unix_nano, time.time_ns()]
        assert order == sorted(order)
        assert abs(queue.end_time_unix_nano - compute.start_time_unix_nano) < 1e6


def test_no_span_holds_a_person_a_key_an_image_an_address_or_a_query(make_service: MakeService) -> None:
    with collecting() as collector:
        service = make_service(telemetry=collector.settings)
        with client_of(service) as client:
            client.post(f"{API}/galleries/default/people", data={"name": "Lovelace"}, files={"photo": jpeg(BLUE)})
            client.get(f"{API}/galleries/default/people/1?after=77077")
            client.get("/api/v1/recognition/subjects/Lovelace?x=77077")
            client.get(f"{API}/models/77077")
            client.request("LOVELACE", "/Lovelace")
            client.get(f"{API}/models", headers={"x-api-key": "77077", "traceparent": "Lovelace"})
            names = {f"GET {API}/galleries/{{gallery}}/people/{{person_id}}", "_OTHER"}
        statuses = {attributes(span)["http.response.status_code"] for span in collector.spans if span.kind == 2}
        assert {200, 201, 401, 404} <= statuses
        assert names <= {span.name for span in collector.spans}
        for secret in (b"Lovelace", b"LOVELACE", b"77077", str(service.first_key).encode(), b"testclient", b"PNG"):
            assert secret not in collector.sent


def test_requests_over_grpc_are_spans_too(make_service: MakeService) -> None:
    grpc = pytest.importorskip("grpc", reason="the extra 'grpc' is not installed")
    with collecting() as collector:
        service = make_service(telemetry=collector.settings, listen={"grpc_port": 0})
        with serving_both(service) as (_, address), grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            ask(b"", metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")], timeout=10)
        (span,) = collector.spans
        assert (span.name, span.parent_span_id.hex()) == ("inference.GRPCInferenceService/ServerLive", PARENT)
        assert attributes(span)["edgeface.status"] == 200


@pytest.mark.parametrize("status", [500, None, 0])
def test_a_collector_that_fails_hangs_or_is_away_costs_requests_nothing_and_stopping_two_seconds(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    monkeypatch.setattr(telemetry, "_FLUSH_SECONDS", 0.3)
    with collecting(status) as collector:
        service = make_service(telemetry={"endpoint": "http://127.0.0.1:9/"} if status == 0 else collector.settings)
        with client_of(service) as client:
            for _ in range(20):
                assert client.get("/health/live").status_code == 200
            began = time.monotonic()
        assert time.monotonic() - began < 2
        assert bool(collector.requests) == (status != 0)


def test_it_is_off_and_not_imported_unless_the_configuration_names_a_collector(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_settings(environ={}).telemetry.endpoint is None
    program = "import sys, edgeface.serve.app; print([*sys.modules])"  # FastAPI imports the API, if it is there
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "'edgeface.serve.app'" in ran.stdout
    assert "opentelemetry.sdk" not in ran.stdout
    assert "opentelemetry.exporter" not in ran.stdout
    for wrong in ("127.0.0.1:4318", "http://user:secret@host/", "http://host/?key=x", "file:///etc/passwd"):
        with pytest.raises(InputError, match=r"telemetry\.endpoint"):
            load_settings(environ={"EDGEFACE_SERVE_TELEMETRY__ENDPOINT": f'"{wrong}"'})
    monkeypatch.setitem(sys.modules, "edgeface.serve.telemetry", None)
    settings = Settings.model_validate({"telemetry": {"endpoint": "http://127.0.0.1:4318/v1/traces"}})
    with pytest.raises(ExtraNotInstalledError, match="otel"):
        start_telemetry(settings)
