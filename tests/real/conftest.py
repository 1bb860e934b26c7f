"""The real weights as a graph and as an IR, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
def weights(data: Path) -> dict[str, Any]:
    from edgeface.convert.facenet_graph import read_weights

    return read_weights(data / FACENET / "weights.npz")


@pytest.fixture(scope="session")
def real_pb(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    """The original training-and-inference graph with the published weights."""
    from edgeface.convert.facenet_graph import write_graph

    return made_once("real", lambda folder: write_graph(request.getfixturevalue("weights"), folder / f"{FACENET}.pb"))


@pytest.fixture(scope="session")
def real_ir(real_pb: Path, made_once: MadeOnce) -> Path:
    """That graph converted with the defaults: FP32, NCHW, BGR, dynamic batch. Tests only read it."""
    from edgeface.convert import convert

    return made_once("ir", lambda folder: convert(real_pb, folder).ir)


@pytest.fixture(scope="session")
def converted(real_pb: Path, made_once: MadeOnce) -> Callable[..., Path]:
    """`converted(layout="nhwc", color="rgb", precision="fp16")`: that graph converted so. Tests only read it."""
    from edgeface.convert import convert

    def get(**options: str) -> Path:
        return made_once("-".join(["ir", *options.values()]), lambda folder: convert(real_pb, folder, **options).ir)

    return get
