"""The pairs list: what it means, and that every way to get it wrong is named."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface.errors import InputError
from edgeface.evaluate.pairs import pairs_from_folders, parse_pairs, read_pairs

GOOD = "2\t1\nAda\t1\t4\nAda\t1\tBob\t2\nBob\t2\t3\nCyd\t10\tAda\t4\n"


def write_people(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.JPG").touch()
        (root / name / "notes.txt").touch()
    return root


@pytest.mark.parametrize(
    "text", [GOOD, GOOD.replace("\n", "\r\n"), "\ufeff" + GOOD, GOOD.replace("\t", " "), GOOD + "\n\n"]
)
def test_rows_of_3_are_one_person_and_rows_of_4_are_two(text: str) -> None:
    pairs = parse_pairs(text.encode())
    assert pairs.images == (
        "Ada/Ada_0001", "Ada/Ada_0004", "Bob/Bob_0002", "Bob/Bob_0003", "Cyd/Cyd_0010"
    )  # fmt: skip
    assert pairs.first.tolist() == [0, 0, 2, 4]
    assert pairs.second.tolist() == [1, 2, 3, 1]
    assert pairs.same.tolist() == [True, False, True, False]
    assert (pairs.folds, len(pairs)) == (2, 4)


def test_a_header_of_one_number_says_nothing_about_folds() -> None:
    assert parse_pairs(b"1\nA\t1\t2\nA\t1\tB\t1\n").folds == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("Ada\t1", "found 2 in 'Ada"),
        ("Ada\t1\t2\t3\t4", "found 5"),
        ("", "found 0 in ''"),
        ("Ada\tone\t2", "image number from 1, found 'one'"),
        ("Ada\t0\t2", "image number from 1, found '0'"),
        ("Ada\t-1\t2", "found '-1'"),
        ("Ada\t\u0661\t2", "image number"),
        ("Ada\t1\t1", "two images, found 'Ada/Ada_0001' twice"),
        ("Ada\t1\tAda\t2", "two people, found 'Ada' twice"),
        ("../../etc\t1\t2", "a valid folder name, found '../../etc'"),
        ("..\t1\t2", "a valid folder name"),
        ("\t1\t2", "a valid folder name, found ''"),
        ("A\0b\t1\t2", "a valid folder name"),
    ],
)
def test_a_malformed_row_is_named_with_file_line_expected_and_found(row: str, words: str) -> None:
    with pytest.raises(InputError, match=r"^my\.txt:3: expected ") as caught:
        parse_pairs(f"1\t1\nAda\t1\t2\n{row}\nAda\t1\tBob\t2\n".encode(), source="my.txt")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_malformed_row_is_named_at_once() -> None:
    text = GOOD.replace("Ada\t1\t4", "Ada\tx\t4").replace("Cyd\t10\tAda\t4", "Cyd")
    with pytest.raises(InputError) as caught:
        parse_pairs(text.encode(), source="f")
    assert [line.split(":")[1] for line in str(caught.value).split("\n")] == ["2", "5"]


def test_a_file_of_rubbish_gives_a_bounded_message() -> None:
    with pytest.raises(InputError, match="and 900 more malformed rows") as caught:
        parse_pairs(b"10\t300\n" + b"\xff" * 5000 + b"\n" + b"rubbish\n" * 999)
    assert len(str(caught.value)) < 30_000


def test_a_file_of_nothing_but_problems_costs_no_more_memory_than_is_told() -> None:
    raw = b"10\t300\n" + b"ab\n" * 20_000
    tracemalloc.start()
    with pytest.raises(InputError, match="and 19900 more malformed rows"):
        parse_pairs(raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(raw)


@pytest.mark.parametrize("header", ["", "ten\t300", "10\t300\t1", "0\t300", "10\t-3", "1e3", "9999999999\t1"])
def test_a_bad_header_is_named(header: str) -> None:
    with pytest.raises(InputError, match=r"^pairs:1: expected a header .* like '10<TAB>300', found"):
        parse_pairs(f"{header}\nAda\t1\t2\n".encode())


def test_a_truncated_list_is_noticed_by_its_header() -> None:
    with pytest.raises(
        InputError, match=r"expected 2 genuine and 2 impostor pairs .* found 2 and 1; the list may be trunc"
    ):
        parse_pairs(GOOD.rsplit("Cyd", 1)[0].encode())


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt: expected a readable pairs list"):
        read_pairs(tmp_path / "none.txt")
    with pytest.raises(InputError, match="Is a directory"):
        read_pairs(tmp_path)


@settings(max_examples=examples(500))
@given(st.binary(max_size=400) | st.text("0123456789\t\n\r AbC_./\\", max_size=200).map(str.encode))
@example(b"\xef\xbb\xbf1\t1\n")
def test_no_bytes_crash_the_parser(raw: bytes) -> None:
    try:
        pairs = parse_pairs(raw)
    except InputError:
        return
    assert 2 * pairs.same.sum() == len(pairs)


@settings(max_examples=examples(300))
@given(st.data())
def test_no_mutation_of_a_good_list_crashes_the_parser(data: st.DataObject) -> None:
    raw = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        pairs = parse_pairs(bytes(raw))
    except InputError as error:
        assert str(error).startswith("pairs:")  # noqa: PT017 - either outcome is right
        return
    assert len(pairs) == 4
    assert all(".." not in image.split("/") for image in pairs.images)


def test_folders_of_people_give_every_pair(tmp_path: Path) -> None:
    pairs = pairs_from_folders(write_people(tmp_path, Ada=3, Bob=2, Cyd=1))
    assert pairs.same.sum() == 3 + 1
    assert (~pairs.same).sum() == 15 - 4
    people = [image.split("/")[0] for image in pairs.images]
    for first, second, same in zip(pairs.first, pairs.second, pairs.same, strict=True):
        assert first < second
        assert (people[first] == people[second]) == same


def test_too_many_pairs_are_drawn_distinct_and_the_same_every_time(tmp_path: Path) -> None:
    root = write_people(tmp_path, **{f"P{number}": 4 for number in range(12)})
    assert pairs_from_folders(root, most=72).same.sum() == 12 * 6
    pairs, again = (pairs_from_folders(root, most=60) for _ in range(2))
    assert pairs.same.sum() == (~pairs.same).sum() == 60
    assert (pairs.first[pairs.same] // 4 == pairs.second[pairs.same] // 4).all()
    assert (pairs.first < pairs.second).all()
    assert len(set(pairs.first.tolist())) > 30
    assert len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == len(pairs)
    assert (pairs.first[~pairs.same] // 4 != pairs.second[~pairs.same] // 4).all()
    np.testing.assert_array_equal(pairs.first, again.first)


def test_one_person_of_very_many_images_does_not_take_the_memory_of_all_pairs() -> None:
    from edgeface.evaluate.pairs import _draw_pairs

    count = 3_000_000  # 4.5e12 pairs
    here = np.arange(count)
    pairs = _draw_pairs(here + 1, np.full(count, count), most=1000, seed=0)
    assert pairs.shape == (1000, 2)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert pairs.min() >= 0
    assert pairs.max() < count
    assert pairs[:, 0].max() > count / 2


@pytest.mark.parametrize("people", [{}, {"Ada": 3}, {"Ada": 1, "Bob": 1}])
def test_folders_without_both_kinds_of_pairs_are_refused(people: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two people"):
        pairs_from_folders(write_people(tmp_path, **people))
    with pytest.raises(InputError, match="one folder a person"):
        pairs_from_folders(tmp_path / "none")
