"""A gallery's tables on a server: those of the file, in a schema of their own, and what pgvector searches.

Rows are sealed as in the file. In a gallery that is not encrypted `vectors` holds the embeddings once more, in a form
that the server can compare: ``vector`` (float32) or ``halfvec`` (float16, half the memory). An encrypted gallery has
no such table: the server must not be able to read embeddings, so it cannot search them either.
"""

from __future__ import annotations

import re
from typing import Literal

from edgeface.errors import InputError

__all__ = [
    "SCHEMA_VERSION",
    "SEALED_TABLES",
    "VectorType",
    "check_gallery_name",
    "statements",
    "vector_type",
    "vectors_statement",
]

SCHEMA_VERSION = 1
SEALED_TABLES = ("people", "templates", "images")
"""Those of `gallery.rows.SEALED_TABLES` that are on a server: nothing is rebuilt there."""
VectorType = Literal["vector", "halfvec"]

_MAX_DIM = 16000
"""Values of a vector or halfvec, and 2,000 or 4,000 of one with an HNSW index (pgvector 0.8, README)."""

_TABLES = """
CREATE TABLE gallery (
    one integer PRIMARY KEY CHECK (one = 1),
    version integer NOT NULL,
    header text NOT NULL,
    header_mark bytea NOT NULL,
    generation bigint NOT NULL,
    next_id bigint NOT NULL,
    known_since bigint NOT NULL,
    unscrubbed bigint NOT NULL
);
CREATE TABLE people (id bigint PRIMARY KEY, name_mark bytea NOT NULL UNIQUE, body bytea NOT NULL);
CREATE TABLE templates (
    id bigint PRIMARY KEY,
    person_id bigint NOT NULL REFERENCES people (id),
    generation bigint NOT NULL,
    body bytea NOT NULL
);
CREATE INDEX templates_person ON templates (person_id);
CREATE INDEX templates_generation ON templates (generation);
CREATE TABLE images (
    template_id bigint PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
    body bytea NOT NULL
);
CREATE TABLE removals (template_id bigint PRIMARY KEY, generation bigint NOT NULL);
CREATE INDEX removals_generation ON removals (generation)
"""

_VECTORS = """
CREATE TABLE vectors (
    template_id bigint PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
    embedding {type}({dim}) NOT NULL
)
"""


def check_gallery_name(name: str) -> str:
    """The name of the gallery's schema.

    Raises
    ------
    InputError
        If it is no plain name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
        raise InputError(
            f"gallery name: expected a small letter, then up to 49 of a-z, 0-9 and _, found {name!r:.60}"
        )
    return f"edgeface_{name}"


def vector_type(kind: str, dim: int) -> str:
    """Check how vectors are to be stored for search.

    Raises
    ------
    InputError
        If there is no such type, or it holds fewer values.
    """
    if kind not in ("vector", "halfvec") or not 1 <= dim <= _MAX_DIM:
        raise InputError(
            f"vectors: expected vector or halfvec of 1 to {_MAX_DIM:,} values, found {kind!r} of {dim:,}"
        )
    return kind


def statements(dim: int, searched_as: VectorType | None) -> list[str]:
    """What makes the empty tables."""
    made = [statement for statement in _TABLES.split(";") if statement.strip()]
    return made if searched_as is None else [*made, vectors_statement(dim, searched_as)]


def vectors_statement(dim: int, searched_as: VectorType) -> str:
    """What makes the empty table that pgvector searches."""
    return _VECTORS.format(type=searched_as, dim=dim)
