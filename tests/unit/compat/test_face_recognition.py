"""The drop-in for face_recognition has its arguments, shapes, orders and types; numbers of faces are in tests/real."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import pytest
from contracts import sample_contract
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_ir import write_tiny_ir

from edgeface.compat import face_recognition
from edgeface.errors import ContractError, ImageError, InputError, ModelNotFoundError
from edgeface.gallery import encodings
from edgeface.model.contract import Alignment
from edgeface.model.ir_file import read_contract
from edgeface.model.opset import ops

SIDE = 150


def write_ir(folder: Path) -> Path:
    """A model with the shapes of dlib's: (B, 3, 150, 150) BGR to 128 mixtures of 6 x 6 mean colours."""
    image = ops.parameter([-1, 3, SIDE, SIDE], np.float32, name="image")
    pooled = ops.avg_pool(image, [25, 25], [0, 0], [0, 0], [25, 25], True)
    flat = ops.reshape(pooled, np.array([0, 108]), True)
    mixed = ops.matmul(flat, np.random.default_rng(0).normal(0, 1e-3, (108, 128)).astype(np.float32), False, False)
    model = ov.Model([mixed], [image], "chip")
    model.input(0).set_names({"image"})
    model.output(0).set_names({"embeddings"})
    sample_contract(
        name="chip", input_size=(SIDE, SIDE), embedding_dim=128, normalized=False, alignment=Alignment("five-point-112")
    ).write_to(model)
    ov.save_model(model, folder / "chip.xml", compress_to_fp16=False)
    return folder / "chip.xml"


@pytest.fixture(scope="module", autouse=True)
def _tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = write_ir(tmp_path_factory.mktemp("ir"))
    with pytest.MonkeyPatch.context() as patched:  # in place of dlib's weights
        patched.setattr(face_recognition, "DLIB_CONTRACT_ID", read_contract(path)[1].contract_id)
        face_recognition.configure(path)
        yield
        face_recognition.configure()


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    """RGB, (512, 512, 3): one face, whose eyes are near (206, 110) and (246, 108)."""
    return pytest.importorskip("skimage.data").astronaut()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("load_image_file", {"file": ..., "mode": "RGB"}),
        ("face_locations", {"img": ..., "number_of_times_to_upsample": 1, "model": "hog"}),
        ("batch_face_locations", {"images": ..., "number_of_times_to_upsample": 1, "batch_size": 128}),
        ("face_encodings", {"face_image": ..., "known_face_locations": None, "num_jitters": 1, "model": "small"}),
        ("compare_faces", {"known_face_encodings": ..., "face_encoding_to_check": ..., "tolerance": 0.6}),
        ("face_distance", {"face_encodings": ..., "face_to_compare": ...}),
    ],
)
def test_names_order_and_defaults_of_arguments_are_the_original_s(name: str, arguments: dict[str, object]) -> None:
    found = inspect.signature(getattr(face_recognition, name)).parameters.values()
    assert [each.name for each in found] == list(arguments)
    assert [... if each.default is each.empty else each.default for each in found] == list(arguments.values())


