"""What another user puts into a gallery's schema on a server is named, and never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from unit.gallery.conformance import DIM, templates
from unit.gallery.postgres.test_postgres import KEY, create, open_store

from edgeface.errors import GalleryDamagedError

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]

_FUNCTION = """
CREATE FUNCTION {name}() RETURNS {returns} LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RAISE EXCEPTION 'foreign code ran'; END $$
"""
_TRIGGER = _FUNCTION.format(name="public.run", returns="trigger").replace("CREATE", "CREATE OR REPLACE")
FOREIGN = {
    "a trigger": ("trigger 't'", _TRIGGER, "CREATE TRIGGER t BEFORE DELETE ON people EXECUTE FUNCTION public.run()"),
    "a rule": ("rule 'r'", "CREATE RULE r AS ON DELETE TO people DO INSTEAD NOTHING"),
    "an endless view instead of the people": (
        "foreign view 'people'",
        "ALTER TABLE people RENAME TO hidden",
        "CREATE VIEW people AS WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n FROM r) "
        "SELECT n::bigint AS id, ''::bytea AS name_mark, ''::bytea AS body FROM r",
    ),
    "an endless view instead of the header": (
        "foreign view 'gallery'",
        "ALTER TABLE gallery RENAME TO hidden",
        "CREATE VIEW gallery AS WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n FROM r) "
        "SELECT n AS version, '' AS header, ''::bytea AS header_mark FROM r",
    ),
    "a column with a default": (
        "column 'people.extra'",
        "ALTER TABLE people ADD COLUMN extra timestamptz DEFAULT clock_timestamp()",
    ),
    "a default": ("another column 'people.body'", "ALTER TABLE people ALTER COLUMN body SET DEFAULT ''"),
    "a generated column": (
        "column 'people.extra'",
        "ALTER TABLE people ADD COLUMN extra text GENERATED ALWAYS AS (encode(body, 'hex')) STORED",
    ),
    "row security": ("row security 'people'", "ALTER TABLE people ENABLE ROW LEVEL SECURITY"),
    "a policy": ("policy 'p'", "CREATE POLICY p ON people USING (false)"),
    "a check": ("constraint 'c'", "ALTER TABLE people ADD CONSTRAINT c CHECK (length(body) > 0)"),
    "an index of an expression": ("foreign index 'i'", "CREATE INDEX i ON people (encode(body, 'hex'))"),
    "an index of the same name": (
        "another index 'templates_person'",
        "DROP INDEX templates_person",
        "CREATE INDEX templates_person ON templates (person_id) WHERE length(body) > 0",
    ),
    "a table that a crash empties": ("unlogged table 'removals'", "ALTER TABLE removals SET UNLOGGED"),
    "values that are compressed": (
        "sampling or compression 'people.body'",
        "ALTER TABLE people ALTER body SET STORAGE EXTENDED",
    ),
    "values that are sampled": (
        "sampling or compression 'images.body'",
        "ALTER TABLE images ALTER body SET STATISTICS 100",
    ),
    "a table of this version": ("no table 'commits'", "DROP TABLE commits"),
    "a column of this version": ("no column 'gallery.detectors'", "ALTER TABLE gallery DROP COLUMN detectors"),
    "a table that inherits": ("inheritance 'people'", "CREATE TABLE child () INHERITS (people)"),
    "another type": ("another column 'images.body'", "ALTER TABLE images ALTER COLUMN body TYPE text USING ''"),
    "no foreign key": (
        "no constraint 'images_template_id_fkey'",
        "ALTER TABLE images DROP CONSTRAINT images_template_id_fkey",
    ),
    "no table": ("no table 'removals'", "DROP TABLE removals"),
    "an operator that fits better than a built-in one": (
        "foreign operator",
        "CREATE FUNCTION f(oid, regnamespace) RETURNS boolean LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'foreign code ran'; END $$",
        "CREATE OPERATOR = (FUNCTION = f, LEFTARG = oid, RIGHTARG = regnamespace)",
    ),
}
CASES = pytest.mark.parametrize("case", FOREIGN.values(), ids=FOREIGN)


def change(cluster: Any, gallery: str, *statements: str) -> None:
    for statement in statements:
        cluster.sql(f"SET search_path TO edgeface_{gallery}; {statement}")


@CASES
def test_a_foreign_schema_is_named_on_opening_and_not_run(cluster: Any, gallery: str, case: tuple[str, ...]) -> None:
    with create(cluster.url, gallery, key=KEY) as store:
        store.add_person("Ada", templates=templates(2))
    change(cluster, gallery, *case[1:])
    with pytest.raises(GalleryDamagedError, match=case[0]):
        open_store(cluster.url, gallery, key=KEY)


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.forget(1),
        lambda store: store.add_person("Grace", templates=templates(1)),
        lambda store: store.rekey(bytes(32)),
    ],
    ids=["forget", "add", "rekey"],
)
def test_a_write_notices_a_schema_that_changed_while_the_gallery_was_open(
    cluster: Any, gallery: str, act: Callable[[Any], object]
) -> None:
    with create(cluster.url, gallery, key=KEY) as store:
        known = store.add_person("Ada", templates=templates(2))
        change(cluster, gallery, *FOREIGN["a trigger"][1:])
        with pytest.raises(GalleryDamagedError, match="trigger 't'"):
            act(store)
        assert "a foreign trigger 't'" in store.check().problems[0]
        change(cluster, gallery, "DROP TRIGGER t ON people")
        assert store.people() == (known,)
        assert store.check()


def test_the_tables_that_0_1_made_are_a_gallerys(pgvector: Any, gallery: str) -> None:
    """Written down here as edgeface 0.1 made them."""
    with create(pgvector.url, gallery) as store:
        ada = store.add_person("Ada", templates=templates(2))
    rest = f"""
        CREATE TABLE old_vectors AS SELECT * FROM vectors;
        ALTER TABLE templates RENAME TO old_templates; ALTER TABLE people RENAME TO old_people;
        ALTER TABLE gallery RENAME TO old_gallery; DROP TABLE images, removals, commits, staged, vectors;
        ALTER TABLE old_templates DROP CONSTRAINT templates_person_id_fkey, DROP CONSTRAINT templates_pkey;
        ALTER TABLE old_people DROP CONSTRAINT people_pkey, DROP CONSTRAINT people_name_mark_key;
        ALTER TABLE old_gallery DROP CONSTRAINT gallery_pkey, DROP CONSTRAINT gallery_one_check;
        DROP INDEX templates_person, templates_generation;
        CREATE TABLE gallery (
            one integer PRIMARY KEY CHECK (one = 1),
            version integer NOT NULL,
            header text NOT NULL,
            header_mark bytea NOT NULL,
            generation bigint NOT NULL,
            next_id bigint NOT NULL,
            known_since bigint NOT NULL,
            unscrubbed bigint NOT NULL
        );
        CREATE TABLE people (id bigint PRIMARY KEY, name_mark bytea NOT NULL UNIQUE, body bytea NOT NULL);
        CREATE TABLE templates (
            id bigint PRIMARY KEY,
            person_id bigint NOT NULL REFERENCES people (id),
            generation bigint NOT NULL,
            body bytea NOT NULL
        );
        CREATE INDEX templates_person ON templates (person_id);
        CREATE INDEX templates_generation ON templates (generation);
        CREATE TABLE images (
            template_id bigint PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
            body bytea NOT NULL
        );
        CREATE TABLE removals (template_id bigint PRIMARY KEY, generation bigint NOT NULL);
        CREATE INDEX removals_generation ON removals (generation);
        CREATE TABLE vectors (
            template_id bigint PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
            embedding public.vector({DIM}) NOT NULL
        );
        INSERT INTO gallery SELECT one, version, header, header_mark, generation, next_id, known_since, unscrubbed
            FROM old_gallery;
        INSERT INTO people SELECT * FROM old_people;
        INSERT INTO templates SELECT * FROM old_templates; UPDATE gallery SET version = 1;
        INSERT INTO vectors SELECT * FROM old_vectors; DROP TABLE old_templates, old_people, old_gallery, old_vectors
    """
    change(pgvector, gallery, rest)
    with open_store(pgvector.url, gallery) as store:
        assert store.people() == (ada,)
        store.add_graph()
        assert store.check()
    with open_store(pgvector.url, gallery) as store:
        assert store.forget(ada.id).templates == 2
