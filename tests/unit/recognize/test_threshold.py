"""Calibration against closed forms and SciPy, and the rules that keep a threshold with its contract."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.errors import ContractError, InputError
from edgeface.recognize import (
    Embedding,
    Embeddings,
    Metric,
    Threshold,
    calibrate,
    load_thresholds,
    save_thresholds,
    threshold_at,
    verify,
)
from edgeface.stats import clopper_pearson, trials_needed

ID, OTHER = "0123456789abcdef", "fedcba9876543210"


def gaussians(count: int = 200_000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Similarities: genuine pairs N(3, 1), impostor pairs N(0, 1)."""
    rng = np.random.default_rng(seed)
    return rng.normal(3, 1, count), rng.normal(0, 1, count)


def simple(far: float = 0.1, *, contract_id: str = ID, metric: Metric = Metric.cosine) -> Threshold:
    scores = np.linspace(-1, 1, 101)
    return calibrate(scores, scores - 1, fars=[far], contract_id=contract_id, metric=metric)[0]


def test_thresholds_of_two_gaussians_are_their_quantiles() -> None:
    genuine, impostor = gaussians()
    normal = NormalDist()
    for found in calibrate(genuine, impostor, fars=[0.1, 0.01, 0.001], contract_id=ID, metric=Metric.cosine):
        expected = normal.inv_cdf(1 - found.far)
        assert found.value == pytest.approx(expected, abs=0.03)
        assert found.frr == pytest.approx(normal.cdf(expected - 3), abs=0.01)
        assert found.observed_far <= found.far
        assert found.far_interval[0] <= found.far <= found.far_interval[1] + 1e-6
        assert found.supported
        assert not found.note


def test_distances_and_similarities_are_cut_at_the_same_place() -> None:
    genuine, impostor = gaussians(5000)
    similar = calibrate(genuine, impostor, fars=[0.01], contract_id=ID, metric=Metric.cosine)[0]
    apart = calibrate(-genuine, -impostor, fars=[0.01], contract_id=ID, metric=Metric.arccos)[0]
    assert similar.value == -apart.value
    assert (similar.false_accepts, similar.false_rejects) == (apart.false_accepts, apart.false_rejects)
    assert similar.accepts(similar.value + 1e-9)
    assert not similar.accepts(similar.value)
    assert apart.accepts(apart.value - 1e-9)
    assert not apart.accepts(apart.value)


@settings(max_examples=examples(200))
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.floats(0.001, 0.999),
)
def test_it_is_the_most_permissive_threshold_that_keeps_the_rate(
    genuine: list[int], impostor: list[int], far: float
) -> None:
    near, apart = np.array(genuine, float), np.array(impostor, float)
    found = calibrate(near, apart, fars=[far], contract_id=ID, metric=Metric.squared_l2)[0]
    assert found.false_accepts == sum(found.accepts(each) for each in apart)
    assert found.false_rejects == sum(not found.accepts(each) for each in near)
    assert found.observed_far <= far + 1e-9
    beyond = np.nextafter(found.value, np.inf)  # a hair more would accept too many
    assert np.mean(apart < beyond) > far - 1e-9


@pytest.mark.parametrize(("impostors", "supported"), [(299, False), (300, True), (3000, True)])
def test_a_rate_needs_three_times_its_inverse_in_impostor_pairs(impostors: int, supported: bool) -> None:
    scores = np.linspace(0, 1, impostors)
    found = calibrate(scores, scores, fars=[0.01], contract_id=ID, metric=Metric.arccos)[0]
    assert trials_needed(0.01) == 300
    assert found.supported is supported
    assert found.to_dict()["supported"] is supported
    assert ("at least 300 impostor pairs" in found.note) is not supported


def test_without_false_accepts_the_bound_is_that_of_the_binomial() -> None:
    found = calibrate(np.zeros(10), np.arange(1.0, 101.0), fars=[0.001], contract_id=ID, metric=Metric.squared_l2)[0]
    assert found.false_accepts == 0
    assert found.far_interval[0] == 0
    assert found.far_interval[1] == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-12)
    assert found.frr_interval[1] == pytest.approx(1 - 0.025 ** (1 / 10), rel=1e-12)


