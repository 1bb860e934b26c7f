"""Export a gallery to one checksummed file that other programs can read, and import it into another gallery.

The file is a ZIP without compression:

    gallery.json     format ``edgeface-gallery``, version, contract_id, dim, metric, model, created, number of people
                     and of templates, detectors (a list of names, which earlier exports lack)
    people.json      a list of {name, labels, metadata, created}
    templates.json   a list of {person: number in people.json, quality or null, source_sha256, created, image: name in
                     the ZIP or null, box, landmarks (null where they are not known), aligned}
    vectors.npy      (N, D) float32, row n of template n
    images/N.png     images that were kept
    SHA256SUMS       digest and name of every other file, as sha256sum reads it

With a key the ZIP is sealed by `edgeface.cipher.seal` as kind ``gallery-export``. Its header names the contract, an
id of the export and the id that `KeyedCipher` derives from that and the key, which tells another key from damage.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import math
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.cipher import KeyedCipher, header_of, is_sealed, seal, unseal
from edgeface.errors import (
    ArchiveError,
    ChecksumError,
    GalleryError,
    GalleryKeyError,
    InputError,
    ModelFormatError,
    OutputError,
)
from edgeface.files import write_private
from edgeface.gallery.enrolment import EnrolRules, enrol
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.records import KeptImage, NewTemplate, Person, check_name, is_detector_name, now
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.embedding import Embedding, require_same_contract
from edgeface.untrusted import (
    DOCUMENT_BYTES,
    MODEL_BYTES,
    open_zip,
    parse_json,
    parse_npy,
    read_members,
    read_regular,
    reading,
)

_FORMAT, _VERSION, _KIND, _SUMS = "edgeface-gallery", 1, "gallery-export", "SHA256SUMS"
_DETECTORS = 8
"""Most names of detectors in an export."""


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


def export_gallery(store: GalleryStore, path: Path, *, key: bytes | None) -> Export:
    """Write all people into one file, whole or not at all.

    `key`, 32 bytes, encrypts it; None: anyone who has the file can read it, which is why there is no default.
    `OutputError` is raised if it cannot be written, `InputError` if it is too large to be encrypted: 2 GiB.
    """
    with store.reading():  # of one generation
        people = store.people()
        parts, templates, images = _parts(store, people)
    size = pack(path, parts, key=key, contract_id=store.info.contract_id)
    return Export(people=len(people), templates=templates, images=images, bytes=size, encrypted=key is not None)


def _parts(store: GalleryStore, people: Sequence[Person]) -> tuple[dict[str, bytes], int, int]:
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
        **{name: getattr(info, name) for name in ("contract_id", "dim", "metric", "model")},
        "created": now().isoformat(),
        "people": len(people),
        "templates": len(listed),
        "detectors": list(store.detectors()),
    }
    images = len(parts)
    parts["gallery.json"] = _json_bytes(described)
    told = ("name", "labels", "metadata", "created")
    parts["people.json"] = _json_bytes([{name: person.to_dict()[name] for name in told} for person in people])
    parts["templates.json"] = _json_bytes(listed)
    parts["vectors.npy"] = matrix.getvalue()
    return parts, len(listed), images


def import_gallery(
    store: GalleryStore,
    path: Path,
    *,
    key: bytes | None,
    rules: EnrolRules,
    force: bool = False,
    rename: Mapping[str, str] | None = None,
) -> Import:
    """Import all people of an export. If one person is refused, none is imported.

    A person of a known name gets the missing templates, and keeps labels and metadata; a face that is another
    person's is refused as by `enrol`. Images are left out where the gallery keeps none.

    Parameters
    ----------
    store
        A gallery of the same contract.
    path
        What `export_gallery` wrote.
    key
        That the export is encrypted with, or None.
    rules, force
        As for `enrol`.
    rename
        New names by those in the export, for names that are another person's here, or that edgeface 0.1 allowed.

    Raises
    ------
    ContractError
        If it is of another contract.
    GalleryError
        If a name is refused, as by `check_name`, or `rename` gives two people one name.
    InputError
        If nobody in the export has a name that is to be replaced.
    GalleryKeyError
        If it is encrypted and the key is missing or another one, or is not encrypted and a key was given.
    ArchiveError, ChecksumError
        If it is something else, or damaged.
    EnrolmentRefused
        If a person in it is enrolled under another name.
    """
    parts = unpack(path, key)
    described, people, listed = _described(path, parts)
    require_same_contract(store.info.contract_id, described["contract_id"], what=f"gallery and {path.name}")
    with _valid(path):
        matrix = parse_npy(parts["vectors.npy"])
        if matrix.dtype.kind != "f":
            raise TypeError(f"expected embeddings of real numbers, found {matrix.dtype}")
        grouped: list[list[NewTemplate]] = [[] for _ in people]
        for row, each in zip(matrix, listed, strict=True):
            grouped[each["person"]].append(
                _template(row, each, parts, described["contract_id"], keep=store.info.keeps_images)
            )
        names = [
            (_text(person["name"]), [_text(label) for label in person["labels"]], dict(person["metadata"]))
            for person in people
        ]
    added = already = 0
    with store.writing():
        before = len(store.people())
        new_names = _renamed(store, path, [name for name, _, _ in names], rename or {})
        # Of those who are enrolled already: the people of an export have passed these rules before.
        index = LiveIndex(store)
        for name, (_, labels, metadata), templates in zip(new_names, names, grouped, strict=True):
            new = store.find(name) is None
            if not templates:
                if new:
                    store.add_person(name, labels=labels, metadata=metadata)
                continue
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
        if added:
            store.note_detectors(described["detectors"])
        total = len(store.people())
    with contextlib.suppress(GalleryError, OutputError):  # the import is committed, whatever happens now
        store.load()  # writes the cache: the next one to open the gallery need not wait
    return Import(people=total - before, templates=added, already=already)


def _renamed(store: GalleryStore, path: Path, names: Sequence[str], rename: Mapping[str, str]) -> list[str]:
    """Return the names to import people under. A name may be given as messages show it, with escapes."""
    shown = {repr(name)[1:-1]: name for name in names}
    chosen = {shown.get(old, old): new for old, new in rename.items()}
    if unknown := chosen.keys() - set(names):
        raise InputError(
            path=path,
            expected="names of people in this export to rename",
            found=", ".join(f"{name!r:.80}" for name in sorted(unknown)),
            remedy="list who is in it: unzip -p FILE people.json, where it is not encrypted",
        )
    new_names = [chosen.get(name, name) for name in names]
    if twice := [new for new in rename.values() if new_names.count(new) > 1]:
        raise GalleryError(
            f"{path}: expected another name for each person, found {twice[0]!r:.80} twice; choose another"
        )
    for old, new in zip(names, new_names, strict=True):
        if store.find(new) is None:  # a name that edgeface 0.1 stored is as good as any
            try:
                check_name(new)
            except GalleryError as error:
                hint = f"{repr(old)[1:-1]}=NEW NAME"
                raise GalleryError(
                    f"{path}: {error}; import the person under another name: --rename '{hint}'"
                ) from error
    return new_names


def _without_nan(landmarks: np.ndarray) -> list[list[float | None]]:
    """Replace NaN, which JSON does not have."""
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
    with _valid(path):
        described, people, listed = (parse_json(parts[f"{name}.json"]) for name in ("gallery", "people", "templates"))
        wrong = described["format"] != _FORMAT or described["version"] != _VERSION
        if not isinstance(described["contract_id"], str):
            raise TypeError("contract_id is no text")
        detectors = described.setdefault("detectors", [])
        if type(detectors) is not list or len(detectors) > _DETECTORS or not all(map(is_detector_name, detectors)):
            raise TypeError("detectors is no list of their names")
    if wrong:
        raise ArchiveError(
            f"{path}: expected {_FORMAT} of version {_VERSION}, found {described['format']!r:.80} of version "
            f"{described['version']!r:.80}; update edgeface"
        )
    if not isinstance(people, list) or not isinstance(listed, list):
        raise ArchiveError(f"{path}: expected lists of people and templates, found something else")
    return described, people, listed


# The file


def _json_bytes(value: object) -> bytes:
    """Write a value as the text of one of the files."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def pack(path: Path, parts: dict[str, bytes], *, key: bytes | None, contract_id: str) -> int:
    """Write files and their digests as one, whole or not at all; return its size in bytes."""
    content = _zip(parts)
    if key is not None:
        export_id = uuid.uuid4().hex
        key_id = KeyedCipher(key, export_id).key_id
        header = {"kind": _KIND, "contract_id": contract_id, "export_id": export_id, "key_id": key_id}
        content = seal(content, key=key, header=header)
    write_private(path, content)
    return len(content)


