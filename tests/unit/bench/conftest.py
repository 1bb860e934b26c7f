"""A service that takes a known time, in place of a device."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest


class Service:
    """Serves in as many threads as it has slots; every inference takes `seconds`.

    Parameters
    ----------
    slots, items
        As `edgeface.bench.run.load.Target` has them.
    fail_at, interrupt_at
        The inference, from 0, that never completes, and the one at whose start Ctrl-C comes.
    """

    def __init__(
        self,
        seconds: float,
        *,
        slots: int = 1,
        items: int = 1,
        fail_at: int | None = None,
        interrupt_at: int | None = None,
    ) -> None:
        self.seconds, self.slots, self.items = seconds, slots, items
        self.started = self.most_at_once = 0
        self._fail_at, self._interrupt_at = fail_at, interrupt_at
        self._under_way: set[int] = set()
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(slots)

    def infer(self) -> None:
        self._count()
        time.sleep(self.seconds)

    def listen(self, done: Callable[[int], None]) -> None:
        self._done = done

    def start(self, slot: int) -> None:
        number = self._count()
        with self._lock:
            assert slot not in self._under_way, "a slot was started that had an inference under way"
            self._under_way.add(slot)
            self.most_at_once = max(self.most_at_once, len(self._under_way))
        if number != self._fail_at:
            self._workers.submit(self._serve, slot)

    def failure(self) -> Exception | None:
        return RuntimeError("pulled out") if self._fail_at is not None else None

    def close(self) -> None:
        self._workers.shutdown()

    def _serve(self, slot: int) -> None:
        time.sleep(self.seconds)
        with self._lock:
            self._under_way.remove(slot)
        self._done(slot)

    def _count(self) -> int:
        if self.started == self._interrupt_at:
            signal.raise_signal(signal.SIGINT)
        self.started += 1
        return self.started - 1


@pytest.fixture
def service() -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(seconds: float, **options: int) -> Service:
        made.append(Service(seconds, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
