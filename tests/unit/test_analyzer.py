"""The front door: photos in any form, one answer, and no way to take an answer of no for a yes."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from minifasnet_files import write_liveness_ir
from tiny_ir import BLUE, GREEN, RED, SIDE, TEAL, TINY_SIZE, SquareDetector, draw, tiny_crop, write_tiny_ir

import edgeface
from edgeface.analyzer import FaceAnalyzer, read_photo
from edgeface.errors import (
    ContractError,
    EngineClosed,
    FaceError,
    GalleryError,
    ImageError,
    InputError,
    MissingError,
    ModelFormatError,
    ModelNotFoundError,
)
from edgeface.files import MODEL_MARKER
from edgeface.gallery.enrolment import EnrolRules
from edgeface.gallery.enrolment_images import enrol_folder
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.records import NewTemplate
from edgeface.gallery.retention import CONSENT, Consent
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.recognize import Metric, Threshold, calibrate, save_thresholds
from edgeface.recognize.identify import Verdict
from edgeface.vision.detector import Faces, FoundBy
from edgeface.vision.quality import QualityGate

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    return write_tiny_ir(tmp_path)


@pytest.fixture
def app(ir: Path) -> Iterator[FaceAnalyzer]:
    with edgeface.load(ir, detector=SquareDetector()) as loaded:  # type: ignore[arg-type]
        yield loaded


def write(folder: Path, image: np.ndarray, name: str = "photo.png") -> Path:
    cv2.imwrite(str(folder / name), image)
    return folder / name


def test_faces_come_from_left_to_right_with_numbers(app: FaceAnalyzer) -> None:
    faces = app.analyze(draw(BLUE, None, GREEN))
    assert [face.box.tolist() for face in faces] == [[0, 0, 40, 40], [80, 0, 120, 40]]
    assert [(face.number, face.total) for face in faces] == [(1, 2), (2, 2)]
    assert [face.embedding.vector.argmax() for face in faces if face.embedding] == [0, 1]
    assert all(face.liveness is None and face.quality is not None for face in faces)
    assert repr(faces[0]).startswith("Face(box=(0, 0, 40, 40), score=0.800, quality=")
    assert faces[0].to_dict()["landmarks"] is None
    assert app.analyze(draw(None)) == []


def test_a_gate_refuses_and_says_why(app: FaceAnalyzer) -> None:
    (face,) = app.analyze(draw(BLUE), gate=edgeface.QualityGate(min_box_side=100))
    assert face.embedding is None
    assert "box side: expected at least 100" in face.reasons[0]
    assert "box side" in repr(face)


def test_the_same_photo_in_every_form_gives_the_same_face(app: FaceAnalyzer, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image = draw(TEAL, BLUE)
    path = write(tmp_path, image)
    pillow = image_module.fromarray(image[:, :, ::-1])
    expected = app.embed(image).vector
    for photo in (path, str(path), path.read_bytes(), pillow, image_module.open(path)):
        np.testing.assert_array_equal(app.embed(photo).vector, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I"])
def test_a_pillow_image_of_any_mode_is_read_as_its_file_would_be(mode: str, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    gray = np.arange(0, 240, 10, np.uint8).reshape(4, 6)
    gray[gray < 120] = 0
    gray[gray >= 120] = 255
    base = image_module.fromarray(np.repeat(gray[:, :, None], 3, axis=2))
    if mode.startswith("I"):
        deep = image_module.fromarray(gray.astype(np.uint16) * 257)
        pillow = deep.convert("I") if mode == "I" else deep
    else:
        pillow = base.convert(mode)
    found = read_photo(pillow)
    assert (found.shape, found.dtype) == ((4, 6, 3), np.uint8)
    np.testing.assert_allclose(found, np.repeat(gray[:, :, None], 3, axis=2), atol=2)


def test_pillow_transparency_is_laid_over_white_and_floats_are_refused(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    clear = image_module.fromarray(np.full((2, 2, 4), [200, 0, 0, 0], np.uint8), "RGBA")
    assert (read_photo(clear) == 255).all()
    with pytest.raises(ImageError, match="found a Pillow image of mode F"):
        read_photo(image_module.fromarray(np.zeros((2, 2), np.float32)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_orientation_is_that_of_the_file(orientation: int, tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:8, :8], pixels[-8:, :8] = 255, (0, 128, 255)
    pillow = image_module.fromarray(pixels)
    exif = image_module.Exif()
    exif[0x0112] = orientation
    stored = io.BytesIO()
    pillow.save(stored, "PNG", exif=exif)
    np.testing.assert_array_equal(read_photo(image_module.open(stored)), read_photo(stored.getvalue()))


def test_what_is_no_photo_is_refused(app: FaceAnalyzer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a path, the bytes of an image file, an array or a Pillow image"):
        app.analyze(3)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"absent\.jpg: expected a photo, found no such file") as raised:
        app.analyze("absent.jpg")
    assert (raised.value.path, raised.value.found) == (Path("absent.jpg"), "no such file")
    assert raised.value.remedy == "check its path"
    wrong = np.zeros((4, 4, 3), np.float32)
    for a, b, name in ((wrong, draw(BLUE), "photo a"), (draw(BLUE), wrong, "photo b")):
        with pytest.raises(ImageError, match=rf"^{name}: expected pixels .*found \(4, 4, 3\) float32; convert"):
            app.verify(a, b, threshold=0.5)
    with pytest.raises(ImageError, match=r"^photos\[1\]: expected pixels"):
        app.embed([draw(BLUE), np.empty((0, 0, 3), np.uint8)])
    with pytest.raises(GalleryError, match="expected a gallery, found a folder; name a file, or make one") as refused:
        app.identify(draw(BLUE), tmp_path)
    assert refused.value.path == tmp_path


def test_a_closed_analyzer_says_so(app: FaceAnalyzer) -> None:
    app.close()
    photo = draw(BLUE)
    for ask in (app.analyze, app.embed, app.align, lambda it: app.verify(it, it, threshold=0.5)):
        with pytest.raises(EngineClosed, match="this FaceAnalyzer is closed; load it again"):
            ask(photo)


def test_verify_is_true_for_one_person_and_false_for_two(app: FaceAnalyzer) -> None:
    one, other = draw(BLUE), draw(GREEN)
    matched, different = app.verify(one, one, threshold=0.5), app.verify(one, other, threshold=0.5)
    assert (bool(matched), matched.matched, round(matched.score, 6)) == (True, True, 1.0)
    assert (bool(different), different.matched) == (False, False)
    assert matched.far is None
    assert "\n" not in repr(matched)
    answer = different.to_dict()
    assert (answer["same"], answer["matched"]) == (False, False)
    assert answer["face_a"]["box"] == [0, 0, 40, 40]
    assert answer["model"] == different.model == "tiny"


PALE_RED, PALE_BLUE, PALE_GREEN = (120, 120, 255), (255, 120, 120), (120, 255, 120)


def test_of_several_faces_the_one_that_the_photo_is_about_or_the_numbered_one_is_compared(app: FaceAnalyzer) -> None:
    crowd = draw(PALE_RED, PALE_BLUE, PALE_GREEN)  # as large as each other, so that the middle one is it
    assert app.verify(draw(PALE_BLUE), crowd, threshold=0.9).face_b.number == 2  # type: ignore[union-attr]
    assert app.verify(draw(PALE_BLUE), crowd, threshold=0.9)
    assert not app.verify(draw(PALE_BLUE), crowd, threshold=0.9, face_b=3)
    assert app.verify(crowd, draw(PALE_GREEN), threshold=0.9, face_a=3)
    for number in (0, 4, True):
        with pytest.raises(InputError, match=f"photo a: expected a face number from 1 to 3, found {number}"):
            app.verify(crowd, crowd, threshold=0.9, face_a=number)


def test_a_false_alarm_is_not_taken_for_the_face_that_a_photo_is_about(app: FaceAnalyzer) -> None:
    photo = draw(PALE_RED, PALE_BLUE, None)
    photo[:, SIDE : 2 * SIDE] = PALE_BLUE  # in the middle, but without edges: the gate calls it unusable
    found = app.verify(draw(PALE_RED), photo, threshold=0.9)
    assert found
    assert found.face_b.number == 1  # type: ignore[union-attr]
    assert app.verify(photo, draw(PALE_BLUE), threshold=0.9, face_a=2)  # which may still be asked for
    np.testing.assert_array_equal(app.embed(photo).vector, app.embed(draw(PALE_RED)).vector)
    np.testing.assert_array_equal(app.embed([photo]).vectors[0], app.embed(draw(PALE_RED)).vector)
    assert app.embed(photo[:, SIDE : 2 * SIDE].copy()) is not None  # of one face there is no choice


def test_a_photo_without_a_usable_face_is_an_error_that_names_it(app: FaceAnalyzer, tmp_path: Path) -> None:
    dark = write(tmp_path, draw(None))
    with pytest.raises(FaceError, match=r"photo\.png: expected a face, found none; use a photo") as raised:
        app.verify(draw(BLUE), dark, threshold=0.5)
    assert raised.value.remedy == (
        "use a photo with a larger or clearer face; "
        f"faces are looked for from {SIDE} pixels on (--min-size; in Python min_size)"
    )
    with pytest.raises(FaceError, match=r"photo\.png: expected a face"):
        app.embed([draw(BLUE), dark])


def test_the_threshold_is_given_or_chosen_by_its_rate(app: FaceAnalyzer, tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 101)
    known = calibrate(scores, scores, fars=[0.1, 0.01], contract_id=app.contract.contract_id, metric=Metric.cosine)
    save_thresholds(tmp_path / "t.json", known)
    a = draw(BLUE)
    assert app.verify(a, a, threshold=tmp_path / "t.json", far=0.01).threshold == known[1]
    assert app.verify(a, a, threshold=known[0]).threshold == known[0]
    with pytest.raises(MissingError, match="edgeface calibrate PEOPLE"):
        app.verify(a, a)
    with pytest.raises(InputError, match="leave one out"):
        app.verify(a, a, threshold=0.5, far=0.01)
    for wrong in ("0.001", 0, 1.0, float("nan"), True):
        with pytest.raises(InputError, match="far: expected a rate above 0 and below 1, found") as raised:
            app.verify(a, a, far=wrong)  # type: ignore[arg-type]
        assert raised.value.expected == "a rate above 0 and below 1"
    with pytest.raises(ContractError, match=app.contract.contract_id):
        app.verify(a, a, threshold=Threshold.by_hand(0.5, contract_id="another"))


def test_embed_takes_one_photo_or_many(app: FaceAnalyzer) -> None:
    one = app.embed(draw(BLUE))
    many = app.embed([draw(BLUE), draw(GREEN), draw(RED)])
    assert one.vector.shape == (3,)
    np.testing.assert_allclose(many.vectors[0], one.vector, atol=1e-6)
    assert many.vectors.argmax(axis=1).tolist() == [0, 1, 2]
    assert many.contract_id == one.contract_id == app.contract.contract_id
    assert app.embed([]).vectors.shape == (0, 3)
    assert repr(one) == f"Embedding(3 numbers, contract {one.contract_id})"
    assert repr(many) == f"Embeddings(3 x 3 numbers, contract {one.contract_id})"


def test_align_cuts_what_the_model_sees(app: FaceAnalyzer) -> None:
    crops = app.align(draw(BLUE, None, GREEN))
    assert (crops.shape, crops.dtype) == ((2, TINY_SIZE, TINY_SIZE, 3), np.uint8)
    assert crops.mean(axis=(1, 2)).argmax(axis=1).tolist() == [0, 1]
    assert app.align(draw(None)).shape == (0, TINY_SIZE, TINY_SIZE, 3)


@pytest.fixture
def gallery(app: FaceAnalyzer, tmp_path: Path) -> Path:
    path = tmp_path / "people.gallery"
    with SqliteStore.create(path, contract_id=app.contract.contract_id, dim=3, key=None) as store:
        for name, colour in (("Blue", BLUE), ("Green", GREEN)):
            store.add_person(name, templates=[NewTemplate(embedding=app.embed(draw(colour)))])
    return path


def test_identify_names_everybody_once_from_left_to_right(app: FaceAnalyzer, gallery: Path) -> None:
    photo = draw(GREEN, RED, BLUE, TEAL)
    found = app.identify(photo, gallery, threshold=0.6, margin=0.2, gate=None)
    assert [each.verdict.value for each in found] == ["accepted", "unknown", "accepted", "unknown"]
    assert [each.person for each in found] == ["Green", None, "Blue", None]
    assert [bool(each) for each in found] == [each.known for each in found] == [True, False, True, False]
    assert [each.face.number for each in found if each.face] == [1, 2, 3, 4]
    assert repr(found[0]).startswith("Identification(accepted, person='Green', score=")
    assert {each.to_dict()["model"] for each in found} == {"tiny"}
    (teal,) = app.identify(draw(TEAL), gallery, threshold=0.6, margin=0.2, gate=None)
    assert (teal.verdict.value, bool(teal)) == ("inconclusive", False)


def test_a_face_below_the_gate_is_unusable_and_not_identified(app: FaceAnalyzer, gallery: Path) -> None:
    gate = edgeface.QualityGate(min_box_side=100)
    (found,) = app.identify(draw(BLUE), str(gallery), threshold=0.6, gate=gate)
    assert (found.verdict.value, found.person, bool(found)) == ("unusable", None, False)
    assert found.face is not None
    assert "box side" in found.face.reasons[0]


def test_an_open_gallery_is_followed(app: FaceAnalyzer, gallery: Path) -> None:
    with SqliteStore(gallery) as store:
        assert not app.identify(draw(RED), store, threshold=0.9, gate=None)[0]
        store.add_person("Red", templates=[NewTemplate(embedding=app.embed(draw(RED)))])
        assert app.identify(draw(RED), store, threshold=0.9, gate=None)[0].person == "Red"
        limit = app.search_threshold(store, threshold=0.9)
        assert repr(limit) == "SearchThreshold(cosine > 0.9000, by hand, 3 templates)"


def test_identify_logs_once_that_another_detector_made_the_gallery(
    app: FaceAnalyzer, gallery: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SqliteStore(gallery) as store:
        app.identify(draw(BLUE), store, threshold=0.9)
        assert not caplog.messages  # of these templates no detector is known
        store.note_detectors(["mtcnn"])
    with edgeface.load(gallery.with_name("tiny.xml"), detector="mtcnn", hint="latency") as same:
        same.identify(draw(BLUE), gallery, threshold=0.9)
        assert not caplog.messages
    other = edgeface.load(gallery.with_name("tiny.xml"), detector=SquareDetector())  # type: ignore[arg-type]
    with other, SqliteStore(gallery) as store:
        other.identify(draw(BLUE), LiveIndex(store), threshold=0.9)
        assert not caplog.messages  # who makes the index looks after that
        for asked in (store, gallery, store):
            other.identify(draw(BLUE), asked, threshold=0.9)
    assert [
        message for message in caplog.messages if "made with mtcnn, and squares finds" in message
    ] == caplog.messages
    assert len(caplog.messages) == 1


def test_nobody_is_named_whose_consent_has_expired(app: FaceAnalyzer, gallery: Path) -> None:
    now = datetime.now(timezone.utc)
    consent = Consent(text_version="1", recorded_by="desk", recorded=now, expires=now)
    with SqliteStore(gallery) as store:
        (blue,) = (person.id for person in store.people() if person.name == "Blue")
        store.update_person(blue, metadata={CONSENT: consent.to_dict()})
        first, second = app.identify(draw(BLUE, GREEN), store, threshold=0.6, gate=None)
    assert (first.verdict.value, first.person, first.person_id, first.score) == ("unknown", None, None, None)
    assert (first.reason, bool(first)) == ("consent-expired", False)
    assert (second.person, second.runner_up, second.reason) == ("Green", None, "")


def test_a_gallery_of_another_model_is_refused(app: FaceAnalyzer, tmp_path: Path) -> None:
    path = tmp_path / "other.gallery"
    SqliteStore.create(path, contract_id="0" * 16, dim=3, key=None).close()
    with pytest.raises(ContractError, match=app.contract.contract_id):
        app.identify(draw(BLUE), path, threshold=0.5)


@pytest.mark.slow
def test_crops_need_no_detector(ir: Path) -> None:
    crop = tiny_crop(BLUE)
    with edgeface.load(ir, detector=None) as app:
        (face,) = app.analyze(crop)
        assert (face.box.tolist(), face.quality) == ([0, 0, TINY_SIZE, TINY_SIZE], None)
        np.testing.assert_array_equal(app.align(crop)[0], crop)


def not_faces() -> dict[str, np.ndarray]:
    """Images of the size of a crop in which there is no face."""
    rng, shape = np.random.default_rng(0), (128, 128, 3)
    return {
        "black": np.zeros(shape),
        "white": np.full(shape, 255),
        "red": np.full(shape, (0, 0, 200)),
        "a black photo's noise": rng.normal(5, 2, shape).clip(0, 255),
        "a ramp": np.broadcast_to(np.linspace(0, 255, 128)[None, :, None], shape),
        "white noise": rng.integers(0, 256, shape),
        "gray noise": rng.integers(0, 256, (128, 128, 1)).repeat(3, axis=2),
        "noise of 32 pixels": cv2.resize(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), (128, 128)),
        "a fine pattern": np.indices((128, 128)).sum(axis=0)[..., None].repeat(3, axis=2) // 4 % 2 * 255,
    }


@pytest.mark.parametrize("what", not_faces())
def test_a_crop_without_a_face_is_refused_by_everything_that_embeds(ir: Path, tmp_path: Path, what: str) -> None:
    """Embeddings of such images resemble each other: black was enrolled, and white was then accepted as it."""
    wrong, right = not_faces()[what].astype(np.uint8), tiny_crop(GREEN)
    path, told = write(tmp_path, wrong), "expected a face, found"
    with edgeface.load(ir, detector=None) as app:
        for gate in (None, QualityGate()):
            (face,) = app.analyze(wrong, gate=gate)
            assert face.embedding is None
            assert face.reasons[0].startswith(told)
        for ask in (
            lambda: app.embed(wrong),
            lambda: app.embed([right, wrong]),
            lambda: app.verify(wrong, right, threshold=0.5),
            lambda: app.verify(right, path, threshold=0.5),
        ):
            with pytest.raises(FaceError, match=told):
                ask()
        with SqliteStore.create(tmp_path / "g", contract_id=app.contract.contract_id, dim=3, key=None) as store:
            rules = EnrolRules.choose(0.9, app.contract)
            done = enrol_folder(store, [path], rules=rules, pipeline=app.pipeline(), name="Nobody")
            assert (done.enrolled, list(done.not_enrolled)) == ((), ["Nobody"])
            assert told in done.refused[path]
            (answer,) = app.identify(wrong, store, threshold=0.5, gate=None)
            assert answer.verdict is Verdict.unusable


@pytest.mark.parametrize(
    ("crop", "told"),
    [
        (tiny_crop(GREEN)[:30, :30], "box side: expected at least 32, found 30"),
        (tiny_crop((200, 200, 200)), "sharpness: expected at least"),
        (128 + tiny_crop((200, 200, 200)) // 5, "contrast: expected at least 15"),
        (tiny_crop((200, 200, 200)) // 6, "brightness: expected at least 30"),
        (tiny_crop((500, 500, 500)), "clipped: expected at most 0.5"),
    ],
)
def test_the_part_of_the_gate_that_needs_no_landmarks_judges_crops(ir: Path, crop: np.ndarray, told: str) -> None:
    with edgeface.load(ir, detector=None) as app:
        assert app.analyze(crop)[0].embedding is not None
        (face,) = app.analyze(crop, gate=QualityGate())
        assert face.embedding is None
        assert any(told in reason for reason in face.reasons)
        good = tiny_crop(np.random.default_rng(0).normal(200, 20, (TINY_SIZE, TINY_SIZE, 1)).repeat(3, axis=2))
        assert app.analyze(good, gate=QualityGate())[0].embedding is not None


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        *(((32, 32), True), ((128, 128), True), ((100, 64), True)),
        *(((129, 129), False), ((100, 150), False), ((100, 60), False)),
    ],
)
def test_a_whole_photo_is_not_resized_to_a_crop(ir: Path, shape: tuple[int, int], fits: bool) -> None:
    """The model's recipe is a box, 32 pixels wide and high once it is cut."""
    with edgeface.load(ir, detector=None) as app:
        texture = np.random.default_rng(0).normal(200, 20, (TINY_SIZE, TINY_SIZE, 1)).repeat(3, axis=2)
        (face,) = app.analyze(cv2.resize(tiny_crop(texture), shape[::-1]))
        assert (face.embedding is not None) == fits
        if not fits:
            assert "or of its shape and at most 4 times as large, found" in face.reasons[0]
            assert "leave out --crops" in face.reasons[0]


