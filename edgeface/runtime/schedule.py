"""The state of an engine: requests, the infer requests that compute them, and how each request ended.

Nothing here takes a lock: the engine holds its own around every call of `Schedule`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import openvino as ov

import edgeface.model.opset  # noqa: F401 - makes arrays safe to pass from several threads
from edgeface.errors import DeadlineExceeded, EngineClosed, InferenceError, Overloaded, RequestError
from edgeface.runtime.counters import Counters, Outcome, Tally
from edgeface.runtime.serving import may_not_wait, refuse_waiting

Outputs = tuple[np.ndarray, ...]
"""One array for each output of a model, in the model's order."""

_WHERE = ("Exception from ", "Caught exception:", "cpp:")


def reason_of(error: BaseException) -> str:
    """Extract the innermost message of an OpenVINO exception, without source lines and Python trace."""
    text = str(error).partition("\nAt:\n")[0]
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith(_WHERE)]
    return said[-1] if said else repr(error)


class _Owner(Protocol):
    def forget(self, job: Job) -> None: ...


class Request:
    """What an engine knows of one request; as such, one that the caller's own thread computes."""

    def __init__(self, array: np.ndarray, deadline: float | None = None) -> None:
        self.array: np.ndarray | None = array
        self.born = time.monotonic()
        self.deadline = deadline
        self.ended: Outcome | None = None

    def end(self, outcome: Outcome) -> bool:
        """Set how the request ended. The first call wins; the owner's lock is held."""
        if self.ended is not None:
            return False
        self.ended = outcome
        self.array = None
        return True


class Job(Future[Any], Request):
    """A request as a future that can be cancelled until its result is there, even while it is computed.

    To wait for it in a future's callback, by `result`, `exception`, `concurrent.futures.wait` or `as_completed`, is a
    `RequestError`: the callback holds the thread that has to produce the result.
    """

    def __init__(self, owner: _Owner, array: np.ndarray, deadline: float | None, *, replaceable: bool = False) -> None:
        Future.__init__(self)
        Request.__init__(self, array, deadline)
        self.owner: _Owner | None = owner
        self.replaceable = replaceable
        self.copied = False
        self.slot: Slot | None = None

    @property
    def waiting(self) -> bool:
        """Whether the request has neither started nor ended."""
        return self.slot is None and self.ended is None

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result, and return it or raise the request's error."""
        self._refuse_waiting()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the request's end, and return its error, if any."""
        self._refuse_waiting()
        return super().exception(timeout)

    def _refuse_waiting(self) -> None:
        if may_not_wait() and not self.done():
            refuse_waiting()

    @property
    def _waiters(self) -> list[Any]:
        """Where `concurrent.futures.wait` and `as_completed` register before they wait."""
        self._refuse_waiting()
        return self._waiting_for_it

    @_waiters.setter
    def _waiters(self, waiters: list[Any]) -> None:
        self._waiting_for_it: list[Any] = waiters

    def cancel(self) -> bool:
        """Cancel the request, and drop a result that is still being computed; False if it has ended already."""
        # The state stays PENDING until the end, unlike an executor's, so this succeeds for running ones too.
        if super().cancel() and (owner := self.owner) is not None:
            owner.forget(self)
        return self.cancelled()

    def end(self, outcome: Outcome) -> bool:
        """See `Request.end`."""
        ended = super().end(outcome)
        if ended:
            self.owner = None  # a future that is kept must keep neither the engine nor the image
        return ended


