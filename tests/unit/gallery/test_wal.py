"""A WAL beside a file that it was not written for: what `cp backup people.gallery` leaves after a crash."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from unit.gallery.conformance import CONTRACT, DIM, templates

from edgeface.cli import main
from edgeface.errors import EdgeFaceError, GalleryDamagedError
from edgeface.gallery.store.restore import restore_gallery
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.store.wal import _generation, _varint

pytestmark = pytest.mark.timeout(60)


def make(path: Path, *names: str) -> None:
    with SqliteStore.create(path, contract_id=CONTRACT, dim=DIM, key=None) as store:
        for number, name in enumerate(names):
            store.add_person(name, templates=templates(1, seed=number))


def names(path: Path) -> list[str]:
    with SqliteStore(path) as store:
        assert store.check().problems == ()
        return [person.name for person in store.people()]


def crash(path: Path, work: str) -> None:
    """Work on a gallery in a process that then dies; the WAL stays."""
    script = (
        "import os, sys; from pathlib import Path; from edgeface.gallery.store.sqlite import SqliteStore\n"
        f"store = SqliteStore(Path(sys.argv[1])); sql = store.database.outside\n{work}\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, path], check=True, timeout=60)
    assert wal(path).exists()


def wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A backup, put by hand in the place of a gallery whose last process was killed."""
    path = tmp_path / "g"
    make(path, "Ada")
    shutil.copy(path, tmp_path / "backup")
    with SqliteStore(path) as store:
        store.add_person("Grace", templates=templates(3, seed=5))
    crash(path, "store.add_person('Zoe')")
    shutil.copy(tmp_path / "backup", path)
    return path


def test_a_wal_of_another_state_is_refused_and_not_written_into_the_copy(
    stale: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEFACE_GALLERY_KEY", raising=False)
    before = stale.read_bytes(), wal(stale).read_bytes()
    with pytest.raises(GalleryDamagedError, match="after another state of it, up to 4"):
        SqliteStore(stale)
    assert main(["gallery", "check", str(stale)]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "move g-wal and g-shm away" in said
    assert "edgeface gallery restore" in said
    assert (stale.read_bytes(), wal(stale).read_bytes()) == before
    for suffix in ("-wal", "-shm"):
        stale.with_name(stale.name + suffix).unlink()
    assert names(stale) == ["Ada"]


def test_restore_takes_the_place_of_a_file_with_a_wal_of_another_state(stale: Path, tmp_path: Path) -> None:
    restore_gallery(stale, tmp_path / "backup", key=None)
    assert names(stale) == ["Ada"]


def test_restore_refuses_a_copy_with_a_wal_of_another_state(stale: Path, tmp_path: Path) -> None:
    with pytest.raises(GalleryDamagedError, match=f"{stale}-wal: expected"):
        restore_gallery(tmp_path / "h", stale, key=None)
    assert not (tmp_path / "h").exists()


def test_an_old_wal_beside_a_newer_file_does_not_bring_back_who_was_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "g"
    make(path, "Ada", "Grace")
    crash(path, "store.add_person('Zoe')")
    shutil.copy(wal(path), tmp_path / "wal")
    with SqliteStore(path) as store:
        assert store.forget(store.find("Ada").id)
    shutil.copy(tmp_path / "wal", wal(path))
    with pytest.raises(GalleryDamagedError, match="after the file's generation 5"):
        SqliteStore(path)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("store.add_person('Zoe')", ["Ada", "Zoe"]),
        ("store.add_person('Zoe'); sql('PRAGMA wal_checkpoint(PASSIVE)')", ["Ada", "Zoe"]),
        (
            "store.add_person('Zoe'); sql('PRAGMA wal_checkpoint(PASSIVE)'); store.add_person('Eve')",
            ["Ada", "Zoe", "Eve"],
        ),
        ("store.add_person('Zoe'); sql('VACUUM')", ["Ada", "Zoe"]),
        ("sql('VACUUM'); store.add_person('Zoe')", ["Ada", "Zoe"]),
        ("sql('UPDATE gallery SET unscrubbed = 2'); store.add_person('Zoe')", ["Ada", "Zoe"]),
        ("store.forget(1); store.add_person('Zoe')", ["Zoe"]),
        ("store.rekey(bytes(32)); store.rekey(None)", ["Ada"]),
        (
            "from edgeface.gallery.store.restore import restore_gallery\n"
            "for name in ('Zoe', 'Eve'): store.add_person(name)\n"
            "restore_gallery(store.path, store.path.with_name('backup'), key=None); store.add_person('Bob')",
            ["Ada", "Bob"],
        ),
    ],
    ids=["enrol", "written", "begun anew", "vacuum", "vacuum first", "mark", "forget", "rekey", "restore"],
)
def test_a_gallerys_own_wal_is_read_after_a_crash(tmp_path: Path, work: str, expected: list[str]) -> None:
    path = tmp_path / "g"
    make(path, "Ada")
    shutil.copy(path, tmp_path / "backup")
    crash(path, work)
    assert names(path) == expected


