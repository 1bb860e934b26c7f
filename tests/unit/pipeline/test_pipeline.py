"""The pipeline on an IR that embeds mean colours, with a detector that finds coloured squares."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
from tiny_ir import tiny_crop, write_tiny_ir

from edgeface.errors import ContractError, InferenceError, InputError
from edgeface.gallery.index import ExactIndex
from edgeface.gallery.records import TemplateBlock
from edgeface.pipeline.motion import MotionGate
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.tracking import EmbeddingPolicy, Tracker
from edgeface.recognize.identify import Identifier, TrackIdentifier
from edgeface.recognize.open_set import SearchThreshold
from edgeface.runtime import Embedder, ImageFormat
from edgeface.vision.detector import Faces
from edgeface.vision.liveness import Liveness
from edgeface.vision.networks import NetworkDetector
from edgeface.vision.quality import QualityGate
from edgeface.vision.source import Frame

pytestmark = pytest.mark.timeout(60)
COLORS = ((200, 20, 20), (20, 200, 20), (20, 20, 200))
SIDE = 60


class SquareDetector:
    """Finds the squares of `COLORS`; counts its calls; fails or waits when told to."""

    name = "squares"
    settings: ClassVar = {"name": "squares"}

    def __init__(self, *, fail_at: int | None = None, pause: float = 0.0) -> None:
        self.calls = 0
        self._fail_at, self._pause = fail_at, pause

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        time.sleep(self._pause)
        if self.calls == self._fail_at:
            raise InferenceError("the device was pulled out")
        self.calls += 1
        return [self._find(image) for image in images]

    def _find(self, image: np.ndarray) -> Faces:
        boxes = []
        for color in COLORS:
            low, high = (tuple(value + step for value in color) for step in (-60, 60))
            ys, xs = np.nonzero(cv2.inRange(image, low, high))
            if len(xs) > 100:
                boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        array = np.array(boxes, np.float32).reshape(-1, 4)
        unit = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]], np.float32)
        landmarks = array[:, None, :2] + unit * (array[:, None, 2:] - array[:, None, :2])
        return Faces(array, landmarks, np.full(len(array), 0.9, np.float32))


class SquareNetworks(NetworkDetector, SquareDetector):
    """A `SquareDetector` of a smallest size, which it remembers of each call."""

    name = "squares"
    default_threshold = 0.5

    def __init__(self, min_size: int) -> None:
        SquareDetector.__init__(self)
        self._min_size = min_size
        self.looked_for = list[int]()

    def _read(self, model: object, landmarks_model: object) -> object:
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, object]:
        return {"name": "squares", "min_size": self._min_size}

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        self.looked_for.append(self._min_size)
        return SquareDetector.detect(self, images)


def draw(*people: tuple[int, int, int], blur: float = 0.0) -> np.ndarray:
    """Squares (colour, x, y) with a texture that flow can hold on to."""
    random = np.random.default_rng(5)
    image = random.integers(90, 130, (240, 400, 3)).astype(np.uint8)
    for color, x, y in people:
        texture = random.integers(-20, 20, (SIDE // 4, SIDE // 4, 1)).repeat(4, 0).repeat(4, 1)
        image[y : y + SIDE, x : x + SIDE] = np.clip(np.array(COLORS[color]) + texture, 0, 255)
    return cv2.GaussianBlur(image, (0, 0), blur) if blur else image


def frames_of(images: Sequence[np.ndarray]) -> list[Frame]:
    return [Frame(image, index, index / 25, "drawn") for index, image in enumerate(images)]


def walk(count: int) -> list[Frame]:
    """Two people who walk towards each other on different heights."""
    return frames_of([draw((0, 10 + 3 * i, 20), (2, 320 - 3 * i, 140)) for i in range(count)])


def pipeline_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("edgeface-pipeline")]


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ir(tmp_path_factory.mktemp("ir"))


@pytest.fixture
def embedder(ir: Path) -> Iterator[Embedder]:
    with Embedder.load(ir) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert pipeline_threads() == []


def test_every_face_of_a_picture_has_its_own_embedding(embedder: Embedder) -> None:
    faces = Pipeline(SquareDetector(), embedder).process(draw((0, 10, 20), (1, 150, 100), (2, 300, 30)))
    assert [face.embedding.vector.argmax() for face in faces] == [0, 1, 2]
    assert {face.embedding.contract_id for face in faces} == {embedder.contract.contract_id}
    np.testing.assert_allclose(faces[1].box, [150, 100, 210, 160], atol=1)
    assert faces[0].quality.box_side == pytest.approx(SIDE, abs=1)
    assert all(face.track_id is None and face.reasons == () for face in faces)


def test_a_picture_without_faces_has_none(embedder: Embedder) -> None:
    assert Pipeline(SquareDetector(), embedder).process(draw()) == []


def test_the_gate_keeps_a_face_from_being_embedded_and_says_why(embedder: Embedder) -> None:
    pipeline = Pipeline(SquareDetector(), embedder, gate=QualityGate(min_box_side=80))
    (face,) = pipeline.process(draw((0, 10, 20)))
    assert face.embedding is None
    assert "box side: expected at least 80, found 60; move closer" in face.reasons[0]
    assert embedder.counters().submitted == 0


def test_the_largest_face_is_the_largest_that_passes_the_gate(embedder: Embedder) -> None:
    photo = draw((0, 10, 20))
    photo[100:220, 150:270] = COLORS[1]  # a false alarm: larger, and without any detail
    for gate, x0 in ((QualityGate(min_contrast=5), 10), (None, 150), (QualityGate(min_box_side=300), 150)):
        (face,) = Pipeline(SquareDetector(), embedder, gate=gate, faces="largest").process(photo)
        assert face.box[0] == pytest.approx(x0, abs=1)
    assert face.reasons


def test_a_face_outside_the_picture_has_reasons_and_harms_no_other(embedder: Embedder) -> None:
    class Lost(SquareDetector):
        def _find(self, image: np.ndarray) -> Faces:
            good = super()._find(image)
            return Faces(
                np.concatenate([good.boxes, good.boxes + 1000]), good.landmarks.repeat(2, 0), good.scores.repeat(2)
            )

    good, lost = Pipeline(Lost(), embedder).process(draw((0, 10, 20)))
    assert good.embedding is not None
    assert lost.embedding is None
    assert lost.quality is None
    assert "expected a box inside the photo" in lost.reasons[0]


def test_without_a_detector_every_picture_is_an_aligned_crop(embedder: Embedder) -> None:
    crop = tiny_crop(COLORS[1])
    (face,) = Pipeline(None, embedder).process(crop)
    np.testing.assert_allclose(face.embedding.vector, np.array(COLORS[1]) / np.linalg.norm(COLORS[1]), atol=2e-3)


@pytest.mark.parametrize("together", [1, 5])
def test_run_gives_the_same_as_process_in_order(embedder: Embedder, together: int) -> None:
    pipeline = Pipeline(SquareDetector(), embedder, batch_size=together)
    frames = walk(12)
    answers = list(pipeline.run(frames))
    assert [frame.index for frame, _ in answers] == list(range(12))
    for frame, faces in answers:
        for face, alone in zip(faces, pipeline.process(frame.image), strict=True):
            np.testing.assert_array_equal(face.box, alone.box)
            np.testing.assert_allclose(face.embedding.vector, alone.embedding.vector, atol=1e-6)


def test_frames_are_detected_together_up_to_a_number_and_a_size(embedder: Embedder) -> None:
    groups: list[int] = []

    class Counting(SquareDetector):
        def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
            groups.append(len(images))
            return super().detect(images)

    large = Frame(np.zeros((3000, 3000, 3), np.uint8), 5, 1.0, "drawn")
    answers = list(Pipeline(Counting(), embedder, batch_size=4, prefetch=2).run([*walk(5), large, *walk(2)]))
    assert groups == [4, 2, 2]
    assert len(answers) == 8


def test_detection_of_the_next_frame_overlaps_embedding_of_the_last(embedder: Embedder) -> None:
    """While a frame is read by the caller, later ones have been detected already."""
    detector = SquareDetector(pause=0.01)
    answers = Pipeline(detector, embedder, prefetch=3).run(walk(20))
    for frame, _ in answers:
        if frame.index == 5:
            break
    until = time.monotonic() + 10
    while detector.calls < 7 and time.monotonic() < until:
        time.sleep(0.01)
    assert 7 <= detector.calls <= 6 + 3
    answers.close()


def test_a_tracked_face_keeps_its_id_and_is_embedded_a_few_times(embedder: Embedder) -> None:
    pipeline = Pipeline(SquareDetector(), embedder, tracker=Tracker(), policy=EmbeddingPolicy(most=2))
    answers = list(pipeline.run(walk(30)))
    assert all([face.track_id for face in faces] == [1, 2] for _, faces in answers)
    assert answers[0][1][0].embedding is None  # not confirmed yet
    assert all(face.embedding is not None for _, faces in answers[1:] for face in faces)
    assert [face.embedding.vector.argmax() for face in answers[-1][1]] == [0, 2]
    assert 2 <= embedder.counters().submitted <= 4


def test_between_detections_faces_are_followed_to_within_two_pixels(embedder: Embedder) -> None:
    detector = SquareDetector()
    once = EmbeddingPolicy(most=1)
    answers = list(Pipeline(detector, embedder, tracker=Tracker(), policy=once, detect_every=5).run(walk(20)))
    assert [frame.index for frame, _ in answers if frame.examined == "detected"] == [0, 1, 6, 11, 16]  # 1: to confirm
    assert {frame.examined for frame, _ in answers} == {"detected", "tracked"}
    assert detector.calls == 5
    for index, (_, faces) in enumerate(answers):
        assert [face.track_id for face in faces] == [1, 2]
        np.testing.assert_allclose(faces[0].box[:2], [10 + 3 * index, 20], atol=2)
        np.testing.assert_allclose(faces[1].box[:2], [320 - 3 * index, 140], atol=2)


def test_a_look_that_is_due_and_a_face_that_cannot_be_followed_are_detected_at_once(embedder: Embedder) -> None:
    film = [*walk(9), *frames_of([draw((1, 200, 30))] * 4)]
    film = [Frame(frame.image, i, i / 25, "film") for i, frame in enumerate(film)]
    pipeline = Pipeline(SquareDetector(), embedder, tracker=Tracker(), detect_every=100)
    answers = list(pipeline.run(film))
    assert [frame.index for frame, _ in answers if frame.examined == "detected"] == [
        0,
        1,  # confirms both, and embeds them for the first time
        5,  # 0.15 seconds later, for the second time
        9,  # another scene: no face of the frame before is there
        10,  # confirms the new one
    ]
    assert [len(faces) for _, faces in answers] == [2] * 9 + [1] * 4


def test_of_many_faces_that_come_at_once_a_few_are_embedded_a_frame(embedder: Embedder) -> None:
    people = [(0, 10, 20), (1, 150, 100), (2, 300, 30)]
    policy = EmbeddingPolicy(most=1, at_once=1)
    pipeline = Pipeline(SquareDetector(), embedder, tracker=Tracker(), policy=policy, detect_every=100)
    answers = list(pipeline.run(frames_of([draw(*people)] * 6)))
    assert [sum(face.embedding is not None for face in faces) for _, faces in answers] == [0, 1, 2, 3, 3, 3]
    assert [frame.examined for frame, _ in answers] == ["detected"] * 4 + ["tracked"] * 2


def test_while_nothing_moves_and_nobody_is_there_frames_are_skipped(embedder: Embedder) -> None:
    detector = SquareDetector()
    film = frames_of([draw()] * 120 + [draw((0, 100, 80))] * 100 + [draw()] * 150)
    answers = list(Pipeline(detector, embedder, tracker=Tracker(), motion=MotionGate(), detect_every=3).run(film))
    assert len(answers) == len(film)
    skipped = [frame.index for frame, _ in answers if frame.examined == "skipped"]
    # 3 seconds after the first frame; a glance after 5; and the last face and its going are 3 seconds away.
    assert skipped[0] == 76
    assert skipped[-1] == len(film) - 1
    assert all(len(faces) == (120 <= frame.index < 220) for frame, faces in answers)
    assert detector.calls < (len(film) - len(skipped)) / 2.5


def test_each_crop_that_is_embedded_is_judged_live_in_its_own_frame(embedder: Embedder) -> None:
    class Checker:
        def check(self, image: np.ndarray, faces: Faces) -> list[Liveness]:
            judged.append(image)
            score = 0.6 + len(judged) / 100
            return [Liveness(verdict="live", score=score, threshold=0.5, scores={}, reasons=(), contract_ids=())] * len(
                faces
            )

    judged: list[np.ndarray] = []
    film = frames_of([draw((0, 100, 80))] * 12)
    pipeline = Pipeline(SquareDetector(), embedder, tracker=Tracker(), liveness=Checker(), detect_every=3)
    answers = [(frame, *faces) for frame, faces in pipeline.run(film)]
    assert [image is film[index].image for image, index in zip(judged, (1, 5), strict=True)] == [True, True]
    assert answers[0][1].liveness is None
    assert [face.liveness.score for _, face in answers[1:]] == pytest.approx([0.61] * 4 + [0.62] * 7)


def test_a_better_crop_replaces_the_embedding_and_a_worse_one_does_not(embedder: Embedder) -> None:
    person = (0, 100, 80)
    images = [draw(person, blur=4)] * 3 + [draw(person)] * 3 + [draw(person, blur=4)] * 3
    pipeline = Pipeline(SquareDetector(), embedder, tracker=Tracker(min_hits=1))
    answers = [faces[0] for _, faces in pipeline.run(frames_of(images))]
    assert embedder.counters().submitted == 2
    best = answers[4].embedding.vector
    assert not np.array_equal(best, answers[0].embedding.vector)
    np.testing.assert_array_equal(answers[-1].embedding.vector, best)
    assert answers[-1].quality.sharpness < answers[4].quality.sharpness


def test_refreshing_a_track_does_not_use_up_its_embeddings(embedder: Embedder) -> None:
    person = (0, 100, 80)
    images = [draw(person, blur=4)] * 20 + [draw(person)] * 3
    policy = EmbeddingPolicy(most=2, least=1, refresh=0.2)
    list(Pipeline(SquareDetector(), embedder, tracker=Tracker(min_hits=1), policy=policy).run(frames_of(images)))
    # The first, its refreshes after 0.2, 0.4 and 0.6 seconds, and the sharp one.
    assert embedder.counters().submitted == 5


def test_tracks_that_need_two_photos_are_decided_by_the_default_policy_and_sparse_detection(embedder: Embedder) -> None:
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 9, frame.image.shape, np.uint8) for frame in walk(25)]
    film = [Frame(cv2.add(f.image, n), f.index, f.timestamp, f.source) for f, n in zip(walk(25), noise, strict=True)]
    pipeline = Pipeline(SquareDetector(), embedder, tracker=Tracker(), detect_every=5)
    known = Pipeline(SquareDetector(), embedder).process(film[0].image)
    vectors = np.stack([face.embedding.vector for face in known])
    ids = np.array([1, 2])
    contract_id = embedder.contract.contract_id
    block = TemplateBlock(ids=ids, person_ids=ids, vectors=vectors, contract_id=contract_id, generation=1)
    threshold = SearchThreshold.by_hand(0.5, contract_id=contract_id, gallery_size=2)
    tracks = TrackIdentifier(Identifier(ExactIndex(block), threshold), needed=2, policy=pipeline.policy)
    last = {}
    for _, faces in pipeline.run(film):
        last |= tracks.update({face.track_id: face.embedding for face in faces if face.embedding})
    assert {track: (bool(answer), answer.looks) for track, answer in last.items()} == {1: (True, 2), 2: (True, 2)}


def test_a_second_run_starts_with_new_tracks(embedder: Embedder) -> None:
    pipeline = Pipeline(SquareDetector(), embedder, tracker=Tracker(min_hits=1))
    first = {face.track_id for _, faces in pipeline.run(walk(3)) for face in faces}
    second = {face.track_id for _, faces in pipeline.run(walk(3)) for face in faces}
    assert (first, second) == ({1, 2}, {3, 4})


def test_a_detectors_error_comes_after_the_frames_before_it(embedder: Embedder) -> None:
    seen: list[int] = []
    answers = Pipeline(SquareDetector(fail_at=6), embedder).run(walk(20))
    with pytest.raises(InferenceError, match="pulled out"):
        seen.extend(frame.index for frame, _ in answers)
    assert seen == list(range(6))


def test_the_sources_error_reaches_the_caller(embedder: Embedder) -> None:
    def broken() -> Iterator[Frame]:
        yield from walk(3)
        raise OSError("cable")

    with pytest.raises(OSError, match="cable"):
        list(Pipeline(SquareDetector(), embedder).run(broken()))


def test_a_closed_embedder_is_an_error_and_no_hang(ir: Path) -> None:
    embedder = Embedder.load(ir)
    embedder.close()
    with pytest.raises(Exception, match="expected an open engine"):
        list(Pipeline(SquareDetector(), embedder).run(walk(3)))


@pytest.mark.parametrize("stop_after", [0, 1, 5])
def test_stopping_early_takes_no_more_frames_and_leaves_no_thread(embedder: Embedder, stop_after: int) -> None:
    taken = []

    def endless() -> Iterator[Frame]:
        for frame in walk(90):
            taken.append(frame.index)
            yield frame

    answers = Pipeline(SquareDetector(), embedder, prefetch=3).run(endless())
    for _ in range(stop_after):
        next(answers)
    answers.close()
    assert len(taken) <= stop_after + 3
    assert pipeline_threads() == []


def test_an_embedder_of_other_pictures_is_refused(ir: Path) -> None:
    with Embedder.load(ir, image_format=ImageFormat(color="RGB")) as rgb, pytest.raises(ContractError, match="RGB"):
        Pipeline(SquareDetector(), rgb)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detect_every": 2}, "need a tracker"),
        ({"policy": EmbeddingPolicy()}, "need a tracker"),
        ({"motion": MotionGate()}, "need a tracker"),
        ({"prefetch": 0}, "1 or more"),
        ({"tracker": Tracker(), "detect_every": 0}, "1 or more"),
    ],
)
def test_options_that_contradict_each_other_are_refused(embedder: Embedder, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline(SquareDetector(), embedder, **options)


@pytest.mark.parametrize(
    ("min_size", "margin", "reduction"), [(20, 0, 1), (63, 0, 1), (64, 0, 2), (64, 32, 2), (255, 0, 4), (999, 12, 4)]
)
def test_photos_are_reduced_as_far_as_every_face_that_is_looked_for_has_the_pixels_of_a_crop(
    tmp_path: Path, min_size: int, margin: int, reduction: int
) -> None:
    with Embedder.load(write_tiny_ir(tmp_path, margin=margin)) as embedder:  # crops of 32 pixels
        assert Pipeline(SquareNetworks(min_size), embedder).reduction == reduction
        assert Pipeline(SquareDetector(), embedder).reduction == 1  # who knows what it looks for?
        assert Pipeline(None, embedder).reduction == 1


def test_no_smaller_face_than_asked_for_is_looked_for_in_a_reduced_image(embedder: Embedder) -> None:
    detector = SquareNetworks(65)
    frame = Frame(draw((0, 0, 0)), 0, 0, "a", reduced=2)
    list(Pipeline(detector, embedder).run([frame]))
    assert detector.looked_for == [33]  # of 32 pixels is a face of 64


def test_faces_of_reduced_images_are_those_of_their_photos(tmp_path: Path) -> None:
    """Boxes, landmarks and quality are in pixels of the photo, and a box recipe cuts out the same part of it."""
    photo = cv2.resize(draw((0, 20, 20), (2, 300, 100)), None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    small = cv2.resize(photo, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    detector = SquareNetworks(64)
    with Embedder.load(write_tiny_ir(tmp_path, margin=32)) as embedder:
        pipeline = Pipeline(detector, embedder, batch_size=3)
        frames = [Frame(photo, 0, 0, "a"), Frame(small, 1, 1, "b", reduced=2), Frame(small, 2, 2, "c", reduced=2)]
        whole, *reduced = [faces for _, faces in pipeline.run(frames)]
    assert detector.looked_for == [64, 32]
    for faces in reduced:
        for expected, face in zip(whole, faces, strict=True):
            np.testing.assert_allclose(face.box, expected.box, atol=2)
            np.testing.assert_allclose(face.landmarks, expected.landmarks, atol=2)
            np.testing.assert_allclose(face.embedding.vector, expected.embedding.vector, atol=0.01)
            assert face.quality.box_side == pytest.approx(expected.quality.box_side, abs=2)
            assert face.quality.eye_distance == pytest.approx(expected.quality.eye_distance, abs=2)
