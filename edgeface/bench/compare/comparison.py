"""Compare results of two configurations: better, worse, or no difference shown.

One run of each is compared by its raw samples, as many as are independent. Variation from one run to the next is not
in them; repeated runs, at least three each, are compared run by run, and pair by pair where they alternated.

All verdicts of a comparison hold together with 95 % confidence: each of m is at 1 - 0.05 / m (Bonferroni).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgeface import stats
from edgeface.bench.compare.comparable import Side, require_comparable
from edgeface.bench.result import BenchmarkResult
from edgeface.bench.schema import Scenario
from edgeface.errors import InputError
from edgeface.stats import Interval

Verdict = Literal["better", "worse", "no difference shown"]
Outcome = Literal["passed", "failed", "unsure"]

CONFIDENCE = 0.95
"""Probability that all verdicts of a comparison are correct where there is no difference."""

FEWEST_RUNS = 3
"""Fewest runs of each side whose variation between runs can be estimated."""

_LATENCIES = ("p50", "p90", "p99")
_METRICS: dict[Scenario, tuple[str, ...]] = {
    "single-stream": (*_LATENCIES, "throughput"),
    "multi-stream": (*_LATENCIES, "throughput"),
    "offline": ("throughput",),  # its latencies include a queue that it fills itself
    "search": (*_LATENCIES, "throughput"),
    "server": ("rate",),  # its latencies are those at that rate
    "kiosk": (*_LATENCIES, "dropped", "time to identity", "time to decision", "CPU"),
}
_TIMES = {"time to identity": "identity_ms", "time to decision": "decision_ms"}
"""Metrics of a kiosk whose raw samples, one a track, are this field of `KioskResult`."""
_HIGHER_IS_BETTER = ("throughput", "rate", "dropped")
"""Metrics that are compared as rates: of items, and of the frames that were not dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of both sides.

    Attributes
    ----------
    metric, unit
        ``p50``, ``p90``, ``p99`` in ``ms``; ``throughput`` or, in the Server scenario, ``rate`` in ``items/s``. Of a
        kiosk also ``dropped`` in ``%`` of the frames, the medians of ``time to identity`` and ``time to decision``, and
        ``CPU`` a frame, in ``ms``.
    baseline, candidate
        The figures; geometric means of repeated runs.
    slowdown
        How much longer the candidate takes, as a share: 0.05 is 5 % longer, below 0 is faster. For a throughput, of
        the time per item; for ``dropped``, of the time per frame that was kept.
    interval
        Confidence interval of the slowdown; None: not bounded on that side.
    verdict
        ``worse`` if all of the interval is above 0, ``better`` if all of it is below.
    note
        Why there is no interval.
    """

    metric: str
    unit: str
    baseline: float
    candidate: float
    slowdown: float
    interval: Interval
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Result of a comparison.

    Attributes
    ----------
    method
        ``one run each``, ``3 runs each, paired`` or ``3 and 5 runs``.
    confidence
        Confidence of each interval.
    differences
        One for each metric.
    settings
        What was set or executed differently: name, baseline's value, candidate's value.
    warnings
        Reasons for doubt.
    """

    baseline: str
    candidate: str
    scenario: Scenario
    method: str
    confidence: float
    differences: tuple[Difference, ...]
    settings: tuple[tuple[str, str, str], ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON types."""
        stored = dataclasses.asdict(self)
        stored["differences"] = [{**each, "interval": list(each["interval"])} for each in stored["differences"]]
        stored["settings"] = [{"name": name, "baseline": old, "candidate": new} for name, old, new in self.settings]
        stored["warnings"] = list(self.warnings)
        return stored


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Whether a candidate passes; False if it failed, as the exit code of ``bench compare``.

    `limit` is the slowdown that is too much, as a share; `outcome` that of the worst metric; `failed` and `unsure`
    are the metrics with these outcomes.
    """

    limit: float
    outcome: Outcome
    failed: tuple[str, ...]
    unsure: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.outcome != "failed"

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON types."""
        return {**dataclasses.asdict(self), "failed": list(self.failed), "unsure": list(self.unsure)}


def compare(baseline: Side, candidate: Side, *, across_models: bool = False) -> Comparison:
    """Compare two sides: one run each, or at least three each; of different models only if `across_models`.

    Raises
    ------
    InputError
        If they measure different things, or have two runs, from which variation cannot be estimated.
    """
    settings, warnings = require_comparable(baseline, candidate, across_models=across_models)
    runs = len(baseline.runs), len(candidate.runs)
    single = runs == (1, 1)
    if not single and min(runs) < FEWEST_RUNS:
        raise InputError(
            f"{baseline.name}, {candidate.name}: expected one run each, or at least {FEWEST_RUNS} each, "
            f"found {runs[0]} and {runs[1]}"
        )
    scenario = baseline.first.settings.scenario
    every = [*baseline.runs, *candidate.runs]
    metrics = [each for each in _METRICS[scenario] if all(_figure(each, run) for run in every)]
    if not metrics:
        raise InputError(f"{baseline.name}, {candidate.name}: both must have {' or '.join(_METRICS[scenario])}")
    confidence = 1 - (1 - CONFIDENCE) / len(metrics)
    paired = not single and _alternate(baseline.runs, candidate.runs)
    differences = tuple(
        _one_run(metric, baseline.first, candidate.first, confidence)
        if single
        else _several_runs(metric, baseline.runs, candidate.runs, confidence, paired=paired)
        for metric in metrics
    )
    if single:
        method = "one run each"
        warnings += (
            "one run each: the intervals do not include variation between runs; for that, give folders of "
            f"{FEWEST_RUNS} or more alternating runs",
        )
    else:
        method = f"{runs[0]} runs each, paired" if paired else f"{runs[0]} and {runs[1]} runs"
    return Comparison(
        baseline=baseline.name,
        candidate=candidate.name,
        scenario=scenario,
        method=method,
        confidence=confidence,
        differences=differences,
        settings=settings,
        warnings=warnings,
    )


def judge(comparison: Comparison, limit: float) -> Gate:
    """Decide whether a candidate is slower by too much; `limit` is a share: 0.05.

    A metric fails if the candidate is shown to be slower (the whole interval is above 0) and a slowdown of `limit`
    or more is not excluded (the interval reaches it). So two runs of the same thing fail in at most 5 % of all
    cases, and a true slowdown of `limit` fails as often as it is shown at all. A metric passes if its interval ends
    below `limit`. Otherwise the outcome is unsure: the runs were too short or too noisy. InputError is raised if no
    metric has an interval.
    """
    bounded = [each for each in comparison.differences if each.interval != (None, None)]
    if not bounded:
        raise InputError(
            f"{comparison.candidate} cannot be judged without an interval: {comparison.differences[0].note}"
        )
    failed: list[str] = []
    unsure: list[str] = []
    for each in bounded:
        high = each.interval[1]
        if high is not None and high < limit:
            continue
        (failed if each.verdict == "worse" else unsure).append(each.metric)
    outcome: Outcome = "failed" if failed else "unsure" if unsure else "passed"
    return Gate(limit=limit, outcome=outcome, failed=tuple(failed), unsure=tuple(unsure))


def _one_run(metric: str, baseline: BenchmarkResult, candidate: BenchmarkResult, confidence: float) -> Difference:
    old, new = _figure(metric, baseline), _figure(metric, candidate)
    if metric == "rate":
        return _difference(metric, old, new, None, "the rate comes from a search and has no samples")
    first, second = (_estimate(metric, run, confidence) for run in (baseline, candidate))
    if first is None or second is None:
        return _difference(metric, old, new, None, "there are no raw samples")
    found = ratio(first, second)
    note = "too few independent samples" if found.interval == (None, None) else ""
    return _difference(metric, old, new, found, note)


def _estimate(metric: str, run: BenchmarkResult, confidence: float) -> Estimate | None:
    """Estimate a metric from what one run measured again and again; None if that is not known."""
    kiosk, samples = run.kiosk, run.samples
    if metric == "CPU":
        return of_parts(kiosk.cpu_parts_ms, confidence=confidence) if kiosk and kiosk.cpu_parts_ms else None
    if metric in _TIMES:
        times = getattr(kiosk, _TIMES[metric])
        return of_latency(np.array(times), 0.5, confidence=confidence) if times else None
    if samples is None:
        return None
    if metric == "dropped":
        assert kiosk is not None
        starts = samples.starts_ns - samples.starts_ns[0]
        return of_kept(np.rint(starts * 1e-9 * kiosk.frame_rate).astype(int), kiosk.frames, confidence=confidence)
    if metric == "throughput":
        return of_rate(samples.ends_s, confidence=confidence)
    return of_latency(samples.latencies_ms, float(metric.removeprefix("p")) / 100, confidence=confidence)


def _several_runs(
    metric: str,
    baseline: Sequence[BenchmarkResult],
    candidate: Sequence[BenchmarkResult],
    confidence: float,
    *,
    paired: bool,
) -> Difference:
    old, new = ([_figure(metric, run) for run in runs] for runs in (baseline, candidate))
    how = of_pairs if paired else of_runs
    found = how(old, new, confidence=confidence)
    return _difference(metric, middle(old), middle(new), found, "")


def _difference(metric: str, baseline: float, candidate: float, found: Estimate | None, note: str) -> Difference:
    rate, dropped = metric in _HIGHER_IS_BETTER, metric == "dropped"
    value = candidate / baseline if found is None else found.value
    low, high = (None, None) if found is None else found.interval
    if rate:  # of the time per item, so that more is worse everywhere
        value, low, high = 1 / value, high and 1 / high, low and 1 / low
    interval = (None if low is None else low - 1, None if high is None else high - 1)
    verdict: Verdict = "no difference shown"
    if interval[0] is not None and interval[0] > 0:
        verdict = "worse"
    elif interval[1] is not None and interval[1] < 0:
        verdict = "better"
    return Difference(
        metric=metric,
        unit="%" if dropped else "items/s" if rate else "ms",
        baseline=100 * (1 - baseline) if dropped else baseline,
        candidate=100 * (1 - candidate) if dropped else candidate,
        slowdown=value - 1,
        interval=interval,
        verdict=verdict,
        note=note,
    )


def _figure(metric: str, run: BenchmarkResult) -> float:
    """Return the metric of a run, for ``dropped`` the share of the frames that were kept; 0 if it has none."""
    value: float | None
    if metric == "CPU":
        value = run.cpu_ms
    elif metric == "dropped":
        value = 1 - run.kiosk.dropped_share if run.kiosk else None
    elif metric in _TIMES:
        value = getattr(run.kiosk, f"time_to_{_TIMES[metric]}", {}).get("p50")
    elif metric == "rate":
        value = run.server.rate if run.server else None
    elif metric == "throughput":
        value = run.throughput_fps
    else:
        value = run.latency_ms.get(metric)  # type: ignore[call-overload]
    return float(value or 0.0)


def _alternate(baseline: Sequence[BenchmarkResult], candidate: Sequence[BenchmarkResult]) -> bool:
    """Whether each pair of neighbours in time has one run of each side: A B A B, or A B B A."""
    if len(baseline) != len(candidate):
        return False
    runs = sorted([(run.created, 0) for run in baseline] + [(run.created, 1) for run in candidate])
    sides = [side for _, side in runs]
    distinct = len({created for created, _ in runs}) == len(runs)
    return distinct and all(first != second for first, second in zip(sides[::2], sides[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A positive number with its confidence interval; None: not bounded on that side."""

    value: float
    interval: Interval


def of_latency(latencies: np.ndarray, share: float, *, confidence: float) -> Estimate:
    """Estimate a percentile, 0.5 for the median, of latencies, (N,) in the order in which they were measured."""
    value = float(np.sort(latencies)[stats.rank(len(latencies), share) - 1])
    return Estimate(value, stats.percentile_interval(latencies, share, confidence=confidence))


def of_rate(ends: np.ndarray, *, confidence: float) -> Estimate:
    """Estimate completions per second from their times, (N,) seconds from the start of the measurement."""
    return Estimate(len(ends) / float(ends.max()), stats.rate_interval(ends, confidence=confidence))


def of_parts(figures: Sequence[float], *, confidence: float) -> Estimate:
    """Estimate a mean from those of equal parts of a run, at least two: Student's t."""
    value = float(np.mean(figures))
    half = stats.student_t(len(figures) - 1, confidence) * float(np.std(figures, ddof=1)) / math.sqrt(len(figures))
    return Estimate(value, (value - half, value + half))


def of_kept(numbers: np.ndarray, count: int, *, confidence: float) -> Estimate:
    """Estimate the share of `count` frames that were kept from their numbers, (N,) int from 0.

    Frames are dropped in bursts: Clopper and Pearson's interval, for as many frames as there are independent ones.
    """
    kept = np.zeros(max(count, int(numbers.max()) + 1))
    kept[numbers] = 1
    effective = len(kept) if kept.all() else stats.effective_sample_size(kept)
    if effective is None:
        return Estimate(float(kept.mean()), (None, None))
    trials = max(1, math.floor(effective))
    low, high = stats.clopper_pearson(round(trials * float(kept.mean())), trials, confidence=confidence)
    return Estimate(float(kept.mean()), (low, high))


def ratio(first: Estimate, second: Estimate) -> Estimate:
    """Estimate how many times as large the second is.

    The interval of the difference of two independent estimates combines the distances to their ends:
    d - sqrt((b - low_b)^2 + (high_a - a)^2) to d + sqrt((high_b - b)^2 + (a - low_a)^2)
    (MOVER: Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702). Applied to logarithms.
    """
    a, b = math.log(first.value), math.log(second.value)
    (low_a, high_a), (low_b, high_b) = _logs(first.interval), _logs(second.interval)
    low = None if low_b is None or high_a is None else math.exp(b - a - math.hypot(b - low_b, high_a - a))
    high = None if high_b is None or low_a is None else math.exp(b - a + math.hypot(high_b - b, a - low_a))
    return Estimate(math.exp(b - a), (low, high))


def of_runs(first: Sequence[float], second: Sequence[float], *, confidence: float) -> Estimate:
    """Compare repeated runs, at least three each, by their geometric means: Welch's t of the logarithms."""
    a, b = np.log(first), np.log(second)
    spread_a, spread_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    spread = spread_a + spread_b
    parts = spread_a**2 / (len(a) - 1) + spread_b**2 / (len(b) - 1)
    # Welch and Satterthwaite; rounded down, which widens.
    freedom = math.floor(spread**2 / parts) if parts > 0 else len(a) + len(b) - 2
    return _around(float(b.mean() - a.mean()), math.sqrt(spread), freedom, confidence)


def of_pairs(first: Sequence[float], second: Sequence[float], *, confidence: float) -> Estimate:
    """Compare alternating runs, at least three pairs, pair by pair: Student's t of the logarithms of their ratios.

    Slow changes of the machine affect both runs of a pair, so they cancel.
    """
    differences = np.log(second) - np.log(first)
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return _around(float(differences.mean()), error, len(differences) - 1, confidence)


def middle(figures: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(float(np.log(figures).mean()))


def _around(middle: float, error: float, freedom: int, confidence: float) -> Estimate:
    half = stats.student_t(freedom, confidence) * error
    return Estimate(math.exp(middle), (math.exp(middle - half), math.exp(middle + half)))


def _logs(interval: Interval) -> Interval:
    low, high = interval
    return (None if low is None or low <= 0 else math.log(low), None if high is None else math.log(high))
