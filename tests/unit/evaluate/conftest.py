"""Photographs that are easy to recognise: each has one bright rectangle, the "face", on a dark ground."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from contracts import sample_contract

from edgeface.model.contract import Alignment, ModelContract

WIDTH, HEIGHT = 100, 80


@pytest.fixture
def photographs(tmp_path: Path) -> Callable[[int], tuple[list[Path], list[str]]]:
    """`photographs(n)`: n files whose face is as bright as their number, and their names."""

    def make(count: int) -> tuple[list[Path], list[str]]:
        names = [f"P{number}/P{number}_0001" for number in range(count)]
        files = []
        for number, name in enumerate(names):
            picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            picture[10:70, 20:60] = 100 + number
            files.append(tmp_path / "images" / f"{name}.png")
            files[-1].parent.mkdir(parents=True)
            cv2.imwrite(str(files[-1]), picture)
        return files, names

    return make


@pytest.fixture
def contract() -> ModelContract:
    """16 x 16 pixels, box and margin of 8."""
    return sample_contract(alignment=Alignment("mtcnn-box-margin", 8))
