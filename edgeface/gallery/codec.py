"""Encode records as the bytes of their rows, and decode them."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import GalleryDamagedError
from edgeface.gallery.records import GalleryInfo, KeptImage
from edgeface.untrusted import parse_json, reading

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_TEMPLATE = struct.Struct("<dq32s")
_IMAGE = struct.Struct("<?14f")
_NOT_UNIT = 1e-3
"""Largest difference from 1 of a stored template's squared length."""


_MOST_NUMBERS = 1 << 16
"""Of an embedding."""


def _decoding(what: str) -> contextlib.AbstractContextManager[None]:
    return reading("gallery", f"{what} that edgeface wrote", error=GalleryDamagedError, remedy="restore it from a copy")


def _require(name: str, value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{name}: {value!r:.80}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryHeader:
    """What a gallery is bound to, as stored, readable without a key; `key_id` is empty without encryption."""

    gallery_id: str
    contract_id: str
    dim: int
    metric: str
    model: str
    created: str
    key_id: str
    keeps_images: bool

    def encode(self) -> str:
        """Write as JSON, in one form for one content, which is authenticated."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> GalleryHeader:
        """Read what `encode` wrote; GalleryDamagedError for anything else: without a key, anyone can write a mark."""
        with _decoding("a header"):
            header = cls(**parse_json(text))
            for name in ("gallery_id", "contract_id", "metric", "model", "created", "key_id"):
                _require(name, getattr(header, name), str)
            _require("keeps_images", header.keeps_images, bool)
            if _require("dim", header.dim, int) not in range(1, _MOST_NUMBERS + 1):
                raise ValueError(f"dim: {header.dim}")
            datetime.fromisoformat(header.created)
            return header

    def info(self, schema_version: int) -> GalleryInfo:
        """Return what users of a store see."""
        stored = {**asdict(self), "created": datetime.fromisoformat(self.created), "schema_version": schema_version}
        return GalleryInfo(encrypted=bool(stored.pop("key_id")), **stored)

    def place(self, table: str, *identity: object) -> bytes:
        """Name one row, for `Cipher.seal`: gallery, contract, table, and the values that identify the row."""
        return f"{self.gallery_id}:{self.contract_id}:{table}:{':'.join(map(str, identity))}".encode()


@dataclass(frozen=True, slots=True)
class PersonBody:
    """A person without the id: JSON, UTF-8."""

    name: str
    labels: tuple[str, ...]
    metadata: Mapping[str, Any]
    created: datetime

    def encode(self) -> bytes:
        """Return the bytes of the row."""
        text = json.dumps(asdict(self), default=datetime.isoformat, ensure_ascii=False)
        return text.encode("utf-8", "surrogatepass")

    @classmethod
    def decode(cls, body: bytes) -> PersonBody:
        """Read what `encode` wrote."""
        with _decoding("a person"):
            stored = parse_json(body.decode("utf-8", "surrogatepass"))
            labels = tuple(_require("label", label, str) for label in _require("labels", stored["labels"], list))
            name, metadata = _require("name", stored["name"], str), _require("metadata", stored["metadata"], dict)
            created = datetime.fromisoformat(stored["created"])
            if created.tzinfo is None:
                raise ValueError(f"created: {created}")
            return cls(name, labels, metadata, created)


@dataclass(frozen=True, slots=True, eq=False)
class TemplateBody:
    """A template without the ids: quality, time, digest, then the vector, little-endian."""

    vector: NDArray[np.float32]
    quality: float
    source_sha256: str
    created: datetime

    def encode(self) -> bytes:
        """Return the bytes of the row."""
        microseconds = (self.created - _EPOCH) // _MICROSECOND
        digest = bytes.fromhex(self.source_sha256)
        return _TEMPLATE.pack(self.quality, microseconds, digest) + self.vector.astype("<f4").tobytes()

    @classmethod
    def decode(cls, body: bytes, dim: int) -> TemplateBody:
        """Read what `encode` wrote."""
        with _decoding("a template"):
            quality, microseconds, digest = _TEMPLATE.unpack_from(body)
            source, created = digest.hex() if any(digest) else "", _EPOCH + microseconds * _MICROSECOND
            return cls(vectors_of([body], dim)[0], quality, source, created)


def vectors_of(bodies: list[bytes], dim: int) -> NDArray[np.float32]:
    """Decode only the vectors of template bodies: (N, dim) float32, read-only."""
    # Rows are authentic: where one has another length, the header is not theirs.
    length = _TEMPLATE.size + 4 * dim
    if wrong := [len(body) for body in bodies if len(body) != length]:
        raise GalleryDamagedError(f"gallery: expected templates of {length} bytes, found one of {wrong[0]}")
    rows = np.frombuffer(b"".join(bodies), np.uint8).reshape(len(bodies), length)
    vectors = np.ascontiguousarray(rows[:, _TEMPLATE.size :]).view("<f4").astype(np.float32, copy=False)
    if not (np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1) <= _NOT_UNIT).all():  # NaN is not either
        raise GalleryDamagedError("gallery: expected templates of finite numbers and unit length, found others")
    vectors.setflags(write=False)
    return vectors


def encode_image(image: KeptImage) -> bytes:
    """Encode a kept image: whether it is aligned, box, landmarks, then the PNG file."""
    numbers = (*map(float, image.box), *map(float, np.ravel(image.landmarks)))
    return _IMAGE.pack(image.aligned, *numbers) + image.png


def decode_image(body: bytes) -> KeptImage:
    """Decode what `encode_image` wrote."""
    with _decoding("an image"):
        aligned, *numbers = _IMAGE.unpack_from(body)
        values = np.array(numbers, np.float32)
    return KeptImage(png=body[_IMAGE.size :], box=values[:4], landmarks=values[4:].reshape(5, 2), aligned=aligned)
