"""Rates: what passes, how long the rest waits, and what a flood costs."""

from __future__ import annotations

import itertools
import threading
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.serve.conftest import Clock

from edgeface.serve.rates import BURST_SECONDS, Rates, group_address


def rates(clock: Clock, rate: float = 2.0, *, most: int = 10_000) -> Rates:
    return Rates(per_key=rate, per_address=rate, wrong_per_address=rate, most=most, clock=clock)


def test_a_key_that_was_idle_may_ask_its_rate_times_ten_seconds_at_once_and_then_its_rate() -> None:
    clock = Clock()
    limit = rates(clock, 2.0)
    assert [limit.wait_for_key("a") for _ in range(20)] == [0.0] * 20
    assert limit.wait_for_key("a") == pytest.approx(0.5)
    assert limit.wait_for_key("a") == pytest.approx(0.5)  # what was refused is not counted
    clock.now += 0.5
    assert limit.wait_for_key("a") == 0
    assert limit.wait_for_key("a") == pytest.approx(0.5)


def test_a_rate_below_one_in_ten_seconds_lets_single_requests_through() -> None:
    clock = Clock()
    limit = rates(clock, 0.01)
    assert limit.wait_for_key("a") == 0
    assert limit.wait_for_key("a") == pytest.approx(100)
    clock.now += 100
    assert limit.wait_for_key("a") == 0


@given(waits=st.lists(st.floats(0, 20), min_size=1, max_size=200), rate=st.floats(0.05, 50))
def test_no_time_sees_more_than_the_bucket_and_the_rate_and_who_waits_as_told_passes(
    waits: list[float], rate: float
) -> None:
    clock = Clock()
    limit, passed = rates(clock, rate), list[float]()
    for wait in waits:
        clock.now += wait
        told = limit.wait_for_key("a")
        assert told >= 0
        if told:
            clock.now += told + 1e-6
            assert limit.wait_for_key("a") == 0
        passed.append(clock.now)
    for first, last in itertools.combinations(range(len(passed)), 2):
        most = max(1.0, rate * BURST_SECONDS) + rate * (passed[last] - passed[first])
        assert last - first + 1 <= most + 1e-3


def test_keys_addresses_and_wrong_keys_are_counted_apart() -> None:
    limit = rates(Clock(), 0.1)
    for ask in (limit.wait_for_key, limit.wait_for_address, limit.wrong_key):
        assert (ask("10.0.0.1"), ask("10.0.0.1") > 0, ask("10.0.0.2")) == (0, True, 0)


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002::/64"),
        ("fe80::1%eth0", "fe80:0000:0000:0000::/64"),
        ("::1", "0000:0000:0000:0000::/64"),
        ("testclient", "local"),
        ("", "local"),
        (None, "local"),
        ("1" * 100_000, "local"),
    ],
)
def test_an_ipv6_host_is_its_network(address: str | None, group: str) -> None:
    assert group_address(address) == group


@pytest.mark.slow
def test_memory_is_bounded_and_forgetting_gives_a_full_bucket() -> None:
    limit = rates(Clock(), 0.1, most=100)
    assert (limit.wrong_key("10.0.0.1"), limit.wrong_key("10.0.0.1") > 0) == (0, True)
    tracemalloc.start()
    for number in range(5_000):
        limit.wrong_key(f"2001:db8:{number:x}::1")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1 << 18
    assert limit.wrong_key("10.0.0.1") == 0


def test_ten_thousand_wrong_keys_a_second_lock_out_no_one_with_a_right_key() -> None:
    clock = Clock()
    limit = Rates(per_key=100, per_address=200, wrong_per_address=1, clock=clock)
    told = 0
    for _ in range(100_000):  # ten seconds of it
        clock.now += 1e-4
        told += limit.wrong_key("10.0.0.66") == 0
    assert told <= 10 + 10 + 1
    assert limit.wait_for_address("10.0.0.7") == limit.wait_for_key("4f1c22d8") == 0
    assert limit.wait_for_address("10.0.0.66") == 0  # many may be behind one address


@pytest.mark.alone
def test_a_wrong_key_takes_a_few_microseconds() -> None:
    limit = Rates(per_key=100, per_address=200, wrong_per_address=1)
    addresses = [f"2001:db8:{number:x}::1" for number in range(20_000)]
    for few in (["10.0.0.66"] * 20_000, addresses):
        started = time.process_time()
        for address in few:
            limit.wrong_key(address)
        assert (time.process_time() - started) / len(few) < 50e-6


def test_threads_count_each_request_once() -> None:
    limit, passed = rates(Clock(), 100.0), list[float]()
    threads = [
        threading.Thread(target=lambda: passed.extend(limit.wait_for_key("a") for _ in range(500))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed.count(0.0) == 1000
