"""Events of an engine in, numbers that an operator watches out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["Counters", "LatencyHistogram", "Outcome", "Tally"]

Outcome = Literal["done", "failed", "dropped", "cancelled", "expired", "abandoned"]
"""How a request ended; `abandoned`: the engine was closed before its turn."""

_PER_OCTAVE = 4
_LOWEST = 1e-5
_BUCKETS = 25 * _PER_OCTAVE  # 10 microseconds to 5.6 minutes, each bucket 19 % wide


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """Seconds from submission to result, in log-spaced buckets.

    Attributes
    ----------
    counts : one whole number a bucket
        Bucket `i` holds latencies up to `upper_bound(i)`; the last one also all longer ones.
    total_seconds
        Sum of all latencies.
    """

    counts: tuple[int, ...] = (0,) * _BUCKETS
    total_seconds: float = 0.0

    @staticmethod
    def upper_bound(bucket: int) -> float:
        """Seconds at which a bucket ends."""
        return float(_LOWEST * 2 ** ((bucket + 1) / _PER_OCTAVE))

    def quantile(self, q: float) -> float:
        """Seconds within which the fraction `q` of requests was answered, rounded up to its bucket's end.

        NaN when nothing was measured.
        """
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
    """What has happened to an engine's requests at one moment.

    ``submitted == done + failed + dropped + cancelled + expired + abandoned + queued + running`` always holds.

    Attributes
    ----------
    submitted
        Requests that were accepted.
    rejected
        Refusals: the queue was full and the policy was ``reject``. `amap` tries again after one.
    done, failed, dropped, cancelled, expired, abandoned
        How accepted requests ended: with a result, an error of the device, replaced by a newer one, cancelled
        by the caller, past their deadline, left over when the engine was closed.
    queued, running
        Requests that wait, and that the device works on.
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
        """Every count, and the latency's median, 95th and 99th percentile in milliseconds, as JSON types."""
        stored = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del stored["latency"]
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            seconds = self.latency.quantile(q)
            stored[f"latency_{name}_ms"] = None if math.isnan(seconds) else round(1e3 * seconds, 3)
        return stored


class Tally:
    """The running sums behind `Counters`. Not thread-safe: its owner updates it under its own lock."""

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
        """The sums now. What was submitted is what has ended and what has not, so the two always agree."""
        return Counters(
            submitted=sum(self.ended.values()) + queued + running,
            rejected=self.rejected,
            **self.ended,
            queued=queued,
            running=running,
            latency=LatencyHistogram(tuple(self._latencies), self._seconds),
        )
