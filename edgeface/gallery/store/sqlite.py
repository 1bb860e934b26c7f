"""A gallery in one file: `Store` on SQLite."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.errors import GalleryBusyError, GalleryError, OutputError
from edgeface.gallery.codec import Header
from edgeface.gallery.records import (
    Erasure,
    now,
)
from edgeface.gallery.store.cache import make_derived_folder
from edgeface.gallery.store.check import CheckReport, check
from edgeface.gallery.store.cipher import make_vault
from edgeface.gallery.store.create import create_database
from edgeface.gallery.store.database import Database
from edgeface.gallery.store.erase import forget, scrub
from edgeface.gallery.store.matrix import Matrix
from edgeface.gallery.store.rekey import Rekeying, rekey
from edgeface.gallery.store.rows import Rows
from edgeface.gallery.store.tables import TableStore

if TYPE_CHECKING:
    from edgeface.gallery.rebuild import Progress, Rebuilding
    from edgeface.runtime import Embedder

__all__ = ["SqliteStore"]

_log = logging.getLogger(__name__)


class SqliteStore(TableStore):
    """A gallery's file, open: a `Store`. See `Database` for what it raises when it is opened.

    Parameters
    ----------
    path
        The file that `create` made.
    key
        The 32 bytes it was made with, None if it was made without: see `read_key`.
    contract_id
        That it must be of; None: whatever it is of.
    timeout
        Seconds to wait for another process that writes.
    """

    _database: Database

    def __init__(
        self, path: Path, *, key: bytes | None = None, contract_id: str | None = None, timeout: float = 30.0
    ) -> None:
        database = Database(path, key=key, contract_id=contract_id, timeout=timeout)
        rows = Rows(database)
        super().__init__(database, rows, Matrix(database, rows))
        try:
            scrub(self._database)
        except (GalleryBusyError, OutputError) as error:
            _log.warning("%s: an erasure that was interrupted is still unfinished: %s", path, error)

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
        """Make a gallery with nobody in it, and open it.

        Parameters
        ----------
        path
            Where there is no file yet.
        contract_id, dim
            Of the model whose embeddings it will hold.
        key
            32 bytes. None: whoever has the file can read names, metadata, embeddings and images; this is why there
            is no default.
        model
            Its name, for people; readable without the key.
        keep_images
            Whether it keeps the part of each picture that shows the face, which `rebuild` needs.
        timeout
            As for opening.

        Raises
        ------
        OutputError
            If there is a file, or none can be written.
        GalleryKeyError
            If the key has another length.
        """
        if dim < 1 or not contract_id:
            raise GalleryError(
                f"gallery: expected a contract and its dimension, found {contract_id!r}, {dim}"
            )
        gallery_id = uuid.uuid4().hex
        vault = make_vault(key, gallery_id)
        header = Header(
            gallery_id=gallery_id,
            contract_id=contract_id,
            dim=dim,
            metric="cosine",
            model=model,
            created=now().isoformat(),
            key_id=vault.key_id,
            keeps_images=keep_images,
        )
        create_database(path, header, vault)
        return cls(path, key=key, contract_id=contract_id, timeout=timeout)

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @contextlib.contextmanager
    def derived(self, generation: int) -> Iterator[Path | None]:
        """Hold off all writers, and yield the folder for files that are derived from this generation.

        `forget` and `rekey` empty the folder. What is kept there must not be readable where the gallery is encrypted.

        Yields
        ------
        Path or None
            None: the gallery has changed since; write nothing.
        """
        with self._database.writing():
            current = self._database.state("generation") == generation
            yield make_derived_folder(self.path) if current else None

    # The end

    def forget(self, person_id: int, *, template_ids: Sequence[int] | None = None) -> Erasure:
        """Erase somebody, or some templates, for good, and prove it; see `Store.forget`.

        The file is rewritten, and then searched from the first byte to the last, as are the WAL and everything in the
        derived folder. Beyond reach are copies and exports, and what the medium keeps of blocks that the file system
        has given up: encrypt the gallery, or the disk.

        Raises
        ------
        GalleryBusyError, OutputError
            If others read for too long or there is no room: the person is deleted then, the erasure is not finished,
            and the next who opens the gallery goes on.
        """
        return forget(self._database, self._rows, person_id, template_ids)

    def rekey(self, key: bytes | None) -> Rekeying:
        """Seal everything with another key, or with none; see `reseal.rekey`. Other processes must open it again."""
        return rekey(self._database, self._rows, key)

    def rebuild(
        self,
        embedder: Embedder,
        *,
        drop_missing: bool = False,
        same_alignment: bool = False,
        progress: Progress | None = None,
    ) -> Rebuilding:
        """Bring the gallery to another model; see `rebuild.rebuild`. Other processes must open it again."""
        from edgeface.gallery.rebuild import rebuild  # OpenVINO, which nothing else here needs

        return rebuild(
            self._database,
            self._rows,
            embedder,
            drop_missing=drop_missing,
            same_alignment=same_alignment,
            progress=progress,
        )

    def check(self) -> CheckReport:
        """Finish what was interrupted and read everything; see `check.check`."""
        return check(self._database, self._rows)
