"""`edgeface adopt --check`: a recipe is measured on photos before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import openvino as ov
import pytest
from rich.console import Console
from tiny_people import SIZE, red_network, write_people

from edgeface.cli import main
from edgeface.cli.convert import _check_table
from edgeface.evaluate.recipe_check import CandidateScore, RecipeCandidate, RecipeCheck, neighbours_of
from edgeface.model.contract import Alignment


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Adopt a network made for RGB and (x - 127.5) / 128, with --check; colour and scale are missing."""
    model = red_network(bgr_input=False)
    ov.save_model(model, tmp_path / "red.xml", compress_to_fp16=False)
    people = write_people(tmp_path / "people")
    recipe = ["--size", str(SIZE), "--mean", "127.5", "--alignment", "none", "--raw"]
    return ["adopt", str(tmp_path / "red.xml"), "-o", str(tmp_path / "out"), *recipe, "--check", str(people)]


def test_the_right_recipe_is_confirmed_with_its_figures(
    arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--color", "RGB", "--scale", "128", "--json"]) == 0
    check = json.loads(capfd.readouterr().out)["check"]
    assert check["verdict"] == "confirmed"
    assert [row["name"] for row in check["recipes"]][:2] == ["RGB, (x - 127.5) / 128, none", "BGR"]
    assert check["recipes"][1]["interval"][1] < 0


def test_a_recipe_that_loses_writes_nothing_unless_forced(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = [*arguments, "--color", "BGR", "--scale", "128"]
    assert main(wrong) == 1
    told = " ".join(capfd.readouterr().err.split())
    assert (
        "the recipe as told (BGR, (x - 127.5) / 128, none) clearly loses; of those tried the model does best with: RGB"
        in told
    )
    assert "--force" in told
    assert not list(tmp_path.glob("out/*"))
    assert main([*wrong, "--force"]) == 0
    assert "check: refused, overruled by --force" in capfd.readouterr().out
    assert (tmp_path / "out" / "red.xml").is_file()


def test_the_table_of_a_check_tells_all_recipes_apart_in_80_columns(capfd: pytest.CaptureFixture[str]) -> None:
    alignment = Alignment("five-point-112")
    told = RecipeCandidate(
        name="RGB, (x - 127.5) / 128, five-point-112",
        color="RGB",
        mean=(127.5, 127.5, 127.5),
        scale=(128.0, 128.0, 128.0),
        alignment=alignment,
    )
    scores = tuple(
        CandidateScore(
            candidate=each,
            genuine=0.5,
            impostor=-0.01,
            separation=0.51,
            auc=1.0,
            difference=-0.1,
            interval=(-0.2, 0.0),
            plausible=each is told,
        )
        for each in (told, *neighbours_of(told, (112, 112)))
    )
    Console(width=80).print(_check_table(RecipeCheck(scores=scores, people=3, photos=6)))
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("mtcnn")] == [
        "mtcnn-box-margin:0",
        "mtcnn-box-margin:32",
    ]
    assert sum("-0.1000 +- 0.1000" in line for line in lines) == len(scores) - 1
