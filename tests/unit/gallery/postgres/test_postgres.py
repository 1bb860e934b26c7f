"""A gallery on a server: what every store does, what pgvector finds, and what happens when the server goes away."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from contracts import sample_contract
from unit.gallery.conformance import (
    CONTRACT,
    DIM,
    OTHER_CONTRACT,
    Place,
    StoreConformance,
    kept,
    template,
    templates,
    vectors,
)

from edgeface.errors import (
    ContractError,
    ExtraNotInstalledError,
    GalleryBusyError,
    GalleryDamagedError,
    GalleryError,
    GalleryKeyError,
    GalleryServerError,
    InputError,
    NotSupportedError,
    OutputError,
)
from edgeface.gallery import create_gallery, open_gallery
from edgeface.gallery.index import ExactIndex, Index, LiveIndex
from edgeface.gallery.records import CheckReport
from edgeface.model.embedding import Embedding, Embeddings

KEY = bytes(range(32))

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


def open_store(url: str, name: str, **options: Any) -> Any:
    from edgeface.gallery.store.postgres import PostgresStore

    return PostgresStore(url, name, **{"patience": 1.0, "timeout": 20.0, **options})


def create(url: str, name: str, **options: Any) -> Any:
    from edgeface.gallery.store.postgres import PostgresStore

    settings = {"contract_id": CONTRACT, "dim": DIM, "key": None, "patience": 1.0, "timeout": 20.0}
    return PostgresStore.create(url, name, **{**settings, **options})


class TestPostgresStore(StoreConformance):
    @pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
    def place(self, request: pytest.FixtureRequest, gallery: str) -> Place:
        cluster = request.getfixturevalue("cluster" if request.param else "pgvector")
        return Place(
            create=lambda **options: create(cluster.url, gallery, key=request.param, **options),
            open=lambda **options: open_store(cluster.url, gallery, key=request.param, **options),
            source=f"PostgresStore({cluster.url!r}, {gallery!r}, key={request.param!r})",
        )


# What it is bound to


def test_a_wrong_key_another_contract_and_no_gallery_are_each_refused(cluster: Any, gallery: str) -> None:
    create(cluster.url, gallery, key=KEY).close()
    for error, words, options in (
        (GalleryKeyError, "another", {"key": bytes(32)}),
        (GalleryKeyError, "encrypted", {"key": None}),
        (ContractError, OTHER_CONTRACT, {"key": KEY, "contract_id": OTHER_CONTRACT}),
    ):
        with pytest.raises(error, match=words):
            open_store(cluster.url, gallery, **options)
    with pytest.raises(GalleryError, match="no gallery of this name"):
        open_store(cluster.url, "nobody_made_this")
    with pytest.raises(OutputError, match="exists already"):
        create(cluster.url, gallery, key=KEY)
    for wrong in ("", "A", "a;drop", "1a", "x" * 60):
        with pytest.raises(InputError, match="gallery name"):
            create(cluster.url, wrong, key=KEY)


def test_a_gallery_on_a_server_is_created_and_opened_by_the_same_functions(cluster: Any, gallery: str) -> None:
    contract = sample_contract()
    address = f"{cluster.url}?gallery={gallery}"
    with create_gallery(address, contract=contract, key=KEY) as store:
        info = store.info
        assert (info.contract_id, info.encrypted) == (contract.contract_id, True)
    with open_gallery(address, key=KEY, contract_id=contract.contract_id) as store:
        assert store.info == info


def test_an_encrypted_gallery_tells_the_server_nothing(cluster: Any, gallery: str) -> None:
    row = vectors(1, seed=4001)[0]  # that no other test stores in the clear
    with create(cluster.url, gallery, key=KEY) as store:
        store.add_person("Zebedee Quux", metadata={"secret": "xyzzyplugh"}, templates=[template(row)])
    cluster.sql("CHECKPOINT")
    for needle in (b"Zebedee", b"xyzzyplugh", row.tobytes()[:16]):
        assert not cluster.holds(needle)


def test_what_is_forgotten_is_not_in_the_files_of_the_tables(pgvector: Any, gallery: str) -> None:
    row = vectors(1, seed=4002)[0]
    with create(pgvector.url, gallery) as store:
        kept = store.add_person("Abelard Kept")
        gone = store.add_person("Zebedee Gone", templates=[template(row)])
        pgvector.sql("CHECKPOINT")
        assert pgvector.holds(row.tobytes()[:16])
        store.forget(gone.id)
        assert store.people() == (kept,)
    pgvector.sql("CHECKPOINT")
    assert pgvector.holds(b"Abelard Kept")
    assert not pgvector.holds(b"Zebedee Gone")
    assert not pgvector.holds(row.tobytes()[:16])


def test_a_changed_row_is_noticed(cluster: Any, gallery: str) -> None:
    with create(cluster.url, gallery, key=KEY) as store:
        person = store.add_person("Ada", templates=templates(1))
        cluster.sql(f"UPDATE edgeface_{gallery}.templates SET body = set_byte(body, 40, 255 - get_byte(body, 40))")
        with pytest.raises(GalleryDamagedError):
            store.templates_of(person.id)
    cluster.sql(f"UPDATE edgeface_{gallery}.gallery SET header = replace(header, '{CONTRACT}', '{OTHER_CONTRACT}')")
    with pytest.raises(GalleryDamagedError, match="header"):
        open_store(cluster.url, gallery, key=KEY)


def test_check_reads_every_row_and_says_what_is_damaged(cluster: Any, gallery: str) -> None:
    with create(cluster.url, gallery, key=KEY, keep_images=True) as store:
        store.add_person("Ada", templates=[template(vectors(1)[0], image=kept())])
        assert store.check() == CheckReport(rows={"people": 1, "templates": 1, "images": 1, "staged": 0}, problems=())
        cluster.sql(f"UPDATE edgeface_{gallery}.images SET body = set_byte(body, 20, 1 - get_byte(body, 20) % 2)")
        cluster.sql(f"UPDATE edgeface_{gallery}.gallery SET next_id = 2")
        problems = store.check().problems
        assert len(problems) == 2
        assert "2 was given already" in problems[0]
        assert "row 2 of images" in problems[1]


def test_check_compares_what_the_server_searches_with_the_templates(pgvector: Any, gallery: str) -> None:
    with create(pgvector.url, gallery) as store:
        store.add_person("Ada", templates=templates(3))
        assert store.check()
        schema = f"edgeface_{gallery}"
        pgvector.sql(f"DELETE FROM {schema}.vectors WHERE template_id = 2")
        pgvector.sql(
            f"UPDATE {schema}.vectors SET embedding = o.embedding FROM {schema}.vectors AS o "
            "WHERE vectors.template_id = 3 AND o.template_id = 4"
        )
        told = ["template 2: the server does not search it", "template 3: the server searches another embedding"]
        assert list(store.check().problems) == told
        pgvector.sql(f"DROP TABLE {schema}.vectors")
    with open_store(pgvector.url, gallery) as store:
        assert "no table 'vectors'" in store.check().problems[0]


def test_a_database_without_an_encoding_holds_a_gallery(cluster: Any, gallery: str) -> None:
    cluster.sql(f"CREATE DATABASE {gallery} ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with create(cluster.url.replace("/postgres", f"/{gallery}"), gallery, key=KEY) as store:
        known = store.add_person("Zo\u00eb", templates=templates(1))
        assert store.people() == (known,)
        assert store.check()


# A new key


OTHER_KEY = bytes(range(1, 33))


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new"), [(KEY, OTHER_KEY), (None, KEY), (KEY, None)], ids=["another", "first", "none"])
def test_rekey_changes_the_key_and_nothing_else(
    pgvector: Any, gallery: str, old: bytes | None, new: bytes | None
) -> None:
    from edgeface.gallery.index.postgres import PostgresIndex

    row = vectors(1, seed=4003)[0]
    with (
        create(pgvector.url, gallery, key=old, keep_images=True) as store,
        open_store(pgvector.url, gallery, key=old) as other,
    ):
        store.add_person("Zenobia Rekeyed", templates=[template(row, image=kept()), *templates(2)])
        people, block = store.people(), store.load()
        pgvector.sql("CHECKPOINT")
        assert pgvector.holds(row.tobytes()[:16]) is (old is None)
        assert store.rekey(new).rows == 5
        assert store.people() == people
        np.testing.assert_array_equal(store.load().vectors, block.vectors)
        with pytest.raises(GalleryError, match="the new key already"):
            store.rekey(new)
        for call in (other.people, lambda: other.add_person("a")):
            with pytest.raises(GalleryError, match="open it again"):
                call()
        store.add_person("Somebody else", templates=templates(1, seed=9))
        pgvector.sql("CHECKPOINT")
        assert pgvector.holds(row.tobytes()[:16]) is (new is None)
    with pytest.raises(GalleryKeyError):
        open_store(pgvector.url, gallery, key=old)
    with open_store(pgvector.url, gallery, key=new) as store:
        assert store.people()[:1] == people
        assert store.check().problems == ()
        assert (store.searched_as is None) is (new is not None)
        if new is None:
            hits = PostgresIndex(store).search(Embedding(row, CONTRACT))
            assert hits.ids.tolist() == block.ids[:1].tolist()
        store.forget(people[0].id)
    pgvector.sql("CHECKPOINT")
    assert not pgvector.holds(row.tobytes()[:16])


def test_a_rekey_that_meets_a_damaged_row_changes_nothing(pgvector: Any, gallery: str) -> None:
    with create(pgvector.url, gallery) as store:
        ada = store.add_person("Ada", templates=templates(3))
        pgvector.sql(f"UPDATE edgeface_{gallery}.templates SET body = '\\x00' WHERE id = {ada.id + 2}")
        generation = store.generation()
        with pytest.raises(GalleryDamagedError):
            store.rekey(KEY)
        assert store.generation() == generation
        assert store.people() == (ada,)
    with open_store(pgvector.url, gallery) as store:
        assert store.searched_as == "vector"


# Restored, and of an earlier version


def test_an_index_does_not_follow_tables_that_were_restored(cluster: Any, gallery: str) -> None:
    """pg_restore puts earlier rows back; after as many commits as were lost the generation is the same."""
    mallory, carol = vectors(2, seed=77)
    schema = f"edgeface_{gallery}"
    with create(cluster.url, gallery, key=KEY) as store, open_store(cluster.url, gallery, key=KEY) as kiosk:
        store.add_person("Ada", templates=templates(2))
        saved = cluster.sql(f"SELECT generation, next_id FROM {schema}.gallery")[0]
        lost = store.add_person("Mallory", templates=[template(mallory)])
        live = LiveIndex(kiosk)
        assert live.search(Embedding(mallory, CONTRACT)).person_ids.tolist() == [lost.id]
        for table, column in (("templates", "person_id"), ("people", "id")):
            cluster.sql(f"DELETE FROM {schema}.{table} WHERE {column} = {lost.id}")
        cluster.sql(f"DELETE FROM {schema}.commits WHERE generation > {saved[0]}")
        cluster.sql(f"UPDATE {schema}.gallery SET generation = {saved[0]}, next_id = {saved[1]}")
        known = store.add_person("Carol", templates=[template(carol)])
        assert (known.id, store.generation()) == (lost.id, live.generation)
        assert live.search(Embedding(mallory, CONTRACT)).scores[0] < 0.9
        assert live.search(Embedding(carol, CONTRACT)).person_ids.tolist() == [known.id]


def test_tables_of_version_1_are_brought_up_to_date_by_who_has_the_key(cluster: Any, gallery: str) -> None:
    schema = f"edgeface_{gallery}"
    with create(cluster.url, gallery, key=KEY) as store:
        ada = store.add_person("Ada", templates=templates(2))
    cluster.sql(f"DROP TABLE {schema}.commits, {schema}.staged")
    cluster.sql(f"ALTER TABLE {schema}.gallery DROP COLUMN detectors")
    cluster.sql(f"UPDATE {schema}.gallery SET version = 1")
    with pytest.raises(GalleryKeyError):
        open_store(cluster.url, gallery, key=bytes(32))
    assert cluster.sql(f"SELECT version FROM {schema}.gallery") == [(1,)]
    for _ in range(2):
        with open_store(cluster.url, gallery, key=KEY) as store:
            assert store.people() == (ada,)
            assert len(store.history()) == 32
    cluster.sql(f"UPDATE {schema}.gallery SET version = 5")
    with pytest.raises(GalleryError, match="found 5; update edgeface"):
        open_store(cluster.url, gallery, key=KEY)


@pytest.mark.parametrize("what", ["forget", "rekey"])
def test_a_connection_lost_after_the_commit_does_not_say_that_nothing_was_changed(
    cluster: Any, gallery: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    from edgeface.gallery.store.postgres import PostgresStore

    overwrite = PostgresStore._overwrite

    def cut_off(store: PostgresStore) -> None:
        cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'edgeface'")
        overwrite(store)

    with create(cluster.url, gallery, key=KEY) as store:
        ada, grace = (store.add_person(name, templates=templates(2, seed=n)) for n, name in enumerate(("Ada", "Grace")))
        in_force = "the new key .* is in force: keep it" if what == "rekey" else f"person {ada.id} is deleted"
        with monkeypatch.context() as patched:
            patched.setattr(PostgresStore, "_overwrite", cut_off)
            with pytest.raises(GalleryServerError, match=f"{in_force}.*not yet overwritten: .*went away") as caught:
                store.rekey(OTHER_KEY) if what == "rekey" else store.forget(ada.id)
        assert "nothing was changed" not in str(caught.value)
        left = (ada, grace) if what == "rekey" else (grace,)
        assert store.people() == left
    state = f"SELECT unscrubbed FROM edgeface_{gallery}.gallery"
    assert cluster.sql(state) != [(0,)]
    with open_store(cluster.url, gallery, key=OTHER_KEY if what == "rekey" else KEY) as store:
        assert store.people() == left
    assert cluster.sql(state) == [(0,)]


def test_an_erasure_that_the_server_skips_is_not_called_finished(cluster: Any, gallery: str) -> None:
    """VACUUM by a user who does not own a table does nothing, with a warning."""
    schema, role = f"edgeface_{gallery}", f"kiosk_{gallery}"
    create(cluster.url, gallery, key=KEY).close()
    cluster.sql(f"CREATE ROLE {role} LOGIN")
    cluster.sql(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    cluster.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}")
    state = f"SELECT unscrubbed FROM {schema}.gallery"
    with open_store(cluster.url.replace("edgeface@", f"{role}@"), gallery, key=KEY) as store:
        done = store.forget(store.add_person("Ada", templates=templates(2)).id)
        assert "the server did not rewrite people: " in done.remains[0]
        assert cluster.sql(state) != [(0,)]
    open_store(cluster.url, gallery, key=KEY).close()
    assert cluster.sql(state) == [(0,)]


def test_an_erasure_that_a_reader_holds_up_is_not_called_finished(cluster: Any, gallery: str) -> None:
    with (
        create(cluster.url, gallery, key=KEY, timeout=0.3) as store,
        open_store(cluster.url, gallery, key=KEY) as kiosk,
    ):
        ada = store.add_person("Ada", templates=templates(2))
        with kiosk.reading():
            kiosk.people()
            done = store.forget(ada.id)
        assert "not yet overwritten: another process" in done.remains[0]
        assert not done.proved


# Search


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
@pytest.mark.parametrize("graph", [False, True], ids=["every row", "graph"])
def test_the_server_finds_what_an_exact_index_finds(pgvector: Any, gallery: str, kind: str, graph: bool) -> None:
    from edgeface.gallery.index.postgres import PostgresIndex

    with create(pgvector.url, gallery, searched_as=kind) as store:
        for number in range(30):
            store.add_person(f"p{number}", templates=templates(4, seed=number))
        if graph:
            store.add_graph()
        index, exact = PostgresIndex(store), ExactIndex(store.load())
        assert isinstance(index, Index)
        assert (len(index), index.contract_id, index.generation) == (120, CONTRACT, store.generation())
        probes = Embeddings(np.concatenate([vectors(6, seed=99), vectors(1, seed=3) * 5]), CONTRACT)
        for number, hits in enumerate(index.search_batch(probes, k=3)):
            for other in (exact.search(probes[number], k=3), index.search(probes[number], k=3)):
                np.testing.assert_array_equal(hits.ids, other.ids)
                np.testing.assert_array_equal(hits.person_ids, other.person_ids)
                np.testing.assert_array_equal(hits.scores, other.scores)
        people = [store.people()[number].id for number in (3, 7)]
        ours, theirs = index.compare(probes[0], people), exact.compare(probes[0], people)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        assert len(index.search(probes[0], k=500)) == (120 if not graph else len(index.search(probes[0], k=500)))
        store.forget(people[0])
        assert people[0] not in index.search(Embedding(vectors(1, seed=3)[0], CONTRACT), k=20).person_ids


def test_the_server_is_not_asked_for_what_does_not_belong(pgvector: Any, gallery: str) -> None:
    from edgeface.gallery.index.postgres import PostgresIndex

    with create(pgvector.url, gallery) as store:
        index = PostgresIndex(store)
        for alien in (Embedding(vectors(1)[0], OTHER_CONTRACT), Embedding(vectors(1, dim=DIM + 1)[0], CONTRACT)):
            for call in (
                lambda alien=alien: index.search(alien),
                lambda alien=alien: index.compare(alien, [1]),
                lambda alien=alien: index.search_batch(Embeddings(alien.vector[None], alien.contract_id)),
            ):
                with pytest.raises(ContractError):
                    call()
        assert len(index.search(Embedding(vectors(1)[0], CONTRACT))) == 0
        with pytest.raises(InputError, match="k of 1"):
            index.search(Embedding(vectors(1)[0], CONTRACT), k=0)
    with pytest.raises(InputError, match="16,000"):
        create(pgvector.url, gallery + "b", dim=16001)


def test_an_encrypted_gallery_is_searched_by_the_client(cluster: Any, gallery: str) -> None:
    from edgeface.gallery.index.postgres import PostgresIndex

    with create(cluster.url, gallery, key=KEY) as store, open_store(cluster.url, gallery, key=KEY) as kiosk:
        with pytest.raises(NotSupportedError, match="LiveIndex"):
            PostgresIndex(store)
        with pytest.raises(NotSupportedError, match="encrypted"):
            store.add_graph()
        live = LiveIndex(kiosk)
        ada = store.add_person("Ada", templates=templates(2))
        assert live.search(Embedding(vectors(2)[1], CONTRACT)).person_ids.tolist() == [ada.id]


# The server goes away


@pytest.mark.slow
def test_a_restarted_server_is_connected_to_again(cluster: Any, gallery: str) -> None:
    with create(cluster.url, gallery, key=KEY) as store:
        ada = store.add_person("Ada", templates=templates(1))
        cluster.stop()
        with pytest.raises(GalleryServerError, match=r"PostgreSQL 127\.0\.0\.1.*away"):
            store.people()
        cluster.start()
        assert store.people() == (ada,)
        assert store.add_person("Grace").id > ada.id


def test_a_connection_lost_while_writing_changes_nothing(cluster: Any, gallery: str) -> None:
    with create(cluster.url, gallery, key=KEY) as store:
        store.add_person("Ada")
        before = store.generation()

        def write() -> None:
            with store.writing():
                store.add_person("Grace")
                cluster.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'edgeface' AND state LIKE 'idle in transaction%'"
                )
                store.add_person("Linus")

        with pytest.raises(GalleryServerError, match="nothing was changed"):
            write()
        assert [person.name for person in store.people()] == ["Ada"]
        assert store.generation() == before


def test_a_block_that_stands_still_for_too_long_is_undone_and_that_is_said(
    cluster: Any, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeface.gallery.store.postgres.database._IDLE_SECONDS", 0.2)
    with create(cluster.url, gallery, key=KEY) as store:

        def stand_still() -> None:
            with store.writing():
                store.add_person("Ada")
                time.sleep(1)
                store.add_person("Grace")

        with pytest.raises(GalleryServerError, match=r"idle-in-transaction.*nothing was changed"):
            stand_still()
        assert store.people() == ()


def test_a_server_that_was_never_there_is_named_and_the_password_is_not(cluster: Any) -> None:
    with pytest.raises(GalleryServerError, match=r"127\.0\.0\.1:1/") as caught:
        open_store("postgresql://me:hunter2@127.0.0.1:1/db", "a", patience=0)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InputError, match="address"):
        open_store("postgresql://[", "a", patience=0)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("/postgres", "/no_such_database", 'database "no_such_database" does not exist'),
        ("edgeface@", "no_such_role@", 'role "no_such_role" does not exist'),
        ("/postgres", "/postgres?sslmode=require", "does not support SSL"),
    ],
)
def test_who_is_not_let_in_is_told_so_at_once(cluster: Any, old: str, new: str, told: str) -> None:
    begun = time.monotonic()
    with pytest.raises(GalleryError, match=f"does not let this client in: .*{told}.*; check the address") as caught:
        open_store(cluster.url.replace(old, new), "a", patience=30)
    assert time.monotonic() - begun < 20
    assert not isinstance(caught.value, GalleryServerError)


def test_a_statement_that_the_server_cancels_is_no_other_writer(cluster: Any, gallery: str) -> None:
    told = r"the server cancelled the statement: .* raise its statement_timeout"
    with create(cluster.url, gallery, key=KEY) as store:
        store.database.outside("SET statement_timeout = 1")
        with pytest.raises(GalleryBusyError, match=told):
            store.database.outside("SELECT pg_sleep(5)")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DELETE FROM {}.gallery", "its header is gone; restore"),
        ("UPDATE {}.gallery SET version = 9", "of version 1 to 4, found 9; update edgeface"),
        ("UPDATE {}.gallery SET version = -1", "of version 1 to 4, found -1; restore"),
        ("UPDATE {}.gallery SET header = repeat('x', 9000000)", "its header is damaged"),
    ],
)
def test_a_header_that_is_gone_or_no_header_is_told(cluster: Any, gallery: str, change: str, told: str) -> None:
    create(cluster.url, gallery, key=KEY).close()
    cluster.sql(change.format(f"edgeface_{gallery}"))
    with pytest.raises(GalleryError, match=told):
        open_store(cluster.url, gallery, key=KEY)


def test_who_waits_too_long_for_another_writer_is_told(cluster: Any, gallery: str) -> None:
    with (
        create(cluster.url, gallery, key=KEY) as store,
        open_store(cluster.url, gallery, key=KEY, timeout=0.2) as other,
    ):
        with store.writing():
            with pytest.raises(GalleryBusyError, match="in time"):
                other.add_person("Ada")
            assert other.people() == ()
        other.add_person("Ada")
        assert len(store.people()) == 1


def test_many_kiosks_enrol_at_once_and_nothing_is_lost(pgvector: Any, gallery: str) -> None:
    create(pgvector.url, gallery).close()
    failures: list[BaseException] = []

    def enrol(kiosk: int) -> None:
        try:
            with open_store(pgvector.url, gallery, timeout=60) as store:
                for number in range(6):
                    store.add_person(f"{kiosk}.{number}", templates=templates(2, seed=10 * kiosk + number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=enrol, args=(kiosk,)) for kiosk in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert failures == []
    with open_store(pgvector.url, gallery) as store:
        assert len(store.people()) == 30
        assert len(set(store.load().ids.tolist())) == 60
        assert store.generation() == 31


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ExtraNotInstalledError, match=r"\[postgres\]"):
        open_store("postgresql://localhost/db", "a")
