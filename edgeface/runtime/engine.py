"""Run a compiled model asynchronously, one future per array, for months without a restart.

How it works
------------
A fixed pool of infer requests (`Slot`), a bounded queue, one lock. OpenVINO's completion callback copies the result,
gives the freed request the next array, and only then resolves the future: under load no other Python thread is
involved. One supervisor thread per engine handles what no callback reports: an inference that failed (OpenVINO calls
no Python callback then), deadlines, and closing. It looks every 20 ms while there is work and sleeps otherwise.
`infer` and `stream_batches` take free slots and compute in the caller's thread: no thread has to be woken.

Why it cannot hang
------------------
- Every change of state happens under the one lock, every wait for room has a time-out and checks again, and no
  callback of a user runs under the lock.
- A slot is free exactly while `slot.jobs` is empty, and a job is queued exactly while it is in the queue and no
  slot has it. Nothing else is remembered, so Ctrl-C at any point leaves a state that the next call, or the
  supervisor, continues from.
- Only OpenVINO's threads and the supervisor, which no signal interrupts, resolve futures. Nothing they run can
  raise into OpenVINO, where an exception would abort the process.
- An engine without references finishes its work and is collected. An engine that is still open when the interpreter
  exits is closed.

Fork, threads, NUMA
-------------------
OpenVINO's threads do not survive `os.fork`. In the child every inherited engine raises `EngineClosed`, and nothing of
it is destroyed, because destruction would wait for threads that do not exist. Load the model in the child, or start
the child with ``spawn``. All methods may be called from any thread. Free-threaded Python and several NUMA nodes are
untested (docs/running.md).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov

from edgeface.errors import (
    ContractError,
    DeadlineExceeded,
    DeviceError,
    EngineClosed,
    InferenceError,
    InputError,
    Overloaded,
)
from edgeface.limits import require_room_to_compile
from edgeface.runtime.adapter import UNPACKED, must_unpack, unpack_weights
from edgeface.runtime.cache import ModelCache
from edgeface.runtime.counters import Counters, Outcome
from edgeface.runtime.devices import shared_core
from edgeface.runtime.lifetime import look_after, on_done
from edgeface.runtime.plan import DevicePlan
from edgeface.runtime.schedule import Job, Outputs, Request, Schedule, Slot, reason_of
from edgeface.runtime.serving import RECHECK, Policy, Serving, in_done_callback, may_not_wait, refuse_waiting

_log = logging.getLogger(__name__)

_POLL = 0.02
"""Seconds between two checks of the supervisor: the longest time an error or a deadline goes unnoticed."""


class Engine(Serving):
    """A compiled model with a fixed pool of infer requests and a bounded queue.

    Parameters
    ----------
    compiled : openvino.CompiledModel, or a mapping from batch sizes to compiled models
        One input, batch first; any number of outputs, batch first. A free infer request takes its share of what is
        queued, up to the largest size, and pads it to the smallest size that holds it; it never waits for a batch to
        fill. A model with a dynamic batch takes as many as its size in the mapping says, without padding; outside of
        a mapping, one by one. See also `run_batches`.
    requests
        Infer requests in flight; None: the device's optimal number.
    queue_depth
        Arrays that may wait; None: two batches for each infer request, four arrays where a batch is one, at least 8.
    policy
        What `submit` does when the queue is full.
    name
        Name of the engine in messages.
    check
        Called with each result of `submit` and `infer`: what is wrong with it, or None. A wrong one is an
        `InferenceError`.

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
        check: Callable[[Any], str | None] | None = None,
    ) -> None:
        models = dict(sorted((compiled if isinstance(compiled, Mapping) else _by_batch(compiled)).items()))
        first = next(iter(models.values()))
        self._batch_shape = tuple(-1 if side.is_dynamic else side.get_length() for side in first.input(0).partial_shape)
        count: int = requests or int(first.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.name = name
        batch = max(models)
        self._shape = self._batch_shape[1:]
        self._dtype = np.dtype(first.input(0).element_type.to_dtype())
        if batch > 1 and -1 in self._shape:
            raise InputError(f"{name}: items of variable size cannot be batched; expected only batch size 1")
        self._policy: Policy = policy
        self._check_result = check
        self._parallel: int = count * batch
        self._refusal: str | None = None
        self._forked = False
        self._drain = True
        self._close_by = float("inf")
        self._asleep = True
        self._lock = threading.RLock()  # reentrant, should a device ever call back inside start_async
        self._room = threading.Condition(self._lock)
        self._bell: SimpleQueue[Engine | None] = SimpleQueue()
        self._closed = threading.Event()
        reference = weakref.ref(self, partial(_ring, self._bell))
        try:
            slots = [Slot(models, on_done, partial(_find, reference, number)) for number in range(count)]
        except RuntimeError as error:
            raise InferenceError(f"{name}: the device cannot make its infer requests: {reason_of(error)}") from error
        depth = queue_depth or max(8, (4 if batch == 1 else 2) * count * batch)
        self._schedule = Schedule(name, slots, batch=batch, depth=depth, room=self._room)
        look_after(self, reference, self._bell)

    @property
    def capacity(self) -> int:
        """Most requests that can be outstanding: on the device and in the queue."""
        return self._schedule.depth + self.parallel

    @property
    def outstanding(self) -> int:
        """Requests that wait or are on the device; read without the lock, so approximate under load."""
        return self._schedule.outstanding

    @property
    def parallel(self) -> int:
        """Requests that the device computes at a time."""
        return self._parallel

    def submit(
        self, array: np.ndarray, *, deadline: float | None = None, policy: Policy | None = None, copy: bool = True
    ) -> Future[Any]:
        """Queue one array and return a future.

        Parameters
        ----------
        array
            One item, without the batch dimension, of the model's shape and dtype.
        deadline
            Seconds from now. A request without a result by then, queued or running, ends with `DeadlineExceeded`, at
            most 20 ms late. A result that is still being computed is dropped.
        policy
            Used instead of the engine's.
        copy
            True: the caller may overwrite the array as soon as this returns; a request that has to wait is then
            copied twice, into the queue and into the device's tensor. False: one copy; the array must not change
            until the future is done.

        Returns
        -------
        concurrent.futures.Future
            Its result is an array without the batch dimension, which the caller owns, or a tuple of them if the
            model has several outputs. `cancel` works until the result is there. Callbacks run in the device's
            thread: keep them short. To wait for a result in one is a `RequestError`.

        Raises
        ------
        ContractError
            If the array is not of the model's shape and dtype.
        Overloaded
            If the queue is full and the policy is ``reject``, or ``drop-oldest`` and all that waits was submitted by
            another policy, or this is a callback, which must not wait.
        DeadlineExceeded
            If there was no room by the deadline.
        EngineClosed
            If the engine is closed, or was inherited by a forked child.
        """
        policy = policy or self._policy
        return self._accept(array, deadline, policy, copy=copy, replaceable=policy == "drop-oldest")

    def infer(self, array: np.ndarray, *, deadline: float | None = None) -> Any:
        """Compute one array and wait, in this thread if a request is free: no other thread has to be woken.

        Parameters
        ----------
        array
            As for `submit`; it must not change meanwhile.
        deadline
            Seconds from now. An array with a deadline is queued, because a computation in this thread cannot be
            given up.

        Raises
        ------
        ContractError, DeadlineExceeded, EngineClosed
            As `submit`.
        InferenceError
            If the device failed.
        RequestError
            If this is a callback, which must not wait.
        """
        refuse_waiting()
        self._check(array)
        self._refuse_if_closed()  # before the lock, which may never be free in a forked child
        claim = _Claim()
        with self._lock:
            self._refuse_if_closed()
            # The last callback must have returned: until then, OpenVINO 2024.6 also calls back for a synchronous
            # run, and never again after it.
            slot = self._claim(array, claim, at_rest=True) if deadline is None else None
        if slot is None:
            return super().infer(array, deadline=deadline)
        try:
            value = slot.run(slot.jobs)[0]
        except Exception as error:
            self._release(slot, "failed")
            raise self._schedule.failure(error)  # noqa: B904 - `failure` sets the cause
        if wrong := self._check_result and self._check_result(value):
            self._release(slot, "failed")
            raise self._schedule.failure(wrong)
        self._release(slot)
        return value

    def run_batches(self, batches: Iterable[np.ndarray]) -> list[Outputs]:
        """Compute whole batches, and return all results at the end; see `stream_batches`."""
        return list(self.stream_batches(batches))

    def stream_batches(self, batches: Iterable[np.ndarray]) -> Generator[Outputs, None, None]:
        """Compute whole batches; the next ones are made, in this thread, while the last ones are computed.

        Several threads may do this at the same time; they share the infer requests. Whoever stops reading before the
        end holds some of them until the generator is closed.

        Parameters
        ----------
        batches
            Each of the model's shape and dtype, batch dimension included, C-contiguous. The device reads it in
            place: it must not change until the results are there.

        Yields
        ------
        tuple of arrays
            Copies of the outputs in the model's order, for each batch in order.

        Raises
        ------
        ContractError
            If a batch is not of the model's shape and dtype.
        InferenceError
            If the device failed.
        EngineClosed
            If the engine is closed, or was inherited by a forked child.
        RequestError
            If this is a callback, which must not wait.
        """
        refuse_waiting()
        self._refuse_if_closed()
        claim, under_way = _Claim(), deque[Slot]()
        try:
            for batch in batches:
                self._check(batch, self._batch_shape)
                while (slot := self._claim_for_batch(batch, claim, wait=not under_way)) is None:
                    yield self._finish_batch(under_way)
                under_way.append(slot)
                try:
                    slot.start_batch(batch)
                except RuntimeError as error:
                    raise self._schedule.failure(error)  # noqa: B904 - `failure` sets the cause
            while under_way:
                yield self._finish_batch(under_way)
        finally:
            for slot in under_way:  # after an error, which is the one to raise
                slot.settle()
                self._release(slot, "cancelled")

    def _claim_for_batch(self, batch: np.ndarray, claim: _Claim, *, wait: bool) -> Slot | None:
        """Claim a free slot. A thread waits only while it holds none: else two threads could wait for each other."""
        with self._lock:
            while True:
                self._refuse_if_closed()
                if (slot := self._claim(batch, claim)) is not None or not wait:
                    return slot
                self._room.wait(RECHECK)

    def _claim(self, array: np.ndarray, claim: _Claim, *, at_rest: bool = False) -> Slot | None:
        """Take a free slot for this thread, unless queued requests come first. The lock is held."""
        slot = None if self._schedule.queue else self._schedule.free_slot()
        if slot is not None and not (at_rest and not slot.at_rest):
            slot.claim, slot.jobs = weakref.ref(claim), (Request(array),)
            return slot
        return None

    def _finish_batch(self, under_way: deque[Slot]) -> Outputs:
        """Wait for the oldest batch of this thread and free its slot."""
        try:
            outputs = under_way[0].finish_batch()
        except RuntimeError as error:
            self._release(under_way.popleft(), "failed")
            raise self._schedule.failure(error)  # noqa: B904 - `failure` sets the cause
        self._release(under_way.popleft())
        return outputs

    def _release(self, slot: Slot, outcome: Outcome = "done") -> None:
        """Free a claimed slot and count its request."""
        with self._lock:
            in_time = self._schedule.release(slot, outcome)
            self._schedule.pump()
            if self._schedule.ended or self._refusal is not None:
                self._bell.put(None)
        if outcome == "done" and not in_time:
            raise EngineClosed(f"{self.name}: closed before the result was available")

    def take(
        self, array: np.ndarray, *, deadline: float | None, policy: Policy | None, replaceable: bool
    ) -> Future[Any]:
        """Queue a pool's array, which must not change until the future is done; see `submit`.

        `policy` None queues beyond the queue's depth what another engine accepted and did not answer. `replaceable`
        says whether a later ``drop-oldest`` may drop it.
        """
        return self._accept(array, deadline, policy, copy=False, replaceable=replaceable)

    def _accept(
        self, array: np.ndarray, deadline: float | None, policy: Policy | None, *, copy: bool, replaceable: bool
    ) -> Future[Any]:
        self._check(array)
        end = None if deadline is None else time.monotonic() + deadline
        job = Job(self, array, end, replaceable=replaceable)
        self._refuse_if_closed()
        with self._lock:
            self._make_room(job, policy)
            self._schedule.queue.append(job)
            self._schedule.pump()
            if copy and job.slot is None:
                self._schedule.keep(job, array)
            if self._asleep or self._schedule.ended:
                self._asleep = False
                self._bell.put(self)  # until the engine is at rest the supervisor keeps it: see `look_after`
        return job

    def counters(self) -> Counters:
        """Return the counters so far."""
        with self._lock:
            return self._schedule.snapshot()

    @property
    def closed(self) -> bool:
        """Whether every future is resolved and the device released."""
        return self._closed.is_set()

    def disown(self) -> None:
        """Refuse requests from now on: this is a forked child. The lock may never be freed here, so it is not taken."""
        self._refusal = (
            f"{self.name}: expected the process that loaded the model, found a forked child, which has none of "
            "OpenVINO's threads; load the model in the child, or start it with multiprocessing's 'spawn'"
        )
        self._forked = True

    def close(self, *, drain: bool = True, timeout: float = 30.0) -> None:
        """Accept no more requests, resolve every future, and release the device. May be called again.

        Parameters
        ----------
        drain
            Whether queued requests are still computed; otherwise they end with `EngineClosed` at once.
        timeout
            Seconds after which the remaining requests, even on a device that hangs, end with `EngineClosed`.
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

    def _check(self, array: np.ndarray, shape: tuple[int, ...] | None = None) -> None:
        shape = self._shape if shape is None else shape
        if array.dtype == self._dtype:
            if array.shape == shape:
                return
            if -1 in shape and len(array.shape) == len(shape) and 0 not in array.shape:  # noqa: SIM102
                if all(want in (-1, found) for want, found in zip(shape, array.shape, strict=True)):
                    return
        raise ContractError(f"{self.name}: expected {shape} {self._dtype}, found {array.shape} {array.dtype}")

    def _refuse_if_closed(self) -> None:
        if self._refusal is not None:
            raise EngineClosed(self._refusal)

    # The methods below are called with the lock held.

    def _make_room(self, job: Job, policy: Policy | None) -> None:
        while True:
            self._refuse_if_closed()
            if policy is None or not self._schedule.full:
                return
            if policy == "drop-oldest" and self._schedule.drop_oldest():
                continue
            if policy != "block":
                self._schedule.tally.rejected += 1
                others = " by callers whose policy is another" if policy == "drop-oldest" else ""
                raise Overloaded(
                    f"{self.name}: {self._schedule.depth} requests are queued already{others}; submit fewer, or wait"
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
        """Handle OpenVINO's callback: copy the results, start the next request, resolve the futures."""
        jobs, failure, wrong = slot.jobs, None, dict[int, str | None]()
        try:
            values = slot.read()
            if self._check_result is not None:
                wrong = {row: self._check_result(value) for row, value in enumerate(values)}
        except Exception as error:
            failure = error
        with self._lock:
            slot.jobs = ()
            if failure is None:
                for row, (job, value) in enumerate(zip(jobs, values, strict=True)):
                    if reason := wrong.get(row):
                        self._schedule.fail([job], reason)
                    else:
                        self._schedule.end(job, "done", value)
            else:
                self._schedule.fail(jobs, failure)
            self._schedule.pump()
            if self._refusal is not None:
                self._bell.put(None)
        self._deliver()

    def _deliver(self) -> None:
        """Resolve the futures of jobs that have ended; exceptions of their callbacks are logged."""
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
        """Process failures and deadlines. Return the delay until the next check, or None to wait for a wake-up."""
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
    """An object that only the frame of `infer` or `stream_batches` refers to."""

    __slots__ = ("__weakref__",)


def _ring(bell: SimpleQueue[Engine | None], _: object) -> None:
    bell.put(None)


def _find(reference: weakref.ref[Engine], number: int) -> tuple[Engine, Slot] | None:
    engine = reference()
    return None if engine is None else (engine, engine._schedule.slots[number])


def _by_batch(compiled: ov.CompiledModel) -> dict[int, ov.CompiledModel]:
    batch = compiled.input(0).partial_shape[0]
    return {1 if batch.is_dynamic else batch.get_length(): compiled}


def compile_engine(
    model: ov.Model | Callable[[], ov.Model],
    plan: DevicePlan,
    *,
    name: str | None = None,
    requests: int | None = None,
    cache: ModelCache | None = None,
    identity: str = "",
) -> Engine:
    """Compile a model as a plan says and start an engine.

    Parameters
    ----------
    model
        With one input; its compressed weights are unpacked in place where `must_unpack` says so. Or what makes it,
        which is not called if the compiled model is in the cache.
    plan
        Its `batch_buckets` are not used.
    name
        Of the model in messages; None: its own.
    requests
        Replaces the plan's.
    cache, identity
        Where compiled models are kept, and what identifies this one there; None: it is compiled each time.

    Raises
    ------
    DeviceError
        If the device is absent or cannot compile the model.
    InferenceError
        If the device cannot make its infer requests.
    MissingError
        If ulimit leaves too little memory.
    """
    require_room_to_compile()
    core, config = shared_core(), plan.compile_config()
    name = name or (model.get_friendly_name() if isinstance(model, ov.Model) else "model")

    def ready() -> ov.Model:
        made = model if isinstance(model, ov.Model) else model()
        if must_unpack(made, plan.device):
            unpack_weights(made)
            _log.info("%s: %s", name, UNPACKED)
        return made

    try:
        if cache is None:
            compiled = core.compile_model(ready(), plan.device, config)
        else:
            compiled, _ = cache.compile(core, ready, plan.device, config, identity=identity)
    except RuntimeError as error:
        raise DeviceError(f"device {plan.device!r} cannot compile {name}: {reason_of(error)}") from error
    return Engine(compiled, requests=requests or plan.requests, name=f"{name} on {plan.device}")