class Slot:
    """One place on the device: an OpenVINO infer request for each batch size, of which one runs at a time.

    `on_done(token)` is called in OpenVINO's thread when a result is there; not after an error, see `verdict`.
    `jobs` is the state: the slot is free exactly while it is empty. It is written under the engine's lock. `claim` is
    set while a thread computes here without a callback: a weak reference to an object that only that thread's frame
    holds. The slot is known to be free again however the frame ended, even by Ctrl-C while Ctrl-C is handled.
    """

    def __init__(self, compiled: Mapping[int, ov.CompiledModel], on_done: Callable[[Any], None], token: object) -> None:
        self.jobs: Sequence[Request] = ()
        self.claim: Callable[[], object] | None = None
        self._compiled = compiled
        self._requests = {batch: model.create_infer_request() for batch, model in compiled.items()}
        self._active = next(iter(self._requests.values()))
        self._outputs = len(self._active.model_outputs)
        self._silent: ov.InferRequest | None = None
        self._batch: np.ndarray | None = None
        self._rows: np.ndarray | None = None
        self._dynamic = next(iter(compiled.values())).input(0).partial_shape.is_dynamic
        self._over = set[int]()  # requests whose last run `run` has waited for
        for request in self._requests.values():
            if not self._dynamic:
                request.get_input_tensor(0).data[...] = 0  # padding of a batch must not be uninitialised
            request.set_callback(on_done, token)

    @property
    def orphaned(self) -> bool:
        """Whether the frame that claimed this slot is gone."""
        return self.claim is not None and self.claim() is None

    def start(self, jobs: Sequence[Request]) -> None:
        """Copy the jobs' arrays into a batch that holds them and start it."""
        request = self._fill(jobs)
        self._over.discard(id(request))
        request.start_async()

    def run(self, jobs: Sequence[Request]) -> list[Any]:
        """Compute in this thread and return the results."""
        request = self._fill(jobs)
        try:
            request.infer()
        finally:  # with one thread and one stream OpenVINO reports it as unfinished for ever
            self._over.add(id(request))
        return self.read()

    def start_batch(self, batch: np.ndarray) -> None:
        """Start a whole batch that the device reads in place, without a callback: `finish_batch` waits for it.

        A callback would need Python's interpreter lock before the stream could go on with the next request.
        """
        if self._silent is None:
            self._silent = next(iter(self._compiled.values())).create_infer_request()
        self.settle()
        self._batch = batch
        # Passing the batch to `start_async` does the same after many checks of its type.
        self._silent.set_input_tensor(ov.Tensor(batch, shared_memory=True))
        self._silent.start_async()

    def finish_batch(self) -> Outputs:
        """Wait for the batch of `start_batch` and copy its outputs."""
        assert self._silent is not None
        self._silent.wait()
        self._batch = None
        return tuple(tensor.data.copy() for tensor in self._silent.output_tensors)

    def settle(self) -> None:
        """Wait until the device no longer reads the batch of `start_batch`, whatever its result."""
        if self._silent is not None and self._batch is not None:
            with contextlib.suppress(RuntimeError):
                self._silent.wait()
            self._batch = None

    def _fill(self, jobs: Sequence[Request]) -> ov.InferRequest:
        count = len(jobs)
        request = self._active = next(r for batch, r in self._requests.items() if batch >= count)
        if self._dynamic:
            # OpenVINO's own tensor moves while other requests of the model run in other shapes.
            self._rows = np.stack([job.array for job in jobs])  # type: ignore[misc]
            request.set_input_tensor(0, ov.Tensor(self._rows, shared_memory=True))
        else:
            rows = request.get_input_tensor(0).data
            for i, job in enumerate(jobs):
                rows[i] = job.array
        return request

    def read(self) -> list[Any]:
        """Copy one result for each of `jobs`: an array, or a tuple of arrays if the model has several outputs."""
        request = self._active
        outputs = [request.get_output_tensor(i).data for i in range(self._outputs)]
        if (rows := min(map(len, outputs))) < len(self.jobs):
            raise ValueError(
                f"expected a row for each of {len(self.jobs)} inputs, found {rows}: the graph holds its batch fixed; "
                "convert it with --batch 1, or pass a plan with batch_buckets of [1]"
            )
        if len(outputs) == 1:
            return [row.copy() for row in outputs[0][: len(self.jobs)]]
        return [tuple(output[i].copy() for output in outputs) for i in range(len(self.jobs))]

    def verdict(self) -> Exception | str | None:
        """Why the last run is over, or None while the device or its callback is working.

        OpenVINO calls no Python callback after an error, so this is the only way to notice one. It is exact:
        OpenVINO reports a run as unfinished until its callback has returned. A request that never ran is also
        reported as unfinished, and is the only one whose latency is 0 (2024.6 to 2026.4, on CPU, AUTO, HETERO and
        BATCH).
        """
        return _verdict(self._active)

    @property
    def at_rest(self) -> bool:
        """Whether every request's last run, including its callback, is over."""
        if self.jobs or (self._batch is not None and self._silent is not None and _verdict(self._silent) is None):
            return False
        return all(id(request) in self._over or _verdict(request) is not None for request in self._requests.values())


def _verdict(request: ov.InferRequest) -> Exception | str | None:
    try:
        if request.wait_for(0):
            return "the device finished without a result"
        return "the device was not started" if request.latency == 0.0 else None
    except Exception as error:
        return error


