"""Real crops: davidsandberg's recipe on LFW, bit for bit."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeface.model.contract import Alignment
from edgeface.vision.align import align
from edgeface.vision.crop_check import find_no_crop
from edgeface.vision.image import read_image

pytestmark = pytest.mark.real

_GOLDEN = {
    0: "Abel_Pacheco/Abel_Pacheco_0001",
    1: "Abel_Pacheco/Abel_Pacheco_0004",
    2: "Akhmed_Zakayev/Akhmed_Zakayev_0001",
    6: "Amber_Tamblyn/Amber_Tamblyn_0001",
    8: "Anders_Fogh_Rasmussen/Anders_Fogh_Rasmussen_0001",
    12: "Angela_Bassett/Angela_Bassett_0001",
    16: "Abdel_Madi_Shabneh/Abdel_Madi_Shabneh_0001",
    17: "Dean_Barker/Dean_Barker_0001",
    19: "Giancarlo_Fisichella/Giancarlo_Fisichella_0001",
    21: "Mikhail_Gorbachev/Mikhail_Gorbachev_0001",
    22: "Abdul_Rahman/Abdul_Rahman_0001",
    23: "Portia_de_Rossi/Portia_de_Rossi_0001",
}
"""Row of golden.npz -> the LFW image it was cut from, found by comparing all 7,701 with each row."""


def test_golden_crops_come_out_of_lfw_bit_for_bit(data: Path):
    with np.load(data / "facenet-20180408-102900" / "golden.npz") as stored:
        golden = stored["images"][..., ::-1]
    with np.load(data / "lfw" / "mtcnn_reference.npz") as stored:
        boxes = dict(zip(stored["names"].tolist(), stored["boxes"], strict=True))
    for row, name in _GOLDEN.items():
        image = read_image(data / "lfw" / "images" / f"{name}.jpg")
        # The stored boxes have their margin already.
        crop = align(image, boxes[name].astype(float), None, Alignment("mtcnn-box-margin"), (160, 160))
        assert np.array_equal(crop, golden[row]), name


_SIZES = {
    "mtcnn-box-margin": (160, 160),
    "five-point-112": (112, 112),
    "five-point-96x112": (112, 96),
    "five-point-150": (150, 150),
    "outer-eyes-nose-96": (96, 96),
}


@pytest.mark.parametrize(
    "recipe", [*list(_SIZES)[:2], *(pytest.param(each, marks=pytest.mark.nightly) for each in list(_SIZES)[2:])]
)
def test_photos_are_told_from_crops_that_do_not_have_the_model_s_size(data: Path, recipe: str):
    size = _SIZES[recipe]
    with np.load(data / "lfw" / "mtcnn_reference.npz") as stored:
        names, boxes, points = stored["names"], stored["boxes"], stored["points"]
    chosen = [i for i in np.random.default_rng(3).permutation(len(names)) if points[i].any()][:100]
    photos = [read_image(data / "lfw" / "images" / f"{names[i]}.jpg") for i in chosen]
    larger = tuple(side * 5 // 4 for side in size)
    for i, photo in zip(chosen, photos, strict=True):
        face = boxes[i].astype(float), points[i].reshape(2, 5).T
        assert find_no_crop(align(photo, *face, Alignment(recipe), larger), Alignment(recipe), size) is None, names[i]
    assert find_no_crop(cv2.resize(photos[0], size[::-1]), Alignment(recipe), size) is None, (
        "the model's size is not judged"
    )
    if recipe == "five-point-112":
        told = [find_no_crop(photo, Alignment(recipe), size) for photo in photos]
        assert sum(why is not None and "this is a photo; leave out --crops" in why for why in told) >= 97


@pytest.mark.parametrize("cells", [4, 7, 11, 16])
def test_faces_as_mosaics_are_no_crops(data: Path, cells: int):
    for photo in sorted((data / "lfw" / "calibration").rglob("*.jpg"))[:25]:
        face = read_image(photo)[60:190, 60:190]
        small = cv2.resize(face, (cells, cells), interpolation=cv2.INTER_AREA)
        mosaic = cv2.resize(small, (160, 160), interpolation=cv2.INTER_NEAREST)
        assert "a mosaic of at most" in str(find_no_crop(mosaic, Alignment("mtcnn-box-margin"), (160, 160))), photo
