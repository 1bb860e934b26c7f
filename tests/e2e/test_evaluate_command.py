"""`edgeface evaluate lfw|identification` and `edgeface calibrate`, run as programs on a tiny model and drawn faces."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import openvino as ov
import pytest
from browser import CHROMIUM, browser
from commands import edgeface
from contracts import sample_contract

from edgeface.cli import main
from edgeface.cli.options import MetricName
from edgeface.files import sha256_of
from edgeface.model.contract import Alignment, ModelContract
from edgeface.recognize import Metric

try:
    from openvino import opset13 as ops
except ImportError:  # OpenVINO 2024
    from openvino.runtime import opset13 as ops

pytestmark = pytest.mark.timeout(120)

PEOPLE, PHOTOGRAPHS = 12, 4


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return edgeface(*arguments)


def build_model(path: Path) -> Path:
    """An IR with a contract whose embedding is the crop's 4 x 4 mean colours, centred, of unit length."""
    image = ops.parameter([-1, 3, 16, 16], np.float32, name="image")
    image.output(0).set_names({"image"})
    means = ops.avg_pool(image, [4, 4], [0, 0], [0, 0], [4, 4], exclude_pad=True)
    flat = ops.subtract(ops.reshape(means, ops.constant([0, -1]), special_zero=True), ops.constant(np.float32(128)))
    unit = ops.normalize_l2(flat, ops.constant([1]), 1e-10, "max")
    unit.output(0).set_names({"embeddings"})
    model = ov.Model([unit], [image], "tiny")
    ov.save_model(model, path, compress_to_fp16=False)
    contract = sample_contract(
        alignment=Alignment("mtcnn-box-margin", 8), weights_sha256=sha256_of(path.with_suffix(".bin"))
    )
    contract.write_to(model)
    ov.save_model(model, path, compress_to_fp16=False)
    return path


