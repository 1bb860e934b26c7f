"""A bad calibration set is told from a good one, with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_net import skin_crops

from edgeface.quantize.calibration import CalibrationSet, find_flaws, looks_empty, looks_swapped
from edgeface.vision.detector import Faces


def a_set(crops: np.ndarray, **more: object) -> CalibrationSet:
    half = len(crops) // 2
    return CalibrationSet(
        crops=crops[:half],
        held_out=crops[half:],
        names=tuple(map(str, range(len(crops)))),
        **more,  # type: ignore[arg-type]
    )


class Blind:
    """A detector that finds no face."""

    name = "blind"

    def detect(self, images: list[np.ndarray]) -> list[Faces]:
        return [Faces.empty()] * len(images)


def test_a_good_set_has_no_flaw() -> None:
    assert find_flaws(a_set(skin_crops(40))) == ()


@pytest.mark.parametrize("count", [3, 10, 300])
def test_exchanged_colours_are_told_in_sets_of_any_size(count: int) -> None:
    (flaw,) = find_flaws(a_set(skin_crops(count)[..., ::-1]))

    assert flaw.count == flaw.of == count
    assert "red and blue were exchanged" in flaw.reason


def test_a_quarter_of_exchanged_pictures_is_enough() -> None:
    crops = skin_crops(80)
    crops[:20] = crops[:20, ..., ::-1]

    (flaw,) = find_flaws(a_set(crops))
    assert (flaw.count, flaw.of) == (20, 80)


def test_gray_pictures_tell_nothing_of_colours_and_are_no_flaw() -> None:
    gray = skin_crops(40).mean(axis=3, keepdims=True).astype(np.uint8).repeat(3, axis=3)

    colored, swapped = looks_swapped(gray)
    assert not colored.any()
    assert not swapped.any()
    assert find_flaws(a_set(gray)) == ()


@pytest.mark.parametrize("value", [0, 255, 120])
def test_black_white_and_flat_pictures_are_told(value: int) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (30, 16, 16, 3))
    crops = (value + noise).clip(0, 255).astype(np.uint8)

    assert looks_empty(crops).all()
    assert any("without contrast" in flaw.reason for flaw in find_flaws(a_set(crops)))


def test_photographs_without_faces_are_told() -> None:
    missing = tuple(f"{number}.jpg" for number in range(15))

    (flaw,) = find_flaws(a_set(skin_crops(40), without_face=missing))
    assert (flaw.count, flaw.of) == (15, 55)
    assert "a face in nearly every photo" in flaw.reason


def test_a_set_of_nothing_but_missing_faces_is_told() -> None:
    missing = tuple(map(str, range(12)))

    (flaw,) = find_flaws(a_set(skin_crops(0), without_face=missing))
    assert (flaw.count, flaw.of) == (12, 12)


def test_crops_are_looked_at_by_a_detector_if_there_is_one() -> None:
    crops = a_set(skin_crops(20), detected=False)

    assert find_flaws(crops) == ()
    (flaw,) = find_flaws(crops, detector=Blind())  # type: ignore[arg-type]
    assert (flaw.count, flaw.of) == (20, 20)


def test_one_picture_again_and_again_is_told() -> None:
    crops = skin_crops(1).repeat(30, axis=0)

    assert any("repeat others" in flaw.reason for flaw in find_flaws(a_set(crops)))


def test_a_share_at_the_limit_is_refused_by_chance_less_than_once_in_two_hundred() -> None:
    # 5 % exchanged is the limit: by the binomial distribution, of sets of 60 fewer than 0.5 % are refused.
    rng = np.random.default_rng(0)
    pool, refused = skin_crops(60), 0
    for _ in range(400):
        crops = pool.copy()
        wrong = rng.random(60) < 0.05
        crops[wrong] = crops[wrong][..., ::-1]
        refused += bool(find_flaws(a_set(crops)))
    assert refused <= 6  # P(more | 0.5 %) = 0.5 %
