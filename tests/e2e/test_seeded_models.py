"""A model of seeded (random) weights recognises no one: every command and function says so, or refuses."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import edgeface as run
from extras import need_nncf
from tiny_ir import TINY_SIZE, tiny_crop, write_tiny_ir
from tiny_net import skin_crops, write_tiny_net

import edgeface
from edgeface.errors import ContractError
from edgeface.evaluate import evaluate_identification, evaluate_model, read_pairs
from edgeface.evaluate.lfw import calibrate_model
from edgeface.gallery import create_gallery, open_gallery
from edgeface.gallery.rebuild import rebuild
from edgeface.model.ir_file import read_contract
from edgeface.runtime import Embedder

pytestmark = pytest.mark.timeout(120)
PEOPLE, PHOTOS = 4, 6
REASON = "expected a model of trained weights, found seeded ones"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """seeded.xml and real.xml, a gallery of each with one person, images of five people, and pairs.txt."""
    root = tmp_path_factory.mktemp("seeded")
    write_tiny_ir(root, name="seeded", provenance="seeded")
    write_tiny_ir(root, name="real", source="b")
    rng = np.random.default_rng(0)
    for person in range(PEOPLE + 1):
        color = rng.integers(20, 230, 3)
        folder = root / "images" / f"P{person}"
        folder.mkdir(parents=True)
        for number in range(1, PHOTOS + 1 if person < PEOPLE else 2):  # the last has one photo
            face = tiny_crop(color + rng.normal(0, 8, (TINY_SIZE, TINY_SIZE, 3)))
            cv2.imwrite(str(folder / f"{folder.name}_{number:04d}.png"), face)
    rows = ["2\t8"]
    for fold in range(2):
        rows += [f"P{2 * fold + k % 2}\t1\t{k // 2 + 2}" for k in range(8)]
        rows += [f"P{2 * fold}\t{k % 4 + 1}\tP{2 * fold + 1}\t{k // 4 + 1}" for k in range(8)]
    (root / "pairs.txt").write_text("\n".join(rows) + "\n")
    gallery = ("gallery", "create", root / "of-real", "--model", root / "real.xml", "--unencrypted", "--keep-images")
    assert run(*gallery).returncode == 0
    enrol = ("gallery", "enrol", root / "of-real", root / "images" / "P0", "--name", "P0", "--crops", "--no-gate")
    assert run(*enrol, "--model", root / "real.xml", "--threshold", "0.99").returncode == 0
    for words in (
        ("create", root / "of-seeded", "--unencrypted"),
        ("enrol", root / "of-seeded", root / "images" / "P0", "--name", "P0", "--crops", "--threshold", "0.9999"),
    ):
        enrolled = run("gallery", *words, "--model", root / "seeded.xml", "--allow-seeded")
        assert enrolled.returncode == 0, enrolled.stderr
    return root


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy as the working directory."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


A, B, C = "images/P0/P0_0001.png", "images/P0/P0_0002.png", "images/P1/P1_0001.png"
MODEL = ("--model", "seeded.xml")
LABELLED = ("--images", "images", "--crops", *MODEL)
COMMANDS: dict[str, tuple[str, ...]] = {
    "verify": ("verify", A, B, "--crops", "--threshold", "0.5", *MODEL),
    "embed": ("embed", "images", "--crops", "-o", "out.npz", *MODEL),
    "identify": ("identify", A, "--gallery", "of-seeded", "--crops", "--threshold", "0.5", *MODEL),
    "cluster": ("cluster", "images", "--crops", "--threshold", "0.9", "-o", "groups", *MODEL),
    "gallery create": ("gallery", "create", "new", "--unencrypted", *MODEL),
    "gallery enrol": (
        *("gallery", "enrol", "of-seeded", C, "--name", "Ada", "--crops", "--no-gate", "--threshold", "0.9999"),
        *MODEL,
    ),
    "gallery rebuild": ("gallery", "rebuild", "of-real", "--same-alignment", *MODEL),
    "calibrate": ("calibrate", *LABELLED, "--far", "0.1", "-o", "thresholds.json"),
    "evaluate lfw": ("evaluate", "lfw", *LABELLED, "--pairs", "pairs.txt", "--far", "0.1", "-o", "lfw"),
    "evaluate identification": ("evaluate", "identification", *LABELLED, "--fpir", "0.5", "-o", "identification"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_recognises_refuses_a_seeded_model_until_it_is_allowed(name: str, work: Path) -> None:
    before = sorted(work.rglob("*"))

    refused = run(*COMMANDS[name])

    assert refused.returncode == 2
    assert REASON in refused.stderr
    assert "--allow-seeded" in refused.stderr
    assert sorted(work.rglob("*")) == before  # nothing was written

    allowed = run(*COMMANDS[name], "--allow-seeded")

    assert allowed.returncode == 0, allowed.stderr
    assert REASON not in allowed.stderr
    for page in work.rglob("report.html"):
        text = page.read_text()
        assert "Seeded weights." in text
        assert "Published" not in text


def enrol_again(**options: Any) -> object:
    with open_gallery("of-real") as store, Embedder.load("seeded.xml", **options) as embedder:
        return rebuild(store, embedder, same_alignment=True)


FUNCTIONS: dict[str, Callable[..., object]] = {
    "edgeface.load": lambda **options: edgeface.load("seeded.xml", detector=None, **options).close(),
    "edgeface.verify": lambda **options: edgeface.verify(A, A, model="seeded.xml", threshold=0.5, **options),
    "Embedder.load": lambda **options: Embedder.load("seeded.xml", **options).close(),
    "create_gallery": lambda **options: create_gallery(
        "new", contract=read_contract(Path("seeded.xml"))[1], key=None, **options
    ).close(),
    "rebuild": enrol_again,
    "evaluate_model": lambda **options: evaluate_model(
        Path("images"), read_pairs(Path("pairs.txt")), Path("seeded.xml"), fars=[0.1], **options
    ),
    "evaluate_identification": lambda **options: evaluate_identification(
        Path("images"), Path("seeded.xml"), fpirs=[0.5], **options
    ),
    "calibrate_model": lambda **options: calibrate_model(
        Path("images"), read_pairs(Path("pairs.txt")), Path("seeded.xml"), fars=[0.1], **options
    ),
}


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_recognises_refuses_a_seeded_model_until_it_is_allowed(name: str) -> None:
    with pytest.raises(ContractError, match=f"{REASON}.*allow_seeded=True"):
        FUNCTIONS[name]()
    with contextlib.suppress(edgeface.FaceError):  # of edgeface.verify: a plain colour shows no face
        FUNCTIONS[name](allow_seeded=True)


@pytest.mark.usefixtures("work")
def test_a_seeded_model_is_inspected_and_measured_and_every_output_says_what_it_is() -> None:
    shown = run("inspect", "seeded.xml")
    assert (shown.returncode, "seeded" in shown.stdout, "SEEDED WEIGHTS" in shown.stderr) == (0, True, True)
    answer = run("inspect", "seeded.xml", "--json")
    assert json.loads(answer.stdout)["contract"]["provenance"] == "seeded"
    assert "SEEDED WEIGHTS" in answer.stderr

    quick = ("--duration", "0.05", "--min-count", "2", "--warm-up", "0", "--no-peak", "--no-layers")
    measured = run("bench", "run", "seeded.xml", "-o", "runs", "--end-to-end", "--input-format", "u8 NHWC BGR", *quick)
    assert measured.returncode == 0, measured.stderr
    assert "SEEDED WEIGHTS" in measured.stdout
    (result,) = Path("runs").rglob("result.json")
    assert json.loads(result.read_text())["model"]["provenance"] == "seeded"
    reports = [Path(f"report.{suffix}") for suffix in ("html", "md", "csv")]
    told = run("bench", "report", "runs", *(word for path in reports for word in ("-o", path)))
    assert (told.returncode, "SEEDED WEIGHTS" in told.stderr) == (0, True)
    for path, banner in zip(reports, ("Seeded weights.", "SEEDED WEIGHTS", ",seeded"), strict=True):
        assert banner in path.read_text()
        assert "Published" not in path.read_text()
    compared = run("bench", "compare", "runs", "runs")
    assert "SEEDED WEIGHTS" in compared.stderr
    swept = run(
        *("bench", "sweep", "seeded.xml", "-o", "sweep", "--hints", "latency", "-t", "0.05", "--warm-up", "0"),
        "--no-peak", "--json",
    )  # fmt: skip
    assert json.loads(swept.stdout)["provenance"] == "seeded"
    assert "SEEDED WEIGHTS" in swept.stderr


@pytest.mark.slow
def test_what_is_quantized_from_a_seeded_model_stays_seeded(tmp_path: Path) -> None:
    need_nncf()
    from edgeface.quantize import CalibrationSet, QuantizationLimits, quantize

    ir = write_tiny_net(tmp_path / "parent", provenance="seeded")
    crops = CalibrationSet(crops=skin_crops(15), held_out=skin_crops(9, seed=1), names=tuple(map(str, range(24))))
    outcome = quantize(ir, tmp_path / "out", crops, limits=QuantizationLimits(min_cosine=-1))

    assert outcome.ir is not None
    assert read_contract(outcome.ir)[1].provenance == "seeded"
    assert outcome.to_dict()["provenance"] == "seeded"
    with pytest.raises(ContractError, match=REASON):
        Embedder.load(outcome.ir)
