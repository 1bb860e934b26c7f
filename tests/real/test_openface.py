"""The published arrays of Keras-OpenFace: five of 224 cannot be had, so there is no whole model to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from openface_files import write_csv

from edgeface.convert import convert
from edgeface.errors import ModelFormatError

pytestmark = [pytest.mark.real, pytest.mark.slow]

ABSENT = [
    "inception_3c_3x3_conv2_w",
    "inception_4e_3x3_conv2_w",
    "inception_5a_3x3_conv2_w",
    "inception_5a_1x1_conv_w",
    "inception_5b_3x3_conv2_w",
]


def test_the_221_published_arrays_are_read_and_exactly_the_five_absent_ones_named(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    with np.load(data / "openface" / "weights_221_of_226.npz") as published:
        assert len(published.files) == 221
        for name in published.files:
            write_csv(folder / f"{name}.csv", published[name])

    with pytest.raises(ModelFormatError) as refusal:
        convert(folder, tmp_path / "irs")

    absent = ", ".join(f"{name}.csv" for name in ABSENT)
    assert refusal.value.found == f"5 missing: {absent}"  # and none of the others is of a wrong size
    assert not (tmp_path / "irs").exists()


def test_one_published_array_too_short_is_named_beside_the_absent_ones(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    with np.load(data / "openface" / "weights_221_of_226.npz") as published:
        for name in ("conv1_w", "conv1_b", "bn1_w"):
            write_csv(folder / f"{name}.csv", published[name][: -1 if name == "conv1_w" else None])

    with pytest.raises(
        ModelFormatError, match=r"found 221 missing: .*; 1 wrong: conv1_w\.csv \(expected 9,408 numbers"
    ):
        convert(folder, tmp_path / "irs")
