"""A snapshot of a gallery on a server: equal to it after every delta, whole or not at all, and without who has gone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unit.gallery.conformance import CONTRACT, template, vectors
from unit.gallery.postgres.test_postgres import KEY, create

from edgeface.errors import GalleryDamagedError, GalleryError, GalleryServerError, NotSupportedError
from edgeface.gallery import snapshot as copying
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.snapshot import _BUCKET, _DIGESTS, GallerySnapshot
from edgeface.gallery.store.base import GalleryStore
from edgeface.gallery.store.sqlite import SqliteStore
from edgeface.model.embedding import Embedding

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


@pytest.fixture
def server(cluster: Any, gallery: str) -> Iterator[GalleryStore]:
    with create(cluster.url, gallery, key=KEY) as store:
        yield store


@pytest.fixture
def snapshot(tmp_path: Path) -> Iterator[GallerySnapshot]:
    made = GallerySnapshot(tmp_path / "copy", key=KEY)
    yield made
    made.close()


def opened(snapshot: GallerySnapshot, key: bytes = KEY) -> SqliteStore:
    assert snapshot.path is not None
    return SqliteStore(snapshot.path, key=key)


def rows_of(store: GalleryStore, group: str | None = None) -> dict[str, Any]:
    """All that a copy must have of a gallery, as it is stored."""
    with store.reading():
        people = {each.id: each for each in store.people(label=group)}
        templates = {one.id: one for each in people for one in store.templates_of(each)}
        told = {number: (each.person_id, each.embedding.vector.tobytes()) for number, each in templates.items()}
        known = {"generation": store.generation(), "detectors": store.detectors()}
        return {"people": people, "templates": told} | known


def test_the_copy_is_the_gallery_row_for_row_after_every_kind_of_change(
    server: GalleryStore, snapshot: GallerySnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for an index that follows it, whatever came together in one delta."""
    monkeypatch.setattr("edgeface.gallery.snapshot._DIGESTS", _DIGESTS.replace(f"/ {_BUCKET}", "/ 8"))
    monkeypatch.setattr("edgeface.gallery.snapshot._BUCKET", 8)
    monkeypatch.setattr("edgeface.gallery.snapshot._FEW", 2)
    rng, rows = random.Random(5), iter(vectors(400, seed=3))
    server.add_person("first", templates=[template(next(rows))])
    bern = GallerySnapshot(snapshot.folder.with_name("bern"), key=KEY, group="bern")
    for each in (snapshot, bern):
        each.follow(server)
    copy, part = opened(snapshot), opened(bern)
    live, live_part = LiveIndex(copy), LiveIndex(part)

    def change() -> None:
        people = [each.id for each in server.people()]
        kind = rng.choice(["add", "add", "more", "rename", "swap", "merge", "forget", "forget-template", "pin"])
        if kind == "add" or len(people) < 3:
            new = [template(next(rows)) for _ in range(rng.randint(1, 3))]
            server.add_person(f"p{rng.random()}", labels=rng.choice([[], ["bern"]]), templates=new)
        elif kind == "pin":
            server.add_person(f"p{rng.random()}")
        elif kind == "more":
            detector = rng.choice(["mtcnn", "yunet"])
            server.add_templates(rng.choice(people), [template(next(rows), detector=detector)])
        elif kind == "rename":
            labels = rng.choice([None, [], ["bern", "zug"]])
            server.update_person(rng.choice(people), name=f"p{rng.random()}", labels=labels)
        elif kind == "swap":
            one, other = rng.sample(people, 2)
            names = [server.person(each).name for each in (one, other)]
            with server.writing():
                for number, name in ((one, "between"), (other, names[0]), (one, names[1])):
                    server.update_person(number, name=name)
        elif kind == "merge":
            server.merge(*rng.sample(people, 2))
        elif kind == "forget":
            server.forget(rng.choice(people))
        elif theirs := server.templates_of(rng.choice(people)):
            server.forget(theirs[0].person_id, template_ids=[theirs[0].id])

    for _ in range(10):
        for _ in range(rng.randint(1, 3)):
            change()
        done = snapshot.follow(server)
        assert done is not None
        assert done.generation == server.generation()
        assert rows_of(copy) == rows_of(server)
        assert copy.last_commit() == server.last_commit()
        block, theirs = live.block(), server.load()
        for name in ("ids", "person_ids", "vectors"):
            assert np.array_equal(getattr(block, name), getattr(theirs, name)), name
        assert snapshot.follow(server) is None
        opened(snapshot).close()  # another process may open it, and one that was killed again
        bern.follow(server)
        assert rows_of(part) == rows_of(server, "bern")
        assert live_part.block().ids.tolist() == sorted(rows_of(part)["templates"])
    for each in (copy, part):
        assert each.check().problems == ()
    assert {each.name for each in copy.people()} == {each.name for each in server.people()}
    assert all(copy.find(each.name) == each for each in server.people())
    for each in (copy, part, bern):
        each.close()


