"""Real crops: davidsandberg's recipe on LFW, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeface.model.contract import Alignment
from edgeface.vision.align import align
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
