"""What `benchmarks/lfw.py` takes from an earlier run must come from the same model, device and precision."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))


class FakeEmbedder:
    """Embeds a crop as its mean, and counts."""

    def __init__(self, **changed: Any) -> None:
        given = {"contract_id": "a", "execution_devices": ("CPU",), "precision": "f32"} | changed
        self.contract = SimpleNamespace(contract_id=given["contract_id"])
        self.execution = SimpleNamespace(execution_devices=given["execution_devices"], precision=given["precision"])
        self.embedded = 0

    def map(self, crops: Any) -> Any:
        for crop in crops:
            self.embedded += 1
            yield np.array([crop.mean()], np.float32)


CROPS = [np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 10)]


def test_a_cache_of_the_same_settings_is_used(tmp_path: Path) -> None:
    from lfw import Cache

    first, again = FakeEmbedder(), FakeEmbedder()
    wanted = Cache(first, tmp_path / "cache.npz").embed(CROPS, "test")  # type: ignore[arg-type]
    found = Cache(again, tmp_path / "cache.npz").embed(CROPS, "test")  # type: ignore[arg-type]

    assert wanted.ravel().tolist() == found.ravel().tolist() == [10, 20, 10]
    assert again.embedded == 0


@pytest.mark.parametrize("changed", [{"contract_id": "b"}, {"execution_devices": ("GPU",)}, {"precision": "bf16"}])
def test_a_cache_of_other_settings_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    from lfw import Cache

    Cache(FakeEmbedder(), tmp_path / "cache.npz").embed(CROPS, "test")  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="expected results of"):
        Cache(FakeEmbedder(**changed), tmp_path / "cache.npz")  # type: ignore[arg-type]
