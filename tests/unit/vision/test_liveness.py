"""Where liveness crops are cut, what makes an answer inconclusive, and what several frames decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minifasnet_files import faces_at, frame, write_liveness_ir

from edgeface.errors import ContractError, EngineClosed, FaceError, InputError, ModelFormatError
from edgeface.vision.detector import Faces
from edgeface.vision.liveness import Liveness, LivenessChecker, LivenessLimits, crop_region, load_liveness
from edgeface.vision.liveness_track import Challenge, decide_track
from edgeface.vision.quality import _FACE_MODEL, QualityGate


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [
        write_liveness_ir(tmp_path / "a", name="near", crop_scale=2.0),
        write_liveness_ir(tmp_path / "b", name="far", crop_scale=4.0),
    ]


@pytest.fixture
def checker(models: list[Path]) -> Iterator[LivenessChecker]:
    limits = LivenessLimits(quality=QualityGate(min_box_side=64, max_covered=5, min_sharpness=0, min_contrast=0))
    with load_liveness(models, limits=limits) as loaded:
        yield loaded


def exact_region(box: list[Fraction], height: int, width: int, scale: Fraction) -> tuple[int, int, int, int, Fraction]:
    """The same place by another way, in exact numbers: the nearest centre at which the crop fits."""
    x0, y0, x1, y1 = box
    scale = min(scale, (height - 1) / (y1 - y0), (width - 1) / (x1 - x0))
    ends = []
    for low, high, last in ((y0, y1, height - 1), (x0, x1, width - 1)):
        half = (high - low) * scale / 2
        centre = min(max((low + high) / 2, half), last - half)
        ends += [centre - half, centre + half]
    top, bottom, left, right = (int(each) for each in ends)
    return top, bottom + 1, left, right + 1, scale


@given(
    st.integers(2, 2000), st.integers(2, 2000), st.integers(-500, 2000), st.integers(-500, 2000),
    st.integers(1, 1500), st.integers(1, 1500), st.sampled_from([1.0, 2.0, 2.5, 4.0]),
)  # fmt: skip
def test_a_crop_lies_inside_the_frame_at_the_nearest_place_where_it_fits(
    height: int, width: int, x: int, y: int, w: int, h: int, scale: float
) -> None:
    (rows, columns), found = crop_region(np.array([x, y, x + w, y + h], np.float64), (height, width), scale)

    assert 0 <= rows.start < rows.stop <= height
    assert 0 <= columns.start < columns.stop <= width
    box = [Fraction(each) for each in (x, y, x + w, y + h)]
    top, bottom, left, right, expected = exact_region(box, height, width, Fraction(scale))
    assert found == pytest.approx(float(expected))
    ends = np.array([rows.start, rows.stop, columns.start, columns.stop])
    assert np.abs(ends - [top, bottom, left, right]).max() <= 1  # an end within rounding of a whole pixel
    assert rows.stop - rows.start == pytest.approx(h * found, abs=2)  # shifted, never clipped
    assert columns.stop - columns.start == pytest.approx(w * found, abs=2)


def test_a_crop_in_the_middle_is_centred_and_one_at_the_edge_keeps_its_size() -> None:
    middle, _ = crop_region(np.array([300, 200, 340, 240]), (480, 640), 3.0)
    edge, _ = crop_region(np.array([600, 0, 640, 40]), (480, 640), 3.0)

    assert middle == (slice(160, 281), slice(260, 381))
    assert edge == (slice(0, 121), slice(519, 640))


@pytest.mark.parametrize("box", [(0, 0, 0, 10), (10, 0, 0, 10), (0, 0, np.nan, 10), (0, 0, np.inf, 10)])
def test_a_box_without_an_area_has_no_crop(box: tuple[float, ...]) -> None:
    with pytest.raises(FaceError, match="expected a box with an area"):
        crop_region(np.array(box), (100, 100), 2.0)


def test_each_model_gets_its_own_crop_in_raw_bgr_and_the_scores_are_the_mean(checker: LivenessChecker) -> None:
    image = frame((200, 40, 40))
    image[140:341, 220:421] = (40, 200, 40)  # what a crop of 2 sides shows; all else is blue
    scores = checker.score(image, np.array([[270, 190, 370, 290]]))

    assert scores.shape == (1, 2, 3)
    for model, region in ((0, image[140:341, 220:421]), (1, image[40:441, 120:521])):
        crop = cv2.resize(region, (8, 8), interpolation=cv2.INTER_LINEAR).astype(np.float64)
        powers = np.exp(crop.mean(axis=(0, 1)) / 25)
        assert scores[0, model] == pytest.approx(powers / powers.sum(), abs=1e-4)
    answer = checker.check(image, faces_at((270, 190, 370, 290)))[0]
    assert answer.scores == pytest.approx(dict(zip(checker.classes, scores[0].mean(axis=0).tolist(), strict=True)))
    assert answer.score == answer.scores["live"]


@pytest.mark.parametrize(
    ("color", "verdict"), [((40, 200, 40), "live"), ((200, 40, 40), "spoof"), ((40, 40, 200), "spoof")]
)
def test_the_class_with_the_score_decides(checker: LivenessChecker, color: Any, verdict: str) -> None:
    (answer,) = checker.check(frame(color), faces_at((270, 190, 370, 290)))

    assert (answer.verdict, bool(answer), answer.reasons) == (verdict, verdict == "live", ())
    assert answer.contract_ids == tuple(each.contract_id for each in checker.contracts)
    assert answer.to_dict()["verdict"] == verdict


@pytest.mark.parametrize(
    ("image", "box", "reason"),
    [
        (frame(), (170, 40, 470, 440), "too large for the frame"),
        (frame(), (300, 200, 350, 250), "box side"),
        (frame((10, 40, 10)), (270, 190, 370, 290), "brightness"),
        (frame(), (-30, 190, 70, 290), "inside"),
        (frame(), (700, 190, 800, 290), "box: expected a face inside"),
    ],
    ids=["large", "small", "dark", "cut off", "outside"],
)
def test_what_cannot_be_judged_is_never_live(checker: LivenessChecker, image: Any, box: Any, reason: str) -> None:
    (answer,) = checker.check(image, faces_at(box))

    assert (answer.verdict, bool(answer)) == ("inconclusive", False)
    assert reason in "; ".join(answer.reasons)


def test_a_turned_face_and_one_without_landmarks_are_never_live(checker: LivenessChecker) -> None:
    turned = faces_at((270, 190, 370, 290))
    turned.landmarks[0, :, 0] = 290 + (turned.landmarks[0, :, 0] - 320) * 0.3
    turned.landmarks[0, 2, 0] = 320

    (answer,) = checker.check(frame(), turned)
    assert answer.verdict == "inconclusive"
    assert "turn the face to the camera" in "; ".join(answer.reasons)
    (answer,) = checker.check(frame(), faces_at((270, 190, 370, 290), landmarks=False))
    assert answer.verdict == "inconclusive"
    assert "use a detector that finds them" in answer.reasons[-1]


def test_faces_keep_their_order_beside_one_that_cannot_be_scored(checker: LivenessChecker) -> None:
    good, outside = (270, 190, 370, 290), (700, 190, 800, 290)
    found = [each.verdict for each in checker.check(frame(), faces_at(outside, good, outside))]
    assert found == ["inconclusive", "live", "inconclusive"]
    assert checker.check(frame(), Faces.empty()) == []


@pytest.mark.parametrize("image", [frame().astype(np.float32) / 255, frame()[:, :, 0], frame()[None]])
def test_an_image_of_another_form_is_refused(checker: LivenessChecker, image: Any) -> None:
    with pytest.raises(InputError, match="uint8 BGR"):
        checker.check(image, faces_at((270, 190, 370, 290)))


def test_models_are_checked_before_they_judge(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected different models"):
        load_liveness([models[0], models[0]])
    with pytest.raises(InputError, match="expected different models"):
        load_liveness([])
    for threshold in (0.3, 1.0, float("nan")):
        with pytest.raises(InputError, match="threshold"):
            load_liveness(models, threshold=threshold)
    other = write_liveness_ir(tmp_path / "c", name="other", classes=("live", "flat", "other"))
    with pytest.raises(ContractError, match="the same classes"):
        load_liveness([models[0], other])
    weights = models[1].with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelFormatError, match="damaged"):
        load_liveness(models)


def test_a_closed_checker_says_so(models: list[Path]) -> None:
    checker = load_liveness(models[0].parent)
    checker.close()
    checker.close()
    with pytest.raises(EngineClosed):
        checker.check(frame(), faces_at((270, 190, 370, 290)))


def answer(score: float, *reasons: str) -> Liveness:
    verdict: Any = "inconclusive" if reasons else "live" if score > 0.5 else "spoof"
    return Liveness(
        verdict=verdict, score=score, threshold=0.5, scores={}, reasons=tuple(reasons), contract_ids=("0" * 16,)
    )


def test_a_track_rests_on_its_conclusive_frames() -> None:
    dark = answer(1.0, "brightness: too dark")
    found = decide_track([answer(0.9), dark, answer(0.8), dark, answer(0.4)])

    assert (found.verdict, found.frames, found.conclusive, found.spoofs) == ("live", 5, 3, 1)
    assert found.score == pytest.approx(0.7)  # the dark ones do not count
    assert decide_track([answer(0.9), answer(0.9), dark]).reasons == (
        "expected at least 3 conclusive frames, found 2 of 3", "brightness: too dark",
    )  # fmt: skip
    assert decide_track([dark] * 9).verdict == "inconclusive"
    assert not decide_track([dark] * 9)


def test_one_lucky_frame_does_not_open_and_one_great_score_does_not_outvote_spoofs() -> None:
    assert decide_track([answer(0.99), answer(0.01), answer(0.02), answer(0.03)]).verdict == "spoof"
    assert decide_track([answer(1.0), answer(0.45), answer(0.45)]).verdict == "spoof"  # the mean is above
    with pytest.raises(InputError, match="one set of models"):
        decide_track([answer(0.9), dataclasses.replace(answer(0.9), threshold=0.6)])
    with pytest.raises(InputError, match="found 0 results"):
        decide_track([])


def head(yaw: float = 0.0, pitch: float = 0.0) -> Any:
    """Five landmarks of the mean face, turned by degrees: to the person's left, and down."""
    a, b = np.radians([yaw, pitch])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    return (_FACE_MODEL @ (turn @ nod).T)[:, :2] * 60 + 200


