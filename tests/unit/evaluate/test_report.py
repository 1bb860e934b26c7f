"""The page: whole in one file, safe against names, and its plots where the numbers are."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgeface.evaluate.faces import Embedded, FaceCutter, FaceSource
from edgeface.evaluate.lfw import Result
from edgeface.evaluate.pairs import Pairs
from edgeface.evaluate.plots import det_plot, histogram_plot, roc_plot
from edgeface.evaluate.protocol import ProtocolName, evaluate, exact_roc
from edgeface.evaluate.report import worst_pairs, write_report
from edgeface.recognize import Metric
from edgeface.runtime.plan import ExecutionReport

EXECUTION = ExecutionReport(
    requested_device="CPU",
    execution_devices=("CPU",),
    full_names=("a <CPU>",),
    precision="f32",
    hint="THROUGHPUT",
    streams=1,
    optimal_requests=1,
    threads=1,
    loaded_from_cache=False,
    fallback=False,
    notes=(),
)
VOID = {"meta", "img", "br", "path", "i"}


@pytest.fixture
def result(photographs, contract) -> Result:
    """Twelve people, two folds; one name tries to break out of the page."""
    files, names = photographs(24)
    names[0] = '<script>"&'
    first, second = np.arange(0, 24, 2), np.arange(1, 24, 2)
    same = np.tile([True, True, True, False, False, False], 2)
    pairs = Pairs(tuple(names), first, second, same, folds=2)
    angle = np.arange(24) * 0.1 + np.where(np.repeat(same, 2), 0, (np.arange(24) % 2) * 2)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    embedded = Embedded(
        vectors=vectors,
        model=Path("m.xml"),
        contract=contract,
        cutter=FaceCutter(files, names, contract, FaceSource(text="boxes of <b>.npz")),
        execution=EXECUTION,
        seconds=2.0,
    )
    evaluation = evaluate(vectors, pairs, protocol=ProtocolName.facenet, metric=Metric.squared_l2)
    return Result(evaluation=evaluation, embedded=embedded, pairs=pairs, flip=False)


class Balance(HTMLParser):
    """Checks that every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_names_cannot_break_out_of_it(result: Result, tmp_path: Path) -> None:
    write_report(result, tmp_path / "deep" / "report.html")
    page = (tmp_path / "deep" / "report.html").read_text()
    balance = Balance()
    balance.feed(page)
    assert not balance.open
    assert not balance.seen & {"script", "link", "iframe", "object"}
    assert not re.search(r"(?:https?:)?//(?!\w*base64)\w+\.", page)
    assert "url(" not in page
    assert "squared-l2 distance" in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 3
    assert page.count('<img src="data:image/jpeg;base64,') == 24
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_the_worst_come_first(result: Result) -> None:
    genuine, impostor = worst_pairs(result, same=True), worst_pairs(result, same=False, count=2)
    assert len(genuine) == 6
    assert len(impostor) == 2
    assert [each.score for each in genuine] == sorted((each.score for each in genuine), reverse=True)
    assert impostor[0].score <= impostor[1].score
    assert not any(each.wrong for each in genuine)


def test_json_says_what_failed_and_how_fast_it_was(result: Result) -> None:
    answer = result.to_dict()
    assert list(answer)[:8] == ["protocol", "metric", "pairs", "accuracy", "val", "auc", "eer", "threshold"]
    assert answer["failures"] == 0
    assert answer["images_per_second"] == 12
    assert answer["model"]["contract_id"] == result.embedded.contract.contract_id


def path_points(path: str) -> np.ndarray:
    return np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float)


@pytest.mark.parametrize("seed", range(3))
def test_curves_stay_between_the_axes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances = np.concatenate([rng.normal(0, 1, 500), rng.normal(seed, 1, 400)])
    same = np.arange(900) < 500
    roc = exact_roc(distances, same)
    for plot in (roc_plot(roc), det_plot(roc), histogram_plot(distances, same, 0.5, metric="m")):
        for shape in plot.shapes:
            points = path_points(shape.path)
            assert (points >= 0).all()
            assert (points <= [plot.frame.width, plot.frame.height]).all()
        for axis in (plot.frame.x, plot.frame.y):
            assert all(-1e-9 <= mark.at <= 1 + 1e-9 for mark in axis.marks)
        assert len(plot.frame.x.marks) > 2


def test_det_of_two_gaussians_is_a_straight_line() -> None:
    rng = np.random.default_rng(0)
    distances = np.concatenate([rng.normal(0, 1, 20_000), rng.normal(2, 1, 20_000)])
    plot = det_plot(exact_roc(distances, np.arange(40_000) < 20_000))
    width, height = plot.frame.width, plot.frame.height
    x, y = path_points(plot.shapes[1].path).T
    middle = (x > 0.2 * width) & (x < 0.8 * width)
    slope, offset = np.polyfit(x[middle], y[middle], 1)
    assert np.abs(y[middle] - slope * x[middle] - offset).max() < 0.02 * height
    assert slope == pytest.approx(height / width, rel=0.05)


@pytest.mark.parametrize("kind", ["constant", "parity"])
def test_a_model_that_tells_nobody_apart_gets_its_page(result: Result, tmp_path: Path, kind: str) -> None:
    vectors = np.zeros((24, 2), np.float32)
    vectors[:, 0] = 1
    if kind == "parity":  # pairs of one person are opposite, pairs of two people alike: worse than chance
        vectors[1::2] = np.where(np.repeat(result.pairs.same, 2)[1::2, None], -1, 1) * vectors[1::2]
    evaluation = evaluate(vectors, result.pairs, protocol=ProtocolName.facenet, metric=Metric.squared_l2)
    write_report(dataclasses.replace(result, evaluation=evaluation), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<svg") == 3


def test_a_rate_that_the_pairs_are_too_few_for_is_marked_in_the_page(result: Result, tmp_path: Path) -> None:
    write_report(result, tmp_path / "report.html")  # 6 impostor pairs, and rates from 0.1
    page = (tmp_path / "report.html").read_text()
    assert "0.001 *</td>" in page
    assert "Too few impostor pairs for this rate: 6, " in page
    assert f"not found in {len(result.embedded.cutter.failures)} image" in page
