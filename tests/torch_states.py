"""PyTorch's two file formats, written without torch, and FaceNet's weights by PyTorch's keys."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.convert.pytorch import inception_resnet_v1_keys

STORAGES = {
    "f2": "HalfStorage", "f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage", "b1": "BoolStorage",
    "u2": "BFloat16Storage",  # its values as bit patterns
}  # fmt: skip


def state_of(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return FaceNet's weights by facenet-pytorch's keys, with the counters of its batch norms."""
    size = weights["InceptionResnetV1/Bottleneck/weights"].shape[1]
    state = {}
    for key, (name, shape) in inception_resnet_v1_keys(size).items():
        array = np.ones(shape, np.float32) if name.endswith("/gamma") else weights[name]
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, (0,))
        state[key] = np.ascontiguousarray(array.transpose(axes))
        if key.endswith("running_var"):
            state[key.replace("running_var", "num_batches_tracked")] = np.array(0)
    return state


def write_zip(path: Path, state: Mapping[str, np.ndarray], **entries: bytes) -> Path:
    """Write the format since PyTorch 1.6; `entries` are added to, or replace, those of the archive."""
    program, arrays = _program(state, legacy=False)
    content = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}
    content |= {f"data/{key}": array.tobytes() for key, array in arrays.items()}
    content |= {name.replace("__", "."): value for name, value in entries.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, value in content.items():
            archive.writestr(f"archive/{name}", value)
    return path


def write_legacy(path: Path, state: Mapping[str, np.ndarray], program: bytes | None = None) -> Path:
    """Write the format before PyTorch 1.6, with another pickle of the state if one is given."""
    own, arrays = _program(state, legacy=True)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with path.open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, system):
            file.write(pickle.dumps(value, 2))
        file.write(own if program is None else program)
        file.write(pickle.dumps(list(arrays), 2))
        for array in arrays.values():
            file.write(array.size.to_bytes(8, "little") + array.tobytes())
    return path


def _program(state: Mapping[str, np.ndarray], *, legacy: bool) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return the pickle, and the storages by key: views of one array share one."""
    program = b"\x80\x02ccollections\nOrderedDict\n)R("
    arrays: dict[str, np.ndarray] = {}
    keys: dict[int, str] = {}
    for name, tensor in state.items():
        whole = tensor if tensor.base is None else tensor.base
        key = keys.setdefault(id(whole), str(len(keys)))
        arrays[key] = whole
        offset = (tensor.ctypes.data - whole.ctypes.data) // tensor.itemsize
        strides = tuple(step // tensor.itemsize for step in tensor.strides)
        storage = f"ctorch\n{STORAGES[tensor.dtype.str[1:]]}\n".encode()
        reference = b"(" + _of("storage") + storage + _of(key) + _of("cpu") + _of(whole.size)
        program += _of(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + (b"Nt" if legacy else b"t") + b"Q"
        program += _of(offset) + _of(tensor.shape) + _of(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    metadata = b"}" + _of("_metadata") + b"ccollections\nOrderedDict\n)Rsb"
    return program + b"u" + metadata + b".", arrays


def _of(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]
