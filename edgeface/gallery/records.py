"""People and their templates as a store takes them and gives them back: values, without a place where they are kept."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, GalleryError
from edgeface.model.embedding import Embedding

__all__ = [
    "Changes",
    "Erasure",
    "GalleryInfo",
    "KeptImage",
    "NewTemplate",
    "Person",
    "Template",
    "TemplateBlock",
    "check_labels",
    "check_metadata",
    "check_name",
    "now",
    "unit_vector",
]

_NAME_LENGTH = 200
_UNIT = 1e-5
"""How far from 1 a length may be that counts as 1: float32 leaves 1e-7, and what is stored is kept bit by bit."""


def now() -> datetime:
    """The time, in UTC, to the microsecond."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryInfo:
    """What a gallery is bound to.

    Attributes
    ----------
    gallery_id
        32 hexadecimal digits, random: tells galleries of one contract apart.
    contract_id
        Of every embedding in it.
    dim
        Length of an embedding.
    metric
        How embeddings are compared: ``cosine``.
    model
        Name of the model, for people; may be empty.
    created
        UTC.
    encrypted
        Whether names, metadata, embeddings and images are unreadable without a key.
    keeps_images
        Whether the part of a picture that shows the face is kept, which `rebuild` needs.
    schema_version
        Of the file or the tables.
    """

    gallery_id: str
    contract_id: str
    dim: int
    metric: str
    model: str
    created: datetime
    encrypted: bool
    keeps_images: bool
    schema_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who is enrolled.

    Attributes
    ----------
    id
        Positive, given by the store, never given twice.
    name
        Unique in a gallery.
    labels
        Words to select people by, sorted.
    metadata
        JSON values by key.
    created
        UTC.
    template_count
        How many templates there are of this person.
    """

    id: int
    name: str
    labels: tuple[str, ...]
    metadata: Mapping[str, Any]
    created: datetime
    template_count: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KeptImage:
    """The part of a picture that shows one face, large enough to be aligned again by any recipe.

    Attributes
    ----------
    png
        The pixels, BGR when decoded by OpenCV, lossless.
    box : (4,) float32
        x0, y0, x1, y1 of the face in these pixels.
    landmarks : (5, 2) float32
        As in `edgeface.vision.detector.Faces`; NaN where they are not known.
    aligned
        Whether it is a crop that was aligned already.
    """

    png: bytes
    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    aligned: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NewTemplate:
    """One embedding of a person, to be stored.

    Attributes
    ----------
    embedding
        Of any length but 0; stored with length 1.
    quality
        `edgeface.vision.quality.Quality.score`, 0 to 1; NaN: not known.
    source_sha256
        Of the picture's file, 64 hexadecimal digits; empty: not known.
    created
        UTC.
    image
        Kept only by a gallery that keeps images; given to another, it is an error.
    """

    embedding: Embedding
    quality: float = float("nan")
    source_sha256: str = ""
    created: datetime = field(default_factory=now)
    image: KeptImage | None = None

    def __post_init__(self) -> None:
        digest = self.source_sha256
        if digest and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
            raise GalleryError(
                f"source_sha256: expected 64 lower-case hexadecimal digits or none, found {digest!r}"
            )
        if not (np.isnan(self.quality) or 0 <= self.quality <= 1):
            raise GalleryError(f"quality: expected 0 to 1, or NaN for not known, found {self.quality}")
        if self.created.tzinfo is None:
            raise GalleryError(f"created: expected a time with its zone, found {self.created}")
        object.__setattr__(self, "created", self.created.astimezone(timezone.utc))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Template:
    """One stored embedding.

    Attributes
    ----------
    id, person_id
        Given by the store, never given twice.
    embedding
        Of length 1.
    quality, source_sha256, created
        As in `NewTemplate`.
    has_image
        Whether its picture was kept.
    """

    id: int
    person_id: int
    embedding: Embedding
    quality: float
    source_sha256: str
    created: datetime
    has_image: bool


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TemplateBlock:
    """Embeddings as a search wants them.

    Attributes
    ----------
    ids : (N,) int64
        Of the templates, rising.
    person_ids : (N,) int64
        Whose each is.
    vectors : (N, D) float32
        Unit length; read-only.
    contract_id
        Of all of them.
    generation
        Of the gallery when they were read.
    """

    ids: NDArray[np.int64]
    person_ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    contract_id: str
    generation: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Changes:
    """What an index that knows an earlier generation has to do.

    Attributes
    ----------
    generation
        That it then knows.
    removed : (M,) int64
        Ids of templates that are gone; some may be unknown to it.
    added
        Templates that are there now and were not.
    """

    generation: int
    removed: NDArray[np.int64]
    added: TemplateBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What `forget` did, and what it looked for afterwards.

    Attributes
    ----------
    person_id
        Whose data it was.
    templates, images
        How many were erased.
    generation
        Of the gallery afterwards.
    searched
        Files that were read from the first byte to the last, and their sizes.
    needles
        Pieces of names, embeddings and images that were looked for.
    remains
        Where one was found: empty, or the erasure failed.
    """

    person_id: int
    templates: int
    images: int
    generation: int
    searched: Mapping[str, int]
    needles: int
    remains: tuple[str, ...]

    @property
    def proved(self) -> bool:
        """Whether files were searched, and nothing was found in them."""
        return bool(self.searched) and not self.remains


def unit_vector(template: NewTemplate, info: GalleryInfo) -> NDArray[np.float32]:
    """The embedding as this gallery stores it: (D,) float32 of length 1.

    Raises
    ------
    ContractError
        If it is of another contract, of another length, or has no direction.
    """
    embedding = template.embedding
    if embedding.contract_id != info.contract_id or len(embedding.vector) != info.dim:
        raise ContractError(
            f"gallery: expected embeddings of contract {info.contract_id} and {info.dim} values, found contract "
            f"{embedding.contract_id} and {len(embedding.vector)} values; embed with the gallery's model, or move the "
            "gallery to this one with 'edgeface gallery rebuild'"
        )
    length = float(np.linalg.norm(embedding.vector.astype(np.float64)))
    if not length > 0:
        raise ContractError(f"gallery: expected an embedding with a direction, found one of length {length}")
    if abs(length - 1) <= _UNIT:
        return embedding.vector
    return (embedding.vector.astype(np.float64) / length).astype(np.float32)


def check_name(name: str) -> str:
    """A name in its one form: Unicode NFC, without spaces around it.

    Raises
    ------
    GalleryError
        If nothing is left of it, it is longer than 200 characters, or has control characters.
    """
    tidy = unicodedata.normalize("NFC", name).strip()
    if not 1 <= len(tidy) <= _NAME_LENGTH or any(unicodedata.category(c) in ("Cc", "Cs") for c in tidy):
        raise GalleryError(
            f"name: expected 1 to {_NAME_LENGTH} characters and no control characters, found {name!r:.80}"
        )
    return tidy


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels in their one form: each as `check_name` makes it, once, sorted."""
    return tuple(sorted({check_name(label) for label in labels}))


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of metadata, as it will come back from JSON.

    Raises
    ------
    GalleryError
        If it has other than JSON values by text keys.
    """
    stored = dict(metadata or {})
    try:
        copy = json.loads(json.dumps(stored, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise GalleryError(f"metadata: expected JSON values, found {stored!r:.80}: {error}") from error
    if copy.keys() != stored.keys():
        raise GalleryError(f"metadata: expected text keys, found {list(stored)!r:.80}")
    return copy  # type: ignore[no-any-return]
