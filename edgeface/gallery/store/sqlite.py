"""A gallery in one file: `GalleryStore` on SQLite."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeface.errors import GalleryBusyError, OutputError
from edgeface.gallery.records import Rekeying, TemplateBlock
from edgeface.gallery.store.base import MOST_PROBLEMS, GalleryStore
from edgeface.gallery.store.cache import read_templates, write_templates
from edgeface.gallery.store.database import new_header
from edgeface.gallery.store.erase import overwrite, prove, secrets_of, truncate_wal
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
        return read_templates(self.path, self.database.header, self.database.cipher)

    def _write_cache(self, block: TemplateBlock) -> None:
        """Write it, unless another process writes, which makes it out of date anyway, or there is no room."""
        try:
            with self.database.writing():
                if self.database.state("generation") == block.generation:
                    write_templates(self.path, self.database.header, self.database.cipher, block)
        except (GalleryBusyError, OutputError) as error:
            _log.info("%s; the gallery is loaded without a cache", error)

    # Erasure, another key, another model

    def scrub(self) -> bool:
        """Finish every erasure that was begun; see `GalleryStore.scrub`."""
        if done := super().scrub():
            truncate_wal(self.database)
        return done

    def _overwrite(self) -> None:
        overwrite(self.database)

    def prove(self, secrets: Sequence[bytes]) -> tuple[dict[str, int], int, tuple[str, ...]]:
        self.scrub()
        return prove(self.database, self.rows, secrets)

    def _secrets(self, connection: Any, person_id: int, ids: Sequence[int], *, whole: bool) -> Iterable[bytes]:
        return secrets_of(connection, self.rows, person_id, ids, whole=whole)

    def rekey(self, key: bytes | None) -> Rekeying:
        """Seal everything with another key, the first one, or none, in one transaction.

        No state has some rows under the old key and some under the new. An interruption before the commit leaves
        everything as it was; one after it leaves only the erasure of the old bytes to the next opening. It takes room
        for the gallery's size again, in the WAL. Other processes must open the gallery again.

        Nothing is changed if it is this key already (`GalleryError`), a row is damaged (`GalleryDamagedError`), or
        there is no room (`OutputError`).
        """
        return self._rekey(key)

    def _structure_problems(self, connection: Any) -> Iterator[tuple[str, str]]:
        for (line,) in connection.execute(f"PRAGMA integrity_check({MOST_PROBLEMS})"):
            if line != "ok":
                yield "", f"the file's structure: {line}"
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
            yield "", f"row {row} of {table} belongs to a row of {parent} that is not there"
