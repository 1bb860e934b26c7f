"""Crops in order, failures counted, and files that do not fit named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeface.errors import ImageError, InputError
from edgeface.evaluate.faces import Boxes, FaceCutter, FaceSource, find_images, load_boxes
from edgeface.model.contract import Alignment
from edgeface.vision.detector import Faces

BOX = np.array([20, 10, 60, 70], np.float32)


def known(names: Sequence[str], boxes: np.ndarray) -> Boxes:
    """Boxes that were measured before, without landmarks."""
    landmarks = np.full((len(names), 5, 2), np.nan, np.float32)
    return Boxes({name: row for row, name in enumerate(names)}, boxes, landmarks, np.ones(len(names), bool))


class Finder:
    """Finds the bright rectangle, and a smaller one in the corner; nothing in pictures that are dark."""

    name = "finder"

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        found = []
        for image in images:
            boxes = np.stack([np.array([0, 0, 9, 9], np.float32), BOX]) if image.max() > 101 else np.empty((0, 4))
            points = np.full((len(boxes), 5, 2), np.nan, np.float32)
            found.append(Faces(boxes.astype(np.float32), points, np.ones(len(boxes), np.float32)))
        return found


def test_crops_come_in_order_and_hold_the_face(photographs, contract) -> None:
    files, names = photographs(60)
    boxes = known(names, np.tile(BOX, (60, 1)))
    cutter = FaceCutter(files, names, contract, FaceSource(boxes))
    crops = list(cutter)
    assert {crop.shape for crop in crops} == {(16, 16, 3)}
    assert [(crop.min(), crop.max()) for crop in crops] == [(100 + k, 100 + k) for k in range(60)]
    assert not cutter.failures
    np.testing.assert_array_equal(cutter.crop(7), crops[7])


def test_a_detector_gets_the_contracts_margin_and_the_face_the_picture_is_about(photographs, contract) -> None:
    files, names = photographs(5)
    cutter = FaceCutter(files, names, contract, FaceSource(detector=Finder()))
    crops = list(cutter)
    assert cutter.failures == names[:2]
    assert crops[4][8, 8].tolist() == [104] * 3
    assert crops[4][0, 0].tolist() == [0] * 3  # the margin's dark ground
    np.testing.assert_array_equal(FaceCutter(files, names, contract, FaceSource(detector=Finder())).crop(4), crops[4])


def test_a_photo_is_searched_once_for_models_of_several_crops(photographs, contract) -> None:
    files, names = photographs(5)
    finder, seen = Finder(), list[int]()
    detect = finder.detect
    finder.detect = lambda images: [seen.append(len(images)), detect(images)][1]  # type: ignore[method-assign]
    first = FaceCutter(files, names, contract, FaceSource(detector=finder))
    other = dataclasses.replace(contract, input_size=(24, 32), alignment=Alignment("mtcnn-box-margin", 0))
    second = first.for_contract(other)
    assert [len(list(cutter)) for cutter in (first, second)] == [5, 5]
    assert sum(seen) == 5
    alone = FaceCutter(files, names, other, FaceSource(detector=Finder()))
    np.testing.assert_array_equal(second.crop(4), alone.crop(4))
    assert second.failures == first.failures == names[:2]


def test_where_no_face_is_found_the_middle_is_cut_and_counted(photographs, contract) -> None:
    files, names = photographs(3)
    boxes = known(names[:2], np.stack([BOX, BOX[[2, 3, 0, 1]]]))
    cutter = FaceCutter(files, names, contract, FaceSource(boxes))
    assert len(list(cutter)) == 3
    assert cutter.failures == [names[1], names[2]]  # one box has no extent, one image is not in the file


def test_landmark_recipes_without_landmarks_are_failures_too(photographs, contract) -> None:
    files, names = photographs(4)
    five_points = dataclasses.replace(contract, alignment=Alignment("five-point-112"), input_size=(112, 112))
    cutter = FaceCutter(files, names, five_points, FaceSource(detector=Finder()))
    assert {crop.shape for crop in cutter} == {(112, 112, 3)}
    assert cutter.failures == names


def test_crops_made_before_are_only_resized(photographs, contract) -> None:
    files, names = photographs(2)
    crop = next(iter(FaceCutter(files, names, contract)))
    assert crop.shape == (16, 16, 3)
    assert crop[0, 0, 0] == 0
    assert crop[8, 6, 0] == 100


def test_a_broken_image_is_named_and_stops_the_rest(photographs, contract) -> None:
    files, names = photographs(100)
    files[30].write_bytes(b"no image")
    with pytest.raises(ImageError, match="P30_0001"):
        list(FaceCutter(files, names, contract))


def test_leaving_early_leaves_no_thread_behind(photographs, contract) -> None:
    files, names = photographs(100)
    crops = iter(FaceCutter(files, names, contract))
    next(crops)
    crops.close()  # would hang here otherwise


def test_images_are_found_whatever_their_suffix_and_missing_ones_are_named(photographs, tmp_path: Path) -> None:
    files, names = photographs(3)
    files[1] = files[1].rename(files[1].with_suffix(".jpg"))
    root = tmp_path / "images"
    assert find_images(root, names) == files
    assert find_images(root, ["P0/P0_0001.png"]) == [files[0]]
    with pytest.raises(InputError, match=r"7 of 8 are missing: X/X_0, X/X_1, X/X_2, X/X_3, X/X_4, \.\.\."):
        find_images(root, [*[f"X/X_{k}" for k in range(7)], names[0]])


def test_boxes_are_read_with_the_landmarks_transposed_and_zeros_mean_nothing_found(tmp_path: Path) -> None:
    points = np.array([[1, 2, 3, 4, 5, 10, 20, 30, 40, 50], [0] * 10], np.float32)
    np.savez(tmp_path / "b.npz", names=["A/A_0001", "B/B_0001"], boxes=np.array([BOX, BOX], int), points=points)
    boxes = load_boxes(tmp_path / "b.npz")
    assert boxes.landmarks[0].tolist() == [[1, 10], [2, 20], [3, 30], [4, 40], [5, 50]]
    assert boxes.found.tolist() == [True, False]
    np.savez(tmp_path / "b.npz", names=["A/A_0001"], boxes=BOX[None])
    without = load_boxes(tmp_path / "b.npz")
    assert without.found.tolist() == [True]
    assert np.isnan(without.landmarks).all()


def test_a_file_that_holds_no_boxes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    for arrays in ({}, {"names": ["A"], "boxes": np.zeros((2, 4))}, {"names": np.empty(0), "boxes": np.zeros((0, 4))}):
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=r"b\.npz: expected names \(N,\), boxes \(N, 4\)"):
            load_boxes(path)
    for raw in (b"", b"PK\x03\x04rubbish", b"\x93NUMPY"):
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"b\.npz: expected a \.npz"):
            load_boxes(path)
    with pytest.raises(InputError, match=r"none\.npz"):
        load_boxes(tmp_path / "none.npz")


def test_boxes_of_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", names=["A/A_0001"], boxes=np.array([["1", "2", "3", "x"]]))
    with pytest.raises(InputError, match=r"b\.npz: expected numeric boxes and points, found <U1"):
        load_boxes(tmp_path / "b.npz")


def test_boxes_of_other_images_are_refused_and_not_counted_as_failures(photographs, contract) -> None:
    files, names = photographs(3)
    boxes = known(["Q0/Q0_0001"], BOX[None])
    with pytest.raises(InputError, match=r"boxes of these images \(P0/P0_0001, .* boxes of others \(Q0/Q0_0001"):
        FaceCutter(files, names, contract, FaceSource(boxes))


def test_no_damage_to_a_file_of_boxes_gets_past_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    np.savez(path, names=["A/A_0001"], boxes=BOX[None], points=np.ones((1, 10)))
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(600):
        raw = bytearray(whole)
        for place in rng.integers(len(raw), size=rng.choice([1, 3, 20])):
            raw[place] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        try:
            load_boxes(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 - a flipped bit that means nothing is read
            refused += 1
    assert refused > 400


def test_what_cannot_be_a_crop_counts_as_a_failure_and_says_why(tmp_path: Path, contract) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    images = {"photo": photo, "blank": np.full((16, 16, 3), 90, np.uint8)}
    for name, image in images.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), image)
    cutter = FaceCutter([tmp_path / f"{name}.png" for name in images], list(images), contract)
    assert len(list(cutter)) == 2
    assert cutter.failures == list(images)
    assert "found 500x300; if it is a photo, leave out --crops" in cutter.reasons["photo"]
    assert "one colour" in cutter.reasons["blank"]
