"""Models carried to a machine without a network, and what a bundle cannot smuggle in."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_server import QUICK, make_entry, make_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from profiles import examples

from edgeface import zoo
from edgeface.errors import ArchiveError, ChecksumError, EdgeFaceError, ModelNotFoundError, OutputError
from edgeface.zoo.catalog import Catalog

CONTENT = b"weights" * 1000


def sha384(content: bytes) -> dict[str, Any]:
    return {"sha256": None, "checksum": hashlib.sha384(content).hexdigest()}


@pytest.fixture
def catalog() -> Catalog:
    address = "https://example.org/x"
    files = [
        make_file("a.bin", CONTENT, address, **sha384(CONTENT)),
        make_file("same.bin", CONTENT, address),
        make_file("b.bin", b"", address, size=None, sha256=None, checksum="trust-on-first-use"),
    ]
    return Catalog([make_entry(*files)], source="test.yml")


@pytest.fixture
def bundle(catalog: Catalog, store: zoo.ModelStore, tmp_path: Path) -> Path:
    for name, content in {"a.bin": CONTENT, "same.bin": CONTENT, "b.bin": b"first"}.items():
        (path := tmp_path / "mirror" / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    zoo.download(catalog["tiny"], store, mirror=str(tmp_path / "mirror"), policy=QUICK)
    zoo.export_bundle([catalog["tiny"]], store, tmp_path / "models.tar")
    return tmp_path / "models.tar"


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with tarfile.open(path) as archive:
        members = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def change_manifest(path: Path, change: Callable[[Any], None]) -> Path:
    def edit(members: dict[str, bytes]) -> None:
        manifest = json.loads(members["manifest.json"])
        change(manifest)
        members["manifest.json"] = json.dumps(manifest).encode()

    return rewrite(path, edit)


def test_a_bundle_brings_models_to_a_machine_without_network(bundle: Path, catalog: Catalog, tmp_path: Path) -> None:
    other = zoo.ModelStore(tmp_path / "other")
    manifest = zoo.import_bundle(bundle, catalog, other)
    assert [model.name for model in manifest.models] == ["tiny"]
    assert (other.model_dir(catalog["tiny"]) / "same.bin").read_bytes() == CONTENT
    assert all(check.intact for check in other.verify(catalog["tiny"]))
    recorded = other.recorded(catalog["tiny"], catalog["tiny"].files[2])
    assert recorded is not None
    assert recorded.first_use
    assert zoo.import_bundle(bundle, catalog, other) == manifest


def test_a_bundle_holds_each_content_once_and_is_the_same_every_time(
    bundle: Path, catalog: Catalog, store: zoo.ModelStore, tmp_path: Path
) -> None:
    with tarfile.open(bundle) as archive:
        assert len(archive.getnames()) == 3
    zoo.export_bundle([catalog["tiny"]], store, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()


def test_only_downloaded_and_intact_models_are_bundled(
    bundle: Path, catalog: Catalog, store: zoo.ModelStore, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError):
        zoo.export_bundle([catalog["tiny"]], zoo.ModelStore(tmp_path / "empty"), tmp_path / "none.tar")
    path = store.model_dir(catalog["tiny"]) / "b.bin"
    path.chmod(0o644)
    path.write_bytes(b"other")
    with pytest.raises(ChecksumError, match="run: edgeface zoo download tiny"):
        zoo.export_bundle([catalog["tiny"]], store, tmp_path / "none.tar")
    assert not (tmp_path / "none.tar").exists()


def test_a_bundle_that_cannot_be_written_leaves_nothing(
    bundle: Path, catalog: Catalog, store: zoo.ModelStore, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        zoo.export_bundle([catalog["tiny"]], store, bundle / "inside.tar")


BLOB = "blobs/" + hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.update({BLOB: b"x" * len(CONTENT)}), ChecksumError, "its checksum differs from its name"),
        (lambda m: m.update({BLOB: b"short"}), ChecksumError, "its checksum differs"),
        (lambda m: m.pop(BLOB), ArchiveError, "found no such member"),
        (lambda m: m.update({"../evil": b"x"}), ArchiveError, r"expected each file of .* found '../evil'"),
        (lambda m: m.update({"blobs/" + "0" * 64: b"x"}), ArchiveError, "expected each file of"),
        (lambda m: m.pop("manifest.json"), ArchiveError, "begins with manifest.json"),
        (lambda m: m.update({"manifest.json": b"{"}), ArchiveError, "expected manifest.json in JSON"),
        (lambda m: m.update({"manifest.json": b"[]"}), ArchiveError, "expected a bundle of version 1, found None"),
    ],
)
def test_a_bundle_that_was_changed_is_refused_and_nothing_enters_the_cache(
    bundle: Path, catalog: Catalog, tmp_path: Path, change: Any, error: type[EdgeFaceError], message: str
) -> None:
    other = zoo.ModelStore(tmp_path / "other")
    with pytest.raises(error, match=message):
        zoo.import_bundle(rewrite(bundle, change), catalog, other)
    assert not other.root.exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda m: m["models"][0].update(name="unknown"), ModelNotFoundError),
        (lambda m: m["models"][0]["files"].pop(), ArchiveError),
        (lambda m: m["models"][0]["files"][1].update(sha256="0" * 64), ChecksumError),
        (lambda m: m["models"][0].update(surprise=1), ArchiveError),
        (lambda m: m["models"][0]["files"][0].update(source="\x1b[2J"), ArchiveError),
        (lambda m: m.update(schema_version=2), ArchiveError),
    ],
)
def test_a_manifest_that_disagrees_with_the_catalog_is_refused(
    bundle: Path, catalog: Catalog, tmp_path: Path, change: Any, error: type[EdgeFaceError]
) -> None:
    with pytest.raises(error):
        zoo.import_bundle(change_manifest(bundle, change), catalog, zoo.ModelStore(tmp_path / "other"))


def test_other_bytes_than_the_published_sha384_are_refused(bundle: Path, catalog: Catalog, tmp_path: Path) -> None:
    first = hashlib.sha256(b"first").hexdigest()

    def exchange(manifest: Any) -> None:  # consistent in itself, but a.bin is not the published file
        manifest["models"][0]["files"][0].update(sha256=first, size=5)

    other = zoo.ModelStore(tmp_path / "other")
    entry = catalog["tiny"]
    loose = entry.files[0].model_copy(update={"size": None})
    relaxed = Catalog([entry.model_copy(update={"files": (loose, *entry.files[1:])})], source="test.yml")
    with pytest.raises(ChecksumError, match="the bundle does not hold the published file"):
        zoo.import_bundle(change_manifest(bundle, exchange), relaxed, other)
    assert not other.root.exists()


def test_a_bundle_cannot_change_what_was_trusted_on_first_use(bundle: Path, catalog: Catalog, tmp_path: Path) -> None:
    (mirror := tmp_path / "other mirror" / "tiny").mkdir(parents=True)
    for name, content in {"a.bin": CONTENT, "same.bin": CONTENT, "b.bin": b"mine"}.items():
        (mirror / name).write_bytes(content)
    other = zoo.ModelStore(tmp_path / "other")
    zoo.download(catalog["tiny"], other, mirror=str(mirror.parent), policy=QUICK)
    with pytest.raises(ChecksumError, match=r"tiny/b\.bin"):
        zoo.import_bundle(bundle, catalog, other)


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8b\x08\x00garbage"])
def test_what_is_no_bundle_is_named(tmp_path: Path, catalog: Catalog, store: zoo.ModelStore, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"x\.tar: expected an edgeface bundle"):
        zoo.import_bundle(tmp_path / "x.tar", catalog, store)


def test_an_absent_bundle_is_named(tmp_path: Path, catalog: Catalog, store: zoo.ModelStore) -> None:
    with pytest.raises(ArchiveError, match="No such file"):
        zoo.import_bundle(tmp_path / "x.tar", catalog, store)


@given(position=st.integers(0, 100_000), flip=st.integers(1, 255), cut=st.integers(0, 12_000))
@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_a_bundle_damaged_anywhere_is_refused_or_harmless(
    bundle: Path, catalog: Catalog, tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, cut: int
) -> None:
    raw = bytearray(bundle.read_bytes())
    raw[position % len(raw)] ^= flip
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "models.tar").write_bytes(raw[: len(raw) - cut])
    other = zoo.ModelStore(folder / "cache")
    try:
        zoo.import_bundle(folder / "models.tar", catalog, other)
    except EdgeFaceError:
        assert not other.root.exists()
    else:
        assert all(check.intact for check in other.verify(catalog["tiny"]))
