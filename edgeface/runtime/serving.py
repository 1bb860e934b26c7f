"""Base of engine, pool and embedder: `map`, `amap` and `infer` on top of `submit`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeface.errors import Overloaded, RequestError
from edgeface.runtime.counters import Counters

if TYPE_CHECKING:
    from typing_extensions import Self

Policy = Literal["block", "drop-oldest", "reject"]
"""What `submit` does when the queue is full: wait for room, replace the oldest request that was submitted with
``drop-oldest``, or refuse the new one."""

RECHECK = 0.5
"""Seconds after which a thread that waits for room checks again, in case another one missed its wake-up."""

in_done_callback = threading.local()
"""`active` is true while this thread, which is the device's, runs callbacks of a future."""


def may_not_wait() -> bool:
    """Check whether waiting here would stop the thread that has to produce the result."""
    return getattr(in_done_callback, "active", False)


def refuse_waiting() -> None:
    """Raise `RequestError` if waiting here would stop the thread that has to produce the result."""
    if may_not_wait():
        raise RequestError(
            "a future's callback must not wait for results: it holds the device's thread; add a callback to that "
            "result's future too, or let another thread wait"
        )


class Serving(ABC):
    """Computes one result per array, from any thread."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Most requests that can be outstanding: on the device and in the queue."""

    @abstractmethod
    def submit(
        self, array: np.ndarray, *, deadline: float | None = None, policy: Policy | None = None, copy: bool = True
    ) -> Future[Any]:
        """Queue one array and return a future; see `Engine.submit`."""

    def infer(self, array: np.ndarray, *, deadline: float | None = None) -> Any:
        """Compute one array and wait; not in a future's callback. The array must not change meanwhile."""
        refuse_waiting()
        return self.submit(array, deadline=deadline, policy="block", copy=False).result()

    @abstractmethod
    def counters(self) -> Counters:
        """Return the counters so far."""

    @abstractmethod
    def close(self, *, drain: bool = True, timeout: float = 30.0) -> None:
        """Stop; see `Engine.close`."""

    def map(self, arrays: Iterable[np.ndarray], *, deadline: float | None = None) -> Iterator[Any]:
        """Yield one result for each array, in order.

        At most `capacity` arrays are read ahead, and only while results are consumed. A finished result is yielded
        before the next array is requested, so a camera that is slower than the device adds no delay. Closing the
        generator, an error, or Ctrl-C cancels outstanding requests. When the queue is full it waits, whatever the
        policy.

        Parameters
        ----------
        arrays
            Each may be overwritten as soon as the next one is requested.
        deadline
            Seconds for each request.

        Raises
        ------
        RequestError
            In place of the first failed result.
        """
        return self._stream(arrays, deadline=deadline, copy=True)

    def _stream(self, arrays: Iterable[np.ndarray], *, deadline: float | None, copy: bool) -> Iterator[Any]:
        window: deque[Future[Any]] = deque()
        capacity = self.capacity
        try:
            for array in arrays:
                window.append(self.submit(array, deadline=deadline, policy="block", copy=copy))
                while window and (len(window) >= capacity or window[0].done()):
                    yield _wait(window)
            while window:
                yield _wait(window)
        finally:
            for future in window:
                future.cancel()

    async def amap(
        self, arrays: Iterable[np.ndarray] | AsyncIterable[np.ndarray], *, deadline: float | None = None
    ) -> AsyncIterator[Any]:
        """Yield one result for each array, in order, as `map` does, without blocking the event loop."""
        import asyncio  # here and below: a command has no event loop, and would wait for the import

        window: deque[Future[Any]] = deque()
        capacity = self.capacity
        try:
            async for array in _aiter(arrays):
                while True:
                    if len(window) < capacity:
                        try:
                            window.append(self.submit(array, deadline=deadline, policy="reject"))
                            break
                        except Overloaded:
                            if not window:  # others fill the queue; no own request to wait for
                                refuse_waiting()
                                await asyncio.sleep(0.001)
                                continue
                    yield await _await(window)
            while window:
                yield await _await(window)
        finally:
            for future in window:
                future.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(drain=kind is None)


def _wait(window: deque[Future[Any]]) -> Any:
    """Return the oldest future's result. Until then it stays in the window, to be cancelled."""
    result = window[0].result()
    window.popleft()
    return result


async def _await(window: deque[Future[Any]]) -> Any:
    import asyncio

    if not window[0].done():
        refuse_waiting()
    result = await asyncio.wrap_future(window[0])
    window.popleft()
    return result


async def _aiter(arrays: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(arrays, AsyncIterable):
        async for array in arrays:
            yield array
    else:
        for array in arrays:
            yield array
