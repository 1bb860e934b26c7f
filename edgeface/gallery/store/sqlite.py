"""A gallery in one file: `GalleryStore` on SQLite."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeface.errors import GalleryBusyError, GalleryError, OutputError
from edgeface.files import sweep_staging
from edgeface.gallery.records import CheckReport, Proof, TemplateBlock
from edgeface.gallery.store.base import MOST_PROBLEMS, GalleryStore
from edgeface.gallery.store.cache import apply_changes, examine_cache, read_templates, write_templates
from edgeface.gallery.store.database import new_header
from edgeface.gallery.store.erase import overwrite, prove, truncate_wal
from edgeface.gallery.store.sqlite_database import SqliteDatabase, create_database

_log = logging.getLogger(__name__)


class SqliteStore(GalleryStore):
    """A gallery's file, open: a `GalleryStore`. See `open_gallery` for the parameters and what is raised.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "people.gallery"
    ...     with SqliteStore.create(path, contract_id="0123456789abcdef", dim=4, key=None) as store:
    ...         store.add_person("Ada").name, store.generation()
    ('Ada', 2)
    """

    database: SqliteDatabase

    def __init__(
        self, path: Path, *, key: bytes | None = None, contract_id: str | None = None, timeout: float = 30.0
    ) -> None:
        super().__init__(SqliteDatabase(path, key=key, contract_id=contract_id, timeout=timeout))
        if self.database.old_cache:
            self._adopt_cache()

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        contract_id: str,
        dim: int,
        key: bytes | None,
        model: str = "",
        keep_images: bool = False,
        timeout: float = 30.0,
    ) -> SqliteStore:
        """Make a gallery without people, and open it; see `create_gallery` for the parameters.

        `contract_id` and `dim` are those of the model, whose name is readable without the key of 32 bytes.
        `OutputError` is raised if there is a file, or none can be written, `GalleryKeyError` for a key of another
        length.
        """
        header, cipher = new_header(contract_id=contract_id, dim=dim, key=key, model=model, keep_images=keep_images)
        create_database(path, header, cipher)
        return cls(path, key=key, contract_id=contract_id, timeout=timeout)

    @property
    def path(self) -> Path:
        """The file."""
        return self.database.path

    # The cache

    def _read_cache(self) -> TemplateBlock | None:
        with self.database.reading() as connection:
            (mark,) = connection.execute("SELECT cached FROM gallery").fetchone()
            block = read_templates(self.path, self.database.header, self.database.cipher, str(mark))
            if block is not None and not block.history:  # of edgeface 0.1, and compared with the rows since
                block = dataclasses.replace(block, history=self.database.history_at(block.generation))
            return block

    def _adopt_cache(self) -> None:
        """Go on using the cache that edgeface 0.1 wrote, if it holds exactly what the rows do."""
        with contextlib.suppress(GalleryError, OutputError), self.database.writing() as connection:
            rows = self.rows.block(connection)

            def differs(block: TemplateBlock) -> str:
                return "" if block.generation == rows.generation and _same(block, rows) else "other templates"

            mark, problem = examine_cache(self.path, self.database.header, self.database.cipher, differs)
            connection.execute("UPDATE gallery SET cached = ?", ("" if problem else mark,))

    def _write_cache(self, block: TemplateBlock) -> None:
        """Write it, unless another process writes, which makes it out of date anyway, or there is no room."""
        try:
            with self.database.writing() as connection:
                if self.database.last_commit() == (block.generation, block.history):
                    mark = write_templates(self.path, self.database.header, self.database.cipher, block)
                    connection.execute("UPDATE gallery SET cached = ?", (mark,))
        except (GalleryBusyError, OutputError) as error:
            _log.info("%s; the gallery is loaded without a cache", error)

    def check(self) -> CheckReport:
        """As `GalleryStore.check`; the cache is compared with the rows too."""
        sweep_staging(self.path.parent)
        report = super().check()
        if report:  # with damaged rows there is nothing to compare with
            # Twice, because another process may replace the file while it is read.
            for _ in range(2):
                with self.database.reading() as connection:
                    differs = functools.partial(self._cache_differs, connection)
                    _, problem = examine_cache(self.path, self.database.header, self.database.cipher, differs)
                if not problem:
                    return report
            report = dataclasses.replace(report, problems=(problem,))
        return report

    def _cache_differs(self, connection: Any, block: TemplateBlock) -> str:
        """Say in what a block differs from the rows; empty if in nothing, or if it is too old to be compared."""
        if not block.history or block.generation < self.database.oldest_known():
            return ""
        changes = self._changes(connection, block.generation, block.history)
        if changes is None:
            return "belongs to another history of this gallery: a copy of the gallery was put back"
        same = _same(apply_changes(block, changes), self.rows.block(connection))
        return "" if same else "holds other templates than the gallery"

    # Erasure, check

    def scrub(self) -> bool:
        """Finish every erasure that was begun; see `GalleryStore.scrub`."""
        if done := super().scrub():
            truncate_wal(self.database)
        return done

    def _overwrite(self) -> None:
        overwrite(self.database)

    def prove(self, secrets: Sequence[bytes]) -> Proof:
        self.scrub()
        return prove(self.database, self.rows, secrets)

    def _structure_problems(self, connection: Any) -> Iterator[tuple[str, str]]:
        yield from super()._structure_problems(connection)
        for (line,) in connection.execute(f"PRAGMA integrity_check({MOST_PROBLEMS})"):
            if line != "ok":
                yield "", f"the file's structure: {line}"
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
            yield "", f"row {row} of {table} belongs to a row of {parent} that is not there"


def _same(block: TemplateBlock, other: TemplateBlock) -> bool:
    """Return whether two blocks hold the same templates of the same people, bit by bit."""
    return all(np.array_equal(getattr(block, name), getattr(other, name)) for name in ("ids", "person_ids", "vectors"))
