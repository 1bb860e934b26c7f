"""Pairs whose second crop lost its detail, and the baseline of pixels: what they measure, and where it is told."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import edgeface
from tiny_people import write_people, write_red_ir

from edgeface.convert.parity import run_model
from edgeface.errors import InputError
from edgeface.evaluate.lfw import Result, evaluate_model
from edgeface.evaluate.low_resolution import parse_resolutions, reduce_resolution
from edgeface.evaluate.pairs import Pairs, parse_pairs
from edgeface.evaluate.pixels import write_pixel_ir
from edgeface.evaluate.protocol import ProtocolName, evaluate
from edgeface.model.ir_file import read_contract, read_ir
from edgeface.recognize import Metric

ROWS = ["P0\t1\t2", "P1\t1\t2", "P2\t1\t2", "P0\t1\tP1\t2", "P1\t1\tP2\t2", "P2\t1\tP0\t2"]
ROWS += ["P3\t1\t2", "P4\t1\t2", "P5\t1\t2", "P3\t1\tP4\t2", "P4\t1\tP5\t2", "P5\t1\tP3\t2"]


@pytest.fixture
def pairs() -> Pairs:
    return parse_pairs("\n".join(["2\t3", *ROWS]).encode())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_people(tmp_path / "people")


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    return write_red_ir(tmp_path / "red.xml")


def test_a_reduced_crop_is_the_mean_of_its_areas_between_which_the_cubic_kernel_interpolates() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    small = crop.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).round().astype(np.float64)
    # Keys' cubic kernel with a = -0.75, OpenCV's, at the distances of the pixels' centres; edges are repeated.
    at = (np.arange(32) + 0.5) / 8 - 0.5
    weights = np.zeros((32, 4))
    for row, place in enumerate(at):
        for tap in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            x, a = abs(place - tap), -0.75
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[row, min(max(tap, 0), 3)] += near if x <= 1 else far
    expected = np.einsum("ya,abc,xb->yxc", weights, small, weights).clip(0, 255)
    assert np.abs(reduce_resolution(crop, 4).astype(float) - expected).max() <= 1  # fixed point rounds twice


def test_a_crop_keeps_its_size_and_shape_and_one_without_more_pixels_its_values() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8)
    assert reduce_resolution(crop, 6).shape == crop.shape
    assert reduce_resolution(crop, 24) is crop


@pytest.mark.parametrize("text", ["", "7,x", "7,,14", "3", "14,14", "0", "-7"])
def test_resolutions_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse_resolutions(text)


def run(images: Path, pairs: Pairs, ir: Path, **options: object) -> Result:
    return evaluate_model(images, pairs, ir, metric=Metric.cosine_distance, **options)


@pytest.mark.slow
def test_only_the_second_photo_of_a_pair_is_reduced(images: Path, pairs: Pairs, ir: Path) -> None:
    result = run(images, pairs, ir, low_resolution=(4, 8, 16))
    full, low = [], []
    for name in pairs.images:
        crop = cv2.imread(str(images / f"{name}.png"))
        for rows, image in ((full, crop), (low, reduce_resolution(crop, 4))):
            rows.append(run_model(read_ir(ir), image.transpose(2, 0, 1)[np.newaxis].astype(np.float32))[0])
    a, b = np.stack(full)[pairs.first], np.stack(low)[pairs.second]
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    four, _, sixteen = result.low_resolution
    np.testing.assert_allclose(four.evaluation.distances, 1 - cosines, atol=1e-2)
    assert np.array_equal(sixteen.evaluation.distances, result.evaluation.distances)  # as many pixels as there are
    assert np.abs(four.evaluation.distances - result.evaluation.distances).max() > 0.05


def test_the_pixels_of_the_crops_are_a_row_beside_the_model(images: Path, pairs: Pairs, ir: Path) -> None:
    result = run(images, pairs, ir)
    rows = []
    for name in pairs.images:
        grey = cv2.imread(str(images / f"{name}.png")) @ np.array([0.114, 0.587, 0.299])
        areas = grey.repeat(2, axis=0).repeat(2, axis=1)  # 16 pixels to 32 areas
        rows.append((areas - areas.mean()).ravel())
    expected = evaluate(np.stack(rows), pairs, protocol=ProtocolName.facenet, metric=Metric.cosine_distance)
    assert result.pixels is not None
    np.testing.assert_allclose(result.pixels.distances, expected.distances, atol=1e-4)
    assert result.to_dict()["pixels"]["accuracy"]["mean"] == expected.accuracy


def test_pixels_are_a_model_too_beside_which_there_is_no_row_of_pixels(images: Path, pairs: Pairs, ir: Path) -> None:
    result = run(images, pairs, Path("pixels"), low_resolution=(7,))
    assert result.pixels is None
    assert result.to_dict()["model"]["path"] == "pixels"
    assert len(result.low_resolution) == 1


def test_a_crop_of_one_colour_has_a_pixel_embedding_of_unit_length(tmp_path: Path, ir: Path) -> None:
    _, contract = read_contract(ir)
    made = write_pixel_ir(tmp_path, contract)
    found = run_model(read_ir(made), np.full((2, 3, 16, 16), 90, np.float32))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_command_tells_both_and_the_page_draws_the_curve(images: Path, ir: Path, tmp_path: Path) -> None:
    listed = tmp_path / "pairs.txt"
    listed.write_text("\n".join(["2\t3", *ROWS]))
    common = ["evaluate", "lfw", "--images", images, "--pairs", listed, "--crops", "--model", ir]
    done = edgeface(*common, "-o", tmp_path / "out", "--low-resolution", "4,8", "--json")
    answer = json.loads(done.stdout)
    assert list(answer["low_resolution"]) == ["4", "8"]
    assert 0 <= answer["pixels"]["accuracy"]["mean"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Low resolution" in page
    assert "second photo of 4 pixels" in page
    assert "pixels alone" in page
    refused = edgeface(*common, "-o", tmp_path / "out", "--low-resolution", "4,four")
    assert refused.returncode == 2
    assert "like 7,14,28" in refused.stderr
