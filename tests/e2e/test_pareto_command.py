"""`edgeface pareto` as a user types it: one JSON object, three files, and an exit code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import cv2
import pytest
from commands import edgeface
from extras import need_nncf
from tiny_net import skin_crops, write_tiny_net

from edgeface.cli import main

need_nncf()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return edgeface("pareto", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.xml, of seeded weights, photos/ to calibrate with, images/ of 16 people and pairs.txt: two folds."""
    made = tmp_path_factory.mktemp("pareto")
    write_tiny_net(made, provenance="seeded")
    (made / "photos").mkdir()
    crops = skin_crops(52)
    for number, crop in enumerate(crops[:20]):
        cv2.imwrite(str(made / "photos" / f"{number}.png"), crop)
    rows = []
    for person in range(16):
        name = f"P{person}"
        (made / "images" / name).mkdir(parents=True)
        for number in (1, 2):
            cv2.imwrite(str(made / "images" / name / f"{name}_{number:04d}.png"), crops[18 + 2 * person + number])
        rows += [f"{name}\t1\t2", f"{name}\t1\tP{person ^ 1}\t2"]
    (made / "pairs.txt").write_text("\n".join(["2\t8", *rows]) + "\n")
    return made


def arguments(folder: Path) -> list[object]:
    return [
        folder / "tiny.xml",
        *("--calibration", folder / "photos", "--images", folder / "images", "--pairs", folder / "pairs.txt"),
        "--crops",
    ]


@pytest.mark.slow
def test_precisions_are_compared_and_written(folder: Path) -> None:
    done = run(
        *arguments(folder), "--precision", "fp16", "--precision", "weights", "--rounds", 1, "--seconds", 0.05,
        "-o", folder / "out", "--json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["precision"] for row in answer["rows"]] == ["fp32", "fp16", "weights"]
    assert answer["optimal"] == [row["precision"] for row in answer["rows"] if row["optimal"]]
    assert json.loads((folder / "out" / "pareto.json").read_text()) == answer
    assert answer["provenance"] == "seeded"
    assert "SEEDED WEIGHTS" in done.stderr
    assert "SEEDED WEIGHTS" in (folder / "out" / "pareto.md").read_text()
    page = (folder / "out" / "pareto.html").read_text()
    assert "Seeded weights." in page
    assert "Published" not in page
    assert (folder / "out" / "weights" / "tiny.xml").is_file()


def test_a_compressed_ir_is_no_base_to_compare_with(folder: Path) -> None:
    given = arguments(folder)
    half = write_tiny_net(folder / "half", precision="FP16")

    done = run(half, *given[1:], "-o", folder / "none")

    assert done.returncode == 2
    assert "expected an IR of precision FP32" in done.stderr
    assert not (folder / "none").exists()


@pytest.mark.slow
def test_models_are_compared_as_they_are(folder: Path) -> None:
    other = write_tiny_net(folder / "other", seed=1)
    shared = ["--images", folder / "images", "--pairs", folder / "pairs.txt", "--crops", "-o", folder / "models"]

    done = run("--models", folder / "tiny.xml", "--models", other, *shared, "--rounds", 1, "--seconds", 0.05, "--json")

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [(row["model"], row["weights"]) for row in answer["rows"]] == [("tiny", "FP32")] * 2
    assert "2 models compared" in (folder / "models" / "pareto.html").read_text()
    assert sorted(path.name for path in (folder / "models").iterdir()) == ["pareto.html", "pareto.json", "pareto.md"]


def test_models_and_precisions_are_not_compared_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(each) for each in arguments(folder)]
    assert main(["pareto", *given, "-o", "none", "--models", given[0]]) == 2
    assert "leave MODEL, --calibration and --precision out" in capsys.readouterr().err
    assert main(["pareto", given[0], *given[3:], "-o", "none"]) == 2
    assert "expected MODEL and --calibration, to compare its precisions, or --models" in capsys.readouterr().err
