"""Comparisons: how often they are wrong, how often they see what is there, and what they refuse to compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from made_results import latencies, made_kiosk, made_result

from edgeface.bench.compare.comparable import Side, read_side
from edgeface.bench.compare.comparison import (
    Comparison,
    compare,
    judge,
    middle,
    of_kept,
    of_latency,
    of_pairs,
    of_runs,
    ratio,
)
from edgeface.bench.run.runner import DEFAULTS
from edgeface.errors import InputError

DEFAULT_LENGTH = int(DEFAULTS.duration_s / 0.027)
"""Queries of a run that nobody gave a length, where each takes 27 ms as with FaceNet on two cores."""

REPETITIONS = 200


def one(series: np.ndarray, name: str = "a", **parts) -> Side:
    return Side(name, (made_result(series, **parts),))


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {each.metric: each.verdict for each in comparison.differences}


@pytest.fixture(scope="module", params=["correlated", "outliers"])
def repeated(request: pytest.FixtureRequest) -> tuple[list[Comparison], list[Comparison]]:
    """200 comparisons of a thing with itself, and 200 with the same made 5 % slower."""
    same, slower = [], []
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(seed)
        first, second = (latencies(request.param, rng, DEFAULT_LENGTH) for _ in range(2))
        baseline = one(first)
        same.append(compare(baseline, one(second, "b")))
        slower.append(compare(baseline, one(second * 1.05, "b")))
    return same, slower


@pytest.mark.slow
def test_two_runs_of_the_same_thing_differ_in_at_most_5_percent_of_200_comparisons(repeated) -> None:
    same, _ = repeated
    wrong = sum(set(verdicts(each).values()) != {"no difference shown"} for each in same)
    assert wrong <= 0.05 * REPETITIONS
    assert sum(judge(each, 0.05).outcome == "failed" for each in same) <= 0.05 * REPETITIONS


@pytest.mark.slow
def test_a_slowdown_of_5_percent_is_found_in_at_least_90_percent_of_200_comparisons(repeated) -> None:
    _, slower = repeated
    assert sum(verdicts(each)["p50"] == "worse" for each in slower) >= 0.9 * REPETITIONS
    assert not any("better" in verdicts(each).values() for each in slower)
    assert sum(judge(each, 0.05).outcome == "failed" for each in slower) >= 0.9 * REPETITIONS


def test_intervals_hold_the_true_ratio_at_their_rate() -> None:
    held = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        first, second = (
            of_latency(latencies("correlated", rng, 400) * scale, 0.5, confidence=0.95) for scale in (1.0, 1.1)
        )
        low, high = ratio(first, second).interval
        held += low <= 1.1 <= high
    assert held >= 0.95 * 300 - 3 * np.sqrt(300 * 0.95 * 0.05)


def test_a_faster_run_is_better_and_its_slowdown_is_negative() -> None:
    rng = np.random.default_rng(0)
    series = latencies("independent", rng, 2000)
    found = compare(one(series), one(series * 0.8, "b"))
    assert set(verdicts(found).values()) == {"better"}
    for each in found.differences:
        assert each.slowdown == pytest.approx(-0.2, abs=1e-6)
        low, high = each.interval
        assert low < -0.2 < high < 0
    throughput = found.differences[-1]
    assert throughput.unit == "items/s"
    assert throughput.candidate / throughput.baseline == pytest.approx(1.25)


def test_a_few_samples_show_nothing() -> None:
    found = compare(one(np.full(5, 10.0) + np.arange(5)), one(np.full(5, 20.0) + np.arange(5), "b"))
    assert set(verdicts(found).values()) == {"no difference shown"}
    assert {each.note for each in found.differences} == {"too few independent samples"}
    with pytest.raises(InputError, match="cannot be judged without an interval: too few independent"):
        judge(found, 0.05)


def test_repeated_runs_are_compared_as_scipy_does() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.lognormal(3, 0.1, 4), rng.lognormal(3.1, 0.2, 4)
    expected = scipy.stats.ttest_rel(np.log(second), np.log(first)).confidence_interval(0.9)
    found = of_pairs(first, second, confidence=0.9)
    np.testing.assert_allclose(np.log(found.interval), expected, rtol=1e-6)
    assert found.value == pytest.approx(middle(second) / middle(first))
    spread = of_runs(first, [*second, *second], confidence=0.9).interval
    # Welch's degrees of freedom are rounded down, so that the interval is never narrower than scipy's.
    expected = scipy.stats.ttest_ind(np.log([*second, *second]), np.log(first), equal_var=False)
    low, high = expected.confidence_interval(0.9)
    assert np.log(spread[0]) <= low < high <= np.log(spread[1])
    np.testing.assert_allclose(np.log(spread), (low, high), atol=0.02)


def runs(name: str, speeds: list[float], minutes: list[int]) -> Side:
    series = latencies("independent", np.random.default_rng(3), 200)
    made = [
        made_result(series * speed, created=f"2026-01-01T00:{minute:02d}:00+00:00")
        for speed, minute in zip(speeds, minutes, strict=True)
    ]
    return Side(name, tuple(made))


def test_runs_that_alternate_are_paired_and_a_drift_of_the_machine_does_not_count() -> None:
    drift = [1.0, 1.3, 1.6, 1.9]
    a, b = runs("a", drift, [0, 3, 4, 7]), runs("b", [1.04 * each for each in drift], [1, 2, 5, 6])
    found = compare(a, b)
    assert found.method == "4 runs each, paired"
    assert set(verdicts(found).values()) == {"worse"}
    assert found.differences[0].slowdown == pytest.approx(0.04, rel=1e-6)
    b = runs("b", [1.04 * each for each in drift], [8, 9, 10, 11])
    found = compare(a, b)
    assert found.method == "4 and 4 runs"
    assert set(verdicts(found).values()) == {"no difference shown"}


def test_two_runs_cannot_say_what_varies_between_runs() -> None:
    with pytest.raises(InputError, match="at least 3 each, found 2 and 1"):
        compare(runs("a", [1, 1], [0, 1]), runs("b", [1], [2]))


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"settings": {"scenario": "offline"}}, "scenario, found single-stream and offline"),
        ({"settings": {"batch": 8}}, "batch, found None and 8"),
        ({"multi_stream": {"samples_per_query": 8}}, "samples a query, found None and 8"),
        ({"model": {"contract_id": "f" * 16}}, r"model, found tiny \(0123456789abcdef\) and tiny \(ffff"),
        ({"model": {"contract_id": None}}, r"model, found tiny \(0123456789abcdef\) and tiny \(0000"),
    ],
)
def test_what_measures_different_things_is_refused(parts: dict, what: str) -> None:
    series = latencies("independent", np.random.default_rng(0), 100)
    with pytest.raises(InputError, match=f"expected the same {what}"):
        compare(one(series), one(series, "b", **parts))


def test_models_are_compared_on_request_with_a_warning() -> None:
    series = latencies("independent", np.random.default_rng(0), 100)
    other = one(series, "b", model={"contract_id": "f" * 16})
    found = compare(one(series), other, across_models=True)
    assert found.warnings[0].startswith("different models: tiny (0123456789abcdef) and tiny (ffff")
    assert found.settings[0][0] == "model"


def test_doubts_are_warned_of_and_settings_that_differ_are_listed() -> None:
    series = latencies("independent", np.random.default_rng(0), 100)
    validity = {"duration_met": True, "count_met": False, "warm_up_s": 1, "warmed_up": False, "stationary": False}
    bad = one(
        series, "b", disturbed=True, disturbances=["steal 12 %"], partial=False,
        settings={"device": "GPU", "streams": 4}, validity=validity | {"early_stopping": None},
    )  # fmt: skip
    found = compare(one(series, partial=True), bad)
    assert "a: it was interrupted and is partial" in found.warnings
    assert "b: it was disturbed: steal 12 %" in found.warnings
    assert any("one run each" in each for each in found.warnings)
    assert sum(each.startswith("b: ") for each in found.warnings) == 4
    assert ("device", "CPU", "GPU") in found.settings
    assert ("streams", "default", "4") in found.settings


def test_a_gate_fails_only_what_is_shown_slower_by_up_to_the_limit_or_more() -> None:
    rng = np.random.default_rng(0)
    long, short = latencies("independent", rng, 20_000), latencies("independent", rng, 30)
    found = compare(one(long), one(long * 1.02, "b"))
    assert verdicts(found)["p50"] == "worse"
    assert judge(found, 0.05).outcome == "passed", "2 % is shown, and 5 % is excluded"
    assert judge(found, 0.01).outcome == "failed"
    assert "p50" in judge(found, 0.01).failed
    unsure = judge(compare(one(short), one(short, "b")), 0.01)
    assert unsure.outcome == "unsure"
    assert unsure.unsure


def test_server_compares_the_rate_and_offline_the_throughput() -> None:
    series = latencies("independent", np.random.default_rng(0), 500)
    server = {"bound_ms": 50, "percentile": 99, "rate": 30, "tries": []}
    found = compare(
        one(series, settings={"scenario": "server"}, server=server),
        one(series, "b", settings={"scenario": "server"}, server=server | {"rate": 20}),
    )
    (rate,) = found.differences
    assert (rate.metric, rate.verdict, rate.slowdown) == ("rate", "no difference shown", pytest.approx(0.5))
    assert rate.note == "the rate comes from a search and has no samples"
    offline = {"scenario": "offline"}
    found = compare(one(series, settings=offline), one(series * 2, "b", settings=offline))
    assert [each.metric for each in found.differences] == ["throughput"]


def kiosk(seed: int, *, dropped: float = 0.0, slower: float = 1.0, **parts) -> Side:
    rng = np.random.default_rng(seed)
    kept = np.repeat(rng.random(200) >= dropped, 5)  # in bursts
    return Side(str(seed), (made_kiosk(kept, rng=rng, slower=slower, **parts),))


def test_a_kiosk_is_compared_by_dropped_frames_times_to_identity_and_decision_and_cpu() -> None:
    found = compare(kiosk(1), kiosk(2, dropped=0.3, slower=1.6))
    shown = {each.metric: each for each in found.differences}
    assert set(shown) == {"p50", "p90", "p99", "dropped", "time to identity", "time to decision", "CPU"}
    assert {each.verdict for each in found.differences} == {"worse"}
    dropped, cpu = shown["dropped"], shown["CPU"]
    assert (dropped.unit, dropped.baseline) == ("%", 0)
    assert dropped.slowdown == pytest.approx(100 / (100 - dropped.candidate) - 1)
    assert (cpu.unit, cpu.slowdown) == ("ms", pytest.approx(0.6, abs=0.05))
    back = compare(kiosk(2, dropped=0.3, slower=1.6), kiosk(1))
    assert {each.verdict for each in back.differences} == {"better"}


def test_equal_kiosks_that_drop_nothing_differ_in_nothing_and_repeated_ones_too() -> None:
    found = compare(kiosk(1), kiosk(2))
    assert set(verdicts(found).values()) == {"no difference shown"}
    (dropped,) = [each for each in found.differences if each.metric == "dropped"]
    assert (dropped.baseline, dropped.candidate, dropped.slowdown) == (0, 0, 0)
    low, high = dropped.interval
    assert -0.01 < low < 0 < high < 0.01
    several = [
        Side(name, tuple(kiosk(seed).first for seed in seeds)) for name, seeds in (("a", (1, 2, 3)), ("b", (4, 5, 6)))
    ]
    assert set(verdicts(compare(*several)).values()) == {"no difference shown"}


def test_frames_dropped_in_bursts_count_as_few() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for burst in (1, 20):
        kept = np.repeat(rng.random(2000 // burst) >= 0.2, burst)
        low, high = of_kept(np.flatnonzero(kept), len(kept), confidence=0.95).interval
        widths.append(high - low)
        assert low < 0.8 < high
    assert widths[1] > 2.5 * widths[0]


def test_a_kiosk_of_another_video_or_frame_rate_is_refused() -> None:
    other = kiosk(2).first
    slow = other.model_copy(update={"kiosk": other.kiosk.model_copy(update={"frame_rate": 15.0})})
    with pytest.raises(InputError, match="expected the same video"):
        compare(kiosk(1), Side("b", (slow,)))


def test_a_result_without_samples_is_compared_without_verdicts() -> None:
    series = latencies("independent", np.random.default_rng(0), 500)
    found = compare(one(series), one(series * 2, "b", samples=None))
    assert {(each.verdict, each.note) for each in found.differences} == {
        ("no difference shown", "there are no raw samples")
    }
    assert found.differences[0].slowdown == pytest.approx(1.0)


def test_sides_are_files_folders_and_folders_of_runs(tmp_path: Path) -> None:
    series = latencies("independent", np.random.default_rng(0), 50)
    for index in (2, 0, 1):
        made_result(series, created=f"2026-01-0{index + 1}T00:00:00+00:00").write(tmp_path / "runs" / f"{index}")
    side = read_side(tmp_path / "runs")
    assert (side.name, len(side.runs)) == ("runs", 3)
    assert [run.created[9] for run in side.runs] == ["1", "2", "3"]
    assert read_side(tmp_path / "runs" / "0").name == "0"
    assert read_side(tmp_path / "runs" / "0" / "result.json").name == "0"
    made_result(series, settings={"batch": 2}).write(tmp_path / "runs" / "3")
    with pytest.raises(InputError, match=r"same settings, but .*result.json differs"):
        read_side(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no result"):
        read_side(tmp_path / "empty")


def test_a_comparison_is_json() -> None:
    series = latencies("independent", np.random.default_rng(0), 100)
    stored = compare(one(series), one(series * 2, "b")).to_dict()
    assert json.loads(json.dumps(stored)) == stored
    assert stored["differences"][0]["metric"] == "p50"
