"""The kinds of load on an artificial service: what they ask of it, when they stop, and what Ctrl-C leaves."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeface.bench.run.load_generator import Recording, RunLimits, measuring
from edgeface.bench.run.scenarios import minimum_count, multi_stream, offline, single_stream, warm_up

pytestmark = [pytest.mark.timeout(120), pytest.mark.alone]
LOADS = [single_stream, multi_stream, offline]
SHORT = RunLimits(duration_s=0.05, min_count=5, max_duration_s=60.0)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize(("duration_s", "min_count"), [(0.2, 1), (0.001, 20)])
def test_both_duration_and_count_are_reached(
    service: Any, load: Callable[..., Recording], duration_s: float, min_count: int
) -> None:
    recording = load(
        service(0.002, slots=2), RunLimits(duration_s=duration_s, min_count=min_count, max_duration_s=60.0)
    )
    assert recording.wall_s >= duration_s
    assert len(recording) >= min_count
    assert not recording.interrupted


@pytest.mark.parametrize("load", LOADS)
def test_the_longest_duration_ends_a_run_that_misses_its_count(service: Any, load: Callable[..., Recording]) -> None:
    recording = load(service(0.002, slots=2), RunLimits(duration_s=0.05, min_count=10**9, max_duration_s=0.1))
    assert 0 < len(recording) < 10**9


def test_single_stream_has_no_time_between_its_queries(service: Any) -> None:
    recording = single_stream(service(0.002), SHORT)
    assert recording.latencies_ms.min() >= 2.0
    ends = recording.ends_s
    assert (recording.starts_ns[1:] / 1e9 >= ends[:-1] - 1e-9).all()
    assert recording.items_per_second == pytest.approx(len(recording) / recording.wall_s)


def test_offline_keeps_every_slot_busy(service: Any) -> None:
    target = service(0.002, slots=4, items=3)
    recording = offline(target, RunLimits(duration_s=0.1, min_count=40, max_duration_s=60.0))
    assert target.most_at_once == 4
    assert len(recording) == target.started
    assert recording.items_per_second == pytest.approx(3 * len(recording) / recording.wall_s)
    # Four at a time: in all more time was served than passed.
    assert recording.latencies_ms.sum() / 1e3 > 2 * recording.wall_s


def test_a_multi_stream_query_lasts_until_its_last_sample(service: Any) -> None:
    target = service(0.003, slots=2, items=2)
    recording = multi_stream(target, SHORT, samples=7)
    assert target.started == 4 * len(recording)  # ceil(7 / 2) inferences
    assert recording.items == 8
    assert target.most_at_once == 2
    assert recording.latencies_ms.min() >= 2 * 3.0  # four inferences in two slots


@pytest.mark.parametrize("load", LOADS)
def test_ctrl_c_keeps_what_was_measured(service: Any, load: Callable[..., Recording]) -> None:
    target = service(0.001, slots=2, interrupt_at=48)
    recording = load(target, RunLimits(duration_s=60.0, min_count=1, max_duration_s=60.0))
    assert recording.interrupted
    # What is under way is finished: the query of the 49th inference, and in multi-stream the rest of its samples.
    assert len(recording) == (56 // 8 if load is multi_stream else 49)
    assert np.isfinite(recording.latencies_ms).all()
    assert gc.isenabled()


def interrupt_twice() -> None:
    with measuring() as recorder:
        recorder.rows.append((0, 1))
        signal.raise_signal(signal.SIGINT)
        assert recorder.interrupted
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_is_raised_and_everything_is_as_before() -> None:
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()
    assert signal.getsignal(signal.SIGINT) is usual
    assert gc.isenabled()


def test_ctrl_c_before_anything_was_measured_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt), measuring():
        signal.raise_signal(signal.SIGINT)


def test_an_inference_that_cannot_be_started_is_raised_and_loses_no_slot(service: Any) -> None:
    target = service(0.001, slots=2)
    usual = target.start

    def start(slot: int) -> None:
        if target.started == 5:
            raise OSError("unplugged")
        usual(slot)

    target.start = start
    with pytest.raises(OSError, match="unplugged"):
        offline(target, SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("load", [multi_stream, offline])
def test_an_inference_that_fails_is_raised_and_not_waited_for(service: Any, load: Callable[..., Recording]) -> None:
    with pytest.raises(RuntimeError, match="pulled out"):
        load(service(0.001, fail_at=7), SHORT)


def test_progress_goes_up_to_the_end(service: Any) -> None:
    told: list[float] = []
    single_stream(
        service(0.001), RunLimits(duration_s=0.7, min_count=1, max_duration_s=60.0), lambda each: told.append(each.done)
    )
    assert len(told) >= 2
    assert sorted(told) == told
    assert all(0 <= share <= 100 for share in told)


@pytest.mark.slow
def test_warm_up_ends_when_times_have_settled_or_when_it_must(service: Any) -> None:
    seconds, settled = warm_up(service(0.005), alone=True, longest_s=60.0)
    assert settled
    assert 1.0 <= seconds < 60.0  # two windows of half a second
    assert warm_up(service(0.005), alone=False, longest_s=0.3)[1] is False
    with pytest.raises(KeyboardInterrupt):
        warm_up(service(0.005, interrupt_at=10), alone=True, longest_s=60.0)


def test_minimum_counts_are_those_of_early_stopping() -> None:
    counts = {scenario: minimum_count(scenario) for scenario in ("single-stream", "multi-stream", "offline")}
    assert counts == {"single-stream": 64, "multi-stream": 662, "offline": 1}
    assert minimum_count("server", 90.0) == 64