def test_who_was_forgotten_on_the_server_is_not_in_the_files_of_the_copy(
    server: GalleryStore, snapshot: GallerySnapshot
) -> None:
    ada = server.add_person("Ada Lovelace", templates=[template(vectors(1, seed=1)[0])]).id
    server.add_person("Grace Hopper", templates=[template(vectors(1, seed=2)[0])])
    snapshot.follow(server)
    with opened(snapshot) as copy, copy.database.reading() as connection:
        stored = [row[0] for row in connection.execute("SELECT body FROM people WHERE id = ?", (ada,)).fetchall()]
        stored += [row[0] for row in connection.execute("SELECT body FROM templates WHERE person_id = ?", (ada,))]
    server.forget(ada)
    done = snapshot.follow(server)
    assert done is not None
    assert done.gone == (ada,)
    assert done.proof is not None
    assert done.proof.searched
    assert done.proof.remains == ()
    left = b"".join(file.read_bytes() for file in snapshot.folder.rglob("*") if file.is_file())
    assert len(stored) == 2
    assert not any(row[at : at + 32] in left for row in stored for at in range(0, len(row) - 32, 16))


def test_only_the_people_of_the_group_are_copied_who_come_and_go(server: GalleryStore, tmp_path: Path) -> None:
    rows = vectors(6, seed=4)
    bern = server.add_person("Ada", labels=["bern"], templates=[template(rows[0]), template(rows[1])]).id
    zug = server.add_person("Grace", labels=["zug"], templates=[template(rows[2])]).id
    snapshot = GallerySnapshot(tmp_path / "copy", key=KEY, group="bern")
    snapshot.follow(server)
    with opened(snapshot) as copy:
        live = LiveIndex(copy)
        assert rows_of(copy) == rows_of(server, "bern")
        server.add_templates(zug, [template(rows[3])])
        server.update_person(bern, labels=["zug"])
        done = snapshot.follow(server)
        assert done is not None
        assert (done.gone, done.templates) == ((bern,), 0)
        assert len(live) == 0
        server.update_person(zug, labels=["zug", "bern"])  # whose templates are older than the copy
        snapshot.follow(server)
        assert rows_of(copy) == rows_of(server, "bern")
        assert live.search(Embedding(rows[3], CONTRACT)).scores[0] > 0.999
        assert len(live) == 2
    snapshot.close()
    for group, people in (("zug", [bern, zug]), (None, [bern, zug]), ("bern", [zug])):  # another one after a restart
        snapshot = GallerySnapshot(tmp_path / "copy", key=KEY, group=group)
        snapshot.follow(server)
        with opened(snapshot) as copy:
            assert [each.id for each in copy.people()] == people
            assert sorted(set(copy.load().person_ids.tolist())) == people
            assert copy.check().problems == ()
        snapshot.close()


