"""The cache of a gallery's file: all templates, ready to be loaded in a fraction of a second.

It lies in the folder ``NAME.index`` beside the gallery, can always be made again, and is only written inside a write
transaction: so `forget`, which empties the folder, leaves nothing behind. It is used only if the gallery holds the
digest of its header, if its commit is one of this gallery, and if no one may write to it who may not write to the
gallery. The templates' file is

    ``EDGEFTPL`` · length of the header, 4 bytes little-endian · header, JSON · BLAKE2b digest of all that, 16 bytes ·
    zeros up to a multiple of 4,096 · ids, int64 · person ids, int64 · vectors, float32

in a gallery without encryption, where it is mapped into memory after its SHA-256, which is in the header, was checked.
In an encrypted one
what follows the header is a sequence of messages of AES-GCM, 1 MiB each, whose associated data is the header and their
number; they are decrypted into memory, and no embedding lies on the disk in the clear.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import mmap
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.cipher import OVERHEAD, Cipher
from edgeface.errors import GalleryDamagedError, InputError
from edgeface.files import output_errors, write_atomically
from edgeface.gallery.codec import GalleryHeader
from edgeface.gallery.records import Changes, TemplateBlock
from edgeface.model.embedding import require_same_contract
from edgeface.untrusted import open_regular, parse_json

_log = logging.getLogger(__name__)
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
    """Make the folder, open to those who may read the gallery, and to no one else, whatever it was before."""
    folder = cache_folder(gallery)
    with output_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        _protect(folder, gallery)


def _protect(path: Path, gallery: Path) -> None:
    """Give a file or folder the gallery's group and mode, or less where that group cannot be given."""
    wanted, found = gallery.stat(), path.stat()
    mode = wanted.st_mode & 0o666
    with contextlib.suppress(PermissionError):  # a file system without modes, or another user's folder
        if found.st_gid != wanted.st_gid:
            try:
                os.chown(path, -1, wanted.st_gid)
            except OSError:
                mode &= ~stat.S_IRWXG
        if stat.S_ISDIR(found.st_mode):
            mode |= (mode & 0o444) >> 2
        if stat.S_IMODE(found.st_mode) != mode:
            path.chmod(mode)


def _require_guarded(gallery: Path, descriptor: int) -> None:
    """Refuse what someone may write to who may not write to the gallery: it is mapped, and could change afterwards."""
    allowed = gallery.stat()
    for found in (os.fstat(descriptor), cache_folder(gallery).stat()):
        if found.st_mode & ~allowed.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise GalleryDamagedError("may be written to by users who may not write to the gallery")
        if found.st_mode & stat.S_IWGRP and found.st_gid != allowed.st_gid:
            raise GalleryDamagedError("may be written to by another group than the gallery")
        if found.st_uid not in (allowed.st_uid, os.geteuid(), 0) and not allowed.st_mode & stat.S_IWGRP:
            raise GalleryDamagedError("belongs to another user than the gallery")


def _file(gallery: Path) -> Path:
    return cache_folder(gallery) / "templates.bin"


