"""One file of a model in, its checked bytes in the cache out: resuming, retrying, from source to source."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from edgeface.errors import ChecksumError, DownloadError, OutputError
from edgeface.files import free_bytes, write_atomically
from edgeface.zoo.files import (
    CHUNK,
    Digests,
    hash_file,
    locked,
    make_folder,
    writing,
)
from edgeface.zoo.schema import ModelEntry, ModelFile
from edgeface.zoo.store import LOCK_TIMEOUT, Blob, ModelStore
from edgeface.zoo.transfer import (
    READING_ERRORS,
    FolderLocation,
    Location,
    Reply,
    SourceFault,
    WebLocation,
    locate,
    reading_fault,
)

logger = logging.getLogger(__name__)

_LARGEST_UNKNOWN = 8 << 30
"""Bytes after which a file whose size nobody published is given up."""

_NOT_A_MODEL = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer",
}

_PROGRESS_INTERVAL = 0.1
"""Seconds between progress events of one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How hard to try.

    Attributes
    ----------
    attempts
        At each source, for faults that may pass.
    timeout
        Seconds without a byte before a connection counts as dead.
    backoff, longest_wait
        Seconds: before attempt n + 1, wait a random time up to ``backoff * 2**n``, at most `longest_wait`
        ("full jitter"). A server's Retry-After is honoured up to `longest_wait` too.
    jobs
        Files at once.
    """

    attempts: int = 4
    timeout: float = 30.0
    backoff: float = 1.0
    longest_wait: float = 60.0
    jobs: int = 4


Kind = Literal[
    "model_download_begin",
    "model_download_end",
    "model_file_download_begin",
    "model_file_download_progress",
    "model_file_download_end",
    "model_postprocessing_begin",
    "model_postprocessing_end",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened; kinds and their meaning are those of Open Model Zoo's ``--progress_format=json``.

    Attributes
    ----------
    model_file
        Name of the file, for the kinds that are about one.
    size
        Bytes: of the whole file at ``model_file_download_begin`` (None if unknown), received so far at
        ``model_file_download_progress``.
    num_files
        At ``model_download_begin``.
    successful
        At the two ``_end`` kinds.
    """

    kind: Kind
    model: str
    model_file: str | None = None
    size: int | None = None
    num_files: int | None = None
    successful: bool | None = None


Progress = Callable[[Event], None]
"""Called from several threads, one call at a time."""


