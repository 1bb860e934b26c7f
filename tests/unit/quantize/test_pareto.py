"""Which precisions are worth having: the rule, the measurement on a tiny network, and what is written of it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import cv2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_ir import write_tiny_ir
from tiny_net import skin_crops, write_tiny_net

from edgeface.errors import InputError
from edgeface.evaluate.faces import FaceSource
from edgeface.evaluate.lfw import evaluate_model
from edgeface.evaluate.pairs import Pairs, parse_pairs
from edgeface.quantize.calibration import CalibrationSet
from edgeface.quantize.pareto import Pareto, compare_models, find_dominated, measure_pareto, name_models
from edgeface.quantize.pareto_report import FILES, to_markdown, write_pareto

PEOPLE = 16


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=7))
def test_the_dominated_are_those_that_another_is_nowhere_worse_than(points: list[tuple[int, int, int]]) -> None:
    names = [str(number) for number in range(len(points))]

    def better(first: str, second: str) -> list[int]:
        return [(a > b) - (a < b) for a, b in zip(points[int(first)], points[int(second)], strict=True)]

    beaten = find_dominated(names, better)

    for name, others in beaten.items():
        mine = points[int(name)]
        dominating = {
            other
            for other in names
            if all(b <= a for a, b in zip(mine, points[int(other)], strict=True)) and points[int(other)] != mine
        }
        assert set(others) == dominating
    assert any(not others for others in beaten.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """parent/tiny.xml, images/ of crops, and pairs.txt: two folds."""
    made = tmp_path_factory.mktemp("pareto")
    write_tiny_net(made / "parent")
    crops = skin_crops(2 * PEOPLE)
    for person, number in itertools.product(range(PEOPLE), (1, 2)):
        name = f"P{person}"
        (made / "images" / name).mkdir(parents=True, exist_ok=True)
        crop = crops[person] if number == 1 else cv2.convertScaleAbs(crops[person], alpha=0.95)
        cv2.imwrite(str(made / "images" / name / f"{name}_{number:04d}.png"), crop)
    half = PEOPLE // 2
    rows = []
    for fold in range(2):
        people = range(fold * half, (fold + 1) * half)
        rows += [f"P{each}\t1\t2" for each in people]
        rows += [f"P{each}\t1\tP{(each + 1) % PEOPLE}\t2" for each in people]
    (made / "pairs.txt").write_text("\n".join([f"2\t{half}", *rows]) + "\n")
    return made


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Pairs:
    return parse_pairs((folder / "pairs.txt").read_bytes())


@pytest.fixture(scope="module")
def calibration() -> CalibrationSet:
    crops = skin_crops(20)
    return CalibrationSet(crops=crops[:10], held_out=crops[10:], names=tuple(map(str, range(20))))


@pytest.fixture(scope="module")
def pareto(folder: Path, pairs: Pairs, calibration: CalibrationSet) -> Pareto:
    pytest.importorskip("nncf", reason="NNCF is not installed: pip install '.[quantize]'")
    return measure_pareto(
        folder / "parent" / "tiny.xml",
        folder / "out",
        calibration,
        images=folder / "images",
        pairs=pairs,
        faces=FaceSource(text="crops"),
        methods=("fp16", "int8-mixed"),
        rounds=2,
        seconds=0.02,
    )


@pytest.mark.slow
def test_each_precision_has_its_ir_its_speed_and_its_paired_difference(pareto: Pareto, folder: Path) -> None:
    fp32, fp16, int8 = pareto.rows
    assert [row.name for row in pareto.rows] == ["fp32", "fp16", "int8-mixed"]
    assert fp32.verification is None
    assert fp32.fidelity is None
    assert fp16.ir == folder / "out" / "fp16" / "tiny.xml"
    assert int8.file_bytes == sum(path.stat().st_size for path in (folder / "out" / "int8-mixed").iterdir())
    assert len({row.contract.contract_id for row in pareto.rows}) == 3
    for row in (fp16, int8):
        assert row.verification is not None
        assert row.verification.accuracy.before == fp32.accuracy
        assert row.verification.accuracy.after == row.accuracy
        assert row.verification.pairs == 2 * PEOPLE
        assert row.fidelity is not None
        assert row.fidelity.mean_cosine > 0.97
    assert set(pareto.ratios(fp32).values()) == {1}
    assert any(row.optimal for row in pareto.rows)


@pytest.mark.slow
def test_what_is_written_says_the_same_three_times(pareto: Pareto, tmp_path: Path) -> None:
    write_pareto(pareto, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    stored = json.loads((tmp_path / "pareto.json").read_text())
    assert stored == json.loads(json.dumps(pareto.to_dict()))
    markdown = (tmp_path / "pareto.md").read_text()
    assert markdown == to_markdown(pareto)
    page = (tmp_path / "pareto.html").read_text()
    assert not re.search(r"(src|href)\s*=|<script", page)
    for row in pareto.rows:
        for text in (f"{row.accuracy:.4f}", f"{row.timing.latency_ms:.2f} ms", f"{row.file_bytes / 1e6:.1f} MB"):
            assert text in markdown
            assert text in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) == 3
    for drawing in drawings:
        assert len(ElementTree.fromstring(drawing).findall(".//path/title")) == len(pareto.rows)


@pytest.mark.parametrize("methods", [(), ("int4",)])
def test_what_is_not_a_precision_is_named(
    methods: tuple[str, ...], folder: Path, pairs: Pairs, calibration: CalibrationSet
) -> None:
    with pytest.raises(InputError, match="fp16, int8-mixed, int8-performance, weights"):
        measure_pareto(
            folder / "parent" / "tiny.xml",
            folder / "none",
            calibration,
            images=folder / "images",
            pairs=pairs,
            methods=methods,  # type: ignore[arg-type]
        )


@pytest.mark.slow
def test_models_are_compared_each_on_its_own_crops_of_the_same_faces(
    folder: Path, pairs: Pairs, tmp_path: Path
) -> None:
    irs = [folder / "parent" / "tiny.xml", write_tiny_ir(tmp_path, name="<colours>")]
    found = compare_models(
        irs, images=folder / "images", pairs=pairs, faces=FaceSource(text="crops"), rounds=2, seconds=0.02
    )

    assert [row.name for row in found.rows] == ["tiny FP32", "<colours> FP32"]
    assert [row.ir for row in found.rows] == irs
    for row in found.rows:
        alone = evaluate_model(folder / "images", pairs, row.ir).evaluation
        assert row.accuracy == pytest.approx(alone.accuracy)
        assert row.fidelity is None
        assert row.file_bytes == row.ir.stat().st_size + row.ir.with_suffix(".bin").stat().st_size
    answer = found.to_dict()
    assert [row["model"] for row in answer["rows"]] == ["tiny", "<colours>"]
    write_pareto(found, tmp_path)
    page = (tmp_path / "pareto.html").read_text()
    assert "&lt;colours&gt; FP32" in page
    assert "16x16 pixels (tiny FP32); " in page
    assert "| tiny FP32 |" in to_markdown(found).replace("**", "")


def test_models_that_cannot_be_compared_are_named(folder: Path, pairs: Pairs, tmp_path: Path) -> None:
    one = folder / "parent" / "tiny.xml"
    for models in ([], [one], [one, one]):
        with pytest.raises(InputError, match="models: expected two or more, each once, found"):
            compare_models(models, images=folder / "images", pairs=pairs)
    other = write_tiny_net(tmp_path / "other")
    assert name_models([one, other]) == {"tiny FP32 (parent)": one, "tiny FP32 (other)": other}
    with pytest.raises(InputError, match="found two of one name in folders of one name"):
        name_models([one, write_tiny_net(tmp_path / "parent")])
