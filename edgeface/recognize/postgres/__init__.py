"""Galleries on a PostgreSQL server, shared by many kiosks (extra ``postgres``)."""

from edgeface.recognize.postgres.index import PostgresIndex
from edgeface.recognize.postgres.store import PostgresStore

__all__ = ["PostgresIndex", "PostgresStore"]
