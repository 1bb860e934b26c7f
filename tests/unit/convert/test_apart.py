"""The process in which OpenVINO's frontends run."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from edgeface.convert.tensorflow import load_tensorflow
from edgeface.errors import ModelFormatError


def test_a_file_that_cannot_be_read_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.pb").write_bytes(b"\xff" * 64)
    before = psutil.Process().children()
    with pytest.raises(ModelFormatError):
        load_tensorflow(tmp_path / "broken.pb", size=(160, 160))
    assert psutil.Process().children() == before
