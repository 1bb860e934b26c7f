"""Equal photos are computed once, but never for who asked after a change of what the answer depends on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import httpx
import pytest
from fastapi.testclient import TestClient
from unit.serve.conftest import OPEN, MakeService, client_of, enrol, jpeg, serving_both
from unit.serve.test_jobs import ZIP, archive, finish

from edgeface.gallery.opening import open_gallery
from edgeface.gallery.records import NewTemplate
from edgeface.serve import jobs
from edgeface.serve.service import Service

API, BLUE, RED = "/api/edgeface/v1", (200, 30, 30), (30, 30, 200)
PEOPLE = f"{API}/galleries/default/people"
Ask = Callable[[], Any]


@contextlib.contextmanager
def held(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, ask: Ask) -> Iterator[Any]:
    """Ask, and hold the answer until the block ends; give a future of it. Only the first one is held."""
    method, begun, go = getattr(where, name), threading.Event(), threading.Event()

    def slowly(*given: Any, **options: Any) -> Any:
        found = method(*given, **options)
        if not begun.is_set():
            begun.set()
            assert go.wait(10)
        return found

    monkeypatch.setattr(where, name, slowly)
    with ThreadPoolExecutor(1) as threads:
        before = threads.submit(ask)
        try:
            assert begun.wait(10)
            yield before
        finally:
            go.set()


def person_of(client: TestClient, path: str = f"{API}/identify") -> Any:
    return client.post(path, files={"photo": jpeg(BLUE)}).json()["faces"][0]["person"]


def post(client: TestClient, service: Service) -> None:
    assert client.post(PEOPLE, data={"name": "Ada"}, files={"photo": jpeg(BLUE)}).status_code == 201


def compreface(client: TestClient, service: Service) -> None:
    answer = client.post("/api/v1/recognition/faces?subject=Ada", files={"file": ("a.png", jpeg(BLUE))})
    assert answer.status_code == 201


def job(client: TestClient, service: Service) -> None:
    answer = client.post(f"{API}/galleries/default/jobs", content=archive(("Ada/1.png", jpeg(BLUE))), headers=ZIP)
    assert finish(client, answer.headers["location"])["enrolled"] == 1


def elsewhere(client: TestClient, service: Service) -> None:
    state, photo = service.settings.state, jpeg(BLUE)
    with service.models.use("default") as model:
        (face,) = service.analyze(model, service.read_photo(photo))
    assert face.embedding is not None
    with open_gallery(state / "galleries/default.gallery", key=f"file:{state / 'keys/default.key'}") as other:
        other.add_person("Ada", templates=[NewTemplate(embedding=face.embedding)])


def reload(client: TestClient, service: Service) -> None:
    """What SIGHUP does: the default gallery is another one, where Ada is."""
    other = service.settings.galleries["other"]
    enrol(service, "Ada", BLUE, gallery="other")
    place = service.settings.state / "galleries/other.gallery"
    there = other.model_copy(update={"place": str(place), "key": f"file:{service.settings.state / 'keys/other.key'}"})
    service.reload(service.settings.model_copy(update={"galleries": {"default": there}}))


@pytest.mark.parametrize("change", [post, compreface, job, elsewhere, reload])
def test_a_photo_is_not_identified_as_before_a_change_that_was_acknowledged(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, change: Callable[[TestClient, Service], None]
) -> None:
    monkeypatch.setattr(jobs, "_PATIENCE_SECONDS", 0.0)
    service = make_service(galleries={"default": OPEN, "other": OPEN})
    with client_of(service) as client:
        assert person_of(client) is None
        with held(monkeypatch, service, "identify", lambda: person_of(client)) as before:
            change(client, service)
            assert person_of(client) == "Ada"
        assert before.result() is None
        assert person_of(client) == "Ada"


def test_who_was_told_that_somebody_is_forgotten_is_not_answered_with_that_person(
    service: Service, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = enrol(service, "Ada", BLUE)
    with held(monkeypatch, service, "identify", lambda: person_of(client)) as before:
        assert client.delete(f"{PEOPLE}/{ada}").status_code == 200
        assert person_of(client) is None
    assert before.result() == "Ada"


def test_a_photo_is_computed_once_while_nothing_changes(
    service: Service, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(service, "Ada", BLUE)
    assert person_of(client) == "Ada"
    counted = mock.Mock(wraps=service.identify)
    monkeypatch.setattr(service, "identify", counted)
    with ThreadPoolExecutor(1) as threads:
        with held(monkeypatch, service, "identify", lambda: person_of(client)) as before:
            again = threads.submit(person_of, client)
            while sum(each.waiting for each in client.app.state.work._same.values()) < 2:  # type: ignore[attr-defined]
                time.sleep(0.01)
        assert [before.result(), again.result(), counted.call_count] == ["Ada", "Ada", 1]


def over_http(client: httpx.Client, address: str, key: str) -> None:
    for change in ("unload", "load"):
        assert client.post(f"/v2/repository/models/default/{change}").status_code == 200


def over_grpc(client: httpx.Client, address: str, key: str) -> None:
    triton = pytest.importorskip("tritonclient.grpc", reason="the extra 'clients' is not installed")
    with triton.InferenceServerClient(address) as other:
        for change in (other.unload_model, other.load_model):
            change("default", headers={"x-api-key": key})


@pytest.mark.parametrize("change", [over_http, over_grpc])
def test_a_photo_is_not_embedded_by_a_version_of_a_model_from_before_another_was_loaded(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, change: Callable[[httpx.Client, str, str], None]
) -> None:
    pytest.importorskip("grpc", reason="the extra 'grpc' is not installed")
    service = make_service(listen={"grpc_port": 0})
    key = str(service.first_key)
    with (
        serving_both(service) as (port, address),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"x-api-key": key}) as client,
    ):

        def version() -> Any:
            return client.post(f"{API}/embed", files={"photo": jpeg(RED)}).json()["version"]

        with held(monkeypatch, service, "read_photo", version) as before:
            change(client, str(address), key)
            assert version() == 2
        assert before.result() == 1
