"""Limit how often a key or an address may ask, in bounded memory.

Each limit is a token bucket, kept as the time at which the bucket will be full again (the generic cell rate algorithm:
ITU-T I.371, annex A): one number for each key or address.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

BURST_SECONDS = 10.0
"""A bucket holds what its rate allows in this time."""


def group_address(address: str | None) -> str:
    """Return what an address counts as: an IPv4 address itself, an IPv6 address its network of 64 bits.

    One host has a whole such network (RFC 4291, 2.5.4). What is no IP address, such as the peer of a Unix socket,
    counts as one.

    Examples
    --------
    >>> group_address("2001:db8:0:1:2:3:4:5"), group_address("::ffff:10.0.0.7"), group_address(None)
    ('2001:0db8:0000:0001::/64', '10.0.0.7', 'local')
    """
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "local"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return f"{parsed.exploded[:19]}::/64"


class _Buckets:
    def __init__(self, rate: float, most: int) -> None:
        self._interval, self._room = 1 / rate, max(BURST_SECONDS - 1 / rate, 0.0)
        self._most, self._full = most, OrderedDict[str, float]()

    def take(self, name: str, now: float) -> float:
        full = max(self._full.get(name, now), now)
        if (wait := full - now - self._room) > 1e-9:
            self._full.move_to_end(name)
            return wait
        self._full[name] = full + self._interval
        self._full.move_to_end(name)
        if len(self._full) > self._most:
            self._full.popitem(last=False)  # the least recent: its next bucket is full, never empty
        return 0.0

    def give_back(self, name: str) -> None:
        if name in self._full:
            self._full[name] -= self._interval


class Rates:
    """How often one key and one address may ask; for all threads.

    Look a key up first, and ask `wrong_key` if it is refused, else the other two. Wrong keys then take nothing
    from who has a right one, not even at the same address, behind which many may be. They cannot be guessed, so nobody
    is locked out for wrong ones: the limit only bounds what answering and logging them costs.

    Parameters
    ----------
    per_key, per_address, wrong_per_address
        Requests a second, on average over `BURST_SECONDS`.
    most
        Keys, and addresses, that are remembered; those that asked least recently are forgotten first.
    clock
        Seconds that never go back.

    Examples
    --------
    >>> rates = Rates(per_key=0.1, per_address=200, wrong_per_address=1, clock=lambda: 0.0)
    >>> rates.wait_for_key("4f1c22d8"), rates.wait_for_key("4f1c22d8")
    (0.0, 10.0)
    """

    def __init__(
        self,
        *,
        per_key: float,
        per_address: float,
        wrong_per_address: float,
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys, self._addresses, self._wrong = (
            _Buckets(rate, most) for rate in (per_key, per_address, wrong_per_address)
        )
        self._lock, self._clock = threading.Lock(), clock

    def wait_for_key(self, key_id: str) -> float:
        """Count a request of a key; return the seconds to wait (Retry-After), 0 if it may go on."""
        return self._take(self._keys, key_id)

    def wait_for_address(self, address: str | None) -> float:
        """Count a request of an address, as `wait_for_key`."""
        return self._take(self._addresses, group_address(address))

    def wrong_key(self, address: str | None) -> float:
        """Count a wrong key of an address, as `wait_for_key`: 0 if it is to be told so, and logged."""
        return self._take(self._wrong, group_address(address))

    def right_guess(self, address: str | None) -> None:
        """Count no wrong key where one was counted before it was looked at, and was right."""
        with self._lock:
            self._wrong.give_back(group_address(address))

    def _take(self, buckets: _Buckets, name: str) -> float:
        with self._lock:
            return buckets.take(name, self._clock())
