"""A gallery's file in, all its embeddings as one matrix out: from the derived file and what changed since."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np

from edgeface.errors import GalleryBusyError, GalleryError, OutputError
from edgeface.gallery.records import Changes, TemplateBlock
from edgeface.gallery.store.cache import apply_changes, read_templates, try_to_write
from edgeface.gallery.store.database import Database
from edgeface.gallery.store.rows import Rows, block_of

__all__ = ["Matrix"]

_ROWS = 16384
_UNCOMMITTED = -1
_WORTH_A_FILE = 2048
"""Templates that the derived file must save the reading of, before it is written."""


class Matrix:
    """What a `Store` tells an index, of a gallery in one file."""

    def __init__(self, database: Database, rows: Rows) -> None:
        self._database, self._rows = database, rows

    def blocks(self, rows: int) -> Iterator[TemplateBlock]:
        """Every template in blocks of one generation; see `Store.templates`."""
        if rows < 1:
            raise GalleryError(f"rows: expected 1 or more, found {rows}")
        if self._database.in_transaction:  # what was written in it is seen by its own connection alone
            with self._database.reading() as connection:
                yield from list(self._rows.blocks(connection, rows=rows))
            return
        with self._database.snapshot() as connection:
            yield from self._rows.blocks(connection, rows=rows)

    def load(self) -> TemplateBlock:
        """All templates; see `Store.load`."""
        within = self._database.in_transaction
        with self._database.reading() as connection:
            known = read_templates(self._database.path, self._database.header, self._database.vault)
            changes = None if known is None else self._changes(connection, known.generation)
            if known is None or changes is None:
                block = self._joined(self._rows.blocks(connection, rows=_ROWS))
                read = len(block)
            else:
                block, read = apply_changes(known, changes), len(changes.added) + len(changes.removed)
            block = dataclasses.replace(block, generation=self._generation())
        if read >= _WORTH_A_FILE and not within:
            self._keep(block)
        return block

    def _keep(self, block: TemplateBlock) -> None:
        """Write the derived file, unless somebody else writes, who makes it stale anyway."""
        with contextlib.suppress(GalleryBusyError, OutputError), self._database.writing():
            if self._database.state("generation") == block.generation:
                try_to_write(self._database.path, self._database.header, self._database.vault, block)

    def changes_since(self, generation: int) -> Changes | None:
        """What happened after a generation; see `Store.changes_since`."""
        with self._database.reading() as connection:
            return self._changes(connection, generation)

    def _changes(self, connection: sqlite3.Connection, generation: int) -> Changes | None:
        if not self._database.state("known_since") <= generation <= self._database.state("generation"):
            return None
        removed = connection.execute(
            "SELECT template_id FROM removals WHERE generation > ? ORDER BY template_id", (generation,)
        )
        return Changes(
            generation=self._generation(),
            removed=np.array([row[0] for row in removed], np.int64),
            added=self._joined(self._rows.blocks(connection, rows=_ROWS, after=generation)),
        )

    def _generation(self) -> int:
        """Of what is read now; what may yet be undone has none, so that whoever has it reads everything again."""
        return _UNCOMMITTED if self._database.uncommitted else self._database.state("generation")

    def _joined(self, blocks: Iterator[TemplateBlock]) -> TemplateBlock:
        found: Sequence[TemplateBlock] = list(blocks)
        if not found:
            return self._rows.empty(self._database.state("generation"))
        names = ("ids", "person_ids", "vectors")
        return block_of(
            *(np.concatenate([getattr(each, name) for each in found]) for name in names),
            contract_id=found[0].contract_id,
            generation=found[0].generation,
        )
