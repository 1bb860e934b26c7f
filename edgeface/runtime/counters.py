"""Count requests and their latency, for monitoring."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

Outcome = Literal["done", "failed", "dropped", "cancelled", "expired", "abandoned"]
"""How a request ended. `abandoned`: the engine was closed first."""

_PER_OCTAVE = 4
_LOWEST = 1e-5
_BUCKETS = 25 * _PER_OCTAVE  # 10 microseconds to 5.6 minutes, each bucket 19 % wide


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """Histogram of latency, from submission to result, in log-spaced buckets, and the sum of all latencies.

    Bucket `i` of `counts` holds latencies up to `upper_bound(i)`, the last one all longer ones too.
    """

    counts: tuple[int, ...] = (0,) * _BUCKETS
    total_seconds: float = 0.0

    @staticmethod
    def upper_bound(bucket: int) -> float:
        """Return the upper bound of a bucket in seconds."""
        return float(_LOWEST * 2 ** ((bucket + 1) / _PER_OCTAVE))

    def quantile(self, q: float) -> float:
        """Return the latency quantile `q` in seconds, rounded up to its bucket's bound; NaN without requests."""
        wanted = q * sum(self.counts)
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return self.upper_bound(bucket)
        return math.nan

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return LatencyHistogram(counts, self.total_seconds + other.total_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counts of an engine's requests.

    ``submitted == done + failed + dropped + cancelled + expired + abandoned + queued + running`` always holds.

    Attributes
    ----------
    submitted, rejected
        Requests that were accepted, or refused: the queue was full and the policy was ``reject``. `amap` retries them.
    done, failed, dropped, cancelled, expired, abandoned
        How accepted requests ended: with a result, an error of the device, replaced by a newer one, cancelled by the
        caller, past the deadline, unfinished when the engine was closed.
    queued, running
        Requests that wait, and that the device computes.
    latency
        Of the requests that ended with a result.
    """

    submitted: int = 0
    rejected: int = 0
    done: int = 0
    failed: int = 0
    dropped: int = 0
    cancelled: int = 0
    expired: int = 0
    abandoned: int = 0
    queued: int = 0
    running: int = 0
    latency: LatencyHistogram = dataclasses.field(default_factory=LatencyHistogram)

    def __add__(self, other: Counters) -> Counters:
        names = [field.name for field in dataclasses.fields(self)]
        return Counters(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types, with the latency's 50th, 95th and 99th percentile in milliseconds."""
        stored = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del stored["latency"]
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            seconds = self.latency.quantile(q)
            stored[f"latency_{name}_ms"] = None if math.isnan(seconds) else round(1e3 * seconds, 3)
        return stored


class Tally:
    """The sums behind `Counters`. Not thread-safe: the owner's lock protects it."""

    def __init__(self) -> None:
        self.rejected = 0
        self.ended: dict[Outcome, int] = dict.fromkeys(get_args(Outcome), 0)
        self._latencies = [0] * _BUCKETS
        self._seconds = 0.0

    def measure(self, seconds: float) -> None:
        """Count one latency."""
        self._seconds += seconds
        bucket = int(_PER_OCTAVE * math.log2(seconds / _LOWEST)) if seconds > _LOWEST else 0
        self._latencies[min(bucket, _BUCKETS - 1)] += 1

    def snapshot(self, *, queued: int, running: int) -> Counters:
        """Return the counters. `submitted` is computed from the others, so they always agree."""
        return Counters(
            submitted=sum(self.ended.values()) + queued + running,
            rejected=self.rejected,
            **self.ended,
            queued=queued,
            running=running,
            latency=LatencyHistogram(tuple(self._latencies), self._seconds),
        )
