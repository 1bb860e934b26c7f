"""The cache of a gallery's file: all templates, ready to be loaded in a fraction of a second.

It lies in the folder ``NAME.index`` beside the gallery, can always be made again, and is only written inside a write
transaction: so `forget`, which empties the folder, leaves nothing behind. The templates' file is

    ``EDGEFTPL`` · length of the header, 4 bytes little-endian · header, JSON · BLAKE2b digest of all that, 16 bytes ·
    zeros up to a multiple of 4,096 · ids, int64 · person ids, int64 · vectors, float32

in a gallery without encryption, where it is mapped into memory after its SHA-256 was checked. In an encrypted one
what follows the header is a sequence of messages of AES-GCM, 1 MiB each, whose associated data is the header and their
number; they are decrypted into memory, and no embedding lies on the disk in the clear.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.cipher import OVERHEAD, Cipher
from edgeface.errors import GalleryDamagedError
from edgeface.files import output_errors, write_atomically
from edgeface.gallery.codec import GalleryHeader
from edgeface.gallery.records import Changes, TemplateBlock
from edgeface.model.embedding import require_same_contract

_MAGIC = b"EDGEFTPL"
_START = struct.Struct("<8sI")
_DIGEST = 16
_ALIGNMENT = 4096
_MESSAGE = 1 << 20
"""Content of one message. Larger ones are not allocated from memory that was in use before: 2.5 times as slow."""


def cache_folder(gallery: Path) -> Path:
    """Return the folder of a gallery's cache."""
    return gallery.with_name(gallery.name + ".index")


def clear_cache(gallery: Path) -> None:
    """Remove the cache, and what interrupted writers left of it."""
    folder = cache_folder(gallery)
    with output_errors(folder), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _make_cache_folder(gallery: Path) -> None:
    """Make the folder, readable for those who may read the gallery."""
    folder = cache_folder(gallery)
    with output_errors(folder):
        if not folder.exists():
            mode = gallery.stat().st_mode & 0o777
            folder.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(PermissionError):  # a file system without modes
                folder.chmod(mode | (mode & 0o444) >> 2)


def _file(gallery: Path) -> Path:
    return cache_folder(gallery) / "templates.bin"


def write_templates(gallery: Path, header: GalleryHeader, cipher: Cipher, block: TemplateBlock) -> None:
    """Write a current block of this gallery's contract, inside a write transaction; whole or not at all."""
    require_same_contract(header.contract_id, block.contract_id, what="gallery and templates")
    parts = [_bytes_of(block.ids), _bytes_of(block.person_ids), _bytes_of(block.vectors)]
    stored = {
        "gallery": header.encode(),
        "generation": block.generation,
        "rows": len(block),
        "sha256": "" if cipher.key_id else _sha256(parts),
    }
    text = json.dumps(stored, sort_keys=True).encode()
    start = _START.pack(_MAGIC, len(text)) + text
    start += hashlib.blake2b(start, digest_size=_DIGEST).digest()
    start += bytes(-len(start) % _ALIGNMENT)
    _make_cache_folder(gallery)
    with write_atomically(_file(gallery)) as partial, output_errors(partial), partial.open("wb") as file:
        file.write(start)
        for part in _sealed(parts, cipher, text) if cipher.key_id else parts:
            file.write(part)


def read_templates(gallery: Path, header: GalleryHeader, cipher: Cipher) -> TemplateBlock | None:
    """Read what `write_templates` wrote for this gallery; None if there is nothing that can be trusted."""
    try:
        with _file(gallery).open("rb") as file:
            return _read(file, header, cipher)
    except (OSError, ValueError, KeyError, struct.error, GalleryDamagedError):
        return None  # it is only a copy: the gallery's file is read instead, and tells what is damaged


def _read(file: Any, header: GalleryHeader, cipher: Cipher) -> TemplateBlock | None:
    magic, length = _START.unpack(start := file.read(_START.size))
    text = file.read(length)
    digest = hashlib.blake2b(start + text, digest_size=_DIGEST).digest()
    if magic != _MAGIC or file.read(_DIGEST) != digest:
        return None
    stored = json.loads(text)
    rows, dim = int(stored["rows"]), header.dim
    if stored["gallery"] != header.encode():
        return None
    begin = file.tell() + -file.tell() % _ALIGNMENT
    size = rows * (16 + 4 * dim)
    content: Any
    if cipher.key_id:
        file.seek(begin)
        content = _unsealed(file, size, cipher, text)
    else:
        if os.fstat(file.fileno()).st_size != begin + size or not size:
            return None
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[begin:]
        if _sha256([content]) != stored["sha256"]:
            return None
    ids = np.frombuffer(content, "<i8", rows)
    person_ids = np.frombuffer(content, "<i8", rows, offset=8 * rows)
    vectors = np.frombuffer(content, "<f4", rows * dim, offset=16 * rows).reshape(rows, dim)
    return TemplateBlock(
        ids=ids.astype(np.int64, copy=False),
        person_ids=person_ids.astype(np.int64, copy=False),
        vectors=vectors.astype(np.float32, copy=False),
        contract_id=header.contract_id,
        generation=int(stored["generation"]),
    )


def _sealed(parts: list[memoryview], cipher: Cipher, text: bytes) -> Iterator[bytes]:
    """Yield what follows the header as encrypted messages of one size."""
    content = b"".join(parts)
    for number, begin in enumerate(range(0, len(content), _MESSAGE)):
        yield cipher.seal(content[begin : begin + _MESSAGE], _place(text, number))


def _unsealed(file: Any, size: int, cipher: Cipher, text: bytes) -> bytearray:
    content = bytearray(size)
    for number, begin in enumerate(range(0, size, _MESSAGE)):
        length = min(_MESSAGE, size - begin)
        content[begin : begin + length] = cipher.open(file.read(length + OVERHEAD), _place(text, number))
    if file.read(1):
        raise GalleryDamagedError("templates: expected the end of the file, found more")
    return content


def _place(text: bytes, number: int) -> bytes:
    return b"::derived:%d:" % number + text


def _bytes_of(array: NDArray[Any]) -> memoryview:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _sha256(parts: list[memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def apply_changes(block: TemplateBlock, changes: Changes) -> TemplateBlock:
    """Bring a block to a later generation, unless what was added is of another contract."""
    added = changes.added
    require_same_contract(block.contract_id, added.contract_id, what="templates")
    kept = ~np.isin(block.ids, changes.removed) if len(changes.removed) else None
    if not len(added) and (kept is None or kept.all()):
        return dataclasses.replace(block, generation=changes.generation)
    columns = {}
    for name in ("ids", "person_ids", "vectors"):
        old = getattr(block, name)
        columns[name] = np.concatenate([old if kept is None else old[kept], getattr(added, name)])
    return TemplateBlock(**columns, contract_id=block.contract_id, generation=changes.generation)
