"""The doors inside the service: a real server, whose camera is a video of coloured squares."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.kiosk.conftest import visit, wait_until

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httptools", reason="the extra 'serve' is not installed")
import cv2
import numpy as np
from tiny_ir import BLUE, RED, SquareDetector, draw, write_tiny_ir
from unit.serve.conftest import answer_of, enrol, load_squares, run_command, serving

from edgeface.errors import InputError
from edgeface.kiosk.doorkeeper import Doorkeeper, KioskServiceSettings
from edgeface.kiosk.events import EventLog
from edgeface.serve import doors
from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.server import make_server
from edgeface.serve.service import Service
from edgeface.serve.settings import load_settings

KIOSK = f"{doors.PREFIX}/kiosk"
DECISION = {"liveness": False, "gate": False, "threshold": 0.95, "looks": 1}


def write_video(path: Path, *colours: Any) -> Path:
    """Write a video in which each of these squares is there for two seconds."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (120, 120))
    for colour in colours:
        for number in range(20):
            frame = draw(colour, margin=1)
            frame[:4, number * 4 : number * 4 + 4] = 140  # something moves
            writer.write(frame)
    writer.release()
    return path


def settings_of(folder: Path, kiosk: dict[str, Any] | None, **changes: Any) -> KioskServiceSettings:
    given = {
        "state": folder / "state",
        "models": {"default": {"model": str(write_tiny_ir(folder))}},
        "galleries": {"default": {"threshold": 0.95, "gate": False}, "other": {}},
        "limits": {"workers": 2},
        "kiosk": kiosk,
    }
    return KioskServiceSettings.model_validate(given | changes)


class Doors:
    """A service that watches, served on a port."""

    def __init__(self, service: Service, keeper: Doorkeeper, port: int) -> None:
        self.service, self.keeper, self.port = service, keeper, port
        self.keys = {role: service.keys.add(role.value, role)[1] for role in Role}

    def open(self, path: str, role: Role, key: str | None = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path, headers={"x-api-key": key or self.keys[role]} | headers)
        return connection.getresponse()

    def get(self, path: str, role: Role = Role.admin, key: str | None = None) -> Any:
        with self.open(path, role, key) as response:
            return json.loads(response.read())

    def stream(self, **headers: str) -> http.client.HTTPResponse:
        return self.open(f"{KIOSK}/stream", Role.recognise, **headers)


