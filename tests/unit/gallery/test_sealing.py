"""Keys, wrong keys, flipped bytes, moved rows, other contracts: each has its own error, and names are not readable."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from unit.gallery.conformance import CONTRACT, DIM, OTHER_CONTRACT, kept, template, templates, vectors

from edgeface.cipher import KeyedCipher
from edgeface.errors import ContractError, EdgeFaceError, GalleryDamagedError, GalleryKeyError
from edgeface.gallery.keys import read_key
from edgeface.gallery.store.searcher import Searcher
from edgeface.gallery.store.sqlite import SqliteStore

pytestmark = pytest.mark.timeout(120)
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
NAME = "Ada Augusta King"


def make(path: Path, key: bytes | None = KEY) -> Path:
    rows = vectors(3)
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=key, keep_images=True) as store:
        pictures = [template(row, image=kept(bytes(range(256)) * 9)) for row in rows[:2]]
        store.add_person(NAME, labels=["mathematics"], metadata={"born": "1815 in London"}, templates=pictures)
        store.add_person("Grace Hopper", templates=[template(rows[2])])
    return path


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    return make(tmp_path / "people.gallery")


def test_encrypted_nothing_readable_is_in_the_files_and_unencrypted_it_is(tmp_path: Path) -> None:
    secrets = [NAME, "Grace Hopper", "mathematics", "1815 in London"]
    pieces = [text.encode() for text in secrets] + [row.tobytes()[:16] for row in vectors(3)]
    pieces.append(bytes(range(256))[:32])
    for key, expected in ((KEY, False), (None, True)):
        folder = tmp_path / str(expected)
        folder.mkdir()
        with SqliteStore(make(folder / "g", key), key=key) as store:  # open: what is in the WAL counts too
            store.update_person(1, labels=["mathematics", "poetry"])
            content = everything(folder)
        assert [piece in content for piece in pieces] == [expected] * len(pieces)


def test_another_key_a_missing_key_and_a_needless_key_are_refused(gallery: Path, tmp_path: Path) -> None:
    with pytest.raises(GalleryKeyError, match="found another one"):
        SqliteStore(gallery, key=OTHER_KEY)
    with pytest.raises(GalleryKeyError, match="no key was given"):
        SqliteStore(gallery)
    with pytest.raises(GalleryKeyError, match="gallery is not encrypted"):
        SqliteStore(make(tmp_path / "plain", None), key=KEY)
    with pytest.raises(GalleryKeyError, match="32 bytes, found 16"):
        SqliteStore(gallery, key=KEY[:16])


def test_a_gallery_of_another_contract_is_refused_by_its_own_error(gallery: Path) -> None:
    with pytest.raises(ContractError, match=f"expected a gallery of contract {OTHER_CONTRACT}, found one of"):
        SqliteStore(gallery, key=KEY, contract_id=OTHER_CONTRACT)


def test_what_is_no_gallery_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database\n" * 1000)
    (tmp_path / "empty").write_bytes(b"")
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE a (b)").connection.close()
    for name in ("text", "empty", "other"):
        with pytest.raises(GalleryDamagedError, match="expected a gallery"):
            SqliteStore(tmp_path / name)


def read_all(path: Path, key: bytes | None) -> tuple[object, ...]:
    with SqliteStore(path, key=key) as store:
        people = store.people()
        block = store.load()
        images = [store.image_of(number).png for number in block.ids.tolist() if store.image_of(number)]
        found = [store.find(person.name) for person in people]
        problems = store.check().problems
        return people, found, block.ids.tolist(), block.vectors.tobytes(), images, problems, store.info


def outcome(path: Path, key: bytes | None) -> object:
    """What reading everything gives: all of it, an error's class, or that `check` found something."""
    try:
        found = read_all(path, key)
    except EdgeFaceError as error:
        return type(error)
    return "problems" if found[-2] else found


@pytest.mark.parametrize("key", [KEY, None], ids=["encrypted", "plain"])
@pytest.mark.slow
def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path: Path, key: bytes | None) -> None:
    """Many of a page's bytes are unused: what they are changes nothing. No flip gives other data in silence."""
    path = make(tmp_path / "g", key)
    expected, original = read_all(path, key), path.read_bytes()
    used = [number for number, octet in enumerate(original) if octet]
    dice = np.random.default_rng(7)
    refused = 0
    for position in dice.choice(used, 150, replace=False).tolist():
        damaged = bytearray(original)
        damaged[position] ^= 1 << int(dice.integers(8))
        path.write_bytes(damaged)
        found = outcome(path, key)
        assert found in (GalleryDamagedError, GalleryKeyError, "problems", expected) or position < 100, position
        refused += found != expected
        for beside in tmp_path.glob("g-*"):
            beside.unlink()
    assert refused > 100


