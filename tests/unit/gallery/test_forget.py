"""What is forgotten is in no file any more; what is derived is current, sealed, and never outlives its people."""

from __future__ import annotations

import dataclasses
import hashlib
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from unit.gallery.conformance import CONTRACT, DIM, kept, template, vectors

from edgeface.errors import GalleryBusyError
from edgeface.gallery.store import base
from edgeface.gallery.store.cache import cache_folder, read_templates, write_templates
from edgeface.gallery.store.searcher import Searcher
from edgeface.gallery.store.sqlite import SqliteStore

pytestmark = pytest.mark.timeout(120)
KEY = bytes(range(32))
NAME = "Zo\u00eb \u00dcnal"


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> bytes | None:
    return request.param


def make(path: Path, key: bytes | None, *, people: int = 8) -> SqliteStore:
    store = SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=key, keep_images=True)
    for number in range(people):
        dice = np.random.default_rng(number)
        rows = vectors(3, seed=number)
        store.add_person(
            f"{NAME} {number}",
            metadata={"note": f"remark {number} " * 4},
            templates=[template(row, image=kept(dice.bytes(20_000))) for row in rows],
        )
    return store


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def secrets_of(number: int) -> list[bytes]:
    picture = np.random.default_rng(number).bytes(20_000)
    vectors_ = [row.tobytes()[start : start + 16] for row in vectors(3, seed=number) for start in (0, 24, 48)]
    texts = [f"{NAME} {number}".encode(), f"remark {number} ".encode()]
    return [*vectors_, *texts, *(picture[start : start + 16] for start in range(0, 20_000, 1000))]


def test_an_erasure_is_not_proved_while_a_row_may_be_the_persons_under_another_number(
    tmp_path: Path, key: bytes | None
) -> None:
    with make(tmp_path / "g", key, people=3) as store:
        ada, other = store.find(f"{NAME} 1").id, store.find(f"{NAME} 2").id
    with sqlite3.connect(tmp_path / "g") as connection:
        connection.execute("UPDATE templates SET person_id = ? WHERE person_id = ?", (other, ada))
    connection.close()
    with SqliteStore(tmp_path / "g", key=key) as store:
        done = store.forget(ada)
        assert not done
        assert all("is not what was written there" in each for each in done.remains)
        assert len(done.remains) == 3
        assert not store.check()


def test_nothing_of_a_forgotten_person_is_found_and_the_others_stay(tmp_path: Path, key: bytes | None) -> None:
    with make(tmp_path / "g", key) as store:
        store.update_person(store.find(f"{NAME} 3").id, labels=["a"])  # an old copy of the row in the WAL
        sealed = [row[0] for row in sqlite3.connect(tmp_path / "g").execute("SELECT body FROM images")][9:12]
        if key is None:
            assert all(secret in everything(tmp_path) for secret in secrets_of(3))
        done = store.forget(store.find(f"{NAME} 3").id)
        assert done.proved
        assert set(done.searched) == {"g", "g-wal", "g-shm"}
        assert done.needles > 20_000
        content = everything(tmp_path)
        assert not any(secret in content for secret in secrets_of(3))
        assert not any(body[start : start + 16] in content for body in sealed for start in range(500, 20_000, 500))
        if key is None:
            assert all(secret in content for secret in secrets_of(4))
        assert len(store.people()) == 7
        assert store.check().problems == ()


def test_the_mark_of_a_name_is_looked_for_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key it is a plain digest, by which whoever guesses the name could confirm it."""
    sought: list[bytes] = []

    class Recorder(Searcher):
        def __init__(self, secrets: list[bytes]) -> None:
            sought.extend(secrets)
            super().__init__(secrets)

    monkeypatch.setattr("edgeface.gallery.store.searcher.Searcher", Recorder)
    with make(tmp_path / "g", None, people=2) as store:
        assert store.forget(store.find(f"{NAME} 1").id).proved
    assert hashlib.blake2b(f"name:{NAME} 1".encode(), digest_size=32).digest() in sought


def test_a_picture_that_somebody_else_has_too_is_no_remainder(tmp_path: Path) -> None:
    (row,) = vectors(1, dim=DIM)
    with SqliteStore.create(tmp_path / "g", contract_id=CONTRACT, dim=DIM, key=None, keep_images=True) as store:
        picture = kept(np.random.default_rng(1).bytes(5000))
        for name in ("Ada Lovelace", "Ada Lovelace the second"):
            store.add_person(name, templates=[template(row, image=picture)])
        assert store.forget(store.find("Ada Lovelace").id).proved


def test_what_is_left_is_found_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof can fail: here nothing is rewritten, and the WAL keeps what was deleted."""
    monkeypatch.setattr(SqliteStore, "scrub", lambda store: False)
    with make(tmp_path / "g", None, people=2) as store:
        done = store.forget(store.find(f"{NAME} 1").id)
        assert not done.proved
        assert any(place.startswith("g-wal at byte") for place in done.remains)