def draw_people(root: Path, *, photographs: int = PHOTOGRAPHS, initial: str = "P", seed: int = 0) -> None:
    """Every person is a pattern of 4 x 4 colours; every photograph adds noise."""
    rng = np.random.default_rng(seed)
    for person in range(PEOPLE):
        pattern = rng.integers(0, 256, (4, 4, 3))
        folder = root / f"{initial}{person:02d}"
        folder.mkdir(parents=True)
        for number in range(1, photographs + 1):
            face = np.clip(pattern + rng.normal(0, 25, pattern.shape), 0, 255).astype(np.uint8)
            picture = np.full((60, 60, 3), 128, np.uint8)
            picture[10:50, 10:50] = cv2.resize(face, (40, 40), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(folder / f"{folder.name}_{number:04d}.png"), picture)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, pairs.txt, boxes.npz and tiny.xml."""
    root = tmp_path_factory.mktemp("evaluate")
    draw_people(root / "images")
    build_model(root / "tiny.xml")
    rows = ["3\t8"]
    for fold in range(3):
        rows += [f"P{4 * fold + k % 4:02d}\t1\t{k // 4 + 2}" for k in range(8)]
        rows += [f"P{k:02d}\t{fold + 1}\tP{k + 1 + fold:02d}\t2" for k in range(8)]
    (root / "pairs.txt").write_text("\n".join(rows) + "\n")
    names = sorted(f"{path.parent.name}/{path.stem}" for path in (root / "images").rglob("*.png"))
    points = np.ones((len(names), 10), np.float32)
    points[0] = 0
    np.savez(root / "boxes.npz", names=names, boxes=np.tile([10, 10, 50, 50], (len(names), 1)), points=points)
    return root


def evaluate(work: Path, output: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    given = {"--images": work / "images", "--pairs": work / "pairs.txt", "--model": work / "tiny.xml"}
    given |= {"-o": output, **dict(zip(more[::2], more[1::2], strict=False))}
    return run("evaluate", "lfw", *[word for item in given.items() for word in item if word != ""])


@pytest.mark.parametrize("protocol", ["facenet", "omz"])
def test_it_answers_in_json_and_writes_the_same_and_a_report(protocol: str, work: Path, tmp_path: Path) -> None:
    done = evaluate(work, tmp_path, "--boxes", work / "boxes.npz", "--protocol", protocol, "--json", "")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer)[:8] == ["protocol", "metric", "pairs", "accuracy", "val", "auc", "eer", "threshold"]
    assert (answer["protocol"], answer["pairs"], answer["failures"]) == (protocol, 48, 1)
    assert answer["failed_images"] == ["P00/P00_0001"]
    assert (answer["metric"], answer["flip"], answer["subtract_mean"]) == (
        ("squared-l2", False, False) if protocol == "facenet" else ("arccos", True, True)
    )
    assert answer["accuracy"]["mean"] > 0.9
    assert answer["auc"] > 0.95
    assert json.loads((tmp_path / "evaluation.json").read_text()) == answer
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_people_read_a_table_and_choose_the_metric(work: Path, tmp_path: Path) -> None:
    done = evaluate(work, tmp_path, "--crops", "", "--metric", "cosine-distance", "--far", "0.25")
    assert done.returncode == 0, done.stderr
    assert "cosine-distance" in done.stdout
    assert "VAL at FAR 0.25" in done.stdout
    assert "images used as aligned crops" in done.stdout
    assert not done.stderr


def test_people_who_are_not_enrolled_are_told_from_those_who_are(work: Path, tmp_path: Path) -> None:
    draw_people(tmp_path / "crowd")
    draw_people(tmp_path / "crowd", photographs=1, initial="S", seed=1)
    given = ("--images", tmp_path / "crowd", "--model", work / "tiny.xml", "--crops", "--fpir", "0.25")
    done = run("evaluate", "identification", *given, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["enrolled"], answer["mated"], answer["nonmated"]) == (PEOPLE, 3 * PEOPLE, PEOPLE)
    assert answer["rank1"] > 0.9
    assert list(answer["fnir"]) == ["0.25"]
    assert answer["fnir"]["0.25"] < 0.1
    assert answer["threshold"] == answer["operating_points"][0]["threshold"]
    assert json.loads((tmp_path / "out" / "identification.json").read_text()) == answer
    assert "Non-mated probes with the highest scores" in (tmp_path / "out" / "report.html").read_text()

    again = run("evaluate", "identification", *given, "-o", tmp_path / "again", "--json")
    assert {**json.loads(again.stdout), "seconds": 0} == {**answer, "seconds": 0}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_report_of_an_evaluation_is_readable_and_asks_for_nothing(width: int, work: Path, tmp_path: Path) -> None:
    assert evaluate(work, tmp_path, "--boxes", work / "boxes.npz").returncode == 0
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "report.html", width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelectorAll('svg path').length") > 6
        assert page.evaluate("[...document.images].every(each => each.naturalWidth > 0)")
        assert page.evaluate("document.images.length") == 40
        assert page.complaints() == []
        assert not [each for each in page.requested() if not each.startswith(("file:", "data:"))]


@pytest.mark.parametrize(
    ("command", "more", "words"),
    [
        ("evaluate lfw", ("--far", "2"), "far: expected a rate above 0 and below 1, found 2.0"),
        ("evaluate lfw", ("-o", "taken/out"), "cannot write taken/out"),
        ("evaluate lfw", ("--pairs", "bad.txt"), "bad.txt:2: expected 3 fields"),
        ("evaluate lfw", ("--pairs", "bad.txt"), "bad.txt:3: expected an image number"),
        ("calibrate", ("--far", "0"), "far: expected a rate above 0 and below 1, found 0.0"),
        ("calibrate", ("-o", "taken/t.json"), "cannot write taken"),
        ("evaluate identification", ("--fpir", "2"), "fpir: expected a rate above 0 and below 1, found 2"),
        ("evaluate identification", ("-o", "taken"), "found a file in the way"),
    ],
)
def test_what_cannot_end_well_is_refused_before_any_work(
    command: str, more: tuple[str, str], words: str, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    Path("bad.txt").write_text("1\t1\nP00\t1\nP00\tx\t2\n")
    # The model is not there: whoever looks for it first says so.
    given = {"--images": work / "images", "--model": "none.xml", "-o": "out/t.json"}
    if command != "evaluate identification":
        given["--pairs"] = work / "pairs.txt"
    given[more[0]] = more[1]
    done = run(*command.split(), "--crops", *[word for item in given.items() for word in item])
    assert (done.returncode, words in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert not Path("out").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_the_report_of_an_identification_is_readable_on_a_phone(work: Path, tmp_path: Path) -> None:
    draw_people(tmp_path / "crowd")
    draw_people(tmp_path / "crowd", photographs=1, initial="S", seed=1)
    given = ("--images", tmp_path / "crowd", "--model", work / "tiny.xml", "--crops")
    done = run("evaluate", "identification", *given, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "out" / "report.html", width=400)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.evaluate("document.querySelectorAll('svg path.curve').length") == 2
        heads = "[...document.querySelectorAll('th')].map(each => each.getBoundingClientRect().height)"
        assert page.evaluate(f"Math.max(...{heads})") < 50, "no head is broken into several lines"
        assert page.complaints() == []
        assert not [each for each in page.requested() if not each.startswith(("file:", "data:"))]


def test_an_image_that_is_missing_is_named(work: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("2\t1\nP00\t1\t9\nP00\t1\tP01\t1\nP02\t1\t2\nP02\t1\tP01\t1\n")
    done = evaluate(work, tmp_path / "out", "--pairs", tmp_path / "pairs.txt", "--boxes", work / "boxes.npz")
    assert done.returncode == 2
    assert "1 of 5 are missing: P00/P00_0009" in done.stderr


def test_boxes_and_a_detector_contradict_each_other(work: Path, tmp_path: Path) -> None:
    done = evaluate(work, tmp_path / "out", "--boxes", work / "boxes.npz", "--detector", "mtcnn")
    assert done.returncode == 2
    assert "expected one of --boxes" in done.stderr


def test_calibrate_writes_thresholds_that_carry_the_contract(work: Path, tmp_path: Path) -> None:
    output = tmp_path / "thresholds.json"
    done = run(
        "calibrate", "--images", work / "images", "--model", work / "tiny.xml", "--boxes", work / "boxes.npz",
        "--far", "0.01", "--far", "0.0001", "-o", output, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stored, answer = json.loads(output.read_text()), json.loads(done.stdout)
    assert stored["contract_id"] == ModelContract.read_from(ov.Core().read_model(work / "tiny.xml")).contract_id
    likely, unlikely = stored["thresholds"]
    # Nobody compares what has no face: one image of P00, and all of its pairs, are left out.
    assert likely["genuines"] == (PEOPLE - 1) * 6 + 3
    assert likely["impostors"] == 47 * 46 // 2 - likely["genuines"]
    assert likely["supported"]
    assert likely["observed_far"] <= 0.01
    assert likely["frr"] < 0.2
    assert not unlikely["supported"]
    assert "needs at least 30,000 impostor pairs" in done.stderr
    assert "no face found in 1 photos; their pairs were left out: P00/P00_0001.png" in done.stderr
    assert answer["thresholds"] == stored["thresholds"]
    assert answer["failures"] == ["P00/P00_0001.png"]


def test_calibrate_from_a_pairs_list_prints_a_table(work: Path, tmp_path: Path) -> None:
    done = run(
        "calibrate", "--images", work / "images", "--pairs", work / "pairs.txt", "--model", work / "tiny.xml",
        "--crops", "--far", "0.1", "--metric", "arccos", "-o", tmp_path / "t.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "arccos < 0." in done.stdout
    assert json.loads((tmp_path / "t.json").read_text())["metric"] == "arccos"


def test_calibrate_on_ones_own_photos_is_one_command_and_verify_uses_it(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    model, crops = ["--model", str(work / "tiny.xml")], "--crops"
    pair = [str(work / "images" / "P01" / f"P01_000{number}.png") for number in (1, 2)]
    assert main(["verify", *pair, crops, *model]) == 3  # nothing is known yet
    assert main(["calibrate", str(work / "images"), crops, *model]) == 0
    said = capsys.readouterr()
    assert "it is used for this model from now on" in " ".join(said.out.split())
    assert main(["verify", *pair, crops, *model, "--far", "0.01", "--json"]) in (0, 1)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["far"], answer["measured_on"], answer["supported"]) == (0.01, "images", True)
    main(["verify", *pair, crops, *model, "--far", "0.01"])
    assert "a false accept rate of 0.01 on images" in capsys.readouterr().out
    (stored,) = (tmp_path / "thresholds").iterdir()
    assert [each["far"] for each in json.loads(stored.read_text())["thresholds"]] == [0.01]  # 1,104 pairs
    assert "FAR 0.001 needs at least 3,000 impostor pairs" in said.err
    stored.unlink()
    assert main(["calibrate", str(work / "images"), crops, *model, "--far", "1e-4"]) == 2
    assert "(123 people with two photos each); there were" in capsys.readouterr().err
    assert not stored.exists()
    assert main(["calibrate", str(work / "images"), crops, *model, "--metric", "euclidean"]) == 2
    assert "--output" in capsys.readouterr().err


def test_a_fixed_euclidean_threshold_is_scored_beside_the_folds(work: Path, tmp_path: Path) -> None:
    done = evaluate(work, tmp_path, "--crops", "", "--metric", "euclidean", "--threshold", "0.6", "--json", "")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["metric"], answer["normalized"], answer["at"]["threshold"]) == ("euclidean", False, 0.6)
    assert 0 <= answer["at"]["far"] <= 1
    assert "at 0.6" in evaluate(work, tmp_path, "--crops", "", "--metric", "euclidean", "--threshold", "0.6").stdout


def test_every_command_knows_the_same_metrics() -> None:
    assert list(get_args(MetricName)) == [each.value for each in Metric]