def test_a_damaged_schema_is_refused_even_where_its_bytes_are_no_text(tmp_path: Path) -> None:
    path = make(tmp_path / "g", None)
    original = path.read_bytes()
    start = original.index(b"CREATE TABLE people")
    for position in range(start, start + 40, 3):
        path.write_bytes(original[:position] + b"\xa0" + original[position + 1 :])
        with pytest.raises(GalleryDamagedError):
            SqliteStore(path).people()


def test_rows_that_were_swapped_or_given_to_somebody_else_are_noticed(gallery: Path) -> None:
    def tampered(statement: str) -> tuple[str, ...]:
        copy = gallery.with_name("copy")
        shutil.copy(gallery, copy)
        connection = sqlite3.connect(copy)
        connection.executescript(statement)
        connection.close()
        with SqliteStore(copy, key=KEY) as store:
            return store.check().problems

    assert tampered("SELECT 1") == ()
    swap = (
        "CREATE TEMP TABLE t AS SELECT id, body FROM {0}; UPDATE {0} SET body = (SELECT body FROM t WHERE t.id <> "
        "{0}.id ORDER BY t.id LIMIT 1);"
    )
    assert len(tampered(swap.format("people"))) == 2
    assert len(tampered(swap.format("templates"))) == 3
    assert "2, 4, 2 of templates" in tampered("UPDATE templates SET person_id = 4 WHERE id = 2")[0]
    assert tampered("UPDATE templates SET generation = 1 WHERE id = 3")
    assert tampered("UPDATE people SET name_mark = x'00' WHERE id = 1") != ()


def test_a_header_that_was_edited_is_noticed_with_and_without_its_digest(gallery: Path) -> None:
    from edgeface.cipher import PlainCipher
    from edgeface.gallery.store.database import mark_header

    connection = sqlite3.connect(gallery, isolation_level=None)
    (text,) = connection.execute("SELECT header FROM gallery").fetchone()
    forged = text.replace(CONTRACT, OTHER_CONTRACT)
    connection.execute("UPDATE gallery SET header = ?", (forged,))
    with pytest.raises(GalleryDamagedError, match="its header is damaged"):
        SqliteStore(gallery, key=KEY)
    connection.execute("UPDATE gallery SET header_mark = ?", (mark_header(forged, PlainCipher()),))
    with pytest.raises(GalleryDamagedError, match="forged"):
        SqliteStore(gallery, key=KEY)


