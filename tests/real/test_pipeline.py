"""Real people: verified on photographs, kept apart in a film, measured on LFW."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgeface
from edgeface.cli import main
from edgeface.cli.options import EvaluationOptions
from edgeface.model.ir_file import read_contract
from edgeface.pipeline.pipeline import Face, Pipeline
from edgeface.pipeline.table import EmbeddingTable
from edgeface.pipeline.tracking import EmbeddingPolicy, Tracker, assign
from edgeface.recognize.known import shipped_thresholds
from edgeface.runtime import Embedder
from edgeface.vision.detector import Detector, FoundBy
from edgeface.vision.image import read_image
from edgeface.vision.load import load_detector
from edgeface.vision.nms import overlaps
from edgeface.vision.quality import QualityGate, measure_quality
from edgeface.vision.source import Frame, open_source

pytestmark = [pytest.mark.real, pytest.mark.timeout(280)]
FRAMES = 60


@pytest.fixture(scope="module")
def detector(data: Path) -> Iterator[Detector]:
    with load_detector(model=data / "mtcnn") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def embedder(real_ir: Path) -> Iterator[Embedder]:
    with Embedder.load(real_ir) as loaded:
        yield loaded


def verify(real_ir: Path, a: Path, b: Path, *more: str) -> int:
    return main(["verify", str(a), str(b), "--model", str(real_ir), *more])


def test_two_pictures_of_lennon_are_the_same_by_the_shipped_threshold(
    real_ir: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = data / "photos"
    assert verify(real_ir, photos / "lennon-1.jpg", photos / "lennon-2.jpg", "--json", "--min-size", "20") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["same"]
    assert answer["far"] == 0.001
    assert answer["supported"]
    assert answer["score"] == pytest.approx(0.613, abs=0.01)
    assert answer["precision"] in ("f32", "bf16")
    assert verify(real_ir, photos / "lennon-1.jpg", photos / "lennon-2.jpg") == 0
    why = "(a fifth of the model's input; --min-size for smaller ones)"
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == f"faces of 32 pixels and more {why}, found by {answer['detector']}"


def test_thresholds_are_calibrated_on_faces_from_the_size_on_that_decides(
    real_ir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, photo in (("Lennon", "lennon-1"), ("Lennon", "lennon-2"), ("Longoria", "longoria-cooper")):
        (tmp_path / "people" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "photos" / f"{photo}.jpg", tmp_path / "people" / name)
    words = ["calibrate", tmp_path / "people", "--model", real_ir, "--far", "0.5", "-o", tmp_path / "t.json"]
    words += ["--detector", "mtcnn"]
    assert main([*map(str, words), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["detector"], answer["min_size"], answer["min_size_from"]) == ("mtcnn", 32, "model")
    assert "mtcnn, faces of 32 pixels and more" in (tmp_path / "t.json").read_text()
    assert main([*map(str, words)]) == 0
    assert capsys.readouterr().out.endswith("faces of 32 pixels and more, found by mtcnn\n")
    evaluation = EvaluationOptions(detector="mtcnn").open(read_contract(real_ir)[1])
    with evaluation as faces:  # as `edgeface evaluate` opens it
        assert faces.detector is not None
        assert faces.detector.settings["min_size"] == 32


@pytest.mark.parametrize("face", [1, 2])
def test_lennon_is_neither_face_of_another_picture(
    real_ir: Path, data: Path, capsys: pytest.CaptureFixture[str], face: int
) -> None:
    photos = data / "photos"
    options = ["--face-b", str(face), "--json"]
    assert verify(real_ir, photos / "lennon-1.jpg", photos / "longoria-cooper.jpg", *options) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["same"], answer["b"]["face"], answer["b"]["faces"]) == (False, face, 2)
    assert answer["score"] < 0.3


def test_with_several_faces_it_says_which_it_took_and_how_to_choose(
    real_ir: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = data / "photos"
    assert verify(real_ir, photos / "lennon-1.jpg", photos / "longoria-cooper.jpg", "--min-size", "20") == 1
    captured = capsys.readouterr()
    found = r"2 faces; compared number 1 from the left, 66x88 at \(52, (119|120)\)\. Choose another with --face-b N\."
    assert re.search(found, captured.err)  # the edge is at 119.5
    assert captured.out.startswith("different people: cosine ")
    assert verify(real_ir, photos / "lennon-1.jpg", photos / "longoria-cooper.jpg", "--face-b", "3") == 2
    assert "longoria-cooper.jpg: expected a face number from 1 to 2, found 3" in capsys.readouterr().err


def test_the_threshold_shipped_for_the_published_weights_is_found_by_their_contract(embedder: Embedder) -> None:
    thresholds = {each.far: each.value for each in shipped_thresholds(embedder.contract.contract_id)}
    assert thresholds[0.001] == pytest.approx(0.49921, abs=1e-4)


def test_a_folder_of_photographs_is_embedded_as_the_pipeline_does(
    real_ir: Path, data: Path, tmp_path: Path, detector: Detector, embedder: Embedder
) -> None:
    output = tmp_path / "out.npz"
    words = ["embed", data / "photos", "--model", real_ir, "-o", output, "--faces", "all", "--min-size", "20"]
    assert main([str(word) for word in words]) == 0
    table = EmbeddingTable.load(output)
    names = [Path(path).name for path in table.paths]
    assert {name: names.count(name) for name in names} == {
        "lennon-1.jpg": 1,
        "lennon-2.jpg": 1,
        "longoria-cooper.jpg": 2,
        "multiface.jpg": 6,
    }
    (lennon,) = Pipeline(detector, embedder).process(read_image(data / "photos" / "lennon-1.jpg"))
    assert lennon.embedding is not None
    np.testing.assert_allclose(table.vectors[0], lennon.embedding.vector, atol=1e-5)


def test_embed_says_by_how_much_photos_were_read_smaller(
    data: Path, real_ir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = read_image(data / "lfw" / "images" / "Tony_Blair" / "Tony_Blair_0018.jpg")
    cv2.imwrite(str(tmp_path / "large.jpg"), cv2.resize(photo, None, fx=6, fy=6))
    words = ["embed", tmp_path / "large.jpg", "-o", tmp_path / "out.npz", "--model", real_ir, "--min-size", "320"]
    assert main([*map(str, words), "--json"]) == 0
    told = capsys.readouterr()
    assert (answer := json.loads(told.out))["rows"] == 1
    assert (answer["reduced"], answer["min_size"], answer["min_size_from"]) == (2, 320, "min-size")
    assert "JPEGs were read at down to 1/2 of their size" in told.err


def test_a_face_too_small_for_the_model_or_the_gate_is_found_where_it_is_asked_for(data: Path, real_ir: Path) -> None:
    photo = read_image(data / "lfw" / "images" / "Tony_Blair" / "Tony_Blair_0018.jpg")
    with edgeface.load(real_ir, detector="mtcnn") as app:
        (whole,) = app.analyze(photo)
        scale = 27 / (whole.box[2:] - whole.box[:2]).min()
        small = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        assert app.found_by() == FoundBy("mtcnn", 32, "model")
        assert app.analyze(small) == app.analyze(small, gate=QualityGate()) == []
        (found,) = app.analyze(small, gate=QualityGate(min_box_side=24, min_eye_distance=10))
        assert not found.reasons
    with edgeface.load(real_ir, detector="mtcnn", min_size=20) as app:
        (found,) = app.analyze(small, gate=QualityGate())
        assert "box side" in found.reasons[0]
        (found,) = app.analyze(small)
        assert found.embedding is not None


def test_every_frame_of_the_film_comes_with_its_time(data: Path) -> None:
    with open_source(data / "video" / "faces.mp4") as frames:
        times = [(frame.index, frame.timestamp, frame.image.shape) for frame in frames]
    assert [index for index, *_ in times] == list(range(105))
    np.testing.assert_allclose([time for _, time, _ in times], np.arange(105) / 25, atol=1e-3)
    assert {shape for *_, shape in times} == {(1080, 1920, 3)}


@pytest.mark.slow
def test_people_in_the_film_keep_their_ids_with_a_third_of_the_detections(data: Path, embedder: Embedder) -> None:
    """Every track of sparse detection is one of full detection; few faces are missed; each is embedded a few times;
    and by their embeddings no more tracks go from one person to another."""
    with load_detector("yunet", model=data / "yunet" / "yunet_n_dynamic.onnx", min_size=40) as yunet:
        often = EmbeddingPolicy(least=100, most=100)  # one look every 0.15 seconds
        full = run_film(data, Pipeline(yunet, embedder, tracker=Tracker(), policy=often))
        sparse = run_film(data, Pipeline(yunet, embedder, tracker=Tracker(), policy=often, detect_every=4))
        before = embedder.counters().submitted
        camera = run_film(data, Pipeline.for_camera(yunet, embedder))
        embedded = embedder.counters().submitted - before

    assert len(tracks_of(sparse)) <= len(tracks_of(full))
    assert wrong_links(sparse) <= wrong_links(full)
    partners: dict[int, list[int]] = {}
    seen = found = 0
    for (_, all_faces), (_, some) in zip(full, sparse, strict=True):
        seen += len(all_faces)
        if not all_faces or not some:
            continue
        likeness = overlaps(*(np.stack([face.box for face in each]) for each in (all_faces, some)))
        for a, b in assign(np.where(likeness > 0.3, likeness, 0)):
            found += 1
            partners.setdefault(some[b].track_id or 0, []).append(all_faces[a].track_id or 0)
    agreeing = sum(max(map(ids.count, set(ids))) for ids in partners.values())
    assert found / seen >= 0.93
    assert agreeing / found >= 0.98
    assert sum(frame.examined == "detected" for frame, _ in camera) <= 0.5 * len(camera)
    assert embedded <= 6 * len(tracks_of(camera)) < sum(len(faces) for _, faces in camera) / 4


Film = list[tuple[Frame, list[Face]]]


def run_film(data: Path, pipeline: Pipeline) -> Film:
    with open_source(data / "video" / "faces.mp4") as film:
        return list(pipeline.run(islice(film, FRAMES)))


def tracks_of(film: Film) -> dict[int, list[np.ndarray]]:
    """The different looks at each track."""
    looks: dict[int, list[np.ndarray]] = {}
    for face in (face for _, faces in film for face in faces):
        of = looks.setdefault(face.track_id or 0, [])
        if face.embedding is not None and not (of and np.array_equal(of[-1], face.embedding.vector)):
            of.append(face.embedding.vector)
    return looks


def wrong_links(film: Film) -> int:
    """How often two successive looks at one track are certainly of two people."""
    return sum(float(a @ b) < 0.2 for of in tracks_of(film).values() for a, b in pairwise(of))


@pytest.fixture(scope="module")
def lfw(data: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every fiftieth image of LFW with the reference's box, its margin taken away, and landmarks."""
    with np.load(data / "lfw" / "mtcnn_reference.npz") as stored:
        names, boxes, points = (stored[name][::50] for name in ("names", "boxes", "points"))
    found = []
    for name, box, point in zip(names, boxes, points, strict=True):
        if point.any():
            picture = read_image(data / "lfw" / "images" / f"{name}.jpg")
            found.append((picture, np.add(box, [16, 16, -16, -16], dtype=np.float32), point.reshape(2, 5).T))
    return found