class Schedule:
    """A bounded queue of jobs, a fixed pool of slots, and the jobs that have ended.

    Parameters
    ----------
    name
        Name of the engine in messages.
    slots
        The pool.
    batch
        Largest number of jobs that a slot takes at once.
    depth
        Length of the queue at which it is full.
    room
        Condition that threads wait on for room; its lock is the engine's.
    """

    def __init__(self, name: str, slots: Sequence[Slot], *, batch: int, depth: int, room: threading.Condition) -> None:
        self.name = name
        self.slots = list(slots)
        self.depth = depth
        self.queue: deque[Job] = deque()
        self.ended: deque[tuple[Job, Any, RequestError | None]] = deque()
        self.tally = Tally()
        self._batch = batch
        self._spare: list[np.ndarray] = []
        self._room = room

    @property
    def full(self) -> bool:
        """Whether a further job would have to wait for room."""
        return len(self.queue) >= self.depth

    @property
    def outstanding(self) -> int:
        """Jobs that wait or are on the device."""
        return len(self.queue) + sum(len(slot.jobs) for slot in tuple(self.slots))

    def snapshot(self) -> Counters:
        """Return the current counters."""
        running = sum(job.ended is None for slot in self.slots for job in slot.jobs)
        return self.tally.snapshot(queued=sum(job.waiting for job in self.queue), running=running)

    def drop_oldest(self) -> bool:
        """Make room for a newer job: drop the oldest waiting one that may be replaced; return False if none may."""
        oldest = next((job for job in self.queue if job.replaceable or not job.waiting), None)
        if oldest is None:
            return False
        self.queue.remove(oldest)
        if oldest.waiting:
            self.end(oldest, "dropped", error=Overloaded(f"{self.name}: dropped for a newer request"))
        return True

    def keep(self, job: Job, array: np.ndarray) -> None:
        """Copy a waiting job's array, so that the caller may overwrite it.

        The memory of earlier jobs is reused: a fresh block of the size of a video frame costs more than the copy.
        """
        spare = self._spare
        buffer = spare.pop() if spare and spare[-1].shape == array.shape else np.empty_like(array, order="C")
        np.copyto(buffer, array)
        job.array, job.copied = buffer, True

    def reap(self) -> None:
        """End the jobs of slots that failed: OpenVINO calls no callback after an error."""
        for slot in self.slots:
            if slot.orphaned:
                self.release(slot)
            elif slot.jobs and slot.claim is None and (failure := slot.verdict()) is not None:
                jobs, slot.jobs = slot.jobs, ()
                self.fail(jobs, failure)

    def pump(self) -> None:
        """Start queued jobs on free slots."""
        while (jobs := self._next_jobs()) and (slot := self.free_slot()) is not None:
            self._start(slot, jobs)
        # Waiting threads are woken when half the queue is free: a thread switch costs as much as a small inference,
        # and the other half keeps the device busy meanwhile.
        if len(self.queue) <= self.depth // 2:
            self._room.notify(self.depth - len(self.queue))

    def free_slot(self) -> Slot | None:
        """Return a slot that computes nothing, or None."""
        for slot in self.slots:
            if slot.claim is not None and slot.orphaned:
                self.release(slot)
            if not slot.jobs:
                return slot
        return None

    def release(self, slot: Slot, outcome: Outcome = "abandoned") -> bool:
        """Free a slot that a thread claimed; return False if its request had ended before."""
        first = all(self.count(job, outcome) for job in slot.jobs)
        slot.jobs, slot.claim = (), None
        return first

    def _next_jobs(self) -> list[Job]:
        """Return the jobs of the next batch. They stay in the queue until they have been started.

        Slots that are free share what is queued: one that took all of it would leave the others idle.
        """
        queue = self.queue
        if not queue:
            return []
        while queue and not queue[0].waiting:
            queue.popleft()
        most = self._batch
        if most > 1:
            free = sum(not slot.jobs for slot in self.slots) or 1
            most = min(most, -(-len(queue) // free))
        return [job for job in islice(queue, most) if job.waiting]

    def _start(self, slot: Slot, jobs: Sequence[Job]) -> None:
        try:
            for job in jobs:
                job.slot = slot
            slot.claim, slot.jobs = None, jobs
            slot.start(jobs)
            self._spare.extend(job.array for job in jobs if job.copied and job.array is not None)
            del self._spare[self.depth :]
        except BaseException as error:
            if slot.verdict() is not None:  # it did not reach the device
                slot.jobs = ()
                if isinstance(error, Exception):
                    self.fail(jobs, error)
                else:
                    for job in jobs:
                        job.slot = None
            if not isinstance(error, Exception):
                raise

    def end(self, job: Request, outcome: Outcome, value: Any = None, error: RequestError | None = None) -> None:
        """End a job. Its future is resolved later, from `ended`, without the lock."""
        if self.count(job, outcome) and isinstance(job, Job):
            self.ended.append((job, value, error))

    def fail(self, jobs: Sequence[Request], error: Exception | str) -> None:
        """End jobs with the device's error."""
        for job in jobs:
            self.end(job, "failed", error=self.failure(error))

    def failure(self, error: Exception | str) -> InferenceError:
        """Convert a device's error to the exception of a job's future."""
        if isinstance(error, str):
            return InferenceError(f"{self.name}: inference failed: {error}")
        failure = InferenceError(f"{self.name}: inference failed: {reason_of(error)}")
        failure.__cause__ = error
        return failure

    def count(self, job: Request, outcome: Outcome) -> bool:
        """Record the end of a job; return False if it had ended before."""
        if not job.end(outcome):
            return False
        self.tally.ended[outcome] += 1
        if outcome == "done":
            self.tally.measure(time.monotonic() - job.born)
        return True

    def expire(self, now: float, *, abandon_queued: bool, abandon_all: bool) -> None:
        """End jobs whose deadline has passed and, while closing, those that are not computed any more."""
        for job in chain(self.queue, *(slot.jobs for slot in self.slots)):
            if job.deadline is not None and now >= job.deadline:
                error: RequestError = DeadlineExceeded(f"{self.name}: no result by the request's deadline")
                self.end(job, "expired", error=error)
            elif abandon_all or (abandon_queued and isinstance(job, Job) and job.slot is None):
                error = EngineClosed(f"{self.name}: closed before the result was available")
                self.end(job, "abandoned", error=error)