def watch(challenge: Challenge, poses: list[tuple[float, float]]) -> str:
    for index, (yaw, pitch) in enumerate(poses):
        challenge.update(head(yaw, pitch), index / 10)
    return challenge.progress.state


STILL = [(0.0, 0.0)] * 4
LEFT, RIGHT = ([(sign * each, 0.0) for each in (10, 20, 30, 35, 20, 8, 0)] for sign in (1.0, -1.0))
DOWN = [(0.0, float(each)) for each in (6, 14, 22, 18, 9, 2)]


@pytest.mark.parametrize(("movement", "poses"), [("turn-left", LEFT), ("turn-right", RIGHT), ("nod", DOWN)])
def test_a_movement_that_was_asked_for_passes_and_no_other(movement: Any, poses: list[tuple[float, float]]) -> None:
    assert watch(Challenge(movement), STILL + poses) == "passed"
    others = [each for each in (LEFT, RIGHT, DOWN) if each is not poses]
    assert "passed" not in {watch(Challenge(movement), STILL + each) for each in others}
    assert watch(Challenge(movement), STILL * 5) == "move"
    assert watch(Challenge(movement), STILL + poses[:4]) == "return"


def test_a_flat_photo_that_is_turned_or_tilted_does_not_pass() -> None:
    for movement in ("turn-left", "turn-right", "nod"):
        challenge = Challenge(movement)
        for index, degrees in enumerate([0, 0, 0, 0, 10, 20, 30, 40, 50, 40, 30, 20, 10, 0] * 2):
            narrowed = head().copy()
            narrowed[:, index // 14] *= np.cos(np.radians(degrees))  # about an axis upright, then across
            challenge.update(narrowed, index / 10)
        assert not challenge.progress, movement


def test_a_jump_a_lost_face_and_a_late_movement_fail() -> None:
    jump = Challenge("turn-left")
    assert watch(jump, [*STILL, (40, 0)]) == "failed"
    assert "jumps" in jump.progress.reason
    lost = Challenge("nod")
    assert lost.update(np.full((5, 2), np.nan), 0.0).state == "failed"
    late = Challenge("nod", seconds=2)
    assert watch(late, STILL * 6) == "failed"
    assert "within 2 s" in late.progress.reason
    assert late.update(head(), 99).state == "failed"  # final
    with pytest.raises(InputError, match="found 'blink'"):
        Challenge("blink")  # type: ignore[arg-type]
    assert {Challenge().progress.movement for _ in range(100)} == {"turn-left", "turn-right", "nod"}
