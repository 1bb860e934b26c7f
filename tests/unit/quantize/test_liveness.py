"""When a compressed liveness model is refused, and how its faces are gathered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from minifasnet_files import MiddleDetector, frame, write_liveness_ir

from edgeface.errors import InputError
from edgeface.model.ir_file import read_liveness_contract
from edgeface.quantize import QuantizationRecipe, quantize_liveness
from edgeface.quantize.liveness import judge_liveness_agreement, measure_liveness_agreement

EXPECTED = np.array([0.9] * 100 + [0.1] * 20)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({0: 0.4, 1: 0.4}, []),
        ({0: 0.4, 1: 0.4, 2: 0.4}, ["live faces"]),
        ({119: 0.51}, ["attacks"]),
        (dict.fromkeys(range(100), 0.87), ["probability of a live face"]),
        ({105: float("nan")}, ["probability of a live face"]),
    ],
)
def test_no_attack_may_become_live_and_few_live_faces_an_attack(changes: dict[int, float], reasons: list[str]) -> None:
    found = EXPECTED.copy()
    found[list(changes)] = list(changes.values())

    judged = judge_liveness_agreement(measure_liveness_agreement(EXPECTED, found))

    assert [each.partition(":")[0] for each in judged] == reasons


def test_too_few_attacks_or_live_faces_show_nothing() -> None:
    for expected in (EXPECTED[:109], EXPECTED[-29:]):
        (reason,) = judge_liveness_agreement(measure_liveness_agreement(expected, expected))
        assert "calibrate with photos of both" in reason


def photos_in(folder: Path, *, attacks: int) -> Path:
    folder.mkdir()
    for index in range(100 + attacks):
        color = (40, 200, 40) if index < 100 else (200, 40, 40)
        cv2.imwrite(str(folder / f"{index}.png"), frame(color, size=(480, 640), seed=index)[::2, ::2])
    return folder


def quantize(tmp_path: Path) -> Any:
    return quantize_liveness(
        tmp_path / "model" / "tiny-liveness.xml",
        tmp_path / "out",
        tmp_path / "photos",
        MiddleDetector(),  # type: ignore[arg-type]
        recipe=QuantizationRecipe(method="fp16"),
    )


@pytest.mark.slow
def test_fp16_passes_on_photos_of_both_and_is_refused_on_live_faces_alone(tmp_path: Path) -> None:
    parent = write_liveness_ir(tmp_path / "model")
    photos = photos_in(tmp_path / "photos", attacks=100)

    passed = quantize(tmp_path)
    assert passed, passed.reasons
    assert (passed.agreement.live + passed.agreement.attacks, passed.calibrated) == (40, 160)
    _, contract = read_liveness_contract(passed.ir)
    assert contract == passed.contract
    assert contract.precision == "FP16"
    assert contract.contract_id != read_liveness_contract(parent)[1].contract_id

    for index in range(100, 200):
        (photos / f"{index}.png").unlink()
    passed.ir.unlink()
    refused = quantize(tmp_path)
    assert not refused
    assert (refused.ir, refused.contract, refused.to_dict()["ir"]) == (None, None, None)
    assert not passed.ir.exists()


def test_it_does_not_replace_its_parent_and_needs_faces(tmp_path: Path) -> None:
    parent = write_liveness_ir(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "black.png"), np.zeros((240, 320, 3), np.uint8))
    with pytest.raises(InputError, match="expected at least 5 faces"):
        quantize(tmp_path)
    fp16 = QuantizationRecipe(method="fp16")
    with pytest.raises(InputError, match="choose another folder"):
        quantize_liveness(parent, parent.parent, tmp_path, MiddleDetector(), recipe=fp16)  # type: ignore[arg-type]
