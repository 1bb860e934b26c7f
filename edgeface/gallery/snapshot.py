"""Keep a copy of a gallery on a server in a file, from which people are identified while the server is away.

The copy is an ordinary encrypted gallery's file with the header of the server's gallery, and so the same key, contract,
ids and generations. Rows are copied as they are sealed, each after it was opened once: a row that is not the server's,
or of another contract, gets nowhere. One transaction brings the copy from one generation of the server to another, so
that an interruption leaves the one or the other. The first copy grows in a file of another name, some people at a time,
and an interrupted one is gone on with.

Templates carry the generation that they came with, and removals are recorded. People do not, so they are compared: the
last 16 bytes of a sealed row are its tag, which no other row has. The server sends one digest of the tags for every 256
people, and where that is another one than the last time, the tags themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeface.errors import GalleryDamagedError, GalleryKeyError, NotSupportedError, OutputError
from edgeface.files import output_errors
from edgeface.gallery.codec import GalleryHeader, PersonBody, TemplateBody
from edgeface.gallery.records import Proof, name_forms
from edgeface.gallery.store.base import GalleryStore
from edgeface.gallery.store.cache import clear_cache
from edgeface.gallery.store.database import Database, record_commit
from edgeface.gallery.store.searcher import secrets_of
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.gallery.store.sqlite_database import create_database, sync_folder

_log = logging.getLogger(__name__)
_TAG = "substr(body, length(body) - 15)"
_BUCKET = 256
"""People whose tags have one digest together."""
_DIGESTS = f"SELECT id / {_BUCKET}, sum(hashtextextended(encode({_TAG}, 'hex'), id))::text FROM people GROUP BY 1"
_FEW = 100
"""Buckets that are read one by one from the copy."""
_PEOPLE_AT_ONCE, _ROWS_AT_ONCE = 2000, 1000
_PROVED = 512
"""Templates that are erased with proof at a time, because it holds in memory what it searches for."""
_BESIDE = ("", "-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotUpdate:
    """What `GallerySnapshot.follow` brought.

    Attributes
    ----------
    generation
        Of the server's gallery, and of the copy now.
    people, templates
        Rows that were new or had changed.
    gone
        Ids of people who are no longer in the copy.
    proof
        That nothing of them, and of templates that were removed, is in the copy's files; None if nothing was removed,
        or too much for one search: all of it is overwritten in any case.
    """

    generation: int
    people: int
    templates: int
    gone: tuple[int, ...] = ()
    proof: Proof | None = None


@dataclass(slots=True)
class _Plan:
    """Rows to write and to delete: people by id, and templates by id with person, generation and body."""

    people: dict[int, tuple[PersonBody, bytes]] = field(default_factory=dict)
    templates: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)
    detectors: tuple[str, ...] = ()
    removed: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Ids of people whose rows have changed or are new, who are gone, and who of those looked at are in the copy."""

    changed: list[int]
    gone: AbstractSet[int]
    copied: AbstractSet[int]
    digests: dict[int, str]


