"""Store the embeddings of many photos in a .npz or .parquet file that says how they were made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, InputError
from edgeface.files import write_atomically
from edgeface.model.embedding import Embeddings, require_same_contract, what_is_wrong
from edgeface.untrusted import most_unpacked, open_regular, read_npz, reading

_COLUMNS: dict[str, type] = {
    "paths": np.str_,
    "modified": np.int64,
    "faces": np.int32,
    "boxes": np.float32,
    "scores": np.float32,
    "sizes": np.int64,
    "digests": np.str_,
    "landmarks": np.float32,
    "qualities": np.float32,
}
_WIDE = frozenset({"vectors", "boxes", "landmarks"})
"""Columns of several numbers a row."""
_UNKNOWN_SIZE, _UNKNOWN_DIGEST = np.array([-1], np.int64), np.array([""])
_UNKNOWN_LANDMARKS, _UNKNOWN_QUALITY = np.full((1, 10), np.nan, np.float32), np.array([np.nan], np.float32)
_OPTIONAL: dict[str, NDArray[Any]] = {
    "sizes": _UNKNOWN_SIZE,
    "digests": _UNKNOWN_DIGEST,
    "landmarks": _UNKNOWN_LANDMARKS,
    "qualities": _UNKNOWN_QUALITY,
}
"""Columns that edgeface 0.1 did not write."""
_NUMBERS = [name for name in _COLUMNS if name not in _WIDE and _COLUMNS[name] is not np.str_]
_NAMES = frozenset({*_COLUMNS, "vectors", "contract_id", "settings"})
_SUFFIXES = (".npz", ".parquet")
_ROW_BYTES, _LONGEST_TEXT = 36, 1 << 14
"""Of a row without its arrays and texts; several times the longest path of Linux."""
PARTS = f"part-{'[0-9]' * 8}.parquet"
"""Files of a folder of tables, as `edgeface embed --ray` writes one."""
_WHAT = "embeddings written by 'edgeface embed'"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EmbeddingTable:
    """Embeddings with one row for each face.

    Attributes
    ----------
    vectors : (N, D) float32
        Embeddings.
    paths : (N,) str
        Files of the photos.
    modified : (N,) int64
        Modification time of that file when it was read, nanoseconds since 1970.
    faces : (N,) int32
        Number of the face in the photo, from 0, left to right by the box's x0.
    boxes : (N, 4) float32
        x0, y0, x1, y1 in pixels of the photo.
    scores : (N,) float32
        Detection scores.
    contract_id
        Contract of all embeddings.
    settings
        JSON of `Pipeline.settings`: tables of equal settings may be joined and reused.
    sizes : (N,) int64
        Bytes of the file that the row was made of; -1 in tables of edgeface 0.1, which did not record it.
    digests : (N,) str
        SHA-256 of these bytes in hexadecimal; empty in tables of edgeface 0.1.
    landmarks : (N, 10) float32
        x and y of the five points of `Face.landmarks`, in pixels of the photo. NaN: unknown, as in tables of 0.1.
    qualities : (N,) float32
        `Quality.score` of the face, 0 to 1; NaN: unknown, as for crops and in tables of 0.1.
    """

    vectors: NDArray[np.float32]
    paths: NDArray[np.str_]
    modified: NDArray[np.int64]
    faces: NDArray[np.int32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    contract_id: str
    settings: str
    sizes: NDArray[np.int64] = field(default_factory=lambda: _UNKNOWN_SIZE)
    digests: NDArray[np.str_] = field(default_factory=lambda: _UNKNOWN_DIGEST)
    landmarks: NDArray[np.float32] = field(default_factory=lambda: _UNKNOWN_LANDMARKS)
    qualities: NDArray[np.float32] = field(default_factory=lambda: _UNKNOWN_QUALITY)

    def __post_init__(self) -> None:
        for name, unknown in _OPTIONAL.items():
            if getattr(self, name) is unknown:
                object.__setattr__(self, name, unknown.repeat(len(self), axis=0))
        shapes = {name: getattr(self, name).shape for name in ("vectors", *_COLUMNS)}
        if any(len(shape) != 1 + (name in _WIDE) or shape[0] != len(self) for name, shape in shapes.items()):
            raise InputError(f"embedding table: expected columns of one length, found {shapes}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def embeddings(self) -> Embeddings:
        """The vectors with their contract."""
        return Embeddings(self.vectors, self.contract_id)

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> EmbeddingTable:
        """Return some of the rows, in the order given."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in ("vectors", *_COLUMNS)})

    @classmethod
    def join(cls, tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
        """Concatenate tables of one contract and equal settings.

        Raises
        ------
        ContractError
            If they are of different contracts.
        InputError
            If their settings differ.
        """
        require_same_contract(*(table.contract_id for table in tables), what="embedding tables")
        if len(settings := {table.settings for table in tables}) != 1:
            raise InputError(f"embedding tables: expected equal settings, found {sorted(settings)}")
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(table, name) for table in tables]) for name in ("vectors", *_COLUMNS)
        }
        return dataclasses.replace(tables[0], **columns)

    def save(self, path: Path, *, notes: Mapping[str, str] = MappingProxyType({})) -> None:
        """Write a .npz, or a .parquet whose metadata has `contract_id` and `settings`, atomically.

        Only the file's owner may read it. `notes` are further metadata of a .parquet; see `read_notes`.

        Raises
        ------
        InputError
            If the suffix is neither.
        ExtraNotInstalledError
            If pyarrow is needed and absent.
        OutputError
            If the file cannot be written.
        """
        require_format(path)
        with write_atomically(path, private=True) as partial:
            if path.suffix == ".parquet":
                _write_parquet(self, partial, notes)
            else:
                np.savez(partial, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    @classmethod
    def load(cls, path: Path) -> EmbeddingTable:
        """Read what `save` wrote, or the tables in a folder of it; see `PARTS`.

        Raises
        ------
        InputError
            If it does not exist, is damaged, or holds something else.
        """
        require_format(path)
        if path.is_dir() and (parts := sorted(path.glob(PARTS))):
            tables = [cls.load(part) for part in parts]
            return cls.join([table for table in tables if len(table)] or tables[:1])
        with reading(path, _WHAT):
            stored = _read_parquet(path) if path.suffix == ".parquet" else read_npz(path, _WHAT, names=_NAMES)
            names = [name for name in _COLUMNS if name in stored or name not in _OPTIONAL]
            columns: dict[str, Any] = {name: _column(name, stored[name], _COLUMNS[name]) for name in names}
            vectors = _column("vectors", stored["vectors"], np.float32)
            if wrong := what_is_wrong(vectors):
                raise ValueError(wrong)
            return cls(
                vectors=vectors, contract_id=_word(stored["contract_id"]), settings=_word(stored["settings"]), **columns
            )


def _column(name: str, stored: Any, dtype: type) -> NDArray[Any]:
    """Return a column as this type; what another kind of numbers cannot be without a change is refused."""
    found = np.asarray(stored)
    if found.size and found.dtype.kind not in ("iu" if np.dtype(dtype).kind == "i" else np.dtype(dtype).kind):
        raise ValueError(f"{name}: expected {np.dtype(dtype).name}, found {found.dtype.name}")
    column: NDArray[Any] = found.astype(dtype)
    if np.dtype(dtype).kind == "i" and not np.array_equal(column, found):
        raise ValueError(f"{name}: expected {np.dtype(dtype).name}, found numbers that are larger")
    return column


def _word(stored: Any) -> str:
    if np.asarray(stored).dtype.kind not in "U" or np.ndim(stored):
        raise TypeError(f"expected text, found {stored!r:.80}")
    return str(stored)


def require_format(path: Path) -> None:
    """Raise unless the suffix can be written: .npz, or .parquet if pyarrow is installed."""
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {' or '.join(_SUFFIXES)}, found {path.suffix!r}")
    if path.suffix == ".parquet":
        _import_pyarrow()


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExtraNotInstalledError("parquet", needed_for="a .parquet file") from error
    return pyarrow, pyarrow.parquet


def read_notes(path: Path) -> dict[str, str]:
    """Return the metadata of a table in a .parquet, `contract_id`, `settings` and notes; InputError if it is none."""
    _, parquet = _import_pyarrow()
    with reading(path, _WHAT), open_regular(path) as source:
        found = parquet.read_schema(source).metadata or {}
        return {name.decode(): value.decode() for name, value in found.items()}


def _write_parquet(table: EmbeddingTable, path: Path, notes: Mapping[str, str]) -> None:
    arrow, parquet = _import_pyarrow()

    def rows(matrix: NDArray[np.float32]) -> Any:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(matrix.ravel()), matrix.shape[1])

    columns = {name: arrow.array(getattr(table, name)) for name in _NUMBERS}
    columns |= {
        **{name: arrow.array(getattr(table, name).tolist(), arrow.string()) for name in ("paths", "digests")},
        **{name: rows(getattr(table, name)) for name in ("boxes", "landmarks", "vectors")},
        # Of every row too: what joins files of several models, such as a query over a folder, drops their metadata.
        "contract_id": arrow.array([table.contract_id] * len(table), arrow.string()).dictionary_encode(),
    }
    metadata = {**notes, "contract_id": table.contract_id, "settings": table.settings}
    parquet.write_table(arrow.table(columns).replace_schema_metadata(metadata), path)


