"""Reports: CSV that reads back exactly, Markdown that keeps its cells, and pages of whatever results there are."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_results import LAYERS, PEAK, latencies, made_kiosk, made_result

from edgeface.bench.compare.comparable import ReportEntry, Side, read_entries
from edgeface.bench.compare.comparison import compare
from edgeface.bench.report.many_plots import comparison_plots, heat_maps, throughput_plot
from edgeface.bench.report.page import write_report
from edgeface.bench.report.run_plots import roofline_plot, run_plots, top_layers
from edgeface.bench.report.tables import COLUMNS
from edgeface.bench.result import BenchmarkResult
from edgeface.drawing import rounded
from edgeface.errors import InputError

SERIES = latencies("outliers", np.random.default_rng(0), 800)


def entries() -> list[ReportEntry]:
    return [
        ReportEntry("plain", made_result(SERIES, efficiency=0.41, layers=LAYERS, peak=PEAK)),
        ReportEntry('a|b, "c"\n*d*', made_result(SERIES * 1.3, disturbed=True, disturbances=["x|y"], partial=True)),
    ]


def test_csv_reads_back_exactly(tmp_path: Path) -> None:
    write_report(entries(), tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2
    for row, entry in zip(rows, entries(), strict=True):
        result = entry.result
        assert row["name"] == entry.name
        assert float(row["p50_ms"]) == result.latency_ms["p50"]
        assert float(row["p99.9_ms"]) == result.latency_ms["p99.9"]
        assert float(row["throughput_fps"]) == result.throughput_fps
        assert row["throughput_fps_low"] == row["streams"] == row["p50_ms_low"] == ""
        assert row["contract_id"] == result.model.contract_id
        assert row["digest"] == result.model.digest
        assert (row["disturbed"], row["partial"]) == (str(result.disturbed), str(result.partial))
        assert int(row["queries"]) == len(SERIES)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_tables_keep_their_cells_whatever_the_names(tmp_path: Path) -> None:
    write_report(entries(), tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4, "results, a comparison, and the percentiles of each"
    for table in tables:
        assert len({len(cells(line)) for line in table}) == 1
        assert all(re.fullmatch(r"---:?", cell) for cell in cells(table[1]))
    plain, other = map(cells, tables[0][2:])
    assert plain[0] == "plain"
    assert plain[8] == "41 %"
    assert other[0] == r'a\|b, "c" \*d\*'
    assert other[-1] == "disturbed, partial"
    assert [cells(line)[0] for line in tables[1][2:]] == ["p50", "p90", "p99", "throughput"]
    assert cells(tables[1][2])[3] == "+30.0 %"
    assert cells(tables[1][2])[-1] == "worse"
    assert r"it was disturbed: x\|y" in text
    assert "contract\\_id" not in text
    assert "0123456789abcdef" in text


def test_what_cannot_be_compared_is_reported_without_a_comparison(tmp_path: Path) -> None:
    others = [ReportEntry("a", made_result(SERIES)), ReportEntry("b", made_result(SERIES, settings={"batch": 4}))]
    for suffix in ("html", "md"):
        write_report(others, tmp_path / f"r.{suffix}")
        text = (tmp_path / f"r.{suffix}").read_text()
        assert "against" not in text
        assert "Comparison" not in text


@pytest.mark.parametrize(
    "parts",
    [
        {"samples": None},
        {"samples": None, "latency_ms": {}, "throughput_fps": None, "gflops_per_second": None},
        {"settings": {"scenario": "server"}, "server": {"bound_ms": 5, "percentile": 99, "rate": None, "tries": []}},
        {"model": {"digest": None, "contract_id": None, "gflops": None, "gflops_mac2": None}},
        {"layers": LAYERS},
        {"partial": True},
    ],
)
def test_a_page_is_made_of_what_there_is(parts: dict, tmp_path: Path) -> None:
    write_report([ReportEntry("a", made_result(SERIES, **parts))], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == (0 if "samples" in parts else 4)
    assert ("Partial." in page) == ("partial" in parts)
    assert "None" not in page


@pytest.mark.parametrize("count", [1, 2, 5, 30, 1000])
def test_plots_of_any_number_of_samples_stay_between_their_axes(count: int) -> None:
    for series in (SERIES[:count], np.full(count, 3.0)):
        plots = run_plots(made_result(np.resize(series, count)))
        assert len(plots) == (0 if count == 1 else 4)
        for plot in plots:
            assert plot.shapes
            for shape in plot.shapes:
                assert "nan" not in shape.path
                assert "inf" not in shape.path


def test_the_roof_is_where_the_peak_says_and_layers_lie_where_their_times_say() -> None:
    plot = roofline_plot(made_result(SERIES, layers=LAYERS, peak=PEAK))
    frame = plot.frame
    roof, *dots = plot.shapes
    points = [tuple(map(float, each.split())) for each in roof.path[1:].split("L")]
    # 250 GFLOP/s over 20 GB/s: the ridge is at 12.5 operations a byte.
    assert points[1] == pytest.approx((frame.across(12.5), frame.down(250.0)), abs=0.06)
    assert points[2] == pytest.approx((frame.width, frame.down(250.0)), abs=0.06)
    assert points[0][0] == pytest.approx(0, abs=0.06)
    assert len(dots) == len(LAYERS)
    for dot, layer in zip(dots, LAYERS, strict=True):
        intensity, speed = layer["gflops"] * 1e9 / layer["bytes"], layer["gflops"] / layer["ms"] * 1e3
        left, middle = map(float, re.match(r"M(-?[\d.]+) (-?[\d.]+)a([\d.]+)", dot.path).groups()[:2])
        radius = float(re.search(r"a([\d.]+)", dot.path)[1])
        assert left + radius == pytest.approx(float(frame.across(intensity)), abs=0.11)
        assert middle == pytest.approx(float(frame.down(speed)), abs=0.06)
        assert layer["name"] in dot.title
    assert roofline_plot(made_result(SERIES, layers=LAYERS)) is None


def test_the_slowest_layers_come_first() -> None:
    rows = top_layers(made_result(SERIES, layers=LAYERS))
    assert [row.layer.name for row in rows[:2]] == ["<layer> 14", "<layer> 13"]
    assert rows[0].share == pytest.approx(LAYERS[14]["ms"] / sum(layer["ms"] for layer in LAYERS))
    assert rows[0].rate == pytest.approx(0.3 / 4 * 1e3)


def test_a_heat_map_has_a_cell_a_setting_and_marks_the_best() -> None:
    grid = [
        ReportEntry(
            f"s{s}b{b}", made_result(SERIES[:50] / s, settings={"streams": s, "batch": b, "scenario": "offline"})
        )
        for s in (1, 2, 10)
        for b in (1, 8)
    ]
    throughput, latency = heat_maps(grid)
    for plot in (throughput, latency):
        assert len(plot.shapes) == 6
        assert [mark.words for mark in plot.frame.y.marks] == ["1", "2", "10"]
        assert [mark.words for mark in plot.frame.x.marks] == ["1", "8"]
    best = [shape.title for shape in throughput.shapes if "best" in shape.kind]
    assert all(title.startswith("s10") for title in best)
    assert best
    assert heat_maps(grid[:3]) == []


def test_rows_are_named_by_what_tells_them_apart() -> None:
    named = [
        ReportEntry(name, made_result(SERIES[:50]))
        for name in ("CPU_throughput_streams-1/offline", "CPU_throughput_streams-2/offline")
    ]
    assert [mark.words for mark in throughput_plot(named).frame.y.marks] == ["streams-2/offline", "streams-1/offline"]
    assert throughput_plot(named[:1]) is None


def test_names_come_from_folders_and_are_told_apart(tmp_path: Path) -> None:
    made_result(SERIES[:20]).write(tmp_path / "x" / "run")
    made_result(SERIES[:20]).write(tmp_path / "y" / "run")
    found = read_entries([tmp_path / "x" / "run", tmp_path / "y" / "run" / "result.json", tmp_path])
    root = tmp_path.name
    assert [entry.name for entry in found] == ["run", "run (2)", f"{root}/x/run", f"{root}/y/run"]
    assert [entry.name for entry in read_entries([tmp_path])] == ["x/run", "y/run"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no result"):
        read_entries([tmp_path / "empty"])


def test_other_suffixes_and_no_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.html, \.md, \.csv, found '\.pdf'"):
        write_report(entries(), tmp_path / "r.pdf")
    with pytest.raises(InputError, match="at least one result"):
        write_report([], tmp_path / "r.html")


def test_doubts_keep_their_capitals_and_what_is_absent_has_no_unit(tmp_path: Path) -> None:
    made = made_result(SERIES, disturbed=True, disturbances=["other processes kept 1.52 CPUs busy"])
    short = made.model_copy(update={"latency_ms": {"p50": 5.0}, "latency_interval_ms": {}})
    write_report([ReportEntry("a", made), ReportEntry("b", short)], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "It was disturbed: other processes kept 1.52 CPUs busy" in page
    assert "5.000 ms" in page
    assert "- ms" not in page


def test_of_a_sweep_the_latency_alone_and_the_throughput_under_load_are_shown_in_full(tmp_path: Path) -> None:
    def made(number: int, scenario: str) -> ReportEntry:
        # Under load the times of a request are shorter here, as those of several streams on a busy machine may be.
        series = SERIES[:50] * (1 + number / 10) * (0.5 if scenario == "offline" else 1)
        settings = {"streams": 1 + number, "batch": 1 + number % 2, "scenario": scenario}
        return ReportEntry(f"{number}/{scenario}", made_result(series, settings=settings))

    found = [made(number, scenario) for number in range(4) for scenario in ("single-stream", "offline")]
    write_report(found, tmp_path / "r.html")
    assert re.findall(r"<h2>(\d/\S+)", (tmp_path / "r.html").read_text()) == ["0/single-stream", "0/offline"]


def test_results_of_several_models_are_no_sweep() -> None:
    def grid(digests: str) -> list[ReportEntry]:
        return [
            ReportEntry(
                f"{index}",
                made_result(
                    SERIES[:50],
                    settings={"streams": 1 + index // 2, "batch": 1 + index % 2},
                    model={"digest": digest * 64},
                ),
            )
            for index, digest in enumerate(digests)
        ]

    assert len(heat_maps(grid("0000"))) == 2
    assert heat_maps(grid("0001")) == []


def test_folders_of_repeated_runs_are_compared_as_wholes(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    for number in range(4):
        for side, slower in (("before", 1.0), ("after", 1.2)):
            created = f"2026-01-01T00:0{number}:{10 if side == 'before' else 40}+00:00"
            series = latencies("correlated", random, 300) * slower
            made_result(series, created=created).write(tmp_path / side / str(number))
    found = read_entries([tmp_path / "before", tmp_path / "after"])
    assert len(found) == 8
    write_report(found, tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text()
    assert re.findall(r"(?m)^## (.* against .*)$", text) == ["after against before"]
    assert "4 runs each, paired." in text
    assert "| worse |" in text


def test_an_interval_without_end_leaves_the_others_legible() -> None:
    random = np.random.default_rng(1)
    # Three runs that differ wildly bound next to nothing: up to thousands of per cent.
    sides = [
        Side(name, tuple(made_result(latencies("independent", random, 50) * each) for each in factors))
        for name, factors in (("a", (1, 2, 4)), ("b", (4, 1, 2)))
    ]
    found = compare(*sides)
    assert max(each.interval[1] or 0 for each in found.differences) > 10
    (plot,) = comparison_plots([found])
    assert plot.frame.x.place(3.0) == 1.0
    assert plot.frame.x.place(0.5) < 1.0


def test_every_rate_that_a_server_was_tried_at_is_told(tmp_path: Path) -> None:
    tries = [
        {"rate": rate, "achieved": rate, "count": 700, "latency_ms": 4 * rate, "met": rate < 20}
        for rate in (15.0, 25.0)
    ]
    server = {"bound_ms": 80.0, "percentile": 99.0, "rate": 15.0, "tries": tries}
    made = made_result(SERIES, settings={"scenario": "server"}, server=server)
    write_report([ReportEntry("a", made)], tmp_path / "r.html")
    assert "15.0/s met, 60.0 ms; 25.0/s not met, 100 ms" in (tmp_path / "r.html").read_text()


def test_a_kiosk_has_tiles_for_what_a_door_is_judged_by(tmp_path: Path) -> None:
    kept = np.ones(400, bool)
    kept[100:110] = False
    made = made_kiosk(kept, rng=np.random.default_rng(1))
    entries = [ReportEntry("a", made), ReportEntry("b", made_kiosk(kept | True, rng=np.random.default_rng(2)))]
    write_report(entries, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    tile = r'<span class="soft">{}</span><b>{}</b>'
    identity, decision = made.kiosk.time_to_identity_ms["p50"], made.kiosk.time_to_decision_ms["p50"]
    for name, value in (
        ("Dropped frames", "2.5 %"),
        ("Time to identity", f"{rounded(identity)} ms"),
        ("Time to decision", f"{rounded(decision)} ms"),
        ("Longest wait", f"{rounded(made.latency_ms['max'])} ms"),
        ("CPU time a frame", f"{rounded(made.cpu_ms)} ms"),
    ):
        assert tile.format(name, value) in page
    assert "130 with a detection, 260 tracked by optical flow, 0 skipped because nothing moved" in page
    assert '<td class="metric">dropped</td>' in page
    assert '<td class="num" data-label="dropped">2.5 %</td>' in page
    write_report(entries, tmp_path / "r.csv")
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [(row["kiosk_frames"], row["kiosk_dropped"]) for row in rows] == [("400", "10"), ("400", "0")]


def test_no_cell_of_the_csv_is_a_formula_and_no_report_has_a_control_character(tmp_path: Path) -> None:
    made = made_result(SERIES)
    made = made.model_copy(update={"model": made.model.model_copy(update={"name": "=cmd|'/c calc'!A1\x1b[31m"})})
    for suffix in (".csv", ".md"):
        write_report([ReportEntry("@SUM(1)", made)], tmp_path / f"r{suffix}")
        assert "\x1b" not in (tmp_path / f"r{suffix}").read_text()
    with (tmp_path / "r.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["name"], row["model"]) == ("'@SUM(1)", "'=cmd|'/c calc'!A1\\x1b[31m")


@pytest.mark.parametrize("suffix", [".html", ".md", ".csv"])
def test_a_name_that_is_no_unicode_is_escaped(suffix: str, tmp_path: Path) -> None:
    entries = [ReportEntry(f"\ud800{each}", made_result(SERIES)) for each in range(2)]
    write_report(entries, tmp_path / f"r{suffix}")
    assert r"\ud800" in (tmp_path / f"r{suffix}").read_text(encoding="utf-8")


def test_a_query_of_more_items_than_can_be_counted_is_refused() -> None:
    document = json.loads(json.dumps(made_result(SERIES).to_dict()))
    document["samples"]["items"] = 1 << 63
    with pytest.raises(InputError, match="items"):
        BenchmarkResult.from_dict(document)
