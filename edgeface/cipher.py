"""Encrypt and authenticate with AES-GCM: rows of a gallery, exports, models at rest.

A **sealed file** (an IR, an export, a compiled model) is

    ``EDGEFACE`` · version, 1 byte · length of the header, 4 bytes little-endian · header, JSON · nonce, 12 bytes ·
    AES-GCM ciphertext and its 16-byte tag

Everything before the nonce is authenticated as associated data, so a header cannot be exchanged.

A **row** of an encrypted gallery is nonce, 12 bytes · AES-256-GCM ciphertext · tag, 16 bytes. A row of an unencrypted
one is the content · BLAKE2b digest, 16 bytes. In both the place, which names gallery, contract, table and row, is
authenticated too: a row that was moved, or brought from elsewhere, does not open. The digest needs no key, so in an
unencrypted gallery anyone who can write the file can forge it.

The keys of a gallery are derived from the user's by HKDF-SHA256 (RFC 5869) with the gallery's id as salt: one key may
serve many galleries without using up its nonces (NIST SP 800-38D, 8.3: 2^32 messages a key). Nonces are random (8.2.2).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeface.errors import GalleryDamagedError, GalleryKeyError, InputError, ModelFormatError
from edgeface.untrusted import MODEL_BYTES, open_regular, parse_json, reading

if TYPE_CHECKING:  # what is not encrypted need not wait for the library
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
"""Length of a gallery's key: AES-256."""

SEALED_VERSION = 1
"""Version of a sealed file. A reader refuses a newer one."""

_NONCE, _TAG = 12, 16
OVERHEAD = _NONCE + _TAG
"""Bytes that a `KeyedCipher` adds to a content."""

_MAGIC = b"EDGEFACE"
_START = struct.Struct("<8sBI")


