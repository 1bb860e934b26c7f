"""Keep the keys of the service: who may ask what, of which gallery, and until when.

A key is a UUID of version 4 in its usual 36 characters, the form that clients of CompreFace demand. Its 122 random bits
cannot be guessed, so what is stored of it is one HMAC-SHA256 under a random salt of the store: a slow password hash
would protect nothing more, and would cost each request milliseconds. The text itself is returned once, and never
stored.
"""

from __future__ import annotations

import contextlib
import datetime
import enum
import hmac
import logging
import os
import re
import secrets
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeface.errors import EdgeFaceError, InputError, NegativeResult
from edgeface.serve.database import ServiceFile, ServiceFileError, ServiceFileKind
from edgeface.text import printable

_log = logging.getLogger(__name__)


class Role(str, enum.Enum):
    """What a key is for: `enrol` includes `recognise`, and `admin` includes all; `metrics` reads metrics only."""

    recognise = "recognise"
    enrol = "enrol"
    admin = "admin"
    metrics = "metrics"

    def includes(self, needed: Role) -> bool:
        """Return whether a key of this role may do what `needed` may.

        Examples
        --------
        >>> Role.enrol.includes(Role.recognise), Role.metrics.includes(Role.recognise)
        (True, False)
        """
        return needed is self or self is Role.admin or (self, needed) == (Role.enrol, Role.recognise)


Refusal = Literal["malformed", "unknown", "expired", "revoked"]
_MEANING: dict[Refusal, str] = {
    "malformed": "expected a key of 36 characters, as 'edgeface serve keys add' prints it, found something else",
    "unknown": "expected a key of this service, found another; make one: edgeface serve keys add",
    "expired": "this key has expired; make another: edgeface serve keys add",
    "revoked": "this key was revoked; make another: edgeface serve keys add",
}


class KeyRefused(NegativeResult):
    """A key is not accepted; `reason` says why, and the text never has the key.

    Only who holds a key learns that it has expired or was revoked.
    """

    def __init__(self, reason: Refusal) -> None:
        super().__init__(_MEANING[reason])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; nothing of it is secret.

    Attributes
    ----------
    id
        Eight hexadecimal digits: names the key in logs and commands.
    gallery
        The only gallery that the key is for; None: all.
    created, expires, revoked
        Times in UTC, to the second; None: never.
    last_used
        Day in UTC.
    replaced_by
        Id of the key that `KeyStore.rotate` made for it.
    """

    id: str
    name: str
    role: Role
    gallery: str | None
    created: datetime.datetime
    expires: datetime.datetime | None = None
    revoked: datetime.datetime | None = None
    last_used: datetime.date | None = None
    replaced_by: str | None = None

    def allows(self, needed: Role, gallery: str | None = None) -> bool:
        """Return whether the key may do what a role may, to one gallery.

        `gallery` None: what concerns no gallery, such as comparing two photos. What an administrator does then, and
        metrics, concern the whole service, for which the key of one gallery is not enough.
        """
        if self.gallery is not None and gallery is None and needed in (Role.admin, Role.metrics):
            return False
        return self.role.includes(needed) and (gallery is None or self.gallery in (None, gallery))

    def state(self, now: datetime.datetime) -> Literal["valid", "expired", "revoked"]:
        """Return whether the key is accepted at a time, and why not."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


_KIND = ServiceFileKind(
    what="key store",
    application_id=0x45464B59,  # EFKY
    schema="""
CREATE TABLE store (one INTEGER PRIMARY KEY CHECK (one = 1), salt BLOB NOT NULL, latest INTEGER NOT NULL);
CREATE TABLE keys (id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, name TEXT NOT NULL, role TEXT NOT NULL,
    gallery TEXT, created INTEGER NOT NULL, expires INTEGER, revoked INTEGER, last_used INTEGER, replaced_by TEXT);
INSERT INTO store VALUES (1, randomblob(32), 0);
""",
    synchronous="FULL",
)
_DIGEST = 32
_FORM = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_LOOK = 0.25
"""Seconds between looks at what other processes changed."""
_COARSE = 60
"""Seconds that the latest time seen may be ahead of the one on the disk, unless a key has expired since."""


