"""The pool: the engine that should be first gets the request; one that fails is given up and nothing is lost."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import pytest

from edgeface.errors import DeadlineExceeded, EngineClosed, InferenceError, InputError, Overloaded, RequestError
from edgeface.runtime import Engine, Pool

pytestmark = pytest.mark.timeout(60)
SOON = 10


@pytest.fixture
def other(board):
    """A second switchboard: two devices that fail and wait independently."""
    second = type(board)()
    yield second
    second.gate.set()


@pytest.mark.slow
@pytest.mark.parametrize("names", [["CPU", "AUTO:CPU"], ["HETERO:CPU", "BATCH:CPU(4)"], ["CPU"]])
def test_plans_give_every_request_its_own_result_in_order(double, row, names):
    with Pool([Engine(double(device=name), requests=2, name=name) for name in names]) as pool:
        assert [r[0] for r in pool.map(map(row, range(100)))] == [2.0 * n for n in range(100)]
        counters = pool.counters()
        assert (counters.done, counters.queued, counters.running) == (100, 0, 0)


def test_64_threads(double, row):
    engines = [Engine(double(device=name), requests=2, queue_depth=4, name=name) for name in ("CPU", "HETERO:CPU")]
    with Pool(engines) as pool, ThreadPoolExecutor(64) as clients:

        def client(seed: int) -> bool:
            futures = [(n, pool.submit(row(n))) for n in range(100 * seed, 100 * seed + 20)]
            return all(future.result(SOON)[0] == 2 * n for n, future in futures)

        assert all(clients.map(client, range(64)))


def test_faster_engine_gets_more(device, board, other, row):
    board.delay, other.delay = 0.002, 0.02
    fast, slow = (Engine(device(), requests=1, name="fast"), Engine(device(obeys=other), requests=1, name="slow"))
    with Pool([slow, fast]) as pool:
        assert [r[0] for r in pool.map(row(n) for n in range(1, 121))] == list(range(1, 121))
        assert fast.counters().done > 4 * slow.counters().done > 0


def test_busy_engine_overflows_to_the_other(device, board, other, row):
    board.gate.clear()
    busy, idle = (Engine(device(), requests=1, name="busy"), Engine(device(obeys=other), requests=1, name="idle"))
    with Pool([busy, idle]) as pool:
        futures = [pool.submit(row(n)) for n in range(1, 5)]
        done, _ = wait(futures, 1)
        assert done
        board.gate.set()
        assert [future.result(SOON)[0] for future in futures] == [1, 2, 3, 4]


def test_failing_engine_is_retired_and_its_requests_are_answered_elsewhere(device, board, other, row, caplog):
    events = []
    bad, good = Engine(device(), requests=2, name="bad"), Engine(device(obeys=other), requests=2, name="good")
    with Pool([bad, good], on_event=events.append) as pool:
        assert [r[0] for r in pool.map(row(n) for n in range(1, 21))] == list(range(1, 21))
        board.fails_always = True
        other.delay = board.delay = 0.002
        assert [r[0] for r in pool.map(row(n) for n in range(1, 101))] == list(range(1, 101))
        assert [event.name for event in events] == ["bad"]
        assert events[0].remaining == ("good",)
        assert "the device fails" in str(events[0].error)
        assert "bad failed and is retired" in caplog.text
        assert [member.retired for member in pool.members] == [True, False]
        counters = pool.counters()
        assert (counters.done, counters.failed, counters.submitted) == (120, 0, 120)


def test_queue_of_a_retired_engine_is_answered_elsewhere(device, board, other, row):
    board.gate.clear()
    other.gate.clear()
    bad, good = Engine(device(), requests=1, name="bad"), Engine(device(obeys=other), requests=1, name="good")
    with Pool([bad, good]) as pool:
        futures = [pool.submit(row(n)) for n in range(1, 13)]
        board.fails_always = True
        board.gate.set()
        other.gate.set()
        assert [future.result(SOON)[0] for future in futures] == list(range(1, 13))


def test_request_that_fails_everywhere_is_at_fault_itself(device, board, other, row):
    board.fails.add(5)
    other.fails.add(5)
    with Pool([Engine(device(), name="a"), Engine(device(obeys=other), name="b")]) as pool:
        futures = [pool.submit(row(n)) for n in range(1, 11)]
        for n, future in enumerate(futures, start=1):
            if n == 5:
                with pytest.raises(InferenceError, match="the device fails on 5"):
                    future.result(SOON)
            else:
                assert future.result(SOON)[0] == n
        assert not any(member.retired or member.suspected for member in pool.members)
        assert pool.counters().failed == 1


def test_last_engine_is_kept_and_its_errors_are_reported(device, board, row):
    board.fails.add(2)
    with Pool([Engine(device())]) as pool:
        with pytest.raises(InferenceError):
            pool.submit(row(2)).result(SOON)
        assert pool.submit(row(3)).result(SOON)[0] == 3


def test_cancel_and_deadline_reach_the_engine(device, board, row):
    board.gate.clear()
    with Pool([Engine(device(), requests=1)]) as pool:
        running, queued, late = pool.submit(row(1)), pool.submit(row(2)), pool.submit(row(3), deadline=0.1)
        assert queued.cancel()
        with pytest.raises(DeadlineExceeded):
            late.result(SOON)
        board.gate.set()
        assert running.result(SOON)[0] == 1
        with pytest.raises(CancelledError):
            queued.result(SOON)
        assert board.seen == [1]
        counters = pool.counters()
        assert (counters.done, counters.cancelled, counters.expired) == (1, 1, 1)


def test_policies_when_every_queue_is_full(device, board, row):
    board.gate.clear()
    with Pool([Engine(device(), requests=1, queue_depth=1, name=n) for n in "ab"]) as pool:
        futures = [pool.submit(row(n), policy="drop-oldest") for n in range(1, 5)]
        with pytest.raises(Overloaded, match="every queue is full"):
            pool.submit(row(5), policy="reject")
        with pytest.raises(DeadlineExceeded):
            pool.submit(row(5), deadline=0.1)
        newest = pool.submit(row(6), policy="drop-oldest")
        waiting = threading.Timer(0.1, board.gate.set)
        waiting.start()
        assert pool.submit(row(7)).result(SOON)[0] == 7
        assert newest.result(SOON)[0] == 6
        assert sum(isinstance(future.exception(SOON), Overloaded) for future in futures) == 1
        assert pool.counters().rejected == 1


def test_drop_oldest_never_drops_what_was_submitted_by_another_policy(device, board, other, row):
    board.gate.clear()
    other.gate.clear()
    engines = [Engine(device(obeys=each), requests=1, queue_depth=1) for each in (board, other)]
    with Pool(engines) as pool:
        running = [pool.submit(row(n)) for n in (1, 2)]
        mine, first = pool.submit(row(3)), pool.submit(row(4), policy="drop-oldest")
        second = pool.submit(row(5), policy="drop-oldest")
        with pytest.raises(Overloaded, match="newer"):
            first.result(SOON)
        assert second.cancel()
        mine_too = pool.submit(row(6))
        with pytest.raises(Overloaded, match="every queue is full of requests by another policy"):
            pool.submit(row(7), policy="drop-oldest")
        board.gate.set()
        other.gate.set()
        assert [future.result(SOON)[0] for future in (*running, mine, mine_too)] == [1, 2, 3, 6]


def test_callback_that_waits_for_another_result_is_refused(device, board, row):
    board.gate.clear()
    said = []
    told = threading.Event()

    def chain(_):
        try:
            said.append(pool.submit(row(2)).result())
        except RequestError as error:
            said.append(error)
        told.set()

    pool = Pool([Engine(device(), requests=1)])
    try:
        pool.submit(row(1)).add_done_callback(chain)
        board.gate.set()
        assert told.wait(SOON)
        assert "must not wait for results" in str(said[0])
    finally:
        pool.close(timeout=1)


@pytest.mark.alone
def test_closing_resolves_everything(device, board, other, row):
    board.gate.clear()
    other.gate.clear()
    pool = Pool([Engine(device(), requests=1), Engine(device(obeys=other), requests=1)])
    futures = [pool.submit(row(n)) for n in range(1, 9)]
    started = time.monotonic()
    pool.close(drain=False, timeout=0.3)
    assert time.monotonic() - started < 2
    for future in futures:
        with pytest.raises(EngineClosed):
            future.result(1)
    with pytest.raises(EngineClosed):
        pool.submit(row(1))


def test_empty_pool_is_refused():
    with pytest.raises(InputError):
        Pool([])
