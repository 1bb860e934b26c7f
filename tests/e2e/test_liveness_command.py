"""`edgeface liveness` and `edgeface evaluate liveness` as a user runs them, on the published models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import edgeface

from edgeface.model.ir_file import read_liveness_contract

pytestmark = pytest.mark.real


@pytest.fixture
def irs(liveness_irs: Path) -> Path:
    return liveness_irs


MODELS = {"minifasnet-v2", "minifasnet-v1se"}


def test_the_exit_code_opens_only_for_photos_that_all_show_live_faces(data: Path, irs: Path, tmp_path: Path) -> None:
    live, spoof = (data / "liveness" / f"image_{name}.jpg" for name in ("T1", "F1"))
    empty = tmp_path / "empty.png"
    cv2.imwrite(str(empty), np.full((200, 200, 3), 90, np.uint8))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(live.read_bytes()[:5000])
    near = tmp_path / "near.png"
    cv2.imwrite(str(near), cv2.imread(str(live))[90:380, 90:320])

    assert edgeface("liveness", live, "--liveness", irs).returncode == 0
    for photos in ([spoof], [live, spoof], [live, empty], [live, broken], [near]):
        done = edgeface("liveness", *photos, "--liveness", irs)
        assert done.returncode == 1, photos
    assert "inconclusive" in done.stdout
    assert "step back" in done.stdout
    assert edgeface("liveness", live, "--liveness", irs, "--threshold", "0.4").returncode == 2
    missing = edgeface("liveness", live)
    assert missing.returncode == 3
    assert "edgeface zoo download minifasnet-v2" in missing.stderr


def test_json_has_the_answer_of_every_face_and_what_it_rests_on(data: Path, irs: Path) -> None:
    done = edgeface("liveness", data / "liveness", "--liveness", irs, "--json")

    answer = json.loads(done.stdout)
    assert done.returncode == 1
    assert answer["live"] is False
    verdicts = {Path(each["path"]).stem: each["faces"][0]["liveness"]["verdict"] for each in answer["images"]}
    assert verdicts == {"image_F1": "spoof", "image_F2": "spoof", "image_T1": "live"}
    assert {each["name"] for each in answer["models"]} == MODELS
    (face,) = answer["images"][0]["faces"]
    assert sum(face["liveness"]["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert len(face["liveness"]["contract_ids"]) == 2


def test_an_evaluation_names_each_kind_of_attack(data: Path, irs: Path, tmp_path: Path) -> None:
    for folder, name in {"live": "T1", "print": "F1", "screen": "F2"}.items():
        (tmp_path / "photos" / folder).mkdir(parents=True)
        shutil.copy(data / "liveness" / f"image_{name}.jpg", tmp_path / "photos" / folder)

    done = edgeface(
        "evaluate", "liveness", "--images", tmp_path / "photos", "--liveness", irs, "-o", tmp_path / "out", "--json"
    )

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [(each["name"], each["apcer"]) for each in answer["attacks"]] == [("print", 0), ("screen", 0)]
    assert answer["bona_fide"]["bpcer"] == 0
    assert answer["attacks"][0]["apcer_interval"] == [0, pytest.approx(0.975)]  # one presentation shows little
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_liveness_model_is_refused_where_an_embedding_model_is_needed(data: Path, irs: Path) -> None:
    photo = data / "liveness" / "image_T1.jpg"
    done = edgeface("verify", photo, photo, "--model", irs / "minifasnet-v2.xml")
    assert done.returncode == 2
    assert "expected an embedding model, found a liveness model" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param("fp16", marks=pytest.mark.nightly), "int8"])
def test_a_compressed_liveness_model_is_written_only_if_it_decides_like_fp32(
    data: Path, irs: Path, tmp_path: Path, mode: str
) -> None:
    """LFW has no attacks: what FP32 takes for some are small photos, which is enough to compare two models on."""
    if mode == "int8":
        pytest.importorskip("nncf")
    photos = tmp_path / "photos"
    photos.mkdir()
    for each in [*sorted((data / "lfw" / "calibration").iterdir())[:320], *(data / "liveness").glob("*.jpg")]:
        shutil.copy(each, photos)

    model = irs / "minifasnet-v2.xml"
    done = edgeface(
        "quantize", model, "--calibration", photos, "-o", tmp_path / "out", "--mode", mode, "--subset", 40, "--json"
    )

    answer = json.loads(done.stdout)
    agreement, written = answer["agreement"], tmp_path / "out" / "minifasnet-v2.xml"
    assert answer["passed"] == (done.returncode == 0) == written.is_file()
    assert min(agreement["live"], agreement["attacks"]) >= 10
    if mode == "fp16":
        assert answer["passed"], answer["reasons"]
        assert agreement["max_change"] < 0.02
    if answer["passed"]:
        assert agreement["opened"] == 0
        _, contract = read_liveness_contract(written)
        assert contract.contract_id == answer["contract_id"]
        assert contract.contract_id != read_liveness_contract(model)[1].contract_id
        assert contract.precision == mode.upper()
        verdicts = edgeface("liveness", data / "liveness", "--liveness", written, "--json")
        found = [each["faces"][0]["liveness"]["verdict"] for each in json.loads(verdicts.stdout)["images"]]
        assert found == ["spoof", "spoof", "live"]