@dataclass(frozen=True, slots=True)
class _Partial:
    """What arrived of a file so far, and what identified its version to the source that sent it."""

    path: Path

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".json")

    def resume_point(self, location: Location, *, published: bool) -> tuple[int, str | None]:
        """Bytes to keep, and the validator to send along.

        With a published digest any source may finish what another began, for the digest decides. Without
        one, only the same version from the same source may: a splice would be recorded as the truth.
        """
        try:
            size = self.path.stat().st_size
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0, None
        validator = note.get("validator") if note.get("source") == str(location) else None
        return (size, validator) if published or validator is not None else (0, None)

    def remember(self, location: Location, reply: Reply) -> None:
        with write_atomically(self._note) as temporary:
            note = {"source": str(location), "validator": reply.validator}
            temporary.write_text(json.dumps(note), encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Fetch:
    """One file on its way into the cache. `cancel` stops it at the next chunk; what arrived is kept."""

    entry: ModelEntry
    file: ModelFile
    store: ModelStore
    mirror: str | None
    policy: Policy
    progress: Progress
    cancel: threading.Event

    def run(self) -> Blob:
        """Bring the file into the cache, or find it there intact.

        Raises
        ------
        DownloadError, ChecksumError, OutputError
            As `edgeface.zoo.download.download` says.
        """
        self._emit("model_file_download_begin", size=self.file.size)
        successful = False
        try:
            # keyed by name, not content: two processes on one file take turns, and the second finds it done
            key = hashlib.sha256(f"{self.entry.name}/{self.file.name}".encode()).hexdigest()[:16]
            with locked(self.store.root / "locks" / f"{key}.lock", timeout=LOCK_TIMEOUT):
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
        return blob if hash_file(self.store.blob_path(blob.sha256), expected) == expected else None

    def _from_any_source(self) -> Blob:
        faults: list[tuple[Location, SourceFault]] = []
        for location in self._locations():
            try:
                return self._from_source(location)
            except SourceFault as fault:
                logger.info("%s/%s: %s %s", self.entry.name, self.file.name, location, fault)
                faults.append((location, fault))
        reasons = "; ".join(f"{location} {fault}" for location, fault in faults)
        what = f"{self.entry.name}/{self.file.name}: no source delivered it: {reasons}"
        if any(fault.checksum for _, fault in faults):
            raise ChecksumError(
                f"{what}; nothing was kept; get the file from a source that you trust with --mirror"
            )
        raise DownloadError(f"{what}; try again later, or name a folder or server that has it with --mirror")

    def _locations(self) -> list[Location]:
        locations = [locate(source) for source in self.file.sources]
        if self.mirror is None:
            return locations
        if self.mirror.startswith(("http://", "https://")):
            path = urllib.parse.quote(f"{self.entry.name}/{self.file.name}")
            return [WebLocation(f"{self.mirror.rstrip('/')}/{path}"), *locations]
        return [FolderLocation(Path(self.mirror) / self.entry.name / self.file.name), *locations]

    def _from_source(self, location: Location) -> Blob:
        partial = _Partial(make_folder(self.store.root / "partial") / f"{self._partial_key(location)}.part")
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

    def _partial_key(self, location: Location) -> str:
        """Name of the partial file: one for a published digest, one a source where there is none."""
        identity = json.dumps(
            [self.entry.name, self.file.name, self.file.digests or str(location)], sort_keys=True
        )
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def _pause(self, attempt: int, fault: SourceFault) -> None:
        wait = random.uniform(0, min(self.policy.longest_wait, self.policy.backoff * 2**attempt))
        if fault.wait is not None:
            if fault.wait > self.policy.longest_wait:
                raise SourceFault(f"{fault}, and asks to wait {fault.wait:.0f} s")
            wait = max(wait, fault.wait)
        logger.info("%s/%s: %s; trying again in %.1f s", self.entry.name, self.file.name, fault, wait)
        self.cancel.wait(wait)

    def _attempt(self, location: Location, partial: _Partial) -> Blob:
        offset, validator = partial.resume_point(location, published=bool(self.file.digests))
        reply = location.open(offset, validator=validator, timeout=self.policy.timeout)
        with closing(reply.stream):
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
                f"cannot write {self.store.root}: {self.entry.name}/{self.file.name} needs "
                f"{total - reply.offset:,} bytes, {free:,} bytes are free there; free some space, "
                "or set EDGEFACE_CACHE"
            )

    def _receive(self, reply: Reply, path: Path) -> dict[str, str]:
        """Append the stream to what is there, and return the digests of the whole."""
        digests = Digests({"sha256", *self.file.digests})
        received = reply.offset
        expected = self.file.size if self.file.size is not None else reply.total
        limit = _LARGEST_UNKNOWN if expected is None else expected
        told = 0.0
        with writing(path), path.open("r+b" if path.exists() else "x+b") as output:
            output.truncate(received)
            digests.update_from(path)
            output.seek(received)
            while chunk := self._read(reply.stream):
                if received == 0:
                    _refuse_stand_in(chunk)
                received += len(chunk)
                if received > limit:
                    raise SourceFault(f"expected {limit:,} bytes, sends more", restart=True)
                digests.update(chunk)
                output.write(chunk)
                if time.monotonic() - told > _PROGRESS_INTERVAL or received == expected:
                    told = time.monotonic()
                    self._emit("model_file_download_progress", size=received)
        if received == 0 and expected != 0:
            raise SourceFault("sent nothing", retry=True)
        if expected is not None and received < expected:
            raise SourceFault(f"broke off after {received:,} of {expected:,} bytes", retry=True)
        return digests.hexadecimal()

    def _read(self, stream: IO[bytes]) -> bytes:
        self._stop_if_cancelled()
        try:
            return stream.read1(CHUNK) if hasattr(stream, "read1") else stream.read(CHUNK)
        except READING_ERRORS as error:
            raise reading_fault(error) from error

    def _difference(self, found: dict[str, str]) -> str | None:
        """What is wrong with these digests; None if they are the published or recorded ones."""
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
            raise DownloadError(f"{self.entry.name}/{self.file.name}: stopped because another file failed")

    def _emit(self, kind: Kind, *, size: int | None = None, successful: bool | None = None) -> None:
        event = Event(
            kind=kind, model=self.entry.name, model_file=self.file.name, size=size, successful=successful
        )
        self.progress(event)


def _refuse_stand_in(first: bytes) -> None:
    """Recognise what servers send in place of a file, so that the message can say it."""
    start = first[:64].lstrip().lower()
    for prefix, what in _NOT_A_MODEL.items():
        if start.startswith(prefix):
            raise SourceFault(f"sent {what} instead of the file")
