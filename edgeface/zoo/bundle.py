"""Carry downloaded models to machines without a network: write them into one archive, and read it back checked."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeface.errors import ArchiveError, ChecksumError, ModelNotFoundError
from edgeface.files import digests_of, output_errors, sha256_of, staging_folder, write_atomically
from edgeface.untrusted import DOCUMENT_BYTES, parse_json, reading
from edgeface.version import __version__
from edgeface.zoo.archive import intact, tar_members
from edgeface.zoo.catalog import Catalog
from edgeface.zoo.schema import ModelEntry
from edgeface.zoo.store import ModelStore, place

BUNDLE_VERSION = 1
_MANIFEST, _BUNDLE = "manifest.json", "an edgeface bundle, a tar archive"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BundledFile(_Strict):
    """One file of a model: its name, its content's digest and size, and its source."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    source: str = Field(pattern=r"^[\x20-\x7e]*$")


class BundledModel(_Strict):
    """One model of a bundle."""

    name: str
    license: str
    files: list[BundledFile]


class Manifest(_Strict):
    """The first member of a bundle; ``blobs/<sha256>`` follow, each content once."""

    schema_version: int
    created_by: str
    models: list[BundledModel]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every blob, by its SHA-256."""
        return {file.sha256: file.size for model in self.models for file in model.files}


def export_bundle(entries: Sequence[ModelEntry], store: ModelStore, path: Path) -> Manifest:
    """Write downloaded models of a store into one archive, an uncompressed tar, because weights hardly compress.

    Raises ModelNotFoundError if one is not downloaded, ChecksumError if one is damaged, OutputError if the archive
    cannot be written; nothing is left of it then.
    """
    models = [_bundled_model(entry, store) for entry in entries]
    manifest = Manifest(schema_version=BUNDLE_VERSION, created_by=f"edgeface {__version__}", models=models)
    text = manifest.model_dump_json(indent=2).encode()
    with write_atomically(path) as temporary, tarfile.open(temporary, "w") as archive:
        _add(archive, _MANIFEST, io.BytesIO(text), len(text))
        for sha256, size in sorted(manifest.sizes.items()):
            with store.blob_path(sha256).open("rb") as blob:
                _add(archive, f"blobs/{sha256}", blob, size)
    return manifest


def import_bundle(path: Path, catalog: Catalog, store: ModelStore) -> Manifest:
    """Add the models of a bundle to the store.

    Nothing enters the store before every byte was checked against the manifest, and the manifest against the
    catalog of this machine: a bundle cannot bring a model that the catalog does not know, or other bytes for
    one that it knows.

    Raises ArchiveError if the archive is damaged, or holds anything but its manifest and the blobs that it names;
    ChecksumError if bytes differ from the manifest, or the manifest from the catalog or from what was recorded here;
    ModelNotFoundError if the catalog does not know one of the models; OutputError if the store cannot be written;
    InputError if the licence of a non-commercial model was not accepted.
    """
    with staging_folder(store.root) as staging:
        with tar_members(path, expected=_BUNDLE) as (archive, members):
            manifest = _read_manifest(archive, members, path)
            entries = [_check_against_catalog(model, catalog, store, path) for model in manifest.models]
            _stage_blobs(archive, members, manifest, staging, path)
        _check_other_digests(manifest, entries, staging, path)
        for entry in entries:
            store.require_license(entry)
        for model, entry in zip(manifest.models, entries, strict=True):
            _adopt(model, entry, store, staging)
    for entry in entries:
        store.materialise(entry)
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest, without checking its blobs; raise ArchiveError if it is no bundle."""
    with tar_members(path, expected=_BUNDLE) as (archive, members):
        return _read_manifest(archive, members, path)


def _bundled_model(entry: ModelEntry, store: ModelStore) -> BundledModel:
    if damaged := [check for check in store.verify(entry) if not check.intact]:
        raise ChecksumError(
            f"{damaged[0].path}: expected {damaged[0].expected}, found {damaged[0].found or 'no file'}; "
            f"run: edgeface zoo download {entry.name}"
        )
    blobs = [(file.name, blob) for file in entry.files if (blob := store.blob(entry, file)) is not None]
    files = [BundledFile(name=name, sha256=blob.sha256, size=blob.size, source=blob.source) for name, blob in blobs]
    return BundledModel(name=entry.name, license=entry.license, files=files)


