"""Embeddings of many pictures in, one .npz or .parquet that says what they are of out, and back."""

from __future__ import annotations

import dataclasses
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ExtraNotInstalledError, InputError
from edgeface.files import write_atomically
from edgeface.model.embedding import Embeddings, require_same_contract

__all__ = ["EmbeddingTable", "read_npz", "require_format"]

_COLUMNS: dict[str, type] = {
    "paths": np.str_,
    "modified": np.int64,
    "faces": np.int32,
    "boxes": np.float32,
    "scores": np.float32,
}
_SUFFIXES = (".npz", ".parquet")
_WHAT = "embeddings written by 'edgeface embed'"
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError, MemoryError),
    *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What numpy, zipfile and pyarrow raise on damaged files."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EmbeddingTable:
    """One row a face.

    Attributes
    ----------
    vectors : (N, D) float32
        Embeddings.
    paths : (N,) str
        The picture's file.
    modified : (N,) int64
        When that file was last changed, nanoseconds since 1970, as it was embedded.
    faces : (N,) int32
        Number of the face in the picture, from 0, left to right by the box's x0.
    boxes : (N, 4) float32
        x0, y0, x1, y1 in pixels of the picture.
    scores : (N,) float32
        The detector's.
    contract_id
        Of all the embeddings.
    settings
        How the faces were found, for people and for comparison.
    """

    vectors: NDArray[np.float32]
    paths: NDArray[np.str_]
    modified: NDArray[np.int64]
    faces: NDArray[np.int32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    contract_id: str
    settings: str

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("vectors", *_COLUMNS)}
        ranks = {name: 2 if name in ("vectors", "boxes") else 1 for name in shapes}
        if any(len(shape) != ranks[name] or shape[0] != len(self) for name, shape in shapes.items()):
            raise InputError(f"embedding table: expected columns of one length, found {shapes}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def embeddings(self) -> Embeddings:
        """The vectors with their contract."""
        return Embeddings(self.vectors, self.contract_id)

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> EmbeddingTable:
        """Some of the rows, in the order given."""
        return dataclasses.replace(
            self, **{name: getattr(self, name)[rows] for name in ("vectors", *_COLUMNS)}
        )

    @classmethod
    def join(cls, tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
        """Put tables of one contract and one way of finding faces below each other.

        Raises
        ------
        ContractError
            If they are of different contracts.
        InputError
            If their faces were found in different ways.
        """
        require_same_contract(*(table.contract_id for table in tables), what="embedding tables")
        if len(settings := {table.settings for table in tables}) != 1:
            raise InputError(f"embedding tables: expected one way of finding faces, found {sorted(settings)}")
        columns = ("vectors", *_COLUMNS)
        return tables[0]._with(
            {name: np.concatenate([getattr(table, name) for table in tables]) for name in columns}
        )

    def _with(self, columns: dict[str, Any]) -> EmbeddingTable:
        return dataclasses.replace(self, **columns)

    def save(self, path: Path) -> None:
        """Write a .npz, or a .parquet whose metadata has `contract_id` and `settings`, whole or not at all.

        Raises
        ------
        InputError
            If the suffix is another.
        ExtraNotInstalledError
            If pyarrow is needed and absent.
        OutputError
            If the file cannot be written.
        """
        require_format(path)
        with write_atomically(path) as partial:
            if path.suffix == ".parquet":
                _write_parquet(self, partial)
            else:
                np.savez(
                    partial, **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
                )

    @classmethod
    def load(cls, path: Path) -> EmbeddingTable:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If it is not there, damaged, or something else.
        """
        require_format(path)
        try:
            stored = _read_parquet(path) if path.suffix == ".parquet" else read_npz(path, expected=_WHAT)
            columns: dict[str, Any] = {
                name: np.asarray(stored[name], dtype) for name, dtype in _COLUMNS.items()
            }
            return cls(
                vectors=np.asarray(stored["vectors"], np.float32),
                contract_id=str(stored["contract_id"]),
                settings=str(stored["settings"]),
                **columns,
            )
        except _DAMAGE as error:
            raise InputError(f"{path}: expected {_WHAT}: {error}") from error


def read_npz(path: Path, *, expected: str) -> dict[str, NDArray[Any]]:
    """Read all arrays of a .npz, which runs no code that may be in it.

    Raises
    ------
    InputError
        If it is not there, damaged or no .npz; it says what was expected.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except _DAMAGE as error:
        raise InputError(f"{path}: expected {expected}: {error}") from error


def require_format(path: Path) -> None:
    """Refuse a suffix that cannot be written, and .parquet where pyarrow is not installed, before any work."""
    if path.suffix not in _SUFFIXES:
        raise InputError(
            f"{path}: expected a name that ends in {' or '.join(_SUFFIXES)}, found {path.suffix!r}"
        )
    if path.suffix == ".parquet":
        _import_pyarrow()


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExtraNotInstalledError("parquet", needed_for="a .parquet file") from error
    return pyarrow, pyarrow.parquet


def _write_parquet(table: EmbeddingTable, path: Path) -> None:
    arrow, parquet = _import_pyarrow()

    def rows(matrix: NDArray[np.float32]) -> Any:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(matrix.ravel()), matrix.shape[1])

    columns = {name: arrow.array(getattr(table, name)) for name in _COLUMNS if name not in ("paths", "boxes")}
    columns |= {
        "paths": arrow.array(table.paths.tolist(), arrow.string()),
        "boxes": rows(table.boxes),
        "vectors": rows(table.vectors),
    }
    metadata = {"contract_id": table.contract_id, "settings": table.settings}
    parquet.write_table(arrow.table(columns).replace_schema_metadata(metadata), path)


def _read_parquet(path: Path) -> dict[str, Any]:
    _, parquet = _import_pyarrow()
    table = parquet.read_table(path)
    stored: dict[str, Any] = {name: table[name].to_pylist() for name in ("paths",)}
    for name in ("modified", "faces", "scores"):
        stored[name] = table[name].to_numpy()
    for name in ("boxes", "vectors"):
        values = table[name].combine_chunks()
        stored[name] = (
            values.flatten().to_numpy().reshape(len(values), table.schema.field(name).type.list_size)
        )
    metadata = table.schema.metadata or {}
    return stored | {key: metadata[key.encode()].decode() for key in ("contract_id", "settings")}
