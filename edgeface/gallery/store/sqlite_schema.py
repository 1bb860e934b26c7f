"""Tables of a gallery's file: their versions, and the comparison of a file's schema with that of its version.

A version is `PRAGMA user_version`. Each step of `_STEPS` is one transaction, so an interruption leaves a file of one
version or of the next. A file of a later version than this program's is refused.

SQLite runs what a file's schema holds: triggers when rows are written, views when they are read, expressions of
defaults, checks, generated columns and indexes. So the schema is compared before any statement on the tables.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from edgeface.errors import GalleryDamagedError, GalleryError
from edgeface.gallery.store.database import record_commit, require_no_differences, schema_differences

SCHEMA_VERSION = 4

APPLICATION_ID = 0x45464741
"""``EFGA`` in the file's header (`PRAGMA application_id`): tells a gallery from other databases."""

_TABLES_1 = """
CREATE TABLE gallery (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    header TEXT NOT NULL,                 -- JSON: what it is bound to
    header_mark BLOB NOT NULL,            -- digest without the key, then with it
    generation INTEGER NOT NULL,          -- of the last commit
    next_id INTEGER NOT NULL              -- for people and templates; never falls
);
CREATE TABLE people (
    id INTEGER PRIMARY KEY,
    name_mark BLOB NOT NULL UNIQUE,       -- keyed digest of the name
    body BLOB NOT NULL
);
CREATE TABLE templates (
    id INTEGER PRIMARY KEY,
    person_id INTEGER NOT NULL REFERENCES people (id),
    generation INTEGER NOT NULL,          -- whose commit it came with
    body BLOB NOT NULL
);
CREATE INDEX templates_person ON templates (person_id);
CREATE INDEX templates_generation ON templates (generation);
CREATE TABLE images (
    template_id INTEGER PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
    body BLOB NOT NULL
);
"""

_TABLES_2 = """
CREATE TABLE removals (
    template_id INTEGER PRIMARY KEY,      -- a number, and nothing of what it was
    generation INTEGER NOT NULL
);
CREATE INDEX removals_generation ON removals (generation);
CREATE TABLE staged (
    template_id INTEGER PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
    contract_id TEXT NOT NULL,            -- of the model that the gallery is on its way to
    body BLOB NOT NULL
);
ALTER TABLE gallery ADD COLUMN known_since INTEGER NOT NULL DEFAULT 0;  -- removals are complete from here on
ALTER TABLE gallery ADD COLUMN unscrubbed INTEGER NOT NULL DEFAULT 0;   -- generation of an unfinished erasure
"""

_TABLES_3 = """
CREATE TABLE commits (
    generation INTEGER PRIMARY KEY,
    history TEXT NOT NULL                 -- random: tells a commit from one of a gallery that was restored
);
ALTER TABLE gallery ADD COLUMN cached TEXT NOT NULL DEFAULT '';  -- digest of the header of the cache's file
"""

_TABLES_4 = """
ALTER TABLE gallery ADD COLUMN detectors TEXT NOT NULL DEFAULT '';  -- that found the faces, as far as is known
"""


def _script(connection: sqlite3.Connection, script: str) -> None:
    """Run statements inside the open transaction; `executescript` would commit it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""


def _to_2(connection: sqlite3.Connection) -> None:
    """Record removals, and what a rebuild and an erasure have still to do; earlier removals are not known."""
    _script(connection, _TABLES_2)
    connection.execute("UPDATE gallery SET known_since = generation")


def _to_3(connection: sqlite3.Connection) -> None:
    """Give commits ids, and make room for the digest of the cache, which the gallery then vouches for."""
    _script(connection, _TABLES_3)
    record_commit(connection)


def _to_4(connection: sqlite3.Connection) -> None:
    """Make room for the names of detectors; those of earlier templates are not known."""
    _script(connection, _TABLES_4)


_STEPS: Mapping[int, Callable[[sqlite3.Connection], None]] = MappingProxyType({1: _to_2, 2: _to_3, 3: _to_4})
"""What turns a file of one version into one of the next."""


def create_tables(connection: sqlite3.Connection, *, version: int = SCHEMA_VERSION) -> None:
    """Make the empty tables of a version, inside the open transaction."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    _script(connection, _TABLES_1)
    for step in range(1, version):
        _STEPS[step](connection)
    connection.execute(f"PRAGMA user_version = {version}")


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a file to this version; a second process that wants to do so waits, and then finds nothing to do."""
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = require_schema(connection, path)
            if version >= SCHEMA_VERSION:
                return
            _STEPS[version](connection)
            connection.execute(f"PRAGMA user_version = {version + 1}")
        except BaseException:
            connection.rollback()
            raise
        finally:
            if connection.in_transaction:
                connection.commit()


# Comparison

_Part = tuple[str, str, str, str]
"""Kind (table, index, trigger or view), name, table, and tokens of the statement that made it."""

_TOKEN = re.compile(r"""'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\s+|\w+|.""", re.ASCII | re.DOTALL)


def _parts(connection: sqlite3.Connection) -> frozenset[_Part]:
    """Read a schema without running any of it; comments and spaces, which versions of edgeface differ in, do not count.

    Quoted names, in which SQLite sees no comments, are none of edgeface's: the quotes alone make a difference.
    """
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
    return frozenset(
        (str(kind), str(name), str(table), " ".join(token for token in _TOKEN.findall(str(sql)) if _counts(token)))
        for kind, name, table, sql in rows
    )


def _counts(token: str) -> bool:
    return bool(token.strip()) and not token.startswith(("--", "/*"))


@functools.cache
def _expected(version: int) -> frozenset[_Part]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        create_tables(connection, version=version)
        return _parts(connection)


def foreign_parts(connection: sqlite3.Connection, version: int) -> list[str]:
    """Say in what the schema of a file differs from that of a version; empty if in nothing."""
    return schema_differences(_parts(connection), _expected(version))


def require_schema(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of a gallery's file, inside a transaction, if its schema is that of the version.

    Raises
    ------
    GalleryDamagedError
        If it is no gallery, or its schema has more, less or other parts.
    GalleryError
        If a later edgeface wrote it.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise GalleryDamagedError(
            f"{path}: expected a gallery written by edgeface, found another SQLite database, or a damaged one"
        )
    if not 1 <= version <= SCHEMA_VERSION:
        raise GalleryError(
            f"{path}: expected a gallery of version 1 to {SCHEMA_VERSION}, found version {version}; update edgeface"
        )
    require_no_differences(str(path), foreign_parts(connection, version))
    return int(version)