def test_closing_closes_both_and_a_failed_load_leaves_nothing_open(ir: Path) -> None:
    detector = SquareDetector()
    with edgeface.load(ir, detector=detector) as app:  # type: ignore[arg-type]
        assert repr(app).startswith("FaceAnalyzer(tiny, squares, contract ")
    assert detector.closed == 1
    with pytest.raises(InputError, match="detector: expected one of mtcnn"):
        edgeface.load(ir, detector="haar")  # type: ignore[arg-type]


@pytest.mark.parametrize("hint", ["fast", "LATENCY", None])
def test_a_hint_that_is_unknown_is_refused(ir: Path, hint: Any) -> None:
    with pytest.raises(InputError, match=f"hint: expected latency or throughput, found {hint!r}"):
        edgeface.load(ir, detector=None, hint=hint)


@pytest.mark.parametrize(("hint", "streams"), [("latency", 1), ("throughput", None)])
def test_a_lone_request_gets_all_threads_if_that_is_asked_for(ir: Path, hint: str, streams: int | None) -> None:
    with edgeface.load(ir, detector=None, hint=hint) as app:  # type: ignore[arg-type]
        assert app.hint == hint
        report = app.embedder.execution
        assert streams in (None, report.streams)
        assert report.threads is None or report.threads >= (report.streams or 1)


