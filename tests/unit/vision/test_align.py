"""Crops: their geometry, and what cannot be cropped."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.errors import FaceError, InputError
from edgeface.model.contract import Alignment
from edgeface.vision.align import _TEMPLATES, align, crop_box, fit_similarity

LANDMARKS = np.array([[105.8, 109.8], [147.9, 112.6], [121.4, 139.1], [106.1, 155.6], [144.4, 156.3]])
BOX = np.array([80.0, 70, 170, 180])
FIVE_POINTS, FIVE_NARROW = Alignment("five-point-112"), Alignment("five-point-96x112")
DLIB, OPENFACE = Alignment("five-point-150"), Alignment("outer-eyes-nose-96")
SIZES = {"five-point-112": (112, 112), "five-point-96x112": (112, 96), "five-point-150": (150, 150)}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """(250, 250, 3), smooth, so that resampling it twice changes little."""
    noise = np.random.default_rng(3).integers(0, 256, (250, 250, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)


coordinates = st.floats(-200, 200, allow_nan=False)
points = st.lists(st.tuples(coordinates, coordinates), min_size=5, max_size=5).map(np.array)


@given(source=points, target=points)
@settings(max_examples=examples(200))
def test_similarity_is_umeyama_s(source: np.ndarray, target: np.ndarray):
    transform = pytest.importorskip("skimage.transform")
    if np.linalg.matrix_rank(source - source.mean(axis=0), tol=1) < 2:
        return  # on a line its own rotation is not unique
    expected = transform.SimilarityTransform.from_estimate(source, target)
    found = fit_similarity(source, target)
    if not expected or np.linalg.det(found[:, :2]) < 1e-6:
        return
    assert np.allclose(found, expected.params[:2], atol=1e-6 * max(1, np.abs(found).max()))


@given(angle=st.floats(-3, 3), scale=st.floats(0.1, 10), dx=coordinates, dy=coordinates)
@settings(max_examples=examples(100))
def test_similarity_recovers_what_made_the_points(angle: float, scale: float, dx: float, dy: float):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    made = LANDMARKS @ turn.T + [dx, dy]
    assert np.allclose(fit_similarity(LANDMARKS, made), np.column_stack([turn, [dx, dy]]), atol=1e-8)
    oracle = cv2.estimateAffinePartial2D(LANDMARKS, made, method=cv2.LMEDS)[0]
    assert np.allclose(fit_similarity(LANDMARKS, made), oracle, atol=1e-3 * max(1, scale))


@pytest.mark.parametrize("alignment", [FIVE_POINTS, FIVE_NARROW, DLIB, OPENFACE], ids=lambda a: a.recipe)
@pytest.mark.parametrize(("angle", "scale", "shift"), [(20, 1, (0, 0)), (-35, 1.3, (20, -10)), (0, 0.8, (30, 30))])
def test_a_turned_scaled_shifted_picture_gives_the_same_crop(picture, alignment, angle, scale, shift):
    size = SIZES.get(alignment.recipe, (96, 96))
    matrix = cv2.getRotationMatrix2D((125, 130), angle, scale)
    matrix[:, 2] += shift
    moved = cv2.warpAffine(picture, matrix, (400, 400), flags=cv2.INTER_CUBIC)
    there = LANDMARKS @ matrix[:, :2].T + matrix[:, 2]
    before = align(picture, None, LANDMARKS, alignment, size)
    after = align(moved, None, there, alignment, size)
    inside = align(np.full_like(moved, 255), None, there, alignment, size).min(axis=2) == 255
    assert before.shape == (*size, 3)
    assert np.abs(before.astype(int) - after)[8:-8, 8:-8][inside[8:-8, 8:-8]].mean() < 2


@pytest.mark.parametrize("alignment", [FIVE_POINTS, DLIB], ids=lambda a: a.recipe)
def test_landmarks_land_on_the_template(picture: np.ndarray, alignment: Alignment):
    template = _TEMPLATES[alignment.recipe][0]
    marked = np.zeros_like(picture)
    turn = 1.3 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    corners = np.round(template @ turn.T + [80, 40]).astype(int)
    for corner in corners.tolist():
        cv2.circle(marked, corner, 2, (255, 255, 255), cv2.FILLED)
    crop = align(marked, None, corners.astype(float), alignment, SIZES[alignment.recipe])
    for x, y in template:
        around = crop[round(y) - 5 : round(y) + 6, round(x) - 5 : round(x) + 6, 0].astype(float)
        rows, columns = np.mgrid[-5:6, -5:6]
        offset = [(around * columns).sum() / around.sum(), (around * rows).sum() / around.sum()]
        assert np.hypot(*offset) < 1


def test_twice_the_size_is_the_same_view(picture: np.ndarray):
    small = align(picture, None, LANDMARKS, FIVE_POINTS, (112, 112)).astype(int)
    large = align(picture, None, LANDMARKS, FIVE_POINTS, (224, 224))
    assert np.abs(large[::2, ::2] - small).mean() < 1


def test_dlibs_template_is_nearly_the_arcface_one_enlarged():
    arcface, dlib = (_TEMPLATES[name][0] for name in ("five-point-112", "five-point-150"))
    turned = fit_similarity(dlib, arcface)
    assert abs(np.degrees(np.arctan2(turned[1, 0], turned[0, 0]))) < 1
    assert np.abs(dlib @ turned[:, :2].T + turned[:, 2] - arcface).max() < 2  # pixels of 112


def test_openface_from_68_points_is_opencv_s_affine_of_its_three(picture: np.ndarray):
    points = np.random.default_rng(0).uniform(60, 190, (68, 2))
    points[[36, 45, 33]] = [[95, 110], [160, 112], [125, 145]]
    template = np.float32([[0.19415699, 0.1692669], [0.78885908, 0.15817115], [0.49495091, 0.51444132]]) * 96
    matrix = cv2.getAffineTransform(np.float32(points[[36, 45, 33]]), template)
    expected = cv2.warpAffine(picture, matrix, (96, 96))
    assert np.abs(align(picture, None, points, OPENFACE, (96, 96)).astype(int) - expected).max() <= 1


def test_margin_counts_original_pixels_for_davidsandberg_and_output_pixels_for_facenet_pytorch(picture):
    box = np.array([100.6, 90.2, 180.9, 200.7])
    assert crop_box(picture, box, Alignment("mtcnn-box-margin", 32), (160, 160)) == (84, 74, 196, 216)
    # facenet-pytorch: 40 * 80.3 / 120 / 2 = 13.38 a side, 40 * 110.5 / 120 / 2 = 18.42
    output = Alignment("mtcnn-box-output-margin", 40)
    assert crop_box(picture, box, output, (160, 160)) == (87, 71, 194, 219)
    assert crop_box(picture, np.array([-9.0, -9, 300, 260]), output, (160, 160)) == (0, 0, 250, 250)


def test_box_crops_are_the_resized_box(picture: np.ndarray):
    for recipe, interpolation in (("mtcnn-box-margin", cv2.INTER_LINEAR), ("mtcnn-box-output-margin", cv2.INTER_AREA)):
        expected = cv2.resize(picture[70:180, 80:170], (160, 160), interpolation=interpolation)
        assert np.array_equal(align(picture, BOX, None, Alignment(recipe), (160, 160)), expected)
    assert align(picture, None, None, Alignment("none"), (250, 250)).tolist() == picture.tolist()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (None, "four finite numbers"),
        (np.array([1.0, 2, 3]), "four finite numbers"),
        (np.array([np.nan, 2, 3, 4]), "four finite numbers"),
        (np.array([50.0, 50, 50, 90]), "x0 < x1"),
        (np.array([90.0, 50, 50, 90]), "x0 < x1"),
        (np.array([400.0, 400, 500, 500]), "inside the photo of 250x250"),
        (np.array([-90.0, 10, -40, 60]), "inside the photo"),
    ],
)
def test_boxes_that_hold_no_face_are_named(picture: np.ndarray, box: np.ndarray | None, message: str):
    with pytest.raises(FaceError, match=message):
        align(picture, box, None, Alignment("mtcnn-box-margin", 32), (160, 160))


@pytest.mark.parametrize("alignment", [FIVE_POINTS, DLIB, OPENFACE], ids=lambda a: a.recipe)
@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (None, "found none; use a detector"),
        (np.full((5, 2), np.nan), "found none; use a detector"),
        (np.where(np.eye(5, 2), np.inf, LANDMARKS), "finite"),
        (LANDMARKS[:3], r"shape \(3, 2\)"),
        (LANDMARKS.ravel(), r"shape \(10,\)"),
        (LANDMARKS + 300, "inside the photo"),
        (np.zeros((5, 2)), "distinct landmarks|not on one line"),  # what the reference MTCNN's file has for no face
        (np.full((5, 2), 100.0), "distinct landmarks|not on one line"),
    ],
)
def test_landmarks_that_are_no_face_are_named(picture, alignment, landmarks, message):
    size = SIZES.get(alignment.recipe, (96, 96))
    with pytest.raises(FaceError, match=message):
        align(picture, BOX, landmarks, alignment, size)


def test_eyes_and_nose_on_one_line_are_no_openface_crop(picture: np.ndarray):
    flat = LANDMARKS.copy()
    flat[2] = flat[:2].mean(axis=0)
    with pytest.raises(FaceError, match="one line"):
        align(picture, None, flat, OPENFACE, (96, 96))


@pytest.mark.parametrize("alignment", [FIVE_POINTS, FIVE_NARROW, DLIB, OPENFACE])
@pytest.mark.parametrize("at", [0, 20000, 39750])
def test_a_crop_of_a_photo_of_40000_pixels_a_side_is_the_one_of_its_surroundings(picture, alignment, at):
    wide = np.zeros((250, 40000, 3), np.uint8)
    wide[:, at : at + 250] = picture
    size = SIZES.get(alignment.recipe, (96, 96))
    for turned in (False, True):
        near, photo = (picture.transpose(1, 0, 2), wide.transpose(1, 0, 2)) if turned else (picture, wide)
        points = LANDMARKS[:, ::-1] if turned else LANDMARKS
        moved = points + np.array([0, at] if turned else [at, 0])
        expected = align(near, None, points, alignment, size)
        assert np.abs(align(photo, None, moved, alignment, size).astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("alignment", "size"),
    [
        (FIVE_POINTS, (112, 96)),
        (FIVE_NARROW, (112, 112)),
        (DLIB, (150, 140)),
        (FIVE_POINTS, (0, 0)),
        (Alignment("mtcnn-box-output-margin", 160), (160, 160)),
    ],
)
def test_sizes_that_do_not_fit_the_recipe_are_named(picture, alignment, size):
    with pytest.raises(InputError, match="size"):
        align(picture, BOX, LANDMARKS, alignment, size)
