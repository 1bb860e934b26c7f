"""Encrypt an IR at rest, and open it in memory.

The file is sealed as `edgeface.cipher` describes; its header has the IR's `contract_id` and the digest of its weights.
The content is the length of the .xml as 8 bytes little-endian, the .xml, the .bin.
"""

from __future__ import annotations

import struct
from pathlib import Path

from edgeface.cipher import seal, unseal
from edgeface.errors import InputError, ModelFormatError
from edgeface.files import write_atomically
from edgeface.model.ir_file import read_contract
from edgeface.untrusted import DOCUMENT_BYTES, MODEL_BYTES, read_regular, reading

_LENGTH = struct.Struct("<Q")
_MOST_BYTES = MODEL_BYTES + DOCUMENT_BYTES  # with its header


def encrypt_ir(ir: Path, key: bytes, out: Path) -> Path:
    """Encrypt an IR that has a contract.

    Parameters
    ----------
    ir
        The .xml; its .bin lies beside it.
    key
        16, 24 or 32 random bytes. Keep them elsewhere than the file.
    out
        The encrypted file; it is written whole or not at all.

    Raises
    ------
    ModelFormatError
        If there is no IR, or it is damaged.
    ContractError
        If the IR has no contract.
    InputError
        If the key has another length, or a file cannot be read.
    """
    contract = read_contract(ir)[1]
    try:
        xml, weights = ir.read_bytes(), ir.with_suffix(".bin").read_bytes()
    except OSError as error:
        raise InputError(f"{error.filename}: expected a readable file of an IR, found: {error.strerror}") from error
    header = {"kind": "ir", "contract_id": contract.contract_id, "weights_sha256": contract.weights_sha256}
    sealed = seal(_LENGTH.pack(len(xml)) + xml + weights, key=key, header=header)
    with write_atomically(out) as staging:
        staging.write_bytes(sealed)
    return out


def open_ir(path: Path, key: bytes) -> tuple[bytes, bytes]:
    """Open what `encrypt_ir` wrote, in memory: the .xml and the .bin.

    Raises
    ------
    ModelFormatError
        If the file is damaged, of a newer version, or the key is another.
    """
    with reading(path, "a sealed model", error=ModelFormatError):
        sealed = read_regular(path, limit=_MOST_BYTES)
    content = unseal(sealed, key=key, kind="ir", source=str(path))
    end = _LENGTH.size + (_LENGTH.unpack_from(content)[0] if len(content) >= _LENGTH.size else 0)
    return content[_LENGTH.size : end], content[end:]