@pytest.mark.slow
def test_nothing_of_the_original_is_imported_and_no_model_is_loaded_by_the_import() -> None:
    code = (
        "import sys; import edgeface.compat.face_recognition as face_recognition; "
        "print([m for m in ('dlib', 'face_recognition', 'face_recognition_models', 'pkg_resources', 'PIL') "
        "if m in sys.modules], face_recognition._models.loaded)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[] None"


# --- comparing


ENCODINGS = st.integers(1, 6).flatmap(
    lambda count: arrays(np.float64, (count + 1, 128), elements=st.floats(-2, 2, allow_nan=False, width=32))
)


@given(ENCODINGS, st.floats(0, 3))
def test_distances_and_comparisons_are_those_of_plain_numpy(encodings: np.ndarray, tolerance: float) -> None:
    known, other = encodings[1:], encodings[0]
    expected = np.sqrt(np.square(known - other).sum(axis=1))
    for form in (known, list(known), known.tolist()):
        found = face_recognition.face_distance(form, other)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    compared = face_recognition.compare_faces(list(known), other, tolerance)
    assert compared == [bool(each <= tolerance) for each in found]


def test_a_distance_of_exactly_the_tolerance_is_a_match() -> None:
    known = [np.eye(128)[0] * 0.5, np.eye(128)[0] * 0.75]
    answer = face_recognition.compare_faces(known, np.zeros(128), tolerance=0.5)
    assert answer == [True, False]
    assert [type(each) for each in answer] == [bool, bool]


def test_no_known_encodings_give_an_empty_array_and_an_empty_list() -> None:
    for none in ([], np.empty((0, 128))):
        assert face_recognition.face_distance(none, np.zeros(128)).shape == (0,)
        assert face_recognition.compare_faces(none, np.zeros(128)) == []


def test_a_list_of_one_encoding_is_taken_as_that_encoding() -> None:
    """`face_encodings(image)` without [0] is common, and works in the original."""
    assert face_recognition.face_distance([np.zeros(128)] * 3, [np.ones(128)]).shape == (3,)


@pytest.mark.parametrize(
    ("known", "other"),
    [
        ([np.zeros(128)], np.zeros(512)),
        (np.zeros(128), np.zeros(128)),
        ([np.zeros(128), np.zeros(127)], np.zeros(128)),
        ([np.zeros(128)] * 2, [np.zeros(128)] * 2),
        ([np.zeros(128)], []),
        ([None], np.zeros(128)),
        ([np.full(128, np.nan)], np.zeros(128)),
        ([np.zeros(128)], np.full(128, np.inf)),
        ([np.zeros(128)], np.zeros(128, complex)),
        ([["0.5"] * 128], np.zeros(128)),
        (np.zeros((1, 128), bool), np.zeros(128)),
    ],
)
def test_encodings_that_do_not_fit_are_refused(known: object, other: object) -> None:
    with pytest.raises(InputError, match="encodings"):
        face_recognition.face_distance(known, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -5])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance: expected a distance of 0 or more"):
        face_recognition.compare_faces([np.zeros(128)], np.zeros(128), tolerance)


# --- images


def test_an_image_is_read_as_rgb_or_gray_from_a_path_or_a_file(tmp_path: Path) -> None:
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[:, :, 0] = 200  # red
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), pixels[:, :, ::-1])
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        found = face_recognition.load_image_file(source)
        np.testing.assert_array_equal(found, pixels)
        assert found.flags.writeable
    gray = face_recognition.load_image_file(path, mode="L")
    assert gray.shape == (6, 4)
    assert abs(int(gray[0, 0]) - 0.299 * 200) <= 1
    with pytest.raises(InputError, match="RGB or L"):
        face_recognition.load_image_file(path, mode="RGBA")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=r"absent\.jpg: expected a photo"):
        face_recognition.load_image_file(tmp_path / "absent.jpg")


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3), np.float32), np.zeros((0, 9, 3), np.uint8), [[0]], "a.jpg"],
)
def test_another_image_than_the_original_takes_is_refused(image: object) -> None:
    for function in (face_recognition.face_locations, face_recognition.face_encodings):
        with pytest.raises(ImageError, match="uint8 RGB"):
            function(image)  # type: ignore[operator]


@pytest.mark.parametrize(
    "call",
    [
        lambda image: face_recognition.face_locations(image, model="dnn"),  # type: ignore[arg-type]
        lambda image: face_recognition.face_locations(image, -1),
        lambda image: face_recognition.batch_face_locations([image], batch_size=0),
        lambda image: face_recognition.face_encodings(image, model="tiny"),  # type: ignore[arg-type]
        lambda image: face_recognition.face_encodings(image, num_jitters=0),
        lambda image: face_recognition.face_encodings(image, [(0, 0, 0, 0)]),
        lambda image: face_recognition.face_encodings(image, [(5, 5, 60, 60)]),  # right is left
        lambda image: face_recognition.face_encodings(image, [(500, 600, 600, 500)]),
        lambda image: face_recognition.face_encodings(image, [(1, 2, 3)]),  # type: ignore[list-item]
    ],
)
def test_undocumented_options_and_impossible_locations_are_refused(call: object) -> None:
    with pytest.raises(InputError, match="expected"):
        call(np.zeros((64, 64, 3), np.uint8))  # type: ignore[operator]


# --- faces


def test_an_image_without_faces_gives_empty_lists() -> None:
    gray = np.full((90, 120), 127, np.uint8)
    assert face_recognition.face_locations(gray) == []
    assert face_recognition.face_encodings(gray) == []
    assert face_recognition.batch_face_locations([]) == []
    assert face_recognition.face_encodings(gray, []) == []


