"""Values that a gallery takes and returns: people, templates, and what was done to them."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, GalleryError, InputError
from edgeface.model.contract import current_id
from edgeface.model.embedding import Embedding
from edgeface.text import is_invisible
from edgeface.untrusted import parse_json

_NAME_LENGTH = 200
_UNIT = 1e-5
"""How far from 1 a length may be that counts as 1; such an embedding is stored bit by bit. Float32 leaves 1e-7."""


def now() -> datetime:
    """Return the time, in UTC, to the microsecond."""
    return datetime.now(timezone.utc)


def is_detector_name(name: object) -> bool:
    """Return whether this can be the name of a detector: 1 to 40 printable ASCII characters, no space."""
    return isinstance(name, str) and re.fullmatch("[!-~]{1,40}", name) is not None


def detector_note(made_with: Sequence[str], detector: str) -> str | None:
    """Say that some of a gallery's templates were made with other detectors than the one that finds the probes' faces.

    None if no other is known. The figures are of FaceNet, MTCNN and YuNet on LFW (docs/galleries.md).
    """
    others = [name for name in made_with if name != detector]
    if not others:
        return None
    mixed = len(others) < len(made_with)
    again = "erase people with 'edgeface gallery forget' and enrol their photos again"
    advice = (
        f"{again}; whose templates these are is not stored" if mixed else f"use the detector {others[0]}, or {again}"
    )
    return (
        f"{'some of ' if mixed else ''}the gallery's templates were made with {' and '.join(others)}, and {detector} "
        "finds the faces now: a person is accepted a little less often (FaceNet on LFW: 94.0 to 94.4 % instead of 94.8 "
        f"to 95.2 %); {advice}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryInfo:
    """What a gallery is bound to.

    Attributes
    ----------
    gallery_id
        32 hexadecimal digits, random: tells galleries of one contract apart.
    contract_id, dim, metric
        Of every embedding in it: its contract, its length, and how it is compared, ``cosine``.
    model
        Name of the model, for people; may be empty.
    created
        UTC.
    encrypted
        Whether names, metadata, embeddings and images are unreadable without a key.
    keeps_images
        Whether the part of a photo that shows the face is kept, which `rebuild` needs.
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

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**dataclasses.asdict(self), "created": self.created.isoformat()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A person who is enrolled.

    The store gives the positive `id` and never gives it twice. The name is unique in a gallery. Labels, by which people
    are selected, are sorted; metadata are JSON values by key; `created` is in UTC.
    """

    id: int
    name: str
    labels: tuple[str, ...]
    metadata: Mapping[str, Any]
    created: datetime
    template_count: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**dataclasses.asdict(self), "labels": list(self.labels), "created": self.created.isoformat()}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KeptImage:
    """The part of a photo that shows one face, large enough to be aligned again by any recipe.

    Attributes
    ----------
    png
        The pixels as a PNG file; (H, W, 3) uint8, BGR when decoded by OpenCV.
    box : (4,) float32
        x0, y0, x1, y1 of the face in these pixels.
    landmarks : (5, 2) float32
        As in `edgeface.vision.detector.Faces`; NaN where they are not known.
    aligned
        Whether it is an aligned crop.
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
        Of the photo's file, 64 hexadecimal digits; empty: not known.
    created
        UTC.
    image
        Kept only by a gallery that keeps images; given to another, it is an error.
    detector
        Name of the detector that found the face; empty: not known, or none did. The gallery notes it, not the template.
    """

    embedding: Embedding
    quality: float = float("nan")
    source_sha256: str = ""
    created: datetime = field(default_factory=now)
    image: KeptImage | None = None
    detector: str = ""

    def __post_init__(self) -> None:
        if self.detector and not is_detector_name(self.detector):
            raise GalleryError(
                f"detector: expected 1 to 40 printable ASCII characters, no space, found {self.detector!r:.60}"
            )
        digest = self.source_sha256
        if digest and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
            raise GalleryError(f"source_sha256: expected 64 lower-case hexadecimal digits or none, found {digest!r}")
        if not (np.isnan(self.quality) or 0 <= self.quality <= 1):
            raise GalleryError(f"quality: expected 0 to 1, or NaN if unknown, found {self.quality}")
        if self.created.tzinfo is None:
            raise GalleryError(f"created: expected a time with its zone, found {self.created}")
        object.__setattr__(self, "created", self.created.astimezone(timezone.utc))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Template:
    """One stored embedding, of length 1, and whether its image was kept.

    The store gives `id` and never gives it twice. `quality`, `source_sha256` and `created` are as in `NewTemplate`.
    """

    id: int
    person_id: int
    embedding: Embedding
    quality: float
    source_sha256: str
    created: datetime
    has_image: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, without the embedding."""
        return {
            "id": self.id,
            "quality": None if np.isnan(self.quality) else self.quality,
            "source_sha256": self.source_sha256 or None,
            "created": self.created.isoformat(),
            "has_image": self.has_image,
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TemplateBlock:
    """Templates in arrays, for search; it makes the arrays read-only.

    Attributes
    ----------
    ids, person_ids : (N,) int64
        Of the templates, rising, and of the person of each.
    vectors : (N, D) float32
        Unit length.
    contract_id, generation, history
        Of all of them, and of the gallery when they were read (`GalleryStore.history`); empty: of no gallery.
    """

    ids: NDArray[np.int64]
    person_ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    contract_id: str
    generation: int
    history: str = ""

    def __post_init__(self) -> None:
        for array in (self.ids, self.person_ids, self.vectors):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Changes:
    """What happened to the templates since a generation, and generation and history of the gallery with it.

    `removed` is (M,) int64: ids of templates that are gone; some may have come and gone in between.
    """

    generation: int
    removed: NDArray[np.int64]
    added: TemplateBlock
    history: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What `forget` did; true if the files prove it.

    Attributes
    ----------
    templates, images
        How many were erased.
    generation
        Of the gallery afterwards.
    searched
        Files that were read from the first byte to the last, and their sizes.
    needles, remains
        How many pieces of names, embeddings and images were searched for, and where one was found; also rows that are
        not what was written there, of which nobody can say whose they are.
    unsearched
        What may hold it and was not read, and what to do about it: on a server its log and its backups, and its files
        where the user may not read them.
    """

    person_id: int
    templates: int
    images: int
    generation: int
    searched: Mapping[str, int]
    needles: int
    remains: tuple[str, ...]
    unsearched: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.proved

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with whether it is proved."""
        searched = {"searched": dict(self.searched), "remains": list(self.remains), "unsearched": list(self.unsearched)}
        return {**dataclasses.asdict(self), **searched, "proved": self.proved}

    def also(self, proof: Proof) -> Erasure:
        """Return the erasure with what a search of other files found, where the person was erased too."""
        return dataclasses.replace(
            self,
            searched={**self.searched, **proof.searched},
            needles=self.needles + proof.needles,
            remains=(*self.remains, *proof.remains),
            unsearched=(*self.unsearched, *proof.unsearched),
        )

    @property
    def proved(self) -> bool:
        """Whether the gallery's own files were searched, and nothing was found."""
        return bool(self.searched) and not self.remains


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a search for what was erased has found; the attributes are those of `Erasure`."""

    searched: Mapping[str, int]
    needles: int
    remains: tuple[str, ...]
    unsearched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeying:
    """What `rekey` did: how many rows it sealed anew, and the id of the new key, empty without encryption.

    `searched`, `remains` and `unsearched` are as in `Erasure`, of rows as they were stored before.
    """

    key_id: str
    rows: int
    searched: Mapping[str, int]
    remains: tuple[str, ...]
    unsearched: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilding:
    """What `rebuild` did.

    Attributes
    ----------
    embedded, reused, dropped
        Templates that were embedded now, by an earlier run that was interrupted, and that have no usable image.
    without_templates
        Names of people who have no template left, and have to be enrolled again.
    remains
        Where an old row was found in the files afterwards; empty unless the erasure failed.
    unsearched
        As in `Erasure`.
    """

    contract_id: str
    embedded: int
    reused: int
    dropped: int
    without_templates: tuple[str, ...]
    remains: tuple[str, ...]
    unsearched: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """How many rows of each table are what was written, and one line for each problem; true if there is none."""

    rows: Mapping[str, int]
    problems: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.problems


def unit_vector(template: NewTemplate, info: GalleryInfo) -> NDArray[np.float32]:
    """Return the embedding as this gallery stores it: (D,) float32 of length 1.

    `ContractError` is raised if it is of another contract, or of another length.
    """
    embedding = template.embedding
    if current_id(embedding.contract_id) != current_id(info.contract_id) or len(embedding.vector) != info.dim:
        raise ContractError(
            f"gallery: expected embeddings of contract {info.contract_id} and {info.dim} values, found contract "
            f"{embedding.contract_id} and {len(embedding.vector)} values; embed with the gallery's model, or move the "
            "gallery to this one with 'edgeface gallery rebuild'"
        )
    length = float(np.linalg.norm(embedding.vector.astype(np.float64)))
    if abs(length - 1) <= _UNIT:
        return embedding.vector
    return (embedding.vector.astype(np.float64) / length).astype(np.float32)


def check_name(name: str) -> str:
    """Normalize a person's name: Unicode NFC, one space between words, none around them.

    `GalleryError` is raised if it is empty, longer than 200 characters, has invisible characters, which would make two
    people of what looks like one name, looks like an id, ``#1``, or is ``unknown``, which is said of who is nobody.
    """
    tidy = _tidy(name, "name")
    if re.fullmatch(r"#\s*\d+", unicodedata.normalize("NFKC", tidy)):
        raise GalleryError(
            f"name: expected a name, found {name!r:.80}, which looks like the id of a person; leave out the '#'"
        )
    if tidy.casefold() == "unknown":
        raise GalleryError(
            f"name: expected a person's name, found {name!r}, which 'edgeface identify' says of people who are not "
            "enrolled; choose another, or move a folder of that name away"
        )
    return tidy


def name_forms(name: str) -> tuple[str, ...]:
    """Return the forms in which a person of this name may be stored: that of edgeface 0.1, and today's."""
    former = unicodedata.normalize("NFC", name).strip()
    return tuple(dict.fromkeys((former, " ".join(former.split()))))


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Normalize labels: each as `check_name` does, but one may look like an id; once, sorted."""
    return tuple(sorted({_tidy(label, "label") for label in labels}))


def _tidy(text: str, what: str) -> str:
    tidy = unicodedata.normalize("NFC", text).strip()
    for at, character in enumerate(tidy):
        if is_invisible(tidy, at):
            called = unicodedata.name(character, "a control character")
            raise GalleryError(
                f"{what}: expected characters that are seen, found U+{ord(character):04X} ({called}) in {text!r:.80}; "
                "leave it out"
            )
    tidy = " ".join(tidy.split())
    if not 1 <= len(tidy) <= _NAME_LENGTH:
        raise GalleryError(f"{what}: expected 1 to {_NAME_LENGTH} characters, found {text!r:.80}")
    return tidy


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy metadata as JSON will give it back; `GalleryError` for other than JSON values by text keys.

    So are values that `parse_json` refuses, as deep ones: the person could be stored, and never be read again.
    """
    stored = dict(metadata or {})
    try:
        text = json.dumps([stored], allow_nan=False)
        (copy,) = parse_json(text)
        json.dumps(copy, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be written
    except (TypeError, ValueError, RecursionError, InputError) as error:
        raise GalleryError(f"metadata: expected JSON values, found {stored!r:.80}: {error}") from error
    if copy.keys() != stored.keys():
        raise GalleryError(f"metadata: expected text keys, found {list(stored)!r:.80}")
    return copy  # type: ignore[no-any-return]
