"""Download a model's files into the store: several sources, resuming, retrying, and a check of every byte."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeface.errors import ArchiveError, ChecksumError, DownloadError, InputError, OutputError
from edgeface.files import digests_of, expand_home, free_bytes, output_errors, write_atomically
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.text import encoded_user, without_secrets
from edgeface.untrusted import read_json
from edgeface.zoo.policy import DownloadPolicy
from edgeface.zoo.schema import ModelEntry, ModelFile
from edgeface.zoo.store import Blob, ModelStore
from edgeface.zoo.transfer import CHUNK, FolderLocation, PackageLocation, Reply, SourceFault, WebLocation, locate

logger = logging.getLogger(__name__)

_LARGEST_UNKNOWN = 8 << 30
"""Bytes after which a file without a published size is given up."""

_NOT_A_MODEL = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
}

_PROGRESS_INTERVAL = 0.1
"""Seconds between progress reports about one file."""

_USUAL = DownloadPolicy()

Location = FolderLocation | PackageLocation | WebLocation


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadEvent:
    """A step of a download, as Open Model Zoo's ``--progress_format=json`` reports it; `kind` is its ``$type``."""

    kind: Literal[
        "model_download_begin",
        "model_download_end",
        "model_file_download_begin",
        "model_file_download_progress",
        "model_file_download_end",
        "model_postprocessing_begin",
        "model_postprocessing_end",
    ]
    model: str
    model_file: str | None = None
    size: int | None = None  # bytes: of the whole file at its begin (None: unknown), received so far at its progress
    num_files: int | None = None  # at model_download_begin
    successful: bool | None = None  # at the two _download_end kinds


@dataclass(frozen=True, slots=True)
class Download:
    """Result of `download`: the model's folder, its files, and whether they were there and intact already."""

    folder: Path
    blobs: tuple[Blob, ...]
    already_there: bool


def download(
    entry: ModelEntry,
    store: ModelStore,
    *,
    mirror: str | None = None,
    policy: DownloadPolicy = _USUAL,
    progress: ProgressCallback = ignore_progress,
    on_event: Callable[[DownloadEvent], None] | None = None,
) -> Download:
    """Download a model into the store; files that are there and intact are kept.

    `mirror` is tried before the published sources: an ``http(s)://`` address or a folder that holds
    ``<model>/<file name>``, by default EDGEFACE_MIRROR. `progress` is called with the bytes received of each file, and
    `on_event` with the steps that Open Model Zoo's tools report; from several threads, one call at a time.

    Raises DownloadError if no source delivered a file (what arrived is kept, and the next call resumes there),
    ChecksumError if the bytes are not those that were published or recorded, ArchiveError if an archive is unsafe,
    OutputError if the store cannot be written, InputError if the mirror is not one, or the licence of a non-commercial
    model was not accepted.
    """
    store.require_license(entry)
    lock = threading.Lock()
    sizes = {file.name: file.size for file in entry.files}

    def report(event: DownloadEvent) -> None:
        with lock:
            if on_event is not None:
                on_event(event)
            if event.kind == "model_file_download_progress" and event.model_file and event.size is not None:
                stage = f"{event.model}/{event.model_file}"
                progress(Progress(stage, event.size, sizes[event.model_file], "bytes"))

    report(DownloadEvent(kind="model_download_begin", model=entry.name, num_files=len(entry.files)))
    successful = False
    try:
        result = _download(entry, store, _mirror(mirror), policy, report)
        successful = True
    finally:
        report(DownloadEvent(kind="model_download_end", model=entry.name, successful=successful))
    return result


def is_installed(entry: ModelEntry) -> bool:
    """Whether every file of a model is in an installed Python package, so that no network is needed."""
    return bool(entry.files) and all(
        any(PackageLocation(each).find() for each in file.packages) for file in entry.files
    )


def take_installed(entry: ModelEntry, store: ModelStore) -> None:
    """Copy a model into the store if it is not there and Python packages have it; see `download` for what it raises."""
    if not store.has(entry) and is_installed(entry):
        download(entry, store)


def _download(
    entry: ModelEntry,
    store: ModelStore,
    mirror: str | None,
    policy: DownloadPolicy,
    report: Callable[[DownloadEvent], None],
) -> Download:
    if store.has(entry) and all(check.intact for check in store.verify(entry)):
        present = [blob for file in entry.files if (blob := store.blob(entry, file))]
        return Download(store.model_dir(entry), tuple(present), already_there=True)
    cancel = threading.Event()
    fetches = [_Fetch(entry, file, store, mirror, policy, report, cancel) for file in entry.files]
    with concurrent.futures.ThreadPoolExecutor(max_workers=policy.jobs) as pool:
        futures = [pool.submit(fetch.run) for fetch in fetches]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            cancel.set()  # a file failed, or Ctrl-C was pressed: the others keep their partial files
            raise
    report(DownloadEvent(kind="model_postprocessing_begin", model=entry.name))
    try:
        folder = store.materialise(entry)
    except (ArchiveError, ChecksumError):
        store.forget_first_use(entry)
        raise
    report(DownloadEvent(kind="model_postprocessing_end", model=entry.name))
    return Download(folder, tuple(future.result() for future in futures), already_there=False)


