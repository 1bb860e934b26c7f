"""A gallery's file over the years: earlier versions, later ones, full disks, read-only disks, forks."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.gallery.conformance import CONTRACT, DIM, templates

from edgeface.errors import EdgeFaceError, GalleryBusyError, GalleryError, GalleryKeyError, OutputError
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.store import erase
from edgeface.gallery.store import sqlite_schema as schema
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.store.sqlite_database import sqlite_errors
from edgeface.model.embedding import Embedding

pytestmark = pytest.mark.timeout(120)
KEY = bytes(range(32))

_VERSION_1 = """
CREATE TABLE gallery (one INTEGER PRIMARY KEY CHECK (one = 1), header TEXT NOT NULL, header_mark BLOB NOT NULL,
    generation INTEGER NOT NULL, next_id INTEGER NOT NULL);
CREATE TABLE people (id INTEGER PRIMARY KEY, name_mark BLOB NOT NULL UNIQUE, body BLOB NOT NULL);
CREATE TABLE templates (id INTEGER PRIMARY KEY, person_id INTEGER NOT NULL REFERENCES people (id),
    generation INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX templates_person ON templates (person_id);
CREATE INDEX templates_generation ON templates (generation);
CREATE TABLE images (template_id INTEGER PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE, body BLOB NOT NULL);
PRAGMA user_version = 1;
"""
"""What version 1 was, written down here so that it stays what it was."""


def version_1(path: Path) -> tuple[object, np.ndarray]:
    """A file of version 1 with somebody in it: rows of today, whose form has not changed, in tables of then."""
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=KEY) as store:
        store.add_person("Ada", templates=templates(3))
        store.add_person("Grace", templates=templates(2, seed=1))
        people, block = store.people(), store.load()
    old = sqlite3.connect(path.with_name("old"))
    old.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    old.execute("PRAGMA journal_mode = WAL")
    old.executescript(_VERSION_1 + f"ATTACH '{path}' AS new;")
    for table, columns in (
        ("gallery", "one, header, header_mark, generation, next_id"),
        ("people", "*"),
        ("templates", "*"),
    ):
        old.execute(f"INSERT INTO {table} SELECT {columns} FROM new.{table}")
    old.commit()
    old.close()
    path.with_name("old").replace(path)
    return people, block.vectors


def test_a_file_of_version_1_becomes_one_of_today_with_everybody_in_it(tmp_path: Path) -> None:
    people, rows = version_1(tmp_path / "g")
    with SqliteStore(tmp_path / "g", key=KEY) as store:
        assert store.info.schema_version == 4
        assert (store.people(), store.detectors()) == (people, ())
        np.testing.assert_array_equal(store.load().vectors, rows)
        generation, history = store.generation(), store.history()
        assert store.changes_since(generation - 1, history) is None  # removals before the migration were not logged
        store.forget(store.find("Ada").id)
        assert store.changes_since(generation, history).removed.tolist() == [2, 3, 4]
        assert store.check().problems == ()
    assert sqlite3.connect(tmp_path / "g").execute("PRAGMA user_version").fetchone() == (4,)


def test_a_migrated_file_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    version_1(tmp_path / "g")
    SqliteStore(tmp_path / "g", key=KEY).close()
    SqliteStore.create(tmp_path / "h", contract_id=CONTRACT, dim=DIM, key=KEY).close()

    def tables(path: Path) -> list[object]:
        connection = sqlite3.connect(path)
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [(name, connection.execute(f"PRAGMA table_info({name})").fetchall()) for name in sorted(names)]

    assert tables(tmp_path / "g") == tables(tmp_path / "h")


def test_a_migration_that_fails_leaves_the_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(tmp_path / "g")

    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE half (a)")
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(schema, "_STEPS", {1: fail})
        with pytest.raises(OutputError, match="no space left"):
            SqliteStore(tmp_path / "g", key=KEY)
    with SqliteStore(tmp_path / "g", key=KEY) as store:
        assert len(store.people()) == 2
    assert not sqlite3.connect(tmp_path / "g").execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchone()


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=KEY).close()
    sqlite3.connect(tmp_path / "g").execute("PRAGMA user_version = 5").connection.close()
    with pytest.raises(GalleryError, match="found version 5; update edgeface"):
        SqliteStore(tmp_path / "g", key=KEY)


def test_making_a_gallery_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("something else")
    with pytest.raises(OutputError, match="this file exists already"):
        SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=KEY)
    assert (tmp_path / "g").read_text() == "something else"
    with pytest.raises(GalleryError, match="found no file; make one: edgeface gallery create"):
        SqliteStore(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g"]


def test_what_an_earlier_gallery_left_is_not_written_into_a_new_one(tmp_path: Path) -> None:
    """SQLite would take the log of changes for the new file's own, and bring back who was in the old one."""
    program = f"""
import os
from pathlib import Path
from edgeface.gallery.store.sqlite import SqliteStore
SqliteStore.create(Path({str(tmp_path / "g")!r}), contract_id={CONTRACT!r}, dim={DIM}, key=None).add_person("Ada")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
    (tmp_path / "g").unlink()
    for name in ("g-wal", "g-shm"):
        with pytest.raises(OutputError, match=f"{name} is left over"):
            SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None)
        (tmp_path / name).unlink()
    (tmp_path / "g.index").mkdir()
    with pytest.raises(OutputError, match=r"g\.index is left over"):
        SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None)
    (tmp_path / "g.index").rmdir()
    with SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None) as store:
        assert store.people() == ()


def test_without_hard_links_a_gallery_is_made_and_takes_no_other_files_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None).close()
    monkeypatch.setattr(Path, "exists", lambda path: False)  # made by another process a moment later
    with pytest.raises(OutputError, match="this file exists already"):
        SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=KEY)
    monkeypatch.undo()
    SqliteStore(tmp_path / "g").close()


def test_a_disk_without_shared_memory_for_a_wal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    def without_shared_memory(path: Path, **options: Any) -> sqlite3.Connection:
        return connect(f"file:{path}?vfs=unix-dotfile", uri=True, **options)

    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", without_shared_memory)
        with pytest.raises(OutputError, match="falls back to 'delete'"):
            SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=KEY)
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_may_read_a_gallery_and_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.gallery.store.base._CACHED_ROWS", 1)
    with SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None) as store:
        ada = store.add_person("Ada", templates=templates(3))
        store.load()
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert modes == {"g": 0o600, "g-wal": 0o600, "g-shm": 0o600, "g.index": 0o700}
        (tmp_path / "g").chmod(0o640)  # somebody lets a group read it
        store.forget(ada.id)
        store.add_person("Ada", templates=templates(3))
        store.load()
        assert (tmp_path / "g.index").stat().st_mode & 0o777 == 0o750
        assert (tmp_path / "g").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_one_may_not_enter_is_said() -> None:
    """By another user, because root may enter all; in a folder that it can reach."""
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    with tempfile.TemporaryDirectory(prefix="edgeface-", dir="/var/tmp") as folder:
        child = os.fork()
        if not child:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            said = []
            for make in (
                lambda: SqliteStore(Path(folder) / "g"),
                lambda: SqliteStore.create(Path(folder) / "g", contract_id=CONTRACT, dim=DIM, key=KEY),
            ):
                try:
                    make()
                except EdgeFaceError:
                    said.append("an error of edgeface")
                except BaseException:
                    said.append("")
            os._exit(0 if all(said) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_links_in_a_circle_and_devices_are_no_gallery(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(GalleryError, match="expected a gallery"):
        SqliteStore(tmp_path / "a")
    with pytest.raises(GalleryError, match="expected a gallery, found a device, pipe or socket; name a file"):
        SqliteStore(Path("/dev/zero"))


def test_a_file_of_version_1_stays_one_for_who_has_another_key(tmp_path: Path) -> None:
    version_1(tmp_path / "g")
    with pytest.raises(GalleryKeyError):
        SqliteStore(tmp_path / "g", key=bytes(32))
    assert sqlite3.connect(tmp_path / "g").execute("PRAGMA user_version").fetchone() == (1,)


def test_a_crowd_at_the_lock_is_no_damage() -> None:
    with pytest.raises(GalleryBusyError), sqlite_errors(Path("g")):
        raise sqlite3.OperationalError("locking protocol")


def test_a_number_that_would_be_given_twice_is_found_by_check(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=KEY) as store:
        store.forget(store.add_person("Ada", templates=templates(3)).id)
        assert store.check().problems == ()
        sqlite3.connect(tmp_path / "g", isolation_level=None).execute("UPDATE gallery SET next_id = 4")
        assert store.check().problems == ("the next number to be given is 4, and 4 was given already",)


def test_a_generation_that_was_set_back_is_found_by_check(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=KEY) as store:
        store.add_person("Ada", templates=templates(3))
        sqlite3.connect(tmp_path / "g", isolation_level=None).execute("UPDATE gallery SET generation = 0")
        (problem,) = store.check().problems
    assert problem.startswith("the last commit is number 0, and ")


# Files that are taken away from a process


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def rename(path: Path) -> None:
    path.rename(path.with_name("renamed"))


def delete_wal(path: Path) -> None:
    path.with_name("g-wal").unlink()


@pytest.mark.parametrize("take", [delete, replace, rename, delete_wal])
def test_nothing_is_acknowledged_or_proved_that_goes_to_a_file_without_a_name(
    tmp_path: Path, take: Callable[[Path], None]
) -> None:
    path = tmp_path / "g"
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=None) as store:
        ada = store.add_person("Ada", templates=templates(3))
        index = LiveIndex(store)
        take(path)
        for call in (
            lambda: store.add_person("Lost"),
            store.people,
            lambda: store.forget(ada.id),
            lambda: store.rekey(KEY),
            lambda: index.search(Embedding(np.ones(DIM), CONTRACT)),
        ):
            with pytest.raises(GalleryError, match="was removed or replaced while the gallery was open"):
                call()
    if path.exists():
        with SqliteStore(path) as store:
            assert not {"Lost"} & {person.name for person in store.people()}


def test_a_file_that_is_replaced_while_it_is_written_to_is_not_committed(tmp_path: Path) -> None:
    path = tmp_path / "g"
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=None) as store:
        store.add_person("Ada")

        def write() -> None:
            with store.writing():
                store.add_person("Lost")
                replace(path)

        with pytest.raises(GalleryError, match="g was removed or replaced"):
            write()


def test_a_file_that_is_replaced_during_the_proof_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g"
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=None) as store:
        ada = store.add_person("Ada", templates=templates(3))
        overwrite = SqliteStore._overwrite
        monkeypatch.setattr(SqliteStore, "_overwrite", lambda store: (overwrite(store), delete(path)))
        with pytest.raises(GalleryError, match=r"person 1 is deleted.*not yet overwritten: g was removed"):
            store.forget(ada.id)


def test_a_file_whose_name_ends_during_the_search_is_the_gallerys_or_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, listed = tmp_path / "g", erase.files_of
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=None) as store:
        first, second = (store.add_person(name, templates=templates(3)) for name in ("Ada", "Grace"))
        monkeypatch.setattr(erase, "files_of", lambda gallery: [*listed(gallery), tmp_path / "written-by-another"])
        assert store.forget(first.id)
        monkeypatch.setattr(erase, "files_of", lambda gallery: (listed(gallery), delete_wal(path))[0])
        with pytest.raises(GalleryError, match=r"person 5 is deleted.*not yet overwritten: g-wal was removed"):
            store.forget(second.id)
    with SqliteStore(path) as store:
        assert store.people() == ()


# Disks


def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path) -> None:
    with SqliteStore.create(small_disk / "g", contract_id=CONTRACT, dim=DIM, key=KEY) as store:
        store.add_person("Ada", templates=templates(3))
        rest = small_disk / "rest"
        with contextlib.suppress(OSError), rest.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        known = store.people()
        enrolled = itertools.count()

        def enrol_on() -> None:
            while True:
                number = next(enrolled)
                store.add_person(f"p{number}", templates=templates(50, seed=number))

        with pytest.raises(OutputError, match=r"no space left .* everything before is kept; free some space"):
            enrol_on()
        added = next(enrolled) - 1  # the last one failed
        assert store.people()[:1] == known
        assert len(store.people()) == 1 + added
        with pytest.raises(OutputError), store.writing():
            store.add_person("large", templates=templates(400))
        generation = store.generation()
        with pytest.raises(OutputError):
            store.rekey(bytes(32))
        assert store.generation() == generation
    with SqliteStore(small_disk / "g", key=KEY) as store:
        assert len(store.people()) == 1 + added
        rest.unlink()
        store.add_person("with room", templates=templates(3))
        assert store.forget(store.find("Ada").id).proved
        assert store.check().problems == ()


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "rest").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("what", ["forget", "rekey", "first key"])
def test_what_a_disk_that_fills_after_the_commit_leaves_in_force_is_said_and_finished_later(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    old, new = (None if what == "first key" else KEY), bytes(range(1, 33))
    with SqliteStore.create(small_disk / "g", contract_id=CONTRACT, dim=DIM, key=old) as store:
        with store.writing():
            for number in range(60):
                store.add_person(f"Person {number}", templates=templates(5, seed=number))
        (before,) = store.database.outside("SELECT body FROM people WHERE id = 1")
        overwrite = SqliteStore._overwrite

        def too_late(store: SqliteStore) -> None:
            fill(small_disk)
            overwrite(store)

        said = r"not yet overwritten: no space left .*; free some space, then run 'edgeface gallery check'"
        in_force = "person 1 is deleted" if what == "forget" else "the new key [0-9a-f]{16} is in force: keep it"
        with monkeypatch.context() as patched:
            patched.setattr(SqliteStore, "_overwrite", too_late)
            with pytest.raises(OutputError, match=f"{in_force}.*{said}") as caught:
                store.forget(1) if what == "forget" else store.rekey(new)
        assert "undone" not in str(caught.value)
        assert len(store.people()) == (59 if what == "forget" else 60)
    key = old if what == "forget" else new
    with SqliteStore(small_disk / "g", key=key) as store:  # still full: what can be read is read
        assert len(store.people()) == (59 if what == "forget" else 60)
    (small_disk / "rest").unlink()
    with SqliteStore(small_disk / "g", key=key) as store:
        assert store.check().problems == ()
        assert store.database.outside("SELECT unscrubbed FROM gallery") == (0,)
    assert before[-31:] not in b"".join(each.read_bytes() for each in small_disk.iterdir())


@pytest.mark.slow
def test_a_limit_on_file_sizes_is_said_and_loses_nothing(tmp_path: Path) -> None:
    """In a process of its own, because such a limit cannot be raised again."""
    program = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from unit.gallery.conformance import templates
from edgeface.errors import OutputError
from edgeface.gallery.store.sqlite import SqliteStore
store = SqliteStore.create(Path({str(tmp_path / "g")!r}), contract_id={CONTRACT!r}, dim={DIM}, key=None)
store.add_person("Ada", templates=templates(3))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
enrolled = 1
try:
    while True:
        store.add_person(str(enrolled), templates=templates(200, seed=enrolled))
        enrolled += 1
except OutputError as error:
    print(enrolled, len(store.people()), error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=100, text=True, check=True)
    enrolled, seen, *words = done.stdout.split()
    assert int(enrolled) == int(seen) > 1
    assert "nothing" in words or "undone," in words
    with SqliteStore(tmp_path / "g") as store:
        assert len(store.people()) == int(enrolled)
        assert store.check().problems == ()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True, timeout=30)


def test_on_a_read_only_disk_everything_can_be_read_and_a_write_is_said(small_disk: Path) -> None:
    with SqliteStore.create(small_disk / "g", contract_id=CONTRACT, dim=DIM, key=KEY) as store:
        ada = store.add_person("Ada", templates=templates(3))
    remount(small_disk, "ro")
    try:
        with SqliteStore(small_disk / "g", key=KEY) as store:
            assert store.people() == (ada,)
            assert len(store.load()) == 3
            for call in (
                lambda: store.add_person("Grace"),
                lambda: store.forget(ada.id),
                lambda: store.rekey(bytes(32)),
            ):
                with pytest.raises(OutputError, match="read-only"):
                    call()
            assert store.people() == (ada,)
        with pytest.raises(OutputError):
            SqliteStore.create(small_disk / "h", contract_id=CONTRACT, dim=DIM, key=KEY)
    finally:
        remount(small_disk, "rw")
    with SqliteStore(small_disk / "g", key=KEY) as store:
        assert store.check().problems == ()


def test_writes_that_are_only_in_the_wal_are_not_overlooked_on_a_read_only_disk(small_disk: Path) -> None:
    program = f"""
import os
from pathlib import Path
from edgeface.gallery.store.sqlite import SqliteStore
SqliteStore.create(Path({str(small_disk / "g")!r}), contract_id={CONTRACT!r}, dim={DIM}, key=None).add_person("Ada")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
    remount(small_disk, "ro")
    try:
        with pytest.raises(OutputError, match="last writes are still in"):
            SqliteStore(small_disk / "g")
    finally:
        remount(small_disk, "rw")
    with SqliteStore(small_disk / "g") as store:
        assert [person.name for person in store.people()] == ["Ada"]


# Processes


def test_a_forked_child_must_open_the_gallery_itself(tmp_path: Path) -> None:
    with SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None) as store:
        child = os.fork()
        if not child:
            try:
                store.people()
            except GalleryError as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store.add_person("Ada").name == "Ada"


