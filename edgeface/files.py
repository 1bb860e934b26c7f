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

__all__ = ["free_bytes", "output_errors", "sha256_of", "staging_folder", "stopwatch", "write_atomically"]


_ADVICE = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space within the quota, or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.ENOTDIR: "expected a folder, found that a part of this path is a file",
    errno.EEXIST: "expected a folder, found a file in the way",
}


@contextlib.contextmanager
def output_errors(path: Path, *, hint: str = "") -> Iterator[None]:
    """Turn a failure to write below `path` into one clear `OutputError` that says how much space is free.

    Parameters
    ----------
    path
        What is written, for the message.
    hint
        Added to the advice.
    """
    try:
        yield
    except BrokenPipeError:  # whoever followed the progress is gone; no disk is to blame
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "choose another folder") + hint
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason} ({free_bytes(path):,} bytes are free there); {advice}"
        ) from error


def free_bytes(path: Path) -> int:
    """Bytes free on the file system that holds `path` or its nearest existing parent."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


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
