"""What names people or holds their faces can be read by its owner alone, whatever the umask of most machines allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import edgeface
from tiny_ir import TINY_SIZE, tiny_crop, write_tiny_ir

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """14 people, two of them of one photo, the others of three, pairs.txt and tiny.xml; made with the usual umask."""
    before = os.umask(0o022)
    root, rng = tmp_path_factory.mktemp("private"), np.random.default_rng(0)
    write_tiny_ir(root)
    for number in range(14):
        color = rng.integers(20, 220, 3)
        for photo in range(1, 4 if number < 12 else 2):
            path = root / f"people/P{number:02d}/P{number:02d}_{photo:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), tiny_crop(color + rng.normal(0, 5, (TINY_SIZE, TINY_SIZE, 3))))
    rows = ["3\t6"]
    for fold in range(3):
        names = [f"P{fold * 4 + i:02d}" for i in range(4)]
        rows += [f"{name}\t1\t2" for name in names] + [f"{name}\t3\t1" for name in names[:2]]
        rows += [f"{a}\t1\t{b}\t2" for a in names for b in names if a < b]
    (root / "pairs.txt").write_text("\n".join(rows) + "\n")
    yield root
    os.umask(before)


EMBED = "--model tiny.xml --crops"
CASES = {
    "embed": [f"embed people -o out.npz {EMBED}"],
    "gallery": [
        "gallery create g --model tiny.xml --unencrypted --keep-images",
        f"gallery enrol g people {EMBED} --threshold 0.9 --no-gate --force",
        f"identify people/P00/P00_0001.png --gallery g {EMBED} --threshold 0.9 --no-gate",
        "gallery export g -o all.zip --unencrypted",
    ],
    "cluster": [f"cluster people -o clusters {EMBED} --no-gate --threshold 0.9 --link"],
    "evaluate lfw": [f"evaluate lfw --images people --pairs pairs.txt {EMBED} -o lfw"],
    "evaluate identification": [f"evaluate identification --images people {EMBED} -o identification"],
}


@pytest.mark.parametrize("kind", CASES)
def test_only_the_owner_reads_names_and_faces(work: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    before = set(work.rglob("*"))
    for line in CASES[kind]:
        done = edgeface(*line.split())
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    made = {path for path in work.rglob("*") if path.is_file() and not path.is_symlink()} - before
    assert made
    models = {path for path in made if path.suffix in (".xml", ".bin")}  # without names
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in made - models if path.stat().st_mode & 0o077} == {}
    for folder in {path.parent for path in made} - {work}:
        assert folder.stat().st_mode & 0o002 == 0
