"""Embed many photos into a table of embeddings, and resume after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeface.errors import ImageError, InputError, OutputError
from edgeface.files import FileIdentity, output_errors, sha256_of, staging_folder
from edgeface.model.contract import ModelContract, current_id
from edgeface.model.embedding import require_same_contract
from edgeface.pipeline.observation import Face, from_left
from edgeface.pipeline.pipeline import Pipeline
from edgeface.pipeline.table import EmbeddingTable, require_format
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.untrusted import parse_json
from edgeface.vision.crops import list_some
from edgeface.vision.image import read_photo_file
from edgeface.vision.listing import list_photos
from edgeface.vision.source import Frame, open_source

_PART_SECONDS = 10.0
"""Work that an interruption can lose, at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class BulkResult:
    """What `embed_files` did.

    Attributes
    ----------
    table
        All rows of the output, in the order of the files.
    files
        How many files were asked for.
    reused
        Files whose rows were there already.
    failures
        Why a file, or a folder of files, has no row.
    dropped
        Files whose rows were in the output, and which were not asked for.
    left_out
        See `edgeface.vision.listing.PhotoList`.
    reduced
        How many times more pixels a photo has on each side, at most, than the image in which its faces were found and
        from which they were cut; see `Pipeline.reduction`.
    """

    table: EmbeddingTable
    files: int
    reused: int
    failures: dict[Path, str]
    dropped: int = 0
    left_out: dict[Path, str] = field(default_factory=dict)
    reduced: int = 1

    def __repr__(self) -> str:
        return (
            f"BulkResult({len(self.table)} embeddings of {self.files} files, {self.reused} reused, "
            f"{len(self.failures)} failed)"
        )


