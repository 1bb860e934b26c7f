"""The runtime on the published FaceNet: golden embeddings, in order, from every thread, and memory that stays."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeface.runtime import DevicePlan, Embedder, ImageFormat, encrypt_ir

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
EXACT = 1e-6
F32 = DevicePlan(device="CPU", hint="THROUGHPUT", precision="f32")


@pytest.fixture(scope="module")
def bgr(golden: Any) -> np.ndarray:
    return np.ascontiguousarray(golden.images[..., ::-1])


@pytest.fixture(scope="module")
def embedder(real_ir: Path) -> Any:
    with Embedder.load(real_ir, plan=F32) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("image_format", "change"),
    [
        (ImageFormat(), lambda bgr: bgr),
        (ImageFormat(color="RGB"), lambda bgr: bgr[..., ::-1]),
        (ImageFormat(color="RGBX"), lambda bgr: np.concatenate([bgr[..., ::-1], bgr[..., :1]], -1)),
        (ImageFormat(dtype="f32", layout="NCHW"), lambda bgr: bgr.transpose(0, 3, 1, 2).astype(np.float32)),
        (ImageFormat(dtype="f16"), lambda bgr: bgr.astype(np.float16)),
        (ImageFormat(size="any"), lambda bgr: bgr),
    ],
    ids=["default", "RGB", "RGBX", "f32-NCHW", "f16", "any"],
)
def test_lossless_formats_give_tensorflows_embeddings(real_ir, golden, bgr, image_format, change):
    with Embedder.load(real_ir, plan=F32, image_format=image_format) as loaded:
        found = loaded.embed(np.ascontiguousarray(change(bgr)))
    np.testing.assert_allclose(found, golden.embeddings, rtol=0, atol=EXACT)


def test_buckets_and_virtual_devices_give_tensorflows_embeddings(real_ir, golden, bgr):
    for plan in (
        DevicePlan(device="CPU", batch_buckets=(1, 4, 8), precision="f32"),
        DevicePlan(device="AUTO:CPU", hint="THROUGHPUT", precision="f32"),
        DevicePlan(device="HETERO:CPU", hint="THROUGHPUT", precision="f32"),
    ):
        with Embedder.load(real_ir, plan=plan) as loaded:
            np.testing.assert_allclose(loaded.embed(bgr), golden.embeddings, rtol=0, atol=EXACT)


@pytest.mark.slow
def test_64_threads_get_their_own_embeddings_and_map_keeps_order(embedder, golden, bgr):
    with ThreadPoolExecutor(64) as clients:
        found = list(clients.map(lambda n: embedder.embed(bgr[n % 24])[0], range(128)))
    np.testing.assert_allclose(found, golden.embeddings[np.arange(128) % 24], rtol=0, atol=EXACT)
    found = list(embedder.map(bgr[n % 24] for n in range(72)))
    np.testing.assert_allclose(found, golden.embeddings[np.arange(72) % 24], rtol=0, atol=EXACT)


def test_concatenated_mirror_is_the_embedding_of_the_mirror(real_ir, golden, bgr):
    with Embedder.load(real_ir, plan=F32, flip="concatenate") as loaded:
        rows = loaded.embed(bgr[:4])
    with Embedder.load(real_ir, plan=F32) as loaded:
        mirrored = loaded.embed(np.ascontiguousarray(bgr[:4, :, ::-1]))
    np.testing.assert_allclose(rows, np.hstack([golden.embeddings[:4], mirrored]), rtol=0, atol=EXACT)


@pytest.mark.slow
def test_sealed_and_cached_model_is_the_same(real_ir, golden, bgr, tmp_path):
    key = bytes(32)
    sealed = encrypt_ir(real_ir, key, tmp_path / "facenet.sealed")
    for hit in (False, True):
        with Embedder.load(sealed, key=key, cache_dir=tmp_path / "cache", plan=F32) as loaded:
            assert loaded.execution.loaded_from_cache is hit
            np.testing.assert_allclose(loaded.embed(bgr[:4]), golden.embeddings[:4], rtol=0, atol=EXACT)


@pytest.mark.slow
def test_memory_stays_where_it_was(real_ir):
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--ir", str(real_ir), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["holds"], done.stdout