def test_an_erasure_that_was_interrupted_is_finished_by_whoever_opens_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "g", None, people=3)
    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "scrub", lambda store: False)
        store.forget(store.find(f"{NAME} 1").id)
    assert any(secret in everything(tmp_path) for secret in secrets_of(1))
    with SqliteStore(tmp_path / "g"):
        assert not any(secret in everything(tmp_path) for secret in secrets_of(1))
    store.close()


def test_a_reader_who_does_not_end_keeps_an_erasure_unfinished_and_that_is_said(tmp_path: Path) -> None:
    make(tmp_path / "g", None, people=2).close()
    with SqliteStore(tmp_path / "g", timeout=0.2) as store:
        reader = sqlite3.connect(tmp_path / "g", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM people").fetchone()
        with pytest.raises(
            GalleryBusyError, match=r"is deleted, .* not yet overwritten: another process is still reading; close"
        ):
            store.forget(store.find(f"{NAME} 1").id)
        assert len(store.people()) == 1
        reader.execute("COMMIT")
        reader.close()
        assert store.check().problems == ()
        assert not any(secret in everything(tmp_path) for secret in secrets_of(1))


def test_a_writer_who_does_not_end_is_waited_for_and_then_named(tmp_path: Path) -> None:
    with make(tmp_path / "g", None, people=1) as first, SqliteStore(tmp_path / "g", timeout=0.2) as second:
        with first.writing(), pytest.raises(GalleryBusyError, match="nothing was changed"):
            second.add_person("b")
        assert second.add_person("b").name == "b"


# The derived file


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_CACHED_ROWS", 1)


@pytest.mark.usefixtures("_small")
def test_the_derived_file_is_used_followed_and_sealed(tmp_path: Path, key: bytes | None) -> None:
    with make(tmp_path / "g", key) as store:
        first = store.load()
        file = cache_folder(tmp_path / "g") / "templates.bin"
        written = file.read_bytes()
        assert (first.vectors.tobytes() in written) is (key is None)
        again = store.load()
        for name in ("ids", "person_ids", "vectors"):
            np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
            assert not getattr(again, name).flags.writeable
        assert again.generation == first.generation
        monkey = store.add_person("new", templates=[template(row) for row in vectors(2, seed=50)])
        later = store.load()
        np.testing.assert_array_equal(later.vectors, np.concatenate([first.vectors, vectors(2, seed=50)]))
        assert later.person_ids[-1] == monkey.id
        assert later.generation == store.generation()


@pytest.mark.usefixtures("_small")
def test_a_derived_file_that_is_damaged_or_foreign_is_read_over(tmp_path: Path, key: bytes | None) -> None:
    with make(tmp_path / "g", key) as store, make(tmp_path / "h", key) as other:
        expected = store.load()
        other.load()
        file = cache_folder(tmp_path / "g") / "templates.bin"
        original, foreign = file.read_bytes(), (cache_folder(tmp_path / "h") / "templates.bin").read_bytes()
        dice = np.random.default_rng(5)
        versions = [b"", original[:100], original[:-1], original + b"x", foreign]
        for position in [*range(0, 60), *dice.integers(0, len(original), 60).tolist()]:
            damaged = bytearray(original)
            damaged[position] ^= 255
            versions.append(bytes(damaged))
        for version in versions:
            file.write_bytes(version)
            found = store.load()
            np.testing.assert_array_equal(found.vectors, expected.vectors)
            np.testing.assert_array_equal(found.ids, expected.ids)


@pytest.mark.usefixtures("_small")
def test_forgetting_removes_what_is_derived_and_a_late_writer_leaves_nothing(tmp_path: Path, key: bytes | None) -> None:
    with make(tmp_path / "g", key) as store:
        stale = store.load()
        folder = cache_folder(tmp_path / "g")
        (folder / "other.index").write_bytes(stale.vectors.tobytes())  # what another index left there
        (folder / ".edgeface-killed").mkdir()
        (folder / ".edgeface-killed" / "templates.bin").write_bytes(stale.vectors.tobytes())
        done = store.forget(store.find(f"{NAME} 2").id)
        assert done.proved
        assert not folder.exists()
        store._write_cache(stale)
        assert not folder.exists()
        store._write_cache(dataclasses.replace(stale, generation=store.generation(), history=store.history()))
        assert folder.exists()


EXPORT = """
import os, signal, sys
from pathlib import Path
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.transfer import export_gallery
store = SqliteStore(Path(sys.argv[1]))
del os.O_TMPFILE  # as on a file system that has no files without names
os.fsync = lambda descriptor: (print("written", flush=True), sys.stdin.read())  # as long as it takes
export_gallery(store, Path(sys.argv[1]).with_name("all.zip"), key=None)
"""


@pytest.mark.slow
def test_an_export_that_is_running_is_searched_and_one_that_was_killed_is_swept(tmp_path: Path) -> None:
    with make(tmp_path / "g", None, people=3) as store:
        words = [sys.executable, "-c", EXPORT, str(tmp_path / "g")]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as export:
            assert export.stdout.readline() == "written\n"
            done = store.forget(store.find(f"{NAME} 1").id)
            assert not done.proved
            assert all(".edgeface-" in place and "all.zip at byte" in place for place in done.remains)
            export.kill()
            export.wait(30)
        assert store.forget(store.find(f"{NAME} 2").id).proved
        assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "g-shm", "g-wal"]
        content = everything(tmp_path)
        assert not any(secret in content for number in (1, 2) for secret in secrets_of(number))


