"""What TensorFlow computed with the real weights, and their graph converted in several ways, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

MadeOnce = Callable[[str, Callable[[Path], Path]], Path]
FACENET = "facenet-20180408-102900"


@dataclass(frozen=True)
class Golden:
    """What TensorFlow computed on the original graph: (N, 160, 160, 3) uint8 RGB and (N, 512) float32."""

    path: Path
    images: np.ndarray
    embeddings: np.ndarray


@pytest.fixture(scope="session")
def golden(data: Path) -> Golden:
    path = data / FACENET / "golden.npz"
    with np.load(path) as stored:
        return Golden(path, stored["images"], stored["embeddings"])


@pytest.fixture(scope="session")
def converted(real_pb: Path, made_once: MadeOnce) -> Callable[..., Path]:
    """`converted(layout="nhwc", color="rgb", precision="fp16")`: that graph converted so. Tests only read it."""
    from edgeface.convert import convert

    def get(**options: str) -> Path:
        return made_once("-".join(["ir", *options.values()]), lambda folder: convert(real_pb, folder, **options).ir)

    return get
