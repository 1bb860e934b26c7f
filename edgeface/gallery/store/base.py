"""What a gallery does with people and templates, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeface.cipher import Cipher, make_cipher
from edgeface.errors import GalleryBusyError, GalleryError, GalleryServerError, OutputError
from edgeface.files import Closing
from edgeface.gallery.codec import GalleryHeader, PersonBody
from edgeface.gallery.records import (
    Changes,
    CheckReport,
    Erasure,
    GalleryInfo,
    KeptImage,
    NewTemplate,
    Person,
    Proof,
    Rekeying,
    Template,
    TemplateBlock,
    check_labels,
    check_metadata,
    check_name,
    name_forms,
    now,
)
from edgeface.gallery.store.cache import apply_changes
from edgeface.gallery.store.database import Database
from edgeface.gallery.store.rows import SEALED_TABLES, Change, Rows
from edgeface.gallery.store.searcher import secrets_of
from edgeface.gallery.store.watch import GalleryWatch

_log = logging.getLogger(__name__)

_UNCOMMITTED = -1
_CACHED_ROWS = 2048
"""The cache is written when it saves the reading of so many templates."""
MOST_PROBLEMS = 100


class GalleryStore(Closing, ABC):
    """People and their templates, bound to one contract, in the tables of a `Database`.

    Every write is one transaction: when the call returns it is durable, when it raises nothing has changed. It
    raises `generation` by one (inside `writing`, the whole block by one). Ids of people and templates are
    positive and never used twice, also after `forget`. A store may be used from several threads; they take turns.

    Every method may raise `GalleryError` and its children, and `OutputError` where it cannot write. A child says where
    the tables are, and how they are erased.
    """

    def __init__(self, database: Database) -> None:
        # For what belongs to this package: they write what nothing checks.
        self.database, self.rows = database, Rows(database)
        try:
            self.scrub()
        except (GalleryBusyError, GalleryServerError, OutputError) as error:
            _log.warning("%s: an erasure that was interrupted is still unfinished: %s", database.where, error)

    # What depends on where the tables are

    @abstractmethod
    def _overwrite(self) -> None:
        """Rewrite what holds deleted rows, so that nothing is left of them; outside of transactions."""

    @abstractmethod
    def prove(self, secrets: Sequence[bytes]) -> Proof:
        """Finish an erasure, and search for what must not be found after it."""

    def _read_cache(self) -> TemplateBlock | None:
        """Read templates that were kept to be loaded fast; None if there are none that can be trusted."""
        return None

    def _write_cache(self, block: TemplateBlock) -> None:
        """Keep templates to be loaded fast, if there is such a place."""
        return

    def _structure_problems(self, connection: Any) -> Iterable[tuple[str, str]]:
        """Check what lies below the rows."""
        for part in self.database.foreign_parts():
            yield "", f"the schema: expected the tables of a gallery and nothing else, found {part}"

    @property
    def info(self) -> GalleryInfo:
        """What the gallery is bound to."""
        return self.database.header.info(self.database.version)

    def is_current(self) -> bool:
        """Return whether this is still the gallery that is there; else open it again. It reads nothing of it."""
        return self.database.is_current()

    def generation(self) -> int:
        """Return the number of the last commit, by any process; an index with a lower number is out of date."""
        return self.last_commit()[0]

    def history(self) -> str:
        """Return the random id of the last commit."""
        return self.last_commit()[1]

    def last_commit(self) -> tuple[int, str]:
        """Return the number and the random id of the last commit, by any process.

        A copy that is put back goes on from an earlier generation: its next commits have numbers that were given
        before, and other ids. What was made of the gallery is current if both are the same.
        """
        with self.database.reading():
            return self.database.last_commit()

    def watch(self) -> GalleryWatch:
        """Begin to wait for commits, by any process: within a second each is known.

        Examples
        --------
        >>> with store.watch() as watch:  # doctest: +SKIP
        ...     while running:
        ...         if watch.wait(timeout=10):
        ...             print(len(store.people()))
        """
        return GalleryWatch(self.last_commit)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Make several reads see one generation, whatever others write meanwhile.

        Blocks may be nested, also in `writing`. Other threads that use this store wait until the block ends.
        """
        with self.database.reading():
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Make several calls one transaction without other writers; calls inside see what they wrote.

        Blocks may be nested; the outermost commits. An exception that leaves a block undoes all of it.
        `GalleryBusyError` is raised if another process writes for longer than the store's timeout.
        """
        with self.database.writing():
            yield

    def detectors(self) -> tuple[str, ...]:
        """Return the names of the detectors that found the faces of the templates, sorted.

        Of templates that an edgeface before schema version 4 added, and of crops, none is known. Templates that are
        erased leave their detector's name until the last one is. The names are not authenticated.
        """
        with self.database.reading():
            return self.database.detectors()

    def note_detectors(self, names: Iterable[str]) -> None:
        """Add to `detectors`, for templates that come from another gallery."""
        with self.database.writing():
            self.database.wrote()
            self.database.note_detectors(names)

    # People

    def add_person(
        self,
        name: str,
        *,
        labels: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        templates: Sequence[NewTemplate] = (),
    ) -> Person:
        """Add a person; `GalleryError` if another has this name, `ContractError` for embeddings of another contract."""
        body = PersonBody(check_name(name), check_labels(labels), check_metadata(metadata), now())
        self.rows.check(templates)
        with self.database.writing() as connection:
            self._require_free(connection, body.name)
            generation = self.database.wrote()
            (person_id,) = self.database.take_ids(1)
            self.rows.put_person(connection, person_id, body)
            self._add_templates(connection, person_id, templates, generation)
            return self.rows.person(connection, person_id)

    def update_person(
        self,
        person_id: int,
        *,
        name: str | None = None,
        labels: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Person:
        """Replace what is given, and keep what is None."""
        with self.database.writing() as connection:
            old = self.rows.person(connection, person_id)
            body = PersonBody(
                old.name if name is None else check_name(name),
                old.labels if labels is None else check_labels(labels),
                old.metadata if metadata is None else check_metadata(metadata),
                old.created,
            )
            if body.name != old.name:
                self._require_free(connection, body.name)
            self.database.wrote()
            self.rows.put_person(connection, person_id, body)
            return self.rows.person(connection, person_id)

    def _require_free(self, connection: Any, name: str) -> None:
        if self.rows.find(connection, name) is not None:
            raise GalleryError(
                f"gallery: a person named {name!r} is enrolled already; add templates to that person, or choose "
                "another name"
            )

    def person(self, person_id: int) -> Person:
        """Return a person by id; `GalleryError` if there is none."""
        with self.database.reading() as connection:
            return self.rows.person(connection, person_id)

    def find(self, name: str) -> Person | None:
        """Return a person by name; spaces around it, and the form of its accents, do not matter."""
        with self.database.reading() as connection:
            found = (self.rows.find(connection, form) for form in name_forms(name))
            return next(filter(None, found), None)

    def people(
        self,
        *,
        label: str | None = None,
        where: Callable[[Person], bool] = lambda person: True,
        after: int = 0,
        limit: int | None = None,
    ) -> tuple[Person, ...]:
        """Return people by rising id: all, or those who have a label, for whom a condition holds, of ids above `after`.

        `limit`: at most so many.
        """
        wanted = set(() if label is None else name_forms(label))
        with self.database.reading() as connection:
            found = filter(where, self.rows.people(connection, after))
            labelled = (each for each in found if label is None or not wanted.isdisjoint(each.labels))
            return tuple(itertools.islice(labelled, limit))

    def count(self) -> tuple[int, int]:
        """Return how many people and how many templates there are."""
        with self.database.reading() as connection:
            people, templates = connection.execute(
                "SELECT (SELECT count(*) FROM people), (SELECT count(*) FROM templates)"
            ).fetchone()
            return int(people), int(templates)

    # Templates

    def add_templates(self, person_id: int, templates: Sequence[NewTemplate]) -> tuple[int, ...]:
        """Store more embeddings of a person. Return their ids, rising, in the order given.

        `ContractError` is raised if one is of another contract, `GalleryError` if there is no person of this id, or an
        image is given that the gallery does not keep.
        """
        self.rows.check(templates)
        with self.database.writing() as connection:
            self.rows.require_person(connection, person_id)
            if not templates:
                return ()
            return self._add_templates(connection, person_id, templates, self.database.wrote())

    def templates_of(self, person_id: int) -> tuple[Template, ...]:
        """Return a person's templates, by rising id."""
        with self.database.reading() as connection:
            self.rows.require_person(connection, person_id)
            return tuple(self.rows.templates(connection, "person_id", person_id))

    def template(self, template_id: int) -> Template | None:
        """Return a template by id, if there is one."""
        with self.database.reading() as connection:
            return next(self.rows.templates(connection, "id", template_id), None)

    def merge(self, person_id: int, into: int) -> Person:
        """Give a person's templates, which keep their ids, to another person, and remove the one who has none left.

        Labels and metadata are those of `into`, who is returned. `GalleryError` is raised if both are one person, or
        there is no person of an id.
        """
        if person_id == into:
            raise GalleryError(f"merge: expected two people, found person {into} twice")
        with self.database.writing() as connection:
            self.rows.require_person(connection, into)
            self.rows.require_person(connection, person_id)
            self.rows.move_templates(connection, person_id, into, self.database.wrote())
            connection.execute("DELETE FROM people WHERE id = ?", (person_id,))
            return self.rows.person(connection, into)

    def image_of(self, template_id: int) -> KeptImage | None:
        """Return the image that a template was made from, if it was kept."""
        with self.database.reading() as connection:
            return self.rows.image(connection, template_id)

    def load(self) -> TemplateBlock:
        """Return all templates in one block, by rising id, from the store's cache if that is current.

        Inside `writing`, after a write, the block has what was written and a generation that no commit ever has: it
        may yet be undone. The same holds for `changes_since`.
        """
        within = self.database.in_transaction
        with self.database.reading() as connection:
            known = self._read_cache()
            changes = None if known is None else self._changes(connection, known.generation, known.history)
            if known is None or changes is None:
                block = self.rows.block(connection)
                read = len(block)
            else:
                block, read = apply_changes(known, changes), len(changes.added) + len(changes.removed)
            block = dataclasses.replace(block, generation=self._current(), history=self.database.last_commit()[1])
        if read >= _CACHED_ROWS and not within:
            self._write_cache(block)
        return block

    def changes_since(self, generation: int, history: str) -> Changes | None:
        """Return what happened to the templates after a commit; None if that is unknown: call `load`.

        It is unknown if the commit is too long ago, or not one of this gallery: a copy of it was put back.
        """
        with self.database.reading() as connection:
            return self._changes(connection, generation, history)

    def _changes(self, connection: Any, generation: int, history: str) -> Changes | None:
        if not self.database.is_known(generation, history):
            return None
        removed = connection.execute(
            "SELECT template_id FROM removals WHERE generation > ? ORDER BY template_id", (generation,)
        )
        return Changes(
            generation=self._current(),
            history=self.database.last_commit()[1],
            removed=np.array([row[0] for row in removed], np.int64),
            added=self.rows.block(connection, "WHERE generation > ?", generation),
        )

    def _current(self) -> int:
        """Return the generation that is read now; what may yet be undone has none, so that it is read again."""
        return _UNCOMMITTED if self.database.uncommitted else self.database.state("generation")

    def _add_templates(
        self, connection: Any, person_id: int, templates: Sequence[NewTemplate], generation: int
    ) -> tuple[int, ...]:
        return self.rows.add_templates(connection, person_id, templates, generation)

    # Erasure, another key, check

    def forget(self, person_id: int, *, template_ids: Sequence[int] | None = None) -> Erasure:
        """Erase a person, or some templates of a person, for good; see `forget_many`."""
        return self.forget_many({person_id: template_ids})[0]

    def forget_many(self, wanted: Mapping[int, Sequence[int] | None]) -> tuple[Erasure, ...]:
        """Erase people, or those of their templates that are named, for good; not inside `writing`.

        All of it is one transaction, one rewriting of the tables and one search, whose memory grows with what is
        erased: name a few hundred templates at a time, or a few dozen with images.

        `GalleryError` is raised if there is no person of an id, or a template is not theirs; nothing is erased then.
        """
        if self.database.in_transaction:
            raise GalleryError("forget: cannot be called inside writing(), because an erasure cannot be rolled back")
        gone, secrets, told = list[dict[str, Any]](), list[bytes](), list[str]()
        with self.database.writing() as connection:
            for person_id, template_ids in wanted.items():
                self.rows.require_person(connection, person_id)
                ids = _ids_to_forget(connection, person_id, template_ids)
                secrets += self._secrets(connection, person_id, ids, whole=template_ids is None)
                generation = self.database.wrote()
                images = delete_templates(connection, ids, generation)
                if template_ids is None:
                    connection.execute("DELETE FROM people WHERE id = ?", (person_id,))
                connection.execute("UPDATE gallery SET unscrubbed = ?", (generation,))
                what = {"person_id": person_id, "templates": len(ids), "images": images, "generation": generation}
                gone.append(what)
                told.append(f"{len(ids)} templates of person {person_id}" if template_ids else f"person {person_id}")
        if not gone:
            return ()
        with self.database.after_commit(f"{' and '.join(told)} is deleted, and no search finds what is gone"):
            proof = self.prove(secrets)
        if proof.searched:  # a row that was moved here or there is in nobody's pieces
            with self.database.reading() as connection:
                found = self.rows.problems(connection)
                odd = (problem for table, problem in found if table and problem)
                remains = (*proof.remains, *itertools.islice(odd, MOST_PROBLEMS))
            proof = dataclasses.replace(proof, remains=remains)
        known = {name: getattr(proof, name) for name in ("searched", "needles", "remains", "unsearched")}
        return tuple(Erasure(**what, **known) for what in gone)

    def _secrets(self, connection: Any, person_id: int, ids: Sequence[int], *, whole: bool) -> Iterable[bytes]:
        """Yield what must not be found after these templates, or the whole person, were erased."""
        return secrets_of(connection, self.rows, person_id, ids, whole=whole)

    def scrub(self) -> bool:
        """Finish every erasure that was begun; return whether there was one.

        `GalleryBusyError` is raised if another process reads an old state for too long, `OutputError` if there is no
        room to rewrite the tables. The next call, or the next opening, goes on.
        """
        with self.database.reading():
            due = self.database.state("unscrubbed")
        if not due:
            return False
        self._overwrite()
        # Another erasure may have begun meanwhile: it has a later number.
        with self.database.writing() as connection:
            connection.execute("UPDATE gallery SET unscrubbed = 0 WHERE unscrubbed = ?", (due,))
        return True

    def rekey(self, key: bytes | None) -> Rekeying:
        """Seal everything with another key, the first one, or none, in one transaction.

        No state has some rows under the old key and some under the new. An interruption before the commit leaves
        everything as it was; one after it leaves only the erasure of the old bytes to the next opening. It takes room
        for the gallery's size again. Other processes must open the gallery again.

        Nothing is changed if it is this key already (`GalleryError`), a row is damaged (`GalleryDamagedError`), there
        is no room (`OutputError`), or pgvector is needed and missing (`NotSupportedError`).
        """
        database = self.database
        if database.in_transaction:
            raise GalleryError("rekey: cannot be called inside writing()")
        cipher = make_cipher(key, database.header.gallery_id)
        if cipher.key_id == database.header.key_id:
            raise GalleryError(
                f"{database.where}: this gallery is encrypted with the new key already: {cipher.key_id!r}"
            )
        header = dataclasses.replace(database.header, key_id=cipher.key_id)
        try:
            with database.writing() as connection:
                pieces = self.reseal(connection, header, cipher)
        except GalleryServerError as error:
            raise type(error)(f"{error}; keep both keys until the gallery was opened with one of them") from error
        self.adopt(header, cipher)
        key_now = f"the new key {cipher.key_id} is in force: keep it" if key else "the gallery is no longer encrypted"
        with database.after_commit(key_now):
            proof = self.prove(pieces)
        return Rekeying(
            key_id=cipher.key_id,
            rows=len(pieces),
            searched=proof.searched,
            remains=proof.remains,
            unsearched=proof.unsearched,
        )

    def reseal(
        self, connection: Any, header: GalleryHeader, cipher: Cipher, *, change: Change | None = None
    ) -> list[bytes]:
        """Bind every row to another header and cipher, as `Rows.rekey`; the caller calls `adopt` after the commit."""
        return self.rows.rekey(connection, header, cipher, change=change)

    def adopt(self, header: GalleryHeader, cipher: Cipher) -> None:
        """Go on with what `reseal` bound the gallery to, now that it is committed."""
        self.database.adopt(header, cipher)

    def check(self) -> CheckReport:
        """Finish what was interrupted, as `scrub` does, then read the structure, and every row in its place."""
        self.scrub()
        counts, problems = dict.fromkeys(SEALED_TABLES, 0), []
        with self.database.reading() as connection:
            found = itertools.chain(self._structure_problems(connection), self.rows.problems(connection))
            for table, problem in found:
                if problem:
                    problems.append(problem)
                else:
                    counts[table] += 1
        return CheckReport(rows=counts, problems=tuple(problems[:MOST_PROBLEMS]))

    # The end

    def close(self) -> None:
        """Let go of the file or the server; a second call does nothing."""
        self.database.close()


def _ids_to_forget(connection: Any, person_id: int, wanted: Sequence[int] | None) -> list[int]:
    rows = connection.execute("SELECT id FROM templates WHERE person_id = ? ORDER BY id", (person_id,))
    theirs = [row[0] for row in rows]
    if foreign := sorted(set(wanted or ()) - set(theirs)):
        raise GalleryError(
            f"forget: expected templates of person {person_id}, found others: {', '.join(map(str, foreign))}"
        )
    return theirs if wanted is None else sorted(set(wanted))


def delete_templates(connection: Any, ids: Sequence[int], generation: int) -> int:
    """Delete templates and their images, and record it for indexes; return how many images there were."""
    images = 0
    for template_id in ids:
        images += connection.execute("DELETE FROM images WHERE template_id = ?", (template_id,)).rowcount
        connection.execute("DELETE FROM templates WHERE id = ?", (template_id,))
        connection.execute("INSERT INTO removals VALUES (?, ?)", (template_id, generation))
    connection.execute("UPDATE gallery SET detectors = '' WHERE NOT EXISTS (SELECT 1 FROM templates)")
    return images
