"""A gallery that kept its images and another model in, the same people as that model sees them out.

New embeddings are staged in the gallery's own file, some at a time, and take the place of the old ones in one
transaction when all are there: until then the gallery works as before, and an interrupted rebuild goes on where it
was.
"""

from __future__ import annotations

import dataclasses
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import FaceError, GalleryDamagedError, GalleryError, ImageError
from edgeface.gallery.codec import Header, TemplateBody
from edgeface.gallery.records import KeptImage, NewTemplate, unit_vector
from edgeface.gallery.store.database import Database
from edgeface.gallery.store.erase import delete_templates, prove, scrub
from edgeface.gallery.store.rekey import reseal
from edgeface.gallery.store.rows import Rows
from edgeface.model.contract import Alignment
from edgeface.model.embedding import Embedding
from edgeface.runtime import Embedder
from edgeface.vision.align import align
from edgeface.vision.image import Image, read_image

__all__ = ["Rebuilding", "rebuild"]

_TOGETHER = 32
"""Templates of one transaction: what an interruption costs at most."""

Progress = Callable[[int, int], None]
"""Called with the number of templates done, and of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilding:
    """What `rebuild` did.

    Attributes
    ----------
    contract_id
        Of the gallery now.
    embedded, reused
        Templates that were embedded now, and by an earlier run that was interrupted.
    dropped
        Templates of which no usable image was kept.
    without_templates
        Names of people who have none left, and have to be enrolled again.
    remains
        Where an old row was found in the files afterwards; empty, or the erasure failed.
    """

    contract_id: str
    embedded: int
    reused: int
    dropped: int
    without_templates: tuple[str, ...]
    remains: tuple[str, ...]


def rebuild(
    database: Database,
    rows: Rows,
    embedder: Embedder,
    *,
    drop_missing: bool = False,
    same_alignment: bool = False,
    progress: Progress | None = None,
) -> Rebuilding:
    """Bring a gallery to the embedder's contract.

    Parameters
    ----------
    database, rows
        The gallery.
    embedder
        Of the new model, loaded with the default image format.
    drop_missing
        Templates of which no usable image was kept go; otherwise they are an error. Those that others enrol
        meanwhile have images, and are embedded too.
    same_alignment
        Kept crops that were aligned already fit the new model too; otherwise they are not usable.
    progress
        Called after each few.

    Raises
    ------
    GalleryError
        If the gallery has this contract already, or images are missing.
    """
    contract = embedder.contract
    if contract.contract_id == database.header.contract_id:
        raise GalleryError(
            f"{database.path}: expected another model than the gallery's, found its own: contract "
            f"{contract.contract_id}; there is nothing to do"
        )
    header = dataclasses.replace(
        database.header,
        contract_id=contract.contract_id,
        dim=contract.embedding_dim,
        metric=contract.metric,
        model=contract.name,
    )
    work = _Work(database, rows, header, same_alignment=same_alignment, drop_missing=drop_missing)
    todo, reused = work.begin()
    done = 0
    while True:
        for chunk in _chunks(todo):
            crops = work.crops(chunk, embedder)
            if crops:
                work.stage(list(crops), embedder.embed(np.stack(list(crops.values()))))
            done += len(crops)
            if progress:
                progress(reused + done, reused + len(todo))
        if (finished := work.finish()) is not None:
            dropped, lonely, remains = finished
            return Rebuilding(
                contract_id=header.contract_id,
                embedded=done,
                reused=reused,
                dropped=dropped,
                without_templates=lonely,
                remains=remains,
            )
        todo, staged = work.begin()
        reused = staged - done  # what others forgot was staged in vain


class _Work:
    """One gallery on its way to another header."""

    def __init__(
        self, database: Database, rows: Rows, header: Header, *, same_alignment: bool, drop_missing: bool
    ) -> None:
        self._database, self._rows, self._header = database, rows, header
        self._same_alignment, self._drop_missing = same_alignment, drop_missing
        self._unfit: set[int] = set()

    def begin(self) -> tuple[list[int], int]:
        """Templates that are to be embedded, and how many have been."""
        with self._database.writing() as connection:
            if connection.execute(
                "DELETE FROM staged WHERE contract_id <> ?", (self._header.contract_id,)
            ).rowcount:
                self._database.wrote()
            staged = self._staged(connection)
            todo = self._usable(connection, self._all(connection) - staged)
            if not self._drop_missing:
                self._require_all(connection, staged | todo)
            return sorted(todo), len(staged)

    def crops(self, template_ids: list[int], embedder: Embedder) -> dict[int, Image]:
        """Aligned faces of those templates that were not forgotten meanwhile."""
        crops = {}
        for template_id in template_ids:
            with self._database.reading() as connection:
                image = self._rows.image(connection, template_id)
            if image is None:
                continue
            try:
                crops[template_id] = _crop(image, embedder)
            except (FaceError, ImageError) as error:
                if not self._drop_missing:
                    raise GalleryError(
                        f"{self._database.path}: template {template_id}: {error}; --drop-missing leaves out templates "
                        "like this, and what was embedded so far is kept"
                    ) from error
                self._unfit.add(template_id)
        return crops

    def stage(self, template_ids: list[int], vectors: NDArray[np.float32]) -> None:
        """Keep new embeddings of templates that are still there."""
        info = self._header.info(0)
        with self._database.writing() as connection:
            self._database.wrote()
            for template_id, row in zip(template_ids, vectors, strict=True):
                vector = unit_vector(NewTemplate(embedding=Embedding(row, info.contract_id)), info)
                identity = (template_id, self._header.contract_id)
                connection.execute(
                    "INSERT OR REPLACE INTO staged (template_id, contract_id, body) "
                    "SELECT ?, ?, ? FROM templates WHERE id = ?",
                    (
                        *identity,
                        self._rows.seal("staged", identity, vector.astype("<f4").tobytes()),
                        template_id,
                    ),
                )

    def finish(self) -> tuple[int, tuple[str, ...], tuple[str, ...]] | None:
        """Put the staged embeddings in the places of the old ones.

        Returns
        -------
        (int, tuple of str, tuple of str) or None
            How many were dropped, names of people without templates, remains. None: somebody was enrolled meanwhile.
        """
        with self._database.writing() as connection:
            staged = self._staged(connection)
            without = self._all(connection) - staged
            if self._usable(connection, without):
                return None
            if not self._drop_missing:
                self._require_all(connection, staged)
            generation = self._database.wrote()
            dropped = sorted(without)
            delete_templates(connection, dropped, generation)
            lonely = tuple(
                person.name
                for person in self._rows.people(connection)
                if not person.template_count and dropped
            )

            def change(
                table: str, identity: tuple[Any, ...], content: bytes
            ) -> tuple[tuple[Any, ...], bytes]:
                if table != "templates":
                    return identity, content
                vector = self._staged_vector(connection, identity[0])
                body = TemplateBody.decode(content, self._database.header.dim).with_vector(vector)
                return (*identity[:2], generation), body.encode()

            old = reseal(
                connection, self._database, self._rows, self._header, self._database.vault, change=change
            )
            connection.execute("DELETE FROM staged")
            connection.execute("UPDATE gallery SET known_since = ?", (generation,))
        self._database.adopt(self._header, self._database.vault)
        scrub(self._database)
        _, _, remains = prove(self._database, self._rows, old)
        return len(dropped), lonely, remains

    def _staged_vector(self, connection: sqlite3.Connection, template_id: int) -> NDArray[np.float32]:
        for identity, stored in self._rows.sealed(connection, "staged", "WHERE template_id = ?", template_id):
            content = self._rows.open("staged", identity, stored)
            return np.frombuffer(content, "<f4").astype(np.float32, copy=False)
        raise GalleryDamagedError(f"gallery: expected a new embedding of template {template_id}, found none")

    def _all(self, connection: sqlite3.Connection) -> set[int]:
        return {row[0] for row in connection.execute("SELECT id FROM templates")}

    def _staged(self, connection: sqlite3.Connection) -> set[int]:
        return {row[0] for row in connection.execute("SELECT template_id FROM staged")}

    def _usable(self, connection: sqlite3.Connection, among: set[int]) -> set[int]:
        """Those of some templates that have an image from which they can be embedded, as far as is known."""
        usable = set()
        for template_id in among - self._unfit:
            image = self._rows.image(connection, template_id)
            if image is not None and (self._same_alignment or not image.aligned):
                usable.add(template_id)
        return usable

    def _require_all(self, connection: sqlite3.Connection, usable: set[int]) -> None:
        missing = sorted(self._all(connection) - usable)
        if missing:
            raise GalleryError(
                f"{self._database.path}: expected a kept image of every template, found none that can be used of "
                f"{len(missing)}; --drop-missing leaves those templates out, and --same-alignment uses crops that were "
                "aligned when they were enrolled"
            )


def _crop(image: KeptImage, embedder: Embedder) -> Image:
    pixels = read_image(image.png)  # an import brings images from elsewhere
    contract = embedder.contract
    if image.aligned:
        return align(pixels, None, None, Alignment("none"), contract.input_size)
    return align(pixels, image.box, image.landmarks, contract.alignment, contract.input_size)


def _chunks(ids: Iterable[int]) -> Iterator[list[int]]:
    remaining = iter(ids)
    while chunk := list(itertools.islice(remaining, _TOGETHER)):
        yield chunk
