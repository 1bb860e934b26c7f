"""FaceNet behind the adapter against the bare IR, on the golden crops."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import openvino as ov
import pytest

from edgeface.model.contract import ModelContract
from edgeface.runtime.adapter import ImageFormat, adapt

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

FACENET = "facenet-20180408-102900"
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
NUMPY = {"u8": np.uint8, "f16": np.float16, "f32": np.float32}
# Each colour in each type, each in both layouts; the other half are the same with the layouts exchanged.
LOSSLESS = [
    pytest.param(ImageFormat(color=color, dtype=dtype, layout=layout), marks=[pytest.mark.nightly] * ((a + b + c) % 2))
    for (a, color), (b, dtype), (c, layout) in itertools.product(
        enumerate(("BGR", "RGB", "GRAY", "BGRX", "RGBX")), enumerate(NUMPY), enumerate(("NHWC", "NCHW"))
    )
]
BATCH = 4


class Golden(NamedTuple):
    """The IR, its contract, its input made static, and crops with TensorFlow's embeddings."""

    model: ov.Model
    contract: ModelContract
    bare: ov.CompiledModel
    bgr: np.ndarray
    embeddings: np.ndarray

    def embed_bare(self, bgr: np.ndarray) -> np.ndarray:
        pixels = np.ascontiguousarray(bgr.transpose(0, 3, 1, 2), np.float32)
        return self.bare([pixels])[0].copy()

    def embed(self, image_format: ImageFormat, images: np.ndarray) -> np.ndarray:
        image_format.check_batch(images, self.contract)
        adapted = adapt(self.model, self.contract, image_format, batch=len(images))
        return ov.Core().compile_model(adapted, "CPU", EXACT)([images])[0].copy()


@pytest.fixture(scope="module")
def golden(data: Path, real_ir: Path) -> Golden:
    model = ov.Core().read_model(real_ir)
    contract = ModelContract.read_from(model)
    static = model.clone()
    static.reshape([BATCH, 3, 160, 160])
    with np.load(data / FACENET / "golden.npz") as stored:
        bgr, embeddings = stored["images"][..., ::-1], stored["embeddings"]
    return Golden(model, contract, ov.Core().compile_model(static, "CPU", EXACT), bgr, embeddings)


def in_format(bgr: np.ndarray, image_format: ImageFormat) -> np.ndarray:
    """The same pixels, as a caller with this format would hold them."""
    noise = np.random.default_rng(0).integers(0, 256, (*bgr.shape[:3], 1), np.uint8)
    images = {
        "BGR": bgr,
        "RGB": bgr[..., ::-1],
        "GRAY": bgr[..., 1:2],
        "BGRX": np.concatenate([bgr, noise], axis=-1),
        "RGBX": np.concatenate([bgr[..., ::-1], noise], axis=-1),
    }[image_format.color]
    if image_format.layout == "NCHW":
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, NUMPY[image_format.dtype])


def test_default_format_gives_tensorflows_embeddings(golden: Golden) -> None:
    found = golden.embed(ImageFormat(), np.ascontiguousarray(golden.bgr))
    np.testing.assert_allclose(found, golden.embeddings, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("image_format", LOSSLESS, ids=lambda f: f"{f.color}-{f.dtype}-{f.layout}")
def test_lossless_format_gives_the_bare_irs_embeddings(golden: Golden, image_format: ImageFormat) -> None:
    bgr = golden.bgr[:BATCH]
    found = golden.embed(image_format, in_format(bgr, image_format))
    expected = golden.embed_bare(np.repeat(bgr[..., 1:2], 3, axis=-1) if image_format.color == "GRAY" else bgr)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("color", ["NV12", "I420"])
def test_yuv_embeds_like_opencvs_conversion_to_within_a_grey_level(golden: Golden, color: str) -> None:
    planes, converted = [], []
    for image in golden.bgr[:BATCH]:
        plane = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
        if color == "NV12":
            plane[160:] = np.stack(plane[160:].reshape(2, -1), axis=-1).reshape(80, 160)
        code = cv2.COLOR_YUV2BGR_NV12 if color == "NV12" else cv2.COLOR_YUV2BGR_I420
        planes.append(plane[..., np.newaxis])
        converted.append(cv2.cvtColor(plane, code))
    found = golden.embed(ImageFormat(color=color), np.stack(planes))
    cosine = np.sum(found * golden.embed_bare(np.stack(converted)), axis=1)
    assert cosine.min() > 0.9999


def test_photograph_resized_in_the_graph_embeds_like_opencvs_resize(golden: Golden, data: Path) -> None:
    paths = sorted((data / "lfw" / "calibration").rglob("*.jpg"))[:BATCH]
    photos = np.stack([cv2.imread(str(path)) for path in paths])
    resized = np.stack([cv2.resize(photo.astype(np.float32), (160, 160)) for photo in photos])
    found = golden.embed(ImageFormat(size=(250, 250)), photos)
    np.testing.assert_allclose(found, golden.embed_bare(resized), rtol=0, atol=1e-4)
