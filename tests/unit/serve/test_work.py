"""Bounded work off the event loop: refused, shared, cancelled, and never later than its deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from edgeface.errors import DeadlineExceeded, EngineClosed, Overloaded
from edgeface.serve.work import WorkQueue

pytestmark = pytest.mark.timeout(30)


def run(body: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(body, 20))


def test_what_can_neither_run_nor_wait_is_refused_at_once() -> None:
    async def body() -> None:
        queue, gate = WorkQueue(1, 1), threading.Event()
        first, second = (asyncio.ensure_future(queue.run(gate.wait)) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 requests are under way"):
            await queue.run(gate.wait)
        assert (queue.outstanding, queue.full, queue.refused) == (2, True, 1)
        gate.set()
        assert await asyncio.gather(first, second) == [True, True]
        assert queue.outstanding == 0
        queue.close()

    run(body())


def test_a_deadline_ends_the_waiting_and_what_was_not_begun_is_never_begun() -> None:
    async def body() -> None:
        queue, gate, begun = WorkQueue(1, 2), threading.Event(), []
        first = asyncio.ensure_future(queue.run(gate.wait))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await queue.run(lambda: begun.append(1), deadline=time.monotonic() + 0.05)
        gate.set()
        assert await first
        while queue.outstanding:
            await asyncio.sleep(0.01)
        assert not begun
        queue.close()

    run(body())


def test_equal_work_is_done_once_and_only_the_last_to_leave_cancels_it() -> None:
    async def body() -> None:
        queue, gate, done = WorkQueue(1, 3), threading.Event(), []

        def work() -> int:
            gate.wait()
            done.append(1)
            return len(done)

        busy = asyncio.ensure_future(queue.run(gate.wait))
        await asyncio.sleep(0)
        one, two, three = (asyncio.ensure_future(queue.run(work, same="a")) for _ in range(3))
        await asyncio.sleep(0)
        assert queue.outstanding == 2
        one.cancel()
        await asyncio.sleep(0)
        left = asyncio.ensure_future(queue.run(work, same="b"))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0.01)
        gate.set()
        assert await asyncio.gather(busy, two, three) == [True, 1, 1]
        while queue.outstanding:
            await asyncio.sleep(0.01)
        assert len(done) == 1
        queue.close()

    run(body())


def test_an_error_reaches_everybody_who_waits_and_the_queue_goes_on() -> None:
    async def body() -> None:
        queue = WorkQueue(2, 2)
        answers = await asyncio.gather(*(queue.run(lambda: 1 / 0, same=1) for _ in range(2)), return_exceptions=True)
        assert [type(each) for each in answers] == [ZeroDivisionError] * 2
        assert await queue.run(lambda: 7) == 7
        assert await queue.drain(5)
        with pytest.raises(EngineClosed):
            await queue.run(lambda: 7)
        queue.close()

    run(body())


def test_who_comes_right_after_equal_work_was_cancelled_gets_work_of_its_own() -> None:
    async def body() -> None:
        queue, gate = WorkQueue(2, 2), threading.Event()
        first = asyncio.ensure_future(queue.run(gate.wait, same="a"))
        await asyncio.sleep(0.05)
        second: list[asyncio.Future[int]] = []
        first.add_done_callback(lambda _: second.append(asyncio.ensure_future(queue.run(lambda: 2, same="a"))))
        job = queue._same["a"]
        job.result.cancel()  # as the last one to leave does, and before the loop has told anybody
        assert await queue.run(lambda: 3, same="a") == 3
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await second[0] == 2
        queue.close()

    run(body())