def test_the_default_gate_passes_nearly_all_of_lfw_and_no_ruined_face(lfw) -> None:
    gate = QualityGate()
    good = [gate.check(measure_quality(*face)).ok for face in lfw]
    blurred = [gate.check(measure_quality(cv2.GaussianBlur(p, (0, 0), 6), b, q)).ok for p, b, q in lfw]
    dark = [gate.check(measure_quality((p * 0.15).astype(np.uint8), b, q)).ok for p, b, q in lfw]
    assert np.mean(good) >= 0.95
    assert np.mean(blurred) <= 0.02
    assert np.mean(dark) <= 0.02


def test_blur_orders_every_real_face(lfw) -> None:
    sigmas = (0, 1.5, 3, 6)
    for picture, box, points in lfw:
        values = [
            measure_quality(cv2.GaussianBlur(picture, (0, 0), sigma) if sigma else picture, box, points).sharpness
            for sigma in sigmas
        ]
        assert values == sorted(values, reverse=True)


def test_mirrored_faces_have_mirrored_poses(lfw) -> None:
    swap = [1, 0, 2, 4, 3]
    for picture, (x0, y0, x1, y1), points in lfw:
        width = picture.shape[1]
        mirrored = (points * [-1, 1] + [width, 0])[swap]
        here = measure_quality(picture, np.array([x0, y0, x1, y1]), points)
        there = measure_quality(picture[:, ::-1].copy(), np.array([width - x1, y0, width - x0, y1]), mirrored)
        assert (there.yaw, there.roll, there.pitch) == pytest.approx((-here.yaw, -here.roll, here.pitch), abs=1e-6)
