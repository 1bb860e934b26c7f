"""The cache: what it holds, how it says that it cannot, and that two users of it do not collide."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import edgeface
from faulty_server import QUICK, FaultyServer, make_entry, make_file, no_trace, of_unknown_length

from edgeface import zoo
from edgeface.errors import ArchiveError, InputError, ModelNotFoundError, OutputError
from edgeface.files import expand_home, locked, staging_folder
from edgeface.gallery.keys import read_key
from edgeface.zoo.store import JsonRecords, default_root

pytestmark = pytest.mark.timeout(60)

CONTENT = random.Random(3).randbytes(400_000)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror" / "tiny"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("2018/model.pb", CONTENT)
        archive.writestr("2018/notes.txt", "dim: 12, dim: 12")
    (folder / "net.txt").write_text("dim: 12, dim: 12")
    return folder.parent


def entry_of(mirror: Path, **changes: object) -> zoo.ModelEntry:
    names = ("model.zip", "net.txt")
    described = [make_file(n, (mirror / "tiny" / n).read_bytes(), "https://example.org/x") for n in names]
    unpack = {"$type": "unpack_archive", "format": "zip", "file": "model.zip"}
    replace = {"$type": "regex_replace", "file": "net.txt", "pattern": "12", "replacement": "720", "count": 1}
    conversion = {"source": "2018/model.pb", "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return make_entry(*described, **{"postprocessing": [unpack, replace], "conversion": conversion, **changes})


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", "/a/cache")
    assert default_root() == Path("/a/cache")
    monkeypatch.delenv("EDGEFACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_root() == Path("/xdg/edgeface")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == Path.home() / ".cache" / "edgeface"


@pytest.mark.parametrize("home", [None, "/dev/null", "/proc/no/such/home"])
def test_without_a_home_the_store_is_empty_and_writing_to_it_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    for name in ("EDGEFACE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    else:
        monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    monkeypatch.chdir(tmp_path)
    described = edgeface("zoo", "list", "--json")
    assert described.returncode == 0
    assert not any(each["folder"] for each in json.loads(described.stdout)["models"])
    with pytest.raises(OutputError, match="set EDGEFACE_CACHE"), staging_folder(default_root() / "thresholds"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_tilde_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"~nobody-of-this-name/x: expected a home of this user, found none"):
        expand_home("~nobody-of-this-name/x")
    with pytest.raises(InputError, match="expected a home"):
        read_key("file:~nobody-of-this-name/key", beside=None)


def test_a_models_folder_has_its_archive_unpacked_and_its_text_replaced(mirror: Path, store: zoo.ModelStore) -> None:
    entry = entry_of(mirror)
    folder = zoo.download(entry, store, mirror=str(mirror), policy=QUICK).folder
    assert store.source_path(entry).read_bytes() == CONTENT
    assert not (folder / "model.zip").exists()
    assert (folder / "net.txt").read_text() == "dim: 720, dim: 12"
    assert all(check.intact for check in store.verify(entry))


def test_text_is_replaced_in_the_models_folder_only(mirror: Path, store: zoo.ModelStore) -> None:
    entry = entry_of(mirror)
    blobs = zoo.download(entry, store, mirror=str(mirror), policy=QUICK).blobs
    assert store.blob_path(blobs[1].sha256).read_text() == "dim: 12, dim: 12"


def test_a_pattern_that_does_not_occur_is_an_error_and_leaves_no_folder(mirror: Path, store: zoo.ModelStore) -> None:
    step = {"$type": "regex_replace", "file": "net.txt", "pattern": "13", "replacement": "x"}
    with pytest.raises(ArchiveError, match="found 0"):
        zoo.download(entry_of(mirror, postprocessing=[step]), store, mirror=str(mirror), policy=QUICK)
    assert not (store.root / "models").exists()


def test_an_archive_without_the_model_is_an_error(mirror: Path, store: zoo.ModelStore) -> None:
    entry = entry_of(mirror, conversion={"source": "2017/model.pb"})
    with pytest.raises(ArchiveError, match=r"expected 2017/model\.pb in the unpacked download"):
        zoo.download(entry, store, mirror=str(mirror), policy=QUICK)


def test_a_model_that_is_not_downloaded_says_how_to_get_it(store: zoo.ModelStore, mirror: Path) -> None:
    message = "model 'tiny' is not downloaded; run: edgeface zoo download tiny"
    for question in (store.model_dir, store.source_path, store.verify):
        with pytest.raises(ModelNotFoundError, match=message):
            question(entry_of(mirror))


def test_a_model_whose_entry_changed_counts_as_not_downloaded(mirror: Path, store: zoo.ModelStore) -> None:
    zoo.download(entry_of(mirror), store, mirror=str(mirror), policy=QUICK)
    assert not store.has(entry_of(mirror, conversion={"source": "2018/notes.txt"}))


def test_verify_names_what_was_changed_and_what_is_gone(mirror: Path, store: zoo.ModelStore) -> None:
    entry = entry_of(mirror)
    folder = zoo.download(entry, store, mirror=str(mirror), policy=QUICK).folder
    (folder / "2018/model.pb").write_bytes(b"other")
    (folder / "2018/notes.txt").unlink()
    damaged = {check.path.name: check.found for check in store.verify(entry) if not check.intact}
    assert damaged == {"model.pb": hashlib.sha256(b"other").hexdigest(), "notes.txt": None}
    zoo.download(entry, store, mirror=str(mirror), policy=QUICK)
    assert all(check.intact for check in store.verify(entry))


def test_downloaded_files_are_read_only(mirror: Path, store: zoo.ModelStore) -> None:
    blobs = zoo.download(entry_of(mirror), store, mirror=str(mirror), policy=QUICK).blobs
    assert all(stat.S_IMODE(store.blob_path(blob.sha256).stat().st_mode) == 0o444 for blob in blobs)


def test_export_copies_and_can_choose_precisions(store: zoo.ModelStore, tmp_path: Path) -> None:
    names = [f"{precision}/tiny.{kind}" for precision in ("FP16", "FP32") for kind in ("xml", "bin")]
    for name in names:
        (path := tmp_path / "m" / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    described = [make_file(name, name.encode(), "https://example.org/x") for name in names]
    entry = make_entry(*described, framework="dldt")
    zoo.download(entry, store, mirror=str(tmp_path / "m"), policy=QUICK)
    store.export(entry, tmp_path / "out", precisions={"FP16"})
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert found == {"FP16/tiny.xml", "FP16/tiny.bin"}


def test_a_licence_is_remembered_until_its_address_changes(mirror: Path, store: zoo.ModelStore) -> None:
    entry = entry_of(mirror)
    assert store.license_state(entry) is None
    store.record_license(entry, "shown")
    store.record_license(entry, "accepted")
    assert zoo.ModelStore(store.root).license_state(entry) == "accepted"
    assert store.license_state(entry_of(mirror, license="https://example.org/other")) is None


def test_records_of_many_writers_are_all_kept(tmp_path: Path) -> None:
    def write(number: int) -> None:
        JsonRecords(tmp_path / "records.json").update({f"key {number}": number})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(json.loads((tmp_path / "records.json").read_text())) == 16


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text("{")
    with pytest.raises(OutputError, match=r"records\.json: expected a readable JSON object"):
        JsonRecords(tmp_path / "records.json").read()


def test_a_lock_that_somebody_keeps_ends_in_an_error(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", timeout=1),
        pytest.raises(OutputError, match="another edgeface process"),
        locked(tmp_path / "lock", timeout=0.1),
    ):
        pass


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Mount a tmpfs of 192 KiB; give it and its name for remounting."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)], capture_output=True, timeout=10
    )
    if made.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.decode().strip()}")
    yield folder, str(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def test_a_full_disk_is_named_with_its_free_space_and_leaves_nothing(
    mount: tuple[Path, str], server: FaultyServer
) -> None:
    store = zoo.ModelStore(mount[0] / "cache")
    url = server.add("/model.bin", CONTENT, of_unknown_length())
    file = make_file("model.bin", CONTENT, url, size=None)
    with pytest.raises(OutputError, match=r"cannot write .*\.part: No space left .* bytes are free there"):
        zoo.download(make_entry(file), store, policy=QUICK)
    assert no_trace(store.root)


def test_a_file_that_cannot_fit_is_refused_before_it_is_downloaded(
    mount: tuple[Path, str], server: FaultyServer
) -> None:
    store = zoo.ModelStore(mount[0] / "cache")
    entry = make_entry(make_file("model.bin", CONTENT, server.add("/model.bin", CONTENT)))
    with pytest.raises(OutputError, match=r"tiny/model\.bin needs 400,000 bytes, [0-9,]+ bytes are free"):
        zoo.download(entry, store, policy=QUICK)
    assert not list((store.root / "partial").iterdir())


def test_a_read_only_cache_is_named(mount: tuple[Path, str], mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(mount[0] / "cache"))
    subprocess.run(["mount", "-o", "remount,ro", mount[1]], check=True, timeout=10)
    with pytest.raises(OutputError, match=r"cannot write .*Read-only file system.*EDGEFACE_CACHE"):
        zoo.download(entry_of(mirror), zoo.ModelStore(), mirror=str(mirror), policy=QUICK)


def test_a_file_where_the_cache_should_be_is_named(tmp_path: Path, mirror: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*cache") as caught:
        zoo.download(entry_of(mirror), zoo.ModelStore(tmp_path / "cache"), mirror=str(mirror), policy=QUICK)
    assert caught.value.exit_code == 2
