"""MQTT against a real broker: what Home Assistant is told, what stays, and a broker that goes away and comes back."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.kiosk.conftest import visit, wait_until

from edgeface.errors import GalleryKeyError
from edgeface.kiosk.delivery import Deliveries, Undelivered
from edgeface.kiosk.events import EventLog, LoggedEvent
from edgeface.kiosk.outcome import VisitKind
from edgeface.kiosk.targets import Mqtt

paho = pytest.importorskip("paho.mqtt.client", reason="extra 'mqtt'")
from edgeface.kiosk.mqtt import MqttSender  # noqa: E402

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
CONFIG = "homeassistant/event/edgeface_kiosk/{}/config"


class Broker:
    """A mosquitto of the test's own, on a free port of the loopback interface, with a password."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        passwords = folder / "passwords"
        passwords.touch(0o600)
        subprocess.run(["mosquitto_passwd", "-b", passwords, "kiosk", "pass word"], check=True, capture_output=True)
        self.config = folder / "mosquitto.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
        )
        self.start()

    def start(self) -> None:
        assert MOSQUITTO
        self.process = subprocess.Popen([MOSQUITTO, "-c", self.config], stderr=subprocess.DEVNULL)
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", self.port)) == 0)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    broker = Broker(tmp_path_factory.mktemp("broker"))
    yield broker
    broker.stop()


@contextlib.contextmanager
def listening(broker: Broker) -> Iterator[list[Any]]:
    """Yield what another client of the broker receives."""
    got: list[Any] = []
    client, ready = paho.Client(paho.CallbackAPIVersion.VERSION2), []
    client.username_pw_set("kiosk", "pass word")
    client.on_connect = lambda client, *_: client.subscribe("#", 1)
    client.on_subscribe = lambda *_: ready.append(1)
    client.on_message = lambda _client, _data, message: got.append(message)
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    wait_until(lambda: ready)
    try:
        yield got
    finally:
        client.disconnect()
        client.loop_stop()


@pytest.fixture
def password(tmp_path: Path) -> str:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_text("pass word\n")
    return f"file:{file}"


@contextlib.contextmanager
def sender(broker: Broker, password: str, *cameras: str, **settings: Any) -> Iterator[MqttSender]:
    mqtt = Mqtt(host="127.0.0.1", port=broker.port, user="kiosk", password=password, **settings)
    with contextlib.closing(MqttSender(mqtt, cameras)) as made:
        yield made


def of(got: list[Any], topic: str) -> list[Any]:
    return [message for message in list(got) if message.topic == topic]


def test_home_assistant_is_told_of_each_camera_and_whether_the_kiosk_is_there(broker: Broker, password: str) -> None:
    with sender(broker, password, "door", device="front"), listening(broker) as got:
        wait_until(lambda: of(got, "edgeface/front/available"))
        (message,) = of(got, "homeassistant/event/edgeface_front/door/config")
        entity = json.loads(message.payload)
        assert entity["state_topic"] == "edgeface/front/door/event"
        assert entity["event_types"] == ["known", "unknown", "inconclusive", "spoof"]
        assert entity["availability_topic"] == "edgeface/front/available"
        assert entity["unique_id"] == "edgeface_front_door"
        assert entity["device"]["identifiers"] == ["edgeface_front"]
    with listening(broker) as later:  # what is retained is what Home Assistant sees when it starts
        wait_until(lambda: len(later) >= 2)
        assert all(message.retain for message in later)
        assert of(later, "edgeface/front/available")[0].payload == b"offline"


def test_an_event_is_published_without_the_name_and_not_retained(broker: Broker, password: str, log: EventLog) -> None:
    with listening(broker) as got:
        with sender(broker, password, discovery=None) as mqtt:
            wait_until(lambda: of(got, "edgeface/kiosk/available"))
            event = log.record(visit(camera="back/door+#"))
            mqtt.send(event)
        topic = "edgeface/kiosk/back_2f_door_2b__23_/event"
        wait_until(lambda: of(got, topic))
        (message,) = of(got, topic)
        assert json.loads(message.payload) == {"event_type": "known", **event.to_dict(names=False)}
        assert (message.qos, message.retain) == (1, False)
        assert b"Lovelace" not in message.payload
        assert not [message for message in got if message.topic.startswith("homeassistant/event/edgeface_kiosk/back")]


def test_a_camera_is_described_at_its_first_event_and_named_people_only_where_configured(
    broker: Broker, password: str, log: EventLog
) -> None:
    with listening(broker) as got, sender(broker, password, names=True) as mqtt:
        wait_until(lambda: [each for each in of(got, "edgeface/kiosk/available") if each.payload == b"online"])
        for _ in range(2):
            mqtt.send(log.record(visit(camera="yard")))
        wait_until(lambda: len(of(got, "edgeface/kiosk/yard/event")) == 2)
        assert len(of(got, CONFIG.format("yard"))) == 1
        assert json.loads(of(got, "edgeface/kiosk/yard/event")[0].payload)["name"] == "Ada Lovelace"


def test_a_kiosk_that_is_killed_becomes_unavailable(broker: Broker, password: str) -> None:
    with listening(broker) as got, sender(broker, password, device="killed") as mqtt:
        topic = "edgeface/killed/available"
        wait_until(lambda: [each for each in of(got, topic) if each.payload == b"online"])
        mqtt._client.socket().shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that ends
        wait_until(lambda: b"offline" in [each.payload for each in of(got, topic)])


class Gate:
    """Holds events back, so that a listener is there before they are told."""

    strict = True

    def __init__(self, target: MqttSender) -> None:
        self.target, self.open = target, True

    def send(self, event: LoggedEvent) -> None:
        if not self.open:
            raise Undelivered("the gate is closed")
        self.target.send(event)

    def close(self) -> None: ...


def test_no_event_is_lost_while_the_broker_is_away(broker: Broker, password: str, tmp_path: Path) -> None:
    with (
        contextlib.closing(EventLog(tmp_path / "events.sqlite", targets={"mqtt": set(VisitKind)})) as log,
        sender(broker, password, "door") as mqtt,
        Deliveries(log, {"mqtt": (gate := Gate(mqtt))}, shortest=0.05, longest=0.1),
    ):
        log.record(visit())
        wait_until(lambda: not log.deliveries())
        broker.stop()
        away = [log.record(visit(person)).sequence for person in (7, None, 8, 7)]
        wait_until(lambda: log.deliveries()[0].attempts >= 2)
        assert "127.0.0.1" in str(log.deliveries()[0].error)
        gate.open = False
        broker.start()
        with listening(broker) as got:
            gate.open = True
            wait_until(lambda: not log.deliveries(), 20)
            topic = "edgeface/kiosk/door/event"
            wait_until(lambda: len(of(got, topic)) >= len(away))
            assert [json.loads(each.payload)["sequence"] for each in of(got, topic)] == away
            assert of(got, CONFIG.format("door"))  # the new broker had retained nothing


def test_without_a_broker_an_event_stays_in_the_outbox(log: EventLog, password: str) -> None:
    mqtt = Mqtt(host="127.0.0.1", port=1, user="kiosk", password=password)
    with contextlib.closing(MqttSender(mqtt)) as made, pytest.raises(Undelivered, match="no connection"):
        made.send(log.record(visit()))


def test_a_password_that_is_not_to_be_had_is_said_at_the_start(broker: Broker) -> None:
    with pytest.raises(GalleryKeyError, match="NO_SUCH_VARIABLE"), sender(broker, "env:NO_SUCH_VARIABLE"):
        pass
