"""How many machines a site needs: the sum of measured costs, the queue, what is refused and what is not known."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgeface
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import made_kiosk, made_result

from edgeface.bench.machine.environment import read_environment
from edgeface.bench.machine.snapshot import take_snapshot
from edgeface.bench.plan import SiteBasis, SiteDemand, load_limit, plan_site, sizing_table
from edgeface.bench.result import BenchmarkResult
from edgeface.errors import InputError

STAGES = {"decode": 4.0, "convert": 1.0, "motion": 0.5, "detect": 12.0, "follow": 2.0, "embed": 20.0}
DEMAND = SiteDemand(cameras=20, decisions=5, people=50_000)


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    found = read_environment([take_snapshot(), take_snapshot()]).model_dump(mode="json")
    found["container"] |= {"affinity": list(range(8)), "cpu_limit": None}
    return found


def kiosk_result(environment: dict[str, Any] | None, **changes: Any) -> BenchmarkResult:
    """A run of 1,000 frames at 25 a second: 250 detections, 750 followed, 2,000 faces, 20 decisions, 80 looks."""
    made = made_kiosk(np.ones(1000, bool), rng=np.random.default_rng(1)).to_dict()
    made["kiosk"] |= {
        "detected": 250, "tracked": 750, "skipped": 0, "faces": 2000, "decisions": 20, "liveness": False,
        "embeddings": 80, "stage_ms": STAGES, "frame_size": [1080, 1920], "resident_bytes": 400_000_000,
        "camera_bytes": 50_000_000,
    } | changes.pop("kiosk", {})  # fmt: skip
    return BenchmarkResult.from_dict(made | {"environment": environment, "cpu_ms": 12.0} | changes)


def search_result(environment: dict[str, Any], templates: int, cpu_ms: float, **changes: Any) -> BenchmarkResult:
    search = {
        "templates": templates, "people": templates // 3, "storage": "int8", "dim": 512, "build_cpu_s": 1.0,
        "index_bytes": 2600 * templates, "found": 0.9,
    } | changes.pop("search", {})  # fmt: skip
    parts = {"settings": {"scenario": "search"}, "search": search, "environment": environment, "cpu_ms": cpu_ms}
    return made_result(np.full(100, cpu_ms), **parts | changes)


def written(folder: Path, *results: BenchmarkResult) -> list[Path]:
    return [each.write(folder / str(number)).parent for number, each in enumerate(results)]


@pytest.fixture
def basis(tmp_path: Path, environment: dict[str, Any]) -> SiteBasis:
    searches = [search_result(environment, size, ms) for size, ms in ((30_000, 3.0), (300_000, 30.0))]
    return SiteBasis.read(written(tmp_path, kiosk_result(environment), *searches))


def test_the_load_is_the_sum_of_what_was_measured(basis: SiteBasis) -> None:
    """Computed here from the numbers of the result, by hand."""
    found = plan_site(basis, dataclasses.replace(DEMAND, wait_ms=1e9))
    assert (found.machines, found.cameras_each, found.cores) == (1, 20, 8)
    stay, together = 2000 / 25 / 20, 2.0  # seconds, people
    groups = 5 / (20 * together)
    present, opened = (1 - math.exp(-groups * each) for each in (stay, stay + 3))
    cameras = 20 * 25 * 4.0 + 20 * (25 * opened + 4 * (1 - opened)) * 1.5
    empty = 20 * 25 * (opened - present) * (12 + 3 * 2) / 4 + 20 * (1 - opened) / 5 * 12
    whole_run = 12.0 * 1000 / 20  # CPU ms a decision, of which these are the cameras' own
    visits = 5 * (whole_run - 1000 * 5.5 / 20)
    searches = 5 * 3 * (3.0 + (150_000 - 30_000) / 270_000 * 27)
    assert found.load * 8 == pytest.approx((cameras + empty + visits + searches) / 1000)
    assert found.decision_ms == pytest.approx((visits + searches) / 5)
    assert sum(each.cpus for each in found.costs) == pytest.approx(found.load * 8)
    assert found.memory == {
        "process and models": 400_000_000, "further cameras": 19 * 50_000_000, "gallery": 150_000 * 2600
    }  # fmt: skip
    assert str(found).startswith("20 cameras at 5 decisions a second, 50,000 people: 1 machine of this kind at ")


@given(
    cameras=st.integers(1, 2000),
    decisions=st.floats(0.01, 200),
    people=st.integers(1, 100_000),
    more=st.integers(1, 500),
)
@settings(max_examples=40, deadline=None)
def test_more_work_never_needs_fewer_machines(cameras: int, decisions: float, people: int, more: int) -> None:
    basis = SITE
    asked = SiteDemand(cameras=cameras, decisions=decisions, people=people)
    larger = [
        dataclasses.replace(asked, cameras=cameras + more, decisions=decisions * (cameras + more) / cameras),
        dataclasses.replace(asked, people=people + 100 * more),
        dataclasses.replace(asked, strangers=1.0),
    ]
    try:
        found = plan_site(basis, asked)
    except InputError:
        for each in larger[1:]:
            with pytest.raises(InputError):
                plan_site(basis, each)
        return
    assert found.load <= found.limit
    assert found.cameras_each == math.ceil(cameras / found.machines)
    for each in larger:
        try:
            assert plan_site(basis, each).machines >= found.machines
        except InputError:
            assert each is not larger[0]  # as many a camera is no more for one camera


SITE = SiteBasis(
    name="door", kiosk=kiosk_result(None).kiosk, frame_ms=12.0, processed=1000, cores=4, machine="four",  # type: ignore[arg-type]
    memory_bytes=None, searches={"int8": [(30_000, 3.0)]}, bytes_each=2600.0, unknown=(), doubts=(),
)  # fmt: skip


@pytest.mark.parametrize(("cores", "work_ms"), [(1, 20.0), (2, 20.0), (8, 40.0)])
def test_the_limit_is_where_one_frame_in_a_hundred_waits_too_long(cores: int, work_ms: float) -> None:
    """Against a simulation of the queue."""
    load = load_limit(cores, work_ms, 100.0)
    rng, count = np.random.default_rng(1), 60_000
    arrivals = np.cumsum(rng.exponential(work_ms / (cores * load), count))
    work = rng.exponential(work_ms, count)
    free, late = np.zeros(cores), 0
    for at, takes in zip(arrivals, work, strict=True):
        first = int(free.argmin())
        begins = max(at, free[first])
        late += begins - at > 100.0
        free[first] = begins + takes
    assert late / count == pytest.approx(0.01, rel=0.35)


def test_a_search_is_interpolated_between_sizes_and_in_proportion_beyond_them(basis: SiteBasis) -> None:
    assert basis.search_ms(30_000) == (3.0, "measured, int8")
    assert basis.search_ms(165_000)[0] == pytest.approx(16.5)
    assert basis.search_ms(600_000)[0] == pytest.approx(60.0)
    assert basis.search_ms(3_000)[0] == pytest.approx(0.3)
    far = plan_site(basis, dataclasses.replace(DEMAND, people=300_000, wait_ms=1e9))
    assert any("extrapolated" in note for note in far.doubts)


def test_a_graph_takes_no_less_time_for_fewer_templates(basis: SiteBasis) -> None:
    graph = dataclasses.replace(basis, searches={"graph": basis.searches["int8"]})
    assert graph.search_ms(300) == (3.0, "as of 30,000, graph")


def test_of_two_exact_indexes_that_counts_which_a_gallery_of_this_size_has(
    tmp_path: Path, environment: dict[str, Any]
) -> None:
    small = search_result(environment, 60_000, 6.0, search={"storage": "float32"})
    large = search_result(environment, 150_000, 5.0)
    both = SiteBasis.read(written(tmp_path, kiosk_result(environment), large, small))
    assert both.search_ms(100_000) == (pytest.approx(10.0), "in proportion to 60,000, float32")
    assert both.search_ms(100_001)[1] == "in proportion to 150,000, int8"
    assert (both.largest(1000), both.largest(200_000)) == (60_000, 150_000)


def test_results_of_two_machines_two_models_or_two_indexes_are_not_mixed(
    tmp_path: Path, environment: dict[str, Any]
) -> None:
    door = kiosk_result(environment)
    other = environment | {"machine": environment["machine"] | {"cpu_model": "another CPU"}}
    fewer = environment | {"container": environment["container"] | {"affinity": [0]}}
    wrong = {
        "one machine": [search_result(other, 1000, 1.0)],
        r"one machine.*1 CPUs": [search_result(fewer, 1000, 1.0)],
        "one model": [search_result(environment, 1000, 1.0, model={"contract_id": "f" * 16})],
        "one kind of index": [
            search_result(environment, 1000, 1.0),
            search_result(environment, 9000, 9.0, search={"storage": "graph"}),
        ],
        "found 2 of kiosk": [door],
        "single-stream": [made_result(np.full(100, 5.0))],
        "complete run": [search_result(environment, 1000, 1.0, partial=True)],
    }
    for number, (message, others) in enumerate(wrong.items()):
        with pytest.raises(InputError, match=message):
            SiteBasis.read(written(tmp_path / str(number), door, *others))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kiosk": {"stage_ms": {}}}, "times of each stage"),
        ({"kiosk": {"decisions": 0}}, "people are decided about, found 0 decisions"),
        ({"kiosk": {"stage_ms": {"decode": 4.0}}}, "people are decided about"),
        ({"kiosk": {"frames": 0, "dropped": 0}}, "people are decided about"),
        ({"kiosk": {"frame_rate": 0}}, "people are decided about"),
        ({"partial": True}, "complete run"),
    ],
)
def test_a_result_that_lacks_what_the_plan_needs_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path, environment: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=message):
        SiteBasis.read(written(tmp_path, kiosk_result(environment, **changes)))


def test_what_was_not_measured_is_named(tmp_path: Path, environment: dict[str, Any]) -> None:
    basis = SiteBasis.read(written(tmp_path, kiosk_result(environment)))
    found = plan_site(basis, dataclasses.replace(DEMAND, cameras=1, decisions=0.1))
    assert any(each.startswith("searching: add results") for each in found.unknown)
    assert any(each.startswith("liveness") for each in found.unknown)


def test_liveness_is_part_of_a_decision_where_it_was_judged(tmp_path: Path, environment: dict[str, Any]) -> None:
    judged = {"liveness": True, "stage_ms": STAGES | {"liveness": 9.0}}
    basis = SiteBasis.read(written(tmp_path, kiosk_result(environment, kiosk=judged)))
    found = plan_site(basis, SiteDemand(cameras=1, decisions=0.1, people=100))
    (cost,) = [each for each in found.costs if each.name == "liveness"]
    assert (cost.ms, cost.rate) == (9.0, pytest.approx(0.1 * 80 / 20))
    assert not any(each.startswith("liveness") for each in found.unknown)
    whole_run = 12.0 * 1000 / 20 - 1000 * 5.5 / 20  # the same run, whatever its stages are
    assert found.decision_ms == pytest.approx(whole_run)


def test_stages_that_took_longer_than_their_run_are_a_doubt(tmp_path: Path, environment: dict[str, Any]) -> None:
    for number, (ms, doubtful) in enumerate(((20.0, 0), (30.0, 1))):
        run = kiosk_result(environment, kiosk={"stage_ms": STAGES | {"embed": ms}})
        found = plan_site(SiteBasis.read(written(tmp_path / str(number), run)), dataclasses.replace(DEMAND, cameras=1))
        (rest,) = [each.ms for each in found.costs if each.name == "other"]
        assert rest == pytest.approx(12.0 * 50 - 50 * 5.5 - 12.5 * 12 - 37.5 * 2 - 4 * ms)
        assert sum("the stages of the measured run took longer" in each for each in found.doubts) == doubtful


@pytest.mark.parametrize("changes", [{"cpu_ms": 1e-9}, {"kiosk": {"dropped": 999}}])
def test_a_run_that_took_no_longer_than_its_decoding_is_refused(
    changes: dict[str, Any], tmp_path: Path, environment: dict[str, Any]
) -> None:
    basis = SiteBasis.read(written(tmp_path, kiosk_result(environment, **changes)))
    with pytest.raises(InputError, match="a run that took longer than its decoding"):
        plan_site(basis, DEMAND)


def test_too_much_for_one_camera_is_no_plan(basis: SiteBasis) -> None:
    with pytest.raises(InputError, match=r"with one camera and 300,000,000 templates"):
        plan_site(basis, dataclasses.replace(DEMAND, people=100_000_000))
    rows = sizing_table(basis, DEMAND, cameras=[20, 100], people=[1000, 100_000_000])
    assert [[each is not None for each in row] for row in rows] == [[True, False]] * 2
    assert rows[1][0].machines > rows[0][0].machines  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "changes",
    [
        {"cameras": 0},
        {"cameras": 10**400},
        {"people": 10**400},
        {"decisions": math.nan},
        {"decisions": math.inf},
        {"strangers": 1.1},
        {"wait_ms": 0},
    ],
)
def test_a_demand_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    (wrong,) = changes
    with pytest.raises(InputError, match=f"plan: expected .* found {wrong} of [^,]*$"):
        dataclasses.replace(DEMAND, **changes)


def test_the_command_prints_the_plan_and_the_table(tmp_path: Path, environment: dict[str, Any]) -> None:
    results = written(tmp_path, kiosk_result(environment), search_result(environment, 30_000, 3.0))
    asked = ["plan", *map(str, results), "--cameras", "20", "--decisions", "5", "--people", "50000"]
    done = edgeface(*asked, "--json", "--table")
    answer = json.loads(done.stdout)
    assert answer["summary"] == str(plan_site(SiteBasis.read(results), DEMAND))
    assert len(answer["table"]["plans"]) == len(answer["table"]["cameras"])
    shown = edgeface(*asked)
    assert answer["summary"] in shown.stdout
    assert "not known: network" in shown.stderr
    assert edgeface(*asked[:-1], "0").returncode == 2
