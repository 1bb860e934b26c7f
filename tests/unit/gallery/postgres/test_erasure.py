"""What an erasure leaves on a server: its files are read, and what cannot be read is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unit.gallery.conformance import CONTRACT, kept, template, templates, vectors
from unit.gallery.postgres.test_postgres import KEY, OTHER_KEY, create, open_store

from edgeface.errors import GalleryKeyError
from edgeface.gallery.index.postgres import PostgresIndex
from edgeface.model.embedding import Embedding

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
NOTES = {"notes": "Ermintrude is often late. " * 200}
"""As compressible as a server could wish."""


def fill(store: Any, *, people: int = 3, seed: int = 500) -> list[int]:
    dice = np.random.default_rng(seed)
    rows = vectors(2 * people, seed=seed)
    return [
        store.add_person(
            f"Ermintrude {seed} {number}",
            metadata=NOTES,
            templates=[template(row, image=kept(dice.bytes(5000))) for row in rows[2 * number : 2 * number + 2]],
        ).id
        for number in range(people)
    ]


def everything(cluster: Any) -> None:
    cluster.sql("ANALYZE")
    cluster.sql("CHECKPOINT")


@pytest.mark.parametrize(("key", "form"), [(KEY, "vector"), (None, "vector"), (None, "halfvec")])
def test_the_files_of_the_tables_are_searched_for_who_is_forgotten(
    pgvector: Any, gallery: str, key: bytes | None, form: Any
) -> None:
    with create(pgvector.url, gallery, key=key, keep_images=True, searched_as=form) as store:
        if key is None:
            store.add_graph()
        gone, *_ = fill(store, seed=510 + len(form))
        everything(pgvector)
        done = store.forget(gone)
        assert (done.proved, done.remains) == (True, ())
        assert done.needles > 10_000
        assert sum(done.searched.values()) > 30_000
        tables = {name.split(" ")[0].split(".")[-1] for name in done.searched}
        assert {"people", "templates", "images", "people_name_mark_key", "pg_statistic"} <= tables
        assert ({"vectors", "vectors_graph"} <= tables) is (key is None)
        assert "write-ahead log" in done.unsearched[0]
        assert store.forget(store.people()[0].id, template_ids=[store.load().ids[0]]).proved
        assert store.check().problems == ()


@pytest.mark.parametrize("column", ["people.body", "people.name_mark", "templates.body", "vectors.embedding"])
def test_the_search_finds_each_thing_that_is_left_in_a_file(pgvector: Any, gallery: str, column: str) -> None:
    """A copy that another program made in the gallery's own tables: a dead row, which no query shows."""
    table, name = column.split(".")
    key = "template_id" if table == "vectors" else "id"
    with create(pgvector.url, gallery, searched_as="halfvec") as store:
        gone, other = (store.add_person(f"Ermintrude {n}", templates=templates(1, seed=520 + n)).id for n in range(2))
        row, other_row = (gone, other) if table == "people" else (gone + 1, other + 1)
        names = f"SET search_path TO edgeface_{gallery}, public"
        overwrite = type(store)._overwrite

        def leave(store: Any) -> None:
            overwrite(store)
            for value in ("secret", "own"):
                new = f"(SELECT {value} FROM kept_for_the_test)"
                pgvector.sql(f"{names}; UPDATE {table} SET {name} = {new} WHERE {key} = {other_row}")
            pgvector.sql("CHECKPOINT")

        pgvector.sql(
            f"{names}; CREATE TABLE public.kept_for_the_test AS SELECT a.{name} AS secret, b.{name} AS own "
            f"FROM {table} AS a, {table} AS b WHERE a.{key} = {row} AND b.{key} = {other_row}"
        )
        try:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(type(store), "_overwrite", leave)
                done = store.forget(gone)
        finally:
            pgvector.sql("DROP TABLE public.kept_for_the_test")
        assert not done.proved
        assert any(line.startswith(f"{table} (base/") for line in done.remains), done.remains
        assert store.forget(other).proved


