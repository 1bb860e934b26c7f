"""`edgeface quantize` as a user types it: one JSON object, an IR or none, and an exit code that says which."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from commands import edgeface
from extras import need_nncf
from tiny_net import skin_crops, write_tiny_net

from edgeface.model.contract import Alignment

need_nncf()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return edgeface("quantize", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """parent/tiny.xml, which takes faces with a margin of 32 pixels, and blotches/ with pictures of nobody."""
    made = tmp_path_factory.mktemp("quantize")
    write_tiny_net(made / "parent", alignment=Alignment("mtcnn-box-margin", 32))
    (made / "blotches").mkdir()
    for number, crop in enumerate(skin_crops(24)):
        cv2.imwrite(str(made / "blotches" / f"{number}.png"), crop)
    return made


def test_pictures_of_nobody_are_refused_with_exit_code_1_and_no_ir(folder: Path) -> None:
    done = run(folder / "parent" / "tiny.xml", "--calibration", folder / "blotches", "-o", folder / "out", "--json")

    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert answer["passed"] is False
    assert "a face in nearly every photo, but 24 of 24 have none" in answer["reasons"][0]
    assert "refused: calibration set" in done.stderr
    assert not (folder / "out").exists()


def test_a_pairs_list_without_its_images_is_wrong_use(folder: Path) -> None:
    done = run(
        folder / "parent" / "tiny.xml", "--calibration", folder / "blotches", "-o", folder / "out",
        "--validate", folder / "pairs.txt",
    )  # fmt: skip

    assert done.returncode == 2
    assert "needs the folder of its images; give it with --images" in done.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--recalibrate", "pairs.txt"], "give it with --images"),
        (["--recalibrate", "pairs.txt", "--images", "."], "pairs.txt"),
        (["--keep", "nowhere"], "the model has no operation nowhere"),
        (["-o", "/dev/null/out"], "cannot write /dev/null/out"),
        (["-o", "parent"], "would replace its parent"),
        (["--as", "mtcnn", "--validate", "lfw"], "leave --validate"),
    ],
)
def test_what_cannot_end_well_is_told_before_a_photograph_is_read(
    given: list[str], told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)

    done = run("parent/tiny.xml", "--calibration", "nowhere", "-o", "out", *given)

    assert done.returncode == 2
    assert told in done.stderr
    assert not (folder / "out").exists()


@pytest.mark.real
def test_photographs_make_an_ir_and_one_json_object(folder: Path, data: Path) -> None:
    photos = folder / "photos"
    photos.mkdir()
    for path in sorted((data / "lfw" / "calibration").iterdir())[:24]:
        (photos / path.name).symlink_to(path)

    # A program of its own: NNCF writes to the process' stdout, past Python's.
    given = [folder / "parent" / "tiny.xml", "--calibration", photos, "-o", folder / "made", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "edgeface", "quantize", *given], capture_output=True, text=True, timeout=280, check=False
    )

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)  # nothing of NNCF's bars and logs is in between
    assert answer["ir"] == str(folder / "made" / "tiny.xml")
    assert answer["calibration"]["crops"] + answer["calibration"]["held_out"] == 24
    assert {each["hint"] for each in answer["hints"]} == {"bf16", "f16"}
    assert all(each["available"] or "offers" in each["why_not"] for each in answer["hints"])
    assert answer["fidelity"]["min_cosine"] >= 0.97
    assert answer["contract_id"] != answer["parent_id"]
