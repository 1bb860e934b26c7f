"""Galleries on a PostgreSQL server, shared by many kiosks (extra ``postgres``)."""

from edgeface.gallery.store.postgres.index import PostgresIndex
from edgeface.gallery.store.postgres.store import PostgresStore

__all__ = ["PostgresIndex", "PostgresStore"]
