"""Tables of a gallery on a PostgreSQL server, and the comparison of what a server has with them.

The tables are those of the file, in a schema of their own. In a gallery that is not encrypted `vectors` holds the
embeddings once more, in a form that the server can compare: ``vector`` (float32) or ``halfvec`` (float16, half the
memory). An encrypted gallery has no such table: the server must not be able to read embeddings, so it cannot search
them either.

A server runs what is attached to a table: triggers, rules and views, defaults and generated columns, expressions of
indexes and checks, policies of row security, which can also hide rows from `forget`. A function or an operator in the
gallery's schema can be taken for a built-in one. So everything there is compared before any statement on the tables.

A server also copies values to where no erasure reaches: ANALYZE samples them into pg_statistic, with names where the
gallery is not encrypted, and long values are compressed, so that a search for their bytes finds nothing. Both are
turned off for what is sealed, and for embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from edgeface.errors import InputError
from edgeface.gallery.store.database import schema_differences

SCHEMA_VERSION = 4
"""1 had no table `commits`; 2 no `staged`, and let the server sample and compress what is sealed; 3 no detectors."""
ADDED_LATER = ("commits", "staged")
VectorType = Literal["vector", "halfvec"]

_MAX_DIM = 16000
"""Values of a vector or halfvec, and 2,000 or 4,000 of one with an HNSW index (pgvector 0.8, README)."""

_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gallery": (
            *("one integer", "version integer", "header text", "header_mark bytea"),
            *("generation bigint", "next_id bigint", "known_since bigint", "unscrubbed bigint"),
            "detectors text",
        ),
        "people": ("id bigint", "name_mark bytea", "body bytea"),
        "templates": ("id bigint", "person_id bigint", "generation bigint", "body bytea"),
        "images": ("template_id bigint", "body bytea"),
        "removals": ("template_id bigint", "generation bigint"),
        "commits": ("generation bigint", "history text"),
        "staged": ("template_id bigint", "contract_id text", "body bytea"),
        "vectors": ("template_id bigint", "embedding public.{type}({dim})"),
    }
)
"""None of them may be null."""
_OF_TEMPLATE = "FOREIGN KEY (template_id) REFERENCES {schema}.templates(id) ON DELETE CASCADE"
_CONSTRAINTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "gallery": {"gallery_pkey": "PRIMARY KEY (one)", "gallery_one_check": "CHECK ((one = 1))"},
        "people": {"people_pkey": "PRIMARY KEY (id)", "people_name_mark_key": "UNIQUE (name_mark)"},
        "templates": {
            "templates_pkey": "PRIMARY KEY (id)",
            "templates_person_id_fkey": "FOREIGN KEY (person_id) REFERENCES {schema}.people(id)",
        },
        "images": {"images_pkey": "PRIMARY KEY (template_id)", "images_template_id_fkey": _OF_TEMPLATE},
        "removals": {"removals_pkey": "PRIMARY KEY (template_id)"},
        "commits": {"commits_pkey": "PRIMARY KEY (generation)"},
        "staged": {"staged_pkey": "PRIMARY KEY (template_id)", "staged_template_id_fkey": _OF_TEMPLATE},
        "vectors": {"vectors_pkey": "PRIMARY KEY (template_id)", "vectors_template_id_fkey": _OF_TEMPLATE},
    }
)
_INDEXES: Mapping[str, str] = MappingProxyType(
    {
        "templates_person": "templates USING btree (person_id)",
        "templates_generation": "templates USING btree (generation)",
        "removals_generation": "removals USING btree (generation)",
    }
)
"""By name; `vectors_graph` is one that `PostgresStore.add_graph` makes."""
_GRAPH = re.compile(
    r"CREATE INDEX vectors_graph ON \w+\.vectors USING hnsw \(embedding public\.(vector|halfvec)_ip_ops\) "
    r"WITH \(m='?\d+'?, ef_construction='?\d+'?\)"
)


def check_gallery_name(name: str) -> str:
    """Return the name of a gallery's schema; `InputError` if the gallery has no plain name."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
        raise InputError(
            f"gallery name: expected a lower-case letter, then up to 49 of a-z, 0-9 and _, found {name!r:.60}"
        )
    return f"edgeface_{name}"


def statements(schema: str, dim: int, searched_as: VectorType | None) -> list[str]:
    """Return what makes the empty tables."""
    made = [statement for table in _COLUMNS if table != "vectors" for statement in table_statements(schema, table)]
    made += [f"CREATE INDEX {name} ON {schema}.{what}" for name, what in _INDEXES.items()]
    return made if searched_as is None else [*made, *vectors_statements(schema, dim, searched_as)]


def vectors_statements(schema: str, dim: int, searched_as: VectorType) -> list[str]:
    """Return what makes the empty table that pgvector searches."""
    if searched_as not in ("vector", "halfvec") or not 1 <= dim <= _MAX_DIM:
        raise InputError(
            f"vectors: expected vector or halfvec of 1 to {_MAX_DIM:,} values, found {searched_as!r} of {dim:,}"
        )
    return [each.format(type=searched_as, dim=dim) for each in table_statements(schema, "vectors")]


