"""What edgeface is compared with computes what TensorFlow computed: the comparison is of one network."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

pytestmark = pytest.mark.real
TOLERANCE = 5e-6
F32 = {"INFERENCE_PRECISION_HINT": "f32"}  # some CPUs would choose bfloat16


@pytest.fixture(scope="module")
def weights(data: Path) -> dict[str, np.ndarray]:
    with np.load(data / "facenet-20180408-102900" / "weights.npz") as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def golden(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """(8, 3, 160, 160) float32 as the networks take them, and (8, 512) from TensorFlow."""
    from _peers_int8 import standardised

    with np.load(data / "facenet-20180408-102900" / "golden.npz") as stored:
        return standardised(stored["images"][:8, ..., ::-1]), stored["embeddings"][:8]


def test_the_onnx_network_gives_the_golden_embeddings(
    weights: dict[str, np.ndarray], golden: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    pytest.importorskip("onnx", reason="the peers are not installed: pip install '.[peers]'")
    from _peers_networks import onnx_model

    images, wanted = golden
    compiled = ov.Core().compile_model(onnx_model(weights, tmp_path / "facenet.onnx"), "CPU", F32)

    np.testing.assert_allclose(compiled(images)[0], wanted, atol=TOLERANCE)


@pytest.mark.parametrize("form", ["contiguous_format", "channels_last"])
def test_the_pytorch_network_gives_the_golden_embeddings(
    form: str, weights: dict[str, np.ndarray], golden: tuple[np.ndarray, np.ndarray]
) -> None:
    torch = pytest.importorskip("torch", reason="the peers are not installed: pip install '.[peers]'")
    from _peers_networks import torch_model

    images, wanted = golden
    net = torch_model(weights).to(memory_format=getattr(torch, form))
    with torch.inference_mode():
        found = net(torch.from_numpy(images).contiguous(memory_format=getattr(torch, form))).numpy()

    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