def test_verify_finds_the_second_face_while_the_first_is_embedded(
    app: FaceAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, both = list[int](), threading.Event()
    detect, submit = app.detector.detect, app.embedder.submit  # type: ignore[union-attr]

    def look(images: Sequence[np.ndarray]) -> list[Faces]:
        asked.append(len(images))
        if len(asked) == 2:
            both.set()
        return detect(images)

    monkeypatch.setattr(app.detector, "detect", look)
    with ThreadPoolExecutor(2) as slow:

        def late(*crops: Any, **options: Any) -> Future[np.ndarray]:
            answer = submit(*crops, **options)
            return slow.submit(lambda: answer.result() if both.wait(5) else pytest.fail("it waited for the first"))

        monkeypatch.setattr(app.embedder, "submit", late)
        assert app.verify(draw(RED), draw(RED), threshold=0.5)


def test_verify_in_one_line(ir: Path, tmp_path: Path) -> None:
    with pytest.raises(FaceError, match="expected a face, found none"):
        edgeface.verify(draw(None), draw(None), model=ir, threshold=0.5)


def test_the_default_model_is_the_environments_then_the_stores(
    ir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "store"))
    monkeypatch.delenv("EDGEFACE_MODEL", raising=False)
    from edgeface.zoo.default import set_default_model
    from edgeface.zoo.transfer import PackageLocation

    monkeypatch.setattr(PackageLocation, "find", lambda self: None)
    with pytest.raises(ModelNotFoundError, match="edgeface zoo download"):
        edgeface.load()

    set_default_model(ir)
    assert edgeface.find_model() == ir.resolve()
    monkeypatch.setenv("EDGEFACE_MODEL", os.fspath(tmp_path / "another.xml"))
    assert edgeface.find_model() == tmp_path / "another.xml"
    assert edgeface.find_model(ir) == ir
    with pytest.raises(InputError, match=r"another\.xml"):
        edgeface.load()


