"""Compute what requests ask for, off the event loop: bounded, with deadlines, never the same work twice at a time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from edgeface.errors import DeadlineExceeded, EngineClosed, Overloaded
from edgeface.runtime.counters import LatencyHistogram, Tally

Result = TypeVar("Result")


@dataclass(slots=True)
class _Job:
    """Work that was accepted; `deadline` is the latest of all who wait for its result."""

    result: asyncio.Future[Any]
    deadline: float
    began: float | None = None
    state: object = None
    waiting: int = 0


class WorkQueue:
    """A fixed number of threads, and a bounded number of requests that wait for one.

    What cannot wait is refused at once, so that a load beyond the capacity costs answers, and neither memory nor the
    time of those who were accepted. Used from one event loop.

    Parameters
    ----------
    workers
        Threads.
    waiting
        Most requests that wait for a thread.
    told
        Is called in each request's task with when it asked, when its work began (None: it did not) and when it ended,
        on the clock of `time.monotonic`.
    """

    def __init__(
        self,
        workers: int,
        waiting: int,
        *,
        told: Callable[[float, float | None, float], None] = lambda asked, began, ended: None,
    ) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="edgeface-serve")
        self._limit, self._open = workers + waiting, 0
        self._same: dict[Hashable, _Job] = {}
        self._closed, self._told = False, told
        self.refused = 0
        self._waits = Tally()

    @property
    def outstanding(self) -> int:
        """Requests that are computed or wait."""
        return self._open

    @property
    def waits(self) -> LatencyHistogram:
        """How long requests waited for a thread."""
        return self._waits.snapshot(queued=0, running=0).latency

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self._open >= self._limit

    def refuse_if_full(self) -> None:
        """Raise `Overloaded` where `run` would, before a body is read; `EngineClosed` after `close`."""
        if self._closed:
            raise EngineClosed("the service is stopping; ask another one, or try again later")
        if self.full:
            self.refused += 1
            raise Overloaded(f"{self._open} requests are under way, which is the limit; try again in a second")

    async def run(
        self,
        work: Callable[[], Result],
        *,
        deadline: float = math.inf,
        same: Hashable = None,
        state: Callable[[bool], object] = lambda read: None,
    ) -> Result:
        """Compute in a thread.

        Parameters
        ----------
        work
            Takes as long as it takes: a deadline ends the waiting, and what was not begun is never begun.
        deadline
            On the clock of `time.monotonic`.
        same
            Requests with an equal value are computed once while they overlap; None: never. The last one that goes
            away cancels the work.
        state
            Returns what the work reads beside its request, so that no answer is shared that was begun before a change
            of it. It is called in a thread: with False as the work begins, when it may return an older state than
            there is, and with True by a request that could share the work, which it does if both are equal.

        Raises
        ------
        Overloaded, EngineClosed
            If it was not accepted.
        DeadlineExceeded
            If there is no result by the deadline.
        """
        asked = time.monotonic()
        job = await self._find(same, state, deadline)
        if job is None:
            self.refuse_if_full()
            job = self._begin(work, deadline, state)
            if same is not None:
                self._same[same] = job
                job.result.add_done_callback(lambda _: self._leave(same, job))
        job.waiting, job.deadline = job.waiting + 1, max(job.deadline, deadline)
        try:
            return await _by(deadline, asyncio.shield(job.result))
        finally:
            self._told(asked, job.began, time.monotonic())
            job.waiting -= 1
            if not job.waiting and not job.result.done():
                job.result.cancel()

    async def _find(self, same: Hashable, state: Callable[[bool], object], deadline: float) -> _Job | None:
        """Return equal work under way that reads what there is now; None if there is none."""
        job = None if same is None else self._same.get(same)
        if job is None or job.result.done():  # what was cancelled leaves the table a moment later
            return None
        if job.began is not None and job.state != await _by(deadline, asyncio.to_thread(state, True)):
            return None
        failed = job.result.done() and (job.result.cancelled() or job.result.exception() is not None)
        return None if failed else job

    def _leave(self, same: Hashable, job: _Job) -> None:
        if self._same.get(same) is job:
            del self._same[same]

    def _begin(self, work: Callable[[], Result], deadline: float, state: Callable[[bool], object]) -> _Job:
        loop, asked = asyncio.get_running_loop(), time.monotonic()
        result: asyncio.Future[Result] = loop.create_future()
        job = _Job(result, deadline)

        def compute() -> Result:
            if result.cancelled() or time.monotonic() > job.deadline:
                raise DeadlineExceeded("no thread was free by the request's deadline")
            job.state = state(False)
            job.began = time.monotonic()  # after it: who finds work begun compares the state
            return work()

        def deliver(outcome: asyncio.Future[Result]) -> None:
            self._open -= 1
            self._waits.measure(0.0 if job.began is None else job.began - asked)
            if result.done():
                outcome.exception()  # nobody waits for it
            elif error := outcome.exception():
                result.set_exception(error)
                result.exception()  # whoever waits sees it; it may be that nobody does
            else:
                result.set_result(outcome.result())

        running = loop.run_in_executor(self._threads, compute)
        self._open += 1
        running.add_done_callback(deliver)
        return job

    async def drain(self, seconds: float) -> bool:
        """Accept nothing more, and wait for what was accepted; return whether all of it was computed."""
        self._closed, until = True, time.monotonic() + seconds
        while self._open and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return not self._open

    def close(self) -> None:
        """End the threads; what was not begun is dropped."""
        self._closed = True
        with contextlib.suppress(RuntimeError):
            self._threads.shutdown(wait=False, cancel_futures=True)


async def _by(deadline: float, result: Awaitable[Result]) -> Result:
    """Wait for a result until a deadline; `DeadlineExceeded` then."""
    try:
        return await asyncio.wait_for(result, None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
    except DeadlineExceeded:
        raise
    except asyncio.TimeoutError:
        raise DeadlineExceeded("no result by the request's deadline; ask for more time, or less often") from None
