"""Start times and latencies of a run in, a compact text that JSON can hold out; and back."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from edgeface.bench.machine.reading import Frozen

__all__ = ["Samples"]

_LARGEST = 1 << 27
"""Samples that a file may hold: two days at a thousand a second, and far less than memory."""


class Samples(Frozen):
    """Every query that was measured, in the order of their starts.

    Attributes
    ----------
    count : int
        Queries.
    items : int
        Inferred items of one query: the batch, or the samples of a MultiStream query.
    start_ns : str
        Nanoseconds from the start of the measurement to the start of each query, for the Server scenario to its
        scheduled arrival: differences from one to the next, int64 little-endian, zlib, base64.
    latency_ms : str
        Milliseconds from there to its completion: float32 little-endian, zlib, base64. Milliseconds in float32
        are good to a ten-millionth.
    """

    count: Annotated[int, Field(ge=0, le=_LARGEST)]
    items: Annotated[int, Field(ge=1)] = 1
    start_ns: str
    latency_ms: str

    @model_validator(mode="after")
    def _check(self) -> Samples:
        latencies = self.latencies_ms
        if not np.isfinite(latencies).all() or (latencies < 0).any():
            raise ValueError("expected latencies of 0 or more, found others")
        if (np.diff(self.starts_ns) < 0).any():
            raise ValueError("expected queries in the order of their starts, found another")
        return self

    @classmethod
    def pack(
        cls, starts_ns: NDArray[np.int64], latencies_ms: NDArray[np.floating], *, items: int = 1
    ) -> Samples:
        """Sort by start and compress.

        Parameters
        ----------
        starts_ns : (N,) int64
            From the start of the measurement.
        latencies_ms : (N,) float
            In the same order.
        items
            Of one query.
        """
        order = np.argsort(starts_ns, kind="stable")
        starts = np.asarray(starts_ns, np.int64)[order]
        return cls(
            count=len(starts),
            items=items,
            start_ns=_packed(np.diff(starts, prepend=0).astype("<i8")),
            latency_ms=_packed(np.asarray(latencies_ms)[order].astype("<f4")),
        )

    @property
    def starts_ns(self) -> NDArray[np.int64]:
        """(N,) int64, ascending: nanoseconds from the start of the measurement."""
        return np.cumsum(_unpacked(self.start_ns, "<i8", self.count), dtype=np.int64)

    @property
    def latencies_ms(self) -> NDArray[np.float64]:
        """(N,) float64, in the order of `starts_ns`."""
        return _unpacked(self.latency_ms, "<f4", self.count).astype(np.float64)

    @property
    def ends_s(self) -> NDArray[np.float64]:
        """(N,) float64, seconds from the start of the measurement to each completion, in the order of `starts_ns`."""
        return self.starts_ns * 1e-9 + self.latencies_ms * 1e-3


def _packed(array: NDArray[np.generic]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), 6)).decode("ascii")


def _unpacked(text: str, dtype: str, count: int) -> NDArray[np.generic]:
    size = count * np.dtype(dtype).itemsize
    try:
        inflate = zlib.decompressobj()
        # One byte more than announced is enough to know that there is too much, however much there is.
        content = inflate.decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise ValueError(f"expected compressed samples, found something else: {error}") from error
    if len(content) != size or (size and not inflate.eof):
        raise ValueError(f"expected {count} samples, found {'more' if len(content) > size else 'fewer'}")
    return np.frombuffer(content, dtype)
