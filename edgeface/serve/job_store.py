"""Keep jobs of bulk enrolment: their state in a SQLite file, and what was uploaded in sealed files beside it.

An upload is encrypted with the key of its gallery, block by block, before any of it reaches the disk, and has no name
until all of it is there. It is removed with the end of its job. The names of photos, which are often those of people,
are sealed in the same way. Of a gallery without a key nothing is encrypted.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeface.cipher import Cipher
from edgeface.errors import GalleryDamagedError, InputError
from edgeface.files import Closing, output_errors
from edgeface.serve.database import ServiceFile, ServiceFileKind
from edgeface.untrusted import parse_json

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
KEPT_SECONDS, KEPT_JOBS = 86_400.0, 100
"""How long, and how many, finished jobs are kept."""
_BLOCK = 1 << 20
"""Bytes of an upload that are sealed together."""

_KIND = ServiceFileKind(
    what="service's file of jobs",
    application_id=0x45464A4F,  # EFJO
    schema="""
CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, gallery TEXT NOT NULL,
    key_id TEXT NOT NULL, request_id TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL, options TEXT NOT NULL,
    state TEXT NOT NULL, error TEXT, created REAL NOT NULL, started REAL, finished REAL, photos INTEGER NOT NULL,
    left_out INTEGER NOT NULL, people INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0,
    enrolled INTEGER NOT NULL DEFAULT 0, already INTEGER NOT NULL DEFAULT 0, refused INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE refusals (job INTEGER NOT NULL, number INTEGER NOT NULL, code TEXT NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (job, number)) WITHOUT ROWID;