def test_a_user_who_may_not_read_the_files_is_told_so_and_nothing_is_called_proved(cluster: Any, gallery: str) -> None:
    role = f"owner_{gallery}"
    cluster.sql(f"CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE postgres TO {role}")
    url = cluster.url.replace("edgeface@", f"{role}@")
    with create(url, gallery, key=KEY) as store:
        done = store.forget(store.add_person("Ada", templates=templates(2)).id)
        assert (done.proved, done.remains, done.searched) == (False, (), {})
        assert "GRANT EXECUTE ON FUNCTION pg_read_binary_file(" in done.unsearched[0]
        cluster.sql(f"{done.unsearched[0][done.unsearched[0].index('GRANT') :]} TO {role}")
        try:
            assert store.forget(store.add_person("Ada", templates=templates(2)).id).proved
        finally:
            cluster.sql(
                f"{done.unsearched[0][done.unsearched[0].index('GRANT') :]} TO {role}".replace(
                    "GRANT", "REVOKE"
                ).replace(" TO ", " FROM ")
            )


def test_another_key_leaves_no_row_as_the_old_one_had_sealed_it(pgvector: Any, gallery: str) -> None:
    with create(pgvector.url, gallery, key=None, keep_images=True) as store:
        fill(store, seed=530)
        everything(pgvector)
        for key in (KEY, OTHER_KEY, None):
            done = store.rekey(key)
            assert done.searched
            assert done.remains == ()
        with pytest.raises(GalleryKeyError):
            open_store(pgvector.url, gallery, key=KEY)
        row = store.load().vectors[0]
        assert PostgresIndex(store).search(Embedding(row, CONTRACT)).scores[0] > 0.999


@pytest.mark.parametrize("migrated", [False, True], ids=["made now", "made by 0.1"])
def test_the_server_neither_samples_nor_compresses_what_is_in_the_tables(
    pgvector: Any, gallery: str, migrated: bool
) -> None:
    schema = f"edgeface_{gallery}"
    stored = f"SELECT pg_column_size(body), octet_length(body) FROM {schema}.people"
    sampled = (
        f"SELECT tablename, attname FROM pg_stats WHERE schemaname = '{schema}' "
        "AND attname IN ('body', 'name_mark', 'embedding')"
    )
    store = create(pgvector.url, gallery, key=None)
    if migrated:
        make_version_2(pgvector, schema)
    people = [store.add_person(f"p{n}", metadata=NOTES, templates=templates(2, seed=n)) for n in range(3)]
    store.close()
    if migrated:
        pgvector.sql(f"ALTER TABLE {schema}.gallery DROP COLUMN detectors")
    pgvector.sql("ANALYZE")
    assert bool(pgvector.sql(sampled)) is migrated
    assert all((size < length) is migrated for size, length in pgvector.sql(stored))
    with open_store(pgvector.url, gallery) as store:
        assert list(store.people()) == people
        pgvector.sql("ANALYZE")
        assert pgvector.sql(sampled) == []
        assert all(size >= length for size, length in pgvector.sql(stored))
        pgvector.sql("VACUUM FULL pg_statistic")  # holds what was dropped from it
        assert store.forget(people[0].id).proved
        assert store.check().problems == ()


def make_version_2(cluster: Any, schema: str) -> None:
    columns = {"people": ("body", "name_mark"), "templates": ("body",), "images": ("body",), "vectors": ("embedding",)}
    cluster.sql(f"DROP TABLE {schema}.staged")  # and gallery.detectors, by whom the gallery is written to before
    for table, names in columns.items():
        for name in names:
            cluster.sql(
                f"ALTER TABLE {schema}.{table} ALTER {name} SET STATISTICS -1, ALTER {name} SET STORAGE EXTENDED"
            )
    cluster.sql(f"UPDATE {schema}.gallery SET version = 2")


def test_a_kiosk_that_may_only_read_and_write_goes_on_after_the_owner_has_brought_the_tables_up_to_date(
    cluster: Any, gallery: str
) -> None:
    from edgeface.errors import OutputError

    schema, role = f"edgeface_{gallery}", f"kiosk_{gallery}"
    create(cluster.url, gallery, key=KEY).close()
    cluster.sql(f"DROP TABLE {schema}.staged; ALTER TABLE {schema}.gallery DROP COLUMN detectors")
    cluster.sql(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role}")
    cluster.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}")
    cluster.sql(f"UPDATE {schema}.gallery SET version = 2")
    kiosk = cluster.url.replace("edgeface@", f"{role}@")
    with pytest.raises(OutputError, match="as the user who owns its tables"):
        open_store(kiosk, gallery, key=KEY)
    open_store(cluster.url, gallery, key=KEY).close()
    with open_store(kiosk, gallery, key=KEY) as store:
        ada = store.add_person("Ada", templates=templates(2))
        assert store.check().problems == ()
        store.forget(ada.id)
