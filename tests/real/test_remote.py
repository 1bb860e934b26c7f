"""The published FaceNet on a server: the embeddings of real crops are the local ones, over both protocols."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra 'remote' is not installed")

from unit.serve.conftest import serving_both

from edgeface.runtime import DevicePlan, Embedder
from edgeface.scale.ovms import export_ovms
from edgeface.serve.service import Service
from edgeface.serve.settings import Settings

pytestmark = [pytest.mark.real, pytest.mark.nightly, pytest.mark.timeout(120)]


def test_a_served_facenet_gives_the_local_embeddings_to_a_millionth(
    real_ir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = sorted((data / "lfw" / "images" / "Tony_Blair").glob("*.jpg"))[:4]
    crops = np.stack([cv2.resize(cv2.imread(str(path)), (160, 160)) for path in photos])
    with Embedder.load(real_ir, plan=DevicePlan(device="CPU", precision="f32")) as embedder:
        expected = embedder.embed(crops)
    (exported,) = export_ovms([real_ir], tmp_path / "models", name="facenet")
    given = {
        "state": tmp_path / "state",
        "listen": {"grpc_port": 0},
        "models": {"facenet": {"model": str(exported.ir.parents[1]), "detector": None}},
        "galleries": {"default": {"model": "facenet"}},
    }
    with Service(Settings.model_validate(given)) as service, serving_both(service) as (port, grpc_address):
        assert grpc_address is not None
        monkeypatch.setenv("EDGEFACE_SERVER_KEY", service.first_key or "")
        for option in ("", f"?grpc={grpc_address.rpartition(':')[2]}"):
            with Embedder.load(f"ovms://127.0.0.1:{port}/facenet{option}") as remote:
                assert np.abs(remote.embed(crops) - expected).max() <= 1e-6
                assert remote.contract.contract_id == embedder.contract.contract_id