def test_a_first_copy_that_was_interrupted_is_gone_on_with_and_is_not_there_before_it_is_whole(
    server: GalleryStore, snapshot: GallerySnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.gallery.snapshot._PEOPLE_AT_ONCE", 4)
    for number, row in enumerate(vectors(20, seed=6)):
        server.add_person(f"p{number}", templates=[template(row)])
    copied, copy_some = [], GallerySnapshot._copy_some

    def fails_at_third(self: GallerySnapshot, store: SqliteStore, *given: Any) -> bool:
        copied.append(store.count()[0])
        if len(copied) == 3:
            raise GalleryServerError("the network was cut")
        return copy_some(self, store, *given)

    monkeypatch.setattr(GallerySnapshot, "_copy_some", fails_at_third)
    with pytest.raises(GalleryServerError):
        snapshot.follow(server)
    assert snapshot.path is None
    with server.writing():  # what was copied changes before the copy is whole
        first = server.people()[0].id
        server.add_templates(first, [template(vectors(1, seed=7)[0])])
    server.forget(server.people()[1].id)
    again = GallerySnapshot(snapshot.folder, key=KEY)  # another process
    again.follow(server)
    assert copied[:4] == [0, 4, 8, 8], "it begins where the other one ended"
    with opened(again) as copy:
        assert rows_of(copy) == rows_of(server)
        assert copy.check().problems == ()
    again.close()


def test_a_copy_of_another_key_or_a_damaged_one_is_made_anew(server: GalleryStore, snapshot: GallerySnapshot) -> None:
    server.add_person("Ada", templates=[template(vectors(1)[0])])
    snapshot.follow(server)
    old = snapshot.path
    assert old is not None
    snapshot.close()
    server.rekey(b"\7" * 32)
    for damaged in (False, True):
        again = GallerySnapshot(snapshot.folder, key=b"\7" * 32)
        assert again.path is None
        again.follow(server)
        with opened(again, b"\7" * 32) as copy:
            assert rows_of(copy) == rows_of(server)
        assert again.path is not None
        assert not old.exists()
        again.close()
        if not damaged:
            again.path.write_bytes(b"\0" * 16384 + again.path.read_bytes()[16384:])


def test_a_gallery_that_was_put_back_on_the_server_is_copied_as_it_is_now(
    cluster: Any, gallery: str, server: GalleryStore, snapshot: GallerySnapshot
) -> None:
    rows, schema = vectors(4, seed=9), f"edgeface_{gallery}"
    server.add_person("Ada", templates=[template(rows[0])])
    tables = ("gallery", "people", "templates", "removals", "commits")
    cluster.sql(f"CREATE SCHEMA {gallery}_kept")
    for table in tables:
        cluster.sql(f"CREATE TABLE {gallery}_kept.{table} AS SELECT * FROM {schema}.{table}")
    server.add_person("Lost", templates=[template(rows[1])])
    snapshot.follow(server)
    for table in reversed(tables):
        cluster.sql(f"DELETE FROM {schema}.{table}")
    for table in tables:
        cluster.sql(f"INSERT INTO {schema}.{table} SELECT * FROM {gallery}_kept.{table}")
    server.add_person("Other", templates=[template(rows[2])])  # gets the ids of the lost one
    with opened(snapshot) as copy:
        live = LiveIndex(copy)
        snapshot.follow(server)
        assert rows_of(copy) == rows_of(server)
        assert live.search(Embedding(rows[2], CONTRACT)).scores[0] > 0.999
        assert live.search(Embedding(rows[1], CONTRACT)).scores[0] < 0.999
        assert copy.check().problems == ()


def test_who_is_erased_while_the_server_is_read_is_not_written_again(
    server: GalleryStore, snapshot: GallerySnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = vectors(2, seed=12)
    ada = server.add_person("Ada Lovelace", templates=[template(rows[0])]).id
    snapshot.follow(server)
    server.add_templates(ada, [template(rows[1])])

    def apply(*given: Any, **options: Any) -> Any:
        snapshot.erase(ada)
        return real(*given, **options)

    real = copying._apply
    monkeypatch.setattr(copying, "_apply", apply)
    snapshot.follow(server)
    with opened(snapshot) as copy:
        assert copy.count() == (0, 0)
        assert len(LiveIndex(copy).search(Embedding(rows[1], CONTRACT)).ids) == 0


def test_an_erasure_without_the_server_holds_while_it_is_away_and_when_it_is_back(
    server: GalleryStore, snapshot: GallerySnapshot
) -> None:
    rows = vectors(2, seed=11)
    ada = server.add_person("Ada Lovelace", templates=[template(rows[0])]).id
    grace = server.add_person("Grace Hopper", templates=[template(rows[1])]).id
    snapshot.follow(server)
    with opened(snapshot) as copy:
        live = LiveIndex(copy)
        assert live.search(Embedding(rows[0], CONTRACT)).scores[0] > 0.999
        proof = snapshot.erase(ada)
        assert proof.searched
        assert proof.remains == ()
        assert live.search(Embedding(rows[0], CONTRACT)).scores[0] < 0.999
        with pytest.raises(GalleryError):
            snapshot.erase(ada)
        server.update_person(ada, metadata={"changed": "meanwhile"})
        server.add_templates(ada, [template(rows[0])])
        snapshot.follow(server, without=frozenset({ada}))
        assert [each.id for each in copy.people()] == [grace]
        assert copy.count() == (1, 1)
        server.forget(ada)
        snapshot.follow(server)
        assert rows_of(copy) == rows_of(server)
        assert copy.check().problems == ()


def test_a_gallery_without_a_key_is_not_copied_and_neither_is_a_row_that_was_changed(
    pgvector: Any, gallery: str, server: GalleryStore, snapshot: GallerySnapshot
) -> None:
    with create(pgvector.url, f"{gallery}_plain", key=None) as plain, pytest.raises(NotSupportedError, match="rekey"):
        snapshot.follow(plain)
    server.add_person("Ada", templates=[template(vectors(1)[0])])
    snapshot.follow(server)
    grace = server.add_person("Grace", templates=[template(vectors(1, seed=2)[0])]).id
    schema = f"edgeface_{gallery}"
    pgvector.sql(f"UPDATE {schema}.templates SET body = body || '\\x00' WHERE person_id = {grace}")
    with pytest.raises(GalleryDamagedError):
        snapshot.follow(server)
    with opened(snapshot) as copy:
        assert [each.name for each in copy.people()] == ["Ada"]
