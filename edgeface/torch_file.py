"""Read PyTorch state dictionaries without torch.

The format is that of `torch/serialization.py`: a zip archive since 1.6, before that five pickles and the raw values of
each storage. `edgeface.pickles` interprets the pickles, so nothing in a file can run.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import InputError, ModelFormatError
from edgeface.pickles import CONSTRUCTORS, PickleInterpreter, PickleName, count_of, uncalled, unexpected
from edgeface.untrusted import MODEL_BYTES, open_zip, read_members, read_regular, reading

_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "BoolStorage": "b1",
    "ByteStorage": "u1",
    "CharStorage": "i1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
}


def read_torch(path: Path) -> dict[str, NDArray[Any]]:
    """Read a PyTorch state dictionary without torch; nothing in it can run.

    Parameters
    ----------
    path
        A file of ``torch.save(model.state_dict(), path)``: a zip archive, or the format before PyTorch 1.6; at most
        2 GiB. A checkpoint that holds the state dictionary under ``state_dict``, ``model_state_dict`` or ``model``
        is read too.

    Returns
    -------
    dict
        The tensors by their keys, in the file's order, as read-only arrays; bfloat16 becomes float32.

    Raises
    ------
    ModelFormatError
        If the file cannot be read, is damaged, is a TorchScript archive or a whole pickled module, or holds anything
        but tensors.
    """
    expected, remedy = "a PyTorch state dictionary", "save one: torch.save(model.state_dict(), path)"
    with reading(path, expected, error=ModelFormatError, remedy=remedy):
        content = read_regular(path, limit=MODEL_BYTES)
        tensors = _read_archive(content) if content.startswith(b"PK\x03\x04") else _read_legacy(content)
        return {key: tensor.array() for key, tensor in tensors.items()}


class _Storage:
    """The values that one or several tensors view."""

    def __init__(self, dtype: str, count: int) -> None:
        self.dtype, self.count = dtype, count
        self.values: NDArray[Any] | None = None

    @property
    def size_in_bytes(self) -> int:
        return self.count * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)

    def fill(self, content: bytes, *, offset: int = 0, order: str = "<") -> None:
        """Take the values from bytes; ValueError if there are too few."""
        if self.dtype == "bfloat16":  # the upper half of a float32
            upper = np.frombuffer(content, f"{order}u2", self.count, offset)
            self.values = (upper.astype(np.uint32) << 16).view(np.float32)
        else:
            self.values = np.frombuffer(content, order + self.dtype, self.count, offset)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage, as the file describes it; sizes and strides count values."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> NDArray[Any]:
        """Return the view; ValueError if it leaves the storage, or shows values more than once."""
        count, _ = count_of(self.size), count_of((self.offset, *self.stride))
        values = self.storage.values
        if len(self.size) != len(self.stride) or values is None:
            raise ValueError("a tensor without a stride for each axis, or without values in the file")
        last = self.offset + sum((size - 1) * step for size, step in zip(self.size, self.stride, strict=True))
        if count > values.size or (count and last >= values.size):
            raise ValueError(f"a tensor of size {self.size} in a storage of {values.size:,} values")
        if count == 0:
            return np.zeros(self.size, values.dtype)
        steps = [step * values.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.size, steps, writeable=False)


def _size(size: Any) -> tuple[Any, ...]:
    if type(size) is not tuple:
        raise ValueError("a size that is none")
    return size


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    if type(storage) is not _Storage or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without a storage")
    return _Tensor(storage, offset, size, stride)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    **CONSTRUCTORS,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    **{f"torch.{name}": uncalled for name in _STORAGES},
}


def _state_dictionary(file: io.BytesIO, storages: dict[str, _Storage]) -> dict[str, _Tensor]:
    """Read the pickle of a state dictionary; its storages are added to `storages`, without values."""

    def persistent(reference: Any) -> _Storage:
        if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage":
            raise unexpected("a whole pickled module, or a reference to something outside the file")
        kind, key, count = reference[1], reference[2], reference[4]
        dtype = _STORAGES.get(kind.name.removeprefix("torch.")) if type(kind) is PickleName else None
        if dtype is None or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("a storage without a type, a key and a count of values")
        if reference[5:] not in ((), (None,)):
            raise unexpected("a view of a storage, as PyTorch wrote it before 0.4")
        storage = storages.setdefault(key, _Storage(dtype, count))
        if (storage.dtype, storage.count) != (dtype, count):
            raise ValueError(f"the storage {key[:50]!r} as {storage.count:,} {storage.dtype} and as {count:,} {dtype}")
        return storage

    kept = frozenset({_Tensor})
    value = PickleInterpreter(file, _CONSTRUCTORS, persistent=persistent, kept=kept).load()
    for name in ("state_dict", "model_state_dict", "model"):  # a checkpoint of a training
        if type(value) is dict and type(value.get(name)) is dict:
            value = value[name]
    if type(value) is not dict or not value:
        raise InputError(found=f"a pickled {type(value).__name__} without tensors")
    for key, tensor in value.items():
        if type(key) is not str or type(tensor) is not _Tensor:
            raise InputError(found=f"{type(tensor).__name__} at {str(key)[:100]!r} among its tensors")
    return value


def _read_archive(content: bytes) -> dict[str, _Tensor]:
    """Read the zip format."""
    with open_zip(io.BytesIO(content)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        folder = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if folder is None:
            raise InputError(found="a zip archive without data.pkl")
        if f"{folder}constants.pkl" in entries:
            raise InputError(
                found="a TorchScript archive, which is a program",
                remedy="save the state dictionary, torch.save(model.state_dict(), path), or export the model to ONNX",
            )
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("entries that are compressed")
        parts = read_members(archive, entries.values(), limit=len(content))
        order = parts.get(f"{folder}byteorder", b"little")
        storages: dict[str, _Storage] = {}
        tensors = _state_dictionary(io.BytesIO(parts[f"{folder}data.pkl"]), storages)
        for key, storage in storages.items():
            values = parts[f"{folder}data/{key}"]
            if len(values) != storage.size_in_bytes:
                raise ValueError(f"{len(values):,} bytes of values where {storage.size_in_bytes:,} are declared")
            storage.fill(values, order=">" if order == b"big" else "<")
    return tensors


def _read_legacy(content: bytes) -> dict[str, _Tensor]:
    """Read the format before PyTorch 1.6: magic number, version, system, state, keys of storages, their values."""
    file = io.BytesIO(content)
    try:
        magic = PickleInterpreter(file, {}).load()
    except InputError:
        raise
    except Exception as error:
        raise InputError(found="neither a zip archive nor PyTorch's magic number") from error
    if magic != _LEGACY_MAGIC or PickleInterpreter(file, {}).load() != _LEGACY_VERSION:
        raise InputError(found="a pickle without PyTorch's magic number and version")
    system = PickleInterpreter(file, {}).load()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise InputError(found="one of values that are not in little-endian order")
    storages: dict[str, _Storage] = {}
    tensors = _state_dictionary(file, storages)
    keys = PickleInterpreter(file, {}).load()
    if type(keys) is not list or sorted(keys) != sorted(storages):
        raise ValueError("storages whose keys are not those of the tensors")
    position = file.tell()
    for key in keys:
        storage = storages[key]
        count = int(np.frombuffer(content, "<i8", 1, position)[0])
        if count != storage.count:
            raise ValueError(f"{count:,} values where {storage.count:,} are declared")
        storage.fill(content, offset=position + 8)
        position += 8 + storage.size_in_bytes
    return tensors
