"""Encodings that programs with face_recognition stored: every form is read, everything else is refused by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.gallery.conformance import CONTRACT

from edgeface.cli import main
from edgeface.errors import ContractError, EdgeFaceError, EnrolmentRefused, InputError
from edgeface.gallery import EnrolRules, import_encodings, read_encodings
from edgeface.gallery.encodings import DLIB_CONTRACT_ID
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.text import printable

KEY = bytes(range(32))
RULES = EnrolRules(duplicate_above=0.9, agree_above=0.5, contract_id=DLIB_CONTRACT_ID)
NAMES = ["Ada", "Ada", "Grace", "Linus"]


def encodings(count: int, *, seed: int = 0) -> np.ndarray:
    """Random directions, of lengths that dlib's network gives."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 128))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) * rng.uniform(1.19, 1.67, (count, 1))


ROWS = encodings(4)
ROWS[1] = ROWS[0] + encodings(1, seed=9)[0] * 0.3
LISTS = [row.tolist() for row in ROWS]

FORMS: dict[str, Any] = {
    "pickle of two lists by name": {"encodings": list(ROWS), "names": NAMES},
    "pickle of a dictionary of lists": {"Ada": [ROWS[0], ROWS[1]], "Grace": ROWS[2], "Linus": [LISTS[3]]},
    "pickle of arrays by name": {"Ada": ROWS[:2], "Grace": ROWS[2], "Linus": ROWS[3:]},
    "pickle of a pair": (NAMES, list(ROWS)),
    "pickle of a pair, encodings first": [list(ROWS), NAMES],
    "pickle of pairs": list(zip(NAMES, ROWS, strict=True)),
    "pickle of dictionaries": [{"name": name, "encoding": row} for name, row in zip(NAMES, ROWS, strict=True)],
    "pickle of numpy names": {"known_face_encodings": ROWS, "known_face_names": np.array(NAMES)},
    "json of two lists by name": {"known_names": NAMES, "known_encodings": LISTS},
    "json of a dictionary": {"Ada": LISTS[:2], "Grace": LISTS[2], "Linus": LISTS[3]},
    "json of a pair": [NAMES, LISTS],
    "json of pairs": [list(pair) for pair in zip(NAMES, LISTS, strict=True)],
}


def write(folder: Path, content: Any, *, suffix: str = ".pkl") -> Path:
    path = folder / f"encodings{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(content))
    elif suffix == ".npy":
        np.save(path, content)
    else:
        path.write_bytes(pickle.dumps(content))
    return path


def lines(path: Path, names: list[str]) -> Path:
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    with SqliteStore.create(tmp_path / "g", contract_id=DLIB_CONTRACT_ID, dim=128, key=KEY) as made:
        yield made


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read(form: str, tmp_path: Path) -> None:
    found = read_encodings(write(tmp_path, FORMS[form], suffix=".json" if form.startswith("json") else ".pkl"))
    assert found.names == tuple(NAMES)
    assert (found.vectors.dtype, found.skipped) == (np.float32, ())
    np.testing.assert_array_equal(found.vectors, ROWS.astype(np.float32))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_each_protocol_of_pickles_is_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "encodings.pickle"
    path.write_bytes(pickle.dumps({"encodings": list(ROWS), "names": NAMES}, protocol))
    np.testing.assert_array_equal(read_encodings(path).vectors, ROWS.astype(np.float32))


@pytest.mark.parametrize("where", ["beside.txt", "given.txt", "given.json", "given.npy"])
def test_an_array_takes_its_names_from_a_file(where: str, tmp_path: Path) -> None:
    path = write(tmp_path, ROWS, suffix=".npy")
    place, suffix = where.split(".")
    names = tmp_path / f"{'encodings' if place == 'beside' else 'who'}.{suffix}"
    if suffix == "txt":
        lines(names, NAMES)
    elif suffix == "json":
        names.write_text(json.dumps(NAMES))
    else:
        np.save(names, np.array(NAMES))
    found = read_encodings(path, names=None if place == "beside" else names)
    assert found.names == tuple(NAMES)
    np.testing.assert_array_equal(found.vectors, ROWS.astype(np.float32))


