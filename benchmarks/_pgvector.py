"""What benchmarks/gallery.py searches: the interface, and pgvector in a PostgreSQL server of the benchmark's own."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgeface.gallery.records import TemplateBlock
from edgeface.gallery.store.postgres.store import vector_text
from edgeface.model.embedding import Embedding

_WANTED = 17
"""Candidates that are fetched for the best one, as by `PostgresIndex`."""
_AT_ONCE = 20_000
_SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "4GB"}
_IN_BUILDING = {"maintenance_work_mem": "3GB", "max_parallel_maintenance_workers": "0"}
"""A graph that does not fit into this memory is built many times as slowly."""


class Engine:
    """Something that finds the most similar template."""

    views: Sequence[int | None] = (None,)
    """What to search with, widest last; see `look_at`."""

    def first(self, probe: Embedding) -> int:
        """Return the id of the most similar template."""
        raise NotImplementedError

    def add(self, block: TemplateBlock) -> None:
        """Add templates, found from then on."""
        raise NotImplementedError

    def sizes(self) -> dict[str, float]:
        """Return what it takes, in megabytes."""
        raise NotImplementedError

    def look_at(self, candidates: int | None) -> None:
        """Keep so many candidates in view."""

    def server_cpu(self) -> float:
        """Return the CPU seconds that other processes took for it."""
        return 0.0


class PgVector(Engine):
    """HNSW over halfvec as `PostgresStore.add_graph` makes it, filled by COPY; a context manager.

    Candidates are compared again here. What `PostgresIndex` does besides, fetching the candidates' rows and checking
    their digests, is not in it.
    """

    views = (100, 400)

    def __init__(self, block: TemplateBlock) -> None:
        self._vectors, self._new = block.vectors, list[np.ndarray]()
        self._opened = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            url = opening.enter_context(_server())
            import psycopg

            self._reader, self._writer = (
                opening.enter_context(psycopg.connect(url, autocommit=True)) for _ in range(2)
            )
            self._backends = [psutil.Process(each.info.backend_pid) for each in (self._reader, self._writer)]
            self._fill(block)
            self._opened = opening.pop_all()

    def _fill(self, block: TemplateBlock) -> None:
        run = self._writer.execute
        run("CREATE EXTENSION vector")
        dim = block.vectors.shape[1]
        run(f"CREATE TABLE vectors (template_id bigint PRIMARY KEY, embedding halfvec({dim}) NOT NULL)")
        with self._writer.cursor() as cursor, cursor.copy("COPY vectors FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
            for start in range(0, len(block), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                copy.write(_rows(block.ids[part], block.vectors[part]).tobytes())
            copy.write(b"\xff\xff")
        for name, value in _IN_BUILDING.items():
            run(f"SET {name} = '{value}'")
        run("CREATE INDEX graph ON vectors USING hnsw (embedding halfvec_ip_ops) WITH (m = 16, ef_construction = 64)")

    def first(self, probe: Embedding) -> int:
        unit = probe.vector / np.linalg.norm(probe.vector)
        query = f"SELECT template_id FROM vectors ORDER BY embedding <#> %s::halfvec LIMIT {_WANTED}"
        ids = [row[0] for row in self._reader.execute(query, (vector_text(unit),))]
        count = len(self._vectors)
        rows = [self._vectors[each - 1] if each <= count else self._new[each - 1 - count] for each in ids]
        return int(ids[int(np.argmax(np.stack(rows) @ unit))])

    def add(self, block: TemplateBlock) -> None:
        self._new += list(block.vectors)
        values = [part for row in zip(block.ids.tolist(), map(vector_text, block.vectors), strict=True) for part in row]
        places = ", ".join(["(%s, %s::halfvec)"] * len(block))
        self._writer.execute(f"INSERT INTO vectors VALUES {places}", values)

    def look_at(self, candidates: int | None) -> None:
        self._reader.execute(f"SET hnsw.ef_search = {candidates}")

    def sizes(self) -> dict[str, float]:
        query = "SELECT pg_table_size('vectors'), pg_relation_size('graph')"
        table, graph = self._reader.execute(query).fetchone() or (0, 0)
        return {"table_mb": round(table / 1e6), "graph_mb": round(graph / 1e6)}

    def server_cpu(self) -> float:
        times = [each.cpu_times() for each in self._backends]
        return sum(each.user + each.system for each in times)

    def __enter__(self) -> PgVector:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _rows(ids: np.ndarray, vectors: np.ndarray) -> Any:
    """Return rows of two columns in COPY's binary form; a halfvec is its length, a zero and big-endian halfs."""
    dim = vectors.shape[1]
    fields = (("columns", ">i2"), ("id_bytes", ">i4"), ("id", ">i8"), ("bytes", ">i4"), ("dim", ">i2"), ("zero", ">i2"))
    rows = np.zeros(len(ids), np.dtype([*fields, ("values", ">f2", dim)]))
    rows["columns"], rows["id_bytes"], rows["bytes"], rows["dim"] = 2, 8, 4 + 2 * dim, dim
    rows["id"], rows["values"] = ids, vectors
    return rows


@contextlib.contextmanager
def _server() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from postgres_server import Cluster, binaries

    programs = binaries()
    if programs is None:
        raise SystemExit("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql-15, .ci/pgvector")
    folder = Path(tempfile.mkdtemp(prefix="edgeface-postgres-"))
    try:
        cluster = Cluster(folder, programs, **_SETTINGS)
        cluster.start()
        try:
            yield cluster.url
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
