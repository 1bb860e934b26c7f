"""Every program in examples/ runs as written and gives the right answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import documents
import pytest

EXAMPLES = documents.ROOT / "examples"


def _run(*words: str | Path, expected: int = 0, err: bool = False) -> str:
    environment = {**os.environ, "EDGEFACE": f"{sys.executable} -m edgeface"}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stderr if err else done.stdout


@pytest.fixture
def gallery(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The people of the documents, enrolled."""
    import edgeface
    from edgeface.gallery import EnrolRules, create_gallery, enrol_folder

    monkeypatch.chdir(desk)
    path = desk / "people.gallery"
    with edgeface.load() as app, create_gallery(path, contract=app.contract, key=None) as store:
        rules = EnrolRules.shipped(app.contract.contract_id)
        assert enrol_folder(store, ["people"], rules=rules, pipeline=app.pipeline())
    return path


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_wrong_use_is_told_in_one_line(program: Path) -> None:
    start = "bash" if program.suffix == ".sh" else sys.executable
    said = _run(start, program, expected=2, err=True)
    assert said.startswith("usage: ")
    assert said.count("\n") == 1


def test_a_number_of_rounds_that_cannot_be_compared_is_refused_first() -> None:
    for rounds in ("0", "2", "two", "-1"):
        said = _run("bash", EXAMPLES / "benchmark_in_ci.sh", "absent.xml", "b.xml", "1", rounds, expected=2, err=True)
        assert "ROUNDS is 1 or at least 3" in said


def test_bulk_to_parquet_checks_its_output_before_the_model_is_loaded(tmp_path: Path) -> None:
    program = EXAMPLES / "bulk_to_parquet.py"
    said = _run(sys.executable, program, tmp_path, "faces.csv", expected=2, err=True)
    assert said.startswith("faces.csv: expected a name that ends in")
    assert said.count("\n") == 1


@pytest.mark.real
@pytest.mark.slow
def test_who_is_in_this_photo(gallery: Path) -> None:
    program = EXAMPLES / "who_is_in_this_photo.py"
    assert "Ada Lovelace" in _run(sys.executable, program, "door.jpg", gallery)
    assert "unknown" in _run(sys.executable, program, "stranger.jpg", gallery)
    assert len(program.read_text().splitlines()) <= 15


@pytest.mark.real
@pytest.mark.slow
def test_video_loop_says_who_is_there(gallery: Path) -> None:
    said = _run(sys.executable, EXAMPLES / "video_loop.py", "video.mp4", gallery).splitlines()
    assert sorted(line.split(": ")[1] for line in said) == ["Ada Lovelace", "unknown"]


@pytest.mark.real
@pytest.mark.slow
def test_bulk_to_parquet(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(desk)
    command = (sys.executable, EXAMPLES / "bulk_to_parquet.py", "photos", "faces.parquet")
    assert "6 embeddings" in _run(*command)
    assert parquet.read_table("faces.parquet").num_rows == 6
    assert "6 reused" in _run(*command)


@pytest.mark.real
@pytest.mark.slow
def test_benchmark_in_ci_passes_equal_models_and_fails_a_slower_one(data: Path, tmp_path: Path) -> None:
    from tiny_ir import write_tiny_ir

    network = "face-reidentification-retail-0095"
    small, large = write_tiny_ir(tmp_path), data / "omz" / network / "FP16" / f"{network}.xml"
    program = EXAMPLES / "benchmark_in_ci.sh"
    _run(program, large, small, "0.3", "1")
    _run(program, small, large, "0.3", "1", expected=1)
