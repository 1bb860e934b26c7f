"""Embed crops by a model on a server: OpenVINO Model Server, `edgeface serve`, or another of KServe V2.

The images are adapted here as they are for a local model; what travels is the input that the model's contract
describes, in float32. `edgeface.runtime.replica` looks at the contract, `edgeface.runtime.wire` speaks the protocol.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from edgeface.errors import DeadlineExceeded, EdgeFaceError, EngineClosed, InferenceError, Overloaded
from edgeface.model.contract import ModelContract
from edgeface.model.opset import ops
from edgeface.runtime.adapter import ImageFormat, adapt
from edgeface.runtime.address import RemoteAddress
from edgeface.runtime.counters import Counters, Outcome, Tally
from edgeface.runtime.engine import Engine, compile_engine
from edgeface.runtime.lifetime import look_after
from edgeface.runtime.plan import DevicePlan, ExecutionReport
from edgeface.runtime.replica import Replica, connect
from edgeface.runtime.schedule import Job
from edgeface.runtime.serving import RECHECK, Policy, Serving, in_done_callback, may_not_wait, refuse_waiting
from edgeface.runtime.wire import Unanswered

SECONDS = 30.0
"""For a request without a deadline."""
_PARALLEL = 4
"""For one replica: threads that send what was submitted, and callers of `infer` who ask by themselves."""
_LINGER = 1.0
"""Seconds after which a thread without work ends."""


class RemoteServing(Serving):
    """Several servers with one model, used as a device: each request is answered by one, or by another if that fails.

    Made by `Embedder.load`. Requests wait in a bounded queue for one of a few threads. A replica that does not answer
    is asked after the others for a while. Where all are busy they are asked again until the request's deadline.

    Parameters
    ----------
    address
        Where the model is.
    image_format
        Of the crops.
    queue_depth, policy
        As for `Engine`.
    """

    def __init__(
        self,
        address: RemoteAddress,
        image_format: ImageFormat,
        *,
        queue_depth: int | None = None,
        policy: Policy = "block",
    ) -> None:
        self.name = str(address)
        self._replicas, self.contract = connect(address)
        try:
            self._prepare = _adapter(self.contract, image_format)
        except BaseException:
            for replica in self._replicas:
                replica.close()
            raise
        self._threads, self._policy = min(16, _PARALLEL * len(self._replicas)), policy
        self._depth = queue_depth or 4 * self._threads
        self._lock = threading.Lock()
        self._room, self._work = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queue: deque[Job] = deque()
        self._running: set[Job] = set()
        self._tally, self._turn = Tally(), itertools.count()
        self._alive = self._idle = 0
        self._refusal: str | None = None
        self._forked = self._asleep = False
        self._closed = threading.Event()
        self._bell: SimpleQueue[RemoteServing | None] = SimpleQueue()
        look_after(self, weakref.ref(self, partial(_ring, self._bell)), self._bell)

    def report(self) -> ExecutionReport:
        """Return what is known of the execution: who computes, and not how."""
        return ExecutionReport(
            requested_device=self.name,
            execution_devices=tuple(replica.name for replica in self._replicas),
            full_names=tuple(f"server at {replica.name}" for replica in self._replicas),
            precision=None,
            hint=None,
            streams=None,
            optimal_requests=self._threads,
            threads=None,
            loaded_from_cache=None,
            fallback=False,
            notes=(),
        )

    @property
    def capacity(self) -> int:
        """Most requests that can be outstanding: under way and in the queue."""
        return self._depth + self._threads

    def submit(
        self, array: np.ndarray, *, deadline: float | None = None, policy: Policy | None = None, copy: bool = True
    ) -> Future[Any]:
        """Queue one crop, as `Engine.submit`; a deadline of None is 30 s."""
        policy = policy or self._policy
        end = time.monotonic() + (SECONDS if deadline is None else deadline)
        job = Job(self, array.copy() if copy else array, end, replaceable=policy == "drop-oldest")
        self._refuse_if_closed()
        ended: list[Callable[[], None]] = []
        with self._lock:
            self._make_room(job, policy, ended)
            self._queue.append(job)
            self._work.notify()
            if self._idle < len(self._queue) and self._alive < self._threads:
                threading.Thread(target=self._serve, name=f"edgeface: {self.name}", daemon=True).start()
                self._alive += 1  # not if the machine has no thread left
            if self._asleep:
                self._asleep = False
                self._bell.put(self)
        _deliver(ended)
        return job

    def infer(self, array: np.ndarray, *, deadline: float | None = None) -> Any:
        """Ask for one crop and wait, in this thread unless as many are under way as may be."""
        refuse_waiting()
        self._refuse_if_closed()
        job = Job(self, array, time.monotonic() + (SECONDS if deadline is None else deadline))
        with self._lock:
            self._refuse_if_closed()
            here = not self._queue and len(self._running) < self._threads
            if here:
                self._running.add(job)
        if not here:
            return super().infer(array, deadline=deadline)
        try:
            self._run(job)
        except BaseException:  # Ctrl-C
            job.cancel()
            with self._lock:
                self._running.discard(job)
            raise
        return job.result()

    def _make_room(self, job: Job, policy: Policy, ended: list[Callable[[], None]]) -> None:
        while True:
            self._refuse_if_closed()
            if len(self._queue) < self._depth:
                return
            oldest = next((each for each in self._queue if each.replaceable), None)
            if policy == "drop-oldest" and oldest is not None:
                self._queue.remove(oldest)
                self._end(oldest, "dropped", ended, error=Overloaded(f"{self.name}: dropped for a newer request"))
                return
            if policy != "block" or may_not_wait():
                self._tally.rejected += 1
                raise Overloaded(f"{self.name}: {self._depth} requests wait already; submit fewer, or wait")
            assert job.deadline is not None
            if (patience := job.deadline - time.monotonic()) <= 0:
                raise DeadlineExceeded(f"{self.name}: no room in the queue by the request's deadline")
            self._room.wait(min(patience, RECHECK))

    def _refuse_if_closed(self) -> None:
        if self._refusal is not None:
            raise EngineClosed(self._refusal)

    def _serve(self) -> None:
        """Answer requests until there is none for a while, in a thread of its own."""
        while True:
            with self._lock:
                if not self._queue and self._refusal is None:
                    self._idle += 1
                    self._work.wait(_LINGER)
                    self._idle -= 1
                if not self._queue:
                    self._alive -= 1
                    return
                job = self._queue.popleft()
                self._running.add(job)
                self._room.notify()
            self._run(job)
            del job

    def _run(self, job: Job) -> None:
        """Answer a request in this thread, and resolve its future."""
        value: Any = None
        error: EdgeFaceError | None = None
        array, end = job.array, job.deadline
        try:
            if array is not None and end is not None:  # it has not ended already
                value = self._answer(array, end)
        except EdgeFaceError as raised:
            error = raised
        except Exception as raised:
            error = InferenceError(f"{self.name}: {type(raised).__name__}: {raised}")
            error.__cause__ = raised
        ended: list[Callable[[], None]] = []
        with self._lock:
            self._running.discard(job)
            late = isinstance(error, DeadlineExceeded)
            outcome: Outcome = "done" if error is None else "expired" if late else "failed"
            self._end(job, outcome, ended, value, error)
            if self._refusal is not None:
                self._bell.put(None)
        _deliver(ended)

    def _answer(self, array: np.ndarray, end: float) -> NDArray[np.float32]:
        """Ask the replicas in turn."""
        pixels, busy = self._prepare.infer(array), ""
        while True:
            failures: list[Unanswered] = []
            for replica, latest in self._in_turn(end):
                try:
                    return replica.embed(pixels, self.contract, latest)
                except Unanswered as error:
                    failures.append(error)
                    if error.kind != "busy":
                        replica.rest()
            kinds, said = {each.kind for each in failures}, "; ".join(map(str, failures))
            left = end - time.monotonic()
            if "busy" in kinds:
                busy = said
            elif not busy or left > 0:
                late = DeadlineExceeded if kinds <= {"late"} or left <= 0 else InferenceError
                raise late(said or f"{self.name}: no answer by the request's deadline")
            if left <= (pause := min([1.0, *(each.retry_after for each in failures if each.kind == "busy")])):
                raise Overloaded(f"{busy}; still so at the request's deadline")
            time.sleep(max(0.01, pause))

    def _in_turn(self, end: float) -> Iterator[tuple[Replica, float]]:
        """Yield the replicas, rested ones first, each with a share of the time that is left then."""
        first, now = next(self._turn), time.monotonic()
        order = [self._replicas[(first + each) % len(self._replicas)] for each in range(len(self._replicas))]
        order.sort(key=lambda replica: replica.rests_until > now)
        for number, replica in enumerate(order):
            if (left := end - (now := time.monotonic())) <= 0:
                return
            yield replica, now + left / (len(order) - number)

    def _end(
        self,
        job: Job,
        outcome: Outcome,
        ended: list[Callable[[], None]],
        value: Any = None,
        error: BaseException | None = None,
    ) -> None:
        """End a request, which `ended` resolves without the lock; the first end counts."""
        born = job.born
        if job.end(outcome):
            self._tally.ended[outcome] += 1
            if outcome == "done":
                self._tally.measure(time.monotonic() - born)
            ended.append(partial(_resolve, job, value, error))

    def forget(self, job: Job) -> None:
        """Take a cancelled request out of the queue; what is under way is not used."""
        if self._forked:
            return
        with self._lock:
            if job.end("cancelled"):
                self._tally.ended["cancelled"] += 1
                job.set_running_or_notify_cancel()
            if job in self._queue:
                self._queue.remove(job)
                self._room.notify()

    def counters(self) -> Counters:
        """Return the counters so far; a request that was sent to several replicas counts once."""
        with self._lock:
            running = sum(job.ended is None for job in self._running)
            return self._tally.snapshot(queued=len(self._queue), running=running)

    def tick(self) -> float | None:
        """End requests whose deadline is over, as `look_after` wants it; return when to look again, None at rest."""
        ended: list[Callable[[], None]] = []
        with self._lock:
            now = time.monotonic()
            for job in (*self._queue, *self._running):
                if job.deadline is not None and job.deadline <= now and job.ended is None:
                    late = DeadlineExceeded(f"{self.name}: no answer by the request's deadline")
                    self._end(job, "expired", ended, error=late)
            self._queue = deque(job for job in self._queue if job.ended is None)
            waiting = [job.deadline for job in (*self._queue, *self._running) if job.deadline and job.ended is None]
            self._asleep = not waiting
            if self._asleep and self._refusal is not None:
                self._closed.set()
        _deliver(ended)
        return None if not waiting else min(RECHECK, max(0.02, min(waiting) - time.monotonic()))

    @property
    def closed(self) -> bool:
        """Whether every request has ended."""
        return self._closed.is_set()

    def disown(self) -> None:
        """Refuse requests from now on: this is a forked child, which has none of the threads."""
        self._refusal = f"{self.name}: expected the process that loaded the model, found a forked child; load it there"
        self._forked = True

    def close(self, *, drain: bool = True, timeout: float = 30.0) -> None:
        """Accept no more requests, resolve every future, and close the connections; see `Engine.close`."""
        if self._forked:
            return
        with self._lock:
            self._refusal = self._refusal or f"{self.name}: expected an open model, found it closed"
            self._room.notify_all()
            self._work.notify_all()
        self._bell.put(None)
        if may_not_wait():
            return
        if drain:
            self._closed.wait(timeout)
        ended: list[Callable[[], None]] = []
        with self._lock:
            for job in (*self._queue, *self._running):
                closed = EngineClosed(f"{self.name}: closed before the result was available")
                self._end(job, "abandoned", ended, error=closed)
            self._queue.clear()
        _deliver(ended)
        self._bell.put(None)
        for replica in self._replicas:
            replica.close()
        self._prepare.close(drain=False)


def _resolve(job: Job, value: Any, error: BaseException | None) -> None:
    if not job.set_running_or_notify_cancel():
        return
    if error is None:
        job.set_result(value)
    else:
        job.set_exception(error)


def _deliver(ended: Sequence[Callable[[], None]]) -> None:
    """Resolve futures, whose callbacks must not wait for this thread."""
    outer, in_done_callback.active = may_not_wait(), True
    try:
        for resolve in ended:
            resolve()
    finally:
        in_done_callback.active = outer


def _ring(bell: SimpleQueue[RemoteServing | None], _: object) -> None:
    bell.put(None)


def _adapter(contract: ModelContract, image_format: ImageFormat) -> Engine:
    """Return what makes of an image the model's input: a graph of nothing but the adapter that local models get."""
    image = ops.parameter(list(contract.input_shape(-1)), np.float32, name=contract.input_name)
    image.output(0).set_names({contract.input_name})
    graph = adapt(ov.Model([image], [image], "adapter"), contract, image_format, batch=1)
    plan = DevicePlan(device="CPU", precision="f32", hint="LATENCY", threads=1)
    return compile_engine(graph, plan, name="adapter")
