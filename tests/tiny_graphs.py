"""Small TensorFlow graphs and checkpoints for tests, written without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.convert.messages import (
    DT_BOOL,
    DT_FLOAT,
    DT_INT32,
    BundleEntry,
    BundleHeader,
    GraphDef,
    MetaGraphDef,
    array_to_tensor,
    set_shape,
)

SIZE = 160
EMBEDDING = 4


class Graph:
    """A GraphDef that grows by one node a call; each call returns the node's name."""

    def __init__(self) -> None:
        self.message = GraphDef()
        self.message.versions.producer = 24

    def node(self, name: str, op: str, *inputs: str, **attributes: Any) -> str:
        node = self.message.node.add(name=name, op=op)
        node.input.extend(inputs)
        for key, value in attributes.items():
            if isinstance(value, bool):
                node.attr[key].b = value
            elif isinstance(value, int):
                node.attr[key].type = value
            elif isinstance(value, tuple):
                set_shape(node.attr[key].shape, value)
            elif isinstance(value, list):
                node.attr[key].list.i.extend(value)
            else:
                node.attr[key].s = value
        return name

    def constant(self, name: str, value: Any, *controls: str) -> str:
        self.node(name, "Const", *controls)
        attributes = self.message.node[-1].attr
        array_to_tensor(np.asarray(value), attributes["value"].tensor)
        attributes["dtype"].type = attributes["value"].tensor.dtype
        return name

    def placeholder(self, name: str, dtype: int = DT_FLOAT, shape: tuple[int, ...] = ()) -> str:
        return self.node(name, "Placeholder", dtype=dtype, shape=shape)

    def image(self, name: str = "image_batch") -> str:
        return self.placeholder(name, shape=(-1, SIZE, SIZE, 3))

    def phase_train(self) -> str:
        return self.placeholder("phase_train", DT_BOOL)

    def embed(self, image: str, weights: str, *, normalized: bool = True) -> str:
        """Mean colour of each image times weights of (3, D), to unit length, as `embeddings`."""
        axes = self.constant("axes", np.array([1, 2], np.int32))
        mean = self.node("mean", "Mean", image, axes, T=DT_FLOAT, Tidx=DT_INT32, keep_dims=False)
        y = self.node("dense", "MatMul", mean, weights, T=DT_FLOAT, transpose_a=False, transpose_b=False)
        if not normalized:
            return self.node("embeddings", "Identity", y, T=DT_FLOAT)
        axis = self.constant("axis", np.array([1], np.int32))
        square = self.node("square", "Square", y, T=DT_FLOAT)
        total = self.node("total", "Sum", square, axis, T=DT_FLOAT, Tidx=DT_INT32, keep_dims=True)
        return self.node("embeddings", "Mul", y, self.node("rsqrt", "Rsqrt", total, T=DT_FLOAT), T=DT_FLOAT)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.message.SerializeToString(deterministic=True))
        return path


def dense_weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, EMBEDDING)).astype(np.float32)


def tiny_facenet(**options: Any) -> Graph:
    """The smallest graph that converts: mean colour to a 4-d embedding."""
    graph = Graph()
    graph.embed(graph.image(), graph.constant("weights", dense_weights()), **options)
    return graph


def tiny_expected(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What `Graph.embed` computes, in numpy, from standardised (N, H, W, 3) images."""
    y = images.astype(np.float64).mean(axis=(1, 2)) @ weights
    return y / np.linalg.norm(y, axis=1, keepdims=True)


def write_tiny_checkpoint(folder: Path, *, stem: str = "model", seed: int = 0, step: int = 7) -> Path:
    """`stem.meta` and `stem.ckpt-step.*` whose one variable is `weights`; return the .meta."""
    graph = Graph()
    variable = graph.node("weights", "VariableV2", dtype=DT_FLOAT, shape=(3, EMBEDDING))
    read = graph.node("weights/read", "Identity", variable, T=DT_FLOAT)
    graph.embed(graph.image(), read)
    folder.mkdir(parents=True, exist_ok=True)
    meta = folder / f"{stem}.meta"
    meta.write_bytes(MetaGraphDef(graph_def=graph.message).SerializeToString())
    write_checkpoint(folder / f"{stem}.ckpt-{step}", {"weights": dense_weights(seed)})
    return meta


def write_checkpoint(
    prefix: Path, variables: Mapping[str, np.ndarray], *, endianness: int = 0, checksums: bool = True
) -> None:
    """Write a checkpoint of one shard as tensor_bundle.h describes it, keys prefix-compressed.

    Without `checksums` of the values TensorFlow refuses it, and a hundred megabytes are written at once.
    """
    numbers = {np.dtype(np.float32): 1, np.dtype(np.int32): 3, np.dtype(np.int64): 9, np.dtype(np.bool_): 10}
    entries = [(b"", BundleHeader(num_shards=1, endianness=endianness).SerializeToString())]
    data = b""
    for name in sorted(variables, key=str.encode):
        array = np.asarray(variables[name])
        raw = array.tobytes()
        entry = BundleEntry(
            dtype=numbers[array.dtype], offset=len(data), size=len(raw), crc32c=_masked_crc(raw) if checksums else 0
        )
        set_shape(entry.shape, array.shape)
        entries.append((name.encode(), entry.SerializeToString()))
        data += raw
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    prefix.with_name(f"{prefix.name}.index").write_bytes(_table(entries))


def _table(entries: list[tuple[bytes, bytes]]) -> bytes:
    content, handles = b"", []
    for block in (_block(entries), _block([])):  # data, then the empty meta-index
        handles.append(_varint(len(content)) + _varint(len(block)))
        content += block + _trailer(block)
    index = _block([(entries[-1][0] + b"\xff", handles[0])])
    footer = handles[1] + _varint(len(content)) + _varint(len(index))
    content += index + _trailer(index)
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def _block(entries: list[tuple[bytes, bytes]]) -> bytes:
    content, previous = b"", b""
    for key, value in entries:
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
        content += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        previous = key
    return content + struct.pack("<II", 0, 1)


def _trailer(block: bytes) -> bytes:
    """No compression, then the checksum of the block and of that."""
    return b"\0" + struct.pack("<I", _masked_crc(block + b"\0"))


def _masked_crc(content: bytes) -> int:
    """CRC-32C (RFC 3720), masked the way LevelDB stores it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    encoded = b""
    while value >= 0x80:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])
