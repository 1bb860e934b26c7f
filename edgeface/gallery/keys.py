"""Fetch the key of a gallery from a file, the environment or a program, and refuse keys that are kept unsafely."""

from __future__ import annotations

import logging
import os
import re
import select
import shlex
import stat
import subprocess
import time
from pathlib import Path

from edgeface.cipher import KEY_BYTES
from edgeface.errors import GalleryKeyError
from edgeface.files import expand_home
from edgeface.gallery.address import is_on_server
from edgeface.text import name_of_key
from edgeface.untrusted import KEY_FILE_BYTES

KEY_VARIABLE = "EDGEFACE_GALLERY_KEY"
"""Environment variable that holds the key when no other place is named."""

_COMMAND_SECONDS = 60.0
_HOW = "32 random bytes, or 64 hexadecimal digits as 'openssl rand -hex 32' prints them"
_log = logging.getLogger(__name__)


def find_key(source: str | None, *, beside: str | Path) -> bytes | None:
    """Fetch the key that is named, else the one in `KEY_VARIABLE`, else none; see `read_key`."""
    if source is None and KEY_VARIABLE in os.environ:
        source = f"env:{KEY_VARIABLE}"
    return None if source is None else read_key(source, beside=beside)


def read_key(source: str, *, beside: str | Path | None) -> bytes:
    """Fetch a key.

    Parameters
    ----------
    source
        ``file:PATH``; ``env:NAME``, an environment variable; or ``command:WORDS``, a program that prints the key,
        such as the client of a secret store. It is started without a shell.
    beside
        The gallery's address. A key file in the folder of its file is refused, because a thief of the folder would
        have both. So is one in its cache, because `forget` empties that folder. None: the key is for no gallery.

    Returns
    -------
    bytes
        32.

    Raises
    ------
    GalleryKeyError
        If there is no key, it is malformed, or it lies beside the gallery.
    """
    return _parse(*_fetch(source, beside))


def read_password(source: str) -> str:
    """Fetch a password of a service from a place as `read_key` does, without the line end after it."""
    content, named = _fetch(source, None)
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise GalleryKeyError(f"password from {named}: expected text in UTF-8, found other bytes") from None


def _fetch(source: str, beside: str | Path | None) -> tuple[bytes, str]:
    """Return what a place holds, and how messages may name the place."""
    kind, _, where = source.partition(":")
    if kind == "file" and where:
        return _read_file(expand_home(where), beside), f"file:{name_of_key(where)}"
    if kind == "env" and where:
        if where not in os.environ:
            raise GalleryKeyError(f"key: the environment variable {name_of_key(where)} is not set; set it to {_HOW}")
        return os.environ[where].encode("utf-8", "surrogateescape"), f"env:{name_of_key(where)}"
    if kind == "command" and where:
        return _run(where), f"command:{name_of_key(shlex.split(where)[0])}"
    found = f"{kind}: and nothing after it" if kind in ("file", "env", "command") else "something else"
    raise GalleryKeyError(  # which may be the key itself
        f"key: expected file:PATH, env:NAME or command:WORDS, found {found} ({len(source)} characters)"
    )


def _read_file(path: Path, beside: str | Path | None) -> bytes:
    if beside is not None and not is_on_server(beside) and _lies_beside(path.resolve().parent, Path(beside).resolve()):
        raise GalleryKeyError(
            f"{name_of_key(str(path))}: the key is in the same folder as the gallery {beside}, where both can be "
            "copied together; move it to another medium or a secret store"
        )
    try:
        mode = path.stat().st_mode
        with path.open("rb") as stream:  # a pipe is welcome, as a shell makes one of a secret store's answer
            content = stream.read(KEY_FILE_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        named, why = name_of_key(str(path)), getattr(error, "strerror", None) or "a name that no file has"
        file = named if named == str(path) else "KEYFILE"
        raise GalleryKeyError(
            f"{named}: expected a key, found: {why}; make one: openssl rand -hex 32 > {file} && chmod 600 {file}"
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning("%s: this key can be read by other users of the machine; chmod 600 it", path)
    return content


def _lies_beside(folder: Path, gallery: Path) -> bool:
    return folder == gallery.parent or folder.is_relative_to(gallery.with_name(gallery.name + ".index"))


def _run(command: str) -> bytes:
    try:
        words = shlex.split(command)
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            try:
                content = _read_pipe(process, time.monotonic() + _COMMAND_SECONDS)
            except BaseException:
                process.kill()
                raise
    except subprocess.TimeoutExpired:  # it holds all words, and what was printed
        raise GalleryKeyError(
            f"key command {name_of_key(words[0])}: printed no key within {_COMMAND_SECONDS:.0f} s"
        ) from None
    except (OSError, ValueError, IndexError) as error:  # an OSError tells the program's name
        why = f"{error.strerror}: {name_of_key(words[0])}" if isinstance(error, OSError) else str(error)
        raise GalleryKeyError(f"key command: expected a program that prints a key, found: {why}") from None
    if len(content) > KEY_FILE_BYTES:
        raise GalleryKeyError(
            f"key command {name_of_key(words[0])}: expected {_HOW}, found more than {KEY_FILE_BYTES:,} bytes"
        )
    if process.returncode:
        raise GalleryKeyError(f"key command {name_of_key(words[0])}: expected exit code 0, found {process.returncode}")
    return content


def _read_pipe(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Return what a program prints, or its beginning if that is more than a key; then it is stopped."""
    assert process.stdout is not None
    content = b""
    while len(content) <= KEY_FILE_BYTES:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([process.stdout], [], [], left)[0]:
            raise subprocess.TimeoutExpired(process.args, _COMMAND_SECONDS)
        if not (part := os.read(process.stdout.fileno(), KEY_FILE_BYTES + 1)):
            process.wait(max(0.0, deadline - time.monotonic()))
            return content
        content += part
    process.kill()
    return content


def _parse(content: bytes, source: str) -> bytes:
    """Read the bytes themselves, or their hexadecimal digits; a message never shows them."""
    if len(content) == KEY_BYTES:
        if content.isascii() and content.decode().isprintable():  # of random bytes one in 10^14 times
            raise GalleryKeyError(
                f"key from {source}: expected {_HOW}; found 32 printable characters, probably a password or half a "
                "hexadecimal key; if they are the key, give it as 64 hexadecimal digits"
            )
        return content
    if re.fullmatch(rb"\s*[0-9A-Fa-f]{64}\s*", content):
        return bytes.fromhex(content.decode().strip())
    raise GalleryKeyError(f"key from {source}: expected {_HOW}; found {len(content)} bytes of something else")