class KeyStore:
    """The keys in a file, for all threads of a process, and for several processes.

    What another process changes is in force here within a second. A clock that is set back revives no key: time never
    goes behind the latest time at which the store was used, which is kept to the minute.

    Parameters
    ----------
    path
        SQLite file; made, readable by its owner only, if there is none.
    create
        False: it must exist.
    clock
        Seconds since 1970.

    Raises
    ------
    ServiceFileError
        If the file is damaged or something else, or others may write to it: nothing in it is changed.
    OutputError
        If it cannot be made or written to.
    """

    def __init__(self, path: Path, *, create: bool = True, clock: Callable[[], float] = time.time) -> None:
        self._file, self._clock = ServiceFile(path, _KIND, create=create), clock
        self._lock = self._file.lock
        self._absent: tuple[None, bytes] = (None, os.urandom(_DIGEST))
        self._keys: dict[bytes, tuple[Key, bytes]] = {}
        self._latest = self._stored = 0
        self._version: tuple[int, int] | None = None
        self._looked, self._used = 0.0, dict[str, int]()
        try:
            self._refresh()
        except BaseException:
            self._file.close()
            raise

    @property
    def path(self) -> Path:
        """Return the file."""
        return self._file.path

    def close(self) -> None:
        """Write down what `maintain` does, and close the file; closing again does nothing."""
        if not self._file.closed:
            try:
                self.maintain()
            except EdgeFaceError as error:
                _log.warning("%s", error)
        self._file.close()

    def find(self, text: str) -> Key:
        """Return the key of this text, which is accepted now; raise `KeyRefused` if there is none.

        An unknown key takes the same work as a known one.
        """
        if not _FORM.fullmatch(text):
            raise KeyRefused("malformed")
        digest = self._digest(text)
        with self._lock:
            if time.monotonic() - self._looked > _LOOK:
                self._refresh()
            # The place in the table tells nothing: it is that of an HMAC, and who asks does not know the salt.
            key, stored = self._keys.get(digest, self._absent)
            known, now = hmac.compare_digest(stored, digest), self._now()
            if key is None or not known:
                raise KeyRefused("unknown")
            state = key.state(now)
            if state != "valid":
                raise KeyRefused(state)
            if key.last_used != now.date():
                self._used[key.id] = _seconds(now)
            return key

    def maintain(self) -> None:
        """Write down the latest time, and which keys were used; the service calls it each second.

        `find` writes nothing, so it never waits for a disk. Raises as the class.
        """
        with self._lock:
            now, latest, used = self._now(), self._latest, dict(self._used)
            ends = (key.expires for key, _ in self._keys.values())
            ended = any(end is not None and _time(self._stored) < end <= now for end in ends)
            if not used and not ended and latest - self._stored < _COARSE:
                return
        with (
            contextlib.closing(ServiceFile(self.path, _KIND, create=False)) as file,  # `find` goes on meanwhile
            file.transaction(write=True) as connection,
        ):
            connection.execute("UPDATE store SET latest = max(latest, ?)", (latest,))
            days = [(when, key_id) for key_id, when in used.items()]
            connection.executemany("UPDATE keys SET last_used = ? WHERE id = ?", days)
        with self._lock:
            self._refresh()
            self._used = {key_id: when for key_id, when in self._used.items() if used.get(key_id) != when}

    def list(self) -> list[Key]:
        """Return all keys, also those that are not accepted any more, oldest first."""
        with self._lock:
            self._refresh()
            return sorted((key for key, _ in self._keys.values()), key=lambda key: (key.created, key.id))

    def now(self) -> datetime.datetime:
        """Return the time by which keys expire: that of the clock, or the latest seen."""
        with self._lock:
            return self._now()

    def count_admins(self) -> int:
        """Return how many keys administer the whole service now."""
        now = self.now()
        return sum(key.allows(Role.admin) and key.state(now) == "valid" for key in self.list())

    def add(
        self, name: str, role: Role, *, gallery: str | None = None, expires: datetime.datetime | None = None
    ) -> tuple[Key, str]:
        """Make a key; return it and its text, which cannot be had again.

        Parameters
        ----------
        name
            Who or what uses it, 1 to 100 printable characters; several keys may have one name.
        role
            What it is for.
        gallery
            The only gallery that it is for; None: all.
        expires
            A time with a zone, in the future; None: never.

        Raises
        ------
        InputError
            If one of them is something else.
        """
        role = Role(role)
        for what, given in (("name", name), ("gallery", gallery)):
            if given is not None and (not 1 <= len(given.strip()) == len(given) <= 100 or printable(given) != given):
                raise InputError(f"key: expected a {what} of 1 to 100 printable characters, found {given!r:.110}")
        if gallery is not None and role is Role.metrics:
            raise InputError("key: expected no gallery: metrics are those of the whole service; leave it out")
        with self._lock:
            now = self.now()
            if expires is not None and (expires.tzinfo is None or expires <= now):
                raise InputError(
                    f"key: expected a time with a zone, after {now:%Y-%m-%d %H:%M:%S} UTC, the latest that this store "
                    f"has seen, found {expires}; if the clock was wrong then, make a key that does not expire"
                )
            return self._insert(Key(_new_id(), name, role, gallery, now, expires))

    def rotate(self, key_id: str, grace: datetime.timedelta) -> tuple[Key, str]:
        """Make a key in place of another, for as long as that was made for; the other one expires after `grace`.

        Raises `InputError` if there is no such key, it is not accepted now, it was replaced already, or `grace` is
        negative or more than a year.
        """
        if not datetime.timedelta(0) <= grace <= datetime.timedelta(days=366):
            raise InputError(f"key: expected a grace of 0 days to a year, found {grace}")
        with self._lock:
            old, now = self._get(key_id), self.now()
            if old.state(now) != "valid" or old.replaced_by:
                found = f"one replaced by {old.replaced_by}" if old.replaced_by else f"an {old.state(now)} one"
                raise InputError(f"key {key_id}: expected a valid key, found {found}; add a key instead")
            lifetime = old.expires - old.created if old.expires else None
            new = Key(_new_id(), old.name, old.role, old.gallery, now, now + lifetime if lifetime else None)
            ends = min(now + grace, old.expires or now + grace)
            also = (
                "UPDATE keys SET expires = ?, replaced_by = ? WHERE id = ? AND coalesce(revoked, replaced_by) IS NULL"
            )
            return self._insert(new, also, (_seconds(ends), new.id, old.id))

    def revoke(self, key_id: str) -> Key:
        """Refuse a key from now on, for good; raise `InputError` if there is none of this id."""
        with self._lock:
            self._get(key_id)
            with self._file.transaction(write=True) as connection:
                connection.execute(
                    "UPDATE keys SET revoked = coalesce(revoked, ?) WHERE id = ?", (_seconds(self._now()), key_id)
                )
            return self._get(key_id)

    def state_of(self, key_id: str) -> str:
        """Return the state of a key now, as `Key.state`; raise `InputError` if there is none of this id."""
        return self._get(key_id).state(self.now())

    def _get(self, key_id: str) -> Key:
        for key in self.list():
            if key.id == key_id:
                return key
        raise InputError(
            path=self.path,
            expected="the id of a key",
            found=repr(printable(key_id[:40])),
            remedy="list them: edgeface serve keys list",
        )

    def _insert(self, key: Key, also: str = "", values: tuple[Any, ...] = ()) -> tuple[Key, str]:
        text = str(uuid.uuid4())
        row = (key.id, self._digest(text), key.name, key.role.value, key.gallery, _seconds(key.created))
        with self._file.transaction(write=True) as connection:
            connection.execute(
                "INSERT INTO keys (id, digest, name, role, gallery, created, expires) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*row, key.expires and _seconds(key.expires)),
            )
            if also and connection.execute(also, values).rowcount != 1:
                raise InputError(f"key {values[-1]}: another process replaced or revoked it meanwhile; list the keys")
        return self._get(key.id), text

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self._salt, text.lower().encode(), "sha256")

    def _now(self) -> datetime.datetime:
        self._latest = max(self._latest, int(self._clock()))
        return _time(self._latest)

    def _refresh(self) -> None:
        """Read all keys again if any process changed them."""
        with self._file.transaction() as connection:
            (others,) = connection.execute("PRAGMA data_version").fetchone()
            version = int(others), connection.total_changes
            if version == self._version:
                self._looked = time.monotonic()
                return
            row = connection.execute("SELECT salt, latest FROM store").fetchone()
            rows = connection.execute(
                "SELECT digest, id, name, role, gallery, created, expires, revoked, last_used, replaced_by FROM keys"
            ).fetchall()
        try:
            salt, latest = row
            if len(salt) != _DIGEST or not isinstance(salt, bytes):
                raise ValueError("a salt of another length")
            keys = dict(_parse(*each) for each in rows)
            self._salt, self._latest = salt, max(self._latest, int(latest))
            self._stored = max(self._stored, int(latest))
        except (TypeError, ValueError, OverflowError, AttributeError, OSError) as error:
            raise ServiceFileError(
                path=self.path,
                expected="keys written by edgeface",
                found=f"damage: {error}"[:200],
                remedy="nothing in it was changed; restore it from a copy, or move it away and add keys again",
            ) from error
        self._keys, self._version, self._looked = keys, version, time.monotonic()


def _parse(digest: Any, *row: Any) -> tuple[bytes, tuple[Key, bytes]]:
    key_id, name, role, gallery, created, expires, revoked, last_used, replaced_by = row
    texts = (key_id, name, *(each for each in (gallery, replaced_by) if each is not None))
    if not isinstance(digest, bytes) or len(digest) != _DIGEST or not all(isinstance(each, str) for each in texts):
        raise ValueError("a key of another form")
    ends, ended, used = (None if each is None else _time(each) for each in (expires, revoked, last_used))
    key = Key(
        key_id, name, Role(role), gallery, _time(created), ends, ended, used.date() if used else None, replaced_by
    )
    return digest, (key, digest)


def _new_id() -> str:
    return secrets.token_hex(4)


def _seconds(when: datetime.datetime) -> int:
    return int(when.timestamp())


def _time(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
