"""Records in, rows of a gallery's tables out, and back; inside a transaction that somebody else began."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.errors import GalleryDamagedError, GalleryError
from edgeface.gallery.codec import (
    Header,
    PersonBody,
    TemplateBody,
    decode_image,
    encode_image,
    vectors_of,
)
from edgeface.gallery.records import (
    KeptImage,
    NewTemplate,
    Person,
    Template,
    TemplateBlock,
    unit_vector,
)
from edgeface.gallery.store.cipher import Vault
from edgeface.gallery.store.database import Database
from edgeface.model.embedding import Embedding

__all__ = ["SEALED_TABLES", "Rows", "block_of"]

SEALED_TABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "people": ("id",),
        "templates": ("id", "person_id", "generation"),
        "images": ("template_id",),
        "staged": ("template_id", "contract_id"),
    }
)
"""Tables with a sealed `body`, and the columns that are authenticated with it; the first one is the key. A template is
sealed with whose it is and since when, so that neither can be changed."""

_PEOPLE = "SELECT id, body, (SELECT count(*) FROM templates WHERE person_id = people.id) FROM people"


class Rows:
    """The rows of a gallery, sealed by its vault.

    Parameters
    ----------
    database
        Whose header and vault are asked for anew each time: they change when the gallery is given another key.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def _header(self) -> Header:
        return self._database.header

    @property
    def _vault(self) -> Vault:
        return self._database.vault

    # Sealed rows of any table

    def seal(self, table: str, identity: tuple[Any, ...], content: bytes) -> bytes:
        """What is stored in a row's `body`."""
        return self._vault.seal(content, self._header.place(table, *identity))

    def open(self, table: str, identity: tuple[Any, ...], stored: bytes) -> bytes:
        """What was sealed for this row."""
        return self._vault.open(stored, self._header.place(table, *identity))

    def sealed(
        self,
        connection: sqlite3.Connection,
        table: str,
        where: str = "",
        *values: Any,
        limit: int = -1,
    ) -> Iterator[tuple[tuple[Any, ...], bytes]]:
        """Identity and stored body of a table's rows, by rising key."""
        columns = SEALED_TABLES[table]
        query = f"SELECT {', '.join(columns)}, body FROM {table} {where} ORDER BY {columns[0]} LIMIT ?"
        for *identity, stored in connection.execute(query, (*values, limit)):
            yield tuple(identity), stored

    # People

    def people(self, connection: sqlite3.Connection) -> Iterator[Person]:
        """Everybody, by rising id."""
        for row in connection.execute(f"{_PEOPLE} ORDER BY id"):
            yield self._person(*row)

    def person(self, connection: sqlite3.Connection, person_id: int) -> Person:
        """Somebody, or `GalleryError`."""
        self.require_person(connection, person_id)
        return self._person(*connection.execute(f"{_PEOPLE} WHERE id = ?", (person_id,)).fetchone())

    def require_person(self, connection: sqlite3.Connection, person_id: int) -> None:
        """Refuse an id that nobody has; a damaged row is somebody."""
        if connection.execute("SELECT 1 FROM people WHERE id = ?", (person_id,)).fetchone() is None:
            raise GalleryError(
                f"gallery: expected a person, found nobody of id {person_id}; edgeface gallery list shows who is there"
            )

    def find(self, connection: sqlite3.Connection, name: str) -> Person | None:
        """Somebody of this name, in the form of `check_name`."""
        row = connection.execute(
            f"{_PEOPLE} WHERE name_mark = ?", (self.mark_name(self._vault, name),)
        ).fetchone()
        if row is None:
            return None
        person = self._person(*row)
        if person.name != name:
            raise GalleryDamagedError(
                f"gallery: the mark of another name was put at person {person.id}; restore the file from a copy"
            )
        return person

    @staticmethod
    def mark_name(vault: Vault, name: str) -> bytes:
        """By which a name is found without being readable."""
        return vault.mark(b"name:" + name.encode("utf-8", "surrogatepass"))

    def put_person(self, connection: sqlite3.Connection, person_id: int, body: PersonBody) -> None:
        """Add or replace a person's row."""
        connection.execute(
            "INSERT INTO people (id, name_mark, body) VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name_mark = excluded.name_mark, body = excluded.body",
            (
                person_id,
                self.mark_name(self._vault, body.name),
                self.seal("people", (person_id,), body.encode()),
            ),
        )

    def _person(self, person_id: int, sealed: bytes, count: int) -> Person:
        body = PersonBody.decode(self.open("people", (person_id,), sealed))
        return Person(
            id=person_id,
            name=body.name,
            labels=body.labels,
            metadata=body.metadata,
            created=body.created,
            template_count=count,
        )

    # Templates

    def add_templates(
        self,
        connection: sqlite3.Connection,
        person_id: int,
        templates: Sequence[NewTemplate],
        generation: int,
    ) -> tuple[int, ...]:
        """Store templates that `check` accepted; their ids."""
        ids = self._database.take_ids(len(templates))
        info = self._header.info(0)
        for template_id, new in zip(ids, templates, strict=True):
            body = TemplateBody(unit_vector(new, info), new.quality, new.source_sha256, new.created).encode()
            identity = (template_id, person_id, generation)
            connection.execute(
                "INSERT INTO templates (id, person_id, generation, body) VALUES (?, ?, ?, ?)",
                (*identity, self.seal("templates", identity, body)),
            )
            if new.image is not None:
                sealed = self.seal("images", (template_id,), encode_image(new.image))
                connection.execute(
                    "INSERT INTO images (template_id, body) VALUES (?, ?)", (template_id, sealed)
                )
        return tuple(ids)

    def check(self, templates: Sequence[NewTemplate]) -> None:
        """Refuse what does not belong into this gallery, before anything is written."""
        info = self._header.info(0)
        for new in templates:
            unit_vector(new, info)
            if new.image is not None and not info.keeps_images:
                raise GalleryError(
                    "gallery: this gallery keeps no images, and one was given; make a gallery with --keep-images, or "
                    "leave it out"
                )

    def templates_of(self, connection: sqlite3.Connection, person_id: int) -> Iterator[Template]:
        """Somebody's, by rising id."""
        with_image = {
            row[0]
            for row in connection.execute(
                "SELECT template_id FROM images JOIN templates ON id = template_id WHERE person_id = ?",
                (person_id,),
            )
        }
        for identity, stored in self.sealed(connection, "templates", "WHERE person_id = ?", person_id):
            body = TemplateBody.decode(self.open("templates", identity, stored), self._header.dim)
            yield Template(
                id=identity[0],
                person_id=person_id,
                embedding=Embedding(body.vector, self._header.contract_id),
                quality=body.quality,
                source_sha256=body.source_sha256,
                created=body.created,
                has_image=identity[0] in with_image,
            )

    def image(self, connection: sqlite3.Connection, template_id: int) -> KeptImage | None:
        """The picture of a template, if it was kept."""
        for identity, stored in self.sealed(connection, "images", "WHERE template_id = ?", template_id):
            return decode_image(self.open("images", identity, stored))
        return None

    # Many templates

    def blocks(
        self, connection: sqlite3.Connection, *, rows: int, after: int = -1
    ) -> Iterator[TemplateBlock]:
        """Templates that came after a generation, by rising id, at most so many at a time."""
        (generation,) = connection.execute("SELECT generation FROM gallery").fetchone()
        where, values = ("", ()) if after < 0 else ("WHERE generation > ?", (after,))
        found = self.sealed(connection, "templates", where, *values)
        while chunk := list(itertools.islice(found, rows)):
            yield self._block(chunk, generation)

    def _block(self, rows: Sequence[tuple[tuple[Any, ...], bytes]], generation: int) -> TemplateBlock:
        bodies = [self.open("templates", identity, stored) for identity, stored in rows]
        return block_of(
            np.array([identity[0] for identity, _ in rows], np.int64),
            np.array([identity[1] for identity, _ in rows], np.int64),
            vectors_of(bodies, self._header.dim),
            contract_id=self._header.contract_id,
            generation=generation,
        )

    def empty(self, generation: int) -> TemplateBlock:
        """No templates."""
        return self._block([], generation)


def block_of(
    ids: NDArray[np.int64],
    person_ids: NDArray[np.int64],
    vectors: NDArray[np.float32],
    **bound: Any,
) -> TemplateBlock:
    """A block whose arrays nobody can write to."""
    for array in (ids, person_ids, vectors):
        array.setflags(write=False)
    return TemplateBlock(ids=ids, person_ids=person_ids, vectors=vectors, **bound)
