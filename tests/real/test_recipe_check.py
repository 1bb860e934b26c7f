"""`--check` on the real FaceNet and photos of LFW: the true recipe holds, wrong ones are refused and named."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeface.convert import convert
from edgeface.convert.recipe import RecipeParts
from edgeface.errors import NegativeResult
from edgeface.evaluate import RecipeCheck, check_recipe
from edgeface.vision.load import load_detector

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

FACENET = "facenet-20180408-102900"


def draw_people(data: Path, folder: Path, count: int) -> Path:
    """Copy two photos each of people who are drawn with a fixed seed."""
    several = sorted(each for each in (data / "lfw" / "images").iterdir() if len(list(each.iterdir())) >= 2)
    for k in np.random.default_rng(7).choice(len(several), count, replace=False):
        for photo in sorted(several[k].iterdir())[:2]:
            (folder / several[k].name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo, folder / several[k].name / photo.name)
    return folder


def test_a_dozen_photos_do_not_refute_the_true_recipe_and_refute_a_wrong_range(
    real_ir: Path, data: Path, tmp_path: Path
) -> None:
    check = check_recipe(real_ir, "RGB", photos=draw_people(data, tmp_path / "people", 6))
    assert check
    assert (check.people, check.photos) == (6, 12)
    scores = {each.candidate.name: each for each in check.scores}
    assert len(scores) == 9
    assert "RGB, (x - 127.5) / 128, mtcnn-box-margin:32" in [each.name for each in check.plausible]
    assert not scores["x"].plausible
    assert scores["x"].separation < 0.05 < 0.5 < check.scores[0].separation
    assert scores["mirrored"].plausible  # it was trained with mirrored faces


def test_forty_photos_refuse_swapped_colours_before_anything_is_written(
    real_pb: Path, data: Path, tmp_path: Path
) -> None:
    people = draw_people(data, tmp_path / "people", 20)
    checks: list[RecipeCheck] = []

    def run(ir: Path, color: str) -> RecipeCheck:
        with load_detector() as detector:
            checks.append(check_recipe(ir, color, photos=people, detector=detector))  # type: ignore[arg-type]
        return checks[-1]

    told = functools.partial(convert, real_pb, tmp_path / "out", recipe=RecipeParts(name="mine", color="BGR"))
    with pytest.raises(NegativeResult, match=r"the model does best with: RGB; correct the recipe, or pass --force"):
        told(check_recipe=run)
    assert not list(tmp_path.glob("out/*"))
    assert checks[0].verdict == "refused"
    assert [each.name for each in checks[0].plausible] == ["RGB"]