def _zip(parts: dict[str, bytes]) -> bytes:
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(parts.items()))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, part in [*sorted(parts.items()), (_SUMS, sums.encode())]:
            entry = zipfile.ZipInfo(name)  # of 1980: a ZIP has no dates before that, or after 2107
            entry.external_attr = 0o600 << 16  # as `writestr` gives a name
            file.writestr(entry, part)
    return content.getvalue()


def unpack(path: Path, key: bytes | None) -> dict[str, bytes]:
    """Read and check what `pack` wrote; it raises what `import_gallery` does."""
    with reading(path, "an export of a gallery that can be read", error=ArchiveError):
        sealed = is_sealed(path)
        content = read_regular(path, limit=MODEL_BYTES + DOCUMENT_BYTES)
    if sealed != (key is not None):
        what = "an encrypted export and no key" if sealed else "a key and an export that is not encrypted"
        raise GalleryKeyError(f"{path}: expected an encrypted export with its key, or neither; found {what}")
    if key is not None:
        try:
            content = unseal(content, key=key, kind=_KIND, source=str(path))
        except ModelFormatError as error:
            if _is_of(content, key):
                raise ArchiveError(
                    f"{path}: written with this key, but the file is damaged: decryption failed; export again"
                ) from error
            raise GalleryKeyError(str(error)) from error
    with reading(path, "an export of a gallery", error=ArchiveError):
        with open_zip(io.BytesIO(content)) as file:
            parts = read_members(file, file.infolist(), limit=len(content))
        sums = dict(line.split("  ", 1)[::-1] for line in parts.pop(_SUMS).decode().splitlines())
    found = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    if found != sums:
        wrong = sorted(name for name in found.keys() | sums.keys() if found.get(name) != sums.get(name))
        raise ChecksumError(f"{path}: checksums differ from {_SUMS}: {', '.join(wrong)}")
    return parts


def _is_of(sealed: bytes, key: bytes) -> bool:
    """Return whether the header of an export that does not open names this key."""
    try:
        header = header_of(sealed)
        return hmac.compare_digest(header["key_id"], KeyedCipher(key, header["export_id"]).key_id)
    except (ModelFormatError, KeyError, TypeError, AttributeError, ValueError):
        return False


def _valid(path: Path) -> contextlib.AbstractContextManager[None]:
    return reading(path, "a valid export of a gallery", error=ArchiveError)


def _text(stored: Any) -> str:
    if not isinstance(stored, str):
        raise TypeError(f"expected text, found {stored!r:.80}")
    return stored