def _read_parquet(path: Path) -> dict[str, Any]:
    _, parquet = _import_pyarrow()
    with open_regular(path) as source:
        present = parquet.read_schema(source).names
        names = [name for name in _COLUMNS if name in present]
        texts = [name for name in names if _COLUMNS[name] is np.str_]
        file = parquet.ParquetFile(source, read_dictionary=texts)
        limit = most_unpacked(os.fstat(source.fileno()).st_size)
        wide = [name for name in ("boxes", "landmarks", "vectors") if name in present]
        widths = [file.schema_arrow.field(name).type.list_size for name in wide]
        said = sum(file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups))
        if max(said, file.metadata.num_rows * (4 * sum(widths) + _ROW_BYTES)) > limit:
            raise InputError(found=f"{file.metadata.num_rows:,} rows of {sum(widths):,} numbers, a decompression bomb")
        table = file.read([*names, "vectors"])
    stored: dict[str, Any] = {name: _texts(table[name], limit) for name in texts}
    stored |= {name: table[name].to_numpy() for name in _NUMBERS if name in names}
    for name in wide:
        values = table[name].combine_chunks()
        stored[name] = values.flatten().to_numpy().reshape(len(values), table.schema.field(name).type.list_size)
    metadata = table.schema.metadata or {}
    return stored | {key: metadata[key.encode()].decode() for key in ("contract_id", "settings")}


def _texts(column: Any, limit: int) -> list[str]:
    """Return a column of texts, which the file holds once each: their rows may have `limit` bytes together."""
    longest = max((len(text) for chunk in column.chunks for text in chunk.dictionary.to_pylist()), default=0)
    if longest > _LONGEST_TEXT or longest * len(column) > limit:
        raise InputError(found=f"{len(column):,} texts of up to {longest:,} characters, a decompression bomb")
    texts: list[str] = column.to_pylist()
    return texts