def test_a_detector_that_is_not_downloaded_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path / "store"))
    with pytest.raises(ModelNotFoundError, match="zoo download"):
        edgeface.load_detector("yunet")


def test_auto_is_what_a_gallery_was_made_with_else_yunet_where_it_is_downloaded_else_mtcnn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    recorded = ([], ["mtcnn"], ["yunet"], ["mtcnn", "yunet"], ["retail-0004"], ["squares"])
    assert [edgeface.choose_detector(each) for each in recorded] == ["mtcnn"] * 6
    yunet = tmp_path / "models" / "yunet" / "yunet_n_dynamic.onnx"
    yunet.parent.mkdir(parents=True)
    yunet.touch()
    assert edgeface.choose_detector() == "mtcnn"  # the download is not complete
    (yunet.parent / MODEL_MARKER).touch()
    assert [edgeface.choose_detector(each) for each in recorded] == ["yunet", "mtcnn", *["yunet"] * 4]
    with pytest.raises(MissingError, match=r"det1\.npz"):  # a model without a detector's name is MTCNN's
        edgeface.load_detector(model=tmp_path)
    with pytest.raises(ModelFormatError, match="yunet_n_dynamic"):
        edgeface.load_detector()


@pytest.mark.parametrize(("side", "least", "why"), [(160, 32, "model"), (101, 21, "model"), (100, 20, "default")])
def test_the_smallest_face_is_the_gates_else_a_fifth_of_the_models_input(side: int, least: int, why: str) -> None:
    assert FoundBy.choose("yunet", (side - 1, side)) == FoundBy("yunet", least, why)
    assert FoundBy.choose("yunet", (side, side), QualityGate(min_box_side=40.5)) == FoundBy("yunet", 41, "gate")
    for limit in (0, 19):
        gate = QualityGate(min_box_side=limit)
        assert FoundBy.choose("yunet", (side, side), gate) == FoundBy("yunet", 20, "default")


