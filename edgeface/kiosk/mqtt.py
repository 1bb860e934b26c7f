"""Publish events on an MQTT broker, and describe them to Home Assistant (extra ``mqtt``).

Topics: ``edgeface/DEVICE/available`` (``online``, or ``offline`` by the connection's last will; retained) and
``edgeface/DEVICE/CAMERA/event`` (JSON, QoS 1, not retained, so that nobody who comes later takes an old event for a new
one). Each camera is an entity of Home Assistant's platform ``event``, described in the retained
``homeassistant/event/edgeface_DEVICE/CAMERA/config``; see https://www.home-assistant.io/integrations/event.mqtt/.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterable
from typing import Any

from edgeface.errors import ExtraNotInstalledError
from edgeface.gallery.keys import read_password
from edgeface.kiosk.delivery import Undelivered, tls_context
from edgeface.kiosk.events import LoggedEvent
from edgeface.kiosk.outcome import VisitKind
from edgeface.kiosk.targets import Mqtt
from edgeface.version import __version__

_QOS = 1
_log = logging.getLogger(__name__)


class MqttSender:
    """Publish events; connects by itself, and again when the broker has gone.

    Parameters
    ----------
    settings
        The broker.
    cameras
        Names of cameras that are described before their first event.

    Raises
    ------
    ExtraNotInstalledError
        Without paho-mqtt.
    GalleryKeyError
        If the password cannot be read.
    """

    strict = True

    def __init__(self, settings: Mqtt, cameras: Iterable[str] = ()) -> None:
        try:
            from paho.mqtt import client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as error:
            raise ExtraNotInstalledError("mqtt", needed_for="MQTT") from error
        self._settings, self._lock, self._cameras = settings, threading.Lock(), set(cameras)
        self._base = f"edgeface/{settings.device}"
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"edgeface-{settings.device}")
        if settings.user is not None:
            self._client.username_pw_set(settings.user, settings.password and read_password(settings.password))
        if settings.tls:
            self._client.tls_set_context(tls_context(settings.ca))
        self._client.will_set(f"{self._base}/available", "offline", _QOS, retain=True)
        self._client.reconnect_delay_set(1, 60)
        self._client.on_connect = self._greet
        self._client.connect_timeout = settings.timeout
        self._client.connect_async(settings.host, settings.port, keepalive=30)
        self._client.loop_start()

    def close(self) -> None:
        """Say that the kiosk has gone, and disconnect."""
        if self._client.is_connected():
            self._publish(f"{self._base}/available", "offline", retain=True)
        self._client.disconnect()
        self._client.loop_stop()

    def send(self, event: LoggedEvent) -> None:
        """Publish an event, and wait until the broker has it."""
        if not self._client.is_connected():
            raise Undelivered(f"no connection to {self._settings.host}:{self._settings.port}")
        with self._lock:
            new = event.camera not in self._cameras
            self._cameras.add(event.camera)
        if new:
            self._describe(event.camera)
        told = {"event_type": event.kind.value, **event.to_dict(names=self._settings.names)}
        if not self._publish(f"{self._base}/{_level(event.camera)}/event", json.dumps(told), retain=False):
            raise Undelivered(f"{self._settings.host}:{self._settings.port} has not acknowledged it")

    def _publish(self, topic: str, payload: str, *, retain: bool) -> bool:
        message = self._client.publish(topic, payload, _QOS, retain=retain)
        try:
            message.wait_for_publish(self._settings.timeout)
            return bool(message.is_published())
        except (RuntimeError, ValueError):  # the connection was lost; the queue is full
            return False

    def _greet(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        """Describe the cameras on each connection, for a broker may have lost what it retained. No waiting here."""
        if reason.is_failure:
            _log.warning("events: %s:%d refused the connection: %s", self._settings.host, self._settings.port, reason)
            return
        with self._lock:
            cameras = sorted(self._cameras)
        for camera in cameras:
            self._describe(camera)
        client.publish(f"{self._base}/available", "online", _QOS, retain=True)

    def _describe(self, camera: str) -> None:
        if self._settings.discovery is None:
            return
        device = self._settings.device
        entity = {
            "name": camera,
            "unique_id": f"edgeface_{device}_{_level(camera)}",
            "state_topic": f"{self._base}/{_level(camera)}/event",
            "event_types": [kind.value for kind in VisitKind],
            "availability_topic": f"{self._base}/available",
            "qos": _QOS,
            "icon": "mdi:face-recognition",
            "device": {"identifiers": [f"edgeface_{device}"], "name": device, "sw_version": __version__},
            "origin": {"name": "edgeface", "sw_version": __version__},
        }
        topic = f"{self._settings.discovery}/event/edgeface_{_level(device)}/{_level(camera)}/config"
        self._client.publish(topic, json.dumps(entity), _QOS, retain=True)


def _level(name: str) -> str:
    """Return a name as one level of a topic, in the characters of Home Assistant's ids; others as ``_HEX_``."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: f"_{ord(found[0]):x}_", name)
