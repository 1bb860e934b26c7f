"""A gallery under one key or contract in, the same gallery under another out: in one transaction, and proved.

There is no moment at which some rows are under the old key and some under the new. An interruption before the commit
leaves everything as it was; one after it leaves only the erasure of the old bytes to whoever opens the gallery next.
Run it again, and it goes on from there. It takes room for the gallery's size again, in the WAL.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edgeface.errors import GalleryError
from edgeface.gallery.codec import Header, PersonBody
from edgeface.gallery.store.cipher import Vault, make_vault
from edgeface.gallery.store.database import Database
from edgeface.gallery.store.erase import prove, scrub
from edgeface.gallery.store.rows import SEALED_TABLES, Rows

__all__ = ["Rekeying", "another_key", "rekey", "reseal"]

_CHUNK = 512
_PIECE = 31
"""The last bytes of a stored row that are looked for afterwards: unlike all others, because its tag is among them."""

Change = Callable[[str, tuple[Any, ...], bytes], tuple[tuple[Any, ...], bytes]]
"""From table, identity and content of a row to its new identity and content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeying:
    """What `rekey` did.

    Attributes
    ----------
    key_id
        Of the new key; empty without encryption.
    rows
        That were sealed anew.
    searched, remains
        As in `Erasure`: files that were searched for rows as they were stored before, and where one was found.
    """

    key_id: str
    rows: int
    searched: dict[str, int]
    remains: tuple[str, ...]


def another_key(database: Any, key: bytes | None, *, where: str) -> tuple[Header, Vault]:
    """Find the header and the vault of a gallery's other key, for either store to write.

    Raises
    ------
    GalleryError
        If it is this key already, or inside `writing`.
    """
    if database.in_transaction:
        raise GalleryError("rekey: expected to be outside of writing()")
    vault = make_vault(key, database.header.gallery_id)
    if vault.key_id == database.header.key_id:
        raise GalleryError(f"{where}: expected another key, found the one that it has: {vault.key_id!r}")
    return dataclasses.replace(database.header, key_id=vault.key_id), vault


def rekey(database: Database, rows: Rows, key: bytes | None) -> Rekeying:
    """Give a gallery another key, its first one, or none.

    Raises
    ------
    GalleryError
        If it is this key already, or inside `writing`.
    GalleryDamagedError
        If a row is damaged: nothing is changed.
    OutputError
        If there is no room: nothing is changed.
    """
    header, vault = another_key(database, key, where=str(database.path))
    with database.writing() as connection:
        old = reseal(connection, database, rows, header, vault)
    database.adopt(header, vault)
    scrub(database)
    searched, _, remains = prove(database, rows, old)
    return Rekeying(key_id=vault.key_id, rows=len(old), searched=searched, remains=remains)


def reseal(
    connection: sqlite3.Connection,
    database: Database,
    rows: Rows,
    header: Header,
    vault: Vault,
    *,
    tables: Iterable[str] = SEALED_TABLES,
    change: Change | None = None,
) -> list[bytes]:
    """Seal every row for another header and vault, inside `writing`; the caller adopts them after the commit.

    Returns
    -------
    list of bytes
        A piece of each row as it was stored, to be looked for.
    """
    generation = database.wrote()
    pieces = []
    for table in tables:
        for identity, stored in _chunked(connection, rows, table):
            pieces.append(stored[-_PIECE:])
            content = rows.open(table, identity, stored)
            new = (identity, content) if change is None else change(table, identity, content)
            _replace(connection, table, identity, new[0], vault.seal(new[1], header.place(table, *new[0])))
            if table == "people":
                mark = Rows.mark_name(vault, PersonBody.decode(content).name)
                connection.execute("UPDATE people SET name_mark = ? WHERE id = ?", (mark, identity[0]))
    database.replace_header(header, vault)
    connection.execute("UPDATE gallery SET unscrubbed = ?", (generation,))
    return pieces


def _replace(
    connection: sqlite3.Connection, table: str, old: tuple[Any, ...], new: tuple[Any, ...], body: bytes
) -> None:
    columns = SEALED_TABLES[table]
    values = ", ".join(f"{column} = ?" for column in (*columns, "body"))
    connection.execute(f"UPDATE {table} SET {values} WHERE {columns[0]} = ?", (*new, body, old[0]))


def _chunked(
    connection: sqlite3.Connection, rows: Rows, table: str
) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    """Rows by rising key, some at a time: a statement that is still being read must not see what is replaced."""
    key, last = SEALED_TABLES[table][0], -1
    while chunk := list(rows.sealed(connection, table, f"WHERE {key} > ?", last, limit=_CHUNK)):
        yield from chunk
        last = chunk[-1][0][0]