def _add(archive: tarfile.TarFile, name: str, stream: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(name)  # no owner, no time: the same models give the same bundle
    info.size = size
    archive.addfile(info, stream)


def _read_manifest(archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], path: Path) -> Manifest:
    first = next(members, None)
    if first is None or first.name != _MANIFEST or not first.isfile() or first.size > DOCUMENT_BYTES:
        found = "nothing" if first is None else repr(first.name)
        raise ArchiveError(f"{path}: expected an edgeface bundle that begins with {_MANIFEST}, found {found}")
    stream = archive.extractfile(first)
    assert stream is not None  # it is a regular file
    with reading(path, f"{_MANIFEST} in JSON", error=ArchiveError):
        stored: Any = parse_json(stream.read(first.size))
    try:
        version = stored.get("schema_version") if isinstance(stored, dict) else None
        if version != BUNDLE_VERSION:
            raise ArchiveError(f"{path}: expected a bundle of version {BUNDLE_VERSION}, found {version!r}")
        return Manifest.model_validate(stored)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ArchiveError(f"{path}: {_MANIFEST}: {where}: {problem['msg']}") from error


def _check_against_catalog(model: BundledModel, catalog: Catalog, store: ModelStore, path: Path) -> ModelEntry:
    if model.name not in catalog:
        raise ModelNotFoundError(f"{path}: the catalog {catalog.source} has no model {model.name!r}; update edgeface")
    entry = catalog[model.name]
    offered = {file.name: file for file in model.files}
    if len(offered) != len(model.files) or offered.keys() != {file.name for file in entry.files}:
        raise ArchiveError(f"{path}: {model.name}: its files differ from those in {catalog.source}; update edgeface")
    for file in entry.files:
        recorded = store.recorded(entry, file) if file.trust_on_first_use else None
        expected = recorded.sha256 if recorded else file.digests.get("sha256")
        found = offered[file.name]
        if expected not in (None, found.sha256) or file.size not in (None, found.size):
            raise ChecksumError(
                f"{path}: {model.name}/{file.name}: expected SHA-256 {expected}, {file.size} bytes, "
                f"found {found.sha256}, {found.size} bytes"
            )
    return entry


def _stage_blobs(
    archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], manifest: Manifest, staging: Path, path: Path
) -> None:
    missing = manifest.sizes
    for member in members:
        sha256 = member.name.removeprefix("blobs/")
        if not member.isfile() or member.name != f"blobs/{sha256}" or sha256 not in missing:
            raise ArchiveError(f"{path}: expected each file of {_MANIFEST} once and no other, found {member.name!r}")
        stream = archive.extractfile(member)
        assert stream is not None  # it is a regular file
        size = missing.pop(sha256)
        with intact(path), output_errors(staging), (staging / sha256).open("xb") as output:
            shutil.copyfileobj(stream, output, 1 << 20)
        if member.size != size or sha256_of(staging / sha256) != sha256:
            raise ChecksumError(f"{path}: {member.name}: its checksum differs from its name; copy the bundle again")
    if missing:
        raise ArchiveError(f"{path}: expected blobs/{min(missing)}, found no such member; copy the bundle again")


def _check_other_digests(manifest: Manifest, entries: Sequence[ModelEntry], staging: Path, path: Path) -> None:
    """Compare staged blobs with all published digests; Open Model Zoo publishes SHA-384."""
    for model, entry in zip(manifest.models, entries, strict=True):
        content = {file.name: staging / file.sha256 for file in model.files}
        for file in entry.files:
            if (found := digests_of(content[file.name], file.digests)) != file.digests:
                raise ChecksumError(
                    f"{path}: {model.name}/{file.name}: expected {file.digests}, found {found}; "
                    "the bundle does not hold the published file"
                )


def _adopt(model: BundledModel, entry: ModelEntry, store: ModelStore, staging: Path) -> None:
    bundled = {file.name: file for file in model.files}
    for number, file in enumerate(entry.files):
        sha256 = bundled[file.name].sha256
        own = staging / f"{entry.name}.{number}"
        place(staging / sha256, own)  # two files may have the same content
        store.add_blob(entry, file, own, sha256=sha256, source=bundled[file.name].source)