def test_rows_of_a_gallery_with_the_same_key_do_not_open_in_another(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    connection = sqlite3.connect(second)
    connection.executescript(
        f"ATTACH '{first}' AS other; UPDATE people SET body = (SELECT body FROM other.people o WHERE o.id = people.id);"
    )
    connection.close()
    with SqliteStore(second, key=KEY) as store, pytest.raises(GalleryDamagedError):
        store.people()


def test_two_sealings_of_one_content_differ_and_open_only_in_their_place() -> None:
    vault = KeyedCipher(KEY, "g")
    first, second = vault.seal(b"content", b"g:c:people:1"), vault.seal(b"content", b"g:c:people:1")
    assert first != second
    assert vault.open(first, b"g:c:people:1") == b"content"
    with pytest.raises(GalleryDamagedError, match="row 2 of people"):
        vault.open(first, b"g:c:people:2")


# A new key


@pytest.mark.parametrize(("old", "new"), [(KEY, OTHER_KEY), (None, KEY), (KEY, None)], ids=["another", "first", "none"])
def test_rekey_changes_the_key_and_nothing_else(tmp_path: Path, old: bytes | None, new: bytes | None) -> None:
    path = make(tmp_path / "g", old)
    with SqliteStore(path, key=old) as store:
        people, block = store.people(), store.load()
        stored = [row[0] for row in sqlite3.connect(path).execute("SELECT body FROM templates")]
        done = store.rekey(new)
        assert done.remains == ()
        assert done.rows == 7
        assert store.people() == people
        content = everything(tmp_path)
        assert [body[:40] in content for body in stored] == [False] * 3
        assert (NAME.encode() in content) is (new is None)
        store.add_person("Somebody else", templates=templates(1, seed=9))
    with SqliteStore(path, key=new) as store:
        assert store.people()[:2] == people
        np.testing.assert_array_equal(store.load().vectors[:3], block.vectors)
        assert store.check().problems == ()
    with pytest.raises(GalleryKeyError):
        SqliteStore(path, key=old)


def test_a_process_that_holds_the_gallery_open_notices_that_it_was_rekeyed(gallery: Path) -> None:
    with SqliteStore(gallery, key=KEY) as first, SqliteStore(gallery, key=KEY) as second:
        first.rekey(OTHER_KEY)
        for call in (second.people, second.load, lambda: second.add_person("a")):
            with pytest.raises(EdgeFaceError, match="open it again"):
                call()


def test_rekeying_to_the_same_key_or_a_damaged_gallery_changes_nothing(gallery: Path) -> None:
    with SqliteStore(gallery, key=KEY) as store, pytest.raises(EdgeFaceError, match="with the new key already"):
        store.rekey(KEY)
    sqlite3.connect(gallery, isolation_level=None).execute("UPDATE templates SET body = x'00' WHERE id = 2")
    with SqliteStore(gallery, key=KEY) as store:
        with pytest.raises(GalleryDamagedError):
            store.rekey(OTHER_KEY)
        assert len(store.people()) == 2
    SqliteStore(gallery, key=KEY).close()


# Where keys come from


def test_a_key_is_read_from_a_file_a_variable_or_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = tmp_path / "data" / "g"
    (tmp_path / "raw").write_bytes(KEY)
    (tmp_path / "hex").write_text(KEY.hex().upper() + "\n")
    monkeypatch.setenv("A_KEY", KEY.hex())
    command = f"{sys.executable} -c 'print(bytes(range(32)).hex())'"
    for source in (f"file:{tmp_path / 'raw'}", f"file:{tmp_path / 'hex'}", "env:A_KEY", f"command:{command}"):
        assert read_key(source, beside=gallery) == KEY


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("file:{}/beside", "in the same folder as the gallery"),
        ("file:{}/none", "make one: openssl rand"),
        ("file:{}/data/g.index/key", "in the same folder as the gallery"),
        ("file:{}/keys/short", "found 5 bytes of something else"),
        ("file:{}/keys/half", "half a hexadecimal key"),
        ("env:A_PASSWORD", "a password"),
        ("env:NO_SUCH_KEY", "is not set"),
        ("command:false", "expected exit code 0, found 1"),
        ("command:/no/such/program", "expected a program that prints a key"),
        (f"env:{'12345abc' * 8}", "is not set"),
        (f"file:{'12345abc' * 8}", "expected a key, found: No such file"),
        (f"file:{'12345abc' * 40}", "expected a key, found: File name too long"),
        (f"command:{'12345abc' * 8}", "expected a program that prints a key, found: No such file"),
        (f"command:{'12345abc' * 8} '", "expected a program that prints a key"),
        ("12345", "expected file:PATH"),
        ("12345:67", "expected file:PATH"),
        ("file:", "expected file:PATH"),
    ],
)
def test_what_is_no_key_is_refused_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "short").write_bytes(b"12345")
    (tmp_path / "keys" / "half").write_text("12345" + KEY.hex()[:27])
    (tmp_path / "beside").write_bytes(KEY)
    (tmp_path / "data" / "g.index").mkdir(parents=True)
    (tmp_path / "data" / "g.index" / "key").write_bytes(KEY)
    monkeypatch.setenv("A_PASSWORD", "12345 correct horse battery 6789")
    with pytest.raises(GalleryKeyError, match=words) as caught:
        read_key(source.format(tmp_path), beside=tmp_path / "g" if "beside" in source else tmp_path / "data" / "g")
    assert "12345" not in str(caught.value)


def test_a_key_command_that_does_not_end_is_named_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.gallery.keys._COMMAND_SECONDS", 0.2)
    command = f"{sys.executable} -c 'import time; print(\"12345\", flush=True); time.sleep(60)' a-token"
    with pytest.raises(GalleryKeyError, match="printed no key within") as caught:
        read_key(f"command:{command}", beside=tmp_path / "g")
    shown = "".join(traceback.format_exception(caught.value))
    assert "a-token" not in shown
    assert "12345" not in shown


def test_a_key_that_others_may_read_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key").write_bytes(KEY)
    for mode, warned in ((0o600, False), (0o644, True)):
        (tmp_path / "key").chmod(mode)
        caplog.clear()
        read_key(f"file:{tmp_path / 'key'}", beside=tmp_path / "data" / "g")
        assert ("can be read by other users" in caplog.text) is warned


# The search that proves an erasure


def test_the_search_finds_any_31_bytes_of_a_secret_wherever_they_lie() -> None:
    dice = np.random.default_rng(3)
    secret = dice.bytes(3000)
    searcher = Searcher([secret])
    for _ in range(200):
        begin, at = int(dice.integers(0, 3000 - 31)), int(dice.integers(0, 5000))
        noise = bytearray(dice.bytes(6000))
        assert not found(searcher, noise)
        noise[at : at + 31] = secret[begin : begin + 31]
        assert found(searcher, noise)


def test_the_search_finds_short_secrets_across_its_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeface.gallery.store.searcher._SEGMENT", 64)
    searcher = Searcher([NAME[:9].encode()])
    for at in range(0, 200):
        content = bytearray(os.urandom(256))
        content[at : at + 9] = NAME[:9].encode()
        assert found(searcher, content) == {at}


def found(searcher: Searcher, content: bytearray) -> set[int]:
    return {at for at, _ in searcher.search(lambda offset, length: bytes(content[offset : offset + length]))}


def test_a_program_that_prints_without_end_is_stopped_at_the_size_of_a_key(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GalleryKeyError, match="found more than 4,096 bytes"):
        read_key("command:yes", beside=tmp_path / "g")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
