"""The check of a recipe, on a tiny network whose recipe is known and on scores whose answer is known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from contracts import sample_contract
from tiny_people import RAW, SIZE, UNIT, write_people, write_red_ir

from edgeface.errors import InputError
from edgeface.evaluate.recipe_check import (
    ERROR_PROBABILITY,
    RecipeCandidate,
    RecipeCheck,
    check_recipe,
    compare_recipes,
    embed_candidates,
    neighbours_of,
    recipe_candidates,
)
from edgeface.model.contract import Alignment, Color

CROPS = Alignment("none")


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_people(tmp_path / "people")


def plausible(check: RecipeCheck) -> set[str]:
    return {each.name for each in check.plausible}


def test_the_right_recipe_holds_and_colours_and_ranges_that_matter_lose(people: Path, tmp_path: Path) -> None:
    check = check_recipe(write_red_ir(tmp_path / "tiny.xml"), "RGB", photos=people)
    assert check
    assert (check.people, check.photos, check.failures) == (6, 12, ())
    told = "RGB, (x - 127.5) / 128, none"
    assert plausible(check) == {told}
    assert check.verdict == "confirmed"
    assert not any(each.plausible for each in check.scores[1:])
    assert check.scores[0].auc == 1.0
    assert json.loads(json.dumps(check.to_dict()))["made_for"] == [told]
    assert "\n" not in repr(check)
    assert told in check.summary


@pytest.mark.parametrize(
    ("told", "made_for"),
    [({"color": "BGR"}, "RGB"), ({"values": RAW}, "(x - 127.5) / 128"), ({"values": UNIT}, "(x - 127.5) / 128")],
    ids=["colours swapped", "raw values", "values of 0 to 1"],
)
def test_a_wrong_recipe_is_refused_and_the_right_one_named(
    people: Path, tmp_path: Path, told: dict[str, object], made_for: str
) -> None:
    color: Color = "BGR" if told.get("color") == "BGR" else "RGB"
    check = check_recipe(write_red_ir(tmp_path / "tiny.xml", **told), color, photos=people)  # type: ignore[arg-type]
    assert not check
    assert check.verdict == "refused"
    assert made_for in plausible(check)
    assert made_for in check.summary


def test_a_network_that_sees_no_colours_cannot_tell_their_order(people: Path, tmp_path: Path) -> None:
    check = check_recipe(write_red_ir(tmp_path / "tiny.xml", weights=(1 / 3, 1 / 3, 1 / 3)), "RGB", photos=people)
    assert check
    assert check.verdict == "cannot tell"
    assert "BGR" in plausible(check)


def test_layout_and_batch_of_the_ir_change_nothing(people: Path, tmp_path: Path) -> None:
    plain = check_recipe(write_red_ir(tmp_path / "plain.xml"), "RGB", photos=people)
    other = check_recipe(write_red_ir(tmp_path / "other.xml", layout="NHWC", batch=5), "RGB", photos=people)
    for one, two in zip(plain.scores, other.scores, strict=True):
        assert one.separation == pytest.approx(two.separation, abs=1e-5)


def test_a_neighbour_is_measured_as_the_ir_of_its_own_recipe(tmp_path: Path) -> None:
    crops = list(np.random.default_rng(2).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8))
    mixed = (0.7, 0.2, 0.1)
    model = ov.Core().read_model(write_red_ir(tmp_path / "told.xml", weights=mixed))
    contract = sample_contract(input_size=(SIZE, SIZE), mean=(127.5,) * 3, scale=(128.0,) * 3)
    candidates = recipe_candidates(contract, "RGB")
    found = embed_candidates(model, contract, "RGB", candidates, {CROPS: crops})
    by_name = {each.name: rows for each, rows in zip(candidates, found, strict=True)}
    batch = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32)
    for name, options in (("BGR", {"color": "BGR"}), ("x / 255", {"values": UNIT}), ("x", {"values": RAW})):
        own = write_red_ir(tmp_path / "own.xml", weights=mixed, **options)  # type: ignore[arg-type]
        expected = ov.Core().compile_model(own, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(batch)[0]
        np.testing.assert_allclose(by_name[name], expected, rtol=1e-4, atol=1e-4)
    expected = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(batch[..., ::-1].copy())[0]
    np.testing.assert_allclose(by_name["mirrored"], expected, rtol=1e-4, atol=1e-4)


def test_photos_of_a_pairs_list_give_the_same_answer(people: Path, tmp_path: Path) -> None:
    ir = write_red_ir(tmp_path / "tiny.xml")
    names = [f"P{number}" for number in range(6)]
    rows = [f"{name}\t1\t2" for name in names] + [
        f"{one}\t1\t{two}\t2" for one, two in zip(names, names[1:] + names[:1], strict=True)
    ]
    (people / "pairs.txt").write_text("\n".join(["1\t6", *rows]) + "\n")
    listed = check_recipe(ir, "RGB", photos=people).to_dict()
    (people / "pairs.txt").unlink()
    assert listed == check_recipe(ir, "RGB", photos=people).to_dict()


def told(name: str = "told", mirrored: bool = False) -> RecipeCandidate:
    return RecipeCandidate(
        name=name, color="RGB", mean=(0.0,) * 3, scale=(1.0,) * 3, alignment=CROPS, mirrored=mirrored
    )


def test_separation_and_its_deviation_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    people = [str(number) for number in np.repeat(np.arange(30), 3)]
    faces = np.repeat(rng.normal(size=(30, 8)), 3, axis=0) + rng.normal(size=(90, 8))
    other = faces + rng.normal(size=faces.shape)

    def separation(rows: np.ndarray, left_out: str = "") -> float:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        groups = {name: [k for k, each in enumerate(people) if each == name] for name in people if name != left_out}
        own = [np.mean([unit[i] @ unit[j] for i, j in itertools.combinations(rows, 2)]) for rows in groups.values()]
        cross = [np.mean(unit[a] @ unit[b].T) for a, b in itertools.combinations(groups.values(), 2)]
        return float(np.mean(own) - np.mean(cross))

    check = compare_recipes([told(), told("other")], [faces, other], people)
    difference = separation(other) - separation(faces)
    assert check.scores[1].difference == pytest.approx(difference)
    left_out = np.array([separation(other, name) - separation(faces, name) for name in dict.fromkeys(people)])
    jackknife = np.sqrt(29 / 30 * np.square(left_out - left_out.mean()).sum())
    low, high = check.scores[1].interval
    quantile = 1.699  # Student's t, 29 degrees of freedom, one side of 0.05
    assert (high - low) / 2 / quantile == pytest.approx(jackknife, rel=0.1)


@pytest.mark.parametrize("shape", [(6, 2), (4, 3), (12, 2)])
@pytest.mark.slow
def test_of_equally_good_recipes_the_told_one_is_refused_as_seldom_as_promised(shape: tuple[int, int]) -> None:
    count, photos, draws = *shape, 200
    people = [str(number) for number in np.repeat(np.arange(count), photos)]
    refused = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        faces = np.repeat(rng.normal(size=(count, 32)), photos, axis=0) + 0.5 * rng.normal(size=(count * photos, 32))
        noisy = [faces + 0.3 * rng.normal(size=faces.shape) for _ in range(9)]
        refused += not compare_recipes([told(str(number)) for number in range(9)], noisy, people)
    assert refused <= draws * ERROR_PROBABILITY + 2 * (draws * ERROR_PROBABILITY) ** 0.5


def test_a_recipe_that_is_better_by_rounding_or_under_the_margin_does_not_win() -> None:
    rng = np.random.default_rng(4)
    people = [str(number) for number in np.repeat(np.arange(20), 2)]
    faces = np.repeat(rng.normal(size=(20, 32)), 2, axis=0) + 0.5 * rng.normal(size=(40, 32))
    nearer = faces.copy()
    nearer[1::2] += 0.005 * (faces[::2] - faces[1::2])  # every genuine pair comes closer, by next to nothing
    check = compare_recipes([told(), told("nearer")], [faces, nearer], people)
    assert check.scores[1].interval[0] > 0
    assert check
    assert check.verdict == "cannot tell"


def test_mirrored_crops_that_do_as_well_leave_the_recipe_confirmed() -> None:
    rng = np.random.default_rng(5)
    people = [str(number) for number in np.repeat(np.arange(20), 2)]
    faces = np.repeat(rng.normal(size=(20, 32)), 2, axis=0) + 0.5 * rng.normal(size=(40, 32))
    worse = faces + 2 * rng.normal(size=faces.shape)
    check = compare_recipes([told(), told("worse"), told("mirrored", True)], [faces, worse, faces], people)
    assert check.verdict == "confirmed"
    assert check.scores[2].plausible


def test_embeddings_that_are_not_finite_lose() -> None:
    rng = np.random.default_rng(6)
    people = [str(number) for number in np.repeat(np.arange(6), 2)]
    faces = np.repeat(rng.normal(size=(6, 32)), 2, axis=0) + 0.1 * rng.normal(size=(12, 32))
    check = compare_recipes([told(), told("broken")], [np.full_like(faces, np.nan), faces], people)
    assert not check
    assert plausible(check) == {"broken"}


def test_neighbours_leave_out_what_is_the_recipe_itself() -> None:
    facenet = sample_contract(
        input_size=(160, 160), mean=(127.5,) * 3, scale=(127.5,) * 3, alignment=Alignment("mtcnn-box-output-margin", 20)
    )
    names = [each.name for each in recipe_candidates(facenet, "RGB")[1:]]
    usual = ["BGR", "x / 255", "x", "ImageNet"]
    assert names == [*usual, "five-point-112", "five-point-150", "mirrored"]
    mobile = RecipeCandidate(
        name="told", color="BGR", mean=(0.0,) * 3, scale=(1.0,) * 3, alignment=Alignment("five-point-96x112")
    )
    found = neighbours_of(mobile, (112, 96))
    assert [each.name for each in found][4:] == ["mtcnn-box-margin:0", "mtcnn-box-margin:32", "mirrored"]
    assert found[3].mean == (103.53, 116.28, 123.675)  # in the order of its own colours


@pytest.mark.parametrize(
    ("keep", "found"),
    [(lambda path: path.parent.name == "P0", "1 such people"), (lambda path: path.stem.endswith("1"), "0 such people")],
    ids=["one person", "one photo each"],
)
def test_too_few_people_are_counted_in_the_error(
    people: Path, tmp_path: Path, keep: Callable[[Path], bool], found: str
) -> None:
    for path in people.rglob("*.png"):
        if not keep(path):
            path.unlink()
    with pytest.raises(InputError, match=found) as error:
        check_recipe(write_red_ir(tmp_path / "tiny.xml"), "RGB", photos=people)
    assert "at least 3 people with 2 photos each" in str(error.value)


def test_photos_without_faces_are_named(people: Path, tmp_path: Path) -> None:
    ir = write_red_ir(tmp_path / "tiny.xml", alignment=Alignment("mtcnn-box-margin", 32))
    with pytest.raises(InputError, match=r"12 photos without a face or unreadable \(P0/P0_0001.png, "):
        check_recipe(ir, "RGB", photos=people)


def test_a_folder_that_is_absent_and_random_weights_are_refused(people: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        check_recipe(write_red_ir(tmp_path / "tiny.xml"), "RGB", photos=tmp_path / "nothing")
    seeded = write_red_ir(tmp_path / "seeded.xml", provenance="seeded")
    with pytest.raises(InputError, match="random weights"):
        check_recipe(seeded, "RGB", photos=people)
