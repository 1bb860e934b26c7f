"""Galleries on a PostgreSQL server, shared by many kiosks (extra ``postgres``)."""

from edgeface.gallery.store.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
