"""Warm-up and drift: found where they were put, and not where there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import signal

from edgeface.bench.run.scenarios import is_settled, is_stationary

RUNS = 200


def test_times_that_still_fall_have_not_settled() -> None:
    random = np.random.default_rng(1)
    assert not is_settled(random.normal(40, 1, 12), random.normal(36, 1, 12))
    assert is_settled(random.normal(36, 1, 12), random.normal(36, 1, 12))


def test_a_difference_within_the_noise_is_settled() -> None:
    random = np.random.default_rng(2)
    settled = sum(is_settled(random.normal(40, 8, 12), random.normal(40, 8, 12)) for _ in range(RUNS))
    assert settled >= 0.9 * RUNS


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_a_stationary_run_is_seldom_called_drifting(phi: float) -> None:
    random = np.random.default_rng(3)
    wrong = 0
    for _ in range(RUNS):
        noise = signal.lfilter([1], [1, -phi], random.normal(size=1200) * math.sqrt(1 - phi**2))[200:]
        wrong += is_stationary(np.exp(3 + 0.3 * noise)) is False
    assert wrong <= 0.05 * RUNS


def test_a_run_that_slows_down_by_five_per_cent_is_called_drifting() -> None:
    random = np.random.default_rng(4)
    found = 0
    for _ in range(RUNS):
        latencies = random.normal(35, 1, 600) * np.linspace(1.0, 1.1, 600)
        found += is_stationary(latencies) is False
    assert found >= 0.95 * RUNS


def test_significant_but_tiny_is_no_drift_and_few_samples_tell_nothing() -> None:
    random = np.random.default_rng(5)
    halves = np.concatenate([random.normal(35.0, 0.1, 5000), random.normal(35.2, 0.1, 5000)])
    assert is_stationary(halves) is True
    assert is_stationary(np.ones(5)) is None
