"""Record each event of the kiosk, and tell it to whom the configuration names."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgeface.files import Closing
from edgeface.gallery.keys import read_key
from edgeface.gallery.store.base import GalleryStore
from edgeface.kiosk.delivery import Deliveries, Sender, WebhookSender
from edgeface.kiosk.events import EventLog, LoggedEvent
from edgeface.kiosk.forgetting import forget_gone
from edgeface.kiosk.hook import CommandHook
from edgeface.kiosk.mqtt import MqttSender
from edgeface.kiosk.outcome import VisitEvent
from edgeface.kiosk.targets import EventSettings

_log = logging.getLogger(__name__)
_LOOK = 60.0
"""Seconds between looks at whom the gallery has forgotten."""


class EventPublisher(Closing):
    """The log, the workers that deliver from it, and the door's command, until closed.

    Parameters
    ----------
    path
        The log's file, made if there is none.
    settings
        Retention and targets. The log knows a webhook as ``webhook:NAME``, the broker as ``mqtt``.
    cameras
        Names of cameras that Home Assistant is told of before their first event.

    Attributes
    ----------
    log : EventLog
        The log.

    Raises
    ------
    InputError
        If another process delivers from this log, or a secret or certificate cannot be read.
    ExtraNotInstalledError
        For MQTT without paho-mqtt.
    """

    def __init__(self, path: Path, settings: EventSettings, *, cameras: Iterable[str] = ()) -> None:
        with contextlib.ExitStack() as stack:
            senders: dict[str, Sender] = {}
            kinds = {f"webhook:{name}": hook.kinds for name, hook in settings.webhooks.items()}
            if settings.mqtt is not None:
                kinds["mqtt"] = settings.mqtt.kinds
            self.log = stack.enter_context(
                contextlib.closing(
                    EventLog(
                        path,
                        targets=kinds,
                        retention_days=settings.retention_days,
                        crop_hours=settings.crop_hours,
                        unknown_crop_hours=settings.unknown_crop_hours,
                    )
                )
            )
            for name, hook in settings.webhooks.items():
                senders[f"webhook:{name}"] = WebhookSender(hook, read_key(hook.secret, beside=None))
            if settings.mqtt is not None:
                senders["mqtt"] = MqttSender(settings.mqtt, cameras)
            stack.enter_context(Deliveries(self.log, senders, give_up_hours=settings.give_up_hours))
            self._door = None if settings.door is None else CommandHook(settings.door)
            if self._door is not None:
                stack.callback(self._door.close)
            self._open = stack.pop_all()

    def publish(self, event: VisitEvent) -> LoggedEvent:
        """Record an event, then run the door's command for it; an event that cannot be recorded opens no door."""
        logged = self.log.record(event)
        if self._door is not None:
            self._door.offer(logged)
        return logged

    @contextlib.contextmanager
    def following(self, store: GalleryStore, *, every: float = _LOOK) -> Iterator[None]:
        """In a block, forget in the log whom the gallery has forgotten: at once, and every so many seconds.

        Commands and other services may have forgotten them. The store is not closed.
        """
        ending, generation = threading.Event(), -1

        def follow() -> None:
            nonlocal generation
            while True:
                try:
                    if (now := store.generation()) != generation:
                        forget_gone(self.log, store)
                        generation = now
                except Exception as error:  # away or busy: it is tried again
                    _log.warning("events: who was forgotten cannot be known: %s", error)
                if ending.wait(every):
                    return

        thread = threading.Thread(target=follow, name="events follow", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()

    def close(self) -> None:
        """Wait for what is sent and run now; what is not delivered stays in the log's outbox."""
        self._open.close()