def test_a_wal_that_a_living_process_writes_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "g"
    make(path)
    with SqliteStore(path) as store:
        for number in range(20):
            store.add_person(f"p{number}")
            if number % 7 == 0:
                store.database.outside("PRAGMA wal_checkpoint(TRUNCATE)" if number % 2 else "PRAGMA wal_checkpoint")
            assert len(names(path)) == number + 1


@pytest.mark.parametrize("times", [60, pytest.param(2000, marks=[pytest.mark.nightly, pytest.mark.timeout(900)])])
def test_a_damaged_wal_or_page_ends_in_no_other_error(tmp_path: Path, times: int) -> None:
    path = tmp_path / "g"
    make(path, "Ada")
    crash(path, "store.add_person('Zoe')")
    original, content, dice = path.read_bytes(), wal(path).read_bytes(), np.random.default_rng(2)
    for number in range(times):
        damaged = bytearray(content if number % 2 else original)
        for position in dice.integers(0, len(damaged) if number % 4 > 1 else 40000, 3).tolist():
            damaged[position % len(damaged)] = int(dice.integers(256))
        wal(path).write_bytes(damaged if number % 2 else content)
        path.write_bytes(original if number % 2 else damaged)
        path.with_name("g-shm").unlink(missing_ok=True)
        with contextlib.suppress(EdgeFaceError), SqliteStore(path) as store:
            store.people()


@pytest.mark.parametrize("generation", [0, 1, 2, 127, 128, 40_000, 10**6, 2**40, 2**62])
def test_the_generation_is_read_from_a_page_as_sqlite_reads_it(tmp_path: Path, generation: int) -> None:
    make(tmp_path / "g")
    with contextlib.closing(sqlite3.connect(tmp_path / "g")) as connection:
        connection.execute("UPDATE gallery SET generation = ?", (generation,))
        connection.commit()
    page = (tmp_path / "g").read_bytes()[16384 : 2 * 16384]
    assert _generation(page) == generation
    dice = np.random.default_rng(1)
    for _ in range(300):  # never another error
        noise = bytearray(page)
        for position in dice.choice([*range(12), *range(16384 - 500, 16384)], 4):
            noise[position] = int(dice.integers(256))
        assert _generation(bytes(noise)) is None or isinstance(_generation(bytes(noise)), int)


def test_a_page_that_was_half_written_when_the_process_was_killed_is_not_taken_for_another_state(
    tmp_path: Path,
) -> None:
    """A gallery's own WAL repairs it. Rekeying moves the row in its page."""
    path = tmp_path / "g"
    make(path, "Ada")
    old = path.read_bytes()
    for pointer in range(16384 - 900, 16384):  # where the other half may say that the row begins
        torn = bytearray(old)
        torn[16384 + 8 : 16384 + 10] = pointer.to_bytes(2, "big")
        assert _generation(bytes(torn[16384 : 2 * 16384])) in (None, 2)


@pytest.mark.parametrize(("octets", "number"), [(b"\x05", 5), (b"\x81\x00", 128), (b"\xff" * 9, 2**64 - 1)])
def test_numbers_of_one_to_nine_bytes_are_read(octets: bytes, number: int) -> None:
    assert _varint(octets + b"\x01", 0) == (number, len(octets))
