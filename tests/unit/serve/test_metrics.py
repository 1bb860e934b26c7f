"""What Prometheus reads: by its conventions, with what happened, and without anybody's name."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from tiny_ir import BLUE, RED
from unit.serve.conftest import client_of, enrol, jpeg

from edgeface.serve.keys import Role
from edgeface.serve.service import Service

pytestmark = pytest.mark.timeout(60)


def test_metrics_tell_what_happened_and_name_nobody(client: TestClient, service: Service) -> None:
    enrol(service, "Ada Lovelace", BLUE)
    for _ in range(2):
        assert client.post("/api/edgeface/v1/identify", files={"photo": jpeg(BLUE, RED)}).status_code == 200
    client.get("/people/Ada Lovelace")
    client.get("/metrics", headers={"x-api-key": ""})
    with client_of(service, Role.metrics) as measuring:
        text = measuring.get("/metrics").text
    assert "Ada" not in text
    text = client.get("/metrics").text
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    route = ("endpoint", "/api/edgeface/v1/identify")
    assert samples["edgeface_requests_total", (("code", "200"), route)] == 2
    assert samples["edgeface_requests_total", (("code", "404"), ("endpoint", "none"))] == 1
    assert samples["edgeface_request_duration_seconds_count", (route,)] == 2
    assert samples["edgeface_identifications_total", (("outcome", "accepted"),)] == 2
    assert samples["edgeface_identifications_total", (("outcome", "unknown"),)] == 2
    assert samples["edgeface_gallery_templates", (("gallery", "default"),)] == 1
    assert samples["edgeface_queue_wait_seconds_count", ()] == 2
    assert samples["edgeface_requests_in_flight", ()] == 1
    inference = (("device", "CPU"), ("le", "+Inf"), ("model", "default"))
    assert samples["edgeface_inference_duration_seconds_bucket", inference] >= 4
    names = {name for name, _ in samples}
    assert all(name.startswith("edgeface_") for name in names)
    assert len({name for name in names if name.endswith("build_info")}) == 1
