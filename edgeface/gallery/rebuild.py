"""Embed the kept images of a gallery with another model, and bring the gallery to its contract.

New embeddings are staged in the gallery itself, some at a time, and take the place of the old ones in one
transaction when all are there: until then the gallery works as before, and an interrupted rebuild is resumed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import FaceError, GalleryDamagedError, GalleryError, ImageError
from edgeface.gallery.codec import GalleryHeader, TemplateBody
from edgeface.gallery.records import KeptImage, NewTemplate, Proof, Rebuilding, unit_vector
from edgeface.gallery.store.base import GalleryStore, delete_templates
from edgeface.model.contract import Alignment, current_id
from edgeface.model.embedding import Embedding
from edgeface.progress import Progress, ProgressCallback, ignore_progress
from edgeface.runtime import Embedder
from edgeface.vision.align import align
from edgeface.vision.image import Image, read_image

_BATCH_SIZE = 32
"""Templates of one transaction: what an interruption costs at most."""


def rebuild(
    store: GalleryStore,
    embedder: Embedder,
    *,
    drop_missing: bool = False,
    same_alignment: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> Rebuilding:
    """Bring a gallery to the embedder's contract. Other processes must open it again.

    Parameters
    ----------
    store
        The gallery.
    embedder
        Of the new model, loaded with the default image format.
    drop_missing
        Remove templates without a usable image; otherwise they are an error. Templates that others enrol meanwhile
        have images, and are embedded too.
    same_alignment
        Use kept crops that were aligned already: they fit the new model too. Otherwise they are not usable.
    progress
        Called after each batch, with the stage "embedding".

    Raises
    ------
    GalleryError
        If the gallery has this contract already, or images are missing.
    """
    contract, database = embedder.contract, store.database
    if contract.contract_id == current_id(database.header.contract_id):
        raise GalleryError(
            f"{database.where}: this gallery uses this model already (contract "
            f"{contract.contract_id}); there is nothing to do"
        )
    header = dataclasses.replace(
        database.header,
        contract_id=contract.contract_id,
        dim=contract.embedding_dim,
        metric=contract.metric,
        model=contract.name,
    )
    work = _Work(store, header, same_alignment=same_alignment, drop_missing=drop_missing)
    todo, reused = work.begin()
    done = 0
    while True:
        for start in range(0, len(todo), _BATCH_SIZE):
            crops = work.crops(todo[start : start + _BATCH_SIZE], embedder)
            if crops:
                work.stage(list(crops), embedder.embed(np.stack(list(crops.values()))))
            done += len(crops)
            progress(Progress("embedding", reused + done, reused + len(todo), "templates"))
        if (finished := work.finish()) is not None:
            dropped, lonely, proof = finished
            return Rebuilding(
                contract_id=header.contract_id,
                embedded=done,
                reused=reused,
                dropped=dropped,
                without_templates=lonely,
                remains=proof.remains,
                unsearched=proof.unsearched,
            )
        todo, staged = work.begin()
        reused = staged - done  # what others forgot was staged in vain


class _Work:
    """One gallery on its way to another header."""

    def __init__(self, store: GalleryStore, header: GalleryHeader, *, same_alignment: bool, drop_missing: bool) -> None:
        self._store, self._header = store, header
        self._database, self._rows = store.database, store.rows
        self._same_alignment, self._drop_missing = same_alignment, drop_missing
        self._unfit: set[int] = set()

    def begin(self) -> tuple[list[int], int]:
        """Return the templates that are to be embedded, and how many have been."""
        with self._database.writing() as connection:
            if connection.execute("DELETE FROM staged WHERE contract_id <> ?", (self._header.contract_id,)).rowcount:
                self._database.wrote()
            staged = self._staged(connection)
            todo = self._usable(connection, self._all(connection) - staged)
            if not self._drop_missing:
                self._require_all(connection, staged | todo)
            return sorted(todo), len(staged)

    def crops(self, template_ids: list[int], embedder: Embedder) -> dict[int, Image]:
        """Return aligned faces of those templates that were not forgotten meanwhile."""
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
                        f"{self._database.where}: template {template_id}: {error}; --drop-missing removes such "
                        "templates; the embeddings computed so far are kept"
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
                    "INSERT INTO staged (template_id, contract_id, body) SELECT ?, ?, ? FROM templates WHERE id = ? "
                    "ON CONFLICT (template_id) DO UPDATE SET contract_id = excluded.contract_id, body = excluded.body",
                    (*identity, self._rows.seal("staged", identity, vector.astype("<f4").tobytes()), template_id),
                )

    def finish(self) -> tuple[int, tuple[str, ...], Proof] | None:
        """Put the staged embeddings in the places of the old ones, unless a template was added meanwhile (None).

        Return how many were dropped, names of people without templates, and what is left of the old rows.
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
                person.name for person in self._rows.people(connection) if not person.template_count and dropped
            )

            def change(table: str, identity: tuple[Any, ...], content: bytes) -> tuple[tuple[Any, ...], bytes]:
                if table != "templates":
                    return identity, content
                vector = self._staged_vector(connection, identity[0])
                body = TemplateBody.decode(content, self._database.header.dim)
                return (*identity[:2], generation), dataclasses.replace(body, vector=vector).encode()

            old = self._store.reseal(connection, self._header, self._database.cipher, change=change)
            connection.execute("DELETE FROM staged")
            connection.execute("UPDATE gallery SET known_since = ?", (generation,))
        self._store.adopt(self._header, self._database.cipher)
        with self._database.after_commit(f"the gallery is of contract {self._header.contract_id} now"):
            return len(dropped), lonely, self._store.prove(old)

    def _staged_vector(self, connection: Any, template_id: int) -> NDArray[np.float32]:
        for identity, stored in self._rows.sealed(connection, "staged", "WHERE template_id = ?", template_id):
            content = self._rows.open("staged", identity, stored)
            return np.frombuffer(content, "<f4").astype(np.float32, copy=False)
        raise GalleryDamagedError(f"gallery: expected a new embedding of template {template_id}, found none")

    def _all(self, connection: Any) -> set[int]:
        return {row[0] for row in connection.execute("SELECT id FROM templates")}

    def _staged(self, connection: Any) -> set[int]:
        return {row[0] for row in connection.execute("SELECT template_id FROM staged")}

    def _usable(self, connection: Any, among: set[int]) -> set[int]:
        """Return those of some templates that have a usable image, as far as is known."""
        usable = set()
        for template_id in among - self._unfit:
            image = self._rows.image(connection, template_id)
            if image is not None and (self._same_alignment or not image.aligned):
                usable.add(template_id)
        return usable

    def _require_all(self, connection: Any, usable: set[int]) -> None:
        missing = sorted(self._all(connection) - usable)
        if missing:
            raise GalleryError(
                f"{self._database.where}: {len(missing)} templates have no usable stored image; --drop-missing removes "
                "them; --same-alignment uses crops that were aligned when they were enrolled"
            )


def _crop(image: KeptImage, embedder: Embedder) -> Image:
    pixels = read_image(image.png)  # an import brings images from elsewhere
    contract = embedder.contract
    if image.aligned:
        return align(pixels, None, None, Alignment("none"), contract.input_size)
    return align(pixels, image.box, image.landmarks, contract.alignment, contract.input_size)
