"""Tell targets the events of the kiosk, each at least once, in the order of each person's events.

Every target has a worker of its own, so that one that is down delays no other. A delivery stays in the log's outbox
until the target has acknowledged it. One that failed is tried again after 1, 2, 4, ... seconds, at most a minute, of
which up to a half is left out at random, so that many kiosks do not come back at once. A target whose acknowledgement
was lost, or was not noted before a kill, is told again: it knows the event by its id.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import hmac
import ipaddress
import json
import logging
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import filelock
import httpx

from edgeface.errors import EdgeFaceError, InputError
from edgeface.files import Closing
from edgeface.kiosk.events import EventLog, LoggedEvent
from edgeface.kiosk.targets import Webhook
from edgeface.text import hide_secrets
from edgeface.version import __version__

SIGNATURE = "X-Edgeface-Signature"
"""Header of a signed request: ``t=SECONDS,v1=HEX``."""

_SHORTEST, _LONGEST = 1.0, 60.0
_GRACE = 1.0
"""Seconds beyond a webhook's timeout after which its connection is ended, however busy it is."""
_POLL = 1.0
"""Seconds after which a worker looks for what another process has put into the outbox."""
_log = logging.getLogger(__name__)


class Undelivered(Exception):  # noqa: N818 - it is no error of the program's
    """A target did not acknowledge an event; the text says why, without secrets."""


class Sender(Protocol):
    """Tell one target one event."""

    strict: bool
    """Whether the target is told all events in order, and not only those of one person."""

    def send(self, event: LoggedEvent) -> None:
        """Return once the target has acknowledged the event; raise `Undelivered` if it has not."""

    def close(self) -> None:
        """Close connections."""


