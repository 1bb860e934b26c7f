"""`edgeface cluster` on crops of three colours, which a tiny model takes for three people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_ir import TINY_SIZE, tiny_crop, write_tiny_ir

from edgeface.cli import main
from edgeface.recognize import Metric, calibrate
from edgeface.recognize.cluster import _choose_limit

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Blue, green and red people of three crops each, one gray loner, and tiny.xml."""
    write_tiny_ir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(10):
        colour = [60, 60, 60] if number == 9 else [200 if channel == number % 3 else 10 for channel in range(3)]
        crop = tiny_crop(colour + rng.normal(0, 5, (TINY_SIZE, TINY_SIZE, 3)))
        path = tmp_path / "photos" / f"day{number // 5}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), crop)
    return tmp_path


def cluster(work: Path, *more: str, output: str = "out") -> int:
    words = ["cluster", work / "photos", "-o", work / output, "--model", work / "tiny.xml", "--crops", "--no-gate"]
    return main([str(word) for word in [*words, *more]])


def people_in(folder: Path) -> dict[str, set[str]]:
    return {
        each.name: {path.relative_to(each).as_posix() for path in each.rglob("*.png")}
        for each in (folder / "people").iterdir()
    }


PEOPLE = {
    "0001": {"day0/0.png", "day0/3.png", "day1/6.png"},
    "0002": {"day0/1.png", "day0/4.png", "day1/7.png"},
    "0003": {"day0/2.png", "day1/5.png", "day1/8.png"},
    "unknown": {"day1/9.png"},
}


@pytest.mark.parametrize("method", ["chinese-whispers", "dbscan"])
@pytest.mark.parametrize("link", [False, True])
def test_a_folder_of_photographs_becomes_a_folder_a_person(
    method: str, link: bool, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster(work, "--threshold", "0.9", "--method", method, "--json", *["--link"] * link) == 0
    answer = json.loads(capsys.readouterr().out)
    assert people_in(work / "out") == PEOPLE
    assert (work / "out" / "people" / "0001" / "day0" / "0.png").is_symlink() == link
    stored = json.loads((work / "out" / "clusters.json").read_text())
    assert stored == {key: answer[key] for key in stored}
    assert [len(person["faces"]) for person in stored["people"]] == [3, 3, 3]


def test_another_run_replaces_its_own_people_only(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster(work, "--threshold", "0.9") == 0
    assert cluster(work, "--threshold", "0", "--method", "dbscan") == 0
    assert list(people_in(work / "out")) == ["0001"]
    (work / "mine" / "people" / "grandmother").mkdir(parents=True)
    assert cluster(work, "--threshold", "0.9", output="mine") == 2
    assert "no clusters.json beside it" in capsys.readouterr().err
    assert (work / "mine" / "people" / "grandmother").is_dir()


def _rename(work: Path) -> str:
    (work / "out/people/0001").rename(work / "out/people/Ada")
    return "Ada/day0/0.png"


def _add(work: Path) -> str:
    (work / "out/people/0002/note.txt").write_text("my neighbour")
    return "0002/note.txt"


def _edit(work: Path) -> str:
    with (work / "out/people/unknown/day1/9.png").open("ab") as file:
        file.write(b"turned")
    return "unknown/day1/9.png"


def _remove_original(work: Path) -> str:
    (work / "photos/day1/9.png").unlink()
    return "unknown/day1/9.png"


@pytest.mark.parametrize("change", [_rename, _add, _edit, _remove_original])
def test_another_run_loses_no_file_or_name_that_is_only_in_the_folders_of_people(
    change: Callable[[Path], str], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster(work, "--threshold", "0.9") == 0
    kept = work / "out/people" / change(work)
    before = kept.read_bytes()
    assert cluster(work, "--threshold", "0.9") == 2
    assert str(kept.relative_to(work / "out/people")) in capsys.readouterr().err
    assert kept.read_bytes() == before


@pytest.mark.parametrize("output", [".", "photos", "photos/out"])
@pytest.mark.parametrize("link", [False, True])
def test_people_may_lie_beside_the_photographs_or_among_them(output: str, link: bool, work: Path) -> None:
    for _ in range(2):  # what the first run put there is no photograph to the second
        assert cluster(work, "--threshold", "0.9", *["--link"] * link, output=output) == 0
        assert people_in(work / output) == PEOPLE


def test_without_a_threshold_for_the_model_it_says_how_to_get_one(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster(work) == 3
    assert "edgeface calibrate PEOPLE" in capsys.readouterr().err


def test_the_more_faces_the_stricter_the_threshold() -> None:
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0.7, 0.1, 100), rng.normal(0.1, 0.1, 10_000)
    known = calibrate(genuine, impostor, fars=[0.1, 0.01, 0.001], contract_id="c", metric=Metric.cosine)
    assert [_choose_limit(known, faces).far for faces in (2, 10, 100, 100_000)] == [0.1, 0.01, 0.001, 0.001]


def test_a_threshold_that_joins_strangers_is_called_that(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10):
        source = next((work / "photos").rglob(f"{number}.png"))
        folder = work / "labelled" / str(number if number == 9 else number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / source.name).write_bytes(source.read_bytes())
    calibrate = ["calibrate", "--images", work / "labelled", "--model", work / "tiny.xml", "--crops", "--far", "0.4"]
    assert main([*map(str, calibrate), "-o", str(work / "t.json")]) == 0
    assert cluster(work, "--threshold", str(work / "t.json"), "--min-samples", "1") == 0
    assert "different people may be joined" in " ".join(capsys.readouterr().err.split())
