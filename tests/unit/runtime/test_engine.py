"""The engine: every array is answered, once, with its own result, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait

import numpy as np
import openvino as ov
import pytest

from edgeface.errors import ContractError, DeadlineExceeded, EngineClosed, InferenceError, Overloaded, RequestError
from edgeface.runtime import DevicePlan, Engine
from edgeface.runtime.engine import compile_engine

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

pytestmark = pytest.mark.timeout(60)
SOON = 10


def test_result_is_the_models_own(double, row):
    with Engine(double()) as engine:
        np.testing.assert_array_equal(engine.submit(row(3)).result(SOON), 2 * row(3))


def test_an_engine_of_one_thread_closes_at_once_after_one_array(double, row):
    for asked in ("infer", "submit", "infer"):
        engine = Engine(double(PERFORMANCE_HINT="LATENCY", INFERENCE_NUM_THREADS=1))
        engine.infer(row(3))
        if asked == "submit":
            engine.submit(row(3)).result(SOON)
        began = time.monotonic()
        engine.close(timeout=5)
        assert time.monotonic() - began < 2
        assert engine.closed


def test_results_belong_to_the_caller(double, row):
    with Engine(double(), requests=1) as engine:
        first = engine.submit(row(1)).result(SOON)
        kept = first.copy()
        for n in range(20):
            engine.submit(row(n)).result(SOON)
        np.testing.assert_array_equal(first, kept)
        assert first.base is None


def test_array_may_be_overwritten_as_soon_as_it_is_submitted(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1) as engine:
        array, futures = row(1), []
        for n in range(1, 6):  # the first goes to the device, the others wait
            array[:] = row(n)
            futures.append(engine.submit(array))
        array[:] = -1
        board.gate.set()
        for n, future in enumerate(futures, start=1):
            np.testing.assert_array_equal(future.result(SOON), row(n))


def test_64_threads_get_their_own_results(double, row):
    with Engine(double(PERFORMANCE_HINT="THROUGHPUT"), requests=4, queue_depth=8) as engine:

        def client(seed: int) -> bool:
            numbers = range(1000 * seed, 1000 * seed + 50)
            futures = [(n, engine.submit(row(n))) for n in numbers]
            return all(np.array_equal(future.result(SOON), 2 * row(n)) for n, future in futures)

        with ThreadPoolExecutor(64) as clients:
            assert all(clients.map(client, range(64)))
        counters = engine.counters()
        assert (counters.submitted, counters.done, counters.queued, counters.running) == (3200, 3200, 0, 0)
        assert sum(counters.latency.counts) == 3200


def test_map_keeps_order_and_takes_no_more_than_its_capacity(double, row):
    with Engine(double(), requests=2, queue_depth=3) as engine:
        taken = itertools.count()
        ahead = []
        results = engine.map(row(next(taken)) for _ in range(200))
        for n, result in enumerate(results):
            np.testing.assert_array_equal(result, 2 * row(n))
            ahead.append(int(str(taken)[6:-1]) - n)
        assert n == 199
        assert max(ahead) <= engine.capacity + 1


def test_consumer_that_stops_reading_stops_the_producer(double, row):
    with Engine(double(), requests=1, queue_depth=2) as engine:
        taken = []
        results = engine.map((taken.append(n), row(n))[1] for n in range(1000))
        next(results)
        time.sleep(0.2)
        assert len(taken) <= engine.capacity + 1
        results.close()
        assert engine.submit(row(5)).result(SOON)[0] == 10


def test_map_of_a_slow_producer_yields_what_is_ready_before_it_asks_for_more(double, row):
    with Engine(double(), requests=1, queue_depth=8) as engine:
        asked = []

        def camera():
            for n in range(5):
                asked.append(n)
                yield row(n)
                engine.infer(row(n))  # whose turn comes after the one that was yielded, which then is ready

        for n, _ in enumerate(engine.map(camera())):
            assert len(asked) <= n + 2


def test_several_submitters_and_a_map_share_one_queue(double, row):
    with Engine(double(), requests=1, queue_depth=2) as engine, ThreadPoolExecutor(4) as clients:
        maps = [clients.submit(lambda: [r[0] for r in engine.map(map(row, range(100)))]) for _ in range(4)]
        assert all(m.result(SOON) == [2.0 * n for n in range(100)] for m in maps)


def test_async_for_keeps_order_over_both_kinds_of_iterables(double, row):
    async def frames():
        for n in range(50):
            await asyncio.sleep(0)
            yield row(n)

    async def main(engine):
        first = [r[0] async for r in engine.amap(frames())]
        second = [r[0] async for r in engine.amap(row(n) for n in range(50))]
        return first, second

    with Engine(double(), requests=2, queue_depth=2) as engine:
        assert asyncio.run(main(engine)) == ([2.0 * n for n in range(50)],) * 2


def test_async_cancel_reaches_the_request(device, board, row):
    async def main(engine):
        task = asyncio.ensure_future(asyncio.wrap_future(engine.submit(row(1))))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    board.gate.clear()
    with Engine(device(), requests=1) as engine:
        asyncio.run(main(engine))
        assert engine.counters().cancelled == 1
        board.gate.set()


def test_what_is_queued_is_batched_and_padded(core, row, double):
    models = {n: double(batch=n) for n in (1, 4, 8)}
    with Engine(models, requests=1, queue_depth=32) as engine:
        assert engine.capacity == 40
        futures = [engine.submit(row(n)) for n in range(32)]
        for n, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(SOON), 2 * row(n))
        assert [engine.submit(row(n)).result(SOON)[0] for n in range(3)] == [0, 2, 4]


def test_batches_take_the_smallest_bucket_that_holds_what_waits(device, board, row):
    models = {n: device(batch=n) for n in (1, 4)}
    board.gate.clear()
    with Engine(models, requests=1, queue_depth=8) as engine:
        futures = [engine.submit(row(n)) for n in range(1, 7)]
        board.gate.set()
        assert [future.result(SOON)[0] for future in futures] == [1, 2, 3, 4, 5, 6]
        assert board.seen == [1, 2, 6]  # first number of each run: 1, then 2-5 together, then 6


def test_several_outputs_come_as_a_tuple(core, row):
    x = ops.parameter([2, 16], np.float32)
    model = ov.Model([ops.relu(x), ops.reduce_sum(x, ops.constant(np.array([1])), True)], [x], "two")
    with Engine(core.compile_model(model, "CPU")) as engine:
        positive, total = engine.submit(row(1)).result(SOON)
        np.testing.assert_array_equal(positive, row(1))
        assert total == row(1).sum()


def test_items_of_any_size(core):
    x = ops.parameter([1, -1, 3], np.float32)
    compiled = core.compile_model(ov.Model([ops.reduce_sum(x, ops.constant(np.array([1])))], [x], "any"), "CPU")
    with Engine(compiled, requests=2) as engine:
        futures = [engine.submit(np.ones((n, 3), np.float32)) for n in range(1, 40)]
        assert [future.result(SOON)[0] for future in futures] == list(range(1, 40))
        with pytest.raises(ContractError, match=r"expected \(-1, 3\) float32, found \(5, 4\)"):
            engine.submit(np.ones((5, 4), np.float32))
        with pytest.raises(ContractError):
            engine.submit(np.ones((0, 3), np.float32))


@pytest.mark.parametrize("wrong", [np.zeros(15, np.float32), np.zeros(16), np.zeros((1, 16), np.float32)])
def test_wrong_array_is_refused_with_what_was_expected(double, wrong):
    with Engine(double()) as engine, pytest.raises(ContractError, match=r"expected \(16,\) float32, found"):
        engine.submit(wrong)


def of_any_batch(*, columns: int = 4) -> ov.Model:
    """A model of any batch with two outputs: 2 x, and the sum of each row."""
    x = ops.parameter([-1, columns], np.float32)
    twice = ops.multiply(x, ops.constant(np.float32(2)))
    total = ops.reduce_sum(x, ops.constant(np.array([1])))
    return ov.Model([ops.result(twice), ops.result(total)], [x], "any batch")


def test_dynamic_batch_takes_items_one_by_one(core):
    with Engine(core.compile_model(of_any_batch(), "CPU"), requests=2) as engine:
        futures = [engine.submit(np.full(4, n, np.float32)) for n in range(20)]
        assert [future.result(SOON)[1] for future in futures] == [4 * n for n in range(20)]
        assert engine.infer(np.ones(4, np.float32))[0].tolist() == [2, 2, 2, 2]


def with_size_of_batch() -> ov.Model:
    """A model of any batch with two outputs: x, and in each row how many were computed together."""
    x = ops.parameter([-1, 4], np.float32)
    ones = ops.power(x, ops.constant(np.float32(0)))
    together = ops.multiply(ones, ops.reduce_sum(ones, ops.constant(np.array([0])), keep_dims=True))
    return ov.Model([ops.result(ops.relu(x)), ops.result(together)], [x], "size of batch")


def test_a_dynamic_batch_in_a_mapping_takes_what_is_queued_without_padding(core):
    with Engine({3: core.compile_model(with_size_of_batch(), "CPU")}, requests=1) as engine:
        with engine._lock:  # nothing is answered meanwhile
            futures = [engine.submit(np.full(4, n, np.float32)) for n in range(6)]
        rows = [future.result(SOON) for future in futures]
        assert [row.tolist() for row, _ in rows] == [[n] * 4 for n in range(6)]
        assert [together[0] for _, together in rows] == [1, 3, 3, 3, 2, 2]
        assert engine.infer(np.ones(4, np.float32))[1].tolist() == [1, 1, 1, 1]


def test_a_batch_that_comes_back_with_too_few_rows_is_an_error_of_each_of_its_requests(core):
    x = ops.parameter([-1, 4], np.float32)
    model = ov.Model([ops.reduce_sum(x, ops.constant(np.array([0])), keep_dims=True)], [x], "one row")
    with Engine({4: core.compile_model(model, "CPU")}, requests=1) as engine:
        with engine._lock:  # nothing is answered meanwhile
            futures = [engine.submit(np.full(4, n, np.float32)) for n in range(5)]
        assert futures[0].result(SOON).tolist() == [0, 0, 0, 0]
        for future in futures[1:]:
            with pytest.raises(InferenceError, match=r"expected a row for each of 4 inputs, found 1.*--batch 1"):
                future.result(SOON)


def test_requests_that_are_free_share_what_is_queued(core):
    with Engine({4: core.compile_model(with_size_of_batch(), "CPU")}, requests=2) as engine:
        with engine._lock:
            both = [engine._claim(np.ones(4, np.float32), engine) for _ in range(2)]
            futures = [engine.submit(np.full(4, n, np.float32)) for n in range(4)]
            for slot in both:
                engine._schedule.release(slot)
            engine._schedule.pump()
        assert [future.result(SOON)[1][0] for future in futures] == [2, 2, 2, 2]


def test_threads_that_ask_for_any_number_get_their_own_rows(core):
    def ask(thread: int) -> bool:
        numbers = [100 * thread + n for n in range(thread % 9 + 1)]
        futures = [engine.submit(np.full(4, n, np.float32)) for n in numbers]
        return all(future.result(SOON)[0].tolist() == [n] * 4 for n, future in zip(numbers, futures, strict=True))

    engine = Engine({4: core.compile_model(with_size_of_batch(), "CPU")}, requests=2)
    with engine, ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask, range(400), timeout=60))


def test_batches_of_any_size_come_back_in_order_with_all_outputs(core):
    batches = [np.full((n % 5 + 1, 4), n, np.float32) for n in range(60)]
    with compile_engine(of_any_batch(), DevicePlan(device="CPU", streams=2), requests=3) as engine:
        assert engine.name == "any batch on CPU"
        for batch, (twice, total) in zip(batches, engine.run_batches(iter(batches)), strict=True):
            np.testing.assert_array_equal(twice, 2 * batch)
            np.testing.assert_array_equal(total, batch.sum(axis=1))
        assert engine.run_batches([]) == []
        assert (engine.counters().done, engine.counters().running) == (60, 0)
        with pytest.raises(ContractError, match=r"expected \(-1, 4\) float32, found \(4,\)"):
            engine.run_batches([np.ones(4, np.float32)])


def test_batches_of_several_threads_and_submitted_items_share_the_requests(core):
    engine = compile_engine(of_any_batch(), DevicePlan(device="CPU"), requests=2)

    def ask(thread: int) -> bool:
        batches = [np.full((2, 4), 100 * thread + n, np.float32) for n in range(50)]
        future = engine.submit(np.full(4, thread, np.float32))
        answers = engine.run_batches(iter(batches))
        same = all(np.array_equal(a[0], 2 * b) for a, b in zip(answers, batches, strict=True))
        return same and future.result(SOON)[0].tolist() == [2 * thread] * 4

    with engine, ThreadPoolExecutor(6) as threads:
        assert all(threads.map(ask, range(24), timeout=60))
    counters = engine.counters()
    assert (counters.submitted, counters.done) == (24 * 51, 24 * 51)


def test_batches_that_fail_leave_an_engine_that_serves_on(core):
    engine = compile_engine(of_any_batch(), DevicePlan(device="CPU"), requests=2)

    def failing() -> Iterator[np.ndarray]:
        yield from [np.zeros((2, 4), np.float32)] * 3
        raise ImportError("no more")

    for _ in range(3):
        with pytest.raises(ImportError, match="no more"):
            engine.run_batches(failing())
    assert engine.run_batches([np.ones((1, 4), np.float32)])[0][0].tolist() == [[2, 2, 2, 2]]
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed):
        engine.run_batches([np.ones((1, 4), np.float32)])


def test_batches_report_the_devices_error(device, board, row):
    board.fails.add(3)
    with Engine(device(), requests=2) as engine:
        with pytest.raises(InferenceError, match="the device fails on 3"):
            engine.run_batches(row(n)[np.newaxis] for n in range(1, 6))
        assert engine.run_batches([row(5)[np.newaxis]])[0][0][0, 0] == 5
        counters = engine.counters()
        assert (counters.failed, counters.queued, counters.running) == (1, 0, 0)


def test_batches_are_made_while_earlier_ones_are_computed(device, board, row):
    board.gate.clear()

    def batches() -> Iterator[np.ndarray]:
        yield row(1)[np.newaxis]
        board.gate.set()  # the device waits for this
        yield row(2)[np.newaxis]

    with Engine(device(), requests=2) as engine:
        assert [answer[0, 0] for (answer,) in engine.run_batches(batches())] == [1, 2]


def test_callback_must_not_wait_for_batches(device, board, row):
    board.gate.clear()
    said: list[object] = []
    told = threading.Event()

    def ask(_: object) -> None:
        try:
            said.append(engine.run_batches([row(2)[np.newaxis]]))
        except RequestError as error:
            said.append(str(error))
        told.set()

    with Engine(device(), requests=1) as engine:
        engine.submit(row(1)).add_done_callback(ask)
        board.gate.set()
        assert told.wait(SOON)
    assert "must not wait" in str(said[0])


def test_closing_is_bounded_while_a_batch_hangs(device, board, row):
    board.gate.clear()
    engine = Engine(device(), requests=1)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(engine.run_batches, [row(1)[np.newaxis]])
        while not board.seen:
            time.sleep(0.01)
        engine.close(timeout=0.2)
        assert engine.closed
        board.gate.set()
        with pytest.raises(EngineClosed, match="before the result"):
            asked.result(SOON)


def test_reject_refuses_what_does_not_fit(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1, queue_depth=2, policy="reject") as engine:
        accepted = [engine.submit(row(n)) for n in (1, 2, 3)]
        with pytest.raises(Overloaded, match="2 requests are queued already"):
            engine.submit(row(4))
        board.gate.set()
        assert [future.result(SOON)[0] for future in accepted] == [1, 2, 3]
        assert engine.counters().rejected == 1


def test_drop_oldest_keeps_the_newest(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1, queue_depth=2, policy="drop-oldest") as engine:
        futures = [engine.submit(row(n)) for n in range(1, 7)]
        for dropped in futures[1:4]:
            with pytest.raises(Overloaded, match="newer"):
                dropped.result(SOON)
        board.gate.set()
        assert [futures[n].result(SOON)[0] for n in (0, 4, 5)] == [1, 5, 6]
        assert engine.counters().dropped == 3


def test_drop_oldest_never_drops_what_was_submitted_by_another_policy(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1, queue_depth=2) as engine:
        mine = [engine.submit(row(n)) for n in (1, 2)]
        first = engine.submit(row(3), policy="drop-oldest")
        second = engine.submit(row(4), policy="drop-oldest")
        with pytest.raises(Overloaded, match="newer"):
            first.result(SOON)
        assert second.cancel()
        mine.append(engine.submit(row(5)))
        with pytest.raises(Overloaded, match="2 requests are queued already by callers whose policy is another"):
            engine.submit(row(6), policy="drop-oldest")
        board.gate.set()
        assert [future.result(SOON)[0] for future in mine] == [1, 2, 5]
        assert (engine.counters().dropped, engine.counters().rejected) == (1, 1)


def test_block_waits_for_room(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1, queue_depth=1) as engine, ThreadPoolExecutor(1) as other:
        futures = [engine.submit(row(1)), engine.submit(row(2))]
        third = other.submit(engine.submit, row(3))
        time.sleep(0.1)
        assert not third.done()
        board.gate.set()
        assert third.result(SOON).result(SOON)[0] == 3
        wait(futures, SOON)


def test_block_gives_up_at_the_deadline(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1, queue_depth=1) as engine:
        futures = [engine.submit(row(n)) for n in (1, 2)]
        with pytest.raises(DeadlineExceeded, match="no room"):
            engine.submit(row(3), deadline=0.1)
        board.gate.set()
        wait(futures, SOON)


@pytest.mark.alone
def test_deadline_ends_queued_and_running_requests(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1) as engine:
        started = time.monotonic()
        running = engine.submit(row(1), deadline=0.2)
        queued = engine.submit(row(2), deadline=0.2)
        patient = engine.submit(row(3))
        for late in (running, queued):
            with pytest.raises(TimeoutError):
                late.result(SOON)
        assert 0.2 <= time.monotonic() - started < 1
        board.gate.set()
        assert patient.result(SOON)[0] == 3
        assert board.seen == [1, 3], "a request past its deadline must not be computed"
        assert engine.counters().expired == 2


def test_cancel_takes_a_request_out_of_the_queue_and_makes_room(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1, queue_depth=1) as engine:
        running, queued = engine.submit(row(1)), engine.submit(row(2))
        assert queued.cancel()
        assert queued.cancelled()
        last = engine.submit(row(3), policy="reject")
        board.gate.set()
        assert running.result(SOON)[0] == 1
        assert last.result(SOON)[0] == 3
        assert board.seen == [1, 3]
        assert engine.counters().cancelled == 1


def test_cancel_drops_the_result_of_a_running_request(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1) as engine:
        running = engine.submit(row(1))
        assert running.cancel()
        board.gate.set()
        with pytest.raises(CancelledError):
            running.result(SOON)
        assert engine.submit(row(2)).result(SOON)[0] == 2
        assert engine.submit(row(2)).result(SOON) is not None


def test_done_request_cannot_be_cancelled(double, row):
    with Engine(double()) as engine:
        future = engine.submit(row(1))
        future.result(SOON)
        assert not future.cancel()
        assert engine.counters().done == 1


def test_futures_work_with_wait_and_as_completed(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1) as engine:
        futures = [engine.submit(row(n)) for n in range(1, 5)]
        futures[2].cancel()
        board.gate.set()
        assert len(list(as_completed(futures, SOON))) == 4


def test_counters_always_add_up(device, board, row):
    board.fails.add(4)
    with Engine(device(), requests=1, queue_depth=3) as engine:
        futures = [engine.submit(row(n)) for n in range(1, 9)]
        futures[-1].cancel()
        wait(futures, SOON)
        c = engine.counters()
        assert c.submitted == 8
        assert c.failed == 1
        assert c.done + c.failed + c.cancelled == 8
        assert c.to_dict()["latency_p50_ms"] > 0


def test_closing_drains(device, board, row):
    board.delay = 0.01
    engine = Engine(device(), requests=1, queue_depth=16)
    futures = [engine.submit(row(n)) for n in range(1, 17)]
    engine.close()
    assert [future.result(0)[0] for future in futures] == list(range(1, 17))
    with pytest.raises(EngineClosed, match="found it closed"):
        engine.submit(row(1))
    engine.close()


def test_closing_without_draining_resolves_a_full_queue(device, board, row):
    board.gate.clear()
    engine = Engine(device(), requests=1, queue_depth=4)
    futures = [engine.submit(row(n)) for n in range(1, 6)]
    with ThreadPoolExecutor(2) as others:
        blocked = others.submit(engine.submit, row(9))
        time.sleep(0.05)
        closing = others.submit(engine.close, drain=False)
        with pytest.raises(EngineClosed):
            blocked.result(SOON)
        for future in futures[1:]:
            with pytest.raises(EngineClosed):
                future.result(SOON)
        board.gate.set()
        closing.result(SOON)
    assert futures[0].result(0)[0] == 1
    c = engine.counters()
    assert (c.done, c.abandoned, c.submitted) == (1, 4, 5)


@pytest.mark.alone
def test_closing_is_bounded_when_the_device_hangs(device, board, row):
    board.gate.clear()
    engine = Engine(device(), requests=1, queue_depth=4)
    futures = [engine.submit(row(n)) for n in range(1, 4)]
    started = time.monotonic()
    engine.close(timeout=0.3)
    assert time.monotonic() - started < 2
    for future in futures:
        with pytest.raises(EngineClosed):
            future.result(0)


def test_leaving_a_with_block_by_an_error_does_not_drain(device, board, row):
    board.delay = 0.05
    futures = []

    def leave() -> None:
        with Engine(device(), requests=1, queue_depth=32) as engine:
            futures.extend(engine.submit(row(n)) for n in range(1, 33))
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert sum(future.exception(0) is not None for future in futures) > 25


def test_engine_that_is_forgotten_finishes_its_work_and_is_collected(device, board, row):
    board.gate.clear()
    engine = Engine(device(), requests=1)
    futures = [engine.submit(row(n)) for n in (1, 2, 3)]
    forgotten = weakref.ref(engine)
    del engine
    board.gate.set()
    assert [future.result(SOON)[0] for future in futures] == [1, 2, 3]
    until = time.monotonic() + SOON
    while forgotten() is not None and time.monotonic() < until:
        gc.collect()
        time.sleep(0.02)
    assert forgotten() is None


def test_engine_that_is_dropped_right_after_submit_is_destroyed_outside_of_openvinos_threads(double, row):
    ended_in: list[str] = []
    for n in range(20):
        engine = Engine(double(), requests=1, name=f"dropped-{n}")
        weakref.finalize(engine, lambda: ended_in.append(threading.current_thread().name))
        future = engine.submit(row(n))
        del engine
        assert future.result(SOON)[0] == 2 * n
    until = time.monotonic() + SOON
    while len(ended_in) < 20 and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert len(ended_in) == 20
    assert all(name.startswith(("edgeface: dropped", "MainThread")) for name in ended_in), ended_in


def test_supervisor_ends_with_its_engine(double):
    def supervisors() -> int:
        return sum(thread.name == "edgeface: mine" for thread in threading.enumerate())

    engine = Engine(double(), name="mine")
    assert supervisors() == 1
    engine.close()
    until = time.monotonic() + SOON
    while supervisors() and time.monotonic() < until:
        time.sleep(0.01)
    assert supervisors() == 0


def test_callback_may_submit_and_must_not_wait(device, board, row):
    said: list[object] = []
    chained = threading.Event()

    def chain(future):
        said.append(engine.submit(row(10)))
        try:
            while True:  # fills the queue, and is then refused instead of waiting for itself
                engine.submit(row(11))
        except Overloaded as error:
            said.append(error)
        try:
            next(engine.map([row(12)], deadline=1))
        except RequestError as error:
            said.append(error)
        chained.set()

    with Engine(device(), requests=1, queue_depth=2) as engine:
        engine.submit(row(1)).add_done_callback(chain)
        assert chained.wait(SOON)
        assert said[0].result(SOON)[0] == 10
        assert "must not wait" in str(said[1])


@pytest.mark.parametrize(
    "ask",
    [
        lambda future: future.result(),
        lambda future: future.result(5),
        lambda future: future.exception(),
        lambda future: wait([future]),
        lambda future: list(as_completed([future])),
    ],
    ids=["result", "result with a time-out", "exception", "wait", "as_completed"],
)
def test_callback_that_waits_for_another_result_is_refused_and_the_engine_serves_on(device, board, row, ask):
    board.gate.clear()
    said: list[object] = []
    told = threading.Event()

    def chain(done):
        assert done.result()[0] == 1, "the future's own result is there"
        try:
            said.append(ask(engine.submit(row(2))))
        except RequestError as error:
            said.append(error)
        told.set()

    engine = Engine(device(), requests=1)
    try:
        engine.submit(row(1)).add_done_callback(chain)
        board.gate.set()
        assert told.wait(SOON)
        assert "must not wait for results" in str(said[0])
        assert engine.submit(row(3)).result(SOON)[0] == 3
        ended = [engine.submit(row(n)) for n in range(5)]
        assert not wait(ended, SOON).not_done, "another thread may wait as before"
    finally:
        engine.close(timeout=1)


@pytest.mark.parametrize("requests", [1, 3])
def test_callback_that_infers_or_maps_asynchronously_is_refused(device, board, row, requests):
    board.gate.clear()
    said: list[object] = []
    told = threading.Event()

    async def stream():
        return [result async for result in engine.amap([row(2)])]

    def chain(_):
        for ask in (lambda: engine.infer(row(2)), lambda: asyncio.run(stream())):
            try:
                said.append(ask())
            except RequestError as error:
                said.append(str(error))
        told.set()

    engine = Engine(device(), requests=requests)
    try:
        engine.submit(row(1)).add_done_callback(chain)
        board.gate.set()
        assert told.wait(SOON)
        assert all("must not wait for results" in str(each) for each in said), said
    finally:
        engine.close(timeout=1)


def test_infer_answers_in_this_thread_when_a_request_is_free(double, row):
    with Engine(double(), requests=1) as engine:
        for n in range(50):
            np.testing.assert_array_equal(engine.infer(row(n)), 2 * row(n))
        assert engine.counters().done == 50
        with pytest.raises(ContractError):
            engine.infer(row(1)[:3])
    with pytest.raises(EngineClosed):
        engine.infer(row(1))


def test_infer_waits_its_turn_when_all_requests_are_busy(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1) as engine, ThreadPoolExecutor(2) as others:
        first, second = others.submit(engine.infer, row(1)), others.submit(engine.infer, row(2), deadline=30)
        third = engine.submit(row(3))
        time.sleep(0.1)
        assert not any(each.done() for each in (first, second, third))
        board.gate.set()
        assert (first.result(SOON)[0], second.result(SOON)[0], third.result(SOON)[0]) == (1, 2, 3)


def test_infer_reports_the_devices_error_and_serves_on(device, board, row):
    board.fails.add(2)
    with Engine(device(), requests=1) as engine:
        with pytest.raises(InferenceError, match="the device fails on 2"):
            engine.infer(row(2))
        assert engine.infer(row(3))[0] == 3
        assert engine.submit(row(4)).result(SOON)[0] == 4
        assert (engine.counters().failed, engine.counters().done) == (1, 2)


def test_infer_keeps_its_deadline(device, board, row):
    board.gate.clear()
    with Engine(device(), requests=1) as engine:
        with pytest.raises(DeadlineExceeded):
            engine.infer(row(1), deadline=0.1)
        board.gate.set()


@pytest.mark.alone
def test_closing_waits_for_an_infer_and_is_bounded(device, board, row):
    board.gate.clear()
    with ThreadPoolExecutor(1) as other:
        engine = Engine(device(), requests=1)
        asked = other.submit(engine.infer, row(1))
        while not board.seen:
            time.sleep(0.01)
        started = time.monotonic()
        engine.close(timeout=0.3)
        assert 0.2 < time.monotonic() - started < 2
        board.gate.set()
        with pytest.raises(EngineClosed):
            asked.result(SOON)


@pytest.mark.parametrize("name", ["AUTO:CPU", "HETERO:CPU", "BATCH:CPU(4)"])
def test_virtual_devices(double, row, name):
    with Engine(double(device=name), requests=4) as engine:
        assert [r[0] for r in engine.map(map(row, range(100)))] == [2.0 * n for n in range(100)]