class Deliveries(Closing):
    """Workers that empty the outbox of a log, and remove from the log what is too old, until they are closed.

    Parameters
    ----------
    log
        The log. Only one process at a time delivers from a file; closing does not close the log.
    senders
        By the names that the log has as targets.
    give_up_hours
        Age of an event after which a delivery that fails is dead.
    shortest, longest
        Seconds before the first repetition, and between two.

    Raises
    ------
    InputError
        If another process delivers from this file.
    """

    def __init__(
        self,
        log: EventLog,
        senders: Mapping[str, Sender],
        *,
        give_up_hours: float = 72,
        shortest: float = _SHORTEST,
        longest: float = _LONGEST,
    ) -> None:
        self._log, self._senders, self._give_up = log, dict(senders), datetime.timedelta(hours=give_up_hours)
        self._shortest, self._longest = shortest, longest
        self._ending, self._failures = threading.Event(), dict.fromkeys(senders, 0)
        self._one = filelock.FileLock(log.path.with_name(log.path.name + ".sending"), mode=0o600)
        try:
            self._one.acquire(timeout=0)
        except filelock.Timeout as error:
            raise InputError(
                path=log.path,
                expected="no other process that delivers its events",
                found="one",
                remedy="stop it, or give this kiosk a log of its own",
            ) from error
        works = [
            (name, lambda name=name, sender=sender: self._deliver(name, sender)) for name, sender in senders.items()
        ]
        self._threads = [
            threading.Thread(target=self._run, args=each, name=f"events {each[0]}", daemon=True)
            for each in [*works, ("maintenance", self._maintain)]
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop the workers, after what each is sending now; what is not delivered stays in the outbox."""
        self._ending.set()
        self._log.wake()
        for thread in self._threads:
            thread.join()
        for sender in self._senders.values():
            sender.close()
        self._one.release()

    def _run(self, name: str, step: Callable[[], float]) -> None:
        """Repeat a step, which returns the seconds until the next; a failure, such as a full disk, does not end it."""
        seen = 0
        while not self._ending.is_set():
            try:
                pause = step()
            except Exception:
                _log.exception("events: %s failed", name)
                pause = self._longest
            if 0 < pause <= _POLL:
                seen = self._log.wait(seen, pause)
            elif pause:
                self._ending.wait(pause)

    def _maintain(self) -> float:
        self._log.maintain()
        return 60.0

    def _deliver(self, target: str, sender: Sender) -> float:
        """Tell a target one event."""
        found = self._log.next_delivery(target, strict=sender.strict)
        if not isinstance(found, tuple):
            return _POLL if found is None else min(found, _POLL)
        event, attempts = found
        try:
            sender.send(event)
        except Exception as error:
            reason = hide_secrets(str(error) if isinstance(error, Undelivered) else repr(error))
            if not isinstance(error, (Undelivered, EdgeFaceError)):
                _log.exception("events: %s", target)
            dead = datetime.datetime.now(datetime.timezone.utc) - event.time > self._give_up
            self._log.undelivered(target, event.sequence, reason, seconds=None if dead else self._pause(attempts))
            _log.warning("events: %s was not told event %s: %s", target, event.id, reason)
            self._failures[target] += 1
            return self._pause(self._failures[target] - 1)
        self._failures[target] = 0
        self._log.delivered(target, event.sequence)
        return 0.0

    def _pause(self, failures: int) -> float:
        return min(self._longest, self._shortest * float(2 ** min(failures, 20))) * random.uniform(0.5, 1)


# Webhooks


def sign(secret: bytes, body: bytes, timestamp: int) -> str:
    """Return the header `SIGNATURE` of a body: HMAC-SHA256 of ``b"SECONDS." + body``.

    Examples
    --------
    >>> verify_signature(b"k" * 32, sign(b"k" * 32, b"{}", 1000), b"{}", now=1010)
    True
    """
    digest = hmac.new(secret, b"%d." % timestamp + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def verify_signature(
    secret: bytes, header: str, body: bytes, *, tolerance: float = 300, now: float | None = None
) -> bool:
    """Return whether a request was signed with a secret, and within some seconds of now.

    A request cannot be replayed later than that. Within these seconds an endpoint tells a replay by the event's id.
    """
    found = re.fullmatch(r"t=(\d{1,12}),v1=[0-9a-f]{64}", header, re.ASCII)
    if found is None:
        return False
    timestamp = int(found[1])
    fresh = abs((time.time() if now is None else now) - timestamp) <= tolerance
    return hmac.compare_digest(sign(secret, body, timestamp), header) and fresh


class WebhookSender:
    """Send events to an HTTP endpoint as signed JSON; see `sign`.

    Redirects are not followed, proxies of the environment are not used, and an answer's body is not read. With http://
    the name is resolved once, and the request goes to an address that `Webhook.plain_http` allows.
    """

    strict = False

    def __init__(self, settings: Webhook, secret: bytes) -> None:
        self._settings, self._secret, self._url = settings, secret, httpx.URL(settings.url)
        self._client = httpx.Client(timeout=settings.timeout, trust_env=False, verify=tls_context(settings.ca))
        self._socket: socket.socket | None = None
        logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs addresses, whose path may be a secret

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def send(self, event: LoggedEvent) -> None:
        """Send an event; any answer but 2xx raises `Undelivered`."""
        body = json.dumps(event.to_dict(names=self._settings.names), separators=(",", ":")).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"edgeface/{__version__}",
            "X-Edgeface-Event": event.id,
            SIGNATURE: sign(self._secret, body, int(time.time())),
        }
        url = self._url
        if url.scheme == "http":
            headers["Host"] = url.netloc.decode()
            url = url.copy_with(host=self._address())
        end = threading.Timer(self._settings.timeout + _GRACE, self._hang_up)
        end.daemon = True
        end.start()
        try:
            with self._client.stream(
                "POST", url, content=body, headers=headers, extensions={"trace": self._follow}
            ) as answer:
                status = answer.status_code
        except httpx.HTTPError as error:
            raise Undelivered(f"{type(error).__name__}: {error}") from error
        finally:
            end.cancel()
        if not 200 <= status < 300:
            raise Undelivered(f"expected an answer of 200 to 299, found {status}")

    def _follow(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the socket of the connection, of which httpx tells as it is made."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._socket = info["return_value"].get_extra_info("socket")

    def _hang_up(self) -> None:
        """End a request that takes too long: httpx limits each wait only, and an answer can come byte by byte."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _address(self) -> str:
        """Return an address of the host, if all that it has may be told events without TLS."""
        try:
            found = socket.getaddrinfo(self._url.host, self._url.port or 80, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Undelivered(f"{self._url.host}: {error.strerror}") from error
        lan = self._settings.plain_http == "lan"
        for address in (ipaddress.ip_address(each[4][0]) for each in found):
            if not (address.is_loopback or (lan and (address.is_private and not address.is_unspecified))):
                raise Undelivered(
                    f"expected {'a private' if lan else 'a loopback'} address for http://, found {address}; use https"
                )
        return str(found[0][4][0])


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Return what checks a server's certificate: against a file of authorities in PEM, or against this machine's."""
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InputError(path=ca, expected="certificates in PEM", found=str(error)) from error
