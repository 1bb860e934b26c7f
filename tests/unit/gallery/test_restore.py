"""A copy of a gallery is put back: nothing of the lost history is taken for current, however it was put back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from unit.gallery.conformance import CONTRACT, DIM, template, templates, vectors

from edgeface.cli import main
from edgeface.errors import EdgeFaceError, GalleryDamagedError, GalleryError, GalleryKeyError
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.store.cache import cache_folder, write_templates
from edgeface.gallery.store.restore import restore_gallery
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.model.embedding import Embedding

pytestmark = pytest.mark.timeout(120)
KEY = bytes(range(32))
MALLORY, CAROL = vectors(2, seed=77)


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> bytes | None:
    return request.param


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeface.gallery.store.base._CACHED_ROWS", 1)


def make(path: Path, key: bytes | None = None) -> None:
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=key) as store:
        store.add_person("Ada", templates=templates(3))
        store.add_person("Grace", templates=templates(3, seed=1))


def cache(path: Path) -> Path:
    return cache_folder(path) / "templates.bin"


def best(store: SqliteStore, row: np.ndarray) -> tuple[str, float]:
    hits = LiveIndex(store).search(Embedding(row, CONTRACT), k=1)
    return store.person(int(hits.person_ids[0])).name, float(hits.scores[0])


# By hand


def test_a_copy_put_back_by_hand_is_not_searched_with_the_index_of_the_lost_history(
    tmp_path: Path, key: bytes | None
) -> None:
    path = tmp_path / "g"
    make(path, key)
    shutil.copy(path, tmp_path / "copy")
    with SqliteStore(path, key=key) as store:
        mallory = store.add_person("Mallory", templates=[template(MALLORY)])
        lost = store.load()
    path.unlink()
    shutil.copy(tmp_path / "copy", path)
    with SqliteStore(path, key=key) as store:
        assert "another history" in store.check().problems[0]
        carol = store.add_person("Carol", templates=[template(CAROL)])
        assert (carol.id, store.generation()) == (mallory.id, lost.generation)  # nothing else tells them apart
        assert "another history" in store.check().problems[0]
        assert best(store, CAROL) == ("Carol", pytest.approx(1.0))
        assert best(store, MALLORY)[1] < 0.9
        assert store.check().problems == ()  # it was written anew


def test_an_index_in_memory_does_not_follow_a_file_that_became_another_history(tmp_path: Path) -> None:
    path = tmp_path / "g"
    make(path)
    shutil.copy(path, tmp_path / "copy")
    with SqliteStore(path) as store:
        store.add_person("Mallory", templates=[template(MALLORY)])
        index = LiveIndex(store)
        assert index.search(Embedding(MALLORY, CONTRACT)).scores[0] > 0.99
        with sqlite3.connect(tmp_path / "copy") as copy, sqlite3.connect(path) as target:
            copy.backup(target)  # as sqlite3's .restore
        with SqliteStore(path) as other:
            other.add_person("Carol", templates=[template(CAROL)])
            assert other.generation() == index.generation
        assert index.search(Embedding(MALLORY, CONTRACT)).scores[0] < 0.9
        assert index.search(Embedding(CAROL, CONTRACT)).scores[0] > 0.99


def test_commits_of_long_ago_are_dropped_and_an_index_of_then_is_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.gallery.store.database._KNOWN_COMMITS", 3)
    make(tmp_path / "g")
    with SqliteStore(tmp_path / "g") as store:
        index, seen = LiveIndex(store), []
        for number in range(6):
            store.add_person(f"p{number}", templates=templates(1, seed=10 + number))
            seen.append((store.generation(), store.history()))
        assert [store.changes_since(*each) is not None for each in seen] == [False] * 3 + [True] * 3
        assert len(index) == 12
        assert len({history for _, history in seen}) == 6
        assert store.check().problems == ()


# With the command


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[bytes | None], tuple[Path, Path]]:
    """A gallery, and a copy of it from before Grace was forgotten and Mallory enrolled."""

    def made(key: bytes | None) -> tuple[Path, Path]:
        path, copy = tmp_path / "g", tmp_path / "backup" / "copy"
        make(path, key)
        copy.parent.mkdir()
        shutil.copy(path, copy)
        with SqliteStore(path, key=key) as store:
            store.forget(store.find("Grace").id)
            store.add_person("Mallory", templates=[template(MALLORY)])
            store.load()
        return path, copy

    return made


def test_restore_takes_back_people_and_goes_on_with_numbers_that_were_never_given(
    copied: Callable[[bytes | None], tuple[Path, Path]], key: bytes | None
) -> None:
    path, copy = copied(key)
    before = copy.read_bytes()
    with SqliteStore(path, key=key) as store:
        index, mallory, generation = LiveIndex(store), store.find("Mallory").id, store.generation()
        inode = path.stat().st_ino
        done = restore_gallery(path, copy, key=key)
        assert (done.people, done.templates, done.lost, done.returned) == (2, 6, 1, ("Grace",))
        assert done.generation == store.generation() == generation + 1
        assert path.stat().st_ino == inode
        assert [person.name for person in store.people()] == ["Ada", "Grace"]  # seen by who had it open
        assert index.search(Embedding(MALLORY, CONTRACT)).scores[0] < 0.9
        assert store.add_person("Carol", templates=[template(CAROL)]).id > mallory + 1
        assert best(store, CAROL)[0] == "Carol"
        assert store.check().problems == ()
    assert copy.read_bytes() == before
    assert sorted(each.name for each in copy.parent.iterdir()) == ["copy"]
    assert not [each.name for each in path.parent.iterdir() if each.name.startswith(".edgeface")]


def test_restore_erases_what_was_lost(copied: Callable[[bytes | None], tuple[Path, Path]]) -> None:
    path, copy = copied(None)
    restore_gallery(path, copy, key=None)
    content = b"".join(each.read_bytes() for each in path.parent.rglob("*") if each.is_file())
    assert b"Grace" in content
    assert b"Mallory" not in content
    assert MALLORY.tobytes() not in content


@pytest.mark.parametrize("damage", ["missing", "cut", "overwritten"])
def test_restore_makes_a_missing_or_damaged_gallery_anew(
    copied: Callable[[bytes | None], tuple[Path, Path]], damage: str
) -> None:
    path, copy = copied(KEY)
    path.chmod(0o640)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
        path.with_name("g-wal").write_bytes(os.urandom(50_000))
    else:
        path.write_bytes(content[:30_000] if damage == "cut" else content[:100] + os.urandom(len(content) - 100))
    done = restore_gallery(path, copy, key=KEY)
    assert done.people == 2
    with SqliteStore(path, key=KEY) as store:
        assert [person.name for person in store.people()] == ["Ada", "Grace"]
        assert store.check().problems == ()
    assert path.stat().st_mode & 0o777 == (0o600 if damage == "missing" else 0o640)


RESTORE = """
import sys
from pathlib import Path
from edgeface.gallery.store.restore import restore_gallery
path, copy = map(Path, sys.argv[1:])
print("ready", flush=True)
print(restore_gallery(path, copy, key=None).people, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False], ids=["written over", "missing"])
@pytest.mark.parametrize("turns", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_restore_that_is_killed_leaves_the_gallery_as_it_was_or_the_copy(
    tmp_path: Path, there: bool, turns: int
) -> None:
    path, copy = tmp_path / "g", tmp_path / "copy"
    make(path)
    with SqliteStore(path) as store, store.writing():
        for number in range(300):
            store.add_person(f"old {number}", templates=templates(10, seed=number))
    shutil.copy(path, copy)
    dice, seen = np.random.default_rng(3), set()
    for turn in range(turns):
        with SqliteStore(path) as store:
            store.add_person(f"since {turn}", templates=[template(MALLORY)])
            known = len(store.people())
        if not there:
            path.unlink()
        words = [sys.executable, "-c", RESTORE, str(path), str(copy)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            if turn < turns - 1:
                time.sleep(dice.uniform(0, 0.3))
                process.kill()
            done = bool(process.stdout.read())
        if not path.exists():
            assert not there
            assert not done
            shutil.copy(copy, path)
        with SqliteStore(path) as store:
            found = len(store.people())
            assert found == 302 if done or not there else found in (302, known)
            assert store.check().problems == ()
            seen.add(found)
        assert not [each.name for each in tmp_path.iterdir() if each.name.startswith(".edgeface")]  # `check` swept it
    assert done
    assert 302 in seen


def test_restore_refuses_what_is_no_copy_of_this_gallery_and_changes_nothing(
    copied: Callable[[bytes | None], tuple[Path, Path]], tmp_path: Path
) -> None:
    path, copy = copied(KEY)
    make(tmp_path / "other", KEY)
    damaged, text = tmp_path / "damaged", tmp_path / "text"
    shutil.copy(copy, damaged)
    with sqlite3.connect(damaged) as connection:
        connection.execute("UPDATE templates SET body = zeroblob(length(body)) WHERE id = 2")
    connection.close()
    text.write_text("a letter " * 100)
    before = path.read_bytes()
    cases: list[tuple[type[EdgeFaceError], str, Path, Path, bytes]] = [
        (GalleryError, "restore it under another name", path, tmp_path / "other", KEY),
        (GalleryDamagedError, "nothing was restored: .*row 2", path, damaged, KEY),
        (GalleryDamagedError, "text: expected a gallery", path, text, KEY),
        (GalleryKeyError, "expected the key", path, copy, bytes(32)),
        (GalleryError, "No such file", path, tmp_path / "none", KEY),
        (GalleryError, "the gallery itself", path, path, KEY),
        (GalleryError, "move it away", text, copy, KEY),
    ]
    for error, words, target, source, key in cases:
        with pytest.raises(error, match=words):
            restore_gallery(target, source, key=key)
    assert path.read_bytes() == before
    assert text.read_text() == "a letter " * 100


def test_the_command_restores_and_names_who_is_enrolled_again(
    copied: Callable[[bytes | None], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, copy = copied(None)
    assert main(["gallery", "restore", str(path), str(copy)]) == 2
    assert "pass --yes to confirm" in capsys.readouterr().err
    assert main(["gallery", "restore", str(path), str(copy), "--yes", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "gallery": str(path), "people": 2, "templates": 6, "generation": 6, "lost": 1, "returned": ["Grace"],
        "key_id": "", "former_key_id": "",
    }  # fmt: skip
    assert "Grace: forgotten since the copy was made, and enrolled again" in said.err


def test_the_command_says_that_the_copy_brings_back_a_former_key_or_none(
    copied: Callable[[bytes | None], tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, copy = copied(None)
    with SqliteStore(path, key=None) as store:
        key_id = store.rekey(KEY).key_id
    assert main(["gallery", "restore", str(path), str(copy), "--yes"]) == 0
    assert f"was sealed with key {key_id}, and is not encrypted again, as the copy" in capsys.readouterr().err
    with SqliteStore(path, key=None) as store:
        store.rekey(bytes(32))
    shutil.copy(path, copy)
    with SqliteStore(path, key=bytes(32)) as store:
        store.rekey(KEY)
    monkeypatch.setenv("EDGEFACE_GALLERY_KEY", bytes(32).hex())
    assert main(["gallery", "restore", str(path), str(copy), "--yes"]) == 0
    assert f"was sealed with key {key_id}, and is sealed with key " in capsys.readouterr().err


# What lies beside a gallery


@pytest.fixture
def _loose() -> Iterator[None]:
    """Debian's default for users: their group may write."""
    before = os.umask(0o002)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_loose")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o660])
def test_what_is_derived_has_the_mode_of_the_gallery_and_never_more(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "g"
    make(path)
    path.chmod(mode)
    cache_folder(path).mkdir(mode=0o777)  # as an earlier version could leave it
    cache_folder(path).chmod(0o777)
    with SqliteStore(path) as store:
        store.load()
        modes = {each: each.stat().st_mode & 0o777 for each in (cache(path), cache_folder(path))}
        assert modes == {cache(path): mode, cache_folder(path): mode | (mode & 0o444) >> 2}
        assert {path.with_name(name).stat().st_mode & 0o777 for name in ("g-wal", "g-shm")} == {mode}


def test_the_group_of_what_is_derived_is_the_gallerys(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to give a file to another group")
    path = tmp_path / "g"
    make(path)
    os.chown(path, -1, 12345)
    path.chmod(0o640)
    with SqliteStore(path) as store:
        store.load()
    assert {each.stat().st_gid for each in (cache(path), cache_folder(path))} == {12345}


def forge(file: Path, row: np.ndarray) -> None:
    """Make somebody else's template the first one, with all digests that need no key."""
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack_from("<I", content, 8)
    header = json.loads(content[12 : 12 + length])
    begin = -(-(12 + length + 16) // 4096) * 4096
    first = begin + 16 * header["rows"]
    content[first : first + row.nbytes] = row.tobytes()
    header["sha256"] = hashlib.sha256(content[begin:]).hexdigest()
    text = json.dumps(header, sort_keys=True).encode()
    start = bytes(content[:8]) + struct.pack("<I", len(text)) + text
    start += hashlib.blake2b(start, digest_size=16).digest()
    file.write_bytes(start + bytes(-len(start) % 4096) + bytes(content[begin:]))


def test_a_forged_cache_makes_no_one_somebody_else_and_check_says_so(tmp_path: Path) -> None:
    path = tmp_path / "g"
    make(path)
    with SqliteStore(path) as store:
        store.load()
    forge(cache(path), MALLORY)
    with SqliteStore(path) as store:
        assert "holds other templates than the gallery; it is not used; delete it" in store.check().problems[0]
        assert best(store, MALLORY)[1] < 0.9


def test_a_cache_that_others_may_write_to_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "g"
    make(path)
    with SqliteStore(path) as store:
        store.load()
        assert store._read_cache() is not None
        for each in (cache(path), cache_folder(path)):
            was = each.stat().st_mode & 0o777
            each.chmod(was | 0o020)
            assert store._read_cache() is None
            assert "may not write to the gallery" in store.check().problems[0]
            each.chmod(was)
        assert store._read_cache() is not None


def test_who_is_killed_before_the_commit_of_the_cache_leaves_nothing_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g"
    make(path)

    def interrupted(*words: object) -> str:
        write_templates(*words)
        raise KeyboardInterrupt

    with SqliteStore(path) as store:
        with monkeypatch.context() as patched:
            patched.setattr("edgeface.gallery.store.sqlite.write_templates", interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.load()
        assert cache(path).is_file()
        assert store._read_cache() is None
        assert store.check().problems == ()
        assert len(store.load()) == 6
        assert store._read_cache() is not None


@pytest.mark.timeout(20)
def test_a_device_or_a_pipe_is_no_copy_and_fills_no_disk(tmp_path: Path) -> None:
    make(tmp_path / "g")
    os.mkfifo(tmp_path / "pipe")
    for copy in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(GalleryError, match="expected a regular file, found a device, pipe or socket"):
            restore_gallery(tmp_path / "g", copy, key=None)