def messages(response: http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    """Yield the messages of a stream as their fields."""
    fields: dict[str, str] = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        else:
            yield fields
            fields = {}


@contextlib.contextmanager
def watched(folder: Path, kiosk: dict[str, Any] | None, **changes: Any) -> Iterator[Doors]:
    with Service(settings_of(folder, kiosk, **changes), load=load_squares) as service:
        ada = enrol(service, "Ada", BLUE)
        assert ada == 1
        with (
            Doorkeeper(service, load_detector=lambda *_, **__: SquareDetector()) as keeper,
            serving(service, make_server(create_app(service, keeper), service.settings)) as port,
        ):
            yield Doors(service, keeper, port)


def camera(source: object, **options: Any) -> dict[str, Any]:
    return {"source": str(source), "min_face": 20} | options


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """Ada, and then somebody else, came to the door; the camera at the back does not exist."""
    folder = tmp_path_factory.mktemp("doors")
    video = write_video(folder / "door.avi", BLUE, None, RED, None)
    kiosk = {
        "cameras": {"door": camera(video), "back": camera("rtsp://user:secret@127.0.0.1:9/x", lost_seconds=0.2)},
        "decision": DECISION | {"patience": 0.5},
        "streams": 2,
        "events": {"webhooks": {"office": {"url": "http://127.0.0.1:9/", "secret": f"file:{folder}/secret"}}},
    }
    (folder / "secret").write_text("5e" * 32)
    (folder / "secret").chmod(0o600)
    with watched(folder, kiosk) as made:
        wait_until(lambda: made.keeper.last >= 2)
        yield made


def test_who_came_is_listed_page_by_page_and_filtered(seen: Doors) -> None:
    first = seen.get(f"{KIOSK}/events?limit=1", Role.enrol)
    assert [(each["kind"], each["name"], each["camera"]) for each in first["events"]] == [("known", "Ada", "door")]
    rest = seen.get(f"{KIOSK}/events?after={first['next']}", Role.enrol)
    assert [(each["kind"], each["name"]) for each in rest["events"]] == [("unknown", None)]
    assert rest["next"] is None
    for query, count in {
        "kind=unknown": 1,
        "camera=door": 2,
        "camera=back": 0,
        "person_id=1": 1,
        "person_id=2": 0,
    }.items():
        assert len(seen.get(f"{KIOSK}/events?{query}")["events"]) == count, query
    assert seen.get(f"{KIOSK}/events?until=2026-01-01T00:00:00Z")["events"] == []
    assert seen.get(f"{KIOSK}/events?since=yesterday")["code"] == "bad-input"


def test_a_stream_resumes_from_the_log_without_names_and_says_how_the_cameras_are(seen: Doors) -> None:
    with seen.stream(**{"Last-Event-ID": "0"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = messages(response)
        status, known, unknown = next(told), next(told), next(told)
    assert (known["id"], known["event"], unknown["id"], status["event"]) == ("1", "visit", "2", "status")
    event = json.loads(known["data"])
    assert (event["kind"], event["person_id"]) == ("known", 1)
    assert "name" not in event
    assert 0 <= event["age"] < 60
    assert set(json.loads(status["data"])["cameras"]) == {"door", "back"}
    with seen.stream(**{"Last-Event-ID": "1"}) as response:
        assert next(each for each in messages(response) if "id" in each)["id"] == "2"


def test_streams_are_bounded_and_those_that_left_are_not_counted(seen: Doors) -> None:
    with seen.stream() as one, seen.stream() as two:
        assert next(messages(one))["event"] == next(messages(two))["event"] == "status"
        with seen.stream() as third:
            assert (third.status, third.headers["retry-after"]) == (503, "5")
        two.close()

    def again() -> bool:
        with seen.stream() as response:
            return response.status == 200

    wait_until(again)


def test_a_stream_ends_with_its_key(seen: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HEARTBEAT", 0.0)
    key, text = seen.service.keys.add("panel", Role.recognise)
    with seen.open(f"{KIOSK}/stream", Role.recognise, text) as response:
        told = messages(response)
        assert next(told)["event"] == "status"
        seen.service.keys.revoke(key.id)
        assert len(list(told)) < 5


def test_each_route_asks_for_its_role_and_gallery(seen: Doors) -> None:
    assert seen.get(f"{KIOSK}/events", Role.recognise)["code"] == "wrong-role"
    assert seen.get(f"{KIOSK}/cameras", Role.enrol)["code"] == "wrong-role"
    assert seen.get(f"{KIOSK}/stream", Role.metrics)["code"] == "wrong-role"
    _, other = seen.service.keys.add("other", Role.admin, gallery="other")
    for path in ("events", "cameras", "stream"):
        assert seen.get(f"{KIOSK}/{path}", key=other)["status"] == 404
    for wrong in ("x", "9" * 19, "0" * 5000):
        with seen.stream(**{"Last-Event-ID": wrong}) as response:
            assert response.status == 422


def test_a_lost_camera_is_told_by_health_and_the_service_is_ready(seen: Doors) -> None:
    wait_until(lambda: seen.get(f"{KIOSK}/cameras")["cameras"].get("back", {}).get("state") == "lost")
    cameras = seen.get(f"{KIOSK}/cameras")["cameras"]
    assert cameras["back"]["age"] is None
    assert "secret" not in json.dumps(cameras)
    ready = seen.get("/health/ready")
    assert ready["ready"]
    assert "the camera back is lost" in ready["degraded"]


def test_metrics_tell_how_cameras_are_and_what_was_decided_and_told_and_of_nobody(seen: Doors) -> None:
    def read() -> dict[str, float]:
        with seen.open("/metrics", Role.metrics) as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    wait_until(lambda: read().get('edgeface_camera_reconnects_total{camera="back"}', 0) >= 1)
    found = read()
    assert found["edgeface_kiosk_open"] in (0, 1)  # the recording may have ended
    assert found['edgeface_camera_up{camera="back"}'] == 0
    assert found['edgeface_camera_state{camera="back",state="lost"}'] == 1
    assert found['edgeface_camera_frames_total{camera="door"}'] > 10
    assert found['edgeface_camera_freezes_total{camera="door"}'] == 0
    assert found['edgeface_camera_decisions_total{camera="door",kind="known"}'] == 1
    assert found['edgeface_camera_decisions_total{camera="door",kind="unknown"}'] == 1
    assert found['edgeface_events_undelivered{target="webhook:office"}'] == 2
    assert found['edgeface_events_dead{target="webhook:office"}'] == 0
    assert not any("Ada" in name or "person" in name for name in found if name.startswith("edgeface_camera"))
    seen.keeper._publisher.log.undelivered("webhook:office", 1, "refused", seconds=None)  # type: ignore[union-attr]
    assert read()['edgeface_events_dead{target="webhook:office"}'] == 1


def test_who_asked_is_in_the_audit_log(seen: Doors) -> None:
    seen.get(f"{KIOSK}/events?person_id=1", Role.enrol)
    assert seen.service.audit is not None
    rows = list(seen.service.audit.rows(action="kiosk-events"))
    assert rows[-1].people == (1,)
    assert rows[-1].gallery == "default"


def test_a_watch_that_cannot_begin_is_closed_and_a_new_configuration_begins_it(tmp_path: Path) -> None:
    video = write_video(tmp_path / "door.avi", BLUE, None)
    wrong = {"cameras": {"door": camera(tmp_path / "missing.avi")}, "decision": DECISION}
    with watched(tmp_path, wrong) as made:
        wait_until(lambda: "missing.avi" in made.keeper.closed)
        assert made.get("/health/ready")["ready"]
        assert made.get("/health/ready")["degraded"]
        assert not made.get(f"{KIOSK}/cameras")["open"]
        kiosk = {"cameras": {"door": camera(video)}, "decision": DECISION, "names": True}
        made.service.reload(settings_of(tmp_path, kiosk))
        wait_until(lambda: made.keeper.last >= 1, 10)
        with made.stream(**{"Last-Event-ID": "0"}) as response:
            assert json.loads(next(each for each in messages(response) if "id" in each)["data"])["name"] == "Ada"


def test_an_event_that_cannot_be_recorded_is_told_to_nobody_and_closes_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(self: EventLog, event: Any) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr(EventLog, "record", record)
    video = write_video(tmp_path / "door.avi", BLUE, None)
    with watched(tmp_path, {"cameras": {"door": camera(video)}, "decision": DECISION}) as made:
        wait_until(lambda: "recorded" in made.keeper.closed)
        with made.stream(**{"Last-Event-ID": "0"}) as response:
            status = next(messages(response))
        assert (status["event"], json.loads(status["data"])["open"]) == ("status", False)


def test_without_the_section_nothing_is_watched(tmp_path: Path) -> None:
    with watched(tmp_path, None) as made:
        assert made.get(f"{KIOSK}/events")["status"] == 404
        assert made.get("/health/ready")["degraded"] == []
        assert not (tmp_path / "state" / "events.sqlite").exists()


@pytest.mark.slow
def test_the_command_watches_and_ends_its_streams_when_it_is_asked_to_stop(tmp_path: Path) -> None:
    video = write_video(tmp_path / "door.avi", None)
    kiosk = f"kiosk: {{cameras: {{door: {{source: {video}}}}}, decision: {{liveness: false, threshold: 0.95}}}}\n"
    with run_command(tmp_path, more=kiosk) as command:
        answer = answer_of(command)
        connection = http.client.HTTPConnection(answer["address"].removeprefix("http://"), timeout=60)
        connection.request("GET", f"{KIOSK}/stream", headers={"x-api-key": answer["first_key"]})
        told = messages(connection.getresponse())
        assert next(told)["event"] == "status"
        command.send_signal(signal.SIGTERM)
        assert all(each["event"] == "status" for each in told)
        assert command.wait(60) == 0
        assert command.stderr is not None
        assert "graceful shutdown exceeded" not in command.stderr.read()  # as uvicorn says before it cancels a stream


def test_a_kiosk_of_no_gallery_or_without_a_detector_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "serve.yml"
    path.write_text("kiosk: {gallery: north, cameras: {door: {source: '0'}}}\n")
    with pytest.raises(InputError, match=r"kiosk\.gallery"):
        load_settings(path, {}, kind=KioskServiceSettings)
    path.write_text("kiosk: {cameras: {door: {source: '0'}}}\nmodels: {default: {detector: null}}\n")
    with pytest.raises(InputError, match=r"models\.default\.detector"):
        load_settings(path, {}, kind=KioskServiceSettings)


def test_a_new_version_of_the_model_is_watched_with(tmp_path: Path) -> None:
    video = write_video(tmp_path / "door.avi", BLUE, None)
    with watched(tmp_path, {"cameras": {"door": camera(video)}, "decision": DECISION}) as made:
        wait_until(lambda: made.keeper.last >= 1)
        with made.service.models.use("default") as old:
            pass
        made.service.load_model("default")
        wait_until(lambda: made.keeper.last >= 2)
        wait_until(lambda: old.users == 0)


def test_events_of_one_camera(log: EventLog) -> None:
    log.record(visit(camera="door"))
    log.record(visit(camera="back"))
    assert [each.camera for each in log.events(camera="back")] == ["back"]


def test_a_browser_sends_the_pictures_of_its_camera_and_a_pin_opens_beside(tmp_path: Path) -> None:
    cameras = {"door": camera("browser", picture=True), "back": camera(write_video(tmp_path / "a.avi", None))}
    with watched(tmp_path, {"cameras": cameras, "decision": DECISION, "names": True, "pins": True}) as made:

        def send(path: str, body: bytes, kind: str = "image/png") -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=10)
            connection.request("POST", path, body, {"x-api-key": made.keys[Role.enrol], "content-type": kind})
            with connection.getresponse() as answer:
                return answer.status, answer.read()

        wait_until(lambda: not made.keeper.closed)
        picture = f"{KIOSK}/cameras/door/picture"
        with made.open(picture, Role.recognise) as none:
            assert none.status == 404, "before the first picture there is none to be shown"
        for number in range(100):
            frame = draw(BLUE, margin=1)
            frame[:4, number : number + 4] = 140  # something moves
            assert send(picture, cv2.imencode(".png", frame)[1].tobytes())[0] == 204
            if made.keeper.last:
                break
            time.sleep(0.05)
        (event,) = made.get(f"{KIOSK}/events")["events"]
        assert (event["kind"], event["name"], event["camera"]) == ("known", "Ada", "door")
        with made.open(picture, Role.recognise) as shown:
            assert (shown.status, shown.headers["content-type"]) == (200, "image/jpeg")
            assert cv2.imdecode(np.frombuffer(shown.read(), np.uint8), 1).shape == (120, 120, 3)
        for other, status in (("back", 409), ("side", 404)):
            assert send(f"{KIOSK}/cameras/{other}/picture", cv2.imencode(".png", frame)[1].tobytes())[0] == status
        slim = cv2.imencode(".png", np.zeros((3, 9_999, 3), np.uint8))[1].tobytes()
        assert (refused := send(picture, slim))[0] == 422, refused
        status = next(each for each in messages(made.stream()) if each["event"] == "status")
        told = json.loads(status["data"])
        assert (told["pictures"], told["pins"]) == ({"door": "sent"}, True)

        people = f"{doors.PREFIX}/galleries/default/people-by-pin"
        number = json.loads(send(people, b'{"name": "Grace", "pin": "4815"}', "application/json")[1])["id"]
        attempt = {"person_id": number, "pin": "4815", "camera": "door"}
        assert send(f"{KIOSK}/pin", json.dumps(attempt).encode(), "application/json") == (200, b'{"kind":"known"}')
        attempt["pin"] = "1516"
        assert send(f"{KIOSK}/pin", json.dumps(attempt).encode(), "application/json") == (200, b'{"kind":"unknown"}')
        wait_until(lambda: made.keeper.last >= 3)
        told = [(each["kind"], each["name"], each["reason"]) for each in made.get(f"{KIOSK}/events")["events"]]
        assert told[1:] == [("known", "Grace", "the PIN was right"), ("unknown", None, "a wrong PIN was given")]
