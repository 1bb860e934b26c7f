"""Import encodings that a program with the `face_recognition` package has stored into a gallery of dlib's network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ContractError, EnrolmentRefused, GalleryError, InputError, OutputError
from edgeface.gallery.enrolment import EnrolRules, enrol
from edgeface.gallery.index.live import LiveIndex
from edgeface.gallery.records import NewTemplate, check_name
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.contract import current_id
from edgeface.model.embedding import Embedding
from edgeface.pickles import read_pickle
from edgeface.untrusted import ENCODINGS_BYTES, MODEL_BYTES, parse_npy, read_json, read_regular, read_text, reading

DLIB_CONTRACT_ID = "a3d57e4c2741b880"
"""Contract of dlib-face-recognition-resnet-v1 as `edgeface convert` writes it: FP32."""

_DIM = 128
_LENGTHS = (1.05, 2.0)
"""Plausible lengths of an encoding. dlib's network gave 1.18 to 1.68 for 1,400 faces of LFW, and for the same blurred,
turned, dark, reduced to 8 pixels, and without a face; means of several encodings are shorter."""
_TABLES = (("names", "encodings"), ("known_face_names", "known_face_encodings"), ("known_names", "known_encodings"))
"""Keys under which programs store a list of names beside a list of encodings."""
_TOLD = 3
"""Most problems that a message names."""
_BLOCK = 1024
"""Encodings that are compared with all others at a time."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredEncodings:
    """What `read_encodings` found.

    Attributes
    ----------
    names
        Of the person of each encoding, as by `check_name`.
    vectors : (N, 128) float32
        The encodings as they were stored, not of unit length.
    skipped
        A line for each entry without an encoding, which a program stores where it found no face.
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingImport:
    """What `import_encodings` did.

    Attributes
    ----------
    people, templates, already
        New people, new templates, and encodings that were stored before or are twice in the file.
    skipped
        As in `StoredEncodings`.
    disagreements
        A line for each two encodings of one person that do not look alike.
    """

    people: int
    templates: int
    already: int
    skipped: tuple[str, ...]
    disagreements: tuple[str, ...]


def read_encodings(path: Path, *, names: Path | None = None) -> StoredEncodings:
    """Read encodings and names that were stored as a pickle, as JSON or by numpy. Nothing in a pickle is run.

    A pickle or JSON holds a dictionary of two lists under ``names`` and ``encodings`` (or ``known_face_names`` and
    ``known_face_encodings``, ``known_names`` and ``known_encodings``); a dictionary of one encoding or a list of
    encodings by name; a pair of these two lists; or a list of names with their encodings, as pairs or as dictionaries
    of ``name`` and ``encoding``. An array (N, 128) and a list of encodings need a file of names.

    Parameters
    ----------
    path
        ``.json``, ``.npy``, or a pickle under any other name.
    names
        For encodings without names: N lines of text, a JSON list, or a ``.npy`` array of text. None: the file of the
        same name that ends in ``.txt``.

    Raises
    ------
    InputError
        If the file cannot be read or is not understood, a name is unusable, or one encoding is not of dlib's network:
        not 128 finite numbers, or of another length. The text names the first of them.
    """
    content = _read(path)
    entries = list(_entries(path, content, names))
    people: list[str] = []
    vectors: list[NDArray[np.float64]] = []
    skipped: list[str] = []
    problems: list[str] = []
    for number, (name, value) in enumerate(entries, start=1):
        label = f"entry {number} ({name!r:.60})"
        try:
            tidy = _tidy_name(name)
            found = _vectors(value)
        except (InputError, TypeError, ValueError, OverflowError) as error:
            problems.append(f"{label}: {error}")
            continue
        if not len(found):
            skipped.append(f"{label}: no encoding")
        people += [tidy] * len(found)
        vectors += list(found)
    if problems:
        more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        raise InputError(
            path=path,
            expected="names and encodings of dlib's network, {} finite numbers of length {} to {}".format(
                _DIM, *_LENGTHS
            ),
            found="; ".join(problems[:_TOLD]) + more,
            remedy="encode the photos of another model again: edgeface gallery enrol",
        )
    matrix = np.array(vectors, np.float32).reshape(-1, _DIM)
    if not len(matrix):
        raise InputError(path=path, expected="at least one encoding", found=f"{len(entries)} entries without any")
    return StoredEncodings(names=tuple(people), vectors=matrix, skipped=tuple(skipped))


def import_encodings(
    store: GalleryStore, path: Path, *, rules: EnrolRules, names: Path | None = None, force: bool = False
) -> EncodingImport:
    """Import stored encodings. If one of them or one person is refused, none is imported.

    The original finds and aligns faces in another way than edgeface, with the same network: the two encodings of one
    photo are 0.14 apart (median), and decisions at 0.6 agree for 99.5 % of pairs of LFW (docs/face_recognition.md).

    Parameters
    ----------
    store
        A gallery of `DLIB_CONTRACT_ID`.
    path, names
        As for `read_encodings`.
    rules, force
        As for `enrol`. People of the file are compared with each other too.

    Raises
    ------
    InputError
        As `read_encodings`.
    ContractError
        If the gallery or the rules are of another contract.
    EnrolmentRefused
        If a person is enrolled, or is in the file, under another name too.
    """
    if current_id(store.info.contract_id) != DLIB_CONTRACT_ID:
        raise ContractError(
            expected=f"a gallery of dlib's network, contract {DLIB_CONTRACT_ID}",
            found=f"one of {store.info.model or 'another model'}, contract {store.info.contract_id}",
            remedy="create one: edgeface gallery create GALLERY --model dlib-face-recognition-resnet-v1",
        )
    stored = read_encodings(path, names=names)
    if not force:
        _refuse_two_names(stored, rules)
    added = already = 0
    disagreements: list[str] = []
    with store.writing():
        before = len(store.people())
        index = LiveIndex(store)  # of those who are enrolled already
        for name, templates in _templates(stored).items():
            done = enrol(store, name, templates, rules=rules, index=index, force=force)
            added, already = added + len(done.template_ids), already + done.already
            for odd in done.disagreements:
                other = f"encoding {odd.other + 1}" if isinstance(odd.other, int) else f"template {odd.other.id}"
                disagreements.append(
                    f"{name}: encoding {odd.new + 1} and {other} do not look like one person (similarity "
                    f"{odd.similarity:.3f}); check them"
                )
        total = len(store.people())
    with contextlib.suppress(GalleryError, OutputError):  # the import is committed, whatever happens now
        store.load()  # writes the cache: the next one to open the gallery need not wait
    return EncodingImport(
        people=total - before,
        templates=added,
        already=already,
        skipped=stored.skipped,
        disagreements=tuple(disagreements),
    )


def _templates(stored: StoredEncodings) -> dict[str, list[NewTemplate]]:
    grouped: dict[str, list[NewTemplate]] = {}
    for name, vector in zip(stored.names, stored.vectors, strict=True):
        grouped.setdefault(name, []).append(NewTemplate(embedding=Embedding(vector, DLIB_CONTRACT_ID)))
    return grouped


def _refuse_two_names(stored: StoredEncodings, rules: EnrolRules) -> None:
    """Raise `EnrolmentRefused` if encodings of two names are one person's by the rules."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(stored.names))}
    owners = np.array([numbers[name] for name in stored.names])
    unit = stored.vectors / np.linalg.norm(stored.vectors, axis=1, keepdims=True)
    pairs: dict[tuple[str, str], float] = {}
    for start in range(0, len(unit), _BLOCK):
        part = slice(start, start + _BLOCK)
        similar = unit[part] @ unit.T
        similar[owners[part, None] >= owners] = -1  # each pair of people once
        for row, column in np.argwhere(similar > rules.duplicate_above):
            pair = stored.names[start + row], stored.names[column]
            pairs[pair] = max(pairs.get(pair, -1.0), float(similar[row, column]))
    if pairs:
        ranked = sorted(pairs.items(), key=lambda item: -item[1])
        told = ", ".join(f"{a!r} and {b!r} (similarity {score:.3f})" for (a, b), score in ranked[:_TOLD])
        more = f" and {len(ranked) - _TOLD} more" if len(ranked) > _TOLD else ""
        raise EnrolmentRefused(
            expected="one name for each face",
            found=f"the same face under two names: {told}{more}",
            remedy="give both one name, or import them with --force; nothing was imported",
        )