def _mirror(mirror: str | None) -> str | None:
    chosen = mirror or os.environ.get("EDGEFACE_MIRROR") or None
    if chosen is None or chosen.startswith(("http://", "https://")):
        return chosen
    folder = expand_home(chosen)
    if not folder.is_dir():
        raise InputError(f"mirror: expected an http(s):// address or a folder, found {chosen!r}")
    return str(folder)


@dataclass(frozen=True, slots=True)
class _Partial:
    """What arrived of a file so far, and what identified its version to the source that sent it."""

    path: Path

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".json")

    def resume_point(self, location: Location, *, published: bool) -> tuple[int, str | None]:
        """Return the bytes to keep, and the validator to send.

        With a published digest any source may finish what another began, for the digest decides. Without
        one, only the same version from the same source may: a splice would be recorded as the truth.
        """
        try:
            size = self.path.stat().st_size
            note = read_json(self._note, "a note in JSON")
        except (OSError, InputError):
            return 0, None
        same = isinstance(note, dict) and note.get("source") == str(location)
        validator = note.get("validator") if same else None
        return (size, validator) if published or validator is not None else (0, None)

    def remember(self, location: Location, reply: Reply) -> None:
        with write_atomically(self._note) as temporary:
            note = {"source": str(location), "validator": reply.validator}
            temporary.write_text(json.dumps(note), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Downloads one file. `cancel` stops it at the next chunk; what arrived is kept."""

    entry: ModelEntry
    file: ModelFile
    store: ModelStore
    mirror: str | None
    policy: DownloadPolicy
    report: Callable[[DownloadEvent], None]
    cancel: threading.Event

    @property
    def what(self) -> str:
        return f"{self.entry.name}/{self.file.name}"

    def run(self) -> Blob:
        """Bring the file into the store, or find it there intact."""
        self._emit("model_file_download_begin", size=self.file.size)
        successful = False
        try:
            # keyed by name, not content: two processes on one file take turns, and the second finds it done
            key = hashlib.sha256(self.what.encode()).hexdigest()[:16]
            with self.store.locked(key):
                blob = self._intact_blob() or self._from_any_source()
            successful = True
        finally:
            self._emit("model_file_download_end", successful=successful)
        return blob

    def _intact_blob(self) -> Blob | None:
        blob = self.store.blob(self.entry, self.file)
        if blob is None:
            return None
        expected = {"sha256": blob.sha256, **self.file.digests}
        return blob if digests_of(self.store.blob_path(blob.sha256), expected) == expected else None

    def _from_any_source(self) -> Blob:
        faults: list[tuple[Location, SourceFault]] = []
        for location in self._locations():
            try:
                return self._from_source(location)
            except SourceFault as fault:
                logger.info("%s: %s %s", self.what, location, fault)
                faults.append((location, fault))
        reasons = "; ".join(f"{location} {fault}" for location, fault in faults)
        failure = f"{self.what}: no source delivered it: {reasons}"
        if any(fault.checksum for _, fault in faults):
            raise ChecksumError(f"{failure}; nothing was kept; get the file from a source that you trust with --mirror")
        raise DownloadError(f"{failure}; try again later, or name a folder or server that has it with --mirror")

    def _locations(self) -> list[Location]:
        published: list[Location] = [locate(source) for source in self.file.sources]
        here = [each for each in published if isinstance(each, PackageLocation) and each.find()]
        published = [each for each in published if each not in here]
        if self.mirror is None:
            return [*here, *published]
        if self.mirror.startswith(("http://", "https://")):
            address = f"{self.mirror.rstrip('/')}/{urllib.parse.quote(self.what)}"
            return [*here, WebLocation(encoded_user(address), without_secrets(address)), *published]
        return [*here, FolderLocation(Path(self.mirror) / self.what), *published]

    def _from_source(self, location: Location) -> Blob:
        # one partial file for a published digest, one a source where there is none
        identity = [self.entry.name, self.file.name, self.file.digests or str(location)]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        folder = self.store.root / "partial"
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        partial = _Partial(folder / f"{key}.part")
        for attempt in range(self.policy.attempts):
            self._stop_if_cancelled()
            try:
                return self._attempt(location, partial)
            except SourceFault as fault:
                if fault.restart:
                    partial.discard()
                if not fault.retry or attempt == self.policy.attempts - 1:
                    raise
                self._pause(attempt, fault)
        raise AssertionError("a policy has at least one attempt")

    def _pause(self, attempt: int, fault: SourceFault) -> None:
        wait = random.uniform(0, min(self.policy.longest_wait, self.policy.backoff * 2**attempt))
        if fault.wait is not None:
            if fault.wait > self.policy.longest_wait:
                raise SourceFault(f"{fault}; it asks to wait {fault.wait:.0f} s")
            wait = max(wait, fault.wait)
        logger.info("%s: %s; trying again in %.1f s", self.what, fault, wait)
        self.cancel.wait(wait)

    def _attempt(self, location: Location, partial: _Partial) -> Blob:
        offset, validator = partial.resume_point(location, published=bool(self.file.digests))
        with location.open(offset, validator=validator, timeout=self.policy.timeout) as reply:
            self._check_announced(reply)
            partial.remember(location, reply)
            found = self._receive(reply, partial.path)
        wrong = self._difference(found)
        if wrong is None:
            blob = self.store.add_blob(
                self.entry, self.file, partial.path, sha256=found["sha256"], source=str(location)
            )
            partial.discard()
            return blob
        partial.discard()
        if reply.offset:  # perhaps only the first part was bad: once more, from zero, so this cannot recur
            return self._attempt(location, partial)
        raise SourceFault(wrong, checksum=True)

    def _check_announced(self, reply: Reply) -> None:
        """Refuse a wrong length, or one that does not fit on the disk, before the first byte."""
        size = self.file.size
        if size is not None and reply.total not in (None, size):
            raise SourceFault(f"expected {size:,} bytes, offers {reply.total:,}")
        total = size if size is not None else reply.total
        free = free_bytes(self.store.root)
        if total is not None and total - reply.offset > free:
            raise OutputError(
                f"cannot write {self.store.root}: {self.what} needs {total - reply.offset:,} bytes, "
                f"{free:,} bytes are free there; free some space, or set EDGEFACE_CACHE"
            )

    def _receive(self, reply: Reply, path: Path) -> dict[str, str]:
        """Append the reply to what is there, and return the digests of the whole."""
        hashers = {name: hashlib.new(name) for name in {"sha256", *self.file.digests}}
        received = reply.offset
        expected = self.file.size if self.file.size is not None else reply.total
        limit = _LARGEST_UNKNOWN if expected is None else expected
        reported = 0.0
        with output_errors(path), path.open("r+b" if path.exists() else "x+b") as output:
            output.truncate(received)
            while chunk := output.read(CHUNK):
                for hasher in hashers.values():
                    hasher.update(chunk)
            for chunk in reply.chunks:
                self._stop_if_cancelled()
                start = chunk[:64].lstrip().lower() if received == 0 else b""
                if found := next((what for prefix, what in _NOT_A_MODEL.items() if start.startswith(prefix)), None):
                    raise SourceFault(f"sent {found} instead of the file")
                received += len(chunk)
                if received > limit:
                    raise SourceFault(f"expected {limit:,} bytes, sends more", restart=True)
                for hasher in hashers.values():
                    hasher.update(chunk)
                output.write(chunk)
                if time.monotonic() - reported > _PROGRESS_INTERVAL or received == expected:
                    reported = time.monotonic()
                    self._emit("model_file_download_progress", size=received)
        if received == 0 and expected != 0:
            raise SourceFault("sent nothing", retry=True)
        if expected is not None and received < expected:
            raise SourceFault(f"broke off after {received:,} of {expected:,} bytes", retry=True)
        return {name: hasher.hexdigest() for name, hasher in hashers.items()}

    def _difference(self, found: dict[str, str]) -> str | None:
        """Return what is wrong with these digests; None if they are the published or recorded ones."""
        for algorithm, digest in self.file.digests.items():
            if found[algorithm] != digest:
                return f"sent other bytes: expected {algorithm.upper()} {digest}, found {found[algorithm]}"
        recorded = self.store.recorded(self.entry, self.file)
        if self.file.trust_on_first_use and recorded is not None and recorded.sha256 != found["sha256"]:
            return (
                f"sent other bytes than on {recorded.recorded}: expected SHA-256 {recorded.sha256}, "
                f"found {found['sha256']}; if the publisher did change the file, remove its lines from "
                f"{self.store.root / 'files.json'}"
            )
        return None

    def _stop_if_cancelled(self) -> None:
        if self.cancel.is_set():
            raise DownloadError(f"{self.what}: stopped because another file failed")

    def _emit(
        self,
        kind: Literal["model_file_download_begin", "model_file_download_progress", "model_file_download_end"],
        *,
        size: int | None = None,
        successful: bool | None = None,
    ) -> None:
        name = self.file.name
        self.report(DownloadEvent(kind=kind, model=self.entry.name, model_file=name, size=size, successful=successful))
