"""The published liveness models on real weights: torch as an independent oracle, and upstream's three samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edgeface
from edgeface.convert.parity import run_model
from edgeface.model.ir_file import read_liveness_contract
from edgeface.vision.detector import Faces
from edgeface.vision.liveness import LivenessChecker, LivenessLimits, crop_region, load_liveness

pytestmark = pytest.mark.real
MODELS = {"minifasnet-v2": "2.7_80x80_MiniFASNetV2.pth", "minifasnet-v1se": "4_0_0_80x80_MiniFASNetV1SE.pth"}


GOLDEN: dict[str, tuple[tuple[int, int, int, int], list[list[float]], str]] = {
    # Box x y w h of upstream's own detector; flat, live and other of each model, read in numpy from the same files.
    "F1": ((178, 136, 223, 225), [[0.0837, 0.0013, 0.9150], [0.3084, 0.1433, 0.5483]], "spoof"),
    "F2": ((120, 252, 252, 256), [[0.0002, 0.0006, 0.9992], [0.0030, 0.3619, 0.6351]], "spoof"),
    "T1": ((106, 147, 207, 213), [[0.0001, 0.9902, 0.0096], [0.0000, 0.9969, 0.0031]], "live"),
}
TOLERANCE = 0.01


@pytest.fixture
def checker(liveness_irs: Path) -> Iterator[LivenessChecker]:
    """Both models, the one of 2.7 sides of the face first."""
    with load_liveness([liveness_irs / f"{name}.xml" for name in MODELS]) as loaded:
        yield loaded


def sample(data: Path, name: str) -> tuple[Any, Any]:
    """Return an image and the published box in it, as x0, y0, x1, y1."""
    x, y, w, h = GOLDEN[name][0]
    return cv2.imread(str(data / "liveness" / f"image_{name}.jpg")), np.array([[x, y, x + w, y + h]], np.float32)


@pytest.mark.parametrize("name", GOLDEN)
def test_upstreams_samples_have_the_golden_scores_and_are_fake_fake_real(
    data: Path, checker: LivenessChecker, name: str
) -> None:
    image, boxes = sample(data, name)
    (found,) = checker.score(image, boxes)

    _, expected, verdict = GOLDEN[name]
    assert np.abs(found - expected).max() < 0.001  # a tenth of what is required
    with edgeface.load_detector() as detector:
        landmarks = detector.detect([image])[0]
    faces = Faces(boxes, landmarks.landmarks[[landmarks.largest(image.shape[:2])]], np.ones(1, np.float32))
    (answer,) = checker.check(image, faces)
    assert answer.verdict == verdict, answer
    assert answer.score == pytest.approx(np.mean(expected, axis=0)[1], abs=TOLERANCE)


def scores_of(irs: Path, image: Any, box: Any, *, cut: Any = None, prepare: Any = lambda crop: crop) -> Any:
    """Run the models without the checker, which accepts nothing wrong: the mean of their probabilities."""
    found = []
    for name in MODELS:
        model, contract = read_liveness_contract(irs / f"{name}.xml")
        region = (cut or crop_region)(box, image.shape[:2], contract.crop_scale)[0]
        crop = cv2.resize(image[region], (80, 80)).astype(np.float32)
        found.append(run_model(model, np.ascontiguousarray(prepare(crop).transpose(2, 0, 1)[None]))[0])
    return np.mean(found, axis=0)


def clipped_region(box: Any, size: tuple[int, int], scale: float) -> Any:
    """Cut as some ports do: `scale` sides around the centre, and what sticks out is lost."""
    centre, sides = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * scale
    low = np.maximum(centre - sides / 2, 0).astype(int)
    high = np.minimum(centre + sides / 2, size[::-1]).astype(int)
    return (slice(low[1], high[1]), slice(low[0], high[0])), scale


@pytest.mark.parametrize("name", ["F1", "F2"])
def test_rgb_would_open_the_door_to_a_photo(data: Path, liveness_irs: Path, name: str) -> None:
    image, (box,) = sample(data, name)
    assert scores_of(liveness_irs, image, box)[1] < 0.5
    assert scores_of(liveness_irs, image, box, prepare=lambda crop: crop[:, :, ::-1])[1] > 0.9


@pytest.mark.parametrize("name", GOLDEN)
def test_values_of_0_to_1_would_be_answered_with_one_class_whatever_the_image(
    data: Path, liveness_irs: Path, name: str
) -> None:
    image, (box,) = sample(data, name)
    found = scores_of(liveness_irs, image, box, prepare=lambda crop: crop / 255)
    assert found.argmax() == 2
    assert found[2] > 0.9
    assert abs(found - np.mean(GOLDEN[name][1], axis=0)).max() > TOLERANCE


def test_a_clipped_crop_would_be_another_score(data: Path, liveness_irs: Path) -> None:
    image, (box,) = sample(data, "F1")
    found, expected = scores_of(liveness_irs, image, box, cut=clipped_region), np.mean(GOLDEN["F1"][1], axis=0)
    assert expected[2] == pytest.approx(0.7316, abs=1e-3)
    assert found[2] < expected[2] - 5 * TOLERANCE


@pytest.mark.parametrize("detector", ["mtcnn", "yunet"])
def test_the_front_door_judges_the_samples_and_changes_no_other_answer(
    data: Path, liveness_irs: Path, real_ir: Path, detector: Any
) -> None:
    model = data / "yunet" / "yunet_n_dynamic.onnx" if detector == "yunet" else None
    photos = {name: data / "liveness" / f"image_{name}.jpg" for name in GOLDEN}
    with edgeface.load(real_ir, detector=detector, detector_model=model, liveness=liveness_irs) as app:
        found = {name: app.analyze(path) for name, path in photos.items()}
        verified = app.verify(photos["T1"], photos["F2"], threshold=0.5)
    with edgeface.load(real_ir, detector=detector, detector_model=model) as app:
        assert app.verify(photos["T1"], photos["F2"], threshold=0.5).score == verified.score
        assert all(face.liveness is None for face in app.analyze(photos["T1"]))
    for name, faces in found.items():
        (face,) = faces
        assert face.liveness is not None
        assert face.liveness.verdict == GOLDEN[name][2], face
        assert face.embedding is not None
        assert face.to_dict()["liveness"]["verdict"] == GOLDEN[name][2]


def test_a_face_without_room_around_it_is_inconclusive(data: Path, liveness_irs: Path) -> None:
    image = cv2.imread(str(data / "liveness" / "image_T1.jpg"))
    near = image[90:380, 90:320]  # the face fills it
    with edgeface.load_detector() as detector, load_liveness(liveness_irs) as checker:
        (answer,) = checker.check(near, detector.detect([near])[0])
        (whole,) = checker.check(image, detector.detect([image])[0])
    assert (answer.verdict, whole.verdict) == ("inconclusive", "live")
    assert "step back" in "; ".join(answer.reasons)
    strict = LivenessLimits(min_scale=4.0)  # no face larger than a quarter of the frame
    with edgeface.load_detector() as detector, load_liveness(liveness_irs, limits=strict) as checker:
        (answer,) = checker.check(image, detector.detect([image])[0])
    assert answer.verdict == "inconclusive"


@pytest.mark.slow
def test_live_faces_are_live_with_room_around_them_and_refused_without(data: Path, checker: LivenessChecker) -> None:
    """The numbers of docs/liveness.md; too little room makes live faces spoofs, never the reverse."""
    capture, frames = cv2.VideoCapture(str(data / "video" / "faces.mp4")), []
    while (grabbed := capture.read())[0]:
        frames.append(grabbed[1])
    frames = frames[::8] + [cv2.imread(str(path)) for path in sorted((data / "photos").rglob("*.jp*g"))]
    live = dict.fromkeys((4.0, 3.3, 2.7, 2.3, 2.0, 1.8, 1.2), 0)
    total = 0
    with edgeface.load_detector("yunet", model=data / "yunet" / "yunet_n_dynamic.onnx", min_size=50) as detector:
        for frame, faces in zip(frames, detector.detect(frames), strict=True):
            for box in faces.boxes:
                sides = box[2:] - box[:2]
                if sides.min() < 50 or crop_region(box, frame.shape[:2], 4.0)[1] < 4:
                    continue
                total += 1
                for room in live:
                    width, height = sides * room + 1
                    x, y = ((box[:2] + box[2:]) / 2 - (width / 2, height / 2)).astype(int).clip(0)
                    cut = frame[y : y + int(height) + 1, x : x + int(width) + 1]
                    live[room] += checker.score(cut, (box - [x, y, x, y])[None]).mean(axis=1)[0, 1] > 0.5
    assert total == 72
    assert list(live.values()) == pytest.approx([69, 69, 68, 63, 54, 38, 24], abs=2), live
