"""`edgeface bench compare`, `report` and `sweep`, run as programs."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import edgeface
from made_results import latencies, made_result
from tiny_ir import write_tiny_ir

pytestmark = pytest.mark.timeout(200)


def bench(*arguments: str | Path, columns: int = 140) -> subprocess.CompletedProcess[str]:
    return edgeface("bench", *arguments, columns=columns)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    series = latencies("correlated", np.random.default_rng(0), 1500)
    made_result(series).write(root / "before")
    made_result(series * 1.08).write(root / "after")
    made_result(series, settings={"scenario": "offline"}).write(root / "offline")
    return root


def test_a_regression_ends_with_1_and_says_which_metric(results: Path) -> None:
    done = bench("compare", results / "before", results / "after", "--fail-on-regression", "5%")
    assert done.returncode == 1, done.stderr
    assert "+8.0 %" in done.stdout
    assert "worse" in done.stdout
    assert "after: FAILED: p50" in done.stderr
    assert "one run each" in done.stderr


def test_a_regression_ends_with_1_whether_or_not_anybody_reads_the_table(results: Path) -> None:
    command = [sys.executable, "-m", "edgeface", "bench", "compare", results / "before", results / "after"]
    with subprocess.Popen(
        [*command, "--fail-on-regression", "5%"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "after: FAILED: p50" in process.stderr.read()
        assert process.wait(timeout=60) == 1


def test_no_regression_ends_with_0_and_json_is_alone_on_stdout(results: Path) -> None:
    done = bench("compare", results / "before", results / "before", "--fail-on-regression", "20%", "--json")
    assert done.returncode == 0, done.stderr
    (comparison,) = json.loads(done.stdout)["comparisons"]
    assert {each["verdict"] for each in comparison["differences"]} == {"no difference shown"}
    assert comparison["gate"]["failed"] == []
    assert comparison["gate"]["limit"] == pytest.approx(0.2)


def test_what_does_not_compare_ends_with_2(results: Path) -> None:
    done = bench("compare", results / "before", results / "offline")
    assert done.returncode == 2
    assert "expected the same scenario, found single-stream and offline" in done.stderr
    done = bench("compare", results / "before", results / "after", "--fail-on-regression", "much")
    assert done.returncode == 2
    assert "expected a percentage such as 5%" in done.stderr


@pytest.mark.slow
def test_a_sweep_is_reported_and_its_plan_runs(tmp_path: Path) -> None:
    ir, folder = write_tiny_ir(tmp_path / "model"), tmp_path / "sweep"
    options = ["-t", "0.05", "--warm-up", "0.05", "--no-peak", "--batches", "1,2", "--hints", "throughput"]
    done = bench("sweep", ir, "-o", folder, *options, "--devices", "CPU NPU", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["results"]) == 4
    assert [each["name"] for each in answer["absent"]] == ["NPU"]
    assert "absent: NPU" in done.stderr
    done = bench("sweep", ir, "-o", folder, *options, columns=80)
    assert re.findall(r"(?m)^\W+(batch-\d)\s", done.stdout) == ["batch-1", "batch-2"], (
        "what tells the rows apart is legible on a small terminal"
    )
    done = bench("sweep", ir, "-o", folder, *options[:-4], "--batches", "1,0")
    assert done.returncode == 2
    assert "--batches: expected positive numbers" in done.stderr
    done = bench("report", folder, "-o", tmp_path / "first.md", "-o", tmp_path / "second.pdf")
    assert done.returncode == 2
    assert not (tmp_path / "first.md").exists(), "a wrong name is noticed before anything is written"
    done = bench("report", folder, "-o", tmp_path / "r.html", "-o", tmp_path / "r.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "r.csv").open(newline="") as file:
        assert sorted(row["name"] for row in csv.DictReader(file)) == sorted(answer["results"])
    plan = answer["best"]["throughput"]["plan"]
    done = bench("run", ir, "--plan", plan, "-t", "0.05", "--warm-up", "0.05", "--no-peak", "--no-layers", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["hint"] == "THROUGHPUT"
