"""A gallery's tables, and how a file of an earlier version becomes one of this.

A version is `PRAGMA user_version`. Each step of `_STEPS` is one transaction, so that an interruption leaves a file of
one version or of the next. A file of a later version than this program's is refused: it may mean something it cannot
know.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from types import MappingProxyType

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "create_tables", "migrate"]

SCHEMA_VERSION = 2

APPLICATION_ID = 0x45464741
"""``EFGA`` in the file's header (`PRAGMA application_id`), by which a gallery is told from other databases."""

PAGE_SIZE = 16384
"""Bytes: seven templates of 512 values a page. In 4,096 one would fit, and half of the file would be empty."""

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


def _script(connection: sqlite3.Connection, script: str) -> None:
    """Run statements inside the transaction that is open; `executescript` would commit it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""


def _to_2(connection: sqlite3.Connection) -> None:
    """Remember removals and what a rebuild and an erasure have still to do; earlier removals are not known."""
    _script(connection, _TABLES_2)
    connection.execute("UPDATE gallery SET known_since = generation")


_STEPS: Mapping[int, Callable[[sqlite3.Connection], None]] = MappingProxyType({1: _to_2})
"""What makes a file of the next version out of one of this."""


def create_tables(connection: sqlite3.Connection, *, version: int = SCHEMA_VERSION) -> None:
    """Make the empty tables of a version, inside the transaction that is open."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    _script(connection, _TABLES_1)
    for step in range(1, version):
        _STEPS[step](connection)
    connection.execute(f"PRAGMA user_version = {version}")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a file to this version; whoever else wants to waits, and then finds nothing to do."""
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
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
