"""Arrivals that nobody postpones: queueing is on the clock, and a target beyond its capacity shows."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgeface.bench.run.load_generator import RunLimits
from edgeface.bench.run.scenarios import find_rate, poisson_arrivals, serve, single_stream
from edgeface.errors import InputError
from edgeface.progress import Progress

pytestmark = [pytest.mark.timeout(180), pytest.mark.alone]
SERVICE_S = 0.002
CAPACITY = 1 / SERVICE_S


def lindley_ms(arrivals_ns: np.ndarray, service_s: float) -> np.ndarray:
    """Latency of every query at one server that takes exactly this long (Lindley, 1952)."""
    latencies, free = [], 0.0
    for arrival in arrivals_ns / 1e9:
        free = max(free, arrival) + service_s
        latencies.append(1e3 * (free - arrival))
    return np.array(latencies)


def test_gaps_are_exponential_and_independent() -> None:
    gaps = np.diff(poisson_arrivals(200.0, 20_001, seed=3), prepend=0) / 1e9
    assert stats.kstest(gaps, stats.expon(scale=1 / 200).cdf).pvalue > 0.01
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.03


def test_arrivals_are_those_of_their_seed_and_scale_with_the_rate() -> None:
    once = poisson_arrivals(100.0, 500, seed=7)
    np.testing.assert_array_equal(once, poisson_arrivals(100.0, 500, seed=7))
    np.testing.assert_allclose(once, 4 * poisson_arrivals(400.0, 500, seed=7), atol=4)
    assert (once != poisson_arrivals(100.0, 500, seed=8)).any()


@pytest.mark.slow
def test_above_capacity_latencies_grow_without_bound(service: Any) -> None:
    arrivals = poisson_arrivals(2 * CAPACITY, 600, seed=0)
    latencies = serve(service(SERVICE_S), arrivals).latencies_ms
    assert len(latencies) == 600
    quarters = latencies.reshape(4, 150).mean(axis=1)
    assert (np.diff(quarters) > 0).all()
    assert quarters[3] > 4 * quarters[0]
    # At twice the capacity at least half of the time that has passed is waiting.
    fit = stats.linregress(arrivals / 1e6, latencies)
    assert fit.slope > 0.8
    assert fit.rvalue > 0.95
    # The same service asked by somebody who waits for every answer looks well: that is what would be reported.
    polite = single_stream(service(SERVICE_S), RunLimits(duration_s=0.3, min_count=1, max_duration_s=60.0))
    assert np.median(polite.latencies_ms) < quarters[3] / 10


def test_no_query_is_faster_than_its_place_in_the_queue(service: Any) -> None:
    arrivals = poisson_arrivals(0.8 * CAPACITY, 300, seed=1)
    recording = serve(service(SERVICE_S), arrivals)
    np.testing.assert_array_equal(recording.starts_ns, arrivals)  # latency counts from the schedule
    assert (recording.latencies_ms >= lindley_ms(arrivals, SERVICE_S) - 1e-3).all()


def test_waiting_queries_use_every_slot(service: Any) -> None:
    target = service(0.004, slots=3)
    serve(target, poisson_arrivals(2000.0, 60, seed=0))
    assert target.most_at_once == 3


def test_a_hopeless_rate_is_given_up_early(service: Any) -> None:
    arrivals = poisson_arrivals(4 * CAPACITY, 5000, seed=0)
    recording = serve(service(SERVICE_S), arrivals, bound_ms=10.0, allowed=20)
    assert len(recording) < 1000
    assert (recording.latencies_ms > 10.0).sum() > 20


@pytest.mark.slow
def test_the_rate_that_is_found_meets_the_bound_and_higher_ones_did_not(service: Any) -> None:
    limits = RunLimits(duration_s=0.3, min_count=100, max_duration_s=60.0)
    told: list[float] = []
    server, recording = find_rate(
        service(SERVICE_S),
        limits,
        bound_ms=200.0,
        percentile=90.0,
        seed=0,
        progress=lambda each: told.append(each.done),
    )
    assert server.rate is not None
    assert 0 < server.rate < CAPACITY
    assert {each.met for each in server.tries if each.rate <= server.rate} == {True}
    assert {each.met for each in server.tries if each.rate > server.rate} <= {False}
    best = next(each for each in server.tries if each.rate == server.rate)
    assert len(recording) == best.count
    assert best.latency_ms is not None
    assert best.latency_ms <= 200.0
    assert told == sorted(told)


@pytest.mark.slow
def test_a_bound_below_the_service_time_is_met_by_no_rate(service: Any) -> None:
    limits = RunLimits(duration_s=0.05, min_count=64, max_duration_s=1.0)
    server, recording = find_rate(service(SERVICE_S), limits, bound_ms=1.0, percentile=90.0, seed=0)
    assert server.rate is None
    assert all(each.ended_early for each in server.tries)
    assert len(recording) > 0


@pytest.mark.slow
def test_a_target_too_slow_to_be_judged_is_refused_and_not_called_a_failure(service: Any) -> None:
    # At 99 % a bound is met with 459 queries of which none exceeds it (0.99^459 < 0.01), and not with fewer.
    limits = RunLimits(duration_s=0.1, min_count=1, max_duration_s=459 / (1.2 * CAPACITY))
    with pytest.raises(InputError, match="needs 459 queries within"):
        find_rate(service(SERVICE_S), limits, bound_ms=1e4, percentile=99.0, seed=0)


@pytest.mark.slow
def test_every_rate_that_is_tried_has_queries_enough_to_meet_the_bound(service: Any) -> None:
    limits = RunLimits(duration_s=0.1, min_count=1, max_duration_s=0.9)
    server, _ = find_rate(service(SERVICE_S), limits, bound_ms=1e4, percentile=90.0, seed=0)
    assert min(each.count for each in server.tries) >= 44  # 0.9^44 < 0.01
    assert server.rate is not None


@pytest.mark.slow
def test_ctrl_c_within_the_search_keeps_the_best_so_far(service: Any) -> None:
    target = service(SERVICE_S)
    limits = RunLimits(duration_s=0.1, min_count=64, max_duration_s=60.0)

    def interrupt(progress: Progress) -> None:
        if progress.done > 40:
            signal.raise_signal(signal.SIGINT)

    server, recording = find_rate(target, limits, bound_ms=500.0, percentile=90.0, seed=0, progress=interrupt)
    assert recording.interrupted
    assert len(server.tries) < 6
    assert server.rate == max(each.rate for each in server.tries if each.met)
    assert len(recording) == next(each.count for each in server.tries if each.rate == server.rate)
