"""What another program puts into the schema of a gallery's file is named, and never run."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.gallery.conformance import CONTRACT, DIM, templates
from unit.gallery.test_files import version_1

from edgeface.errors import GalleryDamagedError
from edgeface.gallery.store import sqlite_schema as schema
from edgeface.gallery.store.restore import restore_gallery
from edgeface.gallery.store.sqlite import SqliteStore

pytestmark = pytest.mark.timeout(60)
_ENDLESS = "WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r)"
FOREIGN = {
    "a trigger that keeps what forget erases": (
        "foreign table 'loot'",
        "CREATE TABLE loot (body)",
        "CREATE TRIGGER t BEFORE DELETE ON people BEGIN INSERT INTO loot VALUES (hex(old.body)); END",
    ),
    "a trigger alone": ("trigger 't'", "CREATE TRIGGER t AFTER INSERT ON templates BEGIN DELETE FROM images; END"),
    "an endless view instead of the people": (
        "no table 'people'",
        "ALTER TABLE people RENAME TO hidden",
        f"CREATE VIEW people AS {_ENDLESS} SELECT n AS id, x'00' AS name_mark, x'00' AS body FROM r",
    ),
    "an endless view instead of the header": (
        "no table 'gallery'",
        "DROP TABLE gallery",
        f"CREATE VIEW gallery AS {_ENDLESS} SELECT n AS generation, '' AS header, x'00' AS header_mark FROM r",
    ),
    "a view beside": ("foreign view 'v'", f"CREATE VIEW v AS {_ENDLESS} SELECT n FROM r"),
    "a table": ("foreign table 'junk'", "CREATE TABLE junk (x)"),
    "a virtual table": ("foreign table 'v_", "CREATE VIRTUAL TABLE v USING fts5 (x)"),
    "a generated column": (
        "another table 'people'",
        "ALTER TABLE people ADD COLUMN y AS (length(replace(hex(zeroblob(99999999)), '0', 'abc'))) VIRTUAL",
    ),
    "a default": ("another table 'people'", "ALTER TABLE people ADD COLUMN y DEFAULT 'x'"),
    "an index of an expression": ("foreign index 'i'", "CREATE INDEX i ON people (hex(body))"),
    "statistics, which hold marks of names": ("foreign table 'sqlite_stat1'", "ANALYZE"),
    "a table without its checks": (
        "another table 'gallery'",
        "CREATE TABLE g AS SELECT * FROM gallery",
        "DROP TABLE gallery",
        "ALTER TABLE g RENAME TO gallery",
    ),
    "a missing index": ("no index 'templates_person'", "DROP INDEX templates_person"),
}
CASES = pytest.mark.parametrize("case", FOREIGN.values(), ids=FOREIGN)


def make(path: Path) -> None:
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=None) as store:
        store.add_person("Ada", templates=templates(2))


def change(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@CASES
def test_a_foreign_schema_is_named_on_opening_and_not_run(tmp_path: Path, case: tuple[str, ...]) -> None:
    make(tmp_path / "g")
    change(tmp_path / "g", *case[1:])
    before = (tmp_path / "g").read_bytes()
    with pytest.raises(GalleryDamagedError, match=case[0]) as caught:
        SqliteStore(tmp_path / "g")
    assert "nothing of it was run" in str(caught.value)
    assert (tmp_path / "g").read_bytes() == before


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.forget(1),
        lambda store: store.people(),
        lambda store: store.add_person("Grace", templates=templates(1)),
        lambda store: store.rekey(bytes(32)),
        lambda store: store.check(),
    ],
    ids=["forget", "people", "add", "rekey", "check"],
)
def test_a_schema_that_changes_while_the_gallery_is_open_is_noticed_by_what_comes_next(
    tmp_path: Path, act: Callable[[SqliteStore], object]
) -> None:
    make(tmp_path / "g")
    with SqliteStore(tmp_path / "g") as store:
        assert store.check()
        change(tmp_path / "g", *FOREIGN["a trigger that keeps what forget erases"][1:])
        with pytest.raises(GalleryDamagedError, match="a foreign trigger 't', a foreign table 'loot'"):
            act(store)
        change(tmp_path / "g", "DROP TRIGGER t")
        assert sqlite3.connect(tmp_path / "g").execute("SELECT * FROM loot").fetchall() == []


def test_check_names_a_part_that_was_written_past_sqlites_count_of_changes(tmp_path: Path) -> None:
    make(tmp_path / "g")
    with SqliteStore(tmp_path / "g") as store:
        assert store.check()
        change(
            tmp_path / "g",
            "PRAGMA writable_schema = ON",
            "INSERT INTO sqlite_master VALUES ('trigger', 't', 'people', 0, "
            "'CREATE TRIGGER t AFTER DELETE ON people BEGIN SELECT 1; END')",
        )
        (problem,) = store.check().problems
        assert "a foreign trigger 't'" in problem


@pytest.mark.parametrize("version", [1, 2, 3])
def test_earlier_versions_are_compared_before_they_are_brought_up_to_date(tmp_path: Path, version: int) -> None:
    version_1(tmp_path / "g")
    with contextlib.closing(sqlite3.connect(tmp_path / "g")) as connection:
        for step in range(1, version):
            schema._STEPS[step](connection)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.commit()
    change(tmp_path / "g", "CREATE TRIGGER t AFTER UPDATE ON gallery BEGIN DELETE FROM people; END")
    with pytest.raises(GalleryDamagedError, match="a foreign trigger 't'"):
        SqliteStore(tmp_path / "g", key=bytes(range(32)))
    change(tmp_path / "g", "DROP TRIGGER t")
    with SqliteStore(tmp_path / "g", key=bytes(range(32))) as store:
        assert [person.name for person in store.people()] == ["Ada", "Grace"]


def test_restore_replaces_a_file_with_a_foreign_schema_and_refuses_a_copy_with_one(tmp_path: Path) -> None:
    make(tmp_path / "g")
    shutil.copy(tmp_path / "g", tmp_path / "copy")
    change(tmp_path / "g", *FOREIGN["an endless view instead of the header"][1:])
    with pytest.raises(GalleryDamagedError, match="no table 'gallery'"):
        restore_gallery(tmp_path / "copy", tmp_path / "g", key=None)
    assert restore_gallery(tmp_path / "g", tmp_path / "copy", key=None).people == 1
    with SqliteStore(tmp_path / "g") as store:
        assert store.check().problems == ()


SPACES = st.sampled_from([" ", "\n", "  -- of 0.1, 'quoted'\n", "/* a ; b */"])


@given(st.data())
def test_comments_and_spaces_make_no_other_schema(data: st.DataObject) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        schema.create_tables(connection, version=2)
        script = [row[0] for row in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in script:
            words = [word for word in schema._TOKEN.findall(statement) if schema._counts(word)]
            connection.execute("".join(word + data.draw(SPACES) for word in words))
        assert schema.foreign_parts(connection, 2) == []


@pytest.mark.parametrize("hidden", ["[--]", "`--`", '"--"', "[/*]", "DEFAULT '--'"])
def test_what_looks_like_a_comment_and_is_none_hides_nothing(hidden: str) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE removals (template_id INTEGER {hidden} PRIMARY KEY, generation)")
        assert any("removals" in part for part in schema.foreign_parts(connection, 2))
