"""Names of people: one name, one person; ids are never names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.cli import main
from edgeface.errors import GalleryError
from edgeface.gallery.codec import PersonBody
from edgeface.gallery.records import check_labels, check_name, name_forms, now
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.transfer import export_gallery
from edgeface.text import printable

CONTRACT_ID = "0123456789abcdef"
KEY = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EDGEFACE_GALLERY_KEY", raising=False)
    SqliteStore.create(tmp_path / "g", contract_id=CONTRACT_ID, dim=4, key=None).close()
    return tmp_path / "g"


def add_as_0_1_did(store: SqliteStore, name: str) -> int:
    """Add a person whose name 0.1 accepted."""
    with store.database.writing() as connection:
        store.database.wrote()
        (number,) = store.database.take_ids(1)
        store.rows.put_person(connection, number, PersonBody(name, (), {}, now()))
    return int(number)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Ada\u200b",
            "A\u200dda",
            "\u202eadA",
            "Ada\ufeff",
            "A\u00adda",
            "Ada\ufe0f",
            "Ada\u2066",
            "\x1b[31mAda",
            "A\nda",
        ),
        *("Ada\u2800", "Ada\ufffc", "Ada\ue000", "Ada\U0001d159"),
    ],
)
def test_no_character_that_is_not_seen_makes_another_person_of_ada(path: Path, name: str) -> None:
    with SqliteStore(path, key=None) as store:
        ada = store.add_person("Ada")
        with pytest.raises(GalleryError, match=r"expected characters that are seen, found U\+"):
            store.add_person(name)
        with pytest.raises(GalleryError, match=r"expected characters that are seen, found U\+"):
            store.update_person(ada.id, name=name)
        with pytest.raises(GalleryError, match=r"^label: "):
            store.update_person(ada.id, labels=[name])
        assert [person.name for person in store.people()] == ["Ada"]


@pytest.mark.parametrize("name", ["Ada  Lovelace", " Ada\u00a0Lovelace ", "Ada\u3000Lovelace"])
def test_all_spaces_between_words_are_one(name: str) -> None:
    assert check_name(name) == "Ada Lovelace"


@pytest.mark.parametrize("name", ["#1", "#0042", "# 7", "\uff031", "#\u0661"])
def test_a_name_that_looks_like_an_id_is_refused(name: str) -> None:
    with pytest.raises(GalleryError, match="looks like the id of a person"):
        check_name(name)
    check_labels([name])


@given(st.text(max_size=20))
def test_what_is_accepted_as_a_name_is_seen_and_is_found_again(text: str) -> None:
    try:
        name = check_name(text)
    except GalleryError:
        return
    assert name == check_name(name) == printable(name)
    assert name in name_forms(text)


def test_a_person_named_like_an_id_is_the_one_who_is_meant(path: Path) -> None:
    with SqliteStore(path, key=None) as store:
        zoe = store.add_person("Zoe")
        named = add_as_0_1_did(store, f"#{zoe.id}")
    assert main(["gallery", "forget", str(path), f"#{zoe.id}", "--yes"]) == 0
    with SqliteStore(path, key=None) as store:
        assert [person.name for person in store.people()] == ["Zoe"]
        assert named != zoe.id
    assert main(["gallery", "forget", str(path), f"#{zoe.id}", "--yes"]) == 0  # nobody has that name now
    assert main(["gallery", "show", str(path), "#" + "9" * 5000]) == 2


@pytest.mark.parametrize("name", ["unknown", " Unknown"])
def test_no_person_is_named_as_those_who_are_nobody(path: Path, tmp_path: Path, name: str) -> None:
    with SqliteStore(path, key=None) as store:
        ada = store.add_person("Ada")
        with pytest.raises(GalleryError, match="expected a person's name"):
            store.add_person(name)
        with pytest.raises(GalleryError, match="expected a person's name"):
            store.update_person(ada.id, name=name)


@pytest.mark.parametrize("name", ["Ada  Lovelace", "#1", "Ada\u200b", "unknown"])
def test_a_person_whose_name_0_1_accepted_is_still_found(path: Path, name: str) -> None:
    with SqliteStore(path, key=None) as store:
        number = add_as_0_1_did(store, name)
        found = store.find(name)
        assert found is not None
        assert found.id == number
        assert store.update_person(number, name="Ada Lovelace").name == "Ada Lovelace"


@pytest.mark.parametrize("name", ["#1", "Ada\u200b", "unknown"])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_an_export_of_0_1_with_a_name_that_is_refused_today_is_imported_under_another(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    key: bytes | None,
) -> None:
    with SqliteStore(path, key=None) as store:
        add_as_0_1_did(store, name)
        store.add_person("Zoe")
        export_gallery(store, tmp_path / "export", key=key)
    monkeypatch.setenv("KEY_OF_EXPORT", KEY.hex())
    SqliteStore.create(tmp_path / "h", contract_id=CONTRACT_ID, dim=4, key=None).close()
    words = ["gallery", "import", str(tmp_path / "h"), str(tmp_path / "export"), "--threshold", "0.9"]
    words += ["--export-key", "env:KEY_OF_EXPORT"] if key else []
    assert main(words) == 2
    hint = repr(name)[1:-1]
    assert f"--rename '{hint}=NEW NAME'" in " ".join(capsys.readouterr().err.split())
    for wrong, said in (("Ada", "OLD=NEW"), ("Bob=Ada", "'Bob'"), (f"{hint}=Zoe", "twice"), (f"{hint}=#2", "'#2'")):
        assert main([*words, "--rename", wrong]) == 2
        assert said in capsys.readouterr().err
    with SqliteStore(tmp_path / "h", key=None) as store:
        assert store.people() == ()
    assert main([*words, "--rename", f"{hint}=Ada Lovelace"]) == 0
    with SqliteStore(tmp_path / "h", key=None) as store:
        assert [person.name for person in store.people()] == ["Ada Lovelace", "Zoe"]


def test_a_folder_whose_name_cannot_be_a_person_s_is_told_before_anyone_is_enrolled(tmp_path: Path) -> None:
    from edgeface.gallery.enrolment_images import plan_enrolment

    for name in ("Ada", "Ada\u200b"):
        (tmp_path / "people" / name).mkdir(parents=True)
        (tmp_path / "people" / name / "1.png").write_bytes(b"")
    with pytest.raises(GalleryError, match="U\\+200B"):
        plan_enrolment([tmp_path / "people"])