""",
    synchronous="FULL",
)
_OPEN = "('queued', 'running')"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentJob:
    """A job as stored.

    Attributes
    ----------
    number, id
        The order of jobs, and what clients call this one.
    gallery, key_id, request_id
        Where people are enrolled, and who asked, as in the audit log.
    kind, size
        ``zip`` or ``ndjson``, and bytes of the upload.
    options
        Of `enrol_photos`, as JSON values.
    state, error
        What becomes of it, and why it failed.
    created, started, finished
        Seconds since 1970.
    photos, left_out
        In the upload: photos, and files that are none.
    people, done
        How many people, and photos of them, are enrolled or refused; a job is resumed with the next person.
    enrolled, already, refused
        Of the photos done: those that their person has now; of these, those that the person had before; the others.
    crashes
        How often the process ended without saying so since the last progress.
    """

    number: int
    id: str
    gallery: str
    key_id: str
    request_id: str
    kind: str
    size: int
    options: str
    state: JobState
    error: str | None
    created: float
    started: float | None
    finished: float | None
    photos: int
    left_out: int
    people: int
    done: int
    enrolled: int
    already: int
    refused: int
    crashes: int


@dataclass(frozen=True, slots=True)
class JobRefusal:
    """A photo that was not enrolled: its name in the upload, a word for programs, and a sentence."""

    photo: str
    code: str
    detail: str


class JobStore:
    """The jobs of a service, for all threads of its process.

    Parameters
    ----------
    state
        The service's folder; ``jobs.sqlite`` and the folder ``jobs`` are made in it.
    clock
        Seconds since 1970.

    Raises
    ------
    ServiceFileError, OutputError
        As `ServiceFile`; by every method, too.
    """

    def __init__(self, state: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = state / "jobs", clock
        with output_errors(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = ServiceFile(state / "jobs.sqlite", _KIND, create=True)
        self.photos = {"enrolled": 0, "refused": 0}  # since the start, for metrics

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._file.close()

    def recover(self) -> None:
        """Queue what was running when the process before ended, and remove uploads that belong to no job."""
        with self._file.transaction(write=True) as connection:
            connection.execute("UPDATE jobs SET state = 'queued', crashes = crashes + 1 WHERE state = 'running'")
            kept = {row[0] for row in connection.execute(f"SELECT id FROM jobs WHERE state IN {_OPEN}")}
        with output_errors(self._folder):
            for path in self._folder.iterdir():
                if path.name not in kept:
                    path.unlink()

    def add(self, upload: JobUpload, **values: Any) -> EnrolmentJob:
        """Keep an upload, and queue the job of it; it is there, whatever happens, when this returns."""
        upload.keep()
        try:
            with self._file.transaction(write=True) as connection:
                known = {"id": upload.id, "size": upload.size, "state": "queued", "created": self._clock()} | values
                names = ", ".join(known)
                connection.execute(
                    f"INSERT INTO jobs ({names}) VALUES ({', '.join('?' * len(known))})", [*known.values()]
                )
        except BaseException:
            upload.path.unlink(missing_ok=True)
            raise
        self.prune()
        return self.find(upload.id)

    def find(self, job_id: str) -> EnrolmentJob:
        """Return a job; KeyError if there is none of this id."""
        found = self._select("WHERE id = ?", job_id)
        if not found:
            raise KeyError(job_id)
        return found[0]

    def of_gallery(self, gallery: str) -> list[EnrolmentJob]:
        """Return the jobs of a gallery, the newest first."""
        return self._select("WHERE gallery = ? ORDER BY number DESC", gallery)

    def next(self) -> EnrolmentJob | None:
        """Return the oldest job that waits."""
        found = self._select("WHERE state = 'queued' ORDER BY number LIMIT 1")
        return found[0] if found else None

    def count(self) -> dict[str, int]:
        """Return the number of jobs that wait and run."""
        with self._file.transaction() as connection:
            rows = connection.execute(f"SELECT state, count(*) FROM jobs WHERE state IN {_OPEN} GROUP BY state")
            return {"queued": 0, "running": 0} | dict(rows)

    def _select(self, where: str, *values: Any) -> list[EnrolmentJob]:
        with self._file.transaction() as connection:
            rows = connection.execute(
                f"SELECT {', '.join(EnrolmentJob.__slots__)} FROM jobs {where}", values
            ).fetchall()
        return [EnrolmentJob(**dict(zip(EnrolmentJob.__slots__, row, strict=True))) for row in rows]

    def set_state(self, job: EnrolmentJob, state: JobState, error: str | None = None) -> bool:
        """Change the state of a job that is not finished; return whether it was not. The upload goes with its end."""
        now, over = self._clock(), state not in ("queued", "running")
        with self._file.transaction(write=True) as connection:
            changed = connection.execute(
                f"UPDATE jobs SET state = ?, error = ?, started = coalesce(started, ?), finished = ? "
                f"WHERE number = ? AND state IN {_OPEN}",
                (state, error, now if state == "running" else None, now if over else None, job.number),
            ).rowcount
        if changed and over:
            with output_errors(self._folder):
                (self._folder / job.id).unlink(missing_ok=True)
            self.prune()
        return bool(changed)

    def progress(
        self, job: EnrolmentJob, *, enrolled: int, already: int, refusals: Sequence[JobRefusal], cipher: Cipher
    ) -> None:
        """Write down what became of one person's photos: the next person is the next to be enrolled."""
        done, first = enrolled + len(refusals), f"(SELECT count(*) FROM refusals WHERE job = {job.number})"
        with self._file.transaction(write=True) as connection:
            connection.execute(
                "UPDATE jobs SET people = people + 1, done = done + ?, enrolled = enrolled + ?, already = already + ?, "
                "refused = refused + ?, crashes = 0 WHERE number = ?",
                (done, enrolled, already, len(refusals), job.number),
            )
            (start,) = connection.execute(f"SELECT {first}").fetchone()
            for number, each in enumerate(refusals, start + 1):
                content = json.dumps([each.photo, each.detail]).encode()
                sealed = cipher.seal(content, _place(job.id, f"refusal {number}"))
                connection.execute("INSERT INTO refusals VALUES (?, ?, ?, ?)", (job.number, number, each.code, sealed))
        self.photos["enrolled"] += enrolled
        self.photos["refused"] += len(refusals)

    def refusals(self, job: EnrolmentJob, cipher: Cipher, *, after: int, limit: int) -> list[tuple[int, JobRefusal]]:
        """Return refused photos by rising number above `after`; without their names if the gallery's key is another."""
        with self._file.transaction() as connection:
            rows = connection.execute(
                "SELECT number, code, content FROM refusals WHERE job = ? AND number > ? ORDER BY number LIMIT ?",
                (job.number, after, limit),
            ).fetchall()
        found = []
        for number, code, content in rows:
            try:
                photo, detail = parse_json(cipher.open(content, _place(job.id, f"refusal {number}")).decode())
            except GalleryDamagedError:
                photo, detail = "", "the gallery has another key since"
            found.append((number, JobRefusal(photo, code, detail)))
        return found

    def prune(self) -> None:
        """Remove finished jobs that are old, or too many."""
        with self._file.transaction(write=True) as connection:
            connection.execute(
                f"DELETE FROM jobs WHERE state NOT IN {_OPEN} AND (finished < ? OR number NOT IN (SELECT number FROM "
                f"jobs WHERE state NOT IN {_OPEN} ORDER BY finished DESC LIMIT ?))",
                (self._clock() - KEPT_SECONDS, KEPT_JOBS),
            )
            connection.execute("DELETE FROM refusals WHERE job NOT IN (SELECT number FROM jobs)")

    def new_upload(self, cipher: Cipher) -> JobUpload:
        """Return a file to write an upload into."""
        return JobUpload(self._folder, cipher)

    def open_upload(self, job: EnrolmentJob, cipher: Cipher) -> io.BufferedReader:
        """Open the upload of a job; OSError or InputError if it is not there, or not whole."""
        file = (self._folder / job.id).open("rb")
        return _reader(file, job.id, job.size, cipher)


