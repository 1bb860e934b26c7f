"""A made gallery that lies as faces do, and how long finding a person in it takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tiny_ir import write_tiny_ir

from edgeface.bench.compare.comparable import read_side, require_comparable
from edgeface.bench.report.tables import settings_rows
from edgeface.bench.result import BenchmarkResult
from edgeface.bench.run.load_generator import RunLimits
from edgeface.bench.run.runner import DEFAULTS, ScenarioOptions, benchmark
from edgeface.bench.run.search import make_gallery, run_search
from edgeface.cli.bench_table import show
from edgeface.errors import InputError
from edgeface.gallery.index.exact import ExactIndex, exact_index
from edgeface.recognize.known import shipped_thresholds

ID = "0123456789abcdef"
SETTINGS = DEFAULTS.model_copy(
    update={"scenario": "search", "duration_s": 0.05, "max_duration_s": 0.1, "min_count": 5, "warm_up_s": 0.0}
)


def test_made_images_are_mistaken_as_often_as_those_of_lfw() -> None:
    """FaceNet's own false accepts and rejects, nearly: 2.7 million pairs of two people, 2,700 of one."""
    made = make_gallery(3000, dim=512, contract_id=ID, probes=900)
    scores = made.probes @ made.block.vectors.T
    same = made.person_ids[:, np.newaxis] == made.block.person_ids
    for each in shipped_thresholds("c9c4145b201ace67"):
        if each.far >= 1e-4:
            assert np.mean(scores[~same] > each.value) == pytest.approx(each.far, rel=0.6)
            assert np.mean(scores[same] <= each.value) == pytest.approx(each.frr, abs=0.015)


@pytest.mark.parametrize("templates", [1, 2, 60_001])
def test_a_gallery_has_as_many_templates_as_asked_for(templates: int) -> None:
    made = make_gallery(templates, dim=16, contract_id=ID, probes=5)
    np.testing.assert_array_equal(made.block.ids, np.arange(1, templates + 1))
    assert np.bincount(made.block.person_ids)[1:].max() <= 3
    np.testing.assert_allclose(np.linalg.norm(made.block.vectors, axis=1), 1, atol=1e-5)
    again = make_gallery(templates, dim=16, contract_id=ID, probes=5)
    np.testing.assert_array_equal(again.probes, made.probes)


def test_a_large_gallery_is_searched_in_int8_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numkong")
    monkeypatch.setattr("edgeface.gallery.index.exact.MANY", 300)
    small, large = (make_gallery(count, dim=16, contract_id=ID, probes=1).block for count in (300, 301))
    assert [exact_index(each).storage for each in (small, large)] == ["float32", "int8"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert exact_index(large).storage == "float32"
    assert exact_index(large).nbytes == ExactIndex(large).nbytes == 301 * (16 * 4 + 16)


@pytest.fixture(scope="module")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_ir(tmp_path_factory.mktemp("ir"))


@pytest.mark.parametrize("storage", ["float32", "int8", "graph", None])
def test_a_search_is_measured_like_any_other_scenario(ir: Path, storage: Any) -> None:
    pytest.importorskip("usearch")
    result = benchmark(ir, SETTINGS, options=ScenarioOptions(templates=600, storage=storage))
    assert result.search is not None
    assert (result.search.templates, result.search.people) == (600, 200)
    assert result.search.storage == (storage or "float32")
    assert result.search.found < 0.5  # an embedding of three values tells few people apart
    assert result.cpu_ms > 0  # type: ignore[operator]
    assert (result.peak, result.layers, result.gflops) == (None, (), None)
    assert result.validity is not None
    assert result.validity.warmed_up
    assert BenchmarkResult.from_dict(result.to_dict()) == result
    console = Console(file=io.StringIO(), width=200)
    show(result, console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "templates" in told
    for words in (told, str(settings_rows(result))):  # no model ran
        assert "hint" not in words
        assert "precision" not in words


def test_the_person_of_a_probe_is_found_first_in_a_gallery_of_real_length() -> None:
    limits = RunLimits(duration_s=0.0, min_count=200, max_duration_s=9.0)
    search, recording = run_search(600, "float32", limits, dim=512, contract_id=ID)
    assert search.found > 0.9
    assert len(recording) == 200


def test_searches_of_two_sizes_are_not_compared(ir: Path, tmp_path: Path) -> None:
    for count in (30, 60):
        benchmark(ir, SETTINGS, options=ScenarioOptions(templates=count)).write(tmp_path / str(count))
    sides = [read_side(tmp_path / str(count)) for count in (30, 60)]
    with pytest.raises(InputError, match="same number of templates, found 30 and 60"):
        require_comparable(*sides, across_models=False)


def test_a_search_needs_templates_and_other_scenarios_take_none(ir: Path) -> None:
    with pytest.raises(InputError, match="requires a number of templates"):
        benchmark(ir, SETTINGS)
    with pytest.raises(InputError, match="takes no templates: that is an option of the scenario search"):
        benchmark(ir, DEFAULTS, options=ScenarioOptions(templates=5))
