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
or start it with ``spawn``. All methods may be called from any thread. What was tried with free-threaded Python and
several NUMA nodes is in docs/runtime.md: nothing; this machine has neither.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
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
)
from edgeface.runtime.counters import Counters
from edgeface.runtime.faults import reason_of
from edgeface.runtime.lifetime import look_after, on_done
from edgeface.runtime.schedule import Schedule
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
        If the device cannot make its infer requests.
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
        batch = max(models)
        self._shape = item_shape(first)
        self._dtype = np.dtype(first.input(0).element_type.to_dtype())
        if batch > 1 and -1 in self._shape:
            raise InputError(f"{name}: items of any size cannot share a batch; expected only batch size 1")
        self._policy: Policy = policy
        self._parallel: int = count * batch
        self._refusal: str | None = None
        self._forked = False
        self._drain = True
        self._close_by = float("inf")
        self._asleep = False
        self._lock = threading.RLock()  # reentrant, should a device ever call back inside start_async
        self._room = threading.Condition(self._lock)
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._closed = threading.Event()
        reference = weakref.ref(self, partial(_ring, self._bell))
        try:
            slots = [Slot(models, on_done, partial(_find, reference, number)) for number in range(count)]
        except RuntimeError as error:
            raise InferenceError(
                f"{name}: the device cannot make its infer requests: {reason_of(error)}"
            ) from error
        depth = queue_depth or max(8, 4 * count * batch)
        self._schedule = Schedule(name, slots, batch=batch, depth=depth, room=self._room)
        look_after(self, reference, self._bell)

    @property
    def capacity(self) -> int:
        """Requests that can be accepted and unanswered at one time: on the device and in the queue."""
        return self._schedule.depth + self.parallel

    @property
    def outstanding(self) -> int:
        """Requests that wait or are on the device now; read without the lock, so approximate under load."""
        return self._schedule.outstanding

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

    def infer(self, array: np.ndarray, *, deadline: float | None = None) -> Any:
        """Answer one array and wait, in this thread if a request is free: no other thread has to be woken.

        Parameters
        ----------
        array
            As for `submit`; not to be changed meanwhile.
        deadline
            Seconds from now. Only a request that other threads compute can be given up at it, so with one the
            array is queued.

        Raises
        ------
        ContractError, DeadlineExceeded, EngineClosed
            As `submit`.
        InferenceError
            If the device failed.
        """
        self._check(array)
        schedule, job, claim = self._schedule, Job(self, array, None), _Claim()
        with self._lock:
            self._refuse_if_closed()
            slot = schedule.free_slot() if deadline is None and not schedule.queue else None
            # The last callback must have returned: until then, OpenVINO 2024.6 calls back for a synchronous run
            # too, and never again after it.
            if slot is not None and not slot.at_rest:
                slot = None
            if slot is not None:
                slot.claim, slot.jobs, job.slot = weakref.ref(claim), (job,), slot
        if slot is None:
            return super().infer(array, deadline=deadline)
        failure = None
        try:
            value = slot.run(slot.jobs)[0]
        except Exception as error:
            failure = schedule.failure(error)
        with self._lock:
            in_time = schedule.count(job, "failed" if failure else "done")
            schedule.release(slot)
            schedule.pump()
            if schedule.ended or self._refusal is not None:
                self._bell.put(None)
        if failure is not None:
            raise failure
        if not in_time:
            raise EngineClosed(f"{self.name}: closed before the result was there")
        return value

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
            self._schedule.queue.append(job)
            self._schedule.pump()
            if copy and job.slot is None:
                self._schedule.keep(job, array)
            if self._asleep or self._schedule.ended:
                self._asleep = False
                self._bell.put(None)
        return job

    def counters(self) -> Counters:
        """What has happened so far."""
        with self._lock:
            return self._schedule.snapshot()

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
            if self._schedule.count(job, "cancelled"):
                job.set_running_or_notify_cancel()
            with contextlib.suppress(ValueError):
                self._schedule.queue.remove(job)
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
            if policy is None or not self._schedule.full:
                return
            if policy == "drop-oldest":
                self._schedule.drop_oldest()
                continue
            if policy == "reject":
                self._schedule.tally.rejected += 1
                raise Overloaded(
                    f"{self.name}: {self._schedule.depth} requests wait already; submit fewer, or wait"
                )
            if may_not_wait():
                raise Overloaded(
                    f"{self.name}: the queue is full, and a future's callback must not wait for room: it holds the "
                    "device's thread"
                )
            patience = RECHECK if job.deadline is None else job.deadline - time.monotonic()
            if patience <= 0:
                raise DeadlineExceeded(f"{self.name}: no room in the queue by the request's deadline")
            self._room.wait(min(patience, RECHECK))

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
                    self._schedule.end(job, "done", value)
            else:
                self._schedule.fail(jobs, failure)
            self._schedule.pump()
            if self._refusal is not None:
                self._bell.put(None)
        self._deliver()

    def _deliver(self) -> None:
        """Resolve the futures of jobs that have ended. What their callbacks raise stays here."""
        outer = may_not_wait()
        in_done_callback.active = True
        try:
            while self._schedule.ended:
                job, value, error = self._schedule.ended.popleft()
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
            now, schedule = time.monotonic(), self._schedule
            closing = self._refusal is not None
            overdue = now >= self._close_by
            schedule.reap()
            schedule.expire(now, abandon_queued=closing and not self._drain, abandon_all=overdue)
            schedule.pump()
            working = schedule.outstanding > 0
            # A slot is at rest when its callback has returned too: destroying it inside would wait for itself.
            at_rest = not working and all(slot.at_rest for slot in schedule.slots)
            if at_rest and closing:
                self._schedule.slots.clear()
            self._asleep = at_rest  # who submits rings the bell
        self._deliver()
        if closing and (at_rest or overdue):
            self._closed.set()
        if at_rest:
            return None
        if overdue:  # the device hangs: hold on to it, for its destruction would wait, and look now and then
            return RECHECK
        return _POLL if working else 0.001


class _Claim:
    """What only the frame of `infer` refers to."""

    __slots__ = ("__weakref__",)


def _ring(bell: SimpleQueue[None], _: object) -> None:
    bell.put(None)


def _find(reference: weakref.ref[Engine], number: int) -> tuple[Engine, Slot] | None:
    engine = reference()
    return None if engine is None else (engine, engine._schedule.slots[number])


def _by_batch(compiled: ov.CompiledModel) -> dict[int, ov.CompiledModel]:
    batch = compiled.input(0).partial_shape[0]
    if batch.is_dynamic:
        raise InputError("expected a model with a static batch, found a dynamic one; reshape it first")
    return {batch.get_length(): compiled}
