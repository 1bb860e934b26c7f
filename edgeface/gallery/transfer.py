"""A gallery in, a file that can be read elsewhere out, and back into another gallery: all of it or nothing."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.errors import ArchiveError
from edgeface.gallery.archive import json_bytes, pack, unpack
from edgeface.gallery.enrol import EnrolRules, enrol
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.records import KeptImage, NewTemplate, Person, now
from edgeface.gallery.store.protocol import Store
from edgeface.model.embedding import Embedding, require_same_contract

__all__ = ["Export", "Import", "export_gallery", "import_gallery"]

_FORMAT, _VERSION = "edgeface-gallery", 1
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError)
"""What reading values raises that are not of the kind expected; anybody may have written them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What `export_gallery` wrote."""

    people: int
    templates: int
    images: int
    bytes: int
    encrypted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What `import_gallery` added, and what was there already."""

    people: int
    templates: int
    already: int


def export_gallery(store: Store, path: Path, *, key: bytes | None) -> Export:
    """Write everybody into one file, whole or not at all.

    Parameters
    ----------
    store
        The gallery.
    path
        The file.
    key
        To seal it with; None: whoever has the file can read it, which is why there is no default.

    Raises
    ------
    OutputError
        If it cannot be written.
    InputError
        If it is too large to be sealed: 2 GiB.
    """
    with store.writing():  # one state, and nobody else's
        people = store.people()
        parts, templates, images = _parts(store, people)
    size = pack(path, parts, key=key, contract_id=store.info.contract_id)
    return Export(
        people=len(people), templates=templates, images=images, bytes=size, encrypted=key is not None
    )


def _parts(store: Store, people: Sequence[Person]) -> tuple[dict[str, bytes], int, int]:
    info = store.info
    parts: dict[str, bytes] = {}
    vectors: list[np.ndarray] = []
    listed: list[dict[str, Any]] = []
    for number, person in enumerate(people):
        for each in store.templates_of(person.id):
            image = store.image_of(each.id) if each.has_image else None
            name = f"images/{len(listed)}.png" if image else None
            if image and name:
                parts[name] = image.png
            listed.append(
                {
                    "person": number,
                    "quality": None if math.isnan(each.quality) else each.quality,
                    "source_sha256": each.source_sha256,
                    "created": each.created.isoformat(),
                    "image": name,
                    "box": image.box.tolist() if image else None,
                    "landmarks": _without_nan(image.landmarks) if image else None,
                    "aligned": image.aligned if image else None,
                }
            )
            vectors.append(each.embedding.vector)
    matrix = io.BytesIO()
    np.save(matrix, np.array(vectors, np.float32).reshape(-1, info.dim))
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "contract_id": info.contract_id,
        "dim": info.dim,
        "metric": info.metric,
        "model": info.model,
        "created": now().isoformat(),
        "people": len(people),
        "templates": len(listed),
    }
    images = len(parts)
    parts["gallery.json"] = json_bytes(described)
    parts["people.json"] = json_bytes(
        [
            {
                "name": person.name,
                "labels": person.labels,
                "metadata": person.metadata,
                "created": person.created.isoformat(),
            }
            for person in people
        ]
    )
    parts["templates.json"] = json_bytes(listed)
    parts["vectors.npy"] = matrix.getvalue()
    return parts, len(listed), images


def import_gallery(
    store: Store, path: Path, *, key: bytes | None, rules: EnrolRules, force: bool = False
) -> Import:
    """Add everybody from an export: all of them, or nobody.

    Who is there by name gets the templates that are missing, and keeps labels and metadata; a face that is somebody
    else's is refused as by `enrol`. Images are left out where the gallery keeps none.

    Parameters
    ----------
    store
        A gallery of the same contract.
    path
        What `export_gallery` wrote.
    key
        It was sealed with, or None.
    rules, force
        As for `enrol`.

    Raises
    ------
    ContractError
        If it is of another contract.
    GalleryKeyError
        If it is sealed and the key is missing or another one, or is not sealed and a key was given.
    ArchiveError, ChecksumError
        If it is something else, or damaged.
    EnrolmentRefused
        If somebody in it is enrolled under another name.
    """
    parts = unpack(path, key)
    described, people, listed = _described(path, parts)
    require_same_contract(store.info.contract_id, described["contract_id"], what=f"gallery and {path.name}")
    try:
        matrix = np.load(io.BytesIO(parts["vectors.npy"]), allow_pickle=False)
        grouped: list[list[NewTemplate]] = [[] for _ in people]
        for row, each in zip(matrix, listed, strict=True):
            grouped[each["person"]].append(
                _template(row, each, parts, described["contract_id"], keep=store.info.keeps_images)
            )
        names = [
            (str(person["name"]), [str(label) for label in person["labels"]], dict(person["metadata"]))
            for person in people
        ]
    except _MALFORMED as error:
        raise ArchiveError(f"{path}: expected an export of a gallery, found: {error!r}") from error
    before = len(store.people())
    added = already = 0
    with store.writing():
        index = LiveIndex(
            store
        )  # of those who were there: an export's own people have passed these rules before
        for (name, labels, metadata), templates in zip(names, grouped, strict=True):
            if not templates:
                if store.find(name) is None:
                    store.add_person(name, labels=labels, metadata=metadata)
                continue
            new = store.find(name) is None
            done = enrol(
                store,
                name,
                templates,
                rules=rules,
                index=index,
                labels=labels if new else None,
                metadata=metadata if new else None,
                force=force,
            )
            added, already = added + len(done.template_ids), already + done.already
        total = len(store.people())
    return Import(people=total - before, templates=added, already=already)


def _without_nan(landmarks: np.ndarray) -> list[list[float | None]]:
    """As JSON has them: it has no NaN."""
    return [[None if math.isnan(value) else value for value in point] for point in landmarks.tolist()]


def _template(
    row: np.ndarray, stored: dict[str, Any], parts: dict[str, bytes], contract_id: str, *, keep: bool
) -> NewTemplate:
    image = None
    if stored["image"] is not None and keep:
        image = KeptImage(
            png=parts[stored["image"]],
            box=np.array(stored["box"], np.float32).reshape(4),
            landmarks=np.array(stored["landmarks"], np.float32).reshape(5, 2),
            aligned=bool(stored["aligned"]),
        )
    return NewTemplate(
        embedding=Embedding(row, contract_id),
        quality=float("nan") if stored["quality"] is None else float(stored["quality"]),
        source_sha256=str(stored["source_sha256"]),
        created=datetime.fromisoformat(stored["created"]),
        image=image,
    )


def _described(
    path: Path, parts: dict[str, bytes]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        described, people, listed = (
            json.loads(parts[f"{name}.json"]) for name in ("gallery", "people", "templates")
        )
        wrong = described["format"] != _FORMAT or described["version"] != _VERSION
        if not isinstance(described["contract_id"], str):
            raise TypeError("contract_id is no text")
    except _MALFORMED as error:
        raise ArchiveError(f"{path}: expected an export of a gallery, found: {error!r}") from error
    if wrong:
        raise ArchiveError(
            f"{path}: expected {_FORMAT} of version {_VERSION}, found {described['format']!r} of version "
            f"{described['version']!r}; update edgeface"
        )
    if not isinstance(people, list) or not isinstance(listed, list):
        raise ArchiveError(f"{path}: expected lists of people and templates, found something else")
    return described, people, listed
