"""A gallery's file in, everything that is wrong with it out."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeface.errors import GalleryDamagedError
from edgeface.gallery.codec import PersonBody, TemplateBody
from edgeface.gallery.store.database import Database
from edgeface.gallery.store.erase import scrub
from edgeface.gallery.store.rows import SEALED_TABLES, Rows

__all__ = ["CheckReport", "check", "report", "row_problems"]

_MOST = 100
_HIGHEST = (
    "SELECT coalesce(max(id), 0) FROM (SELECT id FROM people UNION ALL SELECT id FROM templates "
    "UNION ALL SELECT template_id FROM removals) AS given"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What `check` found.

    Attributes
    ----------
    rows
        Of each table, how many were opened and are what was written.
    problems
        One line each; empty: the gallery is whole.
    """

    rows: dict[str, int]
    problems: tuple[str, ...]


def check(database: Database, rows: Rows) -> CheckReport:
    """Finish what was interrupted, then read everything: the file's structure, and every row in its place.

    Raises
    ------
    GalleryBusyError
        If an erasure is unfinished and cannot be finished, because others read.
    """
    scrub(database)
    with database.reading() as connection:
        return report(itertools.chain(_file_problems(connection), row_problems(connection, database, rows)))


def report(found: Iterable[tuple[str, str]]) -> CheckReport:
    """What `row_problems` and its like yield, counted."""
    counts = dict.fromkeys(SEALED_TABLES, 0)
    problems = []
    for table, problem in found:
        if problem:
            problems.append(problem)
        else:
            counts[table] += 1
    return CheckReport(rows=counts, problems=tuple(problems[:_MOST]))


def _file_problems(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for (line,) in connection.execute(f"PRAGMA integrity_check({_MOST})"):
        if line != "ok":
            yield "", f"the file's structure: {line}"
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield "", f"row {row} of {table} belongs to a row of {parent} that is not there"


def row_problems(
    connection: Any, database: Any, rows: Rows, *, tables: Iterable[str] = SEALED_TABLES
) -> Iterator[tuple[str, str]]:
    """A table's name for each row that is well, and a line for each thing that is not."""
    (highest,) = connection.execute(_HIGHEST).fetchone()
    if highest >= database.state("next_id"):
        yield (
            "",
            f"the next number to be given is {database.state('next_id')}, and {highest} was given already",
        )
    for table in tables:
        for identity, stored in rows.sealed(connection, table):
            try:
                content = rows.open(table, identity, stored)
            except GalleryDamagedError as error:
                yield table, str(error)
                continue
            yield table, ""
            if table == "templates":
                vector = TemplateBody.decode(content, database.header.dim).vector
                length = np.linalg.norm(vector.astype(float))
                if not abs(length - 1) < 1e-3:
                    yield table, f"template {identity[0]}: expected length 1, found {length:.6g}"
            if table == "people":
                mark = Rows.mark_name(database.vault, PersonBody.decode(content).name)
                if not connection.execute(
                    "SELECT 1 FROM people WHERE id = ? AND name_mark = ?", (identity[0], mark)
                ).fetchone():
                    yield table, f"person {identity[0]}: cannot be found by name, its mark is another one's"
