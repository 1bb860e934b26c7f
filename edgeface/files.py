"""A path in, a whole file or nothing out: writing that survives interruption and full disks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeface.errors import OutputError

__all__ = ["output_errors", "sha256_of", "staging_folder", "stopwatch", "write_atomically"]


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write below `path` into one clear `OutputError`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            reason = "no space left on the device; free some or choose another folder"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "the folder is read-only; choose another one"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            reason = "expected a folder on the way there, found a file"
        else:
            reason = error.strerror or str(error)
        raise OutputError(f"{path}: cannot write: {reason}") from error


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` when the block ends well and vanishes when it does not.

    Raises
    ------
    OutputError
        If the folder cannot be made or written to, or is full.
    """
    with staging_folder(path.parent) as staging:
        yield staging / path.name
        with output_errors(path):
            (staging / path.name).replace(path)


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Yield a hidden folder inside `parent`, on the same file system, that is gone afterwards.

    `parent` is made if absent, and vanishes again if nothing was put into it.

    Raises
    ------
    OutputError
        If it cannot be made, or if writing inside the block fails.
    """
    with output_errors(parent):
        absent = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".edgeface-", dir=parent))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            for made in absent:
                with contextlib.suppress(OSError):  # it holds the result, or was never made
                    made.rmdir()


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yield a function that tells the wall seconds since the block began."""
    started = time.perf_counter()
    yield lambda: time.perf_counter() - started


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
