"""Compiled models in, an engine out that answers every array with a future, for months.

How it works
------------
A fixed pool of infer requests (`Slot`), a bounded queue, one lock. OpenVINO's completion callback copies the
result out, gives the freed request the next array, and only then resolves the future: under load no other
Python thread is involved. One supervisor thread per engine sees to what no callback reports: an inference that
failed (OpenVINO calls no Python callback then), deadlines, and closing. It looks every 20 ms while there is
work and sleeps while there is none.

Why it cannot hang
------------------
- Every change of state happens under the one lock, every wait for room has a time-out and looks again, and no
  callback of a user runs under the lock.
- A slot is free exactly while `slot.jobs` is empty, and a job is queued exactly while it is in the queue and no
  slot has it. Nothing else is remembered, so Ctrl-C at any point of `submit` leaves a state that the next call,
  or the supervisor, continues from.
- Only OpenVINO's threads and the supervisor, which no signal interrupts, resolve futures; nothing they run can
  raise into OpenVINO, where an exception would abort the process.
- An engine that nobody refers to any more finishes its work and is collected; one that is still open when the
  interpreter exits is closed.

Fork, threads, NUMA
-------------------
OpenVINO's threads do not survive `os.fork`: in the child every inherited engine refuses with `EngineClosed`, and
nothing of it is destroyed, for destruction would wait for threads that do not exist. Load the model in the child,
or start it with ``spawn``. All methods may be called from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import chain, islice
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov

from edgeface.errors import (
    ContractError,
    DeadlineExceeded,
    EngineClosed,
    InferenceError,
    InputError,
    Overloaded,
    RequestError,
)
from edgeface.runtime.counters import Counters, Outcome, Tally
from edgeface.runtime.faults import reason_of
from edgeface.runtime.lifetime import look_after, on_done
from edgeface.runtime.serving import RECHECK, Policy, Serving, in_done_callback, may_not_wait
from edgeface.runtime.slots import Job, Slot, item_shape

__all__ = ["Engine"]

_log = logging.getLogger(__name__)

_POLL = 0.02
"""Seconds between two looks of the supervisor: the longest that an error or a deadline goes unnoticed."""


class Engine(Serving):
    """Runs a compiled model asynchronously, out of a bounded queue, over a fixed pool of infer requests.

    Parameters
    ----------
    compiled : openvino.CompiledModel, or one for every batch size
        One input whose first dimension is the static batch; any number of outputs, batch first. With several
        batch sizes the engine takes what is queued, up to the largest, and pads to the smallest that holds it;
        it never waits for a batch to fill.
    requests
        Infer requests in flight; None: the device's optimal number.
    queue_depth
        Arrays that may wait; None: four for each that the device works on, at least 8.
    policy
        What `submit` does when the queue is full.
    name
        What messages call the engine.

    Raises
    ------
    InferenceError
        If the device cannot execute the model: every request runs once, here.
    """

    def __init__(
        self,
        compiled: ov.CompiledModel | Mapping[int, ov.CompiledModel],
        *,
        requests: int | None = None,
        queue_depth: int | None = None,
        policy: Policy = "block",
        name: str = "engine",
    ) -> None:
        models = dict(sorted((compiled if isinstance(compiled, Mapping) else _by_batch(compiled)).items()))
        first = next(iter(models.values()))
        count: int = requests or int(first.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.name = name
        self._batch = max(models)
        self._shape = item_shape(first)
        self._dtype = np.dtype(first.input(0).element_type.to_dtype())
        if self._batch > 1 and -1 in self._shape:
            raise InputError(f"{name}: items of any size cannot share a batch; expected only batch size 1")
        self._depth = queue_depth or max(8, 4 * count * self._batch)
        self._policy: Policy = policy
        self._parallel: int = count * self._batch
        self._refusal: str | None = None
        self._forked = False
        self._drain = True
        self._close_by = float("inf")
        self._asleep = False
        self._lock = threading.RLock()  # reentrant, should a device ever call back inside start_async
        self._room = threading.Condition(self._lock)
        self._queue: deque[Job] = deque()
        self._ended: deque[tuple[Job, Any, RequestError | None]] = deque()
        self._tally = Tally()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._closed = threading.Event()
        reference = weakref.ref(self, partial(_ring, self._bell))
        self._slots: list[Slot] = []
        try:
            for number in range(count):
                self._slots.append(Slot(models, on_done, partial(_find, reference, number)))
            for slot in self._slots:
                slot.prove()
        except RuntimeError as error:
            raise InferenceError(f"{name}: the device cannot run this model: {reason_of(error)}") from error
        look_after(self, reference, self._bell)

    @property
    def capacity(self) -> int:
        """Requests that can be accepted and unanswered at one time: on the device and in the queue."""
        return self._depth + self.parallel

    @property
    def outstanding(self) -> int:
        """Requests that wait or are on the device now; read without the lock, so approximate under load."""
        return len(self._queue) + sum(len(slot.jobs) for slot in tuple(self._slots))

    @property
    def parallel(self) -> int:
        """Requests that the device works on at one time."""
        return self._parallel

    def submit(
        self,
        array: np.ndarray,
        *,
        deadline: float | None = None,
        policy: Policy | None = None,
        copy: bool = True,
    ) -> Future[Any]:
        """Accept one array.

        Parameters
        ----------
        array
            One item, without the batch dimension, of the model's shape and dtype.
        deadline
            Seconds from now. A request that is not answered by then, queued or running, ends with
            `DeadlineExceeded`, at most 20 ms late; what the device still computes is dropped.
        policy
            In place of the engine's.
        copy
            Whether the caller may overwrite the array as soon as this returns: a request that has to wait is
            then copied twice, into the queue and into the device's tensor. With False, or when a request is
            free, once; the array then belongs to the engine until the future is done.

        Returns
        -------
        concurrent.futures.Future
            Its result is an array without the batch dimension, the caller's own; a tuple of them if the model
            has several outputs. `cancel` works until the result is there. Callbacks run in the device's
            thread: keep them short, and do not wait in them.

        Raises
        ------
        ContractError
            If the array is not of the model's shape and dtype.
        Overloaded
            If the queue is full and the policy is ``reject``, or this is a callback, which must not wait.
        DeadlineExceeded
            If there was no room by the deadline.
        EngineClosed
            If the engine is closed, or was inherited by a forked child.
        """
        return self._accept(array, deadline, policy or self._policy, copy)

    def resubmit(self, array: np.ndarray, *, deadline: float | None = None) -> Future[Any]:
        """Accept, without waiting and beyond the queue's depth, what another engine accepted and did not answer."""
        return self._accept(array, deadline, None, False)

    def _accept(
        self, array: np.ndarray, deadline: float | None, policy: Policy | None, copy: bool
    ) -> Future[Any]:
        self._check(array)
        job = Job(self, array, None if deadline is None else time.monotonic() + deadline)
        self._refuse_if_closed()
        with self._lock:
            self._make_room(job, policy)
            self._queue.append(job)
            self._pump()
            if copy and job.slot is None:
                job.array = array.copy()
            if self._asleep or self._ended:
                self._asleep = False
                self._bell.put(None)
        return job

    def counters(self) -> Counters:
        """What has happened so far."""
        with self._lock:
            queued = sum(job.waiting for job in self._queue)
            running = sum(job.ended is None for slot in self._slots for job in slot.jobs)
            return self._tally.snapshot(queued=queued, running=running)

    @property
    def closed(self) -> bool:
        """Whether everything is resolved and released."""
        return self._closed.is_set()

    def disown(self) -> None:
        """Refuse from now on: this is a forked child. The lock may be held for ever here, so it is not taken."""
        self._refusal = (
            f"{self.name}: expected the process that loaded the model, found a forked child, where OpenVINO's threads "
            "do not exist; load the model in the child, or start it with multiprocessing's 'spawn'"
        )
        self._forked = True

    def close(self, *, drain: bool = True, timeout: float = 30.0) -> None:
        """Accept nothing more, resolve every future, and release the device. May be called again.

        Parameters
        ----------
        drain
            Whether queued requests are still computed; otherwise they end with `EngineClosed` at once.
        timeout
            Seconds after which whatever is left, also on a device that hangs, ends with `EngineClosed`.
        """
        if self._forked:
            return
        with self._lock:
            self._refusal = self._refusal or f"{self.name}: expected an open engine, found it closed"
            self._drain = self._drain and drain
            self._close_by = min(self._close_by, time.monotonic() + timeout)
            self._room.notify_all()
        self._bell.put(None)
        if not may_not_wait():
            self._closed.wait(timeout + 5.0)

    def forget(self, job: Job) -> None:
        """Take a cancelled request out of the queue."""
        if self._forked:
            return
        with self._lock:
            if self._count(job, "cancelled"):
                job.set_running_or_notify_cancel()
            with contextlib.suppress(ValueError):
                self._queue.remove(job)
                self._room.notify()

    def _check(self, array: np.ndarray) -> None:
        if array.dtype == self._dtype:
            if array.shape == self._shape:
                return
            if -1 in self._shape and len(array.shape) == len(self._shape) and 0 not in array.shape:  # noqa: SIM102
                if all(want in (-1, found) for want, found in zip(self._shape, array.shape, strict=True)):
                    return
        raise ContractError(
            f"{self.name}: expected {self._shape} {self._dtype}, found {array.shape} {array.dtype}"
        )

    def _refuse_if_closed(self) -> None:
        if self._refusal is not None:
            raise EngineClosed(self._refusal)

    # The methods below are called with the lock held.

    def _make_room(self, job: Job, policy: Policy | None) -> None:
        while True:
            self._refuse_if_closed()
            if len(self._queue) < self._depth or policy is None:
                return
            if policy == "drop-oldest":
                self._end(
                    self._queue.popleft(),
                    "dropped",
                    error=Overloaded(f"{self.name}: dropped for a newer request"),
                )
                continue
            if policy == "reject":
                self._tally.rejected += 1
                raise Overloaded(f"{self.name}: {self._depth} requests wait already; submit fewer, or wait")
            if may_not_wait():
                raise Overloaded(
                    f"{self.name}: the queue is full, and a future's callback must not wait for room: it holds the "
                    "device's thread"
                )
            patience = RECHECK if job.deadline is None else job.deadline - time.monotonic()
            if patience <= 0:
                raise DeadlineExceeded(f"{self.name}: no room in the queue by the request's deadline")
            self._room.wait(min(patience, RECHECK))

    def _pump(self) -> None:
        """Give queued jobs to free slots."""
        while jobs := self._next_jobs():
            slot = next((slot for slot in self._slots if not slot.jobs), None)
            if slot is None:
                break
            self._start(slot, jobs)
        # Those who wait for room are woken when half the queue is free: a switch of threads costs as much as a
        # small inference, and the other half keeps the device busy meanwhile.
        if len(self._queue) <= self._depth // 2:
            self._room.notify(self._depth - len(self._queue))

    def _next_jobs(self) -> list[Job]:
        """The jobs of the next batch, which stay in the queue until they have been started."""
        queue = self._queue
        while queue and not queue[0].waiting:
            self._count(queue.popleft(), None)
        return [job for job in islice(queue, self._batch) if job.waiting]

    def _start(self, slot: Slot, jobs: Sequence[Job]) -> None:
        try:
            for job in jobs:
                job.slot = slot
            slot.jobs = jobs
            slot.start(jobs)
        except BaseException as error:
            if slot.verdict() is not None:  # it did not reach the device
                slot.jobs = ()
                if isinstance(error, Exception):
                    self._fail(jobs, error)
                else:
                    for job in jobs:
                        job.slot = None
            if not isinstance(error, Exception):
                raise

    def _end(self, job: Job, outcome: Outcome, value: Any = None, error: RequestError | None = None) -> None:
        """Decide a job's end; `_deliver` tells its future after the lock is released."""
        if self._count(job, outcome):
            self._ended.append((job, value, error))

    def _fail(self, jobs: Sequence[Job], error: Exception | str) -> None:
        text = error if isinstance(error, str) else reason_of(error)
        for job in jobs:
            failure = InferenceError(f"{self.name}: inference failed: {text}")
            failure.__cause__ = error if isinstance(error, Exception) else None
            self._end(job, "failed", error=failure)

    def _count(self, job: Job, outcome: Outcome | None) -> bool:
        if outcome is None:
            if not job.cancelled():
                return False
            outcome = "cancelled"  # Ctrl-C came between the cancelling and its entry
        if not job.end(outcome):
            return False
        self._tally.ended[outcome] += 1
        if outcome == "done":
            self._tally.measure(time.monotonic() - job.born)
        return True

    # The methods below are called without the lock, and never by a thread that a signal can interrupt.

    def complete(self, slot: Slot) -> None:
        """In OpenVINO's callback: take the results, start what is next, resolve the futures."""
        jobs, failure = slot.jobs, None
        try:
            values = slot.read()
        except Exception as error:
            failure = error
        with self._lock:
            slot.jobs = ()
            if failure is None:
                for job, value in zip(jobs, values, strict=True):
                    self._end(job, "done", value)
            else:
                self._fail(jobs, failure)
            self._pump()
            if self._refusal is not None:
                self._bell.put(None)
        self._deliver()

    def _deliver(self) -> None:
        """Resolve the futures of jobs that have ended. What their callbacks raise stays here."""
        outer = may_not_wait()
        in_done_callback.active = True
        try:
            while self._ended:
                job, value, error = self._ended.popleft()
                try:
                    if not job.set_running_or_notify_cancel():
                        continue
                    if error is None:
                        job.set_result(value)
                    else:
                        job.set_exception(error)
                except BaseException:
                    _log.critical("%s: a future's callback raised", self.name, exc_info=True)
        except IndexError:  # another thread was faster
            pass
        finally:
            in_done_callback.active = outer

    def tick(self) -> float | None:
        """See to failures, deadlines and closing; return seconds until the next look, None: when the bell rings."""
        with self._lock:
            now = time.monotonic()
            for slot in self._slots:
                if slot.jobs and (failure := slot.verdict()) is not None:
                    jobs, slot.jobs = slot.jobs, ()
                    self._fail(jobs, failure)
            self._expire(now)
            self._pump()
            working = bool(self._queue) or any(slot.jobs for slot in self._slots)
            # A slot is at rest when its callback has returned too: destroying it inside would wait for itself.
            at_rest = not working and all(slot.verdict() is not None for slot in self._slots)
            closing = self._refusal is not None
            overdue = closing and now >= self._close_by
            if at_rest and closing:
                self._slots.clear()
            self._asleep = at_rest  # who submits rings the bell
        self._deliver()
        if overdue or (at_rest and closing):
            self._closed.set()
        if at_rest:
            return None
        if overdue:  # the device hangs: hold on to it, for its destruction would wait, and look now and then
            return RECHECK
        return _POLL if working else 0.001

    def _expire(self, now: float) -> None:
        late = now >= self._close_by
        for job in chain(self._queue, *(slot.jobs for slot in self._slots)):
            if job.deadline is not None and now >= job.deadline:
                self._end(
                    job,
                    "expired",
                    error=DeadlineExceeded(f"{self.name}: no result by the request's deadline"),
                )
            elif late or (self._refusal is not None and not self._drain and job.slot is None):
                self._end(
                    job, "abandoned", error=EngineClosed(f"{self.name}: closed before the request's turn")
                )


def _ring(bell: SimpleQueue[None], _: object) -> None:
    bell.put(None)


def _find(reference: weakref.ref[Engine], number: int) -> tuple[Engine, Slot] | None:
    engine = reference()
    return None if engine is None else (engine, engine._slots[number])


def _by_batch(compiled: ov.CompiledModel) -> dict[int, ov.CompiledModel]:
    batch = compiled.input(0).partial_shape[0]
    if batch.is_dynamic:
        raise InputError("expected a model with a static batch, found a dynamic one; reshape it first")
    return {batch.get_length(): compiled}
