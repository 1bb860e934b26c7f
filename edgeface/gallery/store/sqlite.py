"""A gallery in one file: `GalleryStore` on SQLite."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeface.errors import GalleryBusyError, OutputError
from edgeface.gallery.records import Rekeying, TemplateBlock
from edgeface.gallery.store.base import GalleryStore
from edgeface.gallery.store.cache import read_templates, write_templates
from edgeface.gallery.store.database import new_header
from edgeface.gallery.store.erase import overwrite, prove, secrets_of, truncate_wal
from edgeface.gallery.store.sqlite_database import SqliteDatabase, create_database

_log = logging.getLogger(__name__)

_MOST_PROBLEMS = 100


class SqliteStore(GalleryStore):
    """A gallery's file, open: a `GalleryStore`.

    Parameters
    ----------
    path
        The file that `create` made.
    key
        The 32 bytes it was made with, None if it was made without: see `read_key`.
    contract_id
        Expected contract; None: any.
    timeout
        Seconds to wait for another process that writes.

    Raises
    ------
    GalleryKeyError, GalleryDamagedError, ContractError, GalleryError, OutputError
        If it cannot be opened, with the reason.

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
        """Make a gallery without people, and open it.

        Parameters
        ----------
        path
            Where there is no file yet.
        contract_id, dim
            Of the model whose embeddings it will hold.
        key
            32 bytes. None: anyone who has the file can read names, metadata, embeddings and images; this is why there
            is no default.
        model
            Its name, for people; readable without the key.
        keep_images
            Whether it keeps the part of each photo that shows the face, which `rebuild` needs.
        timeout
            As for opening.

        Raises
        ------
        OutputError
            If there is a file, or none can be written.
        GalleryKeyError
            If the key has another length.
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

        Raises
        ------
        GalleryError
            If it is this key already, or inside `writing`.
        GalleryDamagedError
            If a row is damaged: nothing is changed.
        OutputError
            If there is no room: nothing is changed.
        """
        return self._rekey(key)

    def _structure_problems(self, connection: Any) -> Iterator[tuple[str, str]]:
        for (line,) in connection.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})"):
            if line != "ok":
                yield "", f"the file's structure: {line}"
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
            yield "", f"row {row} of {table} belongs to a row of {parent} that is not there"