def test_intervals_cover_what_they_promise() -> None:
    counts = np.random.default_rng(0).binomial(400, 0.01, 2000)
    intervals = {count: clopper_pearson(count, 400) for count in set(counts.tolist())}
    covered = np.mean([intervals[count][0] <= 0.01 <= intervals[count][1] for count in counts.tolist()])
    assert covered >= 0.95


@settings(max_examples=examples(50))
@given(st.floats(0.01, 0.99), st.sampled_from(list(Metric)))
def test_json_gives_back_the_same_threshold(far: float, metric: Metric) -> None:
    low, high = metric.scale
    scores = np.linspace(low, min(high, 2.0), 101)
    (threshold,) = calibrate(scores, scores, fars=[far], contract_id=ID, metric=metric)
    assert Threshold.from_dict(json.loads(json.dumps(threshold.to_dict()))) == threshold


def test_a_file_of_thresholds_round_trips_and_is_asked_by_rate(tmp_path: Path) -> None:
    genuine, impostor = gaussians(4000)
    made = calibrate(
        genuine / 10, impostor / 10, fars=[0.1, 0.01], contract_id=ID, metric=Metric.cosine, created_from="pairs.txt"
    )
    save_thresholds(tmp_path / "t.json", made)
    loaded = load_thresholds(tmp_path / "t.json")
    assert loaded == made
    assert threshold_at(loaded, 0.01) == made[1]
    assert json.loads((tmp_path / "t.json").read_text())["contract_id"] == ID
    with pytest.raises(
        InputError, match=r"far: expected a calibrated rate \(0\.01, 0\.1\), found 0\.001; .*edgeface calibrate"
    ):
        threshold_at(loaded, 0.001)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"format": "other"}',
        '{"format": "edgeface-thresholds", "version": 2}',
        '{"format": "edgeface-thresholds", "version": 1, "thresholds": [{}]}',
        '{"format": "edgeface-thresholds", "version": 1, "thresholds": []}',
    ],
)
def test_a_file_that_is_not_thresholds_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"t\.json"):
        load_thresholds(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"value": -5.0},
        {"value": 1.01},
        {"value": math.nan},
        {"value": "0.5"},
        {"value": True},
        {"far": math.nan},
        {"far": 0.0},
        {"far": 1.5},
        {"far": None},
        {"confidence": 95.0},
        {"far_interval": [0.2, 0.1]},
        {"frr_interval": [-0.1, 0.1]},
        {"far_interval": [0.0, math.nan]},
        {"false_accepts": -1},
        {"false_accepts": 10**9},
        {"false_rejects": 0.5},
        {"impostors": True},
        {"contract_id": None},
        {"created_from": 5},
    ],
)
def test_a_threshold_that_cannot_be_is_refused_on_reading(changes: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    save_thresholds(path, [simple()])
    document = json.loads(path.read_text())
    document["thresholds"][0] |= changes
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"t\.json: threshold|t\.json: far|t\.json: confidence"):
        load_thresholds(path)


def test_embeddings_are_of_real_numbers() -> None:
    for wrong in (np.array([1j, 0]), np.array([True, False]), np.array(["1", "0"]), np.array([None, 1])):
        with pytest.raises(ContractError, match="expected real numbers"):
            Embedding(wrong, ID)
    assert Embedding(np.array([300, 0]), ID).vector.tolist() == [300, 0]


def test_two_contracts_never_meet(tmp_path: Path) -> None:
    face = Embedding(np.ones(4, np.float32), ID)
    stranger = Embedding(np.ones(4, np.float32), OTHER)
    with pytest.raises(ContractError, match=f"{ID}, {OTHER}"):
        verify(face, stranger, simple())
    with pytest.raises(ContractError, match=OTHER):
        verify(face, face, simple(contract_id=OTHER))
    with pytest.raises(ContractError):
        save_thresholds(tmp_path / "t.json", [simple(), simple(contract_id=OTHER)])
    with pytest.raises(ContractError, match="one metric"):
        save_thresholds(tmp_path / "t.json", [simple(), simple(metric=Metric.arccos)])


