"""The rates of ISO/IEC 30107-3, counted on presentations whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from minifasnet_files import MiddleDetector, frame, write_liveness_ir
from scipy.stats import binomtest

from edgeface.errors import InputError
from edgeface.evaluate import LivenessEvaluation, evaluate_liveness, write_results
from edgeface.vision.liveness import LivenessChecker, LivenessLimits, load_liveness
from edgeface.vision.quality import QualityGate

GREEN, BLUE, RED, DARK, NO_FACE = (40, 200, 40), (200, 40, 40), (40, 40, 200), (10, 40, 10), (0, 0, 0)
PRESENTATIONS = {
    "live": [GREEN] * 4 + [RED] + [DARK] * 2 + [NO_FACE],
    "print": [BLUE] * 3 + [GREEN],
    "screen": [RED] * 2 + [DARK],
    "mask": [DARK],
}


@pytest.fixture
def checker(tmp_path: Path) -> Iterator[LivenessChecker]:
    limits = LivenessLimits(quality=QualityGate(min_contrast=0, max_covered=5, min_sharpness=0))
    with load_liveness(write_liveness_ir(tmp_path / "model"), limits=limits) as loaded:
        yield loaded


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Photos of known answers: the tiny model takes green for live; a dark frame is inconclusive."""
    for name, colors in PRESENTATIONS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index, color in enumerate(colors):
            cv2.imwrite(str(tmp_path / "photos" / name / f"{index}.png"), frame(color, seed=index))
    return tmp_path / "photos"


def evaluate(images: Path, checker: LivenessChecker) -> LivenessEvaluation:
    return evaluate_liveness(images, checker, MiddleDetector())  # type: ignore[arg-type]


def test_every_species_has_its_own_rate_and_what_has_no_answer_is_counted_apart(
    images: Path, checker: LivenessChecker
) -> None:
    answer = evaluate(images, checker).to_dict()

    live = answer["bona_fide"]
    assert [live[name] for name in ("presentations", "live", "spoof", "inconclusive", "no_face")] == [8, 4, 1, 2, 1]
    assert (live["bpcer"], live["bpnrr"]) == (1 / 5, 3 / 8)
    attacks = {each["name"]: each for each in answer["attacks"]}
    assert (attacks["print"]["apcer"], attacks["print"]["apnrr"]) == (1 / 4, 0)
    assert (attacks["screen"]["apcer"], attacks["screen"]["apnrr"]) == (0, 1 / 3)
    assert (attacks["mask"]["apcer"], attacks["mask"]["apnrr"]) == (None, 1)
    assert answer["worst_species"] == {"name": "print", "apcer": 1 / 4}
    assert "accuracy" not in json.dumps(answer).lower()
    exact = binomtest(1, 4).proportion_ci(method="exact")
    assert attacks["print"]["apcer_interval"] == pytest.approx([exact.low, exact.high])


def test_another_threshold_counts_the_same_scores_again(images: Path, checker: LivenessChecker) -> None:
    result = evaluate(images, checker)
    points = {each["threshold"]: each for each in result.to_dict()["operating_points"]}

    for threshold, point in points.items():
        assert point["bpcer"] == pytest.approx(np.mean(result.bona_fide.scores <= threshold))
        rates = [np.mean(each.scores > threshold) for each in result.attacks if len(each.scores)]
        assert point["apcer"] == pytest.approx(max(rates))
    assert 0.5 in points


def test_the_report_is_one_page_with_every_species(images: Path, checker: LivenessChecker, tmp_path: Path) -> None:
    (images / "live" / "broken.png").write_bytes((images / "live" / "0.png").read_bytes()[:100])
    (images / "loose.png").write_bytes((images / "live" / "0.png").read_bytes())
    result = evaluate(images, checker)
    write_results(result, tmp_path / "out")

    assert sorted(path.name for path in result.unread) == ["broken.png", "loose.png"]
    assert json.loads((tmp_path / "out" / "liveness.json").read_text()) == result.to_dict()
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in ("print", "screen", "mask"))
    assert "http" not in page.replace("http-equiv", "")
    assert "accuracy" not in page.lower()


@pytest.mark.slow
def test_a_report_of_nothing_but_silence_can_be_written(checker: LivenessChecker, images: Path, tmp_path: Path) -> None:
    for folder in images.iterdir():
        for photo in folder.iterdir():
            cv2.imwrite(str(photo), frame(DARK))
    result = evaluate(images, checker)
    write_results(result, tmp_path / "out")
    assert result.to_dict()["bona_fide"]["bpcer"] is None
    assert result.to_dict()["worst_species"] is None


def test_a_folder_without_live_faces_is_refused(images: Path, checker: LivenessChecker) -> None:
    (images / "live").rename(images / "real")
    with pytest.raises(InputError, match="expected a folder 'live' of live faces"):
        evaluate(images, checker)


@pytest.mark.parametrize("name", ["Live", "LIVE", "live ", "_live", "\uff4c\uff49\uff56\uff45", "Print"])
def test_folders_that_differ_in_their_letters_only_are_refused(
    images: Path, checker: LivenessChecker, name: str
) -> None:
    (images / "print").mkdir(exist_ok=True)
    (images / name).mkdir()
    with pytest.raises(InputError, match=r"another name than that of '(live|print|Print)' in other letters, found"):
        evaluate(images, checker)
    (images / name).rename(images / "live mask")
    assert "live mask" in {each.name for each in evaluate(images, checker).attacks}