def _encrypt(cipher: AESGCM, content: bytes, associated: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + cipher.encrypt(nonce, content, associated)


def _decrypt(cipher: AESGCM, message: bytes, associated: bytes) -> bytes:
    """Raise ValueError if the message is not what `_encrypt` made with this key and data."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(message[:_NONCE], memoryview(message)[_NONCE:], associated)
    except InvalidTag as error:
        raise ValueError("another key, other data, or another message") from error


# Sealed files


def is_sealed(path: Path) -> bool:
    """Return whether a file begins as a sealed one does."""
    with reading(path, "a file that can be read"), open_regular(path) as file:
        return file.read(len(_MAGIC)) == _MAGIC


def seal(content: bytes, *, key: bytes, header: Mapping[str, str]) -> bytes:
    """Encrypt and authenticate at most 2 GiB; the header is authenticated and stays readable.

    The key is 16, 24 or 32 random bytes. The header's ``kind`` is checked by `unseal`. `InputError` is raised if the
    content is too long, or the key has another length.
    """
    if len(content) > MODEL_BYTES:
        raise InputError(f"encryption: expected at most {MODEL_BYTES} bytes, found {len(content)}")
    text = json.dumps(header, sort_keys=True).encode()
    start = _START.pack(_MAGIC, SEALED_VERSION, len(text)) + text
    return start + _encrypt(_aes(key), content, start)


def header_of(sealed: bytes) -> dict[str, Any]:
    """Read the header of a sealed file. Only `unseal` proves that it is authentic."""
    try:
        magic, _, length = _START.unpack_from(sealed)
        header = parse_json(sealed[_START.size : _START.size + length])
    except (struct.error, ValueError, InputError) as error:
        raise ModelFormatError("expected a file sealed by edgeface, found something else") from error
    if magic != _MAGIC or not isinstance(header, dict):
        raise ModelFormatError("expected a file sealed by edgeface, found something else")
    return header


def unseal(sealed: bytes, *, key: bytes, kind: str, source: str) -> bytes:
    """Verify and decrypt what `seal` made.

    Raises
    ------
    ModelFormatError
        If it is damaged, of a newer version or another kind, or was sealed with another key.
    InputError
        If the key has another length.
    """
    if len(sealed) < _START.size or not sealed.startswith(_MAGIC):
        raise ModelFormatError(f"{source}: expected a file sealed by edgeface, found something else")
    _, version, length = _START.unpack_from(sealed)
    if version > SEALED_VERSION:
        raise ModelFormatError(
            f"{source}: expected a sealed file of version {SEALED_VERSION}, found {version}; update edgeface"
        )
    start = sealed[: _START.size + length]
    try:
        content = _decrypt(_aes(key), sealed[len(start) :], start)
    except ValueError as error:
        raise ModelFormatError(
            f"{source}: cannot be decrypted: the key is another one, or the file is damaged"
        ) from error
    if (found := header_of(sealed).get("kind")) != kind:
        raise ModelFormatError(f"{source}: expected a sealed {kind}, found a sealed {found}")
    return content


def _aes(key: bytes) -> AESGCM:
    if len(key) not in (16, 24, 32):
        raise InputError(f"key: expected 16, 24 or 32 bytes for AES-GCM, found {len(key)}")
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


# Rows of a gallery


class PlainCipher:
    """Leaves contents readable, and notices damage."""

    key_id = ""

    def seal(self, content: bytes, place: bytes) -> bytes:
        """Append a digest of content and place."""
        return content + _digest(content, place)

    def open(self, stored: bytes, place: bytes) -> bytes:
        """Return the content; `GalleryDamagedError` if it is not what was sealed for this place."""
        _require_bytes(stored, place)
        content = stored[:-_TAG]
        if stored[-_TAG:] != _digest(content, place):
            raise _damaged(place)
        return content

    def mark(self, content: bytes) -> bytes:
        """Return the BLAKE2b digest of the content, 32 bytes."""
        return hashlib.blake2b(content, digest_size=32).digest()


class KeyedCipher:
    """Makes contents unreadable without the key of 32 bytes, from which those of one gallery are derived.

    Its `key_id` tells keys apart and reveals nothing about them. `GalleryKeyError` is raised for another length.
    """

    def __init__(self, key: bytes, gallery_id: str) -> None:
        if len(key) != KEY_BYTES:
            raise GalleryKeyError(f"key: expected {KEY_BYTES} bytes, found {len(key)}")

        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        def derive(purpose: bytes) -> bytes:
            return HKDF(SHA256(), KEY_BYTES, gallery_id.encode(), b"edgeface gallery " + purpose).derive(key)

        self._cipher = _aes(derive(b"rows"))
        self._mark_key = derive(b"marks")
        self.key_id = derive(b"key id")[:8].hex()

    def seal(self, content: bytes, place: bytes) -> bytes:
        """Encrypt and authenticate."""
        return _encrypt(self._cipher, content, place)

    def open(self, stored: bytes, place: bytes) -> bytes:
        """Verify and decrypt; `GalleryDamagedError` if it is not what was sealed for this place."""
        _require_bytes(stored, place)
        try:
            return _decrypt(self._cipher, stored, place)
        except ValueError as error:
            raise _damaged(place) from error

    def mark(self, content: bytes) -> bytes:
        """Return the HMAC-SHA256 of the content, 32 bytes: without the key it cannot be computed."""
        return hmac.digest(self._mark_key, content, "sha256")


Cipher: TypeAlias = PlainCipher | KeyedCipher


def make_cipher(key: bytes | None, gallery_id: str) -> Cipher:
    """Make the cipher of a gallery that has this key, or none."""
    return PlainCipher() if key is None else KeyedCipher(key, gallery_id)


def _digest(content: bytes, place: bytes) -> bytes:
    digest = hashlib.blake2b(len(place).to_bytes(8, "little"), digest_size=_TAG)
    digest.update(place)
    digest.update(content)
    return digest.digest()


def _require_bytes(stored: object, place: bytes) -> None:
    """Refuse another type: a column of a damaged database may hold anything."""
    if not isinstance(stored, bytes):
        raise _damaged(place)


def _damaged(place: bytes) -> GalleryDamagedError:
    _, _, table, *identity = place.decode().split(":")
    return GalleryDamagedError(
        f"gallery: row {', '.join(identity)} of {table} is not what was written there: a byte was changed, or the row "
        "was moved; restore the file from a copy or an export ('edgeface gallery check' lists what is damaged)"
    )
