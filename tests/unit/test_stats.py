"""Estimates and intervals against exact sums, published tables, MLPerf's logs, and simulations of known truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import latencies as made_latencies
from scipy import signal, stats

from edgeface.stats import (
    QUANTILES,
    allowed_over,
    clopper_pearson,
    early_stopping_estimate,
    effective_sample_size,
    independent_share,
    interval_ranks,
    mean_interval,
    queries_needed,
    rank,
    rate_interval,
    student_t,
    summarize,
)

RUNS = 400
SPREAD = 0.3
SHARES = st.sampled_from([*QUANTILES.values(), 0.01, 0.37])


def binomial_cdf(count: int, share: float) -> np.ndarray:
    """P(B <= 0), ..., P(B <= count) for B ~ Binomial(count, share), summed term by term."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, count + 1)))])
    k = np.arange(count + 1)
    logs = factorials[count] - factorials - factorials[::-1] + k * math.log(share)
    return np.cumsum(np.exp(logs + (count - k) * math.log1p(-share)))


@given(count=st.integers(1, 20_000), share=SHARES)
def test_ranks_are_the_tightest_that_the_binomial_sum_allows(count: int, share: float) -> None:
    low, high = interval_ranks(count, share)
    below = np.concatenate([[0.0], binomial_cdf(count, share)])  # [k]: P(B < k)
    at = low or 0
    assert below[at] <= 0.025 + 1e-9
    assert below[at + 1] > 0.025 - 1e-9
    if high is None:
        assert below[count] < 0.975 + 1e-9
    else:
        assert below[high] >= 0.975 - 1e-9
        assert high == 1 or below[high - 1] < 0.975 + 1e-9


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=200), SHARES)
def test_a_percentile_is_numpys_inverted_cdf(values: list[float], share: float) -> None:
    ordered = np.sort(values)
    expected = np.quantile(ordered, share, method="inverted_cdf")
    assert ordered[rank(len(ordered), share) - 1] == expected


def test_estimates_are_those_of_benchmark_app() -> None:
    latencies = np.random.default_rng(0).lognormal(3, SPREAD, 997)
    ordered = sorted(latencies)
    estimates, _ = summarize(latencies)
    for key, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert estimates[key] == ordered[math.ceil(len(ordered) * percent / 100) - 1]  # benchmark.py: percentile
    assert (estimates["min"], estimates["max"]) == (ordered[0], ordered[-1])
    assert estimates["mean"] == pytest.approx(sum(ordered) / len(ordered))


@pytest.mark.parametrize(
    ("freedom", "published"),  # NIST/SEMATECH e-Handbook, section 1.3.6.7.2: two-sided 80, 95 and 99 %
    [
        (1, (3.078, 12.706, 63.657)), (2, (1.886, 4.303, 9.925)), (3, (1.638, 3.182, 5.841)),
        (7, (1.415, 2.365, 3.499)), (10, (1.372, 2.228, 3.169)), (30, (1.310, 2.042, 2.750)),
        (60, (1.296, 2.000, 2.660)), (100, (1.290, 1.984, 2.626)),
    ],
)  # fmt: skip
def test_students_t_is_that_of_published_tables(freedom: int, published: tuple[float, ...]) -> None:
    found = [student_t(freedom, confidence) for confidence in (0.8, 0.95, 0.99)]
    assert found == pytest.approx(published, abs=0.0006)


def test_students_t_of_one_and_two_degrees_of_freedom_is_the_closed_form() -> None:
    for confidence in (0.5, 0.9, 0.9875, 0.999):
        assert student_t(1, confidence) == pytest.approx(math.tan(math.pi * confidence / 2), rel=1e-9)
        assert student_t(2, confidence) == pytest.approx(confidence * math.sqrt(2 / (1 - confidence**2)), rel=1e-9)


@pytest.mark.parametrize(("errors", "trials"), [(1, 7), (3, 300), (37, 600), (599, 600), (1000, 20_000)])
def test_each_end_of_clopper_and_pearson_leaves_half_of_the_rest(errors: int, trials: int) -> None:
    low, high = clopper_pearson(errors, trials, confidence=0.9)
    assert 1 - binomial_cdf(trials, low)[errors - 1] == pytest.approx(0.05, rel=1e-7)
    assert binomial_cdf(trials, high)[errors] == pytest.approx(0.05, rel=1e-7)


def test_clopper_and_pearson_at_no_errors_and_at_nothing_but_errors_is_the_closed_form() -> None:
    assert clopper_pearson(0, 100) == (0.0, pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-12))
    assert clopper_pearson(100, 100) == (pytest.approx(0.025 ** (1 / 100), rel=1e-12), 1.0)


@pytest.mark.parametrize(("count", "discarded"), [(2048, 172), (2116, 178), (2145, 181)])
def test_early_stopping_discards_what_mlperfs_load_generator_logged(count: int, discarded: int) -> None:
    # "Would discard N highest latency queries" of published SingleStream summaries; it reports t - 1.
    assert allowed_over(count, 0.9) - 1 == discarded
    ordered = np.arange(count, dtype=float)
    assert early_stopping_estimate(ordered, 0.9) == ordered[count - (discarded + 1)]


def test_fewest_queries_are_mlperfs() -> None:
    assert queries_needed(0.9) == 64
    assert queries_needed(0.99) == 662
    assert [queries_needed(share, over=0) for share in (0.9, 0.99)] == [44, 459]  # 0.99^459 < 0.01 < 0.99^458
    assert early_stopping_estimate(np.ones(63), 0.9) is None
    assert early_stopping_estimate(np.ones(64), 0.9) == 1.0


