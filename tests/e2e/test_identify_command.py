"""`edgeface identify` on crops of plain colours, which a tiny model takes for people."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_ir import TINY_SIZE, tiny_crop, write_tiny_ir

from edgeface.cli import main
from edgeface.cli.identify import _describe
from edgeface.cli.output import print_model
from edgeface.cli.words import identified_lines, search_words
from edgeface.pipeline.observation import Face
from edgeface.recognize.identify import Identification, Verdict
from edgeface.recognize.index import PersonRule
from edgeface.recognize.open_set import SearchThreshold
from edgeface.runtime import Embedder
from edgeface.vision.detector import FoundBy

pytestmark = pytest.mark.timeout(120)

COLOURS = {"Blue": (220, 30, 30), "Green": (30, 220, 30), "Teal": (200, 200, 30), "Gray": (120, 120, 120)}


def draw(path: Path, colour: tuple[int, int, int], seed: int) -> Path:
    noise = np.random.default_rng(seed).normal(0, 4, (TINY_SIZE, TINY_SIZE, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), tiny_crop(np.array(colour) + noise))
    return path


@pytest.fixture
def work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A gallery of Blue and Green, and pictures to ask about."""
    model = write_tiny_ir(tmp_path)
    gallery = tmp_path / "people.gallery"
    for name in ("Blue", "Green"):
        draw(tmp_path / "enrolled" / name / "1.png", COLOURS[name], 0)
    for seed, (name, colour) in enumerate(COLOURS.items(), start=1):
        draw(tmp_path / "asked" / f"{name}.png", colour, seed)
    assert main(["gallery", "create", str(gallery), "--model", str(model), "--unencrypted"]) == 0
    enrol = [
        "gallery",
        "enrol",
        gallery,
        tmp_path / "enrolled",
        "--model",
        model,
        "--crops",
        "--threshold",
        "0.99",
        "--no-gate",
    ]
    assert main([str(word) for word in enrol]) == 0
    capsys.readouterr()
    return tmp_path


def identify(work: Path, *more: str | Path, asked: str = "asked") -> int:
    given = ["identify", work / asked, "--gallery", work / "people.gallery", "--model", work / "tiny.xml", "--crops"]
    return main([str(word) for word in [*given, "--no-gate", *more]])


def test_each_face_is_accepted_unknown_or_inconclusive(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert identify(work, "--threshold", "0.75", "--margin", "0.2", "--json") == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    found = {Path(each["path"]).stem: each["faces"][0] for each in answer["images"]}
    assert {name: face["verdict"] for name, face in found.items()} == {
        "Blue": "accepted",
        "Green": "accepted",
        "Gray": "unknown",  # 0.73 from both
        "Teal": "inconclusive",  # between Blue and Green
    }
    assert (found["Blue"]["person"], found["Blue"]["runner_up"]) == ("Blue", "Green")
    assert (answer["recognised"], answer["templates"], answer["fpir"]) == (2, 2, None)
    assert answer["model"] == "tiny"
    assert "never measured" in " ".join(captured.err.split())
    assert identify(work, "--threshold", "0.75", "--margin", "0.2", asked="asked/Teal.png") == 1
    assert "inconclusive, the lead is under --margin 0.2; take another photo" in capsys.readouterr().out
    assert identify(work, "--threshold", "0.75", asked="asked/Teal.png") == 0  # no margin unless it is asked for


def test_an_answer_names_the_precision_that_computed_unless_it_is_fp32_throughout(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Embedder.load(work / "tiny.xml") as embedder:
        contract, executed = embedder.contract, embedder.execution.precision
    assert identify(work, "--threshold", "0.75", "--json") == 0
    assert json.loads(capsys.readouterr().out)["precision"] == executed
    assert identify(work, "--threshold", "0.75") == 0
    told = f"model: tiny ({contract.contract_id})"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (told if executed == "f32" else f"{told}, FP32 weights, computed in {executed}")
    for weights, precision, words in (
        ("FP32", "f32", ""),
        ("FP32", "bf16", ", FP32 weights, computed in bf16"),
        ("FP16", "f32", ", FP16 weights, computed in f32"),
        ("FP32", None, ", FP32 weights, computed as its server or device does"),
    ):
        print_model(replace(contract, precision=weights), precision, FoundBy())
        assert capsys.readouterr().out.partition(")")[2] == f"{words}\n"


def test_people_read_names_and_the_exit_code_says_whether_anybody_was_known(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert identify(work, "--threshold", "0.75", asked="asked/Blue.png") == 0
    assert "Blue (1.0000, next Green" in " ".join(capsys.readouterr().out.split())
    assert identify(work, "--threshold", "0.75", asked="asked/Gray.png") == 1
    assert "unknown (0.7" in " ".join(capsys.readouterr().out.split())


def test_a_face_whose_person_is_another_face_is_not_reported_as_of_an_empty_gallery(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Identification(
        verdict=Verdict.unknown,
        score=0.9,
        taken=True,
        threshold=SearchThreshold.by_hand(0.75, contract_id="0" * 16, gallery_size=1),
        rule=PersonRule(),
        face=Face(box=np.zeros(4, np.float32), landmarks=np.zeros((5, 2), np.float32), score=1.0, quality=None),
    )
    (_, line) = identified_lines("two.jpg", [_describe(answer)], margin=0.0)
    assert line.endswith(": unknown (0.9000, of a person who is another face in this photo)")
    (work / "people.gallery").unlink()
    model = work / "tiny.xml"
    assert main(["gallery", "create", str(work / "people.gallery"), "--model", str(model), "--unencrypted"]) == 0
    assert identify(work, "--threshold", "0.75", asked="asked/Blue.png") == 1
    assert "unknown (nobody is enrolled)" in " ".join(capsys.readouterr().out.split())


def test_a_broken_picture_is_listed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "asked" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert identify(work, "--threshold", "0.75", "--json") == 0
    assert [Path(each["path"]).name for each in json.loads(capsys.readouterr().out)["failures"]] == ["broken.png"]
    assert identify(work, "--threshold", "0.75", "--strict") == 1


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ((), 3, "no threshold is known for its contract"),
        (("--threshold", "0.7", "--rule", "min"), 2, "expected max or mean-of-best-N"),
        (("--threshold", "1.7"), 2, "from -1 to 1"),
        (("--threshold", "0.7", "--fpir", "0.001"), 2, "leave one out"),
    ],
)
def test_what_cannot_be_decided_by_is_refused(
    more: tuple[str, ...], code: int, words: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert identify(work, *more) == code
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_gallery_of_another_model_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_ir(work, source="b")
    assert identify(work, "--threshold", "0.7") == 2
    assert "contract" in capsys.readouterr().err


def test_the_threshold_is_said_with_its_rate_and_what_it_costs() -> None:
    limit = {"threshold": 0.5, "templates": 1559, "fpir": 0.01, "measured_on": "LFW", "expected_fnir": 0.364}
    words = "threshold: cosine > 0.5000, FPIR 0.01 on LFW, 1,559 templates"
    assert search_words(limit) == f"{words}, where 36.4% of photos of enrolled people are missed"
    assert search_words(limit | {"expected_fnir": None}) == words
    by_hand = limit | {"fpir": None, "measured_on": "", "expected_fnir": None, "templates": 1}
    assert search_words(by_hand) == "threshold: cosine > 0.5000, by hand, 1 template"
