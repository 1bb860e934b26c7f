"""`edgeface verify` where nothing can be verified: no face, no threshold, no picture. tests/real has people."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_ir import write_tiny_ir

from edgeface.cli import main
from edgeface.recognize import Metric, calibrate, save_thresholds
from edgeface.runtime import Embedder

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_tiny_ir(tmp_path)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.full((120, 160, 3), 90, np.uint8))
    return tmp_path


def verify(work: Path, *more: str, a: str = "a.png") -> int:
    return main(["verify", str(work / a), str(work / "b.png"), "--model", str(work / "tiny.xml"), *more])


def test_a_picture_without_a_face_exits_2_with_one_clear_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, size in ([], 20), (["--min-size", "1000"], 1000):
        assert verify(work, "--threshold", "0.5", *more) == 2
        assert capsys.readouterr().err.splitlines() == [
            f"edgeface: {work / 'a.png'}: expected a face, found none; use a photo with a larger or clearer face; "
            f"faces are looked for from {size} pixels on (--min-size; in Python min_size)"
        ]


@pytest.mark.parametrize("option", [("--detector", "mtcnn"), ("--min-size", "50"), ("--detector-model", "x.onnx")])
def test_crops_and_a_detector_contradict_each_other(
    work: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    assert verify(work, "--threshold", "0.5", "--crops", *option) == 2
    assert "expected --crops (aligned already) or a detector" in capsys.readouterr().err


def test_a_model_without_a_threshold_exits_3_and_says_how_to_calibrate(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(work, "--json") == 3
    captured = capsys.readouterr()
    assert "edgeface calibrate PEOPLE --model" in captured.err
    assert json.loads(captured.out)["error"]["kind"] == "MissingError"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threshold", "1.5"], "a cosine similarity from -1 to 1"),
        (["--threshold", "0.5", "--far", "0.01"], "leave one out"),
        (["--threshold", "nowhere.json"], "nowhere.json: expected a file written by 'edgeface calibrate'"),
        (["--threshold", "nan"], "a cosine similarity from -1 to 1"),
        (["--threshold", "known.json", "--far", "0"], "far: expected a rate above 0 and below 1, found 0"),
    ],
)
def test_a_threshold_that_makes_no_sense_exits_2(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    with Embedder.load(work / "tiny.xml") as embedder:
        contract_id = embedder.contract.contract_id
    scores = np.linspace(0, 1, 50)
    known = calibrate(scores, scores, fars=[0.1], contract_id=contract_id, metric=Metric.cosine)
    save_thresholds(work / "known.json", known)
    monkeypatch.chdir(work)
    assert verify(work, *options) == 2
    assert words in capsys.readouterr().err


def test_a_picture_that_is_not_there_exits_2(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(work, "--threshold", "0.5", a="absent.png") == 2
    assert "absent.png: expected a photo, found no such file" in capsys.readouterr().err
