"""Jobs and slots in, who works on what and how each job ended out: the state of an engine.

Nothing here takes a lock: the engine holds its own around every call. A slot is free exactly while its `jobs` are
empty, and a job is waiting exactly while it is in the queue and no slot has it; nothing else is remembered. So an
exception at any point, also Ctrl-C, leaves a state that the next call continues from.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from edgeface.errors import DeadlineExceeded, EngineClosed, InferenceError, Overloaded, RequestError
from edgeface.runtime.counters import Counters, Outcome, Tally
from edgeface.runtime.faults import reason_of
from edgeface.runtime.slots import Job, Slot

__all__ = ["Schedule"]


class Schedule:
    """A bounded queue of jobs, a fixed pool of slots, and what has become of the jobs.

    Parameters
    ----------
    name
        What messages call the engine.
    slots
        The pool.
    batch
        Largest number of jobs that a slot takes at once.
    depth
        Length of the queue at which it is full.
    room
        Whoever waits for room waits on it; its lock is the engine's.
    """

    def __init__(
        self, name: str, slots: Sequence[Slot], *, batch: int, depth: int, room: threading.Condition
    ) -> None:
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
        """The counters now."""
        running = sum(job.ended is None for slot in self.slots for job in slot.jobs)
        return self.tally.snapshot(queued=sum(job.waiting for job in self.queue), running=running)

    def drop_oldest(self) -> None:
        """Make room for a newer job."""
        oldest = self.queue.popleft()
        if oldest.waiting:
            self.end(oldest, "dropped", error=Overloaded(f"{self.name}: dropped for a newer request"))

    def keep(self, job: Job, array: np.ndarray) -> None:
        """Copy a waiting job's array, so that the caller may overwrite it.

        Into memory that an earlier job has left: a fresh block of the size of a video frame costs more, page by
        page, than the copying.
        """
        spare = self._spare
        buffer = spare.pop() if spare and spare[-1].shape == array.shape else np.empty_like(array, order="C")
        np.copyto(buffer, array)
        job.array, job.copied = buffer, True

    def reap(self) -> None:
        """End the jobs of slots that are over without a callback: OpenVINO makes none after an error."""
        for slot in self.slots:
            if slot.orphaned:
                self.release(slot)
            elif slot.jobs and slot.claim is None and (failure := slot.verdict()) is not None:
                jobs, slot.jobs = slot.jobs, ()
                self.fail(jobs, failure)

    def pump(self) -> None:
        """Give queued jobs to free slots."""
        while jobs := self._next_jobs():
            slot = self.free_slot()
            if slot is None:
                break
            self._start(slot, jobs)
        # Those who wait for room are woken when half the queue is free: a switch of threads costs as much as a
        # small inference, and the other half keeps the device busy meanwhile.
        if len(self.queue) <= self.depth // 2:
            self._room.notify(self.depth - len(self.queue))

    def free_slot(self) -> Slot | None:
        """A slot that works on nothing."""
        for slot in self.slots:
            if slot.claim is not None and slot.orphaned:
                self.release(slot)
            if not slot.jobs:
                return slot
        return None

    def release(self, slot: Slot) -> None:
        """Free a slot that a thread claimed; a job without an end was interrupted."""
        for job in slot.jobs:
            self.count(job, "abandoned")
        slot.jobs, slot.claim = (), None

    def _next_jobs(self) -> list[Job]:
        """The jobs of the next batch, which stay in the queue until they have been started."""
        queue = self.queue
        while queue and not queue[0].waiting:
            queue.popleft()
        return [job for job in islice(queue, self._batch) if job.waiting]

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

    def end(self, job: Job, outcome: Outcome, value: Any = None, error: RequestError | None = None) -> None:
        """Decide a job's end; its future is told later, from `ended`, without the lock."""
        if self.count(job, outcome):
            self.ended.append((job, value, error))

    def fail(self, jobs: Sequence[Job], error: Exception | str) -> None:
        """End jobs with what the device said."""
        for job in jobs:
            self.end(job, "failed", error=self.failure(error))

    def failure(self, error: Exception | str) -> InferenceError:
        """What a job's future is told."""
        if isinstance(error, str):
            return InferenceError(f"{self.name}: inference failed: {error}")
        failure = InferenceError(f"{self.name}: inference failed: {reason_of(error)}")
        failure.__cause__ = error
        return failure

    def count(self, job: Job, outcome: Outcome) -> bool:
        """Enter a job's end; False if it has ended before."""
        if not job.end(outcome):
            return False
        self.tally.ended[outcome] += 1
        if outcome == "done":
            self.tally.measure(time.monotonic() - job.born)
        return True

    def expire(self, now: float, *, abandon_queued: bool, abandon_all: bool) -> None:
        """End jobs whose deadline has passed, and at closing those that are not to be computed."""
        for job in chain(self.queue, *(slot.jobs for slot in self.slots)):
            if job.deadline is not None and now >= job.deadline:
                error: RequestError = DeadlineExceeded(f"{self.name}: no result by the request's deadline")
                self.end(job, "expired", error=error)
            elif abandon_all or (abandon_queued and job.slot is None):
                error = EngineClosed(f"{self.name}: closed before the result was there")
                self.end(job, "abandoned", error=error)
