"""What `benchmarks/lfw.py` takes from an earlier run, and how it compares with one."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from edgeface.evaluate.faces import FaceSource
from edgeface.evaluate.pairs import parse_pairs
from edgeface.vision.detector import Faces

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))


class FakeEmbedder:
    """Embeds a crop as its mean, and counts."""

    def __init__(self, **changed: Any) -> None:
        given = {"contract_id": "a", "execution_devices": ("CPU",), "precision": "f32"} | changed
        self.contract = SimpleNamespace(contract_id=given["contract_id"])
        self.execution = SimpleNamespace(execution_devices=given["execution_devices"], precision=given["precision"])
        self.embedded = 0

    def map(self, crops: Any) -> Any:
        for crop in crops:
            self.embedded += 1
            yield np.array([crop.mean()], np.float32)


CROPS = [np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 10)]


def test_a_cache_of_the_same_settings_is_used(tmp_path: Path) -> None:
    from lfw import Cache

    first, again = FakeEmbedder(), FakeEmbedder()
    wanted = Cache(first, tmp_path / "cache.npz").embed(CROPS, "test")  # type: ignore[arg-type]
    found = Cache(again, tmp_path / "cache.npz").embed(CROPS, "test")  # type: ignore[arg-type]

    assert wanted.ravel().tolist() == found.ravel().tolist() == [10, 20, 10]
    assert again.embedded == 0


@pytest.mark.parametrize("changed", [{"contract_id": "b"}, {"execution_devices": ("GPU",)}, {"precision": "bf16"}])
def test_a_cache_of_other_settings_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    from lfw import Cache

    Cache(FakeEmbedder(), tmp_path / "cache.npz").embed(CROPS, "test")  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="expected results of"):
        Cache(FakeEmbedder(**changed), tmp_path / "cache.npz")  # type: ignore[arg-type]


class CountingDetector:
    """Finds as many faces as the image's first pixel says, and counts the images."""

    settings: dict[str, Any] = {"name": "counting", "min_size": 20}  # noqa: RUF012

    def __init__(self) -> None:
        self.seen = 0

    def detect(self, images: Any) -> list[Faces]:
        self.seen += len(images)
        counts = [int(image[0, 0, 0]) for image in images]
        return [
            Faces(np.full((n, 4), n, np.float32), np.full((n, 5, 2), n, np.float32), np.full(n, 0.5, np.float32))
            for n in counts
        ]


def test_an_image_is_detected_once_in_all_runs(tmp_path: Path) -> None:
    from lfw import CachedDetector

    images = [np.full((3, 4, 3), value, np.uint8) for value in (2, 0, 1)]
    first, path = CountingDetector(), tmp_path / "new" / "faces.npz"
    with contextlib.closing(CachedDetector(first, path)) as detector:  # type: ignore[arg-type]
        wanted = detector.detect(images[:2]) + detector.detect(images[1:])
    assert first.seen == 3
    second = CountingDetector()
    again = CachedDetector(second, path).detect(images)  # type: ignore[arg-type]
    assert second.seen == 0
    for one, other in zip(wanted[:2] + wanted[3:], again, strict=True):
        for name in ("boxes", "landmarks", "scores"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    second.settings = {"name": "counting", "min_size": 40}
    with pytest.raises(SystemExit, match="expected results of"):
        CachedDetector(second, path)  # type: ignore[arg-type]


def test_a_part_of_the_pairs_has_both_kinds_in_each_fold() -> None:
    from lfw import shortened

    rows = [f"{name}\t1\t2" if same else f"{name}\t1\tX\t{n}" for n in (1, 2) for same in (1, 0) for name in "AB"]
    pairs = parse_pairs("\n".join(["2\t2", *rows]).encode())
    part = shortened(pairs, 1)
    assert part.same.tolist() == [True, False, True, False]
    named = [(part.images[a], part.images[b]) for a, b in zip(part.first, part.second, strict=True)]
    assert named == [
        ("A/A_0001", "A/A_0002"),
        ("A/A_0001", "X/X_0001"),
        ("A/A_0001", "A/A_0002"),
        ("A/A_0001", "X/X_0002"),
    ]
    assert shortened(pairs, None) is pairs


def test_the_second_photo_of_a_pair_is_replaced_by_a_copy_with_a_smaller_face(tmp_path: Path) -> None:
    from lfw import make_smaller

    class Half(CountingDetector):
        """Takes the left half of an image for a face."""

        def detect(self, images: Any) -> list[Faces]:
            boxes = [np.float32([[0, 0, image.shape[1] / 2, image.shape[0]]]) for image in images]
            return [Faces(box, np.zeros((1, 5, 2), np.float32), np.ones(1, np.float32)) for box in boxes]

    pairs = parse_pairs(b"1\t1\nA\t1\t2\nA\t2\tX\t1")
    files = [tmp_path / f"{number}.png" for number in range(len(pairs.images))]
    for file in files:
        cv2.imwrite(str(file), np.zeros((120, 200, 3), np.uint8))
    copied, both = make_smaller(pairs, files, FaceSource(detector=Half()), 20, tmp_path)  # type: ignore[arg-type]
    assert [both[row] for row in copied.first] == [files[row] for row in pairs.first]
    assert [copied.images[row] for row in copied.second] == [pairs.images[row] for row in pairs.second]
    assert {cv2.imread(str(both[row])).shape for row in copied.second} == {(24, 40, 3)}
    assert len(both) == len(copied.images) == 5


def test_a_row_that_is_less_accurate_than_before_or_new_is_named() -> None:
    from lfw import table, worse_than

    row = {"model": "m", "faces": "f", "recipe": "own", "row": "facenet, one image", "accuracy": 0.986}
    assert worse_than([row], [row | {"accuracy": 0.987}]) == []
    assert worse_than([row], [row | {"accuracy": 0.9871}]) == ["m, f, own, facenet, one image: 0.9860, earlier 0.9871"]
    assert worse_than([row], [row | {"faces": "g"}]) == ["m, f, own, facenet, one image: 0.9860, earlier not measured"]
    assert table([row, row | {"row": "facenet, mirror", "accuracy": 0.99}]).splitlines()[2:] == [
        "| m | f | own | 0.9860 | 0.9900 |"
    ]