# Uploads


def _place(job_id: str, what: str) -> bytes:
    return f"edgeface:1:jobs:{job_id}:{what}".encode()


class JobUpload(Closing):
    """A sealed file that has no name until it is kept, where the file system allows that; a context manager.

    Its methods raise OutputError if the disk is full, or cannot be written to.
    """

    def __init__(self, folder: Path, cipher: Cipher) -> None:
        self.id = uuid.uuid4().hex
        self.path, self.size = folder / self.id, 0
        self._folder, self._cipher = folder, cipher
        self._waiting, self._blocks, self._kept = bytearray(), 0, False
        with output_errors(self.path):
            try:
                descriptor, self._named = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600), False
            except (AttributeError, OSError):  # not Linux, or a file system that has no such files
                descriptor, self._named = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), True
            self._file = os.fdopen(descriptor, "w+b")

    def write(self, data: bytes) -> None:
        """Append to it."""
        self.size += len(data)
        self._waiting += data
        while len(self._waiting) >= _BLOCK:
            self._seal(_BLOCK)

    def _seal(self, size: int) -> None:
        block = self._cipher.seal(bytes(self._waiting[:size]), _place(self.id, str(self._blocks)))
        del self._waiting[:size]
        self._blocks += 1
        with output_errors(self.path):
            self._file.write(block)

    def read_all(self) -> io.BufferedReader:
        """End the writing, and return a file of what was written."""
        if self._waiting:
            self._seal(len(self._waiting))
        with output_errors(self.path):
            self._file.flush()
        return _reader(os.fdopen(os.dup(self._file.fileno()), "rb"), self.id, self.size, self._cipher)

    def keep(self) -> None:
        """Sync it, and give it its name."""
        with output_errors(self.path):
            os.fsync(self._file.fileno())
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if not self._named:  # `src_dir_fd` makes Python follow the link, as in `write_private`
                    os.link(f"/proc/self/fd/{self._file.fileno()}", self.path, src_dir_fd=folder)
                os.fsync(folder)
            finally:
                os.close(folder)
        self._kept = True

    def close(self) -> None:
        """Close it; what was not kept is gone."""
        with contextlib.suppress(OSError):  # the rest of a full disk
            self._file.close()
        if self._named and not self._kept:
            self.path.unlink(missing_ok=True)


def _reader(file: Any, job_id: str, size: int, cipher: Cipher) -> io.BufferedReader:
    return io.BufferedReader(_SealedBlocks(file, job_id, size, cipher), 1 << 16)


class _SealedBlocks(io.RawIOBase):
    """What was uploaded, of which one block at a time is open in memory."""

    def __init__(self, file: Any, job_id: str, size: int, cipher: Cipher) -> None:
        self._file, self._id, self._size, self._cipher = file, job_id, size, cipher
        self._stride = _BLOCK + len(cipher.seal(b"", b""))
        self._at, self._number, self._block = 0, -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError("a place before the beginning")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        number, begin = divmod(self._at, _BLOCK)
        if number != self._number:
            self._file.seek(number * self._stride)
            self._block = self._cipher.open(self._file.read(self._stride), _place(self._id, str(number)))
            self._number = number
        part = self._block[begin : begin + len(buffer)]
        if not part:
            raise InputError(expected="all of the upload", found="a shorter file")
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
