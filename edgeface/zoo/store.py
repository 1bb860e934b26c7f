"""Downloaded bytes in, a model's folder out: a content-addressed cache that every project of a user shares.

::

    <root>/blobs/sha256/<digest>    what was downloaded, read-only, each content once
    <root>/models/<name>/           a model's files, linked to blobs, its archives unpacked
    <root>/irs/<name>/<precision>/  IRs converted from them
    <root>/default.json             the model that is used where none is named
    <root>/partial/                 downloads that were interrupted, kept for resuming
    <root>/files.json               digest, size and source of every file, and which were trusted on first use
    <root>/licenses.json            whose licence was shown or accepted, and when
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgeface.errors import ArchiveError, ChecksumError, ModelNotFoundError
from edgeface.files import write_atomically
from edgeface.zoo.archive import unpack
from edgeface.zoo.files import (
    JsonRecords,
    hash_file,
    locked,
    make_folder,
    place,
    swap_folder,
    temporary_folder,
    writing,
)
from edgeface.zoo.schema import ModelEntry, ModelFile, RegexReplace, UnpackArchive

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "EDGEFACE_CACHE"
LOCK_TIMEOUT = 3600.0
"""Seconds to wait for another process that downloads the same thing; large models on slow lines take long."""

_MARKER = ".edgeface.json"

LicenseState = Literal["shown", "accepted"]


def default_root() -> Path:
    """Return the cache's folder: EDGEFACE_CACHE, else ``edgeface`` in XDG_CACHE_HOME or ``~/.cache``."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgeface"