# Files


def _read(path: Path) -> Any:
    if path.suffix.lower() == ".npy":
        with reading(path, "an array of numbers or text, saved by numpy"):
            return parse_npy(read_regular(path, limit=MODEL_BYTES))
    if path.suffix.lower() == ".json":
        return read_json(path, "JSON text", limit=ENCODINGS_BYTES)
    return read_pickle(path)


def _entries(path: Path, content: Any, names: Path | None) -> Iterator[tuple[Any, Any]]:
    """List names and what is stored for each: one encoding, several, or None."""
    if isinstance(content, dict):
        for keys in _TABLES:
            if all(key in content for key in keys):
                return _paired(path, content[keys[0]], content[keys[1]])
        return iter(content.items())
    if _is_list(content) and len(content) == 2:
        for texts, others in (content, reversed(content)):
            if _is_list(texts) and len(texts) and all(isinstance(each, str) for each in texts) and _is_list(others):
                return _paired(path, texts, others)
    if _is_list(content) and len(content):
        if all(isinstance(each, dict) and {"name", "encoding"} <= each.keys() for each in content):
            return iter([(each["name"], each["encoding"]) for each in content])
        if all(isinstance(each, list | tuple) and len(each) == 2 and isinstance(each[0], str) for each in content):
            return iter([(name, value) for name, value in content])
        if all(each is None or (_is_list(each) and not any(isinstance(one, str) for one in each)) for each in content):
            return _paired(path, _names(path, names), content)
    raise InputError(
        path=path,
        expected="names and encodings: {'names': [...], 'encodings': [...]}, {name: encoding}, or an array (N, 128)",
        found=f"a {type(content).__name__}{f' of {len(content)}' if _is_list(content) else ''}",
        remedy="save them in one of these forms",
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _paired(path: Path, names: Any, encodings: Any) -> Iterator[tuple[Any, Any]]:
    if not (_is_list(names) and _is_list(encodings)) or len(names) != len(encodings):
        counts = [len(each) if _is_list(each) else "no list" for each in (names, encodings)]
        raise InputError(
            path=path, expected="as many names as encodings", found=f"names: {counts[0]}, encodings: {counts[1]}"
        )
    return zip(names, encodings, strict=True)


def _names(path: Path, names: Path | None) -> list[Any]:
    """Read the file of names."""
    if names is None:
        names = path.with_suffix(".txt")
        if names.is_file():
            return _names(path, names)
        raise InputError(
            path=path,
            expected="names beside the encodings",
            found="encodings alone",
            remedy=f"pass --names FILE with one name on each line, or write {names.name} beside it",
        )
    if names.suffix.lower() in (".json", ".npy"):
        found = _read(names)
        return list(found) if _is_list(found) else [found]
    return read_text(names, "one name on each line").splitlines()


def _tidy_name(name: Any) -> str:
    if not isinstance(name, str):
        raise InputError(f"expected a name, found a {type(name).__name__}")
    try:
        return check_name(name)
    except GalleryError as error:
        raise InputError(str(error)) from error


def _vectors(value: Any) -> Sequence[NDArray[np.float64]]:
    """Check what is stored under one name: no, one or several encodings."""
    if value is None or (_is_list(value) and not len(value)):
        return []
    several = _is_list(value) and all(_is_list(each) for each in value)
    vectors = [np.asarray(each) for each in value] if several else [np.asarray(value)]
    for number, vector in enumerate(vectors, start=1):
        which = f"encoding {number} is " if len(vectors) > 1 else ""
        if vector.dtype.kind not in "fiu" or vector.ndim != 1:
            raise InputError(f"{which}no list of numbers")
        if len(vector) != _DIM:
            raise InputError(f"{which}{len(vector)} numbers")
        with np.errstate(over="ignore"):
            length = float(np.linalg.norm(vector.astype(np.float64)))
        if not np.isfinite(length):
            raise InputError(f"{which}not finite")
        if not _LENGTHS[0] <= length <= _LENGTHS[1]:
            unit = ", as another model's are" if abs(length - 1) < 1e-3 else ""
            raise InputError(f"{which}of length {length:.3g}{unit}")
    return [vector.astype(np.float64) for vector in vectors]