def test_verification_says_the_score_the_threshold_and_its_rate() -> None:
    faces = Embeddings(np.eye(3, dtype=np.float32), ID)
    threshold = dataclasses.replace(simple(), value=0.5)
    same, different = verify(faces[0], faces[0], threshold), verify(faces[0], faces[1], threshold)
    assert (same.matched, same.score) == (True, 1.0)
    assert (different.matched, different.score) == (False, 0.0)
    assert (bool(same), bool(different)) == (True, False)
    assert repr(same) == "Verification(matched=True, cosine 1.0000 > 0.5000, far=0.1)"
    assert same.to_dict() == {
        "matched": True,
        "same": True,  # the former name, written for one release
        "score": 1.0,
        "metric": "cosine",
        "threshold": 0.5,
        "far": 0.1,
        "far_interval": list(threshold.far_interval),
        "supported": True,
        "contract_id": ID,
        "note": "",
        "calibrated_on": "",
        "measured_on": "",
    }


def test_a_threshold_by_hand_promises_no_rate() -> None:
    threshold = Threshold.by_hand(0.5, contract_id=ID)
    assert (threshold.accepts(0.6), threshold.accepts(0.5), threshold.far) == (True, False, None)
    assert (threshold.assured_far, threshold.supported) == (1.0, False)
    assert threshold.note == "the threshold was given by hand: its false accept rate was never measured"
    assert json.loads(json.dumps(threshold.to_dict(), allow_nan=False))["observed_far"] is None
    assert not Threshold.by_hand(1.1, contract_id=ID, metric=Metric.squared_l2).accepts(1.2)
    for value, metric in ((1.01, Metric.cosine), (math.nan, Metric.cosine), (-0.1, Metric.arccos)):
        with pytest.raises(InputError, match="threshold: expected a"):
            Threshold.by_hand(value, contract_id=ID, metric=metric)


@pytest.mark.parametrize("fars", [[], [0.0], [1.0], [-0.1], [math.nan], [True], ["0.001"]])
def test_a_rate_outside_0_and_1_is_refused(fars: list[float]) -> None:
    with pytest.raises(InputError, match=r"far: expected .*above 0 and below 1, found"):
        calibrate(np.ones(3), np.ones(3), fars=fars, contract_id=ID, metric=Metric.cosine)


def test_scores_that_are_missing_or_not_numbers_are_refused() -> None:
    for genuine, impostor, words in (
        (np.ones(0), np.ones(3), "genuine pairs"),
        (np.ones(3), np.ones(0), "impostor pairs"),
        (np.array([1, np.nan]), np.ones(3), "genuine scores"),
    ):
        with pytest.raises(InputError, match=words):
            calibrate(genuine, impostor, fars=[0.1], contract_id=ID, metric=Metric.cosine)


def test_embeddings_cannot_be_written_to_and_must_be_finite_and_have_a_direction() -> None:
    faces = Embeddings(np.ones((2, 4), np.float32), ID)
    with pytest.raises(ValueError, match="read-only"):
        faces.vectors[0, 0] = 2
    with pytest.raises(ContractError, match="finite"):
        Embedding(np.array([1, np.nan], np.float32), ID)
    with pytest.raises(ContractError, match="length 0"):
        Embeddings(np.array([[1, 0], [0, 0]], np.float32), ID)
    with pytest.raises(ContractError, match="a direction, found one of length 1"):  # of which float32 keeps 2 digits
        Embeddings(np.array([[1, 0], [1e-43, 3e-44]], np.float32), ID)
    assert Embedding(np.full(4, 1e-30, np.float32), ID)
    assert len(Embeddings(np.empty((0, 4), np.float32), ID)) == 0
    assert len(Embedding(np.full(4, 1e30, np.float32), ID).vector) == 4  # its square is beyond float32
    with pytest.raises(ContractError, match=r"\(N, D\)"):
        Embeddings(np.ones(4, np.float32), ID)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    scores = np.linspace(-1, 1, 101)
    with pytest.raises(InputError, match="confidence: expected a number between 0 and 1"):
        calibrate(scores, scores - 1, fars=[0.1], contract_id=ID, metric=Metric.cosine, confidence=confidence)
