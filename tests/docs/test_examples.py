"""Every program in examples/ runs as written and gives the right answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import documents
import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]
EXAMPLES = documents.ROOT / "examples"


def _run(*words: str | Path, expected: int = 0) -> str:
    environment = {**os.environ, "EDGEFACE": f"{sys.executable} -m edgeface"}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout


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


def test_who_is_in_this_photo(gallery: Path) -> None:
    program = EXAMPLES / "who_is_in_this_photo.py"
    assert "Ada Lovelace" in _run(sys.executable, program, "door.jpg", gallery)
    assert "unknown" in _run(sys.executable, program, "stranger.jpg", gallery)
    assert len(program.read_text().splitlines()) <= 15


def test_video_loop_says_who_is_there(gallery: Path) -> None:
    said = _run(sys.executable, EXAMPLES / "video_loop.py", "video.mp4", gallery).splitlines()
    assert sorted(line.split(": ")[1] for line in said) == ["Ada Lovelace", "unknown"]


def test_bulk_to_parquet(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(desk)
    command = (sys.executable, EXAMPLES / "bulk_to_parquet.py", "photos", "faces.parquet")
    assert "6 embeddings" in _run(*command)
    assert parquet.read_table("faces.parquet").num_rows == 6
    assert "6 reused" in _run(*command)


def test_benchmark_in_ci_passes_equal_models_and_fails_a_slower_one(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    from tiny_ir import write_tiny_ir

    small, large = write_tiny_ir(tmp_path), next((desk / "models").glob("*.xml"))
    program = EXAMPLES / "benchmark_in_ci.sh"
    _run(program, large, small, "0.3", "1")
    _run(program, small, large, "0.3", "1", expected=1)
