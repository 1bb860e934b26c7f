"""What a detector gives, and how one is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from edgeface.errors import DeviceError, EngineClosed, FaceError, InputError, MissingError, ModelFormatError
from edgeface.model.opset import ops
from edgeface.vision import mtcnn_nets
from edgeface.vision.detector import Faces
from edgeface.vision.load import load_detector
from edgeface.vision.networks import read_network


def faces(*boxes: tuple[float, float, float, float]) -> Faces:
    count = len(boxes)
    scores = np.linspace(0.99, 0.8, count, dtype=np.float32)
    return Faces(np.array(boxes, np.float32), np.zeros((count, 5, 2), np.float32), scores)


def test_selecting_works_as_in_numpy():
    three = faces((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3))
    assert len(three) == 3
    assert three[-1].boxes.tolist() == [[0, 0, 3, 3]]
    assert three[1:].boxes.shape == (2, 4)
    assert three[three.scores > 0.9].scores.tolist() == three.scores[:1].tolist()
    assert [len(face) for face in three] == [1, 1, 1]
    with pytest.raises(IndexError):
        three[3]


def test_the_largest_face_is_the_one_of_area_less_twice_the_squared_offset():
    # 40 x 40 in the centre: 1600. 60 x 60 in a corner of 250 x 250: 3600 - 2 * (95^2 + 95^2) < 0.
    assert faces((0, 0, 60, 60), (105, 105, 145, 145)).largest((250, 250)) == 1
    assert faces((95, 95, 155, 155), (105, 105, 145, 145)).largest((250, 250)) == 0
    # The size is (height, width): the middle of a wide picture is (200, 50).
    assert faces((25, 175, 75, 225), (180, 30, 220, 70)).largest((100, 400)) == 1


def test_no_faces_have_no_largest():
    with pytest.raises(FaceError, match="found no faces"):
        Faces.empty().largest((10, 10))


def test_arrays_of_another_shape_or_type_are_refused():
    with pytest.raises(InputError, match=r"landmarks: expected \(1, 5, 2\) float32, found \(1, 10\)"):
        Faces(np.zeros((1, 4), np.float32), np.zeros((1, 10), np.float32), np.zeros(1, np.float32))
    with pytest.raises(InputError, match=r"found \(1, 4\) float64"):
        Faces(np.zeros((1, 4)), np.zeros((1, 5, 2), np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "haar"}, InputError, "expected one of mtcnn, yunet, retail-0004, found 'haar'"),
        ({"name": "yunet"}, InputError, "model is missing; pass its path"),
        ({"name": "yunet", "model": Path("absent.onnx")}, MissingError, "absent.onnx"),
        ({"name": "mtcnn", "model": Path("absent")}, MissingError, r"det1\.npz"),
        ({"name": "mtcnn", "model": Path(__file__)}, ModelFormatError, "found a file; name .*--detector yunet"),
        ({"name": "mtcnn", "landmarks_model": Path("x")}, InputError, "belongs to retail-0004"),
        ({"name": "mtcnn", "min_size": 0}, InputError, "min_size"),
        ({"name": "mtcnn", "threshold": 1.5}, InputError, "threshold"),
    ],
)
def test_wrong_ways_to_load_a_detector_are_named(options: dict[str, object], error: type, message: str):
    with pytest.raises(error, match=message):
        load_detector(**options)  # type: ignore[arg-type]


def test_a_network_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "identity.xml"
    ov.save_model(identity(), path)
    with pytest.raises(ModelFormatError, match="cls_8 to kps_32"):
        load_detector("yunet", model=path)
    with pytest.raises(ModelFormatError, match=r"expected an input \[1, 3, 300, 300\]"):
        load_detector("retail-0004", model=path)
    path.write_text("<net>")
    with pytest.raises(ModelFormatError, match="cannot read"):
        read_network(path)


def identity() -> ov.Model:
    given = ops.parameter([-1], np.float32)
    return ov.Model([ops.result(ops.multiply(given, np.array(2, np.float32)))], [given], "double")


def test_an_absent_device_is_named(tmp_path: Path):
    model = retail(tmp_path / "retail.xml")
    with pytest.raises(InputError, match=r"device: expected CPU, .*found 'NOSUCH'"):
        load_detector("retail-0004", model=model, device="NOSUCH")
    with pytest.raises(DeviceError, match=r"no GPU\.7 here"):
        load_detector("retail-0004", model=model, device="gpu.7")


def test_the_case_of_a_device_does_not_matter(tmp_path: Path):
    with load_detector("retail-0004", model=retail(tmp_path / "retail.xml"), device="cpu") as detector:
        assert len(detector.detect([np.zeros((20, 30, 3), np.uint8)])) == 1


def test_a_closed_detector_says_so_and_may_be_closed_again(tmp_path: Path):
    detector = load_detector("retail-0004", model=retail(tmp_path / "retail.xml"))
    assert len(detector.detect([np.zeros((20, 30, 3), np.uint8)])) == 1
    detector.close()
    detector.close()
    with pytest.raises(EngineClosed):
        detector.detect([np.zeros((20, 30, 3), np.uint8)])


def test_observe_sees_every_batch_of_every_network(tmp_path: Path):
    seen: list[tuple[str, tuple[int, ...]]] = []
    with load_detector(
        "retail-0004",
        model=retail(tmp_path / "retail.xml"),
        landmarks_model=landmarks(tmp_path / "landmarks.xml"),
        observe=lambda label, batch: seen.append((label, batch.shape)),
    ) as detector:
        detector.detect([np.full((400, 300, 3), 200, np.uint8)] * 2)
    assert seen == [("model", (1, 3, 300, 300))] * 2 + [("landmarks", (1, 3, 48, 48))] * 2


def write_weights(folder: Path, *, seed: int = 0) -> Path:
    """Write MTCNN's three weight files with random numbers."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    shapes = {
        1: (
            "PReLU",
            [(3, 3, 3, 10), (3, 3, 10, 16), (3, 3, 16, 32)],
            {"conv4-2": (1, 1, 32, 4), "conv4-1": (1, 1, 32, 2)},
        ),
        2: (
            "prelu",
            [(3, 3, 3, 28), (3, 3, 28, 48), (2, 2, 48, 64), (576, 128)],
            {"conv5-2": (128, 4), "conv5-1": (128, 2)},
        ),
        3: (
            "prelu",
            [(3, 3, 3, 32), (3, 3, 32, 64), (3, 3, 64, 64), (2, 2, 64, 128), (1152, 256)],
            {"conv6-2": (256, 4), "conv6-3": (256, 10), "conv6-1": (256, 2)},
        ),
    }
    for number, (slope, kernels, heads) in shapes.items():
        arrays = {}
        names = {**{f"conv{index}": shape for index, shape in enumerate(kernels, start=1)}, **heads}
        for name, shape in names.items():
            arrays[f"{name}/weights"] = rng.normal(0, 0.1, shape).astype(np.float32)
            arrays[f"{name}/biases"] = np.zeros(shape[-1], np.float32)
        for index, shape in enumerate(kernels, start=1):
            arrays[f"{slope}{index}/alpha"] = np.full(shape[-1], 0.25, np.float32)
        np.savez(folder / f"det{number}.npz", **arrays)
    return folder