def test_a_bare_list_takes_its_names_from_a_file_too(tmp_path: Path) -> None:
    who = lines(tmp_path / "who.txt", NAMES)
    for suffix, content in ((".json", LISTS), (".pkl", list(ROWS)), (".pkl", ROWS)):
        assert read_encodings(write(tmp_path, content, suffix=suffix), names=who).names == tuple(NAMES)
    with pytest.raises(InputError, match=r"expected names beside the encodings, found encodings alone; pass --names"):
        read_encodings(write(tmp_path, ROWS, suffix=".npy"))
    with pytest.raises(InputError, match="names: 3, encodings: 4"):
        read_encodings(tmp_path / "encodings.npy", names=lines(who, NAMES[:3]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    people=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).filter(
            lambda text: text.strip() and printable(text) == text and "#" not in normalize("NFKC", text)
        ),
        st.integers(0, 3),
        min_size=1,
        max_size=5,
    )
)
def test_any_names_and_counts_come_back(people: dict[str, int], tmp_path: Path) -> None:
    rows = encodings(sum(people.values()) + 1)
    numbers = iter(range(len(rows)))
    content = {name: [rows[next(numbers)] for _ in range(count)] for name, count in people.items()}
    if set(content) >= {"names", "encodings"}:
        return
    path = write(tmp_path, content)
    if not sum(people.values()):
        with pytest.raises(InputError, match="expected at least one encoding"):
            read_encodings(path)
        return
    found = read_encodings(path)
    assert len(found) == sum(people.values())
    assert len(found.skipped) == sum(count == 0 for count in people.values())
    np.testing.assert_array_equal(found.vectors, rows[: len(found)].astype(np.float32))


# --- refusals


def with_row(row: Any) -> dict[str, Any]:
    return {"names": NAMES, "encodings": [*list(ROWS[:3]), row]}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (np.resize(ROWS[3], 512), r"entry 4 \('Linus'\): 512 numbers"),
        (ROWS[3] / np.linalg.norm(ROWS[3]), "of length 1, as another model's are"),
        (ROWS[3] * 100, "of length"),
        (np.zeros(128), "of length 0"),
        (np.where(np.arange(128) == 7, np.nan, ROWS[3]), "not finite"),
        (np.where(np.arange(128) == 7, np.inf, ROWS[3]), "not finite"),
        ([ROWS[0], ROWS[3][:127]], "encoding 2 is 127 numbers"),
        ([str(value) for value in ROWS[3]], "no list of numbers"),
        ("Linus", "no list of numbers"),
        (1.3, "no list of numbers"),
        ({"encoding": 1}, "no list of numbers"),
        ([True] * 128, "no list of numbers"),
        (ROWS.reshape(2, 2, 128), "no list of numbers"),
        ([10**30] * 128, "no list of numbers"),
    ],
)
def test_an_encoding_that_is_not_dlib_s_is_refused_by_name_and_nothing_is_imported(
    row: Any, found: str, tmp_path: Path, store: SqliteStore
) -> None:
    path = write(tmp_path, with_row(row))
    with pytest.raises(InputError, match=found) as told:
        import_encodings(store, path, rules=RULES)
    assert told.value.path == path
    assert "128 finite numbers" in told.value.expected
    assert store.people() == ()


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201, 7, None, b"Ada"])
def test_a_name_that_enrolment_refuses_is_refused_here(name: Any, tmp_path: Path, store: SqliteStore) -> None:
    path = write(tmp_path, {"names": [*NAMES[:3], name], "encodings": list(ROWS)})
    with pytest.raises(InputError, match=r"entry 4 .*name"):
        import_encodings(store, path, rules=RULES)
    assert store.people() == ()


def test_names_are_tidied_as_enrolment_does(tmp_path: Path) -> None:
    path = write(tmp_path, {"names": [" Zoe\u0308 ", "Zo\u00eb"], "encodings": list(ROWS[:2])})
    assert read_encodings(path).names == ("Zo\u00eb", "Zo\u00eb")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        7,
        "text",
        None,
        [1, 2, 3],
        ["Ada", "Grace"],
        {"names": NAMES},
        [NAMES, NAMES],
        [["Ada"], 3],
        np.zeros(()),
    ],
)
def test_what_holds_no_encodings_is_refused(content: Any, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=r"encodings\.pkl: expected"):
        read_encodings(path)


