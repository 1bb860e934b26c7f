"""How well two detectors agree, on faces that were moved by a known way."""

from __future__ import annotations

import numpy as np
import pytest

from edgeface.errors import InputError
from edgeface.quantize.detectors import DetectorOutcome, judge_agreement, measure_agreement
from edgeface.vision.detector import Faces


def faces(*corners: tuple[float, float], side: float = 100.0, shift: float = 0.0) -> Faces:
    low = np.array(corners, np.float32).reshape(-1, 2) + shift
    landmarks = low[:, None] + np.linspace(20, 80, 10).reshape(5, 2)
    boxes = np.concatenate([low, low + side], axis=1)
    return Faces(
        boxes.astype(np.float32), landmarks.astype(np.float32), np.linspace(1, 0.9, len(low), dtype=np.float32)
    )


def test_the_same_faces_in_another_order_agree() -> None:
    before, after = faces((0, 0), (300, 0)), faces((300, 0), (0, 0))
    found = measure_agreement([before], [after])

    assert (found.recall, found.precision, found.median_iou) == (1, 1, 1)
    assert found.landmark_pixels == 0
    assert judge_agreement(found) == ()


def test_a_shift_is_told_in_pixels_and_in_sides() -> None:
    found = measure_agreement([faces((0, 0))], [faces((0, 0), shift=3)])

    overlap = 97**2
    assert found.median_iou == pytest.approx(overlap / (2 * 100**2 - overlap))
    assert found.landmark_pixels == pytest.approx(3 * 2**0.5, rel=1e-5)
    assert found.landmark_sides == pytest.approx(0.03 * 2**0.5, rel=1e-5)
    assert any("landmarks" in reason for reason in judge_agreement(found))


def test_lost_and_invented_faces_count_against_recall_and_precision() -> None:
    found = measure_agreement([faces((0, 0), (300, 0)), faces()], [faces((0, 0)), faces((5, 5), (400, 0))])

    assert found.recall == pytest.approx(1 / 2)
    assert found.precision == pytest.approx(1 / 3)
    assert len(judge_agreement(found)) == 2


def test_a_face_is_matched_once() -> None:
    found = measure_agreement([faces((0, 0))], [faces((0, 0), (2, 2))])

    assert (found.recall, found.precision) == (1, 1 / 2)
    assert found.median_iou == 1


def test_landmarks_that_no_detector_finds_are_not_judged() -> None:
    blind = Faces(faces((0, 0)).boxes, np.full((1, 5, 2), np.nan, np.float32), np.ones(1, np.float32))
    found = measure_agreement([blind], [blind])

    assert np.isnan(found.landmark_pixels)
    assert found.to_dict()["landmark_pixels"] is None
    assert judge_agreement(found) == ()


def test_nothing_to_compare_on_is_wrong_use() -> None:
    with pytest.raises(InputError, match="photos with faces"):
        measure_agreement([faces()], [faces()])


@pytest.mark.parametrize("reasons", [(), ("recall: expected more",)])
def test_an_outcome_is_true_only_if_the_networks_were_written(reasons: tuple[str, ...]) -> None:
    outcome = DetectorOutcome(name="mtcnn", settings="", reasons=reasons)

    assert bool(outcome) is outcome.to_dict()["passed"] is (not reasons)
