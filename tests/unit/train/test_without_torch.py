"""Where PyTorch is not installed, training says how to install it, and a trained head still answers."""

from __future__ import annotations

import subprocess
import sys

START = f"import sys; sys.path[:] = {sys.path!r}; sys.modules['torch'] = None; "


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True, timeout=120)


def test_the_command_names_the_extra_and_ends_with_3() -> None:
    done = run(
        "from edgeface.cli import main; sys.exit(main(['train', 'head', 'people', '--model', 'a.xml', '-o', 'out']))"
    )
    assert done.returncode == 3
    assert "the optional extra 'train'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_trained_head_and_its_archive_need_no_torch() -> None:
    done = run(
        "import numpy as np; from edgeface.train import TrainedHead, export_training, import_training; "
        "head = TrainedHead(labels=('a', 'b'), weights=np.eye(2, dtype='f'), bias=np.zeros(2, 'f'), contract_id='c'); "
        "print(head.probabilities(np.eye(2)).argmax(axis=1).tolist())"
    )
    assert done.stdout.strip() == "[0, 1]", done.stderr
