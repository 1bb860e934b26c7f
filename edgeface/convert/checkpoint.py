"""Read the variables of a TensorFlow checkpoint, without TensorFlow.

A checkpoint `prefix` is a sorted string table `prefix.index` (LevelDB's format, without compression) that maps
variable names to BundleEntry messages, and raw little-endian values in `prefix.data-NNNNN-of-NNNNN`
(tensorflow/core/util/tensor_bundle/tensor_bundle.h; LevelDB's doc/table_format.md).
"""

from __future__ import annotations

import glob
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.convert.graphdef import parse_message
from edgeface.convert.messages import DTYPES, BundleEntry, BundleHeader
from edgeface.convert.source import read_bytes
from edgeface.errors import ModelFormatError, NotSupportedError
from edgeface.untrusted import reading

_TABLE_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_MOST_MISSING = 100  # files of values that a message lists
_BLOCK_TRAILER_BYTES = 5  # compression type, masked CRC-32C


def find_checkpoint(folder: Path, *, stem: str = "") -> Path:
    """Return the prefix of a folder's newest checkpoint: the one named in ``checkpoint``, else the last step.

    `stem` is the start of its name, for a folder with checkpoints of several models.

    Raises ModelFormatError if the folder holds no such ``.index`` file.
    """
    names = [path.name.removesuffix(".index") for path in folder.glob("*.index")]
    prefixes = {name: folder / name for name in names if name.startswith(stem)}
    if not prefixes:
        raise ModelFormatError(
            f"{folder}: expected a checkpoint ({stem}*.index and {stem}*.data-*), found "
            + (f"only those of {', '.join(sorted(names))}" if names else "no .index file")
        )
    state = folder / "checkpoint"
    if state.is_file():
        for line in state.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            named = Path(value.strip().strip('"')).name
            if key.strip() == "model_checkpoint_path" and named in prefixes:
                return prefixes[named]
    return prefixes[max(prefixes, key=lambda name: (_step(name), name))]


def shard_paths(prefix: Path) -> list[Path]:
    """Return every file of a checkpoint: the index, then the data shards in order."""
    shards = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*"))
    return [prefix.with_name(prefix.name + ".index"), *shards]


def read_checkpoint(prefix: Path) -> dict[str, NDArray[Any]]:
    """Read every numeric variable of a checkpoint, by TensorFlow name, memory-mapped from the data shards.

    Raises ModelFormatError if a file is missing, truncated or damaged; NotSupportedError if the index is
    compressed or a variable is stored in slices.
    """
    index = prefix.with_name(prefix.name + ".index")
    content = read_bytes(index)
    with reading(index, "a TensorFlow checkpoint index", error=ModelFormatError):
        return _read_variables(prefix, index, dict(_read_table(content, index)))


def _read_variables(prefix: Path, index: Path, entries: dict[bytes, bytes]) -> dict[str, NDArray[Any]]:
    header = parse_message(BundleHeader, entries.pop(b"", b""), index)
    if header.endianness != 0:
        raise NotSupportedError(f"{index}: expected a little-endian checkpoint, found a big-endian one")
    count, found = header.num_shards, len(shard_paths(prefix)) - 1
    if not 0 <= count <= found + _MOST_MISSING:
        raise ModelFormatError(path=prefix, expected=f"{count} files of values beside the index", found=str(found))
    shards = [prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{count:05d}") for shard in range(count)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ModelFormatError(f"{prefix}: expected {', '.join(missing)} beside the index, found nothing")
    memory = [np.memmap(shard, np.uint8, "r") if shard.stat().st_size else np.zeros(0, np.uint8) for shard in shards]
    variables = {}
    for key, value in entries.items():
        name, entry = key.decode(errors="replace"), parse_message(BundleEntry, value, index)
        if entry.dtype not in DTYPES:
            continue  # strings and resources: nothing a network computes with
        if entry.slices:
            raise NotSupportedError(
                f"{index}: variable {name!r} is stored in slices; save the checkpoint unpartitioned"
            )
        dtype, shape = DTYPES[entry.dtype], tuple(dim.size for dim in entry.shape.dim)
        if not 0 <= entry.shard_id < len(shards) or min(entry.offset, entry.size, *shape) < 0:
            raise ModelFormatError(f"{index}: the entry of {name!r} is damaged; copy the checkpoint again")
        raw = memory[entry.shard_id][entry.offset : entry.offset + entry.size]
        expected = dtype.itemsize * math.prod(shape)
        if raw.size != expected:
            raise ModelFormatError(
                f"{shards[entry.shard_id]}: expected {expected:,} bytes for {name!r}, found {raw.size:,}; "
                "the file is truncated: copy it again"
            )
        variables[name] = raw.view(dtype).reshape(shape)
    if sum(each.nbytes for each in variables.values()) > sum(each.nbytes for each in memory):
        raise ModelFormatError(path=index, expected="variables of their own values", found="some that share them")
    return variables


def _read_table(content: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key-value pairs of a sorted string table in order."""
    magic = struct.unpack("<Q", content[-8:])[0] if len(content) >= _FOOTER_BYTES else None
    if magic != _TABLE_MAGIC:
        raise ModelFormatError(
            f"{path}: expected a TensorFlow checkpoint index, found no index; it is truncated or damaged"
        )
    footer = content[-_FOOTER_BYTES:]
    _, position = _block_handle(footer, 0)  # the meta-index, empty in checkpoints
    for _, handle in _read_block(content, *_block_handle(footer, position)[0], path=path):
        yield from _read_block(content, *_block_handle(handle, 0)[0], path=path)


def _read_block(content: bytes, offset: int, size: int, *, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield a block's entries; each key shares a prefix with the one before."""
    if offset + size + _BLOCK_TRAILER_BYTES > len(content):
        raise IndexError(f"a block of {size} bytes at {offset} extends past the end of the file")
    if content[offset + size] != 0:
        raise NotSupportedError(f"{path}: expected an uncompressed checkpoint index, found a compressed one")
    block = content[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, position, key = size - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _block_handle(content: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = _varint(content, position)
    size, position = _varint(content, position)
    return (offset, size), position


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Decode one base-128 number: seven bits a byte, lowest first."""
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _step(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1
