"""Rows of a gallery's tables: read, written and sealed inside a transaction that the caller began."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeface.cipher import Cipher
from edgeface.errors import GalleryDamagedError, GalleryError
from edgeface.gallery.codec import GalleryHeader, PersonBody, TemplateBody, decode_image, encode_image, vectors_of
from edgeface.gallery.records import KeptImage, NewTemplate, Person, Template, TemplateBlock, unit_vector
from edgeface.gallery.store.database import Database
from edgeface.model.embedding import Embedding

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

_LONGEST_IMAGE, _LONGEST_OTHER = 1 << 26, 1 << 22
"""Bytes of a stored row. A forged one could have what a database can hold, and the search for its pieces takes 50 times
that."""

Change = Callable[[str, tuple[Any, ...], bytes], tuple[tuple[Any, ...], bytes]]
"""From table, identity and content of a row to its new identity and content."""

_BLOCK_ROWS = 16384
_REKEY_ROWS = 512
_PIECE = 31
"""The last bytes of a stored row, which are unlike all others because its tag is among them."""
_HIGHEST_ID = (
    "SELECT coalesce(max(id), 0) FROM (SELECT id FROM people UNION ALL SELECT id FROM templates "
    "UNION ALL SELECT template_id FROM removals) AS given"
)
_PEOPLE = "SELECT id, body, (SELECT count(*) FROM templates WHERE person_id = people.id) FROM people"


def _longest(table: str) -> int:
    return _LONGEST_IMAGE if table == "images" else _LONGEST_OTHER


class Rows:
    """The rows of a gallery."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def _header(self) -> GalleryHeader:  # it and the cipher change when the gallery is given another key
        return self._database.header

    @property
    def cipher(self) -> Cipher:
        """What the rows are sealed with."""
        return self._database.cipher

    # Sealed rows of any table

    def seal(self, table: str, identity: tuple[Any, ...], content: bytes) -> bytes:
        """Return what is stored in a row's `body`; `GalleryError` if it is too long to be read again."""
        sealed = self.cipher.seal(content, self._header.place(table, *identity))
        if len(sealed) > _longest(table):
            raise GalleryError(
                f"gallery: expected at most {_longest(table):,} bytes for a row of {table}, found {len(sealed):,}; "
                f"{'use a smaller photo' if table == 'images' else 'store less metadata'}"
            )
        return sealed

    def open(self, table: str, identity: tuple[Any, ...], stored: bytes) -> bytes:
        """Return what was sealed for this row."""
        return self.cipher.open(stored, self._header.place(table, *identity))

    def sealed(
        self, connection: Any, table: str, where: str = "", *values: Any, limit: int = -1
    ) -> Iterator[tuple[tuple[Any, ...], bytes]]:
        """Yield identity and stored body of a table's rows, by rising key."""
        columns = SEALED_TABLES[table]
        # What is longer than any row is cut: it is then not what was sealed there.
        body = f"substr(body, 1, {_longest(table) + 1})"
        query = f"SELECT {', '.join(columns)}, {body} FROM {table} {where} ORDER BY {columns[0]} LIMIT ?"
        for *identity, stored in connection.execute(query, (*values, limit)):
            yield tuple(identity), stored

    # People

    def people(self, connection: Any, after: int = 0) -> Iterator[Person]:
        """Yield the people of ids above `after`, by rising id."""
        for row in connection.execute(f"{_PEOPLE} WHERE id > ? ORDER BY id", (after,)):
            yield self._person(*row)

    def person(self, connection: Any, person_id: int) -> Person:
        """Return a person; `GalleryError` if there is none of this id."""
        self.require_person(connection, person_id)
        return self._person(*connection.execute(f"{_PEOPLE} WHERE id = ?", (person_id,)).fetchone())

    def require_person(self, connection: Any, person_id: int) -> None:
        """Raise `GalleryError` if there is no person of this id; a damaged row counts as one."""
        if connection.execute("SELECT 1 FROM people WHERE id = ?", (person_id,)).fetchone() is None:
            raise GalleryError(
                f"gallery: no person has the id {person_id}; list the people with: edgeface gallery list"
            )

    def find(self, connection: Any, name: str) -> Person | None:
        """Return the person of this name, which has the form of `check_name`."""
        row = connection.execute(f"{_PEOPLE} WHERE name_mark = ?", (self.mark_name(self.cipher, name),)).fetchone()
        if row is None:
            return None
        person = self._person(*row)
        if person.name != name:
            raise GalleryDamagedError(
                f"gallery: the name digest of person {person.id} does not match; restore the gallery from a copy"
            )
        return person

    @staticmethod
    def mark_name(cipher: Cipher, name: str) -> bytes:
        """Return the mark by which a name is found without being readable."""
        return cipher.mark(b"name:" + name.encode("utf-8", "surrogatepass"))

    def put_person(self, connection: Any, person_id: int, body: PersonBody) -> None:
        """Add or replace a person's row."""
        connection.execute(
            "INSERT INTO people (id, name_mark, body) VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name_mark = excluded.name_mark, body = excluded.body",
            (person_id, self.mark_name(self.cipher, body.name), self.seal("people", (person_id,), body.encode())),
        )

    def _person(self, person_id: int, sealed: bytes, count: int) -> Person:
        body = PersonBody.decode(self.open("people", (person_id,), sealed))
        return Person(id=person_id, template_count=count, **dataclasses.asdict(body))

    # Templates

    def add_templates(
        self, connection: Any, person_id: int, templates: Sequence[NewTemplate], generation: int
    ) -> tuple[int, ...]:
        """Store templates that `check` accepted; return their ids."""
        ids = self._database.take_ids(len(templates))
        self._database.note_detectors(each.detector for each in templates)
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
                connection.execute("INSERT INTO images (template_id, body) VALUES (?, ?)", (template_id, sealed))
        return tuple(ids)

    def check(self, templates: Sequence[NewTemplate]) -> None:
        """Refuse templates that do not belong into this gallery, before anything is written."""
        info = self._header.info(0)
        for new in templates:
            unit_vector(new, info)
            if new.image is not None and not info.keeps_images:
                raise GalleryError(
                    "gallery: this gallery does not store images, but one was given; leave it out, or create a "
                    "gallery with --keep-images"
                )

    def templates(self, connection: Any, column: str, value: int) -> Iterator[Template]:
        """Yield the templates whose `id` or `person_id` is this, by rising id."""
        query = f"SELECT template_id FROM images JOIN templates ON id = template_id WHERE {column} = ?"
        with_image = {row[0] for row in connection.execute(query, (value,))}
        for identity, stored in self.sealed(connection, "templates", f"WHERE {column} = ?", value):
            body = TemplateBody.decode(self.open("templates", identity, stored), self._header.dim)
            yield Template(
                id=identity[0],
                person_id=identity[1],
                embedding=Embedding(body.vector, self._header.contract_id),
                quality=body.quality,
                source_sha256=body.source_sha256,
                created=body.created,
                has_image=identity[0] in with_image,
            )

    def move_templates(self, connection: Any, person_id: int, into: int, generation: int) -> None:
        """Seal a person's templates anew as those of another, in this generation: indexes replace them by their ids."""
        for identity, stored in list(self.sealed(connection, "templates", "WHERE person_id = ?", person_id)):
            new = (identity[0], into, generation)
            body = self.seal("templates", new, self.open("templates", identity, stored))
            connection.execute(
                "UPDATE templates SET person_id = ?, generation = ?, body = ? WHERE id = ?",
                (into, generation, body, new[0]),
            )

    def image(self, connection: Any, template_id: int) -> KeptImage | None:
        """Return the kept image of a template, or None."""
        for identity, stored in self.sealed(connection, "images", "WHERE template_id = ?", template_id):
            return decode_image(self.open("images", identity, stored))
        return None

    # Many templates

    def block(self, connection: Any, where: str = "", *values: Any) -> TemplateBlock:
        """Return the templates for which a condition holds, by rising id."""
        found = self.sealed(connection, "templates", where, *values)
        blocks = [self._decoded([])]
        while chunk := list(itertools.islice(found, _BLOCK_ROWS)):
            blocks.append(self._decoded(chunk))
        ids, person_ids, vectors = (np.concatenate(part) for part in zip(*blocks, strict=True))
        generation, history = self._database.last_commit()
        return TemplateBlock(
            ids=ids,
            person_ids=person_ids,
            vectors=vectors,
            contract_id=self._header.contract_id,
            generation=generation,
            history=history,
        )

    def _decoded(self, rows: Sequence[tuple[tuple[Any, ...], bytes]]) -> tuple[NDArray[Any], ...]:
        bodies = [self.open("templates", identity, stored) for identity, stored in rows]
        ids, person_ids = (np.array([identity[n] for identity, _ in rows], np.int64) for n in (0, 1))
        return ids, person_ids, vectors_of(bodies, self._header.dim)

    # All rows

    def rekey(
        self, connection: Any, header: GalleryHeader, cipher: Cipher, *, change: Change | None = None
    ) -> list[bytes]:
        """Seal every row for another header and cipher; the caller adopts them after the commit.

        Return a piece of each row as it was stored, which must not be found afterwards.
        """
        generation = self._database.wrote()
        pieces = []
        for table in SEALED_TABLES:
            for identity, stored in self._chunked(connection, table):
                pieces.append(stored[-_PIECE:])
                content = self.open(table, identity, stored)
                new, content = (identity, content) if change is None else change(table, identity, content)
                values: dict[str, Any] = dict(zip(SEALED_TABLES[table], new, strict=True))
                values["body"] = cipher.seal(content, header.place(table, *new))
                if table == "people":
                    values["name_mark"] = self.mark_name(cipher, PersonBody.decode(content).name)
                settings = ", ".join(f"{column} = ?" for column in values)
                key = SEALED_TABLES[table][0]
                connection.execute(f"UPDATE {table} SET {settings} WHERE {key} = ?", (*values.values(), identity[0]))
        self._database.replace_header(header, cipher)
        connection.execute("UPDATE gallery SET unscrubbed = ?", (generation,))
        return pieces

    def _chunked(self, connection: Any, table: str) -> Iterator[tuple[tuple[Any, ...], bytes]]:
        """Yield rows by rising key, some at a time: an open statement must not see what is replaced."""
        key, last = SEALED_TABLES[table][0], -1
        while chunk := list(self.sealed(connection, table, f"WHERE {key} > ?", last, limit=_REKEY_ROWS)):
            yield from chunk
            last = chunk[-1][0][0]

    def problems(self, connection: Any) -> Iterator[tuple[str, str]]:
        """Yield a table's name and "" for each row that is whole, and a sentence for each problem."""
        (highest,) = connection.execute(_HIGHEST_ID).fetchone()
        if highest >= (next_id := self._database.state("next_id")):
            yield "", f"the next number to be given is {next_id}, and {highest} was given already"
        (last,) = connection.execute("SELECT coalesce(max(generation), 0) FROM commits").fetchone()
        if last > (generation := self._database.state("generation")):
            yield "", f"the last commit is number {generation}, and {last} was made already"
        for table in SEALED_TABLES:
            for identity, stored in self.sealed(connection, table):
                try:
                    content = self.open(table, identity, stored)
                except GalleryDamagedError as error:
                    yield table, str(error)
                    continue
                yield table, ""
                if table == "templates":
                    vector = TemplateBody.decode(content, self._header.dim).vector
                    length = np.linalg.norm(vector.astype(float))
                    if not abs(length - 1) < 1e-3:
                        yield table, f"template {identity[0]}: expected length 1, found {length:.6g}"
                if table == "people":
                    mark = self.mark_name(self.cipher, PersonBody.decode(content).name)
                    query = "SELECT 1 FROM people WHERE id = ? AND name_mark = ?"
                    if not connection.execute(query, (identity[0], mark)).fetchone():
                        yield (table, f"person {identity[0]}: cannot be found by name, the mark is another one's")
