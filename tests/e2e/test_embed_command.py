"""`edgeface embed` on a tiny model: what it writes, lists, resumes and refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import pytest
from tiny_ir import tiny_crop, write_tiny_ir

from edgeface.cli import main
from edgeface.errors import install_line
from edgeface.pipeline.table import EmbeddingTable

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Four crops, one of them broken, and tiny.xml."""
    write_tiny_ir(tmp_path)
    (tmp_path / "crops" / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        crop = tiny_crop([200 if channel == number else 10 for channel in range(3)])
        cv2.imwrite(str(tmp_path / "crops" / name), crop)
    (tmp_path / "crops" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path


def embed(work: Path, *more: str | Path, output: str = "out.npz") -> int:
    words = ["embed", work / "crops", "--crops", "--model", work / "tiny.xml", "-o", work / output, *more]
    return main([str(word) for word in words])


def test_crops_of_a_folder_are_embedded_and_a_broken_one_is_listed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(work, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    told = {"rows": 3, "files": 4, "reused": 0, "reduced": 1}
    assert {key: answer[key] for key in told} == told
    assert [Path(each["path"]).name for each in answer["failures"]] == ["broken.jpg"]
    table = EmbeddingTable.load(work / "out.npz")
    assert [Path(path).name for path in table.paths] == ["a.png", "b.png", "c.png"]
    assert table.vectors.argmax(axis=1).tolist() == [0, 1, 2]
    assert table.contract_id == answer["contract_id"]


def test_a_second_run_embeds_nothing_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(work) == 0
    assert embed(work, "--json") == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["reused"] == 3


def test_a_run_says_what_an_earlier_one_embedded_and_it_was_not_asked_for(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(work) == 0
    assert "no longer" not in capsys.readouterr().err
    one = ["embed", work / "crops/a.png", "--crops", "--model", work / "tiny.xml", "-o", work / "out.npz"]
    assert main([str(word) for word in one]) == 0
    assert "out.npz: no longer has 2 files that this run was not asked for" in capsys.readouterr().err.replace(
        "\n", " "
    )


def test_the_answer_names_the_model(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(work, "--json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == "tiny"
    assert embed(work) == 0
    assert capsys.readouterr().out.rstrip().endswith("by tiny; 3 files from an earlier run")


def test_strict_turns_a_broken_file_into_exit_1_and_still_writes(work: Path) -> None:
    assert embed(work, "--strict") == 1
    assert len(EmbeddingTable.load(work / "out.npz")) == 3


def test_a_picture_without_a_face_is_listed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embed", work / "crops" / "a.png", "--model", work / "tiny.xml", "-o", work / "out.npz"]
    assert main([str(word) for word in words]) == 2
    assert "a.png: expected a face, found none" in capsys.readouterr().err


def test_embeddings_of_another_model_are_not_mixed_in(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(work) == 0
    write_tiny_ir(work, source="b")
    assert embed(work) == 2
    assert "expected one contract_id" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_its_extra_exits_3_with_the_line_that_installs_it(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(work, output="out.parquet") == 3
    assert install_line("parquet") in capsys.readouterr().err


@pytest.mark.parametrize(("output", "words"), [("out.csv", "ends in .npz or .parquet"), ("none/x", "ends in")])
def test_an_unknown_form_of_output_exits_2_before_any_work(
    work: Path, capsys: pytest.CaptureFixture[str], output: str, words: str
) -> None:
    assert embed(work, output=output) == 2
    assert words in capsys.readouterr().err
