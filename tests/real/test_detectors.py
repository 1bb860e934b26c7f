"""The three detectors on real photographs, each against an implementation that is not ours."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgeface.vision.mtcnn as mtcnn_module
import edgeface.vision.yunet as yunet_module
from edgeface.errors import ImageError, InputError
from edgeface.vision.detector import Detector
from edgeface.vision.image import read_image
from edgeface.vision.load import load_detector
from edgeface.vision.mtcnn import MTCNN
from edgeface.vision.mtcnn_nets import load_weights
from edgeface.vision.nms import overlaps

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from detectors import compare_with_reference
from mtcnn_tensorflow import TensorFlowMTCNN

pytestmark = pytest.mark.real

_FACES = {"lennon-1": 1, "lennon-2": 1, "longoria-cooper": 2, "multiface": 6}


@pytest.fixture(scope="module")
def photos(data: Path) -> dict[str, np.ndarray]:
    return {name: read_image(data / "photos" / f"{name}.jpg") for name in _FACES}


@pytest.fixture(scope="module")
def mtcnn(data: Path) -> Iterator[Detector]:
    with load_detector("mtcnn", model=data / "mtcnn") as detector:
        yield detector


def _yunet(data: Path) -> Detector:
    return load_detector("yunet", model=data / "yunet" / "yunet_n_dynamic.onnx")


def _retail(data: Path, *, landmarks: bool = True) -> Detector:
    folder = data / "omz"
    return load_detector(
        "retail-0004",
        model=folder / "face-detection-retail-0004" / "FP32" / "face-detection-retail-0004.xml",
        landmarks_model=folder / "landmarks-regression-retail-0009" / "FP32" / "landmarks-regression-retail-0009.xml"
        if landmarks
        else None,
    )


@pytest.mark.parametrize("name", ["mtcnn", "yunet"])
def test_a_detector_from_the_cache_finds_exactly_the_same(data: Path, photos, tmp_path: Path, name: str):
    model = data / ("mtcnn" if name == "mtcnn" else "yunet/yunet_n_dynamic.onnx")
    images = list(photos.values())
    found = []
    for _ in range(2):
        with load_detector(name, model=model, cache_dir=tmp_path) as detector:
            found.append(detector.detect(images))
    for built, cached in zip(*found, strict=True):
        assert len(built) > 0
        np.testing.assert_array_equal(built.boxes, cached.boxes)
        np.testing.assert_array_equal(built.landmarks, cached.landmarks)


def test_the_wheel_holds_the_reference_weights(data: Path):
    pytest.importorskip("joblib")
    wheel, reference = load_weights(), load_weights(data / "mtcnn")
    for name in reference:
        for ours, theirs in zip(wheel[name], reference[name], strict=True):
            assert np.array_equal(ours.kernel, theirs.kernel)
            assert np.array_equal(ours.bias, theirs.bias)
            assert (ours.slope is None and theirs.slope is None) or np.array_equal(ours.slope, theirs.slope)


@pytest.mark.parametrize("change", [(0, 0, 0, 0), (-6, -6, 6, 6), (8, 8, 8, 8), (0, 12, 0, -12)])
def test_mtcnn_locates_the_landmarks_of_faces_whose_boxes_are_known(
    change: tuple[int, ...], photos: dict[str, np.ndarray], mtcnn: Detector
):
    assert isinstance(mtcnn, MTCNN)
    for image in photos.values():
        (faces,) = mtcnn.detect([image])
        located = mtcnn.locate(image, faces.boxes[::-1] + change)[list(range(len(faces)))[::-1]]
        eyes = np.linalg.norm(faces.landmarks[:, 1] - faces.landmarks[:, 0], axis=1)
        errors = np.linalg.norm(located.landmarks - faces.landmarks, axis=2).mean(axis=1) / eyes
        assert np.median(errors) <= 0.06
        assert errors.max() <= 0.2
        assert (located.scores > 0.8).all()


def test_mtcnn_says_of_a_box_without_a_face_that_there_is_none(mtcnn: Detector):
    assert isinstance(mtcnn, MTCNN)
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    assert mtcnn.locate(image, np.array([[20, 20, 80, 90], [-30, -30, 40, 40]])).scores.max() < 0.1
    assert len(mtcnn.locate(image, np.empty((0, 4)))) == 0
    for box in ((20, 20, 20, 90), (20, 20, 21, 90), (50, 20, 20, 90), (0, 0, np.nan, 9)):
        with pytest.raises(InputError, match="more than a pixel"):
            mtcnn.locate(image, np.array([box]))


@pytest.mark.parametrize(
    "images", [400, pytest.param(7701, marks=[pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(900)])]
)
def test_mtcnn_agrees_with_the_stored_reference(images: int, data: Path, mtcnn: Detector, capsys):
    answer = compare_with_reference(mtcnn, data, limit=images)
    with capsys.disabled():  # to be seen where the test passes, too
        print(f"\nMTCNN on {images} images, boxes off by more than one pixel:", *answer["disagreements"], sep="\n")
    assert answer["images"] == images
    assert answer["same_face"] >= 0.995 * answer["images"], answer["disagreements"]
    assert answer["median_box_difference"] <= 1
    assert answer["median_landmark_difference"] <= 1


@pytest.mark.parametrize(
    "images", [60, pytest.param(7701, marks=[pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1800)])]
)
def test_mtcnn_in_tiles_gives_the_bits_that_whole_levels_give(images, data, mtcnn, photos, monkeypatch):
    paths = sorted((data / "lfw" / "images").rglob("*.jpg"))
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, images).astype(int)]
    shares = [list(map(read_image, chosen[start : start + 64])) for start in range(0, len(chosen), 64)]
    large = cv2.resize(photos["multiface"], (2001, 1333))
    found = {}
    for tile in (1 << 20, mtcnn_module._TILE, 31):
        monkeypatch.setattr(mtcnn_module, "_TILE", tile)
        faces = [*itertools.chain.from_iterable(map(mtcnn.detect, shares)), *mtcnn.detect([large])]
        found[tile] = [each.boxes.tobytes() + each.landmarks.tobytes() + each.scores.tobytes() for each in faces]
    whole, *tiled = found.values()
    assert tiled == [whole, whole]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("megapixels", "most"),
    [(12, 250), *(pytest.param(*each, marks=pytest.mark.nightly) for each in ((4, 150), (60, 400)))],
)
def test_the_memory_of_detection_does_not_grow_with_copies_of_the_photo(megapixels, most):
    script = Path(__file__).parents[2] / "benchmarks" / "photo_memory.py"
    command = [sys.executable, str(script), "--megapixels", str(megapixels)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)[f"{megapixels} megapixels"]["now"]
    assert found["faces"] == 6
    assert found["detecting_mb"] < most
    assert found["reading_mb"] < found["decoded_mb"] + 30


@pytest.mark.parity
def test_mtcnn_is_the_tensorflow_reference_to_a_hundredth_of_a_pixel(data, mtcnn, photos):
    reference = TensorFlowMTCNN(data / "mtcnn")
    names = ["AJ_Cook/AJ_Cook_0001", "George_W_Bush/George_W_Bush_0001", "Tony_Blair/Tony_Blair_0001"]
    paths = [path for name in names if (path := data / "lfw" / "images" / f"{name}.jpg").is_file()]
    images = [*map(read_image, paths), photos["longoria-cooper"], photos["multiface"]]
    for image, faces in zip(images, mtcnn.detect(images), strict=True):
        boxes, points = reference.detect(np.ascontiguousarray(image[:, :, ::-1]))
        assert len(faces) == len(boxes)
        assert np.allclose(faces.boxes, boxes[:, :4], atol=0.01)
        assert np.allclose(faces.scores, boxes[:, 4], atol=1e-4)
        assert np.allclose(faces.landmarks, points.T.reshape(-1, 2, 5).transpose(0, 2, 1), atol=0.01)


def test_mtcnn_gives_the_same_whatever_images_are_detected_together(mtcnn, photos):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (height, 90, 3), np.uint8) for height in (5, 13, 30, 64)]
    images = [*photos.values(), *noise, *[photos["longoria-cooper"]] * 9]
    together = mtcnn.detect(images)
    for image, faces in zip(images[:8], together, strict=False):
        alone = mtcnn.detect([image])[0]
        assert len(faces) == len(alone)
        assert np.allclose(faces.boxes, alone.boxes, atol=0.01)
    assert mtcnn.detect([]) == []


@pytest.mark.parametrize("name", ["mtcnn", "yunet", "retail-0004"])
def test_every_detector_finds_the_faces_of_the_photographs(name, data, mtcnn, photos):
    detector = {"mtcnn": lambda: mtcnn, "yunet": lambda: _yunet(data), "retail-0004": lambda: _retail(data)}[name]()
    found = detector.detect(list(photos.values()))
    assert {key: len(faces) for key, faces in zip(photos, found, strict=True)} == _FACES
    for faces in found:
        assert (np.diff(faces.scores) <= 0).all()
        left_eye, right_eye, nose, left_mouth, right_mouth = faces.landmarks.transpose(1, 0, 2)
        assert (left_eye[:, 0] < right_eye[:, 0]).all()
        assert (left_mouth[:, 0] < right_mouth[:, 0]).all()
        assert (left_eye[:, 1] < nose[:, 1]).all()
        assert (nose[:, 1] < left_mouth[:, 1]).all()


@pytest.mark.parametrize("name", ["yunet", "retail-0004"])
def test_the_landmarks_of_the_detectors_agree(name, data, mtcnn, photos):
    other = _yunet(data) if name == "yunet" else _retail(data)
    image = photos["multiface"]
    ours, theirs = mtcnn.detect([image])[0], other.detect([image])[0]
    for landmarks in ours.landmarks:
        distance = np.linalg.norm(theirs.landmarks - landmarks, axis=2).mean(axis=1).min()
        assert distance < 0.25 * np.linalg.norm(landmarks[1] - landmarks[0])


def test_yunet_is_opencv_s_own(data: Path, photos: dict[str, np.ndarray]):
    model = data / "yunet" / "yunet_n_dynamic.onnx"
    for image in (photos["longoria-cooper"], cv2.resize(photos["multiface"], (640, 336))):
        oracle = cv2.FaceDetectorYN.create(str(model), "", image.shape[1::-1], 0.7, 0.3, 5000)
        rows = oracle.detect(image)[1]
        faces = _yunet(data).detect([image])[0]
        expected = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        assert np.allclose(faces.boxes, expected, atol=0.02)
        assert np.allclose(faces.landmarks, rows[:, 4:14].reshape(-1, 5, 2), atol=0.02)
        assert np.allclose(faces.scores, rows[:, 14], atol=1e-4)


@pytest.fixture(scope="module")
def crowd(data: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A large photo with faces of 34 to 56 pixels and one of 800; boxes and landmarks, found in photos of their own."""
    paths, rng = sorted((data / "lfw" / "images").rglob("*.jpg")), np.random.default_rng(3)
    faces = [read_image(path) for path in paths[:: len(paths) // 24][:25]]
    photo = cv2.resize(rng.integers(40, 200, (9, 13, 3), np.uint8), (2600, 1800), interpolation=cv2.INTER_CUBIC)
    boxes, landmarks = [], []
    for number, (image, found) in enumerate(zip(faces, _yunet(data).detect(faces), strict=True)):
        face = found[found.largest(image.shape[:2])]
        size = 800 if number == 0 else float(rng.uniform(34, 56))
        scale = size / float((face.boxes[0, 2:] - face.boxes[0, :2]).min())
        part = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:1780, :1700]
        x, y = (10, 10) if number == 0 else (1740 + 210 * (number % 4), 20 + 290 * (number // 4 % 6))
        photo[y : y + len(part), x : x + part.shape[1]] = part
        boxes.append(face.boxes[0] * scale + [x, y, x, y])
        landmarks.append(face.landmarks[0] * scale + [x, y])
    return photo, np.float32(boxes), np.float32(landmarks)


def test_yunet_finds_small_and_large_faces_of_one_photo_and_locates_the_small_ones_exactly(
    data: Path, crowd: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
):
    photo, boxes, landmarks = crowd
    errors = {}
    for seen in (0, yunet_module._SEEN):
        monkeypatch.setattr(yunet_module, "_SEEN", seen)
        with load_detector("yunet", model=data / "yunet" / "yunet_n_dynamic.onnx", min_size=30) as detector:
            (faces,) = detector.detect([photo])
        shared = overlaps(boxes, faces.boxes)
        found = shared.max(axis=1) > 0.5
        assert found[0]
        assert found.sum() >= len(boxes) - 2
        assert len(faces) <= len(boxes) + 2  # a part of the large face is none
        eyes = np.linalg.norm(landmarks[:, 1] - landmarks[:, 0], axis=1)
        off = np.linalg.norm(faces.landmarks[shared.argmax(axis=1)] - landmarks, axis=2).mean(axis=1) / eyes
        errors[seen] = np.median(off[found])
    assert errors[yunet_module._SEEN] < 0.9 * errors[0]


def test_yunet_in_tiles_finds_what_it_finds_in_the_whole_photo(
    data: Path, crowd: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
):
    found = []
    for tile in (4096, 480):
        monkeypatch.setattr(yunet_module, "_TILE", tile)
        with load_detector("yunet", model=data / "yunet" / "yunet_n_dynamic.onnx", min_size=30) as detector:
            found += detector.detect([crowd[0]])
    whole, tiled = found
    assert abs(len(whole) - len(tiled)) <= 1
    assert (overlaps(whole.boxes, tiled.boxes).max(axis=1) > 0.8).sum() >= len(whole) - 1


def test_yunet_of_a_fixed_size_works_too(data: Path, photos: dict[str, np.ndarray]):
    with load_detector("yunet", model=data / "yunet" / "yunet_n_320_320.onnx") as detector:
        assert len(detector.detect([photos["longoria-cooper"]])[0]) == 2


def test_retail_0004_without_landmarks_says_so_with_nan(data: Path, photos: dict[str, np.ndarray]):
    faces = _retail(data, landmarks=False).detect([photos["multiface"]])[0]
    assert len(faces) == 6
    assert np.isnan(faces.landmarks).all()


def test_thresholds_and_sizes_thin_out_the_faces(data: Path, photos: dict[str, np.ndarray]):
    image = photos["longoria-cooper"]
    for name, model in (("mtcnn", data / "mtcnn"), ("yunet", data / "yunet" / "yunet_n_dynamic.onnx")):
        with load_detector(name, model=model, min_size=200) as detector:
            assert len(detector.detect([image])[0]) == 0
        with load_detector(name, model=model, threshold=1) as detector:
            assert len(detector.detect([image])[0]) == 0


@pytest.mark.parametrize("min_size", [40, 80, 160])
def test_no_detector_returns_a_face_below_the_smallest_size(data: Path, photos: dict[str, np.ndarray], min_size: int):
    for name, model in (("mtcnn", None), ("yunet", data / "yunet" / "yunet_n_dynamic.onnx")):
        with load_detector(name, model=model, min_size=min_size) as detector:
            for image in (photos["longoria-cooper"], photos["multiface"]):
                boxes = detector.detect([image])[0].boxes
                assert ((boxes[:, 2:] - boxes[:, :2]) >= min_size).all()


def test_a_photo_full_of_faces_is_refused_before_hours_of_comparing(
    mtcnn: Detector, photos: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    face = cv2.resize(photos["longoria-cooper"][40:200, 40:200], (24, 24), interpolation=cv2.INTER_AREA)
    crowd = np.tile(face, (20, 20, 1))
    monkeypatch.setattr(mtcnn_module, "_ALWAYS", 2_000 - int(0.004 * 480 * 480))  # a small photo may have fewer
    with pytest.raises(ImageError, match=r"at most 2,000 places .* found [0-9,]+; look for larger faces"):
        mtcnn.detect([crowd])
    assert len(mtcnn.detect([photos["multiface"]])[0]) == 6
