"""The OpenAPI document: what it promises holds for whatever clients send."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_ir import BLUE, GREEN, RED, write_tiny_ir
from unit.serve.conftest import OPEN, enrol, jpeg, load_squares

from edgeface.serve.app import create_app, describe
from edgeface.serve.jobs import JobOptions
from edgeface.serve.keys import Role
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

schemathesis = pytest.importorskip("schemathesis", reason="the extra 'clients' is not installed")
from requests import Request  # noqa: E402
from schemathesis import checks  # noqa: E402

PHOTOS = [jpeg(BLUE), jpeg(GREEN, RED), jpeg(None), b"no image"]
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
schemathesis.openapi.format("binary", st.sampled_from(PHOTOS) | st.binary(max_size=64))
schemathesis.openapi.format("byte", st.sampled_from(PHOTOS).map(lambda photo: base64.b64encode(photo).decode()))


@schemathesis.serializer("application/x-ndjson")
def _write_line(context: Any, value: Any) -> dict[str, Any]:
    return {"data": json.dumps(value).encode() + b"\n"}


OPERATIONS = {found.ok().label: found.ok() for found in schemathesis.openapi.from_dict(describe()).get_all_operations()}
MODES = [*2 * [schemathesis.GenerationMode.POSITIVE], schemathesis.GenerationMode.NEGATIVE]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, TestClient, dict[Role, str]]]:
    """A service, a client of it, and a key of each role."""
    folder = tmp_path_factory.mktemp("service")
    given = {
        "state": folder / "state",
        "models": {"default": {"model": str(write_tiny_ir(folder))}},
        "galleries": {"default": OPEN | {"keep_images": True}},
        "limits": {"workers": 2},
        "keys": {"per_key": 1e6, "per_address": 1e6, "wrong_per_address": 1e6},
    }
    with (
        Service(Settings.model_validate(given), load=load_squares) as service,
        TestClient(create_app(service), raise_server_exceptions=False) as client,
    ):
        yield service, client, {role: service.keys.add(role.value, role)[1] for role in Role}


def known(service: Service) -> dict[str, Any]:
    """Return values of path parameters that name what is there."""
    person = enrol(service, f"person {next(NUMBERS)}", BLUE)
    template = service.gallery(None).store.templates_of(person)[0].id
    with service.jobs.new_upload(service.gallery(None).store.database.cipher) as upload:
        by = {"gallery": "default", "key_id": "k", "request_id": "r"}
        job = service.jobs.add(upload, **by, kind="zip", options=JobOptions().to_json(), photos=1, left_out=0)
    names = {"gallery": "default", "model": "default", "person_id": person, "template_id": template}
    return names | {"job_id": job.id, "camera": "door", "item_id": 1}


@pytest.mark.slow
@pytest.mark.parametrize("number", [15, pytest.param(1000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_one_that_the_document_has(
    label: str, number: int, asked: tuple[Service, TestClient, dict[Role, str]]
) -> None:
    service, client, keys = asked
    cases = st.one_of([OPERATIONS[label].as_strategy(generation_mode=mode) for mode in MODES])
    roles, seen = st.sampled_from([Role.admin, Role.admin, *Role, None]), set[int]()

    few = number < 100  # the same ones each time

    @settings(
        max_examples=number, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=few
    )
    @given(cases, roles, st.integers(0, 3))
    def ask(case: Any, role: Role | None, there: int) -> None:
        if there:
            names = known(service)
            case.path_parameters = {name: names[name] for name in case.path_parameters or {}}
            case.query = {name: names.get(name, value) for name, value in (case.query or {}).items()}
        headers = {} if role is None else {"x-api-key": keys[role]}
        asking = Request(**case.as_transport_kwargs(base_url="http://testserver", headers=headers)).prepare()
        response = client.request(asking.method, asking.url, content=asking.body, headers=dict(asking.headers))
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    ask()
    assert len(seen) > 1 or label.startswith("GET /health"), seen