def test_a_location_is_top_right_bottom_left_around_the_face(astronaut: np.ndarray) -> None:
    for number in (0, 1):
        for model in ("hog", "cnn"):
            (location,) = face_recognition.face_locations(astronaut, number, model)
            top, right, bottom, left = location
            assert all(type(value) is int for value in location)
            assert abs((bottom - top) - (right - left)) <= 1
            assert top < 108 < bottom
            assert left < 206 < 246 < right
            assert (top + bottom) / 2 == pytest.approx(125, abs=15)
            assert (left + right) / 2 == pytest.approx(224, abs=12)


def test_locations_are_trimmed_to_the_image(astronaut: np.ndarray) -> None:
    part = np.ascontiguousarray(astronaut[75:170, 190:262])
    ((top, right, bottom, left),) = face_recognition.face_locations(part)
    assert (top >= 0, left >= 0, bottom <= 95, right <= 72) == (True,) * 4
    assert 0 in (top, left)
    assert len(face_recognition.face_encodings(part, [(top, right, bottom, left)])) == 1


def test_small_faces_are_found_after_more_upsampling(astronaut: np.ndarray) -> None:
    small = cv2.resize(astronaut, None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA)  # a face of 18 pixels
    assert face_recognition.face_locations(small, 0) == []
    assert len(face_recognition.face_locations(small, 2)) == 1
    assert len(face_recognition.face_locations(small, 9)) == 1


def test_a_batch_of_any_sizes_gives_each_image_its_own_locations(astronaut: np.ndarray) -> None:
    images = [astronaut, np.zeros((50, 60, 3), np.uint8), astronaut[:300, 60:], astronaut[:, ::-1]]
    one_by_one = [face_recognition.face_locations(image) for image in images]
    assert [len(each) for each in one_by_one] == [1, 0, 1, 1]
    for size in (1, 3, 128):
        assert face_recognition.batch_face_locations(images, batch_size=size) == one_by_one


def test_encodings_are_128_doubles_and_the_same_for_the_locations_that_were_found(astronaut: np.ndarray) -> None:
    (encoding,) = face_recognition.face_encodings(astronaut)
    assert (encoding.shape, encoding.dtype) == ((128,), np.float64)
    locations = face_recognition.face_locations(astronaut)
    for model in ("small", "large"):
        (again,) = face_recognition.face_encodings(astronaut, locations, model=model)
        np.testing.assert_array_equal(again, encoding)


def test_red_and_blue_are_not_exchanged(astronaut: np.ndarray) -> None:
    """A view as `frame[:, :, ::-1]` of an OpenCV frame is what most programs pass."""
    frame = np.ascontiguousarray(astronaut[:, :, ::-1])
    (encoding,) = face_recognition.face_encodings(astronaut)
    np.testing.assert_array_equal(face_recognition.face_encodings(frame[:, :, ::-1])[0], encoding)
    (wrong,) = face_recognition.face_encodings(frame, face_recognition.face_locations(astronaut))
    assert np.linalg.norm(wrong - encoding) > 0.01 * np.linalg.norm(encoding)


def test_every_location_gets_an_encoding_in_its_order(astronaut: np.ndarray) -> None:
    (face,) = face_recognition.face_locations(astronaut)
    nothing = (300, 500, 420, 380)  # no face there
    found = face_recognition.face_encodings(astronaut, [nothing, face, nothing])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[1], face_recognition.face_encodings(astronaut, [face])[0], atol=1e-6)
    assert np.linalg.norm(found[0] - found[1]) > 0.01


def test_locations_of_another_detector_lead_to_nearly_the_same_encoding(astronaut: np.ndarray) -> None:
    """The original's detector draws this box; so may the boxes be a little off."""
    ((top, right, bottom, left),) = face_recognition.face_locations(astronaut)
    (encoding,) = face_recognition.face_encodings(astronaut)
    blank = face_recognition.face_encodings(astronaut, [(300, 500, 420, 380)])[0]
    for shift in ((8, 8, 8, 8), (-8, 8, 8, -8), (-6, -6, -6, -6)):
        moved = (top + shift[0], right + shift[1], bottom + shift[2], left + shift[3])
        (other,) = face_recognition.face_encodings(astronaut, [moved])
        assert np.linalg.norm(other - encoding) < 0.25 * np.linalg.norm(blank - encoding)