@dataclass(frozen=True, slots=True)
class Blob:
    """One downloaded file.

    Attributes
    ----------
    sha256
        Of its bytes, and its name in the cache.
    size
        Bytes.
    source
        Where the bytes came from.
    first_use
        Nobody published a digest: this one was recorded at the first download.
    recorded
        When, ISO 8601 in UTC.
    """

    sha256: str
    size: int
    source: str
    first_use: bool
    recorded: str


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What `ModelStore.verify` found about one file: its digest as recorded, and as it is now (None: missing)."""

    path: Path
    expected: str
    found: str | None

    @property
    def intact(self) -> bool:
        """Whether the bytes are those that were published or recorded."""
        return self.found == self.expected


class ModelStore:
    """The cache of downloaded models.

    Parameters
    ----------
    root
        Its folder; by default `default_root`. It is made when something is written.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_root() if root is None else root
        self._files = JsonRecords(self.root / "files.json")
        self._licenses = JsonRecords(self.root / "licenses.json")

    def blob_path(self, sha256: str) -> Path:
        """Where the cache keeps this content, whether or not it has it."""
        return self.root / "blobs" / "sha256" / sha256

    def blob(self, entry: ModelEntry, file: ModelFile) -> Blob | None:
        """Return what is recorded of a file that is in the cache; None if it has to be downloaded.

        A record that disagrees with the catalog's published digest or size counts as absent.
        """
        blob = self.recorded(entry, file)
        if blob is None or not self.blob_path(blob.sha256).is_file():
            return None
        outdated = file.digests.get("sha256", blob.sha256) != blob.sha256 or file.size not in (
            None,
            blob.size,
        )
        return None if outdated else blob

    def recorded(self, entry: ModelEntry, file: ModelFile) -> Blob | None:
        """Return what was recorded when a file was last downloaded, even if its bytes are gone since."""
        stored = self._files.read().get(f"{entry.name}/{file.name}")
        return None if stored is None else Blob(**stored)

    def add_blob(self, entry: ModelEntry, file: ModelFile, path: Path, *, sha256: str, source: str) -> Blob:
        """Move checked bytes from `path` into the cache and record them.

        Raises
        ------
        OutputError
            If the cache cannot be written.
        """
        target = self.blob_path(sha256)
        blob = Blob(sha256, path.stat().st_size, source, file.trust_on_first_use, _now())
        make_folder(target.parent)
        with writing(target):
            path.chmod(0o444)  # models/ links to it: an edit there must fail rather than change the original
            path.replace(target)
        self._files.update({f"{entry.name}/{file.name}": asdict(blob)})
        return blob

    def forget_first_use(self, entry: ModelEntry) -> None:
        """Drop digests that were recorded on first use, after the bytes turned out not to be the model."""
        doubtful = {f"{entry.name}/{file.name}": None for file in entry.files if file.trust_on_first_use}
        if doubtful:
            self._files.update(doubtful)

    def model_dir(self, entry: ModelEntry) -> Path:
        """Return the folder that holds a downloaded model's files.

        Raises
        ------
        ModelNotFoundError
            If it is not downloaded, or was downloaded for an entry that has changed since.
        """
        folder = self._folder(entry)
        fingerprint = self._fingerprint(entry)
        if fingerprint is None or self._marker(folder).get("fingerprint") != fingerprint:
            raise ModelNotFoundError(
                f"model {entry.name!r} is not downloaded; run: edgeface zoo download {entry.name}"
            )
        return folder

    def ir_path(self, name: str, *, precision: str = "FP32") -> Path:
        """Where the store keeps the IR (.xml) of a converted model, whether or not it has it."""
        return self.root / "irs" / name / precision.lower() / f"{name}.xml"

    def has(self, entry: ModelEntry) -> bool:
        """Whether `model_dir` would find it."""
        try:
            self.model_dir(entry)
        except ModelNotFoundError:
            return False
        return True

    def source_path(self, entry: ModelEntry) -> Path:
        """Return the file or folder that the converter reads.

        Raises
        ------
        ModelNotFoundError
            If the model is not downloaded, or its entry does not say what to convert.
        """
        if entry.conversion is None:
            raise ModelNotFoundError(f"model {entry.name!r}: its entry has no conversion.source; add one")
        path = self.model_dir(entry) / entry.conversion.source
        if not path.exists():
            raise ModelNotFoundError(f"{path} is missing; run: edgeface zoo download {entry.name}")
        return path

    def materialise(self, entry: ModelEntry) -> Path:
        """Build a model's folder from its blobs: link, unpack, replace. It appears only when complete.

        Raises
        ------
        ModelNotFoundError
            If a blob is missing.
        ArchiveError, ChecksumError, OutputError
            If an archive is unsafe, what it holds is not what was published, or the cache cannot be written.
        """
        folder = self._folder(entry)
        with (
            locked(self.root / "locks" / f"{entry.name}.lock", timeout=LOCK_TIMEOUT),
            temporary_folder(folder.parent, f".{entry.name}-") as staging,
        ):
            for file in entry.files:
                blob = self.blob(entry, file)
                if blob is None:
                    raise ModelNotFoundError(f"{entry.name}/{file.name} is not downloaded")
                place(self.blob_path(blob.sha256), staging / file.name)
            for step in entry.postprocessing:
                _unpack_step(step, staging) if isinstance(step, UnpackArchive) else _replace_step(
                    step, staging
                )
            contents = {
                str(path.relative_to(staging)): hash_file(path)["sha256"] for path in _files_in(staging)
            }
            _check_conversion_source(entry, staging, contents)
            marker = {"fingerprint": self._fingerprint(entry), "files": contents}
            with writing(staging):
                (staging / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            swap_folder(staging, folder)
        logger.info("materialised %s at %s", entry.name, folder)
        return folder

    def verify(self, entry: ModelEntry) -> list[FileCheck]:
        """Compare every byte of a downloaded model with the published or recorded digests.

        Raises
        ------
        ModelNotFoundError
            If it is not downloaded at all.
        """
        folder = self.model_dir(entry)
        blobs = [(file, blob) for file in entry.files if (blob := self.blob(entry, file)) is not None]
        checks = [check for file, blob in blobs for check in self._check_blob(file, blob)]
        seen = {path.stat().st_ino for _, blob in blobs if (path := self.blob_path(blob.sha256)).is_file()}
        for name, expected in self._marker(folder)["files"].items():
            path = folder / name
            if not path.is_file():
                checks.append(FileCheck(path, expected, None))
            elif path.stat().st_ino not in seen:  # a link to a blob was hashed with it
                checks.append(FileCheck(path, expected, hash_file(path)["sha256"]))
        return checks

    def export(
        self, entry: ModelEntry, folder: Path, *, precisions: Collection[str] | None = None
    ) -> list[Path]:
        """Put a downloaded model's files into a folder of the user's own.

        Parameters
        ----------
        entry, folder
            The folder is made if it is missing; files of the same names in it are replaced.
        precisions
            Of a ready IR, only the files in folders of these names (``FP16``); by default all.

        Raises
        ------
        ModelNotFoundError, OutputError
            If the model is not downloaded, or the folder cannot be written.
        """
        source = self.model_dir(entry)
        exported = []
        for name in self._marker(source)["files"]:
            precision = name.split("/")[0]
            if precisions is not None and precision in entry.precisions and precision not in precisions:
                continue
            target = folder / name
            with write_atomically(target) as temporary:
                shutil.copyfile(source / name, temporary)  # no link: the user may edit it
            exported.append(target)
        return exported

    def license_state(self, entry: ModelEntry) -> LicenseState | None:
        """Whether a model's licence was shown or accepted before; a licence at a new address is a new one."""
        stored = self._licenses.read().get(entry.name, {})
        state: LicenseState | None = stored.get("state") if stored.get("license") == entry.license else None
        return state

    def record_license(self, entry: ModelEntry, state: LicenseState) -> None:
        """Remember that a licence was shown or accepted."""
        self._licenses.update({entry.name: {"license": entry.license, "state": state, "at": _now()}})

    def _check_blob(self, file: ModelFile, blob: Blob) -> Iterator[FileCheck]:
        path = self.blob_path(blob.sha256)
        expected = {"sha256": blob.sha256, **file.digests}
        found = hash_file(path, expected)
        for algorithm, digest in expected.items():
            yield FileCheck(path, digest, found[algorithm])

    def _folder(self, entry: ModelEntry) -> Path:
        return self.root / "models" / entry.name

    def _fingerprint(self, entry: ModelEntry) -> str | None:
        """Digest of everything that decides a folder's content; None while a file is missing."""
        blobs = {file.name: self.blob(entry, file) for file in entry.files}
        if None in blobs.values():
            return None
        recipe = entry.model_dump(mode="json", include={"postprocessing", "conversion"})
        recipe["files"] = {name: blob.sha256 for name, blob in blobs.items() if blob is not None}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def _marker(folder: Path) -> dict[str, Any]:
        try:
            marker: dict[str, Any] = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return marker


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _unpack_step(step: UnpackArchive, staging: Path) -> None:
    archive = staging / step.file
    unpack(archive, archive.parent, format=step.format)
    archive.unlink()


def _replace_step(step: RegexReplace, staging: Path) -> None:
    path = staging / step.file
    text, count = re.subn(step.pattern, step.replacement, path.read_text(encoding="utf-8"), count=step.count)
    if count == 0 or count < step.count:
        raise ArchiveError(
            f"{step.file}: expected {step.count or 'some'} matches of {step.pattern!r}, found {count}; "
            "the file is not the one that this entry was written for"
        )
    path.unlink()  # it is a link to the blob, which stays as it was downloaded
    with writing(path):
        path.write_text(text, encoding="utf-8")


def _check_conversion_source(entry: ModelEntry, staging: Path, contents: dict[str, str]) -> None:
    if entry.conversion is None:
        return
    source, expected = entry.conversion.source, entry.conversion.sha256
    if not (staging / source).exists():
        raise ArchiveError(f"{entry.name}: expected {source} in the unpacked download, found no such file")
    found = contents.get(source, "a folder")
    if expected is not None and found != expected:
        raise ChecksumError(
            f"{entry.name}: {source}: expected SHA-256 {expected}, found {found}; "
            "the download is not the published model"
        )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
