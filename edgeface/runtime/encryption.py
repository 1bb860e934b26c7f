"""An IR and a key in, one sealed file out, and back into memory: models that are not readable at rest.

A sealed file is

    ``EDGEFACE`` · version, 1 byte · length of the header, 4 bytes little-endian · header, JSON · nonce, 12 bytes ·
    AES-GCM ciphertext and its 16-byte tag

Everything before the nonce is authenticated as associated data, so a header cannot be exchanged: an IR's header
carries its `contract_id` and the digest of its weights. The nonce is random (NIST SP 800-38D, 8.2.2). The content
of an IR is the length of the .xml as 8 bytes little-endian, the .xml, the .bin.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgeface.errors import InputError, ModelFormatError
from edgeface.files import write_atomically
from edgeface.model.contract import ModelContract
from edgeface.model.ir_file import read_ir

__all__ = ["SEALED_VERSION", "encrypt_ir", "header_of", "is_sealed", "open_ir", "seal", "unseal"]

SEALED_VERSION = 1
"""Version of the sealed form. A reader refuses a newer one."""

_MAGIC = b"EDGEFACE"
_START = struct.Struct("<8sBI")
_NONCE = 12
_LENGTH = struct.Struct("<Q")
_LARGEST = 2**31 - 1  # of one AES-GCM message in `cryptography`


def encrypt_ir(ir: Path, key: bytes, out: Path) -> Path:
    """Seal an IR that has a contract.

    Parameters
    ----------
    ir
        The .xml; its .bin lies beside it.
    key
        16, 24 or 32 random bytes. Keep them elsewhere than the file.
    out
        Where the sealed file goes; whole or not at all.

    Raises
    ------
    ModelFormatError
        If there is no IR, or it is damaged.
    ContractError
        If the IR has no contract.
    InputError
        If the key has another length, or a file cannot be read.
    """
    contract = ModelContract.read_from(read_ir(ir), source=str(ir))
    try:
        xml, weights = ir.read_bytes(), ir.with_suffix(".bin").read_bytes()
    except OSError as error:
        raise InputError(
            f"{error.filename}: expected a readable file of an IR, found: {error.strerror}"
        ) from error
    header = {"kind": "ir", "contract_id": contract.contract_id, "weights_sha256": contract.weights_sha256}
    sealed = seal(_LENGTH.pack(len(xml)) + xml + weights, key=key, header=header)
    with write_atomically(out) as staging:
        staging.write_bytes(sealed)
    return out


def open_ir(path: Path, key: bytes) -> tuple[bytes, bytes]:
    """Open what `encrypt_ir` sealed, in memory.

    Returns
    -------
    (bytes, bytes)
        The .xml and the .bin.

    Raises
    ------
    ModelFormatError
        If the file is damaged, of a newer version, or the key is another.
    """
    content = unseal(path.read_bytes(), key=key, kind="ir", source=str(path))
    end = _LENGTH.size + _LENGTH.unpack_from(content)[0]
    return content[_LENGTH.size : end], content[end:]


def is_sealed(path: Path) -> bool:
    """Whether a file begins as a sealed one does."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def seal(content: bytes, *, key: bytes, header: Mapping[str, str]) -> bytes:
    """Encrypt and authenticate; the header is authenticated and stays readable."""
    if len(content) > _LARGEST:
        raise InputError(f"expected at most {_LARGEST} bytes to encrypt, found {len(content)}")
    text = json.dumps(header, sort_keys=True).encode()
    start = _START.pack(_MAGIC, SEALED_VERSION, len(text)) + text
    nonce = os.urandom(_NONCE)
    return start + nonce + _cipher(key).encrypt(nonce, content, start)


def header_of(sealed: bytes) -> dict[str, Any]:
    """The header of what `seal` made, as it is readable: only `unseal` says that it is authentic."""
    try:
        magic, _, length = _START.unpack_from(sealed)
        header = json.loads(sealed[_START.size : _START.size + length])
    except (struct.error, ValueError) as error:
        raise ModelFormatError("expected a file sealed by edgeface, found something else") from error
    if magic != _MAGIC or not isinstance(header, dict):
        raise ModelFormatError("expected a file sealed by edgeface, found something else")
    return header


def unseal(sealed: bytes, *, key: bytes, kind: str, source: str) -> bytes:
    """Verify and decrypt what `seal` made, or raise `ModelFormatError`."""
    if len(sealed) < _START.size or not sealed.startswith(_MAGIC):
        raise ModelFormatError(f"{source}: expected a file sealed by edgeface, found something else")
    _, version, length = _START.unpack_from(sealed)
    if version > SEALED_VERSION:
        raise ModelFormatError(
            f"{source}: expected a sealed file of version {SEALED_VERSION}, found {version}; update edgeface"
        )
    body = _START.size + length
    start, nonce = sealed[:body], sealed[body : body + _NONCE]
    try:
        content = _cipher(key).decrypt(nonce, memoryview(sealed)[body + _NONCE :], start)
    except (InvalidTag, ValueError) as error:
        raise ModelFormatError(
            f"{source}: cannot be decrypted: the key is another one, or the file is damaged"
        ) from error
    found = json.loads(start[_START.size :])["kind"]
    if found != kind:
        raise ModelFormatError(f"{source}: expected a sealed {kind}, found a sealed {found}")
    return content


def _cipher(key: bytes) -> AESGCM:
    if len(key) not in (16, 24, 32):
        raise InputError(f"key: expected 16, 24 or 32 bytes for AES-GCM, found {len(key)}")
    return AESGCM(key)
