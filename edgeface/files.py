"""Write files so that they are whole or absent, lock them between processes, and report disk errors clearly."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.errors import InputError, OutputError
from edgeface.untrusted import open_regular

if TYPE_CHECKING:
    from typing_extensions import Self

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space within the quota, or choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose a folder that can be written",
    errno.EPERM: "choose a folder that can be written",
    errno.ENOTDIR: "expected a folder, found that a part of this path is a file",
    errno.EEXIST: "expected a folder, found a file in the way",
}


@contextlib.contextmanager
def output_errors(path: Path, *, hint: str = "") -> Iterator[None]:
    """Turn an `OSError` inside the block into an `OutputError` that says how much space is free.

    `path` is the file or folder that is written, for the message; `hint` is appended to the remedy.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of stdout is gone; the disk is not to blame
        raise
    except OSError as error:
        if not hint and default_root() in (path, *path.parents):
            hint = "; or set EDGEFACE_CACHE to another one"
        remedy = _REMEDIES.get(error.errno or 0, "choose another folder") + hint
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason} ({free_bytes(path):,} bytes are free there); {remedy}",
            path=path,
            remedy=remedy,
        ) from error


MODEL_MARKER = ".edgeface.json"
"""File that is written last into the folder of a downloaded model, ``models/NAME`` of the store."""


def default_root() -> Path:
    """Return the store's folder: EDGEFACE_CACHE, else the user's cache folder (``~/.cache/edgeface`` on Linux).

    For a user without a home it is a folder in which nothing is found, and which nobody can make.
    """
    if chosen := os.environ.get("EDGEFACE_CACHE"):
        return expand_home(chosen)
    import platformdirs

    with contextlib.suppress(RuntimeError):  # what some releases of platformdirs raise where there is no home
        folder = Path(platformdirs.user_cache_dir("edgeface", appauthor=False))
        if folder.is_absolute():  # the others return ~ as it is
            return folder
    return _NO_HOME


_NO_HOME = Path(os.devnull, "this user has no home")


def expand_home(path: str | Path) -> Path:
    """Return a path with a leading ``~`` replaced; raise InputError if this user, or that of ``~name``, has no home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(path=path, expected="a home of this user", found="none", remedy="name the folder") from error


def free_bytes(path: Path) -> int:
    """Return the bytes free on the file system that holds `path` or its nearest existing parent."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


@contextlib.contextmanager
def write_atomically(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block succeeds, and is removed if it fails.

    `private`: only the owner may read the file, as biometric data requires; else the umask decides.
    Raises OutputError if the folder cannot be made or written to, or is full, or `path` is a device or a pipe, which
    the file would replace.
    """
    with output_errors(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OutputError(
                path=path, expected="a file to write", found="a device or a pipe", remedy="choose another name"
            )
    with staging_folder(path.parent) as staging:
        yield staging / path.name
        if private:  # nobody else has seen it: the folder is the owner's alone
            (staging / path.name).chmod(0o600)
        with output_errors(path):
            (staging / path.name).replace(path)


def write_private(path: Path, content: bytes) -> None:
    """Write a durable file that only its owner may read, whole or not at all.

    Until it is whole it has no name, where the file system allows that: a process that is killed leaves nothing.

    Raises OutputError if the folder cannot be made or written to, or is full.
    """
    with write_atomically(path) as partial, output_errors(path):
        folder = os.open(partial.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            named = False
            try:
                descriptor = os.open(partial.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
            except (AttributeError, OSError):  # not Linux, or a file system that has no such files
                descriptor, named = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), True
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
                if not named:  # `src_dir_fd` makes Python follow the link (linkat(2)), which open(2) shows
                    os.link(f"/proc/self/fd/{descriptor}", partial, src_dir_fd=folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """Yield a hidden folder inside `parent`, on the same file system, that is removed afterwards.

    `parent` is made if absent, and removed again if nothing was put into it. What killed processes left in it is
    removed first: see `sweep_staging`.

    Raises OutputError if it cannot be made, or if writing inside the block fails.
    """
    with output_errors(parent):
        absent = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            sweep_staging(parent)
            folder, lock = _locked_folder(parent)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
        finally:
            for made in absent:
                with contextlib.suppress(OSError):  # it holds the result, or was never made
                    made.rmdir()


def require_writable(folder: Path) -> None:
    """Raise OutputError if a folder cannot be made or written to: before minutes of work, not after them."""
    with staging_folder(folder):
        pass


_STAGING = ".edgeface-"


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a staging folder, and hold a lock on it that ends with this process."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=parent))
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process took it for a killed one's before it was locked
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is about to remove it
            os.close(lock)
            continue
        except OSError:  # a file system without locks: nothing is swept there
            return folder, lock
        with contextlib.suppress(FileNotFoundError):
            folder.stat()  # locked, and still there
            return folder, lock
        os.close(lock)


def staging_folders(parent: Path) -> list[Path]:
    """List what processes write into a folder at the moment, and what killed ones left there."""
    with contextlib.suppress(OSError):
        return sorted(path for path in parent.glob(f"{_STAGING}*") if path.is_dir() and not path.is_symlink())
    return []


def sweep_staging(parent: Path) -> None:
    """Remove the staging folders of processes that were killed: no one holds their locks."""
    for folder in staging_folders(parent):
        with contextlib.suppress(OSError):  # another user's, or one that has just ended
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


@contextlib.contextmanager
def locked(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold an exclusive lock between processes and threads; its file is created, with its folder, and stays.

    Raises OutputError if another process or thread holds the lock for longer than `timeout` seconds, or the file cannot
    be created.
    """
    import filelock  # here, because most users of this module lock nothing

    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=timeout)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise OutputError(
                f"{path}: another edgeface process has held this lock for {timeout:g} s; "
                "wait until it ends, or stop it",
                path=path,
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the wall seconds since the block began."""
    started = time.perf_counter()
    yield lambda: time.perf_counter() - started


class Closing:
    """Close an object at the end of a `with` block."""

    __slots__ = ()

    def close(self) -> None:
        """Close it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def digests_of(path: Path, algorithms: Iterable[str]) -> dict[str, str]:
    """Return digests of a regular file's bytes, as lower-case hexadecimal, by `hashlib` algorithm.

    Raises as `open_regular`.
    """
    hashers = {name: hashlib.new(name) for name in algorithms}
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            for hasher in hashers.values():
                hasher.update(block)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Identify the content of a file: bytes, modification time in nanoseconds since 1970, and SHA-256 in hexadecimal.

    What was computed from a file is used again only while all three are the same.
    """

    size: int
    modified: int
    sha256: str


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    return digests_of(path, ["sha256"])["sha256"]
