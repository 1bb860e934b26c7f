"""Several models measured in alternating rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_net import write_tiny_net

from edgeface.bench.run.rounds import best_streams, compare_rounds, measure_in_turn
from edgeface.progress import Progress


def test_one_series_is_shorter_only_if_it_is_so_in_every_round() -> None:
    assert compare_rounds((1.0, 2.0, 3.0), (1.1, 2.1, 3.1)) == -1
    assert compare_rounds((1.1, 2.1, 3.1), (1.0, 2.0, 3.0)) == 1
    assert compare_rounds((1.0, 2.2, 3.0), (1.1, 2.1, 3.1)) == 0
    assert compare_rounds((1.0, 2.0), (1.0, 2.1)) == 0


@pytest.mark.slow
def test_every_round_measures_every_model_in_both_scenarios(tmp_path: Path) -> None:
    ir = write_tiny_net(tmp_path)
    seen: list[Progress] = []
    timed = measure_in_turn({"a": ir, "b": ir}, rounds=3, seconds=0.02, streams={"a": 1}, progress=seen.append)
    assert [(each.done, each.total) for each in seen] == [(turn, 12) for turn in range(12)]
    assert timed["a"].streams == 1
    for each in timed.values():
        assert len(each.alone.milliseconds) == len(each.loaded.milliseconds) == 3
        assert min(each.alone.milliseconds + each.loaded.milliseconds) > 0
        assert each.images_per_second == pytest.approx(1e3 / sorted(each.loaded.milliseconds)[1])
        assert each.to_dict()["rounds"]["latency_ms"] == list(each.alone.milliseconds)
    assert best_streams({"a": ir}, [1], seconds=0.02) == {"a": 1}
