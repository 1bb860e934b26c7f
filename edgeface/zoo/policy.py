"""How persistently to download: apart from what downloads, so that a command's help can state it at no cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadPolicy:
    """How persistently to download.

    Before attempt n + 1, wait a random time up to ``backoff * 2**n`` seconds, at most `longest_wait` ("full jitter"). A
    server's Retry-After is honoured up to `longest_wait` too.
    """

    attempts: int = 4  # at each source, for faults that may pass
    timeout: float = 30.0  # seconds without a byte before a connection counts as dead
    backoff: float = 1.0
    longest_wait: float = 60.0
    jobs: int = 4  # files at the same time
