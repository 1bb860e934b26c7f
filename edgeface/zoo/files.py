"""Paths in, bytes safely on disk out: atomic writes, locks between processes, digests, clear disk errors."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeface.errors import OutputError
from edgeface.files import output_errors, write_atomically

CHUNK = 1 << 20
"""Bytes read at a time: large enough to keep hashing busy, small enough to stop and report quickly."""

writing = functools.partial(output_errors, hint=", or set EDGEFACE_CACHE")
"""Turns an `OSError` while writing to the cache into an `OutputError`."""


def make_folder(path: Path) -> Path:
    """Create a folder with its parents."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Give an empty folder inside `parent` that is gone afterwards, unless the block renamed it."""
    make_folder(parent)
    with writing(parent):
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def swap_folder(new: Path, target: Path) -> None:
    """Put folder `new` where `target` is; an older `target` disappears.

    A folder that is not empty cannot be replaced in one step, so the old one steps aside first. The caller
    holds the lock that keeps a second process from looking in between.
    """
    aside = target.with_name(f".{target.name}.old-{os.getpid()}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.replace(aside)
        new.replace(target)
    shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold an exclusive lock between processes and threads.

    Parameters
    ----------
    path
        The lock's file; it is created and stays.
    timeout
        Seconds to wait for another holder.

    Raises
    ------
    OutputError
        If the other holder keeps it longer than that.
    """
    make_folder(path.parent)
    with writing(path):
        handle = path.open("w")
    with handle:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OutputError(
                        f"{path}: another edgeface process has held this lock for {timeout:g} s; "
                        "wait for it to finish, or end it"
                    ) from None
                time.sleep(0.05)
        yield


class JsonRecords:
    """A small JSON object on disk that several processes may update."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = path.with_name(f".{path.name}.lock")

    def read(self) -> dict[str, Any]:
        """Return the whole object; an absent file is an empty one."""
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (ValueError, OSError) as error:
            raise OutputError(
                f"{self._path}: expected a readable JSON object: {error}; move it away"
            ) from error
        if not isinstance(stored, dict):
            raise OutputError(
                f"{self._path}: expected a JSON object, found {type(stored).__name__}; move it away"
            )
        return stored

    def update(self, changes: Mapping[str, Any]) -> None:
        """Merge keys into the object, None removing one; what other processes wrote meanwhile stays."""
        with locked(self._lock, timeout=30):
            merged = {key: value for key, value in {**self.read(), **changes}.items() if value is not None}
            with write_atomically(self._path) as temporary:
                temporary.write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Digests:
    """Several digests of one stream of bytes."""

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._hashers = {name: hashlib.new(name) for name in algorithms}

    def update(self, chunk: bytes) -> None:
        """Take the next bytes in."""
        for hasher in self._hashers.values():
            hasher.update(chunk)

    def update_from(self, path: Path) -> Digests:
        """Take a whole file in."""
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                self.update(chunk)
        return self

    def hexadecimal(self) -> dict[str, str]:
        """Digests so far, in lower case, by algorithm."""
        return {name: hasher.hexdigest() for name, hasher in self._hashers.items()}


def hash_file(path: Path, algorithms: Iterable[str] = ("sha256",)) -> dict[str, str]:
    """Digests of a file, as lower-case hexadecimal by algorithm."""
    return Digests(algorithms).update_from(path).hexadecimal()


def place(source: Path, target: Path) -> None:
    """Make `target` have the bytes of `source`: a hard link where that works, a copy elsewhere."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(source, target)
