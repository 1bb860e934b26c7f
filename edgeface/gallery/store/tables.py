"""Transactions on a gallery's tables in, what every `Store` does with people and templates out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeface.errors import GalleryError
from edgeface.gallery.codec import PersonBody
from edgeface.gallery.records import (
    Changes,
    GalleryInfo,
    KeptImage,
    NewTemplate,
    Person,
    Template,
    TemplateBlock,
    check_labels,
    check_metadata,
    check_name,
    now,
)
from edgeface.gallery.store.matrix import Matrix
from edgeface.gallery.store.rows import Rows

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["TableStore"]


class TableStore:
    """People and templates in sealed rows, wherever the tables are; a child says where, and how they are erased.

    Parameters
    ----------
    database
        `gallery.database.Database`, or what does the same on a server.
    rows, matrix
        Of that database.
    """

    def __init__(self, database: Any, rows: Rows, matrix: Matrix) -> None:
        self._database, self._rows, self._matrix = database, rows, matrix

    @property
    def info(self) -> GalleryInfo:
        """What the gallery is bound to."""
        info: GalleryInfo = self._database.header.info(self._database.version)
        return info

    def generation(self) -> int:
        """Number of the last commit; see `Store.generation`."""
        with self._database.reading():
            return int(self._database.state("generation"))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Several reads of one generation; see `Store.reading`."""
        with self._database.reading():
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Several calls as one transaction; see `Store.writing`."""
        with self._database.writing():
            yield

    # People

    def add_person(
        self,
        name: str,
        *,
        labels: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        templates: Sequence[NewTemplate] = (),
    ) -> Person:
        """Add somebody; see `Store.add_person`."""
        body = PersonBody(check_name(name), check_labels(labels), check_metadata(metadata), now())
        self._rows.check(templates)
        with self._database.writing() as connection:
            self._require_free(connection, body.name)
            generation = self._database.wrote()
            (person_id,) = self._database.take_ids(1)
            self._rows.put_person(connection, person_id, body)
            self._add_templates(connection, person_id, templates, generation)
            return self._rows.person(connection, person_id)

    def update_person(
        self,
        person_id: int,
        *,
        name: str | None = None,
        labels: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Person:
        """Replace what is given; see `Store.update_person`."""
        with self._database.writing() as connection:
            old = self._rows.person(connection, person_id)
            body = PersonBody(
                old.name if name is None else check_name(name),
                old.labels if labels is None else check_labels(labels),
                old.metadata if metadata is None else check_metadata(metadata),
                old.created,
            )
            if body.name != old.name:
                self._require_free(connection, body.name)
            self._database.wrote()
            self._rows.put_person(connection, person_id, body)
            return self._rows.person(connection, person_id)

    def _require_free(self, connection: Any, name: str) -> None:
        if self._rows.find(connection, name) is not None:
            raise GalleryError(
                f"gallery: expected a new name, found somebody named {name!r}; add templates to that person, or tell "
                "the two apart by their names"
            )

    def person(self, person_id: int) -> Person:
        """Somebody by id."""
        with self._database.reading() as connection:
            return self._rows.person(connection, person_id)

    def find(self, name: str) -> Person | None:
        """Somebody by name."""
        with self._database.reading() as connection:
            return self._rows.find(connection, check_name(name))

    def people(self, *, label: str | None = None) -> tuple[Person, ...]:
        """Everybody, or those who have a label; by rising id."""
        wanted = None if label is None else check_name(label)
        with self._database.reading() as connection:
            found = self._rows.people(connection)
            return tuple(person for person in found if wanted is None or wanted in person.labels)

    # Templates

    def add_templates(self, person_id: int, templates: Sequence[NewTemplate]) -> tuple[int, ...]:
        """Store more embeddings of somebody; see `Store.add_templates`."""
        self._rows.check(templates)
        with self._database.writing() as connection:
            self._rows.require_person(connection, person_id)
            if not templates:
                return ()
            return self._add_templates(connection, person_id, templates, self._database.wrote())

    def templates_of(self, person_id: int) -> tuple[Template, ...]:
        """Somebody's templates, by rising id."""
        with self._database.reading() as connection:
            self._rows.require_person(connection, person_id)
            return tuple(self._rows.templates_of(connection, person_id))

    def image_of(self, template_id: int) -> KeptImage | None:
        """The picture that a template was made of, if it was kept."""
        with self._database.reading() as connection:
            return self._rows.image(connection, template_id)

    def templates(self, *, rows: int = 16384) -> Iterator[TemplateBlock]:
        """Every template in blocks of one generation; see `Store.templates`."""
        return self._matrix.blocks(rows)

    def load(self) -> TemplateBlock:
        """All templates; see `Store.load`."""
        return self._matrix.load()

    def changes_since(self, generation: int) -> Changes | None:
        """What happened after a generation; see `Store.changes_since`."""
        return self._matrix.changes_since(generation)

    def _add_templates(
        self, connection: Any, person_id: int, templates: Sequence[NewTemplate], generation: int
    ) -> tuple[int, ...]:
        return self._rows.add_templates(connection, person_id, templates, generation)

    # The end

    def close(self) -> None:
        """Let go of what keeps it; a second call does nothing."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
