"""A verdict on made-up samples, limit by limit, and on runs that are really disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from burning import burning_core
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.bench.machine import disturbance
from edgeface.bench.machine.disturbance import Disturbance, judge, watch
from edgeface.bench.machine.snapshot import Snapshot, summarize_interval, take_snapshot
from edgeface.bench.reading import Unknown, known

QUIET = take_snapshot()
CPUS = 4


def samples(count: int, change: Callable[[int], dict[str, Any]], *, seconds: float = 0.5) -> list[Snapshot]:
    """Samples of a machine of 4 CPUs on which only the run works, on one of them; `change` by sample number."""
    made = []
    for number in range(count):
        at = number * seconds
        quiet: dict[str, Any] = {
            "clock_s": 1000.0 + at,
            "cpu_s": counted(busy=at, elapsed=at),
            "own_cpu_s": at,
            "frequency_mhz": (3000.0, 800.0, 800.0, 800.0),
            "throttle_count": 7,
            "quota_throttled_s": 3.0,
            "memory_stall_s": 9.0,
            "temperature_c": {"cpu": 60.0},
            "temperature_limit_c": {"cpu": 95.0},
        }
        made.append(QUIET.model_copy(update=quiet | change(number)))
    return made


def counted(*, busy: float, elapsed: float, steal: float = 0.0) -> dict[str, float]:
    return {"busy": busy, "idle": CPUS * elapsed - busy - steal, "steal": steal}


def verdict_of(count: int, change: Callable[[int], dict[str, Any]]) -> Disturbance:
    return judge(samples(count, change))


def nothing(number: int) -> dict[str, Any]:
    return {}


def test_a_quiet_run_is_not_marked() -> None:
    assert verdict_of(21, nothing) == Disturbance(disturbed=False, reasons=(), unwatched=())


def others(cpus: float, own: float = 1.0) -> Callable[[int], dict[str, Any]]:
    def change(number: int) -> dict[str, Any]:
        at = number * 0.5
        return {"cpu_s": counted(busy=(own + cpus) * at, elapsed=at), "own_cpu_s": own * at}

    return change


@pytest.mark.parametrize(("cpus", "disturbed"), [(0.1, False), (0.25, False), (0.3, True), (1.0, True)])
def test_other_processes_are_told_above_a_quarter_of_a_cpu(cpus: float, disturbed: bool) -> None:
    verdict = verdict_of(21, others(cpus))
    assert verdict.disturbed is disturbed
    assert not disturbed or f"other processes kept {cpus:.2f} CPUs busy" in verdict.reasons[0]


def test_errors_of_counting_a_busy_machine_are_not_held_against_others_and_a_burning_core_is() -> None:
    # 64 CPUs of its own: counting by ticks may be wrong by 0.64.
    assert not verdict_of(21, others(0.6, own=64.0)).disturbed
    assert verdict_of(21, others(1.0, own=64.0)).disturbed


def test_a_burst_is_told_although_the_mean_is_small() -> None:
    def change(number: int) -> dict[str, Any]:
        at = number * 0.5
        burst = min(max(at - 30.0, 0.0), 2.0)  # one CPU for 2 s of 60
        return {"cpu_s": counted(busy=at + burst, elapsed=at)}

    (reason,) = verdict_of(121, change).reasons
    assert reason.startswith("other processes kept 1.00 CPUs busy for 1.0 s")


@pytest.mark.parametrize(("share", "disturbed"), [(0.009, False), (0.02, True)])
def test_stolen_time(share: float, disturbed: bool) -> None:
    def change(number: int) -> dict[str, Any]:
        at = number * 0.5
        return {"cpu_s": counted(busy=at, elapsed=at, steal=share * CPUS * at)}

    verdict = verdict_of(21, change)
    assert verdict.disturbed is disturbed
    assert not disturbed or verdict.reasons == ("the hypervisor gave 2.0% of the CPU time to others (more than 1%)",)


def test_a_processor_that_slows_down_under_load_is_told() -> None:
    def turbo_ends(number: int) -> dict[str, Any]:
        return {"frequency_mhz": (4200.0 if number < 10 else 2800.0, 800.0)}

    assert verdict_of(41, turbo_ends).reasons == ("the frequency fell from 4200 to 2800 MHz under load (below 90%)",)


def test_a_processor_that_slows_down_while_the_run_waits_is_not() -> None:
    def idle_second_half(number: int) -> dict[str, Any]:
        at = number * 0.5
        worked = min(at, 10.0)
        return {
            "frequency_mhz": (4200.0 if at <= 10.0 else 800.0,),
            "cpu_s": counted(busy=worked, elapsed=at),
            "own_cpu_s": worked,
        }

    assert not verdict_of(41, idle_second_half).disturbed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n: {"throttle_count": 7 + (n > 5)}, "the processor was throttled for heat 1 times"),
        (
            lambda n: {"quota_throttled_s": 3.0 + 0.1 * n},
            "the run waited for the container's CPU quota for 2.00 s of 10.0 s (more than 1%)",
        ),
        (
            lambda n: {"memory_stall_s": 9.0 + 0.01 * n},
            "the run had tasks waiting for memory for 0.20 s of 10.0 s (more than 1%)",
        ),
        (
            lambda n: {"temperature_c": {"cpu": 94.0 if n == 7 else 60.0}},
            "cpu reached 94 degrees Celsius; its limit is 95",
        ),
        (
            lambda n: {"clock_s": 1000.0 + 0.5 * n + (30 if n > 9 else 0)},
            "this process or the machine was stopped for 30.0 s",
        ),
    ],
)
def test_each_disturbance_alone_is_told_with_its_figure(change: Callable[[int], dict[str, Any]], reason: str) -> None:
    assert reason in verdict_of(21, change).reasons


def test_counters_that_stood_high_before_the_run_are_no_disturbance() -> None:
    assert not verdict_of(21, lambda n: {"throttle_count": 10**6, "memory_stall_s": 1e5}).disturbed


def test_what_cannot_be_watched_is_named_and_no_run_is_cleared_of_it() -> None:
    gone = Unknown(unknown="not readable here: x")
    verdict = verdict_of(5, lambda n: {"frequency_mhz": gone, "temperature_c": gone, "cpu_s": gone})
    assert not verdict.disturbed
    assert verdict.unwatched == (
        "steal time: not readable here: x",
        "other processes: not readable here: x",
        "frequency: not readable here: x",
        "temperature: not readable here: x",
    )


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_second_sample_nothing_was_watched(count: int) -> None:
    verdict = verdict_of(count, nothing)
    assert not verdict.disturbed
    assert len(verdict.unwatched) == 1


@settings(max_examples=examples(50))
@given(steps=st.lists(st.tuples(st.floats(0, 3), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=12))
def test_any_samples_in_order_of_time_are_judged(steps: list[tuple[float, float, float]]) -> None:
    clock = busy = own = 0.0
    made = [QUIET.model_copy(update={"clock_s": 0.0, "cpu_s": counted(busy=0, elapsed=0), "own_cpu_s": 0.0})]
    for passed, worked, mine in steps:
        clock, busy, own = clock + passed, busy + worked, own + mine
        update = {"clock_s": clock, "cpu_s": counted(busy=busy, elapsed=clock), "own_cpu_s": own}
        made.append(QUIET.model_copy(update=update))
    verdict = judge(made)
    assert verdict.disturbed is bool(verdict.reasons)


# --- really --------------------------------------------------------------------------------------------------


def watched(seconds: float) -> tuple[Disturbance, float]:
    """Verdict on a run that sleeps, and the CPUs that others kept busy during it."""
    with watch(interval=0.1) as run:
        time.sleep(seconds)
    return run.verdict, known(summarize_interval(run.snapshots).other_cpus) or 0.0


@pytest.mark.alone
@pytest.mark.slow
def test_a_second_process_burning_a_core_marks_the_run() -> None:
    # Where the machine is busy already, the run is disturbed without the burner too: that is no proof, but the
    # burner has to add to what others take, unless they leave it nothing.
    _, before = watched(1.5)
    with burning_core():
        verdict, during = watched(1.5)
    assert verdict.disturbed
    assert any("other processes kept" in reason for reason in verdict.reasons)
    free = (os.cpu_count() or 1) - before
    assert during - before > 0.5 or free < 1.0 or during > (os.cpu_count() or 1) - 0.5


@pytest.mark.alone
def test_a_child_that_burns_a_core_is_the_runs_own_work() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with watch(interval=0.1) as run:
            time.sleep(1.0)
        spent = sum(int(n) for n in Path(f"/proc/{child.pid}/stat").read_text().split()[13:15]) / ticks
    finally:
        child.kill()
        child.wait()
    own = (known(run.snapshots[-1].own_cpu_s) or 0.0) - (known(run.snapshots[0].own_cpu_s) or 0.0)
    # Some of the child's time was spent before the first sample: starting an interpreter.
    assert own > 0.5 * spent > 0


@pytest.mark.alone
def test_samples_come_at_the_interval_and_both_ends_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def cheap(root: Path) -> Snapshot:
        return QUIET.model_copy(update={"clock_s": time.monotonic()})

    # On a machine at its limit the real one is dear, and samples are further apart.
    monkeypatch.setattr(disturbance, "take_snapshot", cheap)
    before = time.monotonic()
    with watch(interval=0.05) as run:
        time.sleep(0.5)
    clocks = [moment.clock_s for moment in run.snapshots]
    assert clocks == sorted(clocks)
    assert before <= clocks[0]
    assert clocks[-1] - clocks[0] >= 0.5
    assert 3 <= len(clocks) <= 12


@pytest.mark.alone
def test_watching_slows_down_where_looking_is_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    def expensive(root: Path) -> Snapshot:
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass
        return QUIET

    monkeypatch.setattr(disturbance, "take_snapshot", expensive)
    with watch(interval=0.01) as run:
        time.sleep(0.6)
    # 10 ms at one per cent: once a second. Without the limit there would be 30 samples.
    assert len(run.snapshots) <= 4


def test_the_last_sample_is_taken_when_the_run_fails() -> None:
    with pytest.raises(ZeroDivisionError), watch() as run:
        _ = 1 / 0
    assert len(run.snapshots) == 2
