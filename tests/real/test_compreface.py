"""Similarities of real photos by CompreFace's paths, against its formula on distances computed without edgeface."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("httptools", reason="the extra 'serve' is not installed")

from fastapi.testclient import TestClient

import edgeface
from edgeface.analyzer import FaceAnalyzer
from edgeface.runtime.embedder import Embedder
from edgeface.runtime.plan import DevicePlan
from edgeface.serve.app import create_app
from edgeface.serve.keys import Role
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]
PACHECO, ALSO_PACHECO, ZAKAYEV = (
    "Abel_Pacheco/Abel_Pacheco_0001",
    "Abel_Pacheco/Abel_Pacheco_0004",
    "Akhmed_Zakayev/Akhmed_Zakayev_0001",
)
C0, C1 = 1.1362496, 5.803152427
"""CompreFace's for FaceNet 20180408-102900 (facenet.py)."""


def load_in_f32(model: Any, *, detector: Any, min_size: int, **options: Any) -> FaceAnalyzer:
    """As `edgeface.load`, in FP32 whatever the device prefers: the oracle computes so too."""
    found = edgeface.load_detector(detector, min_size=min_size)
    return FaceAnalyzer(Embedder.load(model, plan=DevicePlan(device="CPU", precision="f32")), found)


@pytest.fixture(scope="module")
def client(real_ir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings.model_validate(
        {"state": tmp_path_factory.mktemp("state"), "models": {"default": {"model": str(real_ir)}}}
    )
    with Service(settings, load=load_in_f32) as service:
        key = service.keys.add("tests", Role.enrol)[1]
        with TestClient(create_app(service), headers={"x-api-key": key}) as client:
            yield client


def read(data: Path, name: str) -> bytes:
    return (data / "lfw" / "images" / f"{name}.jpg").read_bytes()


def distance(real_ir: Path, a: np.ndarray, b: np.ndarray) -> float:
    """Euclidean distance of the embeddings of two BGR crops, by OpenVINO alone."""
    core = ov.Core()
    compiled = core.compile_model(core.read_model(real_ir), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rows = compiled(np.stack([a, b]).transpose(0, 3, 1, 2).astype(np.float32))[0].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return float(np.linalg.norm(rows[0] - rows[1]))


@pytest.mark.parametrize("other", [ALSO_PACHECO, ZAKAYEV])
def test_the_similarity_of_two_crops_is_compreface_s_formula(
    client: TestClient, data: Path, real_ir: Path, other: str
) -> None:
    with np.load(data / "lfw" / "mtcnn_reference.npz") as stored:
        boxes = dict(zip(stored["names"].tolist(), stored["boxes"].tolist(), strict=True))
    crops = []
    for name in (PACHECO, other):
        x0, y0, x1, y1 = boxes[name]
        photo = cv2.imread(str(data / "lfw" / "images" / f"{name}.jpg"))
        crops.append(cv2.resize(photo[max(0, y0) : y1, max(0, x0) : x1], (160, 160)))
    source, target = (cv2.imencode(".png", crop)[1].tobytes() for crop in crops)
    answer = client.post(
        "/api/v1/verification/verify?detect_faces=false",
        files={"source_image": ("a.png", source), "target_image": ("b.png", target)},
    )
    expected = (math.tanh((C0 - distance(real_ir, *crops)) * C1) + 1) / 2
    assert answer.json()["result"][0]["face_matches"][0]["similarity"] == pytest.approx(expected, abs=1e-3)


def test_the_same_person_is_above_the_thresholds_of_clients_and_another_one_below(
    client: TestClient, data: Path
) -> None:
    add = "/api/v1/recognition/faces?subject=Abel%20Pacheco"
    assert client.post(add, files={"file": ("a.jpg", read(data, PACHECO))}).status_code == 201
    found = {}
    for name in (ALSO_PACHECO, ZAKAYEV):
        answer = client.post("/api/v1/recognition/recognize?limit=1", files={"file": ("a.jpg", read(data, name))})
        (face,) = answer.json()["result"]
        found[name] = face["subjects"][0]["similarity"], face["decision"]
    (same, accepted), (different, unknown) = found.values()
    assert (accepted, unknown) == ("accepted", "unknown")
    assert same > 0.9  # double-take: 0.6 is a match, below 0.4 is unknown
    assert different < 0.4
