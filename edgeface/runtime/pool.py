"""Serve from several engines: each request goes to the engine that should finish it first.

An engine that fails is retired when another engine computes the request it failed on. A request that fails twice is
itself the cause, and no engine is retired. The requests of a retired engine go to the others; none is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgeface.errors import DeadlineExceeded, EngineClosed, InferenceError, InputError, Overloaded, RequestError
from edgeface.runtime.counters import Counters, Outcome, Tally
from edgeface.runtime.engine import Engine
from edgeface.runtime.schedule import Job
from edgeface.runtime.serving import RECHECK, Policy, Serving, may_not_wait

_log = logging.getLogger(__name__)

_WEIGHT = 0.2
"""Weight of the newest measurement in the moving average of an engine's seconds per request."""


@dataclass(frozen=True, slots=True)
class Retirement:
    """An engine was retired: its name, the error that it failed with, and the names of those still in use."""

    name: str
    error: Exception
    remaining: tuple[str, ...]


class Member:
    """A pool's record of one of its engines. Changed under the pool's lock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.retired = False
        self.suspected = 0  # requests that failed here and have no result from another engine yet
        self.seconds: float | None = None  # moving average per request
        self._heard = time.monotonic()

    def expected(self, default: float) -> float:
        """Estimate the seconds for one more request; at least the time since its last result while it has work."""
        outstanding = self.engine.outstanding
        silent = time.monotonic() - self._heard if outstanding else 0.0
        return max(silent, self._rounds(outstanding + 1) * (self.seconds or default))

    def begin(self) -> int:
        """Record that it gets a request; return the number then outstanding."""
        outstanding = self.engine.outstanding
        if not outstanding:
            self._heard = time.monotonic()
        return outstanding + 1

    def learn(self, seconds: float, *, ahead: int) -> None:
        """Record the duration of a request that was number `ahead` of those outstanding."""
        self._heard = time.monotonic()
        sample = seconds / self._rounds(ahead)
        self.seconds = sample if self.seconds is None else (1 - _WEIGHT) * self.seconds + _WEIGHT * sample

    def _rounds(self, requests: int) -> float:
        return max(1.0, requests / self.engine.parallel)


class Pool(Serving):
    """Several engines that give the same results for the same array, used as one.

    Parameters
    ----------
    engines
        At least one. The pool closes them.
    policy
        What `submit` does when every queue is full.
    on_event
        Called when an engine is retired, in a thread of OpenVINO or of the engine. A retirement is also logged.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        policy: Policy = "block",
        on_event: Callable[[Retirement], None] | None = None,
    ) -> None:
        if not engines:
            raise InputError("pool: expected at least one engine, found an empty list")
        self.members = tuple(Member(engine) for engine in engines)
        self._policy: Policy = policy
        self._on_event = on_event
        self._lock = threading.RLock()
        self._tally = Tally()
        self._room = threading.Condition(self._lock)
        self._finished = 0
        self._open: set[Job] = set()
        self._closing = False

    @property
    def capacity(self) -> int:
        """Most requests that can be outstanding, over all engines."""
        return sum(member.engine.capacity for member in self.members if not member.retired)

    def submit(
        self, array: np.ndarray, *, deadline: float | None = None, policy: Policy | None = None, copy: bool = True
    ) -> Future[Any]:
        """Queue one array as `Engine.submit` does; with `copy` the array is always copied, for a retry."""
        end = None if deadline is None else time.monotonic() + deadline
        policy = policy or self._policy
        job = _PoolJob(self, array.copy() if copy else array, end, replaceable=policy == "drop-oldest")
        with self._lock:
            self._open.add(job)
        try:
            self._place(job, policy)
        except BaseException as error:
            with self._lock:
                self._open.discard(job)
                self._tally.rejected += isinstance(error, Overloaded)
            raise
        return job

    def counters(self) -> Counters:
        """Return the counters so far; a retried request counts once."""
        running = sum(member.engine.counters().running for member in self.members)
        with self._lock:
            running = min(running, len(self._open))
            return self._tally.snapshot(queued=len(self._open) - running, running=running)

    def close(self, *, drain: bool = True, timeout: float = 30.0) -> None:
        """Accept nothing more, resolve every future, and release the devices; as `Engine.close`."""
        end = time.monotonic() + timeout
        with self._lock:
            self._closing = True
            self._room.notify_all()
        for member in self.members:
            member.engine.close(drain=drain, timeout=max(0.0, end - time.monotonic()))

    def forget(self, job: Job) -> None:
        """Cancel a job where it runs."""
        if self._end(job, "cancelled"):
            job.set_running_or_notify_cancel()
        assert isinstance(job, _PoolJob)
        if job.inner is not None:
            job.inner.cancel()

    def _place(self, job: _PoolJob, policy: Policy | None) -> None:
        """Give a job to the engine that should finish it first. Policy None: it was accepted before."""
        while True:
            finished = self._finished
            candidates = self._candidates(job)
            if policy is None or policy == "block":
                # Waiting for room at the first may be faster than the queue of the next.
                candidates = candidates[:1]
            if any(self._try(member, job, policy and "reject") for member in candidates):
                return
            if policy == "drop-oldest" and any(self._try(member, job, policy) for member in candidates):
                return
            if policy in ("reject", "drop-oldest") and not candidates[0].retired:
                others = " of requests by another policy" if policy == "drop-oldest" else ""
                raise Overloaded(f"pool: every queue is full{others}; submit fewer, or wait")
            if policy == "block":
                self._wait_for_room(job, finished)

    def _candidates(self, job: _PoolJob) -> list[Member]:
        with self._lock:
            live = [m for m in self.members if not m.retired and m is not job.failed_at]
            if self._closing or not live:
                raise EngineClosed("pool: every engine is closed or retired")
            default = min((m.seconds for m in live if m.seconds), default=1.0)
            return sorted(live, key=lambda m: (m.suspected > 0, m.expected(default)))

    def _wait_for_room(self, job: _PoolJob, finished: int) -> None:
        if may_not_wait():
            raise Overloaded("pool: every queue is full, and a future's callback must not wait")
        patience = RECHECK if job.deadline is None else job.deadline - time.monotonic()
        if patience <= 0:
            raise DeadlineExceeded("pool: no room in any queue by the request's deadline")
        with self._room:
            if self._finished == finished:
                self._room.wait(min(patience, RECHECK))

    def _try(self, member: Member, job: _PoolJob, policy: Policy | None) -> bool:
        """Give a job to this engine; return False if it is full or was closed by others."""
        array, started, ahead = job.array, time.monotonic(), member.begin()
        if array is None:  # cancelled meanwhile
            return True
        left = None if job.deadline is None else job.deadline - started
        try:
            inner = member.engine.take(array, deadline=left, policy=policy, replaceable=job.replaceable)
        except Overloaded:
            return False
        except EngineClosed:
            member.retired = True
            return False
        job.inner = inner
        inner.add_done_callback(partial(self._take, job, member, started, ahead))
        if job.cancelled():  # between the two lines above
            inner.cancel()
        return True

    def _take(self, job: _PoolJob, member: Member, started: float, ahead: int, inner: Future[Any]) -> None:
        """Pass on a result or an error, or retry with another engine; runs in the engine's thread."""
        error = None if inner.cancelled() else inner.exception()
        with self._lock:
            if error is None and not inner.cancelled():
                member.learn(time.monotonic() - started, ahead=ahead)
            self._finished += 1
            self._room.notify_all()
        if isinstance(error, InferenceError) and job.failed_at is None and self._retry(job, member, error):
            return
        if isinstance(error, EngineClosed) and member.retired and self._again(job):
            return
        self._judge(job, answered=error is None and not inner.cancelled())
        if inner.cancelled():
            return
        if self._end(job, _outcome(error)) and job.set_running_or_notify_cancel():
            if error is None:
                job.set_result(inner.result())
            else:
                job.set_exception(error)

    def _retry(self, job: _PoolJob, member: Member, error: InferenceError) -> bool:
        with self._lock:
            job.failed_at, job.failure = member, error
            member.suspected += 1
        if self._again(job):
            return True
        self._judge(job, answered=False)
        return False

    def _again(self, job: _PoolJob) -> bool:
        try:
            self._place(job, None)
        except RequestError:
            return False
        return True

    def _judge(self, job: _PoolJob, *, answered: bool) -> None:
        """Clear or retire the engine that a job failed at, once the job has ended."""
        with self._lock:
            member, job.failed_at = job.failed_at, None
            if member is None:
                return
            member.suspected -= 1
            if not answered or member.retired:
                return
            member.retired = True
            remaining = tuple(m.engine.name for m in self.members if not m.retired)
        assert job.failure is not None
        _log.warning(
            "%s failed and is retired; remaining: %s: %s", member.engine.name, ", ".join(remaining), job.failure
        )
        member.engine.close(drain=False, timeout=0.0)  # its requests are computed again by others
        if self._on_event is not None:
            try:
                self._on_event(Retirement(member.engine.name, job.failure, remaining))
            except Exception:
                _log.exception("the pool's on_event raised")

    def _end(self, job: Job, outcome: Outcome) -> bool:
        with self._lock:
            if not job.end(outcome):
                return False
            self._open.discard(job)
            self._tally.ended[outcome] += 1
            if outcome == "done":
                self._tally.measure(time.monotonic() - job.born)
            return True


class _PoolJob(Job):
    """A request with all its attempts."""

    inner: Future[Any] | None = None
    failed_at: Member | None = None
    failure: InferenceError | None = None


def _outcome(error: BaseException | None) -> Outcome:
    if error is None:
        return "done"
    kinds: dict[type, Outcome] = {Overloaded: "dropped", DeadlineExceeded: "expired", EngineClosed: "abandoned"}
    return kinds.get(type(error), "failed")
