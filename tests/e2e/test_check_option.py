"""`edgeface adopt --check`: a recipe is measured on photos before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import openvino as ov
import pytest
from tiny_people import SIZE, red_network, write_people

from edgeface.cli import main


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
        "the recipe as told (BGR, (x - 127.5) / 128, none) clearly loses; of those tried the model was made for: RGB"
        in told
    )
    assert "--force" in told
    assert not list(tmp_path.glob("out/*"))
    assert main([*wrong, "--force"]) == 0
    assert "refused" in capfd.readouterr().out
    assert (tmp_path / "out" / "red.xml").is_file()