def write_templates(gallery: Path, header: GalleryHeader, cipher: Cipher, block: TemplateBlock) -> str:
    """Write a current block of this gallery's contract, inside a write transaction; whole or not at all.

    Return its mark, without which `read_templates` does not believe it: the gallery must hold it.
    """
    require_same_contract(header.contract_id, block.contract_id, what="gallery and templates")
    parts = [_bytes_of(block.ids), _bytes_of(block.person_ids), _bytes_of(block.vectors)]
    stored = {
        "gallery": header.encode(),
        "generation": block.generation,
        "history": block.history,
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
        file.flush()
        _protect(partial, gallery)
    return _mark(text)


_UNREADABLE = (OSError, ValueError, LookupError, TypeError, OverflowError, struct.error, InputError)


def read_templates(gallery: Path, header: GalleryHeader, cipher: Cipher, mark: str) -> TemplateBlock | None:
    """Read what `write_templates` wrote for this gallery; None if there is nothing that can be trusted."""
    try:
        with open_regular(_file(gallery)) as file:
            _require_guarded(gallery, file.fileno())
            return _read(file, header, cipher, mark)
    except FileNotFoundError:
        return None
    except _UNREADABLE as error:
        _log.warning("%s: %s; it is not used", _file(gallery), error)
        return None  # it is only a copy: the gallery's file is read instead, and tells what is damaged


def examine_cache(
    gallery: Path, header: GalleryHeader, cipher: Cipher, differs: Callable[[TemplateBlock], str]
) -> tuple[str, str]:
    """Return the mark of the cache, and why this gallery cannot have written it; each is empty if there is none.

    `differs` compares a block, which is not trusted yet, with the gallery. The mark that the gallery holds does not
    count here: who is killed between the replacement of the file and the commit leaves a right file with another one.
    """
    mark, reason = "", ""
    try:
        with open_regular(_file(gallery)) as file:
            _require_guarded(gallery, file.fileno())
            _, length = _START.unpack(file.read(_START.size))
            mark = _mark(file.read(min(length, os.fstat(file.fileno()).st_size)))
            file.seek(0)
            reason = differs(_read(file, header, cipher, mark))
    except FileNotFoundError:
        return "", ""
    except GalleryDamagedError as error:
        reason = str(error)
    except _UNREADABLE as error:
        reason = f"cannot be read: {error}"
    if not reason:
        return mark, ""
    remedy = "it is not used; delete it, and it is made again when it is needed"
    return mark, f"{_file(gallery)}: {reason}; {remedy}"


def _read(file: Any, header: GalleryHeader, cipher: Cipher, mark: str) -> TemplateBlock:
    magic, length = _START.unpack(start := file.read(_START.size))
    if magic != _MAGIC or length > os.fstat(file.fileno()).st_size:
        raise GalleryDamagedError("is not what edgeface wrote there")
    text = file.read(length)
    if file.read(_DIGEST) != hashlib.blake2b(start + text, digest_size=_DIGEST).digest():
        raise GalleryDamagedError("is not what edgeface wrote there: its header was changed")
    if mark != _mark(text):
        raise GalleryDamagedError("is not what this gallery wrote last")
    stored = parse_json(text)
    rows, dim = int(stored["rows"]), header.dim
    if stored["gallery"] != header.encode():
        raise GalleryDamagedError("belongs to another gallery, or to another key or model of this one")
    begin = file.tell() + -file.tell() % _ALIGNMENT
    size = rows * (16 + 4 * dim)
    sealed = -(-size // _MESSAGE) * OVERHEAD if cipher.key_id else 0
    if size <= 0 or os.fstat(file.fileno()).st_size != begin + size + sealed:
        raise GalleryDamagedError("is not what edgeface wrote there: it has another size")
    content: Any
    if cipher.key_id:
        file.seek(begin)
        content = _unsealed(file, size, cipher, text)
    else:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[begin:]
        if _sha256([content]) != stored["sha256"]:
            raise GalleryDamagedError("is not what edgeface wrote there: its templates were changed")
    ids = np.frombuffer(content, "<i8", rows)
    person_ids = np.frombuffer(content, "<i8", rows, offset=8 * rows)
    vectors = np.frombuffer(content, "<f4", rows * dim, offset=16 * rows).reshape(rows, dim)
    return TemplateBlock(
        ids=ids.astype(np.int64, copy=False),
        person_ids=person_ids.astype(np.int64, copy=False),
        vectors=vectors.astype(np.float32, copy=False),
        contract_id=header.contract_id,
        generation=int(stored["generation"]),
        history=str(stored.get("history", "")),
    )


def _mark(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


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
    moved = np.isin(added.ids, block.ids) if len(block) and len(added) and added.ids[0] <= block.ids[-1] else None
    gone = changes.removed if moved is None else np.concatenate([changes.removed, added.ids[moved]])
    kept = ~np.isin(block.ids, gone) if len(gone) else None
    if not len(added) and (kept is None or kept.all()):
        return dataclasses.replace(block, generation=changes.generation, history=changes.history)
    columns = {}
    for name in ("ids", "person_ids", "vectors"):
        old = getattr(block, name)
        columns[name] = np.concatenate([old if kept is None else old[kept], getattr(added, name)])
    if moved is not None:  # to another person, with their ids
        order = np.argsort(columns["ids"])
        columns = {name: column[order] for name, column in columns.items()}
    return TemplateBlock(
        **columns, contract_id=block.contract_id, generation=changes.generation, history=changes.history
    )