def test_jittered_encodings_are_deterministic_and_near_the_plain_one(astronaut: np.ndarray) -> None:
    locations = face_recognition.face_locations(astronaut)
    (plain,), (ten,), (again,) = (
        face_recognition.face_encodings(astronaut, locations, num_jitters=count) for count in (1, 10, 10)
    )
    np.testing.assert_array_equal(ten, again)
    assert ten.dtype == np.float64
    assert 0 < np.linalg.norm(ten - plain) < 0.3 * np.linalg.norm(plain)


def test_jittered_copies_are_turned_scaled_shifted_and_half_of_them_mirrored() -> None:
    """The ranges are those that dlib's `jitter_image` has, measured with the same ramps: see the constants."""
    y, x = np.mgrid[:SIDE, :SIDE]
    ramps = np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)
    inner = slice(20, SIDE - 20)
    design = np.stack([x[inner, inner].ravel(), y[inner, inner].ravel(), np.ones(110 * 110)], axis=1)
    fits = np.array(
        [
            np.linalg.lstsq(design, copy[inner, inner, :2].reshape(-1, 2).astype(float), rcond=None)[0]
            for copy in face_recognition._jitter(ramps, 200)
        ]
    )
    mirrored = fits[:, 0, 0] < 0
    scale = np.hypot(fits[:, 0, 0], fits[:, 0, 1])
    turn = np.degrees(np.arctan2(fits[:, 0, 1], np.abs(fits[:, 0, 0])))
    centre = fits.transpose(0, 2, 1) @ [74.5, 74.5, 1]
    assert mirrored.mean() == 0.5
    assert 0.955 < scale.min() < 0.965 < 0.984 < scale.max() < 0.994
    assert -3.1 < turn.min() < -2.8 < 2.8 < turn.max() < 3.1
    assert 71 < centre.min() < 72.2 < 76.8 < centre.max() < 78


# --- the model


def test_a_model_that_is_not_dlib_s_is_refused(tmp_path: Path) -> None:
    before = face_recognition._models
    face_recognition.configure(write_tiny_ir(tmp_path))
    try:
        with pytest.raises(ContractError, match=r"expected dlib's network, contract .* found tiny, contract "):
            face_recognition.face_encodings(np.zeros((64, 64, 3), np.uint8), [(0, 64, 64, 0)])
    finally:
        face_recognition._models = before


def test_another_network_of_128_numbers_is_not_judged_by_dlib_s_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(face_recognition, "DLIB_CONTRACT_ID", encodings.DLIB_CONTRACT_ID)
    monkeypatch.setattr(face_recognition, "_models", face_recognition._models)
    face_recognition.configure(write_ir(tmp_path))
    with pytest.raises(ContractError, match=r"0\.6 holds for no other, found chip"):
        face_recognition.face_encodings(np.zeros((SIDE, SIDE, 3), np.uint8), [(0, SIDE, SIDE, 0)])


def test_threads_that_come_first_together_load_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = face_recognition._models
    face_recognition.configure(write_ir(tmp_path))
    loads = []
    load = face_recognition.Embedder.load
    monkeypatch.setattr(face_recognition.Embedder, "load", lambda *a, **b: loads.append(1) or load(*a, **b))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(8)]
    found: dict[int, np.ndarray] = {}

    def encode(number: int) -> None:
        found[number] = face_recognition.face_encodings(images[number], [(0, 64, 64, 0)])[0]

    try:
        threads = [threading.Thread(target=encode, args=(number,)) for number in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        assert len(loads) == 1
        for number, image in enumerate(images):
            alone = face_recognition.face_encodings(image, [(0, 64, 64, 0)])[0]
            np.testing.assert_allclose(found[number], alone, atol=1e-6)
    finally:
        face_recognition._models = before


def test_without_the_model_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    before = face_recognition._models
    face_recognition.configure("facenet-20180408-102900")
    try:
        with pytest.raises(ModelNotFoundError, match="edgeface zoo download"):
            face_recognition.face_encodings(np.zeros((64, 64, 3), np.uint8), [(0, 64, 64, 0)])
    finally:
        face_recognition._models = before