def embed_folder(
    places: Sequence[str | Path],
    pipeline: Pipeline,
    output: Path,
    *,
    results: Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> BulkResult:
    """Embed the faces of the photos in files, folders and shell patterns; see `list_photos` and `embed_files`.

    Photos below `results` are results of earlier runs and do not count.

    Raises
    ------
    InputError
        If a place names nothing; or as `embed_files`.
    """
    found = list_photos(places, output=results)
    done = embed_files(found.files, pipeline, output, unread=found.failures, progress=progress)
    return dataclasses.replace(done, left_out=found.left_out)


def embed_files(
    files: Sequence[Path],
    pipeline: Pipeline,
    output: Path,
    *,
    unread: Mapping[Path, str] = MappingProxyType({}),
    progress: ProgressCallback = ignore_progress,
) -> BulkResult:
    """Embed the faces of photos into a table.

    Photos that the output, or the remains of an interrupted run beside it (``NAME.parts``), has rows of are not
    embedded again while size, modification time and SHA-256 of the file are those of the bytes that the rows were made
    of. Rows of other bytes, and of files that are not listed, are dropped. Rows of edgeface
    0.1 with detected faces are computed again: it did not record all settings.

    Parameters
    ----------
    files
        Photos, each once.
    pipeline
        Finds and embeds the faces; `Pipeline.settings` decides whether earlier rows may be reused.
    output
        As `EmbeddingTable.save` takes it.
    unread
        Files that were asked for and cannot be photos, and why: more failures.
    progress
        Called after each file.

    Raises
    ------
    ContractError
        If the output exists and its embeddings are of another contract.
    InputError
        If the output exists and its faces were found with other settings, or it is another kind of file.
    ImageError
        If no file at all gave an embedding.
    OutputError
        If the output cannot be written, or another run is writing it.
    """
    require_format(output)
    with staging_folder(output.parent):  # a folder that cannot be written is refused before any work
        pass
    with hold_folder(_parts_of(output), output):
        rows = _Rows(output, pipeline)
        failures = unwritable_names(files, output)
        todo = [path for path in files if path not in failures and not rows.has(path)]
        done = len(files) - len(todo)
        reused = done - len(failures)

        def fail(path: Path, error: ImageError) -> None:
            failures[path] = str(error).removeprefix(f"{path}: ")

        read_photo = functools.partial(read_photo_file, reduced=pipeline.reduction)
        with (
            open_source(todo, on_bad=fail, read_photo=read_photo) as frames,
            rows,
            contextlib.closing(pipeline.run(frames)) as answers,
        ):
            for frame, faces in answers:
                path = todo[frame.index]
                if not rows.add(path, frame, faces):
                    failures[path] = why_none(faces)
                progress(Progress("embedding", done=done + frame.index + 1, total=len(files), unit="files"))
        progress(Progress("embedding", done=len(files), total=len(files), unit="files"))  # the last may be unreadable
        if (table := rows.collect(files)) is None:
            raise ImageError(f"no photo could be embedded: {list_some(failures | dict(unread))}")
        table.save(output)
        rows.discard_parts()
        unusable = dict(sorted((failures | dict(unread)).items()))
        asked, others = len(files) + len(unread), rows.count_others(files)
        return BulkResult(table, asked, reused, unusable, others, reduced=pipeline.reduction)


def _parts_of(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


@contextlib.contextmanager
def hold_folder(path: Path, output: Path) -> Iterator[None]:
    """Hold a folder of parts: of two runs that write one output at once, the last would replace the other's rows."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{output}: another run is writing this file; wait until it ends, or write to another"
            ) from None
        except OSError:  # a network file system may lock no folders
            pass
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # there is something to resume from
                path.rmdir()
    finally:
        os.close(folder)


def unwritable_names(files: Iterable[Path], output: Path) -> dict[Path, str]:
    """Return the files that a .parquet cannot name, because text in it is UTF-8; a .npz can."""
    if output.suffix != ".parquet":
        return {}
    return {
        path: "its name is not UTF-8, and a .parquet cannot hold it; rename it, or write a .npz"
        for path in files
        if any("\ud800" <= character <= "\udfff" for character in str(path))
    }


class _Rows:
    """Old and new rows; new ones go to disk every few seconds, and when the block ends."""

    def __init__(self, output: Path, pipeline: Pipeline) -> None:
        self._folder = _parts_of(output)
        self._contract = pipeline.contract
        settings = settings_of(pipeline)
        self._settings = json.dumps(settings, sort_keys=True)
        parts = sorted(self._folder.glob("*.npz"))
        loaded = [self._load(path, settings) for path in (output, *parts) if path.is_file()]  # before any work
        self._tables = [table for table in loaded if table is not None]
        self._old: dict[str, set[FileIdentity]] = {}
        for table in self._tables:
            for path, made_of in _identities(table):
                self._old.setdefault(path, set()).add(made_of)
        self._current: dict[str, FileIdentity] = {}
        self._part = len(parts)
        self._new: list[Row] = []
        self._saved = time.monotonic()

    def _load(self, path: Path, settings: Mapping[str, Any]) -> EmbeddingTable | None:
        """Read earlier rows; None if edgeface 0.1 wrote them and did not record all settings."""
        table = EmbeddingTable.load(path)
        require_same_contract(table.contract_id, self._contract.contract_id, what=str(path))
        try:
            found = parse_json(table.settings)
        except (InputError, ValueError):
            found = {}
        plain = settings["detector"] is None and settings["flip"] is None and "gate" not in settings
        complete = plain and found == {"crops": True}  # of 0.1
        if complete or _with_current_id(found) == _with_current_id(json.loads(self._settings)):
            return dataclasses.replace(table, contract_id=self._contract.contract_id, settings=self._settings)
        if not isinstance(found, dict) or "contract_id" not in found:
            _log.warning("%s: written by edgeface 0.1; its photos are embedded again", path)
            return None
        raise InputError(
            f"{path}: written with other settings "
            f"({'; '.join(differences(found, settings))}); use those, write to another file, or remove this one"
        )

    def has(self, path: Path) -> bool:
        """Whether there are rows of the bytes that this file has now."""
        found = _same_file(path, self._old.get(str(path), ()))
        if found is not None:
            self._current[str(path)] = found
        return found is not None

    def add(self, path: Path, frame: Frame, faces: Sequence[Face]) -> int:
        """Take the faces of a photo that have embeddings; return how many."""
        assert frame.file is not None  # `open_source` says so of every photo
        self._current[str(path)] = frame.file
        found = rows_of(frame, faces)
        self._new += found
        if time.monotonic() - self._saved > _PART_SECONDS:
            self._save_part()
        return len(found)

    def collect(self, files: Sequence[Path]) -> EmbeddingTable | None:
        """Return all rows of these files, in their order; None if there are none."""
        if not self._tables:
            return None
        table = EmbeddingTable.join(self._tables)
        order = {str(path): number for number, path in enumerate(files)}
        keys = zip(_identities(table), table.faces.tolist(), strict=True)
        # Keyed, because a run that was interrupted at its very end leaves the same rows in two places.
        rows = {
            (order[path], face): row
            for row, ((path, made_of), face) in enumerate(keys)
            if path in order and made_of == self._current.get(path)
        }
        return table.select(np.array([rows[key] for key in sorted(rows)], np.intp)) if rows else None

    def count_others(self, files: Sequence[Path]) -> int:
        """Count the files with earlier rows that are not among these."""
        return len(self._old.keys() - set(map(str, files)))

    def discard_parts(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._save_part()

    def _save_part(self) -> None:
        if self._new:
            table = make_table(self._new, self._contract, self._settings)
            with output_errors(self._folder):
                table.save(self._folder / f"{self._part:06}.npz")
            self._tables.append(table)
            self._part, self._new = self._part + 1, []
        self._saved = time.monotonic()


Row = tuple[str, FileIdentity, int, Face]
"""Photo, the bytes that it was decoded from, number of the face in it, face with an embedding."""


def settings_of(pipeline: Pipeline) -> dict[str, Any]:
    """Return everything that the rows of a photo depend on, as JSON values."""
    return pipeline.settings | ({"reduced": pipeline.reduction} if pipeline.reduction > 1 else {})


def rows_of(frame: Frame, faces: Sequence[Face]) -> list[Row]:
    """Return the rows of a photo's faces, from left to right: of those that have embeddings."""
    assert frame.file is not None
    return [
        (frame.source, frame.file, number, face)
        for number, face in enumerate(from_left(faces))
        if face.embedding is not None
    ]


def why_none(faces: Sequence[Face]) -> str:
    """Say why a photo has no row."""
    return "; ".join(reason for face in faces for reason in face.reasons) or "expected a face, found none"


def make_table(rows: Sequence[Row], contract: ModelContract, settings: str) -> EmbeddingTable:
    """Return rows as a table; there may be none of them."""
    faces = [face for *_, face in rows]
    vectors = [face.embedding.vector for face in faces if face.embedding is not None]
    qualities = [np.nan if face.quality is None else face.quality.score for face in faces]
    return EmbeddingTable(
        vectors=np.array(vectors, np.float32).reshape(len(rows), contract.embedding_dim),
        paths=np.array([source for source, *_ in rows], np.str_),
        modified=np.array([made_of.modified for _, made_of, *_ in rows], np.int64),
        sizes=np.array([made_of.size for _, made_of, *_ in rows], np.int64),
        digests=np.array([made_of.sha256 for _, made_of, *_ in rows], np.str_),
        faces=np.array([number for *_, number, _ in rows], np.int32),
        boxes=np.array([face.box for face in faces], np.float32).reshape(-1, 4),
        scores=np.array([face.score for face in faces], np.float32),
        landmarks=np.array([face.landmarks for face in faces], np.float32).reshape(-1, 10),
        qualities=np.array(qualities, np.float32),
        contract_id=contract.contract_id,
        settings=settings,
    )


def _with_current_id(settings: Any) -> Any:
    """Replace an id that edgeface 0.1 gave to the same IR."""
    named = isinstance(settings, dict) and isinstance(settings.get("contract_id"), str)
    return settings | {"contract_id": current_id(settings["contract_id"])} if named else settings


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Name the settings that differ, with both values."""
    old, new = _flat(found), _flat(wanted)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name)!r}, now {new.get(name)!r}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _identities(table: EmbeddingTable) -> Iterator[tuple[str, FileIdentity]]:
    """Return the path of each row and what the row was made of."""
    columns = (getattr(table, name).tolist() for name in ("paths", "sizes", "modified", "digests"))
    return ((path, FileIdentity(*made_of)) for path, *made_of in zip(*columns, strict=True))


def _same_file(path: Path, known: Iterable[FileIdentity]) -> FileIdentity | None:
    """Return the one of these that the file is now; it is read only if its size and time are those of one."""
    try:
        now = path.stat()
        fitting = {
            each.sha256: each for each in known if each.modified == now.st_mtime_ns and each.size in (-1, now.st_size)
        }
        return fitting.get(sha256_of(path) if any(fitting) else "")  # edgeface 0.1 recorded no digest
    except OSError:
        return None  # reading it will say why
