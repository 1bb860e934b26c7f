"""Places on axes: what is inside stays inside, in order, and marks lie where their words say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from edgeface.drawing import Axis, categories, linear, logarithmic, nines, probit

values = st.floats(-1e9, 1e9)
positives = st.floats(1e-9, 1e9)


def marked(axis: Axis) -> np.ndarray:
    return np.array([float(mark.words) for mark in axis.marks])


@given(low=values, width=st.floats(1e-3, 1e9), wanted=st.integers(2, 10))
def test_linear_marks_are_round_evenly_spaced_and_where_they_say(low: float, width: float, wanted: int) -> None:
    axis = linear("x", low, low + width, wanted=wanted, words=repr)
    places = np.array([mark.at for mark in axis.marks])
    assert wanted / 2 - 1 <= len(places) <= 2 * wanted + 1
    assert (places > -1e-6).all()
    assert (places < 1 + 1e-6).all()
    np.testing.assert_allclose(marked(axis), low + places * width, atol=1e-9 * (abs(low) + width))
    if len(places) > 2:
        step = np.diff(marked(axis)).mean()
        mantissa = float(f"{step:e}".split("e")[0])
        assert min(abs(mantissa - each) for each in (1, 2, 5, 10)) < 1e-3


@given(low=positives, ratio=st.floats(1.5, 1e12))
def test_logarithmic_marks_are_few_inside_and_where_they_say(low: float, ratio: float) -> None:
    axis = logarithmic("x", low, low * ratio, words=repr)
    assert len(axis.marks) <= 13
    assert len(axis.marks) >= (0 if ratio < 2.5 else 1)
    for mark, value in zip(axis.marks, marked(axis), strict=True):
        assert mark.at == pytest.approx(np.log(value / low) / np.log(ratio), abs=1e-6)


@given(st.lists(values, min_size=2, max_size=20), values, st.floats(1e-3, 1e6))
def test_places_keep_the_order_and_stay_on_the_axis(points: list[float], low: float, width: float) -> None:
    places = linear("x", low, low + width).place(sorted(points))
    assert (np.diff(places) >= 0).all()
    assert ((places >= 0) & (places <= 1)).all()


def test_a_range_of_nothing_still_has_two_ends() -> None:
    assert linear("x", 3, 3).place([3, 6]).tolist() == [0, 1]
    assert linear("x", 0, 0).place([0, 1]).tolist() == [0, 1]
    assert logarithmic("x", 5, 5).place([5, 50]).tolist() == pytest.approx([0, 1])


def test_nothing_is_marked_as_minus_zero() -> None:
    assert [mark.words for mark in linear("x", 0, 1).marks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert "-0" not in [mark.words for mark in linear("x", -0.3, 1).marks]


def test_a_logarithmic_axis_can_show_nothing_at_its_low_end() -> None:
    assert logarithmic("x", 1e-3, 1).place([0, 1e-3, 1]).tolist() == pytest.approx([0, 0, 1])


def test_probit_places_are_normal_deviates() -> None:
    rates = np.array([0.01, 0.05, 0.2])
    axis = probit("x", 0.001, 0.5, [0.0001, *rates], words=str)
    expected = (norm.ppf(rates) - norm.ppf(0.001)) / (norm.ppf(0.5) - norm.ppf(0.001))
    np.testing.assert_allclose(axis.place(rates), expected)
    assert [mark.words for mark in axis.marks] == ["0.01", "0.05", "0.2"]


def test_categories_sit_in_the_middle_of_equal_cells() -> None:
    axis = categories("x", ["a", "b", "c", "d"])
    assert axis.place([0, 3]).tolist() == [0.125, 0.875]
    assert [mark.at for mark in axis.marks] == [0.125, 0.375, 0.625, 0.875]


def test_each_further_nine_takes_as_much_room() -> None:
    axis = nines("percentile", 0.999)
    assert axis.place([0, 0.9, 0.99, 0.999, 1]).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert [mark.words for mark in axis.marks] == ["50 %", "90 %", "99 %", "99.9 %"]
    for mark in axis.marks:
        assert axis.place([float(mark.words.split()[0]) / 100])[0] == pytest.approx(mark.at)