def test_faces_are_looked_for_from_the_size_on_that_can_be_used_or_from_the_one_that_is_asked_for(ir: Path) -> None:
    def found(app: FaceAnalyzer, gate: QualityGate | None) -> tuple[int, FoundBy]:
        return app.pipeline(gate=gate).settings["detector"]["min_size"], app.found_by(gate)

    gate = QualityGate(min_box_side=50)
    with edgeface.load(ir, detector="mtcnn") as app:
        assert found(app, gate) == (50, FoundBy("mtcnn", 50, "gate"))
        assert found(app, None) == (20, FoundBy("mtcnn", 20, "default"))
        assert found(app, gate)[0] == 50  # one call changes nothing for another
    for size in (20, 24):
        with edgeface.load(ir, detector="mtcnn", min_size=size) as app:
            assert found(app, gate) == found(app, None) == (size, FoundBy("mtcnn", size, "min-size"))
    detector = edgeface.load_detector("mtcnn", min_size=30)
    with edgeface.load(ir, detector=detector) as app:
        assert found(app, gate) == found(app, None) == (30, FoundBy("mtcnn", 30, "min-size"))
    with edgeface.load(ir, detector=None) as app:
        assert app.found_by(gate) == FoundBy(None, None, None)


def test_liveness_needs_whole_photos_and_a_liveness_model(ir: Path, tmp_path: Path) -> None:
    liveness = write_liveness_ir(tmp_path / "liveness")
    with pytest.raises(InputError, match="looks at whole photos"):
        edgeface.load(ir, detector=None, liveness=liveness)
    with pytest.raises(ContractError, match="expected a liveness model, found an embedding model"):
        edgeface.load(ir, detector=SquareDetector(), liveness=ir)  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError, match="edgeface zoo download minifasnet-v2"):
        edgeface.load(ir, detector=SquareDetector(), liveness=True)  # type: ignore[arg-type]
    with edgeface.load(ir, detector=SquareDetector(), liveness=liveness) as app:  # type: ignore[arg-type]
        faces = app.analyze(draw(BLUE, None, GREEN))
        assert [bool(face.liveness) for face in faces] == [False, False]  # without landmarks
        assert all(face.liveness is not None and face.liveness.verdict == "inconclusive" for face in faces)
        assert "inconclusive" in repr(faces[0])
