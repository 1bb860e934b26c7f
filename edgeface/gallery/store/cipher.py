"""A row's content and its place in, what is written there out, and back: encrypted, or only guarded against damage.

Encrypted: nonce, 12 random bytes · AES-256-GCM ciphertext · tag, 16 bytes. Not encrypted: the content · BLAKE2b
digest, 16 bytes. In both the place, which names gallery, contract, table and row, is authenticated too: a row that
was moved, or brought from elsewhere, does not open. The digest needs no key, so without encryption whoever can write
the file can forge it.

Keys are derived from the user's by HKDF-SHA256 (RFC 5869) with the gallery's id as salt: one key may lock many
galleries without using up its nonces (NIST SP 800-38D, 8.3: 2^32 messages a key).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from abc import ABC, abstractmethod

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgeface.errors import GalleryDamagedError, GalleryKeyError
from edgeface.gallery.keys import KEY_BYTES

__all__ = ["SealedVault", "Vault", "make_vault"]

_NONCE = 12
_DIGEST = 16


class Vault(ABC):
    """Turns contents into what is stored.

    Attributes
    ----------
    key_id
        Tells keys apart and tells nothing about them; empty without encryption.
    """

    key_id: str = ""

    @abstractmethod
    def seal(self, content: bytes, place: bytes) -> bytes:
        """What is stored at this place."""

    @abstractmethod
    def open(self, stored: bytes, place: bytes) -> bytes:
        """The content; `GalleryDamagedError` if it is not what was sealed, or was sealed for another place."""

    @abstractmethod
    def mark(self, content: bytes) -> bytes:
        """32 bytes that whoever has no key cannot compute, if there is a key; the same for the same content."""


class PlainVault(Vault):
    """Everything is readable; damage is noticed."""

    def seal(self, content: bytes, place: bytes) -> bytes:
        """The content and its digest."""
        return content + _digest(content, place)

    def open(self, stored: bytes, place: bytes) -> bytes:
        """The content, if the digest is its own."""
        _require_bytes(stored, place)
        content, digest = stored[:-_DIGEST], stored[-_DIGEST:]
        if digest != _digest(content, place):
            raise _damaged(place)
        return content

    def mark(self, content: bytes) -> bytes:
        """A digest."""
        return hashlib.blake2b(content, digest_size=32).digest()


class SealedVault(Vault):
    """Nothing is readable without the key.

    Parameters
    ----------
    key
        32 bytes.
    gallery_id
        Makes the derived keys this gallery's own.
    """

    def __init__(self, key: bytes, gallery_id: str) -> None:
        if len(key) != KEY_BYTES:
            raise GalleryKeyError(f"key: expected {KEY_BYTES} bytes, found {len(key)}")

        def derive(purpose: bytes) -> bytes:
            return HKDF(SHA256(), KEY_BYTES, gallery_id.encode(), b"edgeface gallery " + purpose).derive(key)

        self._cipher = AESGCM(derive(b"rows"))
        self._mark_key = derive(b"marks")
        self.key_id = derive(b"key id")[:8].hex()

    def seal(self, content: bytes, place: bytes) -> bytes:
        """Nonce, ciphertext, tag."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, content, place)

    def open(self, stored: bytes, place: bytes) -> bytes:
        """Verify and decrypt."""
        _require_bytes(stored, place)
        view = memoryview(stored)
        try:
            return self._cipher.decrypt(stored[:_NONCE], view[_NONCE:], place)
        except (InvalidTag, ValueError) as error:
            raise _damaged(place) from error

    def mark(self, content: bytes) -> bytes:
        """HMAC-SHA256."""
        return hmac.digest(self._mark_key, content, "sha256")


def make_vault(key: bytes | None, gallery_id: str) -> Vault:
    """The vault of a gallery that has this key, or none."""
    return PlainVault() if key is None else SealedVault(key, gallery_id)


def _digest(content: bytes, place: bytes) -> bytes:
    digest = hashlib.blake2b(len(place).to_bytes(8, "little"), digest_size=_DIGEST)
    digest.update(place)
    digest.update(content)
    return digest.digest()


def _require_bytes(stored: object, place: bytes) -> None:
    """A database's column may hold anything once its file is damaged."""
    if not isinstance(stored, bytes):
        raise _damaged(place)


def _damaged(place: bytes) -> GalleryDamagedError:
    return GalleryDamagedError(
        f"gallery: row {_readable(place)} is not what was written there: a byte was changed, or the row was moved; "
        "restore the file from a copy or an export ('edgeface gallery check' lists what is damaged)"
    )


def _readable(place: bytes) -> str:
    _, _, table, *identity = place.decode().split(":")
    return f"{', '.join(identity)} of {table}"