def test_no_writer_comes_between_while_the_cache_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(tmp_path / "g", None, people=2) as store, SqliteStore(tmp_path / "g") as other:
        order = []

        def forget() -> None:
            other.forget(1)
            order.append("forgotten")

        thread = threading.Thread(target=forget)

        def write(*what: object) -> str:
            thread.start()
            thread.join(0.3)
            mark = write_templates(*what)
            order.append("written")
            return mark

        monkeypatch.setattr("edgeface.gallery.store.sqlite.write_templates", write)
        store._write_cache(store.load())
        thread.join(30)
        assert order == ["written", "forgotten"]
        assert not cache_folder(tmp_path / "g").exists()


def test_a_large_matrix_is_sealed_in_several_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeface.gallery.store.cache._MESSAGE", 100)
    with make(tmp_path / "g", KEY) as store:
        block = store.load()
        header, cipher = store.database.header, store.database.cipher
        mark = write_templates(tmp_path / "g", header, cipher, block)
        found = read_templates(tmp_path / "g", header, cipher, mark)
        np.testing.assert_array_equal(found.vectors, block.vectors)
        file = cache_folder(tmp_path / "g") / "templates.bin"
        content = file.read_bytes()
        begin = 4096
        first, second = content[begin : begin + 128], content[begin + 128 : begin + 256]
        file.write_bytes(content[:begin] + second + first + content[begin + 256 :])
        assert read_templates(tmp_path / "g", header, cipher, mark) is None


# Other processes


def names_seen_by_another_process(path: Path) -> list[str]:
    """Open, read and close, as `edgeface gallery list` in another terminal."""
    program = (
        "import sys; from pathlib import Path; from edgeface.gallery.store.sqlite import SqliteStore\n"
        "with SqliteStore(Path(sys.argv[1])) as store: print(*(each.name for each in store.people()), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=100
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_who_forgot_somebody_keeps_its_locks_and_what_it_enrols_then_is_seen_by_all(tmp_path: Path) -> None:
    """Closing a file takes a process's locks on it: another process would delete the WAL that this one writes to."""
    with make(tmp_path / "g", None, people=3) as store:
        store.forget(store.find(f"{NAME} 1").id)
        assert names_seen_by_another_process(tmp_path / "g") == [f"{NAME} 0", f"{NAME} 2"]
        assert (tmp_path / "g-wal").exists()
        store.add_person("Enrolled afterwards")
        assert names_seen_by_another_process(tmp_path / "g")[-1] == "Enrolled afterwards"
        descriptors = len(list(Path("/dev/fd").iterdir()))
        store.forget(store.find(f"{NAME} 0").id)
        assert len(list(Path("/dev/fd").iterdir())) == descriptors
    names = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert not [name for name in names if name.startswith(str(tmp_path))]


@pytest.mark.slow
def test_who_writes_the_wal_into_the_file_meanwhile_is_waited_for(tmp_path: Path) -> None:
    """SQLite gives up at once then, without waiting. Its lock is byte 121 of the -shm (sqlite.org/walformat.html)."""
    program = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'r+b')\nfcntl.lockf(file, fcntl.LOCK_EX, 1, 121)\n"
        "print('held', flush=True)\ntime.sleep(1)"
    )
    with make(tmp_path / "g", None, people=2) as store:
        words = [sys.executable, "-c", program, str(tmp_path / "g-shm")]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
            assert other.stdout.readline() == b"held\n"
            assert store.forget(store.find(f"{NAME} 1").id).proved
            assert other.wait(30) == 0


@pytest.mark.usefixtures("_small")
def test_a_gallery_by_another_name_is_erased_where_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "real"
    folder.mkdir()
    make(folder / "g", None, people=3).close()
    (tmp_path / "link").symlink_to(folder / "g")
    with SqliteStore(tmp_path / "link") as store:
        store.load()
        assert [path.name for path in tmp_path.iterdir() if "index" in path.name] == []
    with SqliteStore(folder / "g") as store:
        assert cache_folder(folder / "g").is_dir()
        assert store.forget(store.find(f"{NAME} 1").id).proved
    with SqliteStore(tmp_path / "link") as store:
        assert {"g", "g-wal"} <= set(store.forget(store.find(f"{NAME} 2").id).searched)
    content = everything(tmp_path)
    assert not any(secret in content for number in (1, 2) for secret in secrets_of(number))