def table_statements(schema: str, table: str) -> list[str]:
    """Return what makes an empty table."""
    parts = [f"{column} NOT NULL" for column in _COLUMNS[table]]
    parts += [f"CONSTRAINT {name} {text.format(schema=schema)}" for name, text in _CONSTRAINTS[table].items()]
    return [f"CREATE TABLE {schema}.{table} ({', '.join(parts)})", *keep_plain(schema, table)]


def keep_plain(schema: str, table: str) -> list[str]:
    """Return what lets the server neither sample nor compress a table's secrets, and drops what it has sampled."""
    changes = []
    for name, kind in (column.split(" ", 1) for column in _COLUMNS[table]):
        if name in ("body", "name_mark", "embedding"):  # `TYPE` drops the statistics, also where it changes nothing
            changes += [f"ALTER {name} {what}" for what in (f"TYPE {kind}", "SET STATISTICS 0", "SET STORAGE EXTERNAL")]
    return [f"ALTER TABLE {schema}.{table} {', '.join(changes)}"] if changes else []


# Comparison

_FOUND = """
WITH own AS (SELECT * FROM pg_class WHERE relnamespace = to_regnamespace(?)::oid AND relkind NOT IN ('i', 'I'))
SELECT o.type, coalesce(o.name, o.identity), ''
    FROM pg_depend, LATERAL pg_identify_object(classid, objid, 0) AS o
    WHERE refclassid = 'pg_namespace'::regclass AND refobjid = to_regnamespace(?)::oid
    AND o.type NOT IN ('default acl', 'publication namespace')
UNION ALL SELECT 'column', relname || '.' || attname, format_type(atttypid, atttypmod)
    || CASE WHEN attnotnull THEN '' ELSE ' or null' END
    || CASE WHEN atthasdef OR attidentity <> '' OR attgenerated <> '' THEN ' with a default' ELSE '' END
    FROM own JOIN pg_attribute ON attrelid = own.oid WHERE attnum > 0 AND NOT attisdropped
UNION ALL SELECT 'constraint', conname, relname || ' ' || pg_get_constraintdef(pg_constraint.oid)
    FROM own JOIN pg_constraint ON conrelid = own.oid WHERE contype <> 'n'
UNION ALL SELECT 'index', pg_class.relname, pg_get_indexdef(indexrelid)
    FROM own JOIN pg_index ON indrelid = own.oid JOIN pg_class ON pg_class.oid = indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
UNION ALL SELECT 'trigger', tgname, relname FROM own JOIN pg_trigger ON tgrelid = own.oid WHERE NOT tgisinternal
UNION ALL SELECT 'rule', rulename, relname FROM own JOIN pg_rewrite ON ev_class = own.oid
UNION ALL SELECT 'policy', polname, relname FROM own JOIN pg_policy ON polrelid = own.oid
UNION ALL SELECT 'row security', relname, '' FROM own WHERE relrowsecurity OR relforcerowsecurity
UNION ALL SELECT 'unlogged table', relname, '' FROM own WHERE relkind = 'r' AND relpersistence <> 'p'
UNION ALL SELECT 'sampling or compression', relname || '.' || attname, ''
    FROM own JOIN pg_attribute ON attrelid = own.oid
    WHERE attname IN ('body', 'name_mark', 'embedding') AND (attstorage <> 'e' OR attstattarget IS DISTINCT FROM 0)
    AND EXISTS (SELECT FROM own WHERE relname = 'staged')
UNION ALL SELECT 'inheritance', relname, '' FROM own JOIN pg_inherits ON own.oid IN (inhparent, inhrelid)
"""
"""Kind, name and definition of everything in a schema, and of everything that acts on its tables. Tables without
`staged`, of an earlier version, are not yet kept from being sampled and compressed."""

_Part = tuple[str, str, str]
_DETECTORS: _Part = ("column", "gallery.detectors", "text")


def _expected(schema: str, tables: set[str]) -> set[_Part]:
    wanted: set[_Part] = set()
    for table in tables:
        columns = (column.split(" ", 1) for column in _COLUMNS[table])
        wanted |= {("table", table, ""), *(("column", f"{table}.{name}", text) for name, text in columns)}
        for name, text in _CONSTRAINTS[table].items():
            wanted.add(("constraint", name, f"{table} {text.format(schema=schema)}"))
    return wanted | {
        ("index", name, f"CREATE INDEX {name} ON {schema}.{what}")
        for name, what in _INDEXES.items()
        if what.split()[0] in tables
    }


def foreign_parts(connection: Any, schema: str) -> list[str]:
    """Say in what a schema differs from a gallery's; empty if in nothing, or if there is none.

    `connection` resolves names in pg_catalog alone: an operator in another schema could fit better.
    """
    rows = connection.execute(_FOUND, (schema, schema)).fetchall()
    found = {(str(kind), str(name), _plain(str(text))) for kind, name, text in rows if not _GRAPH.fullmatch(str(text))}
    if not found:
        return []
    optional = {table for table in (*ADDED_LATER, "vectors") if ("table", table, "") not in found}
    expected = _expected(schema, _COLUMNS.keys() - optional)
    if _DETECTORS[:2] not in {part[:2] for part in found}:
        expected.discard(_DETECTORS)
    return schema_differences(found, expected)


def _plain(text: str) -> str:
    """Leave out what differs between galleries: the form of the vectors."""
    return re.sub(r"^public\.(vector|halfvec)\(\d+\)$", "public.{type}({dim})", text)
