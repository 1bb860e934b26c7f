"""A gallery's file in, everything that is wrong with it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgeface.errors import GalleryDamagedError
from edgeface.recognize.gallery.codec import PersonBody, TemplateBody
from edgeface.recognize.gallery.database import Database
from edgeface.recognize.gallery.erase import scrub
from edgeface.recognize.gallery.rows import SEALED_TABLES, Rows

__all__ = ["CheckReport", "check"]

_MOST = 100
_HIGHEST = (
    "SELECT coalesce(max(id), 0) FROM (SELECT id FROM people UNION ALL SELECT id FROM templates "
    "UNION ALL SELECT template_id FROM removals)"
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
    counts = dict.fromkeys(SEALED_TABLES, 0)
    problems = []
    for table, problem in _problems(database, rows):
        if problem:
            problems.append(problem)
        else:
            counts[table] += 1
    return CheckReport(rows=counts, problems=tuple(problems[:_MOST]))


def _problems(database: Database, rows: Rows) -> Iterator[tuple[str, str]]:
    """A table's name for each row that is well, and a line for each thing that is not."""
    with database.reading() as connection:
        for (line,) in connection.execute(f"PRAGMA integrity_check({_MOST})"):
            if line != "ok":
                yield "", f"the file's structure: {line}"
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
            yield "", f"row {row} of {table} belongs to a row of {parent} that is not there"
        (highest,) = connection.execute(_HIGHEST).fetchone()
        if highest >= database.state("next_id"):
            yield (
                "",
                f"the next number to be given is {database.state('next_id')}, and {highest} was given already",
            )
        for table in SEALED_TABLES:
            for identity, stored in rows.sealed(connection, table):
                try:
                    content = rows.open(table, identity, stored)
                except GalleryDamagedError as error:
                    yield table, str(error)
                    continue
                yield table, ""
                if table == "templates":
                    length = np.linalg.norm(
                        TemplateBody.decode(content, database.header.dim).vector.astype(float)
                    )
                    if not abs(length - 1) < 1e-3:
                        yield table, f"template {identity[0]}: expected length 1, found {length:.6g}"
                if table == "people":
                    name = PersonBody.decode(content).name
                    mark = Rows.mark_name(database.vault, name)
                    if not connection.execute(
                        "SELECT 1 FROM people WHERE id = ? AND name_mark = ?", (identity[0], mark)
                    ).fetchone():
                        yield (
                            table,
                            f"person {identity[0]}: cannot be found by name, its mark is another one's",
                        )