class GallerySnapshot:
    """The copy of one gallery in a folder of its own, which one process writes; others may read it.

    Parameters
    ----------
    folder
        Holds the copy, made if missing.
    key
        Of the gallery. A copy that cannot be opened with it, or is damaged, is made anew.
    group
        Label of the people who are copied; None: all.
    """

    def __init__(self, folder: Path, *, key: bytes, group: str | None = None) -> None:
        self.folder, self._key = folder, key
        self._group = None if group is None else set(name_forms(group))
        self._others: dict[int, bytes] = {}  # tags of people of the server who are not copied
        self._digests: dict[int, str] = {}  # of the server's people, when the copy was last in step
        self._without: AbstractSet[int] = frozenset()  # ids that the copy was last made without
        self._settled = False  # the copy is of this group
        with output_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store: SqliteStore | None = None
        newest = max(folder.glob("*.gallery"), key=lambda each: each.stat().st_ctime_ns, default=None)
        if newest is not None:
            try:
                self._store = SqliteStore(newest, key=key)
            except (GalleryKeyError, GalleryDamagedError) as error:
                _log.warning("%s; it is made anew from the server", error)

    @property
    def path(self) -> Path | None:
        """The copy's file, whole and of one generation of the server; None if there is none yet."""
        return None if self._store is None else self._store.path

    @property
    def database(self) -> Database | None:
        """That of the copy, whose cipher seals what is kept beside it; None if there is none yet."""
        return None if self._store is None else self._store.database

    def position(self) -> tuple[int, str]:
        """Return number and id of the server's commit that the copy is of; ``(0, "")`` if there is none."""
        if self._store is None:
            return 0, ""
        generation, history = self._store.last_commit()
        return generation, _server_id(history)

    def close(self) -> None:
        """Close the file."""
        if self._store is not None:
            self._store.close()

    # From the server

    def follow(self, server: GalleryStore, *, without: AbstractSet[int] = frozenset()) -> SnapshotUpdate | None:
        """Bring the copy to the server's last commit; None if it is there already.

        Parameters
        ----------
        server
            A gallery on a PostgreSQL server.
        without
            Ids of people who are not copied, whatever group they are of.

        Raises
        ------
        GalleryServerError
            If the server is away; the copy is as it was.
        GalleryDamagedError
            If a row of the server is not what was written there, or the copy is damaged.
        NotSupportedError
            If the gallery is not encrypted: its copies would lie in the clear on every kiosk.
        OutputError
            If there is no room.
        """
        header = server.database.header
        if not header.key_id:
            raise NotSupportedError(
                f"{server.database.where}: expected an encrypted gallery, because its snapshot lies on the disk of a "
                "kiosk, found one without a key; give it one: edgeface gallery rekey"
            )
        if self._store is not None and self._store.database.header == header:
            self._store.scrub()  # if an earlier call was interrupted
            returned = self._without - without
            if self._settled and not returned and self.position() == server.last_commit():
                self._without = without
                return None
            for each in returned:
                self._others.pop(each, None)
                if self._digests:
                    self._digests[each // _BUCKET] = ""  # to be compared
            done = self._update(self._store, server, without)
        else:
            done = self._begin(server, header, without)
        self._without = without
        return done

    def _begin(self, server: GalleryStore, header: GalleryHeader, without: AbstractSet[int]) -> SnapshotUpdate:
        """Make the copy anew beside one of another key or model, or of none, and take its place when it is whole."""
        name = hashlib.sha256(header.encode().encode()).hexdigest()[:16]
        path, partial = self.folder / f"{name}.gallery", self.folder / f"{name}.partial"
        for left in self.folder.glob("*.partial"):
            if left != partial:
                _remove(left)
        if not partial.exists():
            create_database(partial, header, server.database.cipher)
        self._others, self._digests, self._settled = {}, {}, False
        with SqliteStore(partial, key=self._key) as store:
            while self._copy_some(store, server, without):
                pass
            done = self._update(store, server, without, whole=True)
        clear_cache(partial)
        self.close()
        _remove(path)  # which was damaged
        with output_errors(path):
            partial.replace(path)
            sync_folder(self.folder)
        self._store = SqliteStore(path, key=self._key)
        for other in self.folder.glob("*.gallery"):
            if other != path:
                _remove(other)
        return done

    def _copy_some(self, store: SqliteStore, server: GalleryStore, without: AbstractSet[int]) -> bool:
        """Copy some of the people who are missing, with their templates; return whether there were any.

        What changes meanwhile is put right by the `_update` that follows.
        """
        plan, remote = _Plan(), server.database
        with remote.reading() as connection:
            missing = self._compare(store, connection).changed
            if not missing:
                return False
            for person_id, body, sealed in _people(server, connection, missing[:_PEOPLE_AT_ONCE]):
                self._take(plan, person_id, body, sealed, without)
            query = "SELECT id FROM templates WHERE person_id = ANY(?)"
            ids = [row[0] for row in connection.execute(query, (list(plan.people),)).fetchall()]
            plan.templates = _templates(server, connection, ids)
        with store.database.writing() as connection:
            _write(store, connection, plan)
            highest = max([0, *plan.people, *plan.templates])
            connection.execute("UPDATE gallery SET next_id = max(next_id, ?)", (highest + 1,))
        return True

    def _take(self, plan: _Plan, person_id: int, body: PersonBody, sealed: bytes, without: AbstractSet[int]) -> None:
        """Plan to copy a person, or remember that they are not to be."""
        if self._is_kept(person_id, body.labels, without):
            plan.people[person_id] = body, sealed
            self._others.pop(person_id, None)
        else:
            self._others[person_id] = sealed[-16:]

    def _is_kept(self, person_id: int, labels: Sequence[str], without: AbstractSet[int]) -> bool:
        return person_id not in without and (self._group is None or not self._group.isdisjoint(labels))

    def _compare(self, store: SqliteStore, remote: Any) -> _Comparison:
        """Compare the people of the server with those of the copy, and with those who are not copied."""
        digests = dict(remote.execute(_DIGESTS).fetchall())
        differing: set[int] | None = None  # all
        query, values = f"SELECT id, {_TAG} FROM people", list[Any]()
        if before := self._digests:
            differing = {each for each in digests.keys() | before.keys() if digests.get(each) != before.get(each)}
            query, values = f"{query} WHERE id / {_BUCKET} = ANY(?)", [list(differing)]
        there = {row[0]: bytes(row[1]) for row in remote.execute(query, values).fetchall()}
        copied = _people_tags(store, differing)
        others = {
            number: tag
            for number, tag in dict(self._others).items()  # `erase` adds to it
            if differing is None or number // _BUCKET in differing
        }
        known = {**others, **copied}
        return _Comparison(
            changed=sorted(each for each, tag in there.items() if known.get(each) != tag),
            gone=known.keys() - there.keys(),
            copied=copied.keys(),
            digests=digests,
        )

    def _update(
        self, store: SqliteStore, server: GalleryStore, without: AbstractSet[int], *, whole: bool = False
    ) -> SnapshotUpdate:
        """Read what has changed since the copy's commit, or compare the whole, and write it in one transaction."""
        plan, (since, history) = _Plan(), store.last_commit()
        if not self._settled:
            plan.gone = {each.id for each in store.people() if not self._is_kept(each.id, each.labels, without)}
        with server.database.reading() as remote:
            last, next_id = server.database.last_commit(), server.database.state("next_id")
            compared = self._compare(store, remote)
            for person_id, body, sealed in _people(server, remote, compared.changed):
                self._take(plan, person_id, body, sealed, without)
            for each in compared.gone:
                self._others.pop(each, None)
            plan.gone |= compared.copied & (compared.gone | self._others.keys())
            if known := not whole and server.database.is_known(since, _server_id(history)):
                listed = _listed(remote, "generation > ?", since)
                removed = remote.execute("SELECT template_id FROM removals WHERE generation > ?", (since,)).fetchall()
                mine = _tags(store, "templates", [*listed, *(row[0] for row in removed)])
                plan.removed = {row[0] for row in removed} & mine.keys()
            else:
                listed, mine = _listed(remote, "generation >= ?", 0), _tags(store, "templates")
                plan.removed = mine.keys() - listed.keys()
            kept = _tags(store, "people", [*{whose for whose, _ in listed.values()}]).keys() | plan.people.keys()
            kept -= plan.gone
            if new := list(plan.people.keys() - compared.copied):
                listed |= _listed(remote, "person_id = ANY(?)", new)
            wanted = [each for each, (whose, tag) in listed.items() if whose in kept and mine.get(each) != tag]
            plan.templates, plan.detectors = _templates(server, remote, wanted), server.database.detectors()
        done = _apply(store, plan, last, since=since, next_id=next_id, known=known)
        self._digests, self._settled = compared.digests, True
        return done

    # Without the server

    def erase(self, person_id: int, *, missing_ok: bool = False) -> Proof:
        """Erase a person from the copy at once, and prove it; `GalleryError` if there is none of this id.

        The server has the person still, so that `follow` is to be told to go on `without` them.
        """
        assert self._store is not None
        store = self._store
        with store.database.writing() as connection:
            row = connection.execute(f"SELECT {_TAG} FROM people WHERE id = ?", (person_id,)).fetchone()
            if row is None and missing_ok:
                return Proof(searched={}, needles=0, remains=())
            store.rows.require_person(connection, person_id)
            secrets = _delete(store, connection, _Plan(gone={person_id}), store.database.state("generation"))
            generation, history = store.database.last_commit()
            connection.execute("UPDATE commits SET history = ? WHERE generation = ?", (_own_id(history), generation))
        self._others[person_id] = bytes(row[0])
        self._without = self._without | {person_id}
        with store.database.after_commit(f"person {person_id} is deleted from the snapshot"):
            return store.prove(secrets)


def _own_id(history: str) -> str:
    """Return another id for a commit of the server, of which the copy has less or more: indexes are filled again."""
    return f"{history}.{uuid.uuid4().hex[:8]}"


def _server_id(history: str) -> str:
    return history.partition(".")[0]


def _tags(store: SqliteStore, table: str, ids: Sequence[int] | None = None) -> dict[int, bytes]:
    """Return the tags of the copy's rows by their ids: all, or those that are there of the given ones."""
    query = f"SELECT id, {_TAG} FROM {table}"
    with store.database.reading() as connection:
        if ids is None:
            return dict(connection.execute(query).fetchall())
        found = (connection.execute(f"{query} WHERE id = ?", (each,)).fetchone() for each in ids)
        return dict(row for row in found if row is not None)


def _people_tags(store: SqliteStore, buckets: AbstractSet[int] | None) -> dict[int, bytes]:
    """Return the tags of the copy's people, all or those of some buckets."""
    if buckets is None or len(buckets) > _FEW:
        found = _tags(store, "people")
        return {each: tag for each, tag in found.items() if buckets is None or each // _BUCKET in buckets}
    query = f"SELECT id, {_TAG} FROM people WHERE id BETWEEN ? AND ?"
    with store.database.reading() as connection:
        ranges = ((_BUCKET * each, _BUCKET * (each + 1) - 1) for each in buckets)
        return {row[0]: row[1] for each in ranges for row in connection.execute(query, each)}


# Reading the server


def _listed(remote: Any, condition: str, value: Any) -> dict[int, tuple[int, bytes]]:
    """Return whose the templates are for which a condition holds, and their tags."""
    rows = remote.execute(f"SELECT id, person_id, {_TAG} FROM templates WHERE {condition}", (value,)).fetchall()
    return {row[0]: (row[1], bytes(row[2])) for row in rows}


def _chunks(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    yield from (list(ids[at : at + size]) for at in range(0, len(ids), size))


def _people(server: GalleryStore, remote: Any, ids: Sequence[int]) -> Iterator[tuple[int, PersonBody, bytes]]:
    """Yield people of these ids, opened, and as they are sealed."""
    for chunk in _chunks(ids, _ROWS_AT_ONCE):
        for identity, sealed in server.rows.sealed(remote, "people", "WHERE id = ANY(?)", chunk):
            yield identity[0], PersonBody.decode(server.rows.open("people", identity, sealed)), sealed


def _templates(server: GalleryStore, remote: Any, ids: Sequence[int]) -> dict[int, tuple[int, int, bytes]]:
    """Return templates of these ids as they are sealed, each opened once: whose, since when, and the row's body."""
    found = {}
    for chunk in _chunks(ids, _ROWS_AT_ONCE):
        for identity, sealed in server.rows.sealed(remote, "templates", "WHERE id = ANY(?)", chunk):
            TemplateBody.decode(server.rows.open("templates", identity, sealed), server.database.header.dim)
            found[identity[0]] = identity[1], identity[2], sealed
    return found


# Writing the copy


def _apply(
    store: SqliteStore, plan: _Plan, last: tuple[int, str], *, since: int, next_id: int, known: bool
) -> SnapshotUpdate:
    """Write a plan in one transaction, which ends as the server's commit; then overwrite and prove what was removed."""
    generation, history = last
    if generation == since and (plan.people or plan.gone):  # the group is another one
        history = _own_id(history)
    # A WAL goes on from the generation of its file, and this commit may raise it by more than one: not as the first.
    store.database.outside("PRAGMA wal_autocheckpoint = 0")
    with store.database.writing() as connection:
        connection.execute("UPDATE gallery SET next_id = next_id + 1")
    with store.database.writing() as connection:
        _write(store, connection, plan)
        secrets = _delete(store, connection, plan, generation)
        if not known or any(when <= since for _, when, _ in plan.templates.values()):  # of who came into the group
            connection.execute("UPDATE gallery SET known_since = ?", (generation,))
        connection.execute("UPDATE gallery SET generation = ?, next_id = max(next_id, ?)", (generation, next_id))
        connection.execute("UPDATE gallery SET detectors = ?", (" ".join(plan.detectors),))
        connection.execute("DELETE FROM commits WHERE generation >= ?", (generation,))
        record_commit(connection, history)
    store.scrub()
    store.database.outside("PRAGMA wal_checkpoint(PASSIVE)")
    return SnapshotUpdate(
        generation=generation,
        people=len(plan.people),
        templates=len(plan.templates),
        gone=tuple(sorted(plan.gone)),
        proof=store.prove(secrets) if secrets else None,
    )


def _write(store: SqliteStore, connection: Any, plan: _Plan) -> None:
    """Write people and templates as they are sealed."""
    for person_id in plan.people:  # two may have exchanged their names
        connection.execute("UPDATE people SET name_mark = ? WHERE id = ?", (b"%d" % person_id, person_id))
    for person_id, (body, sealed) in plan.people.items():
        mark = store.rows.mark_name(store.rows.cipher, body.name)
        connection.execute(
            "INSERT INTO people (id, name_mark, body) VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name_mark = excluded.name_mark, body = excluded.body",
            (person_id, mark, sealed),
        )
    for template_id, row in plan.templates.items():  # whose person may have been erased since the server was read
        connection.execute(
            "INSERT INTO templates (id, person_id, generation, body) SELECT ?, ?, ?, ? "
            "WHERE EXISTS (SELECT 1 FROM people WHERE id = ?) ON CONFLICT (id) DO UPDATE "
            "SET person_id = excluded.person_id, generation = excluded.generation, body = excluded.body",
            (template_id, *row, row[0]),
        )


def _delete(store: SqliteStore, connection: Any, plan: _Plan, generation: int) -> list[bytes]:
    """Delete people and templates; return what must not be found afterwards, unless it is too much to search for."""
    theirs = {
        row[0]
        for each in plan.gone
        for row in connection.execute("SELECT id FROM templates WHERE person_id = ?", (each,)).fetchall()
    }
    secrets: list[bytes] = []
    if len(theirs | plan.removed) + len(plan.gone) <= _PROVED:
        for each in plan.gone:
            secrets += secrets_of(connection, store.rows, each, [], whole=True)
        secrets += secrets_of(connection, store.rows, 0, sorted(theirs | plan.removed), whole=False)
    for template_id in theirs | plan.removed:
        connection.execute("DELETE FROM templates WHERE id = ?", (template_id,))
        connection.execute(
            "INSERT INTO removals VALUES (?, ?) "
            "ON CONFLICT (template_id) DO UPDATE SET generation = excluded.generation",
            (template_id, generation),
        )
    for person_id in plan.gone:
        connection.execute("DELETE FROM people WHERE id = ?", (person_id,))
    if theirs or plan.gone or plan.removed:
        connection.execute("UPDATE gallery SET unscrubbed = ?", (max(1, generation),))
    return secrets


def _remove(path: Path) -> None:
    """Remove a copy with what SQLite and the cache keep beside it."""
    with contextlib.suppress(OutputError):
        clear_cache(path)
    for suffix in _BESIDE:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
