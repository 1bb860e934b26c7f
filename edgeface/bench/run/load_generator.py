"""Start inferences and record the start and the end of every query: what all scenarios share.

One thread, the caller's, decides and starts; completions are timestamped in the device's threads by
`time.perf_counter_ns`, which is monotonic. The garbage collector is off meanwhile, and Ctrl-C is noted instead of
raised, so that what was measured is complete.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from edgeface.bench.run.load import Target
from edgeface.progress import Progress, ProgressCallback

_OVERDUE = 1.0
"""Seconds without a completion after which the target is asked for a failure."""
TELL_NS = 200_000_000
"""Nanoseconds between two reports of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """How long to measure: until `duration_s` seconds and `min_count` queries, at most `max_duration_s` seconds."""

    duration_s: float
    min_count: int
    max_duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """Times of the queries that a scenario measured.

    `starts_ns`, (N,) int64, ascending, and `latencies_ms`, (N,) float64, count from the start of the measurement. A
    query has `items` items. `wall_s` and `cpu_s` (all threads of the process) reach to the last completion.
    `interrupted`: Ctrl-C ended it.
    """

    starts_ns: NDArray[np.int64]
    latencies_ms: NDArray[np.float64]
    items: int
    wall_s: float
    cpu_s: float
    interrupted: bool = False

    def __len__(self) -> int:
        return len(self.starts_ns)

    @property
    def ends_s(self) -> NDArray[np.float64]:
        """Seconds from the start of the measurement to each completion."""
        return self.starts_ns * 1e-9 + self.latencies_ms * 1e-3

    @property
    def items_per_second(self) -> float:
        """Throughput; filling and emptying the target is included."""
        return len(self) * self.items / self.wall_s if self.wall_s > 0 else 0.0


class Recorder:
    """Collects (start, end) of every completed query in `rows`, nanoseconds of the monotonic clock.

    `interrupted` is set by Ctrl-C; the loop that measures must then end. `began` is the start, in the same clock.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []
        self.interrupted = False
        self.began = time.perf_counter_ns()
        self._cpu = time.process_time()
        self._cpu_end = self._cpu

    def end(self) -> None:
        """Stop the CPU clock."""
        self._cpu_end = time.process_time()

    def recording(self, items: int) -> Recording:
        """Return what was collected, sorted by start."""
        times = np.array(sorted(self.rows), np.int64).reshape(-1, 2)
        last = int(times[:, 1].max()) if len(times) else self.began
        return Recording(
            starts_ns=times[:, 0] - self.began,
            latencies_ms=(times[:, 1] - times[:, 0]).astype(np.float64) * 1e-6,
            items=items,
            wall_s=(last - self.began) * 1e-9,
            cpu_s=self._cpu_end - self._cpu,
            interrupted=self.interrupted,
        )


@contextlib.contextmanager
def measuring() -> Iterator[Recorder]:
    """Yield a recorder. The first Ctrl-C sets its `interrupted`; a second one is raised.

    At the end KeyboardInterrupt is raised if it was interrupted before anything was recorded.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    recorder = Recorder()
    try:
        with _noting_interrupts(recorder):
            yield recorder
    finally:
        recorder.end()
        if enabled:
            gc.enable()
    if recorder.interrupted and not recorder.rows:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _noting_interrupts(recorder: Recorder) -> Iterator[None]:
    """Prevent Ctrl-C between taking a slot and starting it, where the slot would be lost."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, frame: object) -> None:
        recorder.interrupted = True
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def measured_share(share: float) -> Progress:
    """Build the report of a measurement that is `share` (0 to 1) done."""
    return Progress("measure", 100 * min(1.0, share), 100, "%")


class Stopper:
    """Decides when a measurement ends: by its limits or Ctrl-C; reports progress every 0.2 s."""

    def __init__(self, limits: RunLimits, progress: ProgressCallback, recorder: Recorder) -> None:
        self._recorder, began = recorder, recorder.began
        self._least = began + int(limits.duration_s * 1e9)
        self._most = began + int(max(limits.max_duration_s, limits.duration_s) * 1e9)
        self._count, self._began = limits.min_count, began
        self._progress, self._tell_at = progress, began

    def __call__(self, now: int, count: int) -> bool:
        """Whether to end now, after `count` queries."""
        if now >= self._tell_at:
            self._tell_at = now + TELL_NS
            passed = now - self._began
            share = min(passed / max(self._least - self._began, 1), count / max(self._count, 1))
            self._progress(measured_share(max(share, passed / max(self._most - self._began, 1))))
        enough = now >= self._least and count >= self._count
        return enough or now >= self._most or self._recorder.interrupted


class Slots:
    """Keeps track of the free slots of a target, and timestamps completions.

    `completed` is called in the device's thread with the slot and the nanoseconds of the completion; it must be
    quick.
    """

    def __init__(self, target: Target, completed: Callable[[int, int], None]) -> None:
        self._target, self._completed = target, completed
        self._freed: SimpleQueue[int] = SimpleQueue()
        for slot in range(target.slots):
            self._freed.put(slot)
        target.listen(self._on_done)

    def _on_done(self, slot: int) -> None:
        self._completed(slot, time.perf_counter_ns())
        self._freed.put(slot)

    def take(self) -> int:
        """Wait for a free slot; raise the error of the target's inferences if one fails."""
        while True:
            try:
                return self._freed.get(timeout=_OVERDUE)
            except Empty:
                if (failure := self._target.failure()) is not None:
                    raise failure from None

    def start(self, slot: int) -> None:
        """Start an inference."""
        try:
            self._target.start(slot)
        except BaseException:
            self._freed.put(slot)
            raise

    def drain(self) -> None:
        """Wait until every slot is free."""
        slots = [self.take() for _ in range(self._target.slots)]
        for slot in slots:
            self._freed.put(slot)