def retail(path: Path, *, factor: float = 1) -> Path:
    """Write a network of face-detection-retail-0004's shapes that finds one face in every image."""
    image = ops.parameter([1, 3, 300, 300], np.float32)
    found = np.full((1, 1, 200, 7), -1, np.float32)
    found[0, 0, 0] = [0, 1, 0.9 * factor, 0.1, 0.1, 0.8, 0.8]
    nothing = ops.multiply(ops.reduce_mean(image, [1, 2, 3]), np.float32(0))
    rows = ops.add(ops.reshape(nothing, [1, 1, 1, 1], False), found)
    ov.save_model(ov.Model([ops.result(rows)], [image], "retail"), path)
    return path


def landmarks(path: Path, *, factor: float = 1) -> Path:
    """Write a network with landmarks-regression-retail-0009's input and output shapes."""
    image = ops.parameter([1, 3, 48, 48], np.float32)
    mean = ops.reshape(ops.reduce_mean(image, [1, 2, 3]), [1, 1, 1, 1], False)
    points = ops.multiply(mean, np.full((1, 10, 1, 1), factor, np.float32))
    ov.save_model(ov.Model([ops.result(points)], [image], "landmarks"), path)
    return path


def yunet(path: Path, *, factor: float = 1) -> Path:
    """Write a network with YuNet's output names."""
    image = ops.parameter([1, 3, 32, 32], np.float32)
    results = []
    for stride in (8, 16, 32):
        for head, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            mean = ops.reshape(ops.reduce_mean(image, [1, 2, 3]), [1, 1, 1], False)
            rows = ops.multiply(mean, np.full((1, (32 // stride) ** 2, width), factor, np.float32))
            rows.output(0).set_names({f"{head}_{stride}"})
            results.append(ops.result(rows))
    ov.save_model(ov.Model(results, [image], "yunet"), path)
    return path


def test_a_detector_from_the_cache_is_not_built_again_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    image, box = np.random.default_rng(3).integers(0, 256, (96, 96, 3), np.uint8), np.array([[20, 20, 70, 70]])
    with load_detector("mtcnn", cache_dir=tmp_path) as cold:
        built = cold.locate(image, box)  # type: ignore[attr-defined]
    assert len(list(tmp_path.glob("*.blob"))) == 3
    monkeypatch.setattr(mtcnn_nets, "build_net", None)
    with load_detector("mtcnn", cache_dir=tmp_path) as warm:
        cached = warm.locate(image, box)  # type: ignore[attr-defined]
    for name in ("boxes", "landmarks", "scores"):
        np.testing.assert_array_equal(getattr(cached, name), getattr(built, name))


def test_other_weights_are_another_entry_of_the_cache(tmp_path: Path):
    for factor in (1, 2):
        model = retail(tmp_path / "retail.xml", factor=factor)
        load_detector("retail-0004", model=model, cache_dir=tmp_path / "cache").close()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def settings_of(name: str, **options: Any) -> dict[str, object]:
    with load_detector(name, **options) as detector:  # type: ignore[arg-type]
        return json.loads(json.dumps(detector.settings))


@pytest.mark.parametrize("name", ["mtcnn", "yunet", "retail-0004"])
def test_a_detector_s_settings_differ_with_every_option(name: str, tmp_path: Path):
    write = {
        "mtcnn": lambda seed: write_weights(tmp_path / f"{seed}", seed=seed),
        "yunet": lambda seed: yunet(tmp_path / f"{seed}.xml", factor=seed),
        "retail-0004": lambda seed: retail(tmp_path / f"{seed}.xml", factor=seed),
    }[name]
    model, other = write(1), write(2)
    options = {"model": model, "min_size": 30, "threshold": 0.6}
    same, changed = settings_of(name, **options), []
    assert settings_of(name, **options) == same
    assert (same["name"], same["threshold"], same["min_size"]) == (name, 0.6, 30)
    for option, value in {"model": other, "min_size": 31, "threshold": 0.61, "threshold_": None}.items():
        changed.append(settings_of(name, **{**options, option.rstrip("_"): value}))
    if name == "retail-0004":
        for factor in (1, 2):
            path = landmarks(tmp_path / f"landmarks{factor}.xml", factor=factor)
            changed.append(settings_of(name, **options, landmarks_model=path))
    unequal = {json.dumps(each, sort_keys=True) for each in (same, *changed)}
    assert len(unequal) == 1 + len(changed)