@pytest.mark.parametrize("suffix", [".json", ".npy", ".pkl"])
@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x04", b"\x93NUMPY\x01\x00", b"\xff" * 40, b"[" * 100_000])
def test_a_damaged_file_is_an_input_error(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"encodings{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"encodings{suffix}: expected"):
        read_encodings(path)


class Hostile:
    """Unpickled by Python, it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("suffix", [".pkl", ".npy"])
def test_nothing_in_a_hostile_file_is_run(suffix: str, tmp_path: Path, store: SqliteStore) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / f"encodings{suffix}"
    if suffix == ".npy":
        np.save(path, np.array([Hostile(mark)], object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps({"names": ["Ada"], "encodings": [Hostile(mark)]}))
    with pytest.raises(InputError):
        import_encodings(store, path, rules=RULES)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))  # the same file, to a program that trusts it
    assert mark.exists()


@pytest.mark.parametrize("rounds", [100, pytest.param(2000, marks=pytest.mark.nightly)])
def test_a_changed_file_is_read_or_refused(rounds: int, tmp_path: Path) -> None:
    originals = {
        ".pkl": pickle.dumps(FORMS["pickle of two lists by name"]),
        ".json": json.dumps({"Ada": LISTS[0]}).encode(),
        ".npy": write(tmp_path, ROWS, suffix=".npy").read_bytes(),
    }
    lines(tmp_path / "encodings.txt", NAMES)
    rng = np.random.default_rng(0)
    outcomes = set()
    for number in range(rounds):
        suffix = list(originals)[number % 3]
        changed = bytearray(originals[suffix])
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(changed)) if rng.random() < 0.5 else rng.integers(128)] = rng.integers(256)
        if rng.random() < 0.3:
            del changed[rng.integers(len(changed)) :]
        path = tmp_path / f"encodings{suffix}"
        path.write_bytes(changed)
        try:
            found = read_encodings(path)
        except EdgeFaceError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            assert found.vectors.shape == (len(found.names), 128)
            assert np.isfinite(found.vectors).all()
    assert outcomes == {"read", "refused"}


# --- into a gallery


def test_people_are_enrolled_with_all_their_encodings(tmp_path: Path, store: SqliteStore) -> None:
    done = import_encodings(store, write(tmp_path, FORMS["pickle of two lists by name"]), rules=RULES)
    assert (done.people, done.templates, done.already, done.skipped, done.disagreements) == (3, 4, 0, (), ())
    assert [(each.name, each.template_count) for each in store.people()] == [("Ada", 2), ("Grace", 1), ("Linus", 1)]
    unit = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    np.testing.assert_allclose(store.load().vectors, unit, atol=1e-6)
    again = import_encodings(store, tmp_path / "encodings.pkl", rules=RULES)
    assert (again.people, again.templates, again.already) == (0, 0, 4)


def test_entries_without_an_encoding_are_skipped_and_named(tmp_path: Path, store: SqliteStore) -> None:
    path = write(tmp_path, {"names": [*NAMES, "Barbara", "Edsger"], "encodings": [*list(ROWS), None, []]})
    done = import_encodings(store, path, rules=RULES)
    assert done.skipped == ("entry 5 ('Barbara'): no encoding", "entry 6 ('Edsger'): no encoding")
    assert len(store.people()) == 3


def test_encodings_of_one_name_that_do_not_look_alike_are_named(tmp_path: Path, store: SqliteStore) -> None:
    done = import_encodings(store, write(tmp_path, {"Ada": ROWS[[0, 2]]}), rules=RULES)
    assert len(done.disagreements) == 1
    assert "Ada: encoding 2 and encoding 1 do not look like one person" in done.disagreements[0]


def test_one_face_under_two_names_is_refused_within_the_file_and_against_the_gallery(
    tmp_path: Path, store: SqliteStore
) -> None:
    twice = write(tmp_path, {"Ada": ROWS[0], "Grace": ROWS[2], "Countess": ROWS[0] * 1.01})
    with pytest.raises(EnrolmentRefused, match=r"two names: 'Ada' and 'Countess' \(similarity 1.000\)"):
        import_encodings(store, twice, rules=RULES)
    assert store.people() == ()
    assert import_encodings(store, twice, rules=RULES, force=True).people == 3
    with pytest.raises(EnrolmentRefused, match="found that of 'Grace'"):
        import_encodings(store, write(tmp_path, {"Edsger": ROWS[3], "Amazing Grace": ROWS[2]}), rules=RULES)
    assert [each.name for each in store.people()] == ["Ada", "Grace", "Countess"]


def test_a_gallery_of_another_model_takes_no_encodings(tmp_path: Path) -> None:
    path = write(tmp_path, {"Ada": ROWS[0]})
    with SqliteStore.create(tmp_path / "other", contract_id=CONTRACT, dim=128, key=KEY, model="tiny") as other:
        with pytest.raises(ContractError, match="found one of tiny, contract 0123456789abcdef; create one"):
            import_encodings(other, path, rules=RULES)
        assert other.people() == ()


def test_the_command_tells_counts_and_skipped_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEFACE_GALLERY_KEY", raising=False)
    SqliteStore.create(tmp_path / "g", contract_id=DLIB_CONTRACT_ID, dim=128, key=None).close()
    write(tmp_path, {"Ada": ROWS[:2], "Barbara": [], "Grace": ROWS[2]})
    command = ["gallery", "import", "g", "--face-recognition", "encodings.pkl", "--threshold", "0.9"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.strip() == "g: 2 new people, 3 new templates, 0 known already, 1 skipped"
    assert "encodings.pkl: skipped entry 2 ('Barbara'): no encoding" in said.err
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["already"] == 3
    write(tmp_path, ROWS[3:], suffix=".npy")
    lines(tmp_path / "who.txt", ["Linus"])
    assert main([*command[:4], "encodings.npy", "--names", "who.txt", "--threshold", "0.9"]) == 0
    for wrong, why in (
        (["g", "encodings.npy", "--names", "who.txt"], "found --names alone"),
        (["g", "encodings.pkl", "--face-recognition", "--export-key", "env:X"], "are for exports of edgeface"),
        (["g", "absent.pkl", "--face-recognition", "--threshold", "0.9"], "absent.pkl: expected a file"),
    ):
        assert main(["gallery", "import", *wrong]) == 2
        assert why in capsys.readouterr().err.replace("\n", " ")
