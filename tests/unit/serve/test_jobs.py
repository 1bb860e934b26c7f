"""Jobs of bulk enrolment: what is enrolled, what is refused, and what is there when the process was killed."""

from __future__ import annotations

import base64
import datetime
import io
import json
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_ir import BLUE, GREEN, RED
from unit.serve.conftest import OPEN, Clock, MakeService, answer_of, client_of, enrol, jpeg, run_command

from edgeface.cipher import KeyedCipher, PlainCipher
from edgeface.errors import GalleryBusyError, ImageError
from edgeface.serve import job_routes, jobs
from edgeface.serve.job_photos import open_photos
from edgeface.serve.job_store import KEPT_JOBS, JobStore, JobUpload
from edgeface.serve.keys import Role
from edgeface.serve.problems import Problem
from edgeface.serve.service import Service
from edgeface.serve.settings import Limits

pytestmark = pytest.mark.timeout(60)
JOBS = "/api/edgeface/v1/galleries/default/jobs"
PEOPLE = "/api/edgeface/v1/galleries/default/people"
ZIP = {"content-type": "application/zip"}
LINES = {"content-type": "application/x-ndjson"}


def archive(*members: tuple[Any, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP archive of these members, by name or by ZipInfo."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, content in members:
            written.writestr(name, content)
    return file.getvalue()


def lines(*photos: tuple[str, bytes]) -> bytes:
    return b"".join(
        json.dumps({"person": person, "photo": base64.b64encode(photo).decode()}).encode() + b"\n"
        for person, photo in photos
    )


def numbered(number: int) -> bytes:
    """A photo of a blue face that no other number has."""
    return jpeg((255 - number % 40, number // 40, 0))


def finish(client: TestClient | httpx.Client, location: str, seconds: float = 20) -> Any:
    """Wait for the end of a job, and return it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = client.get(location).json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.02)
    raise AssertionError(f"the job did not end: {job}")


def people_of(client: TestClient | httpx.Client) -> dict[str, int]:
    """Names of people, and how many templates each has."""
    found, after = {}, 0
    while after is not None:
        page = client.get(PEOPLE, params={"after": after, "limit": 1000}).json()
        found |= {each["name"]: each["template_count"] for each in page["people"]}
        after = page["next"]
    return found


def test_an_archive_enrols_its_folders_and_says_why_a_photo_was_refused(client: TestClient, service: Service) -> None:
    enrol(service, "Grace", GREEN)
    upload = archive(
        ("Ada/", b""),
        ("Ada/1.png", jpeg(BLUE)),
        ("Ada/more/2.png", jpeg((240, 10, 0))),
        ("Ada/none.png", jpeg(None)),
        ("Ada/broken.jpg", b"no photo"),
        ("Ada/list.txt", b"not a photo"),
        ("Ada/.hidden.png", jpeg(RED)),
        ("__MACOSX/Ada/._1.png", b"x"),
        ("Mary/1.png", jpeg(GREEN)),
        ("Two/1.png", jpeg(RED)),
        ("Two/2.png", jpeg((0, 200, 200))),
    )
    answer = client.post(JOBS, content=upload, headers=ZIP)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"{JOBS}/{answer.json()['id']}"
    job = finish(client, answer.headers["location"])
    assert (job["state"], job["photos"], job["left_out"]) == ("done", 7, 3)
    assert (job["done"], job["enrolled"], job["already"], job["refused"]) == (7, 2, 0, 5)
    assert {each["photo"]: each["code"] for each in job["refusals"]} == {
        "Ada/none.png": "no-face",
        "Ada/broken.jpg": "bad-image",
        "Mary/1.png": "lookalike",
        "Two/1.png": "several-people",
        "Two/2.png": "several-people",
    }
    assert "Grace" in next(each["detail"] for each in job["refusals"] if each["code"] == "lookalike")
    assert people_of(client) == {"Grace": 1, "Ada": 2}
    assert job["created"] <= job["started"] <= job["finished"]
    assert [each["id"] for each in client.get(JOBS).json()["jobs"]] == [job["id"]]


def test_lines_enrol_people_with_their_consent_and_audit_row(client: TestClient, service: Service) -> None:
    upload = lines(("Ada", jpeg(BLUE)), ("Grace", jpeg(GREEN)), ("Ada", jpeg(BLUE))) + b"\n"
    upload += b'{"person": "Mary", "photo": "*"}'
    query = {"consent_text_version": "2026-1", "consent_expires": "2030-01-01T00:00:00Z"}
    answer = client.post(JOBS, content=upload, headers=LINES, params=query)
    job = finish(client, answer.headers["location"])
    assert (job["state"], job["enrolled"], job["already"]) == ("done", 3, 1)
    assert [(each["photo"], each["code"]) for each in job["refusals"]] == [("line 5", "bad-image")]
    found = client.get(PEOPLE).json()["people"]
    assert {each["name"]: each["consent"]["text_version"] for each in found} == {"Ada": "2026-1", "Grace": "2026-1"}
    assert found[0]["consent"]["expires"].startswith("2030-01-01")
    assert service.audit is not None
    rows = {each.action: each for each in service.audit.rows()}
    noted = [each.people[0] for each in service.audit.rows(action="enrol")]
    assert noted == [each["id"] for each in found]
    assert rows["enrol"].request_id == rows["create-job"].request_id == answer.headers["x-request-id"]


def test_the_same_upload_again_enrols_nothing_twice(client: TestClient) -> None:
    upload = archive(("Ada/1.png", jpeg(BLUE)), ("Grace/1.png", jpeg(GREEN)))
    for already in (0, 2):
        job = finish(client, client.post(JOBS, content=upload, headers=ZIP).headers["location"])
        assert (job["enrolled"], job["already"], job["refused"]) == (2, already, 0)
    assert people_of(client) == {"Ada": 1, "Grace": 1}


def test_refused_photos_come_page_by_page(client: TestClient) -> None:
    upload = archive(*((f"Ada/{number}.jpg", b"x") for number in range(5)))
    location = client.post(JOBS, content=upload, headers=ZIP).headers["location"]
    finish(client, location)
    found, after = [], 0
    while after is not None:
        page = client.get(location, params={"after": after, "limit": 2}).json()
        found += [each["photo"] for each in page["refusals"]]
        after = page["next"]
    assert found == [f"Ada/{number}.jpg" for number in range(5)]


def linked(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def encrypted() -> bytes:
    """An archive whose flags say that its member is encrypted."""
    data = bytearray(archive(("Ada/1.png", jpeg(BLUE))))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    return bytes(data)


def lying() -> bytes:
    """An archive whose directory says that a member has 50,000 bytes."""
    data = bytearray(archive(("Ada/1.png", bytes(100_000))))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (50_000).to_bytes(4, "little")
    return bytes(data)


HOSTILE: dict[str, tuple[Callable[[], bytes], dict[str, str], str]] = {
    "no archive": (lambda: b"PK no archive", ZIP, "bad-upload"),
    "empty": (lambda: b"", ZIP, "bad-upload"),
    "no photo": (lambda: archive(("Ada/a.txt", b"x")), ZIP, "missing-photo"),
    "cut off": (lambda: archive(("Ada/1.png", jpeg(BLUE)))[:-30], ZIP, "bad-upload"),
    "parent": (lambda: archive(("../Ada/1.png", jpeg(BLUE))), ZIP, "bad-upload"),
    "inner parent": (lambda: archive(("Ada/../../1.png", jpeg(BLUE))), ZIP, "bad-upload"),
    "absolute": (lambda: archive(("/Ada/1.png", jpeg(BLUE))), ZIP, "bad-upload"),
    "drive": (lambda: archive(("C:/1.png", jpeg(BLUE))), ZIP, "bad-upload"),
    "backslash": (lambda: archive(("Ada\\1.png", jpeg(BLUE))), ZIP, "bad-upload"),
    "control": (lambda: archive(("Ada/\x1b[2J.png", jpeg(BLUE))), ZIP, "bad-upload"),
    "link": (lambda: archive((linked("Ada/1.png", 0o120777), b"/etc/passwd")), ZIP, "bad-upload"),
    "device": (lambda: archive((linked("Ada/1.png", 0o060777), b"")), ZIP, "bad-upload"),
    "encrypted": (encrypted, ZIP, "bad-upload"),
    "another compression": (
        lambda: archive(("Ada/1.png", jpeg(BLUE)), compression=zipfile.ZIP_LZMA),
        ZIP,
        "bad-upload",
    ),
    "one name in two forms": (
        lambda: archive(("Ad\u00e1/1.png", jpeg(BLUE)), ("Ada\u0301/1.png", jpeg(RED))),
        ZIP,
        "bad-upload",
    ),
    "bomb": (lambda: archive(*((f"Ada/{n}.png", bytes(1 << 20)) for n in range(5))), ZIP, "bad-upload"),
    "no folder": (lambda: archive(("1.png", jpeg(BLUE))), ZIP, "bad-upload"),
    "unknown": (lambda: archive(("unknown/1.png", jpeg(BLUE))), ZIP, "bad-name"),
    "many photos": (lambda: archive(*((f"A{n}/1.png", jpeg(BLUE)) for n in range(21))), ZIP, "too-many-photos"),
    "no JSON": (lambda: b'{"person": ', LINES, "bad-upload"),
    "no person": (lambda: b'{"photo": "AAAA"}', LINES, "bad-upload"),
    "another field": (lambda: b'{"person": "A", "photo": "AAAA", "path": "/etc"}', LINES, "bad-upload"),
    "long line": (lambda: b"{" + b" " * 300_000 + b"}", LINES, "bad-upload"),
    "deep": (lambda: b"[" * 10_000, LINES, "bad-upload"),
    "blank": (lambda: b"\n\n", LINES, "missing-photo"),
    "control in a name": (lambda: lines(("A\x00da", jpeg(BLUE))), LINES, "bad-name"),
}


@pytest.fixture
def strict(make_service: MakeService) -> Iterator[TestClient]:
    limits = {"workers": 1, "job_photos": 20, "job_unpacked": 4 << 20, "image_bytes": 100_000, "job_bytes": 500_000}
    with client_of(make_service(limits=limits)) as client:
        yield client


def test_hostile_uploads_are_refused_and_leave_nothing(strict: TestClient, tmp_path: Path) -> None:
    for what, (make, headers, code) in HOSTILE.items():
        answer = strict.post(JOBS, content=make(), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, code), f"{what}: {answer.text}"
    assert strict.get(JOBS).json() == {"jobs": []}
    assert list((tmp_path / "state" / "jobs").iterdir()) == []
    assert people_of(strict) == {}


def test_a_photo_that_lies_about_its_size_or_is_too_large_is_refused_alone(strict: TestClient) -> None:
    for upload, detail in ((lying(), "damage"), (archive(("Ada/1.png", bytes(200_000))), "at most 100000 bytes")):
        job = finish(strict, strict.post(JOBS, content=upload, headers=ZIP).headers["location"])
        assert (job["state"], job["enrolled"]) == ("done", 0)
        (refusal,) = job["refusals"]
        assert refusal["code"] == "bad-image"
        assert detail in refusal["detail"]


def test_more_bytes_than_the_limit_are_refused_with_and_without_a_length(strict: TestClient) -> None:
    assert strict.post(JOBS, content=bytes(600_000), headers=ZIP).status_code == 413
    assert strict.post(JOBS, content=iter([bytes(300_000)] * 2), headers=ZIP).status_code == 413
    for kind in ("text/plain", "application/json", "multipart/form-data"):
        assert strict.post(JOBS, content=b"x", headers={"content-type": kind}).status_code == 415
    compressed = ZIP | {"content-encoding": "gzip"}
    assert strict.post(JOBS, content=b"x", headers=compressed).json()["code"] == "content-encoding"


def test_roles_and_galleries_are_kept_apart(make_service: MakeService) -> None:
    service = make_service(galleries={"default": OPEN, "other": OPEN})
    upload = archive(("Ada/1.png", jpeg(BLUE)))
    with client_of(service) as admin:
        location = admin.post(JOBS, content=upload, headers=ZIP).headers["location"]
        assert admin.get(location.replace("default", "other")).json()["code"] == "no-such-job"
        assert admin.delete(location.replace("default", "other")).status_code == 404
        recognises = {"x-api-key": service.keys.add("r", Role.recognise)[1]}
        elsewhere = {"x-api-key": service.keys.add("e", Role.enrol, gallery="other")[1]}
        enrols = {"x-api-key": service.keys.add("n", Role.enrol)[1]}
        for headers, status in ((recognises, 403), (elsewhere, 404)):
            assert admin.post(JOBS, content=upload, headers=ZIP | headers).status_code == status
            for method in ("GET", "DELETE"):
                assert admin.request(method, location, headers=headers).status_code == status
            assert admin.get(JOBS, headers=headers).status_code == status
        forced = admin.post(JOBS, content=upload, headers=ZIP | enrols, params={"force": True})
        assert forced.json()["code"] == "wrong-role"
        assert finish(admin, location)["enrolled"] == 1
    names = [route.path for route in job_routes.router.routes if isinstance(getattr(route, "path", None), str)]
    assert len(names) == 4


class Gate:
    """Lets photos of jobs through one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.photos, self.reached, read = threading.Semaphore(free), threading.Semaphore(0), jobs.read_template

        def wait(*args: Any, **options: Any) -> Any:
            self.reached.release()
            assert self.photos.acquire(timeout=20)
            return read(*args, **options)

        monkeypatch.setattr(jobs, "read_template", wait)


def test_a_cancelled_job_keeps_who_is_enrolled_and_enrols_nobody_after(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = Gate(monkeypatch, 1)
    upload = archive(("Ada/1.png", jpeg(BLUE)), ("Grace/1.png", jpeg(GREEN)), ("Mary/1.png", jpeg(RED)))
    first, second = (client.post(JOBS, content=upload, headers=ZIP).headers["location"] for _ in range(2))
    assert all(gate.reached.acquire(timeout=20) for _ in range(2))
    assert client.get(first).json()["state"] == "running"
    waiting = client.delete(second).json()
    assert (waiting["state"], waiting["started"]) == ("cancelled", None)
    cancelled = client.delete(first).json()
    assert (cancelled["state"], cancelled["done"]) == ("cancelled", 1)
    assert cancelled["detail"] == "the 1 photos that were enrolled stay"
    gate.photos.release(10)
    answer = client.post(JOBS, content=archive(("Zoe/1.png", jpeg(RED))), headers=ZIP)
    again = finish(client, answer.headers["location"])
    assert again["state"] == "done"
    assert people_of(client) == {"Ada": 1, "Zoe": 1}
    assert client.delete(first).json()["state"] == "cancelled"
    assert client.delete(answer.headers["location"]).json()["state"] == "done"
    assert list((tmp_path / "state" / "jobs").iterdir()) == []


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_job_ends_with_its_key(
    client: TestClient, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    gate, clock.now = Gate(monkeypatch, 1), time.time()
    monkeypatch.setattr(service.keys, "_clock", clock)
    expires = service.keys.now() + datetime.timedelta(hours=1)
    key, text = service.keys.add("desk", Role.enrol, expires=expires)
    upload = archive(("Ada/1.png", jpeg(BLUE)), ("Grace/1.png", jpeg(GREEN)))
    answer = client.post(JOBS, content=upload, headers=ZIP | {"x-api-key": text})
    assert all(gate.reached.acquire(timeout=20) for _ in range(2))
    if end == "revoked":
        service.keys.revoke(key.id)
    else:
        clock.now += 3601
    gate.photos.release(10)
    job = finish(client, answer.headers["location"])
    assert (job["state"], job["enrolled"], people_of(client)) == ("failed", 1, {"Ada": 1})
    assert job["detail"].startswith(f"key-{end}: ")


def test_a_service_that_stops_goes_on_with_the_job_when_it_starts(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service()
    gate = Gate(monkeypatch, 1)
    upload = archive(("Ada/1.png", jpeg(BLUE)), ("Grace/1.png", jpeg(GREEN)), ("Grace/2.png", jpeg(None)))
    with client_of(service) as client:
        location = client.post(JOBS, content=upload, headers=ZIP).headers["location"]
        assert all(gate.reached.acquire(timeout=20) for _ in range(2))
        threading.Timer(0.1, gate.photos.release).start()  # the photo under way, while the service stops
    job = service.jobs.find(location.rsplit("/", 1)[1])
    assert (job.state, job.done, job.crashes) == ("queued", 1, 0)
    gate.photos.release(10)
    with client_of(service) as client:
        job = finish(client, location)
        assert (job["state"], job["enrolled"], job["already"], job["refused"]) == ("done", 2, 0, 1)
        assert people_of(client) == {"Ada": 1, "Grace": 1}


@pytest.mark.parametrize("harm", ["removed", "changed", "cut off", "crashes"])
def test_a_job_that_cannot_go_on_says_so(make_service: MakeService, harm: str, tmp_path: Path) -> None:
    service = make_service()
    with service.jobs.new_upload(service.gallery("default").store.database.cipher) as upload:
        upload.write(archive(("Ada/1.png", jpeg(BLUE))))
        upload.read_all()
        values = {"gallery": "default", "key_id": "k", "request_id": "r", "kind": "zip"}
        job = service.jobs.add(upload, **values, options=jobs.JobOptions().to_json(), photos=1, left_out=0)
    path = tmp_path / "state" / "jobs" / job.id
    if harm == "removed":
        path.unlink()
    elif harm == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif harm == "cut off":
        path.write_bytes(b"")
    else:
        for _ in range(3):
            assert service.jobs.set_state(job, "running")
            service.jobs.recover()
    with client_of(service) as client:
        failed = finish(client, f"{JOBS}/{job.id}")
        assert failed["state"] == "failed"
        assert failed["detail"].startswith("interrupted: ")
        assert people_of(client) == {}
    assert not path.exists()


def test_uploads_and_names_are_unreadable_without_the_gallerys_key(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = Gate(monkeypatch, 0)
    upload = archive(("Ada Lovelace/1.png", b"x" * 99), ("Grace/1.png", jpeg(RED)), compression=zipfile.ZIP_STORED)
    location = client.post(JOBS, content=upload, headers=ZIP).headers["location"]
    assert gate.reached.acquire(timeout=20)
    (stored,) = (tmp_path / "state" / "jobs").iterdir()
    assert stored.stat().st_mode & 0o777 == 0o600
    assert stored.stat().st_size > len(upload)
    assert b"Ada Lovelace" not in stored.read_bytes()
    gate.photos.release(10)
    assert finish(client, location)["refusals"][0]["photo"] == "Ada Lovelace/1.png"
    assert list((tmp_path / "state" / "jobs").iterdir()) == []
    for path in (tmp_path / "state").glob("jobs.sqlite*"):
        assert b"Lovelace" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_requests_go_first_and_a_busy_service_goes_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(service) as client:
        runner, work = client.app.state.jobs, client.app.state.work  # type: ignore[attr-defined]
        monkeypatch.setattr(type(work), "outstanding", property(lambda _: 1))
        monkeypatch.setattr(jobs, "_PATIENCE_SECONDS", 0.3)
        began = time.monotonic()
        location = client.post(JOBS, content=archive(("Ada/1.png", jpeg(BLUE))), headers=ZIP).headers["location"]
        assert finish(client, location)["enrolled"] == 1
        assert time.monotonic() - began > 0.3
        assert runner.uploads == 0


def test_too_many_jobs_are_refused_before_the_upload(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, 0)
    monkeypatch.setattr(job_routes, "_OPEN_JOBS", 2)
    upload = archive(("Ada/1.png", jpeg(BLUE)))
    answers = [client.post(JOBS, content=upload, headers=ZIP) for _ in range(3)]
    assert [each.status_code for each in answers] == [202, 202, 429]
    assert answers[2].headers["retry-after"] == "60"
    metrics = client.get("/metrics").text
    assert 'edgeface_jobs{state="queued"} 1.0' in metrics or 'edgeface_jobs{state="running"} 1.0' in metrics
    gate.photos.release(10)
    assert finish(client, answers[1].headers["location"])["already"] == 1
    assert 'edgeface_job_photos_total{outcome="enrolled"} 2.0' in client.get("/metrics").text


def test_a_gallery_that_is_busy_for_a_time_does_not_fail_a_job(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol_images, tries = jobs.enrol_images, []

    def busy(*args: Any, **options: Any) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise GalleryBusyError("another process writes")
        return enrol_images(*args, **options)

    monkeypatch.setattr(jobs, "enrol_images", busy)
    monkeypatch.setattr(jobs, "_PAUSE_SECONDS", 0.01)
    location = client.post(JOBS, content=archive(("Ada/1.png", jpeg(BLUE))), headers=ZIP).headers["location"]
    assert finish(client, location)["enrolled"] == 1
    assert len(tries) == 3


def test_finished_jobs_are_kept_for_a_day_and_a_hundred(tmp_path: Path, clock: Clock) -> None:
    store = JobStore(tmp_path, clock=clock)

    def add() -> Any:
        with store.new_upload(PlainCipher()) as upload:
            values = {"gallery": "g", "key_id": "k", "request_id": "r", "kind": "zip", "options": "{}"}
            job = store.add(upload, **values, photos=1, left_out=0)
        clock.now += 1
        return job

    open_job, done = add(), [add() for _ in range(KEPT_JOBS + 5)]
    for job in done:
        clock.now += 1
        assert store.set_state(job, "done")
        assert not store.set_state(job, "failed")
    assert [each.id for each in store.of_gallery("g")] == [each.id for each in [*done[:4:-1], open_job]]
    clock.now += 86_401
    store.prune()
    assert [each.id for each in store.of_gallery("g")] == [open_job.id]
    store.close()


def test_the_operations_are_described(client: TestClient) -> None:
    paths = client.get("/api/edgeface/v1/openapi.json").json()["paths"]
    create = paths["/api/edgeface/v1/galleries/{gallery}/jobs"]["post"]
    assert set(create["requestBody"]["content"]) == {"application/zip", "application/x-ndjson"}
    assert {"202", "413", "415", "422", "503", "507"} <= set(create["responses"])
    assert create["x-role"] == "enrol"
    assert set(paths["/api/edgeface/v1/galleries/{gallery}/jobs/{job_id}"]) == {"get", "delete"}


# Uploads


@pytest.mark.parametrize("cipher", [PlainCipher(), KeyedCipher(bytes(32), "0" * 32)])
def test_a_sealed_upload_is_read_from_any_place(tmp_path: Path, cipher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeface.serve.job_store._BLOCK", 1000)
    content = bytes(range(256)) * 20
    with JobUpload(tmp_path, cipher) as upload:
        for start in range(0, len(content), 700):
            upload.write(content[start : start + 700])
        with upload.read_all() as file:
            for at, size in ((0, 10), (999, 2), (1500, 3000), (len(content) - 5, 100), (0, len(content))):
                file.seek(at)
                assert file.read(size) == content[at : at + size]
        assert list(tmp_path.iterdir()) == []
    with JobUpload(tmp_path, cipher) as other, other.read_all() as file:
        assert file.read() == b""
    assert list(tmp_path.iterdir()) == []


MUTANTS = archive(("Ada/1.png", b"\x89PNG\r\n\x1a\n" + bytes(60)), ("Grace/a/2.jpg", b"\xff\xd8\xff" + bytes(60)))


def _mutants(count: int) -> Any:
    changes = st.lists(st.tuples(st.integers(0, len(MUTANTS) - 1), st.integers(0, 255)), min_size=1, max_size=6)

    @settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(changes, st.integers(0, len(MUTANTS)))
    def check(changed: list[tuple[int, int]], end: int) -> None:
        data = bytearray(MUTANTS)
        for at, value in changed:
            data[at] = value
        _read_all(bytes(data[: end or len(data)]), "zip")
        _read_all(bytes(data), "zip")

    return check


def _read_all(data: bytes, kind: Any) -> None:
    """Read every photo, or be told why not: nothing else may come of it."""
    limits = Limits(image_bytes=1000, job_unpacked=4000)
    try:
        photos = open_photos(io.BytesIO(data), kind, limits)
    except Problem:
        return
    for person, mine in photos.people.items():
        assert person
        for photo in mine:
            try:
                assert len(photos.read(photo)) <= 1000
            except ImageError:
                continue


def test_changed_archives_are_read_or_refused() -> None:
    _mutants(150)()


@pytest.mark.nightly
def test_many_changed_archives_are_read_or_refused() -> None:
    _mutants(2000)()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.dictionaries(
                st.sampled_from(["person", "photo", "x"]), st.one_of(st.text(max_size=10), st.integers(), st.none())
            ).map(lambda each: json.dumps(each).encode()),
        ),
        max_size=4,
    )
)
def test_any_lines_are_read_or_refused(given_lines: list[bytes]) -> None:
    _read_all(b"\n".join(given_lines), "ndjson")


# A process that is killed


class Killed:
    """A service in a process of its own, that is killed and started again in the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._key = folder, ""

    def __enter__(self) -> Killed:
        self.start()
        return self

    def start(self) -> None:
        self._running = run_command(self._folder)
        self.process: subprocess.Popen[str] = self._running.__enter__()
        ready = answer_of(self.process)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # type: ignore[union-attr]
        self._key = ready.get("first_key") or self._key
        self.client = httpx.Client(base_url=ready["address"], headers={"x-api-key": self._key}, timeout=20)

    def stop(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(20)
        self.client.close()
        self._running.__exit__(None, None, None)

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    with Killed(tmp_path_factory.mktemp("killed")) as service:
        yield service


@pytest.mark.slow
def test_a_job_goes_on_after_kill_9_and_after_sigterm_and_enrols_nothing_twice(killed: Killed) -> None:
    before, count = people_of(killed.client), 90
    upload = archive(*((f"Job {number}/1.png", numbered(number)) for number in range(count)))
    answer = killed.client.post(JOBS, content=upload, headers=ZIP, params={"force": True})
    location, seen = answer.headers["location"], 0
    for how in (signal.SIGKILL, signal.SIGTERM):
        until = time.monotonic() + 20
        while (job := killed.client.get(location).json())["done"] < seen + 10 and time.monotonic() < until:
            time.sleep(0.005)
        assert job["state"] == "running", job
        seen = job["done"]
        killed.stop(how)
        killed.start()
        assert killed.client.get(location).json()["enrolled"] >= seen
        there = people_of(killed.client)
        assert {f"Job {number}" for number in range(seen)} <= there.keys()
    job = finish(killed.client, location)
    assert (job["state"], job["done"], job["enrolled"], job["refused"]) == ("done", count, count, 0)
    assert job["already"] <= 2  # enrolled when the process was killed, and not yet written down
    there = people_of(killed.client)
    assert {name: there[name] for name in there.keys() - before.keys()} == {f"Job {n}": 1 for n in range(count)}


@pytest.mark.slow
def test_who_was_acknowledged_as_enrolled_is_there_after_kill_9(killed: Killed) -> None:
    acknowledged: list[str] = []

    def enrol_until_killed(first: int) -> None:
        for number in range(first, 1000, 2):
            try:
                answer = killed.client.post(
                    PEOPLE,
                    data={"name": f"Person {number}"},
                    files={"photo": numbered(number + 2000)},
                    params={"force": True},
                )
            except httpx.HTTPError:
                return
            if answer.status_code == 201:
                acknowledged.append(f"Person {number}")

    for start in (0, 500):
        threads = [threading.Thread(target=enrol_until_killed, args=[start + each]) for each in range(2)]
        wanted = len(acknowledged) + 8
        for thread in threads:
            thread.start()
        until = time.monotonic() + 20
        while len(acknowledged) < wanted and time.monotonic() < until:
            time.sleep(0.002)
        killed.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(20)
        killed.stop(signal.SIGKILL)
        killed.start()
    there = {name: count for name, count in people_of(killed.client).items() if name.startswith("Person ")}
    assert len(acknowledged) >= 16
    assert set(acknowledged) <= there.keys()
    assert set(there.values()) == {1}
    assert len(there) <= len(acknowledged) + 4  # written, and killed before the answer
    assert killed.client.post("/api/edgeface/v1/galleries/default/check").json()["intact"]
