"""Recipes: what a person says about a model, as options, as a YAML file, and against a zoo entry."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgeface.convert.recipe import RecipeParts, parse_recipe, parts_of, read_recipe, require_agreement
from edgeface.errors import CatalogError, InputError
from edgeface.model.contract import Alignment
from edgeface.zoo.catalog import load_catalog

COMPLETE = {
    "name": "mine", "size": "112x96", "color": "BGR", "layout": "NHWC", "mean": "127.5", "scale": "128,128,64",
    "alignment": "mtcnn-box-margin:32", "output": "features", "normalized": False,
}  # fmt: skip


def test_options_and_a_file_of_the_same_text_give_the_same_parts(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(COMPLETE))

    parts = parse_recipe(**COMPLETE)

    assert read_recipe(file) == parts
    assert (parts.size, parts.mean, parts.scale) == ((112, 96), (127.5,) * 3, (128, 128, 64))
    assert (parts.alignment, parts.normalized) == (Alignment("mtcnn-box-margin", 32), False)


def test_numbers_in_yaml_need_no_quotes(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text("size: 112\nmean: [1, 2.5, 3]\nscale: 128\n")

    parts = read_recipe(file)

    assert (parts.size, parts.mean, parts.scale) == ((112, 112), (1, 2.5, 3), (128, 128, 128))
    assert parts.told().keys() == {"size", "mean", "scale"}


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").touch()

    assert read_recipe(tmp_path / "recipe.yml") == RecipeParts()


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("size", "large", "--size: expected pixels of one side, or HEIGHTxWIDTH, found 'large'"),
        ("size", "1x2x3", "--size: expected one number, or height and width, found 3"),
        ("size", "0", "--size: Input should be greater than or equal to 1, found 0"),
        ("mean", "1,2", "--mean: expected one number, or three, found 2"),
        ("mean", "grey", "--mean: expected one number, or three separated by commas, found 'grey'"),
        ("mean", "nan", "--mean: "),
        ("scale", "0", "--scale: expected numbers other than 0"),
        ("color", "purple", "--color: expected 'BGR' or 'RGB', found 'purple'"),
        ("layout", "CHWN", "--layout: expected 'NCHW' or 'NHWC', found 'CHWN'"),
        ("alignment", "by-hand", "--alignment: alignment recipe: expected one of mtcnn-box-margin"),
        ("alignment", "five-point-112:16", "--alignment: expected no margin with five-point-112, found 16"),
        ("normalized", "yes", "--normalized: "),
    ],
)
def test_a_wrong_option_is_named(option: str, value: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_recipe(**{option: value})
    assert str(caught.value).startswith(told)


@given(value=st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.lists(st.floats(), max_size=4)))
@pytest.mark.parametrize("option", ["size", "mean", "scale", "alignment", "color"])
def test_any_value_is_read_or_named(option: str, value: object) -> None:
    try:
        parts = parse_recipe(**{option: value})
    except InputError as error:
        assert f"--{option}" in str(error)  # noqa: PT017
    else:
        assert parts.told().keys() <= {option}


def test_a_wrong_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text("size: 112\ncolour: RGB\n")

    with pytest.raises(CatalogError, match=r"recipe\.yml:2: colour: unknown key; did you mean 'color'"):
        read_recipe(file)


def test_what_is_missing_is_named_with_its_options() -> None:
    with pytest.raises(InputError, match="--mean --scale --alignment, or a recipe file with --recipe"):
        parse_recipe(color="RGB", name="mine").complete()


@pytest.mark.parametrize(("option", "value"), [("color", "BGR"), ("layout", "NCHW"), ("mean", "0"), ("scale", "127.5")])
def test_what_a_zoo_entry_says_of_the_input_cannot_be_contradicted(option: str, value: str) -> None:
    entry = load_catalog()["facenet-20180408-102900"]

    with pytest.raises(InputError, match=f"--{option}: the recipe of facenet-20180408-102900 says"):
        require_agreement(parse_recipe(**{option: value}), entry)
    require_agreement(parts_of(entry), entry)
    require_agreement(parse_recipe(size="512", normalized=False), entry)
