"""The document of a result: the same after writing and reading, refused where it is wrong, older versions upgraded."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_results import made_kiosk, made_result
from pydantic import ValidationError

from edgeface.bench.result import SCHEMA, BenchmarkResult, Samples, upgrade
from edgeface.bench.schema import Execution, ModelInfo, RunSettings
from edgeface.errors import InputError, OutputError


@pytest.fixture
def result() -> BenchmarkResult:
    random = np.random.default_rng(0)
    starts = np.sort(random.integers(0, 10**10, 50))
    return BenchmarkResult(
        created="2026-11-22T03:00:00+00:00",
        edgeface="0.1.0",
        model=ModelInfo(
            name="tiny",
            contract_id=None,
            digest="0" * 64,
            format="ir",
            precision="FP32",
            parameters=3,
            gflops=0.5,
            gflops_mac2=0.4,
            int8_share=0.0,
            weight_bytes=12,
            activation_bytes=8,
            inputs={"image": (1, 3, 32, 32)},
        ),
        environment=None,
        settings=RunSettings(scenario="single-stream", device="CPU"),
        execution=Execution(
            devices=("CPU",), full_names=("A CPU",), precision="f32", streams=1, requests=1, threads=2, affinity=None
        ),
        latency_ms={"p50": 1.0, "p99.9": 2.0},
        latency_interval_ms={"p50": (0.9, 1.1), "p99.9": (1.5, None)},
        throughput_fps=1000.0,
        disturbed=False,
        samples=Samples.pack(starts, random.lognormal(0, 1, 50)),
    )


def test_a_result_is_the_same_after_writing_and_reading(result: BenchmarkResult, tmp_path: Path) -> None:
    path = result.write(tmp_path / "new" / "folder")
    assert BenchmarkResult.read(path) == BenchmarkResult.read(path.parent) == result
    assert json.loads(path.read_text())["schema"] == SCHEMA
    assert "samples" not in result.to_dict(samples=False)


@given(st.lists(st.tuples(st.integers(0, 2**50), st.floats(0, 1e7)), max_size=60), st.integers(1, 9))
def test_samples_come_back_in_the_order_of_their_starts(rows: list[tuple[int, float]], items: int) -> None:
    starts = np.array([start for start, _ in rows], np.int64)
    latencies = np.array([latency for _, latency in rows])
    samples = Samples.pack(starts, latencies, items=items)
    order = np.argsort(starts, kind="stable")
    np.testing.assert_array_equal(samples.starts_ns, starts[order])
    np.testing.assert_allclose(samples.latencies_ms, latencies[order], rtol=1e-6, atol=1e-38)
    np.testing.assert_allclose(samples.ends_s, starts[order] / 1e9 + samples.latencies_ms / 1e3)
    assert (samples.count, samples.items) == (len(rows), items)


def packed(array: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(array.tobytes())).decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency_ms": "no base64!"}, "not compressed samples"),
        ({"latency_ms": packed(np.ones(1, "<f4"))}, "expected 2 samples, found fewer"),
        ({"latency_ms": packed(np.zeros(10_000_000, "<f4"))}, "expected 2 samples, found more"),
        ({"latency_ms": packed(np.array([1, np.nan], "<f4"))}, "latencies must be finite and 0 or more"),
        ({"start_ns": packed(np.array([5, -1], "<i8"))}, "sorted by start time"),
    ],
)
def test_damaged_samples_are_refused(change: dict[str, str], message: str) -> None:
    good = Samples.pack(np.array([0, 1]), np.array([1.0, 2.0])).model_dump()
    with pytest.raises(ValidationError, match=message):
        Samples(**{**good, **change})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("latency_ms", "p50"), -1.0, r"latency_ms\.p50: .*greater than or equal to 0"),
        (("latency_ms", "p51"), 1.0, r"latency_ms\.p51"),
        (("model", "digest"), "abc", r"model\.digest"),
        (("settings", "scenario"), "offlin", r"settings\.scenario.*'offlin'"),
        (("speed",), 3, r"speed: Extra inputs"),
        (("throughput_fps",), float("inf"), r"throughput_fps"),
    ],
)
def test_a_wrong_field_is_named(result: BenchmarkResult, path: tuple[str, ...], value: Any, message: str) -> None:
    document = result.to_dict()
    part = document
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(InputError, match=message):
        BenchmarkResult.from_dict(document, source="r.json")


def test_a_missing_field_is_named(result: BenchmarkResult) -> None:
    document = result.to_dict()
    del document["model"]["name"]
    with pytest.raises(InputError, match=r"r\.json: model\.name: this field is missing"):
        BenchmarkResult.from_dict(document, source="r.json")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("edgeface.bench/99", "a newer edgeface wrote; update edgeface"),
        ("edgeface.bench/0", "an unknown version"),
        ("other/1", "expected a benchmark result"),
        ("edgeface.bench/²", "expected a benchmark result"),
        (None, "expected a benchmark result"),
        (1, "expected a benchmark result"),
    ],
)
def test_unknown_versions_are_refused(result: BenchmarkResult, schema: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BenchmarkResult.from_dict({**result.to_dict(), "schema": schema})


def test_a_document_goes_through_every_version_between_its_own_and_todays() -> None:
    steps = {
        1: lambda old: {**old, "throughput_fps": old["fps"]},
        2: lambda old: {key: value for key, value in old.items() if key != "fps"},
    }
    old = {"schema": "edgeface.bench/1", "fps": 5.0}
    upgraded = upgrade(old, schema="edgeface.bench/3", migrations=steps)
    assert upgraded == {"schema": "edgeface.bench/3", "throughput_fps": 5.0}
    assert old == {"schema": "edgeface.bench/1", "fps": 5.0}
    middle = {"schema": "edgeface.bench/2", "fps": 5.0, "throughput_fps": 6.0}
    assert upgrade(middle, schema="edgeface.bench/3", migrations=steps)["throughput_fps"] == 6.0


def test_a_kiosk_s_result_of_the_first_version_is_read_and_has_no_figures_that_it_did_not_measure() -> None:
    made = made_kiosk(np.ones(50, bool), rng=np.random.default_rng(1))
    document = made.to_dict()
    new = {"detector", "detected", "tracked", "skipped", "identity_ms", "liveness", "decisions", "spoofs"}
    new |= {"time_to_decision_ms", "decision_ms", "cpu_parts_ms"}
    document["kiosk"] = {name: value for name, value in document["kiosk"].items() if name not in new}
    old = BenchmarkResult.from_dict(document | {"schema": "edgeface.bench/1"})
    assert old.kiosk is not None
    assert (old.kiosk.decisions, old.kiosk.detected, old.kiosk.identity_ms) == (None, None, ())
    assert old.kiosk.time_to_identity_ms == made.kiosk.time_to_identity_ms
    assert old.to_dict()["schema"] == "edgeface.bench/3"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"text"'])
def test_what_is_no_result_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"result\.json is not a result in JSON|expected a benchmark result"):
        BenchmarkResult.read(path)


def test_an_absent_result_and_an_unwritable_folder_are_named(result: BenchmarkResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="written by 'edgeface bench run -o DIR'"):
        BenchmarkResult.read(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        result.write(tmp_path / "file")


def test_a_result_is_shown_in_one_line() -> None:
    result = made_result(np.full(100, 25.0))
    assert repr(result) == "BenchmarkResult(tiny, single-stream on CPU, p50 25 ms, throughput 40/s)"
