"""Configure whom the kiosk tells its events: webhooks, an MQTT broker, a command that opens a door."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from edgeface.kiosk.outcome import VisitKind
from edgeface.serve.settings import Name, Positive, Section

Seconds = Annotated[float, Field(gt=0, le=300)]


class _Target(Section):
    kinds: tuple[VisitKind, ...] = tuple(VisitKind)
    """Events that it is told."""
    names: bool = False
    """Tell it the names of people too, beside their ids."""
    timeout: Seconds = 10.0
    """Seconds to wait for its answer."""
    ca: Path | None = None
    """Certificates in PEM of the authority that its certificate is of; null: those of this machine."""


class Webhook(_Target):
    """An HTTP endpoint that is sent each event."""

    url: str
    """https://..., or http://... as plain_http allows, in ASCII."""
    secret: str
    """Where the key of its signatures is: file:PATH, env:NAME or command:WORDS; 32 bytes, or 64 hexadecimal digits."""
    plain_http: Literal["loopback", "lan"] = "loopback"
    """Where http:// may lead: to this machine only, or to private addresses, on whose way events can be read."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        parts = urllib.parse.urlsplit(url)
        plain = url.isascii() and url.isprintable() and parts.port != 0 and "@" not in parts.netloc
        if not plain or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected https://HOST/PATH or http://HOST/PATH, without user and password")
        return url


class Mqtt(_Target):
    """An MQTT broker, and Home Assistant's discovery on it."""

    host: str
    """Name or address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    """8883 is usual with TLS."""
    tls: bool = False
    """Encrypt, and check the broker's certificate; without it events and password can be read on the way."""
    user: str | None = None
    """Null: none."""
    password: str | None = None
    """Where it is: file:PATH, env:NAME or command:WORDS."""
    device: Name = "kiosk"
    """Name of this kiosk, which no other one of the broker has: part of topics."""
    discovery: Annotated[str, Field(pattern=r"^[A-Za-z0-9_/-]{1,100}$")] | None = "homeassistant"
    """Home Assistant's discovery prefix; null: no discovery."""


class DoorCommand(Section):
    """A program that is run when a known person is decided, e.g. to switch a relay."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Program and arguments; no shell reads them. It is given the event as JSON on stdin."""
    cameras: tuple[str, ...] = ()
    """Cameras of which it is run; none: all."""
    max_age: Seconds = 3.0
    """Seconds after the decision after which it is not run any more."""
    timeout: Seconds = 10.0
    """Seconds after which it is killed."""
    at_once: Positive = 1
    """How many may run at once; while so many do, no other one is run."""


class EventSettings(Section):
    """How long events are kept, and who is told."""

    retention_days: Positive = 90
    """Older events are removed."""
    crop_hours: Annotated[float, Field(ge=0, le=8760)] = 0
    """Keep a picture of the face of each known person for so many hours; 0: never write one."""
    unknown_crop_hours: Annotated[float, Field(ge=0, le=8760)] = 0
    """The same of faces that nobody is known by: unknown, inconclusive and spoof."""
    give_up_hours: Annotated[float, Field(gt=0)] = 72
    """A delivery that fails for so long is not tried any more; see 'edgeface events resend'."""
    webhooks: dict[Name, Webhook] = Field(default_factory=dict)
    """By name."""
    mqtt: Mqtt | None = None
    """A broker; null: none."""
    door: DoorCommand | None = None
    """A command; null: none."""

    @property
    def keeps_crops(self) -> bool:
        """Whether a picture of any face is kept."""
        return self.crop_hours > 0 or self.unknown_crop_hours > 0
