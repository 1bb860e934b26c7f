"""Whole trainings, of a head and by octuplets, that are killed again and again and end as one that is not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_trainable import write_net, write_photos

pytest.importorskip("torch", reason="the extra 'train' is not installed")

from edgeface.convert.source import float_constants
from edgeface.model.ir_file import read_ir

EPOCHS = 200
CHILD = f"""
import sys, time
sys.path[:] = {sys.path!r}
from pathlib import Path
from edgeface.train import HeadSettings, MetricSettings, Optimisation, loop, train_head, train_metric
loop._CHECKPOINT_SECONDS = 0.2
kind, root, output, ir = sys.argv[1], *map(Path, sys.argv[2:])
options = dict(
    optimisation=Optimisation(epochs={EPOCHS}, batch=16, rate=0.01, patience=0),
    cache=root.parent / "cache",
    progress=lambda at: time.sleep(0.004) if at.stage == "training" else None,
)
if kind == "head":
    done = train_head(root, output, ir, settings=HeadSettings(unfreeze=1), force=True, **options)
else:
    done = train_metric(root, output, ir, settings=MetricSettings(resolutions=(4, 8)), force=True, **options)
print(done.history.resumed_at)
"""


def start(kind: str, people: Path, output: Path, ir: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CHILD, kind, str(people), str(output), str(ir)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> int:
    told, _ = child.communicate()
    assert child.returncode == 0
    return int(told)


def weights_of(folder: Path) -> list[np.ndarray]:
    (ir,) = folder.glob("*.xml")
    return list(float_constants(read_ir(ir)))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["head", "metric"])
@pytest.mark.nightly
def test_a_training_that_is_killed_ends_with_the_weights_of_one_that_is_not(tmp_path: Path, kind: str) -> None:
    ir, people = write_net(tmp_path / "model"), write_photos(tmp_path / "people", 8, 6)
    assert finish(start(kind, people, tmp_path / "whole", ir)) == 0
    killed, rng = tmp_path / "killed", np.random.default_rng(1)
    resumed = 0
    for _ in range(20):
        child, log, before = start(kind, people, killed, ir), killed / "log.jsonl", -1
        while child.poll() is None:  # two epochs of this process at least
            lines = log.read_text().count("\n") if log.exists() else 0
            before = lines if before < 0 or lines < before else before
            if lines >= before + 2:
                break
            time.sleep(0.02)
        time.sleep(float(rng.uniform(0, 0.5)))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert not list(killed.glob("*.partial*"))
        if (killed / "checkpoint.pt").exists():
            resumed += 1
    assert resumed
    finish(start(kind, people, killed, ir))
    expected, found = weights_of(tmp_path / "whole"), weights_of(killed)
    assert max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)) <= 1e-6
    assert not (killed / "checkpoint.pt").exists()
