"""`edgeface embed` and `edgeface cluster` reuse nothing that was made with another value of any option."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_ir import write_tiny_ir

from edgeface.cli import main
from edgeface.vision import load
from edgeface.vision.detector import Faces

pytestmark = pytest.mark.timeout(120)


class WholePhoto:
    """Takes every photo for one face; its settings are those that it was loaded with."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        given = {key: str(value) for key, value in options.items() if key != "device"}
        self.settings = {"name": name, **given, "min_size": options["min_size"] or 20}

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        sizes = [image.shape[1::-1] for image in images]
        return [
            Faces(np.array([[0, 0, *size]], np.float32), np.full((1, 5, 2), np.nan, np.float32), np.ones(1, np.float32))
            for size in sizes
        ]

    def close(self) -> None:
        pass


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_ir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(60, 200, (64, 64, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), noise)
    monkeypatch.setattr(load, "load_detector", WholePhoto)
    return tmp_path


EMBED = ("embed", "photos", "-o", "out.npz", "--model", "tiny.xml")
CLUSTER = ("cluster", "photos", "-o", "out", "--model", "tiny.xml", "--threshold", "0.9")
DETECTED = [
    ("--detector", "yunet", "--detector-model", "a"),
    ("--detector-model", "another"),
    ("--landmarks-model", "another"),
    ("--min-size", "33"),
    ("--crops",),
]


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *((EMBED, option) for option in [*DETECTED, ("--faces", "all")]),
        *((CLUSTER, option) for option in [*DETECTED, ("--no-gate",)]),
    ],
)
def test_another_value_of_an_option_is_another_result(
    command: tuple[str, ...],
    option: tuple[str, ...],
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(work)
    gate = () if command is EMBED else ("--gate",)
    generous = "edgeface.vision.quality.QualityGate.check"
    if command is CLUSTER:  # noise is no face that the gate would pass
        from edgeface.vision.quality import QualityVerdict

        monkeypatch.setattr(generous, lambda *_: QualityVerdict(True, ()))
    assert main([*command, *gate]) == 0
    assert main([*command, *gate]) == 0  # the same again is reused
    capsys.readouterr()
    assert main([*command, *(() if option == ("--no-gate",) else gate), *option]) == 2
    assert "written with other settings" in capsys.readouterr().err