@given(count=st.integers(1, 30_000), share=st.sampled_from([0.5, 0.9, 0.97, 0.99, 0.999]))
def test_as_many_may_be_over_as_the_binomial_sum_allows(count: int, share: float) -> None:
    over = binomial_cdf(count, 1 - share)
    allowed = allowed_over(count, share)
    assert allowed == -1 or over[allowed] <= 0.01 + 1e-9
    assert over[allowed + 1] > 0.01 - 1e-9


def autoregressive(phi: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    def draw(random: np.random.Generator, count: int) -> np.ndarray:
        noise = random.normal(size=count + 200) * math.sqrt(1 - phi**2)
        return signal.lfilter([1], [1, -phi], noise)[200:]

    return draw


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_effective_size_of_a_correlated_series_is_the_closed_form(phi: float) -> None:
    series = autoregressive(phi)(np.random.default_rng(3), 200_000)
    expected = (1 - phi) / (1 + phi)
    assert independent_share(series) == pytest.approx(expected, rel=0.15)
    assert effective_sample_size(series) == pytest.approx(len(series) * expected, rel=0.15)


def test_the_effective_size_of_an_alternating_series_is_at_most_its_length() -> None:
    assert independent_share(np.tile([1.0, 2.0], 500)) == 1.0


def lognormal(random: np.random.Generator, count: int) -> np.ndarray:
    return random.lognormal(3, SPREAD, count)


def bimodal(random: np.random.Generator, count: int) -> np.ndarray:
    return np.where(random.random(count) < 0.15, random.normal(50, 2, count), random.normal(30, 1, count))


def slowly_varying(random: np.random.Generator, count: int) -> np.ndarray:
    return np.exp(3 + SPREAD * autoregressive(0.5)(random, count))


def very_slowly_varying(random: np.random.Generator, count: int) -> np.ndarray:
    return np.exp(3 + SPREAD * autoregressive(0.9)(random, count))


def bimodal_cdf(x: float) -> float:
    return 0.85 * stats.norm(30, 1).cdf(x) + 0.15 * stats.norm(50, 2).cdf(x)


def truth(draw: object) -> tuple[dict[str, float], float]:
    if draw is bimodal:
        grid = np.linspace(20, 70, 500_001)
        cdf = bimodal_cdf(grid)  # type: ignore[arg-type]
        return {key: grid[np.searchsorted(cdf, share)] for key, share in QUANTILES.items()}, 0.85 * 30 + 0.15 * 50
    known = stats.lognorm(SPREAD, scale=math.exp(3))
    return {key: known.ppf(share) for key, share in QUANTILES.items()}, known.mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "count", "keys"),
    [
        (lognormal, 300, tuple(QUANTILES)),
        (lognormal, 2000, tuple(QUANTILES)),
        (bimodal, 600, tuple(QUANTILES)),
        (slowly_varying, 800, tuple(QUANTILES)),
        (very_slowly_varying, 3000, tuple(QUANTILES)),
    ],
)
def test_intervals_cover_the_truth_at_their_nominal_rate(
    draw: Callable[[np.random.Generator, int], np.ndarray], count: int, keys: tuple[str, ...]
) -> None:
    random = np.random.default_rng(17)
    quantiles, mean = truth(draw)
    hits = dict.fromkeys([*keys, "mean", "rate"], 0)
    for _ in range(RUNS):
        latencies = draw(random, count)
        _, intervals = summarize(latencies)
        for key in keys:
            hits[key] += covers(intervals[key], quantiles[key])
        hits["mean"] += covers(mean_interval(latencies), mean)
        hits["rate"] += covers(rate_interval(np.cumsum(latencies)), 1 / mean)
    for key, covered in hits.items():
        # Below 0.92 of 400 runs would happen to an interval that covers at 0.95 once in some hundred such tests.
        assert covered >= 0.92 * RUNS, f"{key}: {covered / RUNS:.3f}"


def covers(interval: tuple[float | None, float | None], value: float) -> bool:
    low, high = interval
    return (low is None or low <= value) and (high is None or value <= high)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["outliers", "boost", "drift"])
def test_intervals_cover_as_nearly_as_a_run_can_tell_where_speed_itself_changes(kind: str) -> None:
    # Of the 740 queries of a run of the default length only 8 to 25 are independent here, so that their number is a
    # rough estimate; without the batch means, as few as 77 % were covered.
    random = np.random.default_rng(29)
    known = np.sort(np.concatenate([made_latencies(kind, random, 200_000) for _ in range(2)]))
    hits = dict.fromkeys(("p50", "p90", "p99"), 0)
    for _ in range(RUNS):
        _, intervals = summarize(made_latencies(kind, random, 740))
        for key in hits:
            hits[key] += covers(intervals[key], known[rank(len(known), QUANTILES[key]) - 1])
    for key, covered in hits.items():
        assert covered >= 0.87 * RUNS, f"{key}: {covered / RUNS:.3f}"


def test_intervals_get_narrower_with_more_samples_and_are_not_everything() -> None:
    random = np.random.default_rng(5)
    widths = []
    for count in (400, 6400):
        low, high = summarize(random.lognormal(3, SPREAD, count))[1]["p50"]
        assert low is not None
        assert high is not None
        widths.append(high - low)
    assert widths[1] < widths[0] / 2.5  # by 4 in the mean


def test_too_few_samples_bound_nothing() -> None:
    _, intervals = summarize(np.array([1.0, 2.0, 3.0]))
    assert intervals["p50"] == (None, None)
    assert intervals["p99.9"][1] is None
    assert intervals["mean"] == (None, None)
    assert rate_interval(np.array([1.0, 2.0])) == (None, None)
