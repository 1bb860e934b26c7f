"""`edgeface detect` and `edgeface align` as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_ir import write_tiny_ir

from edgeface.cli import main
from edgeface.vision.image import read_image

pytestmark = pytest.mark.real


@pytest.fixture
def options(data: Path) -> list[str]:
    return ["--detector-model", str(data / "mtcnn")]


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """Two people in folders of their own, a picture without a face and a broken one."""
    place = tmp_path / "people"
    for name in ("john/lennon-1.jpg", "both/longoria-cooper.jpg"):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes((data / "photos" / Path(name).name).read_bytes())
    (place / "broken.jpg").write_bytes((data / "photos" / "lennon-2.jpg").read_bytes()[:9000])
    cv2.imwrite(str(place / "empty.png"), np.full((80, 80, 3), 90, np.uint8))
    return place


def answer(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def test_detect_tells_boxes_landmarks_and_scores_as_json(data, options, capsys):
    photo = data / "photos" / "longoria-cooper.jpg"
    assert main(["detect", str(photo), *options, "--json"]) == 0
    found = answer(capsys)
    assert found["detector"] == "mtcnn"
    assert found["failures"] == []
    (image,) = found["images"]
    assert (image["path"], image["width"], image["height"]) == (str(photo), 293, 473)
    assert [len(face["box"]) for face in image["faces"]] == [4, 4]
    assert np.shape(image["faces"][0]["landmarks"]) == (5, 2)
    assert image["faces"][0]["score"] > 0.99


def test_folders_are_searched_and_bad_pictures_listed(folder, options, capsys, tmp_path):
    drawn = tmp_path / "drawn"
    assert main(["detect", str(folder), *options, "--draw", str(drawn), "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert [len(image["faces"]) for image in found["images"]] == [2, 0, 1]
    assert [Path(failure["path"]).name for failure in found["failures"]] == ["broken.jpg"]
    assert "truncated JPEG" in output.err
    original = read_image(folder / "both" / "longoria-cooper.jpg")
    marked = read_image(drawn / "both" / "longoria-cooper.png")
    assert marked.shape == original.shape
    assert not np.array_equal(marked, original)
    assert main(["detect", str(folder), *options, "--strict"]) == 1


def test_a_pattern_and_other_detectors(data, capsys):
    yunet = str(data / "yunet" / "yunet_n_dynamic.onnx")
    pattern = str(data / "photos" / "lennon-*.jpg")
    assert main(["detect", pattern, "--detector", "yunet", "--detector-model", yunet, "--json"]) == 0
    assert [len(image["faces"]) for image in answer(capsys)["images"]] == [1, 1]


def test_a_detector_that_is_not_downloaded_names_the_line_that_gets_it(data, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    photo = str(data / "photos" / "lennon-1.jpg")
    assert main(["detect", photo, "--detector", "yunet"]) == 3
    assert "run: edgeface zoo download yunet" in capsys.readouterr().err


def test_nothing_readable_is_bad_input(folder, options, capsys, tmp_path):
    assert main(["detect", str(folder / "broken.jpg"), *options]) == 2
    assert "truncated JPEG" in capsys.readouterr().err
    assert main(["detect", str(tmp_path / "absent.jpg"), *options]) == 2


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        ("mtcnn-box-margin", (160, 160)),
        ("mtcnn-box-output-margin", (160, 160)),
        ("five-point-112", (112, 112)),
        ("five-point-96x112", (112, 96)),
        ("five-point-150", (150, 150)),
        ("outer-eyes-nose-96", (96, 96)),
    ],
)
def test_align_keeps_the_folders_and_lists_failures(folder, options, capsys, tmp_path, recipe, size):
    crops = tmp_path / "crops"
    assert main(["align", str(folder), "-o", str(crops), "--recipe", recipe, *options, "--json"]) == 0
    found = answer(capsys)
    assert found["written"] == 2
    assert tuple(found["size"]) == size
    assert (found["detector"], found["min_size"], found["min_size_from"]) == ("mtcnn", 20, "default")
    assert {Path(failure["path"]).name for failure in found["failures"]} == {"broken.jpg", "empty.png"}
    written = sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.*"))
    assert written == ["both/longoria-cooper.png", "john/lennon-1.png"]
    assert all(read_image(crops / name).shape == (*size, 3) for name in written)


def test_align_refuses_what_makes_no_sense(folder, options, capsys, tmp_path):
    output = ["-o", str(tmp_path / "out"), *options]
    assert main(["align", str(folder / "absent"), *output]) == 2
    assert main(["align", str(folder), *output, "--size", "big"]) == 2
    assert main(["align", str(folder), *output, "--recipe", "five-point-112", "--margin", "3"]) == 2
    assert main(["align", str(folder), *output, "--strict"]) == 1
    assert "faces of 20 pixels and more (--min-size for smaller ones), found by mtcnn" in capsys.readouterr().out


def test_two_photos_of_one_name_do_not_overwrite_each_other(data, options, capsys, tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    image = read_image(data / "photos" / "longoria-cooper.jpg")
    for name in ("a.png", "a.bmp"):
        cv2.imwrite(str(place / name), image)
    assert main(["align", str(place), "-o", str(tmp_path / "out"), *options, "--json"]) == 0
    found = answer(capsys)
    assert found["written"] == 1
    assert "another photo would get the same name" in found["failures"][0]["error"]


@pytest.fixture
def two_albums(data: Path, tmp_path: Path) -> Path:
    """Two folders, in each a photograph of the same name, one of them a PNG."""
    image = read_image(data / "photos" / "longoria-cooper.jpg")
    for name in ("one/x.png", "two/x.jpg"):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), image)
    return tmp_path


def test_drawn_pictures_of_one_name_do_not_overwrite_each_other(two_albums, options, capsys):
    folders = [str(two_albums / name) for name in ("one", "two")]
    assert main(["detect", *folders, *options, "--draw", str(two_albums / "drawn"), "--json"]) == 0
    found = answer(capsys)
    assert [len(image["faces"]) for image in found["images"]] == [2, 2]
    assert [Path(failure["path"]).parent.name for failure in found["failures"]] == ["two"]
    assert "another photo would get the same name" in found["failures"][0]["error"]


def test_no_photograph_is_ever_overwritten(two_albums, options, capsys):
    photo = two_albums / "one" / "x.png"
    before = photo.read_bytes()
    assert main(["detect", str(photo.parent), *options, "--draw", str(photo.parent), "--json"]) == 0
    assert "this is a photo and is not overwritten" in answer(capsys)["failures"][0]["error"]
    assert main(["align", str(photo.parent), "-o", str(photo.parent), *options]) == 2
    assert "choose another output folder" in capsys.readouterr().err
    assert main(["align", str(two_albums), "-o", str(photo.parent), *options, "--json"]) == 0
    assert photo.read_bytes() == before


def test_a_second_run_does_not_take_the_first_one_s_crops_for_photographs(two_albums, options, capsys):
    for _ in range(2):
        assert main(["align", str(two_albums), "-o", str(two_albums / "crops"), *options, "--json"]) == 0
        assert answer(capsys)["written"] == 2
    assert sorted(p.relative_to(two_albums).as_posix() for p in two_albums.rglob("crops/**/*.png")) == [
        "crops/one/x.png",
        "crops/two/x.png",
    ]


def test_align_without_a_single_crop_is_bad_input(options, capsys, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(7):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), np.full((80, 80, 3), 90, np.uint8))
    assert main(["align", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert "no face could be cropped" in error
    assert error.strip().endswith("; and 2 more")
    assert not (tmp_path / "out").exists()


def test_long_paths_are_not_broken_into_lines(two_albums, options, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    photo = two_albums / "one" / "x.png"
    assert main(["detect", str(photo), *options]) == 0
    assert f"{photo}: 2 faces\n" in capsys.readouterr().out


def test_a_name_that_no_file_can_have_is_bad_input(options, capsys):
    assert main(["detect", "a" * 300 + ".jpg", *options]) == 2
    assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["detect", "align", "embed", "verify", "cluster", "liveness", "identify", "gallery enrol"]
)
def test_only_commands_with_a_gallery_speak_of_its_detector(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main([*command.split(), "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "YuNet if it is downloaded, else MTCNN" in told
    assert ("the gallery's, else YuNet" in told) == (command in ("identify", "gallery enrol"))


_BY_MODEL = "Default: a fifth of the model's input, e.g. 32 of 160, but at least 20."


@pytest.mark.parametrize(
    ("commands", "default"),
    [
        (["detect", "align", "liveness"], "Default: 20."),
        (["embed", "verify"], _BY_MODEL),
        (
            ["identify", "gallery enrol"],
            "Default: the smallest that the quality gate lets pass, 32; with --no-gate a fifth of the model's input, "
            "e.g. 32 of 160, but at least 20.",
        ),
        (["cluster"], "Default: 40."),
    ],
)
def test_help_says_from_which_size_on_each_command_looks_for_faces(commands, default, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for command in commands:
        assert main([*command.split(), "--help"]) == 0
        (told,) = (line for line in capsys.readouterr().out.splitlines() if "--min-size" in line)
        assert told.rstrip(" │").endswith(f"Shorter side of the smallest face's box, pixels. {default}")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            [],
            {"detect": (20, "default"), "embed": (20, "default"), "cluster": (40, "default"), "identify": (32, "gate")},
        ),
        (["--min-size", "20"], dict.fromkeys(("detect", "embed", "cluster", "identify"), (20, "min-size"))),
        (["--min-size", "40"], {"cluster": (40, "min-size")}),
    ],
)
def test_answers_say_who_chose_the_smallest_face(data, tmp_path, capsys, asked, told):
    model = write_tiny_ir(tmp_path)
    (tmp_path / "photos").mkdir()
    photo = shutil.copy(data / "photos" / "longoria-cooper.jpg", tmp_path / "photos")
    gallery = str(tmp_path / "people.gallery")
    assert main(["gallery", "create", gallery, "--model", str(model), "--unencrypted"]) == 0
    given = ["--model", str(model), "--detector", "mtcnn", "--detector-model", str(data / "mtcnn"), *asked]
    commands = {
        "detect": ["detect", photo, *given[2:]],
        "embed": ["embed", photo, "-o", tmp_path / "photos.npz", *given],
        "cluster": ["cluster", tmp_path / "photos", "-o", tmp_path / "out", "--threshold", "0.9", "--no-gate", *given],
        "identify": ["identify", photo, "--gallery", gallery, "--threshold", "0.9", *given],
    }
    for name, size in told.items():
        capsys.readouterr()
        assert main([*map(str, commands[name]), "--json"]) == (name == "identify")
        found = answer(capsys)
        assert (found["min_size"], found["min_size_from"]) == size, name
    assert main(list(map(str, commands["cluster"]))) == 0
    hint = "" if asked else " (--min-size for smaller ones)"
    assert f"faces of {told['cluster'][0]} pixels and more{hint}, found by mtcnn" in capsys.readouterr().out
    if "identify" in told:
        main(list(map(str, commands["identify"])))
        hint = "" if asked else " (the quality gate's smallest; --no-gate and --min-size for smaller ones)"
        assert f"faces of {told['identify'][0]} pixels and more{hint}, found by mtcnn" in capsys.readouterr().out