@pytest.mark.slow
def test_two_processes_that_enrol_at_once_lose_nothing(tmp_path: Path) -> None:
    SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=KEY).close()
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from unit.gallery.conformance import templates
from edgeface.gallery.store.sqlite import SqliteStore
with SqliteStore(Path({str(tmp_path / "g")!r}), key=bytes(range(32))) as store:
    for number in range(25):
        with store.writing():
            person = store.find("both") or store.add_person("both", metadata=dict(count=0))
            store.update_person(person.id, metadata=dict(count=person.metadata["count"] + 1))
        store.add_person(sys.argv[1] + str(number), templates=templates(2, seed=number))
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, name]) for name in "ab"]
    assert [process.wait(100) for process in processes] == [0, 0]
    with SqliteStore(tmp_path / "g", key=KEY) as store:
        assert store.find("both").metadata == {"count": 50}
        assert len(store.people()) == 51
        assert len(store.load()) == 100
        assert store.generation() == 101
        assert store.check().problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [4, pytest.param(80, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])])
def test_rounds_of_kill_9_lose_nothing_and_keep_nothing_forgotten(rounds: int) -> None:
    import importlib.util

    path = Path(__file__).parents[3] / "benchmarks" / "durability.py"
    spec = importlib.util.spec_from_file_location("durability", path)
    durability = importlib.util.module_from_spec(spec)
    sys.modules["durability"] = durability
    spec.loader.exec_module(durability)
    answer = durability.run(rounds, seed=11, people=12, longest=0.1)
    assert answer["problems"] == []
    assert sum(answer["acknowledged"].values()) > 0
