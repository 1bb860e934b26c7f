"""A gallery in which something was deleted in, a file without a byte of it out, and the proof."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeface.errors import GalleryBusyError, GalleryDamagedError, GalleryError
from edgeface.gallery.codec import PersonBody
from edgeface.gallery.records import Erasure
from edgeface.gallery.store.cache import clear_derived, derived_folder
from edgeface.gallery.store.database import Database
from edgeface.gallery.store.rows import SEALED_TABLES, Rows
from edgeface.gallery.store.secret_search import Searcher

__all__ = ["delete_templates", "files_of", "forget", "prove", "scrub"]

_PAUSE = 0.02


def forget(database: Database, rows: Rows, person_id: int, template_ids: Sequence[int] | None) -> Erasure:
    """Delete somebody, or some templates, scrub the file and search it; see `Store.forget`."""
    if database.in_transaction:
        raise GalleryError("forget: expected to be outside of writing(): it cannot be undone")
    with database.writing() as connection:
        rows.require_person(connection, person_id)
        ids = _ids_to_forget(connection, person_id, template_ids)
        secrets = list(_secrets(connection, database, rows, person_id, ids, whole=template_ids is None))
        generation = database.wrote()
        images = delete_templates(connection, ids, generation)
        if template_ids is None:
            connection.execute("DELETE FROM people WHERE id = ?", (person_id,))
        connection.execute("UPDATE gallery SET unscrubbed = ?", (generation,))
    scrub(database)
    searched, needles, remains = prove(database, rows, secrets)
    return Erasure(
        person_id=person_id,
        templates=len(ids),
        images=images,
        generation=generation,
        searched=searched,
        needles=needles,
        remains=remains,
    )


def _ids_to_forget(connection: sqlite3.Connection, person_id: int, wanted: Sequence[int] | None) -> list[int]:
    rows = connection.execute("SELECT id FROM templates WHERE person_id = ? ORDER BY id", (person_id,))
    theirs = [row[0] for row in rows]
    if foreign := sorted(set(wanted or ()) - set(theirs)):
        raise GalleryError(
            f"forget: expected templates of person {person_id}, found others: {', '.join(map(str, foreign))}"
        )
    return theirs if wanted is None else sorted(set(wanted))


def delete_templates(connection: sqlite3.Connection, ids: Sequence[int], generation: int) -> int:
    """Delete templates and their images, and log it for indexes; how many images there were."""
    images = 0
    for template_id in ids:
        images += connection.execute("DELETE FROM images WHERE template_id = ?", (template_id,)).rowcount
        connection.execute("DELETE FROM templates WHERE id = ?", (template_id,))
        connection.execute("INSERT INTO removals VALUES (?, ?)", (template_id, generation))
    return images


def scrub(database: Database) -> None:
    """Finish every erasure that was begun: overwrite, rewrite, and let nothing old stay in the WAL or beside it.

    SQLite overwrites what it deletes, but copies of a row that it moved earlier can lie in unused parts of other
    pages: `VACUUM` writes every page anew. The WAL holds pages as they were until it is truncated.

    Raises
    ------
    GalleryBusyError
        If somebody reads an old state for too long. The next call, or whoever opens the gallery, goes on.
    OutputError
        If there is no room: a gallery is rewritten through its WAL.
    """
    with database.reading():
        due = database.state("unscrubbed")
    if not due:
        return
    with database.writing():  # nobody writes derived files meanwhile
        clear_derived(database.path)
    database.outside("VACUUM")
    _truncate_wal(database)
    # Another erasure may have begun after the VACUUM: it has a later number.
    with database.writing() as connection:
        connection.execute("UPDATE gallery SET unscrubbed = 0 WHERE unscrubbed = ?", (due,))
    _truncate_wal(database)


def _truncate_wal(database: Database) -> None:
    """Wait for readers, as SQLite does, and for whoever else writes the WAL into the file, as it does not."""
    deadline = time.monotonic() + database.timeout
    while database.outside("PRAGMA wal_checkpoint(TRUNCATE)")[0]:
        if time.monotonic() < deadline:
            time.sleep(_PAUSE)
            continue
        raise GalleryBusyError(
            f"{database.path}: what was forgotten is deleted, but not yet overwritten: another process has been "
            "reading for too long; close it, and call 'edgeface gallery check', which finishes the erasure"
        )


def _secrets(
    connection: sqlite3.Connection,
    database: Database,
    rows: Rows,
    person_id: int,
    template_ids: Sequence[int],
    *,
    whole: bool,
) -> Iterator[bytes]:
    """Everything that must not be found afterwards: readable, and as it is stored."""
    wanted = {("people", "id", person_id)} if whole else set()
    for template_id in template_ids:
        wanted |= {("templates", "id", template_id)}
        wanted |= {(table, "template_id", template_id) for table in ("images", "staged")}
    for table, key, number in sorted(wanted):
        for identity, stored in rows.sealed(connection, table, f"WHERE {key} = ?", number):
            yield stored
            try:
                yield (content := rows.open(table, identity, stored))
            except GalleryDamagedError:  # nobody can read it, and it goes all the same
                continue
            if table == "people":
                name = PersonBody.decode(content).name
                yield name.encode("utf-8", "surrogatepass")
                yield Rows.mark_name(
                    database.vault, name
                )  # whoever guesses the name could confirm it by this


def files_of(gallery: Path) -> list[Path]:
    """The gallery's file, what SQLite keeps beside it, and what is derived from it."""
    beside = [gallery.with_name(gallery.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
    return [path for path in [*beside, *sorted(derived_folder(gallery).rglob("*"))] if path.is_file()]


def prove(
    database: Database, rows: Rows, secrets: Sequence[bytes]
) -> tuple[dict[str, int], int, tuple[str, ...]]:
    """Search every byte of every file for pieces of what was erased.

    A piece that somebody who is still enrolled has too (one picture of two people, one label) is none.

    Returns
    -------
    searched, needles, remains
        As in `Erasure`.
    """
    searcher = Searcher(secrets)
    needles = searcher.needles
    files = files_of(database.path)
    searched = {path.name: path.stat().st_size for path in files}
    found = {
        (path.name, offset): piece
        for path in files
        for offset, piece in searcher.search(database.descriptor(path))
    }
    pieces = set(found.values())
    if pieces:
        with database.reading() as connection:
            for content in _still_stored(connection, rows, database):
                pieces = {piece for piece in pieces if piece not in content}
                if not pieces:
                    break
    remains = sorted(place for place, piece in found.items() if piece in pieces)
    return searched, needles, tuple(f"{name} at byte {offset}" for name, offset in remains)


def _still_stored(connection: sqlite3.Connection, rows: Rows, database: Database) -> Iterator[bytes]:
    yield database.header.encode().encode()
    for table in SEALED_TABLES:
        for identity, stored in rows.sealed(connection, table):
            yield from (stored, rows.open(table, identity, stored))
