"""Files of an export in, one checksummed file that other programs can read out, and back.

The file is a ZIP without compression:

    gallery.json     format ``edgeface-gallery``, version, contract_id, dim, metric, model, created, number of people
                     and of templates
    people.json      a list of {name, labels, metadata, created}
    templates.json   a list of {person: number in people.json, quality or null, source_sha256, created, image: name in
                     the ZIP or null, box, landmarks (null where they are not known), aligned}
    vectors.npy      (N, D) float32, row n of template n
    images/N.png     images that were kept
    SHA256SUMS       digest and name of every other file, as sha256sum reads it

With a key the ZIP is sealed by `edgeface.runtime.encryption.seal` as kind ``gallery-export``. Its header names the
contract, and a number of the export and what `SealedVault` makes of it and the key, by which another key is told from
damage.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
import struct
import uuid
import zipfile
import zlib
from pathlib import Path

from edgeface.errors import ArchiveError, ChecksumError, GalleryKeyError, ModelFormatError
from edgeface.files import write_atomically
from edgeface.gallery.store.cipher import SealedVault
from edgeface.runtime.encryption import header_of, is_sealed, seal, unseal

__all__ = ["json_bytes", "pack", "unpack"]

_KIND = "gallery-export"
_SUMS = "SHA256SUMS"
_MALFORMED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    LookupError,
    ValueError,
    RuntimeError,
    OverflowError,
    EOFError,
)


def json_bytes(value: object) -> bytes:
    """A value as the text of one of the files."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def pack(path: Path, parts: dict[str, bytes], *, key: bytes | None, contract_id: str) -> int:
    """Write files and their digests as one, whole or not at all; how many bytes."""
    content = _zip(parts)
    if key is not None:
        export_id = uuid.uuid4().hex
        key_id = SealedVault(key, export_id).key_id
        header = {"kind": _KIND, "contract_id": contract_id, "export_id": export_id, "key_id": key_id}
        content = seal(content, key=key, header=header)
    with write_atomically(path) as partial, partial.open("wb") as file:
        with contextlib.suppress(PermissionError):  # a file system without modes
            partial.chmod(0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return len(content)


def _zip(parts: dict[str, bytes]) -> bytes:
    sums = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(parts.items())
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, part in [*sorted(parts.items()), (_SUMS, sums.encode())]:
            file.writestr(name, part)
    return content.getvalue()


def unpack(path: Path, key: bytes | None) -> dict[str, bytes]:
    """Read and check what `pack` wrote; the same errors as `import_gallery`."""
    try:
        sealed = is_sealed(path)
        content = path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{path}: expected an export of a gallery, found: {error.strerror}") from error
    if sealed != (key is not None):
        what = "an encrypted export and no key" if sealed else "a key and an export that is not encrypted"
        raise GalleryKeyError(f"{path}: expected an encrypted export with its key, or neither; found {what}")
    if key is not None:
        try:
            content = unseal(content, key=key, kind=_KIND, source=str(path))
        except ModelFormatError as error:
            if _is_of(content, key):
                raise ArchiveError(
                    f"{path}: expected what was written with this key, found other bytes: the file is damaged; export "
                    "again"
                ) from error
            raise GalleryKeyError(str(error)) from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if (said := sum(each.file_size for each in file.infolist())) > len(content):
                raise ArchiveError(
                    f"{path}: expected an export, which is not compressed, found {said:,} bytes in {len(content):,}"
                )
            parts = {name: file.read(name) for name in file.namelist()}
        sums = dict(line.split("  ", 1)[::-1] for line in parts.pop(_SUMS).decode().splitlines())
    except _MALFORMED as error:
        raise ArchiveError(
            f"{path}: expected an export of a gallery, found a damaged file: {error!r}"
        ) from error
    found = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    if found != sums:
        wrong = sorted(name for name in found.keys() | sums.keys() if found.get(name) != sums.get(name))
        raise ChecksumError(
            f"{path}: expected the bytes that {_SUMS} names, found others in {', '.join(wrong)}"
        )
    return parts


def _is_of(sealed: bytes, key: bytes) -> bool:
    """Whether an export that does not open says that it was sealed with this key."""
    try:
        header = header_of(sealed)
        return hmac.compare_digest(header["key_id"], SealedVault(key, header["export_id"]).key_id)
    except (ModelFormatError, KeyError, TypeError, AttributeError, ValueError):
        return False
