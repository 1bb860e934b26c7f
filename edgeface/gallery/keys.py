"""Where a key is kept in, its 32 bytes out; and a look at whether it lies beside what it locks."""

from __future__ import annotations

import logging
import os
import re
import shlex
import stat
import subprocess
from pathlib import Path

from edgeface.errors import GalleryKeyError

__all__ = ["KEY_BYTES", "KEY_VARIABLE", "read_key"]

KEY_BYTES = 32
"""AES-256."""

KEY_VARIABLE = "EDGEFACE_GALLERY_KEY"
"""Environment variable that commands look into when no key is named."""

_COMMAND_SECONDS = 60.0
_HOW = "32 random bytes, or 64 hexadecimal digits as 'openssl rand -hex 32' prints them"
_log = logging.getLogger(__name__)


def read_key(source: str, *, beside: Path) -> bytes:
    """Fetch a key.

    Parameters
    ----------
    source
        ``file:PATH``; ``env:NAME``, an environment variable; or ``command:WORDS``, a program that prints the key,
        such as the client of a secret store. It is started without a shell.
    beside
        The gallery. A key file in its folder is refused: whoever takes the disk would have both. So is one among
        what is derived from it, because `forget` empties that folder.

    Returns
    -------
    bytes
        32.

    Raises
    ------
    GalleryKeyError
        If there is no key there, it is no key, or it lies beside the gallery.
    """
    kind, _, where = source.partition(":")
    if kind == "file" and where:
        return _parse(_read_file(Path(where), beside), source)
    if kind == "env" and where:
        if where not in os.environ:
            raise GalleryKeyError(
                f"key: expected it in the environment variable {where}, which is not set; put there {_HOW}"
            )
        return _parse(os.environ[where].encode("utf-8", "surrogateescape"), source)
    if kind == "command" and where:
        return _parse(_run(where), f"command:{shlex.split(where)[0]}")
    found = f"{kind}: and nothing after it" if kind in ("file", "env", "command") else "something else"
    raise GalleryKeyError(  # which may be the key itself
        f"key: expected file:PATH, env:NAME or command:WORDS, found {found} ({len(source)} characters)"
    )


def _read_file(path: Path, beside: Path) -> bytes:
    folder, gallery = path.resolve().parent, beside.resolve()
    if folder == gallery.parent or folder.is_relative_to(gallery.with_name(gallery.name + ".index")):
        raise GalleryKeyError(
            f"{path}: expected the key in another place than the gallery {beside}, found it in the same folder, where "
            "whoever takes one takes both; move it to another medium or a secret store"
        )
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise GalleryKeyError(
            f"{path}: expected a key, found: {error.strerror}; make one: openssl rand -hex 32 > {path} && chmod 600 "
            f"{path}"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        _log.warning("%s: this key can be read by other users of the machine; chmod 600 it", path)
    return content


def _run(command: str) -> bytes:
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:  # it holds all words, and what was printed
        raise GalleryKeyError(
            f"key command {words[0]}: expected a key within {_COMMAND_SECONDS:.0f} s, found that it still runs"
        ) from None
    except (OSError, ValueError, IndexError) as error:
        raise GalleryKeyError(f"key command: expected a program that prints a key, found: {error}") from error
    if done.returncode:
        raise GalleryKeyError(f"key command {words[0]}: expected exit code 0, found {done.returncode}")
    return done.stdout


def _parse(content: bytes, source: str) -> bytes:
    """The bytes themselves, or their hexadecimal digits; a message never shows them."""
    if len(content) == KEY_BYTES:
        if content.isascii() and content.decode().isprintable():  # of random bytes one in 10^14 times
            raise GalleryKeyError(
                f"key from {source}: expected {_HOW}; found 32 characters of text, which are a password or half of a "
                "key's digits; what is a key all the same can be given by its hexadecimal digits"
            )
        return content
    if re.fullmatch(rb"\s*[0-9A-Fa-f]{64}\s*", content):
        return bytes.fromhex(content.decode().strip())
    raise GalleryKeyError(f"key from {source}: expected {_HOW}; found {len(content)} bytes of something else")
