"""Flow against a picture that was moved by known amounts."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgeface.pipeline.flow import FaceFlow
from edgeface.vision.detector import Faces

BOX = np.array([[120, 100, 220, 230]], np.float32)
POINTS = np.array([[[145, 140], [195, 140], [170, 170], [150, 200], [190, 200]]], np.float32)
FACES = Faces(BOX, POINTS, np.ones(1, np.float32))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    noise = np.random.default_rng(2).normal(128, 90, (400, 500, 3))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 2) * 3 - 256, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("angle", "zoom", "shift"), [(0, 1, (7.5, -4)), (6, 1, (0, 0)), (-3, 1.06, (5, 9))])
def test_box_and_landmarks_move_as_the_picture_does(
    picture: np.ndarray, angle: float, zoom: float, shift: tuple[float, float]
) -> None:
    matrix = cv2.getRotationMatrix2D((170, 165), angle, zoom)
    matrix[:, 2] += shift
    flow = FaceFlow()
    flow.see(picture)
    moved, kept = flow.follow(cv2.warpAffine(picture, matrix, picture.shape[1::-1]), FACES)
    assert kept.tolist() == [0]
    np.testing.assert_allclose(moved.landmarks[0], POINTS[0] @ matrix[:, :2].T + matrix[:, 2], atol=0.3)
    np.testing.assert_allclose(moved.boxes[0, 2:] - moved.boxes[0, :2], [100 * zoom, 130 * zoom], atol=0.5)


def test_a_large_frame_is_followed_in_its_own_pixels(picture: np.ndarray) -> None:
    large = cv2.resize(picture, None, fx=4, fy=4)
    flow = FaceFlow()
    flow.see(large)
    moved, _ = flow.follow(np.roll(large, 12, axis=1), Faces(BOX * 4, POINTS * 4, FACES.scores))
    np.testing.assert_allclose(moved.boxes - BOX * 4, [[12, 0, 12, 0]], atol=0.5)


def test_a_cut_to_another_scene_loses_every_face(picture: np.ndarray) -> None:
    flow = FaceFlow()
    flow.see(picture)
    other = np.random.default_rng(9).integers(0, 255, picture.shape, np.uint8)
    moved, kept = flow.follow(other, FACES)
    assert len(moved) == len(kept) == 0


def test_nothing_is_followed_from_nowhere_or_into_another_size(picture: np.ndarray) -> None:
    flow = FaceFlow()
    assert len(flow.follow(picture, FACES)[0]) == 0
    assert len(flow.follow(picture[:200], FACES)[0]) == 0
