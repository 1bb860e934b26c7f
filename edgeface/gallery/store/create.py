"""What a gallery is bound to in, a file with nobody in it out, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from edgeface.errors import OutputError
from edgeface.files import output_errors, staging_folder
from edgeface.gallery.codec import Header
from edgeface.gallery.store.cipher import Vault
from edgeface.gallery.store.database import mark_header
from edgeface.gallery.store.faults import sqlite_errors
from edgeface.gallery.store.schema import PAGE_SIZE, create_tables

__all__ = ["create_database"]

_BESIDE = ("-wal", "-shm", "-journal", ".index")
"""Endings of what lies beside a gallery. Left behind by an earlier one, SQLite would write it into the new one."""


def create_database(path: Path, header: Header, vault: Vault) -> None:
    """Make a gallery with nobody in it, whole or not at all.

    Only its owner may read it (mode 0600), and SQLite gives what it keeps beside it the same mode.

    Raises
    ------
    OutputError
        If something is there already, or the folder cannot be written to.
    """
    with output_errors(path):
        if path.exists():
            raise OutputError(f"{path}: expected no file there yet, found one; choose another name")
        for suffix in _BESIDE:
            if (left := path.with_name(path.name + suffix)).exists():
                raise OutputError(
                    f"{path}: expected nothing there of an earlier gallery, found {left.name}; bring back the gallery "
                    "that it belongs to, remove it, or choose another name"
                )
    with staging_folder(path.parent) as staging, sqlite_errors(path):
        staged = staging / path.name
        connection = sqlite3.connect(staged, isolation_level=None)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise OutputError(
                    f"{path}: expected a disk of this machine, on which SQLite can keep a WAL, found one on which it "
                    f"falls back to {mode!r}; choose another folder, or PostgreSQL for a gallery of several machines"
                )
            connection.execute("BEGIN IMMEDIATE")
            create_tables(connection)
            text = header.encode()
            connection.execute(
                "INSERT INTO gallery (one, header, header_mark, generation, next_id) VALUES (1, ?, ?, 1, 1)",
                (text, mark_header(text, vault)),
            )
            connection.commit()
        finally:
            connection.close()
        with output_errors(path):
            with contextlib.suppress(PermissionError):  # a file system without modes
                staged.chmod(0o600)
            _link(staged, path)
            _sync_folder(path.parent)


def _link(staged: Path, path: Path) -> None:
    """Give a finished file its name, and never take the name from another."""
    try:
        try:
            os.link(staged, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links, such as that of a USB stick
            path.touch(mode=0o600, exist_ok=False)
            staged.replace(path)
    except FileExistsError:
        raise OutputError(f"{path}: expected no file there yet, found one; choose another name") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
