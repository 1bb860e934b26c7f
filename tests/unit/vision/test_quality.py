"""Measures must order as the degradations do, and poses must come back from where they were projected."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.errors import FaceError, InputError
from edgeface.vision import quality
from edgeface.vision.quality import QualityGate, estimate_pose, measure_quality

BOX = np.array([60, 40, 200, 200], np.float32)
FACE = quality._FACE_MODEL * [60, 60, 60] + [130, 95, 0]
POINTS = FACE[:, :2].astype(np.float32)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Texture as rich as skin and hair, and a dark blob at every landmark."""
    noise = np.random.default_rng(0).normal(130, 60, (240, 260, 3))
    image = cv2.GaussianBlur(noise, (0, 0), 1.2) * 1.5 - 60
    for x, y in POINTS.astype(int).tolist():
        cv2.circle(image, (x, y), 6, (20, 20, 20), -1)
    return np.clip(image, 0, 255).astype(np.uint8)


def test_more_blur_is_less_sharp(picture: np.ndarray) -> None:
    blurred = [picture, *(cv2.GaussianBlur(picture, (0, 0), sigma) for sigma in (1, 2, 4))]
    values = [measure_quality(image, BOX, POINTS).sharpness for image in blurred]
    assert all(sharp > 1.3 * less for sharp, less in pairwise(values)), values


def test_darkening_moves_brightness_and_leaves_sharpness(picture: np.ndarray) -> None:
    light = measure_quality(picture, BOX, POINTS)
    dark = measure_quality((picture * 0.4).astype(np.uint8), BOX, POINTS)
    assert dark.brightness == pytest.approx(0.4 * light.brightness, abs=1)
    assert dark.contrast < light.contrast
    assert dark.sharpness == pytest.approx(light.sharpness, rel=0.05)


def test_enlarging_a_small_face_does_not_make_it_sharp(picture: np.ndarray) -> None:
    small = cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    assert measure_quality(small, BOX / 4, POINTS / 4).sharpness < measure_quality(picture, BOX).sharpness / 2


@pytest.mark.parametrize("angle", [-40, -15, 20, 60])
def test_turning_the_picture_turns_roll_by_as_much(picture: np.ndarray, angle: int) -> None:
    turn = cv2.getRotationMatrix2D((130, 120), -angle, 1)  # OpenCV counts counter-clockwise
    points = (POINTS @ turn[:, :2].T + turn[:, 2]).astype(np.float32)
    turned = cv2.warpAffine(picture, turn, picture.shape[1::-1])
    assert measure_quality(turned, BOX, points).roll == pytest.approx(angle, abs=0.1)


@given(st.floats(-60, 60), st.floats(-45, 45), st.floats(-80, 80), st.floats(5, 500))
def test_pose_of_the_projected_mean_face_comes_back(yaw: float, pitch: float, roll: float, scale: float) -> None:
    def turn(axis: list[float], degrees: float) -> np.ndarray:
        return cv2.Rodrigues(np.radians(degrees) * np.array(axis))[0]

    # y is down and z towards the camera, so x, y, z is left-handed: yaw to the right is +y, pitch down is -x.
    rotation = turn([0, 0, 1], roll) @ turn([0, 1, 0], yaw) @ turn([1, 0, 0], -pitch)
    points = scale * (quality._FACE_MODEL @ rotation.T)[:, :2] + [300, 200]
    toward = rotation[:, 2]
    found_yaw, found_pitch, _ = estimate_pose(points)
    assert found_yaw == pytest.approx(np.degrees(np.arctan2(toward[0], toward[2])), abs=1e-6)
    assert found_pitch == pytest.approx(np.degrees(np.arctan2(toward[1], np.hypot(toward[0], toward[2]))), abs=1e-6)


@pytest.mark.parametrize(("shift", "index"), [((12, 0), 0), ((0, 12), 1)])
def test_a_nose_that_points_right_or_down_is_positive(shift: tuple[int, int], index: int) -> None:
    points = POINTS.copy()
    points[2] += shift
    assert estimate_pose(points)[index] > 5


def test_landmarks_on_a_line_have_no_pose() -> None:
    with pytest.raises(FaceError, match="one line"):
        estimate_pose(np.linspace([0, 0], [10, 10], 5))
    assert np.isnan(measure_quality(np.zeros((50, 50, 3), np.uint8), np.array([5.0, 5, 45, 45])).yaw)


def test_a_painted_over_mouth_is_named(picture: np.ndarray) -> None:
    masked = picture.copy()
    masked[140:, :] = (200, 180, 160)
    assert measure_quality(picture, BOX, POINTS).covered == ()
    covered = measure_quality(masked, BOX, POINTS).covered
    assert covered == ("left corner of the mouth", "right corner of the mouth")
    verdict = QualityGate().check(measure_quality(masked, BOX, POINTS))
    assert "show left corner of the mouth and right corner" in str(verdict.reasons[0])


def test_a_face_half_outside_is_half_inside(picture: np.ndarray) -> None:
    assert measure_quality(picture, np.array([-70.0, 40, 70, 200])).inside == pytest.approx(0.5)


def test_every_reason_says_measured_limit_and_advice(picture: np.ndarray) -> None:
    bad = dataclasses.replace(measure_quality(picture, BOX, POINTS), box_side=20, yaw=-70, brightness=12, clipped=0.9)
    verdict = QualityGate().check(bad)
    assert not verdict
    assert not verdict.ok
    assert [each.measure for each in verdict.reasons] == ["box_side", "yaw", "brightness", "clipped"]
    assert str(verdict.reasons[0]) == (
        "box side: expected at least 32, found 20; move closer, or use a photo with more pixels"
    )
    assert "yaw: expected at most 60, found 70" in str(verdict.reasons[1])


def test_what_was_not_measured_is_not_refused(picture: np.ndarray) -> None:
    assert QualityGate().check(measure_quality(picture, BOX)).ok


def test_the_score_falls_with_blur_size_and_turn(picture: np.ndarray) -> None:
    best = measure_quality(picture, BOX, POINTS)
    blurred = measure_quality(cv2.GaussianBlur(picture, (0, 0), 6), BOX, POINTS)
    assert 0 <= blurred.score < best.score <= 1
    assert dataclasses.replace(best, yaw=50).score < best.score
    assert dataclasses.replace(best, box_side=50).score < best.score


def test_a_limit_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match="min_sharpness"):
        QualityGate(min_sharpness=-1)


def test_no_face_is_more_than_whole(picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for box in rng.uniform([5, 5, 60, 60], [40, 40, 110, 110], (100, 4)).astype(np.float32):
        assert measure_quality(picture, box).inside <= 1  # float32 rounds
