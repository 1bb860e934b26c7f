"""Curves against scikit-learn and against two Gaussians, whose AUC and EER have closed forms."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeface.evaluate.curves import Roc, accept_rates, exact_roc

DISTANCES = st.lists(st.integers(0, 12), min_size=1, max_size=40)


def gaussian_quantiles(d: float, count: int = 20_001) -> tuple[np.ndarray, np.ndarray]:
    """Distances at the quantiles of N(0, 1) for genuine pairs and N(d, 1) for impostors."""
    base = np.array([NormalDist().inv_cdf((k + 0.5) / count) for k in range(count)])
    return np.concatenate([base, base + d]), np.arange(2 * count) < count


@pytest.mark.parametrize("d", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_two_gaussians_have_the_area_and_error_rate_of_the_book(d: float) -> None:
    roc = exact_roc(*gaussian_quantiles(d))
    assert roc.auc == pytest.approx(NormalDist().cdf(d / np.sqrt(2)), abs=1e-4)
    assert roc.eer == pytest.approx(NormalDist().cdf(-d / 2), abs=1e-4)
    for far in (0.1, 0.01, 0.001):
        expected = NormalDist().cdf(d + NormalDist().inv_cdf(far))
        assert roc.tar_at(far) == pytest.approx(expected, abs=2e-3)


@settings(max_examples=200, deadline=None)
@given(DISTANCES, DISTANCES)
def test_the_exact_curve_is_scikit_learns(genuine: list[int], impostor: list[int]) -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    distances = np.array(genuine + impostor, float)
    same = np.arange(len(distances)) < len(genuine)
    roc = exact_roc(distances, same)
    far, tar, _ = oracle.roc_curve(same, -distances, drop_intermediate=False)
    np.testing.assert_allclose(np.unique([roc.far, roc.tar], axis=1), np.unique([far, tar], axis=1))
    assert roc.auc == pytest.approx(oracle.roc_auc_score(same, -distances))


@settings(max_examples=200, deadline=None)
@given(DISTANCES, DISTANCES)
def test_rates_rise_from_nothing_to_everything_and_the_eer_lies_on_the_curve(
    genuine: list[int], impostor: list[int]
) -> None:
    distances = np.array(genuine + impostor, float)
    roc = exact_roc(distances, np.arange(len(distances)) < len(genuine))
    for rates in (roc.far, roc.tar):
        assert rates[0] == 0
        assert rates[-1] == 1
        assert (np.diff(rates) >= 0).all()
    assert 0 <= roc.eer <= 1
    flat = np.interp(1 - roc.eer, roc.tar, roc.far) if len(np.unique(roc.tar)) == len(roc.tar) else roc.eer
    assert flat == pytest.approx(roc.eer, abs=1e-9)


def test_eer_is_the_root_that_scipy_finds() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    interpolate = pytest.importorskip("scipy.interpolate")
    rng = np.random.default_rng(0)
    distances = np.concatenate([rng.normal(0, 1, 400), rng.normal(1.5, 1, 300)])
    grid = np.linspace(-4, 6, 60)
    roc = Roc(grid, *accept_rates(distances, np.arange(700) < 400, grid))
    far, unique = np.unique(roc.far, return_index=True)
    tar = interpolate.interp1d(far, roc.tar[unique])
    assert roc.eer == pytest.approx(optimize.brentq(lambda x: 1 - x - tar(x), 0, 1), abs=2e-3)


def test_perfect_and_useless_scores_have_the_rates_they_must() -> None:
    same = np.array([True, True, False, False])
    perfect = exact_roc(np.array([0.0, 1, 2, 3]), same)
    assert (perfect.auc, perfect.eer) == (1, 0)
    useless = exact_roc(np.ones(4), same)
    assert (useless.auc, useless.eer) == (0.5, 0.5)
    reversed_ = exact_roc(np.array([2.0, 3, 0, 1]), same)
    assert (reversed_.auc, reversed_.eer) == (0, 1)


def test_acceptance_is_strict() -> None:
    far, tar = accept_rates(
        np.array([1.0, 1.0]), np.array([True, False]), np.array([1.0, np.nextafter(1, 2)])
    )
    assert far.tolist() == tar.tolist() == [0, 1]


def test_a_curve_that_stops_early_is_carried_to_its_end() -> None:
    assert Roc(np.zeros(1), np.array([0.0]), np.array([1.0])).auc == 1
    assert Roc(np.zeros(2), np.array([0.0, 0.5]), np.array([0.0, 0.5])).auc == 0.5
